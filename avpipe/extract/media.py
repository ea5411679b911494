"""Decoding: one media file in; frames and samples with their times out."""

from __future__ import annotations

from collections.abc import Mapping
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
