"""CAV-MAE's layers: those that a modality has for itself, and the joint ones, which audio and video share.

Gong et al., "Contrastive Audio-Visual Masked Autoencoder" (ICLR 2023), authors' code YuanGongND/cav-mae. Names of
parameters are those of the authors' files, which load by name. What goes into the layers (patches, positions) is in
:mod:`avpipe.extract.networks.cav_mae`; a fusion that trains the joint layers on stored tokens needs these alone.

One difference from the authors' pre-training code: with several joint layers it has only the last of them act on a
modality alone. Here they follow one another, as in the authors' own feature extraction and fine-tuning.

Shapes: B clips, N tokens, D width.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Modality = Literal["a", "v"]

NORMS: tuple[Modality | None, ...] = (None, "a", "v")
"""Whose norms there are, in the order in which a tensor of indices counts them: those of both together, of audio alone,
of video alone."""


class JointLayers(nn.Module):
    """The layers that both modalities share, together or each alone: then with norms of its own.

    Args:
        dim: D.
        heads: of attention.
        layers: how many.
        is_whole: whether they end with the last layer of the network: the final norms follow that one only.
        dropout: of the channels that attention and feed-forward add.
    """

    def __init__(self, dim: int, heads: int, layers: int, *, is_whole: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.blocks_u = nn.ModuleList(Block(dim, heads, dropout) for _ in range(layers))
        self.is_whole = is_whole
        if is_whole:
            self.norm, self.norm_a, self.norm_v = (nn.LayerNorm(dim) for _ in range(3))

    def forward(
        self,
        tokens: Tensor,
        modality: Modality | Tensor | None = None,
        *,
        bias: Tensor | None = None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """``(B, N, D)`` -> ``(B, N, D)``.

        Args:
            tokens: of one modality, or of audio and then video.
            modality: whose norms; ``None``: those for both; ``(B,)``, int64: of each clip, an index into :data:`NORMS`.
            bias: added to the scores of attention, broadcast to ``(B, heads, N, N)``.
            weights: a list that is given the attention of each layer, ``(B, heads, N, N)``.
        """
        for block in self.blocks_u:
            tokens = block(tokens, modality, bias=bias, weights=weights)
        return _normed(tokens, (self.norm, self.norm_a, self.norm_v), modality) if self.is_whole else tokens


class Block(nn.Module):
    """Attention and feed-forward, norms before them: one pair for any tokens, one for audio alone, one for video alone.

    The layers that a modality has for itself use the first pair.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm1_a, self.norm1_v = (nn.LayerNorm(dim) for _ in range(3))
        self.attn = Attention(dim, heads)
        self.norm2, self.norm2_a, self.norm2_v = (nn.LayerNorm(dim) for _ in range(3))
        self.mlp = FeedForward(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        tokens: Tensor,
        modality: Modality | Tensor | None = None,
        *,
        bias: Tensor | None = None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """``(B, N, D)`` -> ``(B, N, D)``; see :meth:`JointLayers.forward`."""
        normed = _normed(tokens, (self.norm1, self.norm1_a, self.norm1_v), modality)
        if weights is not None:
            weights.append(self.attn.weights(normed, bias))
        tokens = tokens + self.dropout(self.attn(normed, bias))
        normed = _normed(tokens, (self.norm2, self.norm2_a, self.norm2_v), modality)
        after: Tensor = tokens + self.dropout(self.mlp(normed))
        return after


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = _linear(dim, 3 * dim)
        self.proj = _linear(dim, dim)

    def forward(self, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """``(B, N, D)`` -> ``(B, N, D)``; ``bias`` is added to the scores."""
        query, key, value = self._projections(tokens)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=_fitting(bias, query))
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out

    def weights(self, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """What :meth:`forward` looks at: ``(B, heads, N, N)``, rows sum to 1. The kernel does not tell."""
        query, key, _ = self._projections(tokens)
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        fitting = _fitting(bias, query)
        return (scores if fitting is None else scores + fitting).softmax(dim=-1)

    def _projections(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        three = self.qkv(tokens).unflatten(-1, (3, self.heads, -1))  # (B, N, 3, heads, D / heads)
        query, key, value = three.permute(2, 0, 3, 1, 4)
        return query, key, value


class FeedForward(nn.Module):
    """Two linear layers, GELU between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = _linear(dim, 4 * dim)
        self.fc2 = _linear(4 * dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(..., D)`` -> ``(..., D)``."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(tokens)))
        return out


def _normed(
    tokens: Tensor, norms: tuple[nn.LayerNorm, nn.LayerNorm, nn.LayerNorm], modality: Modality | Tensor | None
) -> Tensor:
    """``(B, N, D)`` through one of three norms, or each clip through its own.

    In the second way the gains of all three take part in every batch, those that no clip uses with a gradient of zero:
    training by several processes does not have to look for parameters that were left out.
    """
    if not isinstance(modality, Tensor):
        out: Tensor = norms[NORMS.index(modality)](tokens)
        return out
    gain = torch.stack([norm.weight for norm in norms])[modality].unsqueeze(1)  # (B, 1, D)
    shift = torch.stack([norm.bias for norm in norms])[modality].unsqueeze(1)
    return functional.layer_norm(tokens, norms[0].normalized_shape, eps=norms[0].eps) * gain + shift


def _fitting(bias: Tensor | None, query: Tensor) -> Tensor | None:
    """A bias made in float32 may be used under autocast: its lowest number must stay finite."""
    return None if bias is None else bias.clamp(min=torch.finfo(query.dtype).min).to(query.dtype)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """With the authors' initial values."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
