"""Parallel co-attention: what is seen asks what is heard and what is heard asks what is seen, at the same time.

Source: MICap (Hanna-Asaad, Aspandi, Zaharia, 2411.06872); the authors' code is deckyal/MI-Cap, ``src/model_cross.py``,
``model_pooler.py`` and ``modeling.py``. The defaults are the released form and its sizes. With :data:`PAPER` laid over
them this module gives the authors' numbers (tests/train/test_coattention_golden.py).

Two streams: V, the rows of every feature set of modality video, one after the other, and A, those of audio and of text
(the authors': BERT's states of a sentence that an audio captioner wrote). V enters as ``LN(Linear(X + frame))``, one
learned vector for each frame; A as it is. Both get ``LN(X + position + type)``. Then layer by layer, as in the paper
(post-norm)::

    V1 = LN(V + CrossAttention(V, A));  A1 = LN(A + CrossAttention(A, V))     in parallel: A1 reads V, not V1
    V2 = LN(V1 + SelfAttention(V1));    A2 = LN(A1 + SelfAttention(A1))
    V3 = LN(V2 + FFN_v(V2));            A3 = LN(A2 + FFN_a(A2))

What is given out is ``LN([A; V])``, audio first; with ``gate``, ``LN(GELU(Linear([A; V])))``. Start values are torch's.

In the released code both directions share one cross-attention, and both streams one self-attention (a second one is
stored and never called). The paper describes two encoders in parallel: ``share: separate``.

For objectives, ``Fused.aux`` holds, where ``pool`` asks for it and both streams are trained on:

- ``"pooled_video"`` and ``"pooled_audio"``, ``(B, W)``: ``tanh(Linear(row))`` of each stream's first row; zeros where a
  clip lacks the stream.
- ``"paired"``, ``(B,)``, bool: True where the clip has both, so that there is something to match.

Deviations:

- ``absent: zero`` drops what a stream would add that the clip lacks. In the original masked keys get -10000, which,
  where it is all of them, is no mask at all: a clip without sound attends to rows of padding as if they were real.
- ``pool: none``, until an objective wants the pooled vectors: parameters without a gradient stop a training by several
  processes. The authors: post.
- Padding is masked wherever it is a key, of V as of A, and in what the decoder gets. The authors' V is never padded,
  and their decoder gets no mask, so it attends to the padding of A.
- A frame is what has one time (``pts_seconds``), and there may be as many as ``positions``; the original counts five.
- A feature set of another width than ``width``, whichever stream it is of, enters as V does: Linear, LayerNorm.
- ``type`` is a vector of each feature set, which for one set a stream is the original's, whose table has ``width`` rows
  and uses one. Positions are counted through all real rows of a stream, padding left out.

Beyond the original: several feature sets a stream; and one stream alone, which is a Transformer encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from avpipe.pipeline.errors import ConfigError
from avpipe.pipeline.features import FeatureSpec
from avpipe.train.batch import AttentionMap, Batch, Fused
from avpipe.train.layers import HeadsDivideWidth, attend, key_bias, split_heads

LAYER_NORM_EPS = 1e-12  # BERT's; the norm of what is given out has torch's default
STREAMS = {"audio": ("audio", "text"), "video": ("video",)}
"""The modalities of each stream; in the order in which streams are given out."""


class Config(HeadsDivideWidth):
    """Sizes of the ``coattention`` fusion. The defaults are those of the released code but for ``absent``, ``pool``."""

    width: int = Field(768, ge=8)
    """Channels of a position."""
    layers: int = Field(2, ge=1)
    """How many layers."""
    heads: int = Field(12, ge=1)
    """Attention heads; divides ``width``."""
    feed_forward: int = Field(3072, ge=8)
    """Hidden channels of each stream's feed-forward part."""
    share: Literal["shared", "separate"] = "shared"
    """Whether both streams have one cross-attention and one self-attention a layer, as released, or each its own."""
    positions: int = Field(1024, ge=1)
    """The most rows that a clip may have in a stream: size of the table of learned positions."""
    frame_embedding: bool = True
    """Whether each frame of a video feature set (all rows of one time) gets a learned vector, zero at the start."""
    project: Literal["none", "video", "all"] = "video"
    """Which feature sets go through Linear and LayerNorm though their width is ``width``; others always do."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of channels and of attention weights."""
    gate: bool = False
    """Whether what is given out goes through Linear and GELU before the LayerNorm."""
    pool: Literal["none", "pre", "post"] = "none"
    """Whether objectives get a vector of each stream, from before the layers or from after them. The authors: post,
    where each stream has already seen the other, which makes matching them easy."""
    absent: Literal["zero", "unmasked"] = "zero"
    """What a stream that the clip lacks adds to the other: nothing, or, as in the authors' code, what its padding says
    (which makes a caption depend on how the batch is padded)."""


PAPER: Mapping[str, Any] = {"pool": "post", "absent": "unmasked"}
"""The authors' settings, where they are not the defaults."""


class Fusion(nn.Module):
    """The fusion. ``width`` is the width of what it gives.

    Args:
        config: sizes.
        specs: the feature sets it reads, by name. Within a stream their rows lie in this order.
    """

    def __init__(self, config: Config, specs: Mapping[str, FeatureSpec]) -> None:
        super().__init__()
        self.width = config.width
        self.absent = config.absent
        self.pool = config.pool
        of_streams = {
            kind: {name: spec for name, spec in specs.items() if spec.modality in modalities}
            for kind, modalities in STREAMS.items()
        }
        kinds = [kind for kind, chosen in of_streams.items() if chosen]
        self.streams = nn.ModuleDict({kind: _Stream(config, kind, of_streams[kind]) for kind in kinds})
        self.names = tuple(name for kind in kinds for name in of_streams[kind])
        self.labels = [" + ".join(of_streams[kind]) for kind in kinds]
        self.layers = nn.ModuleList(_Layer(config, len(kinds)) for _ in range(config.layers))
        is_pooled = config.pool != "none" and len(kinds) == len(STREAMS)
        self.poolers = nn.ModuleDict({kind: nn.Linear(config.width, config.width) for kind in kinds if is_pooled})
        self.gate = nn.Linear(config.width, config.width) if config.gate else None
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS if config.gate else 1e-5)

    def forward(self, batch: Batch, *, return_attention: bool = False) -> Fused:
        """Rows in, the same rows out, audio and text before video: S is the sum of all T."""
        data, masks = [], []
        for stream in self.streams.values():
            rows, mask = stream(batch)  # (B, K, W), (B, K)
            data.append(rows)
            masks.append(mask)
        keys = masks
        if self.absent == "unmasked":
            keys = [mask | ~mask.any(dim=1, keepdim=True) for mask in masks]
        biases = [key_bias(mask, rows.dtype) for mask, rows in zip(keys, data, strict=True)]
        gates = [mask.any(dim=1).to(rows.dtype)[:, None, None] for mask, rows in zip(keys, data, strict=True)]

        pooled = self._pooled(data, keys) if self.pool == "pre" else {}
        attention: list[AttentionMap] = []
        for index, layer in enumerate(self.layers):
            data, weights = layer(data, biases, gates, return_attention)
            attention += [
                AttentionMap(layer=index, queries=self.labels[query], keys=self.labels[key], weights=weight)
                for (query, key), weight in weights.items()
            ]
        if self.pool == "post":
            pooled = self._pooled(data, keys)
        if pooled:
            pooled["paired"] = torch.stack([mask.any(dim=1) for mask in masks]).all(dim=0)

        combined = torch.cat(data, dim=1)  # (B, S, W)
        if self.gate is not None:
            combined = F.gelu(self.gate(combined))
        return Fused.end_to_end(batch, self.names, self.norm(combined), attention, pooled)

    def _pooled(self, data: list[Tensor], masks: list[Tensor]) -> dict[str, Tensor]:
        """A vector of each stream, ``(B, W)``, from its first real row."""
        pooled: dict[str, Tensor] = {}
        if not self.poolers:  # one stream alone has nothing to be matched with
            return pooled
        for rows, mask, (kind, pooler) in zip(data, masks, self.poolers.items(), strict=True):
            first = mask.int().argmax(dim=1)  # of several largest, the first; 0 where there is none
            row = rows[torch.arange(len(rows), device=rows.device), first]
            pooled[f"pooled_{kind}"] = torch.tanh(pooler(row)).masked_fill(~mask.any(dim=1, keepdim=True), 0)
        return pooled


class _Stream(nn.Module):
    """The rows of some feature sets, one after the other, each told what it is and which in the row."""

    def __init__(self, config: Config, kind: str, specs: Mapping[str, FeatureSpec]) -> None:
        super().__init__()
        self.kind = kind
        self.names = tuple(specs)
        self.inputs = nn.ModuleList(_Input(config, spec) for spec in specs.values())
        self.positions = nn.Embedding(config.positions, config.width)
        self.types = nn.Embedding(len(specs), config.width)
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """``(B, K, W)`` and the mask ``(B, K)``: K is the sum of the T of the stream's feature sets."""
        mask = torch.cat([batch.mask[name] for name in self.names], dim=1)
        self._check(mask, batch)
        rows = [
            enter(batch.features[name], batch.pts_seconds[name]) + kind
            for name, enter, kind in zip(self.names, self.inputs, self.types.weight, strict=True)
        ]
        # Real rows are counted first, so that a set's padding does not move the rows of the next one.
        place = torch.where(mask, mask.cumsum(1), mask.sum(1, keepdim=True) + (~mask).cumsum(1)) - 1
        place = place.clamp(max=self.positions.num_embeddings - 1)
        data: Tensor = self.dropout(self.norm(torch.cat(rows, dim=1) + self.positions(place)))
        return data, mask

    def _check(self, mask: Tensor, batch: Batch) -> None:
        """Refuse a clip with more rows than there are positions."""
        most = self.positions.num_embeddings
        if mask.shape[1] <= most:  # known without asking the device
            return
        counts = mask.sum(dim=1)
        longest = int(counts.argmax())
        count = int(counts[longest])
        if count > most:
            parts = ", ".join(f"{name}: {int(batch.mask[name][longest].sum())}" for name in self.names)
            fault = (
                f"fusion.positions: {most} is too small: clip {batch.clip_ids[longest]!r} has {count} rows of "
                f"{self.kind} ({parts}). Train with fusion.positions={count} or more, or on features with fewer rows a "
                "clip (fewer frames, or fewer tokens of each)"
            )
            raise ConfigError("fusion coattention", [fault])


class _Input(nn.Module):
    """A feature set's rows at the fusion's width; those of pictures know their frame."""

    def __init__(self, config: Config, spec: FeatureSpec) -> None:
        super().__init__()
        is_video = spec.modality == "video"
        self.frames = None
        if is_video and config.frame_embedding:
            self.frames = nn.Embedding(config.positions, spec.dim)
            nn.init.zeros_(self.frames.weight)
        self.project: nn.Module = nn.Identity()
        if spec.dim != config.width or config.project == "all" or (config.project == "video" and is_video):
            self.project = nn.Sequential(
                nn.Linear(spec.dim, config.width), nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
            )

    def forward(self, features: Tensor, pts_seconds: Tensor) -> Tensor:
        if self.frames is not None:
            is_new = F.pad(pts_seconds[:, 1:] != pts_seconds[:, :-1], (1, 0))  # a frame's rows have one time
            features = features + self.frames(is_new.cumsum(1).clamp(max=self.frames.num_embeddings - 1))
        out: Tensor = self.project(features)
        return out


class _Layer(nn.Module):
    """One layer of both streams. Where they share an attention, there is one of it."""

    def __init__(self, config: Config, streams: int) -> None:
        super().__init__()
        own = streams if config.share == "separate" else 1
        self.cross_attentions = nn.ModuleList(_Attention(config) for _ in range(own if streams > 1 else 0))
        self.self_attentions = nn.ModuleList(_Attention(config) for _ in range(own))
        self.feed_forwards = nn.ModuleList(_FeedForward(config) for _ in range(streams))

    def forward(
        self, streams: list[Tensor], biases: list[Tensor], gates: list[Tensor], maps: bool
    ) -> tuple[list[Tensor], dict[tuple[int, int], Tensor]]:
        """The streams, and the weights by (stream that asks, stream that is asked), where asked for."""
        weights: dict[tuple[int, int], Tensor] = {}

        def asked(parts: nn.ModuleList, query: int, key: int, data: list[Tensor]) -> Tensor:
            part = parts[query % len(parts)]
            out, weight = part(data[query], data[key], biases[key], gates[key], maps)
            if weight is not None:
                weights[query, key] = weight
            result: Tensor = out
            return result

        both = range(len(streams))
        if self.cross_attentions:  # each from what came in: neither waits for the other
            streams = [asked(self.cross_attentions, index, 1 - index, streams) for index in both]
        streams = [asked(self.self_attentions, index, index, streams) for index in both]
        streams = [forward(stream) for forward, stream in zip(self.feed_forwards, streams, strict=True)]
        return streams, weights


class _Attention(nn.Module):
    """BERT's attention unit, ``LN(x + Linear(MultiHead(x, context)))``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, data: Tensor, context: Tensor, bias: Tensor, gate: Tensor, maps: bool
    ) -> tuple[Tensor, Tensor | None]:
        """``gate``, ``(B, 1, 1)``: 0 where nothing of the context is real."""
        seen, weights = attend(
            split_heads(self.query(data), self.heads),
            split_heads(self.key(context), self.heads),
            split_heads(self.value(context), self.heads),
            bias=bias,
            dropout=self.dropout.p if self.training else 0.0,
            return_weights=maps,
        )
        seen = self.dropout(self.out(seen)) * gate
        weights = None if weights is None else weights * gate[..., None]
        return self.norm(data + seen), weights


class _FeedForward(nn.Module):
    """BERT's feed-forward unit, exact GELU: ``LN(x + Linear(GELU(Linear(x))))``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.wide = nn.Linear(config.width, config.feed_forward)
        self.out = nn.Linear(config.feed_forward, config.width)
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, data: Tensor) -> Tensor:
        out: Tensor = self.norm(data + self.dropout(self.out(F.gelu(self.wide(data)))))
        return out
