"""What encoders ask of a decoded clip."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from avpipe.extract import sampling
from avpipe.extract.media import Frames, Media, Waveform
from avpipe.pipeline.errors import SkipClip

Sampling = Literal["uniform", "span_starts", "linspace"]

_POLICIES = {"uniform": sampling.uniform, "span_starts": sampling.span_starts, "linspace": sampling.linspace}


def choose(policy: Sampling, frame_pts_seconds: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """``count`` frames by a policy of :mod:`avpipe.extract.sampling`."""
    return _POLICIES[policy](frame_pts_seconds, count)


def no_frames() -> npt.NDArray[np.int64]:
    """What an audio encoder asks for."""
    return np.empty(0, dtype=np.int64)


def frames_of(media: Media, name: str) -> Frames:
    """The frames that the feature set ``name`` asked for.

    Raises:
        SkipClip: there are none.
    """
    frames = media.frames.get(name)
    if frames is None or len(frames.data) == 0:
        raise SkipClip("no_video", "the clip has no video")
    return frames


def waveform_of(media: Media, name: str, max_seconds: float) -> Waveform:
    """The waveform that the feature set ``name`` asked for, at most so long.

    Raises:
        SkipClip: there is none.
    """
    waveform = media.waveforms.get(name)
    if waveform is None or len(waveform.data) == 0:
        raise SkipClip("no_audio", "the clip has no sound")
    return Waveform(
        data=waveform.data[: round(max_seconds * waveform.sample_rate)],
        sample_rate=waveform.sample_rate,
        start_seconds=waveform.start_seconds,
    )
