"""Decoding: one media file in; frames and samples with their times out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioRequest:
    """The waveform that an encoder wants.

    Attributes:
        sample_rate: in Hz.
        downmix: ``"mean"`` of the channels, or the ``"first"`` one (CAV-MAE).
        max_seconds: from the clip's start; what lies behind it is not decoded. ``None``: everything.
    """

    sample_rate: int
    downmix: str = "mean"
    max_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """Frames of one clip.

    Attributes:
        data: uint8 RGB ``(N, height, width, 3)``, upright (rotation applied), square pixels.
        pts_seconds: ``(N,)``, from the clip's start.
    """

    data: npt.NDArray[np.uint8]
    pts_seconds: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Waveform:
    """Sound of one clip.

    Attributes:
        data: float32 mono ``(num_samples,)``, nominally in [-1, 1] (decoders may overshoot; nothing is clipped).
        sample_rate: in Hz.
        start_seconds: of the first sample, from the clip's start.
    """

    data: npt.NDArray[np.float32]
    sample_rate: int
    start_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """One decoded clip.

    Attributes:
        frames: what each visual encoder asked for, by feature-set name; empty if there is no video.
        waveforms: what each audio encoder asked for, by feature-set name; empty if there is no audio.
        duration_seconds: of the clip.
        notes: facts a user should know ("video cut short: ...").
    """

    frames: Mapping[str, Frames] = field(default_factory=dict)
    waveforms: Mapping[str, Waveform] = field(default_factory=dict)
    duration_seconds: float
    notes: tuple[str, ...] = ()


FrameSampler = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.int64]]
"""``(frame_pts_seconds (N,)) -> indices``: which frames of a clip are wanted. See ``Encoder.sample``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one clip may cost at most.

    Attributes:
        max_pixels: of one picture; a file that declares more is refused before anything is allocated.
        max_seconds: of wall clock, held by :class:`~avpipe.extract.sandbox.DecodePool`.
        max_bytes: of resident memory of a decoding process, held by the pool as well.
        held_bytes: of compressed packets, and of decoded pictures, that are kept while a clip is read; beyond that
            the file is read, or decoded, twice.
    """

    max_pixels: int = 8192 * 8192
    max_seconds: float = 300.0
    max_bytes: int = 4 << 30
    held_bytes: int = 256 << 20


def read(
    path: str | os.PathLike[str],
    *,
    frames: Mapping[str, FrameSampler],
    audio: Mapping[str, AudioRequest],
    start_seconds: float = 0.0,
    stop_seconds: float | None = None,
    limits: Limits = Limits(),  # noqa: B008
) -> Media:
    """Decode what several encoders want of one clip, in one pass over the file.

    Raises:
        ClipError: ``"missing_file"``, ``"open"``, ``"no_streams"``, ``"too_large"``, ``"empty"``, ``"decode"``.
    """
    raise NotImplementedError("being written")
