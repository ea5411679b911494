"""VALOR-32K: ten-second clips of AudioSet, one caption each that says what is seen and what is heard.

Source: https://casia-iva-group.github.io/projects/VALOR/download.html (annotations; the media are AudioSet's). Licence:
none stated for the annotations. Chen et al., "VALOR: Vision-Audio-Language Omni-Perception Pretraining Model and
Dataset", 2023 (arXiv:2304.08345).

One file a split. A row of ``desc_val.json`` as published::

    {"video_id": "ioOD-ITY4bI_0.000_10.000",
     "desc": "With the sound of chewing, a red bike was parked outside, and a man in a dark top stood looking ..."}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from typing_extensions import TypedDict

from avpipe.data_manifests.annotation_files import AnnotationFiles
from avpipe.data_manifests.dataset import Card
from avpipe.data_manifests.official import Entry, Official, PublishedConfig, counts_of, length_fault, video_and_span

FILES: Mapping[str, Sequence[str]] = {
    "train": ("desc_train.json",),
    "val": ("desc_val.json",),
    "test": ("desc_test.json",),
}

CARD = Card(
    summary="Ten-second AudioSet clips, one caption each that says what is seen and heard.",
    source="https://casia-iva-group.github.io/projects/VALOR/download.html",
    media="The clips are AudioSet's: cut out of YouTube videos.",
    licence="none stated (annotations); videos: their owners'",
    citation="Chen et al., VALOR, 2023",
    official_clips={"train": 25_327, "val": 3_500, "test": 3_491},
    official_captions={"train": 25_327, "val": 3_500, "test": 3_491},
    captions_per_clip="1",
    checked="the whole validation file",
)

_FORM = 'a list of {"video_id": "<YouTube id>_<start>_<end>", "desc": "..."}'


class Config(PublishedConfig):
    """Options of VALOR-32K."""


class _Row(TypedDict):
    video_id: str
    desc: str


def read(config: Config, files: AnnotationFiles) -> Official:
    """Read one file a split; see :class:`~avpipe.data_manifests.official.Read`.

    Raises:
        DataError: a file is missing, damaged, or another than the official one.
    """
    entries = []
    for split, file in files.by_split(FILES, config.splits).items():
        for number, row in enumerate(file.json(list[_Row], _FORM)):
            parts = video_and_span(row["video_id"])
            if parts is None:
                raise file.wrong(_FORM, f"row {number} has the video_id {row['video_id']!r}")
            video, span = parts
            entries.append(
                Entry(
                    source_id=row["video_id"],
                    split=split,
                    captions=(row["desc"],),
                    video=video,
                    span=span,
                    fault=length_fault(span),
                )
            )
    return Official(entries=entries, counts=counts_of(CARD.official_clips, config.splits))
