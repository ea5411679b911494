"""VATEX: ten-second clips of human activities, ten captions in English and ten in Chinese.

Source: https://eric-xw.github.io/vatex-website/download.html (annotations); the clips are to be cut out of YouTube
videos. Licence: CC BY 4.0 for the annotations, by a copy on the Hub; the videos are their owners'. Wang et al., "VaTeX:
A Large-Scale, High-Quality Multilingual Dataset for Video-and-Language Research", ICCV 2019 (arXiv:1904.03493).

One file a split. A row of ``vatex_validation_v1.0.json`` as published (captions cut short)::

    {"videoID": "G9zN5TTuGO4_000179_000189",
     "enCap": ["a man repelling down a side of a mountain covered in snow", ...],
     "chCap": [...]}

The id is a YouTube id (eleven characters), start and end in whole seconds. It is the clip's id: five YouTube videos are
in the dataset twice, with different times, one of them in different splits. The public test file is English only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NotRequired

from typing_extensions import TypedDict

from avpipe.data_manifests.annotation_files import AnnotationFiles, OfficialFile
from avpipe.data_manifests.dataset import Card
from avpipe.data_manifests.official import Entry, Official, PublishedConfig, counts_of, length_fault, video_and_span

FILES: Mapping[str, Sequence[str]] = {
    "train": ("vatex_training_v1.0.json",),
    "val": ("vatex_validation_v1.0.json",),
    "test": ("vatex_public_test_english_v1.1.json",),
}

CARD = Card(
    summary="Ten-second clips of human activities, ten captions each in English and in Chinese.",
    source="https://eric-xw.github.io/vatex-website/download.html",
    media="The clips are cut out of YouTube videos, of which many are gone by now; mirrors differ.",
    licence="CC BY 4.0, by a copy on the Hub (annotations); videos: their owners'",
    citation="Wang et al., VaTeX, ICCV 2019",
    official_clips={"train": 25_991, "val": 3_000, "test": 6_000},
    official_captions={"train": 259_910, "val": 30_000, "test": 60_000},
    captions_per_clip="10",
    checked="the official id lists; 150 clips of the validation file",
)

_FORM = 'a list of {"videoID": "<YouTube id>_<start>_<end>", "enCap": [...], "chCap": [...]}'


class Config(PublishedConfig):
    """Options of VATEX."""

    language: Literal["en", "zh"] = "en"
    """Which captions: English or Chinese. The public test file has none in Chinese."""


class _Row(TypedDict):
    videoID: str
    enCap: NotRequired[list[str]]
    chCap: NotRequired[list[str]]


def read(config: Config, files: AnnotationFiles) -> Official:
    """Read one file a split; see :class:`~avpipe.data_manifests.official.Read`.

    Raises:
        DataError: a file is missing, damaged, or another than the official one.
    """
    found = files.by_split(FILES, config.splits)
    entries = [entry for split, file in found.items() for entry in clips_of(file, split, config.language)]
    return Official(entries=entries, counts=counts_of(CARD.official_clips, config.splits))


def clips_of(file: OfficialFile, split: str, language: str = "en") -> list[Entry]:
    """The clips of one file.

    Raises:
        DataError: it is not the official one.
    """
    entries = []
    key: Literal["enCap", "chCap"] = "enCap" if language == "en" else "chCap"
    rows = file.json(list[_Row], _FORM)
    for number, row in enumerate(rows):
        parts = video_and_span(row["videoID"])
        if parts is None:
            raise file.wrong(_FORM, f"row {number} has the videoID {row['videoID']!r}")
        video, span = parts
        entries.append(
            Entry(
                source_id=row["videoID"],
                split=split,
                captions=tuple(row.get(key, ())),
                video=video,
                span=span,
                fault=length_fault(span),
            )
        )
    if rows and not any(entry.captions for entry in entries):
        what = "the file of the private test, which has no captions" if not any("enCap" in row for row in rows) else ""
        if key == "chCap" and any(row.get("enCap") for row in rows):
            raise file.wrong("captions in Chinese (language=zh)", "it has English ones alone, as the public test has: "
                             "say splits=[train,val], or language=en")  # fmt: skip
        raise file.wrong(_FORM, f"no row has {key!r}" + (f": it may be {what}" if what else ""))
    return entries
