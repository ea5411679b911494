from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from avpipe.eval.scores import footnotes
from avpipe.eval.side_by_side import SideBySide, notes_below, table

from .test_scores import REPORT

DEAF = replace(
    REPORT,
    scores={"CIDEr": 0.25, "METEOR": None},
    senses="-audio",
    notes=("a note", "another note"),
    missing_policy="empty",
)
ROWS = SideBySide({"whole": REPORT, "without [audio]": DEAF})


def test_differences_are_to_the_first() -> None:
    assert ROWS.difference("without [audio]", "CIDEr") == pytest.approx(0.25 - 0.5997905)
    assert ROWS.difference("whole", "CIDEr") == 0
    assert ROWS.difference("without [audio]", "METEOR") is None
    assert not ROWS.complete


def test_files(tmp_path: Path) -> None:
    summary, rows = ROWS.write(tmp_path / "scores", "test.senses")
    written = json.loads(summary.read_text())
    assert written["without [audio]"]["differences"]["CIDEr"] == ROWS.difference("without [audio]", "CIDEr")
    assert written["without [audio]"]["senses"] == "-audio"
    assert "|senses:-audio|" in written["without [audio]"]["signatures"]["CIDEr"]
    assert written["whole"]["scores"] == {"CIDEr": 0.5997905, "METEOR": None}
    assert list(csv.reader(io.StringIO(rows.read_text()))) == [
        ["", "n", "CIDEr", "METEOR", "CIDEr_difference", "METEOR_difference"],
        ["whole", "2", "0.5997905", "", "0.0", ""],
        ["without [audio]", "2", "0.25", "", str(0.25 - 0.5997905), ""],
    ]


@pytest.mark.parametrize(("percent", "shown"), [(False, ("0.2500", "-0.3498")), (True, ("25.00", "-34.98"))])
def test_table(percent: bool, shown: tuple[str, str]) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(ROWS, percent=percent))
    text = console.export_text()
    assert all(cell in text for cell in shown)
    assert text.count("none") == 2
    assert "without [audio]" in text


def test_notes_say_what_differs() -> None:
    assert notes_below(ROWS) == [
        *footnotes(REPORT),
        "without [audio]: senses:-audio|missing:empty",
        "another note",
    ]


def test_reports_of_other_references_do_not_stand_side_by_side() -> None:
    with pytest.raises(ValueError, match="expected reports of the same references and metrics"):
        SideBySide({"one": REPORT, "two": replace(REPORT, references_sha256="0" * 64)})
    with pytest.raises(ValueError, match="expected reports of the same references and metrics"):
        SideBySide({})
