"""All rows of all modalities as one sequence: the plainest fusion, and the baseline of the others.

Each feature set: LayerNorm, Linear to ``width``, plus an embedding of the modality, plus the time of the row. Then the
sequences are laid end to end; optional pre-norm self-attention layers let every row see every other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from avpipe.pipeline.config import Config as BaseConfig
from avpipe.pipeline.features import FeatureSpec
from avpipe.train.batch import AttentionMap, Batch, Fused
from avpipe.train.layers import attend, initialise, key_bias, split_heads, time_code


class Config(BaseConfig):
    """Sizes of the ``concat`` fusion."""

    width: int = Field(96, ge=8)
    """Channels of every position."""
    layers: int = Field(1, ge=0)
    """Self-attention layers over all modalities; 0 = none, then only the decoder sees them together."""
    heads: int = Field(4, ge=1)
    """Attention heads; divides ``width``."""
    feed_forward: int = Field(384, ge=8)
    """Hidden channels of the feed-forward part of a layer."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Probability of dropping a channel of a sub-layer's result."""
    time_embedding: Literal["none", "sinusoidal"] = "sinusoidal"
    """Whether a row carries its time in seconds."""
    initializer_std: float | None = Field(None, gt=0)
    """Standard deviation of matrices at the start; none = Glorot's."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Config:
        if self.width % self.heads:
            raise ValueError(f"heads must divide width ({self.width})")
        return self


class Fusion(nn.Module):
    """The fusion. ``width`` is the width of what it gives.

    Args:
        config: sizes.
        specs: the feature sets it reads, by name.
    """

    def __init__(self, config: Config, specs: Mapping[str, FeatureSpec]) -> None:
        super().__init__()
        self.width = config.width
        self.names = tuple(specs)
        self.norms = nn.ModuleList(nn.LayerNorm(spec.dim) for spec in specs.values())
        self.projections = nn.ModuleList(nn.Linear(spec.dim, config.width) for spec in specs.values())
        self.modality = nn.Embedding(len(specs), config.width)
        self.has_times = config.time_embedding == "sinusoidal"
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        initialise(self, config.initializer_std)

    def forward(self, batch: Batch, *, return_attention: bool = False) -> Fused:
        """Rows in, the same rows out, in the order of the feature sets: S is the sum of all T."""
        rows = []
        for index, (name, norm, projection) in enumerate(zip(self.names, self.norms, self.projections, strict=True)):
            row = projection(norm(batch.features[name])) + self.modality.weight[index]
            if self.has_times:
                row = row + time_code(batch.pts_seconds[name], self.width).to(row.dtype)
            rows.append(row)
        data = self.dropout(torch.cat(rows, dim=1))  # (B, S, W)
        mask = torch.cat([batch.mask[name] for name in self.names], dim=1)  # (B, S)
        attention = []
        for index, layer in enumerate(self.layers):
            data, weights = layer(data, mask, return_attention)
            if weights is not None:
                attention.append(AttentionMap(layer=index, queries="all", keys="all", weights=weights))
        lengths = torch.tensor([batch.features[name].shape[1] for name in self.names], device=data.device)
        return Fused(
            data=self.norm(data),
            mask=mask,
            pts_seconds=torch.cat([batch.pts_seconds[name] for name in self.names], dim=1),
            sources=self.names,
            source=torch.arange(len(self.names), device=data.device).repeat_interleave(lengths),
            attention=tuple(attention),
        )


class _Layer(nn.Module):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(config.width)
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.attention_out = nn.Linear(config.width, config.width)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward_in = nn.Linear(config.width, config.feed_forward)
        self.feed_forward_out = nn.Linear(config.feed_forward, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, data: Tensor, mask: Tensor, return_weights: bool) -> tuple[Tensor, Tensor | None]:
        query, key, value = (
            split_heads(part, self.heads) for part in self.query_key_value(self.attention_norm(data)).chunk(3, dim=-1)
        )
        dropout = self.dropout.p if self.training else 0.0
        bias = key_bias(mask, query.dtype)
        seen, weights = attend(query, key, value, bias=bias, dropout=dropout, return_weights=return_weights)
        if weights is not None:  # a clip of which nothing is present looked at padding, and none of it is used
            weights = weights * mask.any(dim=1)[:, None, None, None]
        data = data + self.dropout(self.attention_out(seen))
        hidden = F.gelu(self.feed_forward_in(self.feed_forward_norm(data)))
        return data + self.dropout(self.feed_forward_out(hidden)), weights
