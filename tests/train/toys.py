"""Toys for the tests of stage two: two small feature sets, batches of them, and components of small sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import models, pre_tokenizers
from torch import Tensor, nn

from avpipe.pipeline.clip import Clip
from avpipe.pipeline.features import Features, FeatureSpec
from avpipe.train.batch import Batch, Fused
from avpipe.train.tokenizer import Special, Tokenizer

SPECS = {
    "see": FeatureSpec(name="see", encoder="toy", modality="video", dim=6, dtype="float32"),
    "hear": FeatureSpec(name="hear", encoder="toy", modality="audio", dim=5, dtype="float32"),
}
HOP_SECONDS = {"see": 0.5, "hear": 0.3}

# Clips whole, without sound, without sight, with nothing at all, and with a single row.
LENGTHS = {"see": (4, 3, 0, 0, 1), "hear": (5, 0, 6, 0, 1)}
SMALL = {"width": 16, "heads": 2, "feed_forward": 24, "positions": 16, "weights": "random", "trained": "all"}


def batch(
    lengths: Mapping[str, Sequence[int]] = LENGTHS, *, seed: int = 0, longer: int = 0, junk: float = 0.0
) -> Batch:
    """Random rows; the same for the same clip, whatever stands beside it.

    Args:
        lengths: rows of each clip in each feature set; 0 = absent.
        seed: of the numbers.
        longer: more padding than the longest clip needs.
        junk: scale of what stands in the padding.
    """
    features, mask, pts_seconds, present = {}, {}, {}, {}
    for index, (name, counts) in enumerate(lengths.items()):
        total = max(1, *counts) + longer
        noise = torch.Generator().manual_seed(1000 + seed)
        data = junk * torch.randn(len(counts), total, SPECS[name].dim, generator=noise)
        times = junk * torch.rand(len(counts), total, generator=noise)
        real = torch.zeros(len(counts), total, dtype=torch.bool)
        for clip, count in enumerate(counts):
            generator = torch.Generator().manual_seed(100 * seed + 10 * clip + index)
            data[clip, :count] = torch.randn(count, SPECS[name].dim, generator=generator)
            times[clip, :count] = torch.arange(count) * HOP_SECONDS[name]
            real[clip, :count] = True
        features[name], pts_seconds[name], mask[name] = data, times, real
        present[name] = torch.tensor([count > 0 for count in counts])
    size = len(next(iter(lengths.values())))
    return Batch(
        clip_ids=tuple(f"clip{i}" for i in range(size)),
        features=features,
        mask=mask,
        pts_seconds=pts_seconds,
        present=present,
    )


def pick(whole: Batch, rows: Sequence[int]) -> Batch:
    """The clips at ``rows``, in that order."""
    index = torch.tensor(rows)

    def taken(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor[index] for name, tensor in tensors.items()}

    return replace(
        whole,
        clip_ids=tuple(whole.clip_ids[row] for row in rows),
        features=taken(whole.features),
        mask=taken(whole.mask),
        pts_seconds=taken(whole.pts_seconds),
        present=taken(whole.present),
    )


def small_config(module: ModuleType, **more: Any) -> Any:
    """A component's configuration with small sizes, where it has such keys."""
    sizes = {key: value for key, value in SMALL.items() if key in module.Config.model_fields}
    return module.Config(**{**sizes, **more})


def alive(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in eval mode, every parameter moved from its start value: no zero bias hides anything."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def fused(size: int = 3, positions: int = 5, width: int = 12, *, real: Sequence[int] | None = None) -> Fused:
    """Random positions; ``real`` of them are no padding in each row (default: all)."""
    counts = torch.tensor([positions] * size if real is None else list(real))
    return Fused(
        data=torch.randn(size, positions, width, generator=torch.Generator().manual_seed(5)),
        mask=torch.arange(positions) < counts[:, None],
        pts_seconds=torch.zeros(size, positions),
        sources=("see",),
        source=torch.zeros(positions, dtype=torch.int64),
    )


def tokenizer(size: int) -> Tokenizer:
    """So many words: padding, begin, end, ``w3``, ``w4`` ..."""
    words = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(3, size))])}
    backend = tokenizers.Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizer(backend, Special(pad=0, begin=1, end=2))


class Source:
    """Features in memory."""

    def __init__(self, spec: FeatureSpec, features: Mapping[str, Features]) -> None:
        self.spec, self.features = spec, dict(features)
        self.reads = 0

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self.features

    def read(self, clip_id: str, view: int = 0) -> Features:
        """Every view after the plain one is shifted by its number."""
        self.reads += 1
        found = self.features[clip_id]
        return replace(found, data=found.data + view) if view else found


def sources(lengths: Mapping[str, Sequence[int]] = LENGTHS) -> dict[str, Source]:
    """Random features of clips ``clip0``, ``clip1`` ...; 0 rows = absent."""
    random = np.random.default_rng(3)
    return {
        name: Source(
            SPECS[name],
            {
                f"clip{clip}": Features(
                    data=random.standard_normal((count, SPECS[name].dim)).astype(np.float32),
                    pts_seconds=np.arange(count) * HOP_SECONDS[name],
                )
                for clip, count in enumerate(counts)
                if count
            },
        )
        for name, counts in lengths.items()
    }


def clips(captions: Sequence[Sequence[str]]) -> list[Clip]:
    """``clip0``, ``clip1`` ... with these captions."""
    return [
        Clip(clip_id=f"clip{i}", dataset="toy", path=f"{i}.mp4", split="train", captions=tuple(texts))
        for i, texts in enumerate(captions)
    ]
