from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avpipe.eval.coverage import Covered, ReferenceSet, clean, cover
from avpipe.pipeline.errors import DataError, ScoringError, UsageError

REFERENCES = ReferenceSet.of({"b": ["two birds", "birds"], "a": ["one apple"], "c": ["a cat"]})
FULL = {"a": "an apple", "b": "a bird", "c": "cats"}


def test_sides_are_paired_by_id_in_the_order_of_the_references() -> None:
    covered = cover(FULL, REFERENCES)
    assert covered.references == {"b": ("two birds", "birds"), "a": ("one apple",), "c": ("a cat",)}
    assert covered.candidates == {"b": "a bird", "a": "an apple", "c": "cats"}
    assert list(covered.references) == list(covered.candidates) == ["b", "a", "c"]
    assert (covered.missing, covered.altered) == ((), 0)


def test_integers_and_strings_are_the_same_ids() -> None:
    assert cover({404464: "a"}, ReferenceSet.of({"404464": ["b"]})).candidates == {"404464": "a"}
    assert cover({"404464": "a"}, ReferenceSet.of({404464: ["b"]})).candidates == {"404464": "a"}


def test_sides_that_differ_are_no_pair() -> None:
    with pytest.raises(ValueError, match="expected the same ids in the same order"):
        Covered(references={"a": ("x",), "b": ("x",)}, candidates={"b": "x", "a": "x"}, missing=(), altered=0)


# Coverage


def test_every_fault_is_listed_at_once() -> None:
    with pytest.raises(ScoringError) as caught:
        cover({"a": "an apple", "b": " \n", "x": "who", "y": "what"}, REFERENCES)
    assert str(caught.value) == (
        "captions and references do not fit:\n"
        "  - 2 captions belong to no clip of the references: x, y\n"
        "  - 1 clip has no caption: c\n"
        "  - 1 clip has an empty caption: b\n"
        "Give every clip a caption, or say what a missing one means: missing='empty' scores an empty caption, "
        "missing='drop' leaves the clip out; either shows in the signature"
    )


def test_ten_are_listed_and_the_rest_counted() -> None:
    references = ReferenceSet.of({str(number): ["x"] for number in range(10, 40)})
    with pytest.raises(ScoringError, match=r"28 clips have no caption: 10, 11, .*, 19 and 18 more\n"):
        cover({"38": "x", "39": "x"}, references)


def test_missing_and_empty_captions_may_count_as_empty() -> None:
    covered = cover({"a": "an apple", "b": " "}, REFERENCES, "empty")
    assert covered.candidates == {"b": " ", "a": "an apple", "c": ""}
    assert covered.missing == ("b", "c")


def test_clips_with_missing_and_empty_captions_may_be_dropped() -> None:
    covered = cover({"a": "an apple", "b": "\t"}, REFERENCES, "drop")
    assert covered.candidates == {"a": "an apple"}
    assert covered.references == {"a": ("one apple",)}
    assert covered.missing == ("b", "c")


def test_dropping_everything_is_refused() -> None:
    with pytest.raises(ScoringError, match="leaves nothing to score: none of 3 clips has a caption"):
        cover({}, REFERENCES, "drop")


@pytest.mark.parametrize("missing", ["error", "empty", "drop"])
def test_unknown_ids_always_stop(missing: Any) -> None:
    with pytest.raises(ScoringError, match=r"1 caption belongs to no clip of the references: x"):
        cover({**FULL, "x": "who"}, REFERENCES, missing)


def test_unknown_policy() -> None:
    with pytest.raises(UsageError, match=r"expected one of error, empty, drop, got 'dorp' \(did you mean 'drop'\?\)"):
        cover(FULL, REFERENCES, "dorp")  # type: ignore[arg-type]


def test_clips_without_a_reference_or_with_an_empty_one() -> None:
    with pytest.raises(ScoringError, match=r"1 clip has no reference: b\n  - 1 clip has an empty reference: a"):
        ReferenceSet.of({"a": ["x", " "], "b": [], "c": ["y"]})
    with pytest.raises(ScoringError, match="expected at least one clip, got none"):
        ReferenceSet.of({})


def test_ids_that_are_the_same_as_strings() -> None:
    with pytest.raises(DataError, match=r"predictions: the ids 7 and '7' are the same clip"):
        cover({7: "a", "7": "b"}, ReferenceSet.of({7: ["a"]}))  # type: ignore[dict-item]
    with pytest.raises(DataError, match=r"references: the ids '7' and 7 are the same clip"):
        ReferenceSet.of({"7": ["a"], 7: ["b"]})  # type: ignore[dict-item]


@pytest.mark.parametrize("key", [1.5, None, True, ("a",)])
def test_ids_of_another_kind(key: Any) -> None:
    with pytest.raises(DataError, match="expected clip ids that are strings or integers, got"):
        ReferenceSet.of({key: ["a"]})


def test_swapped_sides_are_suspected() -> None:
    with pytest.raises(DataError, match=r"clip 'a', got 'an apple'; are predictions and references swapped\?"):
        ReferenceSet.of(FULL)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"clip 'b', got \['two birds', 'birds'\]; are predictions and references"):
        cover({"b": ["two birds", "birds"]}, REFERENCES)  # type: ignore[dict-item]


@pytest.mark.parametrize("value", [None, 3, [None], [["nested"]]])
def test_references_that_are_no_captions(value: Any) -> None:
    with pytest.raises(DataError, match="expected a list of captions for clip 'a'"):
        ReferenceSet.of({"a": value})


def test_a_list_is_no_mapping() -> None:
    with pytest.raises(DataError, match="expected a mapping from clip id to captions, got list"):
        cover(["a", "b"], REFERENCES)  # type: ignore[arg-type]


# Cleaning


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("a dog", "a dog"),
        ("one\ntwo\r\nthree\tfour", "one two  three four"),
        ("one\u2028two\u2029three\x0bfour\x0c", "one two three four "),
        ("a ||| b |||| c || d", "a   b  | c || d"),
        ("half a character \ud83d", "half a character  "),
        ("quotes \"'` and 😀 stay, and \x92 too", "quotes \"'` and 😀 stay, and \x92 too"),
    ],
)
def test_clean(caption: str, cleaned: str) -> None:
    assert clean(caption) == cleaned


@given(st.text(st.characters(exclude_categories=())))
def test_clean_leaves_one_line_that_can_be_encoded(caption: str) -> None:
    cleaned = clean(caption)
    assert clean(cleaned) == cleaned
    assert not set(cleaned) & set("\n\r\x0b\x0c\u2028\u2029")
    assert "|||" not in cleaned
    assert cleaned.encode().decode() == cleaned


def test_altered_captions_are_counted_on_both_sides() -> None:
    references = ReferenceSet.of({"a": ["one\napple", "fine", "a ||| b"], "b": ["fine"]})
    assert references.altered == 2
    assert references.captions["a"] == ("one apple", "fine", "a   b")
    assert cover({"a": "tab\there", "b": "fine"}, references).altered == 1


# Identity


def test_hash_is_of_the_captions_whatever_the_order_of_the_clips() -> None:
    assert (
        ReferenceSet.of({"a": ["x"], "b": ["y", "z"]}).sha256 == ReferenceSet.of({"b": ["y", "z"], "a": ["x"]}).sha256
    )


@pytest.mark.parametrize("other", [{"a": ["x "]}, {"a": ["x", "x"]}, {"b": ["x"]}, {"a": ["x"], "b": ["x"]}])
def test_hash_tells_other_references(other: dict[str, list[str]]) -> None:
    assert ReferenceSet.of(other).sha256 != ReferenceSet.of({"a": ["x"]}).sha256
