"""Multi-modal Q-Former: learned queries of each modality meet in a shared self-attention.

Source: Multi-modal BLIP-2 (A. Brimont et al., poster), built on PIT-VC (Zhang et al., NAACL 2025 short, 2502.13363) and
BLIP-2 (Li et al. 2023, 2301.12597); the authors' code is ABrimont/Multi-modal-BLIP-2,
``lavis/models/blip2_models/multimodal_QFormer.py``. With :data:`PAPER` laid over the defaults this module gives the
authors' numbers (tests/train/test_qformer_golden.py).

Layer i, as in the paper (post-norm), with h_v the visual and h_a the audio queries::

    u = LN([h_v; h_a] + SelfAttention([h_v; h_a]))       one attention for both, no mask; split into u_v, u_a
    u_v = LN(u_v + CrossAttention_v(u_v, X_v))           where i is a multiple of ``cross_attention_every``
    u_a = LN(u_a + CrossAttention_a(u_a, X_a))
    h_v = LN(u_v + FFN_v(u_v));  h_a = LN(u_a + FFN_a(u_a))

X_v and X_a are the features after a LayerNorm of their own. What is given out is a Linear of each stream's queries,
audio first, as the authors feed their language model.

The paper's network starts from BLIP-2's weights. Ours, by default, starts from nothing, on little data; what that takes
was measured (docs/synchrony.md). Deviations, each by a switch:

- ``time_embedding: sinusoidal`` adds the time of each row to X. The original has none: to its cross-attention a clip is
  a bag of rows, so it cannot tell "first ... then ...", nor whether what is seen is in time with what is heard.
- ``norm: pre`` norms what enters a sub-layer instead of what leaves it: trains from scratch without long warmup.
- ``project_inputs: true`` maps X to ``width`` once, before the layers, instead of in every layer's keys and values.
- ``initializer_std: null`` draws matrices after Glorot and Bengio (2010) instead of N(0, 0.02).
- ``absent: zero`` drops the cross-attention's result of a modality that the clip lacks. In the original an all-zero
  mask becomes uniform attention over rows of padding, so the caption depends on how long the padding is.

Beyond the original: one stream for every feature set, however many there are, and one alone is a plain Q-Former.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from avpipe.pipeline.config import Config as BaseConfig
from avpipe.pipeline.features import MODALITIES, FeatureSpec
from avpipe.train.batch import AttentionMap, Batch, Fused
from avpipe.train.layers import attend, initialise, key_bias, split_heads, time_code

LAYER_NORM_EPS = 1e-12  # BERT's; the visual input's norm is BLIP-2's ``ln_vision`` with torch's default
VISUAL_INPUT_EPS = 1e-5
QUERY_STD = 0.1


class Queries(BaseConfig):
    """How many learned queries each modality has. The paper: 32 for video, 16 for audio."""

    video: int = Field(8, ge=1)
    audio: int = Field(8, ge=1)
    text: int = Field(8, ge=1)


class Config(BaseConfig):
    """Sizes of the ``qformer`` fusion. The paper's: width 768, 12 layers, 12 heads, feed_forward 3072."""

    width: int = Field(96, ge=8)
    """Channels of a query."""
    layers: int = Field(2, ge=1)
    """How many layers."""
    heads: int = Field(4, ge=1)
    """Attention heads; divides ``width``."""
    feed_forward: int = Field(384, ge=8)
    """Hidden channels of each stream's feed-forward part."""
    queries: Queries = Queries()
    """Learned queries of each modality."""
    norm: Literal["pre", "post"] = "pre"
    """Whether a sub-layer's input is normed, or its output. The paper: post."""
    cross_attention_every: int = Field(1, ge=1)
    """Layers 0, n, 2n, ... look at the features. The paper: 2."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of channels and of attention weights. The paper: 0.1."""
    project_inputs: bool = True
    """Whether features are mapped to ``width`` once, before the layers. The paper: no."""
    time_embedding: Literal["none", "sinusoidal"] = "sinusoidal"
    """Whether a row of features carries its time in seconds. The paper: none."""
    absent: Literal["zero", "uniform"] = "zero"
    """What a modality that the clip lacks adds to its queries: nothing, or, as in the authors' code, the mean of the
    padding (which makes a caption depend on how the batch is padded)."""
    out_width: int | None = Field(None, ge=8)
    """Width of what is given to the decoder; none = ``width``, without the projection."""
    initializer_std: float | None = Field(None, gt=0)
    """Standard deviation of matrices and queries at the start; none: Glorot's, and 0.1 for queries. Paper: 0.02."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Config:
        if self.width % self.heads:
            raise ValueError(f"heads must divide width ({self.width})")
        return self


PAPER: Mapping[str, Any] = {
    "width": 768,
    "layers": 12,
    "heads": 12,
    "feed_forward": 3072,
    "queries": {"video": 32, "audio": 16},
    "norm": "post",
    "cross_attention_every": 2,
    "dropout": 0.1,
    "project_inputs": False,
    "time_embedding": "none",
    "absent": "uniform",
    "initializer_std": 0.02,
}
"""The authors' settings."""


class Fusion(nn.Module):
    """The fusion. ``width`` is the width of what it gives.

    Args:
        config: sizes.
        specs: the feature sets it reads, by name. Streams stand in the order video, audio, text.
    """

    source: Tensor
    order: Tensor

    def __init__(self, config: Config, specs: Mapping[str, FeatureSpec]) -> None:
        super().__init__()
        self.width = config.out_width or config.width
        self.absent = config.absent
        self.names = tuple(sorted(specs, key=lambda name: MODALITIES.index(specs[name].modality)))
        ordered = [specs[name] for name in self.names]
        self.counts = [int(getattr(config.queries, spec.modality)) for spec in ordered]
        self.inputs = nn.ModuleList(_Input(config, spec) for spec in ordered)
        self.queries = nn.Parameter(torch.empty(1, sum(self.counts), config.width))
        self.query_norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)
        widths = [config.width if config.project_inputs else spec.dim for spec in ordered]
        self.layers = nn.ModuleList(
            _Layer(config, widths, crosses=index % config.cross_attention_every == 0) for index in range(config.layers)
        )
        self.final_norms = nn.ModuleList(nn.LayerNorm(config.width) for _ in ordered if config.norm == "pre")
        self.outputs = nn.ModuleList(nn.Linear(config.width, self.width) for _ in ordered if config.out_width)
        # What is given out: audio first.
        streams = list(reversed(range(len(ordered))))
        first = [sum(self.counts[:index]) for index in range(len(ordered))]
        order = [first[index] + i for index in streams for i in range(self.counts[index])]
        source = [index for index in streams for _ in range(self.counts[index])]
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.register_buffer("source", torch.tensor(source), persistent=False)
        initialise(self, config.initializer_std)
        nn.init.normal_(self.queries, std=config.initializer_std or QUERY_STD)

    def forward(self, batch: Batch, *, return_attention: bool = False) -> Fused:
        """Rows in, queries out: S is the number of all queries. They have no time of their own."""
        contexts, biases, gates = [], [], []
        for name, read in zip(self.names, self.inputs, strict=True):
            context = read(batch.features[name], batch.pts_seconds[name])  # (B, T, width or dim)
            contexts.append(context)
            biases.append(key_bias(batch.mask[name], context.dtype))
            present = batch.present[name] if self.absent == "zero" else torch.ones_like(batch.present[name])
            gates.append(present.to(context.dtype)[:, None, None])
        queries = self.dropout(self.query_norm(self.queries)).expand(len(batch), -1, -1)
        streams = list(queries.split_with_sizes(self.counts, dim=1))
        attention: list[AttentionMap] = []
        for index, layer in enumerate(self.layers):
            streams, weights = layer(streams, contexts, biases, gates, return_attention)
            keys = ("all", *self.names) if layer.crosses else ("all",)
            attention += [
                AttentionMap(layer=index, queries=key, keys=key, weights=weight)
                for key, weight in zip(keys, weights, strict=False)
            ]
        for parts in (self.final_norms, self.outputs):
            if parts:
                streams = [part(stream) for part, stream in zip(parts, streams, strict=True)]
        data = torch.cat(streams, dim=1)[:, self.order]
        return Fused(
            data=data,
            mask=data.new_ones(data.shape[:2], dtype=torch.bool),
            pts_seconds=data.new_full(data.shape[:2], torch.nan, dtype=torch.float32),
            sources=self.names,
            source=self.source,
            attention=tuple(attention),
        )


_OFFICIAL_NAMES = (
    (r"^Qformer\.bert\.", ""),
    (r"^embeddings\.LayerNorm", "query_norm"),
    (r"^encoder\.layer\.", "layers."),
    (r"^query_tokens$", "queries"),
    (r"^ln_vision\.", "inputs.0.norm."),
    (r"^ln_audio\.", "inputs.1.norm."),
    (r"^t5_proj\.", "outputs.0."),
    (r"^t5_proj_aud\.", "outputs.1."),
    (r"\.crossattention_vis\.", ".cross_attentions.0."),
    (r"\.crossattention_aud\.", ".cross_attentions.1."),
    (r"\.attention\.", ".self_attention."),
    (r"\.intermediate_query_vis\.dense\.", ".feed_forwards.0.wide."),
    (r"\.intermediate_query_aud\.dense\.", ".feed_forwards.1.wide."),
    (r"\.output_query_vis\.", ".feed_forwards.0."),
    (r"\.output_query_aud\.", ".feed_forwards.1."),
    (r"\.(self|output)\.(query|key|value|dense|LayerNorm)\.", r".\2."),
    (r"\.dense\.", ".out."),
    (r"\.LayerNorm\.", ".norm."),
)


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' weights (video and audio; the Q-Former, its norms and projections) under this module's names.

    For a fusion of :data:`PAPER` with ``out_width``: ``fusion.load_state_dict(from_official(state))``.
    """
    renamed = {}
    for name, tensor in state.items():
        ours = name
        for pattern, replacement in _OFFICIAL_NAMES:
            ours = re.sub(pattern, replacement, ours)
        if not ours.endswith("position_ids"):  # BERT's, which no query uses
            renamed[ours] = tensor
    return renamed


class _Input(nn.Module):
    """What a stream attends to: a feature set's rows, normed, mapped to the fusion's width, and told their time."""

    def __init__(self, config: Config, spec: FeatureSpec) -> None:
        super().__init__()
        eps = VISUAL_INPUT_EPS if spec.modality == "video" else LAYER_NORM_EPS
        width = config.width if config.project_inputs else spec.dim
        self.norm = nn.LayerNorm(spec.dim, eps=eps)
        self.project = nn.Linear(spec.dim, width) if config.project_inputs else nn.Identity()
        self.has_times = config.time_embedding == "sinusoidal"
        # Content and time on one scale: a query can then ask for either, or for both at once.
        self.sum_norm = nn.LayerNorm(width) if self.has_times else nn.Identity()

    def forward(self, features: Tensor, pts_seconds: Tensor) -> Tensor:
        data: Tensor = self.project(self.norm(features))
        if self.has_times:
            data = data + time_code(pts_seconds, data.shape[-1]).to(data.dtype)
        out: Tensor = self.sum_norm(data)
        return out


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
        together, weights = self.self_attention(torch.cat(streams, dim=1), None, None, None, maps)
        streams = list(together.split_with_sizes(counts, dim=1))
        all_weights = [weights]
        for index, attention in enumerate(self.cross_attentions):
            streams[index], weights = attention(streams[index], contexts[index], biases[index], gates[index], maps)
            all_weights.append(weights)
        streams = [forward(stream) for forward, stream in zip(self.feed_forwards, streams, strict=True)]
        return streams, [weights for weights in all_weights if weights is not None]


class _Attention(nn.Module):
    """BERT's attention unit, ``LN(x + Linear(MultiHead(x, context)))``; the norm is within the sum if it is "pre"."""

    def __init__(self, config: Config, context_width: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.is_pre = config.norm == "pre"
        self.meets_empty = config.absent == "uniform"
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(context_width, config.width)
        self.value = nn.Linear(context_width, config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, data: Tensor, context: Tensor | None, bias: Tensor | None, gate: Tensor | None, maps: bool
    ) -> tuple[Tensor, Tensor | None]:
        """``context`` None: to itself."""
        asking = self.norm(data) if self.is_pre else data
        context = asking if context is None else context
        # Where every key is masked, the fused kernel's forward pass is uniform, but its backward pass takes each weight
        # for 1 instead of 1 / T. Where such rows count, attention is therefore written out.
        explicit = self.meets_empty and bias is not None
        seen, weights = attend(
            split_heads(self.query(asking), self.heads),
            split_heads(self.key(context), self.heads),
            split_heads(self.value(context), self.heads),
            bias=bias,
            dropout=self.dropout.p if self.training else 0.0,
            return_weights=maps or explicit,
        )
        weights = weights if maps else None
        seen = self.dropout(self.out(seen))
        if gate is not None:
            seen = seen * gate
            weights = None if weights is None else weights * gate[..., None]
        data = data + seen
        return data if self.is_pre else self.norm(data), weights


class _FeedForward(nn.Module):
    """BERT's feed-forward unit, exact GELU: ``LN(x + Linear(GELU(Linear(x))))``; the norm as in the attention."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.is_pre = config.norm == "pre"
        self.wide = nn.Linear(config.width, config.feed_forward)
        self.out = nn.Linear(config.feed_forward, config.width)
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, data: Tensor) -> Tensor:
        wide = F.gelu(self.wide(self.norm(data) if self.is_pre else data))
        data = data + self.dropout(self.out(wide))
        return data if self.is_pre else self.norm(data)
