"""Does everything run at once? An extraction against what its parts need of the machine.

    python benchmarks/overlap.py                       # on rendered clips
    python benchmarks/overlap.py --media FOLDER        # on the videos of a folder, over and over

With a heavy encoder (a ViT-B/32 of CLIP's, random weights), on the CPU:

- *ideal*: CPU seconds of decoding all clips, and of encoding all of them, each by itself, divided by the cores;
- *extraction*: wall clock of a whole run, from the first clip asked for to the last shard committed, without the start
  of processes and the loading of weights.

Their ratio is 1 where no core ever waits. Where other work runs on the machine, wall clock says little; then
(CPU seconds of the run + seconds that cores were idle meanwhile) stands for it, over the cores: what the run would have
taken alone, if nobody else filled its pauses.

Beside it the usual script: one clip decoded, then encoded, then the next; with the same decoder and encoder.

And with four encoders that want frames and sound: CPU seconds of decoding a clip for all four in one pass, against
what the dearest of them wants alone, and against four passes. (Their own preprocessing is left out: each has its own.)

All are measured in turn, several times; what is printed are medians of ratios within a turn.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from avpipe import api
from avpipe.data_manifests import manifest
from avpipe.data_manifests.manifest import Manifest
from avpipe.extract import media
from avpipe.extract.decoding import Decoded, DecodeJob, DecodeWork
from avpipe.extract.media import AudioRequest, FrameRequest
from avpipe.extract.recipe import build
from avpipe.extract.run import plan_tasks
from avpipe.extract.worker import Setting, ShardTask, ShardWorker
from avpipe.pipeline.clip import Clip
from avpipe.pipeline.errors import ClipError
from avpipe.pipeline.workspace import Workspace

HEAVY: Mapping[str, Mapping[str, Any]] = {
    "heavy": {"encoder": "clip_vit", "model": "ViT-B-32", "weights": "random", "frames": 4, "tokens": "cls"}
}
FOUR: Mapping[str, FrameRequest | AudioRequest] = {
    "frames_8": FrameRequest(sampling="uniform", count=8),
    "frames_16": FrameRequest(sampling="uniform", count=16),
    "sound_16k": AudioRequest(sample_rate=16000),
    "sound_44k": AudioRequest(sample_rate=44100),
}


def clips_of(folder: Path, videos: Path | None, count: int) -> Manifest:
    """So many clips: rendered ones, or the files of a folder, again and again."""
    workspace = Workspace(folder)
    if videos is None:
        sizes = [f"clips.train={min(count, 64)}", "clips.val=0", "clips.test=0", "size=256"]
        api.prepare(workspace, "synthetic", overrides=sizes)
        there = manifest.read(workspace.manifest("synthetic"))
        paths, root = [clip.path for clip in there.clips], there.media_root
    else:
        paths, root = sorted(path.name for path in videos.iterdir() if path.is_file()), videos
    clips = [
        Clip(clip_id=f"clip-{i:05d}", dataset="overlap", path=paths[i % len(paths)], split="train")
        for i in range(count)
    ]
    manifest.write(workspace.manifest("overlap"), clips, media_root=root, clips_per_shard=32)
    return manifest.read(workspace.manifest("overlap"))


def setting(folder: Path, clips: Manifest, encoders: Mapping[str, Mapping[str, Any]], decoders: int) -> Setting:
    """For one worker on the CPU."""
    built = build(encoders)
    return Setting(
        encoders=built,
        folders={name: folder / name for name in built},
        media_root=clips.media_root,
        decoders=decoders,
    )


def cpu_seconds() -> float:
    """Of this process."""
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)


def decode_alone(clips: Manifest, made: Setting) -> tuple[float, list[Decoded]]:
    """CPU seconds of decoding every clip, in this process; and what came of it."""
    work = DecodeWork(made.encoders, made.limits)
    start = cpu_seconds()
    decoded = [work(DecodeJob.of(clip, made.media_root)) for clip in clips.clips]
    return cpu_seconds() - start, decoded


def encode_alone(made: Setting, decoded: list[Decoded]) -> float:
    """CPU seconds of encoding what was decoded, in whole batches."""
    (encoder,) = made.encoders.values()
    encoder.load("cpu")
    found = [next(iter(clip.prepared.values())) for clip in decoded]
    prepared = [arrays for arrays in found if not isinstance(arrays, ClipError)]
    size = encoder.batch_size
    encoder.encode(prepared[:size])
    start = cpu_seconds()
    for first in range(0, len(prepared), size):
        encoder.encode(prepared[first : first + size])
    return cpu_seconds() - start


def one_after_the_other(clips: Manifest, made: Setting) -> tuple[float, float]:
    """Wall clock, and CPU and idle seconds together, of the usual script, its encoder loaded."""
    work = DecodeWork(made.encoders, made.limits)
    (encoder,) = made.encoders.values()
    before, idle, start = cpu_seconds(), idle_seconds(), time.perf_counter()
    for clip in clips.clips:
        decoded = work(DecodeJob.of(clip, made.media_root))
        for prepared in decoded.prepared.values():
            if not isinstance(prepared, ClipError):
                encoder.encode([prepared])
    return time.perf_counter() - start, cpu_seconds() - before + idle_seconds() - idle


class Parent:
    """Hands out tasks within this process, and does not listen."""

    def __init__(self, tasks: list[ShardTask]) -> None:
        self.tasks = iter(tasks)

    def __iter__(self) -> Iterator[ShardTask]:
        return self.tasks

    def progress(self, task: str, data: Mapping[str, Any]) -> None:
        self.last = data

    def done(self, task: str, counts: Mapping[str, int]) -> None:
        if counts.get("failed"):
            raise SystemExit(f"{counts['failed']} clips of shard {task} failed")


def read_alone(clips: Manifest, wanted: Mapping[str, FrameRequest | AudioRequest]) -> float:
    """CPU seconds of decoding every clip for some encoders in one pass, without their preprocessing."""
    start = cpu_seconds()
    for clip in clips.clips:
        media.read(
            clips.media_root / clip.path,
            frames={name: partial(r.choose, seed=0) for name, r in wanted.items() if isinstance(r, FrameRequest)},
            audio={name: r for name, r in wanted.items() if isinstance(r, AudioRequest)},
        )
    return cpu_seconds() - start


def idle_seconds() -> float:
    """That cores of this machine had nothing to do, so far."""
    times = psutil.cpu_times()
    return float(times.idle + getattr(times, "iowait", 0.0))


def extraction(clips: Manifest, made: Setting) -> tuple[float, float, float, Mapping[str, float]]:
    """Wall clock, CPU seconds and idle seconds of a run in a worker that has started, and what was waited for."""
    worker = ShardWorker(replace(made, encoders=copy.copy(made.encoders)), 0)
    parent = Parent(plan_tasks(clips, made))
    try:
        # The processes start with the first clips: give them some that do not count.
        ready = [worker.pool.submit(DecodeJob.of(clips.clips[0], made.media_root)) for _ in range(4 * made.decoders)]
        for future in ready:
            future.result()
        children = psutil.Process().children(recursive=True)

        def spent() -> float:
            return cpu_seconds() + sum(sum(child.cpu_times()[:2]) for child in children)

        before, idle, start = spent(), idle_seconds(), time.perf_counter()
        worker(iter(parent), parent)
        seconds = time.perf_counter() - start
        return seconds, spent() - before, idle_seconds() - idle, parent.last["waits"]
    finally:
        worker.close()


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", type=Path, help="folder of videos (default: rendered ones)")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--decoders", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    turns: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        clips = clips_of(Path(folder), options.media, options.clips)
        for turn in range(options.turns):
            made = setting(Path(folder) / f"heavy-{turn}", clips, HEAVY, options.decoders)
            decode, decoded = decode_alone(clips, made)
            encode = encode_alone(made, decoded)
            script, script_alone = one_after_the_other(clips, made)
            wall, cpu, idle, waits = extraction(clips, made)
            together = read_alone(clips, FOUR)
            each = [read_alone(clips, {name: request}) for name, request in FOUR.items()]
            turns.append(
                {
                    "decode_cpu": decode,
                    "encode_cpu": encode,
                    "wall": wall,
                    "cpu": cpu,
                    "idle": idle,
                    "wall_ratio": wall * cores / (decode + encode),
                    "alone_ratio": (cpu + idle) / (decode + encode),
                    "script_ratio": script * cores / (decode + encode),
                    "script_alone_ratio": script_alone / (decode + encode),
                    "one_pass_to_dearest": together / max(each),
                    "one_pass_to_four": together / sum(each),
                    **{f"waited_{what}": seconds for what, seconds in waits.items()},
                }
            )
            if not options.json:
                print(", ".join(f"{key} {value:.2f}" for key, value in turns[-1].items()))
    medians = {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}
    if options.json:
        print(json.dumps({"clips": options.clips, "cores": cores, "turns": turns, "medians": medians}))
        return
    print(f"medians of {options.turns} turns, {options.clips} clips, {cores} cores:")
    print(f"  extraction against decoder + encoder, over the cores: {medians['wall_ratio']:.3f} by wall clock,")
    print(f"    {medians['alone_ratio']:.3f} by its CPU seconds and the machine's idle ones")
    print(f"  the usual script, the same: {medians['script_ratio']:.3f}, {medians['script_alone_ratio']:.3f}")
    print(f"  four encoders in one pass: {medians['one_pass_to_dearest']:.2f} of the dearest alone, ")
    print(f"    {medians['one_pass_to_four']:.2f} of four passes")


if __name__ == "__main__":
    main()
