"""Plans, completion marks, and what is found wrong in a feature set."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avpipe.pipeline.errors import CorruptShardError, DataError, FingerprintError, StoreError
from avpipe.pipeline.features import Outcome
from avpipe.pipeline.shards import (
    Mark,
    ShardPlan,
    is_done,
    marks,
    pending,
    plan,
    read_spec,
    verify,
    write_spec,
)

from .toys import CLIP_IDS, spec, write_shard

PLANS = plan(CLIP_IDS[:12], 5)
FINGERPRINT = spec().fingerprint

FORMATS = pytest.mark.parametrize("format", ["hdf5", "webdataset"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A feature set of three shards."""
    fill(tmp_path / "toy", "hdf5")
    return tmp_path / "toy"


def fill(folder: Path, format: str) -> None:
    write_spec(folder, spec())
    for planned in PLANS:
        write_shard(folder, planned, format)


def problems(folder: Path, *, deep: bool = True) -> dict[str, str]:
    return {problem.file: problem.reason for problem in verify(folder, deep=deep)}


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


# --- plans ---


@given(count=st.integers(0, 50), clips_per_shard=st.integers(1, 60))
def test_a_plan_holds_every_clip_once_in_order(count: int, clips_per_shard: int) -> None:
    ids = [f"c{i}" for i in range(count)]
    plans = plan(ids, clips_per_shard)
    assert [clip_id for planned in plans for clip_id in planned.clip_ids] == ids
    assert [planned.index for planned in plans] == list(range(len(plans)))
    assert all(len(planned.clip_ids) == clips_per_shard for planned in plans[:-1])
    assert all(planned.clip_ids for planned in plans)


def test_names_sort_as_numbers_do() -> None:
    assert [ShardPlan(i, ("a",)).name for i in (0, 7, 99_999, 100_000)] == ["00000", "00007", "99999", "100000"]


def test_a_plan_knows_its_clips() -> None:
    assert ShardPlan(0, ("a", "b")).clip_ids_sha256 != ShardPlan(0, ("b", "a")).clip_ids_sha256
    assert ShardPlan(0, ('a", "b',)).clip_ids_sha256 != ShardPlan(0, ("a", "b")).clip_ids_sha256


def test_a_plan_of_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="clips_per_shard: expected at least 1, got 0"):
        plan(["a"], 0)
    with pytest.raises(DataError, match=r"got 'b' more than once \(1 such ids\)"):
        plan(["a", "b", "b"], 2)


# --- marks ---


def mark(**change: object) -> Mark:
    values = {
        "file": "00003.h5",
        "bytes": 10,
        "sha256": "0" * 64,
        "fingerprint": FINGERPRINT,
        "outcomes": (Outcome(clip_id="a", status="ok"), Outcome(clip_id="b", status="failed", error_type="decode")),
    }
    return Mark(**{**values, **change})  # type: ignore[arg-type]


def test_a_mark_comes_back_from_its_file(tmp_path: Path) -> None:
    mark().write(tmp_path)
    assert Mark.read(tmp_path / "00003.json") == mark()
    assert mark().counts == {"ok": 1, "failed": 1, "skipped": 0}
    values = json.loads((tmp_path / "00003.json").read_text())
    assert values["counts"] == mark().counts
    assert values["clip_ids_sha256"] == ShardPlan(3, ("a", "b")).clip_ids_sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "../00000.h5"}, "expected the name of a shard.*got '../00000.h5'"),
        ({"file": "00000.json"}, "got '00000.json'"),
        ({"bytes": -1}, "bytes of 00003.h5: expected a size, got -1"),
        ({"sha256": "abc"}, "expected 64 hex digits, got 'abc'"),
    ],
)
def test_a_bad_mark_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mark(**change)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b'{"checksum": 1}', b"\xff\x00"])
def test_what_is_no_mark_is_called_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "00003.json").write_bytes(content)
    with pytest.raises(CorruptShardError, match=r"00003.json: not a completion mark .*`avpipe extract`"):
        Mark.read(tmp_path / "00003.json")


def test_any_flipped_byte_of_a_mark_is_found(tmp_path: Path) -> None:
    mark().write(tmp_path)
    path = tmp_path / "00003.json"
    whole = path.read_bytes()
    for position in range(len(whole) - 1):  # the last is the newline
        content = bytearray(whole)
        content[position] ^= 0x01
        path.write_bytes(content)
        try:
            read = Mark.read(path)
        except CorruptShardError:
            continue
        assert read == mark(), f"the byte at {position} was flipped, and nobody saw it"


def test_a_renamed_mark_is_not_believed(tmp_path: Path) -> None:
    mark().write(tmp_path)
    (tmp_path / "00003.json").rename(tmp_path / "00004.json")
    with pytest.raises(CorruptShardError, match="damaged or renamed"):
        marks(tmp_path)


def test_marks_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("100000.h5", "00002.h5", "99999.tar"):
        mark(file=name).write(tmp_path)
    (tmp_path / "spec.json").write_text("{}")
    assert [found.file for found in marks(tmp_path)] == ["00002.h5", "99999.tar", "100000.h5"]
    assert marks(tmp_path / "none") == []


# --- done or not ---


@FORMATS
def test_a_written_shard_is_done(tmp_path: Path, format: str) -> None:
    assert pending(tmp_path, PLANS, FINGERPRINT) == PLANS
    fill(tmp_path, format)
    assert pending(tmp_path, PLANS, FINGERPRINT) == []
    assert verify(tmp_path) == []
    assert not is_done(tmp_path, PLANS[0], spec(frames=8).fingerprint)
    assert not is_done(tmp_path, ShardPlan(0, ("other", "clips")), FINGERPRINT)


def cut(folder: Path) -> None:
    os.truncate(folder / "00001.h5", 100)


def grow(folder: Path) -> None:
    with (folder / "00001.h5").open("ab") as file:
        file.write(b"x")


def flip_shard(folder: Path) -> None:
    flip(folder / "00001.h5", -1)


def flip_mark(folder: Path) -> None:
    flip(folder / "00001.json", 20)


def lose_shard(folder: Path) -> None:
    (folder / "00001.h5").unlink()


def lose_mark(folder: Path) -> None:
    (folder / "00001.json").unlink()


@pytest.mark.parametrize(
    ("harm", "file", "reason"),
    [
        (cut, "00001.h5", r"is cut short: 100 B \(100 bytes\), its completion mark says \d+ bytes"),
        (grow, "00001.h5", "is grown"),
        (flip_shard, "00001.h5", "sha256 differs"),
        (flip_mark, "00001.json", "completion mark"),
        (lose_shard, "00001.h5", "is gone, but its completion mark is there"),
        (lose_mark, "00001.h5", "has no completion mark"),
    ],
)
def test_harm_is_named_and_undone(folder: Path, harm: Callable[[Path], None], file: str, reason: str) -> None:
    whole = (folder / "00001.h5").read_bytes()
    harm(folder)
    found = problems(folder)
    assert file in found
    assert set(found) <= {"00001.h5", "00001.json"}  # and nothing else is accused
    assert re.search(reason, found[file])
    assert pending(folder, PLANS, FINGERPRINT) == [PLANS[1]]
    write_shard(folder, PLANS[1], "hdf5")
    assert (folder / "00001.h5").read_bytes() == whole
    assert verify(folder) == []
    assert pending(folder, PLANS, FINGERPRINT) == []


def test_what_a_failing_disk_does_is_found_by_verify_alone(folder: Path) -> None:
    """The file's times tell nothing, so only reading every byte finds it; then its mark can be taken away."""
    before = (folder / "00002.h5").stat()
    flip(folder / "00002.h5", 3000)
    os.utime(folder / "00002.h5", ns=(before.st_atime_ns, before.st_mtime_ns - 10**9))
    assert is_done(folder, PLANS[2], FINGERPRINT)
    assert verify(folder, deep=False) == []
    assert list(problems(folder)) == ["00002.h5"]
    assert "Remove its completion mark (00002.json)" in problems(folder)["00002.h5"]
    (folder / "00002.json").unlink()
    assert pending(folder, PLANS, FINGERPRINT) == [PLANS[2]]


def test_a_shard_that_was_only_touched_is_done(folder: Path) -> None:
    os.utime(folder / "00001.h5")
    assert pending(folder, PLANS, FINGERPRINT) == []


def test_leftovers_are_named(folder: Path) -> None:
    (folder / ".00007.h5.rows.another-host.1.tmp").touch()
    os.utime(folder / ".00007.h5.rows.another-host.1.tmp", (0, 0))
    assert problems(folder) == {".00007.h5.rows.another-host.1.tmp": "left by a run that was killed"}


def test_a_shard_of_other_features_is_named(folder: Path) -> None:
    (folder / "spec.json").unlink()
    write_spec(folder, spec(frames=8))
    assert set(problems(folder)) == {"00000.h5", "00001.h5", "00002.h5"}
    assert f"holds features {FINGERPRINT}, spec.json says" in problems(folder)["00000.h5"]


def test_a_changed_manifest_does_not_overwrite_features(folder: Path) -> None:
    for changed in (plan(CLIP_IDS[:12], 4), plan(CLIP_IDS[:10], 5), plan(CLIP_IDS[1:13], 5)):
        with pytest.raises(StoreError, match=r"was made for other clips .*the manifest changed.*another name"):
            pending(folder, changed, FINGERPRINT)
    assert pending(folder, [*plan(CLIP_IDS[:10], 5), PLANS[2]], FINGERPRINT) == []
    more = [*PLANS, ShardPlan(3, ("new",))]
    assert pending(folder, more, FINGERPRINT) == more[3:]


# --- spec.json ---


def test_a_spec_is_written_once(tmp_path: Path) -> None:
    write_spec(tmp_path, spec(frames=8))
    before = (tmp_path / "spec.json").stat().st_mtime_ns
    write_spec(tmp_path, spec(frames=8))
    assert (tmp_path / "spec.json").stat().st_mtime_ns == before
    assert read_spec(tmp_path) == spec(frames=8)


def test_another_spec_is_refused_with_what_differs(tmp_path: Path) -> None:
    write_spec(tmp_path, spec(frames=8))
    with pytest.raises(FingerprintError, match=r"(?s)config.frames: 8 against 16\n.*another name.*or delete"):
        write_spec(tmp_path, spec(frames=16))
    assert read_spec(tmp_path) == spec(frames=8)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"name": 3}'])
def test_a_damaged_spec_is_called_so(folder: Path, content: bytes) -> None:
    (folder / "spec.json").write_bytes(content)
    with pytest.raises(CorruptShardError, match=r"spec.json: not a feature spec"):
        read_spec(folder)
    assert set(problems(folder)) == {"spec.json"}


def test_an_edited_spec_is_not_believed(folder: Path) -> None:
    text = (folder / "spec.json").read_text()
    (folder / "spec.json").write_text(text.replace('"dim": 5', '"dim": 6'))
    with pytest.raises(CorruptShardError, match=rf"says fingerprint '{FINGERPRINT}', but its fields give"):
        read_spec(folder)


def test_no_feature_set(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=rf"no feature set at {tmp_path}: it has no spec.json. `avpipe ls`"):
        read_spec(tmp_path)
