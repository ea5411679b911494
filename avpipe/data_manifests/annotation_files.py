"""The official files of a dataset: found by their names wherever they lie below a folder, read with a clear word.

A release is unpacked in many ways, or not at all: ``train.csv`` may lie in ``audiocaps/dataset/``, and
``test_videodatainfo.json`` in the zip that it came in. Both are found. What is no whole official file is refused with
the file's name, what was expected and what to do: a page of the server that wanted a login, a download broken off, a
Git LFS pointer, the file of another release.
"""

from __future__ import annotations

import csv
import difflib
import fnmatch
import functools
import gzip
import hashlib
import io
import os
import posixpath
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from avpipe.data_manifests.dataset import Card
from avpipe.pipeline.clip import SPLITS
from avpipe.pipeline.errors import DataError
from avpipe.pipeline.files import bytes_text
from avpipe.pipeline.remote import RemotePath

T = TypeVar("T")

UNREADABLE = (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError, NotImplementedError)
"""What reading a damaged, encrypted or strangely packed file raises."""

_DEPTH = 4
_SHOWN = 8
_HEAD_BYTES = 512
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class OfficialFile:
    """One official file, plain or in an archive.

    Attributes:
        name: how it is officially called.
        where: where it lies, for messages.
        open: its bytes, from the beginning.
        card: of its dataset.
    """

    name: str
    where: str
    open: Callable[[], AbstractContextManager[IO[bytes]]] = field(repr=False)
    card: Card = field(repr=False)

    def json(self, form: type[T], expected: str, mistaken: Mapping[str, str] | None = None) -> T:
        """The file's content, checked.

        Args:
            form: what it must be (``list[Row]``, with ``Row`` a ``TypedDict``); keys beyond those asked for are passed
                over.
            expected: the same in words.
            mistaken: what the file is instead if it has one of these keys at the top.

        Raises:
            DataError: it is anything else.
        """
        data = self.data(expected)
        try:
            content = _adapter(cast(Any, form)).validate_json(data.removeprefix(_BOM))
        except ValidationError as error:
            raise DataError(self._not_expected(expected, _json_faults(error, data, mistaken or {}))) from None
        if not content:
            raise self.wrong(expected, "it holds nothing")
        return cast(T, content)

    def rows(
        self, columns: Sequence[str], *, strict: bool = True, ended: bool = False
    ) -> Iterator[tuple[int, dict[str, str]]]:
        """The rows of a CSV file with their line numbers; blank lines are none.

        Args:
            columns: which there must be, as they are written there; others may be.
            strict: refuse quotes in the middle of a field, as a damaged file has them.
            ended: the official file ends with a line break, and one that does not was cut short.

        Raises:
            DataError: it is no CSV, lacks columns, or a row has another number of fields.
        """
        expected = f"CSV with the columns {', '.join(columns[:6])}{', ...' if len(columns) > 6 else ''}"
        text = self.text(expected)
        if ended and not text.endswith("\n"):
            raise self.wrong(expected, "it ends in the middle of a line: its download or unpacking was broken off")
        reader = csv.reader(io.StringIO(text, newline=""), strict=strict)
        try:
            header = [name.strip() for name in next(reader, [])]
            if lacking := [name for name in columns if name not in header]:
                got = f"it lacks {', '.join(lacking[:5])}; its first line is {','.join(header)[:120]!r}"
                raise DataError(self._not_expected(expected, got))
            for values in reader:
                if not values:
                    continue
                if len(values) != len(header):
                    got = f"line {reader.line_num} has {len(values)} fields and not {len(header)}"
                    raise DataError(self._not_expected(expected, got))
                yield reader.line_num, dict(zip(header, values, strict=True))
        except csv.Error as error:
            raise DataError(self._not_expected(expected, f"line {reader.line_num}: {error}")) from None

    def lines(self, expected: str) -> list[str]:
        """The lines of a text file that hold anything, without what ends them.

        Raises:
            DataError: it is no text.
        """
        return [line.rstrip("\r") for line in self.text(expected).split("\n") if line.strip()]

    def text(self, expected: str) -> str:
        """The file as text.

        Raises:
            DataError: it is not UTF-8, or not what it seems.
        """
        data = self.data(expected)
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            got = f"line {line} holds the byte 0x{data[error.start]:02x}, which is no UTF-8"
            raise DataError(self._not_expected(expected, got)) from None

    def data(self, expected: str) -> bytes:
        """The file's bytes, if they may be a text at all.

        Raises:
            DataError: it cannot be read, is empty, or is evidently something else.
        """
        try:
            with self.open() as file:
                data = file.read()
        except UNREADABLE as error:
            raise DataError(self._not_expected(expected, f"it cannot be read to its end ({error})")) from None
        self.check_head(data[:_HEAD_BYTES], expected)
        return data

    def check_head(self, head: bytes, expected: str) -> None:
        """Refuse what evidently is something else.

        Raises:
            DataError: it is empty, a web page, an archive, a pointer, UTF-16.
        """
        text = head.removeprefix(_BOM).lstrip()[:100].lower()
        if not text:
            got = "it is empty"
        elif text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
            got = "it is a web page: its download gave a login, consent or error page instead of the file"
        elif text.startswith(b"version https://git-lfs"):
            got = "it is a Git LFS pointer, not the file; in that repository say: git lfs pull"
        elif head.startswith(b"PK\x03\x04"):
            got = "it is a zip file; give it the ending .zip, and it will be read as it is"
        elif head.startswith(b"\x1f\x8b"):
            got = "it is gzipped; give it the ending .gz, and it will be read as it is"
        elif head.startswith((b"\xff\xfe", b"\xfe\xff")):
            got = "it is UTF-16; convert it: iconv -f UTF-16 -t UTF-8"
        else:
            return
        raise DataError(self._not_expected(expected, got))

    def wrong(self, expected: str, got: str) -> DataError:
        """The error to raise where a module finds the content to be another than the official one."""
        return DataError(self._not_expected(expected, got))

    def _not_expected(self, expected: str, got: str) -> str:
        return f"{self.where}: expected {expected}, but {got}. Get it (again) from {self.card.source}"


class AnnotationFiles:
    """Finds official files by their names.

    Args:
        place: the folder that the user gave, or one file, which is the one that is wanted, whatever it is called; may
            be remote.
        dataset: name of the dataset, for messages.
        card: of the dataset.
        media: folder of the media, for a module that would read the captions of more videos than any memory holds.

    Raises:
        DataError: there is no such place, or a folder in it cannot be read.
    """

    def __init__(self, place: Path, dataset: str, card: Card, media: Path | None = None) -> None:
        self.place, self.dataset, self.card, self.media = place, dataset, card, media
        self._damaged: dict[str, str] = {}
        self._only = "" if place.is_dir() or place.name.lower().endswith(".zip") else place.name
        if place.is_dir():
            self._paths = sorted(_files_below(place), key=lambda path: (path.count("/"), path))
            self._root = place
        elif place.is_file():
            self._paths, self._root = [place.name], place.parent
        else:
            raise DataError(f"--annotations: expected a folder with the files of {dataset}, got {place}: not there")

    def by_split(
        self, names: Mapping[str, Sequence[str]], splits: Sequence[str], *, advice: str = ""
    ) -> dict[str, OfficialFile]:
        """One official file a split.

        Args:
            names: the names it may have, best first, by split.
            splits: which are wanted.
            advice: what else to try where one is missing.

        Raises:
            DataError: files are missing; all in one message.
        """
        found = {split: self.find(*names[split]) for split in splits}
        if len(splits) == 1 and self._only:
            found = {split: file or self._file(self._only) for split, file in found.items()}
        missing = {split: names[split] for split, file in found.items() if file is None}
        if missing:
            wanted = [f"{' or '.join(several)} ({split})" for split, several in missing.items()]
            rest = [split for split in splits if split not in missing and split in SPLITS]
            or_else = f"or leave it out: splits=[{','.join(rest)}]" if rest else ""
            raise self.missing(wanted, "; ".join(filter(None, (advice, or_else))))
        return {split: file for split, file in found.items() if file is not None}

    def need(self, *names: str, advice: str = "") -> OfficialFile:
        """One official file.

        Raises:
            DataError: it is missing.
        """
        if found := self.find(*names):
            return found
        if self._only:
            return self._file(self._only)
        raise self.missing([" or ".join(names)], advice)

    def find(self, *names: str) -> OfficialFile | None:
        """The file of the first of these names that there is, plain or in an archive; ``None``: there is none.

        A name may be a pattern (``*_ids.txt``); the first file that fits, by depth and name, is taken.

        Raises:
            DataError: two different files of that name lie equally deep.
        """
        for name in names:
            if file := self._plain(name):
                return file
        for name in names:
            if file := self._zipped(name):
                return file
        return None

    def all(self, *names: str) -> list[OfficialFile]:
        """Every plain file of one of these names or patterns, the one nearest to the top first."""
        return [self._file(path) for path in self._paths if any(_is_named(path, name) for name in names)]

    def _plain(self, name: str) -> OfficialFile | None:
        fitting = [path for path in self._paths if _is_named(path, name) or _is_named(path, f"{name}.gz")]
        depth = min((path.count("/") for path in fitting), default=0)
        nearest = [path for path in fitting if path.count("/") == depth]
        if not nearest:
            return None
        if "*" not in name and len(nearest) > 1 and len({self._hash(path) for path in nearest}) > 1:
            raise DataError(
                f"--annotations: expected one {name}, got {len(nearest)} that differ: {', '.join(nearest)}, below "
                f"{self._root}. Give the folder of the one that is meant"
            )
        return self._file(nearest[0])

    def _zipped(self, name: str) -> OfficialFile | None:
        for path in self._paths:
            if not path.lower().endswith(".zip"):
                continue
            archive = self._root / path
            try:
                with _opened(archive) as file, zipfile.ZipFile(file) as zipped:
                    members = [member for member in zipped.namelist() if _is_member(member, name)]
            except (zipfile.BadZipFile, OSError) as error:  # of interest only where a file is not found elsewhere
                self._damaged[path] = str(error)
                continue
            if members:
                member = min(members, key=lambda each: (each.count("/"), each))
                opened = functools.partial(_open_member, archive, member)
                return OfficialFile(name, f"{archive} ({member})", opened, self.card)
        return None

    def _file(self, path: str) -> OfficialFile:
        there = self._root / path
        name = re.sub(r"\.gz$", "", posixpath.basename(path), flags=re.IGNORECASE)
        return OfficialFile(name, str(there), functools.partial(_open_plain, there), self.card)

    def _hash(self, path: str) -> bytes:
        """Of what is in a file, unpacked; of one that cannot be read, something that no other has."""
        try:
            with _open_plain(self._root / path) as file:
                return hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]
        except UNREADABLE:
            return path.encode("utf-8", "surrogateescape")

    def missing(self, wanted: Sequence[str], advice: str = "") -> DataError:
        """The error to raise where files are not found.

        Args:
            wanted: their names.
            advice: what else to try.
        """
        alike = sorted(self._paths, key=lambda path: -_likeness(path, wanted))
        there = ", ".join(alike[:_SHOWN]) or "nothing"
        more = f" and {len(self._paths) - _SHOWN} more" if len(self._paths) > _SHOWN else ""
        hint = f". Or {advice.removeprefix('or ')}" if advice else ""
        damaged = "".join(
            f". {self._root / path} cannot be read ({why}): its download was broken off, or it is no zip file: "
            f"get it again"
            for path, why in self._damaged.items()
        )
        return DataError(
            f"--annotations: looked in {self.place} and its sub-folders and zip files for the files of "
            f"{self.dataset}, and did not find {'; '.join(wanted)}. There is {there}{more}{damaged}. "
            f"They come from {self.card.source}{hint}"
        )


def _likeness(path: str, wanted: Sequence[str]) -> float:
    """How much a file's name is like one of those that were looked for: a renamed one comes first in a message."""
    name = posixpath.basename(path).lower()
    return max(difflib.SequenceMatcher(None, name, other.lower()).ratio() for other in wanted)


@functools.cache
def _adapter(form: Any) -> TypeAdapter[Any]:
    return TypeAdapter(form)


def _json_faults(error: ValidationError, data: bytes, mistaken: Mapping[str, str]) -> str:
    """What is wrong with a JSON file, in a line."""
    faults = error.errors(include_url=False)
    first = faults[0]
    if first["type"] == "json_invalid":
        message = first["msg"].removeprefix("Invalid JSON: ")
        if "EOF" in message:
            return f"it ends in the middle, after {bytes_text(len(data))}: its download or unpacking was broken off"
        return f"it is no JSON ({message})"
    top = _top_keys(data)
    if what := next((what for key, what in mistaken.items() if key in top), ""):
        return f"this is {what}"
    told = "; ".join(f"{_path(fault['loc'])}{fault['msg'][:1].lower()}{fault['msg'][1:]}" for fault in faults[:3])
    more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
    keys = f" (its keys are {', '.join(map(repr, top[:5]))})" if top else ""
    return f"{told}{more}{keys}"


def _top_keys(data: bytes) -> list[str]:
    import json

    values = json.loads(data.decode("utf-8-sig", "replace"))
    return list(values) if isinstance(values, dict) else []


def _path(location: Sequence[int | str]) -> str:
    """``[3].enCap[0]: ``; nothing for the file as a whole."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    return f"{text}: " if text else ""


def _files_below(root: Path) -> list[str]:
    """Files in a folder and a few levels below, but for hidden ones."""
    if isinstance(root, RemotePath):
        return [path for path in root.files_below() if path.count("/") < _DEPTH and not _is_hidden(path)]

    def unreadable(error: OSError) -> None:
        raise DataError(f"--annotations: {error.filename} cannot be read: {error.strerror}")

    paths: list[str] = []
    for folder, folders, names in os.walk(root, onerror=unreadable, followlinks=True):
        below = os.path.relpath(folder, root).replace(os.sep, "/")
        depth = 0 if below == "." else below.count("/") + 1
        if depth + 1 >= _DEPTH:
            folders.clear()
        before = "" if below == "." else f"{below}/"
        paths += [before + name for name in names if not _is_hidden(before + name)]
    return paths


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.split("/"))


def _is_named(path: str, name: str) -> bool:
    return fnmatch.fnmatchcase(path.rpartition("/")[2].lower(), name.lower())


def _is_member(member: str, name: str) -> bool:
    return not member.endswith("/") and not _is_hidden(member) and _is_named(member, name)


@contextmanager
def _open_plain(path: Path) -> Iterator[IO[bytes]]:
    """A file, unpacked if it is gzipped."""
    with _opened(path) as file:
        if not path.name.lower().endswith(".gz"):
            yield file
            return
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield cast(IO[bytes], unpacked)


@contextmanager
def _open_member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    """A file in an archive."""
    with _opened(archive) as file, zipfile.ZipFile(file) as zipped, zipped.open(member) as unpacked:
        yield unpacked


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
