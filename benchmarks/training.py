"""Stage two: how much of a step is waiting for data, and what an epoch costs with the frozen encoders run live.

    python benchmarks/training.py --clips 640 --epochs 3 --live 32

*Waiting*: the default recipe is trained on features of the size that CLIP ViT-B gives with all tokens of 16 frames (800
rows of 768 numbers in half precision, 1.2 MB a clip; random numbers, imported). Told is what share of the time between
the first and the last step of an epoch the loop waited for batches, the median over the epochs: features in memory,
in files that are in the page cache, and on the disk (dropped from the page cache before each epoch), with the thread
that reads one batch ahead, and with a process that does.

*Live*: seconds of one such epoch, a clip, against seconds that `avpipe extract` needs a clip for the same features
(ViT-B-32 with random weights, all cores, decoding included), which is the least that running the encoder in every
epoch costs beside the training itself.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from avpipe import api
from avpipe.pipeline.workspace import Workspace

BATCH = 32
ENCODER = "encoders: {clip_vit: {model: ViT-B-32, weights: random, frames: 16, tokens: all}}"
WAYS = {
    "in memory": (False, ["train.cache_features=yes"]),
    "files in the page cache": (False, ["train.cache_features=no"]),
    "files on the disk": (True, ["train.cache_features=no"]),
    "files on the disk, a process reads ahead": (True, ["train.cache_features=no", "train.num_workers=1"]),
}


def prepared(folder: Path, clips: int) -> Workspace:
    """A workspace of so many rendered training clips."""
    workspace = Workspace(folder)
    api.prepare(workspace, "synthetic", overrides=[f"clips.train={clips}", "clips.val=8", "clips.test=8"])
    return workspace


def with_features(folder: Path, clips: int) -> Workspace:
    """The same, with features of random numbers."""
    workspace = prepared(folder, clips)
    made, random = folder / "made", np.random.default_rng(0)
    made.mkdir()
    for split in ("train", "val", "test"):
        for clip in api.clips_of(workspace, "synthetic", split):
            np.save(made / f"{clip.clip_id}.npy", random.standard_normal((800, 768), np.float32).astype(np.float16))
    api.import_features(workspace, made, "clip", dataset="synthetic", modality="video", hop_seconds=0.005)
    for path in made.iterdir():
        path.unlink()
    return workspace


def evict(folder: Path) -> None:
    """Drop the files of a folder from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def train(workspace: Workspace, name: str, clips: int, epochs: int, way: tuple[bool, list[str]]) -> tuple[float, float]:
    """Seconds of a step, and the share of it that was waiting."""
    is_cold, overrides = way
    features = workspace.features("synthetic")
    per_epoch = -(-clips // BATCH)
    steps: list[float] = []

    def on_event(event: Mapping[str, Any]) -> None:
        if event["event"] == "step":
            steps.append(time.monotonic())
            if is_cold and event["step"] % per_epoch == 0:
                evict(features)

    if is_cold:
        evict(features)
    settings = [f"train.batch_size={BATCH}", "train.log_every=1", "train.tensorboard=false", f"train.epochs={epochs}",
                "train.validate_every=1000"]  # fmt: skip
    api.train(workspace, dataset="synthetic", name=name, overrides=[*settings, *overrides], on_event=on_event)
    rows = [json.loads(line) for line in (workspace.run(name) / "metrics.jsonl").read_text().splitlines()]
    waited = [row["data_seconds"] for row in rows if "data_seconds" in row]
    seconds, shares = [], []
    for first in range(0, epochs * per_epoch, per_epoch):
        last = first + per_epoch - 1
        taken = steps[last] - steps[first]
        seconds.append(taken / (last - first))
        shares.append(sum(waited[first + 1 : last + 1]) / taken)
    return statistics.median(seconds), statistics.median(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=640)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--live", type=int, default=32, help="clips of the live part; 0: without")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        workspace = with_features(Path(folder) / "trained", options.clips)
        held = sum(path.stat().st_size for path in workspace.features("synthetic").rglob("*.h5"))
        print(f"{options.clips} clips, {held / 1e6:.0f} MB of features", flush=True)
        a_clip = 0.0
        for index, (label, way) in enumerate(WAYS.items()):
            seconds, share = train(workspace, f"way{index}", options.clips, options.epochs, way)
            a_clip = a_clip or seconds / BATCH
            print(f"{label:42} {seconds:6.3f} s a step, {100 * share:5.2f} % of it waiting for data", flush=True)
        if options.live:
            live = prepared(Path(folder) / "live", options.live)
            recipe = Path(folder) / "encoder.yaml"
            recipe.write_text(ENCODER, encoding="utf-8")
            start = time.monotonic()
            api.extraction(live, "synthetic", recipe=str(recipe), gpus=0).run()
            encoded = (time.monotonic() - start) / (options.live + 16)
            print(f"a clip: {1000 * a_clip:.1f} ms trained on, {1000 * encoded:.0f} ms encoded")
            print(
                f"an epoch with the encoder live takes at least {(encoded + a_clip) / a_clip:.0f} times one on features"
            )


if __name__ == "__main__":
    main()
