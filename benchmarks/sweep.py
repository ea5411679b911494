"""How long a sweep takes, against the same runs as `avpipe train`, one process after the other.

Both train the same cells to the same losses, which is checked row by row. Half of the separate runs come before the
sweep and half after it, so that whatever else the machine does meets both. Each separate run has one thread, as each
run of the sweep has; `--threads 2` gives them more, in which case the losses may differ in their last digits and are
not compared.

    python benchmarks/sweep.py                      # 12 cells of 24 epochs on 200 clips; some 6 minutes on two cores
    python benchmarks/sweep.py --epochs 12 --jobs 1 --json results.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from avpipe import api
from avpipe.pipeline.workspace import Workspace

GRID = {
    "fusion": ["concat", "qformer"],
    "modalities": [["video", "audio"], ["video"], ["audio"]],
    "seed": [0, 1],
}


def avpipe(workspace: Workspace, *words: str, threads: int | None = None) -> float:
    """Run one command in a process of its own; how many seconds it took."""
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "avpipe", *words, "-w", str(workspace.root)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"avpipe {' '.join(words)} ended with {done.returncode}:\n{done.stderr}")
    return seconds


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
        separate: dict[str, float] = {}

        def train(some: slice) -> None:
            for cell in cells[some]:
                name = f"separate-{cell.run}"
                words = ("train", *cell.overrides, "--name", name)
                separate[cell.run] = avpipe(workspace, *words, threads=asked.threads)
                print(f"{name}: {separate[cell.run]:.1f} s", flush=True)

        half = len(cells) // 2
        train(slice(half))
        at_once = avpipe(workspace, "sweep", str(path), *(("--jobs", str(asked.jobs)) if asked.jobs else ()))
        print(f"sweep: {at_once:.1f} s", flush=True)
        train(slice(half, None))
        if asked.threads == 1:
            differing = [
                cell.run for cell in cells if losses(workspace, cell.run) != losses(workspace, f"separate-{cell.run}")
            ]
            if differing:
                raise RuntimeError(f"the sweep has other losses than avpipe train: {', '.join(differing)}")
        inside = [
            json.loads((workspace.run(f"separate-{cell.run}") / "result.json").read_text(encoding="utf-8"))["seconds"]
            for cell in cells
        ]
        steps = len(losses(workspace, cells[0].run))
    total = sum(separate.values())
    print(
        f"{len(cells)} cells; a separate run takes {min(separate.values()):.1f} to {max(separate.values()):.1f} s, of "
        f"which {min(inside):.1f} to {max(inside):.1f} s in the training itself ({steps} rows of losses each)\n"
        f"one after the other {total:.1f} s, swept {at_once:.1f} s: {at_once / total:.2f} of the time"
    )
    if asked.json:
        numbers = {"separate_seconds": separate, "training_seconds": inside, "sweep_seconds": at_once}
        asked.json.write_text(json.dumps({**numbers, "ratio": at_once / total}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
