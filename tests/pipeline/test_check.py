"""What is wrong with a feature set, and what is odd about it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from avpipe.pipeline import shards
from avpipe.pipeline.check import Report, check, norm_outliers
from avpipe.pipeline.errors import ClipError
from avpipe.pipeline.features import Features, FeatureSpec, Segment, Segments
from avpipe.pipeline.files import sha256
from avpipe.pipeline.shards import Mark, ShardPlan, plan, write_spec
from avpipe.pipeline.store import FeatureSet, ShardWriter

from .toys import CLIP_IDS, spec, write_shard

FORMATS = pytest.mark.parametrize("format", ["hdf5", "webdataset"])
PLANS = plan(CLIP_IDS, 5)


def fill(folder: Path, plans: Sequence[ShardPlan] = PLANS, format: str = "hdf5") -> Path:
    write_spec(folder, spec())
    for planned in plans:
        write_shard(folder, planned, format)
    return folder


def write(
    folder: Path,
    clips: Mapping[str, tuple[Any, Any]],
    *,
    format: str = "hdf5",
    of: FeatureSpec | None = None,
    clips_per_shard: int = 5,
) -> list[ShardPlan]:
    """A feature set with these rows and times."""
    own = of or spec(dtype="float32", dim=3)
    write_spec(folder, own)
    plans = plan(list(clips), clips_per_shard)
    for planned in plans:
        with ShardWriter(folder, planned, own, format) as shard:
            for clip_id in planned.clip_ids:
                data, times = clips[clip_id]
                shard.add(clip_id, Features(data=np.array(data, np.float32), pts_seconds=np.array(times, np.float64)))
    return plans


def usual(count: int, rows: int = 4) -> dict[str, tuple[Any, Any]]:
    """Clips as one expects them: rows of norm about 1 with ascending times."""
    rng = np.random.default_rng(0)
    clips = {}
    for i in range(count):
        data = rng.standard_normal((rows, 3))
        data /= np.linalg.norm(data, axis=1, keepdims=True) * rng.uniform(0.9, 1.1, (rows, 1))
        clips[f"u{i:02d}"] = data, np.arange(rows) + 0.5
    return clips


def oddities(report: Report) -> dict[str, str]:
    """Kinds by clip."""
    assert report.is_whole, report.problems
    return {odd.clip_id: odd.kind for odd in report.oddities}


# -- quick: against the manifest ---------------------------------------------------------------------------------------


@FORMATS
@pytest.mark.parametrize("deep", [False, True])
def test_a_whole_set_is_whole(tmp_path: Path, format: str, deep: bool) -> None:
    done = []
    report = check(fill(tmp_path / "toy", format=format), PLANS, deep=deep, on_shard=lambda: done.append(1))
    assert report.is_whole
    assert (report.expected, report.counts, report.missing) == (60, {"ok": 46, "failed": 6, "skipped": 8}, 0)
    assert len(done) == (12 if deep else 0)
    assert ("rows" in report.facts) == deep
    assert report.to_json()["whole"]


def test_what_is_not_extracted_yet_is_counted_and_named(tmp_path: Path) -> None:
    folder = fill(tmp_path / "toy", [*PLANS[:3], PLANS[5], *PLANS[8:]])
    report = check(folder, PLANS)
    assert [str(problem) for problem in report.problems] == [
        "00003 to 00004: 2 of 12 shards, with 10 clips: not extracted yet; `avpipe extract` goes on",
        "00006 to 00007: 2 of 12 shards, with 10 clips: not extracted yet; `avpipe extract` goes on",
    ]
    assert report.missing == 20
    assert report.expected == report.missing + sum(report.counts.values())


def test_a_set_without_any_shard(tmp_path: Path) -> None:
    write_spec(tmp_path / "toy", spec())
    report = check(tmp_path / "toy", PLANS, deep=True)
    assert [problem.file for problem in report.problems] == ["00000 to 00011"]
    assert report.missing == 60


def test_each_fault_is_accused_once_and_its_clips_do_not_count(tmp_path: Path) -> None:
    folder = fill(tmp_path / "toy")
    os.truncate(folder / "00001.h5", 100)
    (folder / "00002.json").write_text("{", encoding="utf-8")
    (folder / "00003.json").unlink()
    (folder / "00004.h5").unlink()
    (folder / "00005.json").unlink()
    (folder / "00005.h5").unlink()
    report = check(folder, PLANS, deep=True)
    assert [problem.file for problem in report.problems] == [
        "00001.h5",
        "00002.h5",
        "00002.json",
        "00003.h5",
        "00004.h5",
        "00005",
    ]
    assert report.missing == 25
    assert sum(report.counts.values()) == 35


def test_a_manifest_that_changed_is_told(tmp_path: Path) -> None:
    folder = fill(tmp_path / "toy", PLANS[:2])
    (problem,) = check(folder, plan(CLIP_IDS[:5], 5)).problems
    assert str(problem).startswith("00001.h5: was made for other clips (5; the manifest now has no such shard there)")
    first, *_ = check(folder, plan(CLIP_IDS[1:11], 5)).problems
    assert "was made for other clips (5; the manifest now has 5 clips there)" in first.reason


# -- deep: what is wrong -----------------------------------------------------------------------------------------------


@FORMATS
def test_a_flipped_byte_is_found_by_reading_alone(tmp_path: Path, format: str) -> None:
    folder = fill(tmp_path / "toy", format=format)
    shard = next(path for path in folder.glob("00007.*") if path.suffix != ".json")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert check(folder, PLANS).is_whole
    report = check(folder, PLANS, deep=True)
    assert [problem.file for problem in report.problems] == [shard.name]
    assert "sha256 differs" in report.problems[0].reason
    assert report.missing == 5


def vouch_for(folder: Path, name: str, **change: object) -> None:
    """Write the mark of a shard anew, as a bug of the writer would have it: it fits whatever the file holds now."""
    mark = Mark.read(folder / f"{name}.json")
    file = folder / mark.file
    fields = {"fingerprint": mark.fingerprint, "outcomes": mark.outcomes, **change}
    Mark(file=mark.file, bytes=file.stat().st_size, sha256=sha256(file), **fields).write(folder)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dataset", "value", "reason"),
    [
        ("data", np.nan, r"NaN or infinity in 1 of \d+ rows"),
        ("data", np.inf, r"NaN or infinity in 1 of \d+ rows"),
        ("pts_seconds", np.nan, "NaN or infinity in the times of its rows"),
        ("offsets", 10**6, "not a whole HDF5 shard"),
    ],
)
def test_numbers_that_are_none_are_found(tmp_path: Path, dataset: str, value: float, reason: str) -> None:
    folder = fill(tmp_path / "toy")
    with h5py.File(folder / "00002.h5", "r+") as file:
        file[dataset][-1] = value if dataset != "data" else [value, 0, 0, 0, 0]
    vouch_for(folder, "00002")
    assert check(folder, PLANS).is_whole
    (problem,) = check(folder, PLANS, deep=True).problems
    assert problem.file == "00002.h5"
    assert re.search(reason, problem.reason)


def test_an_index_that_makes_no_sense_is_found(tmp_path: Path) -> None:
    folder = fill(tmp_path / "toy")
    with h5py.File(folder / "00000.h5", "r+") as file:
        file["offsets"][1] = file["offsets"][2] + 1  # the second clip has -1 rows
    vouch_for(folder, "00000")
    (problem, *_) = check(folder, PLANS, deep=True).problems
    assert "clip 'clip.001': its rows cannot be read" in problem.reason


def test_a_shard_with_other_clips_than_its_mark_says_is_found(tmp_path: Path) -> None:
    folder = fill(tmp_path / "toy")
    (folder / "00000.h5").write_bytes((folder / "00002.h5").read_bytes())
    vouch_for(folder, "00000")
    (problem,) = check(folder, PLANS, deep=True).problems
    assert "they must be the same, in the same order" in problem.reason


def test_a_shard_of_other_features_than_its_mark_says_is_found(tmp_path: Path) -> None:
    folder = fill(tmp_path / "toy")
    other = fill_other(tmp_path / "other")
    (folder / "00000.h5").write_bytes((other / "00000.h5").read_bytes())
    vouch_for(folder, "00000")
    (problem,) = check(folder, PLANS, deep=True).problems
    assert problem.reason.startswith(f"holds features {spec(frames=8).fingerprint}, its completion mark says")


def fill_other(folder: Path) -> Path:
    with ShardWriter(folder, PLANS[0], spec(frames=8)) as shard:
        for clip_id in PLANS[0].clip_ids:
            shard.fail(clip_id, ClipError("decode", "broken"))
    return folder


def test_a_shard_that_cannot_be_read_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path / "toy")
    os.truncate(folder / "00003.h5", 100)

    def failing_disk(path: Path) -> str:
        if path.name == "00001.h5":
            raise shards.StoreError(f"cannot read {path}: Input/output error")
        return sha256(path)

    monkeypatch.setattr(shards, "sha256", failing_disk)
    report = check(folder, PLANS, deep=True)
    assert [problem.file for problem in report.problems] == ["00001.h5", "00003.h5"]
    assert "Input/output error" in report.problems[0].reason


# -- deep: what is odd -------------------------------------------------------------------------------------------------


def test_usual_clips_are_not_odd(tmp_path: Path) -> None:
    assert oddities(check(tmp_path, write(tmp_path, usual(40)), deep=True)) == {}


@FORMATS
def test_empty_and_stuck_clips_are_odd(tmp_path: Path, format: str) -> None:
    clips = usual(20)
    clips["zero"] = np.zeros((4, 3)), np.arange(4)
    clips["dead row"] = [[0.6, 0, 0.8], [0, 0, 0], [1, 0, 0]], np.arange(3)
    clips["one value"] = np.full((4, 3), 0.577), np.arange(4)
    clips["still"] = np.tile([0.6, 0, 0.8], (4, 1)), np.arange(4)
    report = check(tmp_path, write(tmp_path, clips, format=format), deep=True)
    found = {odd.clip_id: odd.reason for odd in report.oddities if odd.kind != "norm"}
    assert found == {
        "zero": "4 of 4 rows are all zero",
        "dead row": "1 of 3 rows are all zero",
        "one value": "every value is 0.577",
        "still": "all 4 rows are the same",
    }
    assert report.is_whole


def test_unusual_norms_are_listed_clip_by_clip_worst_first(tmp_path: Path) -> None:
    clips = usual(40)
    clips["u07"] = clips["u07"][0] * 100, clips["u07"][1]
    clips["u11"] = clips["u11"][0] / 20, clips["u11"][1]
    spike = clips["u23"][0].copy()
    spike[2] *= 50  # one row of four: the median stays
    clips["u23"] = spike, clips["u23"][1]
    report = check(tmp_path, write(tmp_path, clips), deep=True)
    assert [odd.clip_id for odd in report.oddities] == ["u07", "u23", "u11"]
    assert "largest row norm" in report.oddities[1].reason
    assert report.facts["median_norm"] == pytest.approx(1.0, abs=0.1)


def test_outliers_do_not_hide_one_another() -> None:
    """A mean and a standard deviation would be dragged along; 40 % of outliers do not move a median by much."""
    norms = {f"u{i}": (1 + i / 100, 1 + i / 100) for i in range(12)} | {f"odd{i}": (1e4, 1e4) for i in range(8)}
    assert {odd.clip_id for odd in norm_outliers(norms)} == {f"odd{i}" for i in range(8)}


def test_a_few_clips_say_nothing_about_what_is_usual() -> None:
    norms = {f"u{i}": (1.0, 1.0) for i in range(8)} | {"odd": (1e4, 1e4)}
    assert norm_outliers(norms) == []
    assert [odd.clip_id for odd in norm_outliers(norms | {"one more": (1.0, 1.0)})] == ["odd"]


def test_norms_that_are_all_the_same_allow_for_some_noise() -> None:
    norms = {f"u{i}": (1.0, 1.0) for i in range(20)}
    assert norm_outliers(norms | {"near": (1.3, 1.3)}) == []
    assert len(norm_outliers(norms | {"far": (1.4, 1.4)})) == 1


def test_rows_beyond_their_clip_are_odd(tmp_path: Path) -> None:
    clips = usual(12)  # up to 3.5 s
    clips["early"] = clips["u00"][0], [-2.0, 0, 1, 2]
    plans = write(tmp_path, clips)
    durations = dict.fromkeys(clips, 3.0)  # within a window
    assert oddities(check(tmp_path, plans, deep=True, durations=durations)) == {"early": "times"}
    report = check(tmp_path, plans, deep=True, durations={**durations, "u03": 2.25})
    assert "u03: reaches to 3.500 s, the clip only to 2.250 s" in [str(odd) for odd in report.oddities]


def test_a_spec_that_knows_its_window_is_strict_about_it(tmp_path: Path) -> None:
    own = FeatureSpec(
        name="toy", encoder="toy", modality="audio", dim=3, dtype="float32", clock={"window_seconds": 0.1}
    )
    plans = write(tmp_path, usual(12), of=own)
    report = check(tmp_path, plans, deep=True, durations={"u03": 3.45, "u04": 3.0})
    assert [odd.clip_id for odd in report.oddities] == ["u04"]


def test_times_need_not_ascend_but_must_do_as_the_others_do(tmp_path: Path) -> None:
    clips = usual(20)
    clips["u05"] = clips["u05"][0], [0.5, 2.5, 1.5, 3.5]
    assert oddities(check(tmp_path / "a", write(tmp_path / "a", clips), deep=True)) == {"u05": "order"}
    tiled = {clip_id: (rows, [0.5, 1.5, 0.5, 1.5]) for clip_id, (rows, _) in clips.items()}  # band by band
    assert oddities(check(tmp_path / "b", write(tmp_path / "b", tiled), deep=True)) == {}


def test_each_view_is_looked_at_by_itself(tmp_path: Path) -> None:
    own = FeatureSpec(name="toy", encoder="toy", modality="video", dim=3, dtype="float32", views=2)
    clips = usual(12)  # two rows a view; their times begin again
    clips = {clip_id: (rows, [0.5, 1.5, 0.5, 1.5]) for clip_id, (rows, _) in clips.items()}
    clips["u03"] = np.concatenate([clips["u03"][0][:2], np.zeros((2, 3))]), clips["u03"][1]
    report = check(tmp_path, write(tmp_path, clips, of=own), deep=True)
    assert [str(odd) for odd in report.oddities] == ["u03: 2 of 2 rows of view 1 are all zero"]
    assert report.facts["rows"] == 48


def test_text_is_looked_at(tmp_path: Path) -> None:
    own = FeatureSpec(name="words", encoder="toy", modality="text", dim=0, dtype="text")
    texts = {
        "speech": [Segment(start_seconds=0, stop_seconds=2, text="a woman chops an onion")],
        "silence": [],
        "nothing": [Segment(start_seconds=0, stop_seconds=2, text="")],
        "loop": [Segment(start_seconds=0, stop_seconds=2, text="thank you for watching " * 20 + "bye")],
        "late": [Segment(start_seconds=0, stop_seconds=9, text="goodbye")],
    }
    plans = plan(list(texts), 5)
    write_spec(tmp_path, own)
    with ShardWriter(tmp_path, plans[0], own) as shard:
        for clip_id, items in texts.items():
            shard.add(clip_id, Segments(tuple(items)))
    report = check(tmp_path, plans, deep=True, durations={"late": 5.0, "speech": 1.5})
    assert oddities(report) == {"loop": "repetition", "late": "times"}
    assert report.facts == {"empty_share": 0.4, "repetitive_share": 0.2}
    lines = (tmp_path / "00000.jsonl").read_text()
    (tmp_path / "00000.jsonl").write_text(
        lines.replace('"start_seconds": 0, "stop_seconds": 9', '"start": 0, "stop": 9')
    )
    vouch_for(tmp_path, "00000")
    (problem,) = check(tmp_path, plans, deep=True).problems
    assert "not a whole shard of text" in problem.reason


@pytest.mark.parametrize(("kinds", "said"), [(("bfloat16", "float32", "float32"), True), (("float32",) * 3, False)])
def test_shards_of_different_arithmetic_are_told(
    tmp_path: Path, kinds: Sequence[str], said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    write_spec(tmp_path, spec())
    plans = PLANS[:3]
    for planned, kind in zip(plans, kinds, strict=True):
        with ShardWriter(tmp_path, planned, spec(), arithmetic=kind) as shard:
            for clip_id in planned.clip_ids:
                shard.fail(clip_id, ClipError("decode", "x"))
        assert Mark.read(tmp_path / f"{planned.name}.json").arithmetic == kind
    report = check(tmp_path, plans)
    assert [odd.kind for odd in report.oddities] == ["arithmetic"] * said
    assert report.is_whole
    FeatureSet(tmp_path)
    assert ("1 in bfloat16, 2 in float32" in f"{caplog.text}{[str(odd) for odd in report.oddities]}") == said
    assert ("computed on different devices" in caplog.text) == said


def test_a_mark_that_says_nothing_of_arithmetic_is_as_before(tmp_path: Path) -> None:
    fill(tmp_path)
    assert "arithmetic" not in (tmp_path / "00000.json").read_text(encoding="ascii")
    assert check(tmp_path, PLANS).oddities == ()
