"""YouCook2: cooking videos, each step of a recipe with one sentence.

Source: http://youcook2.eecs.umich.edu/download (annotations); the videos are YouTube's. Licence: not seen with the
authors; a copy on the Hub says MIT. Zhou et al., "Towards Automatic Learning of Procedures from Web Instructional
Videos", AAAI 2018 (arXiv:1703.09788).

One file, ``youcookii_annotations_trainval.json``; the test sentences are not published. As published::

    {"database": {"GLd3aX16zBg": {"duration": 241.62, "subset": "training", "recipe_type": "113",
      "annotations": [{"segment": [90, 102], "id": 0, "sentence": "spread margarine on two slices ..."}, ...],
      "video_url": "https://www.youtube.com/watch?v=GLd3aX16zBg"}, ...}}

A clip is a segment, cut out of its video; its id is the video's with the number of the step, ``GLd3aX16zBg_0``. There
is no test split: papers report on "validation".
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

from typing_extensions import TypedDict

from avpipe.data_manifests.annotation_files import AnnotationFiles
from avpipe.data_manifests.dataset import Card
from avpipe.data_manifests.official import Entry, Official, PublishedConfig, Split, counts_of, span_faults

FILE = "youcookii_annotations_trainval.json"

CARD = Card(
    summary="Cooking videos, each step of a recipe with one sentence; a clip is a step.",
    source="http://youcook2.eecs.umich.edu/download",
    media="The videos are YouTube's, many of them gone; a clip is cut out of its whole video.",
    licence="MIT, by a copy on the Hub (annotations); videos: their owners'",
    citation="Zhou et al., YouCook2, AAAI 2018",
    official_clips={"train": 10_337, "val": 3_492},
    official_captions={"train": 10_337, "val": 3_492},
    captions_per_clip="1",
    checked="45 of 1,790 videos",
)

_FORM = '{"database": {<YouTube id>: {"subset", "duration", "annotations": [{"segment", "id", "sentence"}]}}}'
_MISTAKEN = {"version": "another dataset's file, ActivityNet's perhaps"}


class Config(PublishedConfig):
    """Options of YouCook2."""

    splits: tuple[Split, ...] = ("train", "val")
    """Which splits; the sentences of ``test`` are not published."""


class _Segment(TypedDict):
    segment: tuple[float, float]
    id: int
    sentence: str


class _Video(TypedDict):
    subset: Literal["training", "validation"]
    duration: float
    recipe_type: str
    annotations: list[_Segment]


class _Release(TypedDict):
    database: dict[str, _Video]


def read(config: Config, files: AnnotationFiles) -> Official:
    """Read the official file; see :class:`~avpipe.data_manifests.official.Read`.

    Raises:
        DataError: it is missing, damaged, or another than the official one.
    """
    file = files.need(FILE, "youcook2_annotations_trainval.json")
    repairs: Counter[str] = Counter()
    entries = []
    for name, video in file.json(_Release, _FORM, _MISTAKEN)["database"].items():
        split = "train" if video["subset"] == "training" else "val"
        for segment in video["annotations"] if split in config.splits else ():
            span, repaired, fault = span_faults(*segment["segment"], video["duration"])
            repairs[repaired] += bool(repaired)
            entries.append(
                Entry(
                    source_id=f"{name}_{segment['id']}",
                    split=split,
                    captions=(segment["sentence"],),
                    video=name,
                    span=span,
                    extra={"recipe": video["recipe_type"]},
                    fault=fault,
                )
            )
    entries.sort(key=lambda entry: entry.split == "val")
    counts = counts_of(CARD.official_clips, config.splits)
    notes = [f"segments {what}: {count:,}" for what, count in repairs.items() if count]
    return Official(entries=entries, counts=counts, segments=True, notes=notes)
