"""Which frames of a clip to look at: the sampling policies of the field, as pure functions.

Each takes the times of all frames of a clip and returns ascending indices into them. Where a clip has fewer frames than
asked for, indices repeat: an encoder gets the number of frames that it counts on, and no clip is lost for being short.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Seconds = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def uniform(frame_pts_seconds: Seconds, count: int) -> Indices:
    """The middle frame of each of ``count`` equal spans.

    As TSN samples for testing (Wang et al. 2016): no frame of the first or last moment, and the order of the frames
    played backwards gives the same ones, to within one.

    Args:
        frame_pts_seconds: ``(N,)``, ascending.
        count: how many.
    """
    total = _check(frame_pts_seconds, count)
    return (2 * np.arange(count) + 1) * total // (2 * count)


def span_starts(frame_pts_seconds: Seconds, count: int) -> Indices:
    """The first frame of each of ``count`` equal spans.

    What LAVIS calls "uniform" (``lavis/datasets/data_utils.py``): ``arange(0, N, N / count)``, floored. LAVIS returns
    fewer than ``count`` where the clip is shorter.

    Args:
        frame_pts_seconds: ``(N,)``, ascending.
        count: how many.
    """
    total = _check(frame_pts_seconds, count)
    return np.arange(count) * total // count


def linspace(frame_pts_seconds: Seconds, count: int) -> Indices:
    """``count`` frames at equal distances, the first and the last among them.

    ``numpy.linspace(0, N - 1, count)``, truncated, as MICap and many loaders before it.

    Args:
        frame_pts_seconds: ``(N,)``, ascending.
        count: how many.
    """
    total = _check(frame_pts_seconds, count)
    return np.linspace(0, total - 1, count).astype(np.int64)


def per_second(frame_pts_seconds: Seconds, rate: float) -> Indices:
    """The frame on the screen at each ``1 / rate`` seconds, from the first frame's time to the last's.

    What ``ffmpeg -vf fps`` does to a clip, but for its rounding: frames repeat where the clip has fewer of them.

    Args:
        frame_pts_seconds: ``(N,)``, ascending.
        rate: in frames per second.
    """
    _check(frame_pts_seconds, 1)
    if not rate > 0:
        raise ValueError(f"rate: expected more than 0 frames per second, got {rate}")
    first, last = frame_pts_seconds[0], frame_pts_seconds[-1]
    # A time stamp that is meant to be on the grid may lie a rounding error off it.
    times = first + np.arange(int((last - first) * rate + 1e-6) + 1) / rate
    indices: Indices = np.searchsorted(frame_pts_seconds, times + 1e-6, side="right") - 1
    return indices


def _check(frame_pts_seconds: Seconds, count: int) -> int:
    """The number of frames."""
    if not len(frame_pts_seconds):
        raise ValueError("frame_pts_seconds: expected at least one frame, got none")
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    return len(frame_pts_seconds)
