"""The captions that lie beside the project, by dataset and clip: official annotation files, used in place."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

Captions = dict[str, list[str]]


def _add(found: Captions, clip_id: str, caption: str) -> None:
    found.setdefault(clip_id, []).append(caption)


def activitynet(folder: Path) -> Captions:
    """A clip is a video with all its sentences."""
    found: Captions = {}
    for path in sorted(folder.glob("*.json")):
        found |= {name: video["sentences"] for name, video in json.loads(path.read_text("utf-8")).items()}
    return found


def tables(folder: Path) -> Captions:
    """AudioCaps and Clotho: every column of a CSV file that has "caption" in its name."""
    found: Captions = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                clip_id = row.get("file_name") or f"{row['youtube_id']}_{row['start_time']}"
                for column, caption in row.items():
                    if "caption" in column:
                        _add(found, clip_id, caption)
    return found


def msrvtt(folder: Path) -> Captions:
    """The test split, and what there is of the other two."""
    found: Captions = {}
    with zipfile.ZipFile(folder / "test_videodatainfo.json.zip") as whole:
        texts = [whole.read(name).decode() for name in whole.namelist() if name.endswith(".json") and "__" not in name]
    for text in [*texts, *(path.read_text("utf-8") for path in sorted(folder.glob("*.json")))]:
        for sentence in json.loads(text)["sentences"]:
            _add(found, sentence["video_id"], sentence["caption"])
    return found


def msvd(folder: Path) -> Captions:
    """The validation split."""
    found: Captions = {}
    for path in sorted(folder.glob("sents_*.txt")):
        for line in path.read_text("utf-8").splitlines():
            _add(found, *line.split("\t", 1))
    return found


def valor32k(folder: Path) -> Captions:
    """One caption a clip."""
    return {row["video_id"]: [row["desc"]] for path in folder.glob("*.json") for row in json.loads(path.read_text())}


def vatex(folder: Path) -> Captions:
    """English ones of the validation split."""
    return {
        row["videoID"]: row["enCap"]
        for path in folder.glob("vatex_validation*.json")
        for row in json.loads(path.read_text("utf-8"))
    }


def youcook2(folder: Path) -> Captions:
    """A clip is a video with all its sentences."""
    found: Captions = {}
    for path in sorted(folder.glob("*.json")):
        for name, video in json.loads(path.read_text("utf-8"))["database"].items():
            found[name] = [segment["sentence"] for segment in video["annotations"]]
    return found


def bddx(folder: Path) -> Captions:
    """Actions and justifications of a video."""
    found: Captions = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for column, text in row.items():
                    if column.endswith(("action", "justification")) and text:
                        _add(found, row["Input.Video"], text)
    return found


READERS: dict[str, Callable[[Path], Captions]] = {
    "activitynet": activitynet,
    "audiocaps": tables,
    "bddx": bddx,
    "clotho": tables,
    "msrvtt": msrvtt,
    "msvd": msvd,
    "valor32k": valor32k,
    "vatex": vatex,
    "youcook2": youcook2,
}


def read(annotations: Path) -> dict[str, Captions]:
    """By dataset, of those whose folder is there."""
    return {name: read(annotations / name) for name, read in READERS.items() if (annotations / name).is_dir()}
