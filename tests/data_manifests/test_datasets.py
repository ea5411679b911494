"""What every dataset module must do: the contract, over all registered names."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from avpipe.data_manifests import manifest
from avpipe.data_manifests.dataset import Card, Prepared
from avpipe.data_manifests.datasets import REGISTRY
from avpipe.data_manifests.prepare import prepare
from avpipe.pipeline.config import Config, parse
from avpipe.pipeline.errors import ConfigError, DataError, UnknownNameError
from avpipe.pipeline.workspace import Workspace

Inputs = dict[str, Any]


def folder_toy(path: Path) -> Inputs:
    (path / "videos").mkdir()
    for name in ("a", "b"):
        (path / "videos" / f"{name}.mp4").touch()
    (path / "captions.json").write_text('{"a": "a dog barks", "b": ["it rains", "rain\\nfalls"]}')
    return {"media": path / "videos", "annotations": path / "captions.json"}


def synthetic_toy(path: Path) -> Inputs:
    return {"options": {"clips": {"train": 2, "val": 1, "test": 1}, "size": 32, "fps": 8, "seconds": 3.0}}


# A dataset module comes with a toy: what a user would give it, small and made on the spot.
TOYS: dict[str, Callable[[Path], Inputs]] = {"folder": folder_toy, "synthetic": synthetic_toy}


@pytest.fixture(params=REGISTRY.names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def module(name: str) -> ModuleType:
    return REGISTRY.load(name)


@pytest.fixture
def inputs(name: str, tmp_path: Path) -> Inputs:
    assert name in TOYS, f"dataset {name!r} has no toy in {__file__}"
    (tmp_path / "toy").mkdir()
    return TOYS[name](tmp_path / "toy")


def run(name: str, inputs: Inputs, workspace: Path) -> Prepared:
    module = REGISTRY.load(name)
    config = parse(module.Config, inputs.get("options", {}), name)
    prepared: Prepared = module.prepare(
        config,
        media=inputs.get("media"),
        annotations=inputs.get("annotations"),
        workspace=Workspace(workspace),
    )
    return prepared


def test_it_says_what_it_is(name: str, module: ModuleType) -> None:
    assert isinstance(module.CARD, Card)
    assert REGISTRY.summary(name).endswith(".")
    assert "Source:" in (module.__doc__ or ""), "a dataset module opens with where its data come from"


def test_its_options_have_defaults_and_words(module: ModuleType) -> None:
    assert issubclass(module.Config, Config)
    module.Config()
    undocumented = [key for key, field in module.Config.model_fields.items() if not field.description]
    assert not undocumented


def test_its_prepare_has_the_common_signature(module: ModuleType) -> None:
    assert list(inspect.signature(module.prepare).parameters) == [
        "config", "media", "annotations", "workspace", "progress",
    ]  # fmt: skip


def test_its_clips_are_whole(name: str, inputs: Inputs, tmp_path: Path) -> None:
    prepared = run(name, inputs, tmp_path / "workspace")
    assert prepared.clips
    assert {clip.dataset for clip in prepared.clips} == {name}
    assert len({clip.clip_id for clip in prepared.clips}) == len(prepared.clips)
    for clip in prepared.clips:
        assert (prepared.media_root / clip.path).is_file()
        assert clip.captions
        assert all(" ".join(caption.split()) == caption for caption in clip.captions)


def test_it_gives_the_same_twice(name: str, inputs: Inputs, tmp_path: Path) -> None:
    first, second = (run(name, inputs, tmp_path / "workspace") for _ in range(2))
    assert first == second


def test_it_needs_no_more_than_it_says(name: str, module: ModuleType, tmp_path: Path) -> None:
    """Given a path that does not exist, it says so with the path in the message."""
    nowhere = tmp_path / "nowhere.json"
    with pytest.raises(DataError, match=r"nowhere.json"):
        module.prepare(module.Config(), media=tmp_path, annotations=nowhere, workspace=Workspace(tmp_path))


def test_prepare_writes_a_manifest(name: str, inputs: Inputs, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace")
    header = prepare(name, workspace, clips_per_shard=3, **inputs)
    read = manifest.read(workspace.manifest(name))
    assert read.clips == run(name, inputs, workspace.root).clips
    assert (read.clips_per_shard, sum(header.clips.values())) == (3, len(read.clips))
    assert header.config["seed"] == 0
    assert workspace.prepared() == [name]


def test_a_dataset_of_ones_own_gets_its_own_manifest(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace")
    prepare("folder", workspace, options={"dataset": "mine"}, **folder_toy(tmp_path))
    assert workspace.prepared() == ["mine"]
    assert manifest.read(workspace.manifest("mine")).dataset == "mine"


def test_an_unknown_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown dataset 'sinthetic' .did you mean 'synthetic'"):
        prepare("sinthetic", Workspace(tmp_path))


def test_a_wrong_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"clips.trian: unknown key .did you mean 'train'"):
        prepare("synthetic", Workspace(tmp_path), options={"clips": {"trian": 8}})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licence": " "}, "licence of a dataset card: expected some text, got ' '"),
        ({"official_clips": {"training": 3}}, "official_clips: expected counts by train, val, test, got 'training': 3"),
        ({"official_clips": {"train": -1}}, "got 'train': -1"),
    ],
)
def test_a_wrong_card_is_refused(change: Inputs, message: str) -> None:
    card = {"summary": "s", "source": "s", "licence": "l", "official_clips": {"train": 3}}
    Card(**card)
    with pytest.raises(ValueError, match=message):
        Card(**{**card, **change})
