"""Projected rows with learned positions and a small encoder: the tokens that a decoder's cross-attention reads.

Source: the visual side of ResNet50 + GPT-2 (L. Agarwal, B. Verma, 2504.16788). There is no code of the authors. What
they state is one formula, for a clip's N frames of ResNet50 features f::

    E_v = f W_p + P         W_p (2048, d), P (N, d) learned, one vector a frame

and that GPT-2's cross-attention reads what becomes of E_v by multi-head self-attention. All else is ours:

- d is 768, GPT-2 small's, and N is 16, the frames of our recipe; ``positions`` says N.
- ``projection_norm: true`` norms the projected row before P is added; ``false`` is the formula to the letter.
- W_p has no bias, as in the formula.
- The encoder: 2 layers (``layers: 0`` leaves the bare E_v), 12 heads, ``feed_forward`` 3072, exact GELU, dropout 0.1 of
  channels (E_v's too) and of attention weights.
- Its norms: each sub-layer's input, and the result of the last layer (Vaswani et al. 2017 with the norms where GPT-2
  has them). E_v without a layer above it is given out as it is.
- ``initializer_std: null`` draws matrices and P after Glorot and Bengio (2010).
- Beyond the original: any feature sets, of any modality. Each has a W_p, a norm and a P of its own; then they are laid
  end to end, and the encoder sees all of them.

``heads: 1`` is the paper's "single head" ablation. A position counts rows of its feature set, not seconds.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from avpipe.pipeline.errors import UsageError
from avpipe.pipeline.features import FeatureSpec
from avpipe.train.batch import AttentionMap, Batch, Fused
from avpipe.train.layers import HeadsDivideWidth, PreNormLayer, initialise


class Config(HeadsDivideWidth):
    """Sizes of the ``cross_attention`` fusion. The paper gives none: the defaults are ours."""

    width: int = Field(768, ge=8)
    """Channels of every position: the paper's d. Ours: GPT-2 small's."""
    layers: int = Field(2, ge=0)
    """Encoder layers over all rows; 0 = the bare projection. Ours."""
    heads: int = Field(12, ge=1)
    """Attention heads; divides ``width``. Ours; 1 is the paper's single-head ablation."""
    feed_forward: int = Field(3072, ge=8)
    """Hidden channels of the feed-forward part of a layer. Ours."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Of channels and of attention weights. Ours."""
    positions: int = Field(16, ge=1)
    """Learned positions of each feature set: the most rows that a clip may have, the paper's N. Ours: 16 frames."""
    projection_norm: bool = True
    """Whether a projected row is normed before its position is added. The paper's formula: no; ours."""
    initializer_std: float | None = Field(None, gt=0)
    """Standard deviation of matrices and positions at the start; none = Glorot's."""


class Fusion(nn.Module):
    """The fusion. ``width`` is the width of what it gives.

    Args:
        config: sizes.
        specs: the feature sets it reads, by name; they are laid end to end in this order.
    """

    def __init__(self, config: Config, specs: Mapping[str, FeatureSpec]) -> None:
        super().__init__()
        self.width = config.width
        self.names = tuple(specs)
        self.inputs = nn.ModuleList(_Input(config, spec) for spec in specs.values())
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            PreNormLayer(config.width, config.heads, config.feed_forward, config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width) if config.layers else nn.Identity()
        initialise(self, config.initializer_std)

    def forward(self, batch: Batch, *, return_attention: bool = False) -> Fused:
        """Rows in, the same rows out, in the order of the feature sets: S is the sum of all T.

        Raises:
            UsageError: a clip has more rows than ``positions``.
        """
        rows = [read(batch, name) for name, read in zip(self.names, self.inputs, strict=True)]
        data = self.dropout(torch.cat(rows, dim=1))  # (B, S, W)
        mask = torch.cat([batch.mask[name] for name in self.names], dim=1)  # (B, S)
        attention = []
        for index, layer in enumerate(self.layers):
            data, weights = layer(data, mask, return_attention)
            if weights is not None:
                attention.append(AttentionMap(layer=index, queries="all", keys="all", weights=weights))
        return Fused.end_to_end(batch, self.names, self.norm(data), attention)


class _Input(nn.Module):
    """E_v of one feature set."""

    def __init__(self, config: Config, spec: FeatureSpec) -> None:
        super().__init__()
        self.project = nn.Linear(spec.dim, config.width, bias=False)
        self.norm = nn.LayerNorm(config.width) if config.projection_norm else nn.Identity()
        self.positions = nn.Embedding(config.positions, config.width)

    def forward(self, batch: Batch, name: str) -> Tensor:
        _check_rows(batch, name, self.positions.num_embeddings)
        projected: Tensor = self.norm(self.project(batch.features[name]))  # (B, T, W)
        # Padding may go on beyond the last position: it gets none.
        places = self.positions.weight[: projected.shape[1]]
        return projected + F.pad(places, (0, 0, 0, projected.shape[1] - len(places)))


def _check_rows(batch: Batch, name: str, positions: int) -> None:
    mask = batch.mask[name]
    if mask.shape[1] <= positions or not mask[:, positions:].any():
        return
    rows = [int(real.nonzero().max()) + 1 if real.any() else 0 for real in mask]
    longest = max(range(len(rows)), key=rows.__getitem__)
    raise UsageError(
        f"fusion cross_attention: clip {batch.clip_ids[longest]!r} has {rows[longest]} rows of {name!r}, but "
        f"fusion.positions is {positions}; train with fusion.positions={rows[longest]} or more, or extract fewer rows "
        f"(frames, or a coarser choice of tokens)"
    )
