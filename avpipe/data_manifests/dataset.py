"""What a dataset module is: the one interface between annotation files and manifests.

A module in ``datasets/`` opens with where its data come from and a real example row, and exports three names::

    Config      its options, a :class:`~avpipe.pipeline.config.Config`
    CARD        what it is and where it comes from, a :class:`Card`

and one of these two::

    read        a published dataset, whose official files it reads: a :class:`~avpipe.data_manifests.official.Read`.
                Finding media, looking into them, tidying and counting are done for it.
    prepare     anything else: a :class:`Prepare`, which makes the clips itself
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from avpipe.data_manifests.ledger import LeftOut
from avpipe.pipeline.clip import SPLITS, Clip
from avpipe.pipeline.workspace import Workspace

Progress = Callable[[int, int], None]
"""Called with how many files are done, of how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a dataset is and where it comes from.

    Attributes:
        summary: one sentence.
        source: where the annotations are to be had.
        media: where the media are to be had, and how; "" where that goes without saying.
        licence: of the annotations, and of the media where it is another.
        citation: the paper, in one line; "" if there is none.
        official_clips: how many clips the complete dataset has, by split; empty where there is no such number.
        official_captions: how many captions it has, by split.
        captions_per_clip: for a table: ``"20"``, ``"1 (train), 5"``.
        checked: what these counts were compared with.
    """

    summary: str
    source: str
    licence: str
    media: str = ""
    citation: str = ""
    official_clips: Mapping[str, int] = field(default_factory=dict)
    official_captions: Mapping[str, int] = field(default_factory=dict)
    captions_per_clip: str = ""
    checked: str = ""

    def __post_init__(self) -> None:
        for name in ("summary", "source", "licence"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} of a dataset card: expected some text, got {getattr(self, name)!r}")
        for what in ("official_clips", "official_captions"):
            for split, count in getattr(self, what).items():
                if split not in SPLITS or count < 0:
                    raise ValueError(f"{what}: expected counts by {', '.join(SPLITS)}, got {split!r}: {count}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a dataset module hands over.

    Attributes:
        clips: in the order in which the manifest will hold them. Shards are cut in this order, so it is part of the
            identity of every feature set made from them.
        media_root: what the paths of the clips are relative to.
        notes: facts about the data that a user should know, one sentence each ("splits drawn with seed 0").
        left_out: clips of the official files that are not among these.
        official_clips: how many clips the complete release has, by split; empty where there is no such number.
        annotated: how many the annotation files name, by split: these and those left out; empty where that is not
            counted beforehand.
    """

    clips: tuple[Clip, ...]
    media_root: Path
    notes: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    official_clips: Mapping[str, int] = field(default_factory=dict)
    annotated: Mapping[str, int] = field(default_factory=dict)


class Prepare(Protocol):
    """Make the clips of a dataset."""

    def __call__(
        self,
        config: Any,
        *,
        media: Path | None,
        annotations: Path | None,
        workspace: Workspace,
        progress: Progress | None = None,
    ) -> Prepared:
        """Read the annotations, look which media are there, render what has to be rendered.

        Args:
            config: the module's ``Config``.
            media: folder of the media files; ``None`` where the user gave none.
            annotations: file or folder of the annotations; ``None`` where the user gave none.
            workspace: for media that are rendered.
            progress: told how far the work is, where it takes long.

        Raises:
            DataError: the annotations or the media are wrong or missing; all faults in one message.
        """
