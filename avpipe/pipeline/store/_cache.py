"""Shards of remote storage, copied to this machine once."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avpipe.pipeline import files
from avpipe.pipeline.errors import CorruptShardError
from avpipe.pipeline.files import atomic_write, storage_errors
from avpipe.pipeline.places import cache_folder
from avpipe.pipeline.remote import RemotePath

_CHOOSE = "AVPIPE_CACHE"


def local_copy(path: Path, sha256: str = "") -> Path:
    """Where a shard can be read on this machine: ``path`` itself, or a copy of it if it is remote.

    A copy is fetched whole, and by one process however many ask. It lies below ``shards/`` of the cache folder
    (``$AVPIPE_CACHE``, else ``~/.cache/avpipe``) under a name made of its URL and content, so that a shard that was
    written anew is fetched anew. Whatever lies there may be deleted at any time.

    Args:
        path: of the shard.
        sha256: of its bytes, in hex, which are then checked; "" if nobody knows it: then the storage is asked each
            time whether the shard has changed.

    Raises:
        CorruptShardError: the shard is not what ``sha256`` says.
        StoreError: it cannot be fetched, or the cache cannot be written.
    """
    if not isinstance(path, RemotePath):
        return path
    content = sha256
    if not content:
        with storage_errors(path, "read"):
            status = path.stat()
        content = f"{status.st_size} {status.etag or status.st_mtime_ns}"
    key = hashlib.sha256(f"{path}\0{content}".encode()).hexdigest()[:32]
    local = cache_folder() / "shards" / key / path.name
    if local.exists():
        return local
    with storage_errors(local, "keep a copy at", choose=_CHOOSE):
        local.parent.mkdir(parents=True, exist_ok=True)
        with _alone(local.with_name("lock")):
            if not local.exists():
                _fetch(path, local, sha256)
    return local


def _fetch(path: RemotePath, local: Path, sha256: str) -> None:
    with atomic_write(local, choose=_CHOOSE) as aside:
        try:
            path.download(aside)
        except FileNotFoundError as error:
            raise CorruptShardError(f"{path} is gone. `avpipe extract` writes this shard again") from error
        if sha256 and files.sha256(aside) != sha256:
            raise CorruptShardError(
                f"{path}: its bytes are not those that its completion mark promises. `avpipe verify --deep` names "
                f"every such shard"
            )


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait until no other process is inside."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
