"""The command line, as a user calls it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from avpipe import cli


@dataclass(frozen=True, slots=True)
class Said:
    """What a command said and how it ended."""

    status: int
    out: str
    err: str


Avpipe = Callable[..., Said]


@pytest.fixture
def avpipe(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Avpipe:
    """Runs the real entry point in this process. No command may end with a traceback."""
    from avpipe import console

    def call(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["avpipe", *map(str, words)])
        monkeypatch.setattr(console.out, "file", sys.stdout)
        monkeypatch.setattr(console.err, "file", sys.stderr)
        with pytest.raises(SystemExit) as exit:
            cli.main()
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return Said(int(exit.value.code or 0), out, err)

    return call
