"""How fast clips are read in random order from the page cache, against what the operating system can do at most.

Each store holds the same clips. In each round every store reads the same clips in the same random order, so that
whatever else the machine does meets all of them alike; what is reported is the median over the rounds. The measure of
all is a plain ``pread`` of each clip's bytes into a new array: the least that anything must do that gives out arrays.

    python benchmarks/store.py                      # two shapes, 0.35 GB a store, 1.7 GB on disk at most
    python benchmarks/store.py --megabytes 100 --rounds 5 --json results.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from avpipe.pipeline.features import Features, FeatureSpec
from avpipe.pipeline.shards import plan, write_spec
from avpipe.pipeline.store import FeatureSet, ShardWriter

SHAPES = ((4112, 1408), (496, 768))
"""EVA-CLIP-g, 16 frames with all their tokens; AST, all tokens of a short clip."""

Clip = npt.NDArray[np.float16]
Read = Callable[[str], Clip]
BASELINE = "pread into a new array"


def plain_pread(folder: Path, clips: dict[str, Clip], *, new_array: bool) -> Read:
    """One file with all rows; the least that can be done."""
    path = folder / "rows"
    size = next(iter(clips.values())).nbytes
    if not path.exists():
        with path.open("wb") as file:
            file.writelines(clip.data for clip in clips.values())
    offsets = {clip_id: number * size for number, clip_id in enumerate(clips)}
    descriptor = os.open(path, os.O_RDONLY)
    shape = next(iter(clips.values())).shape
    buffer = np.empty(shape, np.float16)

    def read(clip_id: str) -> Clip:
        target = np.empty(shape, np.float16) if new_array else buffer
        if os.preadv(descriptor, [target.reshape(-1).view(np.uint8).data], offsets[clip_id]) != size:
            raise OSError("short read")
        return target

    return read


def npy_files(folder: Path, clips: dict[str, Clip]) -> Read:
    """The field's habit: ``{id}.npy``."""
    (folder / "npy").mkdir()
    for clip_id, clip in clips.items():
        np.save(folder / "npy" / f"{clip_id}.npy", clip)
    return lambda clip_id: np.load(folder / "npy" / f"{clip_id}.npy")


def hdf5_per_id(folder: Path, clips: dict[str, Clip]) -> Read:
    """The field's other habit: one HDF5 dataset per id."""
    with h5py.File(folder / "per_id.h5", "w") as file:
        for clip_id, clip in clips.items():
            file.create_dataset(clip_id, data=clip)
    file = h5py.File(folder / "per_id.h5")
    return lambda clip_id: file[clip_id][()]


def avpipe_store(folder: Path, clips: dict[str, Clip], format: str) -> Read:
    """Ours, as training uses it: with the row times, through a FeatureSet."""
    rows, dim = next(iter(clips.values())).shape
    spec = FeatureSpec(name=format, encoder="benchmark", modality="video", dim=dim)
    write_spec(folder / format, spec)
    for planned in plan(list(clips), max(1, len(clips) // 4)):
        with ShardWriter(folder / format, planned, spec, format) as shard:
            for clip_id in planned.clip_ids:
                shard.add(clip_id, Features(data=clips[clip_id], pts_seconds=np.arange(rows) / 25))
    features = FeatureSet(folder / format)
    return lambda clip_id: features.read(clip_id).data


def measure(readers: dict[str, Read], clips: dict[str, Clip], rounds: int) -> dict[str, list[float]]:
    """Seconds a clip, for each reader and round."""
    rng = np.random.default_rng(0)
    for read in readers.values():  # fills the page cache, and checks
        for clip_id, clip in clips.items():
            if not np.array_equal(read(clip_id), clip):
                raise ValueError(f"{clip_id} is not what was written")
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(rounds):
        order = [str(clip_id) for clip_id in rng.permutation(list(clips))]
        for name in rng.permutation(list(readers)):
            start = time.perf_counter()
            for clip_id in order:
                readers[name](clip_id)
            seconds[name].append((time.perf_counter() - start) / len(order))
    return seconds


def run(shape: tuple[int, int], megabytes: int, rounds: int, folder: Path) -> list[dict[str, object]]:
    """Measure one shape; the rows of the table."""
    rng = np.random.default_rng(0)
    bytes_per_clip = shape[0] * shape[1] * 2
    count = max(8, megabytes * 1_000_000 // bytes_per_clip)
    clips = {f"clip{i:05d}": rng.random(shape, np.float32).astype(np.float16) for i in range(count)}
    readers = {
        BASELINE: plain_pread(folder, clips, new_array=True),
        "pread into one array, again and again": plain_pread(folder, clips, new_array=False),
        "avpipe hdf5": avpipe_store(folder, clips, "hdf5"),
        "avpipe webdataset": avpipe_store(folder, clips, "webdataset"),
        "one .npy a clip": npy_files(folder, clips),
        "one HDF5 dataset a clip (h5py)": hdf5_per_id(folder, clips),
    }
    seconds = measure(readers, clips, rounds)
    # Round by round, so that what slows a whole round down cancels out.
    ratios = {
        name: statistics.median(base / own for base, own in zip(seconds[BASELINE], values, strict=True))
        for name, values in seconds.items()
    }
    return [
        {
            "shape": list(shape),
            "clips": count,
            "store": name,
            "milliseconds": 1e3 * statistics.median(values),
            "gigabytes_per_second": bytes_per_clip / statistics.median(values) / 1e9,
            "against_pread": ratios[name],
        }
        for name, values in seconds.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=350, help="size of each of the five stores")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path, help="where to put the files; by default the system's temporary folder")
    parser.add_argument("--json", type=Path, help="write the results here, too")
    options = parser.parse_args(arguments)
    rows: list[dict[str, object]] = []
    for shape in SHAPES:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            found = run(shape, options.megabytes, options.rounds, Path(folder))
        count = f"{found[0]['clips']} clips, {options.rounds} rounds"
        print(f"\n{shape[0]} x {shape[1]} float16, random order, page cache, {count}")
        print(f"{'':40} {'ms/clip':>8} {'GB/s':>6} {'against pread':>14}")
        for row in found:
            numbers = f"{row['milliseconds']:8.3f} {row['gigabytes_per_second']:6.2f} {row['against_pread']:14.2f}"
            print(f"{row['store']:40} {numbers}")
        rows += found
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
