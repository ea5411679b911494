"""`avpipe compare`, as a user calls it: files of any model, runs, seeds; what it prints and what it refuses."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from avpipe import api
from avpipe.api.comparing import named_systems
from avpipe.data_manifests import manifest
from avpipe.eval.comparison import compare
from avpipe.pipeline.errors import UnknownNameError, UsageError
from avpipe.pipeline.files import sha256
from avpipe.pipeline.workspace import Workspace
from avpipe.train import checkpoint
from tests.cli import sweep_toys as toys
from tests.cli.conftest import Avpipe

QUICK = ("--metrics", "cider,bleu", "--resamples", 200)
REFERENCES = {f"clip{number}": [f"a dog barks {number} times", f"{number} barks of a dog"] for number in range(12)}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Captions of three models, and the references."""
    (tmp_path / "references.json").write_text(json.dumps(REFERENCES), encoding="utf-8")
    for name, text in (("base", "a dog"), ("ours", "a dog barks {} times"), ("[b] :smile:", "{} barks of a dog")):
        captions = {
            clip_id: text.format(number % 9 if name == "ours" else number) for number, clip_id in enumerate(REFERENCES)
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(captions), encoding="utf-8")
    return tmp_path


def change_config(run: Path, **train: Any) -> None:
    """Let a run's checkpoint say that it was trained with other settings of ``train``."""
    path = run / "checkpoints" / "best" / checkpoint.CONFIG_FILE
    values = json.loads(path.read_text(encoding="utf-8"))
    values["run"]["train"] |= train
    path.write_text(json.dumps(values), encoding="utf-8")
    whole = path.with_name(checkpoint.COMPLETE_FILE)
    sums = json.loads(whole.read_text(encoding="utf-8"))
    whole.write_text(json.dumps({**sums, path.name: sha256(path)}), encoding="utf-8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Runs of a sweep: one that was trained, and copies of it of which one captions otherwise. Not to be written to."""
    workspace = toys.workspace(tmp_path_factory.mktemp("compared") / "workspace")
    settings = [f"{key}={value}" for key, value in (toys.SETTINGS | {"train.epochs": 1}).items()]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    api.train(workspace, dataset="toy", name="toys-concat-seed0", overrides=[*settings, "fusion=concat"])
    torch.set_num_threads(threads)
    for split in ("val", "test"):
        api.captions_of(workspace, "toys-concat-seed0", split)
    for name in ("toys-concat-seed1", "toys-lr=1,2-seed0", "toys-lr=1,2-seed1", "plain"):
        shutil.copytree(workspace.run("toys-concat-seed0"), workspace.run(name))
        change_config(workspace.run(name), seed=int(name.endswith("seed1")))
    captions = workspace.run("plain") / "captions" / "test.json"
    other = [{**row, "caption": "a red thing"} for row in json.loads(captions.read_text(encoding="utf-8"))]
    captions.write_text(json.dumps(other), encoding="utf-8")
    return workspace


@pytest.fixture
def used(trained: Workspace, tmp_path: Path) -> Workspace:
    """A copy to write to."""
    shutil.copytree(trained.root, tmp_path / "used")
    return Workspace(tmp_path / "used")


# -- files -------------------------------------------------------------------------------------------------------------


def test_files_are_compared_and_the_method_told(avpipe: Avpipe, files: Path) -> None:
    words = (files / "base.json", files / "ours.json", files / "[b] :smile:.json")
    said = avpipe("compare", *words, "--references", files / "references.json", *QUICK, "--examples", 1)
    assert said.status == 0
    assert "[b] :smile:" in said.out  # neither markup nor emoji is made of a name
    assert "paired bootstrap, 200 resamples of 12 clips, seed 0; intervals hold 95 %; p is two-sided" in said.out
    assert "one checkpoint a system: what is claimed is about these checkpoints" in said.out
    assert "n:12/12|refs:2|split:references@" in said.out
    assert "12 clips are few" in said.out
    assert "  base: a dog\n" in said.out
    assert "  reference: a dog barks 0 times\n" in said.out


def test_json_is_what_the_functions_say(avpipe: Avpipe, files: Path) -> None:
    from avpipe.eval import Scorer
    from avpipe.eval.coco import read_results

    said = avpipe(
        "compare", files / "base.json", files / "ours.json", "--references", files / "references.json", *QUICK, "--json"
    )
    scorer = Scorer(REFERENCES, metrics=["cider", "bleu"], split="references")
    known = compare(
        {name: scorer.score(read_results(files / f"{name}.json")) for name in ("base", "ours")}, resamples=200
    )
    assert json.loads(said.out) == {**json.loads(json.dumps(known.to_json())), "examples": []}


@pytest.mark.parametrize(
    ("form", "start"), [("markdown", "| system | CIDEr x 100 |"), ("latex", "% needs \\usepackage{")]
)
def test_forms_for_papers(avpipe: Avpipe, files: Path, form: str, start: str) -> None:
    words = (files / "base.json", files / "ours.json", "--references", files / "references.json", *QUICK)
    said = avpipe("compare", *words, "--format", form, "--percent", "--examples", 1)
    assert said.out.startswith(start)
    before = {"markdown": "    ", "latex": "% "}[form]
    examples = said.out[said.out.index(": CIDEr") :].splitlines()[1:]
    assert f"{before}clip" in said.out
    assert examples
    assert all(line.startswith(before) for line in examples)
    first, _ = said.out.replace("\\%", "%").split("difference", 1)
    assert "brackets: intervals that hold 95 %; " in first  # below the scores, not only below the differences


def test_csv_is_one_table(avpipe: Avpipe, files: Path) -> None:
    words = (files / "base.json", files / "ours.json", "--references", files / "references.json", *QUICK)
    said = avpipe("compare", *words, "--format", "csv", "--baseline", "ours")
    rows = list(csv.DictReader(io.StringIO(said.out)))
    assert len(rows) == 2 * 5
    assert {(row["system"], row["baseline"]) for row in rows} == {("base", "ours"), ("ours", "")}


def test_several_files_are_seeds_of_one_system(avpipe: Avpipe, files: Path) -> None:
    seeds = f"mine={files / 'ours.json'},{files / '[b] :smile:.json'}"
    said = avpipe("compare", files / "base.json", seeds, "--references", files / "references.json", *QUICK, "--json")
    found = json.loads(said.out)
    assert found["systems"] == {"base": 1, "mine": 2}
    assert found["claim"].startswith("several seeds (base 1, mine 2)")


def test_a_picture_is_drawn(avpipe: Avpipe, files: Path) -> None:
    words = (files / "base.json", files / "ours.json", "--references", files / "references.json", *QUICK)
    assert avpipe("compare", *words, "--plot", files / "new" / "x.svg").status == 0
    assert "<svg" in (files / "new" / "x.svg").read_text(encoding="utf-8")
    said = avpipe("compare", "nobody", "--plot", files / "x.jpg")
    assert (said.status, said.out) == (2, "")
    assert "x.jpg: expected a file that ends in .svg, .png, .pdf" in said.err


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ("base.json --references references.json", 2, "expected at least two systems, got base"),
        ("base.json ours.json", 2, "try: --references"),
        (
            "base.json ours.json --references references.json --baseline our",
            2,
            "unknown system 'our' (did you",
        ),
        ("base.json ours.json --references references.json --resamples 9", 2, "with 9 the smallest p"),
        ("base.json ours.json --references references.json --alpha 5", 2, "expected a level between 0 and 1"),
        ("base.json ours.json --references references.json --metrics cidre", 2, "unknown metric 'cidre'"),
        ("base.json ours.json --references references.json -s tset", 2, "unknown split 'tset'"),
        ("base.json ours.json --references references.json -s train", 2, "expected val or test, got train"),
        ("base.json ours.json --references references.json -s val", 2, "got files of predictions only"),
        ("base.json ours.json --references references.json --metrics ,", 2, "--metrics: expected names, several by"),
        ("base.json ours.json --references references.json --json --format latex", 2, "got --format latex, too"),
        ("base.json ours.json --references references.json --format csv --examples 1", 2, "a table for programs"),
        ("base.json ours.json --references references.json --json --percent", 2, "--percent is for people"),
        ("base.json ours.json --references references.json --idf nosuch.json", 1, "nosuch.json"),
        ("base.json ours.json --references references.json --idf train", 2, "idf=train: expected a run"),
        ("base.json ours.json --references references.json --intersect ours.txt", 1, "none of its 1 ids is one of a"),
        ("base.json base.json --references references.json", 2, "two systems are called 'base'"),
        (
            "base.json x=base.json --references references.json",
            2,
            "once, got more of base.json",
        ),
        ("base.json x=ours.json,base.jso --references references.json", 2, "unknown run 'base.jso'"),
        ("base.json nope --references references.json", 2, "unknown run 'nope'; known: none. There is no file of that"),
        ("base.json nope* --references references.json", 2, "unknown run 'nope*'"),
        ("base.json few.json --references references.json", 1, "11 clips have no caption"),
        ("base.json x=ours.json,other.json --test randomisation --references references.json", 2, "several seeds of x"),
        ("base.json references.json --references references.json", 1, "references.json"),
    ],
)
def test_one_clear_message(
    avpipe: Avpipe, files: Path, monkeypatch: pytest.MonkeyPatch, words: str, status: int, message: str
) -> None:
    (files / "ours.txt").write_text("nobody\n", encoding="utf-8")
    (files / "few.json").write_text(json.dumps({"clip0": "a dog"}), encoding="utf-8")
    (files / "other.json").write_text((files / "ours.json").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(files)
    said = avpipe("compare", *words.split())
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert message in said.err
    assert said.status == status


def test_a_single_clip_says_nothing(avpipe: Avpipe, tmp_path: Path) -> None:
    for name, value in (("r", {"a": ["a dog"]}), ("x", {"a": "a dog"}), ("y", {"a": "dogs"})):
        (tmp_path / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    said = avpipe("compare", tmp_path / "x.json", tmp_path / "y.json", "--references", tmp_path / "r.json", *QUICK)
    assert said.status == 1
    assert "expected at least two clips, got one" in said.err


# -- runs --------------------------------------------------------------------------------------------------------------


def test_which_runs_are_meant(trained: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("theirs.v2.json").touch()

    def meant(*words: str) -> dict[str, list[str]]:
        return {name: [str(source) for source in sources] for name, sources in named_systems(trained, words).items()}

    concat, lr = ["toys-concat-seed0", "toys-concat-seed1"], ["toys-lr=1,2-seed0", "toys-lr=1,2-seed1"]
    assert meant("plain", "theirs.v2.json") == {"plain": ["plain"], "theirs.v2": ["theirs.v2.json"]}
    assert meant("toys-*") == {"toys-concat": concat, "toys-lr=1,2": lr}
    assert meant("toys-lr=1,2-seed0", "one=toys-lr=1,2-seed1") == {lr[0]: lr[:1], "one": lr[1:]}
    assert meant("ours=toys-concat-*", "x=toys-lr=1,2-seed?") == {"ours": concat, "x": lr}
    assert meant("ours=toys-concat-seed1,theirs.v2.json,plain") == {"ours": [concat[1], "theirs.v2.json", "plain"]}


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (["plian"], UnknownNameError, r"unknown run 'plian' \(did you mean 'plain'\?\)"),
        (["x="], UnknownNameError, "unknown run 'x='"),
        (["x=plain,"], UnknownNameError, "unknown run ''"),
        ([f"x={','.join(['plain'] * 99)}"], UsageError, "once, got more of plain"),  # too long for a file's name
        (["x=toys-*-seed7"], UnknownNameError, r"unknown run 'toys-\*-seed7'"),
        (["plain", "toys-*", "plain=toys-concat-seed0"], UsageError, "two systems are called 'plain'"),
        (["a=plain", "b=plain"], UsageError, "expected each run and file once, got more of plain"),
    ],
)
def test_what_no_run_can_be_meant_by(trained: Workspace, words: list[str], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        named_systems(trained, words)


def test_runs_are_compared_and_every_look_is_noted(avpipe: Avpipe, used: Workspace) -> None:
    said = avpipe("compare", "plain", "ours=toys-concat-*", *QUICK, "--json", "-w", used.root)
    assert said.status == 0
    found = json.loads(said.out)
    assert found["systems"] == {"plain": 1, "ours": 2}
    assert found["protocol"].startswith("n:3/3|refs:2|split:test@")
    for run in ("plain", "toys-concat-seed0", "toys-concat-seed1"):
        (line,) = (used.run(run) / "test_access.log").read_text(encoding="utf-8").splitlines()
        assert line.endswith(f" compare test of {run}")
    assert "plain: look number 1 at test of run 'plain' (test_access.log)" in found["notes"]
    assert not (used.run("toys-lr=1,2-seed0") / "test_access.log").exists()


def test_a_look_at_val_is_not_noted_and_scores_are_those_of_score(avpipe: Avpipe, used: Workspace) -> None:
    said = avpipe("compare", "plain", "toys-concat-seed0", *QUICK, "-s", "val", "--json", "-w", used.root)
    known = avpipe("score", "--run", "plain", "-s", "val", "--metrics", "cider", "--json", "-w", used.root)
    cider = json.loads(said.out)["standings"]["plain"]["CIDEr"]["score"]
    assert cider == pytest.approx(json.loads(known.out)["scores"]["CIDEr"])
    assert not (used.run("plain") / "test_access.log").exists()


def is_looked_at(workspace: Workspace) -> bool:
    return any((workspace.run(run) / "test_access.log").exists() for run in workspace.runs())


def test_what_cannot_be_compared_is_no_look(avpipe: Avpipe, used: Workspace, tmp_path: Path) -> None:
    clips = {row["image_id"] for row in json.loads((used.run("plain") / "captions" / "test.json").read_text("utf-8"))}
    few = tmp_path / "few.json"
    few.write_text(json.dumps({min(clips): "a red thing"}), encoding="utf-8")
    (tmp_path / "ids.txt").write_text("nobody\n", encoding="utf-8")
    shutil.rmtree(used.run("toys-concat-seed1") / "checkpoints")
    for words, message in (
        (("plain", "toys-concat-seed1"), "toys-concat-seed1"),
        (("plain", few), "2 clips have no caption"),
        (("plain", few, "--missing", "drop"), f"plain and {few} were scored on other clips: 2 are of one of them only"),
        (("plain", "toys-concat-seed0", "--idf", tmp_path / "nosuch.json"), "nosuch.json"),
        (("plain", "toys-concat-seed0", "--intersect", tmp_path / "ids.txt"), "none of its 1 ids is one of a clip"),
        (("plain", "toys-concat-seed0", "-s", "train"), "expected val or test, got train"),
    ):
        said = avpipe("compare", *words, *QUICK, "-w", used.root)
        assert said.status in (1, 2)
        assert message in said.err
    assert not is_looked_at(used)
    assert avpipe("compare", "plain", "toys-concat-seed0", *QUICK, "-w", used.root).status == 0
    assert is_looked_at(used)


def test_a_look_is_noted_whatever_the_references_are_from(avpipe: Avpipe, used: Workspace, tmp_path: Path) -> None:
    rows = json.loads((used.run("plain") / "captions" / "test.json").read_text(encoding="utf-8"))
    # Of two of the three clips: what runs say of the third is left out.
    references = {row["image_id"]: ["a red thing", "something"] for row in rows[:2]}
    (tmp_path / "refs.json").write_text(json.dumps(references), encoding="utf-8")
    words = ("--references", tmp_path / "refs.json", *QUICK, "--json", "-w", used.root)
    said = avpipe("compare", "plain", "toys-concat-seed0", *words)
    assert json.loads(said.out)["protocol"].startswith("n:2/2|refs:2|split:refs@")
    assert is_looked_at(used)


def test_runs_that_are_no_seeds_of_one_system_are_refused(avpipe: Avpipe, used: Workspace) -> None:
    change_config(used.run("toys-concat-seed1"), seed=0)
    said = avpipe("compare", "plain", "ours=toys-concat-*", *QUICK, "-w", used.root)
    assert (said.status, said.out) == (2, "")
    assert "toys-concat-seed0 and toys-concat-seed1 both have train.seed=0" in said.err
    change_config(used.run("toys-concat-seed1"), seed=1, lr=0.5)
    said = avpipe("compare", "plain", "ours=toys-concat-*", *QUICK, "-w", used.root)
    assert said.status == 2
    assert "expected runs that differ in their seed alone" in said.err
    assert "toys-concat-seed0 and toys-concat-seed1 differ in train.lr: 0.002 and 0.5. Try" in said.err
    assert not is_looked_at(used)
    # What changes no weight may differ, and what each seed starts from; as systems of their own they are compared.
    change_config(used.run("toys-concat-seed1"), lr=0.002, log_every=7, init_from="first-seed1")
    assert avpipe("compare", "plain", "ours=toys-concat-*", *QUICK, "-w", used.root).status == 0


def test_word_weights_and_clips_are_chosen_as_for_score(avpipe: Avpipe, used: Workspace, tmp_path: Path) -> None:
    rows = json.loads((used.run("plain") / "captions" / "test.json").read_text(encoding="utf-8"))
    (tmp_path / "ids.txt").write_text("".join(f"{row['image_id']}\n" for row in rows[:2]), encoding="utf-8")
    more = ("--idf", "train", "--intersect", tmp_path / "ids.txt", "--json", "-w", used.root)
    found = json.loads(avpipe("compare", "plain", "toys-concat-seed0", *QUICK, *more).out)
    known = json.loads(avpipe("score", "--run", "plain", "--metrics", "cider,bleu", *more).out)
    assert found["signatures"] == known["signatures"]
    assert "idf:refs" not in known["signatures"]["CIDEr"]
    assert found["protocol"].startswith("n:2/2|refs:2|split:test-within-ids@")
    assert {name: each["score"] for name, each in found["standings"]["plain"].items()} == known["scores"]
    assert "2 of the 2 ids in ids.txt are clips here" in found["notes"]


def test_word_weights_of_files_are_counted_in_a_file(avpipe: Avpipe, files: Path) -> None:
    other = {str(number): [f"a dog {word}"] for number, word in enumerate(["barks", "runs", "sits", "sleeps"])}
    (files / "other.json").write_text(json.dumps(other), encoding="utf-8")
    words = (files / "base.json", files / "ours.json", "--references", files / "references.json", *QUICK, "--json")
    plain, found = (json.loads(avpipe("compare", *words, *idf).out) for idf in ((), ("--idf", files / "other.json")))
    assert "|idf:refs|" in plain["signatures"]["CIDEr"]
    assert "|idf:refs|" not in found["signatures"]["CIDEr"]
    assert plain["differences"][0]["difference"] != found["differences"][0]["difference"]


def test_examples_are_by_a_score_that_is_tested(avpipe: Avpipe, files: Path) -> None:
    words = (files / "base.json", files / "ours.json", "--references", files / "references.json", "--examples", 1)
    said = avpipe("compare", *words, "--metrics", "diversity,rouge_l", "--resamples", 200)
    assert ": ROUGE_L +" in said.out


def test_what_is_mistyped_is_no_look(avpipe: Avpipe, used: Workspace) -> None:
    for words in (["--metrics", "cidre"], ["--baseline", "nobody"], ["--alpha", "2"], ["--plot", "x.doc"]):
        assert avpipe("compare", "plain", "toys-concat-seed0", *words, "-w", used.root).status == 2
    assert not (used.run("plain") / "test_access.log").exists()


def test_a_run_and_a_file_of_another_model(avpipe: Avpipe, used: Workspace, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.json"
    shutil.copy(used.run("plain") / "captions" / "test.json", theirs)
    said = avpipe("compare", "plain", theirs, *QUICK, "--json", "-w", used.root)
    found = json.loads(said.out)
    assert {(each["difference"], each["p"]) for each in found["differences"]} == {(0.0, 1.0)}


def test_runs_of_datasets_with_other_references_are_refused(
    avpipe: Avpipe, used: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest.write(used.manifest("other"), manifest.read(used.manifest("toy")).clips[:-1], media_root=used.root)
    read = checkpoint.read

    def other(folder: Path) -> Any:
        config, *rest = read(folder)
        is_plain = folder.parents[1].name == "plain"
        return (config.model_copy(update={"dataset": "other"}) if is_plain else config, *rest)

    monkeypatch.setattr(checkpoint, "read", other)
    said = avpipe("compare", "plain", "toys-concat-seed0", *QUICK, "-w", used.root)
    assert (said.status, said.out) == (2, "")
    assert "plain and toys-concat-seed0 cannot be compared: the test splits of 'other' and 'toy'" in said.err
    assert not (used.run("plain") / "test_access.log").exists()


# -- score -------------------------------------------------------------------------------------------------------------


def test_score_gives_intervals_and_forms(avpipe: Avpipe, files: Path) -> None:
    words = ("-p", files / "ours.json", "--references", files / "references.json", "--metrics", "cider")
    plain = json.loads(avpipe("score", *words, "--json").out)
    found = json.loads(avpipe("score", *words, "--json", "--intervals").out)
    low, high = found.pop("intervals")["CIDEr"]
    assert found == plain
    assert low < plain["scores"]["CIDEr"] < high
    shown = f"[{low:.4f}, {high:.4f}]"
    said = avpipe("score", *words, "--intervals").out
    assert shown in said
    assert "intervals hold 95 %: bootstrap of the clips, 10,000 resamples, seed 0" in said.splitlines()
    cider = f"{plain['scores']['CIDEr']:.4f}"
    lines = avpipe("score", *words, "--intervals", "--format", "markdown").out.splitlines()
    assert lines[:3] == [
        "| metric | score | 95 % interval |",
        "| --- | ---: | ---: |",
        f"| CIDEr | {cider} | {shown} |",
    ]
    exact = plain["scores"]["CIDEr"]
    line = f"CIDEr,{exact!r},{low!r},{high!r},{plain['signatures']['CIDEr']}"
    said = avpipe("score", *words, "--format", "csv", "--intervals").out
    assert said.splitlines() == ["metric,score,low,high,signature", line]
    assert f"CIDEr,{exact!r},,,CIDEr|" in avpipe("score", *words, "--format", "csv").out
    assert r"\toprule" in avpipe("score", *words, "--format", "latex").out
