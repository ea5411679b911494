"""Paths of remote storage: ``s3://bucket/data``, and whatever else fsspec reaches.

A :class:`RemotePath` has those methods of :class:`pathlib.Path` that avpipe uses, so that the rest of the code need not
care. Two things are stricter than in fsspec, where "not there" and "no answer" are often one:

- What is asked for and not there raises ``FileNotFoundError``. Every other trouble (no answer, no permission, no such
  bucket) is a :class:`StoreError` that says what to try. Only the *local* disk's errors stay as they are.
- Nothing is believed from a former listing: other machines write there, too.

Nothing is written in place: :meth:`RemotePath.upload` takes a local file, whole. Object stores show an object when all
of it has come, or not at all. Retries are those of fsspec's own; its configuration files and the variables of each
storage (``AWS_PROFILE``, ``AWS_ENDPOINT_URL``, ...) hold here as everywhere.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from avpipe.pipeline.errors import MissingPackageError, StoreError, UsageError

if TYPE_CHECKING:
    import asyncio

_BLOCK_BYTES = 16 << 20
_LOCAL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EMFILE)
"""No storage gives these for an answer: they are about a file on this machine."""


@dataclass(frozen=True, slots=True)
class RemoteStat:
    """What a storage says of an object, as far as it does.

    Attributes:
        st_size: in bytes.
        st_mtime_ns: when it was written; 0 if the storage does not say.
        etag: changes when the content does; "" if the storage has none.
    """

    st_size: int
    st_mtime_ns: int
    etag: str


class RemotePath:
    """Stands where a :class:`pathlib.Path` does. Compares, sorts, hashes and pickles; safe in forked processes.

    Args:
        protocol: ``"s3"``.
        path: with the bucket, without protocol: ``"bucket/data"``.
    """

    __slots__ = ("_path", "protocol")

    def __init__(self, protocol: str, path: str | PurePosixPath) -> None:
        self.protocol = protocol
        self._path = PurePosixPath(str(path).strip("/"))

    @classmethod
    def parse(cls, url: str) -> RemotePath:
        """``"s3://bucket/data"``.

        Raises:
            UsageError: it is no such URL, or nothing knows its protocol.
            MissingPackageError: the package for its protocol is not installed.
        """
        import fsspec

        protocol, colon, path = url.partition("://")
        if not colon or not path.strip("/"):
            raise UsageError(f"expected a folder or a URL like s3://bucket/folder, got {url!r}")
        try:
            fsspec.get_filesystem_class(protocol)
        except ValueError:
            raise UsageError(f"nothing knows the protocol of {url!r}; for example s3://bucket/folder works") from None
        except ImportError as error:
            advice = " (pip install 'avpipe[s3]')" if protocol in ("s3", "s3a") else ""
            raise MissingPackageError(f"{url}: {error}{advice}") from None
        return cls(protocol, path)

    # -- names -----------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        return f"{self.protocol}://{self._path}"

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __lt__(self, other: RemotePath) -> bool:
        return str(self) < str(other)

    def __reduce__(self) -> tuple[type[RemotePath], tuple[str, str]]:
        return type(self), (self.protocol, str(self._path))

    def __truediv__(self, other: str | PurePosixPath) -> RemotePath:
        return RemotePath(self.protocol, self._path / str(other))

    @property
    def name(self) -> str:
        """The last part."""
        return self._path.name

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return self._path.stem

    @property
    def suffix(self) -> str:
        """From the last part's last dot on."""
        return self._path.suffix

    @property
    def parent(self) -> RemotePath:
        """The folder that it is in."""
        return RemotePath(self.protocol, self._path.parent)

    def with_name(self, name: str) -> RemotePath:
        """Another one in the same folder."""
        return RemotePath(self.protocol, self._path.with_name(name))

    def is_relative_to(self, other: Path | RemotePath) -> bool:
        """Whether it is ``other``, or lies below."""
        same = isinstance(other, RemotePath) and other.protocol == self.protocol
        return same and self._path.is_relative_to(other._path)  # type: ignore[union-attr]  # the line before made sure

    def relative_to(self, other: RemotePath) -> PurePosixPath:
        """The way from ``other`` to here."""
        return self._path.relative_to(other._path)

    def resolve(self) -> RemotePath:
        """The same place without ``..``."""
        return RemotePath(self.protocol, posixpath.normpath(str(self._path)))

    # -- looking ---------------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether there is an object of that name, or any below it."""
        return self._info() is not None

    def is_dir(self) -> bool:
        """Whether there are objects below."""
        info = self._info()
        return info is not None and info["type"] == "directory"

    def is_file(self) -> bool:
        """Whether it is an object."""
        info = self._info()
        return info is not None and info["type"] != "directory"

    def stat(self) -> RemoteStat:
        """What the storage says of the object.

        Raises:
            FileNotFoundError: it is not there.
        """
        info = self._info()
        if info is None or info["type"] == "directory":
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self))
        times = (info.get(key) for key in ("LastModified", "last_modified", "mtime", "updated", "created"))
        etag = next((str(info[key]) for key in ("ETag", "etag", "md5Hash") if info.get(key)), "")
        return RemoteStat(int(info["size"]), next(filter(None, map(_nanoseconds, times)), 0), etag)

    def iterdir(self) -> Iterator[RemotePath]:
        """What lies in this folder.

        Raises:
            FileNotFoundError: there is no such folder.
        """
        with _told(self, "list"):
            listed = self._fs.ls(str(self), detail=True)
        names = (PurePosixPath(entry["name"]) for entry in listed)
        # Some tools mark a folder by an object of its own name.
        yield from (self / name.name for name in names if f"/{name}".endswith(f"/{self._path / name.name}"))

    def files_below(self) -> list[str]:
        """Every object below, by its path from here."""
        with _told(self, "list"):
            found = self._fs.find(str(self))
            top = self._fs._strip_protocol(str(self)).rstrip("/") + "/"
        return sorted(name.removeprefix(top) for name in found if name.startswith(top))

    def bucket_exists(self) -> bool:
        """Whether the bucket is there, as far as this user may know."""
        bucket = RemotePath(self.protocol, self._path.parts[0])
        try:
            return self.protocol == "memory" or bucket.exists()
        except StoreError as error:
            if isinstance(error.__cause__, PermissionError):  # one may see one's own folder alone
                return True
            raise

    # -- reading ---------------------------------------------------------------------------------------------------

    def read_bytes(self) -> bytes:
        """The whole object.

        Raises:
            FileNotFoundError: it is not there.
        """
        with _told(self, "read"):
            return bytes(self._fs.cat_file(str(self)))

    def read_text(self, encoding: str = "utf-8") -> str:
        """The whole object as text."""
        return self.read_bytes().decode(encoding)

    def open(self, mode: str = "rb") -> IO[bytes]:
        """The whole object, fetched at once. To be read only, and as bytes."""
        if mode != "rb":
            raise ValueError(f"mode: expected 'rb', got {mode!r}")
        return io.BytesIO(self.read_bytes())

    def blocks(self) -> Iterator[bytes]:
        """The object block by block, however large it is.

        Raises:
            FileNotFoundError: it is not there.
        """
        with _told(self, "read"), self._fs.open(str(self), "rb", block_size=_BLOCK_BYTES) as file:
            while block := file.read(_BLOCK_BYTES):
                yield block

    def download(self, target: Path) -> None:
        """Copy the object to a local file.

        Raises:
            FileNotFoundError: it is not there.
            OSError: the local disk is full, ...
        """
        with _told(self, "read"):
            self._fs.get_file(str(self), str(target))

    # -- writing ---------------------------------------------------------------------------------------------------

    def upload(self, source: Path) -> None:
        """Make a local file this object."""
        with _told(self, "write"):
            self._fs.put_file(str(source), str(self))
            size = int(self._fs.info(str(self))["size"])
        if size != (expected := source.stat().st_size):
            raise StoreError(f"cannot write {self}: sent {expected} bytes, the storage says it holds {size}")

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object.

        Raises:
            FileNotFoundError: it is not there, and that is not ok.
        """
        if not self.exists():
            if missing_ok:
                return
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self))
        with _told(self, "remove"):
            self._fs.rm_file(str(self))

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: folders are there as soon as something is in them, and no bucket is made by a slip of the pen."""

    @property
    def _fs(self) -> Any:
        return _filesystem(self.protocol, os.getpid())

    def _info(self) -> dict[str, Any] | None:
        try:
            with _told(self, "look at"):
                return dict(self._fs.info(str(self)))
        except FileNotFoundError:
            return None


def is_remote(path: Path | RemotePath) -> bool:
    """Whether a path is one of remote storage."""
    return isinstance(path, RemotePath)


@functools.cache
def _filesystem(protocol: str, pid: int) -> Any:
    """One for all threads of a process, with one pool of connections; a forked process needs its own."""
    import fsspec
    from fsspec.asyn import get_loop

    get_loop().set_exception_handler(_on_stray_error)
    return fsspec.filesystem(protocol, use_listings_cache=False, skip_instance_cache=True)


def _on_stray_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Of a connection that broke, some part may notice when nobody listens to it any more. Whoever asked has been told
    (:func:`_told`): not everybody need hear it a second time, with a traceback.
    """
    if not isinstance(context.get("exception"), OSError):
        loop.default_exception_handler(context)


@contextmanager
def _told(path: RemotePath, doing: str) -> Iterator[None]:
    """Turn what a storage's package raises into what this module promises."""
    try:
        yield
    except FileNotFoundError as error:
        if _code(error) == "NoSuchBucket":
            raise StoreError(f"cannot {doing} {path}: {_explain(error)}") from error
        raise FileNotFoundError(errno.ENOENT, "no such object", str(path)) from error
    except Exception as error:
        is_local = isinstance(error, OSError) and error.errno in _LOCAL_ERRORS
        is_bug = not isinstance(error, OSError) and type(error).__module__.partition(".")[0] in ("builtins", "avpipe")
        if is_local or is_bug:
            raise
        raise StoreError(f"cannot {doing} {path}: {_explain(error)}") from error


def _code(error: BaseException) -> str:
    """What the server called it: ``"NoSuchBucket"``; "" if it said nothing."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _explain(error: BaseException) -> str:
    """What is wrong with the storage, and what to try."""
    said = str(error).strip().partition("\n")[0] or type(error).__name__
    if _code(error) == "NoSuchBucket":
        return "there is no such bucket. Check the URL, and which server is asked (AWS_ENDPOINT_URL)"
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__ or _code(error) in ("401", "403"):
        return (
            f"no permission ({said}). Check the credentials of this machine (for s3: AWS_PROFILE, or AWS_ACCESS_KEY_ID "
            f"and AWS_SECRET_ACCESS_KEY), and that they may list, read, write and remove there"
        )
    return f"{said}. When the storage answers again, run the same command again: what is finished is kept"


def _nanoseconds(time: object) -> int:
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    if isinstance(time, datetime):
        time = time.timestamp()
    return int(time * 1_000_000_000) if isinstance(time, (int, float)) else 0
