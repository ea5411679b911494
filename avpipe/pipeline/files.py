"""Files that are whole or absent: written aside, flushed to the disk, renamed into place.

A process may be killed at any moment. What it leaves is then either the file that stood there before, or the new one,
whole; and perhaps a temporary file, whose name says whose it is: ``.00000.h5.myhost.4711.tmp``.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from avpipe.pipeline.errors import StoreError

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<host>[A-Za-z0-9-]+)\.(?P<pid>\d+)\.tmp")
_COPY_BYTES = 16 << 20
_ABANDONED_SECONDS = 3600.0


@contextmanager
def storage_errors(path: Path, doing: str = "write") -> Iterator[None]:
    """Turn what the operating system says about ``path`` into a message that a user can act on.

    Only storage work belongs inside: every :class:`OSError` is taken for one of the disk.

    Raises:
        StoreError: an ``OSError`` was raised inside.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot {doing} {path}: {_explain(error, path)}") from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file that is whole or absent: ``with atomic_write(path) as aside: ...`` writes to ``aside``.

    When the block ends, the bytes are flushed to the disk, the file takes its name, and the folder is flushed. When
    it raises, ``aside`` is removed and whatever stood at ``path`` still stands. Missing folders are made.

    Raises:
        StoreError: the disk is full, the folder cannot be written, ...
    """
    aside = temporary(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            flush(aside)
            aside.replace(path)
        except BaseException:
            with suppress(OSError):  # the first error is the one to tell
                aside.unlink(missing_ok=True)
            raise
        flush(path.parent)


def write_json(path: Path, values: Any) -> None:
    """Write JSON-ready values, whole or not at all.

    Pure ASCII: an error message may hold half a character of a file name that is no UTF-8, and must not stop a run.

    Raises:
        StoreError: the file cannot be written.
    """
    text = json.dumps(values, indent=1, allow_nan=False)
    with atomic_write(path) as aside:
        aside.write_text(text + "\n", encoding="ascii")


def sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex.

    Raises:
        StoreError: the file cannot be read.
    """
    with storage_errors(path, "read"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``; one ``pwrite`` may write less than it was given.

    Raises:
        OSError: as ``os.pwrite``.
    """
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def copy_range(source: int, source_offset: int, target: int, target_offset: int, length: int) -> None:
    """Copy bytes between two descriptors, block by block.

    Raises:
        OSError: as ``os.pread`` and ``os.pwrite``; ``EIO`` if the source ends early.
    """
    while length:
        block = os.pread(source, min(length, _COPY_BYTES), source_offset)
        if not block:
            raise OSError(errno.EIO, f"the temporary file ends {length} bytes early")
        write_all(target, memoryview(block), target_offset)
        source_offset += len(block)
        target_offset += len(block)
        length -= len(block)


def flush(path: Path) -> None:
    """Have a file's bytes, or a folder's names, reach the disk.

    Raises:
        OSError: the disk is full after all, ...
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary(path: Path, purpose: str = "") -> Path:
    """Where this process writes aside what will become ``path``: in the same folder, hence on the same disk."""
    name = f"{path.name}.{purpose}" if purpose else path.name
    return path.with_name(f".{name}.{_host()}.{os.getpid()}.tmp")


def leftovers(folder: Path, pattern: str = "*") -> list[Path]:
    """Temporary files in ``folder`` that no process is writing any more, sorted.

    A file of this machine is left over when its process is gone. One of another machine, whose processes cannot be
    seen, when it has not been written for an hour.

    Args:
        folder: where to look; need not exist.
        pattern: glob pattern for the names of the files that they were to become.
    """
    found = folder.glob(f".{pattern}.tmp")
    return sorted(path for path in found if _is_abandoned(path))


def sweep(path: Path) -> list[Path]:
    """Remove what killed processes left of ``path``; returns what was removed.

    Raises:
        StoreError: a leftover cannot be removed.
    """
    left = leftovers(path.parent, f"{glob.escape(path.name)}.*")
    with storage_errors(path, "remove what a killed run left of"):
        for leftover in left:
            leftover.unlink(missing_ok=True)
    return left


def bytes_text(count: float) -> str:
    """A number of bytes for people: ``"1.3 GB"``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()) or "localhost"


def _is_abandoned(path: Path) -> bool:
    match = _TEMPORARY.fullmatch(path.name)
    if match is None:
        return False  # not ours
    if match["host"] == _host():
        return int(match["pid"]) == os.getpid() or not _is_alive(int(match["pid"]))
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED_SECONDS
    except FileNotFoundError:  # its process has just finished it
        return False


def _is_alive(pid: int) -> bool:
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _explain(error: OSError, path: Path) -> str:
    """What is wrong with the disk, and what to try."""
    folder = next((parent for parent in path.parents if parent.is_dir()), Path())
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        usage = shutil.disk_usage(folder)
        limit = "the quota is used up" if error.errno == errno.EDQUOT else "the disk is full"
        return (
            f"{limit} ({bytes_text(usage.free)} of {bytes_text(usage.total)} free at {folder}). Make room, or choose "
            f"another disk with --workspace; then run the same command again: what is finished is kept"
        )
    if error.errno == errno.EROFS:
        return f"{folder} is on a read-only file system. Choose another place with --workspace"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"no permission in {folder}. Change its mode or owner, or choose another place with --workspace"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        file = next((parent for parent in path.parents if parent.is_file()), path.parent)
        return f"expected a folder at {file}, got a file. Remove it, or choose another place with --workspace"
    if error.errno == errno.EISDIR:
        return f"expected a file at {path}, got a folder. Remove it"
    if error.errno == errno.EFBIG:
        return f"the file grew beyond what may be written here (ulimit -f, or the file system of {folder})"
    return error.strerror or str(error)
