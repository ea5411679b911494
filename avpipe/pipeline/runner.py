"""Map a worker over tasks with several processes. Knows nothing of what the work is.

The parent hands out tasks one by one, each to the process that asks for one: no process waits for another, and when
one dies it is known what it was doing. A worker may ask for its next task before it is done with the last, so that it
never stands idle between two. What happens then:

- A process that **dies** (killed, out of memory, a crash in native code) costs its tasks a retry, in a fresh process,
  which gets them one at a time, to find out which is to blame. A task that killed ``retries + 1`` processes is given
  up, with the reason; the others go on. So do they without a process that dies again and again before it takes up
  work, as on a broken GPU.
- An **exception** in a worker stops everything and is raised in the parent: an :class:`AvpipeError` is for the user to
  act on (a full disk), and anything else is a bug. Retrying would repeat either.
- **Ctrl-C** stops everything and is raised as ``KeyboardInterrupt`` once the workers have ended. They get the time to
  remove what they had begun.

Work always runs in processes of its own, even in a single one: a crash in the caller's process could not be retried.

How processes are started and spoken to is an engine's business (``engines/``).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from avpipe.pipeline.errors import AvpipeError


class Task(Protocol):
    """Anything that can be pickled and has a name of its own."""

    @property
    def name(self) -> str:
        """Unique in a run; for messages and reports."""


TaskT = TypeVar("TaskT", bound=Task)
TaskT_contra = TypeVar("TaskT_contra", bound=Task, contravariant=True)


class Tell(Protocol):
    """How a worker speaks to its parent. Any of its threads may."""

    def progress(self, task: str, data: Mapping[str, Any]) -> None:
        """Say how far a task is: anything that can be pickled, once a clip, say."""

    def done(self, task: str, counts: Mapping[str, int]) -> None:
        """Say that a task is done, with counts, which the runner adds up."""


class Worker(Protocol[TaskT_contra]):
    """Does the work, in a process of its own."""

    def __call__(self, tasks: Iterator[TaskT_contra], tell: Tell) -> None:
        """Do all tasks that come, and tell of each when it is done.

        Taking the next from ``tasks`` asks for it, and waits until it comes. One thread may take tasks while others
        work on those taken before; a worker must not count on getting one before those are done.
        """

    def close(self) -> None:
        """Clean up: called once, also after an exception and on Ctrl-C."""


MakeWorker = Callable[[int], Worker[TaskT]]
"""Called once in each worker process with its rank, ``0 <= rank < processes``: loads models. The rank says which GPU to
use; a process that replaces a dead one has the dead one's rank. Must be picklable: a class or function of a module, or
``functools.partial`` of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something happened in worker ``rank``."""

    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready(Event):
    """It asks for a task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(Event):
    """It was given a task."""

    task: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Event):
    """It reported how far it is."""

    task: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Event):
    """It finished its task."""

    task: str
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Raised(Event):
    """It raised, and ended. ``traceback`` is text."""

    error: Exception
    traceback: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Died(Event):
    """It is gone without a word."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What one worker takes of its machine, for an engine that has several to choose from.

    Attributes:
        cores: how many.
        gpus: how many; a fraction where workers share one.
    """

    cores: int = 1
    gpus: float = 0.0


class Pool(Protocol):
    """Worker processes, as an engine provides them. Used in a ``with`` block, which none of them outlives."""

    def start(self, rank: int) -> None:
        """Start a process; its first event is :class:`Ready`."""

    def assign(self, rank: int, task: Task) -> None:
        """Give a task to a process that asked for one."""

    def dismiss(self, rank: int) -> None:
        """Tell a process that asked for a task that there is none: to finish, clean up and end."""

    def wait(self) -> list[Event]:
        """Wait for the next events. Empty once no process is left."""

    def __enter__(self) -> Pool: ...

    def __exit__(self, *error: object) -> None: ...


Engine = Callable[[MakeWorker[TaskT], int], Pool]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """What became of the tasks.

    Attributes:
        done: names, in the order in which they were finished.
        failed: name to reason, of tasks that were given up.
        deaths: how many processes died.
        counts: sums of what the work returned.
    """

    done: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    deaths: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)


def ignore(event: Event) -> None:
    """An ``on_event`` that does nothing."""


def run(
    tasks: Sequence[TaskT],
    make_worker: MakeWorker[TaskT],
    *,
    processes: int,
    retries: int = 2,
    on_event: Callable[[Event], None] = ignore,
    engine: Engine[TaskT] | None = None,
) -> RunReport:
    """Do all tasks.

    Args:
        tasks: with distinct names.
        make_worker: see :data:`MakeWorker`.
        processes: how many worker processes; no more are started than there are tasks.
        retries: how often a task may be tried again after its process died.
        on_event: called in this process with every event, in the order in which they arrive.
        engine: what runs the processes; by default this machine.

    Raises:
        AvpipeError: a worker raised it, or processes die before they take a task.
        KeyboardInterrupt: Ctrl-C; the workers have ended.
        ValueError: two tasks have one name, or ``processes`` is below 1.
        Exception: a bug in a worker, with the worker's traceback as a note.
    """
    doubles = [name for name, count in Counter(task.name for task in tasks).items() if count > 1]
    if doubles:
        raise ValueError(f"tasks: expected distinct names, got {doubles[0]!r} more than once")
    if processes < 1:
        raise ValueError(f"processes: expected at least 1, got {processes}")
    if engine is None:
        from avpipe.pipeline.engines import local

        engine = local.Pool
    with engine(make_worker, min(processes, len(tasks))) as pool:
        return _Run(tasks, pool, retries, on_event).to_the_end(min(processes, len(tasks)))


class _Run:
    """The bookkeeping of one run."""

    def __init__(self, tasks: Sequence[Task], pool: Pool, retries: int, on_event: Callable[[Event], None]) -> None:
        self.pool, self.retries, self.on_event = pool, retries, on_event
        self.waiting = deque(tasks)
        self.running: dict[int, dict[str, Task]] = {}  # by rank and name, the oldest first
        self.again: dict[int, deque[Task]] = {}  # by the rank whose fresh process shall try, one at a time
        self.asking: set[int] = set()  # ranks that must wait for their next task
        self.dismissed: set[int] = set()
        self.working: set[int] = set()  # ranks whose process lives, and was not dismissed
        self.deaths = 0
        self.false_starts: Counter[int] = Counter()  # by rank, since it last was ready
        self.task_deaths: Counter[str] = Counter()
        self.done: list[str] = []
        self.failed: dict[str, str] = {}
        self.counts: Counter[str] = Counter()

    def to_the_end(self, processes: int) -> RunReport:
        for rank in range(processes):
            self._start(rank)
        while events := self.pool.wait():
            for event in events:
                self.on_event(event)
                self._handle(event)
        return RunReport(
            done=tuple(self.done),
            failed=self.failed,
            deaths=self.deaths,
            counts=dict(self.counts),
        )

    def _handle(self, event: Event) -> None:
        match event:
            case Ready(rank=rank):
                self.false_starts[rank] = 0
                self._next(rank)
            case Done(rank=rank, task=name, counts=counts):
                del self.running[rank][name]
                self.done.append(name)
                self.counts.update(counts)
                if rank in self.asking:
                    self._next(rank)
            case Raised(rank=rank, error=error, traceback=traceback):
                names = ", ".join(self.running.get(rank, ()))
                where = f"task {names}" if names else "outside of a task"
                error.add_note(f"in worker {rank}, {where}:\n{traceback}")
                raise error
            case Died(rank=rank, reason=reason):
                self._mourn(rank, reason)

    def _start(self, rank: int) -> None:
        self.working.add(rank)
        self.pool.start(rank)

    def _next(self, rank: int) -> None:
        running = self.running.setdefault(rank, {})
        if rank in self.again and running:  # under suspicion: one at a time
            self.asking.add(rank)
            return
        self.asking.discard(rank)
        if self.again.get(rank):
            task = self.again[rank].popleft()
        elif self.waiting:
            self.again.pop(rank, None)
            task = self.waiting.popleft()
        else:
            self.dismissed.add(rank)
            self.working.discard(rank)
            self.pool.dismiss(rank)
            return
        running[task.name] = task
        self.on_event(Started(rank=rank, task=task.name))
        self.pool.assign(rank, task)

    def _mourn(self, rank: int, reason: str) -> None:
        self.deaths += 1
        self.asking.discard(rank)
        self.working.discard(rank)
        suspects = self.running.pop(rank, {})
        untried = self.again.pop(rank, deque())
        if not suspects and rank in self.dismissed:  # its work was done
            return
        self.dismissed.discard(rank)
        if not suspects:
            self.false_starts[rank] += 1
            if self.false_starts[rank] > self.retries:
                if not self.working:
                    raise AvpipeError(
                        f"worker {rank} dies before it takes up work ({self.false_starts[rank]} times in a row; the "
                        f"last process {reason}), and no other is left. If memory is short, try fewer processes"
                    )
                self.waiting.extendleft(reversed(untried))  # the others do without it: its device may be broken
                return
        for task in reversed(suspects.values()):
            self.task_deaths[task.name] += 1
            if self.task_deaths[task.name] > self.retries:
                self.failed[task.name] = f"tried {self.task_deaths[task.name]} times, its process {reason}"
            else:
                untried.appendleft(task)
        if untried:
            self.again[rank] = untried
        if self.waiting or untried:
            self._start(rank)
