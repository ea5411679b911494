"""Media files of remote storage, here for as long as they are decoded.

The worker process fetches, not the decoding processes: a slow or silent storage then takes nothing of a clip's time
limit, and a decoder that crashes leaves no file behind.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from avpipe.extract.decoding import DecodeJob
from avpipe.pipeline.errors import ClipError, StoreError
from avpipe.pipeline.files import leftovers, private_folder, storage_errors, temporary
from avpipe.pipeline.remote import RemotePath

_MEMORY = Path("/dev/shm")
_MEMORY_SHARE = 8
_LONGEST_NAME_BYTES = 255


@dataclass(slots=True)
class _Held:
    """A file that is here."""

    folder: Path | None = None
    users: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Fetcher:
    """Gives jobs whose file is on this machine. Any number of threads may use it.

    Small files come to lie in memory (``/dev/shm``, if an eighth of what is free there holds them), others below
    ``$TMPDIR``. A file goes when nobody needs it any more, but for the last one: the next job is often another part of
    the same video. What a killed process left is removed when the next one fetches.
    """

    def __init__(self) -> None:
        self._held: dict[RemotePath, _Held] = {}
        self._lock = threading.Lock()
        self._roots: set[Path] = set()

    @contextmanager
    def here(self, job: DecodeJob) -> Iterator[DecodeJob]:
        """A job whose file is on this machine, until the block ends. A local one stays as it is.

        Raises:
            ClipError: ``"missing_file"``: the storage says that it has no such file.
            StoreError: the storage does not answer, or the disk is full: no fault of the clip's.
        """
        if not isinstance(job.path, RemotePath):
            yield job
            return
        held = self._take(job.path)
        try:
            with held.lock:  # one fetches, those who want the same file wait
                if held.folder is None:
                    held.folder = self._fetch(job.path)
            yield replace(job, path=held.folder / _local_name(job.path))
        finally:
            self._release(job.path, held)

    def close(self) -> None:
        """Remove everything."""
        with self._lock:
            for root in self._roots:
                shutil.rmtree(root, ignore_errors=True)
            self._held.clear()

    def _take(self, path: RemotePath) -> _Held:
        with self._lock:
            held = self._held.pop(path) if path in self._held else _Held()
            self._held[path] = held  # the last one used stands last
            held.users += 1
            return held

    def _release(self, path: RemotePath, held: _Held) -> None:
        with self._lock:
            held.users -= 1
            if held.folder is None and not held.users:  # there was nothing to fetch
                del self._held[path]
            idle = [known for known, other in self._held.items() if not other.users]
            for known in idle[:-1]:
                if folder := self._held.pop(known).folder:
                    shutil.rmtree(folder, ignore_errors=True)

    def _fetch(self, path: RemotePath) -> Path:
        """Copy a file to a folder of its own; returns the folder."""
        try:
            str(path).encode()
            size = path.stat().st_size
        except (FileNotFoundError, UnicodeEncodeError):
            raise ClipError("missing_file", f"{path.name} does not exist") from None
        if _MEMORY.is_dir() and size * _MEMORY_SHARE <= shutil.disk_usage(_MEMORY).free:
            try:
                return self._download(path, self._root(_MEMORY))
            except StoreError as error:
                cause = error.__cause__
                if not (isinstance(cause, OSError) and cause.errno == errno.ENOSPC):
                    raise  # else others had taken the room meanwhile
        return self._download(path, self._root(None))

    def _download(self, path: RemotePath, root: Path) -> Path:
        with storage_errors(root, f"fetch {path} to", choose="TMPDIR"):
            folder = Path(tempfile.mkdtemp(dir=root))
            try:
                path.download(folder / _local_name(path))
            except BaseException as error:
                shutil.rmtree(folder, ignore_errors=True)
                if isinstance(error, FileNotFoundError) and not path.exists():  # else it is the folder here that went
                    raise ClipError("missing_file", f"{path.name} does not exist") from None
                raise
        return folder

    def _root(self, parent: Path | None) -> Path:
        """The folder of this fetcher there; ``None``: below ``$TMPDIR``."""
        root = temporary(private_folder(parent) / f"media-{id(self)}")
        with self._lock:
            if root not in self._roots:
                for leftover in leftovers(root.parent, "media-*"):
                    if not leftover.name.endswith(_own_ending(root)):
                        shutil.rmtree(leftover, ignore_errors=True)
                self._roots.add(root)
            with storage_errors(root, "make", choose="TMPDIR"):
                root.mkdir(exist_ok=True)
        return root


def _own_ending(root: Path) -> str:
    """How the names of everything that this process has put there end."""
    return "." + ".".join(root.name.split(".")[-3:])


def _local_name(path: RemotePath) -> str:
    """The same name, which FFmpeg guesses by and messages tell, unless no local disk takes it."""
    return path.name if len(path.name.encode()) <= _LONGEST_NAME_BYTES else f"media{path.suffix[:16]}"
