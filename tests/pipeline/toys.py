"""Toys for the tests of shards, stores and the runner. Imports nothing heavy: worker processes import this file.

As a program, ``python toys.py FOLDER FORMAT PROCESSES SECONDS``, it extracts toy features into FOLDER through the
runner, SECONDS a clip, and prints a line when it has begun to work. It is there to be killed.
"""

from __future__ import annotations

import hashlib
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from avpipe.pipeline.errors import ClipError, SkipClip, StoreError
from avpipe.pipeline.features import Features, FeatureSpec
from avpipe.pipeline.runner import Event, Progress, Tell, run
from avpipe.pipeline.shards import ShardPlan, pending, plan
from avpipe.pipeline.store import FeatureSet, ShardWriter, write_spec

CLIP_IDS = [f"clip.{i:03d}" for i in range(60)]


def spec(name: str = "toy", dtype: str = "float16", dim: int = 5, **config: Any) -> FeatureSpec:
    """What the toy features are."""
    return FeatureSpec(name=name, encoder="toy", modality="video", dim=dim, dtype=dtype, config=config)


def features(clip_id: str, dim: int = 5) -> Features:
    """The same numbers for the same id, always."""
    seed = int.from_bytes(hashlib.sha256(clip_id.encode()).digest()[:8])
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(1, 400))
    return Features(data=rng.standard_normal((rows, dim)).astype(np.float16), pts_seconds=np.arange(rows) / 25)


def write_shard(folder: Path, planned: ShardPlan, format: str, pause: Callable[[str], None] = lambda _: None) -> None:
    """Every tenth clip fails, every seventh has no audio."""
    with ShardWriter(folder, planned, spec(), format) as shard:
        for clip_id in planned.clip_ids:
            pause(clip_id)
            number = int(clip_id[-3:])
            if number % 10 == 9:
                shard.fail(clip_id, ClipError("decode", "moov atom not found"))
            elif number % 7 == 6:
                shard.fail(clip_id, SkipClip("no_audio", "no audio stream"))
            else:
                shard.add(clip_id, features(clip_id))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class ShardWorker:
    """Writes toy shards, slowly enough to be killed in the midst of one."""

    def __init__(self, folder: Path, format: str, seconds: float, rank: int) -> None:
        self.folder, self.format, self.seconds, self.rank = folder, format, seconds, rank
        (folder.parent / f"built-{rank}").touch()

    def __call__(self, tasks: Iterator[ShardPlan], tell: Tell) -> None:
        for task in tasks:

            def pause(clip_id: str, name: str = task.name) -> None:
                tell.progress(name, {"clip_id": clip_id})
                time.sleep(self.seconds)

            write_shard(self.folder, task, self.format, pause)
            tell.done(task.name, {"clips": len(task.clip_ids)})

    def close(self) -> None:
        (self.folder.parent / f"closed-{self.rank}").touch()


@dataclass(frozen=True)
class Deed:
    """A task that says what shall happen: ``add``, ``die`` (once per entry of ``times``), ``raise`` ..."""

    name: str
    what: str = "add"
    times: int = 1


class DeedWorker:
    """Does deeds; writes what it did to a folder, where it outlives the process."""

    def __init__(self, notes: Path, rank: int, start: str = "") -> None:
        self.notes, self.rank = notes, rank
        (notes / f"born-{rank}-{os.getpid()}").touch()
        act(start)

    def __call__(self, tasks: Iterator[Deed], tell: Tell) -> None:
        for task in tasks:
            self.do(task, tell)

    def do(self, task: Deed, tell: Tell) -> None:
        tries = len(list(self.notes.glob(f"try-{task.name}-*")))
        (self.notes / f"try-{task.name}-{tries}-{self.rank}-{os.getpid()}").touch()
        tell.progress(task.name, {"tries": tries})
        if tries < task.times:
            act(task.what)
        tell.done(task.name, {"deeds": 1, "rank_sum": self.rank})

    def close(self) -> None:
        (self.notes / f"closed-{self.rank}-{os.getpid()}").touch()


class BrokenAtRankOne(DeedWorker):
    """Dies while it is built, on one device of several; the others take their time."""

    def __init__(self, notes: Path, rank: int) -> None:
        super().__init__(notes, rank, start="die" if rank == 1 else "")

    def do(self, task: Deed, tell: Tell) -> None:
        time.sleep(0.5)
        super().do(task, tell)


class AheadWorker(DeedWorker):
    """Takes its next task while it does the last, as who decodes ahead does."""

    def __call__(self, tasks: Iterator[Deed], tell: Tell) -> None:
        taken: queue.SimpleQueue[Deed | None] = queue.SimpleQueue()

        def take() -> None:
            for task in tasks:
                taken.put(task)
            taken.put(None)

        threading.Thread(target=take, daemon=True).start()
        while (task := taken.get()) is not None:
            (self.notes / f"took-{task.name}-{os.getpid()}").touch()
            time.sleep(0.2)  # the next one comes meanwhile, if it comes at all
            self.do(task, tell)


class UnpicklableError(Exception):
    """Needs two arguments, of which its pickle remembers one."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def act(what: str) -> None:
    """What a deed does."""
    match what:
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(7)
        case "die soon":
            threading.Timer(0.1, os._exit, (7,)).start()
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "bug":
            {}["no such key"]
        case "broken pipe":
            raise BrokenPipeError("a pipe of the worker's own")
        case "disk full":
            raise StoreError("cannot write /data/00000.h5: the disk is full")
        case "unpicklable":
            raise UnpicklableError("this", "that")


class Clips:
    """A torch map-style dataset over a feature set: gives digests, which no collate function touches."""

    def __init__(self, feature_set: FeatureSet) -> None:
        self.feature_set, self.clip_ids = feature_set, feature_set.clip_ids

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __getitem__(self, i: int) -> tuple[str, str, int]:
        found = self.feature_set.read(self.clip_ids[i])
        digest = hashlib.sha256(found.data.tobytes() + found.pts_seconds.tobytes()).hexdigest()
        return self.clip_ids[i], digest, os.getpid()


@contextmanager
def ray_cluster() -> Iterator[None]:
    """A small Ray cluster of this machine, connected to."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        yield
    finally:
        ray.shutdown()


def main(folder: Path, format: str, processes: int, seconds: float) -> None:
    """Extract toy features. Whatever was done before is kept."""
    write_spec(folder, spec())
    started = []

    def on_event(event: Event) -> None:
        if isinstance(event, Progress) and not started:
            started.append(event)
            print("working", flush=True)

    todo = pending(folder, plan(CLIP_IDS, 5), spec().fingerprint)
    report = run(todo, partial(ShardWorker, folder, format, seconds), processes=processes, on_event=on_event)
    print("finished", dict(report.failed), flush=True)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    except KeyboardInterrupt:
        sys.exit(130)
