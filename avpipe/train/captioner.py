"""A captioner is a fusion and a decoder."""

from __future__ import annotations

from typing import Any, Protocol, Self

from torch import Tensor, nn

from avpipe.train.batch import Batch, Fused


class State(Protocol):
    """What a decoder remembers between two tokens: a row for each unfinished caption, R in all."""

    def take(self, rows: Tensor) -> Self:
        """The rows at ``rows`` (``(N,)``, int64, repeats allowed), whichever clips they are of: how several captions of
        a clip begin, which the decoder has read once.
        """

    def reorder(self, rows: Tensor) -> Self:
        """As :meth:`take`, after a beam search kept ``rows`` (``(R,)``). Rows never leave their clip, so what was
        computed from the clip may stay where it is.
        """


class Decoder(Protocol):
    """What a captioner and a beam search ask of a decoder. See :mod:`avpipe.train.decoders.transformer`."""

    max_tokens: int

    def __call__(self, fused: Fused, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Teacher forcing: ``(N, L)`` tokens to ``(N, L, V)`` logits."""

    def start(self, fused: Fused) -> Any:
        """The state before the first token: of each clip a row."""

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """``(R,)`` last tokens to ``(R, V)`` logits and the new state."""


class Captioner(nn.Module):
    """A fusion and a decoder.

    Args:
        fusion: ``fusion(batch) -> Fused``.
        decoder: ``decoder(fused, tokens, token_mask) -> logits``.

    Attributes:
        elsewhere: names of the parameters that the parts themselves freeze. They are read from their own files whenever
            a part is built, so no checkpoint holds them.
    """

    def __init__(self, fusion: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.fusion = fusion
        self.decoder = decoder
        every = self.named_parameters(remove_duplicate=False)
        self.elsewhere = frozenset(name for name, parameter in every if not parameter.requires_grad)

    @property
    def max_tokens(self) -> int:
        """The longest caption that the decoder can hold, begin and end included."""
        return int(self.decoder.max_tokens)  # type: ignore[arg-type]

    def forward(self, batch: Batch) -> Tensor:
        """Logits of every caption's next tokens: ``(N, L - 1, V)`` for the targets ``batch.tokens[:, 1:]``."""
        return self.teach(batch)[1]

    def teach(self, batch: Batch) -> tuple[Fused, Tensor]:
        """What the fusion makes of the B clips, and the logits of :meth:`forward`."""
        fused: Fused = self.fusion(batch)
        return fused, self.decode(fused, batch)

    def decode(self, fused: Fused, batch: Batch) -> Tensor:
        """The logits of :meth:`forward`, of clips that are fused already."""
        if batch.tokens is None or batch.token_mask is None or batch.caption_clip is None:
            raise ValueError("batch: expected captions, got none; generation goes through generate.beam_search")
        logits: Tensor = self.decoder(fused.take(batch.caption_clip), batch.tokens[:, :-1], batch.token_mask[:, :-1])
        return logits
