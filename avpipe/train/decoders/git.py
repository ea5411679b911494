"""GIT's text decoder: a stack of self-attention over what the fusion gives, then the words.

Wang et al., "GIT: A Generative Image-to-text Transformer" (TMLR 2022), as Kim et al., "AVCap" (Interspeech 2024) use
it; authors' code microsoft/GenerativeImage2Text and JongSuk1/AVCap. There is no cross-attention. The sequence is [fused
positions; text], through BERT's post-norm layers, and who sees whom is settled by one mask::

    asks \\ is asked     positions     text
    positions            all           none
    text                 all           itself and what came before

Words have a learned place in the caption and a LayerNorm; fused positions enter as the fusion gives them. The output
matrix is that of the word embeddings, with a bias of its own.

Positions never see text, so their keys and values, in every layer, depend on the clip alone. ``start`` computes them,
once a clip however many beams there are, and a step costs one token. The authors compute the whole sequence again for
every token; the numbers are the same (docs/benchmarks.md says what it saves).

Deviations: positions that are padding, or of an absent modality, are seen by nobody (the authors have none). The
projection before the layers, ``av_projection`` or ``visual_projection`` there, is in the fusion ``av_tokens`` here; it
stands in front of the decoder for fusions of another width, see ``projection``.

AVCap trains on a Kullback-Leibler divergence from smoothed labels, 0.1 spread over all *other* words:
``objectives.cross_entropy`` with ``label_smoothing: 0.1, form: kl``.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from avpipe.pipeline.errors import CheckpointError, UsageError
from avpipe.train import start_values
from avpipe.train.batch import Fused
from avpipe.train.layers import HeadsDivideWidth, attend, initialise, key_bias, rows_of, split_heads

WORD_NORM_EPS = 1e-8
LAYER_NORM_EPS = 1e-12  # BERT's


class Config(HeadsDivideWidth):
    """Sizes of the ``git`` decoder. The defaults are GIT-base's, and GIT-large's, whose text side is no larger."""

    width: int = Field(768, ge=8)
    """Channels of a token."""
    layers: int = Field(6, ge=1)
    """How many layers. AVCap's paper says 12, its code and GIT's have 6."""
    heads: int = Field(12, ge=1)
    """Attention heads; divides ``width``."""
    feed_forward: int = Field(3072, ge=8)
    """Hidden channels of the feed-forward part."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Of channels and of attention weights."""
    positions: int = Field(1024, ge=4)
    """The longest caption in tokens, begin and end included."""
    projection: Literal["if_needed", "always"] = "if_needed"
    """When fused positions go through GIT's ``visual_projection`` (Linear, LayerNorm) first: if their width is not
    ``width``, or always. The fusion ``av_tokens`` has one of its own."""
    initializer_std: float | None = Field(0.02, gt=0)
    """Standard deviation of matrices at the start; none = Glorot's, for small widths."""
    initialise_from: str = ""
    """GIT's file (``model_git_base.pt``), a folder or repository (``microsoft/git-base``), or AVCap's file; empty: new.
    The tokenizer must be BERT's (``google-bert/bert-base-uncased``). Of GIT-large's file the projection is left out."""


@dataclass(slots=True)
class State:
    """What decoding one token at a time remembers: a row for each unfinished caption, and C clips of which each has
    ``beams`` rows, R in all.

    Attributes:
        seen: for each layer, keys and values of the fused positions, ``(C, H, S, D)``.
        bias: the fused positions' mask, to be added to scores, ``(C, 1, 1, S)``.
        beams: R / C.
        past: for each layer, keys and values of the tokens so far, ``(R, H, L, D)``.
        length: tokens so far.
    """

    seen: list[tuple[Tensor, Tensor]]
    bias: Tensor
    beams: int
    past: list[tuple[Tensor, Tensor]]
    length: int = 0

    def take(self, rows: Tensor) -> State:
        """The rows at ``rows``; see :class:`avpipe.train.captioner.State`. Rows that follow one another and are of
        one clip go on sharing what was computed of it.
        """
        clips = rows // self.beams
        beams = _repeats(clips)
        firsts = clips[::beams]
        kept = self.reorder(rows)
        return replace(kept, seen=rows_of(self.seen, firsts), bias=self.bias[firsts], beams=beams)

    def reorder(self, rows: Tensor) -> State:
        """The rows that a beam search kept; what was computed from the clip stays where it is."""
        return replace(self, past=rows_of(self.past, rows))


class Decoder(nn.Module):
    """The decoder.

    Args:
        config: sizes.
        fused_width: width of what the fusion gives.
        vocabulary_size: V.
    """

    def __init__(self, config: Config, *, fused_width: int, vocabulary_size: int) -> None:
        super().__init__()
        self.initialise_from = config.initialise_from
        self.max_tokens = config.positions
        width = config.width
        projects = config.projection == "always" or fused_width != width
        self.projection = (
            nn.Sequential(nn.Linear(fused_width, width), nn.LayerNorm(width)) if projects else nn.Identity()
        )
        self.tokens = nn.Embedding(vocabulary_size, width)
        self.positions = nn.Embedding(config.positions, width)
        self.norm = nn.LayerNorm(width, eps=WORD_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.out_bias = nn.Parameter(torch.zeros(vocabulary_size))
        initialise(self, config.initializer_std)

    def read_start_values(self) -> None:
        """Read the public weights that the configuration names.

        Raises:
            MissingWeightsError: they are neither here nor to be had.
            CheckpointError: they are not complete, or do not fit.
            UsageError: they have other words than the tokenizer.
        """
        if not self.initialise_from:
            return
        held = start_values.read(self.initialise_from, component="decoder git", option="initialise_from")
        given = from_official(held.tensors, projection=not isinstance(self.projection, nn.Identity))
        there, asked = len(given["tokens.weight"]), len(self.tokens.weight)
        if there != asked:
            raise UsageError(
                f"decoder.initialise_from={self.initialise_from} has {there} words, the tokenizer has {asked}: its "
                "numbers mean others. Try tokenizer.name=google-bert/bert-base-uncased"
            )
        wide = given.get("projection.0.weight")
        if wide is not None and wide.shape != self.projection[0].weight.shape:  # type: ignore[index]
            given = {name: tensor for name, tensor in given.items() if not name.startswith("projection.")}
        has_projection = "projection.0.weight" in given
        left_over = [name for name in held.tensors if _OTHER_PARTS.fullmatch(name)]
        start_values.fill(
            self, given, held, may_be_new="" if has_projection else r"projection\..+", left_over=left_over
        )

    def forward(self, fused: Fused, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Logits of the token after each position.

        Args:
            fused: one row for each caption: N rows.
            tokens: ``(N, L)``, begin-of-sentence first.
            token_mask: ``(N, L)``, True = real. Padding follows the caption, so the mask of order never shows it.

        Returns:
            ``(N, L, V)``.
        """
        bias = key_bias(fused.mask, fused.data.dtype)
        length = tokens.shape[1]
        future = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        order = torch.zeros(length, length, dtype=bias.dtype, device=tokens.device)
        order = order.masked_fill(future, torch.finfo(bias.dtype).min).expand(len(tokens), 1, -1, -1)
        both = torch.cat([bias.expand(-1, -1, length, -1), order], dim=-1)  # (N, 1, L, S + L)
        data = self._embed(tokens, self.positions.weight[:length])
        for layer, seen in self._seen(fused.data, bias):
            data = layer(data, seen, both)
        return self._logits(data)

    def start(self, fused: Fused) -> State:
        """The state before the first token; what is computed of the fused positions is computed once."""
        bias = key_bias(fused.mask, fused.data.dtype)
        seen = [of_layer for _, of_layer in self._seen(fused.data, bias)]
        key, _ = seen[0]
        nothing = key.new_empty(len(fused.data), key.shape[1], 0, key.shape[3])
        return State(seen=seen, bias=bias, beams=1, past=[(nothing, nothing)] * len(seen))

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """One token further.

        Args:
            tokens: ``(R,)``: the last token of each row.
            state: from :meth:`start` or the former step.

        Returns:
            Logits of the next token ``(R, V)``, and the new state.
        """
        data = self._embed(tokens[:, None], self.positions.weight[state.length])
        past = []
        for layer, seen, before in zip(self._stack(), state.seen, state.past, strict=True):
            data, after = layer.step(data, seen, state.bias, state.beams, before)
            past.append(after)
        new = State(seen=state.seen, bias=state.bias, beams=state.beams, past=past, length=state.length + 1)
        return self._logits(data)[:, 0], new

    def _stack(self) -> list[_Layer]:
        return cast("list[_Layer]", list(self.layers))

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.norm(self.tokens(tokens) + positions))
        return out

    def _seen(self, fused: Tensor, bias: Tensor) -> Iterator[tuple[_Layer, tuple[Tensor, Tensor]]]:
        """Each layer with the keys and values of the fused positions there; what follows the last is not computed."""
        data = self.projection(fused)
        stack = self._stack()
        for layer in stack:
            query, key, value = layer.projections(data)
            yield layer, (key, value)
            if layer is not stack[-1]:
                data = layer.after(data, query, key, value, bias)

    def _logits(self, data: Tensor) -> Tensor:
        return F.linear(data, self.tokens.weight, self.out_bias)


def _repeats(clips: Tensor) -> int:
    """The largest n for which clips come n times in a row."""
    return math.gcd(*(len(list(same)) for _, same in itertools.groupby(clips.tolist())))


class _Layer(nn.Module):
    """BERT's layer: ``x = LN(x + Attention(x)); x = LN(x + FFN(x))``, exact GELU."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.feed_forward_in = nn.Linear(width, config.feed_forward)
        self.feed_forward_out = nn.Linear(config.feed_forward, width)
        self.feed_forward_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def projections(self, data: Tensor) -> list[Tensor]:
        """Query, key and value, ``(B, H, K, D)`` each."""
        return [split_heads(part, self.heads) for part in self.query_key_value(data).chunk(3, dim=-1)]

    def after(self, data: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """``data`` after the layer, where its queries meet these keys."""
        seen, _ = attend(query, key, value, bias=bias, dropout=self.dropout.p if self.training else 0.0)
        return self._feed(data, seen)

    def forward(self, data: Tensor, seen: tuple[Tensor, Tensor], bias: Tensor) -> Tensor:
        """Text, which sees the fused positions and itself: ``bias`` is ``(N, 1, L, S + L)``."""
        query, key, value = self.projections(data)
        return self.after(data, query, torch.cat([seen[0], key], dim=2), torch.cat([seen[1], value], dim=2), bias)

    def step(
        self, data: Tensor, seen: tuple[Tensor, Tensor], bias: Tensor, beams: int, past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One token, ``(R, 1, W)``. The beams of a clip share its keys, which are read once for all of them."""
        query, key, value = self.projections(data)
        key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        scale = 1 / math.sqrt(query.shape[-1])

        def by_clip(rows: Tensor) -> Tensor:  # (R, H, 1, X) -> (C, H, beams, X)
            return rows.view(-1, beams, *rows.shape[1:]).squeeze(3).transpose(1, 2)

        def by_row(clips: Tensor) -> Tensor:  # and back
            return clips.transpose(1, 2).flatten(0, 1).unsqueeze(2)

        on_seen = by_clip(query) @ seen[0].transpose(-2, -1) * scale  # (C, H, beams, S)
        on_seen = on_seen + bias.clamp(min=torch.finfo(on_seen.dtype).min).to(on_seen.dtype)
        on_text = by_clip(query @ key.transpose(-2, -1)) * scale  # (C, H, beams, L)
        weights = torch.cat([on_seen, on_text], dim=-1).softmax(dim=-1).to(value.dtype)
        positions = seen[1].shape[2]
        mixed = by_row(weights[..., :positions] @ seen[1]) + by_row(weights[..., positions:]) @ value  # (R, H, 1, D)
        return self._feed(data, mixed.transpose(1, 2).flatten(2)), (key, value)

    def _feed(self, data: Tensor, seen: Tensor) -> Tensor:
        data = self.attention_norm(data + self.dropout(self.attention_out(seen)))
        hidden = F.gelu(self.feed_forward_in(data))
        out: Tensor = self.feed_forward_norm(data + self.dropout(self.feed_forward_out(hidden)))
        return out


_OFFICIAL_NAMES = (
    (r"^module\.", ""),
    (r"^textual\.", ""),
    (r"^git\.embeddings\.word_embeddings\.", "embedding.words."),
    (r"^git\.embeddings\.position_embeddings\.", "embedding.positions."),
    (r"^git\.embeddings\.LayerNorm\.", "embedding.layer_norm."),
    (r"^git\.encoder\.", "transformer.encoder."),
    (r"^git\.visual_projection\.", ""),
    (r"^(av|visual)_projection\.", "projection."),
    (r"^embedding\.words\.", "tokens."),
    (r"^embedding\.positions\.", "positions."),
    (r"^embedding\.layer_norm\.", "norm."),
    (r"^output\.bias$", "out_bias"),
    (r"^transformer\.encoder\.layer\.", "layers."),
    (r"\.attention\.self\.", "."),
    (r"\.attention\.output\.dense\.", ".attention_out."),
    (r"\.attention\.output\.LayerNorm\.", ".attention_norm."),
    (r"\.intermediate\.dense\.", ".feed_forward_in."),
    (r"\.output\.dense\.", ".feed_forward_out."),
    (r"\.output\.LayerNorm\.", ".feed_forward_norm."),
)
_OTHER_PARTS = re.compile(
    r"(module\.)?(av_encoder|image_encoder|git\.image_encoder|git\.img_temperal_embedding)\..*|.*\.position_ids"
)


def from_official(state: Mapping[str, Tensor], *, projection: bool = False) -> dict[str, Tensor]:
    """Public weights under this module's names: ``decoder.load_state_dict(from_official(state))``.

    Of AVCap (``textual.*``), GIT (``module.textual.*`` or ``textual.*``, what stands under ``model`` in the file) or
    ``microsoft/git-base`` of the Hub (``git.*`` and ``output.*``). What belongs to their encoders is left out.

    Args:
        state: tensors by name.
        projection: also the projection, for a decoder that has one.

    Raises:
        CheckpointError: there is no such decoder, a query, key or value lacks its companions, or the output is not the
            word embedding.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if _OTHER_PARTS.fullmatch(name):
            continue
        ours = name
        for pattern, replacement in _OFFICIAL_NAMES:
            ours = re.sub(pattern, replacement, ours)
        renamed[ours] = tensor
    if "tokens.weight" not in renamed:
        some = ", ".join(list(state)[:5]) or "nothing"
        raise CheckpointError(
            f"expected GIT's text decoder (textual.*, or git.* of the Hub), got {some} ...; of a file that holds a "
            "dictionary of dictionaries, give the one with the tensors"
        )
    output = renamed.pop("output.weight", None)
    if output is not None and not torch.equal(output, renamed["tokens.weight"]):
        raise CheckpointError("output.weight: expected the word embedding, with which it is tied, got another matrix")
    if not projection:
        renamed = {name: tensor for name, tensor in renamed.items() if not name.startswith("projection.")}
    joined: dict[str, Tensor] = {}
    for name, tensor in renamed.items():
        if not (found := re.fullmatch(r"(layers\.\d+\.)(query|key|value)\.(weight|bias)", name)):
            joined[name] = tensor
        elif found[2] == "query":
            three = [renamed.get(f"{found[1]}{part}.{found[3]}") for part in ("query", "key", "value")]
            if any(part is None for part in three):
                raise CheckpointError(f"{found[1]}{found[3]}: expected query, key and value, got not all of them")
            joined[f"{found[1]}query_key_value.{found[3]}"] = torch.cat([part for part in three if part is not None])
    return joined
