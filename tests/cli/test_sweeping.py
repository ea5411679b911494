"""Sweeps: every run is an ordinary one, whatever happens to its neighbours; and the leaderboard counts rightly."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from avpipe import api
from avpipe.api import sweep_worker
from avpipe.api.leaderboard import Spread, failure_file, is_trained
from avpipe.api.sweep_worker import visible
from avpipe.api.sweeping import _devices
from avpipe.data_manifests import manifest
from avpipe.pipeline.config import write_yaml
from avpipe.pipeline.errors import AvpipeError, TrainingError, UsageError
from avpipe.pipeline.files import write_json
from avpipe.pipeline.runner import Died, Event, Progress, Started
from avpipe.pipeline.workspace import Workspace
from tests.cli import sweep_toys as toys
from tests.cli.conftest import Avpipe

GRID: dict[str, Any] = {
    "dataset": "toy",
    "grid": {"fusion": ["concat", "qformer"], "tokenizer.name": ["trained", "/nowhere"], "seed": [0, 1]},
    "exclude": [{"fusion": "qformer", "tokenizer.name": "/nowhere"}],
}
TRAINED = {f"toys-{fusion}-tokenizer.name=trained-seed{seed}" for fusion in ("concat", "qformer") for seed in (0, 1)}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Features and no runs. Not to be written to."""
    return toys.workspace(tmp_path_factory.mktemp("plain") / "workspace")


@pytest.fixture
def used(plain: Workspace, tmp_path: Path) -> Workspace:
    """A copy of :func:`plain` to write to."""
    shutil.copytree(plain.root, tmp_path / "used")
    return Workspace(tmp_path / "used")


class Swept:
    """A sweep by one process, which is killed in its third run, just after its first step."""

    def __init__(self, workspace: Workspace, folder: Path) -> None:
        self.workspace, self.path = workspace, toys.grid(folder, **GRID)
        self.sweep = api.sweep(workspace, self.path)
        self.events: list[Event] = []
        self.killed = ""
        self.planned: dict[str, int] = {}
        self.report = self.sweep.run(jobs=1, gpus=0, on_plan=self.planned.update, on_event=self._on_event)

    def _on_event(self, event: Event) -> None:
        self.events.append(event)
        begun = {event.task for event in self.events if isinstance(event, Started)}
        is_step = isinstance(event, Progress) and event.data["event"] == "step"
        if isinstance(event, Progress) and is_step and len(begun & TRAINED) == 3 and not self.killed:
            self.killed = event.task
            (worker,) = [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]
            worker.kill()


@pytest.fixture(scope="module")
def swept(plain: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """Not to be written to."""
    folder = tmp_path_factory.mktemp("swept")
    shutil.copytree(plain.root, folder / "workspace")
    return Swept(Workspace(folder / "workspace"), folder)


def rows(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what may differ."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "data_seconds"} for line in lines]


# -- the whole of it ---------------------------------------------------------------------------------------------------


def test_what_fails_stops_no_other_and_says_why(swept: Swept) -> None:
    assert set(swept.report.worked) == TRAINED
    assert set(swept.report.failed) == {f"toys-concat-tokenizer.name=-nowhere-{x}" for x in _ends(swept)}
    assert all("tokenizer '/nowhere' is neither a local folder" in why for why in swept.report.failed.values())
    board = swept.sweep.leaderboard()
    assert {cell.run for cell in board.cells if cell.state == "finished"} == TRAINED
    (failed,) = [row for row in board.rows if "failed" in row.states]
    assert failed.state == "0 of 2 finished, 2 failed"
    assert "tokenizer '/nowhere'" in failed.reasons[0]


def _ends(swept: Swept) -> list[str]:
    """The hash of a value that no folder can be called, and the seed."""
    return [name.rpartition("nowhere-")[2] for name in swept.report.failed]


def test_one_that_was_killed_goes_on(swept: Swept) -> None:
    assert [event.reason for event in swept.events if isinstance(event, Died)] == [
        "was killed (SIGKILL; often by the system, when memory is short)"
    ]
    assert swept.killed in swept.report.worked


@pytest.mark.parametrize("which", ["killed", "left in peace"])
def test_a_run_is_what_train_makes(swept: Swept, used: Workspace, which: str) -> None:
    name = swept.killed if which == "killed" else next(name for name in swept.report.worked if name != swept.killed)
    (cell,) = [cell for cell in swept.sweep.grid.cells if cell.run == name]
    _, result = api.train(used, recipe=cell.recipe, overrides=cell.overrides, name=name)
    there, here = swept.workspace.run(name), used.run(name)
    assert rows(there) == rows(here)
    assert len(rows(here)) == 31
    assert result.step == swept.planned[name] == 30
    same = ["config.yaml", "env.json", "captions/val.json", "captions/val.checkpoint"]
    same += [
        f"checkpoints/{which}/{file}" for which in ("best", "last") for file in ("model.safetensors", "config.json")
    ]
    for file in same:
        assert (there / file).read_bytes() == (here / file).read_bytes(), file
    assert {path.relative_to(there) for path in there.rglob("*")} == {
        path.relative_to(here) for path in here.rglob("*")
    }


def test_what_is_finished_is_skipped_and_only_the_rest_is_tried_again(
    swept: Swept, avpipe: Avpipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(swept.workspace.root, tmp_path / "again")
    again = Workspace(tmp_path / "again")
    before = {path: path.stat().st_mtime_ns for path in (again.root / "runs").rglob("*")}
    tried: list[str] = []

    def run(tasks: Any, *_: object, **__: object) -> Any:
        tried.extend(task.name for task in tasks)
        raise AvpipeError("no process today")

    monkeypatch.setattr("avpipe.pipeline.runner.run", run)
    said = avpipe("sweep", swept.path, "--jobs", 1, "-w", again.root)
    assert said.status == 1
    assert said.err.endswith("error: no process today\n")
    assert set(tried) == set(swept.report.failed)
    # without those that fail, there is nothing to do
    content = {**GRID, "exclude": [{"tokenizer.name": "/nowhere"}]}
    said = avpipe("sweep", toys.grid(tmp_path, **content), "-w", again.root)
    assert said.status == 0, said.err
    assert said.out.startswith("| fusion | tokenizer.name | CIDEr | parameters | minutes | peak memory | state |\n")
    assert {path: path.stat().st_mtime_ns for path in (again.root / "runs").rglob("*")} == before
    written = json.loads((again.sweep("toys") / "leaderboard.json").read_text(encoding="utf-8"))
    assert len(written["cells"]) == 4
    assert (again.sweep("toys") / "leaderboard.csv").exists()


def test_the_test_split_is_scored_when_asked_and_noted(
    swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avpipe.eval.DEFAULT", ("cider",))  # METEOR reads 60 MB first
    shutil.copytree(swept.workspace.root, tmp_path / "again")
    workspace = Workspace(tmp_path / "again")
    monkeypatch.setattr("avpipe.pipeline.runner.run", _here)
    sweep = api.sweep(workspace, swept.path)
    assert sweep.leaderboard("test").rows[0].scores == {}
    report = sweep.run(split="test", is_to_train=False, jobs=1, gpus=0)
    assert (set(report.worked), report.failed) == (TRAINED, {})
    for name in TRAINED:
        assert len((workspace.run(name) / "test_access.log").read_text(encoding="utf-8").splitlines()) == 1
    board = sweep.leaderboard("test")
    assert [row.scores["CIDEr"].n for row in board.rows[:2]] == [2, 2]
    assert board.rows[0].scores["CIDEr"].mean >= board.rows[1].scores["CIDEr"].mean
    # once scored, nobody looks again
    assert sweep.run(split="test", is_to_train=False, jobs=1, gpus=0).worked == ()
    # ... unless the captions are those of another checkpoint, or a metric is missing
    first, second, *_ = (workspace.run(name) for name in sorted(TRAINED))
    (first / "captions" / "test.checkpoint").write_text(f"{first.name}@9")
    later = (first / "captions" / "test.checkpoint").stat().st_mtime + 9
    os.utime(first / "scores" / "test.json", (later, later))
    values = json.loads((second / "scores" / "test.json").read_text(encoding="utf-8"))
    (second / "scores" / "test.json").write_text(json.dumps({**values, "scores": {"Bleu_1": 0.5}}))
    assert [cell.run for cell in sweep.leaderboard("test").cells if cell.state == "finished" and not cell.scores] == [
        first.name, second.name
    ]  # fmt: skip
    assert set(sweep.run(split="test", is_to_train=False, jobs=1, gpus=0).worked) == {first.name, second.name}
    with pytest.raises(UsageError, match="expected val or test, got train"):
        sweep.leaderboard("train")


def _here(tasks: Any, make_worker: Any, **_: object) -> Any:
    """A runner without processes."""
    from avpipe.pipeline.runner import RunReport

    told = Told()
    make_worker(0)(iter(tasks), told)
    return RunReport(done=tuple(told.finished))


class Told:
    """What a worker told."""

    def __init__(self) -> None:
        self.progressed: list[tuple[str, Mapping[str, Any]]] = []
        self.finished: dict[str, Mapping[str, int]] = {}
        self.planned: dict[str, int] = {}

    def progress(self, task: str, data: Mapping[str, Any]) -> None:
        self.progressed.append((task, data))

    def done(self, task: str, counts: Mapping[str, int]) -> None:
        self.finished[task] = counts


def test_ray_trains_the_same(swept: Swept, used: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    grid = {"fusion": ["qformer"], "tokenizer.name": ["trained"], "seed": [0]}
    sweep = api.sweep(used, toys.grid(tmp_path, dataset="toy", grid=grid))
    report = sweep.run(jobs=1, gpus=0, engine="ray")
    assert report.failed == {}
    (name,) = report.worked
    assert rows(used.run(name)) == rows(swept.workspace.run(name))


# -- in the process ----------------------------------------------------------------------------------------------------


@pytest.fixture
def work(used: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a grid by one worker in this process; gives what it told."""
    told = Told()

    def run(tasks: Any, make_worker: Any, **_: object) -> Any:
        from avpipe.pipeline.runner import RunReport

        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        make_worker(0)(iter(tasks), told)
        return RunReport(done=tuple(told.finished))

    monkeypatch.setattr("avpipe.pipeline.runner.run", run)

    def work(**content: Any) -> tuple[Any, Told]:
        sweep = api.sweep(used, toys.grid(tmp_path, dataset="toy", **content))
        return sweep.run(jobs=1, gpus=0, on_plan=told.planned.update), told

    return work


def test_steps_are_counted_as_the_loop_counts_them(work: Any, used: Workspace) -> None:
    """Also where the captions of the clip that follows are items: 20 clips of two, 19 of which are followed. That makes
    10 and 20 batches, and 4 and 7 steps.
    """
    few = {"train.epochs": 1, "train.batch_size": 4, "train.accumulate": 3, "train.captions_per_clip": "each"}
    report, told = work(set=few, grid={"train.targets": [["current"], ["current", "next"]]})
    assert set(told.planned.values()) == {4, 7}
    for name in report.worked:
        assert json.loads((used.run(name) / "result.json").read_text())["step"] == told.planned[name]


def test_the_longest_run_is_begun_first_whatever_its_steps(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_worker, "train_run", lambda *_, **__: SimpleNamespace(best_score=None))
    _, told = work(set={"train.max_steps": 20}, grid={"train.accumulate": [1, 3]})
    assert list(told.planned.items()) == [("toys-accumulate=3", 10), ("toys-accumulate=1", 20)]  # 240 clips, and 160


def test_a_process_may_run_in_another_folder(plain: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(plain.root, tmp_path / "used")
    monkeypatch.chdir(tmp_path)

    def run(tasks: Any, make_worker: Any, **more: object) -> Any:
        monkeypatch.chdir("/")
        return _here(tasks, make_worker, **more)

    monkeypatch.setattr("avpipe.pipeline.runner.run", run)
    path = toys.grid(tmp_path, dataset="toy", set={"train.epochs": 1, "train.cache_features": "no"})
    report = api.sweep(Workspace(Path("used")), path).run(jobs=1, gpus=0)
    assert (report.worked, report.failed) == (("toys",), {})


def test_a_bug_ends_the_process_and_leaves_its_traceback(
    work: Any, used: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that is foreseen does not: the next run is begun."""
    trained: list[str] = []

    def train_run(workspace: Workspace, name: str, *_: object, **__: object) -> None:
        trained.append(name)
        raise {1: TrainingError("the loss is nan"), 2: ValueError("shapes")}[len(trained)]

    monkeypatch.setattr(sweep_worker, "train_run", train_run)
    report, told = work(grid={"seed": [0, 1, 2]})
    assert trained == ["toys-seed0", "toys-seed1"]  # the third is for the process that comes next
    assert told.finished == {"toys-seed0": {"failed": 1}, "toys-seed1": {"failed": 1}}
    assert report.failed == {"toys-seed0": "the loss is nan", "toys-seed1": "ValueError: shapes"}
    whole = failure_file(used, "toys", "toys-seed1").read_text(encoding="utf-8")
    assert "in train_run\n" in whole
    assert "Traceback" in whole


def test_precisions_share_a_process(work: Any, used: Workspace) -> None:
    """Where accelerate has one for the whole process."""
    report, told = work(
        set={"train.epochs": 1}, grid={"train.precision": ["fp32", "bf16"], "train.cache_features": ["no"]}
    )
    assert report.failed == {}
    assert list(told.finished.values()) == [{"finished": 1}] * 2
    seen = [json.loads((used.run(name) / "env.json").read_text())["mixed_precision"] for name in report.worked]
    assert seen == ["no", "bf16"]


def test_manifest_and_features_are_read_once_and_tokenizers_trained_once(
    work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from avpipe.pipeline.store import FeatureSet

    reads, made, parsed = [], [], []
    read, new_tokenizer, parse = FeatureSet.read, sweep_worker.new_tokenizer, manifest.read
    monkeypatch.setattr(manifest, "read", lambda *given, **more: parsed.append(given) or parse(*given, **more))
    monkeypatch.setattr(FeatureSet, "read", lambda *given: reads.append(given[1:]) or read(*given))
    monkeypatch.setattr(sweep_worker, "new_tokenizer", lambda *given: made.append(given) or new_tokenizer(*given))
    report, _ = work(set={"train.epochs": 1}, grid={"seed": [0, 1], "tokenizer.vocabulary_size": [300, 400]})
    assert len(report.worked) == 4
    assert len(made) == 2
    assert len(parsed) == 1
    of_a_look, of_the_clips = 2 * 8, 2 * 26  # whether they fit, is asked of eight clips
    assert len(reads) <= 2 * of_a_look + of_the_clips


def test_a_process_sees_one_device() -> None:
    assert visible("cpu", None) == visible("cpu", "0,1") == ""
    assert visible("cuda:1", None) == "1"
    assert visible("cuda:1", "4,6") == "6"


def test_jobs_share_what_there_is() -> None:
    assert _devices(("cpu",), None, lambda: 5) == (("cpu",) * 5, 0.0)
    assert _devices(("cpu", "cpu"), 3, lambda: 5) == (("cpu",) * 3, 0.0)
    assert _devices(("cuda:0", "cuda:1"), None, lambda: 5) == (("cuda:0", "cuda:1"), 1.0)
    assert _devices(("cuda:0", "cuda:1"), 3, lambda: 5) == (("cuda:0", "cuda:1", "cuda:0"), 0.5)


# -- before anything starts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        ({"grid": {"fusion": ["coattention"], "fusion.pool": ["post"], "objectives.contrastive.weight": [0, 0.5],
                   "modalities": [["video"], ["video", "audio"]]}},
         ["objectives.contrastive: ", "1 of 4 cells are wrong; to go on with the others"]),
        ({"grid": {"modalities": [["text"], ["video"]]}}, ["[modalities=text] no feature set of 'toy' is of modality"]),
        ({"grid": {"features": [["eyes"], ["nose"]]}}, ["unknown feature set 'nose'; known: ears, eyes"]),
        ({"dataset": "toi"}, ["unknown dataset 'toi' (did you mean 'toy'?)"]),
        ({"grid": {"modalities": [["video", "audio"], []]}}, ["2 cells are one and the same training"]),
        ({"grid": {"objectives.contrastive.weight": [0, 0.0]}}, ["2 cells are one and the same training"]),
        ({"set": {"train.init_from": "gone"}}, ["unknown run 'gone'"]),
        ({"name": "../up"}, ["name of a sweep: expected letters"]),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_before_anything_starts(
    avpipe: Avpipe, plain: Workspace, tmp_path: Path, content: dict[str, Any], faults: list[str]
) -> None:
    said = avpipe("sweep", toys.grid(tmp_path, **{"dataset": "toy", **content}), "-w", plain.root)
    assert said.status == 2
    for fault in faults:
        assert fault in said.err
    assert not (plain.root / "runs").exists()


def test_runs_with_other_settings_are_left_alone(swept: Swept, avpipe: Avpipe, tmp_path: Path) -> None:
    other = {**GRID, "set": {"train.lr": 0.5}, "exclude": [{"tokenizer.name": "/nowhere"}]}
    said = avpipe("sweep", toys.grid(tmp_path, **other), "-w", swept.workspace.root)
    assert said.status == 2
    for name in TRAINED:
        assert f"run '{name}' has other settings, train.lr: 0.002 against 0.5; give the sweep another name" in said.err


def test_two_processes_do_not_sweep_at_once(swept: Swept, tmp_path: Path, avpipe: Avpipe) -> None:
    with (swept.sweep.folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        said = avpipe("sweep", swept.path, "-w", swept.workspace.root)
        assert said.status == 1
        assert "sweep 'toys' is being run by another process. --leaderboard shows how far it is" in said.err
        assert avpipe("sweep", swept.path, "--leaderboard", "-w", swept.workspace.root).status == 0


# -- the leaderboard ---------------------------------------------------------------------------------------------------


def settle(workspace: Workspace, cell: Any, **changes: Any) -> None:
    """Write the configuration of a run as a training of a cell would, with some changes."""
    config = cell.config.model_copy(update={"dataset": "toy", "features": ("eyes", "ears")})
    config = config.model_copy(update={"train": config.train.model_copy(update=changes)})
    folder = workspace.run(cell.run)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(write_yaml(config.model_dump(mode="json")))


@pytest.fixture
def board(plain: Workspace, tmp_path: Path) -> Any:
    """A sweep of three fusions and three seeds, some of which are finished."""
    workspace = Workspace(tmp_path / "board")
    grid = {"fusion": ["concat", "qformer", "cross_attention"], "train.lr": [0.1], "seed": [0, 1, 2]}
    sweep = api.sweep(workspace, toys.grid(tmp_path, grid=grid))
    scores = {"concat": [0.5, 0.7, 0.9], "qformer": [1.5]}
    for fusion, values in scores.items():
        for seed, value in enumerate(values):
            folder = workspace.run(f"toys-{fusion}-lr=0.1-seed{seed}")
            (folder / "captions").mkdir(parents=True)
            (folder / "captions" / "val.checkpoint").write_text(f"{folder.name}@6")
            result = {
                "step": 9, "best_step": 6, "best_score": value, "stopped_early": False, "parameters": 1000 + seed,
                "parameters_total": 2000, "seconds": 60.0 * (seed + 1), "peak_memory_bytes": 10**9 - seed,
            }  # fmt: skip
            (folder / "result.json").write_text(json.dumps(result))
    (begun,) = [cell for cell in sweep.grid.cells if cell.run == "toys-qformer-lr=0.1-seed1"]
    settle(workspace, begun)
    log = '{"step": 4, "loss": 1}\n{"step": 5, "lo'  # is being written
    (workspace.run(begun.run) / "metrics.jsonl").write_text(log)
    failure = failure_file(workspace, "toys", "toys-qformer-lr=0.1-seed2")
    failure.parent.mkdir(parents=True)
    failure.write_text("the loss is nan\n\nTraceback ...\n")
    return sweep


def test_the_leaderboard_counts_rightly(board: Any) -> None:
    found = board.leaderboard()
    assert found.keys == ("fusion",)  # the learning rate has one value
    first, second, third = found.rows
    assert first.choices == {"fusion": "qformer", "train.lr": 0.1}
    assert first.scores["CIDEr"] == Spread(mean=1.5, sd=None, n=1)
    assert first.state == "1 of 3 finished, 1 begun, 1 failed"
    assert first.reasons == ("the loss is nan",)
    assert (second.scores["CIDEr"].mean, second.scores["CIDEr"].n) == (pytest.approx(0.7), 3)
    assert second.scores["CIDEr"].sd == pytest.approx(0.2)  # sqrt((0.04 + 0 + 0.04) / 2)
    assert (second.parameters, second.parameters_total, second.peak_memory_bytes) == (1002, 2000, 10**9)
    assert second.minutes == pytest.approx(2.0)
    assert (third.scores, third.state) == ({}, "0 of 3 finished, 3 waiting")
    by_name = {cell.run: cell for cell in found.cells}
    assert by_name["toys-qformer-lr=0.1-seed1"].step == 5 - 1  # the last whole line


def test_the_leaderboard_is_printed_and_written(board: Any, avpipe: Avpipe, tmp_path: Path) -> None:
    root = board.workspace.root
    said = avpipe("sweep", tmp_path / "toys.yaml", "--leaderboard", "-w", root)
    assert said.status == 0
    lines = said.out.splitlines()
    assert lines[2] == "| qformer | 1.5000 (1) | 1,000 of 2,000 | 1.0 | 1.0 GB | 1 of 3 finished, 1 begun, 1 failed |"
    assert lines[3] == "| concat | 0.7000 ± 0.2000 (3) | 1,002 of 2,000 | 2.0 | 1.0 GB | finished |"
    assert lines[4] == "| cross_attention |  |  |  |  | 0 of 3 finished, 3 waiting |"
    table = (root / "sweeps" / "toys" / "leaderboard.csv").read_text(encoding="utf-8").splitlines()
    assert table[0] == "fusion,CIDEr,CIDEr_sd,CIDEr_n,parameters,minutes,peak_memory_bytes,state"
    assert table[1] == 'qformer,1.5,,1,1000,1.0,1000000000,"1 of 3 finished, 1 begun, 1 failed"'
    assert (root / "sweeps" / "toys" / "leaderboard.md").read_text(encoding="utf-8") in said.out
    as_json = json.loads(avpipe("sweep", tmp_path / "toys.yaml", "--leaderboard", "--json", "-w", root).out)
    assert as_json["rows"][0]["scores"]["CIDEr"] == {"mean": 1.5, "sd": None, "n": 1}
    assert as_json == json.loads((root / "sweeps" / "toys" / "leaderboard.json").read_text(encoding="utf-8"))


def test_a_run_without_its_captions_is_not_finished(board: Any) -> None:
    folder = board.workspace.run("toys-concat-lr=0.1-seed0")
    assert is_trained(folder)
    (folder / "captions" / "val.checkpoint").unlink()  # killed between the training and the captions
    assert not is_trained(folder)


def test_captions_of_another_checkpoint_do_not_finish_a_run(board: Any) -> None:
    folder = board.workspace.run("toys-concat-lr=0.1-seed0")
    (folder / "captions" / "val.checkpoint").write_text(f"{folder.name}@3")  # trained anew, and killed before captions
    assert not is_trained(folder)
    assert {cell.run: cell.state for cell in board.leaderboard().cells}[folder.name] != "finished"


def test_a_run_with_other_settings_is_no_cell_of_the_grid(board: Any, avpipe: Avpipe, tmp_path: Path) -> None:
    by_name = {cell.run: cell for cell in board.grid.cells}
    settle(board.workspace, by_name["toys-concat-lr=0.1-seed0"])
    settle(board.workspace, by_name["toys-concat-lr=0.1-seed1"], epochs=99)
    (_, row, _) = board.leaderboard().rows
    assert (row.scores["CIDEr"].mean, row.scores["CIDEr"].n) == (pytest.approx(0.7), 2)  # of 0.5 and 0.9
    assert row.state == "2 of 3 finished, 1 with other settings"
    assert row.reasons == ("other settings than the grid's: train.epochs: 99 against 10",)


def test_a_damaged_result_is_named(board: Any, avpipe: Avpipe, tmp_path: Path) -> None:
    path = board.workspace.run("toys-concat-lr=0.1-seed0") / "result.json"
    path.write_text("{")
    said = avpipe("sweep", tmp_path / "toys.yaml", "--leaderboard", "-w", board.workspace.root)
    assert said.status == 1
    assert f"{path} is damaged" in said.err


def test_scores_that_were_not_made_alike_are_told_from_the_others(board: Any) -> None:
    names = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")
    for seed in range(3):
        run = board.workspace.run(f"toys-concat-lr=0.1-seed{seed}")
        (run / "captions" / "test.checkpoint").write_text(f"{run.name}@6")
        signatures = {name: f"{name}|n:4/4|missing:error" for name in names}
        write_json(run / "scores" / "test.json", {"scores": dict.fromkeys(names, 0.5 + seed), "signatures": signatures})
    assert board.leaderboard("test").warnings == ()
    path = board.workspace.run("toys-concat-lr=0.1-seed1") / "scores" / "test.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "signatures": {name: f"{name}|n:3/4|missing:drop" for name in names}}))
    (line,) = board.leaderboard("test").warnings
    assert line == (
        f"not scored alike, and not to be compared: {', '.join(names)} of toys-concat-lr=0.1-seed1 "
        "(n:3/4|missing:drop) and of toys-concat-lr=0.1-seed0 (n:4/4|missing:error)"
    )
    assert f"\n{line}\n" in board.leaderboard("test").markdown()
