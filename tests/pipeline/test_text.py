"""Text as features: segments, their shards, and views of rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avpipe.pipeline.errors import ClipError, CorruptShardError, SkipClip, StoreError
from avpipe.pipeline.features import Features, FeatureSpec, Segment, Segments
from avpipe.pipeline.shards import Mark, ShardPlan, plan, verify, write_spec
from avpipe.pipeline.store import FeatureSet, ShardWriter, TextReader, open_reader, open_writer

from . import toys

SPEC = FeatureSpec(name="words", encoder="toy", modality="text", dim=0, dtype="text")
HELLO = Segments((Segment(start_seconds=0.5, stop_seconds=1.25, text="hello", score=-0.5, flags={"language": "en"}),))


def write(folder: Path, texts: dict[str, Segments | ClipError], format: str = "hdf5") -> Mark:
    """One shard."""
    write_spec(folder, SPEC)
    (planned,) = plan(list(texts), len(texts))
    with ShardWriter(folder, planned, SPEC, format) as shard:
        for clip_id, text in texts.items():
            if isinstance(text, ClipError):
                shard.fail(clip_id, text)
            else:
                shard.add(clip_id, text)
    return shard.mark


def test_a_clip_has_its_text_or_a_reason(tmp_path: Path) -> None:
    mark = write(tmp_path, {"a": HELLO, "b": Segments(), "c": SkipClip("no_audio", "no audio stream")})
    assert (mark.file, mark.counts) == ("00000.jsonl", {"ok": 2, "failed": 0, "skipped": 1})
    texts = FeatureSet(tmp_path)
    assert texts.clip_ids == ["a", "b"]
    assert texts.segments("a") == HELLO
    assert texts.segments("b") == Segments()
    assert texts.segments("b").text == ""
    with pytest.raises(StoreError, match=r"no features of clip 'c': skipped \(no_audio\)"):
        texts.segments("c")
    assert verify(tmp_path) == []


def test_lines_can_be_read_by_anybody(tmp_path: Path) -> None:
    write(tmp_path, {"a": HELLO})
    head, line = (tmp_path / "00000.jsonl").read_text(encoding="ascii").splitlines()
    assert json.loads(head)["avpipe"]["fingerprint"] == SPEC.fingerprint
    assert json.loads(line) == {
        "clip_id": "a",
        "segments": [
            {"start_seconds": 0.5, "stop_seconds": 1.25, "text": "hello", "score": -0.5, "flags": {"language": "en"}}
        ],
    }


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).map(str.strip)
SEGMENTS = st.lists(
    st.builds(
        lambda start, length, text, score: Segment(
            start_seconds=start, stop_seconds=start + length, text=text, score=score
        ),
        st.floats(0, 1e4),
        st.floats(0, 1e4),
        TEXTS,
        st.none() | st.floats(-50, 0),
    ),
    max_size=4,
).map(lambda items: Segments(tuple(sorted(items, key=lambda segment: segment.start_seconds))))


@settings(deadline=None, max_examples=60)
@given(texts=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), SEGMENTS, max_size=4))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, texts: dict[str, Segments]) -> None:
    """Also with line ends of any kind within, which are not ends of lines here."""
    path = tmp_path_factory.mktemp("text") / "00000.jsonl"
    with open_writer("hdf5", path, SPEC) as writer:
        for clip_id, segments in texts.items():
            writer.add(clip_id, segments)  # type: ignore[arg-type]
    reader = open_reader(path)
    assert isinstance(reader, TextReader)
    assert reader.clip_ids == tuple(texts)
    assert {clip_id: reader.segments(clip_id) for clip_id in texts} == texts
    assert reader.spec == SPEC


def test_the_bytes_do_not_depend_on_the_order_of_coming_nor_on_the_format(tmp_path: Path) -> None:
    clip_ids = ["a", "b", "c"]
    for name, order, format in (("one", clip_ids, "hdf5"), ("two", clip_ids[::-1], "webdataset")):
        with ShardWriter(tmp_path / name, ShardPlan(0, ("a", "b", "c")), SPEC, format) as shard:
            for clip_id in order:
                shard.add(clip_id, HELLO)
    assert (tmp_path / "one/00000.jsonl").read_bytes() == (tmp_path / "two/00000.jsonl").read_bytes()


@pytest.mark.parametrize("content", ["", "{}\n", "not json\n", '{"avpipe": {}}\n', "\u00e9"])
def test_what_is_no_shard_of_text_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "00000.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(CorruptShardError, match="not a whole shard of text"):
        open_reader(path)


def test_a_shard_that_was_cut_is_found(tmp_path: Path) -> None:
    write(tmp_path, {"a": HELLO, "b": HELLO})
    path = tmp_path / "00000.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CorruptShardError, match="cut short"):
        FeatureSet(tmp_path)
    with pytest.raises(CorruptShardError, match="not a whole shard of text"):
        open_reader(path)


def test_a_disk_that_is_full_leaves_the_former_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"a": HELLO})
    before = toys.contents(tmp_path)

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(StoreError, match="the disk is full"):
            write(tmp_path, {"a": Segments()})
    assert toys.contents(tmp_path) == before


def test_text_and_rows_are_not_mixed_up(tmp_path: Path) -> None:
    rows = Features(data=np.ones((2, 5), np.float16), pts_seconds=np.arange(2.0))
    with (
        pytest.raises(TypeError, match="'words' holds text, got Features of 'a'"),
        ShardWriter(tmp_path / "text", ShardPlan(0, ("a",)), SPEC) as shard,
    ):
        shard.add("a", rows)
    with (
        pytest.raises(TypeError, match="'toy' holds float16, got Segments of 'a'"),
        ShardWriter(tmp_path / "rows", ShardPlan(0, ("a",)), toys.spec()) as shard,
    ):
        shard.add("a", HELLO)
    write(tmp_path / "words", {"a": HELLO})
    with pytest.raises(StoreError, match="holds text, no rows of numbers"):
        FeatureSet(tmp_path / "words").read("a")
    write_spec(tmp_path / "numbers", toys.spec())
    with ShardWriter(tmp_path / "numbers", ShardPlan(0, ("a",)), toys.spec()) as shard:
        shard.add("a", rows)
    with pytest.raises(StoreError, match="holds rows of float16, no text"):
        FeatureSet(tmp_path / "numbers").segments("a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 3}, "expected dim 0, modality 'text' and one view with dtype 'text'"),
        ({"modality": "audio"}, "expected dim 0, modality 'text'"),
        ({"views": 2}, "expected dim 0, modality 'text' and one view"),
        ({"dtype": "float16"}, "expected at least 1, got 0"),
    ],
)
def test_a_bad_spec_of_text_is_refused(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"name": "x", "encoder": "e", "modality": "text", "dim": 0, "dtype": "text"}
    FeatureSpec(**good)
    with pytest.raises(ValueError, match=message):
        FeatureSpec(**{**good, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start_seconds": -0.1}, "expected 0 <= start_seconds <= stop_seconds, got -0.1"),
        ({"stop_seconds": 0.5}, "got 1.0, 0.5"),
        ({"stop_seconds": float("inf")}, "got 1.0, inf"),
        ({"start_seconds": float("nan")}, "got nan"),
        ({"text": " hello"}, "no white space around it, got ' hello'"),
        ({"flags": {"a": object()}}, "flags: expected JSON-ready values"),
    ],
)
def test_a_bad_segment_is_refused(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"start_seconds": 1.0, "stop_seconds": 2.0, "text": "hello"}
    Segment(**good)
    with pytest.raises(ValueError, match=message):
        Segment(**{**good, **change})


def test_segments_have_an_order_and_one_text() -> None:
    first, second = (Segment(start_seconds=s, stop_seconds=s + 1, text=t) for s, t in ((0.0, "a"), (1.0, "b")))
    empty = Segment(start_seconds=0.5, stop_seconds=0.5, text="")
    assert Segments((first, empty, second)).text == "a b"
    with pytest.raises(ValueError, match="expected ascending start_seconds"):
        Segments((second, first))


def viewed(views: int) -> FeatureSpec:
    return FeatureSpec(name="toy", encoder="toy", modality="video", dim=5, views=views)


@pytest.mark.parametrize("format", ["hdf5", "webdataset"])
def test_one_view_is_read_without_the_others(tmp_path: Path, format: str) -> None:
    rows = Features(data=np.arange(60, dtype=np.float16).reshape(12, 5), pts_seconds=np.tile(np.arange(4.0), 3))
    write_spec(tmp_path, viewed(3))
    with ShardWriter(tmp_path, ShardPlan(0, ("a",)), viewed(3), format) as shard:
        shard.add("a", rows)
    features = FeatureSet(tmp_path)
    assert features.num_rows("a") == 4
    for view in range(3):
        found = features.read("a", view)
        np.testing.assert_array_equal(found.data, rows.data[4 * view : 4 * view + 4])
        np.testing.assert_array_equal(found.pts_seconds, np.arange(4.0))
    np.testing.assert_array_equal(features.read("a").data, rows.data[:4])
    for view in (3, -1):
        with pytest.raises(StoreError, match=f"holds 3 views of each clip; there is no view {view}"):
            features.read("a", view)


def test_views_have_equally_many_rows(tmp_path: Path) -> None:
    rows = Features(data=np.ones((4, 5), np.float16), pts_seconds=np.arange(4.0))
    with (
        pytest.raises(ValueError, match="equally many rows for each of 3 views, got 4 rows"),
        ShardWriter(tmp_path, ShardPlan(0, ("a",)), viewed(3)) as shard,
    ):
        shard.add("a", rows)
    with pytest.raises(ValueError, match="views of 'toy': expected at least 1, got 0"):
        viewed(0)


def test_one_view_and_no_source_are_no_part_of_the_identity() -> None:
    assert "views" not in viewed(1).to_json()
    assert "source" not in viewed(1).to_json()
    assert viewed(2).fingerprint != viewed(1).fingerprint
    assert FeatureSpec.from_json(viewed(2).to_json()) == viewed(2)
