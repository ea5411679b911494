"""Your own data: a folder of videos and a file of captions.

Source: yours. The caption file is COCO JSON, ``{id: captions}``, JSONL or CSV (:mod:`avpipe.data_manifests.annotations`
shows each). An id is found among the videos by its path below the folder, with or without extension, or by its bare
name where only one video has it. ``prepare`` looks at the names of the files alone; whether they can be decoded is for
``extract`` to say, clip by clip. For example, with ``captions.csv``::

    id,caption,split
    kitchen/a,a woman chops an onion,train
    kitchen/a,"chopping, with music",train

and ``videos/kitchen/a.mp4``, a row of the manifest is::

    {"clip_id": "kitchen_a", "dataset": "folder", "path": "kitchen/a.mp4", "split": "train",
     "captions": ["a woman chops an onion", "chopping, with music"], "extra": {"id": "kitchen/a"}}
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pydantic import Field, field_validator, model_validator

from avpipe.data_manifests.annotations import Annotation, Faults, read_annotations, tidy
from avpipe.data_manifests.dataset import Card, Prepared, Progress
from avpipe.data_manifests.datasets import REGISTRY
from avpipe.pipeline.clip import SPLITS, Clip
from avpipe.pipeline.config import Config as BaseConfig
from avpipe.pipeline.errors import DataError
from avpipe.pipeline.remote import RemotePath
from avpipe.pipeline.workspace import Workspace

NAME = "folder"

# fmt: off
MEDIA_SUFFIXES = frozenset((
    ".3g2", ".3gp", ".aac", ".aiff", ".asf", ".avi", ".f4v", ".flac", ".flv", ".gif", ".m2ts", ".m4a", ".m4v", ".mkv",
    ".mov", ".mp2", ".mp3", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".oga", ".ogg", ".ogv", ".opus", ".ts", ".vob",
    ".wav", ".webm", ".wma", ".wmv",
))
# fmt: on
"""What counts as a video or a sound where the caption file does not name a file with its extension."""

CARD = Card(
    summary="Your own data: a folder of videos and a file of captions.",
    source="yours: --media FOLDER --annotations captions.json (or .jsonl, .csv)",
    licence="yours",
)


class Ratios(BaseConfig):
    """Sizes of the splits to one another, where the caption file gives none."""

    train: float = Field(0.8, ge=0)
    """Clips to learn from."""
    val: float = Field(0.1, ge=0)
    """Clips to choose a model by."""
    test: float = Field(0.1, ge=0)
    """Clips to score."""

    @model_validator(mode="after")
    def _not_all_zero(self) -> Ratios:
        if self.train + self.val + self.test <= 0:
            raise ValueError("expected at least one ratio above 0")
        return self


class Config(BaseConfig):
    """Options of a folder of your own."""

    dataset: str = Field(NAME, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """What the dataset will be called: ``extract --dataset NAME``. Give each folder its own."""
    split_ratios: Ratios = Ratios()
    """Of the splits, where the caption file gives none."""
    seed: int = Field(0, ge=0)
    """Of the splits drawn. A clip's split depends on its id and this alone: clips added later move no others."""
    allow_missing: bool = False
    """Leave out ids without a file and captions without words, and count them, rather than refuse them."""

    @field_validator("dataset")
    @classmethod
    def _free(cls, name: str) -> str:
        if name != NAME and name in REGISTRY.names():
            raise ValueError(f"{name!r} is a dataset that avpipe knows; expected a name of your own")
        return name


def prepare(
    config: Config,
    *,
    media: Path | None,
    annotations: Path | None,
    workspace: Workspace,
    progress: Progress | None = None,
) -> Prepared:
    """Match captions to files; see :class:`~avpipe.data_manifests.dataset.Prepare`.

    Raises:
        DataError: media or annotations are not given, missing or wrong; all faults in one message.
    """
    if media is None or annotations is None:
        raise DataError(
            f"a dataset of your own needs --media FOLDER (of videos) and --annotations FILE (of captions), "
            f"got --media {media} --annotations {annotations}"
        )
    if not media.is_dir():
        raise DataError(f"--media: expected a folder of videos, got {media}, {_what_is(media)}")
    if not annotations.is_file():
        raise DataError(f"--annotations: expected a file of captions, got {annotations}, {_what_is(annotations)}")
    files = Files.below(media)
    if not files.paths:
        raise DataError(f"--media: expected videos below {media}, got none")
    rows = read_annotations(annotations)
    faults = Faults(annotations)
    matcher = _Matcher(config, files, faults)
    clips = [clip for row in rows if (clip := matcher.clip(row))]
    given = matcher.check_splits(rows)
    faults.check()
    if not clips:
        raise DataError(f"{annotations}: none of its ids has a file below {media} and a caption")
    return Prepared(clips=tuple(clips), media_root=media, notes=matcher.notes(clips, given))


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
        if isinstance(root, RemotePath):
            return cls._of([path for path in root.files_below() if not any(map(_is_hidden, path.split("/")))])

        def unreadable(error: OSError) -> None:
            raise DataError(f"--media: {error.filename} cannot be read: {error.strerror}")

        paths: list[str] = []
        seen: set[tuple[int, int]] = set()
        for folder, folders, names in os.walk(root, onerror=unreadable, followlinks=True):
            status = Path(folder).stat()
            if (status.st_dev, status.st_ino) in seen:  # a link that leads back up
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = [name for name in folders if not _is_hidden(name)]
            below = Path(folder).relative_to(root)
            paths += [(below / name).as_posix() for name in names if not _is_hidden(name)]
        return cls._of(paths)

    @classmethod
    def _of(cls, paths: Sequence[str]) -> Files:
        by_name: dict[str, list[str]] = {}
        for path in sorted(paths):
            pure = PurePosixPath(path)
            called = {path, pure.name}
            if pure.suffix.lower() in MEDIA_SUFFIXES:
                called |= {str(pure.with_suffix("")), pure.stem}
            for name in called:
                by_name.setdefault(name, []).append(path)
        return cls(
            tuple(path for path in sorted(paths) if PurePosixPath(path).suffix.lower() in MEDIA_SUFFIXES), by_name
        )

    def find(self, name: str) -> list[str]:
        """The paths that a name may mean. One that names a path from the top means that path alone."""
        name = name.removeprefix("./")
        found = self.by_name.get(name, [])
        exact = [path for path in found if path == name]
        from_top = [path for path in found if str(PurePosixPath(path).with_suffix("")) == name]
        return exact or from_top or found


def draw_split(key: str, ratios: Ratios, seed: int) -> str:
    """A split drawn for a key; it depends on nothing else, so clips that are added later move no others."""
    digest = hashlib.sha256(f"{seed}/{key}".encode("utf-8", "surrogateescape")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64 * (ratios.train + ratios.val + ratios.test)
    if place < ratios.train:
        return "train"
    return "val" if place < ratios.train + ratios.val else "test"


def safe_id(name: str) -> str:
    """A clip id made of an id: folders, blanks and everything else that is unsafe in a file name become ``_``.

    What loses more than folders, blanks and a media file's extension gets a hash of the whole, so that names in
    another script stay apart.
    """
    pure = PurePosixPath(name)
    stem = str(pure.with_suffix("")) if pure.suffix.lower() in MEDIA_SUFFIXES else name
    plain = re.sub(r"[/ ]", "_", stem)
    safe = re.sub(r"^\.|[^A-Za-z0-9_+=,@.-]", "_", plain)
    if safe == plain and len(safe) <= 200:
        return safe
    return f"{safe[:180]}-{hashlib.sha256(stem.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"


class _Matcher:
    """Makes clips of annotations, and keeps the ledger."""

    def __init__(self, config: Config, files: Files, faults: Faults) -> None:
        self.config, self.files, self.faults = config, files, faults
        self.left_out: Counter[str] = Counter()
        self.tidied = 0
        self.owners: dict[object, str] = {}

    def clip(self, row: Annotation) -> Clip | None:
        """The clip of one annotation; ``None``, and a fault or a line in the ledger, where there is none to make."""
        path, captions, clip_id = self._path(row), self._captions(row), safe_id(row.id)
        start_seconds = row.start_seconds or 0.0
        if path is None or not captions:
            return None
        self._own((path, start_seconds, row.stop_seconds), row.id, "ids of one and the same clip")
        self._own(clip_id, row.id, "ids that become one clip id")
        is_part = row.start_seconds is not None or row.stop_seconds is not None
        return Clip(
            clip_id=clip_id,
            dataset=self.config.dataset,
            path=path,
            # Parts of one video go to one split: they resemble each other more than two videos do.
            split=row.split or draw_split(path if is_part else row.id, self.config.split_ratios, self.config.seed),
            captions=captions,
            start_seconds=start_seconds,
            stop_seconds=row.stop_seconds,
            extra={} if clip_id == row.id else {"id": row.id},
        )

    def check_splits(self, rows: Sequence[Annotation]) -> bool:
        """Whether the splits are given; half given is a fault."""
        without = [row.id for row in rows if row.split is None]
        if 0 < len(without) < len(rows):
            for name in without:
                self.faults.add(f"of {len(rows)} ids without a split, where the others have one", repr(name))
        return not without

    def notes(self, clips: Sequence[Clip], given: bool) -> tuple[str, ...]:
        """The ledger, one sentence each."""
        notes = [f"{count} {what} left out" for what, count in self.left_out.items()]
        if unused := len(set(self.files.paths) - {clip.path for clip in clips}):
            notes.append(f"{unused} of {len(self.files.paths)} files below the media folder have no captions")
        if self.tidied:
            notes.append(f"{self.tidied} captions held line breaks, tabs or several blanks, made single blanks")
        if renamed := sum(bool(clip.extra) for clip in clips):
            notes.append(f"{renamed} ids are not safe as file names; the clip ids differ, the ids are in 'extra'")
        if not given:
            notes.append(f"splits drawn with seed {self.config.seed}")
        if empty := set(SPLITS) - {clip.split for clip in clips}:
            notes.append(f"no clips in {', '.join(split for split in SPLITS if split in empty)}")
        return tuple(notes)

    def _path(self, row: Annotation) -> str | None:
        found = self.files.find(row.file or row.id)
        if len(found) > 1:
            self.faults.add("ids that several files may be meant by", f"{row.id!r} ({' or '.join(found[:3])})")
        elif not found:
            self._missing("ids without a file", row.id)
        return found[0] if len(found) == 1 else None

    def _captions(self, row: Annotation) -> tuple[str, ...]:
        captions = [tidy(caption) for caption in row.captions]
        self.tidied += sum(new not in ("", old) for new, old in zip(captions, row.captions, strict=True))
        for caption in captions:
            if not caption:
                self._missing("empty captions", row.id)
        if not captions:
            self._missing("ids without captions", row.id)
        return tuple(caption for caption in captions if caption)

    def _missing(self, kind: str, name: str) -> None:
        if self.config.allow_missing:
            self.left_out[kind] += 1
        else:
            self.faults.add(f"{kind} (allow_missing=true leaves them out)", repr(name))

    def _own(self, key: object, name: str, kind: str) -> None:
        owner = self.owners.setdefault(key, name)
        if owner != name:
            self.faults.add(kind, f"{owner!r} and {name!r}")


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _what_is(path: Path) -> str:
    if not path.exists():
        return "which does not exist"
    return "a folder" if path.is_dir() else "a file"
