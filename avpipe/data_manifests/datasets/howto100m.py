"""HowTo100M: instructional YouTube videos with what is said in them; the words stand in for captions.

Source: https://www.di.ens.fr/willow/research/howto100m/ (annotations; the videos by request). Licence: none stated.
Miech et al., "HowTo100M: Learning a Text-Video Embedding by Watching Hundred Million Narrated Video Clips", ICCV 2019.

``raw_caption.json`` (the recogniser's words) or ``caption.json`` (the same without stop words), many gigabytes, read as
a stream::

    {"<YouTube id>": {"start": [8.37, 12.2], "end": [13.5, 16.1], "text": ["so today we are", "going to make"]}, ...}

A line of speech lasts a few seconds and ends in mid-sentence, so lines are merged until a clip is long enough; what one
repeats of the line before is dropped. ``extra["next_clip"]`` is the id of the clip that follows, where one follows
soon: for learning to say what will be said next. Only videos that are in the media folder are read, as there are 1.2
million. There are no official splits: a few videos are drawn for validation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import Field

from avpipe.data_manifests.annotation_files import UNREADABLE, AnnotationFiles, OfficialFile
from avpipe.data_manifests.dataset import Card
from avpipe.data_manifests.media_files import PREFIXES, is_media, paths_below
from avpipe.data_manifests.naming import Ratios, draw_split
from avpipe.data_manifests.official import NEXT_CLIP, Entry, Official, PublishedConfig
from avpipe.pipeline.errors import DataError

FILES = ("raw_caption.json", "caption.json")

CARD = Card(
    summary="Instructional videos with what is said in them, merged into clips of some ten seconds.",
    source="https://www.di.ens.fr/willow/research/howto100m/ (raw_caption.json or caption.json)",
    media="The videos are YouTube's; the same page says how to ask for them.",
    licence="none stated (annotations); videos: their owners'",
    citation="Miech et al., HowTo100M, ICCV 2019",
    captions_per_clip="1 (speech)",
    checked="nothing: the files were not at hand (1.2 million videos, 136 million lines of speech by the paper)",
)

_EXPECTED = '{"<YouTube id>": {"start": [...], "end": [...], "text": [...]}, ...}'
_NO_SPLITS = Ratios(train=0.99, val=0.01, test=0.0)


class Config(PublishedConfig):
    """Options of HowTo100M."""

    min_seconds: float = Field(8.0, ge=0)
    """Lines of speech are merged until a clip is this long."""
    max_seconds: float = Field(16.0, gt=0)
    """... unless it became longer than this."""
    max_gap_seconds: float = Field(10.0, ge=0)
    """A clip that follows after a longer silence is not its next one, and lines that far apart are not merged."""
    drop_repeats: bool = True
    """Drop the words at the beginning of a line that the line before ended with, two of them or more."""
    split_ratios: Ratios = _NO_SPLITS
    """Of the splits, which are drawn, video by video."""
    seed: int = Field(0, ge=0)
    """Of the splits."""


@dataclass(frozen=True, slots=True)
class Line:
    """Something said: ``[start, stop)`` in seconds, and the words."""

    start: float
    stop: float
    text: str


def read(config: Config, files: AnnotationFiles) -> Official:
    """Read the speech of those videos that are there; see :class:`~avpipe.data_manifests.official.Read`.

    Raises:
        DataError: the file is missing, damaged, or another than the official one.
    """
    file = files.need(*FILES)
    here = _videos(files) if config.include != "all" and files.media else None
    entries: list[Entry] = []
    videos = passed_over = wordless = 0
    for video, told in _stream(file):
        videos += 1
        if here is not None and video not in here:
            passed_over += 1
            continue
        split = draw_split(video, config.split_ratios, config.seed)
        if split in config.splits:
            made = clips_of(video, split, lines_of(file, video, told), config)
            entries += made
            wordless += not made
    if not videos:
        raise file.wrong(_EXPECTED, "it holds no videos")
    if passed_over == videos:
        raise DataError(
            f"--media: none of the {videos:,} videos of {file.name} has a file below {files.media}. Looked for names "
            f"like {video}.mp4, in any sub-folder and container"
        )
    entries.sort(key=lambda entry: ("train", "val", "test").index(entry.split))
    notes = [f"splits drawn with seed {config.seed}"]
    if passed_over:
        notes.append(f"videos of {file.name} without a file here, passed over and not counted: {passed_over:,}")
    if wordless:
        notes.append(f"videos without speech: {wordless:,}")
    return Official(entries=entries, segments=True, notes=notes)


def _videos(files: AnnotationFiles) -> set[str]:
    """What the videos in the media folder may be called."""
    assert files.media is not None
    stems = {path.rpartition("/")[2].rpartition(".")[0] for path in paths_below(files.media) if is_media(path)}
    return {stem.removeprefix(prefix) for stem in stems for prefix in PREFIXES}


def _stream(file: OfficialFile) -> Iterator[tuple[str, dict[str, Any]]]:
    """Video by video, so that the file may be larger than the memory."""
    import ijson

    with file.open() as head:
        file.check_head(head.read(512), _EXPECTED)
    with file.open() as stream:
        try:
            for video, told in ijson.kvitems(stream, "", use_float=True):
                if not isinstance(told, dict) or not all(isinstance(told.get(key), list) for key in _KEYS):
                    raise file.wrong(_EXPECTED, f"{video!r} has {str(told)[:80]}")
                yield video, told
        except ijson.IncompleteJSONError as error:
            why = " ".join(str(error).split())[:80]
            got = f"it ends in the middle or is damaged ({why}): its download or unpacking was broken off"
            raise file.wrong(_EXPECTED, got) from None
        except ijson.JSONError as error:
            raise file.wrong(_EXPECTED, f"it is no JSON ({' '.join(str(error).split())[:80]})") from None
        except UNREADABLE as error:
            raise file.wrong(_EXPECTED, f"it cannot be read to its end ({error})") from None


_KEYS = ("start", "end", "text")


def lines_of(file: OfficialFile, video: str, told: dict[str, list[Any]]) -> list[Line]:
    """The lines of one video in the order of time; those without words or a length are none.

    Raises:
        DataError: the three lists are not equally long.
    """
    lengths = {key: len(told[key]) for key in _KEYS}
    if len(set(lengths.values())) != 1:
        raise file.wrong(_EXPECTED, f"{video!r} has lists of different lengths: {lengths}")
    lines = []
    for start, stop, text in zip(*(told[key] for key in _KEYS), strict=True):
        if not (isinstance(start, int | float) and isinstance(stop, int | float) and isinstance(text, str)):
            continue  # where the recogniser heard nothing, NaN and null stand for words
        if text.strip() and math.isfinite(stop) and 0 <= start < stop:
            lines.append(Line(float(start), float(stop), " ".join(text.split())))
    return without_overlap(sorted(lines, key=lambda line: (line.start, line.stop)))


def without_overlap(lines: Sequence[Line]) -> list[Line]:
    """Lines that end where the next one begins at the latest: one stays on the screen while the next is spoken."""
    ended = [
        replace(line, stop=min(line.stop, after.start)) if line.start < after.start else line
        for line, after in itertools.pairwise(lines)
    ]
    return [*ended, *lines[-1:]]


def clips_of(video: str, split: str, lines: Sequence[Line], config: Config) -> list[Entry]:
    """The clips of one video, each with the next one's id."""
    merged = merge(without_repeats(lines) if config.drop_repeats else lines, config)
    ids = [f"{video}_{round(1000 * line.start)}_{round(1000 * line.stop)}" for line in merged]
    entries = []
    for number, line in enumerate(merged):
        extra = {}
        gap = merged[number + 1].start - line.stop if number + 1 < len(merged) else math.inf
        if 0 <= gap <= config.max_gap_seconds:  # what is said within this clip is not what comes next
            extra[NEXT_CLIP] = ids[number + 1]
        entries.append(
            Entry(
                source_id=ids[number],
                split=split,
                captions=(line.text,),
                video=video,
                span=(line.start, line.stop),
                extra=extra,
            )
        )
    return entries


def merge(lines: Sequence[Line], config: Config) -> list[Line]:
    """Lines joined, first to last, until each is long enough; a last one that is too short stays so."""
    merged: list[Line] = []
    for line in lines:
        last = merged[-1] if merged else None
        stop = max(last.stop, line.stop) if last else line.stop
        joins = (
            last is not None
            and last.stop - last.start < config.min_seconds
            and stop - last.start <= config.max_seconds
            and line.start - last.stop <= config.max_gap_seconds
        )
        if last is not None and joins:
            merged[-1] = Line(last.start, stop, f"{last.text} {line.text}")
        elif last is not None and (last.start, last.stop) == (line.start, line.stop):
            merged[-1] = replace(last, text=f"{last.text} {line.text}")
        else:
            merged.append(line)
    return merged


def without_repeats(lines: Sequence[Line]) -> list[Line]:
    """Lines without the words that the one before ended with; a line of nothing else only makes that one longer."""
    kept: list[Line] = []
    for line in lines:
        words = line.text.split()
        before = kept[-1].text.split() if kept else []
        shared = next((n for n in range(min(len(words), len(before)), 1, -1) if before[-n:] == words[:n]), 0)
        if kept and shared == len(words):
            kept[-1] = replace(kept[-1], stop=max(kept[-1].stop, line.stop))
        else:
            kept.append(replace(line, text=" ".join(words[shared:])))
    return kept
