"""The two jars of Stanford CoreNLP that SPICE cannot do without: found, and fetched.

They are 385 MB, and so not part of pycocoevalcap, whose own downloader writes them into the installed package, over an
unprotected connection and without a checksum. Here they lie in a folder of the user's, and their bytes are pinned.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from avpipe.pipeline.errors import MissingPackageError, UsageError
from avpipe.pipeline.files import atomic_write, sha256, storage_errors, sweep
from avpipe.pipeline.places import cache_folder, is_readable

ENVIRONMENT_VARIABLE = "AVPIPE_SPICE"
MAVEN = "https://repo1.maven.org/maven2/edu/stanford/nlp/stanford-corenlp/3.6.0"

JARS: Mapping[str, str] = {
    "stanford-corenlp-3.6.0.jar": "d341d5863276f55782c5ef73212222d6b3b48e02ae1951ab6de7618d28b12742",
    "stanford-corenlp-3.6.0-models.jar": "d285157bd7887ee3018094b5dbae092e49088b023361ccdb550ee1daf9b2c9bd",
}
"""Names, and the sha256 of what Maven Central has under them."""

SIZES: Mapping[str, int] = {"stanford-corenlp-3.6.0.jar": 7270741, "stanford-corenlp-3.6.0-models.jar": 378116526}
"""Of the same, in bytes: what can be checked at once."""

_BLOCK_BYTES = 1 << 20
_PATIENCE_SECONDS = 60.0  # without a byte


def find_corenlp(given: Path | None = None) -> list[Path]:
    """The jars, from the first folder that has both: ``given``, ``$AVPIPE_SPICE``, avpipe's cache, pycocoevalcap.

    A folder that is named, by the argument or by the variable, is used or refused, never replaced.

    Raises:
        MissingPackageError: no folder has both; the message says what was looked for, where, and what to do.
    """
    asked = given or os.environ.get(ENVIRONMENT_VARIABLE)
    folders = [Path(asked).expanduser()] if asked else [spice_folder(), *_beside_the_jar()]
    for folder in folders:
        found = [folder / name for name in JARS]
        if all(map(is_readable, found)):
            return [path.absolute() for path in found]
    raise MissingPackageError(
        f"SPICE needs {' and '.join(JARS)}; looked in {', '.join(map(str, folders))}. "
        f"Try: avpipe doctor --install spice (385 MB), or set {ENVIRONMENT_VARIABLE} to a folder that has them"
    )


def spice_folder() -> Path:
    """Where :func:`install` puts them: ``spice`` in avpipe's cache."""
    return cache_folder() / "spice"


def install(
    source: str | None = None,
    *,
    jars: Mapping[str, str] = JARS,
    tell: Callable[[str], None] = lambda line: None,
) -> Path:
    """Put the jars into :func:`spice_folder`, each whole or not at all. What is there and sound is kept.

    Args:
        source: a folder, or the URL of one, that has both; Maven Central where not given.
        jars: sha256 by name.
        tell: is told what is being done, one line a jar.

    Returns:
        The folder.

    Raises:
        UsageError: the folder is not there, or the URL is of a kind that is not understood; or ``$AVPIPE_SPICE`` names
            another folder, so that what is installed would not be used.
        MissingPackageError: a jar is not to be had there, or its bytes are not those pinned.
        StoreError: it cannot be written.
    """
    source = source or MAVEN
    is_url = "://" in source
    if is_url and not source.startswith(("http://", "https://")):
        raise UsageError(f"--from: expected a folder, or a URL that begins with http:// or https://, got {source!r}")
    if not is_url and not Path(source).expanduser().is_dir():
        raise UsageError(f"--from: expected a folder or a URL, got {source!r}, which is not there")
    folder = spice_folder()
    asked = os.environ.get(ENVIRONMENT_VARIABLE)
    if asked and Path(asked).expanduser().absolute() != folder.absolute():
        raise UsageError(
            f"{ENVIRONMENT_VARIABLE} names {asked}, where SPICE will look, and not {folder}, where this installs. "
            f"Unset it, or put the jars there yourself"
        )
    for name, wanted in jars.items():
        target = folder / name
        if target.is_file() and sha256(target) == wanted:
            tell(f"{target} is there")
            continue
        place = f"{source.rstrip('/')}/{name}" if is_url else str(Path(source).expanduser() / name)
        tell(f"{target} from {place}")
        digest = hashlib.sha256()
        sweep(target)
        with atomic_write(target, choose="AVPIPE_CACHE") as aside, aside.open("wb") as file:
            for block in _downloaded(place) if is_url else _read(Path(place)):
                digest.update(block)
                file.write(block)
            if digest.hexdigest() != wanted:
                raise MissingPackageError(
                    f"{place}: expected sha256 {wanted}, got {digest.hexdigest()}: it is damaged, or another version. "
                    "Nothing was kept of it. Try again, or give another source with --from"
                )
    return folder


def _beside_the_jar() -> list[Path]:
    """Where pycocoevalcap's own downloader puts them."""
    spec = find_spec("pycocoevalcap")
    folders = spec.submodule_search_locations if spec else None
    return [Path(folder, "spice", "lib") for folder in folders or ()]


def _read(path: Path) -> Iterator[bytes]:
    if not path.is_file():
        raise MissingPackageError(f"{path} is not there")
    with storage_errors(path, "read"), path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block


def _downloaded(url: str) -> Iterator[bytes]:
    """The bytes at a URL. Fails where fewer come than were announced."""
    try:
        with urllib.request.urlopen(url, timeout=_PATIENCE_SECONDS) as answer:
            announced, seen = answer.headers.get("Content-Length"), 0
            while block := answer.read(_BLOCK_BYTES):
                seen += len(block)
                yield block
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise MissingPackageError(
            f"cannot fetch {url}: {error}. Try again, or fetch it elsewhere and give the folder with --from"
        ) from error
    if announced is not None and seen < int(announced):
        raise MissingPackageError(f"cannot fetch {url}: it ended after {seen} of {announced} bytes. Try again")
