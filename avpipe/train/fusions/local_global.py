"""Local and global fusion of sound and sight: rows meet one another, or only learned global tokens of the other side.

Source: "Exploring the Role of Audio in Video Captioning" (2306.12559; CVPR workshops 2024). There is no code of the
authors, and no layer, width or number in what is public: slides and a patent. They name the variants and say what each
is for: local are words in speech and objects in a frame, global are laughter and people who gather.

==================  ====================================================================================================
``merged``          local: A and V end to end in one transformer, self-attention over all rows
``cross``           local: two transformers; in one the queries are A's rows, keys and values V's; the other mirrors it
``global_cross``    global tokens of each side carry the exchange: the other side sees these alone, never the rows
``local_global``    the average of a local fusion (``local``: which) and of the global one; the authors' best
==================  ====================================================================================================

A are the rows of sound, V those of sight. With Tr(Q, KV) for a layer below, layer l of each variant is::

    merged          [A; V] = Tr([A; V], [A; V])
    cross           A = Tr_a(A, V)                             V = Tr_v(V, A)
    global_cross    [g_a; A] = Tr_a([g_a; A], [g_a; A; g_v])   [g_v; V] = Tr_v([g_v; V], [g_v; V; g_a])

both sides at once, from what layer l - 1 gave; and Tr(Q, KV) is::

    U = Q + Linear(MultiHead(LN(Q), LN(KV)))                   one LN for both
    Tr = U + Linear(GELU(Linear(LN(U))))

The variants, the direction of queries and keys in ``cross``, that global tokens are learned, and the average are the
authors'. Ours, because nothing public says it:

- The formulas above: that layers are pre-norm, that one LN serves queries and keys, that GELU is exact, that both sides
  step at once, that ``cross`` has no self-attention beside its cross-attention, that sides share no matrix (but in
  ``merged`` all), and that g_a sees what A sees.
- width 768, 2 layers, 12 heads, feed-forward 3072, dropout 0.1 (of channels, those of entering rows too, and of
  attention weights).
- A row enters as a Linear of its feature set, plus a learned vector of the set (with one set a modality: the modality's
  type), plus, by ``time_embedding: sinusoidal``, its time in seconds: without it attention sees a bag of rows.
- ``global_tokens: 1`` a side. A global token starts as the mean of its side's rows (after the Linear, before type and
  time) plus a vector of its own that is learned and starts at random, so that several tokens differ.
- A LayerNorm ends each transformer, so ``cross`` and ``global_cross`` have two. The average is taken after it.
- Local and global fusion have the entering rows in common, and no layer.
- ``local: merged`` is the default of ``local_global``: the slides do not say which it was.
- Global tokens are not given out: then every variant has the same positions, which the average needs, and each position
  has a feature set and a time.
- ``initializer_std: null`` draws matrices and learned vectors after Glorot and Bengio (2010).
- Beyond the original, any feature sets: V are the rows of all that are video, A those of audio and text (the paper's
  own baseline puts recognised speech in the place of sound), each in the order in which the sets are given.
- A side that a clip lacks is not there: no key, no global token. A side that the run lacks is the same for all clips:
  ``merged`` is self-attention of the one side, ``cross`` has nothing to attend to and is its feed-forward parts alone,
  ``global_cross`` is self-attention of the rows and their own global tokens, ``local_global`` the average of its two.

Attention maps have queries and keys ``all``: the positions in the order in which they are given out, sound first, and
behind them, in the maps of the global fusion, the global tokens of sound, then of sight. What may not be seen has 0. In
``local_global`` the layers of the local fusion are counted first, then those of the global one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from avpipe.pipeline.features import FeatureSpec
from avpipe.train.batch import AttentionMap, Batch, Fused
from avpipe.train.layers import HeadsDivideWidth, attend, initialise, key_bias, split_heads, time_code


class Config(HeadsDivideWidth):
    """Sizes of the ``local_global`` fusion. The paper gives none: the defaults are ours."""

    variant: Literal["merged", "cross", "global_cross", "local_global"] = "local_global"
    """How sound and sight meet; the paper's four."""
    local: Literal["merged", "cross"] = "merged"
    """The local fusion within ``variant: local_global``; no other variant reads it."""
    global_tokens: int = Field(1, ge=1)
    """Global tokens of each side; read where there is a global fusion. Ours."""
    width: int = Field(768, ge=8)
    """Channels of every position. Ours."""
    layers: int = Field(2, ge=1)
    """Layers of each transformer. Ours."""
    heads: int = Field(12, ge=1)
    """Attention heads; divides ``width``. Ours."""
    feed_forward: int = Field(3072, ge=8)
    """Hidden channels of the feed-forward part of a layer. Ours."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Of channels and of attention weights. Ours."""
    time_embedding: Literal["none", "sinusoidal"] = "sinusoidal"
    """Whether a row carries its time in seconds. Ours."""
    initializer_std: float | None = Field(None, gt=0)
    """Standard deviation of matrices and learned vectors at the start; none = Glorot's."""


class Fusion(nn.Module):
    """The fusion. ``width`` is the width of what it gives.

    Args:
        config: sizes.
        specs: the feature sets it reads, by name. What is audio or text stands first, then what is video.
    """

    def __init__(self, config: Config, specs: Mapping[str, FeatureSpec]) -> None:
        super().__init__()
        self.width = config.width
        sound = tuple(name for name, spec in specs.items() if spec.modality != "video")
        sight = tuple(name for name, spec in specs.items() if spec.modality == "video")
        self.sides = tuple(side for side in (sound, sight) if side)
        self.names = sound + sight
        self.projections = nn.ModuleList(nn.Linear(specs[name].dim, config.width) for name in self.names)
        self.types = nn.Embedding(len(self.names), config.width)
        self.has_times = config.time_embedding == "sinusoidal"
        self.dropout = nn.Dropout(config.dropout)
        kinds = (config.local, "global_cross") if config.variant == "local_global" else (config.variant,)
        self.branches = nn.ModuleList(_BRANCHES[kind](config, len(self.sides)) for kind in kinds)
        self.layers_per_branch = config.layers
        initialise(self, config.initializer_std)

    def forward(self, batch: Batch, *, return_attention: bool = False) -> Fused:
        """Rows in, the same rows out, sound first: S is the sum of all T."""
        entering, projected = {}, {}
        for index, (name, project) in enumerate(zip(self.names, self.projections, strict=True)):
            projected[name] = project(batch.features[name])  # (B, T, W)
            row = projected[name] + self.types.weight[index]
            if self.has_times:
                row = row + time_code(batch.pts_seconds[name], self.width).to(row.dtype)
            entering[name] = self.dropout(row)
        rows = [torch.cat([entering[name] for name in side], dim=1) for side in self.sides]
        masks = [torch.cat([batch.mask[name] for name in side], dim=1) for side in self.sides]
        means = [
            _mean(torch.cat([projected[name] for name in side], dim=1), mask)
            for side, mask in zip(self.sides, masks, strict=True)
        ]
        given, attention = [], []
        for place, branch in enumerate(self.branches):
            data, maps = branch(rows, masks, means, return_attention)  # (B, S, W)
            given.append(data)
            attention += [
                AttentionMap(layer=place * self.layers_per_branch + index, queries="all", keys="all", weights=weights)
                for index, weights in enumerate(maps)
            ]
        data = torch.stack(given).mean(dim=0)
        return Fused.end_to_end(batch, self.names, data, attention)


def _mean(rows: Tensor, mask: Tensor) -> Tensor:
    """``(B, T, W)``, ``(B, T)`` to the mean of what is real, ``(B, 1, W)``; 0 where nothing is."""
    real = mask.unsqueeze(-1)
    return rows.masked_fill(~real, 0).sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True).clamp(min=1)


class _Layer(nn.Module):
    """Tr(Q, KV) of the module's docstring. Without ``attends`` there is only the feed-forward part."""

    def __init__(self, config: Config, *, attends: bool = True) -> None:
        super().__init__()
        self.heads = config.heads
        self.attends = attends
        if attends:
            self.attention_norm = nn.LayerNorm(config.width)
            self.query = nn.Linear(config.width, config.width)
            self.key = nn.Linear(config.width, config.width)
            self.value = nn.Linear(config.width, config.width)
            self.attention_out = nn.Linear(config.width, config.width)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward_in = nn.Linear(config.width, config.feed_forward)
        self.feed_forward_out = nn.Linear(config.feed_forward, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, data: Tensor, context: Tensor, mask: Tensor, return_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """``(B, Q, W)`` queries, ``(B, K, W)`` keys, ``(B, K)`` which keys are real."""
        weights = None
        if self.attends:
            asking = self.attention_norm(data)
            asked = asking if context is data else self.attention_norm(context)
            seen, weights = attend(
                split_heads(self.query(asking), self.heads),
                split_heads(self.key(asked), self.heads),
                split_heads(self.value(asked), self.heads),
                bias=key_bias(mask, asking.dtype),
                dropout=self.dropout.p if self.training else 0.0,
                return_weights=return_weights,
            )
            has_keys = mask.any(dim=1)[:, None, None]  # where there is no key, padding was looked at
            data = data + self.dropout(self.attention_out(seen)) * has_keys
            weights = None if weights is None else weights * has_keys.unsqueeze(-1)
        hidden = F.gelu(self.feed_forward_in(self.feed_forward_norm(data)))
        return data + self.dropout(self.feed_forward_out(hidden)), weights


class _Transformer(nn.Module):
    """Layers and the norm that ends them."""

    def __init__(self, config: Config, *, attends: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config, attends=attends) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)


class _Sides(nn.Module):
    """A transformer a side."""

    def __init__(self, config: Config, sides: int, *, attends: bool = True) -> None:
        super().__init__()
        self.sides = nn.ModuleList(_Transformer(config, attends=attends) for _ in range(sides))

    def steps(self) -> list[tuple[_Layer, ...]]:
        """For each depth, the layer of every side."""
        return list(zip(*(cast("list[_Layer]", list(one.layers)) for one in self._stack()), strict=True))

    def end(self, rows: list[Tensor]) -> Tensor:
        """What is given out, all sides laid end to end."""
        return torch.cat([one.norm(row) for one, row in zip(self._stack(), rows, strict=True)], dim=1)

    def _stack(self) -> list[_Transformer]:
        return cast("list[_Transformer]", list(self.sides))


class _Merged(nn.Module):
    """One transformer over the rows of all sides."""

    def __init__(self, config: Config, sides: int) -> None:
        super().__init__()
        self.transformer = _Transformer(config)

    def forward(
        self, rows: list[Tensor], masks: list[Tensor], means: list[Tensor], return_weights: bool
    ) -> tuple[Tensor, list[Tensor]]:
        data, mask = torch.cat(rows, dim=1), torch.cat(masks, dim=1)
        maps = []
        for layer in self.transformer.layers:
            data, weights = layer(data, data, mask, return_weights)
            if weights is not None:
                maps.append(weights)
        return self.transformer.norm(data), maps


class _Cross(nn.Module):
    """A transformer a side, whose keys are the rows of the other side."""

    def __init__(self, config: Config, sides: int) -> None:
        super().__init__()
        self.transformers = _Sides(config, sides, attends=sides > 1)

    def forward(
        self, rows: list[Tensor], masks: list[Tensor], means: list[Tensor], return_weights: bool
    ) -> tuple[Tensor, list[Tensor]]:
        places = _places([row.shape[1] for row in rows], rows[0].device)
        maps = []
        for layers in self.transformers.steps():
            found = [
                # [-1 - side]: the other side; the only side again where there is one, and then nothing attends.
                layer(rows[side], rows[-1 - side], masks[-1 - side], return_weights)
                for side, layer in enumerate(layers)
            ]
            rows = [data for data, _ in found]
            if return_weights and len(rows) > 1:
                maps.append(
                    _whole([(weights, places[side], places[-1 - side]) for side, (_, weights) in enumerate(found)])
                )
        return self.transformers.end(rows), maps


class _GlobalCross(nn.Module):
    """A transformer a side, over its rows and global tokens, that sees the other side's global tokens."""

    def __init__(self, config: Config, sides: int) -> None:
        super().__init__()
        self.transformers = _Sides(config, sides)
        self.tokens = nn.Embedding(sides * config.global_tokens, config.width)
        self.count = config.global_tokens

    def forward(
        self, rows: list[Tensor], masks: list[Tensor], means: list[Tensor], return_weights: bool
    ) -> tuple[Tensor, list[Tensor]]:
        learned = self.tokens.weight.chunk(len(rows))
        tokens = [mean + part for mean, part in zip(means, learned, strict=True)]  # (B, G, W) each
        token_masks = [mask.any(dim=1, keepdim=True).expand(-1, self.count) for mask in masks]
        lengths = [row.shape[1] for row in rows]
        places = _places([*lengths, *(self.count for _ in rows)], rows[0].device)
        row_places, token_places = places[: len(rows)], places[len(rows) :]
        maps = []
        for layers in self.transformers.steps():
            found, blocks = [], []
            for side, layer in enumerate(layers):
                others = [other for other in range(len(rows)) if other != side]
                own = torch.cat([rows[side], tokens[side]], dim=1)
                context = torch.cat([own, *(tokens[other] for other in others)], dim=1)
                mask = torch.cat([masks[side], token_masks[side], *(token_masks[other] for other in others)], dim=1)
                data, weights = layer(own, context, mask, return_weights)
                found.append(data)
                asking = torch.cat([row_places[side], token_places[side]])
                blocks.append((weights, asking, torch.cat([asking, *(token_places[other] for other in others)])))
            rows = [data[:, :length] for data, length in zip(found, lengths, strict=True)]
            tokens = [data[:, length:] for data, length in zip(found, lengths, strict=True)]
            if return_weights:
                maps.append(_whole(blocks))
        return self.transformers.end(rows), maps


_BRANCHES: Mapping[str, type[_Merged | _Cross | _GlobalCross]] = {
    "merged": _Merged,
    "cross": _Cross,
    "global_cross": _GlobalCross,
}


def _places(lengths: list[int], device: torch.device) -> list[Tensor]:
    """The indices of each part of a sequence of parts laid end to end."""
    return list(torch.arange(sum(lengths), device=device).split_with_sizes(lengths))


def _whole(blocks: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Blocks of weights, ``(B, H, Q, K)`` with the indices of their queries and keys, in one ``(B, H, N, N)``."""
    size = sum(len(queries) for _, queries, _ in blocks)
    first = blocks[0][0]
    whole = first.new_zeros(*first.shape[:2], size, size)
    for weights, queries, keys in blocks:
        whole[:, :, queries[:, None], keys] = weights
    return whole
