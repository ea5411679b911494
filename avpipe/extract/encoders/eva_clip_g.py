"""BLIP-2's frozen image tower, ViT-g/14 of EVA-CLIP.

Li et al., "BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image Encoders and Large Language Models"
(ICML 2023); Fang et al., "EVA" (CVPR 2023); authors' code salesforce/LAVIS. 39 of the tower's 40 blocks, width 1408,
257 tokens a frame of 224 x 224: CLS, then patches row by row. No norm follows the last block unless ``norm: ln_vision``
asks for BLIP-2's: systems that go on training that norm (multi-modal BLIP-2) want the features before it.

Preprocessing is LAVIS's for videos: frames squashed to a square (LAVIS has the decoder do it, with swscale's bicubic
filter; here it is Pillow's), CLIP's mean and deviation; for augmented views then half to all of that square, resized
and mirrored at random. Frames are chosen as LAVIS does: ``span_starts`` for evaluation, ``headtail`` for training.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from avpipe.extract.encoders._config import TOKENS, Sampling
from avpipe.extract.encoders._frames import (
    CLIP_MEAN,
    CLIP_STD,
    FrameEncoder,
    FrameNetworkConfig,
    Preprocessing,
    frame_spec,
    grid_side,
    patch_rows,
)
from avpipe.pipeline import checkpoints, weight_shards, weights
from avpipe.pipeline.errors import CheckpointError
from avpipe.pipeline.pretrained import json_of

if TYPE_CHECKING:
    import torch

HUB_PREFIX, LAVIS_PREFIX = "vision_model.", "visual_encoder."

GIANT: Mapping[str, int] = {
    "hidden_size": 1408,
    "intermediate_size": 6144,  # 4.3637 times the width
    "num_hidden_layers": 39,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
}
"""The tower, as ``Blip2VisionConfig`` names its parts."""

OF_EVA_CLIP = r"blocks\.39\..+|(fc_)?norm\..+|head\..+"
"""What EVA-CLIP's own file holds beyond what BLIP-2 uses: the last block and what is behind it."""


class Config(FrameNetworkConfig):
    """Configuration of the tower."""

    weights: str = "Salesforce/blip2-flan-t5-xl"
    """A BLIP-2 on the Hub (``org/name`` or ``org/name@revision``) or a local folder with one, of whose files only those
    with the image tower are fetched; LAVIS's ``eva_vit_g.pth`` or a whole checkpoint of LAVIS (``*.pth``); or
    ``random`` (``random:<seed>``) for tests and benchmarks."""

    frames: int = Field(default=16, ge=1)
    """Frames a clip (at most so many with ``sampling: fps:x``)."""

    sampling: Sampling = "span_starts"
    """How frames are chosen; ``span_starts`` is what LAVIS calls uniform."""

    tokens: str = Field(default="all", pattern=TOKENS)
    """Rows of each frame. ``all``: CLS, then patches row by row; ``cls``; ``mean``: the mean patch; ``grid:k``: patches
    averaged to k x k. What is not ``all`` is not what BLIP-2 sees, but takes less room."""

    norm: Literal["none", "ln_vision"] = "none"
    """What follows the last block: nothing, or BLIP-2's learned layer norm (before any averaging of patches)."""

    resize: Literal["squash", "shortest"] = "squash"
    """How a frame becomes a square. ``squash``: its aspect ratio is not kept (LAVIS); ``shortest``: its short side is
    brought to size and the middle is cut out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where weights come from, and what network they are of.

    Attributes:
        described: see :data:`GIANT`.
        spec: what the feature spec says of the weights.
        files: that hold them; empty for random ones.
        lavis: whether names are LAVIS's; else transformers'.
        seed: of random weights.
    """

    described: Mapping[str, int]
    spec: Mapping[str, Any]
    files: tuple[Path, ...] = ()
    lavis: bool = False
    seed: int = 0


class Encoder(FrameEncoder):
    """See the module's text."""

    def __init__(self, config: Config, name: str) -> None:
        self.source = _find(config.weights, name)
        described = self.source.described
        side = described["image_size"] // described["patch_size"]
        how = Preprocessing(
            size=(described["image_size"],) * 2, mean=CLIP_MEAN, std=CLIP_STD, resize_mode=config.resize
        )
        super().__init__(config, how)
        self.tokens, self.norm = config.tokens, config.norm
        rows = {"all": 1 + side**2, "cls": 1, "mean": 1}.get(config.tokens) or grid_side(config.tokens, side) ** 2
        self.spec = frame_spec(
            name,
            "eva_clip_g",
            config,
            rows=rows,
            dim=described["hidden_size"],
            weights=self.source.spec,
            preprocessing={**how.to_json(), "heads": described["num_attention_heads"]},  # which no tensor tells
        )

    def _build(self) -> torch.nn.Module:
        from avpipe.extract.encoders._device import Applied

        return Applied(_network(self.source, final_norm=self.norm == "ln_vision"), partial(_rows, tokens=self.tokens))


def _find(wanted: str, name: str) -> Source:
    """Which network, and which files."""
    seed = weights.random_seed(wanted, name)
    if seed is not None:
        return Source(described=GIANT, spec=weights.random_spec(seed), seed=seed)
    if Path(wanted).suffix in weights.FILE_SUFFIXES:
        found = weights.find(wanted, (), component=name)
        return Source(described=GIANT, spec=found.to_spec(), files=(found.files["weights"],), lavis=True)
    shards = weight_shards.find(wanted, HUB_PREFIX, component=name)
    return Source(described=_described(shards.config), spec=shards.to_spec(), files=shards.files)


def _described(config: Path) -> dict[str, int]:
    """The tower that a BLIP-2's ``config.json`` describes; what it leaves out is as in :data:`GIANT`."""
    try:
        vision = json_of(config)["vision_config"]
        described = {part: int(vision.get(part, usual)) for part, usual in GIANT.items()}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{config}: no configuration of a BLIP-2 with its vision_config ({error!r})") from None
    strange = [part for part, usual in (("hidden_act", "gelu"), ("qkv_bias", True)) if vision.get(part, usual) != usual]
    if strange:
        raise CheckpointError(
            f"{config}: not BLIP-2's ViT-g: {', '.join(f'{part} {vision[part]}' for part in strange)}"
        )
    return described


def _network(source: Source, *, final_norm: bool) -> torch.nn.Module:
    """The tower with its weights, on the CPU."""
    from avpipe.extract.networks import eva_clip_g as networks

    if not source.files:
        return networks.random(source.described, source.seed, final_norm=final_norm)
    path = source.files[0]
    if source.lavis:
        state = networks.from_lavis(_lavis(path))
    else:
        held = weight_shards.read(source.files, HUB_PREFIX)
        state = {tensor.removeprefix(HUB_PREFIX): value for tensor, value in held.items()}
    if source.lavis and final_norm and "post_layernorm.weight" not in state:
        raise CheckpointError(
            f"{path}: holds no ln_vision, which BLIP-2 learned and EVA-CLIP does not have. Write norm=none, or take "
            f"the weights from {Config().weights}"
        )
    network = networks.empty(source.described, final_norm=final_norm)
    checkpoints.fill(network, state, path, ignored="" if final_norm else r"post_layernorm\..+")
    return network


def _lavis(path: Path) -> dict[str, torch.Tensor]:
    """What BLIP-2 uses of a file of LAVIS's, under LAVIS's names."""
    every = checkpoints.tensors(checkpoints.read(path), path)
    if any(name.startswith(LAVIS_PREFIX) for name in every):
        wanted = LAVIS_PREFIX, "ln_vision."
        return {name.removeprefix(LAVIS_PREFIX): value for name, value in every.items() if name.startswith(wanted)}
    if "cls_token" in every:
        return {name: value for name, value in every.items() if not re.fullmatch(OF_EVA_CLIP, name)}
    raise CheckpointError(
        f"{path}: expected an EVA-CLIP (cls_token, blocks.0 ...) or a whole BLIP-2 of LAVIS ({LAVIS_PREFIX}*), got "
        f"{', '.join(list(every)[:5])} ..."
    )


def _rows(network: torch.nn.Module, pixels: torch.Tensor, tokens: str) -> torch.Tensor:
    """Normalised frames ``(F, 3, H, W)`` -> ``(F, rows, dim)``."""
    hidden: torch.Tensor = network(pixels)
    if tokens == "all":
        return hidden
    if tokens == "cls":
        return hidden[:, :1]
    patches = hidden[:, 1:].transpose(1, 2)  # (F, dim, patches)
    side = round(patches.shape[2] ** 0.5)
    return patch_rows(patches.reshape(*patches.shape[:2], side, side), tokens)
