"""CAV-MAE: transformers over patches of a spectrogram and of frames, each its own, then one for both.

Gong et al., "Contrastive Audio-Visual Masked Autoencoder" (ICLR 2023), authors' code YuanGongND/cav-mae; with clips of
several frames Kim et al., "AVCap" (Interspeech 2024), authors' code JongSuk1/AVCap. Names of parameters are those of
the authors' files, which load by name; one module a part, because nobody needs all of them at once. The layers
themselves, and the joint ones, stand in :mod:`avpipe.pipeline.networks.cav_mae`: training needs them, too. The decoder,
which only pre-training has, and the classifier of fine-tuned files are not built.

Shapes: B clips, D width, A = rows * columns audio patches, V visual patches of T frames.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avpipe.pipeline import checkpoints
from avpipe.pipeline.errors import CheckpointError, UsageError
from avpipe.pipeline.networks.cav_mae import Block, JointLayers, Modality

PATCH = 16
TUBE = 2  # frames that a patch of several frames spans
HEAD_WIDTH = 64  # of every public file; no tensor tells it

PATCH_WEIGHT = "patch_embed_v.proj.weight"
VISUAL_INPUT = r"patch_embed_v\..+|pos_embed_v"
"""What depends on the number of frames."""

AVCAP_PREFIX, AVCAP_DECODER_PREFIX = "av_encoder.", "textual."

_BLOCK = r"(norm[12](_[av])?|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)"
_KNOWN = re.compile(
    rf"patch_embed_[av]\.proj\.(weight|bias)|(pos_embed|modality)_[av]|blocks_[avu]\.\d+\.{_BLOCK}"
    r"|norm(_[av])?\.(weight|bias)|mlp_head\.[01]\.(weight|bias)"
    rf"|mask_token|decoder_(pos_embed|modality)_[av]|decoder_(embed|norm|pred_[av])\.(weight|bias)"
    rf"|decoder_blocks\.\d+\.{_BLOCK}"
)
"""Every name that a file of the authors may hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CavMaeConfig:
    """Sizes of a network.

    Attributes:
        dim: D.
        heads: of attention.
        layers: that each modality has for itself.
        joint_layers: that follow them.
        audio_frames: length of a spectrogram.
        mels: its bands.
        image_size: side of a frame, in pixels.
        frames: T. With more than one, a patch spans two frames.
    """

    dim: int = 768
    heads: int = 12
    layers: int = 11
    joint_layers: int = 1
    audio_frames: int = 1024
    mels: int = 128
    image_size: int = 224
    frames: int = 1

    @property
    def audio_grid(self) -> tuple[int, int]:
        """Rows (bands) and columns (time) of audio patches."""
        return self.mels // PATCH, self.audio_frames // PATCH

    @property
    def visual_grid(self) -> tuple[int, int, int]:
        """Time steps, rows and columns of visual patches."""
        side = self.image_size // PATCH
        return max(1, self.frames // TUBE), side, side


class AudioStream(nn.Module):
    """The audio patches and the layers of their own, the first ``config.layers`` of them."""

    suffix: Modality = "a"

    def __init__(self, config: CavMaeConfig) -> None:
        super().__init__()
        self.patch_embed_a = Patches(nn.Conv2d(1, config.dim, PATCH, PATCH))
        self.pos_embed_a = nn.Parameter(sine_positions(*config.audio_grid, config.dim))
        self.modality_a = nn.Parameter(torch.empty(1, 1, config.dim).normal_(std=0.02))
        self.blocks_a = nn.ModuleList(Block(config.dim, config.heads) for _ in range(config.layers))

    def forward(self, spectrogram: Tensor) -> Tensor:
        """``(B, audio_frames, mels)``, normalised -> ``(B, A, D)``: band by band from low to high, each from the first
        to the last time step.
        """
        picture = spectrogram.transpose(1, 2)[:, None]
        tokens: Tensor = self.patch_embed_a(picture) + self.pos_embed_a + self.modality_a
        for block in self.blocks_a:
            tokens = block(tokens)
        return tokens


class VisualStream(nn.Module):
    """The visual patches and the layers of their own, the first ``config.layers`` of them.

    Raises:
        UsageError: AVCap's positions are not made for so many frames.
    """

    suffix: Modality = "v"

    def __init__(self, config: CavMaeConfig) -> None:
        super().__init__()
        positions = visual_positions(config)
        if config.frames == 1:
            convolution: nn.Conv2d | nn.Conv3d = nn.Conv2d(3, config.dim, PATCH, PATCH)
        else:
            tube = (TUBE, PATCH, PATCH)
            convolution = nn.Conv3d(3, config.dim, tube, tube)
        self.patch_embed_v = Patches(convolution)
        self.pos_embed_v = nn.Parameter(positions)
        self.modality_v = nn.Parameter(torch.empty(1, 1, config.dim).normal_(std=0.02))
        self.blocks_v = nn.ModuleList(Block(config.dim, config.heads) for _ in range(config.layers))

    def forward(self, frames: Tensor) -> Tensor:
        """``(B, 3, height, width)``, or ``(B, 3, T, height, width)``, normalised -> ``(B, V, D)``: time step by time
        step, each row by row.
        """
        tokens: Tensor = self.patch_embed_v(frames) + self.pos_embed_v + self.modality_v
        for block in self.blocks_v:
            tokens = block(tokens)
        return tokens


class Trunk(nn.Module):
    """One modality through the first layers of the network.

    Args:
        config: sizes.
        modality: which.
        depth: how many layers: those of its own, then the joint ones, with the norms that are its own.
    """

    def __init__(self, config: CavMaeConfig, modality: Modality, depth: int) -> None:
        super().__init__()
        own = replace(config, layers=min(depth, config.layers))
        self.stream = AudioStream(own) if modality == "a" else VisualStream(own)
        joint_layers = max(0, depth - config.layers)
        is_whole = joint_layers == config.joint_layers
        self.joint = JointLayers(config.dim, config.heads, joint_layers, is_whole=is_whole) if joint_layers else None

    def forward(self, inputs: Tensor) -> Tensor:
        """What the stream takes -> ``(B, N, D)``: what goes into layer ``depth``; after the last one, its norm."""
        tokens: Tensor = self.stream(inputs)
        return tokens if self.joint is None else self.joint(tokens, self.stream.suffix)


class Patches(nn.Module):
    """A picture or a clip cut into patches or tubes: ``(B, channels, ...)`` -> ``(B, N, D)``."""

    def __init__(self, convolution: nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        self.proj = convolution
        nn.init.xavier_uniform_(convolution.weight.view(len(convolution.weight), -1))

    def forward(self, picture: Tensor) -> Tensor:
        """The patches in the order time, row, column."""
        patches: Tensor = self.proj(picture)
        return patches.flatten(2).transpose(1, 2)


def sine_positions(rows: int, columns: int, dim: int) -> Tensor:
    """Sines and cosines of the column, then of the row, ``(1, rows * columns, dim)``, row by row."""
    frequency = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64), torch.arange(columns, dtype=torch.float64), indexing="ij"
    )
    angles = [place.flatten()[:, None] * frequency for place in (column, row)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()[None]


def visual_positions(config: CavMaeConfig) -> Tensor:
    """Positions as AVCap starts from: sines over one square of all patches; with 4 frames, at random.

    Returns:
        ``(1, V, D)``.

    Raises:
        UsageError: the patches of so many frames fill no square.
    """
    steps, rows, columns = config.visual_grid
    count = steps * rows * columns
    if config.frames == 4:
        return torch.empty(1, count, config.dim).normal_(std=0.02)
    side = math.isqrt(count)
    if (config.frames > 1 and config.frames % TUBE) or side * side != count:
        raise UsageError(
            "frames: expected 1, 4 or twice a square number (2, 8, 18, 32), because AVCap lays the positions of "
            f"{TUBE} x {PATCH} x {PATCH} tubes on a square; got {config.frames}"
        )
    return sine_positions(side, side, config.dim)


def state_of(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors of a CAV-MAE (pre-trained, fine-tuned, audio only) or of the CAV-MAE in an AVCap, by name.

    Raises:
        CheckpointError: there are none.
    """
    state = checkpoints.tensors(content, path)
    if not any(name.startswith(AVCAP_PREFIX) for name in state):
        return state
    return {
        name.removeprefix(AVCAP_PREFIX): tensor
        for name, tensor in state.items()
        if not name.startswith(AVCAP_DECODER_PREFIX)
    }


def describe(state: Mapping[str, Tensor], modality: Modality, path: Path, *, frames: int = 1) -> CavMaeConfig:
    """The sizes of the network that a file holds, of public geometry (1024 frames of sound, pictures of 224 pixels).

    Args:
        state: see :func:`state_of`.
        modality: that is wanted of it.
        path: for messages.
        frames: T.

    Raises:
        CheckpointError: it holds no such thing.
    """
    name = f"modality_{modality}"
    found = state.get(name)
    if found is None:
        raise CheckpointError(
            f"{path}: no CAV-MAE with this modality: no {name} among {', '.join(list(state)[:5])} ..."
        )
    if found.ndim != 3 or found.shape[:2] != (1, 1) or found.shape[2] % HEAD_WIDTH:
        raise CheckpointError(
            f"{path}: {name}: expected a tensor of shape (1, 1, a multiple of {HEAD_WIDTH}), got {tuple(found.shape)}"
        )
    dim = found.shape[2]
    return CavMaeConfig(
        dim=dim,
        heads=dim // HEAD_WIDTH,
        layers=_blocks(state, f"blocks_{modality}"),
        joint_layers=_blocks(state, "blocks_u"),
        frames=frames,
    )


def fill(trunk: Trunk, state: Mapping[str, Tensor], path: Path, *, made: str = "") -> None:
    """Copy a file's tensors into part of the network; what belongs to other parts is passed over.

    Args:
        trunk: to be filled.
        state: see :func:`state_of`.
        path: for messages.
        made: regular expression for names that the file need not have.

    Raises:
        CheckpointError: a tensor of the part is missing or of another shape, or one is of no part at all.
    """
    other = "v" if trunk.stream.suffix == "a" else "a"
    unused = rf"norm(_{other})?\.(weight|bias)"  # final norms; files of audio alone lack the one of video
    for part, optional in ((trunk.stream, made), (trunk.joint, unused)):
        if part is not None:
            own = part.state_dict()
            wanted = {name: value for name, value in state.items() if name in own or not _KNOWN.fullmatch(name)}
            checkpoints.fill(part, wanted, path, optional=optional)


def is_flat(state: Mapping[str, Tensor]) -> bool:
    """Whether a file's visual patches span one frame."""
    weight = state.get(PATCH_WEIGHT)
    return weight is not None and weight.ndim == 4


def without_patches(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file of one frame as AVCap loads it for several: visual patches and positions are left at their initial values.

    See :data:`VISUAL_INPUT`.
    """
    return {name: value for name, value in state.items() if not re.fullmatch(VISUAL_INPUT, name)}


def inflated(state: Mapping[str, Tensor], frames: int) -> dict[str, Tensor]:
    """A file of one frame as one of several that sees the same in a still picture: half the kernel on each frame of a
    tube, and the file's positions at each time step. After Carreira and Zisserman, "Quo Vadis" (CVPR 2017).
    """
    weight = state[PATCH_WEIGHT][:, :, None].expand(-1, -1, TUBE, -1, -1) / TUBE
    positions = state["pos_embed_v"].repeat(1, frames // TUBE, 1)
    return {**state, PATCH_WEIGHT: weight, "pos_embed_v": positions}


def _blocks(state: Mapping[str, Tensor], stack: str) -> int:
    numbers = [int(name.split(".")[1]) for name in state if re.match(rf"{stack}\.\d+\.", name)]
    return 1 + max(numbers, default=-1)
