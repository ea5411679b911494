"""Worker processes on the machines of a Ray cluster.

The cluster is the one that ``RAY_ADDRESS`` names, else the one that this machine belongs to, else one of this machine
alone, which ends with the run.

Each worker has an actor, and the actor is no more than its parent: it starts the worker process as
``engines/local.py`` does on any machine, and passes on what is said. So a worker lives by the same rules wherever it
runs: it is told to clean up, it dies with its parent, and how it died is known. Events come back as a stream, in their
order, and nobody polls. Ray repeats nothing by itself: what to do about a death is the runner's to say.
"""

from __future__ import annotations

import logging
import os
import pickle
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from avpipe.pipeline.engines import local
from avpipe.pipeline.errors import AvpipeError, MissingPackageError
from avpipe.pipeline.runner import Died, Event, MakeWorker, Needs, Task, Worker

try:
    import ray as _ray
except ImportError:
    raise MissingPackageError("the engine 'ray' needs a package that is not here: pip install 'avpipe[ray]'") from None

ray: Any = _ray  # half of it has no types, and the rest not those of what it returns
_GRACE_SECONDS = 10.0
_OBJECT_STORE_BYTES = 100 * 2**20  # next to nothing goes through it
_THREADS = "OMP_NUM_THREADS"


class Pool:
    """Worker processes of a cluster; see :class:`avpipe.pipeline.runner.Pool`.

    When the ``with`` block ends, the workers that still run get ``SIGTERM``, and what is left after ten seconds, or on
    another Ctrl-C, is killed.

    Args:
        make_worker: what to do in each process. It is pickled by value as far as it is not of an installed package:
            ``avpipe`` must be installed on every node.
        processes: how many there may be; ranks are below it.
        needs: of each worker. A worker waits until a node has as much to spare.
    """

    def __init__(self, make_worker: MakeWorker[Any], processes: int, *, needs: Needs = Needs()) -> None:  # noqa: B008
        self._make_worker, self._processes, self._needs = ray.cloudpickle.dumps(make_worker), processes, needs
        self._hosts: dict[int, _Host] = {}
        self._is_own = False

    def start(self, rank: int) -> None:
        """Start an actor with its process."""
        if not 0 <= rank < self._processes or rank in self._hosts:
            raise ValueError(f"rank: expected a free one below {self._processes}, got {rank}")
        actor = self._actor.remote(rank, self._make_worker, str(Path.cwd()), os.environ.get(_THREADS))
        self._hosts[rank] = _Host(actor, actor.events.options(num_returns="streaming").remote())

    def assign(self, rank: int, task: Task) -> None:
        """Give a task to a process that asked for one."""
        self._hosts[rank].actor.assign.remote(task)

    def dismiss(self, rank: int) -> None:
        """Tell a process that asked for a task that there is none: to finish, clean up and end."""
        self._hosts[rank].actor.dismiss.remote()

    def wait(self) -> list[Event]:
        """Wait for the next events. Empty once no process is left."""
        events: list[Event] = []
        while self._hosts and not events:
            events += self._receive(None)
        return events

    def __enter__(self) -> Self:
        self._is_own = _connect() or self._is_own
        self._actor = ray.remote(_Parent).options(
            num_cpus=cores_of_a_worker(self._needs),
            num_gpus=self._needs.gpus,
            max_concurrency=2,  # the stream of events, and what is to be done meanwhile
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        return self

    def __exit__(self, *error: object) -> None:
        try:
            # One that waits for a node, or still starts, has nothing to clean up.
            for rank in [rank for rank, host in self._hosts.items() if not host.has_spoken]:
                self._end(rank)
            for host in self._hosts.values():
                host.actor.terminate.remote()
            deadline = time.monotonic() + _GRACE_SECONDS
            while self._hosts and (left := deadline - time.monotonic()) > 0:
                self._receive(left)
        finally:
            for rank in list(self._hosts):
                self._end(rank)
            _disconnect()

    def _receive(self, timeout_seconds: float | None) -> list[Event]:
        """What comes next from whoever is first; nothing if that is the end of one, or nobody says anything."""
        events: list[Event] = []
        ranks = {host.events: rank for rank, host in self._hosts.items()}
        ready, _ = ray.wait(list(ranks), num_returns=1, timeout=timeout_seconds)
        for stream in ready:
            rank = ranks[stream]
            try:
                said: list[Event] = ray.get(next(stream))
            except StopIteration:
                self._end(rank)
            except ray.exceptions.RayTaskError:  # a bug of this module
                raise
            except ray.exceptions.RayError as error:
                self._end(rank)
                events.append(Died(rank=rank, reason=_reason(error)))
            else:
                self._hosts[rank].has_spoken = True
                events += said
                if any(isinstance(event, Died) for event in said):  # the rank is free for the next
                    self._end(rank)
        return events

    def _end(self, rank: int) -> None:
        """Let go of an actor, whether it lives or not: if it was only out of reach, it must not go on."""
        ray.kill(self._hosts.pop(rank).actor)


def devices(gpus: int | None, gpu_share: float = 1.0) -> tuple[str, ...]:
    """One device a worker process, as its process will see it: to each, its GPU is the first.

    Args:
        gpus: how many GPUs of the cluster to use; 0 = CPUs, one worker a node; ``None`` = all there are, or CPUs.
        gpu_share: what part of a GPU a worker takes.

    Raises:
        UsageError: more are asked for than there are.
    """
    _connect()
    there = sum(int(node.get("GPU", 0)) for node in _nodes())
    count, each = local.count_gpus(gpus, there, "in the Ray cluster"), local.workers_a_gpu(gpu_share)
    if count:
        return ("cuda:0",) * (count * each)
    return ("cpu",) * sum(node.get("CPU", 0) > 0 for node in _nodes())


def cores(workers: int) -> int:
    """How many cores each of so many workers can have."""
    _connect()
    return max(1, int(sum(node.get("CPU", 0) for node in _nodes())) // workers)


@dataclass(slots=True)
class _Host:
    """The actor of one worker, from here."""

    actor: Any
    events: Any
    has_spoken: bool = False


class _Parent:
    """The actor: parent of one worker process."""

    def __init__(self, rank: int, make_worker: bytes, folder: str, threads: str | None) -> None:
        with suppress(FileNotFoundError):  # not every node has it, and not every run needs it
            os.chdir(folder)
        # Ray sets this to the number of cores. The decoding processes take it for the user's wish.
        os.environ.pop(_THREADS, None)
        if threads is not None:
            os.environ[_THREADS] = threads
        self._rank = rank
        self._pool = local.Pool(_Carried(make_worker), rank + 1)
        self._pool.start(rank)

    def events(self) -> Iterator[list[Event]]:
        """All that happens, until the process has ended."""
        while events := self._pool.wait():
            yield events

    def assign(self, task: Task) -> None:
        with suppress(KeyError):  # it died meanwhile, which the stream tells
            self._pool.assign(self._rank, task)

    def dismiss(self) -> None:
        with suppress(KeyError):
            self._pool.dismiss(self._rank)

    def terminate(self) -> None:
        self._pool.terminate()


class _Carried:
    """A ``MakeWorker`` that is carried unopened to the process that it is for."""

    def __init__(self, pickled: bytes) -> None:
        self._pickled = pickled

    def __call__(self, rank: int) -> Worker[Any]:
        make_worker: MakeWorker[Any] = pickle.loads(self._pickled)
        return make_worker(rank)


_connected_here = False


def _connect() -> bool:
    """Connect to a cluster; start one if there is none.

    Raises:
        AvpipeError: the cluster that ``RAY_ADDRESS`` names cannot be reached.
    """
    global _connected_here  # noqa: PLW0603 (Ray has one connection a process, too)
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        ray.init(address="auto", **quiet)
    except ConnectionError as error:
        if address := os.environ.get("RAY_ADDRESS"):
            raise AvpipeError(f"no Ray cluster answers at RAY_ADDRESS={address}: {error}") from None
        ray.init(address="local", include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, **quiet)
    _connected_here = True
    return True


def _disconnect() -> None:
    """End what :func:`_connect` began."""
    global _connected_here  # noqa: PLW0603
    if _connected_here:
        _connected_here = False
        ray.shutdown()


def _nodes() -> list[Mapping[str, float]]:
    """What each living node has: ``{"CPU": 16.0, "GPU": 4.0, ...}``."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def cores_of_a_worker(needs: Needs) -> float:
    """The cores to ask for: as many as are needed, but never so many that a GPU finds no worker, or none can start."""
    fair = []
    for node in _nodes():
        workers = int(node.get("GPU", 0) / needs.gpus + 1e-9) if needs.gpus else 1
        if workers and node.get("CPU", 0):
            fair.append(node["CPU"] / workers)
    found = min(needs.cores, *fair) if fair else needs.cores
    return found if found < 1 else int(found)  # Ray takes fractions below one core only


def _reason(error: Exception) -> str:
    """Why an actor is gone, as the end of a sentence about a process."""
    said, _, _ = " ".join(str(error).split()).partition(" Some common causes")  # a lecture follows
    return f"was lost with its node or actor ({said})"
