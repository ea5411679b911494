"""Work functions for the tests of the decoding processes. Imported by those processes."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from avpipe.pipeline.errors import AvpipeError, ClipError, SkipClip


def work(job: str) -> str:
    """What the job says; most of it bad."""
    match job.split(":"):
        case ["segfault"]:
            ctypes.string_at(0)
        case ["killed"]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["exit"]:
            os._exit(7)
        case ["hang"]:
            time.sleep(3600)
        case ["eat"]:
            eaten = []
            while True:
                eaten.append(np.ones(1 << 20))
        case ["eat", "honestly"]:
            raise MemoryError("no room for 900 frames")
        case ["bad"]:
            raise ClipError("decode", "no frame decodes")
        case ["skip"]:
            raise SkipClip("no_audio", "there is no sound")
        case ["user"]:
            raise AvpipeError("mount the disk")
        case ["bug"]:
            raise KeyError("no such thing")
        case ["unpicklable"]:
            return lambda: None  # type: ignore[return-value]
        case ["sleep", seconds]:
            time.sleep(float(seconds))
        case ["print"]:
            print("a library that is not asked speaks")
    return job


def process(job: str) -> int:
    """In which process."""
    time.sleep(float(job))
    return os.getpid()


def torch_is_loaded(job: str) -> tuple[bool, str | None]:
    return job in sys.modules, os.environ.get("OMP_NUM_THREADS")


def arrays(sizes: list[int]) -> dict[str, npt.NDArray[np.float32]]:
    return {str(size): np.arange(size, dtype=np.float32) for size in sizes}


@dataclass(frozen=True)
class Scaled:
    """Work that carries something."""

    factor: npt.NDArray[np.float32]

    def __call__(self, job: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return job * self.factor


@dataclass(frozen=True)
class Counting:
    """Leaves a file for each job that it begins."""

    folder: Path

    def __call__(self, job: int) -> int:
        (self.folder / str(job)).touch()
        return job


def outlive(folder: str) -> None:
    """A program that uses a pool and is killed: its children hang, and say who they are."""
    from avpipe.pipeline.sandbox import DecodePool

    with DecodePool(Hanging(folder), processes=3) as pool:
        list(pool.map(range(3)))


@dataclass(frozen=True)
class Hanging:
    """Leaves its process id, then never returns, nor lets anything else in: as a decoder hangs."""

    folder: str

    def __call__(self, job: int) -> None:
        Path(self.folder, f"{os.getpid()}.pid").touch()
        ctypes.PyDLL(None).sleep(3600)  # without letting go of the interpreter


class Unimportable:
    """Pickles, but does not unpickle."""

    def __reduce__(self) -> tuple[object, ...]:
        return int, ("no number",)

    def __call__(self, job: object) -> None:
        """Never comes to this."""
