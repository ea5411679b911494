"""Multi-modal Q-Former: learned queries of each modality meet in a shared self-attention.

Source: Multi-modal BLIP-2 (A. Brimont et al., poster), built on PIT-VC (Zhang et al., NAACL 2025 short, 2502.13363) and
BLIP-2 (Li et al. 2023, 2301.12597); the authors' code is ABrimont/Multi-modal-BLIP-2,
``lavis/models/blip2_models/multimodal_QFormer.py``. With ``time_embedding: none`` and ``absent: uniform`` this module
gives the authors' numbers (tests/train/test_qformer_golden.py).

Layer i, post-norm, with h_v the visual and h_a the audio queries::

    u = LN([h_v; h_a] + SelfAttention([h_v; h_a]))       one attention for both, no mask; split into u_v, u_a
    u_v = LN(u_v + CrossAttention_v(u_v, X_v))           where i is a multiple of ``cross_attention_every``
    u_a = LN(u_a + CrossAttention_a(u_a, X_a))
    h_v = LN(u_v + FFN_v(u_v));  h_a = LN(u_a + FFN_a(u_a))

X_v and X_a are the features after a LayerNorm of their own. What is given out is a Linear of each stream's queries,
audio first, as the authors feed their language model.

Deviations from the authors' code, each by a switch:

- ``time_embedding: sinusoidal`` adds the time of each row to X. The original has none: to its cross-attention a clip is
  a bag of rows, so it cannot tell "first ... then ...", nor whether what is seen is in time with what is heard.
- ``query_times: spread`` gives every query a moment of the clip, evenly spaced, and lets attention fall off with the
  distance from it: linearly in the score, each head with its own slope, the last head with none (the idea of ALiBi,
  Press et al. 2022, 2108.12409, here in time and in both directions). In the original every query first pools the whole
  clip, and the modalities meet when the moments are gone: whether a bounce comes with a beep is then an exclusive or of
  two pooled facts, which gradient descent does not find in reasonable time. Here a visual and an audio query of one
  moment meet, and it is found within a few hundred steps (docs/synchrony.md has the measurements).
- ``project_inputs: true`` maps X to ``width`` once, before the layers, instead of in every layer's keys and values.
- ``absent: zero`` drops the cross-attention's result of a modality that the clip lacks. In the original an all-zero
  mask becomes uniform attention over rows of padding, so the caption depends on how long the padding is.

Beyond the original: one stream for every feature set, however many there are, and one alone is a plain Q-Former.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from avpipe.pipeline.config import Config as BaseConfig
from avpipe.pipeline.features import MODALITIES, FeatureSpec
from avpipe.train.batch import AttentionMap, Batch, Fused
from avpipe.train.layers import TimeEmbedding, attend, initialise, split_heads

LAYER_NORM_EPS = 1e-12  # BERT's; the visual input's norm is BLIP-2's ``ln_vision`` with torch's default
VISUAL_INPUT_EPS = 1e-5


class Queries(BaseConfig):
    """How many learned queries each modality has. The paper: 32 for video, 16 for audio."""

    video: int = Field(8, ge=1)
    audio: int = Field(8, ge=1)
    text: int = Field(8, ge=1)


class Config(BaseConfig):
    """Sizes of the ``qformer`` fusion. The paper's: width 768, 12 layers, 12 heads, feed_forward 3072."""

    width: int = Field(128, ge=8)
    """Channels of a query."""
    layers: int = Field(2, ge=1)
    """How many layers."""
    heads: int = Field(4, ge=1)
    """Attention heads; divides ``width``."""
    feed_forward: int = Field(256, ge=8)
    """Hidden channels of each stream's feed-forward part."""
    queries: Queries = Queries()
    """Learned queries of each modality."""
    cross_attention_every: int = Field(1, ge=1)
    """Layers 0, n, 2n, ... look at the features. The paper: 2."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Of channels and of attention weights."""
    project_inputs: bool = True
    """Whether features are mapped to ``width`` once, before the layers. The paper: no."""
    time_embedding: Literal["none", "sinusoidal"] = "sinusoidal"
    """Whether a row of features carries its time in seconds. The paper: none."""
    query_times: Literal["none", "spread"] = "spread"
    """Whether queries are spread over the clip's time and prefer what is near. The paper: none."""
    absent: Literal["zero", "uniform"] = "zero"
    """What a modality that the clip lacks adds to its queries: nothing, or, as in the authors' code, the mean of the
    padding (which makes a caption depend on how the batch is padded)."""
    out_width: int | None = Field(None, ge=8)
    """Width of what is given to the decoder; none = ``width``, without the projection."""
    initializer_std: float = Field(0.02, gt=0)
    """Standard deviation of matrices and queries at the start."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Config:
        if self.width % self.heads:
            raise ValueError(f"heads must divide width ({self.width})")
        return self


class Fusion(nn.Module):
    """The fusion. ``width`` is the width of what it gives.

    Args:
        config: sizes.
        specs: the feature sets it reads, by name. Streams stand in the order video, audio, text.
    """

    moments: Tensor
    slopes: Tensor
    source: Tensor
    order: Tensor

    def __init__(self, config: Config, specs: Mapping[str, FeatureSpec]) -> None:
        super().__init__()
        self.width = config.out_width or config.width
        self.absent = config.absent
        self.spread = config.query_times == "spread"
        self.names = tuple(sorted(specs, key=lambda name: MODALITIES.index(specs[name].modality)))
        ordered = [specs[name] for name in self.names]
        self.counts = [getattr(config.queries, spec.modality) for spec in ordered]
        self.input_norms = nn.ModuleList(
            nn.LayerNorm(spec.dim, eps=VISUAL_INPUT_EPS if spec.modality == "video" else LAYER_NORM_EPS)
            for spec in ordered
        )
        self.projections = nn.ModuleList(
            nn.Linear(spec.dim, config.width) for spec in ordered if config.project_inputs
        )
        widths = [config.width if config.project_inputs else spec.dim for spec in ordered]
        self.times = nn.ModuleList(TimeEmbedding(width) for width in widths if config.time_embedding == "sinusoidal")
        self.queries = nn.Parameter(torch.empty(1, sum(self.counts), config.width))
        self.query_norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            _Layer(config, widths, crosses=index % config.cross_attention_every == 0)
            for index in range(config.layers)
        )
        moments = torch.cat([(torch.arange(count) + 0.5) / count for count in self.counts])  # in units of the clip
        self.register_buffer("moments", moments, persistent=False)
        self.register_buffer("slopes", _slopes(config.heads), persistent=False)
        order = [index for index in reversed(range(len(ordered))) for _ in range(self.counts[index])]  # audio first
        first = [sum(self.counts[:index]) for index in range(len(ordered))]
        positions = [first[index] + i for index in reversed(range(len(ordered))) for i in range(self.counts[index])]
        self.register_buffer("source", torch.tensor(order), persistent=False)
        self.register_buffer("order", torch.tensor(positions), persistent=False)
        self.outputs = nn.ModuleList(nn.Linear(config.width, self.width) for _ in ordered if config.out_width)
        initialise(self, config.initializer_std)
        nn.init.normal_(self.queries, std=config.initializer_std)

    def forward(self, batch: Batch, *, return_attention: bool = False) -> Fused:
        """Rows in, queries out: S is the number of all queries."""
        size = len(batch)
        duration = self._duration_seconds(batch)
        contexts, biases, gates = [], [], []
        for index, name in enumerate(self.names):
            context = self.input_norms[index](batch.features[name])  # (B, T, dim)
            if self.projections:
                context = self.projections[index](context)  # (B, T, W)
            contexts.append(context + self.times[index](batch.pts_seconds[name]) if self.times else context)
            biases.append(self._cross_bias(index, batch.mask[name], batch.pts_seconds[name], duration))
            present = batch.present[name] if self.absent == "zero" else torch.ones_like(batch.present[name])
            gates.append(present.to(context.dtype)[:, None, None])
        self_bias = self._self_bias()
        queries = self.dropout(self.query_norm(self.queries)).expand(size, -1, -1)
        streams = list(queries.split(self.counts, dim=1))
        attention: list[AttentionMap] = []
        for index, layer in enumerate(self.layers):
            streams, weights = layer(streams, contexts, self_bias, biases, gates, return_attention)
            keys = ("all", *self.names) if layer.crosses else ("all",)
            attention += [
                AttentionMap(layer=index, queries=key, keys=key, weights=weight)
                for key, weight in zip(keys, weights, strict=False)
            ]
        if self.outputs:
            streams = [project(stream) for project, stream in zip(self.outputs, streams, strict=True)]
        data = torch.cat(streams, dim=1)[:, self.order]
        pts_seconds = self.moments * duration if self.spread else data.new_full((size, len(self.order)), torch.nan)
        return Fused(
            data=data,
            mask=data.new_ones(data.shape[:2], dtype=torch.bool),
            pts_seconds=pts_seconds.float()[:, self.order],
            sources=self.names,
            source=self.source,
            attention=tuple(attention),
        )

    def _duration_seconds(self, batch: Batch) -> Tensor:
        """``(B, 1)``: the time of each clip's last real row in any modality."""
        last = [
            batch.pts_seconds[name].masked_fill(~batch.mask[name], 0).amax(dim=1, keepdim=True) for name in self.names
        ]
        return torch.stack(last).amax(dim=0).clamp(min=1e-3)

    def _cross_bias(self, index: int, mask: Tensor, pts_seconds: Tensor, duration: Tensor) -> Tensor:
        """What is added to a stream's scores, ``(B, H or 1, Q or 1, T)``: padding never, far moments less.

        Distance is counted in steps from one query of the stream to the next, so that the same slopes serve short
        clips and long ones: a query sees its share of the clip.
        """
        lowest = torch.finfo(torch.float32).min
        bias = torch.zeros((), device=mask.device)
        if self.spread:
            count = self.counts[index]
            moments = self.moments.split(self.counts)[index]
            steps = (moments[:, None] - (pts_seconds / duration)[:, None, :]).abs() * count  # (B, Q, T)
            bias = -self.slopes[:, None, None] * steps[:, None]
        return bias.masked_fill(~mask[:, None, None, :], lowest)

    def _self_bias(self) -> Tensor | None:
        """The same between the queries, ``(1, H, all, all)``; steps of the stream with the fewest."""
        if not self.spread:
            return None
        steps = (self.moments[:, None] - self.moments[None, :]).abs() * min(self.counts)
        return -(self.slopes[:, None, None] * steps)[None]


def _slopes(heads: int) -> Tensor:
    """How fast each head's score falls with the distance in time: from 8 to 2 a step, and the last head not at all."""
    return torch.cat([2 ** torch.linspace(3, 1, heads - 1), torch.zeros(1)])


class _Layer(nn.Module):
    """One layer of all streams."""

    def __init__(self, config: Config, context_widths: list[int], *, crosses: bool) -> None:
        super().__init__()
        self.crosses = crosses
        self.self_attention = _Attention(config, config.width)
        self.cross_attentions = nn.ModuleList(_Attention(config, width) for width in context_widths if crosses)
        self.feed_forwards = nn.ModuleList(_FeedForward(config) for _ in context_widths)

    def forward(
        self,
        streams: list[Tensor],
        contexts: list[Tensor],
        self_bias: Tensor | None,
        biases: list[Tensor],
        gates: list[Tensor],
        maps: bool,
    ) -> tuple[list[Tensor], list[Tensor]]:
        counts = [stream.shape[1] for stream in streams]
        together = torch.cat(streams, dim=1)
        together, weights = self.self_attention(together, together, self_bias, None, maps)
        streams = list(together.split(counts, dim=1))
        all_weights = [weights]
        for index, attention in enumerate(self.cross_attentions):
            streams[index], weights = attention(
                streams[index], contexts[index], biases[index], gates[index], maps
            )
            all_weights.append(weights)
        streams = [forward(stream) for forward, stream in zip(self.feed_forwards, streams, strict=True)]
        return streams, [weights for weights in all_weights if weights is not None]


class _Attention(nn.Module):
    """BERT's attention unit: ``LN(x + Linear(MultiHead(x, context)))``."""

    def __init__(self, config: Config, context_width: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(context_width, config.width)
        self.value = nn.Linear(context_width, config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, data: Tensor, context: Tensor, bias: Tensor | None, gate: Tensor | None, maps: bool
    ) -> tuple[Tensor, Tensor | None]:
        seen, weights = attend(
            split_heads(self.query(data), self.heads),
            split_heads(self.key(context), self.heads),
            split_heads(self.value(context), self.heads),
            bias=bias,
            dropout=self.dropout.p if self.training else 0.0,
            return_weights=maps,
        )
        seen = self.dropout(self.out(seen))
        if gate is not None:
            seen = seen * gate
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
        normed: Tensor = self.norm(data + self.dropout(self.out(F.gelu(self.wide(data)))))
        return normed
