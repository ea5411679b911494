"""Several child processes at once: as many as pay, none that outlives its scoring."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any, TypeVar

from avpipe.eval.java import twice

Q = TypeVar("Q")
A = TypeVar("A")

_MEGABYTE = 1 << 20


class Stop:
    """Tells children, in whatever thread they are talked to, that nobody waits for their answers any more.

    Args:
        outer: another one; when it is set, so is this.
    """

    def __init__(self, outer: Stop | None = None) -> None:
        self._outer, self._event = outer, threading.Event()

    def set(self) -> None:
        """From now on, and for good."""
        self._event.set()

    def is_set(self) -> bool:
        """Whether children are to end."""
        return self._event.is_set() or (self._outer is not None and self._outer.is_set())

    def __enter__(self) -> Stop:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """A block that is left by an exception (Ctrl-C, say) leaves no children behind."""
        if kind is not None:
            self.set()


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def how_many(work: float, *, least: float, megabytes: int) -> int:
    """How many children are worth their start, as cores, memory and work allow; at least one.

    Args:
        work: how much there is, in any unit.
        least: less than this is not worth a child of its own.
        megabytes: of memory that each takes.
    """
    import psutil

    room = psutil.virtual_memory().available // (megabytes * _MEGABYTE)
    return max(1, min(cores(), int(room), int(work / least)))


def spread(work: Callable[[Sequence[Q], Stop], list[A]], questions: Sequence[Q], processes: int, stop: Stop) -> list[A]:
    """Answers to all questions, in their order, by several children at once.

    Each share has a thread of its own, which opens its child and closes it: on Linux a child lives no longer than the
    thread that opened it. A share whose child died is tried once more. If one fails for good, or this thread is
    interrupted, the others are stopped at once.

    Args:
        work: opens a child, asks it some of the questions, and closes it; one answer a question.
        questions: shared out like cards, so that a corpus sorted by kind makes no long share.
        processes: at most so many children.
        stop: when it is set, children are killed and :class:`~avpipe.eval.java.JavaError` is raised.

    Raises:
        JavaError: a child gave wrong answers, died or hung twice, or was stopped.
    """
    processes = min(processes, len(questions))
    if processes <= 1:
        return twice(partial(work, questions, stop))
    answers: list[Any] = [None] * len(questions)
    with ThreadPoolExecutor(processes, thread_name_prefix="child") as pool, Stop(stop) as inner:
        shares: dict[Future[list[A]], slice] = {}
        for first in range(processes):
            share = slice(first, None, processes)
            shares[pool.submit(twice, partial(work, questions[share], inner))] = share
        for future in as_completed(shares):
            answers[shares[future]] = future.result()
    return answers
