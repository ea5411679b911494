"""How fast many media files are probed, and whether a run that is killed goes on where it stopped.

    python benchmarks/probe.py --media FOLDER [FOLDER ...] --files 10000

Makes hard links to the files of the folders in a temporary folder, again and again, so many (where they lie on another
file system: to a copy of each). Then, in turn, several times:

- *plain opening*: ``av.open`` of every file, one after the other, in this process: what no program that asks FFmpeg can
  do without. Divided by the cores, it is what a perfect program would need that finds out less: nothing about silence,
  and no duration where the header has none.
- *looking*: our look at every file, in this process, without a sandbox. What this is above the plain opening is the
  decoding of sound until something is heard, less the pictures that the plain opening decodes.
- *probing*: :func:`avpipe.data_manifests.probe.probe_files`, from no cache and no process to the last row.
- *again*: the same with everything in the cache.

Where other work runs on the machine, wall clock says little; then (CPU seconds of the run + seconds that cores were
idle meanwhile) stands for it: what the run would have taken alone, if nobody else filled its pauses. What is printed
are medians over the turns, of ratios within a turn.

At last a run is killed (SIGKILL) when half of the files are in its cache, and another goes on.

    python benchmarks/probe.py --media FOLDER [FOLDER ...] --cold 2000

makes real copies, so many, and drops them from the page cache before each measure: reading every byte of them with a
thread a core (what the disk can do), and probing them. Small files share what a disk reads at a time, so reading and
probing are compared by time alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import psutil

from avpipe.data_manifests.probe import Probe, probe, probe_files

CORES = len(os.sched_getaffinity(0))


def link(originals: Sequence[Path], folder: Path, count: int) -> list[str]:
    """So many names for the files; returns the names."""
    names = []
    sources = list(originals)
    for number in range(count):
        index = number % len(sources)
        name = f"{number:06d}{sources[index].suffix}"
        try:
            os.link(sources[index], folder / name)
        except OSError:  # another file system, or a file that is not ours
            shutil.copyfile(originals[index], folder / name)
            sources[index] = folder / name
        names.append(name)
    return names


@dataclass
class Cost:
    """Of a piece of work: wall clock; CPU seconds of this process and its children; idle seconds of all cores."""

    wall: float = 0.0
    cpu: float = 0.0
    idle: float = 0.0

    @property
    def alone(self) -> float:
        """Core seconds that it would have taken if nobody else had filled its pauses."""
        return self.cpu + self.idle


def spent() -> tuple[float, float, float]:
    """Wall clock, CPU seconds and idle seconds so far. Of children, those count that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    times = psutil.cpu_times()
    cpu = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    return time.perf_counter(), cpu, times.idle + getattr(times, "iowait", 0.0)


@contextmanager
def costing() -> Iterator[Cost]:
    """What the block costs."""
    cost, before = Cost(), spent()
    yield cost
    cost.wall, cost.cpu, cost.idle = (after - start for after, start in zip(spent(), before, strict=True))


def plain_opening(path: Path) -> None:
    """What every program that asks FFmpeg does."""
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            _ = container.duration
    except av.FFmpegError:
        pass


@contextmanager
def watching() -> Iterator[Callable[[], int]]:
    """The most memory that this process's children took together, in bytes."""
    peak, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.2):
            total = 0
            for child in psutil.Process().children():
                try:
                    total += child.memory_info().rss
                except psutil.Error:
                    continue  # it has just ended
            peak = max(peak, total)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: peak
    finally:
        ended.set()
        watcher.join()


def timed(work: Callable[[Path], object], folder: Path, names: Sequence[str]) -> list[float]:
    """Wall clock of some work on each file."""
    seconds = []
    for name in names:
        start = time.perf_counter()
        work(folder / name)
        seconds.append(time.perf_counter() - start)
    return seconds


def turn(folder: Path, names: Sequence[str], cache: Path) -> tuple[dict[str, float], dict[str, Probe]]:
    """Everything once."""
    cache.unlink(missing_ok=True)
    with costing() as opening:
        opened = timed(plain_opening, folder, names)
    with costing() as looking:
        looked = timed(probe, folder, names)
    with watching() as peak, costing() as probing:
        found = probe_files(folder, names, cache=cache)
    with costing() as again:
        if probe_files(folder, names, cache=cache) != found:
            raise SystemExit("the cache says something else than the files")
    loud = [not found[name].is_silent for name in names]
    return {
        "opening_ms": 1e3 * opening.wall / len(names),
        "looking_ms": 1e3 * looking.wall / len(names),
        "silent_share": 1 - sum(itertools.compress(looked, loud)) / sum(looked),
        "loud_look_to_opening": sum(itertools.compress(looked, loud)) / sum(itertools.compress(opened, loud)),
        "probing_files_per_second": len(names) / probing.wall,
        "probing_wall": probing.wall,
        "probing_cpu": probing.cpu,
        "to_opening_wall": probing.wall * CORES / opening.wall,
        "to_opening_alone": probing.alone / opening.cpu,
        "to_looking_wall": probing.wall * CORES / looking.wall,
        "to_looking_alone": probing.alone / looking.cpu,
        "cores_busy": 1 - probing.idle / (probing.wall * CORES),
        "own_share": probing.cpu / probing.alone,
        "children_mib": peak() / 2**20,
        "again_seconds": again.wall,
    }, found


def killed_and_resumed(folder: Path, names: Sequence[str], cache: Path) -> dict[str, float]:
    """Kill a run half way; then go on."""
    cache.unlink(missing_ok=True)
    running = subprocess.Popen([sys.executable, __file__, "--killed", str(folder), str(cache)])
    while running.poll() is None and (not cache.exists() or cache.read_bytes().count(b"\n") < len(names) // 2):
        time.sleep(0.02)
    children = psutil.Process(running.pid).children()
    running.send_signal(signal.SIGKILL)
    running.wait()
    left = psutil.wait_procs(children, timeout=10)[1]
    kept = cache.read_bytes().count(b"\n")
    told: list[int] = []
    start = time.perf_counter()
    probe_files(folder, names, cache=cache, progress=lambda done, total: told.append(done))
    seconds = time.perf_counter() - start
    return {"kept": kept, "probed": len(names) - told[0], "seconds": seconds, "processes_left": len(left)}


def evict(folder: Path) -> None:
    """Drop the files of a folder from the page cache."""
    os.sync()
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_all(folder: Path, names: Sequence[str]) -> float:
    """Seconds that it takes to read every byte, with a thread a core."""
    start = time.perf_counter()
    with ThreadPoolExecutor(CORES) as threads:
        list(threads.map(lambda name: len((folder / name).read_bytes()), names))
    return time.perf_counter() - start


def cold(originals: Sequence[Path], place: Path, count: int, turns: int) -> None:
    """Reading and probing files that are on the disk alone."""
    names = [f"{number:06d}{originals[number % len(originals)].suffix}" for number in range(count)]
    for number, name in enumerate(names):
        shutil.copyfile(originals[number % len(originals)], place / name)
    size = sum((place / name).stat().st_size for name in names)
    rows = []
    for _ in range(turns):
        row = {"read_warm": read_all(place, names)}
        evict(place)
        row["read_cold"] = read_all(place, names)
        row["probe_warm"] = _probing(place, names)
        evict(place)
        row["probe_cold"] = _probing(place, names)
        rows.append(row)
        print(", ".join(f"{key} {value:.2f} s" for key, value in row.items()), flush=True)
    medians = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    ratio = {
        key: statistics.median(row[f"{key}_cold"] / row[f"{key}_warm"] for row in rows) for key in ("read", "probe")
    }
    against = statistics.median(row["probe_cold"] / row["read_cold"] for row in rows)
    print(f"\n{count} copies, {size / 1e6:.0f} MB, {CORES} cores, medians of {turns} turns:")
    print(f"  reading all, cold: {size / 1e6 / medians['read_cold']:.0f} MB/s, {ratio['read']:.1f} times the warm time")
    print(f"  probing, cold: {count / medians['probe_cold']:.0f} files/s, {ratio['probe']:.2f} times the warm time")
    print(f"  probing, cold, against reading all, cold: {against:.2f}")


def _probing(folder: Path, names: Sequence[str]) -> float:
    start = time.perf_counter()
    probe_files(folder, names, cache=None)
    return time.perf_counter() - start


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", type=Path, nargs="+", help="folders of media files, good and bad")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results here, too")
    parser.add_argument(
        "--cold", type=int, default=0, metavar="FILES", help="measure on a cold disk, with so many copies"
    )
    parser.add_argument("--killed", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.killed:
        folder, cache = options.killed
        probe_files(folder, sorted(path.name for path in folder.iterdir()), cache=cache)
        return
    if not options.media:
        parser.error("--media: expected a folder or more, got none")
    originals = sorted(path for media in options.media for path in media.iterdir() if path.is_file())
    with tempfile.TemporaryDirectory() as place:
        folder, cache = Path(place) / "media", Path(place) / "cache.jsonl"
        folder.mkdir()
        if options.cold:
            cold(originals, folder, options.cold, options.turns)
            return
        names = link(originals, folder, options.files)
        turns = []
        for _ in range(options.turns):
            numbers, found = turn(folder, names, cache)
            turns.append(numbers)
            print(", ".join(f"{key} {value:.3g}" for key, value in numbers.items()), flush=True)
        resumed = killed_and_resumed(folder, names, cache)
        size = cache.stat().st_size
    kinds = Counter(each.error_type for each in found.values() if each.error_type)
    medians = {key: statistics.median(numbers[key] for numbers in turns) for key in turns[0]}
    print(f"\n{len(names)} files of {len(originals)}, {CORES} cores, medians of {len(turns)} turns:")
    print(f"  plain opening {medians['opening_ms']:.2f} ms a file, a look {medians['looking_ms']:.2f} ms")
    silent = sum(bool(each.is_silent) for each in found.values())
    print(f"  {medians['silent_share']:.0%} of the looks at {silent} files that are silent throughout; ", end="")
    print(f"a look at another takes {medians['loud_look_to_opening']:.2f} of its plain opening")
    print(f"  probing: {medians['probing_wall']:.1f} s, {medians['probing_files_per_second']:.0f} files/s")
    print("  against plain opening over the cores: ", end="")
    print(f"{medians['to_opening_wall']:.2f} by wall clock, {medians['to_opening_alone']:.2f} by CPU and idle seconds")
    print("  against looking over the cores: ", end="")
    print(f"{medians['to_looking_wall']:.2f} by wall clock, {medians['to_looking_alone']:.2f} by CPU and idle seconds")
    print(f"  cores busy {medians['cores_busy']:.1%}; of what was not others', the run used {medians['own_share']:.1%}")
    print(f"  processes together: {medians['children_mib']:.0f} MiB at most")
    print(f"  again, from the cache ({size / 1e6:.1f} MB): {medians['again_seconds']:.2f} s")
    print(
        f"  killed with {resumed['kept']:.0f} rows: {resumed['probed']:.0f} probed in {resumed['seconds']:.1f} s, ",
        end="",
    )
    print(f"{resumed['probed'] + resumed['kept'] - len(names):.0f} of them twice; {resumed['processes_left']:.0f} left")
    print(f"  unreadable: {sum(kinds.values())} ({dict(kinds)})")
    if options.json:
        options.json.write_text(
            json.dumps({"turns": turns, "medians": medians, "resumed": resumed, "kinds": kinds}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
