"""Frames brought to the size that a network wants, without torch: they run in decoding processes.

Equal, bit for bit, to what torchvision's transforms (``Resize``, ``CenterCrop``) and open_clip's (``ResizeKeepRatio``,
``CenterCropOrPad``) do to PIL images; ``tests/extract/test_images.py`` compares them.
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
    frame: Frame, size: tuple[int, int], *, mode: str = "shortest", interpolation: str = "bicubic", fill: int = 0
) -> Frame:
    """One frame, resized and cropped.

    Args:
        frame: uint8 RGB ``(height, width, 3)``.
        size: ``(height, width)`` wanted.
        mode: ``"shortest"``: the short side is brought to size and the middle is cut out; ``"longest"``: the long side
            is brought to size and the rest is filled; ``"squash"``: the aspect ratio is not kept.
        interpolation: ``"bicubic"`` or ``"bilinear"``, antialiased.
        fill: grey value of what is filled.

    Raises:
        ClipError: so narrow a frame that its resized copy would fill the memory.
    """
    height, width = _resized(frame.shape[0], frame.shape[1], size, mode)
    if height * width > MAX_PIXELS:
        before = f"{frame.shape[1]}x{frame.shape[0]}"
        raise ClipError("frame_size", f"a frame of {before} pixels would become one of {width}x{height} in resizing")
    resized = np.asarray(Image.fromarray(frame).resize((width, height), _FILTERS[interpolation]))
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
    resized = np.stack(
        [np.asarray(Image.fromarray(frame).resize(size[::-1], _FILTERS[interpolation])) for frame in cut]
    )
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


def _resized(height: int, width: int, size: tuple[int, int], mode: str) -> tuple[int, int]:
    """Height and width between resizing and cropping."""
    if mode == "squash":
        return size
    if mode == "shortest" and size[0] == size[1]:  # torchvision's Resize: the long side is rounded down
        short = size[0]
        return (int(short * height / width), short) if width <= height else (short, int(short * width / height))
    ratios = height / size[0], width / size[1]  # open_clip's ResizeKeepRatio: rounded to the nearest
    ratio = max(ratios) if mode == "longest" else min(ratios)
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def _middle(frame: Frame, size: tuple[int, int], fill: int) -> Frame:
    """The middle of a frame; where the frame is smaller, filled up around it."""
    missing = [max(0, wanted - had) for wanted, had in zip(size, frame.shape, strict=False)]
    if any(missing):
        around = [(gap // 2, (gap + 1) // 2) for gap in missing]
        frame = np.pad(frame, (*around, (0, 0)), constant_values=fill)
    top, left = (round((had - wanted) / 2) for had, wanted in zip(frame.shape, size, strict=False))
    return frame[top : top + size[0], left : left + size[1]]
