"""What the official files of a published dataset say, before anybody looks for its media.

A module of a published dataset exports ``Config`` (a :class:`PublishedConfig`), ``CARD`` and ``read``, a :class:`Read`.
It knows the official files and nothing else: finding media, looking into them, tidying captions and keeping the ledger
are the same for all (:mod:`avpipe.data_manifests.published`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import Field, field_validator

from avpipe.pipeline.clip import SPLITS
from avpipe.pipeline.config import Config

if TYPE_CHECKING:
    from avpipe.data_manifests.annotation_files import AnnotationFiles

Split = Literal["train", "val", "test"]


class PublishedConfig(Config):
    """Options that every published dataset has."""

    splits: Annotated[tuple[Split, ...], Field(min_length=1)] = ("train", "val", "test")
    """Which splits; the official files of the others need not be there."""
    include: Literal["on_disk", "readable", "all"] = "on_disk"
    """Which clips the manifest holds: those with a media file; those whose file can be read, too; or all, also where
    there is no file (yet), so that the shards of two labs, or of today and next week, hold the same clips."""
    bare_names: Literal["auto", "source", "clip"] = "auto"
    """What a file holds that is named by its YouTube id alone: the whole source video, or the clip. ``auto`` asks its
    duration."""

    @field_validator("splits")
    @classmethod
    def _once_in_order(cls, splits: tuple[Split, ...]) -> tuple[Split, ...]:
        return tuple(sorted(set(splits), key=SPLITS.index))


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One clip as the official files have it.

    Attributes:
        source_id: what they call it. Its clip id is made of this, and it is the first name that its file may have.
        split: ``"train"``, ``"val"`` or ``"test"``.
        captions: as they are, white space and all.
        video: id of the source video; "" if there is none.
        span: where the clip lies in its source video, ``[start, stop)`` in seconds; ``None``: it is a file of its own.
        names: what else its own file may be called, with or without extension.
        extra: what else the files say of it.
        fault: why it cannot be a clip; "" if it can.
    """

    source_id: str
    split: str
    captions: tuple[str, ...]
    video: str = ""
    span: tuple[float, float | None] | None = None
    names: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""

    def __post_init__(self) -> None:
        if not self.source_id:
            raise ValueError(f"source_id: expected some text, got {self.source_id!r}")
        if self.split not in SPLITS:
            raise ValueError(f"split of {self.source_id!r}: expected one of {', '.join(SPLITS)}, got {self.split!r}")
        if self.span is not None and not self.fault:
            start, stop = self.span
            if not (math.isfinite(start) and start >= 0 and (stop is None or start < stop < math.inf)):
                raise ValueError(f"span of {self.source_id!r}: expected 0 <= start < stop, got {self.span}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Official:
    """The official clips of a dataset.

    Attributes:
        entries: in official order, split after split. Shards are cut in this order.
        counts: how many clips the complete release has, by split, in this configuration; none where that is not known.
        segments: whether clips are parts of videos that are kept whole: a file named by its video is one, then.
        notes: what the module saw in the files and repaired or passed over, one sentence each.
    """

    entries: Sequence[Entry]
    counts: Mapping[str, int] = field(default_factory=dict)
    segments: bool = False
    notes: Sequence[str] = ()


class Read(Protocol):
    """Read the official files of a dataset."""

    def __call__(self, config: Any, files: AnnotationFiles) -> Official:
        """Every clip of the configured splits.

        Args:
            config: the module's ``Config``.
            files: finds the official files by their names.

        Raises:
            DataError: a file is missing, damaged, or another than the official one.
        """


NEXT_CLIP = "next_clip"
"""Key of ``Clip.extra``: the id of the clip that follows this one."""

_VIDEO_AND_TIMES = re.compile(r"(.{11})_(\d+(?:\.\d+)?)_(\d+(?:\.\d+)?)")


def video_and_span(name: str) -> tuple[str, tuple[float, float]] | None:
    """A clip's name taken apart, from the right, for a YouTube id may hold ``_``: ``G9zN5TTuGO4_000179_000189``.

    Returns:
        The YouTube id, start and stop in seconds; ``None``: it is no such name.
    """
    parts = _VIDEO_AND_TIMES.fullmatch(name)
    return (parts[1], (float(parts[2]), float(parts[3]))) if parts else None


REVERSED = "that end before they start, taken the other way round"
BEYOND = "that end beyond their video, cut there"
"""What :func:`span_faults` repairs."""


def counts_of(official: Mapping[str, int], splits: Sequence[str]) -> dict[str, int]:
    """Official counts of the splits that are wanted, as far as they are known."""
    return {split: official[split] for split in splits if split in official}


def span_faults(start: float, stop: float, duration: float | None = None) -> tuple[tuple[float, float], str, str]:
    """Repair the times of a segment, as annotators leave them.

    Args:
        start: in seconds.
        stop: in seconds.
        duration: of the video as the same file has it, if it does.

    Returns:
        The span to use; what was repaired ("" if nothing); and why there is no such clip ("" if there is).
    """
    if not (math.isfinite(start) and math.isfinite(stop)) or min(start, stop) < 0:
        return (start, stop), "", f"no times: {start:g} to {stop:g} s"
    repaired = ""
    if start > stop:
        start, stop, repaired = stop, start, REVERSED
    # To the millisecond: 95.03999999999999 is 95.04.
    if duration is not None and round(stop, 3) > round(duration, 3):
        stop, repaired = duration, repaired or BEYOND
    fault = length_fault((start, stop))
    return (start, stop), "" if fault else repaired, fault


def length_fault(span: tuple[float, float]) -> str:
    """Why a clip of these times cannot be; "" if it can."""
    start, stop = span
    return "" if start < stop else f"no length: {start:g} to {stop:g} s"
