"""Resizing and cropping against torchvision and open_clip, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from avpipe.extract import images
from avpipe.pipeline.errors import ClipError


def official(frame: images.Frame, size: tuple[int, int], mode: str, interpolation: str, fill: int) -> images.Frame:
    """open_clip's own transform, up to the point where pixels become floating-point numbers."""
    from open_clip.transform import image_transform
    from PIL import Image

    transform = image_transform(size, is_train=False, resize_mode=mode, interpolation=interpolation, fill_color=fill)
    picture = Image.fromarray(frame)
    for step in transform.transforms[:-2]:  # without ToTensor and Normalize
        picture = step(picture)
    return np.asarray(picture)


@settings(deadline=None, max_examples=150)
@given(
    height=st.integers(1, 120),
    width=st.integers(1, 120),
    size=st.sampled_from([(32, 32), (24, 40), (40, 24)]),
    mode=st.sampled_from(images.RESIZE_MODES),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    fill=st.sampled_from([0, 90]),
)
def test_fit_equals_open_clip(
    height: int, width: int, size: tuple[int, int], mode: str, interpolation: str, fill: int
) -> None:
    if mode == "shortest" and size[0] != size[1]:
        interpolation = "bicubic"  # open_clip forgets to hand the filter on here
    frame = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if mode == "longest":
        ratio = max(height / size[0], width / size[1])
        assume(round(height / ratio) and round(width / ratio))  # else open_clip rounds a side to nothing, and fails
    ours = images.fit(frame, size, mode=mode, interpolation=interpolation, fill=fill)
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, official(frame, size, mode, interpolation, fill))


def test_fit_cuts_out_the_middle() -> None:
    frame = np.zeros((4, 12, 3), np.uint8)
    frame[:, 4:8] = 255
    assert images.fit(frame, (4, 4)).min() == 255


def test_fit_leaves_at_least_a_line() -> None:
    assert images.fit(np.full((1, 900, 3), 255, np.uint8), (32, 32), mode="longest").max() == 255


def test_fit_refuses_a_frame_that_would_fill_the_memory() -> None:
    with pytest.raises(ClipError, match="40000x1 pixels would become one of 8960000x224") as refused:
        images.fit(np.zeros((1, 40000, 3), np.uint8), (224, 224))
    assert refused.value.kind == "frame_size"
