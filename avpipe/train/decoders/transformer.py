"""A small causal Transformer, trained from scratch, that attends to what the fusion gives.

Pre-norm layers of causal self-attention, cross-attention to the fused positions, and feed-forward (Vaswani et al. 2017
with the norms where GPT-2 has them); learned positions; input and output embeddings are one matrix.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from avpipe.train.batch import Fused
from avpipe.train.layers import HeadsDivideWidth, attend, initialise, key_bias, rows_of, split_heads


class Config(HeadsDivideWidth):
    """Sizes of the ``transformer`` decoder."""

    width: int = Field(96, ge=8)
    """Channels of a token."""
    layers: int = Field(2, ge=1)
    """How many layers."""
    heads: int = Field(4, ge=1)
    """Attention heads; divides ``width``."""
    feed_forward: int = Field(384, ge=8)
    """Hidden channels of the feed-forward part."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Of channels and of attention weights."""
    positions: int = Field(128, ge=4)
    """The longest caption in tokens, begin and end included."""
    initializer_std: float | None = Field(None, gt=0)
    """Standard deviation of matrices at the start; none = Glorot's."""


@dataclass(slots=True)
class State:
    """What decoding one token at a time remembers: a row for each unfinished caption.

    Attributes:
        cross: for each layer, keys and values of the fused positions, ``(R, H, S, D)``.
        bias: the fused positions' mask, to be added to scores, ``(R, 1, 1, S)``.
        gate: ``(R, 1, 1)``: 0 where a clip has no position at all.
        past: for each layer, keys and values of the tokens so far, ``(R, H, L, D)``.
        length: tokens so far.
    """

    cross: list[tuple[Tensor, Tensor]]
    bias: Tensor
    gate: Tensor
    past: list[tuple[Tensor, Tensor]]
    length: int = 0

    def take(self, rows: Tensor) -> State:
        """The rows at ``rows``; see :class:`avpipe.train.captioner.State`."""
        kept = self.reorder(rows)
        return replace(kept, cross=rows_of(self.cross, rows), bias=self.bias[rows], gate=self.gate[rows])

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
        self.max_tokens = config.positions
        self.tokens = nn.Embedding(vocabulary_size, config.width)
        self.positions = nn.Embedding(config.positions, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(_Layer(config, fused_width) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        initialise(self, config.initializer_std)

    def forward(self, fused: Fused, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Logits of the token after each position.

        Args:
            fused: one row for each caption: N rows.
            tokens: ``(N, L)``, begin-of-sentence first.
            token_mask: ``(N, L)``, True = real. Padding follows the caption, so causal attention never sees it.

        Returns:
            ``(N, L, V)``.
        """
        bias, gate = self._fused_mask(fused)
        data = self.dropout(self.tokens(tokens) + self.positions.weight[: tokens.shape[1]])
        for layer in self._stack():
            data = layer(data, layer.fused_keys(fused.data), bias, gate)
        return self._logits(data)

    def start(self, fused: Fused) -> State:
        """The state before the first token; keys and values of the fused positions are computed once."""
        bias, gate = self._fused_mask(fused)
        cross = [layer.fused_keys(fused.data) for layer in self._stack()]
        past = [(key[:, :, :0], value[:, :, :0]) for key, value in cross]
        return State(cross=cross, bias=bias, gate=gate, past=past)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """One token further.

        Args:
            tokens: ``(R,)``: the last token of each row.
            state: from :meth:`start` or the former step.

        Returns:
            Logits of the next token ``(R, V)``, and the new state.
        """
        data = self.tokens(tokens)[:, None] + self.positions.weight[state.length]
        past = []
        for layer, cross, before in zip(self._stack(), state.cross, state.past, strict=True):
            data, after = layer.step(data, cross, state.bias, state.gate, before)
            past.append(after)
        new = State(cross=state.cross, bias=state.bias, gate=state.gate, past=past, length=state.length + 1)
        return self._logits(data)[:, 0], new

    def _stack(self) -> list[_Layer]:
        return cast("list[_Layer]", list(self.layers))

    def _fused_mask(self, fused: Fused) -> tuple[Tensor, Tensor]:
        return key_bias(fused.mask, fused.data.dtype), fused.mask.any(dim=1).to(fused.data.dtype)[:, None, None]

    def _logits(self, data: Tensor) -> Tensor:
        return F.linear(self.norm(data), self.tokens.weight)


class _Layer(nn.Module):
    """Causal self-attention, cross-attention, feed-forward; each normed before and added after."""

    def __init__(self, config: Config, fused_width: int) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.self_norm = nn.LayerNorm(width)
        self.self_query_key_value = nn.Linear(width, 3 * width)
        self.self_out = nn.Linear(width, width)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_query = nn.Linear(width, width)
        self.cross_key_value = nn.Linear(fused_width, 2 * width)
        self.cross_out = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward_in = nn.Linear(width, config.feed_forward)
        self.feed_forward_out = nn.Linear(config.feed_forward, width)
        self.dropout = nn.Dropout(config.dropout)

    def fused_keys(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the fused positions, ``(R, H, S, D)`` each."""
        key, value = self.cross_key_value(fused).chunk(2, dim=-1)
        return split_heads(key, self.heads), split_heads(value, self.heads)

    def forward(self, data: Tensor, cross: tuple[Tensor, Tensor], bias: Tensor, gate: Tensor) -> Tensor:
        query, key, value = self._self_projections(data)
        seen, _ = attend(query, key, value, causal=True, dropout=self._attention_dropout())
        return self._after_self(data, seen, cross, bias, gate)

    def step(
        self, data: Tensor, cross: tuple[Tensor, Tensor], bias: Tensor, gate: Tensor, past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        query, key, value = self._self_projections(data)
        key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        seen, _ = attend(query, key, value)
        return self._after_self(data, seen, cross, bias, gate), (key, value)

    def _self_projections(self, data: Tensor) -> list[Tensor]:
        parts = self.self_query_key_value(self.self_norm(data)).chunk(3, dim=-1)
        return [split_heads(part, self.heads) for part in parts]

    def _after_self(
        self, data: Tensor, seen: Tensor, cross: tuple[Tensor, Tensor], bias: Tensor, gate: Tensor
    ) -> Tensor:
        data = data + self.dropout(self.self_out(seen))
        query = split_heads(self.cross_query(self.cross_norm(data)), self.heads)
        seen, _ = attend(query, *cross, bias=bias, dropout=self._attention_dropout())
        data = data + self.dropout(self.cross_out(seen)) * gate
        hidden = F.gelu(self.feed_forward_in(self.feed_forward_norm(data)))
        out: Tensor = data + self.dropout(self.feed_forward_out(hidden))
        return out

    def _attention_dropout(self) -> float:
        return self.dropout.p if self.training else 0.0
