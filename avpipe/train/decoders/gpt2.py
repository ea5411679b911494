"""GPT-2 with cross-attention in every layer, which is new: the decoder of "ResNet50 + GPT-2".

Source: ResNet50 + GPT-2 (L. Agarwal, B. Verma, 2504.16788), without code of the authors. The paper has GPT-2 (Radford
et al. 2019) attend to visual tokens; its size, and in which layers, is not said. Chosen here: GPT-2 small,
cross-attention after self-attention in all layers, its matrices from N(0, 0.02). The network is transformers' own; with
the same weights the logits are those of ``GPT2LMHeadModel`` (tests/train/test_gpt2.py).

The paper's ablations: ``cross_attention=false`` (a language model that sees nothing of the clip) and
``cross_attention_heads=1`` (GPT-2's self-attention keeps its heads).

Deviations from transformers' network, each on its line:

- New cross-attention has N(0, 0.02) in its output projection, too, where transformers divides by sqrt(2 * layers); or
  zeros (``cross_attention_output: zero``): the decoder then starts as the language model that it was.
- A clip of which nothing is present adds nothing through cross-attention.
- Where the fusion's width is another, a Linear stands between.
- ``dropout`` is one setting for channels and attention weights (GPT-2: 0.1 all).

The tokenizer must be that of the weights (``tokenizer.name=openai-community/gpt2``): sizes are compared. With
``weights=random`` any tokenizer will do.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from avpipe.pipeline.config import Config as BaseConfig
from avpipe.pipeline.errors import UsageError
from avpipe.pipeline.pretrained import Report
from avpipe.train.batch import Fused
from avpipe.train.decoders import _pretrained as shared
from avpipe.train.decoders._pretrained import Gates, Seen, State
from avpipe.train.layers import split_heads

KIND = "gpt2"
CROSS_ATTENTION_STD = 0.02


class Config(BaseConfig):
    """Weights and sizes of the ``gpt2`` decoder."""

    weights: str = "openai-community/gpt2"
    """``org/name`` or ``org/name@revision`` on the Hub, or a local folder; or ``random``: from nothing, in the sizes
    below."""
    trained: shared.Trained = "all"
    """What learns: everything; cross-attention with the Linear before it; or nothing."""
    cross_attention: bool = True
    """Whether there is any. Without it the decoder sees nothing of the clip: the paper's ablation."""
    cross_attention_heads: int | None = Field(None, ge=1)
    """Heads of cross-attention, which divide the width; none: as many as self-attention has. The ablation: 1."""
    cross_attention_output: Literal["normal", "zero"] = "normal"
    """Start values of new cross-attention's output projection: N(0, 0.02), or zeros: it then says nothing at first."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Of channels and of attention weights."""
    layers: int | None = Field(None, ge=1)
    """How many layers: of a checkpoint, the first so many; none: all, or 12 with random weights."""
    width: int | None = Field(None, ge=8)
    """Of random weights: channels of a token; none: 768."""
    heads: int | None = Field(None, ge=1)
    """Of random weights: heads of self-attention, which divide ``width``; none: 12."""
    feed_forward: int | None = Field(None, ge=8)
    """Of random weights: hidden channels of the feed-forward part; none: 4 times the width."""
    positions: int | None = Field(None, ge=4)
    """Of random weights: the longest caption in tokens, begin and end included; none: 1024."""

    @model_validator(mode="after")
    def _fits(self) -> Config:
        shared.check_settings(self.weights, self.trained, self.sizes)
        width, heads = self.width or 768, self.heads or 12
        if width % heads:
            raise ValueError(f"heads must divide width ({width})")
        if not self.cross_attention:
            if self.trained == "cross_attention":
                raise ValueError("trained: expected all or none without cross_attention, got 'cross_attention'")
            if self.cross_attention_heads is not None:
                raise ValueError("cross_attention_heads: there is no cross_attention to have them")
        if self.weights == shared.RANDOM and width % (self.cross_attention_heads or 1):
            raise ValueError(f"cross_attention_heads must divide width ({width})")
        return self

    @property
    def sizes(self) -> dict[str, int | None]:
        """The settings that count with random weights alone."""
        return {key: getattr(self, key) for key in ("width", "heads", "feed_forward", "positions")}


class Decoder(nn.Module):
    """The decoder.

    Args:
        config: weights and sizes.
        fused_width: width of what the fusion gives.
        vocabulary_size: V.

    Attributes:
        report: what was read of a checkpoint; ``None`` with random weights.
        weight_files: where it was read; ``None`` with random weights.

    Raises:
        MissingWeightsError: the weights are neither here nor to be had.
        CheckpointError: they are not whole, or not of a GPT-2.
        UsageError: they have other words than the tokenizer, fewer layers than asked for, or a width that
            ``cross_attention_heads`` does not divide.
    """

    def __init__(self, config: Config, *, fused_width: int, vocabulary_size: int) -> None:
        super().__init__()
        self.transformer, self.report, source = _network(config, vocabulary_size)
        self.weight_files = source and source.files
        self.sees = config.cross_attention
        self.max_tokens = int(self.transformer.config.n_positions)
        self.project = shared.entrance(fused_width, self.transformer.config.n_embd) if self.sees else nn.Identity()
        self._gates = Gates(block.crossattention.c_proj for block in self.transformer.h if self.sees)
        shared.freeze(self, config.trained, self.report)

    def forward(self, fused: Fused, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Logits of the token after each position.

        Args:
            fused: one row for each caption: N rows.
            tokens: ``(N, L)``, begin-of-sentence first.
            token_mask: ``(N, L)``, True = real. Padding follows the caption, so causal attention never sees it.

        Returns:
            ``(N, L, V)``.
        """
        return self._logits(shared.hidden_states(self.transformer, tokens, self._seen(fused), self._gates))

    def start(self, fused: Fused) -> State:
        """The state before the first token; keys and values of the fused positions are computed once."""
        seen = self._seen(fused)
        if seen is None:
            return shared.begin(None, [])
        return shared.begin(seen, [_keys(block.crossattention, seen.data) for block in self.transformer.h])

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """One token further.

        Args:
            tokens: ``(R,)``: the last token of each row.
            state: from :meth:`start` or the former step.

        Returns:
            Logits of the next token ``(R, V)``, and the new state.
        """
        hidden, state = shared.advance(self.transformer, tokens, state, self._gates)
        return self._logits(hidden), state

    def _seen(self, fused: Fused) -> Seen | None:
        return Seen.of(fused, self.project) if self.sees else None

    def _logits(self, hidden: Tensor) -> Tensor:
        # transformers' head is this matrix under a second name, which a checkpoint would hold twice.
        return F.linear(hidden, self.transformer.wte.weight)


def _keys(attention: Any, seen: Tensor) -> list[Tensor]:
    """Keys and values of ``seen`` ``(R, S, W)``, ``(R, H, S, D)`` each."""
    return [split_heads(part, attention.num_heads) for part in attention.c_attn(seen).chunk(2, dim=-1)]


def _network(config: Config, vocabulary_size: int) -> tuple[Any, Report | None, shared.Source | None]:
    """``GPT2Model``, random or from a checkpoint."""
    from transformers import GPT2Config, GPT2LMHeadModel

    ours: dict[str, Any] = {
        "add_cross_attention": config.cross_attention,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
    }
    if config.layers is not None:
        ours["n_layer"] = config.layers
    source = shared.find(config.weights, KIND)
    report = None
    if source is None:
        names = {"width": "n_embd", "heads": "n_head", "feed_forward": "n_inner", "positions": "n_positions"}
        sizes: dict[str, Any] = {names[key]: size for key, size in config.sizes.items() if size is not None}
        whole: Any = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary_size, **sizes, **ours))
    else:
        there = GPT2Config.from_dict({**source.values, **ours})
        shared.check_vocabulary(there.vocab_size, vocabulary_size, config.weights)
        layers = source.values.get("n_layer", 12)
        if (config.layers or 1) > layers:
            raise UsageError(
                f"decoder.layers: expected at most {layers} with weights={config.weights}, got {config.layers}"
            )
        if there.n_embd % (config.cross_attention_heads or 1):
            raise UsageError(
                f"decoder.cross_attention_heads: expected a divisor of the width {there.n_embd} of "
                f"{config.weights}, got {config.cross_attention_heads}"
            )
        whole, report = shared.read(GPT2LMHeadModel, source, there, what="a GPT-2")
    network = whole.transformer
    if config.cross_attention:
        _set_heads(network, config.cross_attention_heads)
        if report is None or report.new:
            _start(network, config)
    return network, report, source


def _set_heads(network: Any, heads: int | None) -> None:
    """Cross-attention with heads of its own: transformers' module built for so many, with the same weights."""
    if heads is None:
        return
    from transformers.models.gpt2 import modeling_gpt2

    attention_class: Any = modeling_gpt2.GPT2Attention
    described = copy.deepcopy(network.config)
    described.n_head = heads
    for layer, block in enumerate(network.h):
        other = attention_class(described, is_cross_attention=True, layer_idx=layer)
        other.load_state_dict(block.crossattention.state_dict())
        block.crossattention = other


def _start(network: Any, config: Config) -> None:
    """Start values of new cross-attention; biases and norms are at theirs."""
    for block in network.h:
        attention = block.crossattention
        for part in (attention.c_attn, attention.q_attn, attention.c_proj):
            nn.init.normal_(part.weight, std=CROSS_ATTENTION_STD)
        if config.cross_attention_output == "zero":
            nn.init.zeros_(attention.c_proj.weight)
