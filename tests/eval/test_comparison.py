"""Comparisons of scored systems: what is tested, what is said of it, and what is refused."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from avpipe.eval import Scorer
from avpipe.eval.comparison import (
    FEW_CLIPS,
    Comparison,
    about_few,
    compare,
    examples,
    intervals,
    samples_of,
    wins_of,
)
from avpipe.eval.comparison_tables import (
    differences_table,
    example_lines,
    footnotes,
    long_table,
    scores_notes,
    scores_table,
)
from avpipe.eval.metric import direction, is_of_the_set, load
from avpipe.eval.metrics import REGISTRY
from avpipe.eval.scores import ScoreReport
from avpipe.eval.statistics import bootstrap, contrast
from avpipe.pipeline.errors import AvpipeError, ScoringError, UnknownNameError, UsageError

from .toys import TOY_CANDIDATES, TOY_REFERENCES

METRICS = ["cider", "bleu", "rouge_l"]
WORDS = [
    "a",
    "the",
    "red",
    "blue",
    "dog",
    "cat",
    "man",
    "sings",
    "runs",
    "walks",
    "on",
    "under",
    "green",
    "hill",
    "road",
    "with",
    "his",
    "old",
    "drum",
    "car",
]


def captions_of(rng: np.random.Generator, clips: int) -> list[str]:
    return [" ".join(rng.choice(WORDS, 8)) for _ in range(clips)]


def corpus(clips: int = 60) -> tuple[dict[str, list[str]], dict[str, dict[str, str]]]:
    """References, and three systems: one that knows half of a reference, one a little less, one nothing."""
    rng = np.random.default_rng(0)
    references = {f"clip{number}": captions_of(rng, 3) for number in range(clips)}

    def system(kept: float) -> dict[str, str]:
        made = {}
        for clip_id, several in references.items():
            words = [word if rng.random() < kept else str(rng.choice(WORDS)) for word in several[0].split()]
            made[clip_id] = " ".join(words)
        return made

    return references, {"good": system(0.7), "fair": system(0.6), "poor": system(0.0)}


REFERENCES, CAPTIONS = corpus()


@pytest.fixture(scope="module")
def reports() -> dict[str, ScoreReport]:
    scorer = Scorer(REFERENCES, metrics=METRICS, split="test")
    return {name: scorer.score(captions) for name, captions in CAPTIONS.items()}


@pytest.fixture(scope="module")
def compared(reports: Mapping[str, ScoreReport]) -> Comparison:
    return compare(reports, baseline="fair", resamples=1000)


# -- samples -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in REGISTRY.names() if not is_of_the_set(name)])
def test_what_is_resampled_gives_the_corpus_score(name: str) -> None:
    try:
        report = Scorer(TOY_REFERENCES, metrics=[name], strict=True).score(TOY_CANDIDATES)
    except ScoringError as error:  # weights or jars that are not here
        pytest.skip(str(error))
    observed = samples_of([report], list(report.per_clip))[name].observed()[0]
    assert dict(zip(load(name).NAMES, observed, strict=True)) == pytest.approx(dict(report.scores), abs=1e-9)


def test_samples_are_in_the_order_asked_for(reports: Mapping[str, ScoreReport]) -> None:
    ids = sorted(CAPTIONS["good"], reverse=True)
    found = samples_of([reports["good"]], ids)
    assert found["cider"].values[0, :, 0].tolist() == [reports["good"].per_clip[clip_id]["CIDEr"] for clip_id in ids]
    row = list(reports["good"].per_clip).index(ids[0])
    assert found["bleu"].values[0, 0].tolist() == reports["good"].statistics["bleu"][row].tolist()


# -- comparisons -------------------------------------------------------------------------------------------------------


def test_every_metric_is_tested_against_the_baseline(compared: Comparison, reports: Mapping[str, ScoreReport]) -> None:
    assert [(each.metric, each.system, each.baseline) for each in compared.differences] == [
        (metric, system, "fair")
        for metric in ("CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L")
        for system in ("good", "poor")
    ]
    for each in compared.differences:
        own, their = reports[each.system].scores[each.metric], reports["fair"].scores[each.metric]
        assert each.difference == pytest.approx(own - their)
        assert each.low < each.difference < each.high
        assert each.wins + each.ties + each.losses == len(REFERENCES)
        assert each.p <= each.p_holm <= 2 * each.p
        assert each.significant == (each.p_holm < 0.05)
    poor = [each for each in compared.differences if each.system == "poor"]
    assert all(each.significant and each.difference < 0 and each.p == pytest.approx(1 / 1001) for each in poor)


def test_numbers_are_those_of_the_statistics(compared: Comparison, reports: Mapping[str, ScoreReport]) -> None:
    pair = [samples_of([reports[name]], sorted(CAPTIONS["good"]))["cider"] for name in ("good", "fair")]
    known = contrast(*bootstrap(pair, resamples=1000))
    found = compared.differences[0]
    assert (found.low, found.high, found.p, found.detectable) == pytest.approx(
        (known.low[0], known.high[0], known.p[0], known.detectable[0])
    )
    standing = compared.standings["good"]["CIDEr"]
    assert (standing.low, standing.high) == pytest.approx(intervals(reports["good"], resamples=1000)["CIDEr"])


def test_order_of_the_systems_and_of_the_clips_changes_no_digit(reports: Mapping[str, ScoreReport]) -> None:
    backwards = {clip_id: REFERENCES[clip_id] for clip_id in reversed(REFERENCES)}
    scorer = Scorer(backwards, metrics=METRICS, split="test")
    there = compare(reports, baseline="fair", resamples=200, seed=3)
    systems = {name: reports[name] for name in ("poor", "fair", "good")}
    back = compare(systems, baseline="fair", resamples=200, seed=3)
    assert set(there.differences) == set(back.differences)
    mixed = compare({**reports, "good": scorer.score(CAPTIONS["good"])}, baseline="fair", resamples=200, seed=3)
    for one, other in zip(there.differences, mixed.differences, strict=True):
        assert one.p == other.p
        assert one.difference == pytest.approx(other.difference)


def test_all_pairs_are_one_family(reports: Mapping[str, ScoreReport]) -> None:
    found = compare(reports, all_pairs=True, resamples=200)
    cider = [each for each in found.differences if each.metric == "CIDEr"]
    assert [(each.system, each.baseline) for each in cider] == [("fair", "good"), ("poor", "good"), ("poor", "fair")]
    assert cider[1].p_holm == pytest.approx(3 * min(each.p for each in cider))
    assert found.baseline == ""


def test_randomisation_agrees_with_the_bootstrap(compared: Comparison, reports: Mapping[str, ScoreReport]) -> None:
    found = compare(reports, baseline="fair", test="randomisation", resamples=1000)
    for one, other in zip(found.differences, compared.differences, strict=True):
        assert one.p == pytest.approx(other.p, abs=0.08)
        assert (one.low, one.detectable) == (other.low, other.detectable)


def test_seeds_widen_intervals_and_change_the_claim(reports: Mapping[str, ScoreReport]) -> None:
    seeds = {"good": [reports["good"], reports["fair"]], "poor": reports["poor"]}
    found = compare(seeds, resamples=500)
    assert found.systems == {"good": 2, "poor": 1}
    standing = found.standings["good"]["CIDEr"]
    both = [reports[name].scores["CIDEr"] for name in ("good", "fair")]
    assert (standing.score, standing.seeds) == (pytest.approx(np.mean(both)), tuple(both))
    low, high = intervals(reports["good"], resamples=500)["CIDEr"]
    assert standing.high - standing.low > 1.5 * (high - low)
    assert found.claim == (
        "several seeds (good 2, poor 1): what is claimed is about the trainings, whatever the seed; "
        "poor: one seed, whose interval is over clips only, and which in a difference is taken to vary as the other "
        "system does: if it varies more, p is too small"
    )
    assert "60 clips and of seeds, seed 0" in found.method


def test_a_single_seed_has_the_interval_of_its_clips(reports: Mapping[str, ScoreReport]) -> None:
    seeds = {"good": [reports["good"], reports["fair"]], "poor": reports["poor"]}
    standing = compare(seeds, resamples=500).standings["poor"]["Bleu_1"]
    assert (standing.low, standing.high) == intervals(reports["poor"], resamples=500)["Bleu_1"]


def test_few_seeds_are_mentioned(reports: Mapping[str, ScoreReport]) -> None:
    good, fair = reports["good"], reports["fair"]
    found = compare({"x": [good, fair, good], "y": [good] * 4, "z": fair}, resamples=100)
    assert "fewer than 4 seeds (x 3): intervals are wide, and may leave the scale" in found.notes
    assert "between two systems of one seed" not in found.claim
    alone = compare({"x": good, "y": [good] * 4, "z": fair}, resamples=100)
    assert not any("fewer than" in note for note in alone.notes)
    assert alone.claim.endswith("; between two systems of one seed it is about these checkpoints")


def test_other_systems_change_no_digit_of_a_test(reports: Mapping[str, ScoreReport]) -> None:
    good, fair, poor = reports["good"], reports["fair"], reports["poor"]
    pair = {"x": [good, fair, poor], "y": [fair, poor, poor]}
    own = compare(pair, resamples=200)
    more = compare({"a": [good] * 3, **pair, "z": [poor, good]}, baseline="x", resamples=200)
    among = [each for each in more.differences if each.system == "y"]
    assert own.differences == tuple(replace(each, p_holm=each.p, significant=each.p < 0.05) for each in among)
    assert {name: more.standings[name] for name in pair} == own.standings


def test_wins_and_examples(reports: Mapping[str, ScoreReport]) -> None:
    good, fair = [reports["good"]], [reports["fair"]]
    wins, ties, losses = wins_of(good, fair, "CIDEr")
    assert wins_of(fair, good, "CIDEr") == wins_of(good, fair, "CIDEr", better=-1) == (losses, ties, wins)
    assert wins_of(good, good, "CIDEr") == (0, 60, 0)
    found = examples(reports, REFERENCES, system="good", baseline="fair", metric="CIDEr", count=2)
    by_clip = {
        clip_id: scores["CIDEr"] - fair[0].per_clip[clip_id]["CIDEr"] for clip_id, scores in good[0].per_clip.items()
    }
    ordered = sorted(by_clip, key=by_clip.__getitem__)
    assert [each.clip_id for each in found] == [ordered[-1], ordered[-2], ordered[0], ordered[1]]
    first = found[0]
    assert first.captions == {name: (CAPTIONS[name][first.clip_id],) for name in ("good", "fair")}
    assert first.references == tuple(REFERENCES[first.clip_id])
    assert first.difference == pytest.approx(by_clip[first.clip_id])
    assert example_lines(found)[:3] == [
        f"{first.clip_id}: CIDEr {first.difference:+.4f} (good - fair)",
        f"  good: {CAPTIONS['good'][first.clip_id]}",
        f"  fair: {CAPTIONS['fair'][first.clip_id]}",
    ]
    assert examples(reports, REFERENCES, system="good", baseline="good", metric="CIDEr", count=2) == ()


@pytest.mark.parametrize(("word", "sign", "best"), [("higher", 1, "good"), ("lower", -1, "poor"), ("neither", 0, "")])
def test_a_metric_may_say_that_less_is_better(
    reports: Mapping[str, ScoreReport], monkeypatch: pytest.MonkeyPatch, word: str, sign: int, best: str
) -> None:
    before = compare(reports, resamples=100)
    monkeypatch.setattr(load("rouge_l"), "BETTER", word, raising=False)
    assert direction("rouge_l") == sign
    found = compare(reports, resamples=100)
    for one, other in zip(before.differences, found.differences, strict=True):
        turned = word == "lower" and one.metric == "ROUGE_L"
        assert other.difference == one.difference
        if word == "neither" and one.metric == "ROUGE_L":
            assert (other.wins, other.ties, other.losses) == (None, None, None)
            continue
        assert (other.wins, other.losses) == ((one.losses, one.wins) if turned else (one.wins, one.losses))
    last = [str(row[-1]) for row in differences_table(found).rows if row[0] == "ROUGE_L"]
    assert all(("/" in text) == bool(sign) for text in last)
    counts = [row["wins"] for row in csv.DictReader(io.StringIO(long_table(found).csv())) if row["metric"] == "ROUGE_L"]
    assert any(counts) == bool(sign)
    shown = examples(reports, REFERENCES, system="fair", baseline="good", metric="ROUGE_L", count=1)
    assert [each.difference > 0 for each in shown] == ([False, True] if word == "lower" else [True, False])
    cells = {row[0]: row[-1] for row in scores_table(found).rows}
    assert [system for system, cell in cells.items() if cell.bold] == [best] * bool(best)


def test_scores_of_the_set_are_shown_and_not_tested(
    reports: Mapping[str, ScoreReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load("rouge_l"), "OF_THE_SET", True, raising=False)
    found = compare(reports, resamples=200)
    assert {each.metric for each in found.differences} == {"CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4"}
    assert found.standings["good"]["ROUGE_L"].score == reports["good"].scores["ROUGE_L"]
    assert found.standings["good"]["ROUGE_L"].low is None
    assert "ROUGE_L: of the set of captions as a whole, hence not tested" in found.notes
    assert "ROUGE_L" not in intervals(reports["good"], resamples=100)


def lacking(report: ScoreReport) -> ScoreReport:
    """A report without ROUGE_L."""
    return replace(report, scores={**report.scores, "ROUGE_L": None}, reasons={"ROUGE_L": "no Java"})


def test_a_score_that_one_system_lacks_is_not_tested(reports: Mapping[str, ScoreReport]) -> None:
    found = compare({"good": reports["good"], "fair": lacking(reports["fair"])}, resamples=200)
    assert not found.complete
    assert found.reasons == {"ROUGE_L": "fair: no Java"}
    assert "ROUGE_L" not in {each.metric for each in found.differences}
    assert found.standings["fair"]["ROUGE_L"].score is None
    assert found.standings["good"]["ROUGE_L"].score == reports["good"].scores["ROUGE_L"]
    assert "no ROUGE_L: fair: no Java" in footnotes(found)


def test_reasons_say_which_systems_lack_a_score(reports: Mapping[str, ScoreReport]) -> None:
    good, fair = lacking(reports["good"]), replace(lacking(reports["fair"]), reasons={"ROUGE_L": "no time"})
    assert compare({"x": good, "y": lacking(reports["fair"])}, resamples=100).reasons == {"ROUGE_L": "no Java"}
    found = compare({"x": good, "y": [fair, fair], "z": reports["poor"]}, resamples=100)
    assert found.reasons == {"ROUGE_L": "x: no Java; y: no time"}


def test_systems_without_any_score_are_told_apart_from_equal_ones(no_java: None) -> None:
    scorer = Scorer(TOY_REFERENCES, metrics=["meteor"])
    found = compare({name: scorer.score(TOY_CANDIDATES) for name in ("x", "y")}, resamples=100)
    assert found.differences == ()
    assert found.standings["x"]["METEOR"].score is None
    assert "no usable Java" in found.reasons["METEOR"]
    assert "none" in scores_table(found).markdown()


def test_few_clips_are_mentioned() -> None:
    scorer = Scorer({"a": ["a dog"], "b": ["a cat"]}, metrics=["rouge_l"])
    found = compare({"x": scorer.score({"a": "a dog", "b": "a"}), "y": scorer.score({"a": "a", "b": "a cat"})})
    assert "2 clips are few: intervals are too narrow, and p values too small" in found.notes
    assert about_few(FEW_CLIPS) == []


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"systems": ["good"]}, UsageError, "expected at least two systems, got good$"),
        ({"systems": []}, UsageError, "expected at least two systems, got none$"),
        (
            {"baseline": "god"},
            UnknownNameError,
            r"unknown system 'god' \(did you mean 'good'\?\); known: fair, good, poor",
        ),
        ({"baseline": "good", "all_pairs": True}, UsageError, "all pairs have no baseline; got both"),
        ({"test": "t"}, UnknownNameError, "unknown test 't'; known: bootstrap, randomisation"),
        ({"alpha": 1.0}, UsageError, "expected a level between 0 and 1, as 0.05, got 1$"),
        ({"alpha": float("nan")}, UsageError, "expected a level between 0 and 1"),
        ({"seed": -1}, UsageError, "seed: expected 0 or more, got -1"),
        ({"resamples": 39}, UsageError, "with 39 the smallest p, corrected for 2 comparisons, is 0.05, never below"),
        ({"resamples": 0}, UsageError, "with 0 the smallest p"),
    ],
)
def test_settings_that_cannot_be_meant(
    reports: Mapping[str, ScoreReport], settings: dict[str, Any], kind: type[AvpipeError], message: str
) -> None:
    systems = {name: reports[name] for name in settings.pop("systems", list(reports))}
    with pytest.raises(kind, match=message):
        compare(systems, **settings)


def test_randomisation_of_seeds_is_refused(reports: Mapping[str, ScoreReport]) -> None:
    systems = {"good": [reports["good"], reports["fair"]], "poor": [reports["poor"]]}
    with pytest.raises(UsageError, match=r"knows nothing of seeds; got several seeds of good\. Try: --test bootstrap"):
        compare(systems, test="randomisation")
    with pytest.raises(UsageError, match="got none of poor"):
        compare({**systems, "poor": []})


def test_systems_that_were_not_scored_alike_are_refused(reports: Mapping[str, ScoreReport]) -> None:
    good = reports["good"]
    other = Scorer({**REFERENCES, "clip0": ["something else"]}, metrics=METRICS).score(CAPTIONS["fair"])
    for changed, message in (
        (other, "good and it were not scored alike: references: "),
        (replace(good, missing_policy="empty"), "what a missing caption means: error against empty"),
        (replace(good, tokeniser="none"), "tokeniser: ptb3.4.1 against none"),
        (
            replace(good, metric_versions={**good.metric_versions, "CIDEr": "idf:coco"}),
            "'idf:refs'.* against .*'idf:coco'",
        ),
        (Scorer(REFERENCES, metrics=["cider"]).score(CAPTIONS["fair"]), "scores: CIDEr, Bleu_1.* against CIDEr"),
    ):
        with pytest.raises(ScoringError, match=message):
            compare({"good": good, "it": changed})


def test_systems_of_other_clips_are_refused() -> None:
    scorer = Scorer(REFERENCES, metrics=["rouge_l"], missing="drop")
    few = {clip_id: text for clip_id, text in CAPTIONS["fair"].items() if clip_id not in ("clip3", "clip7")}
    with pytest.raises(
        ScoringError, match=r"other clips: 2 are of one of them only: clip3, clip7\. Try: --missing empty"
    ):
        compare({"good": scorer.score(CAPTIONS["good"]), "fair": scorer.score(few)})


def test_which_seed_was_scored_otherwise_is_told(reports: Mapping[str, ScoreReport]) -> None:
    good = reports["good"]
    with pytest.raises(ScoringError, match=r"it \(number 1 of 2\) and it \(number 2 of 2\) were not scored alike: tok"):
        compare({"it": [good, replace(good, tokeniser="none")], "good": good})


def test_a_single_clip_is_refused() -> None:
    scorer = Scorer({"a": ["a dog"]}, metrics=["rouge_l"])
    report = scorer.score({"a": "a dog"})
    with pytest.raises(ScoringError, match="compare: expected at least two clips, got one"):
        compare({"x": report, "y": report})
    with pytest.raises(ScoringError, match="intervals: expected at least two clips, got one"):
        intervals(report)


# -- tables ------------------------------------------------------------------------------------------------------------


def test_tables_say_what_was_found(compared: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(long_table(compared).csv())))
    assert len(rows) == 3 * 6
    first = next(row for row in rows if (row["system"], row["metric"]) == ("good", "CIDEr"))
    known = compared.differences[0]
    assert [float(first[key]) for key in ("difference", "difference_low", "p_holm", "detectable")] == [
        known.difference,
        known.low,
        known.p_holm,
        known.detectable,
    ]
    assert (first["wins"], first["baseline"], first["resamples"]) == (str(known.wins), "fair", "1000")
    assert first["signature"].startswith("CIDEr|n:60/60|refs:3|")
    assert next(row for row in rows if row["system"] == "fair")["p"] == ""


def test_the_best_is_bold_and_significance_is_marked(compared: Comparison) -> None:
    lines = scores_table(compared, percent=True).markdown().splitlines()
    names = ["CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L"]
    assert lines[0] == f"| system | {' | '.join(f'{name} x 100' for name in names)} |"
    good, fair, poor = lines[2:5]
    best = compared.standings["good"]["CIDEr"]
    assert f"**{100 * best.score:.2f}" in good
    assert "**" not in poor.replace("\\*", "")
    assert poor.count("\\* [") == 6
    assert "\\*" not in fair
    latex = differences_table(compared, notes=footnotes(compared)).latex()
    assert r"CIDEr & poor & $-$" in latex
    assert "% paired bootstrap, 1,000 resamples of 60 clips, seed 0; intervals hold 95 %; p is two-sided" in latex


def test_notes_below_the_scores_say_what_marks_mean(compared: Comparison, reports: Mapping[str, ScoreReport]) -> None:
    text = scores_table(compared, notes=scores_notes(compared)).latex()
    assert r"% brackets: intervals that hold 95 %; * differs from fair, p (Holm) < 0.05" in text.splitlines()
    assert f"% {compared.protocol}" in text.splitlines()
    assert any(line.startswith("% CIDEr idf:refs") for line in text.splitlines())
    assert any(line.startswith("CIDEr idf:refs") for line in footnotes(compared))
    every = compare(reports, all_pairs=True, resamples=100)
    assert scores_notes(every)[0] == "brackets: intervals that hold 95 %"


def test_p_and_intervals_may_disagree_and_the_method_says_so(
    compared: Comparison, reports: Mapping[str, ScoreReport]
) -> None:
    assert compared.method.endswith("intervals are percentiles of the bootstrap, and p is of shifted differences")
    exchanged = compare(reports, test="randomisation", resamples=100)
    assert exchanged.method.endswith("percentiles of the bootstrap, and p is of exchanged captions")


def test_a_line_break_in_a_reference_ends_no_line(reports: Mapping[str, ScoreReport]) -> None:
    broken = {clip_id: ["two\nlines\r\x85more\u2028", *several] for clip_id, several in REFERENCES.items()}
    found = examples(reports, broken, system="good", baseline="fair", metric="CIDEr", count=1)
    lines = example_lines(found)
    assert lines[3] == "  reference: two lines more"
    assert all(line.splitlines() == [line] for line in lines)


def test_the_terminal_shows_all_metrics_in_80_columns(compared: Comparison) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(scores_table(compared, for_terminal=True))
    console.print(differences_table(compared))
    text = console.export_text()
    low, high = (getattr(compared.standings["good"]["CIDEr"], end) for end in ("low", "high"))
    assert f"[{low:.4f}, {high:.4f}]" in text
    assert f"[{compared.differences[0].low:+.4f}, {compared.differences[0].high:+.4f}]" in text


def test_json_holds_everything(compared: Comparison) -> None:
    found = json.loads(json.dumps(compared.to_json()))
    assert found["differences"][0]["p_holm"] == compared.differences[0].p_holm
    assert found["standings"]["good"]["CIDEr"]["score"] == compared.standings["good"]["CIDEr"].score
    assert found["method"] == compared.method
    assert found["claim"].startswith("one checkpoint a system")
    assert found["signatures"]["CIDEr"].startswith("CIDEr|n:60/60")
