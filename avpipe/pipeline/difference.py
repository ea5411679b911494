"""How two feature sets differ, clip by clip: other precision, other library versions, another machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from avpipe.pipeline.errors import UsageError
from avpipe.pipeline.features import Features
from avpipe.pipeline.store import FeatureSet

_BLOCK_ROWS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipDifference:
    """How the features of one clip differ.

    Attributes:
        clip_id: of the clip.
        shapes: ``(T, dim)`` here and there, all views together; of text, ``(segments,)``.
        mean_cosine: of corresponding rows; ``None`` for text, and where the shapes differ. Two zero rows are equal (1),
            a zero row and another are not (0).
        min_cosine: of the least alike pair of rows; likewise.
        max_abs: largest absolute difference of two values; likewise.
        max_seconds: largest difference of two rows' times; likewise.
        texts: here and there, where the texts differ; empty otherwise.
    """

    clip_id: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    mean_cosine: float | None = None
    min_cosine: float | None = None
    max_abs: float | None = None
    max_seconds: float | None = None
    texts: tuple[str, ...] = ()

    @property
    def same_shape(self) -> bool:
        """Whether there are equally many rows of the same width; of text, equally many segments."""
        return self.shapes[0] == self.shapes[1]

    @property
    def is_equal(self) -> bool:
        """Whether every number, or letter, is the same."""
        return self.same_shape and not self.max_abs and not self.max_seconds and not self.texts

    def to_json(self) -> dict[str, Any]:
        """Everything that says something, as JSON-ready values."""
        return {key: value for key, value in asdict(self).items() if value is not None and value != ()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How two feature sets differ.

    Attributes:
        spec: the fields of the specs that differ, one line each.
        only_first: clips that have features in the first alone, in its order.
        only_second: likewise.
        clips: those that both have, the least alike first: other shapes, then by the least alike rows.
    """

    spec: tuple[str, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    clips: tuple[ClipDifference, ...]

    @property
    def equal(self) -> int:
        """How many clips are the same to the last bit."""
        return sum(clip.is_equal for clip in self.clips)

    @property
    def other_shapes(self) -> int:
        """How many clips have other shapes."""
        return sum(not clip.same_shape for clip in self.clips)

    @property
    def other_texts(self) -> int:
        """How many clips have another text."""
        return sum(bool(clip.texts) for clip in self.clips)

    @property
    def mean_cosine(self) -> float | None:
        """Mean over the clips that can be compared; ``None`` if none can."""
        found = [clip.mean_cosine for clip in self.clips if clip.mean_cosine is not None]
        return sum(found) / len(found) if found else None

    @property
    def min_cosine(self) -> float | None:
        """Of the least alike pair of rows of all; ``None`` if none can be compared."""
        return min((clip.min_cosine for clip in self.clips if clip.min_cosine is not None), default=None)

    @property
    def max_abs(self) -> float | None:
        """Largest absolute difference of all; ``None`` if none can be compared."""
        return max((clip.max_abs for clip in self.clips if clip.max_abs is not None), default=None)

    def is_within(self, min_cosine: float) -> bool:
        """Whether both have the same clips with the same shapes and texts, and no two rows are less alike than that."""
        least = self.min_cosine
        return not (self.only_first or self.only_second or self.other_shapes or self.other_texts) and (
            least is None or least >= min_cosine
        )

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON-ready values."""
        return {
            "spec": list(self.spec),
            "only_first": list(self.only_first),
            "only_second": list(self.only_second),
            "compared": len(self.clips),
            "equal": self.equal,
            "other_shapes": self.other_shapes,
            "other_texts": self.other_texts,
            "mean_cosine": self.mean_cosine,
            "min_cosine": self.min_cosine,
            "max_abs": self.max_abs,
            "clips": [clip.to_json() for clip in self.clips],
        }


def compare(first: FeatureSet, second: FeatureSet, *, on_clip: Callable[[], None] = lambda: None) -> Difference:
    """Compare two feature sets, of rows or of text; several clips at a time.

    Raises:
        UsageError: one holds text, the other rows.
        StoreError: a shard is damaged.
    """
    if first.spec.is_text != second.spec.is_text:
        text, rows = (first, second) if first.spec.is_text else (second, first)
        raise UsageError(
            f"{text.folder} holds text, {rows.folder} rows of {rows.spec.dtype}: there is nothing to compare"
        )
    both = [clip_id for clip_id in first.clip_ids if clip_id in second]
    return Difference(
        spec=tuple(first.spec.differences(second.spec)),
        only_first=tuple(clip_id for clip_id in first.clip_ids if clip_id not in second),
        only_second=tuple(clip_id for clip_id in second.clip_ids if clip_id not in first),
        clips=tuple(sorted(_compare_all(first, second, both, on_clip), key=_likeness)),
    )


def _compare_all(
    first: FeatureSet, second: FeatureSet, clip_ids: Sequence[str], on_clip: Callable[[], None]
) -> list[ClipDifference]:
    """In threads: reading and arithmetic let go of the interpreter."""
    compare_clip = partial(_compare_text if first.spec.is_text else _compare_rows, first, second)
    pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="compare")
    found = []
    try:
        for difference in pool.map(compare_clip, clip_ids):
            on_clip()
            found.append(difference)
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, what is under way ends and nothing else begins
    return found


def _likeness(clip: ClipDifference) -> tuple[bool, float, float]:
    return clip.same_shape and not clip.texts, clip.min_cosine or 0.0, -(clip.max_abs or 0.0)


def _compare_text(first: FeatureSet, second: FeatureSet, clip_id: str) -> ClipDifference:
    here, there = first.segments(clip_id), second.segments(clip_id)
    a, b = (np.array([(item.start_seconds, item.stop_seconds) for item in found.items]) for found in (here, there))
    return ClipDifference(
        clip_id=clip_id,
        shapes=((len(a),), (len(b),)),
        max_seconds=float(np.abs(a - b).max(initial=0.0)) if len(a) == len(b) else None,
        texts=(here.text, there.text) if here.text != there.text else (),
    )


def _compare_rows(first: FeatureSet, second: FeatureSet, clip_id: str) -> ClipDifference:
    here, there = _all_views(first, clip_id), _all_views(second, clip_id)
    shapes = here.data.shape, there.data.shape
    if shapes[0] != shapes[1]:
        return ClipDifference(clip_id=clip_id, shapes=shapes)
    cosines, largest = [], 0.0
    for start in range(0, len(here.data), _BLOCK_ROWS):  # clips may have many rows
        block = slice(start, start + _BLOCK_ROWS)
        a, b = here.data[block].astype(np.float64), there.data[block].astype(np.float64)
        cosines.append(_cosine(a, b))
        largest = max(largest, float(np.abs(a - b).max()))
    cosine = np.concatenate(cosines)
    return ClipDifference(
        clip_id=clip_id,
        shapes=shapes,
        mean_cosine=float(cosine.mean()),
        min_cosine=float(cosine.min()),
        max_abs=largest,
        max_seconds=float(np.abs(here.pts_seconds - there.pts_seconds).max()),
    )


def _all_views(source: FeatureSet, clip_id: str) -> Features:
    views = [source.read(clip_id, view) for view in range(source.spec.views)]
    return Features(
        data=np.concatenate([view.data for view in views]),
        pts_seconds=np.concatenate([view.pts_seconds for view in views]),
    )


def _cosine(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``(T,)``: of corresponding rows of two ``(T, dim)``."""
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    product = norms[0] * norms[1]
    both_zero = (norms[0] == 0) & (norms[1] == 0)
    cosine = np.einsum("td,td->t", a, b) / np.where(product == 0, 1.0, product)
    # Rounding makes the cosine of equal rows 1 - 1e-16: what is the same shall be 1.
    same = both_zero | (a == b).all(axis=1)
    return np.where(same, 1.0, np.clip(cosine, -1.0, 1.0))
