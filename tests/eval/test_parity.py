"""BLEU, ROUGE-L, CIDEr and the words that they are made of: the numbers of pycocoevalcap, clip by clip."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avpipe.eval import ptb, score
from avpipe.eval.coverage import clean
from avpipe.eval.metric import aggregate, load
from avpipe.eval.metrics import rouge_l
from avpipe.eval.metrics.rouge_l import common_subsequence
from avpipe.eval.tools import Tools
from avpipe.pipeline.cider_d import DocumentFrequencies, References

from ..annotations import READERS, Captions, read
from .toys import evaluation_of

Scores = dict[str, dict[str, float]]

# Words, one that holds a space of another kind, and captions without any.
caption = st.lists(st.sampled_from(["a", "man", "dog", "runs", "the", "in", "1\xa01/2"]), max_size=9).map(" ".join)
corpus = st.lists(st.tuples(caption, st.lists(caption, min_size=1, max_size=5)), min_size=1, max_size=8)


def theirs(references: Mapping[str, Sequence[str]], candidates: Mapping[str, str]) -> Scores:
    """By pycocoevalcap; the corpus score has the id ``""``."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    gts = {key: list(several) for key, several in references.items()}
    res = {key: [text] for key, text in candidates.items()}
    whole, per_clip = Bleu(4).compute_score(gts, res, verbose=0)
    found = {f"Bleu_{n + 1}": (whole[n], per_clip[n]) for n in range(4)}
    found |= {"ROUGE_L": Rouge().compute_score(gts, res), "CIDEr": Cider().compute_score(gts, res)}
    return {name: {"": float(total), **dict(zip(gts, each, strict=True))} for name, (total, each) in found.items()}


def ours(references: Mapping[str, Sequence[str]], candidates: Mapping[str, str]) -> Scores:
    """The same by avpipe."""
    evaluation = evaluation_of(references, candidates)
    results = [evaluation.result(name) for name in ("bleu", "rouge_l", "cider")]
    return {name: {"": total, **result.per_clip[name]} for result in results for name, total in result.corpus.items()}


def assert_equal(one: Scores, other: Scores) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name] == pytest.approx(other[name], rel=1e-9, abs=1e-9), name


@settings(max_examples=150, deadline=None)
@given(corpus)
def test_any_words_have_the_scores_of_pycocoevalcap(items: list[tuple[str, list[str]]]) -> None:
    references = {str(number): several for number, (_, several) in enumerate(items)}
    candidates = {str(number): own for number, (own, _) in enumerate(items)}
    if not any(text for several in references.values() for text in several):  # where theirs fails
        assert ours(references, candidates)["CIDEr"][""] == 0
        return
    assert_equal(ours(references, candidates), theirs(references, candidates))


def test_scores_of_a_second_system_are_as_if_it_were_the_first() -> None:
    references = {"a": ["a dog runs", "the dog"], "b": ["a man in the park", "a b c d e"]}
    first, second = {"a": "a dog", "b": "nobody"}, {"a": "the cat the", "b": "a man in the park"}
    evaluation = evaluation_of(references, first)
    for captions in (first, second, first):
        again = type(evaluation)(captions, captions, evaluation.references, Tools())
        found = {name: again.result(name).corpus for name in ("bleu", "rouge_l", "cider")}
        assert found == {
            name: evaluation_of(references, captions).result(name).corpus for name in ("bleu", "rouge_l", "cider")
        }


@settings(max_examples=50, deadline=None)
@given(corpus, st.randoms())
def test_bleu_of_some_clips_is_that_of_their_counts(items: list[tuple[str, list[str]]], random: object) -> None:
    references = {str(number): several for number, (_, several) in enumerate(items)}
    candidates = {str(number): own for number, (own, _) in enumerate(items)}
    statistics = load("bleu").compute(evaluation_of(references, candidates)).statistics
    assert statistics is not None
    some = [key for key in references if random.random() < 0.6]  # type: ignore[attr-defined]
    if not some:
        return
    found = aggregate("bleu", statistics[[int(key) for key in some]].sum(axis=0, keepdims=True))
    alone = ours({key: references[key] for key in some}, {key: candidates[key] for key in some})
    assert {name: float(value[0]) for name, value in found.items()} == pytest.approx(
        {name: alone[name][""] for name in found}
    )


said = st.lists(st.sampled_from(["a", "man", "dog", "runs", "the", "in"]), min_size=1, max_size=9).map(" ".join)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(said, st.lists(said, min_size=1, max_size=4)), min_size=2, max_size=6))
def test_a_caption_that_is_a_reference_is_not_beaten(items: list[tuple[str, list[str]]]) -> None:
    references = {str(number): several for number, (_, several) in enumerate(items)}
    others = {str(number): own for number, (own, _) in enumerate(items)}
    perfect, other = (
        ours(references, {key: several[0] for key, several in references.items()}),
        ours(references, others),
    )
    for name in ("Bleu_1", "ROUGE_L"):  # pycocoevalcap's BLEU adds 1e-9 to what it divides by
        assert all(perfect[name][key] == pytest.approx(1) for key in references)
        assert all(perfect[name][key] >= other[name][key] - 1e-8 for key in ("", *references))
    # CIDEr is a mean over references: a caption that is all of them is not beaten.
    alone = {key: several[:1] for key, several in references.items()}
    perfect, other = ours(alone, {key: several[0] for key, several in alone.items()}), ours(alone, others)
    assert all(perfect["CIDEr"][key] >= other["CIDEr"][key] - 1e-8 for key in ("", *alone))


words = st.lists(st.integers(0, 4), max_size=6)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=6))
def test_common_subsequences(pairs: list[tuple[list[int], list[int]]]) -> None:
    def slow(one: list[int], other: list[int]) -> int:
        if not one or not other:
            return 0
        if one[-1] == other[-1]:
            return slow(one[:-1], other[:-1]) + 1
        return max(slow(one[:-1], other), slow(one, other[:-1]))

    def padded(rows: list[list[int]], filler: int) -> np.ndarray:
        longest = max(map(len, rows))
        return np.array([row + [filler] * (longest - len(row)) for row in rows]).reshape(len(rows), longest)

    found = common_subsequence(padded([one for one, _ in pairs], -1), padded([other for _, other in pairs], -2))
    assert found.tolist() == [slow(one, other) for one, other in pairs]


def test_one_clip_of_long_captions_does_not_stretch_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def noting(some: np.ndarray, others: np.ndarray) -> np.ndarray:
        compared.append(some.shape[1] * others.size)
        return common_subsequence(some, others)

    monkeypatch.setattr(rouge_l, "common_subsequence", noting)
    long = " ".join(map(str, range(1000)))
    references = {str(clip): ["a b c d", "c d e f g"] for clip in range(3000)} | {"long": [long, "a b"]}
    found = rouge_l.compute(evaluation_of(references, {key: several[0] for key, several in references.items()}))
    assert found.corpus["ROUGE_L"] == pytest.approx(1)
    assert sum(compared) < 2.5 * (3000 * 9 * 4 + 1000 * 1000)


def plain_cider(references: Mapping[str, Sequence[str]], candidates: Mapping[str, str]) -> dict[str, float]:
    """Equations 1 to 3 of the paper, read aloud."""

    def counted(text: str, n: int) -> Counter[tuple[str, ...]]:
        parts = text.split()
        return Counter(tuple(parts[i : i + n]) for i in range(len(parts) - n + 1))

    def cosine(one: Mapping[tuple[str, ...], float], other: Mapping[tuple[str, ...], float]) -> float:
        length = math.hypot(*one.values()) * math.hypot(*other.values())
        return sum(weight * other.get(ngram, 0) for ngram, weight in one.items()) / length if length else 0.0

    found = dict.fromkeys(candidates, 0.0)
    for n in range(1, 5):
        documents = Counter(
            ngram for several in references.values() for ngram in {g for text in several for g in counted(text, n)}
        )

        def weighted(text: str, n: int = n, documents: Counter[tuple[str, ...]] = documents) -> dict[object, float]:
            return {g: c * math.log(len(references) / max(documents[g], 1)) for g, c in counted(text, n).items()}

        for key, several in references.items():
            cosines = [cosine(weighted(candidates[key]), weighted(text)) for text in several]  # type: ignore[arg-type]
            found[key] += 10 / 4 * sum(cosines) / len(several)
    return found


@settings(max_examples=60, deadline=None)
@given(corpus)
def test_plain_cider_is_that_of_the_paper(items: list[tuple[str, list[str]]]) -> None:
    references = {str(number): several for number, (_, several) in enumerate(items)}
    candidates = {str(number): own for number, (own, _) in enumerate(items)}
    found = load("cider_plain").compute(evaluation_of(references, candidates))
    assert found.per_clip["CIDEr-plain"] == pytest.approx(plain_cider(references, candidates), rel=1e-9, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(corpus, corpus)
def test_cider_with_the_frequencies_of_another_corpus(
    items: list[tuple[str, list[str]]], others: list[tuple[str, list[str]]]
) -> None:
    references = {str(number): several for number, (_, several) in enumerate(items)}
    candidates = {str(number): own for number, (own, _) in enumerate(items)}
    idf = {str(number): several for number, (_, several) in enumerate(others)}
    found = load("cider").compute(evaluation_of(references, candidates, idf=idf)).per_clip["CIDEr"]
    frequencies = DocumentFrequencies(idf.values())
    expected = {
        key: float(References(several, frequencies).score([candidates[key]])[0]) for key, several in references.items()
    }
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_cider_with_the_frequencies_of_its_own_references_is_cider() -> None:
    references = {"a": ["a dog runs", "the dog"], "b": ["a man in the park", "a b c d e"]}
    candidates = {"a": "the dog runs", "b": "a man"}
    own, other = (load("cider").compute(evaluation_of(references, candidates, idf=idf)) for idf in (None, references))
    assert own.per_clip == other.per_clip


def test_a_single_clip_has_a_cider_where_a_corpus_is_given() -> None:
    idf = {"x": ["a cat sleeps"], "y": ["the sea"]}
    found = score({"a": "a dog barks loudly"}, {"a": ["a dog barks loudly"]}, metrics=["cider"], idf=idf)
    assert found.scores["CIDEr"] == pytest.approx(10)
    assert found.notes == ()
    assert "|idf:refs|" not in found.signature("CIDEr")
    assert re.search(r"\|idf:[0-9a-f]{8}\|missing", found.signature("CIDEr"))


def test_plain_cider_forgives_repetition_and_cider_d_does_not() -> None:
    references = {"a": ["a red dog barks loudly"], "b": ["two cats sleep"], "c": ["the sea is calm"]}
    said = {"a": "a red dog barks loudly", "b": "two cats sleep", "c": "the sea is calm"}
    stuttered = said | {"a": " ".join(["a red dog barks loudly"] * 4)}
    plain = [
        load("cider_plain").compute(evaluation_of(references, x)).per_clip["CIDEr-plain"]["a"]
        for x in (said, stuttered)
    ]
    clipped = [load("cider").compute(evaluation_of(references, x)).per_clip["CIDEr"]["a"] for x in (said, stuttered)]
    assert plain[0] == clipped[0] == pytest.approx(10)
    assert plain[1] > 8
    assert clipped[1] < 1


# -- real captions -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def annotations(shared: Path) -> dict[str, Captions]:
    """All that lie beside the project, cleaned."""
    if not (shared / "annotations").is_dir():
        pytest.skip("no annotations in ../shared")
    found = read(shared / "annotations")
    return {name: {key: list(map(clean, texts)) for key, texts in clips.items()} for name, clips in found.items()}


@pytest.mark.shared
@pytest.mark.slow
def test_all_real_captions_have_the_words_of_pycocoevalcap(
    annotations: dict[str, Captions], tools: Tools, original_java: None
) -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    whole = {f"{name}/{key}": texts for name, clips in annotations.items() for key, texts in clips.items()}
    assert sum(map(len, whole.values())) > 100_000
    original = PTBTokenizer().tokenize({key: [{"caption": text} for text in texts] for key, texts in whole.items()})
    assert ptb.tokenise_by_clip(whole, tools) == original


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_real_captions_have_the_scores_of_pycocoevalcap(
    name: str, annotations: dict[str, Captions], tools: Tools
) -> None:
    """The first caption of a clip against its others; where it has none, a neighbour's is the reference."""
    clips = list(ptb.tokenise_by_clip(annotations[name], tools).items())
    clips = clips[:: max(len(clips) // 700, 1)]
    references, candidates = {}, {}
    for (key, several), (_, neighbours) in zip(clips, [*clips[1:], clips[0]], strict=True):
        half = several[-1].split()
        candidates[key] = " ".join([*several[0].split()[: len(half) // 2], *half[len(half) // 2 :]])
        references[key] = several[1:] or neighbours
    assert_equal(ours(references, candidates), theirs(references, candidates))
