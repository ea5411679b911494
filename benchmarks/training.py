"""Stage two: how much of a step is waiting for data, and what an epoch costs with the frozen encoders run live.

    python benchmarks/training.py --clips 200 --epochs 4

Renders clips of 4 seconds, extracts them with `clip_vit` (ViT-B-32, random weights, all tokens of 16 frames: 3.8 MB a
clip) and `log_mel`, and trains the default recipe on the two:

- *waiting*: seconds that the loop waited for a batch, as a share of all seconds between the first and the last step of
  epochs after the first; features in memory, read from files that are in the page cache, and read from the disk
  (dropped from the page cache before each epoch), with and without a process that reads ahead;
- *live*: seconds of one such epoch against seconds of the same extraction on all cores, which is the least that running
  the encoders in every epoch costs beside the training itself.
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

from avpipe import api
from avpipe.pipeline.workspace import Workspace

ENCODERS = """encoders:
  clip_vit: {model: ViT-B-32, weights: random, frames: 16, tokens: all}
  log_mel: {}
"""


def evict(folder: Path) -> None:
    """Drop the files of a folder from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def train(workspace: Workspace, name: str, epochs: int, cold: bool, overrides: list[str]) -> tuple[float, float]:
    """Seconds of an epoch, and of them the share that was waiting; medians over the epochs after the first."""
    features = workspace.features("synthetic")
    steps: list[float] = []

    def on_event(event: Mapping[str, Any]) -> None:
        if event["event"] == "step":
            steps.append(time.monotonic())
            if cold and event["step"] % per_epoch == 0:
                evict(features)
                steps[-1] = time.monotonic()  # dropping is not the training's

    clips = len([clip for clip in api.clips_of(workspace, "synthetic", "train") if clip.captions])
    per_epoch = -(-clips // 32)
    if cold:
        evict(features)
    quiet = ["train.log_every=1", "train.tensorboard=false", "train.precision=fp32", f"train.epochs={epochs}",
             "train.validate_every=1000"]  # fmt: skip
    api.train(workspace, dataset="synthetic", name=name, overrides=[*quiet, *overrides], on_event=on_event)
    rows = [json.loads(line) for line in (workspace.run(name) / "metrics.jsonl").read_text().splitlines()]
    waited = [row["data_seconds"] for row in rows if "data_seconds" in row]
    seconds, shares = [], []
    for epoch in range(1, epochs):
        first, last = epoch * per_epoch, (epoch + 1) * per_epoch
        seconds.append(steps[last - 1] - steps[first - 1])
        shares.append(sum(waited[first:last]) / seconds[-1])
    return statistics.median(seconds), statistics.median(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        workspace = Workspace(Path(folder))
        counts = [f"clips.train={options.clips}", "clips.val=8", "clips.test=8"]
        api.prepare(workspace, "synthetic", overrides=counts)
        recipe = Path(folder) / "encoders.yaml"
        recipe.write_text(ENCODERS, encoding="utf-8")
        start = time.monotonic()
        api.extraction(workspace, "synthetic", recipe=str(recipe), gpus=0).run()
        live = time.monotonic() - start
        held = sum(path.stat().st_size for path in workspace.features("synthetic").rglob("*.h5"))
        print(f"{options.clips + 16} clips, {held / 1e6:.0f} MB of features, extracted in {live:.1f} s")
        epoch = 0.0
        for label, cold, overrides in (
            ("in memory", False, ["train.cache_features=yes"]),
            ("files in the page cache", False, ["train.cache_features=no"]),
            ("files on the disk", True, ["train.cache_features=no"]),
            ("files on the disk, one process reads ahead", True, ["train.cache_features=no", "train.num_workers=1"]),
        ):
            seconds, share = train(workspace, label.replace(" ", "-").replace(",", ""), options.epochs, cold, overrides)
            epoch = epoch or seconds
            print(f"{label:45} {seconds:6.1f} s an epoch, {100 * share:5.2f} % of it waiting for data", flush=True)
        print(f"live: at least {(live + epoch) / epoch:.1f} times an epoch on cached features")


if __name__ == "__main__":
    main()
