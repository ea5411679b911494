"""A manifest: the clips of a dataset, one a line, in a fixed order.

::

    manifests/<dataset>.jsonl.gz    one clip a line, as :meth:`Clip.to_row` gives it
    manifests/<dataset>.json        the header: media root, clips per shard, counts, checksums, notes

The order of the clips decides which shard holds which, so it is part of the identity of every feature set. The header
is written last and knows the ids: a manifest without its own header is none.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from avpipe.pipeline.clip import SPLITS, Clip
from avpipe.pipeline.errors import DataError
from avpipe.pipeline.files import atomic_write, storage_errors, write_json
from avpipe.pipeline.places import place
from avpipe.pipeline.remote import is_remote

FORMAT = 1
CLIPS_PER_SHARD = 256


@dataclass(frozen=True, slots=True)
class Manifest:
    """The clips of a dataset, or of some of its splits.

    Attributes:
        dataset: its name.
        clips: in manifest order; of the splits that were asked for.
        media_root: what the paths of the clips are relative to.
        clips_per_shard: how many clips a shard of features holds.
        ids_sha256: of the ids of all clips in order, whatever splits were asked for: two manifests with the same one
            give interchangeable shards.
    """

    dataset: str
    clips: tuple[Clip, ...]
    media_root: Path
    clips_per_shard: int
    ids_sha256: str

    def split(self, name: str) -> tuple[Clip, ...]:
        """The clips of one split, in manifest order."""
        return tuple(clip for clip in self.clips if clip.split == name)


@dataclass(frozen=True, slots=True)
class TrainingClips:
    """What a training may know of a dataset: there is no test split to ask for, and no clip of it can be in here.

    Attributes:
        train: clips to learn from.
        val: clips to choose the best checkpoint by.

    Raises:
        ValueError: a clip is of the test split.
    """

    train: tuple[Clip, ...]
    val: tuple[Clip, ...]

    def __post_init__(self) -> None:
        if sealed := [clip.clip_id for clip in (*self.train, *self.val) if clip.split == "test"]:
            raise ValueError(
                f"clips of a training: expected none of the test split, which is sealed, got {sealed[0]!r}"
            )

    @property
    def clip_ids(self) -> list[str]:
        """Of all."""
        return [clip.clip_id for clip in (*self.train, *self.val)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a manifest says of itself.

    Attributes:
        dataset: its name.
        media_root: absolute (or a URL), or relative to the folder of the manifest where it lies in the same workspace,
            so that a workspace can be moved.
        clips_per_shard: how many clips a shard of features holds.
        clips: how many there are, by split.
        captions: how many there are, by split.
        ids_sha256: of the ids of all clips, in order.
        notes: what a user should know of the data, one sentence each.
        config: the options the dataset was prepared with.
        ledger: official, annotated, missing, ... clips by split, as :class:`~avpipe.data_manifests.ledger.SplitLedger`
            counts them.
        format: version of this layout.
    """

    dataset: str
    media_root: str
    clips_per_shard: int
    clips: Mapping[str, int]
    captions: Mapping[str, int]
    ids_sha256: str
    notes: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    ledger: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    format: int = FORMAT


def write(
    path: Path,
    clips: Sequence[Clip],
    *,
    media_root: Path,
    clips_per_shard: int = CLIPS_PER_SHARD,
    notes: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    ledger: Mapping[str, Mapping[str, Any]] | None = None,
) -> Header:
    """Write a manifest and its header. The same clips give the same bytes.

    Args:
        path: of the manifest, ``.../<dataset>.jsonl.gz``.
        clips: all of one dataset, each id once; their order is kept.
        media_root: what the paths of the clips are relative to.
        clips_per_shard: how many clips a shard of features will hold.
        notes: facts about the data that a user should know.
        config: the options that the dataset was prepared with.
        ledger: what became of the official clips, by split.

    Raises:
        DataError: there are no clips, two datasets are mixed, or an id occurs twice.
        StoreError: the files cannot be written.
        ValueError: ``clips_per_shard`` is below 1.
    """
    if clips_per_shard < 1:
        raise ValueError(f"clips_per_shard: expected at least 1, got {clips_per_shard}")
    if not clips:
        raise DataError(f"{path}: expected at least one clip, got none")
    datasets = sorted({clip.dataset for clip in clips})
    if len(datasets) > 1:
        raise DataError(f"{path}: expected the clips of one dataset, got those of {', '.join(datasets)}")
    _check_unique(path, [clip.clip_id for clip in clips])
    # Pure ASCII: the path of a file may hold bytes that are no UTF-8.
    rows = "".join(f"{json.dumps(clip.to_row(), allow_nan=False)}\n" for clip in clips).encode("ascii")
    header = Header(
        dataset=datasets[0],
        media_root=_portable(media_root, path),
        clips_per_shard=clips_per_shard,
        clips=_by_split((clip.split, 1) for clip in clips),
        captions=_by_split((clip.split, len(clip.captions)) for clip in clips),
        ids_sha256=_ids_sha256(clip.clip_id for clip in clips),
        notes=tuple(notes),
        config=dict(config or {}),
        ledger=dict(ledger or {}),
    )
    with atomic_write(path) as aside:
        aside.write_bytes(gzip.compress(rows, compresslevel=6, mtime=0))
    write_json(header_path(path), {f.name: getattr(header, f.name) for f in fields(header)})
    return header


def read(path: Path, splits: Iterable[str] | None = None) -> Manifest:
    """Read a manifest.

    Args:
        path: of the manifest, ``.../<dataset>.jsonl.gz``.
        splits: make clips of these alone: the rows of the others are checked, and their captions dropped unread.
            ``None`` means all.

    Raises:
        DataError: the manifest or its header is missing or damaged, they do not belong together, or a row is no clip.
        ValueError: an unknown split was asked for.
    """
    wanted = frozenset(SPLITS if splits is None else splits)
    if unknown := wanted.difference(SPLITS):
        raise ValueError(f"splits: expected some of {', '.join(SPLITS)}, got {', '.join(sorted(unknown))}")
    header = read_header(path)
    clips: list[Clip] = []
    ids: list[str] = []
    counts: Counter[str] = Counter()
    for number, row in _rows(path):
        ids.append(str(row.get("clip_id")))
        counts[str(row.get("split"))] += 1
        if row.get("split") in SPLITS and row["split"] not in wanted:
            continue
        try:
            clips.append(Clip.from_row(row))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}") from None
    if dict(counts) != {split: count for split, count in header.clips.items() if count}:
        raise DataError(
            f"{path}: expected {_counted(header.clips)}, as its header says, got {_counted(counts)}. {_again(path)}"
        )
    if _ids_sha256(ids) != header.ids_sha256:
        raise DataError(
            f"{path}: its ids, or their order, are not those that its header was written for. {_again(path)}"
        )
    return Manifest(
        dataset=header.dataset,
        clips=tuple(clips),
        media_root=_media_root(path, header.media_root),
        clips_per_shard=header.clips_per_shard,
        ids_sha256=header.ids_sha256,
    )


def read_for_training(path: Path) -> TrainingClips:
    """Read what a training may know: the test split is sealed, and nothing of it is made into clips.

    The one way in which clips come to a training.

    Args:
        path: of the manifest, ``.../<dataset>.jsonl.gz``.

    Raises:
        DataError: see :func:`read`.
    """
    clips = read(path, splits=("train", "val"))
    return TrainingClips(train=clips.split("train"), val=clips.split("val"))


def read_header(path: Path) -> Header:
    """Read what a manifest says of itself, without its rows.

    Args:
        path: of the manifest, ``.../<dataset>.jsonl.gz``.

    Raises:
        DataError: the manifest was never prepared, or its header is damaged.
    """
    source = header_path(path)
    if not path.exists() or not source.exists():
        missing = path if not path.exists() else source
        raise DataError(f"no manifest: expected {missing}. {_again(path)}")
    try:
        with storage_errors(source, "read"):
            values = json.loads(source.read_text(encoding="utf-8"))
        header = Header(**values)
    except (ValueError, TypeError) as error:
        raise DataError(f"{source}: not the header of a manifest: {error}. {_again(path)}") from None
    if header.format != FORMAT:
        raise DataError(f"{source}: expected format {FORMAT}, got {header.format}. {_again(path)}")
    return header


def header_path(path: Path) -> Path:
    """Where the header of a manifest lies."""
    return path.with_name(f"{_dataset(path)}.json")


def _dataset(path: Path) -> str:
    return path.name.removesuffix(".jsonl.gz")


def _again(path: Path) -> str:
    return f"Run: avpipe prepare {_dataset(path)}"


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows with their line numbers, from 1."""
    number = 0
    with storage_errors(path, "read"):
        try:
            with path.open("rb") as file, gzip.open(file, "rt", encoding="utf-8", newline="\n") as lines:
                for number, line in enumerate(lines, start=1):
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise DataError(f"{path}, line {number}: expected an object, got {line.strip()[:80]!r}")
                    yield number, row
        except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
            raise DataError(f"{path}: damaged after line {number}: {error}. {_again(path)}") from None
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: expected a clip as JSON: {error}") from None


def _check_unique(path: Path, ids: Sequence[str]) -> None:
    twice = [clip_id for clip_id, count in Counter(ids).items() if count > 1]
    if twice:
        raise DataError(f"{path}: expected every clip_id once, got {len(twice)} several times: {', '.join(twice[:5])}")


def _ids_sha256(ids: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(ids).encode("ascii", "backslashreplace")).hexdigest()


def _by_split(counts: Iterable[tuple[str, int]]) -> dict[str, int]:
    total = dict.fromkeys(SPLITS, 0)
    for split, count in counts:
        total[split] += count
    return total


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {split}" for split, count in counts.items() if count) or "nothing"


def _portable(media_root: Path, path: Path) -> str:
    """Absolute, unless both lie in one workspace (``<workspace>/manifests/<dataset>.jsonl.gz``): then relative."""
    root, workspace = media_root.resolve(), path.resolve().parent.parent
    if is_remote(root) != is_remote(workspace) or not root.is_relative_to(workspace):
        return str(root)
    return os.path.relpath(root.relative_to(workspace), "manifests")


def _media_root(path: Path, stored: str) -> Path:
    """Undoes :func:`_portable`."""
    if "://" in stored or Path(stored).is_absolute():
        return place(stored)
    root = path.parent / stored
    return root.resolve() if is_remote(root) else root
