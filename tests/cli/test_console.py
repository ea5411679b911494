"""What long work shows where there is no terminal: a line a minute, and a last one."""

from __future__ import annotations

import io

import pytest

from avpipe import console


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
