"""Every real annotation file beside the project: it is read, and the counts are the official ones."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from avpipe.data_manifests import manifest
from avpipe.data_manifests.annotations import read_annotations, tidy
from avpipe.data_manifests.cards import cards
from avpipe.data_manifests.exchange import export
from avpipe.data_manifests.manifest import Manifest
from avpipe.data_manifests.prepare import prepare
from avpipe.data_manifests.subset import Subset
from avpipe.pipeline.workspace import Workspace

pytestmark = pytest.mark.shared


@pytest.fixture
def annotations(shared: Path) -> Path:
    return shared / "annotations"


def prepared(name: str, files: dict[Path, str], place: Path, **options: Any) -> tuple[Manifest, manifest.Header]:
    """A manifest without media, of real files under their official names."""
    folder = place / "annotations"
    folder.mkdir(parents=True)
    for source, official in files.items():
        shutil.copyfile(source, folder / official)
    workspace = Workspace(place / "workspace")
    header = prepare(name, workspace, annotations=folder, options={"include": "all", **options})
    return manifest.read(workspace.manifest(name)), header


def check(found: Manifest, header: manifest.Header, tmp_path: Path) -> None:
    """What holds of every manifest: unique ids, ordered times, no clip in two splits, nothing lost on the way out."""
    assert len({clip.clip_id for clip in found.clips}) == len(found.clips)
    assert all(clip.stop_seconds is None or clip.start_seconds < clip.stop_seconds for clip in found.clips)
    assert all(clip.captions and all(tidy(text) == text for text in clip.captions) for clip in found.clips)
    for split, row in header.ledger.items():
        assert row["annotated"] == row["faulty"] + row["clips"]
        assert (row["missing"], row["on_disk"]) == (None, None), "nobody looked for media"
        assert row["clips"] == len(found.split(split))
    again = tmp_path / f"{found.dataset}.jsonl.gz"
    manifest.write(again, found.clips, media_root=tmp_path)
    assert manifest.read(again).clips == found.clips
    export(found, tmp_path / "references.json", "coco")
    rows = {row.id: row for row in read_annotations(tmp_path / "references.json")}
    assert [rows[clip.clip_id].captions for clip in found.clips] == [clip.captions for clip in found.clips]
    assert [rows[clip.clip_id].split for clip in found.clips] == [clip.split for clip in found.clips]


def test_msrvtt(annotations: Path, tmp_path: Path) -> None:
    files = {
        annotations / "msrvtt" / "test_videodatainfo.json.zip": "test_videodatainfo.json.zip",
        annotations / "msrvtt" / "train_val_videodatainfo.excerpt60.json": "train_val_videodatainfo.json",
        annotations / "msrvtt" / "MSRVTT_JSFUSION_test.csv": "MSRVTT_JSFUSION_test.csv",
    }
    found, header = prepared("msrvtt", files, tmp_path / "full")
    assert (header.clips, header.captions["test"]) == ({"train": 40, "val": 20, "test": 2990}, 59800)
    assert header.clips["test"] == header.ledger["test"]["official"] == cards()["msrvtt"].official_clips["test"]
    assert header.captions["test"] == cards()["msrvtt"].official_captions["test"]
    assert {len(clip.captions) for clip in found.clips} == {20}
    assert {clip.extra["category"] for clip in found.split("test")} >= {"music", "gaming", "cooking"}
    check(found, header, tmp_path)
    few, _ = prepared("msrvtt", files, tmp_path / "1k", partition="1k-A-7k")
    assert (len(few.split("train")), len(few.split("val")), len(few.split("test"))) == (60, 0, 1000)


def test_categories_of_msrvtt(annotations: Path) -> None:
    from avpipe.data_manifests.datasets.msrvtt import CATEGORIES

    lines = (annotations / "msrvtt" / "category.txt").read_text(encoding="utf-8").split("\n")
    rows = [line.strip().split("\t") for line in lines if line.strip()]
    assert {int(number): name for name, number in rows} == dict(enumerate(CATEGORIES))


def test_vatex(annotations: Path, tmp_path: Path) -> None:
    files = {annotations / "vatex" / "vatex_validation_v1.0.excerpt150.json": "vatex_validation_v1.0.json"}
    found, header = prepared("vatex", files, tmp_path, splits=["val"])
    assert (header.clips["val"], header.captions["val"], header.ledger["val"]["official"]) == (150, 1500, 3000)
    check(found, header, tmp_path)


def test_the_id_lists_of_vatex(annotations: Path, tmp_path: Path) -> None:
    """All 34,991 official ids are read, five YouTube ids of them twice; the counts are the card's."""
    lists = json.loads((annotations / "vatex" / "vatex_split_ids.derived.json").read_text(encoding="utf-8"))
    names = {"train": "train", "validation": "val", "test_public": "test"}
    assert {names[split]: len(ids) for split, ids in lists.items()} == cards()["vatex"].official_clips
    folder = tmp_path / "made"
    folder.mkdir()
    made = ("vatex_training_v1.0.json", "vatex_validation_v1.0.json", "vatex_public_test_english_v1.1.json")
    for name, ids in zip(made, lists.values(), strict=True):
        rows = [{"videoID": each, "enCap": ["x"]} for each in ids]
        (folder / name).write_text(json.dumps(rows), encoding="utf-8")
    workspace = Workspace(tmp_path / "workspace")
    header = prepare("vatex", workspace, annotations=folder, options={"include": "all"})
    found = manifest.read(workspace.manifest("vatex"))
    assert [clip.clip_id for clip in found.clips] == [each for ids in lists.values() for each in ids]
    assert "source videos with clips in more than one split: 1 (Z03StBdQzog)" in header.notes
    subset = Subset.read(annotations / "vatex" / "vatex_split_ids.derived.json")
    assert len(subset.ids) == 34991


def test_msvd(annotations: Path, tmp_path: Path) -> None:
    files = {annotations / "msvd" / name: name for name in ("sents_val_lc_nopunc.txt", "youtube_mapping.txt")}
    found, header = prepared("msvd", files, tmp_path, splits=["val"])
    card = cards()["msvd"]
    assert (header.clips["val"], header.captions["val"]) == (card.official_clips["val"], card.official_captions["val"])
    listed = json.loads((annotations / "msvd" / "valid.list").read_text(encoding="utf-8"))
    assert {clip.clip_id for clip in found.clips} == set(listed)
    check(found, header, tmp_path)


def test_the_splits_of_msvd(annotations: Path, tmp_path: Path) -> None:
    """The numbers of the mapping make the same splits as the published lists."""
    names = [line.split()[0] for line in (annotations / "msvd" / "youtube_mapping.txt").read_text().splitlines()]
    made = {annotations / "msvd" / "youtube_mapping.txt": "youtube_mapping.txt"}
    text = tmp_path / "made.txt"
    text.write_text("".join(f"{name} a man is cooking\n" for name in names), encoding="utf-8")
    found, header = prepared("msvd", {**made, text: "AllVideoDescriptions.txt"}, tmp_path)
    assert header.clips == cards()["msvd"].official_clips
    for split, file in (("train", "train.list"), ("val", "valid.list"), ("test", "test.list")):
        listed = json.loads((annotations / "msvd" / file).read_text(encoding="utf-8"))
        assert {clip.clip_id for clip in found.split(split)} == set(listed)


def test_audiocaps(annotations: Path, tmp_path: Path) -> None:
    files = {
        annotations / "audiocaps" / "train.excerpt200.csv": "train.csv",
        annotations / "audiocaps" / "val.csv": "val.csv",
        annotations / "audiocaps" / "test.csv": "test.csv",
    }
    found, header = prepared("audiocaps", files, tmp_path)
    card = cards()["audiocaps"]
    for split in ("val", "test"):
        assert header.clips[split] == header.ledger[split]["official"] == card.official_clips[split]
        assert header.captions[split] == card.official_captions[split]
        assert {len(clip.captions) for clip in found.split(split)} == {5}
    assert header.clips["train"] == header.captions["train"] == 200
    check(found, header, tmp_path)


def test_activitynet_captions(annotations: Path, tmp_path: Path) -> None:
    files = {
        annotations / "activitynet" / "train.excerpt120.json": "train.json",
        annotations / "activitynet" / "val_1.json": "val_1.json",
    }
    found, header = prepared("activitynet_captions", files, tmp_path, reference_sets=["val_1"])
    assert (header.clips["val"], header.ledger["val"]["official"]) == (17505, 17505)
    assert len({clip.extra["video"] for clip in found.split("val")}) == 4917
    assert "segments that end beyond their video, cut there: 5" in header.notes
    check(found, header, tmp_path)


def test_youcook2(annotations: Path, tmp_path: Path) -> None:
    source = annotations / "youcook2" / "youcookii_annotations_trainval.excerpt45.json"
    found, header = prepared("youcook2", {source: "youcookii_annotations_trainval.json"}, tmp_path)
    database = json.loads(source.read_text(encoding="utf-8"))["database"]
    subsets = Counter(video["subset"] for video in database.values() for _ in video["annotations"])
    assert header.clips == {"train": subsets["training"], "val": subsets["validation"], "test": 0}
    assert len({clip.extra["video"] for clip in found.clips}) == 45
    check(found, header, tmp_path)


def test_bddx(annotations: Path, tmp_path: Path) -> None:
    source = annotations / "bddx" / "Sample.csv"
    with source.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    stems = [row["Input.Video"].rpartition("/")[2].removesuffix(".mov") for row in rows]
    lists = {"train": stems[:6], "val": stems[6:8], "test": stems[8:]}
    made = {}
    for split, several in lists.items():
        path = tmp_path / f"{split}.txt"
        path.write_text("".join(f"{n}_{stem}\n" for n, stem in enumerate(several, 1)), encoding="utf-8")
        made[path] = path.name
    found, header = prepared("bddx", {source: "BDD-X-Annotations_v1.csv", **made}, tmp_path / "joint")
    assert sum(row["annotated"] for row in header.ledger.values()) == 43
    first = found.clips[0]
    assert first.captions == ("The car accelerates because the light has turned green.",)
    assert (first.start_seconds, first.stop_seconds) == (0.0, 11.0)
    check(found, header, tmp_path)


def test_valor32k(annotations: Path, tmp_path: Path) -> None:
    found, header = prepared(
        "valor32k", {annotations / "valor32k" / "desc_val.json": "desc_val.json"}, tmp_path, splits=["val"]
    )
    assert header.clips["val"] == header.captions["val"] == header.ledger["val"]["official"] == 3500
    check(found, header, tmp_path)


def test_clotho(annotations: Path, tmp_path: Path) -> None:
    source = annotations / "clotho" / "wavcaps_val.csv"
    found, header = prepared("clotho", {source: "clotho_captions_validation.csv"}, tmp_path, splits=["val"])
    assert (header.clips["val"], header.captions["val"], header.ledger["val"]["official"]) == (1045, 5225, 1045)
    with source.open(encoding="utf-8", newline="") as file:
        names = [row["file_name"] for row in csv.DictReader(file)]
    assert [clip.path for clip in found.clips] == names
    check(found, header, tmp_path)


def test_real_clips_are_found_by_their_captions(shared: Path, tmp_path: Path) -> None:
    """VALOR-32K's validation file, and ActivityNet's, against a folder with real files of both."""
    valor = Workspace(tmp_path / "valor")
    options: dict[str, Any] = {"splits": ["val"]}
    header = prepare(
        "valor32k",
        valor,
        annotations=shared / "annotations" / "valor32k",
        media=shared / "clips" / "ok",
        options=options,
    )
    (clip,) = manifest.read(valor.manifest("valor32k")).clips
    assert (clip.clip_id, clip.path) == ("6zlMP_kQ_-w_30.000_40.000", "6zlMP_kQ_-w_30000_40000.mp4")
    assert clip.captions == ("On the stage, a woman plays a harp, which is played with beautiful music.",)
    assert clip.extra["media"]["duration_seconds"] == pytest.approx(10.0, abs=0.1)
    assert header.ledger["val"] | {"ids_sha256": ""} == {
        "official": 3500, "annotated": 3500, "not_listed": 0, "faulty": 0, "missing": 3499, "on_disk": 1,
        "unreadable": 0, "with_audio": 1, "silent": 0, "clips": 1, "ids_sha256": "",
    }  # fmt: skip
    activitynet = Workspace(tmp_path / "activitynet")
    options |= {"reference_sets": ["val_1"]}
    prepare(
        "activitynet_captions",
        activitynet,
        annotations=shared / "annotations" / "activitynet",
        media=shared / "clips" / "ok",
        options=options,
    )
    clips = manifest.read(activitynet.manifest("activitynet_captions")).clips
    assert {clip.path for clip in clips} == {"v_GGSY1Qvo990.mp4"}
    assert [(clip.start_seconds, clip.stop_seconds) for clip in clips] == [(0.0, 2.27), (2.91, 6.54), (8.08, 18.16)]
