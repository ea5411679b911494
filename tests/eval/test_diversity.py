"""What a set of captions is like beside its references: diversity, length, repetition."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avpipe import eval as stage_three
from avpipe.eval.metric import MetricResult, aggregate, is_of_the_set, is_share, load
from avpipe.eval.metrics import REGISTRY
from avpipe.eval.scores import table

from .toys import evaluation_of

CAPTIONS = {"a": "a dog barks", "b": "a dog barks", "c": "the dog and the cat", "d": ""}
REFERENCES = {"a": ["a dog", "a dog is barking"], "b": ["dogs"], "c": ["a cat and a dog"], "d": ["x y"]}

captions_of_few_words = st.lists(st.lists(st.sampled_from("abc"), max_size=9).map(" ".join), min_size=1, max_size=6)


def result_of(name: str, captions: dict[str, str] = CAPTIONS) -> MetricResult:
    references = {clip_id: REFERENCES.get(clip_id, ["x"]) for clip_id in captions}
    return load(name).compute(evaluation_of(references, captions))


def test_diversity_counts_over_all_captions() -> None:
    result = result_of("diversity")
    # a dog barks the and cat; of 11 words. Bigrams: a-dog dog-barks the-dog dog-and and-the the-cat; of 8.
    assert result.corpus == {"Vocab": 6.0, "Distinct_1": 6 / 11, "Distinct_2": 6 / 8, "Unique": 3 / 4}
    assert result.per_clip["Vocab"] == {"a": 3, "b": 3, "c": 4, "d": 0}
    assert result.per_clip["Distinct_1"] == {"a": 1, "b": 1, "c": 4 / 5, "d": 0}
    assert result.per_clip["Unique"] == {"a": 0.5, "b": 0.5, "c": 1, "d": 1}


def test_diversity_of_no_words_is_zero_but_for_the_one_caption() -> None:
    corpus = result_of("diversity", {"a": "", "b": ""}).corpus
    assert corpus == {"Vocab": 0, "Distinct_1": 0, "Distinct_2": 0, "Unique": 0.5}


def test_diversity_belongs_to_the_set_and_the_others_do_not() -> None:
    assert [is_of_the_set(name) for name in ("diversity", "length", "repetition")] == [True, False, False]
    # That is why: the same clip twice is another set.
    once, twice = (result_of("diversity", dict.fromkeys(names, "a dog")).corpus for names in ("a", "ab"))
    assert once["Distinct_1"] == 2 * twice["Distinct_1"]


def test_length_is_a_mean_and_its_ratio_one_of_sums() -> None:
    result = result_of("length")
    assert result.corpus == {"Length": 11 / 4, "Length_ratio": pytest.approx(11 / (3 + 1 + 5 + 2))}
    assert result.per_clip["Length"] == {"a": 3, "b": 3, "c": 5, "d": 0}
    assert result.per_clip["Length_ratio"] == {"a": 1, "b": 3, "c": 1, "d": 0}
    assert result.statistics is not None
    halves = np.array([result.statistics[:2].sum(axis=0), result.statistics.sum(axis=0)])
    assert aggregate("length", halves)["Length_ratio"].tolist() == [6 / 4, 11 / 11]


def test_length_against_references_without_a_word_is_zero() -> None:
    result = load("length").compute(evaluation_of({"a": [""]}, {"a": "a dog"}))
    assert result.corpus == {"Length": 2, "Length_ratio": 0}


@pytest.mark.parametrize(
    ("caption", "repetition", "repeats"),
    [
        ("a man walks and a man talks", 0, False),
        ("a man a man", 0, True),
        ("a man is is walking", 0, True),
        ("we go up and down we go up and down", 2 / 7, False),  # five words, and then the same five
        ("a b c d a b c d", 1 / 5, True),
        ("la la la la la", 1 / 2, True),
        ("la la la", 0, True),
        ("", 0, False),
    ],
)
def test_repetition(caption: str, repetition: float, repeats: bool) -> None:
    result = result_of("repetition", {"a": caption, "b": "one two three four five"})
    assert result.per_clip["Repetition_4"] == {"a": pytest.approx(repetition), "b": 0}
    assert result.per_clip["Repeats"] == {"a": float(repeats), "b": 0}
    assert result.corpus == {"Repetition_4": pytest.approx(repetition / 2), "Repeats": repeats / 2}


@given(captions=captions_of_few_words, seed=st.integers())
def test_order_is_irrelevant_and_shares_are_shares(captions: list[str], seed: int) -> None:
    ids = [str(number) for number in range(len(captions))]
    several = dict(zip(ids, captions, strict=True))
    random.Random(seed).shuffle(ids)
    for name in ("diversity", "length", "repetition"):
        result, shuffled = result_of(name, several), result_of(name, {key: several[key] for key in ids})
        assert shuffled.corpus == pytest.approx(result.corpus)
        assert shuffled.per_clip == result.per_clip
        for score in {"Distinct_1", "Distinct_2", "Unique", "Repetition_4", "Repeats"} & result.corpus.keys():
            assert 0 <= result.corpus[score] <= 1


def test_counts_are_never_times_100() -> None:
    captions = {"a": "a dog barks", "b": "a cat"}
    report = stage_three.score(
        captions, {key: [text] for key, text in captions.items()}, metrics=["diversity", "length", "bleu"]
    )
    shown = {row[0]: row[1] for row in table(report, percent=True).rows}
    assert (shown["Vocab"], shown["Length"], shown["Length_ratio"]) == ("4.0000", "2.5000", "1.0000")
    assert (shown["Unique x 100"], shown["Bleu_1 x 100"]) == ("100.00", "100.00")
    counts = [name for module in map(load, REGISTRY.names()) for name in module.NAMES if not is_share(name)]
    assert counts == ["Vocab", "Length", "Length_ratio"]
