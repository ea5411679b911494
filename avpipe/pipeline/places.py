"""Where the user's words point: a folder of this machine, or a URL of remote storage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

from avpipe.pipeline.errors import UsageError
from avpipe.pipeline.remote import RemotePath


def place(text: str | Path) -> Path:
    """The place that a user names: ``"data"``, ``"~/data"``, ``"/data"``, ``"s3://bucket/data"``.

    What comes back for a URL is a :class:`~avpipe.pipeline.remote.RemotePath`. It passes for a ``Path``: it has the
    methods that avpipe uses.

    Raises:
        UsageError: a URL that nothing here understands.
        MissingPackageError: the package for that storage is not installed.
    """
    if not isinstance(text, str) or "://" not in text:
        return cast(Path, text) if isinstance(text, RemotePath) else Path(text).expanduser()
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return cast(Path, RemotePath.parse(text))


def cache_folder() -> Path:
    """Where avpipe keeps what it can get again: ``$AVPIPE_CACHE``, else ``~/.cache/avpipe``.

    Raises:
        UsageError: there is neither; so it is in containers whose user has no home.
    """
    try:
        return Path(os.environ.get("AVPIPE_CACHE") or "~/.cache/avpipe").expanduser()
    except RuntimeError as error:
        raise UsageError(f"no place for what avpipe can get again: {error} Set AVPIPE_CACHE to a folder") from None


def is_readable(path: Path) -> bool:
    """Whether a file is there and may be read: where the user may not even look, there is none for us."""
    return os.access(path, os.R_OK) and path.is_file()
