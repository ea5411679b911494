"""Thousands of broken videos through a whole extraction: does each end as a row?

    python benchmarks/fuzz.py --media FOLDER --files 2000

Makes files out of the videos of a folder: some bytes flipped (few, many, or in the header), cut short, a part cut out,
two files spliced, a part repeated, zeros over a part, or their names swapped to another container's. Extracts them all
with the two embedded encoders, under limits of time and memory, and looks whether every file has its row in every
feature set, whether the run ended by itself, how much memory the decoding processes took at most, and whether a process
is left. The same seed makes the same files.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil

from avpipe import api
from avpipe.data_manifests import manifest
from avpipe.pipeline.clip import Clip
from avpipe.pipeline.limits import Limits
from avpipe.pipeline.shards import marks
from avpipe.pipeline.workspace import Workspace

LIMITS = Limits(max_seconds=60.0, max_bytes=1 << 30)
Mutation = Callable[[bytearray, random.Random, bytes], bytes]


def flip(data: bytearray, chance: random.Random, share: float, start: int = 0, stop: int | None = None) -> bytes:
    """Some bytes are others."""
    stop = min(len(data), stop or len(data))
    for _ in range(max(1, int(share * (stop - start)))):
        data[chance.randrange(start, stop)] = chance.randrange(256)
    return bytes(data)


def cut_out(data: bytearray, chance: random.Random) -> bytes:
    """A part is gone."""
    start = chance.randrange(len(data))
    return bytes(data[:start] + data[start + chance.randrange(1, len(data)) :])


def overwrite(data: bytearray, chance: random.Random) -> bytes:
    """A part is zero, as after a crash of the machine that wrote it."""
    start = chance.randrange(len(data))
    length = min(len(data) - start, chance.randrange(1, 1 << 16))
    data[start : start + length] = bytes(length)
    return bytes(data)


def repeat(data: bytearray, chance: random.Random) -> bytes:
    """A part comes twice."""
    start = chance.randrange(len(data))
    return bytes(data[: start + chance.randrange(1, 1 << 16)] + data[start:])


MUTATIONS: dict[str, Mutation] = {
    "few bytes": lambda data, chance, _: flip(data, chance, 1e-5),
    "some bytes": lambda data, chance, _: flip(data, chance, 1e-3),
    "many bytes": lambda data, chance, _: flip(data, chance, 0.05),
    "header": lambda data, chance, _: flip(data, chance, 0.02, 0, 1024),
    "trailer": lambda data, chance, _: flip(data, chance, 0.02, max(0, len(data) - 4096)),
    "cut short": lambda data, chance, _: bytes(data[: chance.randrange(1, len(data))]),
    "cut out": lambda data, chance, _: cut_out(data, chance),
    "zeros": lambda data, chance, _: overwrite(data, chance),
    "twice": lambda data, chance, _: repeat(data, chance),
    "spliced": lambda data, chance, other: (
        bytes(data[: chance.randrange(1, len(data))]) + other[chance.randrange(len(other)) :]
    ),
    "other name": lambda data, chance, _: flip(data, chance, 1e-4),
}


def mutated(originals: list[Path], folder: Path, count: int, seed: int) -> list[Path]:
    """So many broken files."""
    chance = random.Random(seed)
    made = []
    for number in range(count):
        first, second = chance.choice(originals), chance.choice(originals)
        kind = list(MUTATIONS)[number % len(MUTATIONS)]
        suffix = chance.choice(originals).suffix if kind == "other name" else first.suffix
        path = folder / f"{number:05d}-{kind.replace(' ', '-')}{suffix}"
        path.write_bytes(MUTATIONS[kind](bytearray(first.read_bytes()), chance, second.read_bytes()))
        made.append(path)
    return made


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", type=Path, required=True, help="folder of videos to break")
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    originals = sorted(path for path in options.media.iterdir() if path.is_file())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "media").mkdir()
        files = mutated(originals, folder / "media", options.files, options.seed)
        workspace = Workspace(folder / "workspace")
        clips = [Clip(clip_id=path.name, dataset="fuzz", path=path.name, split="train") for path in files]
        manifest.write(workspace.manifest("fuzz"), clips, media_root=folder / "media", clips_per_shard=64)
        extraction = api.extraction(workspace, "fuzz", recipe="baseline", gpus=0)
        extraction = replace(extraction, setting=replace(extraction.setting, limits=LIMITS))
        peak, ended = 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not ended.wait(0.1):
                for child in psutil.Process().children(recursive=True):
                    try:
                        peak = max(peak, child.memory_info().rss)
                    except psutil.Error:
                        continue  # it has just ended

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        start = time.monotonic()
        report = extraction.run()
        seconds = time.monotonic() - start
        ended.set()
        watcher.join()
        good = not report.lost_shards
        print(f"{len(files)} files of {len(originals)} originals, seed {options.seed}: {seconds:.0f} s")
        for feature_set in extraction.setting.folders:
            rows = [row for mark in marks(workspace.feature_set("fuzz", feature_set)) for row in mark.outcomes]
            good &= sorted(row.clip_id for row in rows) == sorted(clip.clip_id for clip in clips)
            statuses = Counter(row.status for row in rows)
            kinds = Counter(row.error_type for row in rows if row.error_type)
            noted = sum(bool(row.notes) for row in rows if row.status == "ok")
            print(f"  {feature_set}: {len(rows)} rows, {dict(statuses)}, {noted} ok with a note; {dict(kinds)}")
        children = psutil.Process().children(recursive=True)  # multiprocessing keeps one that tracks resources
        left = [child.pid for child in children if "resource_tracker" not in " ".join(child.cmdline())]
        print(
            f"  largest process: {peak / 2**20:.0f} MiB; processes left: {left or 'none'}; shards lost: "
            f"{dict(report.lost_shards) or 'none'}"
        )
        if not good or left:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
