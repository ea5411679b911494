"""Caption files as users have them: COCO JSON, ``{id: captions}``, VALOR's lists, JSONL, lhotse's cuts and CSV, read
into one form.

::

    .json     {"images": [{"id": 7, "file_name": "a.mp4"}], "annotations": [{"image_id": 7, "caption": "a dog barks"}]}
              {"a": ["a dog barks", "barking"]}     {"a": "a dog barks"}     [{"id": "a", "caption": "a dog barks"}]
              [{"video_id": "a", "desc": "a dog barks"}]
    .jsonl    {"id": "a", "captions": ["a dog barks", "barking"], "split": "train"}
              {"file": "long.mp4", "id": "long-2", "start": 5, "stop": 15, "caption": "a dog barks"}
              {"id": "a", "type": "MonoCut", "start": 0, "duration": 10, "supervisions": ...}
    .csv      id,caption,split
              a,a dog barks,train
              a,barking,train

A folder in VALOR's layout holds ``txt_mapper.json`` (``{id: captions}``) and a list of ids for each split,
``*train*id*.json`` and the like. All but these lists may be gzipped (``.jsonl.gz``).

A clip may be spread over several rows where each holds one ``caption``; rows with a list of ``captions`` are whole.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from avpipe.pipeline.clip import SPLITS
from avpipe.pipeline.errors import DataError, did_you_mean

ID_KEYS = ("clip_id", "image_id", "id", "video_id")
FILE_KEYS = ("path", "file", "file_name", "video")
START_KEYS = ("start_seconds", "start")
STOP_KEYS = ("stop_seconds", "stop", "end_seconds", "end")
SPLIT_NAMES = {
    "training": "train",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "dev": "val",
    "testing": "test",
}

VALOR_CAPTIONS = "txt_mapper.json"

_SHOWN = 5
_SURROGATE = re.compile("[\\ud800-\\udfff]")  # half an emoji, as a cut JSON escape leaves it
_FORMS = "expected .json (COCO or {id: captions}), .jsonl, .csv or .tsv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """What a caption file says of one clip.

    Attributes:
        id: as the file has it.
        file: of the clip, as the file has it; ``None`` if it names none.
        captions: as the file has them, white space and all.
        start_seconds: where the clip starts in its file, if given.
        stop_seconds: where it stops, if given.
        split: ``"train"``, ``"val"`` or ``"test"``, if given.
    """

    id: str
    file: str | None = None
    captions: tuple[str, ...] = ()
    start_seconds: float | None = None
    stop_seconds: float | None = None
    split: str | None = None


class Faults:
    """Collects what is wrong with a file, so that a user learns of everything at once."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._examples: dict[str, list[str]] = {}

    def add(self, kind: str, example: str) -> None:
        """Note one fault.

        Args:
            kind: what is wrong, in the plural ("ids without a file"); faults of a kind are shown together.
            example: where, and what was got.
        """
        self._examples.setdefault(kind, []).append(example)

    def check(self) -> None:
        """Raise if there was anything.

        Raises:
            DataError: one line a kind of fault: how many, and the first few.
        """
        if not self._examples:
            return
        lines = []
        for kind, examples in self._examples.items():
            more = ", ..." if len(examples) > _SHOWN else ""
            lines.append(f"  - {len(examples)} {kind}: {', '.join(examples[:_SHOWN])}{more}")
        raise DataError("\n".join([f"{self._source}: cannot be used as it is", *lines]))


def read_annotations(path: Path) -> list[Annotation]:
    """Read a caption file, in the order of its ids.

    Raises:
        DataError: the file cannot be read, is of no known form, or rows of it are wrong; all faults in one message.
    """
    readers = {".json": _json_rows, ".jsonl": _jsonl_rows, ".csv": _csv_rows, ".tsv": _csv_rows}
    if path.is_dir():
        return _valor_folder(path)
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    reader = readers.get(suffix)
    if reader is None:
        raise DataError(f"{path}: {_FORMS}, got {suffix or 'a name without an extension'!r}")
    text = read_text(path)
    faults = Faults(path)
    found: dict[str, Annotation] = {}
    whole: set[str] = set()
    for where, row in reader(path, text, faults):
        annotation = _annotation(where, row, faults)
        if annotation is None:
            continue
        before = found.get(annotation.id)
        if before is None:
            found[annotation.id] = annotation
        elif annotation.id in whole or _is_whole(row):
            faults.add("ids that occur twice", f"{annotation.id!r} ({where})")
        elif replace(annotation, captions=()) != replace(before, captions=()):
            faults.add("rows that contradict an earlier row of the same id", f"{annotation.id!r} ({where})")
        else:
            found[annotation.id] = replace(before, captions=before.captions + annotation.captions)
        if _is_whole(row):
            whole.add(annotation.id)
    faults.check()
    if not found:
        raise DataError(f"{path}: expected captions, got none")
    return list(found.values())


def _valor_folder(folder: Path) -> list[Annotation]:
    """VALOR's layout: the captions in one file, and which clips are in which split in others."""
    rows = read_annotations(folder / VALOR_CAPTIONS)
    split_of: dict[str, str] = {}
    faults = Faults(folder)
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        words = re.split(r"[^a-z]+", path.stem.lower())
        split = next((SPLIT_NAMES.get(word, word) for word in words if SPLIT_NAMES.get(word, word) in SPLITS), None)
        if not split or not {"id", "ids"}.intersection(words) or path.suffix.lower() not in (".json", ".txt"):
            continue
        text = read_text(path)
        try:
            ids = json.loads(text) if path.suffix.lower() == ".json" else text.split()
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: not JSON: {error}") from None
        if not isinstance(ids, list) or not all(isinstance(each, str) for each in ids):
            raise DataError(f"{path}: expected a list of ids")
        for each in ids:
            if split_of.setdefault(each, split) != split:
                faults.add("ids in two splits", f"{each!r} ({split_of[each]} and {split})")
    faults.check()
    if not split_of:
        return rows
    if not (listed := [replace(row, split=split_of[row.id]) for row in rows if row.id in split_of]):
        raise DataError(f"{folder}: none of the ids in {VALOR_CAPTIONS} is in one of the lists of splits beside it")
    return listed


def read_text(path: Path) -> str:
    """A text file that a person or a download made; unpacked if it is gzipped.

    Raises:
        DataError: it cannot be read, is not UTF-8, or is a web page.
    """
    try:
        data = path.read_bytes()
        if path.name.endswith(".gz"):
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path}: expected UTF-8, got UTF-16. Convert it: iconv -f UTF-16 -t UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: expected UTF-8, got the byte 0x{data[error.start]:02x}. If it is Latin-1, convert "
            f"it: iconv -f LATIN1 -t UTF-8"
        ) from None
    if text.lstrip()[:200].lower().startswith(("<!doctype", "<html", "<?xml", "<head")):
        raise DataError(f"{path}: expected captions, got a web page: its download gave a login or error page instead")
    return text


Row = tuple[str, Mapping[str, Any]]
"""Where a row stands, for messages, and its keys and values."""


def _json_rows(path: Path, text: str, faults: Faults) -> Iterator[Row]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):  # the json module would keep the last one and say nothing
            keys = [key for key, _ in pairs]
            for key in values:
                if keys.count(key) > 1:
                    faults.add("keys that occur twice", repr(key))
        return values

    try:
        values = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        hint = ". It has one object a line: name it .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"{path}: not JSON: {error}{hint}") from None
    if isinstance(values, dict) and isinstance(values.get("annotations"), list):
        yield from _coco_rows(values, faults)
    elif isinstance(values, dict):
        for key, captions in values.items():
            yield f"key {key!r}", {"id": key, "captions" if isinstance(captions, list) else "caption": captions}
    elif isinstance(values, list):
        for number, row in enumerate(values):
            yield from _object(f"row {number}", row, faults)
    else:
        raise DataError(f"{path}: {_FORMS}, got a single {type(values).__name__}")


def _coco_rows(values: Mapping[str, Any], faults: Faults) -> Iterator[Row]:
    """COCO: the images say which clips there are, the annotations what is in them."""
    images: dict[str, dict[str, Any]] = {}
    for number, image in enumerate(values.get("images") or ()):
        for where, row in _object(f"images[{number}]", image, faults):
            key = str(_first(row, ("id", *ID_KEYS)))
            if key in images:
                faults.add("ids that occur twice", f"{key!r} ({where})")
            images[key] = {**row, "captions": []}
    for number, annotation in enumerate(values["annotations"]):
        for where, row in _object(f"annotations[{number}]", annotation, faults):
            key = str(_first(row, ("image_id", "video_id", "clip_id")))
            if key not in images:
                faults.add("captions for unknown ids", f"{key!r} ({where})")
            else:
                images[key]["captions"].append(row.get("caption"))
    for key, row in images.items():
        yield f"image {key!r}", {**row, "id": key}


def _jsonl_rows(path: Path, text: str, faults: Faults) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                faults.add("lines that are not JSON", f"line {number} ({error.msg} at column {error.colno})")
                continue
            yield from _object(f"line {number}", _of_cut(row, f"line {number}", faults), faults)


def _of_cut(row: Any, where: str, faults: Faults) -> Any:
    """A row of captions made of one of lhotse's cuts; any other row as it is."""
    if not (isinstance(row, dict) and str(row.get("type", "")).endswith("Cut")):
        return row
    from avpipe.data_manifests.exchange import cut_row

    try:
        return cut_row(row)
    except (KeyError, IndexError, TypeError, ValueError):
        faults.add("cuts without a recording", where)
        return {"id": row.get("id"), "captions": []}


def _csv_rows(path: Path, text: str, faults: Faults) -> Iterator[Row]:
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name.strip().lower() for name in next(lines, [])]
        if not {*ID_KEYS, *FILE_KEYS}.intersection(names) or "caption" not in names:
            raise DataError(
                f"{path}: expected a header with 'caption' and one of {', '.join(ID_KEYS + FILE_KEYS)}, "
                f"got {', '.join(names) or 'nothing'}"
            )
        for values in lines:
            where = f"line {lines.line_num}"
            if not values:
                continue
            if len(values) != len(names):
                faults.add(f"rows that do not have {len(names)} fields", f"{where} ({len(values)}; an unquoted comma?)")
                continue
            yield where, {name: value for name, value in zip(names, values, strict=True) if value or name == "caption"}
    except csv.Error as error:
        raise DataError(f"{path}, line {lines.line_num}: not CSV: {error}") from None


def _object(where: str, row: Any, faults: Faults) -> Iterator[Row]:
    if isinstance(row, Mapping):
        yield where, row
    else:
        faults.add("rows that are no objects", f"{where} ({type(row).__name__})")


def _annotation(where: str, row: Mapping[str, Any], faults: Faults) -> Annotation | None:
    """One row checked; ``None``, and a fault noted, where it is wrong."""
    key, file = _first(row, ID_KEYS), _first(row, FILE_KEYS)
    key = file if key is None else key
    if not isinstance(key, str | int) or isinstance(key, bool) or str(key).strip() == "":
        faults.add(f"rows without any of {', '.join(ID_KEYS + FILE_KEYS)}", where)
        return None
    captions = row.get("captions", row.get("caption", row.get("desc")))
    captions = captions if isinstance(captions, list) else [captions]
    for caption in captions:
        if not isinstance(caption, str | None) or _SURROGATE.search(caption or ""):
            faults.add("captions that are no text", f"{caption!r} ({where})")
            return None
    start, stop = (_seconds(where, _first(row, keys), faults) for keys in (START_KEYS, STOP_KEYS))
    if stop is not None and not stop > (start or 0.0):
        faults.add("clips that stop before they start", f"{start or 0.0:g} to {stop:g} ({where})")
        stop = None
    return Annotation(
        id=str(key).strip(),
        file=str(file).strip() if file is not None else None,
        captions=tuple(caption or "" for caption in captions),
        start_seconds=start,
        stop_seconds=stop,
        split=_split(where, row.get("split"), faults),
    )


def _is_whole(row: Mapping[str, Any]) -> bool:
    """Whether a row holds all captions of its clip, and not one of several."""
    return "captions" in row or isinstance(row.get("desc"), list)


def _first(row: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((row[key] for key in keys if row.get(key) is not None), None)


def _seconds(where: str, value: Any, faults: Faults) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        faults.add("times that are no seconds", f"{value!r} ({where})")
        return None
    return seconds


def _split(where: str, value: Any, faults: Faults) -> str | None:
    if value is None:
        return None
    name = str(value).strip().lower()
    name = SPLIT_NAMES.get(name, name)
    if name not in SPLITS:
        faults.add(f"splits other than {', '.join(SPLITS)}", f"{value!r}{did_you_mean(name, SPLITS)} ({where})")
        return None
    return name


def tidy(caption: str) -> str:
    """A caption on one line: white space and control characters become single spaces; all else is kept."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", caption).split())
