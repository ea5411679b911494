"""Caption files as the field exchanges them: COCO's results and annotations, and plain ``{id: captions}``.

::

    results      [{"image_id": "video7010", "caption": "a man cooks"}, ...]   or   {"video7010": "a man cooks", ...}
    references   {"images": [{"id": "video7010"}, ...],
                  "annotations": [{"image_id": "video7010", "caption": "someone is cooking"}, ...]}
                 or   {"video7010": ["someone is cooking", ...], ...}

Ids are strings or integers in the file, and strings from here on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from avpipe.pipeline.clip import Clip
from avpipe.pipeline.errors import DataError
from avpipe.pipeline.files import atomic_write

_RESULTS_FORM = 'expected [{"image_id": ..., "caption": "..."}, ...] or {id: caption}'
_REFERENCES_FORM = 'expected {"images": [...], "annotations": [...]} as COCO has it, or {id: [captions]}'


def read_results(path: Path) -> dict[str, str]:
    """One caption a clip.

    Raises:
        DataError: the file cannot be read, is no such file, or names a clip twice.
    """
    values = read_json(path)
    if isinstance(values, Mapping):
        return {key: _single(path, key, value) for key, value in values.items()}
    if not isinstance(values, list):
        raise DataError(f"{path}: {_RESULTS_FORM}, got {_shape(values)}")
    captions: dict[str, str] = {}
    twice: list[str] = []
    for number, row in enumerate(values):
        clip_id = _row_id(path, number, row, _RESULTS_FORM)
        if clip_id in captions:
            twice.append(clip_id)
        captions[clip_id] = _text(path, clip_id, row["caption"])
    if twice:
        raise DataError(f"{path}: expected one caption a clip, got several for {_some(twice)}")
    return captions


def read_references(path: Path) -> dict[str, list[str]]:
    """One or more captions a clip; a clip that the file names without a caption has an empty list.

    Raises:
        DataError: the file cannot be read or is no such file.
    """
    values = read_json(path)
    if not isinstance(values, Mapping):
        hint = "; this looks like results, not references" if isinstance(values, list) else ""
        raise DataError(f"{path}: {_REFERENCES_FORM}, got {_shape(values)}{hint}")
    if isinstance(values.get("annotations"), list) and not all(isinstance(v, str) for v in values["annotations"]):
        return _coco_references(path, values)
    references = {}
    for key, value in values.items():
        several = [value] if isinstance(value, str) else value
        if not isinstance(several, list):
            raise DataError(f"{path}: {_REFERENCES_FORM}, got {_shape(value)} for {key!r}")
        references[key] = [_text(path, key, text) for text in several]
    return references


def references_of(clips: Iterable[Clip], split: str) -> dict[str, list[str]]:
    """The references of one split of a manifest; a clip without captions has an empty list."""
    return {clip.clip_id: list(clip.captions) for clip in clips if clip.split == split}


def write_results(path: Path, captions: Mapping[str, str] | Mapping[int, str]) -> None:
    """Write COCO results, ids as they are. The file appears whole or not at all; its folder is made if need be.

    Raises:
        StoreError: the disk is full, the folder cannot be written, ...
    """
    rows = [json.dumps({"image_id": clip_id, "caption": text}) for clip_id, text in captions.items()]
    with atomic_write(path) as aside:
        aside.write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="ascii")


def _coco_references(path: Path, values: Mapping[str, Any]) -> dict[str, list[str]]:
    images = values.get("images")
    if images is not None and not isinstance(images, list):
        raise DataError(f"{path}: {_REFERENCES_FORM}, got {_shape(images)} under 'images'")
    references: dict[str, list[str]] = {}
    for number, image in enumerate(images or ()):
        if not isinstance(image, Mapping) or not _is_id(image.get("id")):
            raise DataError(f"{path}: images[{number}]: expected an object with an 'id', got {_shape(image)}")
        references[str(image["id"])] = []
    strangers = []
    for number, row in enumerate(values["annotations"]):
        clip_id = _row_id(path, number, row, _REFERENCES_FORM)
        if images is not None and clip_id not in references:
            strangers.append(clip_id)
        references.setdefault(clip_id, []).append(_text(path, clip_id, row["caption"]))
    if strangers:
        raise DataError(f"{path}: annotations of clips that 'images' does not list: {_some(strangers)}")
    return references


def read_json(path: Path) -> Any:
    """What a JSON file of captions holds.

    Raises:
        DataError: it cannot be read, is none, or has a key twice in one object.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    start = text.lstrip()[:200]
    if start.startswith("<"):
        raise DataError(f"{path}: expected JSON, got an HTML or XML page ({start[:40]!r}). Did the download fail?")
    if start.startswith("version https://git-lfs"):
        raise DataError(f"{path}: expected JSON, got a Git LFS pointer. Try: git lfs pull")
    try:
        return json.loads(text, object_pairs_hook=_no_key_twice)
    except _KeyTwiceError as error:
        raise DataError(f"{path}: expected each id once, got {error.args[0]!r} twice in one object") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: expected JSON: {error}") from None


class _KeyTwiceError(Exception):
    """A JSON object has a key twice; the standard reader would keep the last in silence."""


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise _KeyTwiceError(key)
        values[key] = value
    return values


def _row_id(path: Path, number: int, row: Any, form: str) -> str:
    """The id of one row, which has a caption too."""
    if not isinstance(row, Mapping) or not _is_id(row.get("image_id")) or "caption" not in row:
        raise DataError(f"{path}: {form}, got {_shape(row)} at row {number}")
    return str(row["image_id"])


def _is_id(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _single(path: Path, clip_id: str, value: Any) -> str:
    """A caption; ``["caption"]``, pycocoevalcap's own habit, is one too."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise DataError(f"{path}: {_RESULTS_FORM}, got {_shape(value)} for {clip_id!r}")
    return value


def _text(path: Path, clip_id: str, value: Any) -> str:
    if not isinstance(value, str):
        raise DataError(f"{path}: expected a caption for {clip_id!r}, got {_shape(value)}")
    return value


def _shape(value: Any) -> str:
    """What a JSON value is, for messages."""
    match value:
        case Mapping():
            keys = ", ".join(map(repr, list(value)[:5]))
            return f"an object with the keys {keys}" if value else "an empty object"
        case list():
            return f"a list of {len(value)}"
        case _:
            return f"{value!r:.60}"


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:10]) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")
