"""What encoders ask of a decoded clip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from avpipe.extract import images
from avpipe.extract.media import FrameRequest, Frames, Media, Waveform
from avpipe.pipeline.errors import SkipClip
from avpipe.pipeline.features import Segments


def frames_of(media: Media, name: str) -> Frames:
    """The frames that the feature set ``name`` asked for.

    Raises:
        SkipClip: there are none.
    """
    frames = media.frames.get(name)
    if frames is None or len(frames.data) == 0:
        raise SkipClip("no_video", "the clip has no video")
    return frames


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Frames as a network wants them.

    Attributes:
        pixels: uint8 ``(views * N, height, width, 3)``: the frames of the plain view, then those of each augmented one.
        pts_seconds: ``(views * N,)``.
    """

    pixels: npt.NDArray[np.uint8]
    pts_seconds: npt.NDArray[np.float64]


def pictures_of(
    media: Media,
    name: str,
    request: FrameRequest,
    fit: Callable[[images.Frame], images.Frame],
    size: tuple[int, int],
    *,
    interpolation: str = "bicubic",
    squash: bool = False,
) -> Pictures:
    """The frames that the feature set ``name`` asked for: the plain view fitted, each augmented one cropped and
    mirrored at random, all frames of a view alike.

    Args:
        media: the clip.
        name: of the feature set.
        request: that it made.
        fit: brings one frame to size, for the plain view.
        size: ``(height, width)``.
        interpolation: of the augmented views.
        squash: augmented views are cut out of fitted frames, not of whole ones: for networks that see all pictures
            squashed to a square, as LAVIS has it.

    Raises:
        SkipClip: the clip has no video.
        ClipError: a frame is too narrow to be resized.
    """
    frames = frames_of(media, name)
    count = len(frames.data) // (1 + request.views)
    views = [np.stack([fit(frame) for frame in frames.data[:count]])]
    for view in range(1, request.views + 1):
        random = np.random.default_rng((media.seed, view, 1))  # 1: another stream than the one that chose the frames
        part = frames.data[view * count : (view + 1) * count]
        if squash:
            part = np.stack([fit(frame) for frame in part])
        views.append(images.augment(part, size, random, interpolation=interpolation))
    return Pictures(pixels=np.concatenate(views), pts_seconds=frames.pts_seconds)


def waveform_of(media: Media, name: str, max_seconds: float | None = None) -> Waveform:
    """The waveform that the feature set ``name`` asked for, at most so long.

    Raises:
        SkipClip: there is none.
    """
    waveform = media.waveforms.get(name)
    if waveform is None or len(waveform.data) == 0:
        raise SkipClip("no_audio", "the clip has no sound")
    if max_seconds is None:
        return waveform
    return Waveform(
        data=waveform.data[: round(max_seconds * waveform.sample_rate)],
        sample_rate=waveform.sample_rate,
        start_seconds=waveform.start_seconds,
    )


def segments_of(media: Media, name: str) -> Segments:
    """The text that the feature set ``name`` asked for.

    Raises:
        SkipClip: there is none.
    """
    segments = media.texts.get(name)
    if segments is None:
        raise SkipClip("no_text", "the clip has no text")
    return segments
