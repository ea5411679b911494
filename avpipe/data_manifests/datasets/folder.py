"""Your own data: a folder of videos and a file of captions.

Source: yours. The caption file is COCO JSON, ``{id: captions}``, VALOR's list, JSONL, lhotse's cuts or CSV
(:mod:`avpipe.data_manifests.annotations` shows each). An id is found among the videos by its path below the folder,
with or without extension, or by its bare name where only one video has it. For example, with ``captions.csv``::

    id,caption,split
    kitchen/a,a woman chops an onion,train
    kitchen/a,"chopping, with music",train

and ``videos/kitchen/a.mp4``, a row of the manifest is::

    {"clip_id": "kitchen_a", "dataset": "folder", "path": "kitchen/a.mp4", "split": "train",
     "captions": ["a woman chops an onion", "chopping, with music"], "extra": {"id": "kitchen/a"}}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pydantic import Field, field_validator

from avpipe.data_manifests.annotations import VALOR_CAPTIONS, Annotation, Faults, read_annotations, tidy
from avpipe.data_manifests.dataset import Card, Prepared, Progress
from avpipe.data_manifests.datasets import REGISTRY
from avpipe.data_manifests.media_files import Files
from avpipe.data_manifests.naming import Ratios, draw_split, safe_id
from avpipe.pipeline.clip import SPLITS, Clip
from avpipe.pipeline.config import Config as BaseConfig
from avpipe.pipeline.errors import DataError
from avpipe.pipeline.workspace import Workspace

NAME = "folder"

CARD = Card(
    summary="Your own data: a folder of videos and a file of captions.",
    source="yours: --media FOLDER --annotations captions.json (or .jsonl, .csv, VALOR's folder)",
    licence="yours",
)


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
    if not (annotations.is_file() or (annotations / VALOR_CAPTIONS).is_file()):
        lacks = f" without {VALOR_CAPTIONS}" if annotations.is_dir() else ""
        raise DataError(
            f"--annotations: expected a file of captions, got {annotations}, {_what_is(annotations)}{lacks}"
        )
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
        is_part = row.start_seconds is not None or row.stop_seconds is not None
        if not is_part:  # two people may have told of the same part of a video
            self._own(path, row.id, "ids of one and the same clip")
        self._own(clip_id, row.id, "ids that become one clip id")
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
        if not found and row.file:  # named from another folder, or of another machine
            parts = PurePosixPath(row.file).parts
            found = next(filter(None, (self.files.find("/".join(parts[n:])) for n in range(1, len(parts)))), [])
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


def _what_is(path: Path) -> str:
    if not path.exists():
        return "which does not exist"
    return "a folder" if path.is_dir() else "a file"
