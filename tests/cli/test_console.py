"""What long work shows where there is no terminal: a line a minute, and a last one."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from avpipe import console
from avpipe.extract.run import Part
from avpipe.pipeline.runner import Died, Done, Progress, Started


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A log file in the place of stderr."""
    file = io.StringIO()
    monkeypatch.setattr(console.err, "file", file)
    return file


class Clock:
    """Stands in for ``time``: goes on when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


def test_a_log_gets_one_line_a_minute_and_a_last_one(log: io.StringIO, clock: Clock) -> None:
    with console.Meter("extract x", 300, "clips", done=100) as meter:
        for number in range(200):
            clock.now += 1
            meter.advance(1, {"failed": number == 0}, waiting_for="decoder")
    assert log.getvalue().splitlines() == [
        "extract x: 160/300 clips, 1.0 clips/s, 1 failed, waiting for decoder, 2 min left",
        "extract x: 220/300 clips, 1.0 clips/s, 1 failed, waiting for decoder, 1 min left",
        "extract x: 280/300 clips, 1.0 clips/s, 1 failed, waiting for decoder, 1 min left",
        "extract x: 300/300 clips, 1.0 clips/s, 1 failed, waiting for decoder",
    ]


def test_work_that_fails_says_nothing_of_its_end(log: io.StringIO, clock: Clock) -> None:
    with pytest.raises(ValueError, match="no disk"), console.Meter("extract x", 2, "clips"):
        raise ValueError("no disk")
    assert log.getvalue() == ""


def test_a_name_is_neither_markup_nor_emoji_and_never_wraps(log: io.StringIO, clock: Clock) -> None:
    name = "[bold] :smile: " + "x" * 300
    with console.Meter(name, 1, "files") as meter:
        meter.advance_to(1)
    assert log.getvalue().startswith(f"{name}: 1/1 files")
    assert log.getvalue().count("\n") == 1


def test_an_extraction_says_what_failed_and_what_is_waited_for(log: io.StringIO, clock: Clock) -> None:
    class Planned:
        part = Part(2, 3)
        setting = SimpleNamespace(encoders={"see": None, "hear": None})

        def tasks(self, redo: object) -> list[object]:
            return [SimpleNamespace(name="00001", clips=range(40)), SimpleNamespace(name="00004", clips=range(20))]

    with console.show_extraction(Planned()) as tell:  # type: ignore[arg-type]
        for number in range(45):
            clock.now += 2
            failures = {"decode": 1} if number in (3, 4, 13, 14) else {"missing_file": 1} if number == 15 else {}
            is_mute = number in (0, 10)
            statuses = {"ok": 1, "skipped": 1} if is_mute else {"ok": 2 - len(failures), "failed": len(failures)}
            waits = {"decoding": 0.1 * number, "encoding": 1.5 * number, "writing": 0.0}
            data = {"clips": 1, "statuses": statuses, "failures": failures, "waits": waits}
            tell(Progress(rank=0, task="00001" if number < 40 else "00004", data=data))
            if number == 9:
                tell(Died(rank=0, reason="was killed"))
                tell(Started(rank=0, task="00001"))  # its ten clips do not count twice, nor do their failures
    lines = log.getvalue().splitlines()
    assert lines[0] == "a worker was killed; its shard is done again"
    assert lines[-1].startswith("extract see, hear (part 2/3): 35/60 clips, 0.4 clips/s, 2 failed (decode), ")
    assert "1 failed (missing_file), 1 skipped, waiting for encoding, 1 min left" in lines[-1]


def test_a_sweep_counts_the_steps_of_all_runs_and_names_each_that_ends(log: io.StringIO, clock: Clock) -> None:
    with console.show_sweep("ablation") as (on_plan, on_event):
        on_plan({"a": 100, "b": 100})
        on_event(Started(rank=0, task="a"))
        clock.now = 30
        on_event(Progress(rank=0, task="a", data={"event": "step", "step": 60}))
        on_event(Died(rank=0, reason="crashed (SIGSEGV)"))
        on_event(Started(rank=0, task="a"))  # again, from its last checkpoint
        clock.now = 61
        on_event(Progress(rank=0, task="a", data={"event": "step", "step": 50}))
        on_event(Progress(rank=0, task="a", data={"event": "result", "best_score": 0.5}))
        on_event(Done(rank=0, task="a", counts={"finished": 1}))
        on_event(Started(rank=0, task="b"))
        on_event(Done(rank=0, task="b", counts={"failed": 1}))
        on_event(Died(rank=0, reason="ended with exit status 0"))  # on purpose, after an error that nobody foresaw
        on_event(Died(rank=0, reason="was killed"))  # the next one, before it took up work
        on_event(Started(rank=0, task="c"))
        on_event(Died(rank=0, reason="ended with exit status 0"))  # for the last time: nothing goes on
    assert log.getvalue().splitlines() == [
        "a: its process crashed (SIGSEGV)",
        "a: goes on from its last checkpoint",
        "sweep ablation: 50/200 steps, 0.8 steps/s, 3 min left",
        "a: finished, best CIDEr 0.5000 on val",
        "b: failed",
        "a process was killed",
        "c: its process ended with exit status 0",
        "sweep ablation: 200/200 steps, 3.3 steps/s, 1 runs failed, 1 runs finished",
    ]
