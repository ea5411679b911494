"""AudioCaps: ten-second clips of AudioSet, described by what is heard.

Source: https://github.com/cdjkim/audiocaps (annotations; the media are AudioSet's). Licence: the repository's is MIT,
its README allows academic use only. Kim et al., "AudioCaps: Generating Captions for Audios in The Wild", NAACL 2019.

One file a split, ``train.csv``, ``val.csv``, ``test.csv``, in ``dataset/`` (version 1) or ``dataset2.0/``. As
published::

    audiocap_id,youtube_id,start_time,caption
    103542,VjSEIRnLAh8,30,"Food is frying, and a woman talks"

A clip has one row for each of its captions: one in the train split of version 1, five in the others, several in version
2. Its id is made of both, ``VjSEIRnLAh8_30``. The validation and test clips of both versions are the same, their
captions are not, letter by letter.

AVCap's form (https://github.com/JongSuk1/AVCap, ``dataset/``) is that of COCO, with clips that have vanished since left
out::

    {"images": [{"id": "7fmOlUlwoNg", "labels": ..., "audio_path": ".../7fmOlUlwoNg_20000_30000.wav", ...}],
     "annotations": [{"id": 0, "image_id": "7fmOlUlwoNg", "caption": "Constant rattling noise and sharp vibrations"}]}

Its authors choose their checkpoint on the test split, and have no validation captions: version 1's are taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator
from typing_extensions import TypedDict

from avpipe.data_manifests.annotation_files import AnnotationFiles, OfficialFile
from avpipe.data_manifests.dataset import Card
from avpipe.data_manifests.official import Entry, Official, PublishedConfig, counts_of

CLIP_SECONDS = 10.0
COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")

FILES: Mapping[str, Sequence[str]] = {split: (f"{split}.csv",) for split in ("train", "val", "test")}
AVCAP_FILES: Mapping[str, Sequence[str]] = {
    "train": ("train_coco.json", "train.json"),
    "val": ("val.csv",),
    "test": ("test_coco.json",),
}

CARD = Card(
    summary="Ten-second AudioSet clips, described by what is heard; one caption each to train on, five to test on.",
    source="https://github.com/cdjkim/audiocaps (folder dataset/, or dataset2.0/)",
    media="The clips are AudioSet's: cut out of YouTube videos, many of which are gone; mirrors differ.",
    licence="MIT (the repository), academic use only (its README); videos: their owners'",
    citation="Kim et al., AudioCaps, NAACL 2019",
    official_clips={"train": 49_838, "val": 495, "test": 975},
    official_captions={"train": 49_838, "val": 2_475, "test": 4_875},
    captions_per_clip="1 (train), 5",
    checked="the whole validation and test files; 200 rows of the other",
)

COUNTS: Mapping[str, Mapping[str, int]] = {
    "1": CARD.official_clips,
    "2": {"val": 495, "test": 975},
    "avcap": {"train": 48_595, "val": 495, "test": 944},
}
"""Official clips by version. Of version 2's train split only the captions are counted by its authors: 91,256."""

_ROWS = "CSV with the columns audiocap_id, youtube_id, start_time (whole seconds) and caption"
_COCO = '{"images": [{"id", "audio_path"}], "annotations": [{"image_id", "caption"}]}'
_LIST = 'a list of {"youtube_id", "start_time", "caption", ...}'
_PATH_TIMES = re.compile(r"(.{11})_(\d+)_(\d+)(?:\.\w+)?")

Text = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int | float) else value)]


class Config(PublishedConfig):
    """Options of AudioCaps."""

    version: Literal["1", "2", "avcap"] = "1"
    """Which release: 1 (2019, what papers report on), 2 (more captions, in other words), or AVCap's own files."""


class _Image(TypedDict):
    id: str
    audio_path: str


class _Annotation(TypedDict):
    image_id: str
    caption: str


class _Coco(TypedDict):
    images: list[_Image]
    annotations: list[_Annotation]


class _Row(TypedDict):
    youtube_id: str
    start_time: Text
    caption: str


def read(config: Config, files: AnnotationFiles) -> Official:
    """Read one file a split; see :class:`~avpipe.data_manifests.official.Read`.

    Raises:
        DataError: a file is missing, damaged, or that of another version.
    """
    names = AVCAP_FILES if config.version == "avcap" else FILES
    entries: list[Entry] = []
    for split, file in files.by_split(names, config.splits).items():
        if file.name.endswith(".csv"):
            clips = _merged(file, split, (row for _, row in file.rows(COLUMNS, ended=True)))
            _check_version(file, split, clips, config.version)
        elif file.name.endswith("_coco.json"):
            clips = _coco(file, split)
        else:
            rows = file.json(list[_Row], _LIST)
            clips = _merged(file, split, rows)
        entries += clips
    return Official(entries=entries, counts=counts_of(COUNTS[config.version], config.splits))


def _merged(file: OfficialFile, split: str, rows: Any) -> list[Entry]:
    """One entry a clip, made of all its rows, in the order of the first of each."""
    captions: dict[tuple[str, int], list[str]] = {}
    ids: dict[tuple[str, int], list[str]] = {}
    for row in rows:
        start = row["start_time"].strip()
        if not (start.isdecimal() and len(row["youtube_id"]) == 11):
            got = f"a row has youtube_id {row['youtube_id']!r} and start_time {row['start_time']!r}"
            raise file.wrong(_ROWS if file.name.endswith(".csv") else _LIST, got)
        key = (row["youtube_id"], int(start))
        captions.setdefault(key, []).append(row["caption"])
        ids.setdefault(key, []).append(row.get("audiocap_id", ""))
    return [
        _entry(video, start, split, texts, tuple(filter(None, ids[video, start])))
        for (video, start), texts in captions.items()
    ]


def _entry(video: str, start: int, split: str, captions: Sequence[str], audiocap_ids: tuple[str, ...] = ()) -> Entry:
    return Entry(
        source_id=f"{video}_{start}",
        split=split,
        captions=tuple(captions),
        video=video,
        span=(float(start), start + CLIP_SECONDS),
        names=audiocap_ids,
        extra={"audiocap_ids": list(audiocap_ids)} if audiocap_ids else {},
    )


def _coco(file: OfficialFile, split: str) -> list[Entry]:
    release = file.json(_Coco, _COCO)
    captions: dict[str, list[str]] = {image["id"]: [] for image in release["images"]}
    for annotation in release["annotations"]:
        if annotation["image_id"] not in captions:
            raise file.wrong(_COCO, f"it has a caption for {annotation['image_id']!r}, which it does not list")
        captions[annotation["image_id"]].append(annotation["caption"])
    return list(_coco_entries(file, split, release["images"], captions))


def _coco_entries(
    file: OfficialFile, split: str, images: Sequence[_Image], captions: Mapping[str, Sequence[str]]
) -> Iterator[Entry]:
    for image in images:
        times = _PATH_TIMES.fullmatch(image["audio_path"].rpartition("/")[2])
        if times is None or times[1] != image["id"]:
            expected = f"{_COCO}, audio_path being <id>_<start>_<end>.wav in milliseconds"
            raise file.wrong(expected, f"{image['id']!r} has the audio_path {image['audio_path']!r}")
        yield _entry(image["id"], int(times[2]) // 1000, split, captions[image["id"]])


def _check_version(file: OfficialFile, split: str, clips: Sequence[Entry], version: str) -> None:
    """Both versions have the same file names and columns; what tells them is how many captions a train clip has."""
    if split != "train":
        return
    several = next((clip for clip in clips if len(clip.captions) > 1), None)
    if version == "1" and several:
        raise file.wrong(
            "version 1, in which each train clip has one caption",
            f"{several.source_id} has {len(several.captions)}: this is version 2.0's file; say version=2, or take "
            f"dataset/train.csv",
        )
    if version == "2" and several is None and len(clips) == COUNTS["1"]["train"]:
        raise file.wrong(
            "version 2.0, in which train clips have several captions",
            f"each of its {len(clips):,} clips has one: this is version 1's file; say version=1, or take "
            f"dataset2.0/train.csv",
        )
