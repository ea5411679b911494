"""How long ``avpipe prepare`` takes over whole releases, and how much memory, without looking into media files.

Releases of the official size and form are made up here (random words, empty media files): nothing need be had. Each is
prepared in a process of its own, several times; beside it, in the same run, what reading the file with the standard
library's parser costs, for a yardstick that knows this machine::

    python benchmarks/prepare.py
    python benchmarks/prepare.py --only msrvtt --times 5 --json result.json
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

WORDS = [f"{a}{b}" for a in ("ba", "co", "di", "fu", "ge", "lo") for b in ("ral", "sin", "tem", "vok", "zan", "ming")]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(RELEASES))
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        _child(*arguments.child)
        return
    found = {}
    for name in [arguments.only] if arguments.only else sorted(RELEASES):
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(name, Path(folder), arguments.times)
        print(json.dumps({name: found[name]}), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


def measure(name: str, folder: Path, times: int) -> dict[str, float]:
    """Medians of several runs, each in a fresh process, in turn with the yardstick."""
    (folder / "annotations").mkdir()
    (folder / "media").mkdir()
    clips, captions = RELEASES[name](folder)
    size = sum(path.stat().st_size for path in (folder / "annotations").iterdir())
    runs: dict[str, list[dict[str, float]]] = {"prepare": [], "read": []}
    for _ in range(times):
        for what, got in runs.items():
            command = [sys.executable, __file__, "--child", what, name, str(folder)]
            got.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    seconds = {what: statistics.median(run["seconds"] for run in got) for what, got in runs.items()}
    return {
        "clips": clips,
        "captions": captions,
        "megabytes": round(size / 1e6, 1),
        "seconds": round(seconds["prepare"], 2),
        "peak_mib": round(statistics.median(run["peak_mib"] for run in runs["prepare"])),
        "times_reading_alone": round(seconds["prepare"] / seconds["read"], 2),
        "slowest": round(max(run["seconds"] for run in runs["prepare"]), 2),
    }


def _child(what: str, name: str, folder: str) -> None:
    """One run; prints its wall time and the peak of its memory. Importing Python packages counts."""
    start = time.perf_counter()
    place = Path(folder)
    if what == "read":
        for path in (place / "annotations").iterdir():
            with path.open(encoding="utf-8", newline="") as file:
                _ = json.load(file) if path.suffix == ".json" else list(csv.reader(file))
    else:
        from avpipe import api
        from avpipe.pipeline.workspace import Workspace

        api.prepare(
            Workspace(place / "workspace"),
            name,
            annotations=place / "annotations",
            media=place / "media",
            probe=False,
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": time.perf_counter() - start, "peak_mib": peak}))


def sentences(seed: int) -> Iterator[str]:
    """Captions of some ten words, every hundredth untidy, as in the real files."""
    draw = random.Random(seed)
    while True:
        words = draw.choices(WORDS, k=draw.randint(6, 14))
        yield ("  " if draw.random() < 0.01 else " ").join(words)


def youtube_ids(seed: int) -> Iterator[str]:
    draw = random.Random(seed)
    while True:
        yield "".join(draw.choices(LETTERS, k=11))


def msrvtt(folder: Path) -> tuple[int, int]:
    """10,000 videos, 200,000 sentences."""
    text, ids = sentences(0), youtube_ids(0)
    for name, numbers in (("train_val", range(7010)), ("test", range(7010, 10_000))):
        videos = [
            {
                "category": number % 20,
                "url": f"https://www.youtube.com/watch?v={next(ids)}",
                "video_id": f"video{number}",
                "start time": 10.5,
                "end time": 25.25,
                "split": "train" if number < 6513 else "validate" if number < 7010 else "test",
                "id": number,
            }
            for number in numbers
        ]
        told = [
            {"caption": next(text), "video_id": f"video{number}", "sen_id": 20 * number + take}
            for number in numbers
            for take in range(20)
        ]
        values = {"info": {}, "videos": videos, "sentences": told}
        (folder / "annotations" / f"{name}_videodatainfo.json").write_text(json.dumps(values), encoding="utf-8")
        for number in numbers:
            (folder / "media" / f"video{number}.mp4").touch()
    return 10_000, 200_000


def audiocaps(folder: Path) -> tuple[int, int]:
    """49,838 + 495 + 975 clips; a fourteenth of the files is missing, as it is today."""
    text, ids, number = sentences(1), youtube_ids(1), 0
    for split, clips, several in (("train", 49_838, 1), ("val", 495, 5), ("test", 975, 5)):
        with (folder / "annotations" / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("audiocap_id", "youtube_id", "start_time", "caption"))
            for _ in range(clips):
                video, start = next(ids), 10 * (number % 40)
                for _ in range(several):
                    number += 1
                    rows.writerow((number, video, start, next(text)))
                if number % 14:
                    (folder / "media" / f"{video}_{start}.wav").touch()
    return 51_308, 57_188


def howto100m(folder: Path) -> tuple[int, int]:
    """5,000 videos with 112 lines of speech each, as many as the paper counts, of which 100 are on disk."""
    text, ids = sentences(2), youtube_ids(2)
    with (folder / "annotations" / "raw_caption.json").open("w", encoding="utf-8") as file:
        for number in range(5_000):
            video = next(ids)
            starts = [round(3.6 * line, 2) for line in range(112)]
            told = {
                "start": starts,
                "end": [round(start + 4.2, 2) for start in starts],
                "text": [next(text) for _ in starts],
            }
            file.write(f"{',' if number else '{'}{json.dumps(video)}: {json.dumps(told)}")
            if number % 50 == 0:
                (folder / "media" / f"{video}.mp4").touch()
        file.write("}")
    return 5_000, 560_000


RELEASES: dict[str, Callable[[Path], tuple[int, int]]] = {
    "audiocaps": audiocaps,
    "howto100m": howto100m,
    "msrvtt": msrvtt,
}


if __name__ == "__main__":
    main()
