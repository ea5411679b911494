"""Colours, edges and motion on a grid: an honest visual baseline that needs no download.

Per sampled frame, shrunk to a small square canvas:

- mean colour of each cell of a ``grid x grid`` raster: where which colour is;
- edge strength by orientation, on a raster half as fine: which shapes. Gradients are sorted into orientations as in
  histograms of oriented gradients (Dalal and Triggs, CVPR 2005), without their block normalisation: strength matters;
- signed change of brightness of each cell since the frame sampled before it: what moves where to, and when. Zero for
  the first frame.

All values are divided by fixed numbers, never by a clip's own statistics. Each part earns its place: on clips of the
synthetic dataset, a small network that sees a single row names the shape in 76 % of rows from colours alone, in 95 %
with edges, in 98 % with all three; and it finds the phase of a bounce with a squared error of 0.52 without changes, of
0.02 with them (1.0 is a blind guess).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field

from avpipe.extract.encoder import Prepared
from avpipe.extract.encoders._config import BatchConfig, Sampling
from avpipe.extract.encoders._media import frames_of
from avpipe.extract.media import FrameRequest, Media
from avpipe.pipeline.features import Features, FeatureSpec

CELL = 8
"""Side of a cell of the fine raster, in pixels of the canvas."""

COLOUR_MIDDLE, COLOUR_SCALE = 0.5, 0.25
EDGE_SCALE = 0.01  # before the square root, which keeps the faint edges of small objects in sight
CHANGE_SCALE = 0.1
"""They bring values near unit variance, for drawings as for photographs; colours lie in [0, 1]."""

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


class Config(BatchConfig):
    """Configuration of the colour grid."""

    frames: int = Field(default=32, ge=1)
    """Frames a clip."""

    sampling: Sampling = "uniform"
    """How frames are chosen: a policy of ``avpipe.extract.sampling``."""

    grid: int = Field(default=8, ge=2, le=32, multiple_of=2)
    """Cells along each side of the colour raster; the edge raster has half as many."""

    orientations: int = Field(default=6, ge=2, le=16)
    """Directions that edges are sorted into, over half a turn."""

    batch_size: int = Field(default=32, ge=1)
    """Clips at once. Changes no feature."""


class Encoder:
    """See the module's text. One row a frame, at the frame's time."""

    def __init__(self, config: Config, name: str) -> None:
        self.config = config
        self.batch_size = config.batch_size
        self.spec = FeatureSpec(
            name=name,
            encoder="colour_grid",
            modality="video",
            dim=4 * config.grid**2 + config.orientations * (config.grid // 2) ** 2,
            config=config.model_dump(mode="json", exclude={"batch_size"}),
            preprocessing={
                "canvas": CELL * config.grid,
                "filter": "box",
                "colour": [COLOUR_MIDDLE, COLOUR_SCALE],
                "edge": EDGE_SCALE,
                "change": CHANGE_SCALE,
            },
            clock={"rows": "one a frame", "sampling": config.sampling, "frames": config.frames},
        )

    @property
    def request(self) -> FrameRequest:
        """The frames it wants."""
        return FrameRequest(sampling=self.config.sampling, count=self.config.frames)

    def prepare(self, media: Media) -> Prepared:
        """The whole work: ``data`` float32 ``(num_frames, dim)`` and ``pts_seconds``.

        Raises:
            SkipClip: the clip has no video.
        """
        frames = frames_of(media, self.spec.name)
        grid = self.config.grid
        canvas = np.stack([_shrink(frame, CELL * grid) for frame in frames.data])  # (N, side, side, 3) in [0, 1]
        colour = _cells(canvas, grid)  # (N, grid, grid, 3)
        edges = _edges(canvas @ LUMA, grid // 2, self.config.orientations)  # (N, grid/2, grid/2, orientations)
        brightness = colour @ LUMA  # (N, grid, grid)
        change = np.diff(brightness, axis=0, prepend=brightness[:1])
        parts = ((colour - COLOUR_MIDDLE) / COLOUR_SCALE, np.sqrt(edges / EDGE_SCALE), change / CHANGE_SCALE)
        data = np.concatenate([part.reshape(len(canvas), -1) for part in parts], axis=1)
        return {"data": data.astype(np.float32), "pts_seconds": frames.pts_seconds}

    def load(self, device: str) -> None:
        """Nothing to load."""

    def encode(self, batch: Sequence[Prepared]) -> list[Features]:
        """Nothing left to compute."""
        return [Features(data=clip["data"], pts_seconds=clip["pts_seconds"].astype(np.float64)) for clip in batch]


def _shrink(frame: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.float32]:
    """Area averages of a frame of any size on a square canvas, in [0, 1]."""
    shrunk = Image.fromarray(frame).resize((side, side), Image.Resampling.BOX)
    return np.asarray(shrunk, dtype=np.float32) / np.float32(255)


def _cells(images: npt.NDArray[np.float32], grid: int) -> npt.NDArray[np.float32]:
    """Means over the cells of a raster: ``(N, side, side, C)`` -> ``(N, grid, grid, C)``."""
    count, side, _, channels = images.shape
    cell = side // grid
    means: npt.NDArray[np.float32] = images.reshape(count, grid, cell, grid, cell, channels).mean(axis=(2, 4))
    return means


def _edges(luma: npt.NDArray[np.float32], grid: int, orientations: int) -> npt.NDArray[np.float64]:
    """Mean gradient magnitude in each cell and orientation: ``(N, side, side)`` -> ``(N, grid, grid, K)``.

    A pixel's magnitude is shared between the two nearest orientations.
    """
    count, side, _ = luma.shape
    down, right = np.gradient(luma, axis=(1, 2))
    strength = np.hypot(down, right).ravel()
    position = (np.arctan2(down, right).ravel() % np.pi) * (orientations / np.pi)  # in [0, K]
    lower = position.astype(np.intp)
    share = position - lower
    cell = np.arange(side) // (side // grid)
    place = ((np.arange(count)[:, None, None] * grid + cell[:, None]) * grid + cell).ravel() * orientations
    bins = count * grid * grid * orientations
    sums = np.bincount(place + lower % orientations, strength * (1 - share), bins)
    sums += np.bincount(place + (lower + 1) % orientations, strength * share, bins)
    means: npt.NDArray[np.float64] = sums.reshape(count, grid, grid, orientations) / (side // grid) ** 2
    return means
