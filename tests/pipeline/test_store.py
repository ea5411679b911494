"""Both formats give back exactly what they took, byte for byte the same each time."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import resource
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from avpipe.pipeline.errors import ClipError, CorruptShardError, StoreError, UnknownNameError
from avpipe.pipeline.features import Features, FeatureSpec
from avpipe.pipeline.shards import ShardPlan
from avpipe.pipeline.store import FORMATS, ShardWriter, open_reader, open_writer
from avpipe.pipeline.store.webdataset import clip_id_of, key_of

from .toys import contents, features, spec

SUFFIXES = {"hdf5": ".h5", "webdataset": ".tar"}
BOTH = pytest.mark.parametrize("format", SUFFIXES)


def path_of(folder: Path, format: str) -> Path:
    return folder / f"00000{SUFFIXES[format]}"


def write(path: Path, clips: dict[str, Features], made_of: FeatureSpec | None = None) -> Path:
    format = {suffix: name for name, suffix in SUFFIXES.items()}[path.suffix]
    with open_writer(format, path, made_of or spec()) as writer:
        for clip_id, found in clips.items():
            writer.add(clip_id, found)
    return path


def same(one: Features, two: Features) -> bool:
    """To the last bit, negative zeros included."""
    return (
        (one.data.dtype, one.data.shape) == (two.data.dtype, two.data.shape)
        and one.data.tobytes() == two.data.tobytes()
        and one.pts_seconds.tobytes() == two.pts_seconds.tobytes()
    )


odd_ids = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40) | st.sampled_from(
    ["a.b.c", "a%2Eb", "a/b", "../x", "__avpipe__", "__meta__", "-", ".", "A", "a", "x" * 300, "ü.ü", "🎬", "a b\n"]
)


@st.composite
def shards(draw: st.DrawFn) -> tuple[FeatureSpec, dict[str, Features]]:
    dtype, dim = draw(st.sampled_from(["float16", "float32"])), draw(st.integers(1, 6))
    clips = {}
    for clip_id in draw(st.lists(odd_ids, max_size=5, unique=True)):
        rows = draw(st.integers(1, 6))
        finite = st.floats(width=int(dtype[5:]), allow_nan=False, allow_infinity=False)
        clips[clip_id] = Features(
            data=draw(hnp.arrays(dtype, (rows, dim), elements=finite)),
            pts_seconds=draw(hnp.arrays(np.float64, rows, elements=st.floats(allow_nan=False, allow_infinity=False))),
        )
    return spec(dtype=dtype, dim=dim), clips


@BOTH
@settings(max_examples=40, deadline=None)
@given(shard=shards())
def test_features_come_back_exactly(format: str, shard: tuple[FeatureSpec, dict[str, Features]]) -> None:
    made_of, clips = shard
    with tempfile.TemporaryDirectory() as folder:
        reader = open_reader(write(path_of(Path(folder), format), clips, made_of))
        assert reader.spec == made_of
        assert reader.clip_ids == tuple(clips)
        for clip_id, found in clips.items():
            assert same(reader.read(clip_id), found)
            assert reader.num_rows(clip_id) == len(found.data)


@BOTH
def test_the_bytes_depend_on_the_features_alone(tmp_path: Path, format: str) -> None:
    """Not on the time, the process, the folder, the user, nor the order in which clips arrive."""
    clips = [f"clip{i}" for i in range(9)]
    for folder, order in (("one", clips), ("two", clips[::-1])):
        with open_writer(format, path_of(tmp_path / folder, format), spec(), clips) as writer:
            for clip_id in order:
                writer.add(clip_id, features(clip_id))
    program = (
        "import sys; from pathlib import Path; from pipeline.toys import features, spec\n"
        "from avpipe.pipeline.store import open_writer\n"
        "with open_writer(sys.argv[1], Path(sys.argv[2]), spec()) as writer:\n"
        "    for i in range(9): writer.add(f'clip{i}', features(f'clip{i}'))\n"
    )
    third = path_of(tmp_path / "three", format)
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "TZ": "Asia/Tokyo",
        "PYTHONHASHSEED": "7",
    }
    subprocess.run([sys.executable, "-c", program, format, third], check=True, umask=0o077, env=environment)
    whole = path_of(tmp_path / "one", format).read_bytes()
    assert path_of(tmp_path / "two", format).read_bytes() == whole
    assert third.read_bytes() == whole


@BOTH
def test_a_shard_of_many_long_clips(tmp_path: Path, format: str) -> None:
    """Rows beyond one copied block, offsets beyond one page."""
    rng = np.random.default_rng(0)
    clips = {
        f"c{i}": Features(data=rng.standard_normal((rows, 1000)).astype(np.float16), pts_seconds=np.arange(rows) / 2.0)
        for i, rows in enumerate([9000, 1, 20, 300])
    }
    reader = open_reader(write(path_of(tmp_path, format), clips, spec(dim=1000)))
    assert all(same(reader.read(clip_id), found) for clip_id, found in clips.items())


@BOTH
def test_rows_are_converted_to_the_type_of_the_disk(tmp_path: Path, format: str) -> None:
    data = np.asfortranarray(np.linspace(-3, 3, 35, dtype=np.float64).reshape(7, 5))
    reader = open_reader(write(path_of(tmp_path, format), {"a": Features(data=data, pts_seconds=np.arange(7.0))}))
    assert reader.read("a").data.dtype == np.float16
    np.testing.assert_array_equal(reader.read("a").data, data.astype(np.float16))


def test_hdf5_of_a_spec_beyond_64_kilobytes_and_of_many_clips(tmp_path: Path) -> None:
    """HDF5 keeps long attributes elsewhere, and reads back what it has written."""
    made_of = spec(classes=[f"class {i}" for i in range(9000)])
    clips = {f"clip{i:04d}": features(f"{i}") for i in range(1500)}
    reader = open_reader(write(tmp_path / "00000.h5", clips, made_of))
    assert reader.spec == made_of
    assert all(same(reader.read(clip_id), found) for clip_id, found in clips.items())


# --- what cannot be stored ---


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "1 of 15 values are NaN or infinite"),
        (-np.inf, "1 of 15 values are NaN or infinite"),
        (65520.0, r"values up to 65520 do not fit float16; .*dtype=float32"),
    ],
)
@BOTH
def test_what_is_not_finite_is_refused_before_anything_is_written(
    tmp_path: Path, format: str, value: float, message: str
) -> None:
    data = np.ones((3, 5), np.float32)
    data[1, 2] = value
    with open_writer(format, path_of(tmp_path, format), spec()) as writer:
        writer.add("good", features("good"))
        with pytest.raises(ClipError, match=message) as caught:
            writer.add("bad", Features(data=data, pts_seconds=np.zeros(3)))
        assert caught.value.kind == "not_finite"
        with pytest.raises(ClipError, match="a row's time is NaN"):
            writer.add("bad", Features(data=np.ones((1, 5)), pts_seconds=np.array([np.nan])))
        writer.add("better", features("better"))
    whole = write(path_of(tmp_path / "without", format), {c: features(c) for c in ("good", "better")})
    assert path_of(tmp_path, format).read_bytes() == whole.read_bytes()


def test_the_largest_float16_is_stored(tmp_path: Path) -> None:
    clip = Features(data=np.full((1, 5), 65519.0, np.float32), pts_seconds=np.zeros(1))
    assert open_reader(write(tmp_path / "00000.h5", {"a": clip})).read("a").data.max() == 65504


@BOTH
def test_bugs_of_the_caller_are_refused(tmp_path: Path, format: str) -> None:
    with open_writer(format, path_of(tmp_path, format), spec(), ["a", "b"]) as writer:
        writer.add("a", features("a"))
        with pytest.raises(ValueError, match=r"clip 'a' was added .* before"):
            writer.add("a", features("a"))
        with pytest.raises(ValueError, match=r"expected one that is planned .*got 'z'"):
            writer.add("z", features("z"))
        with pytest.raises(ValueError, match=r"expected rows of width 5, got shape \(3, 4\)"):
            writer.add("b", Features(data=np.zeros((3, 4)), pts_seconds=np.zeros(3)))
    assert open_reader(path_of(tmp_path, format)).clip_ids == ("a",)


@pytest.mark.parametrize("clip_id", ["", "a\0", "half \udce9"])
def test_ids_that_no_file_can_hold_are_refused(tmp_path: Path, clip_id: str) -> None:
    with open_writer("hdf5", tmp_path / "00000.h5", spec()) as writer:
        with pytest.raises(ValueError, match=r"clip id: expected .*got|surrogates not allowed"):
            writer.add(clip_id, features("a"))
        writer.add("whole", features("a"))
    assert open_reader(tmp_path / "00000.h5").clip_ids == ("whole",)


@BOTH
def test_an_abandoned_shard_leaves_nothing(tmp_path: Path, format: str) -> None:
    too_narrow = Features(data=np.zeros((3, 4)), pts_seconds=np.zeros(3))
    with pytest.raises(ValueError, match="width 5"):
        write(path_of(tmp_path, format), {"a": features("a"), "b": too_narrow})
    assert contents(tmp_path) == {}


def test_a_writer_told_to_end_while_the_disk_makes_its_file_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_slowly(*arguments: Any) -> int:  # SIGTERM is answered as soon as the system call is over
        os.close(made(*arguments))
        assert list(tmp_path.iterdir())
        raise SystemExit(143)

    made = os.open
    monkeypatch.setattr(os, "open", open_slowly)
    with pytest.raises(SystemExit):
        open_writer("hdf5", tmp_path / "00000.h5", spec())
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"'hdf' \(did you mean 'hdf5'\?\); known: hdf5, webdataset"):
        open_writer("hdf", tmp_path / "00000.h5", spec())
    with pytest.raises(StoreError, match=r"00000.npz is no shard: expected a name that ends in .h5 or .tar"):
        open_reader(tmp_path / "00000.npz")
    assert FORMATS.names() == sorted(SUFFIXES)


# --- reading ---


@BOTH
def test_readers_tell_what_is_wrong(tmp_path: Path, format: str) -> None:
    path = path_of(tmp_path, format)
    with pytest.raises(StoreError, match=r"cannot read .*: No such file"):
        open_reader(path)
    reader = open_reader(write(path, {"a": features("a")}))
    with pytest.raises(StoreError, match=r"has no clip 'b'; it holds 1 clips"):
        reader.read("b")
    with pytest.raises(StoreError, match="has no clip 'b'"):
        reader.num_rows("b")
    reader.release()
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"cannot read .*: No such file"):
        reader.read("a")


@BOTH
def test_a_damaged_file_is_refused_however_it_is_cut(tmp_path: Path, format: str) -> None:
    """At the front the index is gone, further back the rows are."""
    path = write(path_of(tmp_path, format), {c: features(c) for c in "abc"})
    whole = path.read_bytes()
    last_needed = 2 * tarfile.RECORDSIZE if format == "webdataset" else 0  # the end of a tar file is padding
    for size in [*range(0, 4096, 251), *range(4096, len(whole) - last_needed, 2003)]:
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptShardError, match=f"{re.escape(str(path))}.*avpipe verify.*avpipe extract"):
            [open_reader(path).read(clip_id) for clip_id in "abc"]


@BOTH
@pytest.mark.parametrize("content", [b"", b"no shard at all", bytes(20000), b"\x89HDF\r\n\x1a\n" + bytes(9000)])
def test_what_is_no_shard_is_refused(tmp_path: Path, format: str, content: bytes) -> None:
    path_of(tmp_path, format).write_bytes(content)
    with pytest.raises(CorruptShardError, match="not a whole"):
        open_reader(path_of(tmp_path, format))


def test_hdf5_of_another_make_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "00000.h5", {"a": features("a")})
    with h5py.File(path, "a") as file:
        rows = file["data"][()]
        del file["data"]
        file.create_dataset("data", data=rows, chunks=True)
    with pytest.raises(CorruptShardError, match=r"/data: expected contiguous float16.*in chunks"):
        open_reader(path)


@BOTH
def test_a_pickled_reader_leaves_its_open_file_behind(tmp_path: Path, format: str) -> None:
    reader = open_reader(write(path_of(tmp_path, format), {"a": features("a")}))
    copy = pickle.loads(pickle.dumps(reader))
    assert (reader.is_open, copy.is_open) == (True, False)
    assert same(copy.read("a"), features("a"))
    assert copy.is_open


# --- what other programs see ---


def test_hdf5_is_plain_and_contiguous(tmp_path: Path) -> None:
    clips = {c: features(c) for c in ("b", "a", "ü")}
    path = write(tmp_path / "00000.h5", clips)
    with h5py.File(path) as file:
        assert set(file) == {"data", "pts_seconds", "offsets", "clip_ids"}
        assert all(file[name].chunks is None and file[name].compression is None for name in file)
        assert list(file["clip_ids"].asstr()) == ["b", "a", "ü"]
        starts = file["offsets"][()]
        for i, found in enumerate(clips.values()):
            np.testing.assert_array_equal(file["data"][starts[i] : starts[i + 1]], found.data)
            np.testing.assert_array_equal(file["pts_seconds"][starts[i] : starts[i + 1]], found.pts_seconds)
        assert FeatureSpec.from_json(json.loads(file.attrs["spec"])) == spec()
        assert file.attrs["fingerprint"].decode() == spec().fingerprint
        offset, rows = file["data"].id.get_offset(), int(starts[-1])
    assert offset % 4096 == 0
    mapped = np.memmap(path, np.float16, "r", offset, (rows, 5))
    np.testing.assert_array_equal(mapped[: len(clips["b"].data)], clips["b"].data)


def test_plain_webdataset_streams_the_tar_files(tmp_path: Path) -> None:
    ids = ["a.b.c", "a.b", "a", "A", "x" * 150 + ".y", "__avpipe__"]
    for number, part in enumerate((ids[:4], [], ids[4:])):
        write(tmp_path / f"{number:05d}.tar", {clip_id: features(clip_id) for clip_id in part})
    urls = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    assert len(urls) == 3
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["json"]["clip_id"] for sample in samples] == ids
    for clip_id, sample in zip(ids, samples, strict=True):
        assert same(Features(data=sample["npy"], pts_seconds=sample["pts.npy"]), features(clip_id))
        assert sample["json"]["fingerprint"] == spec().fingerprint
        assert clip_id_of(sample["__key__"]) == clip_id
    pairs = list(webdataset.WebDataset(urls, shardshuffle=False).decode().to_tuple("npy", "json"))
    assert [about["clip_id"] for _, about in pairs] == ids


def test_tar_tools_read_the_tar_files(tmp_path: Path) -> None:
    path = write(tmp_path / "00000.tar", {"a.b": features("a.b")})
    listed = subprocess.run(["tar", "tvf", path], check=True, capture_output=True, text=True)
    assert listed.stderr == ""
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["__avpipe__", "a%2Eb.json", "a%2Eb.npy", "a%2Eb.pts.npy"]
        assert {(member.uid, member.gid, member.mtime, member.mode) for member in tar} == {(0, 0, 0, 0o644)}


@given(one=odd_ids, two=odd_ids)
def test_keys_have_no_dots_and_do_not_collide(one: str, two: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_+=,@%-]+", key_of(one))
    assert clip_id_of(key_of(one)) == one
    assert (key_of(one) == key_of(two)) == (one == two)


# --- whole shards, with their marks ---


@BOTH
def test_file_and_mark_have_the_planned_order(tmp_path: Path, format: str) -> None:
    with ShardWriter(tmp_path, ShardPlan(0, ("a", "b", "c", "d")), spec(), format) as shard:
        assert shard.add("d", features("d"), notes=["cut short"], seconds=1.23456).seconds == 1.235
        shard.fail("c", ClipError("decode", "broken"))
        bad = shard.add("b", Features(data=np.full((1, 5), np.nan), pts_seconds=np.zeros(1)))
        shard.add("a", features("a"))
    assert (bad.status, bad.error_type) == ("failed", "not_finite")
    assert [(o.clip_id, o.status) for o in shard.mark.outcomes] == [
        ("a", "ok"), ("b", "failed"), ("c", "failed"), ("d", "ok"),
    ]  # fmt: skip
    assert shard.mark.outcomes[3].notes == ("cut short",)
    assert open_reader(path_of(tmp_path, format)).clip_ids == ("a", "d")


@BOTH
def test_a_shard_whose_clips_all_failed_is_an_empty_file(tmp_path: Path, format: str) -> None:
    with ShardWriter(tmp_path, ShardPlan(0, ("a", "b")), spec(), format) as shard:
        for clip_id in "ab":
            shard.fail(clip_id, ClipError("decode", "broken"))
    assert shard.mark.counts == {"ok": 0, "failed": 2, "skipped": 0}
    reader = open_reader(path_of(tmp_path, format))
    assert (reader.clip_ids, reader.spec) == ((), spec())


def test_every_planned_clip_needs_one_outcome(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 clips have no outcome, first 'b'"):  # noqa: PT012, SIM117
        with ShardWriter(tmp_path, ShardPlan(0, ("a", "b")), spec()) as shard:
            shard.add("a", features("a"))
            with pytest.raises(ValueError, match="clip 'a' has an outcome already"):
                shard.fail("a", ClipError("decode", "broken"))
            with pytest.raises(ValueError, match="clip 'z' is not planned"):
                shard.add("z", features("z"))
    assert contents(tmp_path) == {}


def test_a_shard_in_the_other_format_goes(tmp_path: Path) -> None:
    for format in ("hdf5", "webdataset"):
        with ShardWriter(tmp_path, ShardPlan(0, ("a",)), spec(), format) as shard:
            shard.add("a", features("a"))
    assert set(contents(tmp_path)) == {"00000.tar", "00000.json"}


# --- full disks and the like ---


@BOTH
def test_a_disk_that_fills_up_at_any_write_keeps_the_old_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    plan, pwrite = ShardPlan(0, ("a", "b")), os.pwrite
    for allowed in range(100):
        with ShardWriter(tmp_path, plan, spec(), format) as shard:
            for clip_id in plan.clip_ids:
                shard.add(clip_id, features("old " + clip_id))
        before, left = contents(tmp_path), [allowed]

        def full(*arguments: Any, left: list[int] = left) -> int:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return pwrite(*arguments)

        monkeypatch.setattr(os, "pwrite", full)
        message = ""
        try:
            with ShardWriter(tmp_path, plan, spec(), format) as shard:
                for clip_id in plan.clip_ids:
                    shard.add(clip_id, features("new " + clip_id))
        except StoreError as error:
            message = str(error)
        monkeypatch.setattr(os, "pwrite", pwrite)
        if not message:
            break
        assert "the disk is full" in message
        assert contents(tmp_path) == before
    assert 3 < allowed < 99


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 kB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(mount)]
    try:
        mounted = subprocess.run(command, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if mounted.returncode:
        pytest.skip(f"may not mount: {mounted.stderr.strip()}")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


@BOTH
@pytest.mark.parametrize("filler_kilobytes", [0, 100, 280, 380, 392, 396, 400])
def test_a_disk_that_is_full(small_disk: Path, format: str, filler_kilobytes: int) -> None:
    """Full while rows are collected, while the shard is made of them (HDF5's own writes included), or before."""
    (small_disk / "filler").write_bytes(bytes(filler_kilobytes * 1024))
    before = contents(small_disk)
    clip = Features(data=np.ones((200, 100), np.float16), pts_seconds=np.arange(200.0))  # 40 kB
    clips = dict.fromkeys("abcdef", clip)  # fit once, but not twice
    with pytest.raises(StoreError, match=r"cannot write .*the disk is full \(.* of 409.6 kB free"):
        write(path_of(small_disk, format), clips, spec(dim=100))
    assert contents(small_disk) == before


@BOTH
def test_a_file_that_may_not_grow(tmp_path: Path, format: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for limit in (100, 1000, 3000, 5000, 9000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            with pytest.raises(StoreError, match="ulimit -f"):
                write(path_of(tmp_path, format), {"a": features("a"), "b": features("b"), "c": features("c")})
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert contents(tmp_path) == {}
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "toy").write_text("no folder")
    with pytest.raises(StoreError, match=r"cannot write .*toy/00000.h5: expected a folder at .*/toy, got a file"):
        ShardWriter(tmp_path / "toy", ShardPlan(0, ("a",)), spec())
