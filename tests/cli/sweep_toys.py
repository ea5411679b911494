"""A workspace with the toy of the training loop: manifest and features as `prepare` and `extract` leave them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from avpipe.data_manifests import manifest
from avpipe.pipeline.shards import plan, write_spec
from avpipe.pipeline.store import ShardWriter
from avpipe.pipeline.workspace import Workspace
from tests.train import loop_toys as toys

SETTINGS = {
    "fusion.width": 32, "fusion.heads": 2, "decoder.width": 32, "decoder.layers": 1, "decoder.heads": 2,
    "train.epochs": 10, "train.batch_size": 8, "train.validate_every": 10, "train.log_every": 1, "train.save_every": 1,
    "train.tensorboard": False, "generate.beams": 1, "generate.max_tokens": 8,
}  # fmt: skip
"""30 steps, and one validation."""


def workspace(root: Path, test: int = 3) -> Workspace:
    """20 training clips, 6 of val, 3 or more of test; feature sets ``eyes`` and ``ears``."""
    made = Workspace(root)
    groups = [toys.clips(20), toys.clips(6, "val"), toys.clips(test, "test")]
    clips = [clip for group in groups for clip in group]
    manifest.write(made.manifest("toy"), clips, media_root=root)
    for name, source in toys.sources(*groups).items():
        folder = made.feature_set("toy", name)
        write_spec(folder, source.spec)
        for planned in plan([clip.clip_id for clip in clips], 16):
            with ShardWriter(folder, planned, source.spec, "hdf5") as shard:
                for clip_id in planned.clip_ids:
                    features = source.read(clip_id)
                    shard.add(clip_id, replace(features, data=features.data.astype(source.spec.dtype)))
    return made


def grid(folder: Path, file: str = "toys", **content: Any) -> Path:
    """A grid file of small captioners."""
    path = folder / f"{file}.yaml"
    settings = {**SETTINGS, **content.pop("set", {})}
    path.write_text(yaml.safe_dump({"set": settings, **content}, sort_keys=False), encoding="utf-8")
    return path
