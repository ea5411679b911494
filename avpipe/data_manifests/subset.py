"""A published list of ids: the clips that others had, so that one can train or score on the very same ones."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avpipe.data_manifests.annotations import FILE_KEYS, SPLIT_NAMES, read_text
from avpipe.data_manifests.naming import safe_id
from avpipe.pipeline.clip import SPLITS
from avpipe.pipeline.errors import DataError

if TYPE_CHECKING:
    from avpipe.data_manifests.official import Entry

_FORM = (
    "expected ids: one a line, a JSON list, {split: [ids]}, rows with an 'id' or 'video_id' (JSON or CSV), or COCO "
    "captions"
)
_KEYS = ("clip_id", "videoID", "video_id", "image_id", "youtube_id", "id", "key", *FILE_KEYS)
"""Which key of a row is its clip's; ``id`` comes late, for in a row that has an ``image_id`` it is the caption's."""


@dataclass(slots=True)
class Subset:
    """Ids that somebody published.

    Attributes:
        path: of the file.
        ids: as they stand there, without the extension of a media file.
        used: those that were found to be clips.
    """

    path: Path
    ids: frozenset[str]
    used: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, path: Path) -> Subset:
        """Read a list of ids.

        Raises:
            DataError: the file cannot be read or holds none.
        """
        ids = frozenset(map(plain, ids_in(path.name, read_text(path), str(path)))) - {""}  # the video of what has none
        if not ids:
            raise DataError(f"{path}: {_FORM}; got none")
        return cls(path, ids)

    @property
    def sha256(self) -> str:
        """Of the sorted ids."""
        return hashlib.sha256("\n".join(sorted(self.ids)).encode("utf-8", "backslashreplace")).hexdigest()

    def holds(self, clip_id: str, entry: Entry) -> bool:
        """Whether a clip is listed: by its id, an official name, or the id of its video."""
        found = self.ids.intersection(map(plain, (clip_id, entry.source_id, *entry.names, entry.video)))
        self.used |= found
        return bool(found)

    def holds_id(self, clip_id: str, extra: Mapping[str, Any]) -> bool:
        """The same of a clip of a manifest."""
        own = (str(extra.get(key, "")) for key in ("id", "video", "number"))
        names = (clip_id, *own, *extra.get("audiocap_ids", ()))
        found = self.ids.intersection(map(plain, names))
        self.used |= found
        return bool(found)

    def check(self) -> None:
        """Say so where the list is of something else.

        Raises:
            DataError: none of its ids was a clip's.
        """
        if not self.used:
            raise DataError(
                f"{self.path}: none of its {len(self.ids):,} ids is one of a clip, for example {min(self.ids)!r}. "
                f"{_FORM}"
            )

    def name_of(self, split: str) -> str:
        """What a split is called of which only these clips are meant: ``test-within-latest``. Safe as a file name."""
        return f"{split}-within-{safe_id(self.path.name.partition('.')[0])}"

    @property
    def note(self) -> str:
        """How much of the list was found."""
        return f"{len(self.used):,} of the {len(self.ids):,} ids in {self.path.name} are clips here"


def plain(name: str) -> str:
    """An id without the extension of a media file."""
    from avpipe.data_manifests.media_files import is_media

    return name.rpartition(".")[0] if is_media(name) else name


def ids_in(name: str, text: str, where: str, split: str = "") -> list[str]:
    """The ids in a file, whatever its form.

    Args:
        name: of the file; its ending tells the form.
        text: its content.
        where: it lies, for messages.
        split: only the ids under this key, of a file that has one for each split; none where it has not.

    Raises:
        DataError: it is of no form that holds ids.
    """
    ending = name.removesuffix(".gz").rpartition(".")[2].lower()
    if ending == "json":
        try:
            values = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{where}: {_FORM}; got no JSON: {error}") from None
        if split:
            values = (
                next((values[key] for key in _spellings(split) if key in values), [])
                if isinstance(values, dict)
                else []
            )
        return _from_json(where, values)
    if split:
        return []
    if ending == "jsonl":
        rows = []
        for number, line in enumerate(text.split("\n"), start=1):
            try:
                rows += [json.loads(line)] if line.strip() else []
            except json.JSONDecodeError as error:
                raise DataError(f"{where}: {_FORM}; got no JSON: {error.msg} in line {number}") from None
        return _from_json(where, rows)
    if ending in ("csv", "tsv"):
        header = text.split("\n", 1)[0]
        lines = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
        spelt = {name.strip().lower(): name for name in lines.fieldnames or ()}
        key = next((spelt[name.lower()] for name in _KEYS if name.lower() in spelt), None)
        if key is None:
            raise DataError(f"{where}: {_FORM}; got the columns {', '.join(lines.fieldnames or ['none'])}")
        try:
            return [(row[key] or "").strip() for row in lines]
        except csv.Error as error:
            raise DataError(f"{where}: {_FORM}; got no CSV: line {lines.line_num}: {error}") from None
    return [_of_line(line.strip()) for line in text.splitlines() if line.strip()]


def _of_line(line: str) -> str:
    """The first word of a line; all of it where it is the name of a file, which may hold blanks."""
    from avpipe.data_manifests.media_files import is_media

    return (line if is_media(line) else line.split(maxsplit=1)[0]).strip(",\"'")


def _spellings(split: str) -> list[str]:
    return [split, *(other for other, own in SPLIT_NAMES.items() if own == split)]


def _is_split(key: str) -> bool:
    """Whether a key means a split: ``train``, ``validation``, ``test_public``."""
    return not {*SPLITS, *SPLIT_NAMES}.isdisjoint(re.split(r"[^a-z]+", key.lower()))


def _from_json(where: str, values: Any) -> list[str]:
    if isinstance(values, dict) and isinstance(values.get("images"), list):
        values = values["images"]
    if isinstance(values, dict):
        # {split: [ids]} looks like {id: [captions]}.
        if all(_is_split(key) and isinstance(value, list) for key, value in values.items()):
            return [each for value in values.values() for each in _from_json(where, value)]
        return list(map(str, values))
    if not isinstance(values, list):
        raise DataError(f"{where}: {_FORM}; got {type(values).__name__}")
    found = []
    for number, row in enumerate(values):
        value = next((row[key] for key in _KEYS if key in row), None) if isinstance(row, Mapping) else row
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise DataError(f"{where}: {_FORM}; got {row!r:.80} at row {number}")
        found.append(str(value))
    return found
