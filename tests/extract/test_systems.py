"""The systems' extraction recipes from one end to the other, with networks that are tiny and otherwise as published."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from avpipe import api
from avpipe.data_manifests import manifest
from avpipe.extract import recipe
from avpipe.pipeline.errors import UsageError
from avpipe.pipeline.store import FeatureSet
from avpipe.pipeline.workspace import Workspace


def tiny(name: str, folder: Path) -> Path:
    """A recipe of avpipe's with the networks of the contract suite in place of the published ones."""
    encoders: dict[str, dict[str, Any]] = {}
    for feature_set, settings in recipe.read(name).items():
        module = settings.get("encoder", feature_set)
        (folder / feature_set).mkdir(parents=True)
        small = importlib.import_module(f"tests.extract.small.{module}").settings(folder / feature_set)
        kept = {key: value for key, value in settings.items() if key in ("of", "tokens", "stream", "sampling")}
        encoders[feature_set] = {"encoder": module, **small, **kept}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"encoders": encoders}), encoding="utf-8")
    return path


@pytest.fixture
def few(workspace: Workspace) -> Workspace:
    """Six clips are enough: four to train on, one of them silent, and one in each other split."""
    path = workspace.manifest("synthetic")
    read = manifest.read(path)
    clips = [*read.split("train")[:4], read.split("val")[0], read.split("test")[0]]
    manifest.write(path, clips, media_root=read.media_root, clips_per_shard=read.clips_per_shard)
    return workspace


@pytest.mark.parametrize("name", ["default", "micap", "local_global", "avcap", "resnet_gpt2", "multimodal_blip2"])
def test_a_recipe_runs_from_videos_to_features(few: Workspace, tmp_path: Path, name: str) -> None:
    made = api.extraction(few, recipe=str(tiny(name, tmp_path / "tiny")), gpus=0, decoders=2)
    report = made.run()
    assert report.is_complete, report.faults
    clips = manifest.read(few.manifest("synthetic")).clips
    for feature_set, encoder in made.setting.encoders.items():
        features = FeatureSet(few.feature_set("synthetic", feature_set))
        assert len(features) + features.counts["skipped"] == len(clips)
        assert features.spec == encoder.spec
        for clip_id in features.clip_ids:
            if features.spec.is_text:
                assert all(segment.stop_seconds < 5 for segment in features.segments(clip_id).items)
            else:
                found = features.read(clip_id)
                assert found.data.shape[1] == features.spec.dim
                assert np.isfinite(found.data).all()
                assert found.pts_seconds.min() >= 0


def test_a_captioner_reads_what_was_heard(few: Workspace, tmp_path: Path) -> None:
    """Sound -> words -> vectors -> captioner; and the same way for a single file."""
    api.extraction(few, recipe=str(tiny("micap", tmp_path / "tiny")), gpus=0, decoders=2).run()
    options = ["fusion.width=32", "decoder.width=32", "train.epochs=1", "train.precision=fp32"]
    name, result = api.train(few, features=["bert_text"], overrides=options)
    assert result.step == 1
    clips = manifest.read(few.manifest("synthetic"))
    heard = FeatureSet(few.feature_set("synthetic", "bert_text")).clip_ids[0]
    (clip,) = [clip for clip in clips.clips if clip.clip_id == heard]
    assert api.caption(few, clips.media_root / clip.path, name).clip_id == "file"
    with pytest.raises(
        UsageError, match=r"'audio_caption' holds text; make vectors of it first: .* bert_text.of=audio_c"
    ):
        api.train(few, features=["audio_caption"])
    everything = api.open_features(few, "synthetic")
    assert set(everything) == {"clip_vit", "bert_text"}  # text itself is nothing to fuse
