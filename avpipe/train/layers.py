"""Parts that fusions and decoders share: attention and the embedding of time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
    return data.unflatten(-1, (heads, -1)).transpose(1, 2)


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


class TimeEmbedding(nn.Module):
    """Where a row lies in its clip, as sines and cosines of its time, then one linear map.

    The periods run geometrically from ``shortest_seconds`` to ``longest_seconds``. The classic embedding (Vaswani et
    al. 2017) counts positions; this one counts seconds, so that the rows of two encoders with different clocks that
    saw the same moment get the same code.

    Args:
        width: of what it is added to.
        frequencies: how many periods; the code has a sine and a cosine of each.
        shortest_seconds: the shortest period.
        longest_seconds: the longest period.
    """

    periods_seconds: Tensor

    def __init__(
        self, width: int, *, frequencies: int = 16, shortest_seconds: float = 0.25, longest_seconds: float = 256.0
    ) -> None:
        super().__init__()
        steps = torch.linspace(math.log(shortest_seconds), math.log(longest_seconds), frequencies)
        self.register_buffer("periods_seconds", steps.exp(), persistent=False)
        self.project = nn.Linear(2 * frequencies, width, bias=False)

    def forward(self, pts_seconds: Tensor) -> Tensor:
        """``(B, T)`` seconds to ``(B, T, width)``."""
        angle = 2 * math.pi * pts_seconds.unsqueeze(-1) / self.periods_seconds
        code = torch.cat([angle.sin(), angle.cos()], dim=-1)
        out: Tensor = self.project(code.to(self.project.weight.dtype))
        return out


def initialise(module: nn.Module, std: float) -> None:
    """BERT's start values: matrices and embeddings N(0, std), biases 0, norms 1 and 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
            if isinstance(part, nn.Linear) and part.bias is not None:
                nn.init.zeros_(part.bias)
