"""Extraction recipes: what they name exists, and what stands in them is understood."""

from __future__ import annotations

from pathlib import Path

import pytest

from avpipe.extract import recipe
from avpipe.extract.encoders import REGISTRY
from avpipe.pipeline.config import parse_component
from avpipe.pipeline.errors import ConfigError, FingerprintError, UsageError
from avpipe.pipeline.features import FeatureSpec

from .small import whisper as small_whisper

SYSTEMS = {"micap", "local_global", "avcap", "resnet_gpt2", "multimodal_blip2"}


def test_every_system_has_its_recipe() -> None:
    assert SYSTEMS | {"default", "baseline"} == set(recipe.names())


@pytest.mark.parametrize("name", recipe.names())
def test_every_setting_is_understood(name: str) -> None:
    for feature_set, settings in recipe.read(name).items():
        values = {**settings, "name": settings.get("encoder", feature_set)}
        values.pop("encoder", None)
        module, _ = parse_component(REGISTRY, values, f"{name}: {feature_set}")
        assert module in REGISTRY.names()


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_a_system_says_what_is_known_and_what_is_not(name: str) -> None:
    text = (Path(recipe.__file__).parent / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    for heading in ("# Known", "# Our choice", "# What caching changes"):
        assert heading in text


def test_a_typing_error_is_found() -> None:
    with pytest.raises(ConfigError, match="did you mean 'frames'"):
        parse_component(REGISTRY, {"name": "resnet50", "frame": 3}, "recipe.yaml")


def words() -> FeatureSpec:
    return FeatureSpec(name="words", encoder="toy", modality="text", dim=0, dtype="text")


@pytest.fixture
def bert(tmp_path: Path) -> dict[str, object]:
    from .small import bert_text

    return {"encoder": "bert_text", **bert_text.settings(tmp_path)}


def test_who_reads_says_what(bert: dict[str, object]) -> None:
    encoders = recipe.build({"vectors": {**bert, "of": "words"}}, {"words": words()})
    source = encoders["vectors"].spec.source
    assert (source["name"], source["fingerprint"]) == ("words", words().fingerprint)
    other = FeatureSpec(name="words", encoder="other", modality="text", dim=0, dtype="text")
    changed = recipe.build({"vectors": {**bert, "of": "words"}}, {"words": other})
    assert changed["vectors"].spec.fingerprint != encoders["vectors"].spec.fingerprint


def test_text_that_is_nowhere_is_asked_for(bert: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"vectors reads the text of 'words': no such feature set.*none"):
        recipe.build({"vectors": {**bert, "of": "words"}})
    with pytest.raises(UsageError, match=r"text of 'grid': it holds no text.*--encoders grid,vectors"):
        recipe.build({"vectors": {**bert, "of": "grid"}, "grid": {"encoder": "colour_grid"}})


def test_what_is_read_is_built_again_with_who_reads_it(tmp_path: Path, bert: dict[str, object]) -> None:
    speech = {"encoder": "whisper", **small_whisper.settings(tmp_path)}
    encoders = recipe.build({"speech": speech, "vectors": {**bert, "of": "speech"}})
    again = recipe.rebuild({"vectors": encoders["vectors"].spec})
    assert set(again) == {"speech", "vectors"}
    assert again["vectors"].spec == encoders["vectors"].spec
    changed = FeatureSpec.from_json({**encoders["vectors"].spec.to_json(), "libraries": {"av": "0.1"}})
    with pytest.raises(FingerprintError, match=r'libraries.av: "0.1" against'):
        recipe.rebuild({"vectors": changed})
