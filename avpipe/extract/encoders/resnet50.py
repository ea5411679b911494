"""ResNet-50 of torchvision: 2048 numbers a frame, or its last 7 x 7 map.

He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016). Preprocessing is that of torchvision's weights,
bit for bit as on PIL images: the short side brought to 232 (``IMAGENET1K_V2``) or 256 (``IMAGENET1K_V1``), the middle
224 x 224 cut out, ImageNet's mean and deviation.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from avpipe.extract.encoders import _torchvision
from avpipe.extract.encoders._frames import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    FrameEncoder,
    FrameNetworkConfig,
    Preprocessing,
    frame_spec,
    patch_rows,
)
from avpipe.pipeline import checkpoints, weights
from avpipe.pipeline.errors import UsageError

if TYPE_CHECKING:
    import torch

MODEL = "resnet50"
SIDE, STRIDE, DIM = 224, 32, 2048
SHORT_SIDES = {"IMAGENET1K_V1": 256, "IMAGENET1K_V2": 232}
"""That a frame's short side is brought to, for each of torchvision's weights."""


class Config(FrameNetworkConfig):
    """Configuration of ResNet-50."""

    weights: str = "IMAGENET1K_V2"
    """``IMAGENET1K_V2`` or ``IMAGENET1K_V1`` (from torchvision's cache or its server); a local file with torchvision's
    names; ``org/name`` or ``org/name@revision`` on the Hub (``timm/resnet50.tv_in1k``); or ``random``
    (``random:<seed>``) for tests and benchmarks."""

    frames: int = Field(default=16, ge=1)
    """Frames a clip (at most so many with ``sampling: fps:x``)."""

    tokens: Literal["pooled", "map"] = "pooled"
    """Rows of each frame. ``pooled``: one; ``map``: the 7 x 7 before pooling, row by row."""

    resize: int | None = Field(default=None, ge=SIDE)
    """What a frame's short side is brought to before the middle 224 x 224 is cut out. None: what the weights were
    published with; those that are not torchvision's own must be told."""


class Encoder(FrameEncoder):
    """See the module's text."""

    def __init__(self, config: Config, name: str) -> None:
        seed = weights.random_seed(config.weights, name)
        found = _torchvision.find(config.weights, MODEL, encoder=name) if seed is None else None
        self.seed = seed or 0
        self.path = found.files["weights"] if found else None
        config = config.model_copy(update={"resize": config.resize or _short_side(config.weights, self.path, name)})
        how = Preprocessing(
            size=(SIDE, SIDE),
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            interpolation="bilinear",
            short_side=config.resize,
        )
        super().__init__(config, how)
        self.tokens = config.tokens
        self.spec = frame_spec(
            name,
            "resnet50",
            config,
            rows=1 if config.tokens == "pooled" else (SIDE // STRIDE) ** 2,
            dim=DIM,
            weights=found.to_spec() if found else weights.random_spec(self.seed),
            preprocessing=how.to_json(),
        )

    def _build(self) -> torch.nn.Module:
        from avpipe.extract.encoders._device import Applied

        return Applied(_network(self.path, self.seed), partial(_rows, tokens=self.tokens))


def _short_side(wanted: str, path: Path | None, name: str) -> int:
    """What the weights were published with.

    Raises:
        UsageError: they are not torchvision's.
    """
    published = wanted if wanted in SHORT_SIDES else None
    if path is None:
        published = "IMAGENET1K_V2"
    elif published is None:
        published = _torchvision.name_of(path, MODEL)
    if published is None:
        raise UsageError(
            f"{name}: {wanted} is none of torchvision's files, and does not say what frames it was trained on. Write "
            f"{name}.resize=232 (as IMAGENET1K_V2) or {name}.resize=256 (as IMAGENET1K_V1)"
        )
    return SHORT_SIDES[published]


def _network(path: Path | None, seed: int) -> torch.nn.Module:
    """The network of torchvision with its weights, on the CPU, without classifier."""
    import torchvision
    from torch import nn

    from avpipe.extract.encoders._device import seeded

    with seeded(seed):
        network: torch.nn.Module = torchvision.models.get_model(MODEL, weights=None)
    network.fc = nn.Identity()
    if path is not None:
        state = checkpoints.tensors(checkpoints.read(path), path)
        checkpoints.fill(network, state, path, ignored=r"fc\.(weight|bias)", optional=r".+\.num_batches_tracked")
    return network


def _rows(network: Any, pixels: torch.Tensor, tokens: str) -> torch.Tensor:
    """Normalised frames ``(F, 3, H, W)`` -> ``(F, rows, dim)``."""
    x = network.maxpool(network.relu(network.bn1(network.conv1(pixels))))
    x = network.layer4(network.layer3(network.layer2(network.layer1(x))))  # (F, 2048, 7, 7)
    if tokens == "pooled":
        x = network.avgpool(x)
    return patch_rows(x, tokens)
