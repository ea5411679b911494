"""What looks at files in the tests of probing, and is not good at it. Imported by the processes that look."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from avpipe.data_manifests.probe import Looking, Probe, probe_files


@dataclass(frozen=True, slots=True)
class Clumsy(Looking):
    """Dies, hangs or eats where a file's name says so; leaves the name of each file that it looks at."""

    def __call__(self, files: Sequence[str]) -> list[Probe]:
        probes = []
        for file in files:
            with (self.root / "looked").open("a") as log:
                log.write(f"{file}\n")
            if file.startswith("segfault"):
                os.kill(os.getpid(), signal.SIGSEGV)
            elif file.startswith("hang"):
                time.sleep(3600)
            elif file.startswith("eat"):
                eaten = []
                while True:
                    eaten.append(b"x" * (1 << 20))
            probes += Looking(self.root, self.limits)([file])
        return probes


def main() -> None:
    """A program that probes the files below a folder one process after the other, without hurry, and is killed."""
    root, cache = map(Path, sys.argv[1:])
    files = sorted(path.name for path in root.iterdir())
    probe_files(root, files, cache=cache, processes=2, progress=lambda done, total: time.sleep(0.05))


if __name__ == "__main__":
    main()
