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

What the authors compare, as settings over :data:`PAPER`; each gives the numbers of their code:

==============  ====================================================================================================
Aligned_6       nothing: their own choice
Aligned_12      ``cross_attention_every=1``
Alternating     ``streams=alternating``: even layers look at video alone, odd ones at audio alone
Increased       ``queries.audio=32``
Separate        ``streams=separate``: no stream knows of another before the decoder
Random_Init     ``initialise_from_bert`` alone (all others: ``initialise_from`` a BLIP-2; Separate: both)
video alone     ``modalities=[video]`` of the run: BLIP-2's Q-Former, and PIT-VC's
audio alone     ``modalities=[audio]`` of the run
==============  ====================================================================================================

X_v and X_a are the features after a LayerNorm of their own. What is given out is a Linear of each stream's queries,
audio first, as the authors feed their language model.

The paper's network starts from BLIP-2's weights, which ``initialise_from`` reads (:mod:`avpipe.train.fusions._blip2`).
Ours, by default, starts from nothing, on little data; what that takes was measured (docs/synchrony.md). Deviations,
each by a switch:

- ``time_embedding: sinusoidal`` adds the time of each row to X. The original has none: to its cross-attention a clip is
  a bag of rows, so it cannot tell "first ... then ...", nor whether what is seen is in time with what is heard.
- ``norm: pre`` norms what enters a sub-layer instead of what leaves it: trains from scratch without long warmup.
- ``project_inputs: true`` maps X to ``width`` once, before the layers, instead of in every layer's keys and values.
- ``initializer_std: null`` draws matrices after Glorot and Bengio (2010) instead of N(0, 0.02).
- ``absent: zero`` drops the cross-attention's result of a modality that the clip lacks. In the original an all-zero
  mask becomes uniform attention over rows of padding, so the caption depends on how long the padding is.

Without a switch: the audio stream's Linear at the end starts as all matrices do, and not from torch's uniform numbers.

Beyond the original: one stream for every feature set, however many there are, and one alone is a plain Q-Former.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from avpipe.pipeline.config import Config as BaseConfig
from avpipe.pipeline.errors import UsageError
from avpipe.pipeline.features import MODALITIES, FeatureSpec
from avpipe.train.batch import AttentionMap, Batch, Fused
from avpipe.train.fusions import _blip2
from avpipe.train.layers import HeadsDivideWidth, attend, initialise, key_bias, split_heads, time_code
from avpipe.train.start_values import Held

log = logging.getLogger(__name__)

LAYER_NORM_EPS = 1e-12  # BERT's; the visual input's norm is BLIP-2's ``ln_vision`` with torch's default
VISUAL_INPUT_EPS = 1e-5
QUERY_STD = 0.1
PUBLIC_WIDTH, PUBLIC_HEADS = 768, 12  # of BERT base, and so of every public BLIP-2


class Queries(BaseConfig):
    """How many learned queries each modality has. The paper: 32 for video, 16 for audio."""

    video: int = Field(8, ge=1)
    audio: int = Field(8, ge=1)
    text: int = Field(8, ge=1)


class Config(HeadsDivideWidth):
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
    streams: Literal["aligned", "alternating", "separate"] = "aligned"
    """``aligned``: all modalities meet in each self-attention, and look at their features in the same layers. The
    paper's ablations: ``alternating``: they take turns to look, one a layer; after every ``cross_attention_every``
    layers it is the first one's turn again, or later, where there are more feature sets. ``separate``: as aligned, but
    each has self-attentions of its own, and none knows of the others."""
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
    initialise_from: str = ""
    """A BLIP-2 that a new training starts from: ``org/name`` on the Hub (Salesforce/blip2-flan-t5-xl), a folder with
    such files, or a file of LAVIS's (blip2_pretrained_flant5xl.pth); empty: none. The video stream takes everything of
    it, the others what they share; for the rest see ``initialise_feed_forward``. The sizes must be BLIP-2's."""
    initialise_from_bert: str = ""
    """A BERT (google-bert/bert-base-uncased, or a folder or file) for self-attentions and the norm of the queries: of
    all streams (Random_Init), or, with ``streams=separate`` and ``initialise_from``, of those that BLIP-2 leaves."""
    initialise_feed_forward: Literal["new", "copy"] = "new"
    """With ``initialise_from``, the feed-forward parts of streams other than the video's: new, as in the authors' code,
    or copies of BLIP-2's."""

    @model_validator(mode="after")
    def _public_weights_fit(self) -> Config:
        for key in ("initialise_from", "initialise_from_bert"):
            if getattr(self, key) and self.width == PUBLIC_WIDTH and self.heads != PUBLIC_HEADS:  # no tensor tells it
                raise ValueError(f"heads: expected {PUBLIC_HEADS} with {key}, as public weights have, got {self.heads}")
            if getattr(self, key) and (self.norm != "post" or self.project_inputs):
                raise ValueError(
                    f"{key}: expected norm=post and project_inputs=false, for which public weights were learned, got "
                    f"norm={self.norm} and project_inputs={str(self.project_inputs).lower()}"
                )
        if self.initialise_from and self.initialise_from_bert and self.streams != "separate":
            raise ValueError(
                f"initialise_from_bert: with streams={self.streams} nothing would be left of it, as initialise_from "
                "fills the same tensors; expected one of the two"
            )
        if self.initialise_feed_forward == "copy" and not self.initialise_from:
            raise ValueError("initialise_feed_forward: there is nothing to copy without initialise_from")
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

    Raises:
        UsageError: streams that alternate outnumber the layers: one would never look at its features.
    """

    source: Tensor
    order: Tensor
    query_norm: nn.LayerNorm | nn.ModuleList

    def __init__(self, config: Config, specs: Mapping[str, FeatureSpec]) -> None:
        super().__init__()
        self.config = config
        self.width = config.out_width or config.width
        self.absent = config.absent
        self.names = tuple(sorted(specs, key=lambda name: MODALITIES.index(specs[name].modality)))
        self.specs = dict(specs)
        ordered = [specs[name] for name in self.names]
        self.counts = [int(getattr(config.queries, spec.modality)) for spec in ordered]
        self.inputs = nn.ModuleList(_Input(config, spec) for spec in ordered)
        self.queries = nn.Parameter(torch.empty(1, sum(self.counts), config.width))
        self.is_separate = config.streams == "separate"
        norms = [nn.LayerNorm(config.width, eps=LAYER_NORM_EPS) for _ in (ordered if self.is_separate else ordered[:1])]
        self.query_norm = nn.ModuleList(norms) if self.is_separate else norms[0]
        self.dropout = nn.Dropout(config.dropout)
        widths = [config.width if config.project_inputs else spec.dim for spec in ordered]
        if config.streams == "alternating" and config.layers < len(ordered):
            raise UsageError(
                f"fusion.layers: expected at least {len(ordered)} where as many feature sets alternate "
                f"({', '.join(self.names)}), got {config.layers}: the last would never be looked at"
            )
        self.crossing = [_crossing(config, index, len(ordered)) for index in range(config.layers)]
        self.layers = nn.ModuleList(_Layer(config, widths, crossing) for crossing in self.crossing)
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
        if isinstance(self.query_norm, nn.ModuleList):
            apart = self.queries.split_with_sizes(self.counts, dim=1)
            normed = torch.cat([norm(part) for norm, part in zip(self.query_norm, apart, strict=True)], dim=1)
        else:
            normed = self.query_norm(self.queries)
        queries = self.dropout(normed).expand(len(batch), -1, -1)
        streams = list(queries.split_with_sizes(self.counts, dim=1))
        attention: list[AttentionMap] = []
        for index, layer in enumerate(self.layers):
            streams, weights = layer(streams, contexts, biases, gates, return_attention)
            keys = ("all", *(self.names[stream] for stream in self.crossing[index]))
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

    def read_start_values(self) -> None:
        """Read the public weights that the configuration names; the rest keeps its start values.

        Raises:
            MissingWeightsError: they are neither here nor to be had.
            CheckpointError: they are not complete, or do not fit.
            UsageError: there is no stream for them.
        """
        config, everyone = self.config, range(len(self.names))
        video = self._video_of_blip2() if config.initialise_from else None
        if config.initialise_from_bert:
            left = [stream for stream in everyone if stream != video]
            if not left:
                raise UsageError(
                    f"fusion.initialise_from_bert: expected a feature set beside {self.names[0]}, which starts from "
                    "fusion.initialise_from; there is none"
                )
            source = _blip2.bert(config.initialise_from_bert)
            self._fill(source, left if self.is_separate else left[:1], ignored=_blip2.NOT_SHARED)
        if config.initialise_from:
            source = _blip2.blip2(config.initialise_from)
            if video is None:  # only what is shared
                self._fill(source, [-1], ignored=_blip2.NOT_SHARED)
                return
            has_no_projection = config.out_width is None or any(name in source.tensors for name in _blip2.STAGE_ONE)
            copied = [other for other in everyone if other != video and config.initialise_feed_forward == "copy"]
            self._fill(source, [video], copied, ignored=r"outputs\..+" if has_no_projection else "")

    def _fill(self, source: Held, streams: list[int], copied: Sequence[int] = (), *, ignored: str) -> None:
        first = sum(self.counts[: max(0, streams[0])])
        own = _blip2.tensors_of(self, slice(first, first + self.counts[streams[0]]))
        report = _blip2.fill(source, own, streams, is_separate=self.is_separate, copied=copied, ignored=ignored)
        log.info("fusion: %s: %s", source.id, report)

    def _video_of_blip2(self) -> int | None:
        """Which stream is BLIP-2's; ``None`` where no feature set is video."""
        found = [index for index, name in enumerate(self.names) if self.specs[name].modality == "video"]
        if len(found) > 1:
            raise UsageError(
                f"fusion.initialise_from: expected one feature set of video, got "
                f"{', '.join(self.names[index] for index in found)}; choose with features=[...]"
            )
        if not found and self.is_separate:
            raise UsageError(
                "fusion.initialise_from: expected a feature set of video, got none; with streams=separate nothing of a "
                "BLIP-2 is for others. Try fusion.initialise_from_bert"
            )
        return found[0] if found else None


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' weights under this module's names: the Q-Former (also the two of Separate, and LAVIS's own for video
    alone), its norms and projections. What belongs to the text of LAVIS's is left out.

    For a fusion of :data:`PAPER` with ``out_width``: ``fusion.load_state_dict(from_official(state))``.
    """
    is_separate = any(name.startswith("Qformer_aud.") for name in state)
    renamed = _blip2.renamed(state, is_separate=is_separate)
    second = renamed.pop("queries_aud", None)
    if second is not None:
        renamed["queries"] = torch.cat([renamed["queries"], second], dim=1)
    return renamed


def _crossing(config: Config, layer: int, streams: int) -> list[int]:
    """Which streams look at their features in a layer."""
    if config.streams != "alternating":
        return list(range(streams)) if layer % config.cross_attention_every == 0 else []
    turn = layer % max(config.cross_attention_every, streams)
    return [turn] if turn < streams else []


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
    """One layer of all streams, of which those in ``crossing`` look at their features."""

    def __init__(self, config: Config, context_widths: list[int], crossing: list[int]) -> None:
        super().__init__()
        own = [_Attention(config, config.width) for _ in context_widths if config.streams == "separate"]
        self.self_attention = nn.ModuleList(own) if own else _Attention(config, config.width)
        self.cross_attentions = nn.ModuleDict(
            {str(stream): _Attention(config, context_widths[stream]) for stream in crossing}
        )
        self.feed_forwards = nn.ModuleList(_FeedForward(config) for _ in context_widths)

    def forward(
        self, streams: list[Tensor], contexts: list[Tensor], biases: list[Tensor], gates: list[Tensor], maps: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        streams, weights = self._to_themselves(streams, maps)
        all_weights = [weights]
        for key, attention in self.cross_attentions.items():
            index = int(key)
            streams[index], weights = attention(streams[index], contexts[index], biases[index], gates[index], maps)
            all_weights.append(weights)
        streams = [forward(stream) for forward, stream in zip(self.feed_forwards, streams, strict=True)]
        return streams, [weights for weights in all_weights if weights is not None]

    def _to_themselves(self, streams: list[Tensor], maps: bool) -> tuple[list[Tensor], Tensor | None]:
        """Self-attention, and its weights ``(B, H, S, S)``, zero from one stream to another where they are separate."""
        if isinstance(self.self_attention, nn.ModuleList):
            pairs = [
                attention(stream, None, None, None, maps)
                for attention, stream in zip(self.self_attention, streams, strict=True)
            ]
            return [stream for stream, _ in pairs], _block_diagonal([weights for _, weights in pairs]) if maps else None
        together, weights = self.self_attention(torch.cat(streams, dim=1), None, None, None, maps)
        return list(together.split_with_sizes([stream.shape[1] for stream in streams], dim=1)), weights


def _block_diagonal(blocks: list[Tensor]) -> Tensor:
    """``(B, H, n, n)`` each, along the diagonal of ``(B, H, S, S)``."""
    whole = sum(block.shape[-1] for block in blocks)
    rows, before = [], 0
    for block in blocks:
        rows.append(F.pad(block, (before, whole - before - block.shape[-1])))
        before += block.shape[-1]
    return torch.cat(rows, dim=-2)


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
