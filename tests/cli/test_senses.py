"""Does it look, does it listen, and on which clips: ``avpipe score`` of a run whose senses are taken away or exchanged,
and its scores by kind of clip.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from avpipe import api
from avpipe.data_manifests import manifest
from avpipe.eval.coco import read_results
from avpipe.pipeline.features import FeatureSpec, Segment, Segments
from avpipe.pipeline.senses import partners
from avpipe.pipeline.shards import plan, write_spec
from avpipe.pipeline.store import ShardWriter
from avpipe.pipeline.workspace import Workspace
from tests.cli import sweep_toys as toys
from tests.cli.conftest import Avpipe, Said
from tests.train.loop_toys import COLOURS, SOUNDS

CIDER = ("--metrics", "cider,bleu")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two runs: ``both`` has learned what is to be seen and heard, ``eyes`` has no ears. Not to be written to."""
    made = toys.workspace(tmp_path_factory.mktemp("senses") / "workspace", test=12)
    more = {"train.epochs": 40, "train.lr": 3e-3, "train.validate_every": 1000}
    overrides = [f"{key}={json.dumps(value)}" for key, value in {**toys.SETTINGS, **more}.items()]
    api.train(made, dataset="toy", name="both", overrides=overrides)
    api.train(made, dataset="toy", name="eyes", overrides=[*overrides, "train.epochs=1"], features=["eyes"])
    return made


@pytest.fixture
def used(learned: Workspace, tmp_path: Path) -> Workspace:
    """A copy to write to."""
    shutil.copytree(learned.root, tmp_path / "used")
    return Workspace(tmp_path / "used")


def captions(workspace: Workspace, name: str, run: str = "both") -> dict[str, str]:
    return dict(read_results(workspace.run(run) / "captions" / f"{name}.json"))


def facts(workspace: Workspace) -> dict[str, tuple[str, str]]:
    """Colour and sound of each test clip."""
    return {
        clip.clip_id: (COLOURS[i % 3], SOUNDS[i % 2]) for i, clip in enumerate(api.clips_of(workspace, "toy", "test"))
    }


def looks(workspace: Workspace, run: str = "both") -> list[str]:
    log = workspace.run(run) / "test_access.log"
    return log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def said_of(said: Said) -> Any:
    assert said.status == 0, said.err
    return json.loads(said.out)


# -- senses ------------------------------------------------------------------------------------------------------------


def test_a_deaf_captioner_sees_and_a_blind_one_hears(avpipe: Avpipe, used: Workspace) -> None:
    whole = said_of(avpipe("score", "--run", "both", *CIDER, "--json", "-w", used.root))
    assert whole["scores"]["Bleu_4"] == pytest.approx(1)  # it has learned its toy
    deaf = said_of(avpipe("score", "--run", "both", "--drop", "audio", *CIDER, "--json", "-w", used.root))
    blind = said_of(avpipe("score", "--run", "both", "--drop", "eyes", *CIDER, "--json", "-w", used.root))
    for report, what in ((deaf, "-audio"), (blind, "-eyes")):
        assert report["scores"]["CIDEr"] < whole["scores"]["CIDEr"]
        assert f"|senses:{what}|" in report["signatures"]["CIDEr"]
    assert "senses:" not in whole["signatures"]["CIDEr"]
    for clip_id, (colour, sound) in facts(used).items():
        assert colour in captions(used, "test")[clip_id]
        assert sound in captions(used, "test")[clip_id]
        assert colour in captions(used, "test.without-audio")[clip_id]
        assert sound in captions(used, "test.without-eyes")[clip_id]


def test_a_captioner_with_other_ears_says_what_the_other_clip_sounds_like(avpipe: Avpipe, used: Workspace) -> None:
    options = ("--shuffle", "audio", "--shuffle-seed", 3, *CIDER, "--json", "-w", used.root)
    report = said_of(avpipe("score", "--run", "both", *options))
    assert "|senses:shuffled(audio,seed 3)|" in report["signatures"]["CIDEr"]
    known = facts(used)
    of_whom = partners(list(known), 3)
    for clip_id, text in captions(used, "test.shuffled-audio-seed3").items():
        assert known[clip_id][0] in text  # its own colour
        assert known[of_whom[clip_id]][1] in text  # the sound of the other
    assert (used.run("both") / "scores" / "test.shuffled-audio-seed3.csv").exists()


def test_files_of_the_whole_are_left_alone(avpipe: Avpipe, used: Workspace) -> None:
    assert avpipe("score", "--run", "both", *CIDER, "-w", used.root).status == 0
    before = {path: path.read_bytes() for path in used.run("both").glob("[cs]*s/test.*")}
    assert len(before) == 4
    assert avpipe("score", "--run", "both", "--drop", "audio", *CIDER, "-w", used.root).status == 0
    assert {path: path.read_bytes() for path in before} == before


def test_every_sense_in_one_table_and_one_look(avpipe: Avpipe, used: Workspace) -> None:
    told = said_of(avpipe("score", "--run", "both", "--senses", *CIDER, "--json", "-w", used.root))
    assert list(told) == [
        "whole", "without video", "without audio", "another clip's video", "another clip's audio"
    ]  # fmt: skip
    whole = told["whole"]["scores"]["CIDEr"]
    for label, report in told.items():
        assert report["differences"]["CIDEr"] == pytest.approx(report["scores"]["CIDEr"] - whole)
        assert report["differences"]["CIDEr"] < 0 or label == "whole"
        assert report["notes"] == ["look number 1 at test of run 'both' (test_access.log)"]
    (line,) = looks(used)
    assert line.endswith(" score test of both: " + ", ".join(told))
    scores = used.run("both") / "scores"
    assert json.loads((scores / "test.senses.json").read_text(encoding="utf-8")) == told
    with (scores / "test.senses.csv").open(encoding="utf-8") as file:
        assert [row[0] for row in csv.reader(file)] == ["", *told]
    single = said_of(avpipe("score", "--run", "both", "--drop", "audio", *CIDER, "--json", "-w", used.root))
    assert single["scores"] == told["without audio"]["scores"]
    said = avpipe("score", "--run", "both", "--senses", "--split", "val", *CIDER, "--percent", "-w", used.root)
    assert "another clip's audio: senses:shuffled(audio,seed 0)" in said.out
    assert len(looks(used)) == 2  # val is not sealed


def test_captions_are_made_once_for_each_checkpoint(avpipe: Avpipe, used: Workspace) -> None:
    drop = ("score", "--run", "both", "--drop", "audio", "--split", "val", *CIDER, "-w", used.root)
    assert avpipe(*drop).status == 0
    path = used.run("both") / "captions" / "val.without-audio.json"
    made = path.stat().st_mtime_ns
    assert avpipe(*drop).status == 0
    assert path.stat().st_mtime_ns == made
    path.with_name("val.without-audio.checkpoint").write_text("both@1", encoding="utf-8")  # of a former one
    assert avpipe(*drop).status == 0
    assert path.stat().st_mtime_ns > made


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--run eyes --senses", "run 'eyes' reads eyes (video) alone, and cannot do without it. Try --shuffle video"),
        ("--run eyes --drop video", "run 'eyes' reads nothing but eyes (video); without that nothing is left"),
        ("--run both --drop audio,video", "run 'both' reads nothing but"),
        ("--run both --drop text", "unknown modality or feature set 'text'; known: audio, ears, eyes, video."),
        ("--run both --shuffle adio", "unknown modality or feature set 'adio' (did you mean 'audio'?)"),
        ("--run both --drop ,", "--drop: expected names, several by comma, got ','"),
        ("--run both --drop audio --shuffle ears", "ears cannot be both taken away and exchanged; choose one"),
        ("--run both --drop audio --senses", "--senses makes a table of its own"),
        ("--run both --slices length --senses", "--senses makes a table of its own"),
        ("--run both --slices loudness", "unknown slice 'loudness'; known: audio, category"),
        ("--run both --slices category", "unknown field of the manifest 'category'; known: next_clip"),
        ("--run both --slices audio --split tests", "unknown split 'tests' (did you mean 'test'?)"),
        ("--run both --slices audio --dataset toy", "--dataset toy says whose clips the file of --references holds"),
        (
            "-p p.json --references r.json --drop audio",
            "--drop, --shuffle and --senses caption anew, which takes a run",
        ),
        ("-p p.json --references r.json --senses", "--drop, --shuffle and --senses caption anew, which takes a run"),
        ("-p p.json --references r.json --slices audio", "of a file of references only 'length' is known. Say whose"),
        ("-p p.json --references r.json --dataset toy", "for --slices, which was not given"),
        ("-p p.json --references r.json --split bogus", "is no split of a run; it does not go with --split"),
        ("-p p.json --references r.json --shuffle-seed 1", "got a file of predictions and --shuffle-seed"),
        ("--run both --shuffle-seed 0", "--shuffle-seed draws the other clips of --shuffle and --senses, of which"),
        ("--run both --drop audio --shuffle-seed 1", "--shuffle-seed draws the other clips of --shuffle and"),
        ("-p p.json --dense r.json --split val", "not with --split"),
        ("-p p.json --dense r.json --shuffle-seed 0", "not with --shuffle-seed"),
        ("--run both --json --format latex", "--json and --format latex are two forms of the same"),
        ("--run both --json --percent", "--percent is for people"),
        ("--run both --format csv --percent", "--percent is for people"),
        ("--run both --metrics ,", "--metrics: expected names, several by comma, got ','"),
        ("--run both --plot r.json/x.svg", "expected a folder that can be written to"),
        ("--run both --plot x.jpg", "expected a file that ends in .svg, .png, .pdf"),
        ("-p p.json --references r.json --slices audio -d toyy", "unknown dataset 'toyy' (did you mean 'toy'?)"),
    ],
)
def test_what_cannot_be_done_is_told_and_is_no_look(
    avpipe: Avpipe, learned: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, message: str
) -> None:
    (tmp_path / "r.json").write_text('{"a": ["x"]}', encoding="utf-8")
    (tmp_path / "p.json").write_text('{"a": "x"}', encoding="utf-8")
    before = {path for path in learned.root.rglob("*") if path.is_file()}
    monkeypatch.chdir(tmp_path)
    said = avpipe("score", *words.split(), "-w", learned.root)
    assert (said.status, said.out) == (2, "")
    assert message in said.err
    assert {path for path in learned.root.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--idf nosuch.json", "nosuch.json"),
        ("--intersect {}/other.txt", "none of its 1 ids is one of a clip"),
        ("--split train", "unknown split 'train'; known: test, val. Of the training clips"),
        ("--split train --slices audio", "unknown split 'train'; known: test, val. Of the training clips"),
        ("--missing drop --run mute", "missing='drop' leaves nothing to score"),
        ("--run mute", "1 clip has an empty caption: test0"),
    ],
)
def test_what_stops_the_scoring_is_no_look(
    avpipe: Avpipe, used: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, message: str
) -> None:
    """Captions may be made, but nobody has seen a score."""
    (tmp_path / "other.txt").write_text("nobody", encoding="utf-8")
    if "mute" in words:
        some = "" if "drop" in words else "a red square"
        said_by = {clip_id: some if i else "" for i, clip_id in enumerate(facts(used))}
        monkeypatch.setattr("avpipe.api.scoring.captions_of", lambda *args, **more: said_by)
        words = words.replace("mute", "both")
    options = ("--run", "both", *words.format(tmp_path).split(), "--metrics", "cider", "-w", used.root)
    said = avpipe("score", *options)
    assert (said.status in (1, 2), said.out) == (True, "")
    assert message in said.err
    assert looks(used) == []


def test_scores_by_another_corpus_lie_beside_the_others(avpipe: Avpipe, used: Workspace, tmp_path: Path) -> None:
    options = ("score", "--run", "both", *CIDER, "--json", "-w", used.root)
    said_of(avpipe(*options))
    scores = used.run("both") / "scores"
    before = {path: path.read_bytes() for path in scores.iterdir()}
    more = ("--idf", "train", "--slices", "length")
    report = said_of(avpipe(*options, *more))
    assert {path: path.read_bytes() for path in before} == before
    (stem,) = {path.name.partition(".")[2].partition(".")[0] for path in scores.iterdir() if path not in before}
    assert f"|{stem.replace('idf-', 'idf:')}|" in report["signatures"]["CIDEr"]
    (tmp_path / "c.json").write_text(json.dumps({"x": ["a red square"]}), encoding="utf-8")
    of_file = said_of(avpipe(*options, "--idf", tmp_path / "c.json"))
    assert of_file["scores"]["CIDEr"] != report["scores"]["CIDEr"]
    said_of(avpipe(*options, "--idf", "train", "--drop", "audio"))
    assert (scores / f"test.without-audio.{stem}.json").exists()
    said_of(avpipe(*options, "--idf", "train", "--senses"))
    assert (scores / f"test.{stem}.senses.csv").exists()
    assert (scores / f"test.{stem}.slices.csv").exists()
    assert {path: path.read_bytes() for path in before} == before


# -- slices ------------------------------------------------------------------------------------------------------------


def told_of(workspace: Workspace, extra: Mapping[str, Mapping[str, Any]]) -> None:
    """Write into the manifest what is known of some clips."""
    path = workspace.manifest("toy")
    read = manifest.read(path)
    clips = [replace(clip, extra={**clip.extra, **extra.get(clip.clip_id, {})}) for clip in read.clips]
    manifest.write(path, clips, media_root=read.media_root)


def recognised(workspace: Workspace, text: Mapping[str, str]) -> None:
    """A speech recogniser has listened to all clips, and understood something in some."""
    folder = workspace.feature_set("toy", "asr")
    spec = FeatureSpec(name="asr", encoder="whisper", modality="text", dim=0, dtype="text")
    write_spec(folder, spec)
    for planned in plan([clip.clip_id for clip in manifest.read(workspace.manifest("toy")).clips], 16):
        with ShardWriter(folder, planned, spec, "hdf5") as shard:
            for clip_id in planned.clip_ids:
                words = text.get(clip_id)
                items = (Segment(start_seconds=0, stop_seconds=1, text=words),) if words else ()
                shard.add(clip_id, Segments(items))


def test_scores_by_kind_of_clip(avpipe: Avpipe, used: Workspace) -> None:
    ids = list(facts(used))
    media = [{"has_audio": True, "is_silent": False, "duration_seconds": 7.0}, {"has_audio": False}]
    told_of(
        used, {clip_id: {"media": media[i % 2], "category": "x" if i < 3 else "y"} for i, clip_id in enumerate(ids)}
    )
    recognised(used, {ids[0]: "good morning"})
    slices = "audio,speech,duration,category,length"
    report = said_of(avpipe("score", "--run", "both", *CIDER, "--slices", slices, "--json", "-w", used.root))
    n = {name: {label: part["n"] for label, part in parts.items()} for name, parts in report["slices"].items()}
    assert n == {
        "audio": {"audible": 6, "no audio": 6},
        "speech": {"speech": 1, "no speech": 11},
        "duration": {"5 to 10 s": 6, "unknown": 6},
        "category": {"y": 9, "x": 3},
        "length": {"5 to 8 words": 12},
    }
    assert all(part["few"] for parts in report["slices"].values() for part in parts.values())
    for parts in report["slices"].values():
        mean = sum(part["n"] * part["scores"]["CIDEr"] for part in parts.values()) / 12
        assert mean == pytest.approx(report["scores"]["CIDEr"])
    written = json.loads((used.run("both") / "scores" / "test.slices.json").read_text(encoding="utf-8"))
    assert written["slices"] == report["slices"]
    assert report["notes"] == ["look number 1 at test of run 'both' (test_access.log)", *written["notes"]]
    assert (used.run("both") / "scores" / "test.slices.csv").exists()
    assert len(looks(used)) == 1
    said = avpipe("score", "--run", "both", *CIDER, "--slices", slices, "-w", used.root)
    assert "speech: as written in asr" in said.out
    assert "look number 2 at test" in said.out


def test_slices_of_a_deaf_captioner(avpipe: Avpipe, used: Workspace) -> None:
    """What can be known without an ear is told as well: that the features of ears are there."""
    options = ("--drop", "audio", "--slices", "audio", *CIDER, "--json", "-w", used.root)
    report = said_of(avpipe("score", "--run", "both", *options))
    assert report["slices"]["audio"]["audio"]["n"] == 12
    assert report["senses"] == "-audio"
    assert (used.run("both") / "scores" / "test.without-audio.slices.csv").exists()
    assert not (used.run("both") / "scores" / "test.slices.csv").exists()


def test_slices_within_a_list_of_ids(avpipe: Avpipe, used: Workspace, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("\n".join(list(facts(used))[:5]), encoding="utf-8")
    options = ("--intersect", tmp_path / "few.txt", "--slices", "length", *CIDER, "--json", "-w", used.root)
    report = said_of(avpipe("score", "--run", "both", *options))
    assert report["slices"]["length"]["5 to 8 words"]["n"] == report["scored"] == 5
    assert (used.run("both") / "scores" / "test-within-few.slices.csv").exists()
    assert report["notes"][:2] == [
        "5 of the 5 ids in few.txt are clips here",
        "look number 1 at test of run 'both' (test_access.log)",
    ]


def test_slices_of_files(avpipe: Avpipe, used: Workspace, tmp_path: Path) -> None:
    references = {clip.clip_id: list(clip.captions) for clip in api.clips_of(used, "toy", "test")}
    (tmp_path / "r.json").write_text(json.dumps(references), encoding="utf-8")
    (tmp_path / "p.json").write_text(json.dumps({key: texts[0] for key, texts in references.items()}), encoding="utf-8")
    files = ("-p", tmp_path / "p.json", "--references", tmp_path / "r.json", *CIDER)
    alone = said_of(avpipe("score", *files, "--slices", "length", "--json"))
    assert alone["slices"]["length"]["5 to 8 words"]["n"] == 12
    options = ("--slices", "audio,extra:next_clip", "--dataset", "toy", "-w", used.root)
    known = said_of(avpipe("score", *files, *options, "--json"))
    assert known["slices"]["audio"]["audio"]["n"] == 12
    assert len(known["slices"]["extra:next_clip"]) == 12
    said = avpipe("score", *files, *options)
    assert "audio: audio" in said.out
    assert "12 few" in said.out
    assert looks(used) == []  # nobody scored a run


@pytest.mark.parametrize("kind", ["audio", "length"])
def test_the_dataset_of_other_clips_is_refused(avpipe: Avpipe, learned: Workspace, tmp_path: Path, kind: str) -> None:
    (tmp_path / "r.json").write_text('{"a": ["x"]}', encoding="utf-8")
    (tmp_path / "p.json").write_text('{"a": "x"}', encoding="utf-8")
    files = ("-p", tmp_path / "p.json", "--references", tmp_path / "r.json")
    said = avpipe("score", *files, "--slices", kind, "-d", "toy", "-w", learned.root)
    assert (said.status, said.out) == (1, "")
    assert "the manifest holds none of the 1 clips, for example 'a' is not there" in said.err


# -- files: tables, pictures, programs ---------------------------------------------------------------------------------


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Options that score 60 clips of a file, from their folder."""
    ids = [f"c{index}" for index in range(60)]
    references = {
        clip_id: [f"a dog runs after {clip_id} {'in the old town ' * (index % 2)}today"]
        for index, clip_id in enumerate(ids)
    }
    captions = {clip_id: f"a dog {'runs' if index % 3 else 'sits'} today" for index, clip_id in enumerate(ids)}
    (tmp_path / "refs.json").write_text(json.dumps(references), encoding="utf-8")
    (tmp_path / "theirs.json").write_text(json.dumps(captions), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return ("-p", "theirs.json", "--references", "refs.json", "--metrics", "cider,rouge_l,length")


def test_pictures_of_scores_and_of_slices(
    avpipe: Avpipe, scored: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr("avpipe.eval.pictures.interval_plot", lambda *args, **more: drawn.update(plot=(args, more)))
    monkeypatch.setattr("avpipe.eval.pictures.slice_bars", lambda *args, **more: drawn.update(bars=(args, more)))
    said = avpipe("score", *scored, "--plot", "x.svg", "--percent")
    assert said.status == 0
    assert "intervals hold 95 %" in said.out  # how those of the picture were made
    assert "[" not in said.out
    told = json.loads(avpipe("score", *scored, "--intervals", "--json").out)
    (standings, path), more = drawn.pop("plot")
    assert (path, more) == (Path("x.svg"), {"percent": True})
    for name, standing in standings["theirs"].items():
        assert [standing.low, standing.high] == told["intervals"][name]
        assert standing.score == told["scores"][name]
    sliced = json.loads(avpipe("score", *scored, "--slices", "length", "--plot", "y.svg", "--json").out)
    (bars, _), more = drawn.pop("bars")
    assert (more["metric"], more["percent"]) == ("CIDEr", False)
    assert {label: bar[0] for label, bar in bars.items()} == {
        "all": told["scores"]["CIDEr"],
        **{f"length: {label}": part["scores"]["CIDEr"] for label, part in sliced["slices"]["length"].items()},
    }
    assert bars["all"][1:3] == tuple(told["intervals"]["CIDEr"])
    assert drawn == {}


def test_intervals_of_slices_are_printed_and_told(avpipe: Avpipe, scored: tuple[str, ...]) -> None:
    options = ("score", *scored, "--slices", "length", "--intervals")
    told = said_of(avpipe(*options, "--json"))
    assert told["intervals"] == said_of(avpipe("score", *scored, "--intervals", "--json"))["intervals"]
    assert {label: bool(part["intervals"]) for label, part in told["slices"]["length"].items()} == {
        "5 to 8 words": False, "10 to 12 words": False
    }  # fmt: skip
    low, high = told["intervals"]["CIDEr"]
    assert f"[{low:.4f}, {high:.4f}]" in avpipe(*options).out
    table = list(csv.DictReader(avpipe(*options, "--format", "csv").out.splitlines()))
    assert (float(table[0]["CIDEr_low"]), float(table[0]["CIDEr_high"])) == (low, high)
    assert [(row["kind"], row["n"], row["few"]) for row in table] == [
        ("", "60", ""), ("length", "30", "few"), ("length", "30", "few")
    ]  # fmt: skip
    assert "[" not in avpipe("score", *scored, "--slices", "length").out


def test_the_table_of_a_narrow_terminal_is_whole(
    avpipe: Avpipe, scored: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = avpipe("score", *scored, "--slices", "length", "--intervals", "--percent")
    lines = said.out.splitlines()
    assert max(len(line) for line in lines if line.startswith("│")) <= 80
    assert sum("length: 10 to 12 words" in line for line in lines) == said.out.count("┏") == 2
    assert all(title in said.out for title in ("CIDEr x 100", "ROUGE_L x 100", "Length ", "Length_ratio "))


def test_csv_is_for_programs(avpipe: Avpipe, scored: tuple[str, ...]) -> None:
    told = said_of(avpipe("score", *scored, "--intervals", "--json"))
    rows = list(csv.DictReader(avpipe("score", *scored, "--intervals", "--format", "csv").out.splitlines()))
    assert {row["metric"]: (float(row["score"]), row["signature"]) for row in rows} == {
        name: (score, told["signatures"][name]) for name, score in told["scores"].items()
    }
    assert [float(rows[0]["low"]), float(rows[0]["high"])] == told["intervals"]["CIDEr"]


def test_csv_of_senses_is_for_programs(avpipe: Avpipe, used: Workspace) -> None:
    options = ("score", "--run", "both", "--senses", "--split", "val", "--metrics", "cider", "-w", used.root)
    table = list(csv.DictReader(avpipe(*options, "--format", "csv").out.splitlines()))
    path = used.run("both") / "scores" / "val.senses.csv"
    assert table == list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    assert float(table[1]["CIDEr_difference"]) < 0
    tested = said_of(avpipe(*options, "--intervals", "--json"))
    test = tested["without audio"]["tests"]["CIDEr"]
    assert test["low"] <= tested["without audio"]["differences"]["CIDEr"] <= test["high"]
    assert f"[{test['low']:+.4f}, {test['high']:+.4f}]" in avpipe(*options, "--intervals").out


@pytest.mark.parametrize("option", ["--intervals", "--plot=x.svg"])
def test_of_one_clip_there_are_scores_and_no_intervals(
    avpipe: Avpipe, scored: tuple[str, ...], tmp_path: Path, option: str
) -> None:
    (tmp_path / "one.txt").write_text("c3", encoding="utf-8")
    said = avpipe("score", *scored, "--intersect", "one.txt", option)
    assert said.status == 0, said.err
    assert "Length" in said.out
    assert "no intervals: of one clip nothing can be said of others" in said.out
    assert (tmp_path / "x.svg").exists() == (option != "--intervals")


def test_few_clips_are_spoken_of(avpipe: Avpipe, scored: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("\n".join(f"c{index}" for index in range(9)), encoding="utf-8")
    said = avpipe("score", *scored, "--intersect", "few.txt", "--intervals")
    assert "9 clips are few: intervals are too narrow" in said.out
    assert "are few" not in avpipe("score", *scored, "--intervals").out


def test_where_there_is_no_score_nothing_is_drawn(
    avpipe: Avpipe, scored: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*scored[:-1], "clipscore", "--plot", "x.svg")
    for more in ((), ("--slices", "length")):
        said = avpipe("score", *options, *more)
        assert said.status == 1
        assert "x.svg is not drawn: there is no score" in said.out
        assert "none" in said.out
    assert not (tmp_path / "x.svg").exists()


def test_the_corpus_of_a_file_is_used_with_a_file(avpipe: Avpipe, scored: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"x": ["a dog runs"], "y": ["a cat"]}), encoding="utf-8")
    own = said_of(avpipe("score", *scored, "--json"))
    other = said_of(avpipe("score", *scored, "--idf", "c.json", "--json"))
    assert other["scores"]["CIDEr"] != own["scores"]["CIDEr"]
    assert "idf:refs" not in other["signatures"]["CIDEr"]
