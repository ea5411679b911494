"""Every metric there is keeps the contract; those taken over from pycocoevalcap give its numbers, clip by clip."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avpipe.eval import ptb
from avpipe.eval.java import Java
from avpipe.eval.metric import MetricResult, find_metrics, load
from avpipe.eval.metrics import REGISTRY
from avpipe.eval.tools import Tools, pycocoevalcap_file
from avpipe.pipeline.errors import UnknownNameError

from .small_networks import make_clip, make_echecker, make_sbert
from .toys import TOY_CANDIDATES, TOY_REFERENCES, evaluation_of, link_meteor, pretended_spice

Words = tuple[dict[str, list[str]], dict[str, str]]
METRICS = REGISTRY.names()

UNBOUNDED = {"Vocab", "Length", "Length_ratio"}
COSINES = {"SBERT_sim", "FENSE"}
OF_CAPTIONS_ALONE = {"diversity", "length", "repetition", "fer"}
"""They tell what captions are like, which says nothing of how well they fit their clips."""
UNTRAINED = {"sbert_sim", "fense", "spider_fl", "clipscore"}
"""Run here on networks of random weights, which do not know better captions from worse."""


def small_networks(folder: Path, clip_ids: Sequence[str]) -> dict[str, Any]:
    """Arguments of Tools with which metrics run that are networks."""
    weights = {"sbert": str(make_sbert(folder / "sbert")), "echecker": str(make_echecker(folder / "echecker"))}
    return {"weights": weights, "pictures": make_clip(folder / "clip", clip_ids)}


@pytest.fixture(scope="session")
def words(tools: Tools) -> Words:
    """The toy corpus as words, with a clip that has no caption."""
    references = ptb.tokenise_by_clip(TOY_REFERENCES, tools)
    candidates = dict(zip(TOY_CANDIDATES, ptb.tokenise(list(TOY_CANDIDATES.values()), tools), strict=True))
    return references | {"empty": ["a dog"]}, candidates | {"empty": ""}


@pytest.fixture(scope="session")
def results(
    words: Words, packaged_java: Java, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, MetricResult]]:
    """Of every metric, on the Java that avpipe installs, with METEOR in a folder whose name breaks pycocoevalcap's."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        table = link_meteor(tmp_path_factory.mktemp("meteor") / "a path with späces", monkeypatch)
        table.symlink_to(pycocoevalcap_file("meteor", "data", "paraphrase-en.gz"))
        networks = small_networks(tmp_path_factory.mktemp("networks"), list(words[0]))
        found = {}
        for name in METRICS:
            folder = tmp_path_factory.mktemp(name)
            monkeypatch.setenv("AVPIPE_CACHE", str(folder / "cache"))
            needs_spice = name in ("spice", "spider", "spider_fl")
            tools = pretended_spice(folder, **networks) if needs_spice else Tools(packaged_java, **networks)
            found[name] = load(name).compute(evaluation_of(*words, tools))
        yield found


# The contract


def test_there_are_metrics() -> None:
    assert {"bleu", "cider", "meteor", "rouge_l"} <= set(METRICS)


def test_names_of_scores_are_unique() -> None:
    names = [name for metric in METRICS for name in load(metric).NAMES]
    assert len(names) == len(set(names)) >= len(METRICS)


@pytest.mark.parametrize("name", METRICS)
def test_docstring_says_where_it_comes_from(name: str) -> None:
    doc = load(name).__doc__ or ""
    assert [word for word in ("Paper:", "Author's code:", "Deviations") if word not in doc] == []


@pytest.mark.parametrize("name", METRICS)
def test_scores_are_numbers_by_name_and_id(name: str, words: Words, results: Mapping[str, MetricResult]) -> None:
    result, module = results[name], load(name)
    assert tuple(result.corpus) == tuple(result.per_clip) == module.NAMES
    for score in module.NAMES:
        by_clip = result.per_clip[score]
        assert list(by_clip) == list(words[0])
        lowest, highest = -1 if score in COSINES else 0, float("inf") if score in UNBOUNDED else 10
        values = [result.corpus[score], *by_clip.values()]
        assert all(type(value) is float and lowest <= value <= highest for value in values)
        assert isinstance(module.VERSION, str)


@pytest.mark.parametrize("name", sorted({*METRICS} - OF_CAPTIONS_ALONE - UNTRAINED))
def test_better_captions_score_higher(name: str, results: Mapping[str, MetricResult]) -> None:
    for by_clip in results[name].per_clip.values():
        # Equal to a reference; near one; about something else; nothing at all.
        assert by_clip["video7010"] > by_clip["m0"] > by_clip["Z9"] >= by_clip["empty"]
        assert by_clip["empty"] == pytest.approx(0, abs=1e-6)


def test_sides_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="expected the same ids in the same order"):
        evaluation_of({"a": ["x"], "b": ["x"]}, {"b": "x", "a": "x"})


def test_result_with_a_score_that_has_no_clips_is_refused() -> None:
    with pytest.raises(ValueError, match=r"per_clip: expected the names \['CIDEr'\], got \[\]"):
        MetricResult(corpus={"CIDEr": 1.0}, per_clip={})


def test_metrics_are_found_by_their_name_or_by_that_of_a_score() -> None:
    assert list(find_metrics(["cider", "METEOR", "Bleu_4", "Bleu_1", "rouge_l"])) == [
        "cider",
        "meteor",
        "bleu",
        "rouge_l",
    ]
    with pytest.raises(UnknownNameError, match=r"unknown metric 'CIDER-R'.*known: Bleu_1, .*CIDEr.*cider"):
        find_metrics(["CIDEr", "CIDER-R"])


# The numbers


def original(name: str, words: Words) -> dict[str, dict[str, float]]:
    """Per-clip scores by pycocoevalcap alone, with the clips in sorted order; "corpus" beside the ids."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge

    ids = sorted(words[0])
    gts, res = {key: words[0][key] for key in ids}, {key: [words[1][key]] for key in ids}
    scorer = {"bleu": lambda: Bleu(4), "cider": Cider, "meteor": Meteor, "rouge_l": Rouge}[name]()
    corpus, per_clip = scorer.compute_score(gts, res)
    if name != "bleu":
        corpus, per_clip = [corpus], [per_clip]
    return {
        score: {**dict(zip(ids, values, strict=True)), "corpus": whole}
        for score, whole, values in zip(load(name).NAMES, corpus, per_clip, strict=True)
    }


@pytest.mark.parametrize("name", ["bleu", "cider", "meteor", "rouge_l"])
def test_numbers_are_those_of_pycocoevalcap_in_any_order_of_the_clips(
    name: str, words: Words, results: Mapping[str, MetricResult], original_java: None
) -> None:
    for score, theirs in original(name, words).items():
        ours = {**results[name].per_clip[score], "corpus": results[name].corpus[score]}
        assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", ["bleu", "cider", "rouge_l"])
@given(seed=st.integers())
def test_order_of_the_clips_is_irrelevant(
    name: str, words: Words, results: Mapping[str, MetricResult], seed: int
) -> None:
    ids = list(words[0])
    random.Random(seed).shuffle(ids)
    shuffled = load(name).compute(
        evaluation_of({key: words[0][key] for key in ids}, {key: words[1][key] for key in ids})
    )
    assert shuffled.corpus == pytest.approx(results[name].corpus)
    for score, by_clip in shuffled.per_clip.items():
        assert by_clip == pytest.approx(results[name].per_clip[score])


def test_a_perfect_system_is_perfect() -> None:
    references = {"a": ["a red ball rolls down", "a ball"], "b": ["a blue kite flies very high"]}
    candidates = {"a": "a red ball rolls down", "b": "a blue kite flies very high"}
    for name in ("bleu", "rouge_l"):
        assert all(
            value == pytest.approx(1)
            for value in load(name).compute(evaluation_of(references, candidates)).corpus.values()
        )
    # Ten is only for a clip whose every reference is the caption.
    by_clip = load("cider").compute(evaluation_of(references, candidates)).per_clip["CIDEr"]
    assert by_clip["b"] == pytest.approx(10)
    assert by_clip["a"] < 10


def test_cider_of_a_single_clip_is_zero_and_says_why() -> None:
    result = load("cider").compute(evaluation_of({"a": ["a dog barks"]}, {"a": "a dog barks"}))
    assert result.corpus == {"CIDEr": 0.0}
    assert result.notes == (
        "CIDEr of a single clip is always 0: its word weights are counted over the clips that are scored; count them "
        "in a corpus (idf=)",
    )
    several = evaluation_of({"a": ["a dog"], "b": ["a cat"]}, {"a": "a dog", "b": "a cat"})
    assert load("cider").compute(several).notes == ()
