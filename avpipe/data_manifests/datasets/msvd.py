"""MSVD (the YouTube2Text corpus): short YouTube clips of a single activity, some forty captions each.

Source: https://www.cs.utexas.edu/~ml/clamp/videoDescription/ (the clips and ``AllVideoDescriptions.txt``); the whole
corpus is Microsoft's ("MSR Video Description Corpus"). Licence: none stated. Chen and Dolan, "Collecting Highly
Parallel Data for Paraphrase Evaluation", ACL 2011; splits of Venugopalan et al., ICCV 2015.

It is had in three forms. The processed one that papers use: ``sents_{train,val,test}_lc_nopunc.txt``, lower case,
without punctuation, with a tab between clip and caption::

    vid1201<TAB>a man is filling up a bag with meat

the corpus with every language and annotator, ``video_corpus.csv`` or ``MSR Video Description Corpus.csv``::

    VideoID,Start,End,WorkerID,Source,AnnotationTime,Language,Description
    mv89psg6zh4,33,46,588702,unverified,55,English,A bird is bathing in a sink.

and its English part, ``AllVideoDescriptions.txt``: ``mv89psg6zh4_33_46 a bird is bathing in a sink``.
``youtube_mapping.txt`` says which clip ``vid1201`` is (``cWOPC2kt_IA_8_16``), and that is the clip's id. The numbers
make the splits: 1 to 1200, to 1300, to 1970. The corpus describes more clips than these; the others are passed over.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

from avpipe.data_manifests.annotation_files import AnnotationFiles, OfficialFile
from avpipe.data_manifests.dataset import Card
from avpipe.data_manifests.official import Entry, Official, PublishedConfig, counts_of, length_fault, video_and_span

SENTENCES: Mapping[str, Sequence[str]] = {
    split: (f"sents_{split}_lc_nopunc.txt",) for split in ("train", "val", "test")
}
CORPUS = ("video_corpus.csv", "MSR Video Description Corpus.csv", "MSR_Video_Description_Corpus.csv")
DESCRIPTIONS = "AllVideoDescriptions.txt"
MAPPING = "youtube_mapping.txt"
COLUMNS = ("VideoID", "Start", "End", "WorkerID", "Source", "AnnotationTime", "Language", "Description")

LAST = {"train": 1200, "val": 1300, "test": 1970}
"""The last number of each split."""

CARD = Card(
    summary="Short YouTube clips of a single activity, some forty captions each.",
    source="https://www.cs.utexas.edu/~ml/clamp/videoDescription/",
    media="YouTubeClips.tar, from the same page: 1,970 clips, released without sound.",
    licence="none stated",
    citation="Chen and Dolan, ACL 2011",
    official_clips={"train": 1_200, "val": 100, "test": 670},
    official_captions={"train": 48_774, "val": 4_290, "test": 27_763},
    captions_per_clip="about 41",
    checked="the whole mapping, split lists and processed validation file",
)

_PICKLE = "raw-captions.pkl is a pickle, which could run anything; take one of the three other forms"


class Config(PublishedConfig):
    """Options of MSVD."""

    form: Literal["auto", "processed", "corpus", "descriptions"] = "auto"
    """Which form of the captions: ``sents_*_lc_nopunc.txt``, the corpus as CSV, or ``AllVideoDescriptions.txt``;
    ``auto`` takes the first of these that is there. Their captions, and so the scores, differ."""
    language: str = "English"
    """Of the corpus: which captions."""
    verified_only: bool = False
    """Of the corpus: only captions by annotators that its authors had come to trust ("clean"). Some clips have none."""


def read(config: Config, files: AnnotationFiles) -> Official:
    """Read the captions in one of their forms; see :class:`~avpipe.data_manifests.official.Read`.

    Raises:
        DataError: files are missing, damaged, or other than the official ones.
    """
    form = _choose(config, files)
    mapping = _mapping(files, needed=form != "processed")
    notes = []
    if form == "processed":
        captions = _processed(config, files, mapping)
        if not mapping:
            notes.append(f"there is no {MAPPING}: clips are called vid1, vid2, ... and not by YouTube id and times")
    else:
        file = files.need(*CORPUS) if form == "corpus" else files.need(DESCRIPTIONS)
        every = _corpus(file, config) if form == "corpus" else _descriptions(file)
        captions = {name: every.pop(name, []) for name in mapping}
        if every:
            notes.append(f"clips of the corpus that are not among the 1,970 of the splits: {len(every):,}")
    entries = [_entry(name, mapping.get(name, name), texts) for name, texts in captions.items()]
    entries.sort(key=lambda entry: _number(entry.extra["number"]))
    return Official(
        entries=[entry for entry in entries if entry.split in config.splits],
        counts=counts_of(CARD.official_clips, config.splits),
        notes=notes,
    )


def _choose(config: Config, files: AnnotationFiles) -> str:
    if config.form != "auto":
        return config.form
    if any(files.find(*SENTENCES[split]) for split in config.splits):
        return "processed"
    if files.find(*CORPUS):
        return "corpus"
    if files.find(DESCRIPTIONS):
        return "descriptions"
    if pickled := files.find("raw-captions.pkl"):
        raise pickled.wrong("captions as text", _PICKLE)
    return "processed"  # and let that say what is missing


def _mapping(files: AnnotationFiles, *, needed: bool) -> dict[str, str]:
    """``{"cWOPC2kt_IA_8_16": "vid1201"}``."""
    file = files.need(MAPPING) if needed else files.find(MAPPING)
    if file is None:
        return {}
    expected = "lines like '-4wsuPCjDBc_5_15 vid1'"
    mapping = {}
    for line in file.lines(expected):
        name, _, number = line.strip().rpartition(" ")
        if not (video_and_span(name) and re.fullmatch(r"vid\d+", number)):
            raise file.wrong(expected, f"a line is {line[:60]!r}")
        mapping[name] = number
    return mapping


def _processed(config: Config, files: AnnotationFiles, mapping: Mapping[str, str]) -> dict[str, list[str]]:
    expected = "lines of a clip (vid1201), a tab and a caption"
    names = {number: name for name, number in mapping.items()}
    captions: dict[str, list[str]] = {}
    for split, file in files.by_split(SENTENCES, config.splits).items():
        for line in file.lines(expected):
            number, tab, caption = line.partition("\t")
            if not tab or not re.fullmatch(r"vid\d+", number):
                raise file.wrong(expected, f"a line is {line[:60]!r}")
            if _split(number) != split:
                raise file.wrong(f"clips of the {split} split", f"{number} is one of {_split(number)}")
            captions.setdefault(names.get(number, number), []).append(caption)
    return captions


def _corpus(file: OfficialFile, config: Config) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = defaultdict(list)
    languages: Counter[str] = Counter()
    for _, row in file.rows(COLUMNS, strict=False):
        languages[row["Language"]] += 1
        if row["Language"] != config.language or not row["Description"].strip():
            continue
        if config.verified_only and row["Source"] != "clean":
            continue
        try:
            start, stop = (int(float(row[key])) for key in ("Start", "End"))
        except (ValueError, OverflowError):
            continue  # the corpus has a few lines without a clip
        captions[f"{row['VideoID']}_{start}_{stop}"].append(row["Description"])
    if config.language not in languages:
        known = ", ".join(sorted(languages)[:20])
        raise file.wrong(f"captions in {config.language!r} (language=...)", f"there are captions in {known or 'none'}")
    return captions


def _descriptions(file: OfficialFile) -> dict[str, list[str]]:
    expected = "lines of a clip (mv89psg6zh4_33_46), a blank and a caption"
    captions: dict[str, list[str]] = defaultdict(list)
    for line in file.lines(expected):
        if line.startswith("#"):
            continue
        name, _, caption = line.partition(" ")
        if not video_and_span(name):
            raise file.wrong(expected, f"a line is {line[:60]!r}")
        captions[name].append(caption)
    return captions


def _entry(name: str, number: str, captions: Sequence[str]) -> Entry:
    video, span = video_and_span(name) or ("", None)
    return Entry(
        source_id=name,
        split=_split(number),
        captions=tuple(captions),
        video=video,
        span=span,
        names=(number,),
        extra={"number": number},
        fault=(length_fault(span) if span else "") or ("" if captions else "no caption"),
    )


def _number(vid: object) -> int:
    return int(str(vid).removeprefix("vid"))


def _split(vid: str) -> str:
    number = _number(vid)
    return next((split for split, last in LAST.items() if number <= last), "test")
