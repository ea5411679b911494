"""Rendered clips whose captions need both eyes and ears.

Source: made here, from a seed; nothing is downloaded. Every clip is an MP4 file (H.264, AAC) of 4 seconds. Half of the
clips are *scenes*: an object does one or two things while one or two sounds are heard. The other half are about
*synchrony*: a ball bounces in time with pulses or half a period off, which the picture alone and the sound alone cannot
tell, by construction (:mod:`avpipe.data_manifests.synthesis.facts`). Every clip has five captions.

A row of the manifest (``extra`` cut short)::

    {"clip_id": "train-00001", "dataset": "synthetic", "path": "train/00001.mp4", "split": "train",
     "captions": ["high beeps sound while a red ball bounces in time", ...],
     "extra": {"kind": "synchrony", "picture": {"colour": "red", ...}, "sound": {...}, "in_time": true}}

The splits are drawn independently from the same grammar. At the default sizes, five of six test scenes combine facts as
no training clip does. Synchrony clips have few words to say (ball, colour, pulse, in time or not), and all combinations
of them occur in training; but each block of clips has its own place, size, ground, pitch, loudness and beats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field, model_validator

from avpipe.data_manifests.dataset import Card, Prepared, Progress
from avpipe.data_manifests.synthesis.facts import Facts, draw
from avpipe.data_manifests.synthesis.language import IN_TIME, OUT_OF_TIME, references, synchrony_word
from avpipe.data_manifests.synthesis.oracles import oracle_captions
from avpipe.data_manifests.synthesis.render import Format, cores, render
from avpipe.pipeline.clip import SPLITS, Clip
from avpipe.pipeline.config import Config as BaseConfig
from avpipe.pipeline.errors import DataError
from avpipe.pipeline.remote import is_remote
from avpipe.pipeline.workspace import Workspace

__all__ = ["CARD", "IN_TIME", "OUT_OF_TIME", "Config", "oracle_captions", "prepare", "synchrony_word"]

NAME = "synthetic"

VERSION = 1
"""Of grammar and rendering. To be raised with every change that a clip's facts, captions, pixels or samples show."""


class Counts(BaseConfig):
    """How many clips each split has. Whole blocks of eight keep the synchrony of a split exactly balanced."""

    train: int = Field(1600, ge=0)
    """Clips to learn from."""
    val: int = Field(160, ge=0)
    """Clips to choose a model by."""
    test: int = Field(240, ge=0)
    """Clips to score."""

    @model_validator(mode="after")
    def _not_all_zero(self) -> Counts:
        if not self.train + self.val + self.test:
            raise ValueError("expected at least one clip")
        return self


class Config(BaseConfig):
    """Options of the synthetic dataset."""

    clips: Counts = Counts()
    """Clips by split."""
    seed: int = Field(0, ge=0)
    """Another seed, other clips."""
    size: int = Field(64, ge=32, le=1024, multiple_of=2)
    """Height and width in pixels."""
    fps: int = Field(16, ge=8, le=60)
    """Frames a second. At multiples of 16 every landing of a bouncing ball falls on a frame."""
    seconds: float = Field(4.0, ge=3.0, le=60.0)
    """Length of a clip."""
    processes: int = Field(0, ge=0)
    """Processes that render at once; 0 is one for each core."""


CARD = Card(
    summary="Rendered clips of objects and sounds; in half of them a ball bounces in time with a sound or out of time.",
    source="rendered by avpipe from a seed; nothing is downloaded",
    licence="CC0-1.0, captions and media",
    official_clips={"train": 1600, "val": 160, "test": 240},
    captions_per_clip="5",
)


def prepare(
    config: Config,
    *,
    media: Path | None,
    annotations: Path | None,
    workspace: Workspace,
    progress: Progress | None = None,
) -> Prepared:
    """Render the clips, those that are not there yet; see :class:`~avpipe.data_manifests.dataset.Prepare`.

    Args:
        config: how many, how large, which seed.
        media: render here and not in the workspace.
        annotations: there are none to give.
        workspace: media are rendered below ``media/synthetic/``, in a folder of their own for each seed and size.
        progress: told how many files are there.

    Raises:
        DataError: annotations were given; the media would go to remote storage.
        StoreError: a file cannot be written.
    """
    if annotations is not None:
        raise DataError(f"{NAME!r} makes its own annotations: expected none, got --annotations {annotations}")
    form = Format(size=config.size, fps=config.fps, seconds=config.seconds)
    folder = f"v{VERSION}-seed{config.seed}-{form.size}px-{form.fps}fps-{form.seconds}s"
    parent = media or workspace.media(NAME)
    if is_remote(parent):
        raise DataError(
            f"{NAME!r} renders its media on this machine, not to {parent}: say where with --media FOLDER (and after "
            f"copying them: avpipe extract --media URL)"
        )
    root = parent / folder
    clips, facts = [], {}
    for split in SPLITS:
        for index in range(getattr(config.clips, split)):
            drawn = draw(config.seed, split, index)
            clip = make_clip(config.seed, split, index, drawn)
            clips.append(clip)
            facts[root / clip.path] = drawn
    render(facts, form, config.processes or cores(), progress)
    return Prepared(clips=tuple(clips), media_root=root, notes=_notes(facts.values()))


def make_clip(seed: int, split: str, index: int, facts: Facts) -> Clip:
    """The manifest row of one clip."""
    return Clip(
        clip_id=f"{split}-{index:05d}",
        dataset=NAME,
        path=f"{split}/{index:05d}.mp4",
        split=split,
        captions=references(facts, f"{seed}/{split}/{index}"),
        extra=facts.to_json(),
    )


def _notes(facts: Iterable[Facts]) -> tuple[str, ...]:
    kinds = Counter(each.kind for each in facts)
    trackless = sum(not each.sound.has_track for each in facts)
    in_time = sum(each.in_time is True for each in facts)
    return (
        f"{kinds['scene']} scenes, {kinds['synchrony']} synchrony clips, {in_time} of them in time",
        f"{trackless} {'clip has' if trackless == 1 else 'clips have'} no audio stream, on purpose",
    )
