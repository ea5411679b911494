"""What a training run is told: recipes, settings and overrides, with all faults at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from avpipe.pipeline.errors import ConfigError, UnknownNameError
from avpipe.train import decoders, fusions
from avpipe.train.config import RunConfig, check, read, recipes

FUSIONS = ", ".join(fusions.REGISTRY.names())


def faults(*overrides: str, settings: dict[str, Any] | None = None, recipe: str = "default") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(recipe, overrides, settings)
    return caught.value.faults


def recipe(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_right_and_complete(name: str) -> None:
    config = read(name)
    for component, registry in ((config.fusion, fusions.REGISTRY), (config.decoder, decoders.REGISTRY)):
        fields = registry.load(component["name"]).Config.model_fields
        assert component.keys() == {"name", *fields}
    # What a run folder holds gives the same run again.
    assert check(config.model_dump(mode="json"), "config.yaml") == config


def test_recipes() -> None:
    assert "default" in recipes()


def test_what_a_recipe_does_not_say_has_its_default(tmp_path: Path) -> None:
    config = read(recipe(tmp_path, "train: {epochs: 3}"))
    assert config.train.epochs == 3
    assert config == check({"train": {"epochs": 3}}, "here")
    assert config.generate == RunConfig().generate
    assert config.fusion["name"] == "qformer"


def test_overrides() -> None:
    config = read(
        "default", ["train.lr=2e-4", "fusion.queries.video=5", "train.captions_per_clip=each", "decoder.width=64"]
    )
    assert config.train.lr == 2e-4
    assert config.train.captions_per_clip == "each"
    assert config.fusion["queries"] == {"video": 5, "audio": 8, "text": 8}
    assert config.decoder["width"] == 64


def test_all_faults_at_once() -> None:
    found = faults(
        "train.lr=-1", "train.epoch=3", "fusion.layer=2", "fusion.dropout=2", "decoder.width=4", "generate.beams=0",
        "train.captions_per_clip=0", "fusions=x",
    )  # fmt: skip
    text = "\n".join(found)
    expected = [
        "train.lr",
        "train.epoch",
        "fusion.layer",
        "fusion.dropout",
        "decoder.width",
        "generate.beams",
        "fusions",
    ]
    for key in [*expected, "train.captions_per_clip"]:
        assert any(fault.startswith(f"{key}") for fault in found), f"{key} in:\n{text}"
    assert "greater than 0, got -1" in text
    assert "less than 1, got 2" in text


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("train.epoch=3", "train.epoch: unknown key (did you mean 'epochs'?); known: epochs, max_steps"),
        ("fusion.layer=2", "fusion.layer: unknown key (did you mean 'layers'?); known: width, layers"),
        (
            "fusion.queries.vido=2",
            "fusion.queries.vido: unknown key (did you mean 'video'?); known: video, audio, text",
        ),
        ("decoder.head=2", "decoder.head: unknown key (did you mean 'heads'?)"),
        ("tokenizer.vocab_size=900", "tokenizer.vocab_size: unknown key (did you mean 'vocabulary_size'?)"),
        ("generat.beams=2", "generat: unknown key (did you mean 'generate'?)"),
        ("train.qqq=1", "train.qqq: unknown key; known: epochs"),
    ],
)
def test_unknown_keys_name_the_nearest(text: str, nearest: str) -> None:
    [fault] = faults(text)
    assert fault.startswith(nearest)


def test_unknown_names() -> None:
    told = rf"unknown fusion 'qfromer' \(did you mean 'qformer'\?\); known: {FUSIONS}"
    with pytest.raises(UnknownNameError, match=told):
        read("default", settings={"fusion": "qfromer"})
    with pytest.raises(UnknownNameError, match=r"unknown decoder 'lstm'.*; known: .*transformer"):
        read("default", ["decoder=lstm"])
    with pytest.raises(UnknownNameError, match=r"unknown training recipe 'defualt' \(did you mean 'default'\?\).*YAML"):
        read("defualt")


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"fusion": 3}, f"fusion: expected a name, or a mapping with a name, got 3; known: {FUSIONS}"),
        (
            {"fusion": {"layers": 2}},
            f"fusion: expected a name, or a mapping with a name, got {{'layers': 2}}; known: {FUSIONS}",
        ),
        ({"decoder": {"name": 5}}, "decoder: expected a name, or a mapping with a name, got {'name': 5}; known: "),
        ({"fusion": {"name": "concat", "heads": 5}}, "fusion: heads must divide width (96)"),
        ({"train": 3}, "train: "),
    ],
)
def test_components_that_are_none(values: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check({"generate": {"beams": 0}, **values}, "here")
    assert len(caught.value.faults) == 2
    assert any(found.startswith(fault) for found in caught.value.faults), caught.value.faults


# -- settings: the other options of the command line -------------------------------------------------------------------


def test_another_fusion_drops_the_keys_of_the_former() -> None:
    # The recipe gives queries to qformer, which concat does not have.
    assert "queries" in read("default").fusion
    config = read("default", settings={"fusion": "concat"})
    assert config.fusion == {"name": "concat", **fusions.REGISTRY.load("concat").Config().model_dump(mode="json")}
    assert config.train == read("default").train
    assert config.decoder == read("default").decoder
    # As an override, the same.
    assert read("default", ["fusion=concat"]) == config


def test_the_same_fusion_keeps_its_keys(tmp_path: Path) -> None:
    path = recipe(tmp_path, "fusion: {name: qformer, layers: 5}")
    assert read(path, settings={"fusion": "qformer"}).fusion["layers"] == 5
    assert read(path, ["fusion=qformer"]).fusion["layers"] == 5
    assert read(path, settings={"fusion": "concat"}).fusion["layers"] == 1


def test_overrides_reach_the_fusion_that_settings_name() -> None:
    config = read("default", ["fusion.layers=3", "train.seed=2"], {"fusion": "concat", "train.seed": 1})
    assert config.fusion["name"] == "concat"
    assert config.fusion["layers"] == 3
    assert config.train.seed == 2  # an override has the last word
    assert read("default", settings={"train.seed": 1}).train.seed == 1


def test_an_override_may_not_reach_what_the_new_fusion_lacks() -> None:
    [fault] = faults("fusion.queries.video=3", settings={"fusion": "concat"})
    assert fault.startswith("fusion.queries: unknown key")


def test_a_recipe_may_name_its_fusion_alone(tmp_path: Path) -> None:
    path = recipe(tmp_path, "fusion: concat\ndecoder: transformer\n")
    assert read(path, ["fusion.layers=2"]).fusion["layers"] == 2
    assert read(path, settings={"fusion": "qformer"}).fusion["name"] == "qformer"


@pytest.mark.parametrize(("text", "is_right"), [("train:\n", True), ("train: fast\n", False)])
def test_settings_below_what_is_no_mapping(tmp_path: Path, text: str, is_right: bool) -> None:
    path = recipe(tmp_path, text)
    if is_right:
        assert read(path, settings={"train.seed": 3}).train.seed == 3
        return
    [fault] = faults(recipe=path, settings={"train.seed": 3})
    assert fault.startswith("train")
    assert "'fast'" in fault


def test_broken_files(tmp_path: Path) -> None:
    assert "cannot be read" in faults(recipe=str(tmp_path / "absent.yaml"))[0]
    assert "not YAML" in faults(recipe=recipe(tmp_path, "train: {"))[0]
    assert "expected keys and values, got list" in faults(recipe=recipe(tmp_path, "- a"))[0]
    assert "stands more than once" in faults(recipe=recipe(tmp_path, "train: {lr: 1}\ntrain: {lr: 2}"))[0]
    assert "expected key=value" in faults("train.lr")[0]
