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
