"""Video Swin Transformer of torchvision, which sees motion: rows are of two frames each.

Liu et al., "Video Swin Transformer" (CVPR 2022); authors' code SwinTransformer/Video-Swin-Transformer, whose own files
are read as well. A clip of 32 frames, every second one, becomes 16 steps in time of 7 x 7 rows.

Preprocessing is that of torchvision's weights, to within one of 255 levels: the short side brought to 256, bilinear
without antialiasing (as OpenCV does it for the authors), the middle 224 x 224 cut out, ImageNet's mean and deviation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from avpipe.extract.encoder import Prepared
from avpipe.extract.encoders import _torchvision
from avpipe.extract.encoders._config import Sampling
from avpipe.extract.encoders._frames import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    FrameNetworkConfig,
    Preprocessing,
    VisualEncoder,
)
from avpipe.pipeline import checkpoints, weights
from avpipe.pipeline.features import Features, FeatureSpec

if TYPE_CHECKING:
    import torch

CLIPS_AT_ONCE = 8
"""In one forward pass, whatever the batch: bounds memory on the device."""

HOW = Preprocessing(
    size=(224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation="bilinear", short_side=256, antialias=False
)
DIMS = {"swin3d_t": 768, "swin3d_s": 768, "swin3d_b": 1024}
FRAMES_A_STEP = 2
SIDE = 7  # rows and columns of a step


class Config(FrameNetworkConfig):
    """Configuration of Video Swin."""

    model: Literal["swin3d_t", "swin3d_s", "swin3d_b"] = "swin3d_b"
    """torchvision's name: tiny, small or base, with windows of 8 x 7 x 7."""

    weights: str = "KINETICS400_IMAGENET22K_V1"
    """``KINETICS400_V1``, of ``swin3d_b`` also ``KINETICS400_IMAGENET22K_V1`` (from torchvision's cache or its server);
    a local file with torchvision's names or the authors' (``swin_base_patch244_window877_kinetics600_22k.pth``); or
    ``random`` (``random:<seed>``) for tests and benchmarks."""

    frames: int = Field(default=32, ge=1)
    """Frames a clip (at most so many with ``sampling: fps:x``). Of an odd number, the last one counts twice."""

    sampling: Sampling = "consecutive:2"
    """How frames are chosen."""

    view_sampling: Sampling = "somewhere:2"
    """How the frames of augmented views are chosen: for training, the authors start at a random place."""

    tokens: Literal["all", "time", "mean"] = "all"
    """Rows of a clip. ``all``: 7 x 7 for every two frames, row by row, from the first to the last; ``time``: their
    mean, one for every two frames; ``mean``: one."""

    batch_size: int = Field(default=4, ge=1)
    """Clips at once. Changes no feature."""


class Encoder(VisualEncoder):
    """See the module's text."""

    compiles_once = False  # windows of sizes that are not known take the compiler many minutes

    def __init__(self, config: Config, name: str) -> None:
        super().__init__(config, HOW)
        self.model, self.tokens = config.model, config.tokens
        seed = weights.random_seed(config.weights, name)
        found = _torchvision.find(config.weights, config.model, encoder=name) if seed is None else None
        self.seed = seed or 0
        self.path = found.files["weights"] if found else None
        rows = {
            "all": f"{SIDE**2} every two frames, step by step",
            "time": "one every two frames",
            "mean": "one a clip",
        }
        self.spec = FeatureSpec(
            name=name,
            encoder="video_swin",
            modality="video",
            dim=DIMS[config.model],
            config=config.model_dump(mode="json", exclude={"batch_size"}),
            weights=found.to_spec() if found else weights.random_spec(self.seed),
            preprocessing=HOW.to_json(),
            clock={
                "rows": rows[config.tokens],
                "sampling": config.sampling,
                "frames": config.frames,
                "frames_per_step": FRAMES_A_STEP,
            },
            views=1 + config.views,
        )

    def _build(self) -> torch.nn.Module:
        from avpipe.extract.encoders._device import Applied

        return Applied(_network(self.model, self.path, self.seed), partial(_rows, tokens=self.tokens))

    def encode(self, batch: Sequence[Prepared]) -> list[Features]:
        """Rows of each clip, float32 ``(views * num_rows, dim)``; each at the middle of the frames that it saw."""
        views = 1 + self.config.views
        clips = [_even(view) for clip in batch for view in np.split(clip["pixels"], views)]
        pts = [_even(view) for clip in batch for view in np.split(clip["pts_seconds"].astype(np.float64), views)]
        data = self._in_order(clips)
        times = [self._times(view, len(rows)) for view, rows in zip(pts, data, strict=True)]
        return [
            Features(data=np.concatenate(data[i : i + views]), pts_seconds=np.concatenate(times[i : i + views]))
            for i in range(0, len(data), views)
        ]

    def _in_order(self, clips: Sequence[npt.NDArray[np.uint8]]) -> list[npt.NDArray[np.float32]]:
        """Rows of each clip. Clips of one length go through the network together."""
        rows: dict[int, npt.NDArray[np.float32]] = {}
        for length in {len(clip) for clip in clips}:
            alike = [number for number, clip in enumerate(clips) if len(clip) == length]
            for i in range(0, len(alike), CLIPS_AT_ONCE):
                part = alike[i : i + CLIPS_AT_ONCE]
                rows |= zip(part, self._forward(np.stack([clips[number] for number in part])), strict=True)
        return [rows[number] for number in range(len(clips))]

    def _times(self, pts_seconds: npt.NDArray[np.float64], num_rows: int) -> npt.NDArray[np.float64]:
        """``(num_rows,)``."""
        if self.tokens == "mean":
            return np.array([pts_seconds.mean()])
        steps: npt.NDArray[np.float64] = pts_seconds.reshape(-1, FRAMES_A_STEP).mean(axis=1)
        return np.repeat(steps, num_rows // len(steps))


def _even(frames: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """With the last one twice if their number is odd: the network itself would put a black one there."""
    return np.concatenate([frames, frames[-1:]]) if len(frames) % FRAMES_A_STEP else frames


def _network(model: str, path: Path | None, seed: int) -> torch.nn.Module:
    """The network of torchvision with its weights, on the CPU, without classifier."""
    import torchvision
    from torch import nn

    from avpipe.extract.encoders._device import seeded

    with seeded(seed):
        network: torch.nn.Module = torchvision.models.get_model(model, weights=None)
    network.head = nn.Identity()
    if path is not None:
        state = from_authors(checkpoints.tensors(checkpoints.read(path), path))
        # Positions within a window are made, not learned; where a file holds them, they are the same.
        made = r".+\.relative_position_index"
        checkpoints.fill(network, state, path, ignored=rf"(cls_head|head)\..+|{made}", optional=made)
    return network


def from_authors(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The authors' names as torchvision has them. A name that is not theirs stays as it is."""
    return {_renamed(name): tensor for name, tensor in state.items()}


def _renamed(name: str) -> str:
    inner = name.removeprefix("backbone.")
    if re.fullmatch(r"(patch_embed\.(proj|norm)|norm)\..+", inner):
        return inner
    match = re.fullmatch(r"layers\.(\d+)\.(?:downsample|blocks\.(\d+))\.(.+)", inner)
    if match is None:
        return name
    stage, block, rest = match.groups()
    if block is None:  # what merges patches stands between two stages
        return f"features.{2 * int(stage) + 1}.{rest}"
    rest = rest.replace("mlp.fc1.", "mlp.0.").replace("mlp.fc2.", "mlp.3.")
    return f"features.{2 * int(stage)}.{block}.{rest}"


def _rows(network: Any, clips: torch.Tensor, tokens: str) -> torch.Tensor:
    """Normalised clips ``(B, T, 3, H, W)`` -> ``(B, rows, dim)``."""
    x = network.patch_embed(clips.transpose(1, 2))  # (B, T / 2, H / 4, W / 4, dim)
    x = network.norm(network.features(network.pos_drop(x)))  # (B, T / 2, 7, 7, dim)
    rows: torch.Tensor = x.mean(dim=(2, 3)) if tokens == "time" else x.flatten(1, 3)
    return rows.mean(dim=1, keepdim=True) if tokens == "mean" else rows
