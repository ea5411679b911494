"""Parts that fusions and decoders share: attention, a layer of it, the code of time, a check of sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from avpipe.pipeline.config import Config


class HeadsDivideWidth(Config):
    """A configuration of a network with attention: it has ``width`` and ``heads``."""

    if TYPE_CHECKING:
        width: int
        heads: int

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads must divide width ({self.width})")
        return self


def key_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A key mask as something to add to attention scores.

    The lowest finite number stands for "never", not minus infinity: a row without any key then gives uniform weights
    instead of NaN, and whoever may meet such a row multiplies the result by zero.

    Args:
        mask: ``(B, K)``, bool, True = attend.
        dtype: of the scores.

    Returns:
        ``(B, 1, 1, K)``: 0 where True.
    """
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill(~mask, torch.finfo(dtype).min)[:, None, None, :]


def split_heads(data: Tensor, heads: int) -> Tensor:
    """``(B, K, W) -> (B, H, K, W / H)``."""
    return data.view(*data.shape[:-1], heads, -1).transpose(1, 2)


def rows_of(pairs: Iterable[tuple[Tensor, Tensor]], rows: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of the keys and values of each layer, ``(R, H, S, D)``, the ``rows`` (``(N,)``, int64, repeats allowed)."""
    return [(key.index_select(0, rows), value.index_select(0, rows)) for key, value in pairs]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bias: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    return_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention.

    Args:
        query: ``(B, H, Q, D)``.
        key: ``(B, H, K, D)``.
        value: ``(B, H, K, D)``.
        bias: added to the scores, broadcast to ``(B, H, Q, K)``.
        causal: position q sees keys 0..q only.
        dropout: probability of dropping a weight.
        return_weights: also give the weights, by a slower way to the same numbers.

    Returns:
        ``(B, Q, H * D)``, and the weights ``(B, H, Q, K)`` before dropout, or ``None``.
    """
    weights = None
    if bias is not None:  # a bias made in float32 may be used under autocast: its lowest number must stay finite
        bias = bias.clamp(min=torch.finfo(query.dtype).min).to(query.dtype)
    if return_weights:
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        if bias is not None:
            scores = scores + bias
        if causal:
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(future, torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=-1)
        out = F.dropout(weights, dropout) @ value if dropout else weights @ value
    else:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout, is_causal=causal)
    return out.transpose(1, 2).flatten(-2), weights


SLOWEST, FASTEST = 1.0, 32.0
"""Radians a second of the slowest and the fastest wave of :func:`time_code`: periods of 6.3 s down to 0.2 s."""


def time_code(pts_seconds: Tensor, width: int) -> Tensor:
    """Where a row lies in its clip, as sines and cosines of its time.

    The classic code (Vaswani et al. 2017) counts positions; this one counts seconds, so that the rows of two encoders
    with different clocks that saw the same moment get the same code. The waves run geometrically from :data:`SLOWEST`
    to :data:`FASTEST`, which suits clips of some 10 s and events some 0.1 s apart.

    Args:
        pts_seconds: ``(B, T)``.
        width: of the code.

    Returns:
        ``(B, T, width)``; with an odd width the last channel is 0.
    """
    steps = torch.linspace(math.log(SLOWEST), math.log(FASTEST), width // 2, device=pts_seconds.device)
    angle = pts_seconds.unsqueeze(-1) * steps.exp()
    return F.pad(torch.cat([angle.sin(), angle.cos()], dim=-1), (0, width % 2))


def initialise(module: nn.Module, std: float | None) -> None:
    """Start values: biases 0; matrices and embeddings N(0, std) as in BERT, or, without ``std``, Glorot's.

    Glorot and Bengio's (2010) keep the variance from layer to layer at any width; BERT's 0.02 was chosen for a width
    of 768, and a network of width 32 that starts with it learns nothing for a long time.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            if std is None:
                nn.init.xavier_normal_(part.weight)
            else:
                nn.init.normal_(part.weight, std=std)
            if isinstance(part, nn.Linear) and part.bias is not None:
                nn.init.zeros_(part.bias)


class PreNormLayer(nn.Module):
    """Self-attention and a feed-forward part with exact GELU, each normed before and added after.

    Args:
        width: channels of a position.
        heads: attention heads; divides ``width``.
        feed_forward: hidden channels of the feed-forward part.
        dropout: of channels and of attention weights.
    """

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward_in = nn.Linear(width, feed_forward)
        self.feed_forward_out = nn.Linear(feed_forward, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, data: Tensor, mask: Tensor, return_weights: bool) -> tuple[Tensor, Tensor | None]:
        """``(B, S, W)`` and the mask ``(B, S)`` in; ``(B, S, W)`` out, and the weights ``(B, H, S, S)`` or ``None``."""
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
