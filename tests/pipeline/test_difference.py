"""How two feature sets differ, clip by clip."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avpipe.pipeline.difference import compare
from avpipe.pipeline.errors import ClipError, UsageError
from avpipe.pipeline.features import Features, FeatureSpec, Segment, Segments
from avpipe.pipeline.shards import plan, write_spec
from avpipe.pipeline.store import FeatureSet, ShardWriter

from .toys import CLIP_IDS, features, spec, write_shard

WORDS = FeatureSpec(name="words", encoder="toy", modality="text", dim=0, dtype="text")


def write(folder: Path, clips: Mapping[str, Any], own: FeatureSpec | None = None, per_shard: int = 3) -> FeatureSet:
    """A feature set of these arrays, rows a second apart; ``None``: the clip failed."""
    own = own or spec(dtype="float32", dim=2)
    write_spec(folder, own)
    for planned in plan(list(clips), per_shard):
        with ShardWriter(folder, planned, own) as shard:
            for clip_id in planned.clip_ids:
                found = clips[clip_id]
                if found is None:
                    shard.fail(clip_id, ClipError("decode", "broken"))
                elif isinstance(found, Segments):
                    shard.add(clip_id, found)
                else:
                    data = np.array(found, np.float32)
                    shard.add(clip_id, Features(data=data, pts_seconds=np.arange(float(len(data)))))
    return FeatureSet(folder)


def test_the_same_features_in_another_format_are_equal(tmp_path: Path) -> None:
    for format, per_shard in (("hdf5", 5), ("webdataset", 7)):
        write_spec(tmp_path / format, spec())
        for planned in plan(CLIP_IDS, per_shard):
            write_shard(tmp_path / format, planned, format)
    seen: list[int] = []
    found = compare(FeatureSet(tmp_path / "hdf5"), FeatureSet(tmp_path / "webdataset"), on_clip=lambda: seen.append(1))
    assert (found.equal, len(found.clips), len(seen)) == (46, 46, 46)
    assert (found.spec, found.only_first, found.only_second) == ((), (), ())
    assert (found.mean_cosine, found.min_cosine, found.max_abs) == (1.0, 1.0, 0.0)
    assert found.is_within(1.0)


def test_differences_have_their_numbers_and_the_worst_come_first(tmp_path: Path) -> None:
    first = {"same": [[1, 2], [3, 4]], "turned": [[1, 0], [0, 1]], "near": [[1, 0], [1, 1]], "short": [[1, 1]]}
    second = {"same": [[1, 2], [3, 4]], "turned": [[1, 0], [1, 0]], "near": [[1, 0], [1, 1.01]], "short": [[1, 1]] * 3}
    found = compare(write(tmp_path / "a", first), write(tmp_path / "b", second))
    assert [clip.clip_id for clip in found.clips] == ["short", "turned", "near", "same"]
    by_id = {clip.clip_id: clip for clip in found.clips}
    assert by_id["short"].shapes == ((1, 2), (3, 2))
    assert by_id["short"].min_cosine is None
    assert (by_id["turned"].mean_cosine, by_id["turned"].min_cosine, by_id["turned"].max_abs) == (0.5, 0.0, 1.0)
    expected = (1 + 1.01) / (np.sqrt(2) * np.sqrt(1 + 1.01**2))
    assert by_id["near"].min_cosine == pytest.approx(expected, abs=1e-7)
    assert by_id["near"].max_abs == pytest.approx(0.01, abs=1e-6)
    assert by_id["same"].is_equal
    assert (found.equal, found.other_shapes, found.min_cosine) == (1, 1, 0.0)
    assert not found.is_within(0.0)  # the shapes differ


def test_clips_of_many_rows_are_compared_to_their_end(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((2500, 2))
    for changed in (1023, 1024, 2499):
        other = rows.copy()
        other[changed] *= -1
        first = write(tmp_path / f"a{changed}", {"c": rows})
        (clip,) = compare(first, write(tmp_path / f"b{changed}", {"c": other})).clips
        assert clip.min_cosine == pytest.approx(-1)
        assert clip.mean_cosine == pytest.approx(1 - 2 / 2500)
        assert clip.max_abs == pytest.approx(2 * np.abs(rows[changed]).max(), rel=1e-6)


def test_zero_rows_are_equal_to_zero_rows_alone(tmp_path: Path) -> None:
    found = compare(write(tmp_path / "a", {"c": [[0, 0], [0, 0]]}), write(tmp_path / "b", {"c": [[0, 0], [1, 0]]}))
    assert (found.clips[0].mean_cosine, found.clips[0].min_cosine) == (0.5, 0.0)


def test_times_count(tmp_path: Path) -> None:
    for name, shift in (("a", 0.0), ("b", 0.25)):
        write_spec(tmp_path / name, spec())
        with ShardWriter(tmp_path / name, plan(["c"], 1)[0], spec()) as shard:
            own = features("c")
            shard.add("c", Features(data=own.data, pts_seconds=own.pts_seconds + shift))
    (clip,) = compare(FeatureSet(tmp_path / "a"), FeatureSet(tmp_path / "b")).clips
    assert (clip.min_cosine, clip.max_abs, clip.max_seconds) == (1.0, 0.0, pytest.approx(0.25))
    assert not clip.is_equal


def test_clips_in_one_alone_and_specs_are_told(tmp_path: Path) -> None:
    row = [[1.0, 1.0]]
    first = write(tmp_path / "a", {"x": row, "y": row, "z": None})
    second = write(tmp_path / "b", {"x": row, "y": None, "w": row}, spec(dtype="float16", dim=2, frames=8))
    found = compare(first, second)
    assert (found.only_first, found.only_second) == (("y",), ("w",))
    assert found.spec == ("config.frames: (absent) against 8", 'dtype: "float32" against "float16"')
    assert not found.is_within(0.9)
    assert found.to_json()["only_first"] == ["y"]


def test_all_views_are_compared(tmp_path: Path) -> None:
    own = FeatureSpec(name="toy", encoder="toy", modality="video", dim=2, dtype="float32", views=2)
    first = write(tmp_path / "a", {"c": [[1, 0], [1, 0]]}, own)
    second = write(tmp_path / "b", {"c": [[1, 0], [0, 1]]}, own)
    assert compare(first, second).min_cosine == 0.0


def test_texts_are_compared(tmp_path: Path) -> None:
    def said(*texts: str, stop: float = 1.0) -> Segments:
        return Segments(tuple(Segment(start_seconds=0, stop_seconds=stop, text=text) for text in texts))

    first = write(tmp_path / "a", {"a": said("hello"), "b": said("good"), "c": said("hi", "you"), "d": said()}, WORDS)
    second = write(
        tmp_path / "b", {"a": said("hello"), "b": said("bad"), "c": said("hi you"), "d": said()}, WORDS, per_shard=2
    )
    found = compare(first, second)
    assert (found.equal, found.other_texts, found.other_shapes) == (2, 1, 1)
    assert found.min_cosine is None
    by_id = {clip.clip_id: clip for clip in found.clips}
    assert by_id["b"].texts == ("good", "bad")
    assert not found.is_within(0.9)
    later = write(tmp_path / "c", {"a": said("hello", stop=1.5)}, WORDS)
    assert {clip.clip_id: clip.max_seconds for clip in compare(first, later).clips} == {"a": 0.5}


def test_text_and_rows_are_not_compared(tmp_path: Path) -> None:
    rows, text = write(tmp_path / "a", {"c": [[1, 0]]}), write(tmp_path / "b", {"c": Segments()}, WORDS)
    for pair in ((rows, text), (text, rows)):
        with pytest.raises(UsageError, match=r"b holds text, .*a rows of float32: there is nothing to compare"):
            compare(*pair)


def test_nothing_in_common(tmp_path: Path) -> None:
    found = compare(write(tmp_path / "a", {"a": [[1, 0]]}), write(tmp_path / "b", {"b": [[1, 0]]}))
    assert (found.clips, found.mean_cosine, found.min_cosine, found.max_abs) == ((), None, None, None)
    assert not found.is_within(0.0)
