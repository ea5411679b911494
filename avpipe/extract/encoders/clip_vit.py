"""Image towers of CLIP, SigLIP, EVA and their kin, through open_clip.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (ICML 2021), and whatever else
open_clip holds. Preprocessing is the model's own (resize, crop, mean, std), equal bit for bit to what
``open_clip.create_model_and_transforms`` returns for validation.

Two traps that this module takes care of. open_clip only warns where weights were trained with QuickGELU (OpenAI's own,
MetaCLIP, DFN) and the model is built without it; here the activation that a tag was trained with is always taken. And
only the image tower is built: text towers from the Hub would want the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydantic import Field

from avpipe.extract import images
from avpipe.extract.encoder import Prepared
from avpipe.extract.encoders import _open_clip
from avpipe.extract.encoders._config import DeviceConfig, FrameConfig
from avpipe.extract.encoders._media import pictures_of
from avpipe.extract.media import FrameRequest, Media
from avpipe.pipeline.features import Features, FeatureSpec

if TYPE_CHECKING:
    import torch

FRAMES_AT_ONCE = 256
"""In one forward pass, whatever the batch: bounds memory on the device."""


class Config(FrameConfig, DeviceConfig):
    """Configuration of an image tower."""

    model: str | None = None
    """An open_clip model name. None: what the Hub repository or the folder says of itself; else ViT-B-16."""

    weights: str = "openai"
    """A pretrained tag of open_clip (``openai``), ``hf-hub:org/name`` or ``hf-hub:org/name@revision``, a local file, a
    local folder with open_clip_config.json, or ``random`` (``random:<seed>``) for tests and benchmarks."""

    tokens: str = Field(default="all", pattern=r"^(all|mean|cls|embedding|grid:[1-9]\d*)$")
    """Rows of each frame. ``all``: the tokens of the last layer after the final norm, CLS first where there is one,
    then patches row by row; ``mean``: the mean patch; ``grid:k``: patches averaged to k x k; ``cls``: one pooled vector
    before CLIP's projection; ``embedding``: the image embedding in the space shared with text (not normalised)."""


class Encoder:
    """See the module's text. Rows are frame-major; every row of a frame has the frame's time."""

    def __init__(self, config: Config, name: str) -> None:
        self.tower = _open_clip.find(config.model, config.weights, name)
        self.config = config.model_copy(update={"model": self.tower.model})
        self.batch_size = config.batch_size
        rows, dim = _open_clip.probe(self.tower, config.tokens)
        self.spec = FeatureSpec(
            name=name,
            encoder="clip_vit",
            modality="video",
            dim=dim,
            config=self.config.model_dump(mode="json", exclude={"batch_size"}),
            weights=self.tower.weights,
            preprocessing={**self.tower.preprocessing.to_json(), "quick_gelu": self.tower.quick_gelu},
            clock={
                "rows": f"{rows} a frame, frame by frame",
                "sampling": config.sampling,
                "frames": config.frames,
                "rows_per_frame": rows,
            },
            views=1 + config.views,
        )
        self._visual: torch.nn.Module | None = None
        self._device = "cpu"

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
        how = self.tower.preprocessing
        fit = partial(
            images.fit, size=how.size, mode=how.resize_mode, interpolation=how.interpolation, fill=how.fill_color
        )
        found = pictures_of(media, self.spec.name, self.request, fit, how.size, interpolation=how.interpolation)
        return {"pixels": found.pixels, "pts_seconds": found.pts_seconds}

    def load(self, device: str) -> None:
        """Build the tower and read its weights onto ``device``.

        Raises:
            CheckpointError: the file does not fit the model.
        """
        from avpipe.extract.encoders._device import ready

        visual = self._visual or _open_clip.load(self.tower, self.config.tokens)
        self._visual, self._device = ready(visual, device, compile=self.config.compile), device

    def encode(self, batch: Sequence[Prepared]) -> list[Features]:
        """Tokens of each clip, float32 ``(views * num_frames * rows_per_frame, dim)``."""
        counts = [len(clip["pixels"]) for clip in batch]
        pixels = np.concatenate([clip["pixels"] for clip in batch])
        parts = [self._forward(pixels[i : i + FRAMES_AT_ONCE]) for i in range(0, len(pixels), FRAMES_AT_ONCE)]
        rows = np.concatenate(parts)  # (frames, rows_per_frame, dim)
        features = []
        for clip, tokens in zip(batch, np.split(rows, np.cumsum(counts)[:-1]), strict=True):
            pts = np.repeat(clip["pts_seconds"].astype(np.float64), tokens.shape[1])
            features.append(Features(data=tokens.reshape(-1, tokens.shape[-1]), pts_seconds=pts))
        return features

    def _forward(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """``(F, H, W, 3)`` -> ``(F, rows, dim)``."""
        import torch

        from avpipe.extract.encoders._device import download, mixed_precision, upload

        if self._visual is None:
            raise RuntimeError("encode: called before load")
        how = self.tower.preprocessing
        with torch.inference_mode(), mixed_precision(self._device, self.config.precision):
            normalised = normalise(upload(pixels, self._device), how.mean, how.std)
            return download(_open_clip.tokens_of(self._visual, normalised, self.config.tokens))


def normalise(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """uint8 ``(F, H, W, 3)`` -> float32 ``(F, 3, H, W)``: the operations of torchvision's ``ToTensor`` and
    ``Normalize``, in their order, so that they round alike.
    """
    import torch

    scaled = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div(255)
    middle = torch.tensor(mean, dtype=torch.float32, device=pixels.device).view(3, 1, 1)
    spread = torch.tensor(std, dtype=torch.float32, device=pixels.device).view(3, 1, 1)
    return scaled.sub_(middle).div_(spread)
