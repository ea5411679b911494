"""ActivityNet Captions: videos of two minutes, each with several segments and a sentence for each.

Source: https://cs.stanford.edu/people/ranjaykrishna/densevid/ (captions.zip); the videos are ActivityNet's. Licence:
none stated. Krishna et al., "Dense-Captioning Events in Videos", ICCV 2017 (arXiv:1705.00754).

Files ``train.json``, ``val_1.json`` and ``val_2.json``. As published::

    {"v_QOlSCBRmfWY": {"duration": 82.73, "timestamps": [[0.83, 19.86], [17.37, 60.81], [56.26, 79.42]],
     "sentences": ["A young woman is seen standing in a room and leads into her dancing.",
                   " The girl dances around the room while the camera captures her movements.", ...]}, ...}

A clip is a segment, cut out of its video, with the id ``v_QOlSCBRmfWY_train_0``. ``val_1`` and ``val_2`` are two
people's annotations of the same videos, with different segments: two sets of references. Both are in the split ``val``;
``extra["reference_set"]`` tells them apart. The captions of the test videos are not published.

Dirt: sentences begin with a blank and hold line breaks; segments end beyond their video, before they start, or where
they start. Each is repaired or left out, and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from avpipe.data_manifests.annotation_files import AnnotationFiles, OfficialFile
from avpipe.data_manifests.dataset import Card
from avpipe.data_manifests.official import Entry, Official, PublishedConfig, Split, span_faults

OFFICIAL = {"train": 37_421, "val_1": 17_505, "val_2": 17_031}

CARD = Card(
    summary="Videos of two minutes, several segments each, a sentence a segment; a clip is a segment.",
    source="https://cs.stanford.edu/people/ranjaykrishna/densevid/ (captions.zip)",
    media="The videos are ActivityNet's (http://activity-net.org/download.html); a clip is cut out of its whole video.",
    licence="none stated (annotations); videos: their owners'",
    citation="Krishna et al., Dense-Captioning Events in Videos, ICCV 2017",
    official_clips={"train": OFFICIAL["train"], "val": OFFICIAL["val_1"] + OFFICIAL["val_2"]},
    official_captions={"train": OFFICIAL["train"], "val": OFFICIAL["val_1"] + OFFICIAL["val_2"]},
    captions_per_clip="1",
    checked="the whole of val_1.json; 120 videos of train.json",
)

_FORM = '{"v_<YouTube id>": {"duration", "timestamps": [[start, stop], ...], "sentences": [...]}, ...}'
_MISTAKEN = {
    "database": "a file of ActivityNet itself (its classes of actions), not of ActivityNet Captions",
    "taxonomy": "a file of ActivityNet itself (its classes of actions), not of ActivityNet Captions",
    "results": "a file of predictions in the form of the dense-captioning challenge",
}

ReferenceSet = Literal["val_1", "val_2"]


class Config(PublishedConfig):
    """Options of ActivityNet Captions."""

    splits: tuple[Split, ...] = ("train", "val")
    """Which splits; the captions of ``test`` are not published."""
    reference_sets: Annotated[tuple[ReferenceSet, ...], Field(min_length=1)] = ("val_1", "val_2")
    """Whose annotations of the validation videos."""


class _Video(TypedDict):
    duration: float
    timestamps: list[tuple[float, float]]
    sentences: list[str]


def read(config: Config, files: AnnotationFiles) -> Official:
    """Read a file a set; see :class:`~avpipe.data_manifests.official.Read`.

    Raises:
        DataError: a file is missing, damaged, or another than the official one.
    """
    sets = {"train": "train"} | dict.fromkeys(config.reference_sets, "val")
    wanted = [name for name, split in sets.items() if split in config.splits]
    advice = "or take one person's annotations: reference_sets=[val_1]" if "val_2" in wanted else ""
    found = files.by_split({name: (f"{name}.json",) for name in wanted}, wanted, advice=advice)
    repairs: Counter[str] = Counter()
    entries = [entry for name, file in found.items() for entry in _segments(file, name, sets[name], repairs)]
    counts = {split: sum(OFFICIAL[name] for name in wanted if sets[name] == split) for split in config.splits}
    notes = [f"segments {what}: {count:,}" for what, count in repairs.items() if count]
    return Official(
        entries=entries,
        counts={split: count for split, count in counts.items() if count},
        segments=True,
        notes=notes,
    )


def _segments(file: OfficialFile, name: str, split: str, repairs: Counter[str]) -> Iterator[Entry]:
    for video, told in file.json(dict[str, _Video], _FORM, _MISTAKEN).items():
        if len(told["timestamps"]) != len(told["sentences"]):
            times, sentences = len(told["timestamps"]), len(told["sentences"])
            raise file.wrong(_FORM, f"{video} has {times} segments and {sentences} sentences")
        for number, (segment, sentence) in enumerate(zip(told["timestamps"], told["sentences"], strict=True)):
            span, repaired, fault = span_faults(*segment, told["duration"])
            repairs[repaired] += bool(repaired)
            yield Entry(
                source_id=f"{video}_{name}_{number}",
                split=split,
                captions=(sentence,),
                video=video.removeprefix("v_"),
                span=span,
                extra={"reference_set": name} if split == "val" else {},
                fault=fault,
            )
