"""Frames brought to the size that a network wants, without torch: they run in decoding processes.

Equal, bit for bit, to what torchvision's transforms (``Resize``, ``CenterCrop``) and open_clip's (``ResizeKeepRatio``,
``CenterCropOrPad``) do to PIL images; ``tests/extract/test_images.py`` compares them. What torchvision does to tensors
without antialiasing is met to within one of 255 levels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from avpipe.pipeline.errors import ClipError

RESIZE_MODES = ("shortest", "longest", "squash")

MAX_PIXELS = 64_000_000
"""Of a resized frame before it is cropped. One of 8 x 4096 pixels, its short side brought to 224, has 26 million."""

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

Frame = npt.NDArray[np.uint8]


def fit(
    frame: Frame,
    size: tuple[int, int],
    *,
    mode: str = "shortest",
    interpolation: str = "bicubic",
    fill: int = 0,
    short_side: int | None = None,
    antialias: bool = True,
) -> Frame:
    """One frame, resized and cropped.

    Args:
        frame: uint8 RGB ``(height, width, 3)``.
        size: ``(height, width)`` wanted.
        mode: ``"shortest"``: the short side is brought to size and the middle is cut out; ``"longest"``: the long side
            is brought to size and the rest is filled; ``"squash"``: the aspect ratio is not kept.
        interpolation: ``"bicubic"`` or ``"bilinear"``.
        fill: grey value of what is filled.
        short_side: with ``"shortest"``, what the short side is brought to before the middle is cut out, if not to size.
        antialias: whether a pixel is made of all those that it covers, or (bilinear only) of the four nearest: how
            torchvision's transforms of videos, and OpenCV, resize.

    Raises:
        ClipError: so narrow a frame that its resized copy would fill the memory.
    """
    height, width = _resized(frame.shape[0], frame.shape[1], size, mode, short_side)
    if height * width > MAX_PIXELS:
        before = f"{frame.shape[1]}x{frame.shape[0]}"
        raise ClipError("frame_size", f"a frame of {before} pixels would become one of {width}x{height} in resizing")
    resized = _resize(frame, (height, width), interpolation) if antialias else _nearest_four(frame, (height, width))
    return resized if mode == "squash" else _middle(resized, size, fill)


def augment(
    frames: npt.NDArray[np.uint8],
    size: tuple[int, int],
    random: np.random.Generator,
    *,
    interpolation: str = "bicubic",
    scale: tuple[float, float] = (0.5, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> npt.NDArray[np.uint8]:
    """A random part of the pictures of one clip, the same in all of them, resized; mirrored in half of all cases.

    torchvision's ``RandomResizedCrop`` and ``RandomHorizontalFlip``, with the scale that LAVIS trains on videos with
    (``lavis/processors/alpro_processors.py``); LAVIS itself squashes frames to a square before.

    Args:
        frames: uint8 RGB ``(N, height, width, 3)``.
        size: ``(height, width)`` wanted.
        random: where chance comes from.
        interpolation: ``"bicubic"`` or ``"bilinear"``, antialiased.
        scale: share of the picture's area that is kept, from and to.
        ratio: width by height of the part that is kept, from and to.
    """
    top, left, height, width = _random_part(frames.shape[1], frames.shape[2], random, scale, ratio)
    cut = frames[:, top : top + height, left : left + width]
    resized = np.stack([_resize(frame, size, interpolation) for frame in cut])
    return resized[:, :, ::-1] if random.random() < 0.5 else resized


def _random_part(
    height: int, width: int, random: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Top, left, height and width: ten tries at a random part that fits, else the largest one in the middle."""
    for _ in range(10):
        area = height * width * random.uniform(*scale)
        aspect = np.exp(random.uniform(*np.log(ratio)))
        wide, high = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            return int(random.integers(height - high + 1)), int(random.integers(width - wide + 1)), high, wide
    aspect = min(max(width / height, ratio[0]), ratio[1])
    wide, high = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    return (height - high) // 2, (width - wide) // 2, high, wide


def _resized(height: int, width: int, size: tuple[int, int], mode: str, short_side: int | None) -> tuple[int, int]:
    """Height and width between resizing and cropping."""
    if mode == "squash":
        return size
    if mode == "shortest" and (short_side or size[0] == size[1]):  # torchvision's Resize: the long side is rounded down
        short = short_side or size[0]
        return (int(short * height / width), short) if width <= height else (short, int(short * width / height))
    ratios = height / size[0], width / size[1]  # open_clip's ResizeKeepRatio: rounded to the nearest
    ratio = max(ratios) if mode == "longest" else min(ratios)
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def _resize(frame: Frame, size: tuple[int, int], interpolation: str) -> Frame:
    """To ``(height, width)``, antialiased."""
    return np.asarray(Image.fromarray(frame).resize(size[::-1], _FILTERS[interpolation]))


def _nearest_four(frame: Frame, size: tuple[int, int]) -> Frame:
    """To ``(height, width)``, each pixel from the four that are nearest to its middle: PyTorch's
    ``interpolate(mode="bilinear", align_corners=False)``, rounded.
    """
    (upper, lower, down), (left, right, across) = (
        _neighbours(had, wanted) for had, wanted in zip(frame.shape[:2], size, strict=True)
    )
    down, across = down[:, None, None], across[:, None]
    rows = frame[upper] * (1 - down) + frame[lower] * down  # (height, old width, 3)
    return np.rint(rows[:, left] * (1 - across) + rows[:, right] * across).astype(np.uint8)


def _neighbours(had: int, wanted: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """For each of ``wanted`` positions along a line of ``had``: its neighbours, and the share of the second one."""
    middles = (np.arange(wanted, dtype=np.float32) + np.float32(0.5)) * np.float32(had / wanted) - np.float32(0.5)
    middles = np.maximum(middles, 0)
    first = np.minimum(middles.astype(np.intp), had - 1)
    return first, np.minimum(first + 1, had - 1), (middles - first).astype(np.float32)


def _middle(frame: Frame, size: tuple[int, int], fill: int) -> Frame:
    """The middle of a frame; where the frame is smaller, filled up around it."""
    missing = [max(0, wanted - had) for wanted, had in zip(size, frame.shape, strict=False)]
    if any(missing):
        around = [(gap // 2, (gap + 1) // 2) for gap in missing]
        frame = np.pad(frame, (*around, (0, 0)), constant_values=fill)
    top, left = (round((had - wanted) / 2) for had, wanted in zip(frame.shape, size, strict=False))
    return frame[top : top + size[0], left : left + size[1]]
