"""What a training run is told: recipes, settings and overrides, with all faults at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from avpipe.pipeline.errors import ConfigError, UnknownNameError
from avpipe.train import decoders, fusions, objectives
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
    for name, settings in config.objectives.items():
        assert settings.keys() == objectives.REGISTRY.load(name).Config.model_fields.keys()
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


@pytest.mark.parametrize(("said", "meant"), [("yes", "yes"), ("no", "no"), ("auto", "auto")])
def test_yes_and_no_are_words_though_yaml_has_them_for_true_and_false(said: str, meant: str) -> None:
    assert read("default", [f"train.cache_features={said}"]).train.cache_features == meant


def test_nothing_behind_the_sign_is_an_empty_text() -> None:
    config = read("avcap", ["fusion.initialise_projection_from="])
    assert config.fusion["initialise_projection_from"] == ""
    assert config.fusion["initialise_from"]  # as the recipe says
    assert faults("train.lr=") == ["train.lr: input should be a valid number, got None"]


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


# -- objectives --------------------------------------------------------------------------------------------------------

CROSS_ENTROPY = {"weight": 1.0, "label_smoothing": 0.0, "form": "standard"}


def test_an_objective_is_laid_beside_the_cross_entropy() -> None:
    assert read("default").objectives == {"cross_entropy": CROSS_ENTROPY}
    found = read("default", ["objectives.contrastive.weight=0.5"]).objectives
    assert found == {"cross_entropy": CROSS_ENTROPY, "contrastive": {"weight": 0.5, "temperature": 0.07}}
    smoothed = read("default", ["objectives.cross_entropy.label_smoothing=0.1"]).objectives
    assert smoothed == {"cross_entropy": {**CROSS_ENTROPY, "label_smoothing": 0.1}}


def test_the_order_of_objectives_does_not_hang_on_how_they_were_written(tmp_path: Path) -> None:
    path = recipe(tmp_path, "objectives: {modality_balanced: {alpha: 1}, contrastive: , cross_entropy: {weight: 2}}")
    found = read(path)
    assert list(found.objectives) == ["cross_entropy", "contrastive", "modality_balanced"]
    assert found.objectives["contrastive"]["weight"] == 1  # nothing behind the name: its defaults
    assert found.objectives["modality_balanced"]["alpha"] == 1
    assert found == read(path, ["objectives.contrastive.weight=1"])


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        (
            "objectives=contrastive",
            "objectives: expected settings by name, such as {contrastive: {weight: 0.5}}, got '",
        ),
        ("objectives=[contrastive]", "objectives: expected settings by name"),
        ("objectives.contrastive=0.5", "objectives.contrastive: expected settings, such as {weight: 0.5}, got 0.5"),
        (
            "objectives.contrastive.wieght=2",
            "objectives.contrastive.wieght: unknown key (did you mean 'weight'?); known:",
        ),
        (
            "objectives.contrastive.weight=-1",
            "objectives.contrastive.weight: input should be greater than or equal to 0",
        ),
        ("objectives.cross_entropy.weight=0", "objectives: every weight is 0, nothing would be learned; known: contr"),
        (
            "objectives.g_blend.every=1",
            "objectives.g_blend: its sum has the loss of cross_entropy already: expected "
            "objectives.cross_entropy.weight=0, got 1.0",
        ),
    ],
)
def test_faults_of_objectives(override: str, fault: str) -> None:
    found = faults(override, "train.lr=-1")
    assert len(found) == 2  # all at once
    assert found[0].startswith(fault)
    assert found[1].startswith("train.lr")


def test_g_blend_is_right_without_the_cross_entropy() -> None:
    found = read("default", ["objectives.g_blend.every=1", "objectives.cross_entropy.weight=0"]).objectives
    assert found["g_blend"]["every"] == 1


def test_an_unknown_objective() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown objective 'contrast' \(did you mean 'contrastive'\?\)"):
        read("default", ["objectives.contrast.weight=1"])


def test_label_smoothing_where_it_stood_before(tmp_path: Path) -> None:
    path = recipe(tmp_path, "train: {label_smoothing: 0.1}")
    assert read(path).objectives["cross_entropy"]["label_smoothing"] == 0.1
    assert read(path) == read(path, ["objectives.cross_entropy.label_smoothing=0.1"])
    [fault] = faults("objectives.cross_entropy.label_smoothing=0.2", recipe=path)
    assert fault == (
        "train.label_smoothing: expected what objectives.cross_entropy.label_smoothing says, 0.2, got 0.1; leave it out"
    )
    [fault] = faults("train.label_smoothing=2")
    assert fault == "objectives.cross_entropy.label_smoothing: input should be less than 1, got 2"


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
