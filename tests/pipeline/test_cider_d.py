"""CIDEr-D: the numbers of pycocoevalcap, of stored references and on the spot."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from avpipe.pipeline.cider_d import DocumentFrequencies, References, ngrams
from avpipe.pipeline.ptb import words

STORED = json.loads(gzip.decompress((Path(__file__).parents[1] / "data" / "scst.json.gz").read_bytes()))
CIDER = STORED["cider"]


def ours(items: dict[str, tuple[str, list[str]]]) -> list[float]:
    """Of each item, a candidate and its references; document frequencies are those of the references."""
    frequencies = DocumentFrequencies(references for _, references in items.values())
    return [References(references, frequencies).score([own])[0] for own, references in items.values()]


def theirs(items: dict[str, tuple[str, list[str]]]) -> list[float]:
    """The same by pycocoevalcap."""
    from pycocoevalcap.cider.cider import Cider

    gts = {key: references for key, (_, references) in items.items()}
    _, scores = Cider().compute_score(gts, {key: [own] for key, (own, _) in items.items()})
    return [float(score) for score in scores]


def stored(items: list[Any]) -> dict[str, tuple[str, list[str]]]:
    return {item["id"]: (item["candidate"], item["references"]) for item in items}


# -- stored numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["main", "uneven_reference_counts"])
def test_scores_are_the_stored_ones(key: str) -> None:
    items = CIDER[key]["items"]
    found = ours(stored(items))
    assert found == pytest.approx([item["cider_d"] for item in items], abs=1e-9)
    assert len({round(value, 6) for value in found}) > len(items) / 2  # they are not all alike


def test_scores_with_frequencies_of_a_corpus_are_the_stored_ones() -> None:
    frequencies = DocumentFrequencies(CIDER["document_frequency_corpus"])
    assert frequencies.documents == 60
    for item in CIDER["main"]["items"]:
        [found] = References(item["references"], frequencies).score([item["candidate"]])
        assert found == pytest.approx(item["cider_d_with_external_df"], abs=1e-9), item["id"]


def test_raw_text_becomes_the_stored_tokens_and_scores() -> None:
    items = CIDER["raw_text"]["items"]
    tokenised = {
        item["id"]: (words(item["candidate"]), [words(reference) for reference in item["references"]]) for item in items
    }
    for item in items:
        candidate, references = tokenised[item["id"]]
        assert candidate == item["tokenized_candidate"]
        assert references == item["tokenized_references"]
    assert ours(tokenised) == pytest.approx([item["cider_d"] for item in items], abs=1e-9)


# -- on the spot -------------------------------------------------------------------------------------------------------

caption = st.lists(st.sampled_from(["a", "man", "dog", "runs", "the", "in", "park"]), max_size=9).map(" ".join)
item = st.tuples(caption, st.lists(caption, min_size=1, max_size=5))


@settings(max_examples=80, deadline=None)
@given(st.lists(item, min_size=1, max_size=8))
def test_scores_are_those_of_pycocoevalcap(several: list[tuple[str, list[str]]]) -> None:
    """Empty captions, words alone, duplicates, uneven counts, words that no reference has: few words bring them all."""
    items = {str(number): one for number, one in enumerate(several)}
    assume(any("".join(references) for _, references in several))  # theirs fails where there is not one word
    assert ours(items) == pytest.approx(theirs(items), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.lists(item, min_size=2, max_size=5), st.lists(caption, min_size=1, max_size=4))
def test_captions_of_a_clip_at_once_are_those_one_by_one(several: list[tuple[str, list[str]]], more: list[str]) -> None:
    frequencies = DocumentFrequencies(references for _, references in several)
    references = References(several[0][1], frequencies)
    at_once = references.score_each(more)
    assert at_once.shape == (len(more), len(references))
    for own, row in zip(more, at_once, strict=True):
        np.testing.assert_allclose(references.score_each([own])[0], row, rtol=0, atol=1e-12)
        alone = [References([one], frequencies).score([own])[0] for one in several[0][1]]
        np.testing.assert_allclose(row, alone, rtol=0, atol=1e-12)
    # Against all references is the mean over each alone.
    np.testing.assert_allclose(references.score(more), at_once.mean(axis=1), rtol=0, atol=1e-12)


# -- what one can see --------------------------------------------------------------------------------------------------


def test_a_caption_equal_to_its_references_scores_ten() -> None:
    frequencies = DocumentFrequencies([["a man is running"], ["a dog is sleeping now"]])
    references = References(["a man is running"], frequencies)
    assert references.score(["a man is running", "a dog is sleeping now", "", "man"]) == pytest.approx(
        [10, 0, 0, 10 / 4 / math.sqrt(2) * math.exp(-9 / 72)]
    )


def test_a_word_of_every_document_weighs_nothing() -> None:
    frequencies = DocumentFrequencies([["a man"], ["a dog"]])
    assert frequencies.weights([("a",), ("man",), ("cat",), ("a", "man")]) == pytest.approx(
        [0, math.log(2), math.log(2), math.log(2)]
    )
    assert len(frequencies) == 5


def test_a_document_counts_an_ngram_once() -> None:
    frequencies = DocumentFrequencies([["a a a", "a man"], ["dog"], ["cat"]])
    assert frequencies.weights([("a",)]) == pytest.approx([math.log(3)])


def test_a_single_document_weighs_nothing() -> None:
    """The trap of a small subset: every word is in all documents there are."""
    assert ours({"x": ("a man", ["a man"])}) == [0.0]


def test_ngrams() -> None:
    assert ngrams("") == {}
    assert ngrams("a a b") == {("a",): 2, ("b",): 1, ("a", "a"): 1, ("a", "b"): 1, ("a", "a", "b"): 1}


def test_hundreds_of_one_word_are_counted() -> None:
    many = " ".join(["a"] * 300)
    items = {"x": ("a a", [many, "b"]), "y": (many, [many]), "z": ("c", ["b a"]), "w": ("c", ["d"])}
    assert ours(items) == pytest.approx(theirs(items), abs=1e-9)
    assert ours(items)[1] == pytest.approx(10)


def test_nothing_to_count_or_to_compare_with_fails() -> None:
    with pytest.raises(ValueError, match="documents: expected at least one, got none"):
        DocumentFrequencies([])
    with pytest.raises(ValueError, match="captions: expected at least one reference, got none"):
        References([], DocumentFrequencies([["a"]]))
    assert References(["a"], DocumentFrequencies([["a"]])).score([]).shape == (0,)


# -- the goldens themselves --------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_what_is_stored_here_is_what_was_given(shared: Path) -> None:
    path = shared / "golden" / "public" / "scst" / "cider.json"
    if not path.is_file():
        pytest.skip("no goldens in ../shared")
    given_items = json.loads(path.read_text())
    assert CIDER["document_frequency_corpus"] == given_items["document_frequency_corpus"]
    assert CIDER["raw_text"] == given_items["raw_text"]
    for key in ("main", "uneven_reference_counts"):
        for ours_item, theirs_item in zip(CIDER[key]["items"], given_items[key]["items"], strict=True):
            assert ours_item == {name: theirs_item[name] for name in ours_item}
