"""A picture drawn as frames: one flat-coloured object on a dark ground."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from avpipe.data_manifests.synthesis.facts import BALL, Beats, Picture

Array = npt.NDArray[np.float64]

RGB = {
    "red": (225, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 90, 235),
    "yellow": (235, 215, 40),
}

# Lengths are in frame widths. The largest object, moved farthest, just touches the edge of the frame.
RADIUS = 0.17
TRAVEL = 0.4
SHIFT = 0.04
BOUNCE_HEIGHT = 0.5
GROWTH = 2.0
"""Size after growing over size before."""

_SHADES = 33
"""Mixtures of object and ground; a table of them is faster than mixing every pixel."""

DIRECTION = {"left": (-TRAVEL, 0.0), "right": (TRAVEL, 0.0), "up": (0.0, -TRAVEL), "down": (0.0, TRAVEL)}


def draw_frames(picture: Picture, *, size: int, fps: int, seconds: float) -> npt.NDArray[np.uint8]:
    """The frames of a clip.

    Args:
        picture: all that is seen.
        size: height and width in pixels.
        fps: frames a second; frame ``n`` shows the moment ``n / fps``.
        seconds: length of the clip.

    Returns:
        uint8 RGB ``(N, size, size, 3)``.
    """
    times = np.arange(round(seconds * fps)) / fps  # (N,)
    x, y, scale = bounce(picture.beats, times) if picture.beats else path(picture.motions, times / seconds)
    # Pixel centres seen from the object's centre: (N, 1, size) and (N, size, 1).
    grid = (np.arange(size) + 0.5) / size - 0.5
    across = (grid - (x + SHIFT * picture.x)[:, None])[:, None, :]
    down = (grid - (y + SHIFT * picture.y)[:, None])[:, :, None]
    radius = (RADIUS * picture.scale * scale)[:, None, None]
    outside = distance(picture.shape, across, down, radius)
    cover = np.clip(0.5 - outside * size, 0.0, 1.0)  # (N, size, size); the edge is one pixel wide
    ground = np.full(3, 20 + 40 * picture.shade)
    mix = ground + np.linspace(0, 1, _SHADES)[:, None] * (np.array(RGB[picture.colour]) - ground)
    frames: npt.NDArray[np.uint8] = np.rint(mix).astype(np.uint8)[np.rint(cover * (_SHADES - 1)).astype(np.intp)]
    return frames


def bounce(beats: Beats, times: Array) -> tuple[Array, Array, Array]:
    """Where a bouncing object is: lowest on each beat, a parabola between.

    Returns:
        x, y (rightward and downward from the middle of the frame) and scale, each ``(N,)``.
    """
    phase = (times - beats.first_seconds) / beats.period_seconds % 1.0
    height = BOUNCE_HEIGHT * 4 * phase * (1 - phase)
    return np.zeros_like(times), BOUNCE_HEIGHT / 2 - height, np.ones_like(times)


def path(motions: tuple[str, ...], progress: Array) -> tuple[Array, Array, Array]:
    """Where an object is that does one thing after another, each for the same time.

    Args:
        motions: what it does.
        progress: ``(N,)``, the part of the clip that has passed, in [0, 1).

    Returns:
        As :func:`bounce`.
    """
    track = np.zeros((3, len(progress)))  # x, y, log of the scale
    for place, motion in enumerate(motions):
        step = (*DIRECTION.get(motion, (0.0, 0.0)), {"grow": 1, "shrink": -1}.get(motion, 0) * math.log(GROWTH))
        track += np.outer(step, np.clip(progress * len(motions) - place, 0.0, 1.0))
    # What is passed through is centred: nothing leaves the frame, and the start does not give away the motion.
    x, y, scale = track - (track.max(axis=1, keepdims=True) + track.min(axis=1, keepdims=True)) / 2
    return x, y, np.exp(scale)


def distance(shape: str, across: Array, down: Array, radius: Array) -> Array:
    """How far points lie outside a shape (negative inside), all shapes being of about the same area."""
    if shape in {"circle", BALL}:
        return np.hypot(across, down) - radius
    if shape == "square":
        return np.maximum(np.abs(across), np.abs(down)) - 0.89 * radius
    if shape == "triangle":  # equilateral, apex up
        return np.maximum(down, 0.866 * np.abs(across) - 0.5 * down) - 0.7 * radius
    if shape == "cross":
        across, down = np.abs(across), np.abs(down)
        arm, half_width = 1.15 * radius, 0.36 * radius
        return np.minimum(np.maximum(across - arm, down - half_width), np.maximum(across - half_width, down - arm))
    raise ValueError(f"shape: expected circle, ball, square, triangle or cross, got {shape!r}")
