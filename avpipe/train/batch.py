"""What flows through a captioner: :class:`Batch` (clips, padded), :class:`Fused` (what a fusion makes of them).

Letters in shapes, here and in everything below ``train/``:

====  ==========================================================================================================
B     clips in a batch
N     captions in a batch (N = B where each clip has one)
T     rows of a feature set, padded to the longest clip of the batch
L     tokens of a caption, padded
S     positions that a fusion hands to the decoder
W     width: channels of a position
H     attention heads
V     size of the vocabulary
====  ==========================================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from avpipe.pipeline.features import FeatureSpec, Modality


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some clips: their features, and, in training, their captions.

    A clip without a modality (no audio stream, or a failed extraction) has ``present`` False, a mask that is False
    everywhere, and rows of padding. Missing is not zero: whoever reads ``features`` reads the mask too.

    Attributes:
        clip_ids: B ids.
        features: for each feature set ``(B, T, dim)``, float; zeros where the mask is False.
        mask: for each feature set ``(B, T)``, bool: True = real, False = padding.
        pts_seconds: for each feature set ``(B, T)``, float32: the middle of what the row saw, from the clip's start.
        present: for each feature set ``(B,)``, bool.
        tokens: ``(N, L)``, int64: begin-of-sentence, the caption, end-of-sentence, padding. ``None`` in generation.
        token_mask: ``(N, L)``, bool: True = real. ``None`` in generation.
        caption_clip: ``(N,)``, int64: which of the B clips each caption belongs to. ``None`` in generation.
        of_next: ``(N,)``, bool: captions of the clip that follows it. ``None`` where none is.

    Raises:
        ValueError: shapes do not fit one another.
    """

    clip_ids: tuple[str, ...]
    features: Mapping[str, Tensor]
    mask: Mapping[str, Tensor]
    pts_seconds: Mapping[str, Tensor]
    present: Mapping[str, Tensor]
    tokens: Tensor | None = None
    token_mask: Tensor | None = None
    caption_clip: Tensor | None = None
    of_next: Tensor | None = None

    def __post_init__(self) -> None:
        size = len(self.clip_ids)
        for name, data in self.features.items():
            if data.ndim != 3 or data.shape[0] != size:
                raise ValueError(f"features[{name!r}]: expected shape ({size}, T, dim), got {tuple(data.shape)}")
            for key in ("mask", "pts_seconds"):
                got = getattr(self, key)[name].shape
                if got != data.shape[:2]:
                    raise ValueError(f"{key}[{name!r}]: expected shape {tuple(data.shape[:2])}, got {tuple(got)}")
            if self.present[name].shape != (size,):
                raise ValueError(f"present[{name!r}]: expected shape ({size},), got {tuple(self.present[name].shape)}")
        if self.tokens is not None and self.token_mask is not None and self.tokens.shape != self.token_mask.shape:
            expected, got = tuple(self.tokens.shape), tuple(self.token_mask.shape)
            raise ValueError(f"token_mask: expected the shape of tokens, {expected}, got {got}")

    def __len__(self) -> int:
        """How many clips."""
        return len(self.clip_ids)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """The same batch on a device; ``dtype`` converts the features."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return Batch(
            clip_ids=self.clip_ids,
            features={name: data.to(device, dtype, non_blocking=True) for name, data in self.features.items()},
            mask={name: data.to(device, non_blocking=True) for name, data in self.mask.items()},
            pts_seconds={name: data.to(device, non_blocking=True) for name, data in self.pts_seconds.items()},
            present={name: data.to(device, non_blocking=True) for name, data in self.present.items()},
            tokens=move(self.tokens),
            token_mask=move(self.token_mask),
            caption_clip=move(self.caption_clip),
            of_next=move(self.of_next),
        )


def drop_modalities(batch: Batch, probabilities: Mapping[Modality, float], specs: Mapping[str, FeatureSpec]) -> Batch:
    """The batch with modalities taken away from clips at random: from such a clip, all feature sets of the modality.

    Each modality is drawn for itself; a clip that would lose all that it has keeps all. Draws come from torch's global
    generator of the CPU, none where there is nothing to drop.

    Args:
        batch: of training.
        probabilities: by modality; others are never dropped.
        specs: of the feature sets, by name.
    """
    kinds = sorted({spec.modality for spec in specs.values()})
    if not any(probabilities.get(kind, 0.0) for kind in kinds):
        return batch
    drawn = torch.rand(len(batch), len(kinds))
    limits = torch.tensor([probabilities.get(kind, 0.0) for kind in kinds])
    kept = (drawn >= limits).to(next(iter(batch.present.values())).device)
    of_kind = {name: kept[:, kinds.index(spec.modality)] for name, spec in specs.items()}
    left = torch.stack([batch.present[name] & keep for name, keep in of_kind.items()]).any(dim=0)
    keeps = {name: keep | ~left for name, keep in of_kind.items()}
    return replace(
        batch,
        features={name: data.masked_fill(~keeps[name][:, None, None], 0) for name, data in batch.features.items()},
        mask={name: mask & keeps[name][:, None] for name, mask in batch.mask.items()},
        pts_seconds={name: seconds * keeps[name][:, None] for name, seconds in batch.pts_seconds.items()},
        present={name: there & keeps[name] for name, there in batch.present.items()},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionMap:
    """What one attention looked at.

    Attributes:
        layer: index of the layer.
        queries: what asked: a feature set's name, or ``"all"`` for the concatenation of all streams. Some feature sets,
            their rows one after the other, are named in that order: ``"sounds + words"``.
        keys: what was asked: the same kinds of names. A feature set's keys have the times ``batch.pts_seconds[keys]``
            where ``queries`` and ``keys`` differ in kind; see the fusion's docstring.
        weights: ``(B, H, queries, keys)``; rows sum to 1, padding and absent modalities get 0.
    """

    layer: int
    queries: str
    keys: str
    weights: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Fused:
    """What a fusion makes of a batch: a sequence of positions that a decoder attends to.

    ``source`` and ``pts_seconds`` tell where each position came from, so that a decoder's attention can be shown on
    the clip's time line without knowing the fusion.

    Attributes:
        data: ``(B, S, W)``.
        mask: ``(B, S)``, bool: True = real. A row may be False everywhere (a clip of which nothing is present).
        pts_seconds: ``(B, S)``, float32; NaN where a position has no one time (a learned query).
        sources: names of the feature sets.
        source: ``(S,)``, int64: index into ``sources``.
        attention: the fusion's own attention maps, where asked for.
        aux: what objectives read; ``(B, ...)`` each. The fusion's docstring says which keys there are.

    Raises:
        ValueError: shapes do not fit one another.
    """

    data: Tensor
    mask: Tensor
    pts_seconds: Tensor
    sources: tuple[str, ...]
    source: Tensor
    attention: tuple[AttentionMap, ...] = ()
    aux: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.data.ndim != 3:
            raise ValueError(f"data: expected shape (B, S, W), got {tuple(self.data.shape)}")
        for key in ("mask", "pts_seconds"):
            got = getattr(self, key).shape
            if got != self.data.shape[:2]:
                raise ValueError(f"{key}: expected shape {tuple(self.data.shape[:2])}, got {tuple(got)}")
        if self.source.shape != self.data.shape[1:2]:
            raise ValueError(f"source: expected shape {tuple(self.data.shape[1:2])}, got {tuple(self.source.shape)}")
        for key, tensor in self.aux.items():
            if tensor.shape[:1] != self.data.shape[:1]:
                expected, got = self.data.shape[0], tuple(tensor.shape)
                raise ValueError(f"aux[{key!r}]: expected shape ({expected}, ...), got {got}")

    @classmethod
    def end_to_end(
        cls,
        batch: Batch,
        sources: tuple[str, ...],
        data: Tensor,
        attention: Iterable[AttentionMap] = (),
        aux: Mapping[str, Tensor] | None = None,
    ) -> Fused:
        """Of a fusion that gives a position for every row: the feature sets ``sources`` one after the other.

        Args:
            batch: what was fused.
            sources: names of the feature sets, in the order of the positions.
            data: ``(B, S, W)``: S is the sum of all T.
            attention: the fusion's own attention maps.
            aux: what objectives read.
        """
        lengths = torch.tensor([batch.features[name].shape[1] for name in sources], device=data.device)
        return cls(
            data=data,
            mask=torch.cat([batch.mask[name] for name in sources], dim=1),
            pts_seconds=torch.cat([batch.pts_seconds[name] for name in sources], dim=1),
            sources=sources,
            source=torch.arange(len(sources), device=data.device).repeat_interleave(lengths),
            attention=tuple(attention),
            aux=aux or {},
        )

    def take(self, rows: Tensor) -> Fused:
        """The clips at ``rows`` (``(N,)``, int64, repeats allowed), for decoding several captions of a clip."""
        return Fused(
            data=self.data[rows],
            mask=self.mask[rows],
            pts_seconds=self.pts_seconds[rows],
            sources=self.sources,
            source=self.source,
            aux={key: tensor[rows] for key, tensor in self.aux.items()},
        )
