"""What one look at each media file tells: how long it is, what streams it has, whether anything is to be heard.

Pictures are not decoded, and sound only up to the first sample that can be heard; so the usual file costs its opening
and a few packets. Files are looked at in processes that may die (:mod:`avpipe.pipeline.sandbox`), some files a message,
because a message costs a fifth of what a look does.
"""

from __future__ import annotations

import math
import stat
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from avpipe.data_manifests.dataset import Progress
from avpipe.pipeline.engines.local import cores
from avpipe.pipeline.errors import ClipError, UsageError
from avpipe.pipeline.journal import Journal
from avpipe.pipeline.limits import Limits
from avpipe.pipeline.remote import is_remote
from avpipe.pipeline.sandbox import DecodePool

SILENCE_DBFS = -60.0
"""Sound of which no sample is louder is silence: digital zeros, dither, the hiss of an input that nobody plugged in."""

LIMITS = Limits(max_seconds=120.0, max_bytes=2 << 30)
"""On one file. Two minutes are enough to listen to hours of silence."""

_FORMAT = 1
"""Of a row of the cache. To be raised when a probe of the same file would say something else."""

_LASTING = ("", "open", "empty", "no_streams", "decode", "too_large")
"""Kinds of failure that a cache keeps: they are in the file."""

_CHUNK, _CHUNK_SECONDS = 32, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoFacts:
    """The video stream of a file, as far as its header tells.

    Attributes:
        codec: canonical name: ``"h264"``, ``"av1"``.
        width: in pixels, as coded: not turned upright, pixels not made square; 0 if the header does not say.
        height: as ``width``.
        frames_per_second: on average; ``None`` if the header does not say.
    """

    codec: str
    width: int
    height: int
    frames_per_second: float | None = None

    def __post_init__(self) -> None:
        _check_text("codec of a video", self.codec)
        _check_count("width", self.width)
        _check_count("height", self.height)
        if self.frames_per_second is not None and not 0 < self.frames_per_second < math.inf:
            raise ValueError(f"frames_per_second: expected more than 0, got {self.frames_per_second}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioFacts:
    """The audio stream of a file, as far as its header tells.

    Attributes:
        codec: canonical name: ``"aac"``.
        sample_rate: in Hz; 0 if the header does not say.
        channels: how many; 0 if the header does not say.
    """

    codec: str
    sample_rate: int
    channels: int

    def __post_init__(self) -> None:
        _check_text("codec of a sound", self.codec)
        _check_count("sample_rate", self.sample_rate)
        _check_count("channels", self.channels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What one look at a media file tells.

    Attributes:
        duration_seconds: what the header says (of a stream without an index, such as MP3, FFmpeg's estimate); where it
            says nothing, the end of the last packet. ``None``: not to be known.
        video: the best video stream by FFmpeg's rule; ``None``: there is none. Nobody has tried to decode it.
        audio: the best audio stream; ``None``: there is none.
        is_silent: whether no sample of the whole stream is louder than :data:`SILENCE_DBFS`. ``None``: there is no
            audio stream, or nothing of it decodes (:attr:`has_broken_audio`).
        error_type: why the file cannot be used, in the words of an extraction: ``"missing_file"``, ``"open"``,
            ``"empty"`` (a header, and nothing behind it), ``"no_streams"``, ``"decode"`` (no video, and no sound that
            decodes), ``"too_large"``, ``"crashed"``, ``"timeout"``, ``"memory"``; "" where it can. With an error,
            nothing else is known.
        error_message: the same, for a person.

    Raises:
        ValueError: a field is not as described; the message says expected and got.
    """

    duration_seconds: float | None = None
    video: VideoFacts | None = None
    audio: AudioFacts | None = None
    is_silent: bool | None = None
    error_type: str = ""
    error_message: str = ""

    def __post_init__(self) -> None:
        seconds = self.duration_seconds
        if seconds is not None and not (isinstance(seconds, int | float) and 0 <= seconds < math.inf):
            raise ValueError(f"duration_seconds: expected at least 0, got {seconds!r}")
        for name, kind in (("video", VideoFacts), ("audio", AudioFacts), ("is_silent", bool)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise ValueError(f"{name}: expected {kind.__name__} or None, got {value!r}")
        if not isinstance(self.error_type, str) or not isinstance(self.error_message, str):
            raise ValueError(f"error: expected two strings, got {self.error_type!r} and {self.error_message!r}")  # noqa: TRY004
        if bool(self.error_type) != bool(self.error_message):
            raise ValueError(f"error: expected a kind and a message, got {self.error_type!r}, {self.error_message!r}")
        facts = (seconds, self.video, self.audio, self.is_silent)
        if self.error_type and facts != (None,) * 4:
            raise ValueError(f"of a file that cannot be read ({self.error_type}): expected no facts, got {facts}")
        if not self.error_type and not (self.video or self.audio):
            raise ValueError("of a file that can be read: expected video or audio, got neither")
        if self.is_silent is not None and not self.audio:
            raise ValueError(f"is_silent: expected None where there is no audio, got {self.is_silent}")

    @classmethod
    def of_error(cls, error: ClipError) -> Probe:
        """Of a file that cannot be used."""
        return cls(error_type=error.kind, error_message=error.message or error.kind)

    @property
    def is_readable(self) -> bool:
        """Whether the file can be used, as far as one look tells."""
        return not self.error_type

    @property
    def has_video(self) -> bool:
        """Whether there is a video stream."""
        return self.video is not None

    @property
    def has_audio(self) -> bool:
        """Whether there is an audio stream of which something decodes, be it silence."""
        return self.is_silent is not None

    @property
    def has_broken_audio(self) -> bool:
        """Whether there is an audio stream of which nothing decodes. An extraction has no sound of such a file."""
        return self.audio is not None and self.is_silent is None

    def to_row(self) -> dict[str, Any]:
        """The probe as a JSON-ready dict; fields at their defaults are left out."""
        return {name: value for name, value in asdict(self).items() if value is not None and value != ""}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Probe:
        """The inverse of :meth:`to_row`.

        Raises:
            ValueError: a key is missing or unknown, or a field is not as described.
        """
        try:
            facts = {
                name: kind(**row[name])
                for name, kind in (("video", VideoFacts), ("audio", AudioFacts))
                if row.get(name) is not None
            }
            return cls(**{**row, **facts})
        except TypeError as error:
            raise ValueError(f"not a probe: {error}; got the keys {sorted(row)}") from None


def probe(path: Path, limits: Limits = LIMITS) -> Probe:
    """Look at one file, in this process: only for files that can be trusted not to end it.

    Args:
        path: of a local file.
        limits: ``max_pixels`` is held here.
    """
    from avpipe.data_manifests.looking import look

    try:
        return look(path, limits.max_pixels)
    except ClipError as error:
        return Probe.of_error(error)


def probe_files(
    root: Path,
    files: Sequence[str],
    *,
    cache: Path | None,
    processes: int = 0,
    progress: Progress | None = None,
    limits: Limits = LIMITS,
) -> dict[str, Probe]:
    """Look at many files, in parallel, in processes that may die; those alone that the cache does not know.

    A file is known by its relative path, its size and the time it was last written, under the same version of the
    decoding library and the same limit of pixels. Results go to the cache as they come, so a run that is killed at any
    moment goes on where it stopped. Not kept, hence tried again in the next run, is what need not be the file's fault:
    ``"timeout"``, ``"memory"`` and ``"crashed"`` (the machine may have been full), ``"missing_file"``, and ``"open"``
    where the system does not let us read the file.

    Args:
        root: folder that the files are relative to, on this machine: remote ones are not fetched for a look.
        files: which; one that stands twice is looked at once.
        cache: JSON lines, made if not there; one for each root. Several runs may use it at once. ``None``: nothing is
            kept.
        processes: how many; 0 is one for each core.
        progress: told how many files are done, of how many; first those that the cache knows.
        limits: on each file.

    Returns:
        A probe of each file, in the order of ``files``; of a missing one, too.

    Raises:
        UsageError: the root or the cache is remote.
        StoreError: the cache cannot be read or written.
    """
    for place in (root, cache):
        if place is not None and is_remote(place):
            raise UsageError(f"files are probed on this machine: expected a local folder, got {place}")
    if processes < 0:
        raise ValueError(f"processes: expected at least 0, got {processes}")
    report = progress or (lambda done, total: None)
    found: dict[str, Probe] = {}
    total = len(set(files))
    version = f"{_FORMAT}, av {metadata.version('av')}, {limits.max_pixels} pixels"
    with Journal(cache, version) if cache else nullcontext() as journal:
        stamps: dict[str, dict[str, int]] = {}
        for file in dict.fromkeys(files):
            try:
                stamp = _stamp(root / file)
            except ClipError as error:
                found[file] = Probe.of_error(error)
                continue
            if journal and (known := _known(journal.rows.get(file), stamp)):
                found[file] = known
            else:
                stamps[file] = stamp
        report(len(found), total)
        with closing(_probe_all(root, list(stamps), processes or cores(1), limits)) as batches:
            for probes in batches:
                found.update(probes)
                if journal:
                    lasting = {file: probe for file, probe in probes.items() if _is_lasting(probe, root / file)}
                    journal.append({file: {**stamps[file], "probe": probe.to_row()} for file, probe in lasting.items()})
                report(len(found), total)
    return {file: found[file] for file in files}


@dataclass(frozen=True, slots=True)
class Looking:
    """Look at some files, one after the other. Runs in a decoding process; pickles.

    Attributes:
        root: folder that the files are relative to.
        limits: ``max_pixels`` is held here.
    """

    root: Path
    limits: Limits

    def __call__(self, files: Sequence[str]) -> list[Probe]:
        """Probes of the first files, at least one: whatever half a second allows, so that a limit is on one file."""
        end = time.monotonic() + _CHUNK_SECONDS
        probes: list[Probe] = []
        for file in files:
            probes.append(probe(self.root / file, self.limits))
            if time.monotonic() > end:
                break
        return probes


def _probe_all(
    root: Path, files: Sequence[str], processes: int, limits: Limits
) -> Generator[dict[str, Probe], None, None]:
    """Probes of some files, a few at a time, as they come.

    What happens to a process costs one file its probe: the files that it had in hand are then done one by one.
    """
    if not files:
        return
    size = max(1, min(_CHUNK, len(files) // (4 * processes)))  # the last ones shall end together
    chunks = deque(files[start : start + size] for start in range(0, len(files), size))
    running: dict[Future[list[Probe] | ClipError], Sequence[str]] = {}
    with DecodePool(Looking(root, limits), min(processes, len(chunks)), limits) as pool:
        while chunks or running:
            while chunks and len(running) < 2 * processes:  # one in hand, one for whoever is done first
                chunk = chunks.popleft()
                running[pool.submit(chunk)] = chunk
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                chunk, result = running.pop(future), future.result()
                if not isinstance(result, ClipError):
                    yield dict(zip(chunk, result, strict=False))
                    if rest := chunk[len(result) :]:
                        chunks.appendleft(rest)
                elif len(chunk) == 1:
                    yield {chunk[0]: Probe.of_error(result)}
                else:
                    chunks.extendleft([file] for file in reversed(chunk))


def _stamp(path: Path) -> dict[str, int]:
    """What tells whether a file is still the same.

    Raises:
        ClipError: ``"missing_file"``.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise ClipError("missing_file", f"{path.name} does not exist") from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ClipError("missing_file", f"{path.name} cannot be looked at: {why}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ClipError("missing_file", f"{path.name} is no regular file")
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _known(row: Mapping[str, Any] | None, stamp: Mapping[str, int]) -> Probe | None:
    """What the cache knows of a file, if it is still the same."""
    match row:
        case {"size": size, "mtime_ns": mtime_ns, "probe": dict(probe)} if stamp == {
            "size": size,
            "mtime_ns": mtime_ns,
        }:
            try:
                return Probe.from_row(probe)
            except ValueError:  # somebody has had a hand in it
                return None
    return None


def _is_lasting(probe: Probe, path: Path) -> bool:
    """Whether a probe says something about the file, and not about the machine."""
    if probe.error_type == "open":
        try:
            with path.open("rb") as file:
                file.read(1)
        except OSError:
            return False
    return probe.error_type in _LASTING


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name}: expected a name, got {value!r}")


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name}: expected a whole number, at least 0, got {value!r}")
