"""A toy that a small captioner learns in seconds: what is seen and heard is a one among zeros in the features."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avpipe.pipeline.clip import Clip
from avpipe.pipeline.features import Features, FeatureSpec
from avpipe.train.config import RunConfig, check
from avpipe.train.learner import Learner

COLOURS, SOUNDS = ("red", "blue", "green"), ("beep", "hum")


class ToySource:
    """Features in memory. ``data[:, k]`` is 3 for the fact k and 0 for the others; clips in ``absent`` have none."""

    def __init__(self, name: str, modality: Any, facts: Mapping[str, int], absent: tuple[str, ...] = ()) -> None:
        self.spec = FeatureSpec(name=name, encoder="toy", modality=modality, dim=4)
        self.facts = {clip_id: fact for clip_id, fact in facts.items() if clip_id not in absent}

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self.facts

    def read(self, clip_id: str, view: int = 0) -> Features:
        rows = 2 + len(clip_id) % 3
        data = np.zeros((rows, 4), dtype=np.float16)
        data[:, self.facts[clip_id]] = 3
        return Features(data=data, pts_seconds=np.arange(rows) + 0.5)


def clips(count: int, split: str = "train") -> list[Clip]:
    """The i-th clip shows colour i % 3 and sounds i % 2; clip i + 1 follows it."""
    return [
        Clip(
            clip_id=f"{split}{'x' * (i % 3)}{i}",
            dataset="toy",
            path="x",
            split=split,
            captions=(
                f"a {COLOURS[i % 3]} thing and a {SOUNDS[i % 2]}",
                f"a {SOUNDS[i % 2]} from a {COLOURS[i % 3]} thing",
            ),
            extra={"next_clip": f"{split}{'x' * ((i + 1) % 3)}{i + 1}"},
        )
        for i in range(count)
    ]


def sources(*groups: list[Clip], absent: tuple[str, ...] = ()) -> dict[str, ToySource]:
    """``eyes`` and ``ears`` for all clips; the clips in ``absent`` are mute."""
    colour = {clip.clip_id: i % 3 for group in groups for i, clip in enumerate(group)}
    sound = {clip.clip_id: i % 2 for group in groups for i, clip in enumerate(group)}
    return {"eyes": ToySource("eyes", "video", colour), "ears": ToySource("ears", "audio", sound, absent)}


def config(
    *, fusion: Mapping[str, Any] | None = None, objectives: Mapping[str, Any] | None = None, **train: Any
) -> RunConfig:
    """A captioner of some 40,000 weights."""
    small = {"width": 32, "layers": 1, "heads": 2, "feed_forward": 32}
    return check(
        {
            "dataset": "toy",
            "fusion": fusion or {"name": "qformer", **small, "queries": {"video": 2, "audio": 2}, "dropout": 0.1},
            "decoder": {"name": "transformer", **small},
            "train": {"epochs": 4, "batch_size": 8, "warmup_steps": 5, "log_every": 1, "validate_every": 1, **train},
            "generate": {"beams": 2, "max_tokens": 12},
            **({"objectives": objectives} if objectives else {}),
        },
        "toy",
    )


COATTENTION = {
    "name": "coattention", "width": 32, "layers": 1, "heads": 2, "feed_forward": 32, "positions": 16, "pool": "post",
    "dropout": 0.1,
}  # fmt: skip
"""A fusion that pools for objectives."""

ALL = {
    "cross_entropy": {"label_smoothing": 0.1, "form": "kl"},
    "contrastive": {"weight": 0.5, "temperature": 0.5},
    "modality_balanced": {"beta": 0.8},
}
BLENDED = {
    "cross_entropy": {"weight": 0},
    "g_blend": {"every": 1, "clips": 8},
    "scst": {"weight": 0.5, "samples": "multinomial", "count": 2, "baseline": "greedy", "max_tokens": 8},
}
"""Objectives with parameters, with a state that moves each batch, with one that moves each epoch, and one that draws
what it learns from."""

EVERYTHING = {
    "ema": 0.9,
    "modality_dropout": {"audio": 0.4, "video": 0.2},
    "groups": [{"match": r"^decoder.*norm", "frozen": True}, {"match": "^fusion", "lr": 1e-4}],
    "schedule": "cosine_epochs",
    "targets": ["current", "next"],
    "captions_per_clip": "all",
    "objectives": {"modality_balanced": {"beta": 0.8}},
}
"""What the loop can do beside, at once."""

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": EVERYTHING,
    "all": {"fusion": COATTENTION, "objectives": ALL},
    "blended": {"objectives": BLENDED},
}


def score(captions: Mapping[str, str]) -> float:
    """Share of the clips whose caption is one of theirs."""
    wanted = {clip.clip_id: clip.captions for clip in clips(6, "val")}
    return sum(captions[clip_id] in references for clip_id, references in wanted.items()) / len(wanted)


def run(folder: Path, *, stop_at: int = 0, how: str = "raise", **train: Any) -> Any:
    """Train the toy; stop after so many steps by an exception, or by ending the process at once."""
    import os

    from avpipe.train.loop import train as train_captioner

    def on_event(event: Mapping[str, Any]) -> None:
        if stop_at and event.get("event") == "step" and event["step"] >= stop_at:
            if how == "kill":
                os.kill(os.getpid(), 9)
            raise KeyboardInterrupt

    train_clips, val_clips = clips(20), clips(6, "val")
    return train_captioner(
        config(**train),
        sources=sources(train_clips, val_clips),
        train_clips=train_clips,
        val_clips=val_clips,
        run_folder=folder,
        score=score,
        on_event=on_event,
    )


def run_two(folder: Path, name: str, stop_at: int = 0) -> list[subprocess.CompletedProcess[str]]:
    """Train the toy in two processes on the CPU, which share every batch; kill the first at a step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    common = {"OMP_NUM_THREADS": "1", "PATH": "", "CUDA_VISIBLE_DEVICES": "", **shared}
    begun = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.loop_toys", str(folder), str(stop_at), name],
            cwd=Path(__file__).parents[2], env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        told = [process.communicate(timeout=120) for process in begun]
    finally:
        for process in begun:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *texts)
        for process, texts in zip(begun, told, strict=True)
    ]


if __name__ == "__main__":  # python -m tests.train.loop_toys FOLDER STEP SETTINGS: train and be killed at that step
    # Step 0: to the end, and tell what the objectives of this process hold, and whether its captioner is another one.
    from avpipe.train import loop

    learners = []
    loop.Learner = lambda *given: learners.append(Learner(*given)) or learners[-1]  # type: ignore
    run(Path(sys.argv[1]), stop_at=int(sys.argv[2]), how="kill", save_every=2, **SETTINGS[sys.argv[3]])
    held = {key: value.tolist() for key, value in learners[-1].objectives.state_dict().items()}
    weights = b"".join(value.numpy().tobytes() for value in learners[-1].captioner.state_dict().values())
    print(json.dumps({**held, "captioner": hashlib.sha256(weights).hexdigest()}))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
