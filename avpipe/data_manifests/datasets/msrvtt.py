"""MSR-VTT: web videos of 20 categories, 10 to 30 seconds long, twenty captions each.

Source: Microsoft Research; the original page is gone, and the files are to be had from mirrors, among them
https://github.com/ArrowLuo/CLIP4Clip/releases/tag/v0.0 (msrvtt_data.zip). Licence: none stated with the files. Xu et
al., "MSR-VTT: A Large Video Description Dataset for Bridging Video and Language", CVPR 2016.

Two official files, ``train_val_videodatainfo.json`` and ``test_videodatainfo.json``, each often inside its zip; or
``MSRVTT_data.json``, both in one. As published (note the blanks in keys, and "validate")::

    {"info": {...},
     "videos": [{"category": 9, "url": "https://www.youtube.com/watch?v=9lZi22qLlEo", "video_id": "video0",
                 "start time": 137.72, "end time": 149.44, "split": "train", "id": 0}, ...],
     "sentences": [{"caption": "a  man is driving a car", "video_id": "video24", "sen_id": 500}, ...]}

Sentences are not grouped by video. The splits of retrieval ("1k-A") test on 1,000 of the test videos, which
``MSRVTT_JSFUSION_test.csv`` lists, and train on all others (9,000) or on the official train and validation videos
(7,010)::

    key,vid_key,video_id,sentence
    ret0,msr9770,video9770,a person is connecting something to system
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, NotRequired

from typing_extensions import TypedDict

from avpipe.data_manifests.annotation_files import AnnotationFiles, OfficialFile
from avpipe.data_manifests.dataset import Card
from avpipe.data_manifests.official import Entry, Official, PublishedConfig, counts_of, span_faults

TRAIN_VAL = "train_val_videodatainfo.json"
TEST = "test_videodatainfo.json"
BOTH = ("MSRVTT_data.json", "videodatainfo.json", "videodatainfo_2017.json")
JSFUSION = "MSRVTT_JSFUSION_test.csv"

# fmt: off
CATEGORIES = (
    "music", "people", "gaming", "sports/actions", "news/events/politics", "education", "tv shows", "movie/comedy",
    "animation", "vehicles/autos", "howto", "travel", "science/technology", "animals/pets", "kids/family",
    "documentary", "food/drink", "cooking", "beauty/fashion", "advertisement",
)
# fmt: on
"""By their numbers, from ``category.txt``."""

SPLIT_OF = {"train": "train", "validate": "val", "test": "test"}

FIRST = {"train": 0, "val": 6_513, "test": 7_010}
"""The number of the first video of each split. The file of the challenge of 2017 gives the test videos of 2016 away to
train on; what papers mean by MSR-VTT is this."""

VIDEOS = 10_000

CARD = Card(
    summary="Web videos of 20 categories, 10 to 30 seconds long, twenty captions each.",
    source="https://github.com/ArrowLuo/CLIP4Clip/releases/tag/v0.0 (msrvtt_data.zip, a mirror)",
    media="The same mirrors hold the clips, video0.mp4 to video9999.mp4; some lack sound that others have.",
    licence="none stated",
    citation="Xu et al., MSR-VTT, CVPR 2016",
    official_clips={"train": 6_513, "val": 497, "test": 2_990},
    official_captions={"train": 130_260, "val": 9_940, "test": 59_800},
    captions_per_clip="20",
    checked="the whole test file; 60 videos of the other",
)

_FORM = '{"videos": [{"video_id", "split", "start time", ...}], "sentences": [{"video_id", "caption"}]}'
_MISTAKEN = {
    "annotations": "captions in COCO's form, made of MSR-VTT by somebody; give them to: avpipe prepare folder",
    "images": "captions in COCO's form, made of MSR-VTT by somebody; give them to: avpipe prepare folder",
}
_YOUTUBE = re.compile(r"(?:v=|youtu\.be/)([A-Za-z0-9_-]{11})")


class Config(PublishedConfig):
    """Options of MSR-VTT."""

    partition: Literal["full", "1k-A-9k", "1k-A-7k"] = "full"
    """Which splits: the official ones, or those of retrieval: 1,000 test videos, and all others (9k) or the official
    train and validation videos (7k) to train on. Those have no validation split."""


_Video = TypedDict(
    "_Video",
    {
        "video_id": str,
        "split": str,
        "category": NotRequired[int],
        "url": NotRequired[str],
        "start time": NotRequired[float],
        "end time": NotRequired[float],
    },
)


class _Sentence(TypedDict):
    video_id: str
    caption: str


class _Release(TypedDict):
    videos: list[_Video]
    sentences: list[_Sentence]


def read(config: Config, files: AnnotationFiles) -> Official:
    """Read both official files, or the one that holds both; see :class:`~avpipe.data_manifests.official.Read`.

    Raises:
        DataError: a file is missing, damaged, or another than the official one.
    """
    wanted = config.splits if config.partition == "full" else _needed(config)
    clips = [clip for file in _releases(files, wanted) for clip in _clips_of(file)]
    if config.partition == "full":
        clips = [clip for clip in clips if clip.split in config.splits]
        return Official(entries=_in_order(clips), counts=counts_of(CARD.official_clips, config.splits))
    return _retrieval(config, clips, files.need(JSFUSION))


def _needed(config: Config) -> Sequence[str]:
    """The official splits that the videos of retrieval's splits come from."""
    needs_test = "test" in config.splits or config.partition == "1k-A-9k"
    return [*(("train", "val") if "train" in config.splits else ()), *(("test",) if needs_test else ())]


def _releases(files: AnnotationFiles, splits: Sequence[str]) -> list[OfficialFile]:
    """The official files that hold these splits."""
    both = files.find(*BOTH)
    needed = {"train": TRAIN_VAL, "val": TRAIN_VAL, "test": TEST}
    names = {split: (needed[split],) for split in splits}
    if both and not all(files.find(*several) for several in names.values()):
        return [both]
    found = files.by_split(names, splits, advice=f"or {BOTH[0]}, which holds both")
    return list({file.where: file for file in found.values()}.values())


def _clips_of(file: OfficialFile) -> list[Entry]:
    release = file.json(_Release, _FORM, _MISTAKEN)
    captions: dict[str, list[str]] = defaultdict(list)
    for sentence in release["sentences"]:
        captions[sentence["video_id"]].append(sentence["caption"])
    entries = []
    for video in release["videos"]:
        name, split = video["video_id"], video["split"]
        if split not in SPLIT_OF:
            raise file.wrong(_FORM, f"{name} has the split {split!r}, expected one of {', '.join(SPLIT_OF)}")
        number = int(name.removeprefix("video")) if re.fullmatch(r"video\d+", name) else -1
        if not 0 <= number < VIDEOS:
            got = "the test file of the challenge of 2017" if number >= VIDEOS else "another file"
            raise file.wrong(f"video0 to video{VIDEOS - 1}", f"it has {name!r}: it is {got}")
        category = video.get("category")
        extra: dict[str, object] = {}
        if category is not None:
            extra["category"] = CATEGORIES[category] if 0 <= category < len(CATEGORIES) else str(category)
        youtube = _YOUTUBE.search(video.get("url", ""))
        span = None
        if youtube and "start time" in video and "end time" in video:
            times, _, fault = span_faults(video["start time"], video["end time"])
            span = None if fault else times
        entries.append(
            Entry(
                source_id=name,
                split=max((split for split, first in FIRST.items() if number >= first), key=FIRST.__getitem__),
                captions=tuple(captions.pop(name, ())),
                video=youtube[1] if youtube else "",
                span=span,
                names=(str(number),),
                extra=extra,
            )
        )
    if not release["sentences"]:
        raise file.wrong(_FORM, "it has no sentences: it is the file that participants of a challenge got")
    if captions:
        strange = ", ".join(list(captions)[:3])
        raise file.wrong(_FORM, f"it has sentences for {len(captions)} videos that it does not list ({strange})")
    return entries


def _in_order(entries: Sequence[Entry]) -> list[Entry]:
    """Split after split; within each as the files have them."""
    return sorted(entries, key=lambda entry: ("train", "val", "test").index(entry.split))


def _retrieval(config: Config, clips: Sequence[Entry], listed: OfficialFile) -> Official:
    """The 1,000 videos that are listed to test on, the others to train on."""
    from dataclasses import replace

    sentences = {row["video_id"]: row["sentence"] for _, row in listed.rows(("video_id", "sentence"))}
    entries = []
    for clip in clips:
        if clip.source_id in sentences:
            extra = {**clip.extra, "sentence": sentences[clip.source_id]}
            entries.append(replace(clip, split="test", extra=extra))
        elif config.partition == "1k-A-9k" or clip.split != "test":
            entries.append(replace(clip, split="train"))
    train = 9_000 if config.partition == "1k-A-9k" else 7_010
    counts = {"train": train, "test": 1_000}
    return Official(
        entries=_in_order([entry for entry in entries if entry.split in config.splits]),
        counts=counts_of(counts, config.splits),
        notes=[
            "splits of retrieval: there are no validation clips to choose a checkpoint by; test clips keep all twenty "
            "captions, and the one of retrieval is in 'extra'"
        ],
    )
