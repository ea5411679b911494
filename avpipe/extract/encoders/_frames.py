"""What encoders that look at single frames have in common.

Importing this module does not load torch: :meth:`FrameEncoder.prepare` runs in decoding processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from avpipe.extract import images
from avpipe.extract.encoder import Prepared
from avpipe.extract.encoders._config import DeviceConfig, FrameConfig
from avpipe.extract.encoders._media import pictures_of
from avpipe.extract.media import FrameRequest, Media
from avpipe.pipeline.errors import UsageError
from avpipe.pipeline.features import Features, FeatureSpec

if TYPE_CHECKING:
    import torch

FRAMES_AT_ONCE = 256
"""In one forward pass, whatever the batch: bounds memory on the device."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """What is done to a frame before a network sees it; most names are those of open_clip's ``PreprocessCfg``.

    Attributes:
        size: ``(height, width)`` that the network sees.
        mean: subtracted, of values in [0, 1].
        std: divided by.
        interpolation: ``"bicubic"`` or ``"bilinear"``.
        resize_mode: one of :data:`avpipe.extract.images.RESIZE_MODES`.
        fill_color: grey value of what is filled.
        short_side: that the short side is brought to before the middle is cut out; ``None``: the size itself.
        antialias: see :func:`avpipe.extract.images.fit`.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0
    short_side: int | None = None
    antialias: bool = True

    def fit(self, frame: images.Frame) -> images.Frame:
        """One frame, resized and cropped.

        Raises:
            ClipError: it is too narrow to be resized.
        """
        return images.fit(
            frame,
            self.size,
            mode=self.resize_mode,
            interpolation=self.interpolation,
            fill=self.fill_color,
            short_side=self.short_side,
            antialias=self.antialias,
        )

    def to_json(self) -> dict[str, Any]:
        """For the spec, as JSON-ready values: what is as nearly always is left out."""
        usual = {"short_side": None, "antialias": True}
        values = {key: value for key, value in asdict(self).items() if key not in usual or value != usual[key]}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


class FrameNetworkConfig(FrameConfig, DeviceConfig):
    """Of every encoder with a network that looks at frames."""


class VisualEncoder(ABC):
    """What an encoder with a network that looks at frames does, but for :meth:`encode`.

    A subclass sets :attr:`spec` and says with :meth:`_build` what the network is.

    Attributes:
        spec: the identity of what it gives.
        config: as given.
        how: the preprocessing of a frame.
        batch_size: clips at once.
    """

    spec: FeatureSpec
    compiles_once: ClassVar[bool] = True
    """Whether ``compile`` makes one network for inputs of all sizes; else one for each."""

    def __init__(self, config: FrameNetworkConfig, how: Preprocessing) -> None:
        self.config = config
        self.how = how
        self.batch_size = config.batch_size
        self._network: torch.nn.Module | None = None
        self._device = "cpu"

    @abstractmethod
    def _build(self) -> torch.nn.Module:
        """The network with its weights, on the CPU: normalised frames ``(..., 3, height, width)`` in, rows out."""

    @property
    def request(self) -> FrameRequest:
        """The frames it wants."""
        return self.config.request()

    def prepare(self, media: Media) -> Prepared:
        """``pixels`` uint8 ``(views * num_frames, height, width, 3)``, resized and cropped, and ``pts_seconds``.

        Raises:
            SkipClip: the clip has no video.
            ClipError: a frame is too narrow to be resized.
        """
        how = self.how
        found = pictures_of(
            media,
            self.spec.name,
            self.request,
            how.fit,
            how.size,
            interpolation=how.interpolation,
            squash=how.resize_mode == "squash",
        )
        return {"pixels": found.pixels, "pts_seconds": found.pts_seconds}

    def load(self, device: str) -> None:
        """Build the network and read its weights onto ``device``.

        Raises:
            CheckpointError: the file does not fit the network.
        """
        from avpipe.extract.encoders._device import ready

        network = self._network or self._build()
        config = self.config
        self._network = ready(network, device, compile=config.compile, dynamic=self.compiles_once)
        self._device = device

    def _forward(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Frames ``(..., H, W, 3)`` normalised and through the network."""
        import torch

        from avpipe.extract.encoders._device import download, mixed_precision, normalise, upload

        if self._network is None:
            raise RuntimeError("encode: called before load")
        with torch.inference_mode(), mixed_precision(self._device, self.config.precision):
            normalised = normalise(upload(pixels, self._device), self.how.mean, self.how.std)
            return download(self._network(normalised))


class FrameEncoder(VisualEncoder):
    """One whose network sees each frame by itself: ``(F, 3, height, width)`` in, ``(F, rows_per_frame, dim)`` out.

    Rows are frame-major; every row of a frame has the frame's time.
    """

    def encode(self, batch: Sequence[Prepared]) -> list[Features]:
        """Rows of each clip, float32 ``(views * num_frames * rows_per_frame, dim)``."""
        counts = [len(clip["pixels"]) for clip in batch]
        pixels = np.concatenate([clip["pixels"] for clip in batch])
        parts = [self._forward(pixels[i : i + FRAMES_AT_ONCE]) for i in range(0, len(pixels), FRAMES_AT_ONCE)]
        rows = np.concatenate(parts)  # (frames, rows_per_frame, dim)
        features = []
        for clip, own in zip(batch, np.split(rows, np.cumsum(counts)[:-1]), strict=True):
            pts = np.repeat(clip["pts_seconds"].astype(np.float64), own.shape[1])
            features.append(Features(data=own.reshape(-1, own.shape[-1]), pts_seconds=pts))
        return features


def frame_spec(
    name: str,
    encoder: str,
    config: FrameNetworkConfig,
    *,
    rows: int,
    dim: int,
    weights: Mapping[str, Any],
    preprocessing: Mapping[str, Any],
) -> FeatureSpec:
    """The identity of what an encoder of single frames gives.

    Args:
        name: of the feature set.
        encoder: name of its module.
        config: its configuration.
        rows: of a frame.
        dim: width of a row.
        weights: see :class:`FeatureSpec`.
        preprocessing: see :class:`FeatureSpec`.
    """
    return FeatureSpec(
        name=name,
        encoder=encoder,
        modality="video",
        dim=dim,
        config=config.model_dump(mode="json", exclude={"batch_size"}),
        weights=weights,
        preprocessing=preprocessing,
        clock={
            "rows": f"{rows} a frame, frame by frame",
            "sampling": config.sampling,
            "frames": config.frames,
            "rows_per_frame": rows,
        },
        views=1 + config.views,
    )


def grid_side(tokens: str, smallest: int) -> int:
    """The ``k`` of ``grid:k``.

    Args:
        tokens: ``"grid:4"``.
        smallest: number of patches along the shorter side of a frame.

    Raises:
        UsageError: there are fewer than ``k`` patches.
    """
    side = int(tokens.removeprefix("grid:"))
    if side > smallest:
        raise UsageError(f"tokens: expected grid:k with k <= {smallest} for this model, got {tokens}")
    return side


def patch_rows(patches: torch.Tensor, tokens: str) -> torch.Tensor:
    """Patches ``(F, dim, rows, columns)`` averaged as ``mean`` or ``grid:k`` says, row by row: ``(F, num_rows, dim)``.

    Any other policy leaves them as they are.

    Raises:
        UsageError: the grid is finer than the patches.
    """
    import torch

    if tokens == "mean":
        return patches.mean(dim=(2, 3))[:, None]
    if tokens.startswith("grid:"):
        patches = torch.nn.functional.adaptive_avg_pool2d(patches, grid_side(tokens, min(patches.shape[2:])))
    return patches.flatten(2).transpose(1, 2)
