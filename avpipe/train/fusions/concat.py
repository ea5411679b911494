"""All rows of all modalities as one sequence: the plainest fusion, and the baseline of the others.

Each feature set: LayerNorm, Linear to ``width``, plus an embedding of the modality, plus the time of the row. Then the
sequences are laid end to end; optional pre-norm self-attention layers let every row see every other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from avpipe.pipeline.features import FeatureSpec
from avpipe.train.batch import AttentionMap, Batch, Fused
from avpipe.train.layers import HeadsDivideWidth, PreNormLayer, initialise, time_code


class Config(HeadsDivideWidth):
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
        self.layers = nn.ModuleList(
            PreNormLayer(config.width, config.heads, config.feed_forward, config.dropout) for _ in range(config.layers)
        )
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
        return Fused.end_to_end(batch, self.names, self.norm(data), attention)
