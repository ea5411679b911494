"""BDD-X: forty seconds from behind a windscreen; what the car does, and why.

Source: https://github.com/JinkyuKimUCB/BDD-X-dataset (annotations); the videos are Berkeley DeepDrive's, *.mov*.
Licence: UC Berkeley's notice with the repository: educational, research and not-for-profit use. Kim et al., "Textual
Explanations for Self-Driving Vehicles", ECCV 2018.

``BDD-X-Annotations_v1.csv`` has 61 columns, fifteen times start, end, action and justification, in whole seconds; slots
that are not used are empty, and so are whole lines. As published (cut short)::

    Input.Video,Answer.1start,Answer.1end,Answer.1action,Answer.1justification,Answer.2start,...
    https://.../samples-1k/06d501fd-a9ffc960.mov,0,11,The car accelerates,because the light has turned green.,12,...

``train.txt``, ``val.txt`` and ``test.txt`` list the videos of a split, with the number of their line:
``1_06d501fd-a9ffc960``. A clip is an action, with the id ``06d501fd-a9ffc960_1``, cut out of its video.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from avpipe.data_manifests.annotation_files import AnnotationFiles, OfficialFile
from avpipe.data_manifests.dataset import Card
from avpipe.data_manifests.official import Entry, Official, PublishedConfig, counts_of, span_faults

FILE = ("BDD-X-Annotations_v1.csv", "BDD-X-Annotations*.csv")
LISTS: Mapping[str, Sequence[str]] = {split: (f"{split}.txt",) for split in ("train", "val", "test")}
SLOTS = 15

CARD = Card(
    summary="Forty seconds from behind a windscreen: what the car does, and why; a clip is an action.",
    source="https://github.com/JinkyuKimUCB/BDD-X-dataset",
    media="The videos are Berkeley DeepDrive's (https://bdd-data.berkeley.edu).",
    licence="UC Berkeley's notice, not-for-profit use (annotations); videos: BDD's",
    citation="Kim et al., Textual Explanations, ECCV 2018",
    official_clips={"train": 21_143, "val": 2_519, "test": 2_859},
    official_captions={"train": 21_143, "val": 2_519, "test": 2_859},
    captions_per_clip="1",
    checked="ten videos of the authors' sample; the counts are those of ADAPT's files, which were made from them",
)

_EXPECTED = "lines like '1_06d501fd-a9ffc960'"


class Config(PublishedConfig):
    """Options of BDD-X."""

    caption: Literal["action", "justification", "joint"] = "joint"
    """What is said of a clip: what the car does, why, or both."""
    joiner: str = " "
    """Between action and justification where both are asked for; the authors of the dataset train with " <SEP> "."""


def read(config: Config, files: AnnotationFiles) -> Official:
    """Read the annotations and the list of each split; see :class:`~avpipe.data_manifests.official.Read`.

    Raises:
        DataError: a file is missing, damaged, or another than the official one.
    """
    table = files.need(*FILE)
    split_of = _splits(files, config)
    columns = ("Input.Video", *(f"Answer.{k}{what}" for k in (1, SLOTS) for what in _PARTS))
    repairs: Counter[str] = Counter()
    entries = []
    seen: set[str] = set()
    for _, row in table.rows(columns):
        video = _stem(row["Input.Video"])
        if not video:  # whole lines are empty
            continue
        seen.add(video)
        if split := split_of.get(video):
            entries += _actions(table, config, row, video, split, repairs)
    if split_of and not entries:
        raise table.wrong("videos that the lists of splits name", f"none of its {len(seen):,} videos is listed")
    notes = [f"actions {what}: {count:,}" for what, count in repairs.items() if count]
    if unlisted := len(seen - split_of.keys()) if len(config.splits) == len(LISTS) else 0:
        notes.append(f"videos that are in no split, passed over: {unlisted:,}")
    if lost := len(split_of.keys() - seen):
        notes.append(f"videos of the lists that have no annotations: {lost:,}")
    entries.sort(key=lambda entry: tuple(LISTS).index(entry.split))
    return Official(entries=entries, counts=counts_of(CARD.official_clips, config.splits), segments=True, notes=notes)


_PARTS = ("start", "end", "action", "justification")


def _splits(files: AnnotationFiles, config: Config) -> dict[str, str]:
    """Which split each video is in."""
    split_of = {}
    for split, file in files.by_split(LISTS, config.splits).items():
        for line in file.lines(_EXPECTED):
            name = re.fullmatch(r"(?:\d+_)?([0-9A-Za-z]+-[0-9A-Za-z]+)", line.strip())
            if name is None:
                raise file.wrong(_EXPECTED, f"a line is {line[:60]!r}")
            split_of[name[1]] = split
    return split_of


def _stem(url: str) -> str:
    return re.sub(r"\.\w+$", "", url.strip().rpartition("/")[2])


def _actions(
    file: OfficialFile, config: Config, row: Mapping[str, str], video: str, split: str, repairs: Counter[str]
) -> list[Entry]:
    entries = []
    for slot in range(1, SLOTS + 1):
        start, end, action, justification = (row[f"Answer.{slot}{part}"].strip() for part in _PARTS)
        if not any((start, end, action, justification)):
            continue
        fault, span = "", None
        if start and end:
            try:
                times, repaired, fault = span_faults(float(start), float(end))
            except ValueError:
                raise file.wrong("times in seconds", f"{video} has {start!r} to {end!r}") from None
            if not fault:
                span = times
                repairs[repaired] += bool(repaired)
        else:
            fault = "no times"
        text = _caption(config, action, justification)
        wants_action = config.caption != "justification" and not action
        lacking = "" if text else f"no {'action' if wants_action else 'justification'}"
        extra: dict[str, Any] = {"action": action, "justification": justification}
        entries.append(
            Entry(
                source_id=f"{video}_{slot}",
                split=split,
                captions=(text,) if text else (),
                video=video,
                span=span,
                extra=extra,
                fault=fault or lacking,
            )
        )
    return entries


def _caption(config: Config, action: str, justification: str) -> str:
    """What is to be said; "" where a part of it is missing, as the authors leave such actions out."""
    if config.caption == "joint":
        return f"{action}{config.joiner}{justification}" if action and justification else ""
    return action if config.caption == "action" else justification
