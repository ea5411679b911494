"""Dense captions against a slow reading of densevid_eval's steps, with pycocoevalcap's own scorers."""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avpipe.eval import dense, ptb
from avpipe.eval.dense import THRESHOLDS, DenseReport, Event, Events, score_dense
from avpipe.eval.tools import Tools
from avpipe.pipeline.errors import DataError, ScoringError, UnknownNameError, UsageError

ANNOTATIONS = Path(__file__).parents[3] / "shared" / "annotations" / "activitynet"
PYTHON = ("bleu", "rouge_l", "cider")


def events(*rows: tuple[float, float, str]) -> list[Event]:
    return [Event(*row) for row in rows]


# Two annotators, of whom the second has not seen the third video; events that overlap much, little, twice, not at all.
REFERENCES: list[Events] = [
    {
        "one": events((0, 10, "A man lifts a bar."), (10, 20, "He drops the bar and smiles.")),
        "two": events((0, 30, "A dog runs on the beach."), (2, 28, "The dog runs to the water — café!")),
        "three": events((5, 9, "Someone sings.")),
    },
    {
        "one": events((0, 20, "A man is lifting weights in a gym.")),
        "two": events((0, 29, "A brown dog runs on sand."), (40, 50, "Waves break.")),
    },
]
PREDICTIONS: Events = {
    "one": events((0, 10, "a man lifts a bar"), (1, 12, "a man lifts weights"), (50, 60, "nothing of this happens")),
    "two": events((0, 30, "a dog runs on the beach"), (0, 28, "a dog runs on sand"), (41, 50, "big waves break")),
    "three": events((5, 8.9, "someone sings")),
}


# What densevid_eval does, step by step


def slow_iou(some: Sequence[float], other: Sequence[float]) -> float:
    common = max(0, min(some[1], other[1]) - max(some[0], other[0]))
    union = min(max(some[1], other[1]) - min(some[0], other[0]), other[1] - other[0] + some[1] - some[0])
    return common / (union + 1e-8)


def times(event: Event) -> tuple[float, float]:
    return event.start_seconds, event.stop_seconds


def ascii_only(text: str) -> str:
    """On one line too: the tokeniser's wrapper sees to that."""
    return "".join(letter if ord(letter) < 128 else " " for letter in text).replace("\n", " ")


def slow_scores(
    predictions: Events, references: Sequence[Events], tools: Tools, names: Sequence[str], tiou: float
) -> dict[str, float]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge

    letters = random.Random(7)
    videos = sorted({video for several in references for video in several})
    pairs: dict[str, list[int]] = {video: [] for video in videos}
    own, theirs = [], []
    for video in videos:
        for event in predictions.get(video, ()):
            added = False
            for several in references:
                for reference in several.get(video, ()):
                    if slow_iou(times(event), times(reference)) >= tiou:
                        pairs[video].append(len(own))
                        own.append(ascii_only(event.sentence))
                        theirs.append(ascii_only(reference.sentence))
                        added = True
            if not added:
                pairs[video].append(len(own))
                own.append(ascii_only(event.sentence))
                theirs.append("".join(letters.choices(string.ascii_lowercase, k=letters.randint(10, 20))))
    own, theirs = ptb.tokenise(own, tools), ptb.tokenise(theirs, tools)
    makers = {"bleu": lambda: Bleu(4), "rouge_l": Rouge, "cider": Cider, "meteor": Meteor}
    means: dict[str, float] = {}
    for name in names:
        scorer, by_video = makers[name](), []
        for video in videos:
            if not pairs[video]:
                by_video.append(np.zeros(4 if name == "bleu" else 1))
                continue
            with contextlib.redirect_stdout(io.StringIO()):
                score, _ = scorer.compute_score(
                    {number: [theirs[number]] for number in pairs[video]},
                    {number: [own[number]] for number in pairs[video]},
                )
            by_video.append(np.atleast_1d(score))
        means |= dict(zip(dense.find_metrics([name])[name].NAMES, np.mean(by_video, axis=0).tolist(), strict=True))
    return means


def slow_proposals(predictions: Events, references: Sequence[Events], tiou: float) -> dict[str, float]:
    videos = sorted({video for several in references for video in several})
    precision, recall = [], []
    for video in videos:
        best_precision = best_recall = 0.0
        for several in references:
            if video not in several:
                continue
            near = {
                (number, place)
                for number, event in enumerate(predictions.get(video, ()))
                for place, reference in enumerate(several[video])
                if slow_iou(times(event), times(reference)) > tiou
            }
            if predictions.get(video):
                best_precision = max(best_precision, len({number for number, _ in near}) / len(predictions[video]))
            best_recall = max(best_recall, len({place for _, place in near}) / len(several[video]))
        precision.append(best_precision)
        recall.append(best_recall)
    return {"Precision": float(np.mean(precision)), "Recall": float(np.mean(recall))}


def assert_same(
    report: DenseReport, predictions: Events, references: Sequence[Events], tools: Tools, names: Sequence[str]
) -> None:
    for place, tiou in enumerate(report.thresholds):
        slow = slow_scores(predictions, references, tools, names, tiou) | slow_proposals(predictions, references, tiou)
        assert {name: values and values[place] for name, values in report.scores.items()} == pytest.approx(
            slow, rel=1e-9, abs=1e-12
        )


def test_scores_are_those_of_the_original_steps(tools: Tools) -> None:
    report = score_dense(PREDICTIONS, REFERENCES, metrics=PYTHON, tools=tools)
    assert_same(report, PREDICTIONS, REFERENCES, tools, PYTHON)
    assert report.means["CIDEr"] == pytest.approx(np.mean(report.scores["CIDEr"]))
    assert report.to_json()["signatures"]["CIDEr"].endswith("|idf:video")
    assert 0 < report.means["CIDEr"] < 10  # type: ignore[operator]


def test_meteor_too(tools: Tools, original_java: None) -> None:
    report = score_dense(PREDICTIONS, REFERENCES, metrics=["meteor"], tools=tools, thresholds=[0.5])
    assert_same(report, PREDICTIONS, REFERENCES, tools, ["meteor"])


seconds = st.integers(0, 12)


def some_events(fewest_words: int) -> st.SearchStrategy[list[Event]]:
    sentences = st.lists(st.sampled_from(["a", "dog", "runs", "sings"]), min_size=fewest_words, max_size=5)
    return st.lists(st.builds(Event, seconds, seconds, sentences.map(" ".join)), max_size=4)


# On references without a word, pycocoevalcap's CIDEr fails.
some_references = st.dictionaries(st.sampled_from("xyz"), some_events(1).filter(bool), min_size=1)


@settings(max_examples=25, deadline=None)
@given(
    references=st.lists(some_references, min_size=1, max_size=2),
    predictions=st.dictionaries(st.sampled_from("xyz"), some_events(0)),
)
def test_any_events_score_as_in_the_original_steps(
    tools: Tools, references: list[Events], predictions: dict[str, list[Event]]
) -> None:
    known = {video for several in references for video in several}
    predictions = {video: found for video, found in predictions.items() if video in known}
    report = score_dense(predictions, references, metrics=["rouge_l", "cider"], missing="empty", tools=tools)
    for place, tiou in enumerate(THRESHOLDS):
        slow = slow_proposals(predictions, references, tiou)
        assert [report.scores[name][place] for name in slow] == pytest.approx(list(slow.values()))  # type: ignore[index]
    assert_same(
        score_dense(predictions, references, metrics=PYTHON, missing="empty", tools=tools, thresholds=[0.5]),
        predictions,
        references,
        tools,
        PYTHON,
    )


def test_an_event_counts_at_the_tiou_but_a_proposal_only_above_it(tools: Tools) -> None:
    whole, half = events((0, 1e9, "a dog")), events((0, 5e8, "a dog"))  # so long that the 1e-8 is lost
    report = score_dense({"v": half}, [{"v": whole}], metrics=["rouge_l"], thresholds=[0.5], tools=tools)
    assert report.scores == {"ROUGE_L": (1.0,), "Precision": (0.0,), "Recall": (0.0,)}
    report = score_dense({"v": half}, [{"v": whole}], metrics=["rouge_l"], thresholds=[0.49, 0.51], tools=tools)
    assert report.scores == {"ROUGE_L": (1.0, 0.0), "Precision": (1.0, 0.0), "Recall": (1.0, 0.0)}


def test_what_overlaps_nothing_costs(tools: Tools) -> None:
    right, wrong = (0, 10, "a dog runs"), (50, 60, "a dog runs")
    for predicted, expected in (((right,), 1), ((right, wrong), 0.5), ((wrong,), 0), ((), 0)):
        report = score_dense(
            {"v": events(*predicted)}, [{"v": events(right)}], metrics=["rouge_l"], thresholds=[0.5], tools=tools
        )
        assert report.scores["ROUGE_L"] == (pytest.approx(expected),)
        assert report.scores["Precision"] == (pytest.approx(expected),)


def test_only_the_first_thousand_of_a_video_count(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "MOST_EVENTS", 1)
    report = score_dense(
        {"v": events((0, 10, "a dog"), (50, 60, "a cat"))},
        [{"v": events((0, 10, "a dog"))}],
        metrics=["rouge_l"],
        tools=tools,
    )
    assert report.means == {"ROUGE_L": 1, "Precision": 1, "Recall": 1}
    assert report.notes == (
        "2 events were predicted",
        "1 videos have more than 1 predictions; the first were scored: v",
    )
    assert report.signature("ROUGE_L") == f"ROUGE_L|{report.protocol}|beta:1.2"


# What may be scored


def test_videos_must_be_the_same(tools: Tools) -> None:
    with pytest.raises(ScoringError, match=r"1 videos are in no reference file: four\n.*1 videos have no.*: two"):
        score_dense({"one": PREDICTIONS["one"], "three": [], "four": []}, REFERENCES, metrics=["rouge_l"], tools=tools)


def test_a_missing_video_scores_nothing_or_is_left_out(tools: Tools) -> None:
    only = {"one": events((0, 10, "A man lifts a bar."))}
    references = [{"one": only["one"], "two": events((0, 1, "x"))}]
    empty = score_dense(only, references, metrics=["rouge_l"], missing="empty", tools=tools)
    assert empty.means == {"ROUGE_L": 0.5, "Precision": 0.5, "Recall": 0.5}
    assert "|videos:2/2|" in empty.protocol and "|missing:empty|" in empty.protocol
    assert empty.notes[1:] == ("1 videos have no prediction: two",)
    drop = score_dense(only, references, metrics=["rouge_l"], missing="drop", tools=tools)
    assert drop.means == {"ROUGE_L": 1, "Precision": 1, "Recall": 1}
    assert re.search(r"\|videos:1/2@[0-9a-f]{8}\|tiou:", drop.protocol)
    with pytest.raises(UsageError, match="missing: expected one of error, empty, drop, got 'dorp'"):
        score_dense(only, references, metrics=["rouge_l"], missing="dorp", tools=tools)  # type: ignore[arg-type]
    with pytest.raises(ScoringError, match="none of 2 videos of the references has a prediction"):
        score_dense({}, references, metrics=["rouge_l"], missing="drop", tools=tools)


def test_what_is_no_event_is_told(tmp_path: Path, tools: Tools) -> None:
    def predicted(start: float, stop: float, sentence: str) -> Path:
        path = tmp_path / "p.json"
        path.write_text(json.dumps({"results": {"v": [{"timestamp": [start, stop], "sentence": sentence}]}}))
        return path

    with pytest.raises(
        DataError, match=r"'v': expected a timestamp \[start, stop\] in seconds and a sentence, got \[nan"
    ):
        dense.read_predictions(predicted(float("nan"), 1, "a dog"))
    events = dense.read_predictions(predicted(5, 1, " "))
    references = {"v": (dense.Event(0, 10, "a dog"),)}
    notes = score_dense(events, [references], metrics=["rouge_l"], tools=tools).notes
    assert "1 videos have predictions that stop before they start: v" in notes
    assert "1 videos have predictions without a sentence: v" in notes


def test_thresholds_stand_in_the_signature(tools: Tools) -> None:
    some, others = (
        score_dense(PREDICTIONS, REFERENCES, metrics=["rouge_l"], tools=tools, thresholds=thresholds)
        for thresholds in ([0.3], [0.3, 0.5])
    )
    assert "|tiou:0.3|" in some.signature("ROUGE_L")
    assert some.signature("ROUGE_L") != others.signature("ROUGE_L")


def test_metrics_of_a_set_have_no_score_of_a_video(tools: Tools) -> None:
    with pytest.raises(UsageError, match=r"diversity: is not scored video by video.*these are: bleu, cider"):
        score_dense(PREDICTIONS, REFERENCES, metrics=["Vocab"], tools=tools)
    with pytest.raises(UnknownNameError, match="unknown metric 'soda'"):
        score_dense(PREDICTIONS, REFERENCES, metrics=["soda"], tools=tools)


@pytest.mark.parametrize("thresholds", [[], [0.5, 50], [0]])
def test_thresholds_are_shares(tools: Tools, thresholds: list[float]) -> None:
    with pytest.raises(UsageError, match="expected numbers above 0 and up to 1, at least one, got"):
        score_dense(PREDICTIONS, REFERENCES, metrics=["rouge_l"], thresholds=thresholds, tools=tools)


def test_a_metric_that_cannot_run_is_none_with_the_reason(no_java: None) -> None:
    predictions = {"v": events((0, 1, "a dog"))}
    report = score_dense(predictions, [predictions], metrics=["sbert_sim", "rouge_l"])
    assert report.scores["SBERT_sim"] is None
    assert "no weights" in report.reasons["SBERT_sim"]
    assert not report.complete
    assert report.to_json()["scores"] == {"SBERT_sim": None, "ROUGE_L": 1.0, "Precision": 1.0, "Recall": 1.0}
    assert any(line.startswith("no SBERT_sim: sbert: no weights") for line in dense.footnotes(report))


# Files


def write(path: Path, values: Any) -> Path:
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def test_files_are_read(tmp_path: Path) -> None:
    row = {"sentence": "a dog", "timestamp": [0, 2.5], "proposal_score": 0.9}
    predictions = write(tmp_path / "p.json", {"version": "1.0", "results": {"v_1": [row]}, "external_data": {}})
    assert dense.read_predictions(predictions) == {"v_1": events((0, 2.5, "a dog"))}
    references = write(tmp_path / "r.json", {"v_1": {"duration": 9, "timestamps": [[0, 2.5]], "sentences": ["a dog"]}})
    assert dense.read_references(references) == {"v_1": events((0, 2.5, "a dog"))}


@pytest.mark.parametrize(
    ("reader", "values", "message"),
    [
        (dense.read_predictions, {"v": []}, r'expected \{"results"'),
        (dense.read_predictions, {"results": {"v": {"sentence": "x"}}}, "'v': expected a list of events"),
        (
            dense.read_predictions,
            {"results": {"v": [{"sentence": "x"}]}},
            r"expected a timestamp .* got None and 'x'",
        ),
        (dense.read_predictions, {"results": {"v": [{"sentence": 1, "timestamp": [0, 1]}]}}, r"got \[0, 1\] and 1"),
        (dense.read_references, [1], "expected {video:"),
        (dense.read_references, {"v": {"timestamps": [[0, 1]], "sentences": []}}, "timestamps and as many sentences"),
        (dense.read_references, {"v": {"timestamps": [], "sentences": []}}, "at least one"),
        (dense.read_references, {"v": {"timestamps": [[0]], "sentences": ["x"]}}, r"got \[0\] and 'x'"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, reader: Any, values: Any, message: str) -> None:
    path = write(tmp_path / "x.json", values)
    with pytest.raises(DataError, match=message) as caught:
        reader(path)
    assert str(path) in str(caught.value)


def test_the_table_has_a_row_a_score_and_a_column_a_threshold(tools: Tools) -> None:
    from rich.console import Console

    report = score_dense(PREDICTIONS, REFERENCES, metrics=["rouge_l"], tools=tools)
    console = Console(file=io.StringIO(), width=100)
    console.print(dense.table(report, percent=True))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert [
        word for word in ("tIoU 0.3", "tIoU 0.9", "mean", "ROUGE_L", "Precision", "Recall") if word not in text
    ] == []
    assert f"{100 * report.means['ROUGE_L']:.2f}" in text  # type: ignore[operator]


# The real ones


def perturbed(references: Events, seed: int) -> dict[str, list[Event]]:
    """What a model might say: events shifted, words left out, sentences of another event, events that are none."""
    chance = random.Random(seed)
    found: dict[str, list[Event]] = {}
    for video, several in references.items():
        found[video] = []
        for event in several:
            shift, stretch = chance.gauss(0, 5), chance.uniform(0.7, 1.4)
            words = [word for word in chance.choice([event, *several]).sentence.split() if chance.random() > 0.2]
            length = (event.stop_seconds - event.start_seconds) * stretch
            start = max(0, event.start_seconds + shift)
            found[video].append(Event(start, start + length, " ".join(words)))
        found[video].append(Event(900, 901, "the credits of the clip are shown"))
    return found


@pytest.mark.shared
@pytest.mark.skipif(not ANNOTATIONS.is_dir(), reason="third-party captions are not beside the project")
def test_real_captions_score_as_in_the_original_steps(tools: Tools) -> None:
    whole = dense.read_references(ANNOTATIONS / "val_1.json")
    assert (len(whole), sum(map(len, whole.values()))) == (4917, 17505)
    some: Mapping[str, list[Event]] = {video: whole[video] for video in sorted(whole)[:150]}
    references = [some, perturbed(some, 1)]
    predictions = perturbed(some, 2)
    report = score_dense(predictions, references, metrics=PYTHON, tools=tools, thresholds=[0.3, 0.7])
    assert_same(report, predictions, references, tools, PYTHON)
