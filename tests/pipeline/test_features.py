"""Specs are identities: equal where the numbers are equal, and able to say where they differ."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avpipe.pipeline.features import Features, FeatureSpec, Outcome

from .toys import spec

keys = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
leaves = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=5)
mappings = st.dictionaries(
    keys,
    st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)),
    max_size=4,
)


def with_config(config: dict[str, Any]) -> FeatureSpec:
    return FeatureSpec(name="x", encoder="e", modality="video", dim=4, config=config)


@given(config=mappings)
def test_a_spec_comes_back_from_json(config: dict[str, Any]) -> None:
    there = with_config(config)
    back = FeatureSpec.from_json(json.loads(json.dumps({**there.to_json(), "fingerprint": there.fingerprint})))
    assert back == there
    assert back.fingerprint == there.fingerprint
    assert there.differences(back) == []


@given(one=mappings, two=mappings)
def test_two_specs_differ_in_a_field_or_are_the_same(one: dict[str, Any], two: dict[str, Any]) -> None:
    a, b = with_config(one), with_config(two)
    assert (a.fingerprint == b.fingerprint) == (a.differences(b) == [])


def with_weights(path: str, sha256: str, **more: Any) -> FeatureSpec:
    values: dict[str, Any] = {"name": "x", "encoder": "e", "modality": "video", "dim": 4, **more}
    return FeatureSpec(**values, config={"weights": path, "frames": 8}, weights={"id": path, "sha256": sha256})


def test_the_same_weights_elsewhere_are_the_same() -> None:
    here, there = with_weights("/data/a.pt", "1f"), with_weights("/home/b.pt", "1f")
    assert here.fingerprint == there.fingerprint
    assert here.differences(there) == []
    other = with_weights("/data/a.pt", "2e")
    assert here.fingerprint != other.fingerprint
    assert here.differences(other) == ['weights.sha256: "1f" against "2e"']
    unknown = FeatureSpec(name="x", encoder="e", modality="video", dim=4, config={"weights": "/a", "frames": 8})
    moved = FeatureSpec(name="x", encoder="e", modality="video", dim=4, config={"weights": "/b", "frames": 8})
    assert unknown.fingerprint != moved.fingerprint  # nothing says that they are the same


def test_the_same_tokenizer_elsewhere_is_the_same() -> None:
    def read_with(path: str, **known: str) -> FeatureSpec:
        one = with_weights("/data/a.pt", "1f", preprocessing=known)
        return replace(one, config={**one.config, "tokenizer": path})

    assert read_with("/a", tokenizer="77").fingerprint == read_with("org/b", tokenizer="77").fingerprint
    assert read_with("/a", tokenizer="77").fingerprint != read_with("/a", tokenizer="78").fingerprint
    assert read_with("/a").fingerprint != read_with("/b").fingerprint  # nothing says that they are the same


def test_of_a_text_that_is_read_its_fingerprint_counts() -> None:
    one = with_weights("a", "1f", source={"name": "words", "dim": 0, "fingerprint": "77"})
    renamed = with_weights("a", "1f", source={"name": "speech", "dim": 0, "fingerprint": "77"})
    other = with_weights("a", "1f", source={"name": "words", "dim": 0, "fingerprint": "78"})
    assert one.fingerprint == renamed.fingerprint
    assert one.differences(other) == ['source.fingerprint: "77" against "78"']


def test_the_fingerprint_does_not_move() -> None:
    """Features extracted last year must still be recognised."""
    assert spec(frames=8).fingerprint == "8b7ae9828637b0ac"


@pytest.mark.parametrize(("one", "two"), [(1, 1.0), (1, True), (0, False), ("1", 1), ({}, None), ([], {})])
def test_what_python_finds_equal_or_empty_is_told_apart(one: Any, two: Any) -> None:
    a, b = with_config({"x": one}), with_config({"x": two})
    assert a.fingerprint != b.fingerprint
    assert a.differences(b)


def test_differences_name_the_fields() -> None:
    one = spec("one", frames=8, crop={"size": 224, "mean": (0.5, 0.5)})
    two = spec("two", frames=16, crop={"size": 224, "mean": [0.5, 0.4]})
    assert one.differences(two) == ["config.crop.mean: [0.5, 0.5] against [0.5, 0.4]", "config.frames: 8 against 16"]
    assert one.differences(spec("one", frames=8)) == [
        "config.crop.mean: [0.5, 0.5] against (absent)",
        "config.crop.size: 224 against (absent)",
    ]


def test_the_name_is_no_part_of_the_identity() -> None:
    assert spec("one").fingerprint == spec("two").fingerprint


def test_a_spec_keeps_its_own_copy() -> None:
    config = {"mean": [0.5]}
    there = with_config(config)
    before = there.fingerprint
    config["mean"].append(0.1)
    assert there.fingerprint == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modality": "smell"}, "expected one of video, audio, text, got 'smell'"),
        ({"dim": 0}, "dim of 'x': expected at least 1, got 0"),
        ({"dtype": "float8"}, "expected one of float16, float32, text, got 'float8'"),
        ({"name": "../x"}, "name of a feature set: .*got '../x'"),
        ({"name": ""}, "got ''"),
        ({"config": {"a": np.float32(1)}}, "config of 'x': expected JSON-ready values, .*float32"),
        ({"clock": {"hop_seconds": float("nan")}}, "clock of 'x': expected JSON-ready"),
        ({"weights": None}, "weights of 'x': expected a mapping, got None"),
    ],
)
def test_a_bad_spec_is_refused(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"name": "x", "encoder": "e", "modality": "video", "dim": 4}
    FeatureSpec(**good)
    with pytest.raises(ValueError, match=message):
        FeatureSpec(**{**good, **change})


@pytest.mark.parametrize(("values", "message"), [({"name": "x"}, "not a feature spec: .*encoder"), ({"z": 1}, "'z'")])
def test_a_spec_with_missing_or_unknown_fields_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureSpec.from_json(values)


def test_features_check_their_shapes() -> None:
    times = np.zeros(3)
    assert repr(Features(data=np.zeros((3, 2), np.float16), pts_seconds=times)) == "Features(data=float16[3, 2])"
    with pytest.raises(ValueError, match=r"T >= 1, got \(0, 2\)"):
        Features(data=np.zeros((0, 2)), pts_seconds=np.zeros(0))
    with pytest.raises(ValueError, match=r"expected shape \(T, dim\) .*got \(3,\)"):
        Features(data=np.zeros(3), pts_seconds=times)
    with pytest.raises(ValueError, match=r"pts_seconds: expected shape \(4,\), got \(3,\)"):
        Features(data=np.zeros((4, 2)), pts_seconds=times)


outcomes = st.builds(
    Outcome,
    clip_id=st.text(min_size=1),
    status=st.just("failed"),
    error_type=st.text(min_size=1),
    error_message=st.text(),
    notes=st.lists(st.text(), max_size=2).map(tuple),
    seconds=st.floats(0, 1e5),
) | st.builds(Outcome, clip_id=st.text(min_size=1), status=st.just("ok"))


@given(outcome=outcomes)
def test_an_outcome_comes_back_from_json(outcome: Outcome) -> None:
    assert Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"clip_id": "a", "status": "good"}, "status of 'a': expected one of ok, failed, skipped, got 'good'"),
        ({"clip_id": "a", "status": "failed"}, "error_type of 'a': got '' with status 'failed'"),
        ({"clip_id": "a", "status": "ok", "error_type": "x"}, "got 'x' with status 'ok'"),
        ({"clip_id": "a"}, "not an outcome: .*status"),
        ({"clip_id": "a", "status": "ok", "reason": ""}, "not an outcome: .*reason"),
    ],
)
def test_a_bad_outcome_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Outcome.from_json(values)
