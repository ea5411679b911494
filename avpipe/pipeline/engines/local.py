"""Worker processes on this machine.

Each is spawned, not forked: a forked process may not use CUDA, and inherits whatever its parent had open. Each has a
pipe of its own: a shared queue stays locked for ever when a process is killed while it holds the lock.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Any, Self

from avpipe.pipeline.errors import UsageError
from avpipe.pipeline.runner import Died, Done, Event, MakeWorker, Needs, Progress, Raised, Ready, Task

_SPAWN = multiprocessing.get_context("spawn")
_POLL_SECONDS = 1.0
_GRACE_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class Pool:
    """Worker processes of this machine; see :class:`avpipe.pipeline.runner.Pool`.

    When the ``with`` block ends, the processes that still run get ``SIGTERM``, which their Python code sees as
    ``SystemExit``, and after ten seconds, or on another Ctrl-C, ``SIGKILL``. Ctrl-C itself does not reach them: the
    parent decides. They do not survive the parent (on Linux; elsewhere they end with the task at hand).

    Args:
        make_worker: what to do in each process.
        processes: how many there may be; ranks are below it.
        needs: of each worker; of no concern here, where all share one machine.
    """

    def __init__(self, make_worker: MakeWorker[Any], processes: int, *, needs: Needs = Needs()) -> None:  # noqa: B008
        self._make_worker, self._processes = make_worker, processes
        self._workers: dict[int, _Worker] = {}

    def start(self, rank: int) -> None:
        """Start a process."""
        if not 0 <= rank < self._processes or rank in self._workers:
            raise ValueError(f"rank: expected a free one below {self._processes}, got {rank}")
        self._workers[rank] = _Worker(rank, self._make_worker)

    def assign(self, rank: int, task: Task) -> None:
        """Give a task to a process that asked for one."""
        self._workers[rank].send(task)

    def dismiss(self, rank: int) -> None:
        """Tell a process that asked for a task that there is none: to finish, clean up and end."""
        self._workers[rank].send(None)
        self._workers[rank].dismissed = True

    def wait(self) -> list[Event]:
        """Wait for the next events. Empty once no process is left."""
        events: list[Event] = []
        while self._workers and not events:
            # A child of a worker may hold the pipe open when the worker is dead: look after them now and then.
            wait([worker.pipe for worker in self._workers.values()], timeout=_POLL_SECONDS)
            for rank, worker in list(self._workers.items()):
                said = worker.receive()
                events += said
                # Its death is an event of the next call: these may be answered as if it were alive.
                if not said and worker.is_gone():
                    del self._workers[rank]
                    events += worker.bury()
        return events

    def terminate(self) -> None:
        """Tell all processes to clean up and end, whatever they are doing."""
        for worker in list(self._workers.values()):
            worker.process.terminate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        workers = list(self._workers.values())
        try:
            self.terminate()
            deadline = time.monotonic() + _GRACE_SECONDS
            for worker in workers:
                worker.process.join(max(0.0, deadline - time.monotonic()))
        finally:
            for worker in workers:
                worker.process.kill()
                worker.process.join()
                worker.pipe.close()
            self._workers.clear()


def devices(gpus: int | None, gpu_share: float = 1.0) -> tuple[str, ...]:
    """One device a worker process.

    Args:
        gpus: how many GPUs to use; 0 = the CPU; ``None`` = all there are, or the CPU.
        gpu_share: what part of a GPU a worker takes: with 0.5, two share one.

    Raises:
        UsageError: more are asked for than there are.
    """
    import torch

    count, each = count_gpus(gpus, torch.cuda.device_count(), "here"), workers_a_gpu(gpu_share)
    return tuple(f"cuda:{index}" for index in range(count) for _ in range(each)) or ("cpu",)


def cores(workers: int) -> int:
    """How many cores each of so many workers can have: of those that this process may use, which a batch system or a
    container may have limited.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // workers)


def count_gpus(asked: int | None, there: int, where: str) -> int:
    """How many GPUs to use.

    Raises:
        UsageError: more are asked for than there are.
    """
    if asked is not None and not 0 <= asked <= there:
        what = "no GPU" if there == 0 else f"{there} GPUs"
        advice = f"try --gpus {there}" + " (the CPU)" * (not there)
        raise UsageError(f"{asked} GPUs asked for, {what} found {where}; {advice}")
    return there if asked is None else asked


def workers_a_gpu(share: float) -> int:
    """How many workers fit on a GPU, if each takes such a share of it.

    Raises:
        UsageError: it is no share.
    """
    if not 0 < share <= 1:
        raise UsageError(f"share of a GPU: expected more than 0 and at most 1, got {share:g}")
    return int(1 / share + 1e-9)


class _Worker:
    """The parent's end of one process."""

    def __init__(self, rank: int, make_worker: MakeWorker[Any]) -> None:
        self.rank, self.dismissed = rank, False
        self._raised = self._closed = False
        self.pipe, child_pipe = _SPAWN.Pipe()
        self.process: SpawnProcess = _SPAWN.Process(
            target=_main, args=(rank, make_worker, child_pipe, os.getpid()), name=f"avpipe worker {rank}"
        )
        with _interrupts_blocked():
            self.process.start()
        child_pipe.close()  # so that the pipe ends when the process does

    def send(self, task: Task | None) -> None:
        try:
            self.pipe.send(task)
        except OSError:  # it has just died, which `receive` finds out
            self._closed = True

    def receive(self) -> list[Event]:
        """What it said since; does not wait."""
        events: list[Event] = []
        try:
            while self.pipe.poll():
                event = self.pipe.recv()
                self._raised |= isinstance(event, Raised)
                events.append(event)
        except (EOFError, OSError):
            self._closed = True
        return events

    def is_gone(self) -> bool:
        """Whether it ended and all that it said is known."""
        if self._closed:
            self.process.join(_GRACE_SECONDS)
            if self.process.is_alive():  # it closed its end, but hangs in its last clean-up
                self.process.kill()
                self.process.join()
            return True
        return not self.process.is_alive() and not self.pipe.poll()

    def bury(self) -> list[Event]:
        """The event of its end, if nobody expected it."""
        code = self.process.exitcode or 0
        self.pipe.close()
        expected = self._raised or (self.dismissed and code == 0)
        return [] if expected else [Died(rank=self.rank, reason=_reason(code))]


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies, however that happens. Linux only; else does nothing.

    To be called first in a child process. To the kernel, the parent is the thread that started the child: that thread
    must live as long as the child shall.

    Args:
        parent_pid: of the parent, as the parent itself knows it: it may be dead already.
    """
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


def _main(rank: int, make_worker: MakeWorker[Any], pipe: Connection[Any, Any], parent_pid: int) -> None:
    """A worker process."""
    die_with_parent(parent_pid)
    signal.signal(signal.SIGTERM, _leave)
    line = _Line(rank, pipe)
    try:
        with closing(make_worker(rank)) as work:
            work(line, line)
    except Exception as error:
        if os.getppid() != parent_pid:  # nobody is left to tell
            raise
        line.send(Raised(rank=rank, error=portable(error), traceback=traceback.format_exc()))
    finally:  # nothing is left to clean up, and no exception may interrupt Python's own ending
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Line:
    """The worker's end of the pipe: the tasks that come, and :class:`avpipe.pipeline.runner.Tell`."""

    def __init__(self, rank: int, pipe: Connection[Any, Any]) -> None:
        self._rank, self._pipe = rank, pipe
        self._lock = threading.Lock()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Task:
        self.send(Ready(rank=self._rank))
        task: Task | None = self._pipe.recv()
        if task is None:
            raise StopIteration
        return task

    def progress(self, task: str, data: Mapping[str, Any]) -> None:
        self.send(Progress(rank=self._rank, task=task, data=data))

    def done(self, task: str, counts: Mapping[str, int]) -> None:
        self.send(Done(rank=self._rank, task=task, counts=dict(counts)))

    def send(self, event: Event) -> None:
        with self._lock:  # two events must not be mixed up
            self._pipe.send(event)


def _leave(number: int, frame: FrameType | None) -> None:
    """SIGTERM: leave through every ``with`` and ``finally``."""
    raise SystemExit(128 + number)


def portable(error: Exception) -> Exception:
    """The error itself if it can cross a process border, else one that says the same."""
    try:
        same = type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # noqa: BLE001  a class may refuse in any way
        same = False
    return error if same else RuntimeError(f"{type(error).__qualname__}: {error}")


def _reason(code: int) -> str:
    """What an exit code means, as the end of a sentence about a process."""
    if code >= 0:
        return f"ended with exit status {code}"
    name = signal.Signals(-code).name
    if name == "SIGKILL":
        return "was killed (SIGKILL; often by the system, when memory is short)"
    return f"crashed ({name})"


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block Ctrl-C: a process started inside never sees it, and this one sees it afterwards."""
    resource_tracker.ensure_running()  # else the first process starts it, which unblocks Ctrl-C
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
