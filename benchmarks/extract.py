"""Stage one under load: does memory stay flat, and do twenty kills change a byte?

    python benchmarks/extract.py memory --clips 5000
    python benchmarks/extract.py kills --times 20

``memory`` extracts a manifest of many clips (the rendered ones again and again, under other ids) and prints the memory
of all processes of the run, added up, as it goes on: proportional set size where the system tells it, else resident.
``kills`` kills an extraction with SIGKILL at random moments until it has been killed that often, lets it end, and
compares every shard with those of an unbroken run.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from avpipe import api
from avpipe.data_manifests import manifest
from avpipe.pipeline.clip import Clip
from avpipe.pipeline.runner import Event, Progress
from avpipe.pipeline.workspace import Workspace


def rendered(folder: Path, clips: int, files: int, clips_per_shard: int) -> Workspace:
    """A workspace with so many clips, which are cut from fewer rendered files."""
    workspace = Workspace(folder)
    counts = [f"clips.train={files}", "clips.val=0", "clips.test=0"]
    api.prepare(workspace, "synthetic", overrides=counts, clips_per_shard=clips_per_shard)
    path = workspace.manifest("synthetic")
    there = manifest.read(path)
    many = [Clip.from_row({**there.clips[i % files].to_row(), "clip_id": f"clip-{i:06d}"}) for i in range(clips)]
    manifest.write(path, many, media_root=there.media_root, clips_per_shard=clips_per_shard)
    return workspace


def memory_bytes() -> int:
    """Of this process and all below it."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            info = process.memory_full_info()
        except psutil.Error:
            continue  # it has just ended
        total += getattr(info, "pss", info.rss)
    return total


def memory(clips: int) -> None:
    """Print the memory of an extraction as it goes on."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = rendered(Path(folder), clips, files=min(clips, 200), clips_per_shard=256)
        extraction = api.extraction(workspace, recipe="baseline", gpus=0)
        marks = sorted({100, *(round(clips * share / 10) for share in range(1, 11))})
        found: dict[int, int] = {}
        done = 0
        peak = 0
        ended = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not ended.wait(1.0):
                peak = max(peak, memory_bytes())

        def on_event(event: Event) -> None:
            nonlocal done
            if isinstance(event, Progress):
                done += 1
                if done in marks:
                    found[done] = memory_bytes()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        start = time.monotonic()
        extraction.run(on_event=on_event)
        seconds = time.monotonic() - start
        ended.set()
        watcher.join()
        print("clips  memory of all processes [MiB]  against clip 100")
        for count, size in sorted(found.items()):
            print(f"{count:5}  {size / 2**20:30.0f}  {size / found[marks[0]]:16.2f}")
        print(f"highest ever: {peak / 2**20:.0f} MiB; {clips / seconds:.1f} clips/s")


def kills(times: int) -> None:
    """Kill an extraction again and again, and compare what it gives in the end."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        unbroken = rendered(Path(first), clips=96, files=24, clips_per_shard=8)
        broken = rendered(Path(second), clips=96, files=24, clips_per_shard=8)
        start = time.monotonic()
        run(unbroken).wait()
        seconds = time.monotonic() - start
        moments = random.Random(0)
        killed = ended = 0
        while killed < times:
            process = run(broken)
            try:
                process.wait(timeout=moments.uniform(0.1, 0.7) * seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                killed += 1
                continue
            ended += 1  # it was done before its time came: begin anew
            for path in broken.features("synthetic").rglob("0*"):
                path.unlink()
        run(broken).wait()
        same = shards(broken) == shards(unbroken)
        left = [p.pid for p in psutil.process_iter(["cmdline"]) if second in " ".join(p.info["cmdline"] or [])]
        verdict = "equal" if same else "DIFFER"
        print(f"killed {killed} times ({ended} runs ended first): shards {verdict}, processes left: {left or 'none'}")
        if not same or left:
            raise SystemExit(1)


def run(workspace: Workspace) -> subprocess.Popen[bytes]:
    """An extraction in a process of its own."""
    command = [sys.executable, "-m", "avpipe", "extract", "--recipe", "baseline", "--gpus", "0", "-w", workspace.root]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def shards(workspace: Workspace) -> Mapping[str, str]:
    """sha256 of every shard."""
    folder = workspace.features("synthetic")
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.h5"))
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what")
    what.add_parser("memory").add_argument("--clips", type=int, default=5000)
    what.add_parser("kills").add_argument("--times", type=int, default=20)
    options = parser.parse_args()
    if options.what in (None, "kills"):
        kills(getattr(options, "times", 20))
    if options.what in (None, "memory"):
        memory(getattr(options, "clips", 5000))


if __name__ == "__main__":
    main()
