"""What a training writes about itself: rows of numbers, and what they may depend on."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import resource
import secrets
import sys
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from accelerate import Accelerator

from avpipe.pipeline.errors import UsageError
from avpipe.pipeline.files import atomic_write, write_json
from avpipe.train.config import RunConfig


class Log:
    """``metrics.jsonl``, TensorBoard events, and a run of Weights & Biases. Rows after the checkpoint that a training
    goes on from are taken back (by Weights & Biases: a row of a step that it has already is left out).

    A context: it ends with the training, whatever ends that.

    Args:
        run_folder: gets the file and the events.
        step: of the checkpoint, or 0.
        config: of the run; says what is written beside the file.
    """

    def __init__(self, run_folder: Path, step: int, config: RunConfig) -> None:
        path = run_folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        # A kill may have cut the last line.
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        with atomic_write(path) as aside:
            aside.write_text("".join(kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._board: Any = None
        if config.train.tensorboard and importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run_folder / "tensorboard"), purge_step=step + 1)
        self._wandb = _wandb_run(config, run_folder) if config.train.wandb else None

    def row(self, step: int, epoch: int, **values: float) -> None:
        """Write numbers down."""
        self._file.write(json.dumps({"step": step, "epoch": epoch, **values}) + "\n")
        self._file.flush()
        for name, value in values.items() if self._board else ():
            self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log({"epoch": epoch, **values}, step=step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._file.close()
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.finish(exit_code=1 if kind else 0)


def check_log(config: RunConfig) -> None:
    """Whether what ``train.wandb`` asks for is here.

    Raises:
        UsageError: Weights & Biases is not installed.
    """
    if config.train.wandb is None:
        return
    found = importlib.util.find_spec("wandb")
    if found is None or found.origin is None:  # a mere folder of that name, as it makes itself, is no package
        raise UsageError(
            f"train.wandb={config.train.wandb}: Weights & Biases is not installed. Try: pip install wandb, or leave it "
            "out: metrics.jsonl and TensorBoard hold the same numbers"
        )


def _wandb_run(config: RunConfig, run_folder: Path) -> Any:
    """A run in the project; a training that goes on, goes on with its own."""
    import wandb

    path = run_folder / "wandb.json"
    if not path.exists():  # a run of the same name elsewhere is another one
        write_json(path, {"id": secrets.token_hex(8)})
    return wandb.init(
        project=config.train.wandb,
        name=run_folder.name,
        id=json.loads(path.read_text(encoding="utf-8"))["id"],
        resume="allow",
        reinit="finish_previous",
        dir=str(run_folder),
        config=config.model_dump(mode="json"),
    )


def peak_memory_bytes() -> int:
    """The most that this process has held so far, or since it began to measure anew: of a GPU's memory what torch took,
    else of the machine's.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if sys.platform == "linux":  # what getrusage tells begins with the peak of the process that started this one
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):  # proc(5): peak resident set size, in KiB
                return int(line.split()[1]) * 1024
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024  # elsewhere it is told in KiB


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """What the numbers of a run may depend on, beside its configuration."""
    import avpipe

    cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    return {
        "avpipe": avpipe.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cuda": cuda,
        "processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
