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
from avpipe.train.layers import TimeEmbedding, attend, initialise, key_bias, split_heads

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
    time_embedding: Literal["none", "sinusoidal"] = "sinusoidal"
    """Whether a row of features carries its time in seconds. The paper: none."""
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

    def __init__(self, config: Config, specs: Mapping[str, FeatureSpec]) -> None:
        super().__init__()
        self.width = config.out_width or config.width
        self.absent = config.absent
        self.names = tuple(sorted(specs, key=lambda name: MODALITIES.index(specs[name].modality)))
        ordered = [specs[name] for name in self.names]
        self.counts = [getattr(config.queries, spec.modality) for spec in ordered]
        self.input_norms = nn.ModuleList(
            nn.LayerNorm(spec.dim, eps=VISUAL_INPUT_EPS if spec.modality == "video" else LAYER_NORM_EPS)
            for spec in ordered
        )
        self.times = nn.ModuleList(
            TimeEmbedding(spec.dim) for spec in ordered if config.time_embedding == "sinusoidal"
        )
        self.queries = nn.Parameter(torch.empty(1, sum(self.counts), config.width))
        self.query_norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            _Layer(config, [spec.dim for spec in ordered], crosses=index % config.cross_attention_every == 0)
            for index in range(config.layers)
        )
        self.outputs = nn.ModuleList(nn.Linear(config.width, self.width) for _ in ordered if config.out_width)
        initialise(self, config.initializer_std)
        nn.init.normal_(self.queries, std=config.initializer_std)

    def forward(self, batch: Batch, *, return_attention: bool = False) -> Fused:
        """Rows in, queries out: S is the number of all queries. They have no time of their own."""
        size = len(batch)
        contexts, biases, gates = [], [], []
        for index, name in enumerate(self.names):
            context = self.input_norms[index](batch.features[name])  # (B, T, dim)
            contexts.append(context + self.times[index](batch.pts_seconds[name]) if self.times else context)
            biases.append(key_bias(batch.mask[name], context.dtype))
            present = batch.present[name] if self.absent == "zero" else torch.ones_like(batch.present[name])
            gates.append(present.to(context.dtype)[:, None, None])
        queries = self.dropout(self.query_norm(self.queries)).expand(size, -1, -1)
        streams = list(queries.split(self.counts, dim=1))
        attention: list[AttentionMap] = []
        for index, layer in enumerate(self.layers):
            streams, weights = layer(streams, contexts, biases, gates, return_attention)
            keys = ("all", *self.names) if layer.crosses else ("all",)
            attention += [
                AttentionMap(layer=index, queries=key, keys=key, weights=weight)
                for key, weight in zip(keys, weights, strict=False)
            ]
        if self.outputs:
            streams = [project(stream) for project, stream in zip(self.outputs, streams, strict=True)]
        order = list(reversed(range(len(streams))))  # audio first
        source = torch.tensor([index for index in order for _ in range(self.counts[index])], device=queries.device)
        data = torch.cat([streams[index] for index in order], dim=1)
        return Fused(
            data=data,
            mask=data.new_ones(data.shape[:2], dtype=torch.bool),
            pts_seconds=data.new_full(data.shape[:2], torch.nan, dtype=torch.float32),
            sources=self.names,
            source=source,
            attention=tuple(attention),
        )


class _Layer(nn.Module):
    """One layer of all streams."""

    def __init__(self, config: Config, context_widths: list[int], *, crosses: bool) -> None:
        super().__init__()
        self.crosses = crosses
        self.self_attention = _Attention(config, config.width)
        self.cross_attentions = nn.ModuleList(_Attention(config, width) for width in context_widths if crosses)
        self.feed_forwards = nn.ModuleList(_FeedForward(config) for _ in context_widths)

    def forward(
        self, streams: list[Tensor], contexts: list[Tensor], biases: list[Tensor], gates: list[Tensor], maps: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        counts = [stream.shape[1] for stream in streams]
        together = torch.cat(streams, dim=1)
        together, weights = self.self_attention(together, together, None, None, maps)
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
