"""Latest-VATEX: what of VATEX could still be had when multi-modal BLIP-2 was trained, by its authors' lists of ids.

Source: https://huggingface.co/datasets/AntBri/vatex-ids (the lists; not seen by us) beside VATEX's own files (module
``vatex``). Licence: VATEX's. Brimont et al., multi-modal BLIP-2, ICPR 2026
(https://github.com/ABrimont/Multi-modal-BLIP-2).

One list a split, whose file name says which: ``train``, ``val``, ``test``, in any of these forms::

    CBL6uetTPHg                                       one a line; with or without times (CBL6uetTPHg_000089_000099)
    ["CBL6uetTPHg", ...]                              a JSON list; or {"train": [...], "val": [...], "test": [...]}
    [{"image_id": "CBL6uetTPHg", "caption": ...}]     the authors' own annotations, train_clean__.json and the like

The captions are those of VATEX. A clip keeps its full VATEX id: five YouTube videos give two clips each, which a bare
id does not tell apart (both are taken, within the split of the list; a note says which).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from avpipe.data_manifests.annotation_files import AnnotationFiles, OfficialFile
from avpipe.data_manifests.annotations import SPLIT_NAMES
from avpipe.data_manifests.dataset import Card
from avpipe.data_manifests.datasets import vatex
from avpipe.data_manifests.official import Entry, Official, counts_of
from avpipe.data_manifests.subset import ids_in, plain

Config = vatex.Config

CARD = Card(
    summary="The clips of VATEX that multi-modal BLIP-2 was trained and tested on, by its authors' lists.",
    source="https://huggingface.co/datasets/AntBri/vatex-ids (id lists), beside VATEX's own files",
    media=vatex.CARD.media,
    licence=vatex.CARD.licence,
    citation="Brimont et al., ICPR 2026",
    official_clips={"train": 21_733},
    official_captions={"train": 217_330},
    captions_per_clip="10",
    checked="nothing: the lists were not at hand (the train count is from the authors' own annotation file)",
)

_WORDS: Mapping[str, frozenset[str]] = {
    split: frozenset((split, *(other for other, own in SPLIT_NAMES.items() if own == split)))
    for split in ("train", "val", "test")
}
"""What a list's file name must hold as a word of its own: "latest" is no test."""
_EXPECTED = "a list of the ids of one split"


def read(config: vatex.Config, files: AnnotationFiles) -> Official:
    """Read VATEX, and keep what the list of each split names; see :class:`~avpipe.data_manifests.official.Read`.

    Raises:
        DataError: files are missing or damaged, or a list names no clip of VATEX.
    """
    lists: dict[str, tuple[OfficialFile, frozenset[str]]] = {}
    for split in config.splits:
        if (found := _listed(files, split)) is None:
            raise files.missing(
                [f"a list of ids with {split!r} as a word of its name (.txt, .json, .csv)"],
                "take all of it: prepare vatex",
            )
        lists[split] = found
    entries: list[Entry] = []
    notes: list[str] = []
    for name, file in files.by_split(vatex.FILES, config.splits).items():
        entries += _kept(vatex.clips_of(file, name, config.language), *lists[name], notes)
    return Official(entries=entries, counts=counts_of(CARD.official_clips, config.splits), notes=notes)


def _listed(files: AnnotationFiles, split: str) -> tuple[OfficialFile, frozenset[str]] | None:
    """The list of a split: in a file of its own, or in one for all."""
    official = {name for names in vatex.FILES.values() for name in names}
    own = [
        file
        for file in files.all("*.txt", "*.json", "*.csv")
        if not _is_official(file.name, official) and _WORDS[split] & set(re.split(r"[^a-z]+", file.name.lower()))
    ]
    if own:
        return own[0], frozenset(map(plain, ids_in(own[0].name, own[0].text(_EXPECTED), own[0].where, "")))
    for file in files.all("*ids*.json", "*latest*.json"):
        if not _is_official(file.name, official) and (
            found := ids_in(file.name, file.text(_EXPECTED), file.where, split)
        ):
            return file, frozenset(map(plain, found))
    return None


def _is_official(name: str, official: set[str]) -> bool:
    return name.removesuffix(".gz") in official or bool(re.match(r"vatex_(training|validation|p\w+_test)", name))


def _kept(entries: list[Entry], file: OfficialFile, ids: frozenset[str], notes: list[str]) -> list[Entry]:
    kept = [entry for entry in entries if entry.source_id in ids or entry.video in ids]
    if not kept:
        raise file.wrong("ids of VATEX", f"none of its {len(ids):,} ids is one, for example {min(ids, default='')!r}")
    found = {entry.source_id for entry in kept} | {entry.video for entry in kept}
    if lost := sorted(ids - found):
        notes.append(f"ids of {file.name} that are not in that split of VATEX: {len(lost):,} ({', '.join(lost[:3])})")
    several = [video for video, count in Counter(e.video for e in kept if e.video in ids).items() if count > 1]
    if several:
        notes.append(f"bare ids of {file.name} that mean several clips, all taken: {', '.join(several)}")
    return kept
