from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from avpipe.eval.scores import ScoreReport, footnotes, long_table, table, versions_line

REPORT = ScoreReport(
    statistics={},
    split="test",
    scores={"CIDEr": 0.5997905, "METEOR": None},
    reasons={"METEOR": "no usable Java"},
    per_clip={"b": {"CIDEr": 1.0}, "a": {"CIDEr": 0.1995810}},
    captions={"b": 'says "no", twice', "a": "=1+1 é"},
    references_per_clip=(5, 5),
    references_sha256="3f2a01bc" + 56 * "0",
    scored=2,
    expected=3,
    missing_policy="drop",
    missing=("c",),
    altered_candidates=1,
    altered_references=0,
    tokeniser="ptb3.4.1",
    metric_versions={"CIDEr": "idf:refs", "METEOR": ""},
    java="1.8.0_292",
    versions={"pycocoevalcap": "1.2", "avpipe": "0.1.0"},
    notes=("a note",),
)
REST = "pycocoevalcap:1.2|avpipe:0.1.0"


def test_signature_of_each_score() -> None:
    assert REPORT.signature("CIDEr") == (
        f"CIDEr|n:2/3@3554d2b8|refs:5|split:test@3f2a01bc|tok:ptb3.4.1|idf:refs|missing:drop|{REST}"
    )
    assert (
        REPORT.signature("METEOR")
        == f"METEOR|n:2/3@3554d2b8|refs:5|split:test@3f2a01bc|tok:ptb3.4.1|missing:drop|{REST}"
    )


def test_protocol_is_what_the_signatures_share() -> None:
    several = replace(REPORT, references_per_clip=(1, 9), split="", java="")
    assert several.protocol == (
        "n:2/3@3554d2b8|refs:1-9|split:@3f2a01bc|tok:ptb3.4.1|missing:drop|pycocoevalcap:1.2|avpipe:0.1.0"
    )


def test_what_was_done_to_the_senses_stands_in_the_signature() -> None:
    deaf = replace(REPORT, senses="-audio")
    assert "|split:test@3f2a01bc|senses:-audio|tok:ptb3.4.1|" in deaf.signature("CIDEr")
    assert deaf.to_json()["senses"] == "-audio"
    assert "senses:" not in REPORT.protocol


def test_files(tmp_path: Path) -> None:
    summary, by_clip = REPORT.write(tmp_path / "scores")
    assert (summary, by_clip) == (tmp_path / "scores" / "test.json", tmp_path / "scores" / "test.csv")
    written = json.loads(summary.read_text())
    assert written == REPORT.to_json()
    assert written["scores"] == {"CIDEr": 0.5997905, "METEOR": None}
    assert written["signatures"]["CIDEr"] == REPORT.signature("CIDEr")
    rows = list(csv.reader(io.StringIO(by_clip.read_text(encoding="utf-8"))))
    assert rows == [
        ["clip_id", "CIDEr", "METEOR", "caption"],
        ["b", "1.0", "", 'says "no", twice'],
        ["a", "0.199581", "", "=1+1 é"],
    ]


@pytest.mark.parametrize(
    ("split", "stem", "name"), [("test", "beam5", "beam5"), ("", "", "scores"), ("val", "", "val")]
)
def test_names_of_files(tmp_path: Path, split: str, stem: str, name: str) -> None:
    assert replace(REPORT, split=split).write(tmp_path, stem)[0] == tmp_path / f"{name}.json"


@pytest.mark.parametrize(("percent", "shown"), [(False, "0.5998"), (True, "59.98")])
def test_table(percent: bool, shown: str) -> None:
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(table(REPORT, percent=percent))
    text = console.export_text()
    assert shown in text
    assert next(line for line in text.splitlines() if "METEOR" in line).split()[-2] == "none"
    assert ("CIDEr x 100" in text) == percent


def test_counts_are_not_said_to_be_times_100() -> None:
    counted = replace(REPORT, scores={"CIDEr": 0.5, "Length": 11.25}, reasons={}, metric_versions={})
    assert table(counted, percent=True).rows == [["CIDEr x 100", "50.00"], ["Length", "11.2500"]]


def test_the_table_for_programs_tells_how_each_score_was_made() -> None:
    assert long_table(REPORT, {"CIDEr": (0.5, 0.75)}).rows == [
        ["CIDEr", "0.5997905", "0.5", "0.75", REPORT.signature("CIDEr")],
        ["METEOR", "", "", "", REPORT.signature("METEOR")],
    ]
    assert long_table(REPORT).header == ["metric", "score", "low", "high", "signature"]


@pytest.mark.parametrize(
    ("versions", "idf", "line"),
    [
        ({"CIDEr": "idf:refs", "METEOR": "meteor:1.5|java:17"}, "refs", ["CIDEr idf:refs; METEOR meteor:1.5|java:17"]),
        ({"SPIDEr": "idf:3f2a01bc|spice:1.0", "CIDEr": ""}, "3f2a01bc", ["SPIDEr idf:3f2a01bc|spice:1.0"]),
        ({"Bleu_1": "reflen:closest", "Bleu_2": "reflen:closest"}, "", ["Bleu_1, Bleu_2 reflen:closest"]),
        ({"Vocab": ""}, "", []),
    ],
)
def test_what_tells_metrics_from_one_another(versions: dict[str, str], idf: str, line: list[str]) -> None:
    assert versions_line(versions) == line
    assert replace(REPORT, metric_versions=versions).idf == idf


def test_footnotes_tell_protocol_reasons_and_notes() -> None:
    assert footnotes(REPORT) == [REPORT.protocol, "CIDEr idf:refs", "no METEOR: no usable Java", "a note"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reasons": {}}, r"each score that is None, and no other; got \['METEOR'\]"),
        ({"reasons": {"METEOR": "x", "CIDEr": "y"}}, r"got \['CIDEr'\]"),
        ({"scored": 3}, r"expected the 3 scored clips, got 2 and 2"),
        ({"captions": {"b": "x"}}, r"expected the 2 scored clips, got 2 and 1"),
    ],
)
def test_a_report_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(REPORT, **changes)
