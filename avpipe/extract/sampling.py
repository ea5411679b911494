"""Which frames of a clip to look at: the sampling policies of the field, as pure functions.

Each takes the times of all frames of a clip and returns ascending indices into them. Where a clip has fewer frames than
asked for, indices repeat: an encoder gets the number of frames that it counts on, and no clip is lost for being short.

By name, as configurations write them::

    uniform           the middle frame of each of n equal spans (TSN)
    span_starts       the first frame of each of n equal spans (LAVIS's "uniform")
    linspace          n frames at equal distances, first and last among them (MICap)
    headtail          n / 2 at random from the first half, n / 2 from the second (LAVIS, for training)
    consecutive:k     the middle stretch of n frames, every k-th (Video Swin's test clip: 32 frames, k = 2)
    somewhere:k       the same from a random place (Video Swin's training clip)
    middle:k          n neighbours in the middle of k frames that lie evenly in the first 10 s (AVCap: k = 20)
    stretch:k         n neighbours of those k from a random one on (AVCap, for training)
    fps:x             x frames a second; of more than n, every so many-th
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

Seconds = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

FIRST_SECONDS = 10.0
"""Of a clip, that CAV-MAE and AVCap look at."""


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


def headtail(frame_pts_seconds: Seconds, count: int, random: np.random.Generator) -> Indices:
    """``count // 2`` distinct frames at random from the first half of the clip, the others from the second, in order.

    What LAVIS samples for training (``lavis/datasets/data_utils.py``). LAVIS fails where a half has too few frames;
    here frames repeat then.

    Args:
        frame_pts_seconds: ``(N,)``, ascending.
        count: how many.
        random: where chance comes from.
    """
    total = _check(frame_pts_seconds, count)
    middle = total // 2
    halves = [(0, max(1, middle), count // 2), (min(middle, total - 1), total, count - count // 2)]
    drawn = [
        start + random.choice(stop - start, number, replace=stop - start < number) for start, stop, number in halves
    ]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def consecutive(frame_pts_seconds: Seconds, count: int, interval: int = 1) -> Indices:
    """``count`` frames from the middle of the clip, one every ``interval`` frames.

    The test clip of Video Swin and its kin (mmaction's ``SampleFrames`` in test mode, one clip). A clip that is too
    short is stretched, where mmaction plays it again from the start: its frames repeat.

    Args:
        frame_pts_seconds: ``(N,)``, ascending.
        count: how many.
        interval: from one to the next, in frames.
    """
    places = _places(frame_pts_seconds, count, interval)
    return _from(places // 2, count, interval) if places else span_starts(frame_pts_seconds, count)


def somewhere(frame_pts_seconds: Seconds, count: int, random: np.random.Generator, interval: int = 1) -> Indices:
    """As :func:`consecutive`, but from a random place.

    The training clip of Video Swin and its kin (mmaction's ``SampleFrames``, one clip).

    Args:
        frame_pts_seconds: ``(N,)``, ascending.
        count: how many.
        random: where chance comes from.
        interval: from one to the next, in frames.
    """
    places = _places(frame_pts_seconds, count, interval)
    return _from(int(random.integers(places)), count, interval) if places else span_starts(frame_pts_seconds, count)


def _places(frame_pts_seconds: Seconds, count: int, interval: int) -> int:
    """How many places a stretch of ``count`` times ``interval`` frames can start from; 0 if the clip is too short."""
    total = _check(frame_pts_seconds, count)
    if interval < 1:
        raise ValueError(f"interval: expected at least 1 frame, got {interval}")
    return max(0, total - count * interval + 1)


def _from(first: int, count: int, interval: int) -> Indices:
    return first + interval * np.arange(count, dtype=np.int64)


def middle(frame_pts_seconds: Seconds, count: int, of: int) -> Indices:
    """``count`` neighbours in the middle of ``of`` frames that lie evenly in the first ten seconds.

    CAV-MAE's and AVCap's evaluation: 10 or 20 frames of each clip are extracted (``extract_video_frame.py``), of which
    the middle ones are used (``dataloader.py``).

    Args:
        frame_pts_seconds: ``(N,)``, ascending.
        count: how many. Where it is more than ``of``, so many frames lie evenly.
        of: how many to choose from.
    """
    evenly = _evenly(frame_pts_seconds, max(count, of))
    start = (len(evenly) - count + 1) // 2  # of an even number, a single frame is the later of the two in the middle
    return evenly[start : start + count]


def stretch(frame_pts_seconds: Seconds, count: int, of: int, random: np.random.Generator) -> Indices:
    """As :func:`middle`, but from a random one of the ``of`` frames on: AVCap's training.

    Args:
        frame_pts_seconds: ``(N,)``, ascending.
        count: how many.
        of: how many to choose from.
        random: where chance comes from.
    """
    evenly = _evenly(frame_pts_seconds, max(count, of))
    start = int(random.integers(len(evenly) - count + 1))
    return evenly[start : start + count]


def _evenly(frame_pts_seconds: Seconds, count: int) -> Indices:
    """The first frame of each of ``count`` equal spans of the whole frames in the first ten seconds."""
    _check(frame_pts_seconds, count)
    begins = frame_pts_seconds - frame_pts_seconds[0]
    # A frame ends where the next one begins; the last one is taken to last as long as the others do on average.
    ends = np.append(begins[1:], begins[-1] * len(begins) / max(1, len(begins) - 1))
    whole = max(1, int(np.searchsorted(ends, FIRST_SECONDS + 1e-6, side="right")))
    return np.arange(count) * whole // count


_COUNTED: Mapping[str, Callable[[Seconds, int], Indices]] = {
    "uniform": uniform,
    "span_starts": span_starts,
    "linspace": linspace,
}
_PATTERN = re.compile(
    r"uniform|span_starts|linspace|headtail|(consecutive|somewhere)(:[1-9]\d*)?|(middle|stretch):[1-9]\d*"
    r"|fps:\d+(\.\d+)?"
)
POLICIES = (
    "uniform, span_starts, linspace, headtail, consecutive:<interval>, somewhere:<interval>, middle:<of>, "
    "stretch:<of>, fps:<rate>"
)


def is_policy(text: str) -> bool:
    """Whether a policy is called so."""
    return bool(_PATTERN.fullmatch(text)) and not (text.startswith("fps:") and float(text[4:]) == 0)


def check(policy: str) -> str:
    """The policy itself, if there is one of that name.

    Raises:
        ValueError: there is none.
    """
    if not is_policy(policy):
        raise ValueError(f"sampling: expected one of {POLICIES}; got {policy!r}")
    return policy


def choose(policy: str, frame_pts_seconds: Seconds, count: int, random: np.random.Generator) -> Indices:
    """Frames by the policy of that name.

    Args:
        policy: see the module's text.
        frame_pts_seconds: ``(N,)``, ascending.
        count: how many; at most so many for ``fps:x``.
        random: where chance comes from, for those that draw.

    Raises:
        ValueError: no such policy.
    """
    name, _, number = check(policy).partition(":")
    if name == "headtail":
        return headtail(frame_pts_seconds, count, random)
    if name == "consecutive":
        return consecutive(frame_pts_seconds, count, int(number or 1))
    if name == "somewhere":
        return somewhere(frame_pts_seconds, count, random, int(number or 1))
    if name == "middle":
        return middle(frame_pts_seconds, count, int(number))
    if name == "stretch":
        return stretch(frame_pts_seconds, count, int(number), random)
    if name == "fps":
        indices = per_second(frame_pts_seconds, float(number))
        return indices[uniform(indices.astype(np.float64), count)] if len(indices) > count else indices
    return _COUNTED[name](frame_pts_seconds, count)


def _check(frame_pts_seconds: Seconds, count: int) -> int:
    """The number of frames."""
    if not len(frame_pts_seconds):
        raise ValueError("frame_pts_seconds: expected at least one frame, got none")
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    return len(frame_pts_seconds)
