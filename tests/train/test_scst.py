"""Self-critical training: the authors' numbers, rewards as in scoring, and a captioner that writes better for it."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from avpipe.api.training import starting_checkpoint
from avpipe.eval import score
from avpipe.pipeline.cider_d import DocumentFrequencies, References
from avpipe.pipeline.errors import CheckpointError, ConfigError, UnknownNameError
from avpipe.pipeline.ptb import words
from avpipe.pipeline.workspace import Workspace
from avpipe.train import checkpoint, decoders, fusions
from avpipe.train.captioner import Captioner
from avpipe.train.config import check
from avpipe.train.generate import beam_search
from avpipe.train.learner import Learner
from avpipe.train.objectives.scst import Config, advantages, policy_loss, rewards, sample
from avpipe.train.tokenizer import Special
from tests.train import loop_toys, toys
from tests.train.test_generate import SPECIALS, ToyDecoder, fused_of, log_probs_of
from tests.train.test_objectives import VOCABULARY, captioned, learner, only_objective, training_clips
from tests.train.toys import SPECS, alive, small_config

STORED = json.loads(gzip.decompress((Path(__file__).parents[1] / "data" / "scst.json.gz").read_bytes()))
IO = {key: torch.tensor(value) for key, value in STORED["io"].items()}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# -- the authors' numbers ----------------------------------------------------------------------------------------------


def authors_loss(log_probs: Tensor, found: Tensor) -> Tensor:
    """In float64, as both repositories have it: every position of a row counts, n are those of ln p < 0."""
    gained = np.concatenate(advantages(list(found.double().numpy()), "mean"))
    everything = torch.ones_like(log_probs, dtype=torch.bool)
    return policy_loss(log_probs, everything, torch.from_numpy(gained), lengths="uncertain")


@pytest.mark.parametrize(
    ("given", "loss", "gradient"),
    [
        ("pitvc_rewards", "expected_pitvc_loss", "expected_pitvc_grad"),
        ("expected_pitvc_text_rewards", "expected_pitvc_text_loss", "expected_pitvc_text_grad"),
    ],
)
def test_loss_and_gradient_are_those_of_pit_vc(given: str, loss: str, gradient: str) -> None:
    log_probs = IO["pitvc_token_logprobs"].double().flatten(0, 1).requires_grad_()
    found = authors_loss(log_probs, IO[given])
    torch.testing.assert_close(found, IO[loss].double().squeeze(), rtol=0, atol=1e-6)
    found.backward()
    assert log_probs.grad is not None
    torch.testing.assert_close(log_probs.grad.view(3, 5, 11), IO[gradient].double(), rtol=0, atol=1e-6)
    # The twin: counting certain tokens, too, is another number.
    gained = np.concatenate(advantages(list(IO[given].double().numpy()), "mean"))
    other = policy_loss(log_probs, IO["pitvc_token_mask"].flatten(0, 1).bool(), torch.from_numpy(gained))
    assert abs(other - found) > 1e-4


@pytest.mark.parametrize(
    ("given", "prefix"), [("abrimont_rewards", "abrimont"), ("expected_abrimont_text_rewards", "abrimont_text")]
)
def test_loss_and_gradient_are_those_of_multimodal_blip2(given: str, prefix: str) -> None:
    for clip in range(3):
        log_probs = IO["abrimont_token_logprobs"][clip].double().requires_grad_()
        found = authors_loss(log_probs, IO[given][clip].double().mean(dim=1)[None])
        expected = IO[f"expected_{prefix}_loss_per_clip"][clip].double()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        found.backward()
        assert log_probs.grad is not None
        expected = IO[f"expected_{prefix}_grad_per_clip"][clip].double()
        torch.testing.assert_close(log_probs.grad, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("swap", "suffix"), [(True, ""), (False, "_roles_fixed")])
def test_rewards_of_text_are_those_of_both_repositories(swap: bool, suffix: str) -> None:
    """As executed, with the roles swapped, and with the roles put right."""
    text = STORED["llm"]["pitvc_text"]
    written = [[words(one) for one in several] for several in text["generated"]]
    found = rewards(written, [[words(one)] for one in text["ground_truth_used"]], apart=True, swap_roles=swap)
    np.testing.assert_allclose(np.stack(found), IO[f"expected_pitvc_text_rewards{suffix}"], rtol=0, atol=1e-6)
    text = STORED["llm"]["abrimont_text_clip0"]
    written, theirs = [[[words(one) for one in text[key]]] for key in ("generated", "captions")]
    [found_clip] = rewards(written, theirs, apart=True, swap_roles=swap)
    expected = IO[f"expected_abrimont_text_rewards{suffix}"][0].double().mean(dim=1)
    np.testing.assert_allclose(found_clip, expected, rtol=0, atol=1e-6)
    [other] = rewards(written, theirs, apart=True, swap_roles=not swap)
    assert np.abs(other - found_clip).max() > 0.01  # the twin


def test_the_words_that_are_rewarded_are_those_of_the_repositories() -> None:
    for text, own, theirs in (
        (STORED["llm"]["pitvc_text"], "ground_truth_used", 5),
        (STORED["llm"]["abrimont_text_clip0"], "captions", 1),
    ):
        passed = [one[0] for one in text["passed_as_hypothesis_to_cider"].values()]
        assert [words(one) for one in text[own] for _ in range(theirs)] == passed[: theirs * len(text[own])]


def test_self_critical_pytorch() -> None:
    """Sequences of numbers whose end is a word; rewards against greedy ones, and against the others."""
    given = STORED["scst"]
    numbers = given["vocabulary"]

    def text(ids: Sequence[int]) -> str:
        return " ".join(str(number) for number in ids[: ids.index(0) + 1 if 0 in ids else len(ids)])

    corpus = STORED["cider"]["document_frequency_corpus"]
    documents = [[" ".join(str(numbers[word]) for word in one.split()) + " 0" for one in clip] for clip in corpus]
    frequencies = DocumentFrequencies(documents)
    references = [References([text(one) for one in clip], frequencies) for clip in given["references"]]
    drawn = [[text(one) for one in given["samples"][3 * clip : 3 * clip + 3]] for clip in range(5)]
    found = [theirs.score(own) for theirs, own in zip(references, drawn, strict=True)]
    greedy = [theirs.score([text(own)]) for theirs, own in zip(references, given["greedy"], strict=True)]
    np.testing.assert_allclose(np.concatenate(found), given["cider_d_samples"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(np.concatenate(greedy), given["cider_d_greedy"], rtol=0, atol=1e-9)

    log_probs, mask = torch.tensor(given["token_logprobs"]).double(), torch.tensor(given["loss_mask"]).bool()
    gained = np.concatenate(advantages(found, "greedy", greedy))
    np.testing.assert_allclose(gained, given["reward_sample_minus_greedy"], rtol=0, atol=1e-5)
    loss = policy_loss(log_probs, mask, torch.from_numpy(gained), average="tokens")
    assert loss.item() == pytest.approx(given["loss_self_critical_mean"], abs=1e-5)
    gained = np.concatenate(advantages(found, "others"))
    loss = policy_loss(log_probs, mask, torch.from_numpy(gained), average="tokens")
    assert loss.item() == pytest.approx(given["loss_new_self_critical_leave_one_out_mean"], abs=1e-5)


# -- the loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", ["tokens", "uncertain"])
def test_the_loss_is_its_formula(lengths: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs = -torch.rand(6, 5, generator=generator, dtype=torch.float64)
    log_probs[1, 0] = 0  # a token that is certain
    counts = [5, 3, 4, 1, 2, 5]
    mask = torch.arange(5) < torch.tensor(counts)[:, None]
    found = [np.array([1.0, 3.0]), np.array([0.5, 0.0, 7.0]), np.array([2.0])]
    gained = np.concatenate(advantages(found, "mean"))
    expected, row = 0.0, 0
    for several in found:
        for value in several:
            kept = [log_probs[row, place].item() for place in range(counts[row])]
            n = len(kept) if lengths == "tokens" else sum(one < 0 for one in kept)
            expected -= sum(kept) / n * (value - sum(several) / len(several)) / 6
            row += 1
    loss = policy_loss(log_probs, mask, torch.from_numpy(gained), lengths=lengths)
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    junk = log_probs.masked_fill(~mask, -1e9)
    assert torch.equal(policy_loss(junk, mask, torch.from_numpy(gained), lengths=lengths), loss)


def test_trap_a_caption_without_a_token_that_counts_is_no_nan() -> None:
    """The authors' n = 0, where every token is certain, or there is none."""
    log_probs = torch.tensor([[0.0, 0.0], [-1.0, -2.0]], requires_grad=True)
    gained = torch.tensor([1.0, -1.0])
    for mask in (torch.ones(2, 2, dtype=torch.bool), torch.tensor([[False, False], [True, True]])):
        for lengths in ("tokens", "uncertain"):
            for average in ("captions", "tokens"):
                loss = policy_loss(log_probs, mask, gained, lengths=lengths, average=average)  # type: ignore[arg-type]
                [gradient] = torch.autograd.grad(loss, log_probs)
                assert loss.isfinite()
                assert gradient.isfinite().all()
    assert policy_loss(log_probs, torch.zeros(2, 2, dtype=torch.bool), gained, average="tokens") == 0


def test_padding_has_no_gradient() -> None:
    """Unlike in the authors' code, where padded positions have it and are no variables."""
    log_probs = torch.full((1, 3), -1.0, requires_grad=True)
    policy_loss(log_probs, torch.tensor([[True, True, False]]), torch.ones(1)).backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [[-0.5, -0.5, 0]]


def test_what_a_reward_is_measured_against() -> None:
    found = [np.array([1.0, 2.0, 6.0]), np.array([4.0])]
    assert [one.tolist() for one in advantages(found, "mean")] == [[-2, -1, 3], [0]]
    assert [one.tolist() for one in advantages(found, "others")] == [[-3, -1.5, 4.5], [0]]
    against = advantages(found, "greedy", [np.array([1.5]), np.array([5.0])])
    assert [one.tolist() for one in against] == [[-0.5, 0.5, 4.5], [-1]]


# -- rewards -----------------------------------------------------------------------------------------------------------

WRITTEN = [["a man runs", "a man is running in a park"], ["two dogs", "a dog runs"], ["the sea", ""]]
THEIRS = [["a man runs in the park", "a man is running"], ["a dog runs"], ["waves on the sea", "the sea", "water"]]


def test_rewards_of_a_batch_are_those_of_pycocoevalcap() -> None:
    """A document is a pair of what is written and what it is compared with."""
    from pycocoevalcap.cider.cider import Cider

    pairs = [(own, theirs) for several, theirs in zip(WRITTEN, THEIRS, strict=True) for own in several]
    gts, res = {i: theirs for i, (_, theirs) in enumerate(pairs)}, {i: [own] for i, (own, _) in enumerate(pairs)}
    np.testing.assert_allclose(np.concatenate(rewards(WRITTEN, THEIRS)), Cider().compute_score(gts, res)[1], atol=1e-9)

    alone = [(own, one) for several, theirs in zip(WRITTEN, THEIRS, strict=True) for own in several for one in theirs]
    for swap in (False, True):
        sides = [(one, own) if swap else (own, one) for own, one in alone]
        gts, res = {i: [one] for i, (_, one) in enumerate(sides)}, {i: [own] for i, (own, _) in enumerate(sides)}
        scores = iter(Cider().compute_score(gts, res)[1])
        expected = [
            np.mean([next(scores) for _ in theirs]) for own, theirs in zip(WRITTEN, THEIRS, strict=True) for _ in own
        ]
        found = rewards(WRITTEN, THEIRS, apart=True, swap_roles=swap)
        np.testing.assert_allclose(np.concatenate(found), expected, rtol=0, atol=1e-9)


def test_of_a_corpus_each_reference_alone_and_all_together_are_one_number() -> None:
    frequencies = DocumentFrequencies(THEIRS)
    for own, theirs in zip(WRITTEN, THEIRS, strict=True):
        together = References(theirs, frequencies).score(own)
        each = np.mean([References([one], frequencies).score(own) for one in theirs], axis=0)
        np.testing.assert_allclose(together, each, rtol=0, atol=1e-12)
    # The twin: of a batch they are two, because the documents are others.
    assert (
        np.abs(np.concatenate(rewards(WRITTEN, THEIRS)) - np.concatenate(rewards(WRITTEN, THEIRS, apart=True))).max()
        > 0.1
    )


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 1}, "expected count of 2 or more with baseline=mean, got 1"),
        ({"count": 1, "baseline": "others"}, "expected count of 2 or more with baseline=others"),
        ({"count": 1, "baseline": "greedy"}, "the one beam is the greedy caption itself"),
        ({"swap_roles": True}, "expected df=batch and references=each or sampled.*got df=corpus and references=all"),
        ({"swap_roles": True, "df": "batch"}, "got df=batch and references=all"),
        ({"df": "image"}, "'corpus' or 'batch'"),
    ],
)
def test_settings_that_do_not_fit_fail(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Config(**settings)
    with pytest.raises(ConfigError, match=r"objectives\.scst"):
        check({"objectives": {"scst": settings}}, "x")


def test_settings_of_the_papers_fit() -> None:
    authors: dict[str, Any] = {"df": "batch", "swap_roles": True, "lengths": "uncertain"}
    assert Config(references="sampled", **authors).count == 5  # PIT-VC
    assert Config(references="each", count=4, **authors).swap_roles  # multi-modal BLIP-2
    assert Config(samples="multinomial", count=1, baseline="greedy").count == 1  # Rennie et al.


# -- what is drawn -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("special", SPECIALS)
def test_captions_are_drawn_by_their_probabilities(special: Special) -> None:
    """As often as the decoder's table says, of what may be said."""
    torch.manual_seed(0)
    [drawn] = sample(ToyDecoder(seed=0), fused_of([4]), special, count=20000, max_tokens=2)
    forbidden = [token for token in (special.pad, special.begin) if token != special.end]
    counts = Counter(drawn)
    assert len(counts) > 4
    for tokens, count in counts.items():
        assert not set(tokens) & set(forbidden)
        assert len(tokens) == 2 or tokens[-1] == special.end
        assert special.end not in tokens[:-1]
        expected = 1.0
        for place, token in enumerate(tokens):
            log_probs = log_probs_of(0, 4, tokens[:place])
            allowed = np.delete(log_probs, forbidden)
            expected *= math.exp(log_probs[token] - np.logaddexp.reduce(allowed))
        assert count / 20000 == pytest.approx(expected, abs=0.015)


def test_what_is_drawn_is_no_shorter_and_no_longer_than_asked_for() -> None:
    torch.manual_seed(0)
    clips = fused_of([0, 1, 2])
    drawn = sample(ToyDecoder(seed=1), clips, SPECIALS[0], count=200, max_tokens=6, min_tokens=2)
    assert [len(several) for several in drawn] == [200, 200, 200]
    lengths = [len(tokens) - (tokens[-1] == 2) for several in drawn for tokens in several]
    assert min(lengths) == 2
    assert max(map(len, (tokens for several in drawn for tokens in several))) == 6
    short = sample(ToyDecoder(seed=1, max_tokens=4), clips, SPECIALS[0], count=50, max_tokens=6)
    assert max(len(tokens) for several in short for tokens in several) == 3  # begin takes a place


# -- the objective -----------------------------------------------------------------------------------------------------


def caught(learns: Learner) -> dict[str, Any]:
    """What the objective writes, teaches and rewards when it is next asked."""
    objective, seen = only_objective(learns), {}
    for name in ("_write", "_teach", "_rewards"):

        def spy(*given: Any, name: str, original: Any) -> Any:
            seen[name] = original(*given)
            return seen[name]

        setattr(objective, name, partial(spy, name=name, original=getattr(objective, name)))
    return seen


def test_trap_what_is_taught_is_what_the_search_wrote() -> None:
    """Decoded without gradients, then scored again by teacher forcing: the same log-probabilities, with gradients."""
    learns = learner("scst", count=3, max_tokens=6).eval()
    seen = caught(learns)
    clips = captioned()
    learns(clips)
    log_probs, mask = seen["_teach"]
    assert log_probs.requires_grad
    fused = learns.captioner.fusion(clips)
    decoder: Any = learns.captioner.decoder
    found = beam_search(decoder, fused, Special(pad=0, begin=1, end=2), beams=3, max_tokens=6, min_tokens=1)
    assert [[one.tokens for one in several] for several in found] == seen["_write"][0]
    expected = torch.tensor([one.log_prob for several in found for one in several])
    torch.testing.assert_close((log_probs * mask).sum(dim=1), expected, rtol=0, atol=1e-4)
    assert mask.sum(dim=1).tolist() == [len(one.tokens) for several in found for one in several]


@pytest.mark.parametrize("samples", ["beams", "multinomial"])
def test_trap_a_shortest_length_breaks_no_gradient(samples: str) -> None:
    learns = learner("scst", samples=samples, min_tokens=4, max_tokens=8)
    seen = caught(learns)
    total, _ = learns(captioned())
    total.backward()
    assert all(2 not in tokens[:4] for several in seen["_write"][0] for tokens in several)
    assert sum(p.grad.abs().sum() for p in learns.parameters() if p.grad is not None) > 0


def test_trap_what_autocast_keeps_of_the_search_has_no_part_in_the_gradient() -> None:
    """Weights that were converted without gradients must not be met again where these are wanted."""
    learns = learner("scst", max_tokens=6)
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = learns(captioned())
    total.backward()
    for name, parameter in learns.captioner.named_parameters():
        assert parameter.grad is not None or "pool" in name, name
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in learns.captioner.decoder.parameters())


def test_writing_is_without_dropout_and_teaching_with_it() -> None:
    torch.manual_seed(0)
    learns = learner("scst", max_tokens=6, fusion={"dropout": 0.5}).train()
    seen = caught(learns)
    told = []
    for _ in range(2):
        learns(captioned())
        told.append((seen["_write"][0], seen["_teach"][0]))
    assert told[0][0] == told[1][0]
    assert not torch.equal(told[0][1], told[1][1])
    assert learns.captioner.training
    assert learns.captioner.decoder.training


def test_only_what_is_drawn_at_random_draws() -> None:
    for samples, draws in (("beams", False), ("multinomial", True)):
        learns = learner("scst", samples=samples, max_tokens=6).eval()
        before = torch.get_rng_state()
        learns(captioned())
        assert torch.equal(torch.get_rng_state(), before) != draws


def test_trap_14_what_a_caption_is_rewarded_does_not_hang_on_who_stands_beside_it() -> None:
    """Document frequencies are of the training clips, which are many; of a batch of few, CIDEr is another number."""
    for df, same in (("corpus", True), ("batch", False)):
        learns = learner("scst", df=df).eval()
        written = [(5, 22, 2), (5, 5, 22, 22, 2)]
        found = []
        for lengths in ({"see": (4, 3, 0, 0, 1), "hear": (5, 0, 6, 0, 1)}, {"see": (4, 3), "hear": (5, 0)}):
            step = learns._step(captioned(lengths))
            values = only_objective(learns)._rewards(step, [written] * len(step.batch))
            found.append(np.concatenate(values[:2]))
        assert np.allclose(found[0], found[1]) == same
        assert found[0].min() > 0.1


def spoken(texts: Sequence[str]) -> Any:
    """A stand-in for a tokenizer: a caption is one token, and its text has capitals and punctuation."""

    class Spoken:
        special = Special(pad=0, begin=1, end=2)

        def decode(self, ids: Sequence[int]) -> str:
            return " ".join(texts[i - 3] for i in ids if i > 2)

    return Spoken()


def test_trap_15_rewards_are_those_that_scoring_gives() -> None:
    """References grouped by clip, text as people write it, the tokeniser and the numbers of stage three."""
    clips = toys.clips(
        [
            ["A man's dog doesn't bark, does it?", "The dog (brown) sleeps."],
            ["Two women are singing...", "A woman sings; a crowd claps!", "People SING."],
            ['Someone says "hello" at 5 o\'clock.', "He waves"],
        ]
    )
    written = ["The man's dog doesn't bark.", "two women sing, a crowd claps", 'He says: "Hello" at 5 o\'clock!']
    learns = learner("scst")
    objective = only_objective(learns)
    objective.prepare(clips, spoken(written))
    batch = captioned({"see": (4, 3, 2), "hear": (5, 2, 1)})
    learns.eval()
    found = objective._rewards(learns._step(batch), [[(3, 2)], [(4, 2)], [(5, 2)]])
    report = score(
        dict(zip(("clip0", "clip1", "clip2"), written, strict=True)),
        {clip.clip_id: clip.captions for clip in clips},
        metrics=["cider"],
        strict=True,
    )
    expected = [report.per_clip[clip]["CIDEr"] for clip in ("clip0", "clip1", "clip2")]
    assert [float(values[0]) for values in found] == pytest.approx(expected, abs=1e-9)
    assert min(expected) > 0.1
    # The twin: on text that is only split at spaces they are others.
    frequencies = DocumentFrequencies([list(clip.captions) for clip in clips])
    raw = [References(clip.captions, frequencies).score([own])[0] for clip, own in zip(clips, written, strict=True)]
    assert max(abs(one - other) for one, other in zip(raw, expected, strict=True)) > 0.1


def test_all_captions_of_a_clip_are_its_references_however_few_are_decoded() -> None:
    learns = learner("scst", max_tokens=6).eval()
    held = only_objective(learns)._captions
    assert {key: len(captions) for key, captions in held.items()} == {f"clip{i}": 2 for i in range(5)}
    sampled = learner("scst", max_tokens=6, references="sampled").eval()
    clips = captioned()
    texts = only_objective(sampled)._sampled(sampled._step(clips))
    assert [len(several) for several in texts] == [2, 1, 1, 1, 1]
    assert clips.tokens is not None
    assert clips.token_mask is not None
    last = clips.tokens[-1, 1 : clips.token_mask[-1].sum()].tolist()
    assert texts[-1] == [words(toys.tokenizer(VOCABULARY).decode(last))]
    assert abs(sampled(clips)[0] - learns(clips)[0]) > 1e-4
    # Those of the clip that follows are none of its own.
    of_next = torch.tensor([False, True, False, False, False, False])
    texts = only_objective(sampled)._sampled(sampled._step(replace(clips, of_next=of_next)))
    assert [len(several) for several in texts] == [1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    "settings",
    [
        {"references": "each"},
        {"references": "sampled", "df": "batch"},
        {"references": "sampled", "df": "batch", "swap_roles": True, "lengths": "uncertain"},
        {"references": "each", "df": "batch", "swap_roles": True},
        {"baseline": "others", "average": "tokens"},
        {"baseline": "greedy", "samples": "multinomial", "count": 1},
        {"end_word": True},
        {"length_penalty": 0.0},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_every_setting_changes_the_loss(settings: dict[str, Any]) -> None:
    plain = learner("scst", max_tokens=10).eval()
    learns = learner("scst", max_tokens=10, **settings).eval()
    torch.manual_seed(0)
    total, parts = learns(captioned())
    assert total.isfinite()
    assert parts["scst.reward"] >= 0
    expected, _ = plain(captioned())
    if settings == {"references": "each"}:
        torch.testing.assert_close(total, expected)  # of a corpus, one number
    else:
        assert abs(total - expected) > 1e-5


def test_an_end_that_is_a_word_rewards_captions_that_end() -> None:
    for end_word in (True, False):
        objective = only_objective(learner("scst", end_word=end_word))
        assert objective._candidate((3, 4, 2)) == "w3 w4" + " </s>" * end_word
        assert objective._candidate((3, 4)) == "w3 w4"
        assert all(one.endswith(" </s>") == end_word for clip in objective._captions.values() for one in clip)


def test_without_the_training_clips_it_fails() -> None:
    learns = Learner(learner("scst").captioner, {"cross_entropy": {"weight": 0}, "scst": {}}, SPECS)
    with pytest.raises(RuntimeError, match="expected prepare"):
        learns(captioned())


def test_alone_it_teaches_no_caption_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """With cross_entropy.weight=0 nobody asks for those logits, and they cost nothing."""
    learns = learner("scst", max_tokens=6)

    def fails(*_: Any) -> None:
        raise AssertionError("decoded for nothing")

    monkeypatch.setattr(Captioner, "decode", fails)
    learns(captioned())
    with pytest.raises(AssertionError, match="for nothing"):
        learner("cross_entropy")(captioned())  # the twin


# -- every fusion and every decoder ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fusion", "decoder"),
    [("concat", name) for name in decoders.REGISTRY.names()]
    + [(name, "transformer") for name in fusions.REGISTRY.names()],
)
def test_every_fusion_and_every_decoder_is_taught(fusion: str, decoder: str) -> None:
    torch.manual_seed(0)
    module = fusions.REGISTRY.load(fusion)
    fused = module.Fusion(small_config(module), SPECS)
    module = decoders.REGISTRY.load(decoder)
    built = checkpoint.build_decoder(
        module, small_config(module), fused_width=fused.width, specs=SPECS, tokenizer=toys.tokenizer(VOCABULARY)
    )
    captioner = alive(Captioner(fused, built))
    assert isinstance(captioner, Captioner)
    settings = {"cross_entropy": {"weight": 0}, "scst": {"max_tokens": 6, "count": 3}}
    learns = Learner(captioner, settings, SPECS)
    learns.prepare(training_clips(), toys.tokenizer(VOCABULARY))
    seen = caught(learns)
    # Words of a random captioner are in no reference: let each caption be worth more than the one before it.
    only_objective(learns)._rewards = lambda step, written: [
        np.arange(len(several), dtype=float) for several in written
    ]
    total, parts = learns(captioned())
    total.backward()
    assert total.isfinite()
    assert parts["scst.tokens"] > 0
    for part in (captioner.fusion, captioner.decoder):
        gradients = [p.grad for p in part.parameters() if p.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert sum(gradient.abs().sum() for gradient in gradients) > 0
    log_probs, mask = seen["_teach"]
    assert log_probs[mask].isfinite().all()


# -- in the loop; that it goes on alike is shown in test_loop.py -------------------------------------------------------


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "data_seconds"} for line in lines]


def reward_of(run: Path) -> float:
    """Mean CIDEr-D of what a run's last captioner says of the training clips."""
    from avpipe.train.generate import caption_clips

    clips = loop_toys.clips(20)
    frequencies = DocumentFrequencies(clip.captions for clip in clips)
    captions = caption_clips(checkpoint.load(run / "checkpoints" / "last"), clips, loop_toys.sources(clips))
    found = [
        References(clip.captions, frequencies).score([own.text]) for clip, own in zip(clips, captions, strict=True)
    ]
    return float(np.mean(found))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learned from captions, not for long."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("first")
    loop_toys.run(folder, epochs=12, lr=0.01, validate_every=12)
    return folder


@pytest.mark.parametrize("samples", ["beams", "multinomial"])
def test_a_captioner_that_learned_to_write_writes_better(tmp_path: Path, first: Path, samples: str) -> None:
    """From where the cross-entropy left it early, rewards alone take it further."""
    loop_toys.run(
        tmp_path,
        init_from=str(first / "checkpoints" / "last"),
        objectives={"cross_entropy": {"weight": 0}, "scst": {"samples": samples, "max_tokens": 12}},
        epochs=25,
        batch_size=20,
        lr=0.005,
        validate_every=25,
    )
    assert reward_of(tmp_path) > reward_of(first) + 1
    told = [row["scst.reward"] for row in rows(tmp_path) if "scst.reward" in row]
    assert np.mean(told[-5:]) > 1.3 * np.mean(told[:5])


# -- from another run's weights ----------------------------------------------------------------------------------------


def weights(run: Path, which: str = "last") -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / which / "model.safetensors")


def test_it_starts_from_another_runs_weights_and_words(tmp_path: Path, first: Path) -> None:
    start = first / "checkpoints" / "last"
    loop_toys.run(tmp_path, init_from=str(start), epochs=1, lr=1e-12, final_lr=1e-12, weight_decay=0.0)
    for name, value in weights(first).items():
        torch.testing.assert_close(weights(tmp_path)[name], value, rtol=0, atol=1e-8)
    told = json.loads((tmp_path / "init_from.json").read_text())
    assert told["checkpoint"] == f"{first.name}@36"
    assert told["new_weights"] == []
    assert told["feature_differences"] == []
    assert (tmp_path / "checkpoints/last/tokenizer.json").read_bytes() == (start / "tokenizer.json").read_bytes()
    losses = [[row["loss"] for row in rows(run) if "loss" in row] for run in (tmp_path, first)]
    assert losses[0][0] < losses[1][0] / 2


def test_it_goes_on_where_the_first_run_is_gone(tmp_path: Path, first: Path) -> None:
    shutil.copytree(first / "checkpoints" / "last", tmp_path / "start")
    settings = {"epochs": 2, "save_every": 1, "init_from": str(tmp_path / "start")}
    loop_toys.run(tmp_path / "unbroken", **settings)
    with pytest.raises(KeyboardInterrupt):
        loop_toys.run(tmp_path / "broken", stop_at=4, **settings)
    shutil.rmtree(tmp_path / "start")
    loop_toys.run(tmp_path / "broken", **settings)
    assert rows(tmp_path / "broken") == rows(tmp_path / "unbroken")
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        loop_toys.run(tmp_path / "other", **settings)


def test_what_the_captioner_has_beside_them_stays_new(tmp_path: Path) -> None:
    """The pooling of a fusion that pools: as LoRA in a second stage."""
    plain = {**loop_toys.COATTENTION, "pool": "none"}
    loop_toys.run(tmp_path / "first", fusion=plain, epochs=1)
    start = str(tmp_path / "first" / "checkpoints" / "last")
    loop_toys.run(tmp_path / "second", fusion=loop_toys.COATTENTION, epochs=1, init_from=start)
    new = json.loads((tmp_path / "second" / "init_from.json").read_text())["new_weights"]
    assert new
    assert set(new) == weights(tmp_path / "second").keys() - weights(tmp_path / "first").keys()
    # Its twin: the other way round, weights would be lost.
    start = str(tmp_path / "second" / "checkpoints" / "last")
    with pytest.raises(
        CheckpointError, match=f"{len(new)} weights do not fit the captioner\n  - .*: not in the captioner"
    ):
        loop_toys.run(tmp_path / "third", fusion=plain, epochs=1, init_from=start)


def test_public_weights_are_read_only_where_the_checkpoint_lacks_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    module = fusions.REGISTRY.load("coattention").Fusion
    monkeypatch.setattr(module, "read_start_values", lambda self: asked.append("fusion"), raising=False)
    plain = {**loop_toys.COATTENTION, "pool": "none"}
    loop_toys.run(tmp_path / "first", fusion=plain, epochs=1)
    assert asked == ["fusion"]
    start = str(tmp_path / "first" / "checkpoints" / "last")
    loop_toys.run(tmp_path / "second", fusion=plain, epochs=1, init_from=start)
    assert asked == ["fusion"]
    loop_toys.run(tmp_path / "third", fusion=loop_toys.COATTENTION, epochs=1, init_from=start)
    assert asked == ["fusion"] * 2


def test_a_run_is_named_or_a_folder(tmp_path: Path, first: Path) -> None:
    workspace = Workspace(tmp_path)
    shutil.copytree(first, workspace.run("stage_one"))
    found = workspace.run("stage_one") / "checkpoints" / "best"
    assert starting_checkpoint(workspace, "new", "stage_one") == found
    assert starting_checkpoint(workspace, "new", str(first / "checkpoints" / "last")) == first / "checkpoints" / "last"
    assert starting_checkpoint(workspace, "new", None) is None
    assert starting_checkpoint(workspace, "stage_one", "gone") is None  # it goes on, and needs it no more
    with pytest.raises(
        UnknownNameError, match=r"unknown run 'stage_on'.*did you mean 'stage_one'.*The folder of a check"
    ):
        starting_checkpoint(workspace, "new", "stage_on")


# -- the goldens themselves --------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_what_is_stored_here_is_what_was_given(shared: Path) -> None:
    plain, heads = shared / "golden" / "public" / "scst", shared / "golden_heads" / "public" / "scst"
    if not plain.is_dir() or not heads.is_dir():
        pytest.skip("no goldens in ../shared")
    given = json.loads((plain / "scst.json").read_text())
    assert STORED["scst"] == {key: given[key] for key in STORED["scst"]}
    given = json.loads((heads / "scst_llm.json").read_text())
    assert STORED["llm"] == {key: given[key] for key in STORED["llm"]}
    tensors = load_file(heads / "scst_llm.io.safetensors")
    assert tensors.keys() == IO.keys()
    for key, value in tensors.items():
        assert torch.equal(torch.tensor(STORED["io"][key], dtype=value.dtype), value), key
