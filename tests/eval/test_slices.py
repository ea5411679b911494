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
from avpipe.eval.comparison import FEW_CLIPS as FEW
from avpipe.eval.comparison import intervals
from avpipe.eval.kinds import Partition
from avpipe.eval.metric import aggregate, find_metrics
from avpipe.eval.metrics import bleu
from avpipe.eval.slices import SlicedScores, bars, is_few, part_of, slice_scores, table

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


def many(monkeypatch: pytest.MonkeyPatch) -> tuple[SlicedScores, list[int]]:
    """70 clips in slices of 60 and 10, and how many clips each bootstrap was of."""
    ids = [f"c{index}" for index in range(70)]
    references = {clip_id: [f"a dog runs after {clip_id} today"] for clip_id in ids}
    captions = {clip_id: f"a dog {'runs' if index % 3 else 'sits'}" for index, clip_id in enumerate(ids)}
    report = score(captions, references, metrics=["rouge_l", "length"], split="test")
    calls: list[int] = []

    def counted(part: ScoreReport) -> dict[str, tuple[float, float]]:
        calls.append(part.scored)
        return intervals(part)

    monkeypatch.setattr("avpipe.eval.slices.intervals", counted)
    parts = [Partition(name="extra:of", groups={"many": tuple(ids[:60]), "few": tuple(ids[60:])})]
    return SlicedScores.of(report, parts, with_intervals=True), calls


def test_intervals_are_drawn_once_and_told_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sliced, calls = many(monkeypatch)
    low, high = intervals(sliced.slices["extra:of"]["many"])["ROUGE_L"]
    told = sliced.to_json()
    assert told["slices"]["extra:of"]["many"]["intervals"]["ROUGE_L"] == (low, high)
    assert told["whole"]["intervals"] == intervals(sliced.whole)
    assert told["slices"]["extra:of"]["few"]["intervals"] == {}  # of ten clips it would be too narrow
    assert f"few: under {FEW} clips, too few for an interval" in sliced.notes
    _, path = sliced.write(tmp_path, "test.slices")
    header, _, first, second = csv.reader(io.StringIO(path.read_text(encoding="utf-8")))
    assert dict(zip(header, first, strict=True))["ROUGE_L_low"] == repr(low)
    assert dict(zip(header, second, strict=True))["ROUGE_L_high"] == ""
    cells = [[cell.text for cell in row] for row in table(sliced, percent=True, with_intervals=True).rows]  # type: ignore[union-attr]
    assert cells[1][:3] == ["of: many", "60", f"{cells[1][2].splitlines()[0]}\n[{100 * low:.2f}, {100 * high:.2f}]"]
    assert "[" not in cells[2][2]
    assert "\n" not in table(sliced).rows[1][2].text  # type: ignore[union-attr]
    drawn = bars(sliced, "ROUGE_L")
    assert drawn["of: many"] == (sliced.slices["extra:of"]["many"].scores["ROUGE_L"], low, high, 60)
    assert drawn["of: few"][1:] == (None, None, 10)
    assert calls == [70, 60]


def test_counts_stay_counts_and_titles_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    sliced, _ = many(monkeypatch)
    assert table(sliced, percent=True).header == ["", "n", "ROUGE_L x 100", "Length", "Length_ratio"]
    assert table(sliced).header == ["", "n", "ROUGE_L", "Length", "Length_ratio"]


def test_without_intervals_none_is_drawn(sliced: SlicedScores) -> None:
    assert sliced.intervals == {}
    assert "intervals" not in sliced.to_json()["whole"]
    assert {(low, high) for _, low, high, _ in bars(sliced, "CIDEr").values()} == {(None, None)}


def test_only_the_weights_of_the_references_are_spoken_of() -> None:
    parts = [Partition(name="length", groups={"all of them": tuple(IDS)})]
    words = "CIDEr: words weigh in each slice what they weigh in the whole reference set"
    assert words in SlicedScores.of(whole(), parts).notes
    other = score(TOY_CANDIDATES, TOY_REFERENCES, metrics=["cider"], idf={"x": ["a dog", "a cat"]})
    assert not any("words weigh" in note for note in SlicedScores.of(other, parts).notes)


def test_every_metric_says_by_name_what_its_sums_make() -> None:
    """What slices rely on: :func:`aggregate` gives each of a module's scores."""
    for name in whole().statistics:
        ((_, module),) = find_metrics([name]).items()
        assert set(aggregate(name, whole().statistics[name])) == set(module.NAMES)
