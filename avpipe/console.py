"""What long work shows: a live line on a terminal, one line a minute elsewhere (a log file, a batch job)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from avpipe.api import Extraction
    from avpipe.pipeline.shards import Mark

OnEvent = Callable[[Any], None]

SECONDS_BETWEEN_LINES = 60.0

# A line stays a line, however narrow the terminal or the log; ``:smile:`` in a name stays what it is.
out = Console(highlight=False, soft_wrap=True, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

__all__ = ["Meter", "err", "escape", "out", "show_extraction", "show_progress", "show_sweep", "show_training"]


class Meter:
    """Progress of one piece of long work. Use as a context manager.

    Args:
        label: what is being done ("extract synthetic").
        total: how many items there are.
        unit: what an item is ("clips").
        done: how many were done before this run; they do not count towards the rate.
    """

    def __init__(self, label: str, total: int, unit: str, done: int = 0) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._done = self._done_before = done
        self._counts: Counter[str] = Counter()
        self._facts: dict[str, str] = {}
        self._start = self._last_line = time.monotonic()
        self._progress: Progress | None = None
        if err.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=err)
            self._task = self._progress.add_task(label, total=total, completed=done, facts="")

    def __enter__(self) -> Self:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.stop()
        elif kind is None:
            self._print_line()

    def advance(self, items: int = 1, counts: Mapping[str, int] | None = None, **facts: str) -> None:
        """Say that items are done.

        Args:
            items: how many.
            counts: added to the running counts that are shown (``{"failed": 1}``).
            facts: shown as they are, until they change (``waiting_for="decoder"``).
        """
        self._done += items
        self._counts.update(counts or {})
        self._facts |= facts
        if self._progress:
            self._progress.update(self._task, completed=self._done, facts=self._describe())
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._print_line()

    def advance_to(self, done: int) -> None:
        """Say how many items are done by now."""
        self.advance(done - self._done)

    @property
    def per_second(self) -> float:
        """Items a second since this run began."""
        return (self._done - self._done_before) / max(time.monotonic() - self._start, 1e-9)

    def _describe(self) -> str:
        counts = [f"{count} {what}" for what, count in sorted(self._counts.items()) if count]
        facts = [f"{what.replace('_', ' ')} {value}" for what, value in self._facts.items() if value]
        return ", ".join([f"{self.per_second:.1f} {self._unit}/s", *counts, *facts])

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        left = (self._total - self._done) / self.per_second if self.per_second > 0 else float("inf")
        eta = f", {max(1, round(left / 60))} min left" if self._done < self._total and left < float("inf") else ""
        err.print(f"{self._label}: {self._done}/{self._total} {self._unit}, {self._describe()}{eta}", markup=False)


@contextmanager
def show_progress(label: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A meter for work that says how much is done, and of how much: ``progress(done, total)``. Nothing, where it is
    never called.
    """
    meter: Meter | None = None

    def progress(done: int, total: int) -> None:
        nonlocal meter
        if meter is None:
            meter = Meter(label, total, unit).__enter__()
        meter.advance_to(done)

    try:
        yield progress
    finally:
        if meter is not None:
            meter.__exit__(None, None, None)


@contextmanager
def show_extraction(extraction: Extraction, redo: Callable[[Mark], bool] | None = None) -> Iterator[OnEvent]:
    """A meter for an extraction: clips done, clips a second, failures, what is waited for, time left."""
    from avpipe.extract.worker import waiting_for
    from avpipe.pipeline.runner import Died, Done, Event, Progress, Started

    clips = {task.name: len(task.clips) for task in extraction.tasks(redo)}
    part = f" (part {extraction.part.index}/{extraction.part.count})" if extraction.part else ""
    total = sum(clips.values()) if extraction.part else len(extraction.manifest.clips)
    names = ", ".join(extraction.setting.encoders)
    with Meter(f"extract {names}{part}", total, "clips", done=total - sum(clips.values())) as meter:
        under_way: dict[str, Counter[str]] = {}  # what was said of each task
        waits: dict[int, Mapping[str, float]] = {}

        def on_event(event: Event) -> None:
            match event:
                case Progress(rank=rank, task=task, data=data):
                    waits[rank] = data["waits"]
                    counts = {f"failed ({kind})": count for kind, count in data["failures"].items()}
                    counts["skipped"] = data["statuses"].get("skipped", 0)
                    under_way.setdefault(task, Counter()).update({"": data["clips"], **counts})
                    meter.advance(data["clips"], counts, waiting_for=waiting_for(waits.values()))
                case Started(task=task):  # perhaps again, after its worker died
                    lost = {what: -count for what, count in under_way.pop(task, {}).items()}
                    meter.advance(lost.pop("", 0), lost)
                case Done(task=task):
                    under_way.pop(task, None)
                case Died(reason=reason):
                    err.print(f"a worker {reason}; its shard is done again", markup=False)

        yield on_event


@contextmanager
def show_training() -> Iterator[OnEvent]:
    """A meter for a training: steps done, steps a second, the loss, the last validation score, time left."""
    meter: Meter | None = None

    def on_event(event: Mapping[str, Any]) -> None:
        nonlocal meter
        if event["event"] == "step":
            if meter is None:
                meter = Meter("train", event["steps"], "steps", done=event["step"] - 1).__enter__()
            meter.advance(1, loss=f"{event['loss']:.3f}")
        elif meter is not None and event["score"] is not None:
            meter.advance(0, CIDEr=f"{event['score']:.3f}")

    try:
        yield on_event
    finally:
        if meter is not None:
            meter.__exit__(None, None, None)


OnPlan = Callable[[Mapping[str, int]], None]


@contextmanager
def show_sweep(name: str) -> Iterator[tuple[OnPlan, OnEvent]]:
    """A meter for many trainings: steps done of all steps, runs done, time left; and a line for every run that ends.

    Gives two functions: one is told of the steps of each run before they begin, the other of events.
    """
    from avpipe.pipeline.runner import Died, Done, Progress, Started

    meter: Meter | None = None
    steps: dict[str, int] = {}
    reached: dict[str, int] = {}
    best: dict[str, float] = {}
    under_way: dict[int, str] = {}  # by rank

    def on_plan(planned: Mapping[str, int]) -> None:
        nonlocal meter
        steps.update(planned)
        meter = Meter(f"sweep {name}", sum(planned.values()), "steps").__enter__()

    def advance_to(task: str, step: int, counts: Mapping[str, int] | None = None) -> None:
        if meter is not None:
            meter.advance(step - reached.get(task, 0), counts)
        reached[task] = step

    def on_event(event: Any) -> None:
        match event:
            case Started(rank=rank, task=task):
                if task in reached:  # its process died
                    err.print(f"{task}: goes on from its last checkpoint", markup=False)
                under_way[rank] = task
                advance_to(task, 0)
            case Progress(task=task, data={"event": "step", "step": step}):
                advance_to(task, step)
            case Progress(task=task, data={"event": "result", "best_score": float(score)}):
                best[task] = score
            case Done(rank=rank, task=task, counts=counts):
                under_way.pop(rank, None)
                advance_to(task, steps.get(task, 0), {f"runs {what}": count for what, count in counts.items()})
                scored = f", best CIDEr {best[task]:.4f} on val" if task in best else ""
                err.print(f"{task}: {', '.join(counts)}{scored}", markup=False)
            case Died(rank=rank, reason=reason) if rank in under_way:
                err.print(f"{under_way.pop(rank)}: its process {reason}", markup=False)
            case Died(reason=reason) if reason != "ended with exit status 0":  # on purpose, after an unforeseen error
                err.print(f"a process {reason}", markup=False)

    try:
        yield on_plan, on_event
    finally:
        if meter is not None:
            meter.__exit__(None, None, None)
