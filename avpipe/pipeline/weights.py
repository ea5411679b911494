"""Model weights: found on this machine or fetched from the Hugging Face Hub, and known by their sha256.

Nothing here ever makes weights up. Where an encoder may run with random ones (tests, benchmarks) the user writes
``weights: random`` or ``weights: random:<seed>``, which :func:`random_seed` recognises and shouts about. A decoder with
random ones is one that is trained from nothing: ``weights: random``, and ``train.seed`` says which.
"""

from __future__ import annotations

import hashlib
import logging
import os
import ssl
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avpipe.pipeline.errors import MissingWeightsError, UsageError
from avpipe.pipeline.places import cache_folder

log = logging.getLogger(__name__)

HUB_TIMEOUT_SECONDS = 5.0
FILE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFiles:
    """Files that make up one set of weights.

    Attributes:
        id: ``org/name`` or ``org/name@revision`` on the Hub; the last part of the path of a local folder.
        files: local path of each part ("weights", "config", ...).
    """

    id: str
    files: Mapping[str, Path]

    def to_spec(self) -> dict[str, Any]:
        """What a feature spec says of weights: their id, and the sha256 of the part called ``"weights"``."""
        return {"id": self.id, "sha256": sha256_of(self.files["weights"])}


def random_seed(weights: str, encoder: str) -> int | None:
    """The seed, if random weights are asked for (``"random"`` means seed 0), with a loud warning; else ``None``.

    Args:
        weights: as configured.
        encoder: name for the warning.

    Raises:
        UsageError: ``"random:"`` is not followed by a whole number.
    """
    kind, _, seed_text = weights.partition(":")
    if kind != "random":
        return None
    if seed_text and not seed_text.isdecimal():
        raise UsageError(f"weights: expected random or random:<seed> with a whole number, got {weights!r}")
    log.warning("%s: RANDOM WEIGHTS, as asked for (weights=%s). Good for tests and benchmarks only.", encoder, weights)
    return int(seed_text or 0)


def random_spec(seed: int) -> dict[str, Any]:
    """What a feature spec says of random weights."""
    return {"id": "random", "sha256": f"random:{seed}"}


@dataclass(frozen=True, slots=True)
class _Asker:
    """Who asks for files, and by which option; ``has_random`` if the option may be ``random``."""

    component: str
    option: str = "weights"
    has_random: bool = True

    def missing(self, wanted: str, problem: str, *, repository: str = "org/name") -> MissingWeightsError:
        """The one message for files that are not there."""
        option = f"{self.component}.{self.option}"
        lines = [
            f"{self.component}: no {self.option} {wanted!r}: {problem.rstrip('.')}.",
            f"  - On a machine with a network: hf download {repository} --local-dir weights/{Path(repository).name}",
            f"    Copy that folder here and run with {option}=/path/to/folder",
            "    (without --local-dir the files land in the Hub's cache, which HF_HOME places).",
        ]
        if self.has_random:
            lines.append(f"  - {option}=random gives random weights: for tests and benchmarks only.")
        return MissingWeightsError("\n".join(lines))


def resolve(
    weights: str,
    parts: Mapping[str, Sequence[str]],
    *,
    component: str,
    option: str = "weights",
    has_random: bool = True,
) -> WeightFiles:
    """The files of a local folder or of a repository on the Hub.

    The Hub's local cache is asked first; the network only for what is not there, and only where it answers.

    Args:
        weights: an existing folder, or ``org/name`` or ``org/name@revision`` on the Hub.
        parts: for each part, the file names that may hold it, best first.
        component: which encoder or decoder asks, for messages.
        option: by which the user said ``weights``, for messages.
        has_random: whether he may say ``random`` instead.

    Raises:
        MissingWeightsError: a part is neither here nor to be had; the message says how to get it.
    """
    asker = _Asker(component, option, has_random and option == "weights")
    return _from_folder(weights, parts, asker) if looks_local(weights) else _from_hub(weights, parts, asker)


def find(weights: str, names: Sequence[str], *, component: str) -> WeightFiles:
    """One weight file, known as the part ``"weights"``: a local file, or what a folder or a repository holds under one
    of ``names``.

    Raises:
        MissingWeightsError: it is neither here nor to be had; the message says how to get it.
    """
    if Path(weights).suffix in FILE_SUFFIXES:
        path = local_file(weights, component=component)
        return WeightFiles(id=path.name, files={"weights": path})
    return resolve(weights, {"weights": names}, component=component)


def looks_local(weights: str) -> bool:
    """Whether ``weights`` means a path: it exists, or is written like one (``/x``, ``./x``, ``~/x``, ``x.pt``)."""
    path = Path(weights)
    return weights.startswith(("/", "./", "../", "~")) or path.suffix in FILE_SUFFIXES or path.exists()


def local_file(weights: str, *, component: str, option: str = "weights", has_random: bool = True) -> Path:
    """An existing file, ``~`` expanded; the rest is as in :func:`resolve`.

    Raises:
        MissingWeightsError: there is no such file.
    """
    path = Path(weights).expanduser()
    if not path.is_file():
        raise _Asker(component, option, has_random).missing(weights, f"there is no file {path}")
    return path


def _from_folder(weights: str, parts: Mapping[str, Sequence[str]], asker: _Asker) -> WeightFiles:
    folder = Path(weights).expanduser()
    if not folder.is_dir():
        raise asker.missing(weights, f"there is no folder {folder}")
    files = {}
    for part, names in parts.items():
        found = [folder / name for name in names if (folder / name).is_file()]
        if not found:
            held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:20]) or "nothing"
            problem = f"the folder holds no {' or '.join(names)} ({part}); it holds {held}"
            raise asker.missing(weights, problem)
        files[part] = found[0]
    return WeightFiles(id=folder.resolve().name, files=files)


def _from_hub(weights: str, parts: Mapping[str, Sequence[str]], asker: _Asker) -> WeightFiles:
    from huggingface_hub.errors import HFValidationError

    repository, _, asked_revision = weights.partition("@")
    revision = asked_revision or None
    files: dict[str, Path] = {}
    for part, names in parts.items():
        try:
            path = _cached(repository, names, revision) or _fetched(repository, names, revision, asker)
        except HFValidationError as error:
            raise UsageError(
                f"{asker.component}: {asker.option}: expected a path, org/name or org/name@revision on the Hub, "
                f"got {weights!r} ({error})"
            ) from None
        files[part] = path
        revision = path.parent.name  # the commit: all parts must come from one
    return WeightFiles(id=weights, files=files)


def _cached(repository: str, names: Sequence[str], revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for name in names:
        found = try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(found, str):
            return Path(found)
    return None


def _fetched(repository: str, names: Sequence[str], revision: str | None, asker: _Asker) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    wanted = f"{repository}@{revision}" if revision else repository
    obstacle = obstacle_to(_endpoint())
    if obstacle:
        problem = f"{' or '.join(names)} is not in the Hub's cache ({_cache_folder()}), and {obstacle}"
        raise asker.missing(wanted, problem, repository=repository)
    for name in names:
        try:
            log.info("%s: fetching %s of %s from the Hub", asker.component, name, wanted)
            return Path(hf_hub_download(repository, name, revision=revision))
        except LocalEntryNotFoundError as error:  # the network gave way
            raise asker.missing(wanted, str(error), repository=repository) from None
        except EntryNotFoundError:
            continue  # the repository has no file of this name: try the next
        except (HfHubHTTPError, OSError) as error:  # no such repository, no permission, disk full
            problem = " ".join(str(error).split())
            raise asker.missing(wanted, problem, repository=repository) from None
    problem = f"the repository has no {' or '.join(names)}"
    raise asker.missing(wanted, problem, repository=repository)


def obstacle_to(address: str) -> str:
    """Why nothing can be fetched from an address; empty if somebody answers there.

    One short question without retries: ``hf_hub_download`` itself would try for half a minute where there is no
    network.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return f"HF_HUB_OFFLINE=1 forbids to ask {'the Hub' if address == _endpoint() else address}"
    question = urllib.request.Request(address, method="HEAD")
    try:
        urllib.request.urlopen(question, timeout=HUB_TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # an answer, if not a friendly one
    except OSError as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, ssl.SSLError):  # somebody answers; whom to trust, the Hub's own library knows best
            return f"{address} does not answer ({reason})"
    return ""


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _cache_folder() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal.

    Kept in the cache folder under the file's real path, size and time of change: a file of gigabytes is read once.
    """
    real = path.resolve()
    status = real.stat()
    key = hashlib.sha256(f"{real}\0{status.st_size}\0{status.st_mtime_ns}".encode()).hexdigest()
    entry = cache_folder() / "sha256" / key
    try:
        return entry.read_text(encoding="ascii")
    except OSError:
        pass  # not computed yet
    with real.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        _write_whole(entry, digest)
    except OSError as error:  # a cache that cannot be written costs time, nothing else
        log.info("sha256 of %s is not kept: %s", real, error)
    return digest


def _write_whole(path: Path, text: str) -> None:
    """Write aside and rename, so that a reader in another process sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(text)
    Path(aside).replace(path)
