"""Files are whole or absent, and errors of the disk are told in words that help."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from avpipe.pipeline.errors import StoreError
from avpipe.pipeline.files import atomic_write, bytes_text, leftovers, sha256, sweep, temporary, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def dead_pid() -> int:
    """Of a process that has just ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "made" / "on the way" / "file"
    with atomic_write(path) as aside:
        aside.write_bytes(b"half")
        assert not path.exists()
        assert aside.parent == path.parent  # the same disk, or it could not be renamed
    assert path.read_bytes() == b"half"
    assert names(path.parent) == ["file"]


def test_a_failed_write_keeps_the_file_that_stood_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), atomic_write(path) as aside:
        aside.write_text(3 if aside.write_bytes(b"new") else "")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_bytes_reach_the_disk_before_the_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recording_fsync(descriptor: int) -> None:
        calls.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink()}")
        fsync(descriptor)

    def recording_replace(source: Path, target: Path) -> None:
        calls.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "replace", recording_replace)
    with atomic_write(tmp_path / "file") as aside:
        aside.write_bytes(b"x")
    assert calls == [f"fsync {aside}", "replace", f"fsync {tmp_path}"]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, r"cannot write .*file: the disk is full \(.* of .* free at .*--workspace.*same command again"),
        (errno.EDQUOT, "the quota is used up"),
        (errno.EROFS, "read-only file system.*--workspace"),
        (errno.EACCES, "no permission in .*owner"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_errors_of_the_disk_say_what_to_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match=message), atomic_write(tmp_path / "file") as aside:
        aside.write_bytes(b"x")
    assert names(tmp_path) == []


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "features").write_text("I am no folder")
    with pytest.raises(StoreError, match=rf"expected a folder at {tmp_path}/features, got a file"):
        write_json(tmp_path / "features" / "toy" / "spec.json", {})
    with pytest.raises(StoreError, match="expected a folder"):
        write_json(tmp_path / "features" / "spec.json", {})


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "spec.json").mkdir()
    with pytest.raises(StoreError, match=r"expected a file at .*spec.json, got a folder"):
        write_json(tmp_path / "spec.json", {})
    assert names(tmp_path) == ["spec.json"]


def test_json_survives_half_characters(tmp_path: Path) -> None:
    values = {"message": "moov atom not found in 'caf\udce9.mp4'", "emoji": "🎬", "n": [1, 2.5, None]}
    write_json(tmp_path / "a.json", values)
    assert json.loads((tmp_path / "a.json").read_bytes()) == values


def test_json_refuses_what_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nan"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert names(tmp_path) == []


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(StoreError, match=r"cannot read .*/b: No such file"):
        sha256(tmp_path / "b")


@pytest.fixture
def litter(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Temporary files of every kind of owner."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        host = temporary(tmp_path / "x").name.split(".")[2]
        found = {
            "dead": tmp_path / f".00000.h5.{host}.{dead_pid()}.tmp",
            "dead rows": tmp_path / f".00000.h5.rows.{host}.{dead_pid()}.tmp",
            "own": temporary(tmp_path / "00000.h5"),
            "living": tmp_path / f".00000.h5.{host}.{living.pid}.tmp",
            "elsewhere": tmp_path / ".00000.h5.another-host.1.tmp",
            "elsewhere, old": tmp_path / ".00000.h5.another-host.2.tmp",
            "other shard": tmp_path / f".00001.h5.{host}.{dead_pid()}.tmp",
            "not ours": tmp_path / ".00000.h5.tmp",
            "no temporary": tmp_path / "00000.h5",
        }
        for path in found.values():
            path.touch()
        old = time.time() - 7200
        os.utime(found["elsewhere, old"], (old, old))
        yield found


def test_sweeping_removes_what_no_process_is_writing(tmp_path: Path, litter: dict[str, Path]) -> None:
    left_over = {"dead", "dead rows", "own", "elsewhere, old"}
    assert set(leftovers(tmp_path)) == {litter[kind] for kind in left_over | {"other shard"}}
    assert set(sweep(tmp_path / "00000.h5")) == {litter[kind] for kind in left_over}
    assert {kind for kind, path in litter.items() if not path.exists()} == left_over


def test_sweeping_an_absent_folder_is_nothing(tmp_path: Path) -> None:
    assert sweep(tmp_path / "none" / "00000.h5") == []


def test_bytes_for_people() -> None:
    assert [bytes_text(n) for n in (0, 999, 1500, 12e6, 3e15)] == ["0 B", "999 B", "1.5 kB", "12.0 MB", "3000.0 TB"]
