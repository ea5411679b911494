"""Clotho 2.1: sounds of 15 to 30 seconds from Freesound, five captions each.

Source: https://zenodo.org/records/4783391 (annotations and sounds). Licence: the captions are free for academic use
with attribution, under the licence of Tampere University that comes with them; each sound has its own Creative Commons
licence. Drossos et al., "Clotho: An Audio Captioning Dataset", ICASSP 2020.

One file a split; "development" is for training, "evaluation" for testing. As published::

    file_name,caption_1,caption_2,caption_3,caption_4,caption_5
    FR.CTC.08.CoyuyoS.001.wav,A sequences of static chattering followed by ...,...

File names hold blanks, commas and parentheses; the clip's id is made of them, and the name itself is kept under ``id``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from avpipe.data_manifests.annotation_files import AnnotationFiles
from avpipe.data_manifests.dataset import Card
from avpipe.data_manifests.official import Entry, Official, PublishedConfig, counts_of

FILES: Mapping[str, Sequence[str]] = {
    "train": ("clotho_captions_development.csv",),
    "val": ("clotho_captions_validation.csv",),
    "test": ("clotho_captions_evaluation.csv",),
}

COLUMNS = ("file_name", *(f"caption_{number}" for number in range(1, 6)))

CARD = Card(
    summary="Sounds of 15 to 30 seconds from Freesound, without pictures, five captions each.",
    source="https://zenodo.org/records/4783391",
    media="clotho_audio_development.7z, clotho_audio_validation.7z and clotho_audio_evaluation.7z, from the same page.",
    licence="Tampere University's, academic use with attribution (captions); Creative Commons, one a sound (sounds)",
    citation="Drossos et al., Clotho, ICASSP 2020",
    official_clips={"train": 3_839, "val": 1_045, "test": 1_045},
    official_captions={"train": 19_195, "val": 5_225, "test": 5_225},
    captions_per_clip="5",
    checked="the whole validation file",
)


class Config(PublishedConfig):
    """Options of Clotho."""


def read(config: Config, files: AnnotationFiles) -> Official:
    """Read one file a split; see :class:`~avpipe.data_manifests.official.Read`.

    Raises:
        DataError: a file is missing, damaged, or another than the official one.
    """
    entries = [
        Entry(
            source_id=row["file_name"],
            split=split,
            captions=tuple(row[column] for column in COLUMNS[1:]),
        )
        for split, file in files.by_split(FILES, config.splits).items()
        for _, row in file.rows(COLUMNS, ended=True)
    ]
    return Official(entries=entries, counts=counts_of(CARD.official_clips, config.splits))
