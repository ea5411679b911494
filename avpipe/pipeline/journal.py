"""What is found out piece by piece, kept as it comes: a file of JSON lines that only grows.

A process may be killed at any moment, and several may write at once. A row is on its way to the disk when
:meth:`Journal.append` returns; what is half written, damaged or of another version is not there, as far as readers are
concerned, and harms no other row. Nothing is flushed to the disk itself: what a power cut takes can be found out again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from avpipe.pipeline.files import atomic_write, storage_errors, sweep

_BUFFER_BYTES = 1 << 20  # of rows that are appended at once: one write of the system, which nobody else's cuts in two
_FEW_LINES = 100


class Journal:
    """Rows by key, for as long as the ``with`` block lasts; the last row of a key counts.

    When the block ends well and most lines are stale (followed by another of their key, unreadable, or of another
    version), the file is written anew without them, unless another process is using it.

    Args:
        path: of the file; it and its folder are made.
        version: of what the rows mean. Rows of another one are not read.

    Attributes:
        rows: by key: those of the file when the block began, and those appended since.

    Raises:
        StoreError: the file cannot be read or written.
    """

    def __init__(self, path: Path, version: str) -> None:
        self._path, self._version = path, version
        self._file: BinaryIO | None = None
        self._lines = 0
        self._is_torn = False
        self.rows: dict[str, dict[str, Any]] = {}

    def append(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep some rows.

        Raises:
            StoreError: the disk is full, ...
        """
        if not rows:
            return
        if self._file is None:
            raise ValueError("a journal is written to within its with block")
        data = b"".join(self._line(key, row) for key, row in rows.items())
        with storage_errors(self._path):
            self._file.write(b"\n" + data if self._is_torn else data)
            self._file.flush()
        self._is_torn = False
        self._lines += len(rows)
        self.rows.update({key: dict(row) for key, row in rows.items()})

    def __enter__(self) -> Self:
        with storage_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _open_shared(self._path)
            data = self._path.read_bytes()
        self._read(data)
        self._is_torn = bool(data) and not data.endswith(b"\n")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        try:
            if kind is None and self._is_mostly_stale():
                with storage_errors(self._path):
                    self._compact(file)
        finally:
            # And with it the lock. What could not be written to a full disk is tried once more, and was told already.
            with suppress(OSError) if kind else storage_errors(self._path):
                file.close()

    def _read(self, data: bytes) -> None:
        lines = data.splitlines()
        self._lines, self.rows = len(lines), {}
        for line in lines:
            try:
                match json.loads(line):
                    case {"version": self._version, "key": str(key), "row": dict(row)}:
                        self.rows[key] = row
            except (ValueError, RecursionError):  # half a line, or garbage
                continue

    def _line(self, key: str, row: Mapping[str, Any]) -> bytes:
        # Pure ASCII: a file name that is no UTF-8 holds half characters.
        line = {"version": self._version, "key": key, "row": dict(row)}
        return json.dumps(line, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"

    def _is_mostly_stale(self) -> bool:
        return self._lines > 2 * len(self.rows) + _FEW_LINES

    def _compact(self, file: BinaryIO) -> None:
        """Write the file anew, without what is stale. What others have appended meanwhile is kept."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # somebody is using it, or the file system knows no locks
            return
        if not _is_at(file, self._path):  # somebody was faster
            return
        self._read(self._path.read_bytes())
        sweep(self._path)
        with atomic_write(self._path) as aside:
            aside.write_bytes(b"".join(self._line(key, row) for key, row in self.rows.items()))


def _open_shared(path: Path) -> BinaryIO:
    """Open a file for appending, with a lock that keeps others from writing it anew."""
    while True:
        file = path.open("ab", buffering=_BUFFER_BYTES)
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
        except OSError:  # a file system without locks: nobody writes anew there
            return file
        if _is_at(file, path):
            return file
        file.close()  # it was written anew while we waited


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
