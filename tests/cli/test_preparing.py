"""Published datasets at the command line: prepare, what was left out, cards, export, and the whole job."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from avpipe.data_manifests import manifest
from avpipe.data_manifests.datasets import REGISTRY
from avpipe.eval.coco import read_references
from avpipe.pipeline.workspace import Workspace
from tests.data_manifests.releases import RELEASES

from .conftest import Avpipe, Said

TINY = ("train.epochs=1", "train.tensorboard=false", "fusion.width=16", "decoder.width=16", "generate.max_tokens=4")


@pytest.fixture
def toy(tmp_path: Path, rendered: Workspace) -> dict[str, Path]:
    """A made-up VATEX with rendered videos; one of them cut short, one no video at all."""
    inputs: dict[str, Any] = RELEASES["vatex"]().write(tmp_path / "toy")
    videos = sorted(rendered.media("synthetic").rglob("*.mp4"))
    for path, video in zip(sorted(inputs["media"].rglob("*.*")), videos, strict=False):
        shutil.copy(video, path)
    return {"annotations": inputs["annotations"], "media": inputs["media"], "workspace": tmp_path / "workspace"}


def prepare(avpipe: Avpipe, toy: dict[str, Path], *words: object) -> Said:
    places = ("--annotations", toy["annotations"], "--media", toy["media"], "-w", toy["workspace"])
    return avpipe("prepare", "vatex", *words, *places)


def test_the_ledger_is_printed(avpipe: Avpipe, toy: dict[str, Path]) -> None:
    (broken,) = toy["media"].rglob("rain_falls-_0_10.webm")
    broken.write_bytes(b"<html>")
    said = prepare(avpipe, toy)
    assert said.status == 0
    assert said.out.startswith("vatex: 3 train (6 captions), 1 val (1 caption), 1 test (1 caption)\n")
    table = [line.split() for line in said.out.splitlines()[1:10]]
    assert table[:6] == [
        ["train", "val", "test"],
        ["official", "25,991", "3,000", "6,000"],
        ["annotated", "4", "1", "1"],
        ["missing", "1", "0", "0"],
        ["on", "disk", "3", "1", "1"],
        ["unreadable", "1", "0", "0"],
    ]
    assert "captions with line breaks, surplus or surrounding blanks, made single blanks: 2" in said.out
    ledger = toy["workspace"] / "manifests" / "vatex.ledger.csv"
    assert f"{ledger}: which clips are missing, faulty or unreadable" in said.out.replace("\n", "")
    lines = ledger.read_text(encoding="utf-8").splitlines()
    assert lines[1] == "vanished_11_000001_000011,train,missing,no,"
    assert lines[2].startswith("rain_falls-_000000_000010,train,unreadable,yes,open: rain_falls-_0_10.webm (6 bytes)")


def test_the_ledger_for_a_program(avpipe: Avpipe, toy: dict[str, Path]) -> None:
    told = json.loads(prepare(avpipe, toy, "--json").out)
    assert told["ledger"]["train"]["missing"] == 1
    assert told["ledger"]["train"]["with_audio"] is not None
    assert len(told["ledger"]["train"]["ids_sha256"]) == 64


def test_without_looking_nobody_knows_of_sound(avpipe: Avpipe, toy: dict[str, Path]) -> None:
    said = prepare(avpipe, toy, "--no-probe")
    assert "with audio" not in said.out
    assert json.loads(prepare(avpipe, toy, "--no-probe", "--json").out)["ledger"]["train"]["with_audio"] is None


def test_only_the_clips_of_a_list(avpipe: Avpipe, toy: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("-dog_barks1_000010_000020\nother\n", encoding="utf-8")
    said = prepare(avpipe, toy, "--no-probe", "--intersect", tmp_path / "ids.txt", "splits=[train]")
    assert "1 of the 2 ids in ids.txt are clips here" in said.out
    clips = manifest.read(Workspace(toy["workspace"]).manifest("vatex")).clips
    assert [clip.clip_id for clip in clips] == ["-dog_barks1_000010_000020"]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["prepare", "vatex"], 1, "vatex: expected --annotations FOLDER with its official files, got none"),
        (["prepare", "vatex", "--annotations", "."], 1, "vatex: expected --media FOLDER"),
        (
            ["prepare", "vatex", "--annotations", ".", "--media", "."],
            1,
            "did not find vatex_training_v1.0.json (train)",
        ),
        (["prepare", "vatex", "split=train"], 2, "split: unknown key (did you mean 'splits'?)"),
        (["ls", "datasets", "vatx"], 2, "unknown dataset 'vatx' (did you mean 'vatex'?)"),
        (["ls", "encoders", "ast"], 2, "only datasets are shown by name, got encoders ast"),
        (["manifest", "export", "--to", "x.json"], 2, "no dataset is prepared yet"),
        (["manifest", "export", "--to", "x.json", "--as", "parquet"], 2, "'parquet' is not one of"),
    ],
)
def test_one_clear_message(avpipe: Avpipe, words: list[str], status: int, message: str) -> None:
    said = avpipe(*words)
    assert said.status == status
    assert message in " ".join(said.err.replace("│", " ").split())


def test_cards_are_listed_with_the_ledger(avpipe: Avpipe, toy: dict[str, Path]) -> None:
    prepare(avpipe, toy, "--no-probe")
    said = avpipe("ls", "datasets", "-w", toy["workspace"])
    assert said.status == 0
    for name in REGISTRY.names():
        assert f"  {name}  " in said.out
        assert REGISTRY.load(name).CARD.source in said.out
    one = avpipe("ls", "datasets", "vatex", "-w", toy["workspace"])
    assert "official  25,991 / 3,000 / 6,000 clips (train / val / test), captions each: 10" in one.out
    assert "prepared  3 train, 1 val, 1 test" in one.out
    assert "annotated" in one.out
    told = json.loads(avpipe("ls", "datasets", "vatex", "--json", "-w", toy["workspace"]).out)
    assert told["datasets"]["vatex"]["prepared"]["ledger"]["train"]["missing"] == 1
    assert told["datasets"]["vatex"]["official_clips"]["train"] == 25991


def test_a_dataset_of_ones_own_is_listed_under_its_name(avpipe: Avpipe, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").touch()
    (tmp_path / "captions.json").write_text('{"a": "a dog barks"}', encoding="utf-8")
    places = ("--media", tmp_path / "videos", "--annotations", tmp_path / "captions.json", "-w", tmp_path / "own")
    assert avpipe("prepare", "folder", "dataset=mine", "--no-probe", *places).status == 0
    for words in (["ls", "datasets"], ["ls", "datasets", "mine"]):
        said = avpipe(*words, "-w", tmp_path / "own")
        assert said.status == 0
        assert "  mine  Your own data" in said.out


def test_a_damaged_manifest_is_listed_as_one(avpipe: Avpipe, toy: dict[str, Path]) -> None:
    prepare(avpipe, toy, "--no-probe")
    (toy["workspace"] / "manifests" / "vatex.json").write_text("{", encoding="utf-8")
    said = avpipe("ls", "datasets", "vatex", "-w", toy["workspace"])
    assert said.status == 0
    assert "prepared  damaged: " in said.out


def test_references_go_out_as_coco(avpipe: Avpipe, toy: dict[str, Path], tmp_path: Path) -> None:
    prepare(avpipe, toy, "--no-probe")
    to = tmp_path / "references.json"
    said = avpipe("manifest", "export", "--to", to, "--split", "train", "-w", toy["workspace"])
    assert (said.status, said.out) == (0, f"3 clips, 6 captions -> {to}\n")
    assert read_references(to)["rain_falls-_000000_000010"] == ["it rains", "it rains", "it pours"]


def test_other_clips_than_before_are_told_where_there_are_features(avpipe: Avpipe, toy: dict[str, Path]) -> None:
    prepare(avpipe, toy, "--no-probe")
    assert "NOTE" not in prepare(avpipe, toy, "--no-probe", "splits=[train,val]").out
    (toy["workspace"] / "features" / "vatex" / "ast").mkdir(parents=True)
    (toy["workspace"] / "features" / "vatex" / "ast" / "spec.json").write_text("{}", encoding="utf-8")
    assert "the features of ast belong to no shard of it" in " ".join(prepare(avpipe, toy, "--no-probe").out.split())
    assert "NOTE" not in prepare(avpipe, toy, "--no-probe").out


def test_a_published_dataset_through_all_stages(avpipe: Avpipe, toy: dict[str, Path], tmp_path: Path) -> None:
    """Official files and videos in; captions and scores out, on all clips and on a published subset."""
    place = ("-w", toy["workspace"])
    assert prepare(avpipe, toy).status == 0
    assert avpipe("extract", "--recipe", "baseline", "--gpus", "0", "--decoders", "1", *place).status == 0
    assert avpipe("train", "--name", "tiny", *TINY, *place).status == 0
    score = ("score", "--metrics", "bleu", "--missing", "empty", "--json", *place)  # an untrained model says nothing
    said = avpipe(*score)
    assert said.status == 0
    assert json.loads(said.out)["split"] == "test"
    (tmp_path / "latest.json").write_text(json.dumps(["test_clip01"]), encoding="utf-8")
    said = avpipe(*score, "--intersect", tmp_path / "latest.json")
    told = json.loads(said.out)
    assert (told["split"], told["scored"]) == ("test-within-latest", 1)
    assert "1 of the 1 ids in latest.json are clips here" in told["notes"]
    assert "split:test-within-latest@" in told["signatures"]["Bleu_1"]
    assert (toy["workspace"] / "runs" / "tiny" / "scores" / "test-within-latest.json").exists()
    (tmp_path / "other.json").write_text('["nothing"]', encoding="utf-8")
    said = avpipe(*score, "--intersect", tmp_path / "other.json")
    assert said.status == 1
    assert "none of its 1 ids is one of a clip" in said.err


def test_any_predictions_on_a_published_subset(avpipe: Avpipe, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("a\nb\n", encoding="utf-8")
    (tmp_path / "references.json").write_text(json.dumps({name: ["a dog barks"] for name in "abc"}), encoding="utf-8")
    (tmp_path / "predictions.json").write_text(json.dumps(dict.fromkeys("ab", "a dog barks")), encoding="utf-8")
    files = ("--predictions", tmp_path / "predictions.json", "--references", tmp_path / "references.json")
    assert avpipe("score", *files, "--metrics", "bleu").status == 1  # c has no caption
    said = avpipe("score", *files, "--metrics", "bleu", "--intersect", tmp_path / "ids.txt", "--json")
    assert said.status == 0
    assert json.loads(said.out)["scored"] == 2
