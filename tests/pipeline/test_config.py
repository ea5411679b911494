"""Configurations: all faults at once, unknown keys with the nearest known one, dotted overrides."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from avpipe.pipeline.config import Config, override, parse, parse_component, read_yaml, write_yaml
from avpipe.pipeline.errors import ConfigError, UnknownNameError
from avpipe.pipeline.registry import Registry


class Optimizer(Config):
    lr: float = 1e-3
    steps: int = 10


class Train(Config):
    seed: int
    optimizer: Optimizer = Optimizer()
    second: Optimizer | None = None
    many: tuple[Optimizer, ...] = ()
    named: Mapping[str, Optimizer] = Field(default_factory=dict)


def faults_of(values: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(Train, values, "train.yaml")
    assert caught.value.source == "train.yaml"
    return caught.value.faults


def test_values_are_checked_and_defaults_filled_in() -> None:
    config = parse(Train, {"seed": 3, "optimizer": {"lr": 1}}, "train.yaml")
    assert (config.seed, config.optimizer.lr, config.optimizer.steps) == (3, 1.0, 10)


def test_all_faults_are_told_at_once() -> None:
    faults = faults_of({"sed": 3, "optimizer": {"lr": "fast", "step": 3}})
    assert len(faults) == 4
    assert "seed: missing" in faults
    assert "sed: unknown key (did you mean 'seed'?); known: seed, optimizer, second, many, named" in faults
    assert "optimizer.step: unknown key (did you mean 'steps'?); known: lr, steps" in faults
    assert any(fault.startswith("optimizer.lr: ") and fault.endswith("got 'fast'") for fault in faults)


@pytest.mark.parametrize(
    ("key", "value"), [("second", {"stepz": 1}), ("many", [{"stepz": 1}]), ("named", {"a": {"stepz": 1}})]
)
def test_unknown_keys_are_answered_in_every_kind_of_nesting(key: str, value: Any) -> None:
    (fault,) = faults_of({"seed": 1, key: value})
    assert fault.endswith("stepz: unknown key (did you mean 'steps'?); known: lr, steps")


# --- overrides ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.lr=1e-4", {"train": {"lr": 1e-4, "seed": 1}, "fusion": "qformer"}),
        ("train.lr = 1e-4", {"train": {"lr": 1e-4, "seed": 1}, "fusion": "qformer"}),
        ("train.new-key=[1, two]", {"train": {"lr": 1, "seed": 1, "new_key": [1, "two"]}, "fusion": "qformer"}),
        ("fusion=concat", {"train": {"lr": 1, "seed": 1}, "fusion": "concat"}),
        ("fusion.layers=6", {"train": {"lr": 1, "seed": 1}, "fusion": {"name": "qformer", "layers": 6}}),
        ("a.b.c=", {"train": {"lr": 1, "seed": 1}, "fusion": "qformer", "a": {"b": {"c": None}}}),
    ],
)
def test_an_override_reaches_any_key(text: str, expected: dict[str, Any]) -> None:
    values = {"train": {"lr": 1, "seed": 1}, "fusion": "qformer"}
    assert override(values, [text]) == expected
    assert values == {"train": {"lr": 1, "seed": 1}, "fusion": "qformer"}


def test_another_component_drops_the_keys_of_the_former() -> None:
    values = {"fusion": {"name": "qformer", "layers": 6}}
    assert override(values, ["fusion=concat"]) == {"fusion": {"name": "concat"}}
    assert override(values, ["fusion=qformer"]) == values
    assert override(values, ["fusion=concat", "fusion.width=3"]) == {"fusion": {"name": "concat", "width": 3}}


def test_all_bad_overrides_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        override({"train": {"lr": 1}}, ["train.lr", "=3", "a..b=1", "train.lr.x=1", "a=[1", "good=1"])
    assert len(caught.value.faults) == 5
    assert "'train.lr': expected key=value, for example train.lr=1e-4" in caught.value.faults
    assert "'train.lr.x=1': train.lr is a plain value (1), it has no key 'x'" in caught.value.faults


# --- YAML ---

tricky = st.sampled_from(["1e-4", "yes", "null", "0x1f", "2020-01-01", "a: b", "- a", "#"])
texts = st.text(st.characters(codec="utf-8"), max_size=12) | tricky
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
trees = st.dictionaries(
    texts, st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))
)


@given(values=trees)
def test_yaml_comes_back_as_it_was_written(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "values.yaml"
    path.write_bytes(write_yaml(values).encode("utf-8"))
    assert read_yaml(path) == values


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("-2E5", -2e5), (".5e1", 5.0), ("3", 3), ("e-4", "e-4")])
def test_a_learning_rate_is_a_number(tmp_path: Path, text: str, value: Any) -> None:
    (tmp_path / "a.yaml").write_text(f"lr: {text}")
    assert read_yaml(tmp_path / "a.yaml") == {"lr": value}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "not YAML"),
        (b"a: \xff", "cannot be read"),
        (b"- 1\n- 2", "expected keys and values, got list"),
        (b"", "expected keys and values, got NoneType"),
        (b"train:\n  lr: 1\n  lr: 2\n", "the key 'lr' stands more than once"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"a\.yaml: 1 fault\n.*{message}"):
        read_yaml(tmp_path / "a.yaml")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: 1 fault\n.*cannot be read: .*No such file"):
        read_yaml(tmp_path / "none.yaml")


# --- components ---


@pytest.fixture
def fusions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    (tmp_path / "toy_fusions").mkdir()
    (tmp_path / "toy_fusions" / "__init__.py").touch()
    (tmp_path / "toy_fusions" / "gate.py").write_text(
        "from avpipe.pipeline.config import Config as Base\nclass Config(Base):\n    layers: int = 2\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Registry("fusion", "toy_fusions")
    for name in [name for name in sys.modules if name.startswith("toy_fusions")]:
        del sys.modules[name]


def test_a_component_is_a_name_or_a_mapping(fusions: Registry) -> None:
    for value, layers in (("gate", 2), ({"name": "gate", "layers": 4}, 4)):
        name, config = parse_component(fusions, value, "recipe.yaml")
        assert (name, config.model_dump()) == ("gate", {"layers": layers})


def test_a_bad_component_is_refused(fusions: Registry) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown fusion 'gates'.*known: gate"):
        parse_component(fusions, "gates", "recipe.yaml")
    with pytest.raises(ConfigError, match=r"recipe.yaml: 1 fault\n  - fusion.name: missing; known: gate"):
        parse_component(fusions, {"layers": 4}, "recipe.yaml")
    with pytest.raises(ConfigError, match=r"recipe.yaml: fusion 'gate': 1 fault\n.*did you mean 'layers'"):
        parse_component(fusions, {"name": "gate", "layer": 4}, "recipe.yaml")
