"""The media files below a folder, and which of them an official clip is in, by all the naming habits there are.

A published dataset is a list of YouTube ids with times; everybody downloads it with another script, and names the files
as that script does. What is understood, for the clip [179 s, 189 s) of the video ``G9zN5TTuGO4``, in any sub-folder and
any container::

    G9zN5TTuGO4_000179_000189.mp4   the official name of the clip, whatever it is
    G9zN5TTuGO4_179_189.webm        id and times, in seconds (179.000 too) or milliseconds
    G9zN5TTuGO4_179.mkv             id and start
    G9zN5TTuGO4.mp4                 the id alone: the whole source video, or the clip; its duration tells
    YG9zN5TTuGO4.wav                the same, by AudioSet's habit; v_G9zN5TTuGO4 by ActivityNet's
    17_G9zN5TTuGO4.mov              the same, numbered
    A title [G9zN5TTuGO4].mkv       the same, as yt-dlp names it; A title-G9zN5TTuGO4 as youtube-dl does
"""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from avpipe.data_manifests.official import Entry
from avpipe.pipeline.errors import DataError
from avpipe.pipeline.remote import RemotePath

# fmt: off
SOUND_SUFFIXES = frozenset((
    ".aac", ".aiff", ".flac", ".m4a", ".mp2", ".mp3", ".oga", ".ogg", ".opus", ".wav", ".wma",
))
MEDIA_SUFFIXES = SOUND_SUFFIXES | frozenset((
    ".3g2", ".3gp", ".asf", ".avi", ".f4v", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
    ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv",
))
# fmt: on
"""What counts as a video or a sound where nobody names a file with its extension."""

PREFIXES = ("", "Y", "v_")
"""What some put before a YouTube id, so that no name begins with a dash: AudioSet and ActivityNet."""

_NUMBERED = re.compile(r"\d+_")

TIME_TOLERANCE_SECONDS = 1.0
"""Between a time in a file's name and the official one: some round it."""

_LEAST_SHARE = 0.3
"""Of a clip's official length: what its file may have, and be named by, where its video ends early."""

_TIMES = re.compile(r"[_.-](\d{1,9}(?:\.\d+)?)(?:[_-](\d{1,9}(?:\.\d+)?))?")
_EXACT, _TIMED, _STARTED, _BARE = range(4)

Holds = Literal["clip", "source", "either", "nobody"]
"""What is in a file: the clip; the source video that the clip is cut from; what its name does not tell; or nothing that
could be told by anything (several clips claim it, and it is too short to be the video that all are cut from)."""


@dataclass(frozen=True, slots=True)
class Files:
    """The files below a media folder, found by name.

    Attributes:
        paths: relative to the folder, sorted; ``/`` as separator.
        by_name: paths by every name that a caption file may call them by: with and without folders and extension.
    """

    paths: tuple[str, ...]
    by_name: dict[str, list[str]] = field(repr=False)

    @classmethod
    def below(cls, root: Path) -> Files:
        """List the files in a folder and its sub-folders; hidden ones are left out.

        Raises:
            DataError: a folder cannot be read.
            StoreError: the remote storage that it is in does not answer, ...
        """
        paths = sorted(paths_below(root))
        by_name: dict[str, list[str]] = {}
        for path in paths:
            pure = PurePosixPath(path)
            called = {path, pure.name}
            if is_media(path):
                called |= {str(pure.with_suffix("")), pure.stem}
            for name in called:
                by_name.setdefault(name, []).append(path)
        return cls(tuple(path for path in paths if is_media(path)), by_name)

    def find(self, name: str) -> list[str]:
        """The paths that a name may mean. One that names a path from the top means that path alone."""
        name = name.removeprefix("./")
        found = self.by_name.get(name, [])
        exact = [path for path in found if path == name]
        from_top = [path for path in found if str(PurePosixPath(path).with_suffix("")) == name]
        return exact or from_top or found


def paths_below(root: Path) -> list[str]:
    """Every file in a folder and its sub-folders by its path from there, in no order; hidden ones are left out.

    Raises:
        DataError: a folder cannot be read.
        StoreError: the remote storage that it is in does not answer, ...
    """
    if isinstance(root, RemotePath):
        return [path for path in root.files_below() if not any(map(is_hidden, path.split("/")))]

    def unreadable(error: OSError) -> None:
        raise DataError(
            f"--media: {error.filename} cannot be read: {error.strerror}. Change its mode, or give a folder beside it"
        )

    paths: list[str] = []
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, onerror=unreadable, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not is_hidden(name))  # of two links, the same one everywhere
        below = os.path.relpath(folder, root)
        before = "" if below == "." else below.replace(os.sep, "/") + "/"
        paths += [before + name for name in names if not is_hidden(name)]
    return paths


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is nobody's business."""
    return name.startswith(".") or name == "lost+found"  # at the root of every disk


def is_media(path: str) -> bool:
    """Whether a file's extension is one of a video or a sound."""
    return posixpath.splitext(path)[1].lower() in MEDIA_SUFFIXES


@dataclass(frozen=True, slots=True)
class Match:
    """The file that an official clip is in.

    Attributes:
        path: from the media folder.
        holds: what is in the file.
        others: how many other files would have done.
    """

    path: str
    holds: Holds
    others: int = 0


def match(entries: Sequence[Entry], paths: Iterable[str], bare: Holds) -> list[Match | None]:
    """Find the file of each official clip by names alone.

    Returns:
        For each entry its match, the first of its :func:`candidates`; ``None``: there is none, or the file is claimed
        by another clip as well.
    """
    first = [found[0] if found else None for found in candidates(entries, paths, bare)]
    return settle_shared(entries, first)


def candidates(entries: Sequence[Entry], paths: Iterable[str], bare: Holds) -> list[tuple[Match, ...]]:
    """The files that each official clip may be in, the likeliest first.

    Of several, one that is named by the clip goes before one named by the bare id of its video; of these, a video
    before a sound; then the one whose name says most (the clip's own name before id and times), the one nearest to the
    top, the first by name. A file is that of the clip which its name fits best, and of no other.

    Args:
        entries: the official clips.
        paths: of all files below the media folder; those that are no media are passed over.
        bare: what a file holds that is named by the id of its video alone.

    Returns:
        For each entry its files; none where there is none.
    """
    by_name: dict[str, list[int]] = {}
    by_video: dict[str, list[int]] = {}
    for index, entry in enumerate(entries):
        for name in (entry.source_id, *entry.names):
            by_name.setdefault(_composed(_plain(name)), []).append(index)
        if entry.video:
            by_video.setdefault(entry.video, []).append(index)
    lengths = sorted({len(video) for video in by_video}, reverse=True)
    found: dict[int, list[_Candidate]] = {}
    for path in paths:
        if not is_media(path):
            continue
        stem, suffix = posixpath.splitext(_composed(path))
        called = stem.rpartition("/")[2]
        is_sound = suffix.lower() in SOUND_SUFFIXES
        fits: list[tuple[tuple[int, float], int, Holds]] = [
            ((_EXACT, 0.0), index, "clip") for index in {*by_name.get(stem, ()), *by_name.get(called, ())}
        ]
        for video, tail in _videos(called, by_video, lengths):
            if not tail:
                fits += [((_BARE, 0.0), index, bare if entries[index].span else "clip") for index in by_video[video]]
            elif (times := _TIMES.fullmatch(tail)) and (times[2] or bare != "source"):
                # In a dataset of segments X_2 may be the third one as well as the one from 2 s: it is neither.
                spans = [(index, entries[index].span) for index in by_video[video]]
                fits += [(rank, index, "clip") for index, span in spans if (rank := _fits(span, times))]
        # The file of one clip is not that of another, which it fits less well: X_5 is segment 5, not the one from 5 s.
        best = min((rank for rank, _, _ in fits), default=None)
        for rank, index, holds in fits:
            if rank == best:
                found.setdefault(index, []).append(((rank[0] == _BARE, is_sound, *rank, path.count("/"), path), holds))
    return [_ranked(found.get(index, [])) for index in range(len(entries))]


_Candidate = tuple[tuple[bool, bool, int, float, int, str], Holds]


def _ranked(several: list[_Candidate]) -> tuple[Match, ...]:
    """Each file once, by what says most of it."""
    files: dict[str, Holds] = {}
    for (*_, path), holds in sorted(several):
        files.setdefault(path, holds)
    return tuple(Match(path, holds, len(files) - 1) for path, holds in files.items())


def _composed(name: str) -> str:
    """A name with accents as one letter each: macOS takes them apart."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def settle_shared(
    entries: Sequence[Entry], matches: Sequence[Match | None], seconds: Mapping[str, float] | None = None
) -> list[Match | None]:
    """A file that two different clips are in is no single clip: it is the video that both are cut from, if its name
    allows for that and it is long enough; and else nobody knows whose it is.

    Args:
        entries: the official clips.
        matches: the file of each.
        seconds: how long files are, as far as that is known.
    """
    spans: dict[str, set[tuple[float, float | None]]] = {}
    for entry, each in zip(entries, matches, strict=True):
        if each and entry.span:
            spans.setdefault(each.path, set()).add(entry.span)
    settled: list[Match | None] = []
    for each in matches:
        if each and each.holds != "source" and len(spans.get(each.path, ())) > 1:
            last = max(stop or start for start, stop in spans[each.path])
            is_long = (seconds or {}).get(each.path, last) >= last - 0.5
            holds: Holds = "source" if is_long else "nobody"
            settled.append(Match(each.path, holds, each.others) if each.holds == "either" else None)
        else:
            settled.append(each)
    return settled


def _plain(name: str) -> str:
    """An official name without the extension of a media file, which may be another here."""
    return posixpath.splitext(name)[0] if is_media(name) else name


def _videos(stem: str, known: Mapping[str, object], lengths: Sequence[int]) -> Iterable[tuple[str, str]]:
    """The known videos that a file's name may begin with, each with what follows it; or end with, behind a title."""
    numbered = _NUMBERED.match(stem)  # as the lists of BDD-X have it
    for prefix in (*PREFIXES, *([numbered[0]] if numbered else [])):
        if stem.startswith(prefix):
            rest = stem[len(prefix) :]
            for length in lengths:
                if rest[:length] in known:
                    yield rest[:length], rest[length:]
    for length in lengths:
        before, last = stem[:-length], stem[-length:]
        if before.endswith("-") and last in known:
            yield last, ""
        if stem.endswith("]") and stem[-length - 2 : -length - 1] == "[" and stem[-length - 1 : -1] in known:
            yield stem[-length - 1 : -1], ""


def _fits(span: tuple[float, float | None] | None, times: re.Match[str]) -> tuple[int, float] | None:
    """How well the times in a file's name are those of a clip; ``None``: they are not."""
    if span is None:
        return None
    start, stop = float(times[1]), float(times[2]) if times[2] else None
    best: tuple[int, float] | None = None
    # Nobody rounds milliseconds, or cuts clips of less than a thousand of them: 500_620 are seconds.
    for unit, tolerance in ((1.0, TIME_TOLERANCE_SECONDS), (1000.0, 0.05)):
        off = abs(start / unit - span[0])
        if off > tolerance or (stop is not None and stop - start < unit and unit > 1):
            continue
        rank = (_STARTED, off)
        if stop is not None and span[1] is not None:
            late = stop / unit - span[1]
            share = (stop - start) / unit / (span[1] - span[0])
            if late > TIME_TOLERANCE_SECONDS or share < _LEAST_SHARE:
                continue
            # A clip at the end of its video may be shorter than official, and its file named by where it ends.
            rank = (_TIMED, max(off, -late)) if late >= -TIME_TOLERANCE_SECONDS else (_STARTED, off)
        best = rank if best is None else min(best, rank)
    return best


def resolve(holds: Holds, span: tuple[float, float | None] | None, duration_seconds: float | None) -> Holds:
    """What a file holds whose name does not tell, by how long it is.

    Over before the clip begins: the clip, for that cannot be cut from it. Long enough for the clip to be cut from it:
    the source video, unless the clip is all of it. In between: whichever length is nearer.

    Args:
        holds: what the name tells; kept unless it is ``"either"``.
        span: where the clip lies in its source video, in seconds.
        duration_seconds: of the file; ``None``: unknown, and so is the answer.
    """
    if holds != "either" or duration_seconds is None or span is None:
        return "clip" if span is None else holds
    start, stop = span
    is_all = stop is not None and start < 0.5 and duration_seconds <= stop + 0.5
    if duration_seconds <= start or is_all:
        return "clip"
    if stop is None or duration_seconds >= stop - 0.5:
        return "source"
    return "clip" if abs(duration_seconds - (stop - start)) <= abs(duration_seconds - stop) else "source"
