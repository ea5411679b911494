"""How long a sweep takes, against the same runs as `avpipe train`, one process after the other.

Both train the same cells to the same losses, which is checked row by row. They take turns: while one has the machine
for some seconds, all processes of the other are stopped, and what counts is the time that each had. So whatever else
the machine does meets both alike. Each separate run has one thread, as each run of the sweep has; `--threads 2` gives
them more, in which case the losses may differ in their last digits and are not compared.

    python benchmarks/sweep.py                      # 12 cells of 24 epochs on 200 clips; some 6 minutes on two cores
    python benchmarks/sweep.py --epochs 12 --jobs 1 --json results.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

from avpipe import api
from avpipe.pipeline.workspace import Workspace

GRID = {
    "fusion": ["concat", "qformer"],
    "modalities": [["video", "audio"], ["video"], ["audio"]],
    "seed": [0, 1],
}
TURN_SECONDS, GRACE_SECONDS = 5.0, 20.0


class Contender:
    """Commands, one after the other, each in a process of its own.

    Attributes:
        seconds: that each command had so far, in its turns.
        cpu_seconds: of the processor, of all commands that have ended and their children.
    """

    def __init__(self, workspace: Workspace, commands: Sequence[Sequence[str]], threads: int | None) -> None:
        self._commands = [[sys.executable, "-m", "avpipe", *words, "-w", str(workspace.root)] for words in commands]
        self._environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
        self._process: subprocess.Popen[bytes] | None = None
        self.seconds: list[float] = []
        self.cpu_seconds = 0.0

    def turn(self) -> bool:
        """Go on for a while; whether there is more to do."""
        start = time.perf_counter()
        if self._process is None:
            if not self._commands:
                return False
            self._process = subprocess.Popen(
                self._commands.pop(0), env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            self.seconds.append(0.0)
        else:
            self._all("resume")
        try:
            _, said = self._process.communicate(timeout=TURN_SECONDS)
        except subprocess.TimeoutExpired:
            self._all("suspend")
            self.seconds[-1] += time.perf_counter() - start
            return True
        self.seconds[-1] += time.perf_counter() - start
        if self._process.returncode:
            raise RuntimeError(f"a command ended with {self._process.returncode}:\n{said.decode()}")
        self._process = None
        return bool(self._commands)

    def end(self) -> None:
        """Let go of what still runs, or is stopped: a program, and all that it started."""
        if self._process is None or self._process.returncode is not None:
            return
        self._all("resume")  # one that is stopped would not end
        self._process.terminate()
        try:
            self._process.communicate(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._all("kill")
            self._process.communicate()

    def _all(self, what: str) -> None:
        """Stop the program and all that it started, or let them go on."""
        assert self._process is not None
        for _ in range(2):  # what was started meanwhile, too
            with suppress(psutil.NoSuchProcess):
                program = psutil.Process(self._process.pid)
                for process in [*program.children(recursive=True), program]:
                    with suppress(psutil.NoSuchProcess):
                        getattr(process, what)()


def prepared(folder: Path, clips: int) -> Workspace:
    """A workspace with rendered clips and their features."""
    workspace = Workspace(folder)
    api.prepare(workspace, "synthetic", overrides=[f"clips.train={clips}", f"clips.val={clips // 4}", "clips.test=1"])
    api.extraction(workspace, recipe="baseline", gpus=0).run()
    return workspace


def losses(workspace: Workspace, run: str) -> list[dict[str, float]]:
    """What a run wrote, without the time that it waited for data."""
    lines = (workspace.run(run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "data_seconds"} for line in lines]


def take_turns(contenders: Sequence[Contender]) -> None:
    """Let all of them come to their end; none of them goes on, if one of them fails."""
    waiting = list(contenders)
    try:
        while waiting:
            for contender in list(waiting):
                before = cpu_seconds()
                if not contender.turn():
                    waiting.remove(contender)
                contender.cpu_seconds += cpu_seconds() - before
    finally:
        for contender in contenders:
            contender.end()


def cpu_seconds() -> float:
    """Of all children that have ended, and theirs."""
    times = os.times()
    return times.children_user + times.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=200, help="training clips")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--jobs", type=int, help="runs of the sweep side by side; default: one a core")
    parser.add_argument("--threads", type=int, default=1, help="of a separate run")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = prepared(Path(folder) / "workspace", asked.clips)
        path = Path(folder) / "cells.yaml"
        path.write_text(yaml.safe_dump({"set": {"train.epochs": asked.epochs}, "grid": GRID}), encoding="utf-8")
        cells = api.sweep(workspace, path).grid.cells
        commands = [("train", *cell.overrides, "--name", f"separate-{cell.run}") for cell in cells]
        jobs = ("--jobs", str(asked.jobs)) if asked.jobs else ()
        separate = Contender(workspace, commands, asked.threads)
        swept = Contender(workspace, [("sweep", str(path), "--gpus", "0", *jobs)], None)
        take_turns([separate, swept])
        if asked.threads == 1:
            differing = [
                cell.run for cell in cells if losses(workspace, cell.run) != losses(workspace, f"separate-{cell.run}")
            ]
            if differing:
                raise RuntimeError(f"the sweep has other losses than avpipe train: {', '.join(differing)}")
        result = json.loads((workspace.run(cells[0].run) / "result.json").read_text(encoding="utf-8"))
    one_by_one, at_once = sum(separate.seconds), sum(swept.seconds)
    print(
        f"{len(cells)} cells of {result['step']} steps\n"
        f"one after the other: {one_by_one:.1f} s ({min(separate.seconds):.1f} to {max(separate.seconds):.1f}, median "
        f"{statistics.median(separate.seconds):.1f} s each), {separate.cpu_seconds:.1f} s of a core\n"
        f"swept: {at_once:.1f} s, {swept.cpu_seconds:.1f} s of a core\n"
        f"{at_once / one_by_one:.2f} of the time, {swept.cpu_seconds / separate.cpu_seconds:.2f} of the work"
    )
    if asked.json:
        numbers = {"separate_seconds": separate.seconds, "separate_cpu_seconds": separate.cpu_seconds}
        numbers |= {"sweep_seconds": at_once, "sweep_cpu_seconds": swept.cpu_seconds}
        asked.json.write_text(json.dumps({**numbers, "ratio": at_once / one_by_one}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
