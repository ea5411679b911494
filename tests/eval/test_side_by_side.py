from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from avpipe.eval import compare, score
from avpipe.eval.scores import footnotes
from avpipe.eval.side_by_side import SideBySide, notes_below, rows, table
from avpipe.eval.tables import interval, number

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


@pytest.mark.parametrize(
    ("percent", "shown"), [(False, ("0.2500", "(-0.3498)")), (True, ("25.00", "(-34.98)", "CIDEr x 100"))]
)
def test_table(percent: bool, shown: tuple[str, ...]) -> None:
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


def test_differences_are_tested_where_asked_for() -> None:
    ids = [f"c{index}" for index in range(60)]
    references = {clip_id: [f"a dog runs after number {clip_id} today"] for clip_id in ids}
    own = {clip_id: texts[0] for clip_id, texts in references.items()}
    worse = {clip_id: text if index % 3 else "a cat" for index, (clip_id, text) in enumerate(own.items())}
    whole, deaf = (score(captions, references, metrics=["rouge_l"]) for captions in (own, worse))
    found = SideBySide.of({"whole": whole, "without audio": replace(deaf, notes=("mine",))}, with_intervals=True)
    (expected,) = compare({"whole": whole, "without audio": deaf}).differences
    assert found.test("without audio", "ROUGE_L") == expected
    assert expected.significant
    assert found.test("whole", "ROUGE_L") is None
    told = found.to_json()
    assert told["whole"]["tests"] == {}
    assert told["without audio"]["tests"]["ROUGE_L"] == {
        "low": expected.low, "high": expected.high, "p": expected.p, "p_holm": expected.p_holm
    }  # fmt: skip
    shown = str(table(found).rows[1][1]).splitlines()
    assert shown[1] == f"({number(expected.difference, signed=True)})*"
    assert shown[2] == interval(expected.low, expected.high, signed=True)
    below = notes_below(found)
    assert "paired bootstrap" in below[-2]
    assert below.count("mine") == 1
    assert not any(line.endswith(": mine") for line in below)
    header, _, row = csv.reader(io.StringIO(rows(found).csv()))
    assert dict(zip(header, row, strict=True))["ROUGE_L_difference_p_holm"] == repr(expected.p_holm)


def test_of_one_clip_and_of_other_clips_nothing_is_tested() -> None:
    one = score({"a": "a dog"}, {"a": ["a dog runs"]}, metrics=["rouge_l"])
    found = SideBySide.of({"whole": one, "other": one}, with_intervals=True)
    assert found.comparison is None
    assert notes_below(found)[-1] == "no tests: of one clip nothing can be said of others"
    assert "tests" not in found.to_json()["other"]
    references = {clip_id: ["a dog runs"] for clip_id in "abc"}
    all_of_them, some = (
        score(dict.fromkeys(ids, "a dog"), references, metrics=["rouge_l"], missing="drop") for ids in ("abc", "ab")
    )
    found = SideBySide.of({"whole": all_of_them, "other": some}, with_intervals=True)
    assert notes_below(found)[-1] == "no tests: clips were left out, and not the same of all"
    assert SideBySide.of({"whole": all_of_them, "other": some}).untested == ""  # nobody asked


def test_reports_of_other_references_do_not_stand_side_by_side() -> None:
    with pytest.raises(ValueError, match="expected reports of the same references and metrics"):
        SideBySide({"one": REPORT, "two": replace(REPORT, references_sha256="0" * 64)})
    with pytest.raises(ValueError, match="expected reports of the same references and metrics"):
        SideBySide({})
