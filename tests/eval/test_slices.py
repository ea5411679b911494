"""Slices: their scores make up the whole again, and nothing is counted anew."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from avpipe.eval import ScoreReport, score
from avpipe.eval.kinds import Partition
from avpipe.eval.metric import aggregate, find_metrics
from avpipe.eval.metrics import bleu
from avpipe.eval.slices import FEW, SlicedScores, is_few, part_of, slice_scores, table

from .toys import TOY_CANDIDATES, TOY_REFERENCES

IDS = list(TOY_REFERENCES)


@cache
def whole() -> ScoreReport:
    """Of metrics that are means, and of one that is made of sums."""
    return score(TOY_CANDIDATES, TOY_REFERENCES, metrics=["cider", "rouge_l", "bleu"], split="test")


def groups_of(labels: list[str]) -> dict[str, tuple[str, ...]]:
    return {
        label: tuple(clip_id for clip_id, own in zip(IDS, labels, strict=True) if own == label)
        for label in sorted(set(labels))
    }


@settings(deadline=None)
@given(labels=st.lists(st.sampled_from("xyz"), min_size=len(IDS), max_size=len(IDS)))
def test_the_slices_of_a_partition_make_up_the_whole(labels: list[str]) -> None:
    parts = slice_scores(whole(), groups_of(labels))
    assert sum(part.scored for part in parts.values()) == len(IDS)
    for name in ("CIDEr", "ROUGE_L"):
        mean = sum(part.scored * part.scores[name] for part in parts.values()) / len(IDS)  # type: ignore[operator]
        assert mean == pytest.approx(whole().scores[name], abs=1e-12)
    sums = sum(part.statistics["bleu"].sum(axis=0) for part in parts.values())
    again = aggregate("bleu", np.asarray(sums)[None])
    assert {name: float(again[name][0]) for name in bleu.NAMES} == {name: whole().scores[name] for name in bleu.NAMES}


def test_a_slice_of_everything_is_the_whole() -> None:
    part = part_of(whole(), IDS)
    assert part.scores == pytest.approx(whole().scores)
    assert (part.per_clip, part.captions, part.scored) == (whole().per_clip, whole().captions, 7)


def test_bleu_of_a_slice_is_that_of_its_counts_and_no_mean() -> None:
    chosen = ["12", "m0", "a-b"]
    alone = score(
        {key: TOY_CANDIDATES[key] for key in chosen}, {key: TOY_REFERENCES[key] for key in chosen}, metrics=["bleu"]
    )
    part = part_of(whole(), chosen)
    assert [part.scores[name] for name in bleu.NAMES] == [alone.scores[name] for name in bleu.NAMES]
    mean = sum(whole().per_clip[key]["Bleu_4"] for key in chosen) / 3
    assert part.scores["Bleu_4"] != pytest.approx(mean)


def test_words_weigh_in_a_slice_what_they_weigh_in_the_whole() -> None:
    chosen = ["12", "m0", "a-b"]
    part = part_of(whole(), chosen)
    assert part.per_clip == {key: whole().per_clip[key] for key in IDS if key in chosen}
    alone = score(
        {key: TOY_CANDIDATES[key] for key in chosen}, {key: TOY_REFERENCES[key] for key in chosen}, metrics=["cider"]
    )
    assert part.scores["CIDEr"] != pytest.approx(alone.scores["CIDEr"])  # counted anew, they would weigh otherwise
    notes = SlicedScores.of(whole(), [Partition(name="x", groups={"all": tuple(IDS)})]).notes
    assert "CIDEr: words weigh in each slice what they weigh in the whole reference set" in notes


def test_a_slice_has_its_own_clips_in_the_order_of_the_report() -> None:
    part = part_of(whole(), {"m0", "7", "nobody"})
    assert list(part.per_clip) == list(part.captions) == ["7", "m0"]
    assert part.scored == 2
    assert part.statistics["bleu"].tolist() == whole().statistics["bleu"][[IDS.index("7"), IDS.index("m0")]].tolist()
    assert "|n:2/7@" in part.signature("CIDEr")


def test_what_let_pass_is_told_of_its_own_slice_alone() -> None:
    few = {key: text for key, text in TOY_CANDIDATES.items() if key not in ("7", "m0")}
    report = score(few, TOY_REFERENCES, metrics=["rouge_l"], missing="empty")
    assert report.missing == ("7", "m0")
    assert part_of(report, ["m0", "12"]).missing == ("m0",)
    dropped = score(few, TOY_REFERENCES, metrics=["rouge_l"], missing="drop")
    parts = slice_scores(dropped, {"gone": ["7", "m0"], "there": [key for key in IDS if key not in ("7", "m0")]})
    assert list(parts) == ["there"]


def test_no_clip_is_no_slice() -> None:
    with pytest.raises(ValueError, match="expected at least one clip of the report, got none"):
        part_of(whole(), ["nobody"])


def test_a_clip_without_a_group_is_not_lost_in_silence() -> None:
    with pytest.raises(ValueError, match="x: expected every scored clip in a group, got none for 'm0'"):
        SlicedScores.of(whole(), [Partition(name="x", groups={"some": tuple(IDS[:-1])})])


def test_a_score_that_is_not_there_has_its_reason_in_every_slice() -> None:
    report = replace(whole(), scores={**whole().scores, "METEOR": None}, reasons={"METEOR": "no Java"})
    part = part_of(report, IDS[:2])
    assert (part.scores["METEOR"], part.reasons["METEOR"]) == (None, "no Java")


def test_what_belongs_to_the_set_is_none_of_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avpipe.eval.slices.is_of_the_set", lambda name: name == "rouge_l")
    part = part_of(whole(), IDS[:2])
    assert part.scores["ROUGE_L"] is None
    assert part.reasons["ROUGE_L"] == "it belongs to the set of captions as a whole"
    assert part.scores["CIDEr"] is not None
    sliced = SlicedScores.of(whole(), [Partition(name="x", groups={"all": tuple(IDS)})])
    assert "ROUGE_L: none of a slice, it belongs to the set of captions as a whole" in sliced.notes


def test_a_corpus_score_that_is_no_mean_is_noted() -> None:
    report = replace(whole(), scores={**whole().scores, "ROUGE_L": 0.125})
    sliced = SlicedScores.of(report, [Partition(name="x", groups={"all": tuple(IDS)})])
    assert (
        f"ROUGE_L: of a slice the mean of its clips' scores, which of the whole is {whole().scores['ROUGE_L']:.4f}"
        in (sliced.notes)
    )
    plain = SlicedScores.of(whole(), [Partition(name="x", groups={"all": tuple(IDS)})])
    assert not any("of a slice the mean" in note for note in plain.notes)


def test_few_clips_say_little() -> None:
    assert is_few(SimpleNamespace(scored=FEW - 1))  # type: ignore[arg-type]
    assert not is_few(SimpleNamespace(scored=FEW))  # type: ignore[arg-type]


@pytest.fixture
def sliced() -> SlicedScores:
    parts = Partition(
        name="extra:place", groups={"[in]doors": tuple(IDS[:3]), 'say "out", é': tuple(IDS[3:])}, notes=("n",)
    )
    return SlicedScores.of(whole(), [parts, Partition(name="audio", groups={"unknown": tuple(IDS)})])


def test_files(sliced: SlicedScores, tmp_path: Path) -> None:
    summary, rows = sliced.write(tmp_path / "scores", "test.slices")
    assert (summary.name, rows.name) == ("test.slices.json", "test.slices.csv")
    written = json.loads(summary.read_text())
    assert written == sliced.to_json()
    assert written["slices"]["extra:place"]["[in]doors"]["n"] == 3
    assert written["slices"]["extra:place"]["[in]doors"]["few"] is True
    assert written["slices"]["audio"]["unknown"]["scores"] == pytest.approx(written["whole"]["scores"])
    assert written["signatures"]["CIDEr"] == whole().signature("CIDEr")
    assert written["notes"][0] == f"few: under {FEW} clips"
    assert written["notes"][-1] == "n"
    table = list(csv.reader(io.StringIO(rows.read_text(encoding="utf-8"))))
    assert table[0][:6] == ["kind", "slice", "n", "few", "CIDEr", "ROUGE_L"]
    assert table[1][:4] == ["", "all", "7", ""]
    assert [row[:4] for row in table[2:]] == [
        ["extra:place", "[in]doors", "3", "few"],
        ["extra:place", 'say "out", é', "4", "few"],
        ["audio", "unknown", "7", "few"],
    ]
    assert float(table[2][4]) == sliced.slices["extra:place"]["[in]doors"].scores["CIDEr"]


@pytest.mark.parametrize("percent", [False, True])
def test_table(sliced: SlicedScores, percent: bool) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table(sliced, percent=percent))
    text = console.export_text()
    value: Any = sliced.slices["extra:place"]["[in]doors"].scores["CIDEr"]
    line = next(line for line in text.splitlines() if "place: [in]doors" in line)
    assert "3 few" in line
    assert (f"{100 * value:.2f}" if percent else f"{value:.4f}") in line
    assert "few" not in next(line for line in text.splitlines() if " all " in line)


def test_every_metric_says_by_name_what_its_sums_make() -> None:
    """What slices rely on: :func:`aggregate` gives each of a module's scores."""
    for name in whole().statistics:
        ((_, module),) = find_metrics([name]).items()
        assert set(aggregate(name, whole().statistics[name])) == set(module.NAMES)
