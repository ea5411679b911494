"""A file of rows that only grows: what is whole counts, whatever else lies in it."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from avpipe.pipeline.errors import StoreError
from avpipe.pipeline.journal import Journal

MANY = 250


def keep(path: Path, rows: dict[str, dict[str, int]], version: str = "1") -> None:
    with Journal(path, version) as journal:
        journal.append(rows)


def rows(path: Path, version: str = "1") -> dict[str, dict[str, int]]:
    with Journal(path, version) as journal:
        return dict(journal.rows)


def test_rows_come_back_and_the_last_of_a_key_counts(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    with Journal(path, "1") as journal:
        assert journal.rows == {}
        journal.append({"a": {"x": 1}, "b": {"x": 2}})
        journal.append({})
        journal.append({"a": {"x": 3}})
        assert rows(path) == journal.rows == {"a": {"x": 3}, "b": {"x": 2}}  # it is there for others at once
    assert path.read_text().count("\n") == 3


def test_a_name_that_is_no_utf8_is_a_key(tmp_path: Path) -> None:
    keep(tmp_path / "rows", {"caf\udce9.mp4": {"x": 1}})
    assert rows(tmp_path / "rows") == {"caf\udce9.mp4": {"x": 1}}


@pytest.mark.parametrize(
    "garbage",
    [
        b'{"version":"1","key":"b","ro',
        b"\0\0\0\0",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"version":"1","key":"b","row":7}\n',
        b'{"version":"1","key":7,"row":{}}\n',
        b'{"version":"1","row":{}}\n',
        b"null\n",
        b"\n\n",
    ],
)
def test_garbage_costs_no_other_row(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "rows"
    keep(path, {"a": {"x": 1}})
    with path.open("ab") as file:
        file.write(garbage)
    assert rows(path) == {"a": {"x": 1}}
    keep(path, {"c": {"x": 2}})  # what follows half a line is a line of its own
    assert rows(path) == {"a": {"x": 1}, "c": {"x": 2}}


def test_rows_of_another_version_are_not_read(tmp_path: Path) -> None:
    keep(tmp_path / "rows", {"a": {"x": 1}})
    assert rows(tmp_path / "rows", version="2") == {}
    keep(tmp_path / "rows", {"b": {"x": 1}}, version="2")
    assert rows(tmp_path / "rows") == {"a": {"x": 1}}  # and stay, while they are not many


def test_a_file_that_is_mostly_stale_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    with Journal(path, "1") as journal:
        for number in range(MANY):
            journal.append({"a": {"x": number}, "b": {"x": 0}})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["key"]: line["row"] for line in lines} == {"a": {"x": MANY - 1}, "b": {"x": 0}}
    assert len(lines) == 2
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_of_which_little_is_stale_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    keep(path, {str(number): {"x": number} for number in range(MANY)})
    keep(path, {str(number): {"x": -number} for number in range(MANY)})
    assert path.read_text().count("\n") == 2 * MANY


def test_what_ends_badly_writes_nothing_anew(tmp_path: Path) -> None:
    path = tmp_path / "rows"

    def interrupted() -> None:
        with Journal(path, "1") as journal:
            for number in range(MANY):
                journal.append({"a": {"x": number}})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text().count("\n") == MANY
    assert rows(path) == {"a": {"x": MANY - 1}}


def test_a_file_that_another_uses_is_not_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    with Journal(path, "1") as other:
        for number in range(MANY):
            keep(path, {"a": {"x": number}})
        other.append({"b": {"x": 1}})
        assert path.read_text().count("\n") == MANY + 1
    assert rows(path) == {"a": {"x": MANY - 1}, "b": {"x": 1}}


def test_two_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows"

    def write(name: str) -> None:
        for number in range(100):
            keep(path, {f"{name}{number}": {"x": number}, "same": {"x": number}})

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(rows(path)) == {f"{name}{number}" for name in "abc" for number in range(100)} | {"same"}


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    program = (
        "import sys; from pathlib import Path; from avpipe.pipeline.journal import Journal\n"
        "for number in range(150):\n"
        "    with Journal(Path(sys.argv[1]), '1') as journal:\n"
        "        journal.append({f'{sys.argv[2]}{number}': {}, 'same': {}, 'other': {}, 'third': {}})\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", program, str(path), name]) for name in "ab"]
    assert [process.wait(60) for process in running] == [0, 0]
    expected = {f"{name}{number}" for name in "ab" for number in range(150)} | {"same", "other", "third"}
    assert set(rows(path)) == expected
    assert path.read_text().count("\n") < 1200  # and it was written anew in between


def test_a_journal_that_cannot_be_written_fails(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match=r"expected a file at .*folder, got a folder"):
        keep(tmp_path / "folder", {"a": {}})
    with pytest.raises(ValueError, match="within its with block"):
        Journal(tmp_path / "rows", "1").append({"a": {}})


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    code = (
        "import sys, signal; from pathlib import Path; from avpipe.pipeline.journal import Journal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "with Journal(Path(sys.argv[1]), '1') as journal:\n"
        "    for number in range(1000):\n"
        "        journal.append({str(number): {}})\n"
    )

    def little() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    path = tmp_path / "rows"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], preexec_fn=little, capture_output=True, text=True, check=False
    )
    assert "StoreError" in done.stderr and "the file grew beyond what may be written here" in done.stderr
    kept = rows(path)
    assert list(kept) == [str(number) for number in range(len(kept))]
    assert len(kept) > 50
