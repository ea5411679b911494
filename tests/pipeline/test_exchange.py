"""Features out to the forms in which others keep them, and in from there."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avpipe.pipeline import exchange, files
from avpipe.pipeline.difference import compare
from avpipe.pipeline.errors import DataError, FingerprintError, StoreError, UsageError
from avpipe.pipeline.exchange import Form, Told, Wanted, clip_id_of, export, file_stem, import_features, open_outside
from avpipe.pipeline.features import Features, FeatureSpec, Segments
from avpipe.pipeline.shards import plan, verify, write_spec
from avpipe.pipeline.store import FeatureSet, ShardWriter

from .toys import CLIP_IDS, features, spec, write_shard

FORMS: list[Form] = ["npy", "h5", "video-features"]
EVERY_FORM = pytest.mark.parametrize("form", FORMS)
PLANS = plan(CLIP_IDS, 5)
VIDEO = Told(name="mine", modality="video")


@pytest.fixture
def toy(tmp_path: Path) -> FeatureSet:
    """60 clips, of which 46 have features."""
    write_spec(tmp_path / "toy", spec())
    for planned in PLANS:
        write_shard(tmp_path / "toy", planned, "hdf5")
    return FeatureSet(tmp_path / "toy")


def wanted(clip_ids: list[str], seconds: float | None = None) -> list[Wanted]:
    return [Wanted(clip_id=clip_id, names=(clip_id,), seconds=seconds) for clip_id in clip_ids]


def take_in(
    path: Path, folder: Path, clip_ids: list[str], told: Told = VIDEO, form: Form = "npy", **more: Any
) -> FeatureSet:
    source = open_outside(path, form, more.pop("key", ""))
    clips = more.pop("clips", None) or wanted(clip_ids)
    import_features(source, told, clips, plan(clip_ids, 5), folder, form=form, **more)
    return FeatureSet(folder)


def folder_of(folder: Path, **arrays: Any) -> Path:
    """``{name}.npy`` files."""
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", np.asarray(array))
    return folder


# -- names -------------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=18))
def test_any_id_has_a_file_name_of_its_own(clip_id: str) -> None:
    stem = file_stem(clip_id)
    assert clip_id_of(stem) == clip_id
    assert re.fullmatch(r"[A-Za-z0-9_+=,@%-][A-Za-z0-9_+=,@%.-]*", stem)


@given(st.from_regex(r"[A-Za-z0-9_+=,@-][A-Za-z0-9_+=,@.-]{0,199}", fullmatch=True))
def test_ids_of_a_manifest_stand_as_they_are(clip_id: str) -> None:
    assert file_stem(clip_id) == clip_id


def test_a_name_too_long_for_a_file_is_refused() -> None:
    with pytest.raises(DataError, match="file name of 300 characters, too long"):
        file_stem("é" * 50)


ODD_IDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=9)


@settings(deadline=None, max_examples=40)
@given(ids=st.lists(ODD_IDS, min_size=1, max_size=6, unique=True))
def test_odd_ids_survive_the_way_out_and_in(tmp_path_factory: pytest.TempPathFactory, ids: list[str]) -> None:
    root = tmp_path_factory.mktemp("odd")
    write_spec(root / "toy", spec())
    with ShardWriter(root / "toy", plan(ids, 10)[0], spec()) as shard:
        for clip_id in ids:
            shard.add(clip_id, features(clip_id))
    source = FeatureSet(root / "toy")
    for form in FORMS:
        export(source, root / form, form)
        back = take_in(root / form, root / f"back-{form}", ids, form=form)
        assert compare(source, back).equal == len(ids)
    shutil.rmtree(root)


# -- out and in --------------------------------------------------------------------------------------------------------


@EVERY_FORM
@pytest.mark.parametrize("format", ["hdf5", "webdataset"])
def test_what_goes_out_and_in_is_the_same(tmp_path: Path, toy: FeatureSet, form: Form, format: str) -> None:
    seen: list[int] = []
    assert export(toy, tmp_path / "out", form, on_clip=lambda: seen.append(1)) == 46 == len(seen)
    told = Told(name="mine", modality="video", was=json.loads((tmp_path / "out" / "spec.json").read_text()))
    back = take_in(tmp_path / "out", tmp_path / "in", CLIP_IDS, told, form, format=format)
    assert compare(toy, back).equal == 46
    assert back.counts == {"ok": 46, "failed": 14, "skipped": 0}
    assert verify(tmp_path / "in") == []
    assert (back.spec.encoder, back.spec.dtype, back.spec.dim) == ("imported", "float16", 5)
    assert back.spec.preprocessing["exported"]["fingerprint"] == toy.spec.fingerprint
    if form == "video-features":  # milliseconds and back cost the last bit
        return
    for clip_id in toy.clip_ids:
        assert back.read(clip_id).pts_seconds.tobytes() == toy.read(clip_id).pts_seconds.tobytes()


def test_npy_is_what_numpy_reads(tmp_path: Path, toy: FeatureSet) -> None:
    export(toy, tmp_path / "out", "npy")
    own = features("clip.000")
    assert np.array_equal(np.load(tmp_path / "out" / "clip.000.npy"), own.data)
    assert np.array_equal(np.load(tmp_path / "out" / "pts_seconds" / "clip.000.npy"), own.pts_seconds)
    assert len(list((tmp_path / "out").glob("*.npy"))) == 46
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "rows (T, 5) float16" in readme
    assert "46 clips have features; 6 failed and 8 were skipped" in readme


def test_h5_has_one_dataset_an_id(tmp_path: Path, toy: FeatureSet) -> None:
    export(toy, tmp_path / "out", "h5")
    with h5py.File(tmp_path / "out" / "features.h5") as file:
        assert set(file) == set(toy.clip_ids)
        assert np.array_equal(file["clip.000"][()], features("clip.000").data)


def test_video_features_has_its_own_names(tmp_path: Path, toy: FeatureSet) -> None:
    export(toy, tmp_path / "out", "video-features", key="rgb")
    own = features("clip.000")
    assert np.array_equal(np.load(tmp_path / "out" / "clip.000_rgb.npy"), own.data)
    assert np.allclose(np.load(tmp_path / "out" / "clip.000_timestamps_ms.npy"), own.pts_seconds * 1000)


def test_ids_that_look_like_names_of_files_are_not_mixed_up(tmp_path: Path) -> None:
    """``a_rgb`` with the rows of a clip ``a``, ``pts_seconds`` with a folder, ..."""
    ids = ["a", "a_rgb", "a_timestamps_ms", "pts_seconds", "spec", "features", "README", "a_pts"]
    write_spec(tmp_path / "toy", spec())
    with ShardWriter(tmp_path / "toy", plan(ids, 10)[0], spec()) as shard:
        for clip_id in ids:
            shard.add(clip_id, features(clip_id))
    source = FeatureSet(tmp_path / "toy")
    for form in FORMS:
        export(source, tmp_path / form, form, key="rgb")
        back = take_in(tmp_path / form, tmp_path / f"back-{form}", ids, form=form, key="rgb")
        assert compare(source, back).equal == len(ids), form


def test_of_several_views_the_plain_one_goes_out(tmp_path: Path) -> None:
    own = FeatureSpec(name="toy", encoder="toy", modality="video", dim=2, dtype="float32", views=2)
    write_spec(tmp_path / "toy", own)
    with ShardWriter(tmp_path / "toy", plan(["c"], 1)[0], own) as shard:
        shard.add("c", Features(data=np.array([[1.0, 2], [3, 4]]), pts_seconds=np.array([0.5, 0.5])))
    export(FeatureSet(tmp_path / "toy"), tmp_path / "out", "npy")
    assert np.load(tmp_path / "out" / "c.npy").tolist() == [[1, 2]]
    assert "Of the 2 views of each clip, the plain one is here" in (tmp_path / "out" / "README.md").read_text()


def test_an_export_goes_to_an_empty_folder_alone(tmp_path: Path, toy: FeatureSet) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").touch()
    with pytest.raises(UsageError, match="expected a new or empty folder, it holds something"):
        export(toy, tmp_path / "out", "npy")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_a_disk_too_small_is_told_before_anything_is_written(
    tmp_path: Path, toy: FeatureSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(exchange.shutil, "disk_usage", lambda _: Usage())
    with pytest.raises(StoreError, match=r"MB are needed, 1.0 kB free"):
        export(toy, tmp_path / "out", "h5")
    assert list((tmp_path / "out").iterdir()) == []


@EVERY_FORM
def test_an_export_that_broke_off_does_not_pass_for_whole(tmp_path: Path, toy: FeatureSet, form: Form) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(toy, tmp_path / "out", form, on_clip=interrupt)
    assert not (tmp_path / "out" / "spec.json").exists()
    assert not (tmp_path / "out" / "features.h5").exists()


def test_two_clips_never_share_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"of another clip")
    with pytest.raises(StoreError, match="would hold two clips"):
        exchange._save_new(tmp_path / "a.npy", np.zeros(3))
    assert (tmp_path / "a.npy").read_bytes() == b"of another clip"


def test_text_is_not_exported(tmp_path: Path) -> None:
    own = FeatureSpec(name="words", encoder="toy", modality="text", dim=0, dtype="text")
    write_spec(tmp_path / "words", own)
    with ShardWriter(tmp_path / "words", plan(["c"], 1)[0], own) as shard:
        shard.add("c", Segments())
    with pytest.raises(UsageError, match="holds text, no rows: its shards are JSON lines"):
        export(FeatureSet(tmp_path / "words"), tmp_path / "out", "npy")


# -- in: what others made ----------------------------------------------------------------------------------------------


def test_every_clip_has_a_row_with_its_reason(tmp_path: Path) -> None:
    rows = np.arange(6.0).reshape(2, 3)
    outside = folder_of(
        tmp_path / "out",
        good=rows,
        vector=rows[0],
        nan=rows * np.nan,
        wide=np.ones((2, 4)),
        turned=np.ones((3, 7)),
        map=np.ones((2, 3, 3, 1)),
        empty=np.ones((0, 3)),
        words=np.array(["a"]),
        stray=rows,
    )
    (outside / "broken.npy").write_bytes(b"no array")
    (outside / "full_disk.npy").write_bytes(b"")
    (outside / "half_npz.npy").write_bytes(b"PK\x03\x04 and no more")
    ids = ["good", "vector", "nan", "wide", "turned", "map", "empty", "words", "broken", "gone"]
    ids += ["full_disk", "half_npz"]
    told = Told(name="mine", modality="audio", hop_seconds=0.5, id="vggish", note="by a friend")
    found = take_in(outside, tmp_path / "in", ids, told)
    outcomes = {outcome.clip_id: (outcome.error_type, outcome.error_message) for outcome in found.outcomes()}
    assert {clip_id: kind for clip_id, (kind, _) in outcomes.items()} == {
        "good": "",
        "vector": "",
        "nan": "not_finite",
        "wide": "shape",
        "turned": "shape",
        "map": "shape",
        "empty": "shape",
        "words": "open",
        "broken": "open",
        "gone": "missing_file",
        "full_disk": "open",
        "half_npz": "open",
    }
    assert outcomes["wide"][1] == "expected rows of width 3, got shape (2, 4)"
    assert outcomes["turned"][1] == "expected rows of width 3, got shape (3, 7) (turned on its side?)"
    assert outcomes["map"][1] == "expected (T, dim) or (dim,), got (2, 3, 3, 1): flatten it to rows first"
    assert outcomes["gone"][1] == f"no gone ({{id}}.npy in {outside})"
    assert "expected numbers, got <U1" in outcomes["words"][1]
    assert found.read("good").data.tolist() == rows.tolist()
    assert found.read("good").pts_seconds.tolist() == [0.25, 0.75]
    assert found.read("vector").data.tolist() == [[0, 1, 2]]
    assert found.spec == FeatureSpec(
        name="mine",
        encoder="imported",
        modality="audio",
        dim=3,
        dtype="float32",
        config={"form": "npy"},
        weights={"id": "vggish", "content_sha256": found.spec.weights["content_sha256"]},
        preprocessing={"note": "by a friend"},
        clock={"hop_seconds": 0.5, "window_seconds": 0.5},
    )


def test_the_width_that_is_expected_can_be_said(tmp_path: Path) -> None:
    outside = folder_of(tmp_path / "out", a=np.ones((2, 4)), b=np.ones((2, 3)))
    told = Told(name="mine", modality="video", dim=3, hop_seconds=1)
    assert take_in(outside, tmp_path / "in", ["a", "b"], told).clip_ids == ["b"]


@pytest.mark.parametrize(
    ("kept", "asked", "stored"),
    [("f2", None, "float16"), ("f8", None, "float32"), ("i4", None, "float32"), ("f4", "float16", "float16")],
)
def test_the_type_on_disk(tmp_path: Path, kept: str, asked: str | None, stored: str) -> None:
    outside = folder_of(tmp_path / "out", a=np.ones((2, 4), kept))
    found = take_in(outside, tmp_path / "in", ["a"], Told(name="mine", modality="video", dtype=asked, hop_seconds=1))
    assert found.spec.dtype == stored == found.read("a").data.dtype


def test_rows_can_be_spread_over_their_clip(tmp_path: Path) -> None:
    outside = folder_of(tmp_path / "out", a=np.ones((4, 3)))
    told = Told(name="mine", modality="video", spread=True)
    found = take_in(outside, tmp_path / "in", ["a"], told, clips=wanted(["a"], seconds=10.0))
    assert found.read("a").pts_seconds.tolist() == [1.25, 3.75, 6.25, 8.75]
    with pytest.raises(UsageError, match=r"does not say how long 1 of 1 clips are \(first: a\)"):
        take_in(outside, tmp_path / "in2", ["a"], told)


def test_times_must_come_from_somewhere(tmp_path: Path) -> None:
    outside = folder_of(tmp_path / "out", a=np.ones((4, 3)), b=np.ones((4, 3)), c=np.ones((4, 3)))
    with pytest.raises(UsageError, match=r"nothing says at what time the rows are .*say --hop-seconds, or --spread"):
        take_in(outside, tmp_path / "in", ["a", "b", "c"])
    assert not (tmp_path / "in").exists()
    folder_of(outside / "pts_seconds", a=np.arange(4), c=np.arange(3))
    found = take_in(outside, tmp_path / "in", ["a", "b", "c"])
    assert {outcome.clip_id: outcome.error_type for outcome in found.outcomes()} == {
        "a": "",
        "b": "no_times",
        "c": "shape",
    }
    with pytest.raises(UsageError, match=r"expected a positive number of seconds, without --spread, got 0"):
        Told(name="mine", modality="video", hop_seconds=0)
    with pytest.raises(UsageError, match="got together with --spread"):
        Told(name="mine", modality="video", hop_seconds=1, spread=True)


def test_files_are_found_by_any_of_a_clips_names(tmp_path: Path) -> None:
    outside = folder_of(tmp_path / "out", **{"onion": np.ones((1, 3)), "a b": np.ones((2, 3)), "x.y": np.ones((3, 3))})
    clips = [
        Wanted(clip_id="kitchen_onion", names=("kitchen_onion", "onion")),
        Wanted(clip_id="a_b", names=("a_b", "a b")),
        Wanted(clip_id="x.y", names=("x.y",)),
    ]
    told = Told(name="mine", modality="video", hop_seconds=1)
    found = take_in(outside, tmp_path / "in", [clip.clip_id for clip in clips], told, clips=clips)
    assert [found.num_rows(clip.clip_id) for clip in clips] == [1, 2, 3]


def test_files_of_other_clips_are_no_import(tmp_path: Path) -> None:
    outside = folder_of(tmp_path / "out", x=np.ones((4, 3)))
    with pytest.raises(DataError, match=r"no clip has features there \(\{id\}.npy in .*\); there is x; clips are a, b"):
        take_in(outside, tmp_path / "in", ["a", "b"], Told(name="mine", modality="video", hop_seconds=1))
    (outside / "a.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match="no clip has features there that can be read"):
        take_in(outside, tmp_path / "in", ["a", "b"], Told(name="mine", modality="video", hop_seconds=1))
    assert not (tmp_path / "in").exists()


def test_a_h5_file_of_somebody_else(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "feats.hdf5", "w") as file:
        file["a"] = np.ones((2, 3), np.float32)
        file["group/b"] = np.ones((2, 3), np.float32)
    told = Told(name="mine", modality="video", hop_seconds=1)
    found = take_in(tmp_path / "feats.hdf5", tmp_path / "in", ["a", "group"], told, "h5")
    assert found.clip_ids == ["a"]


def test_the_key_of_video_features_is_found_or_asked_for(tmp_path: Path) -> None:
    rows = np.ones((2, 3))
    outside = folder_of(tmp_path / "out", a_b_clip_vit=rows, a_b_timestamps_ms=[0, 40], a_b_fps=np.array(25.0))
    found = take_in(outside, tmp_path / "in", ["a_b"], form="video-features")
    assert found.read("a_b").pts_seconds.tolist() == [0, 0.04]
    np.save(outside / "a_b_flow.npy", rows)
    with pytest.raises(UsageError, match=r"expected --key to be one of clip_vit, flow, got none"):
        open_outside(outside, "video-features")
    assert open_outside(outside, "video-features", "flow").names == {"a_b"}


@pytest.mark.parametrize("form", FORMS)
def test_there_must_be_something_to_import(tmp_path: Path, form: Form) -> None:
    with pytest.raises(UsageError, match="expected a folder"):
        open_outside(tmp_path / "nowhere", form)


def test_a_file_that_is_no_hdf5(tmp_path: Path) -> None:
    (tmp_path / "features.h5").write_bytes(b"no HDF5")
    with pytest.raises(StoreError, match=r"cannot read .*features.h5"):
        open_outside(tmp_path, "h5")


# -- in: whose they are ------------------------------------------------------------------------------------------------


def test_other_content_is_another_identity(tmp_path: Path) -> None:
    outside = folder_of(tmp_path / "out", a=np.ones((4, 3)), b=np.ones((4, 3)))
    told = Told(name="mine", modality="video", hop_seconds=1)
    first = take_in(outside, tmp_path / "in", ["a", "b"], told).spec
    assert take_in(outside, tmp_path / "again", ["a", "b"], told).spec == first
    np.save(outside / "b.npy", np.ones((4, 3)) * 2)
    assert take_in(outside, tmp_path / "other", ["a", "b"], told).spec.fingerprint != first.fingerprint
    with pytest.raises(FingerprintError, match=r"weights.content_sha256"):
        take_in(outside, tmp_path / "in", ["a", "b"], told)


def test_an_import_that_broke_off_goes_on(tmp_path: Path, toy: FeatureSet) -> None:
    export(toy, tmp_path / "out", "npy")
    calls = []

    def interrupt() -> None:
        calls.append(1)
        if len(calls) == 60 + 12:  # in the third shard
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take_in(tmp_path / "out", tmp_path / "in", CLIP_IDS, on_clip=interrupt)
    assert len(FeatureSet(tmp_path / "in").missing(CLIP_IDS)) == 50
    before = (tmp_path / "in" / "00000.h5").stat().st_mtime_ns
    seen: list[int] = []
    whole = take_in(tmp_path / "out", tmp_path / "in", CLIP_IDS, on_clip=lambda: seen.append(1))
    assert compare(toy, whole).equal == 46
    assert len(seen) == 120
    assert (tmp_path / "in" / "00000.h5").stat().st_mtime_ns == before
    assert files.leftovers(tmp_path / "in") == []
