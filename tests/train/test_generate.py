"""Beam search against searches that leave nothing out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from transformers.generation import RepetitionPenaltyLogitsProcessor

from avpipe.train import generate
from avpipe.train.batch import Fused
from avpipe.train.config import GenerateConfig
from avpipe.train.generate import Hypothesis, beam_search, divisor
from avpipe.train.tokenizer import Special

VOCABULARY = 5
APART = Special(pad=0, begin=1, end=2)
SPECIALS = [APART, Special(pad=2, begin=1, end=2), Special(pad=2, begin=2, end=2)]  # ours, GPT-2-like, GPT-2


@cache
def logits_of(seed: int, clip: int, prefix: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """A random table: what a clip's caption goes on with after a prefix. Often nearly certain, as trained ones are."""
    return 4.0 * np.random.default_rng([seed, clip, len(prefix), *prefix]).standard_normal(VOCABULARY)


def log_probs_of(seed: int, clip: int, prefix: tuple[int, ...]) -> npt.NDArray[np.float64]:
    logits = logits_of(seed, clip, prefix)
    return logits - np.log(np.exp(logits).sum())


@dataclass(frozen=True)
class ToyState:
    clips: tuple[int, ...]
    prefixes: tuple[tuple[int, ...], ...]

    def take(self, rows: Tensor) -> ToyState:
        return ToyState(*(tuple(each[row] for row in rows.tolist()) for each in (self.clips, self.prefixes)))

    def reorder(self, rows: Tensor) -> ToyState:
        kept = rows.tolist()
        assert [self.clips[row] for row in kept] == list(self.clips)  # rows never leave their clip
        return ToyState(self.clips, tuple(self.prefixes[row] for row in kept))


class ToyDecoder:
    """Looks its logits up. The number of a clip stands in what was fused."""

    def __init__(self, seed: int, max_tokens: int = 64) -> None:
        self.seed, self.max_tokens = seed, max_tokens
        self.steps = 0

    def __call__(self, fused: Fused, tokens: Tensor, token_mask: Tensor) -> Tensor:
        raise AssertionError("a search goes step by step")

    def start(self, fused: Fused) -> ToyState:
        clips = tuple(int(clip) for clip in fused.data[:, 0, 0].tolist())
        return ToyState(clips, ((),) * len(clips))

    def step(self, tokens: Tensor, state: ToyState) -> tuple[Tensor, ToyState]:
        self.steps += 1
        prefixes = tuple((*prefix, token) for prefix, token in zip(state.prefixes, tokens.tolist(), strict=True))
        rows = [logits_of(self.seed, clip, prefix[1:]) for clip, prefix in zip(state.clips, prefixes, strict=True)]
        return torch.tensor(np.stack(rows), dtype=torch.float32), ToyState(state.clips, prefixes)


def fused_of(clips: Sequence[int]) -> Fused:
    return Fused(
        data=torch.tensor(list(clips), dtype=torch.float32)[:, None, None],
        mask=torch.ones(len(clips), 1, dtype=torch.bool),
        pts_seconds=torch.zeros(len(clips), 1),
        sources=("toy",),
        source=torch.zeros(1, dtype=torch.int64),
    )


def search(seed: int, clips: Sequence[int], special: Special = APART, **options: Any) -> list[list[Hypothesis]]:
    return beam_search(ToyDecoder(seed), fused_of(clips), special, **options)


def words(special: Special) -> list[int]:
    return [word for word in range(VOCABULARY) if word not in (special.pad, special.begin, special.end)]


def log_prob_of(seed: int, clip: int, tokens: tuple[int, ...]) -> float:
    return float(sum(log_probs_of(seed, clip, tokens[:i])[token] for i, token in enumerate(tokens)))


def every_caption(special: Special, max_tokens: int, min_tokens: int) -> list[tuple[int, ...]]:
    """All that could be said: what ends in time, and what is cut at the greatest length."""
    ended = [
        (*said, special.end)
        for length in range(min_tokens, max_tokens)
        for said in itertools.product(words(special), repeat=length)
    ]
    return ended + list(itertools.product(words(special), repeat=max_tokens))


def by_hand(length: int, penalty: float, form: str) -> float:
    """What a log-probability is divided by."""
    return {"hf": float(length**penalty), "gnmt": ((5.0 + length) / 6.0) ** penalty}[form]


def brute_force(
    seed: int,
    clip: int,
    special: Special,
    beams: int,
    max_tokens: int,
    min_tokens: int,
    length_penalty: float,
    length_penalty_form: str,
) -> list[float]:
    """Scores of the best captions of all, best first."""
    captions = every_caption(special, max_tokens, min_tokens)
    scores = [log_prob_of(seed, clip, t) / by_hand(len(t), length_penalty, length_penalty_form) for t in captions]
    return sorted(scores, reverse=True)[:beams]


def search_to_the_end(
    seed: int,
    clip: int,
    special: Special,
    beams: int,
    max_tokens: int,
    min_tokens: int,
    length_penalty: float,
    length_penalty_form: str,
) -> list[float]:
    """The same beams, in plain Python, none given up early."""
    live: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    finished: list[tuple[float, tuple[int, ...]]] = []
    for length in range(max_tokens):
        allowed = words(special) + ([special.end] if length >= min_tokens else [])
        candidates = sorted(
            ((score + log_probs_of(seed, clip, said)[word], (*said, word)) for score, said in live for word in allowed),
            reverse=True,
        )[: 2 * beams]
        finished += [found for found in candidates[:beams] if found[1][-1] == special.end]
        if beams == 1 and finished:
            break
        live = [found for found in candidates if found[1][-1] != special.end][:beams]
    else:
        finished += live
    scores = (score / by_hand(len(said), length_penalty, length_penalty_form) for score, said in finished)
    return sorted(scores, reverse=True)[:beams]


def check(found: list[Hypothesis], seed: int, clip: int, special: Special, max_tokens: int, min_tokens: int) -> None:
    """What holds for every result."""
    assert found
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
    assert len({h.tokens for h in found}) == len(found)
    for hypothesis in found:
        said = hypothesis.tokens[:-1] if hypothesis.tokens[-1] == special.end else hypothesis.tokens
        assert set(said) <= set(words(special))
        assert min(min_tokens, max_tokens) <= len(said)
        assert len(hypothesis.tokens) <= max_tokens
        assert said != hypothesis.tokens or len(said) == max_tokens  # only the greatest length goes without an end
        assert hypothesis.log_prob == pytest.approx(log_prob_of(seed, clip, hypothesis.tokens), abs=1e-4)


penalties = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0])
forms = st.sampled_from(["hf", "gnmt"])
seeds = st.integers(0, 100_000)


@settings(deadline=None, max_examples=80)
@given(seeds, st.sampled_from(SPECIALS), st.integers(1, 4), st.integers(0, 4), penalties, forms)
def test_large_beams_find_the_best_of_all(
    seed: int, special: Special, max_tokens: int, min_tokens: int, length_penalty: float, form: Any
) -> None:
    beams = len(words(special)) ** max_tokens * 2  # more than there can be at any length
    options: dict[str, Any] = {
        "beams": beams,
        "max_tokens": max_tokens,
        "min_tokens": min_tokens,
        "length_penalty": length_penalty,
    }
    options["length_penalty_form"] = form
    [found] = search(seed, [0], special, **options)
    check(found, seed, 0, special, max_tokens, min_tokens)
    expected = brute_force(seed, 0, special, **options)
    assert [h.score for h in found] == pytest.approx(expected, abs=1e-4)


@settings(deadline=None, max_examples=150)
@given(seeds, st.sampled_from(SPECIALS), st.integers(1, 5), st.integers(1, 6), st.integers(0, 3), penalties, forms)
def test_giving_up_early_loses_nothing(
    seed: int, special: Special, beams: int, max_tokens: int, min_tokens: int, length_penalty: float, form: Any
) -> None:
    options: dict[str, Any] = {
        "beams": beams,
        "max_tokens": max_tokens,
        "min_tokens": min_tokens,
        "length_penalty": length_penalty,
    }
    options["length_penalty_form"] = form
    [found] = search(seed, [0], special, **options)
    check(found, seed, 0, special, max_tokens, min_tokens)
    expected = search_to_the_end(seed, 0, special, **options)
    assert [h.score for h in found] == pytest.approx(expected, abs=1e-4)


@settings(deadline=None, max_examples=60)
@given(seeds, st.sampled_from(SPECIALS), st.integers(1, 8), st.integers(0, 3), penalties)
def test_one_beam_is_greedy(
    seed: int, special: Special, max_tokens: int, min_tokens: int, length_penalty: float
) -> None:
    said: tuple[int, ...] = ()
    while len(said) < max_tokens and said[-1:] != (special.end,):
        allowed = words(special) + ([special.end] if len(said) >= min_tokens else [])
        said = (*said, max(allowed, key=lambda word: log_probs_of(seed, 0, said)[word]))
    [[found]] = search(
        seed, [0], special, beams=1, max_tokens=max_tokens, min_tokens=min_tokens, length_penalty=length_penalty
    )
    assert found.tokens == said


@settings(deadline=None, max_examples=40)
@given(seeds, st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(1, 4), penalties)
def test_a_batch_gives_what_each_clip_gives_alone(
    seed: int, clips: list[int], beams: int, length_penalty: float
) -> None:
    options = {"beams": beams, "max_tokens": 6, "min_tokens": 1, "length_penalty": length_penalty}
    assert search(seed, clips, **options) == [search(seed, [clip], **options)[0] for clip in clips]


@settings(deadline=None, max_examples=40)
@given(seeds, st.sampled_from([0.6, 1.0, 1.15, 3.0]), st.booleans())
def test_what_was_said_is_penalised_as_in_transformers(seed: int, penalty: float, are_log_probs: bool) -> None:
    random = torch.Generator().manual_seed(seed)
    scores = torch.randn(4, VOCABULARY, generator=random)
    scores = scores.log_softmax(-1) if are_log_probs else scores
    said = torch.randint(0, VOCABULARY, (4, 6), generator=random)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(said, scores)
    assert torch.equal(generate.penalise(scores, said, penalty), expected)


def penalised(scores: Sequence[float], said: tuple[int, ...], penalty: float) -> npt.NDArray[np.float64]:
    return np.array(
        [
            score if word not in said else score * penalty if score < 0 else score / penalty
            for word, score in enumerate(scores)
        ]
    )


@settings(deadline=None, max_examples=60)
@given(seeds, st.sampled_from(SPECIALS), st.integers(2, 4), st.sampled_from([0.6, 1.15, 2.0]), penalties)
def test_a_search_with_a_penalty_of_repetition(
    seed: int, special: Special, beams: int, repetition_penalty: float, length_penalty: float
) -> None:
    live: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    finished: list[tuple[float, tuple[int, ...]]] = []
    for _ in range(5):
        candidates = sorted(
            (
                (score + penalised(log_probs_of(seed, 0, said), (special.begin, *said), repetition_penalty)[word],
                 (*said, word))
                for score, said in live
                for word in [*words(special), special.end]
            ),
            reverse=True,
        )[: 2 * beams]  # fmt: skip
        finished += [found for found in candidates[:beams] if found[1][-1] == special.end]
        live = [found for found in candidates if found[1][-1] != special.end][:beams]
    scores = sorted((score / len(said) ** length_penalty for score, said in [*finished, *live]), reverse=True)
    [found] = search(
        seed, [0], special, beams=beams, max_tokens=5,
        length_penalty=length_penalty, repetition_penalty=repetition_penalty,
    )  # fmt: skip
    assert [h.score for h in found] == pytest.approx(scores[:beams], abs=1e-4)


@settings(deadline=None, max_examples=40)
@given(seeds, st.sampled_from(SPECIALS), st.sampled_from([0.6, 1.15, 2.0]))
def test_greedy_decoding_penalises_logits(seed: int, special: Special, repetition_penalty: float) -> None:
    said: tuple[int, ...] = ()
    while len(said) < 6 and said[-1:] != (special.end,):
        scores = penalised(logits_of(seed, 0, said).tolist(), (special.begin, *said), repetition_penalty)
        said = (*said, max([*words(special), special.end], key=lambda word: scores[word]))
    [[found]] = search(seed, [0], special, beams=1, max_tokens=6, repetition_penalty=repetition_penalty)
    assert found.tokens == said


def test_a_high_penalty_of_repetition_repeats_less() -> None:
    def repeated(repetition_penalty: float) -> int:
        options = {"beams": 3, "max_tokens": 6, "min_tokens": 6, "repetition_penalty": repetition_penalty}
        found = search(1, range(20), Special(pad=2, begin=2, end=2), **options)
        return sum(len(row[0].tokens) - len(set(row[0].tokens)) for row in found)

    assert repeated(5.0) < repeated(1.0) < repeated(0.3)


def test_more_beams_than_words() -> None:
    [found] = search(0, [0], beams=50, max_tokens=1)
    assert [len(h.tokens) for h in found] == [1, 1, 1]  # the end at once, or one of two words


def test_a_high_penalty_prefers_long_captions() -> None:
    def mean_length(length_penalty: float) -> float:
        found = search(1, range(10), beams=8, max_tokens=6, length_penalty=length_penalty)
        return float(np.mean([len(hypotheses[0].tokens) for hypotheses in found]))

    assert mean_length(-1.0) < mean_length(0.0) < mean_length(1.0) < mean_length(3.0)


def test_forms_of_the_length_penalty_by_hand() -> None:
    assert divisor(8, 0.5) == pytest.approx(2.8284271)
    assert divisor(8, 0.5, "gnmt") == pytest.approx(1.4719601)  # (13 / 6) ** 0.5
    assert divisor(1, 3.0) == divisor(1, 3.0, "gnmt") == 1.0
    assert divisor(9, 0.0) == divisor(9, 0.0, "gnmt") == 1.0


def test_forms_of_the_length_penalty_rank_differently() -> None:
    options = {"beams": 8, "max_tokens": 6, "length_penalty": 1.0}
    hf, gnmt = (search(1, range(20), **options, length_penalty_form=form) for form in ("hf", "gnmt"))
    lengths = [float(np.mean([len(hypotheses[0].tokens) for hypotheses in found])) for found in (gnmt, hf)]
    assert lengths[0] < lengths[1]  # the same penalty says less: one token more is 1 / 6 of what it is at the start


@pytest.mark.parametrize("form", ["hf", "gnmt"])
def test_the_configuration_says_which_form(monkeypatch: pytest.MonkeyPatch, form: Any) -> None:
    told: dict[str, Any] = {}

    def searched(*_: Any, **options: Any) -> list[list[Hypothesis]]:
        told.update(options)
        return []

    class Stub:
        special, decoder = APART, None

        def fusion(self, batch: Any) -> Fused:
            return fused_of([0])

    class Clips:
        clip_ids = ()

    stub: Any = Stub()
    clips: Any = Clips()
    monkeypatch.setattr(generate, "beam_search", searched)
    config = GenerateConfig(length_penalty=0.6, length_penalty_form=form, repetition_penalty=1.15)
    generate.caption_batch(stub, clips, stub, config)
    assert (told["length_penalty"], told["length_penalty_form"], told["repetition_penalty"]) == (0.6, form, 1.15)


def test_a_penalty_of_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="repetition_penalty"):
        GenerateConfig(repetition_penalty=0)


def test_stops_when_nothing_can_get_better(monkeypatch: pytest.MonkeyPatch) -> None:
    # Everything ends at once, almost surely: no step beyond the second is of use.
    sure = np.full(VOCABULARY, -20.0)
    sure[APART.end] = 20.0
    monkeypatch.setattr("tests.train.test_generate.logits_of", lambda seed, clip, prefix: sure)
    decoder = ToyDecoder(0)
    [found] = beam_search(decoder, fused_of([0]), APART, beams=1, max_tokens=50)
    assert found[0].tokens == (APART.end,)
    assert decoder.steps == 1


def test_the_decoder_sets_a_limit_too() -> None:
    # It must hold the begin token beside what is said.
    [found] = beam_search(ToyDecoder(3, max_tokens=4), fused_of([0]), APART, beams=4, max_tokens=30, min_tokens=30)
    assert {len(h.tokens) for h in found} == {3}
