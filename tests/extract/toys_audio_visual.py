"""Checkpoints of BEATs and CAV-MAE in the layouts of the authors' files, so small that they are made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.extract.toys_vision import shaken

TINY_BEATS: dict[str, Any] = {
    "input_patch_size": 16,
    "embed_dim": 12,
    "encoder_layers": 2,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 24,
    "encoder_attention_heads": 2,
    "deep_norm": True,
    "conv_pos": 8,
    "conv_pos_groups": 4,
    "relative_position_embedding": True,
    "num_buckets": 32,
    "max_distance": 64,
    "gru_rel_pos": True,
    "dropout": 0.1,  # of training only, as much else in the authors' files
}


def beats_content(**changed: Any) -> dict[str, Any]:
    """What such a file holds."""
    from avpipe.extract.networks.beats import Beats, BeatsConfig

    cfg = {**TINY_BEATS, **changed}
    torch.manual_seed(0)
    network = shaken(Beats(BeatsConfig.of_file({"cfg": cfg}, Path("toy"))))
    return {"cfg": cfg, "model": {name: tensor.clone() for name, tensor in network.state_dict().items()}}


def beats_file(path: Path, **changed: Any) -> Path:
    """A checkpoint of BEATs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(beats_content(**changed), path)
    return path


def cav_mae_state(*, frames: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """A CAV-MAE of width 64, one head, two layers for each modality and one joint layer; with a bit of a decoder."""
    from avpipe.extract.networks.cav_mae import AudioStream, CavMaeConfig, VisualStream
    from avpipe.pipeline.networks.cav_mae import JointLayers

    config = CavMaeConfig(dim=64, heads=1, layers=2, joint_layers=1, frames=frames)
    torch.manual_seed(seed)
    parts = [shaken(part) for part in (AudioStream(config), VisualStream(config), JointLayers(64, 1, 1))]
    state = {name: tensor for part in parts for name, tensor in part.state_dict().items()}
    return {**state, "mask_token": torch.zeros(1, 1, 8), "decoder_blocks.0.attn.qkv.weight": torch.zeros(24, 8)}


def cav_mae_file(path: Path, state: dict[str, Tensor] | None = None, *, prefix: str = "module.") -> Path:
    """A checkpoint of CAV-MAE: no wrapper, a prefix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = cav_mae_state() if state is None else state
    torch.save({prefix + name: tensor for name, tensor in state.items()}, path)
    return path
