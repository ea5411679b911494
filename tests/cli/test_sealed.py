"""The test split is sealed: a training is not given it, and every look at it leaves a line."""

from __future__ import annotations

import ast
import fcntl
import gzip
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from avpipe import api
from avpipe.api.sealed import note_look
from avpipe.pipeline.errors import StoreError
from avpipe.pipeline.workspace import Workspace
from tests.cli import sweep_toys as toys
from tests.cli.conftest import Avpipe
from tests.cli.test_sweeping import _here
from tests.train import loop_toys

PACKAGE = Path(__file__).parents[2] / "avpipe"
TRAINING = ("api/training.py", "api/sweeping.py", "api/sweep_worker.py", "train/**/*.py")


READERS = ("avpipe.data_manifests.manifest", "avpipe.api.preparing")
ALLOWED = {"TrainingClips", "read_for_training"}


def reads_clips(source: str) -> bool:
    """Whether a file reads clips in any way but that of a training, by whatever name it calls what it imports."""
    nodes = list(ast.walk(ast.parse(source)))
    modules = {"manifest"}  # names that stand for one of the readers
    packages = set()  # names from which one can be reached by dots
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if node.module in READERS and alias.name not in ALLOWED:
                    return True
                if f"{node.module}.{alias.name}" in READERS:
                    modules.add(alias.asname or alias.name)
                elif any(reader.startswith(f"{node.module}.{alias.name}.") for reader in READERS):
                    packages.add(alias.asname or alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in READERS and alias.asname:
                    modules.add(alias.asname)
                elif alias.name.partition(".")[0] == "avpipe":
                    packages.add(alias.asname or "avpipe")
        elif isinstance(node, ast.Call) and any(
            isinstance(value, ast.Constant) and value.value in READERS for value in node.args
        ):
            return True  # import_module(...)
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr not in ALLOWED:
            *path, module = ast.unparse(node.value).split(".")
            if not path and module in modules:
                return True
            if path and path[0] in packages and module in {reader.rpartition(".")[2] for reader in READERS}:
                return True
    return False


def test_code_that_trains_reads_clips_in_one_way() -> None:
    files = sorted(path for pattern in TRAINING for path in PACKAGE.glob(pattern))
    assert len(files) > 20
    assert [path.name for path in files if reads_clips(path.read_text(encoding="utf-8"))] == []
    assert any("read_for_training" in path.read_text(encoding="utf-8") for path in files)


@pytest.mark.parametrize(
    "source",
    [
        "manifest.read(path, splits=['test'])",
        "from avpipe.data_manifests.manifest import read",
        "from avpipe.api.preparing import clips_of",
        "from avpipe.data_manifests.manifest import *",
        "from avpipe.data_manifests import manifest as m\nm.read(path)",
        "from avpipe.data_manifests import manifest\nread = manifest.read",
        "import avpipe.data_manifests.manifest as m\nm.read(path)",
        "import avpipe.data_manifests.manifest\navpipe.data_manifests.manifest.read(path)",
        "from avpipe import data_manifests\ndata_manifests.manifest.read(path)",
        "from avpipe.api import preparing\npreparing.clips_of(workspace)",
        "importlib.import_module('avpipe.data_manifests.manifest').read(path)",
    ],
)
def test_code_that_trains_reads_clips_in_one_way_fails(source: str) -> None:
    assert reads_clips(source)


@pytest.mark.parametrize(
    "source",
    [
        "from avpipe.data_manifests import manifest as m\nm.read_for_training(path)",
        "from avpipe.data_manifests.manifest import TrainingClips",
        "path.read(); config.manifest",
    ],
)
def test_a_training_may_read_as_a_training(source: str) -> None:
    assert not reads_clips(source)


@pytest.mark.parametrize("place", ["train_clips", "val_clips"])
def test_the_loop_refuses_clips_of_test(tmp_path: Path, place: str) -> None:
    from avpipe.train.loop import train

    given = {"train_clips": loop_toys.clips(4), "val_clips": loop_toys.clips(2, "val")}
    given[place] = [*given[place], *loop_toys.clips(1, "test")]
    with pytest.raises(ValueError, match="expected none of the test split, which is sealed, got 'test0'"):
        train(loop_toys.config(), sources=loop_toys.sources(*given.values()), run_folder=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def sealed(workspace: Workspace) -> None:
    """Make a row of the test split one that cannot be made a clip: whoever reads its captions falls over them."""
    path = workspace.manifest("toy")
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    for row in rows:
        if row["split"] == "test":
            row["captions"] = {"the secret": "captions"}
    path.write_bytes(gzip.compress("".join(f"{json.dumps(row)}\n" for row in rows).encode()))


def test_a_training_never_reads_test_captions(avpipe: Avpipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = toys.workspace(tmp_path / "sealed")
    sealed(workspace)
    quick = {**toys.SETTINGS, "train.epochs": 1, "train.validate_every": 1}
    overrides = [f"{key}={json.dumps(value)}" for key, value in quick.items()]
    said = avpipe("train", "--name", "tiny", *overrides, "-w", workspace.root)
    assert said.status == 0, said.err
    monkeypatch.setattr("avpipe.pipeline.runner.run", _here)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    grid = toys.grid(tmp_path, dataset="toy", set={"train.epochs": 1, "train.validate_every": 1}, grid={"seed": [0]})
    report = api.sweep(workspace, grid).run(jobs=1, gpus=0)
    assert (len(report.worked), report.failed) == (1, {})
    # whoever does read them, falls over them
    said = avpipe("score", "--run", "tiny", "--metrics", "cider", "-w", workspace.root)
    assert said.status == 1
    assert "captions of 'test0': expected a list, got {'the secret': 'captions'}" in said.err


def test_looks_are_counted(tmp_path: Path) -> None:
    assert [note_look(tmp_path, f"score test of {name}") for name in "abc"] == [1, 2, 3]
    lines = (tmp_path / "test_access.log").read_text(encoding="utf-8").splitlines()
    assert [line.partition(" ")[2] for line in lines] == ["score test of a", "score test of b", "score test of c"]
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00 ", line) for line in lines)


def test_a_look_is_one_line_whatever_it_is_for(tmp_path: Path) -> None:
    assert note_look(tmp_path, "within a\nlist \udcff of ids") == 1
    assert note_look(tmp_path, "x") == 2
    text = (tmp_path / "test_access.log").read_text(encoding="utf-8")
    assert text.splitlines()[0].endswith(" within a list \\udcff of ids")
    assert text.count("\n") == 2


def test_what_a_killed_process_left_is_kept_and_counts(tmp_path: Path) -> None:
    (tmp_path / "test_access.log").write_text("2026-01-01T00:00:00+00:00 score te", encoding="utf-8")
    assert note_look(tmp_path, "score test") == 2
    first, second = (tmp_path / "test_access.log").read_text(encoding="utf-8").splitlines()
    assert first == "2026-01-01T00:00:00+00:00 score te"
    assert second.endswith(" score test")


def test_a_log_that_cannot_be_written_is_no_look(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot write .*gone/test_access\.log"):
        note_look(tmp_path / "gone", "score test")


def test_who_counts_waits_for_who_writes(tmp_path: Path) -> None:
    with (tmp_path / "test_access.log").open("a", encoding="utf-8") as other, ThreadPoolExecutor(1) as pool:
        fcntl.flock(other, fcntl.LOCK_EX)
        look = pool.submit(note_look, tmp_path, "score test")
        wait([look], timeout=0.3)
        assert not look.done()
        other.write("a line of another process\n")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_UN)
        assert look.result() == 2


def test_many_at_once_lose_no_line(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from avpipe.api.sealed import note_look\n"
        "print(*[note_look(Path(sys.argv[1]), 'x' * 5000) for _ in range(20)])"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda _: note_look(tmp_path, "y" * 5000), range(40)))
    for process in others:
        told += [int(number) for number in process.communicate(timeout=60)[0].split()]
    assert sorted(told) == list(range(1, 81))
    lines = (tmp_path / "test_access.log").read_text(encoding="utf-8").splitlines()
    assert sorted(line.partition(" ")[2] for line in lines) == [*["x" * 5000] * 40, *["y" * 5000] * 40]
