"""Files that are whole or absent: written aside, flushed to the disk, renamed into place.

A process may be killed at any moment. What it leaves is then either the file that stood there before, or the new one,
whole; and perhaps a temporary file, whose name says whose it is: ``.00000.h5.myhost.4711.tmp``.

What goes to remote storage (:mod:`avpipe.pipeline.remote`) is written aside on this machine, below ``$TMPDIR``, and
uploaded when it is whole.
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
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from avpipe.pipeline.errors import StoreError
from avpipe.pipeline.remote import RemotePath, is_remote

T = TypeVar("T")

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<host>[A-Za-z0-9-]+)\.(?P<pid>\d+)\.tmp")
_COPY_BYTES = 16 << 20
_ABANDONED_SECONDS = 3600.0
_REQUESTS_AT_ONCE = 16


@contextmanager
def storage_errors(path: Path, doing: str = "write", choose: str = "--workspace") -> Iterator[None]:
    """Turn what the operating system says about ``path`` into a message that a user can act on.

    Only storage work belongs inside: every :class:`OSError` is taken for one of the disk.

    Args:
        path: the file.
        doing: what is done to it.
        choose: what chooses another disk.

    Raises:
        StoreError: an ``OSError`` was raised inside.
    """
    try:
        yield
    except OSError as error:
        if not is_remote(path):
            reason = _explain(error, path, choose)
        elif isinstance(error, FileNotFoundError):
            reason = "it is not there"
        else:  # what the storage itself says is no OSError
            reason = _explain(error, temporary(path), "TMPDIR")
        raise StoreError(f"cannot {doing} {path}: {reason}") from error


@contextmanager
def atomic_write(path: Path, choose: str = "--workspace") -> Iterator[Path]:
    """Write a file that is whole or absent: ``with atomic_write(path) as aside: ...`` writes to ``aside``.

    When the block ends, the bytes are flushed to the disk, the file takes its name, and the folder is flushed. When
    it raises, ``aside`` is removed and whatever stood at ``path`` still stands. Missing folders are made.

    Where ``path`` is remote, ``aside`` is a file of this machine nevertheless; it is uploaded when the block ends.

    Args:
        path: of the file.
        choose: what the user can choose another disk with.

    Raises:
        StoreError: the disk is full, the folder cannot be written, the storage does not answer, ...
    """
    aside = temporary(path)
    if isinstance(path, RemotePath):
        with storage_errors(path):
            try:
                yield aside
                path.upload(aside)
            finally:
                aside.unlink(missing_ok=True)
        return
    with storage_errors(path, choose=choose):
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
    with storage_errors(path, "read"):
        if isinstance(path, RemotePath):
            digest = hashlib.sha256()
            for block in path.blocks():
                digest.update(block)
            return digest.hexdigest()
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def each(function: Callable[[Path], T], paths: Sequence[Path]) -> list[T]:
    """What a function gives for each path; several at once where they are remote and every answer takes its time."""
    if not any(map(is_remote, paths)):
        return [function(path) for path in paths]
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as threads:
        return list(threads.map(function, paths))


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


def listed(folder: Path) -> list[Path]:
    """What lies in a folder, sorted; nothing if there is no such folder.

    Raises:
        StoreError: it cannot be read.
    """
    with storage_errors(folder, "read"):
        try:
            return sorted(folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []


def temporary(path: Path, purpose: str = "") -> Path:
    """Where this process writes aside what will become ``path``: in the same folder, hence on the same disk.

    Raises:
        StoreError: ``path`` is remote, and :func:`private_folder` fails.
    """
    beside = _staged(path)
    name = f"{beside.name}.{purpose}" if purpose else beside.name
    return beside.with_name(f".{name}.{_host()}.{os.getpid()}.tmp")


def private_folder(parent: Path | None = None) -> Path:
    """A folder of this user alone, for temporary files: below ``$TMPDIR`` (default ``/tmp``), or ``parent``.

    Raises:
        StoreError: it cannot be made, or is another user's.
    """
    folder = (parent or Path(tempfile.gettempdir())) / f"avpipe-{os.getuid()}"
    with storage_errors(folder, "make", choose="TMPDIR"):
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
        raise StoreError(f"{folder} is not this user's own folder. Remove it, or choose another place with TMPDIR")
    return folder


def leftovers(folder: Path, pattern: str = "*") -> list[Path]:
    """Temporary files in ``folder`` that no process is writing any more, sorted.

    A file of this machine is left over when its process is gone. One of another machine, whose processes cannot be
    seen, when it has not been written for an hour.

    Args:
        folder: where to look; need not exist.
        pattern: glob pattern for the names of the files that they were to become.
    """
    if is_remote(folder):  # nothing is written aside there
        return []
    found = folder.glob(f".{pattern}.tmp")
    return sorted(path for path in found if _is_abandoned(path))


def sweep(path: Path) -> list[Path]:
    """Remove what killed processes left of ``path``; returns what was removed.

    Raises:
        StoreError: a leftover cannot be removed.
    """
    beside = _staged(path)
    left = leftovers(beside.parent, f"{glob.escape(beside.name)}.*")
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


def _staged(path: Path) -> Path:
    """``path`` itself, or where on this machine it would be if it is remote."""
    if not is_remote(path):
        return path
    return private_folder() / f"{hashlib.sha256(str(path).encode()).hexdigest()[:16]}-{path.name}"


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


def _explain(error: OSError, path: Path, choose: str) -> str:
    """What is wrong with the disk, and what to try."""
    folder = next((parent for parent in path.parents if parent.is_dir()), Path())
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        usage = shutil.disk_usage(folder)
        limit = "the quota is used up" if error.errno == errno.EDQUOT else "the disk is full"
        return (
            f"{limit} ({bytes_text(usage.free)} of {bytes_text(usage.total)} free at {folder}). Make room, or choose "
            f"another disk with {choose}; then run the same command again: what is finished is kept"
        )
    if error.errno == errno.EROFS:
        return f"{folder} is on a read-only file system. Choose another place with {choose}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"no permission in {folder}. Change its mode or owner, or choose another place with {choose}"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        file = next((parent for parent in path.parents if parent.is_file()), path.parent)
        return f"expected a folder at {file}, got a file. Remove it, or choose another place with {choose}"
    if error.errno == errno.EISDIR:
        return f"expected a file at {path}, got a folder. Remove it"
    if error.errno == errno.EFBIG:
        return f"the file grew beyond what may be written here (ulimit -f, or the file system of {folder})"
    return error.strerror or str(error)
