"""What every decoder promises, whichever it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from avpipe.train.batch import Fused
from avpipe.train.checkpoint import build_decoder
from avpipe.train.decoders import REGISTRY
from tests.train.toys import SPECS, alive, fused, small_config, tokenizer

NAMES = REGISTRY.names()
WIDTH, VOCABULARY = 12, 11
LENGTH = 6
FEWER = {"causal_lm": {"layers": 2}, "t5": {"layers": 2}}


def build(name: str, **config: Any) -> Any:
    torch.manual_seed(0)
    module = REGISTRY.load(name)
    surroundings = {"fused_width": WIDTH, "specs": {"see": SPECS["see"]}, "tokenizer": tokenizer(VOCABULARY)}
    return alive(build_decoder(module, small_config(module, **FEWER.get(name, {}), **config), **surroundings))


def some_tokens(size: int = 3, length: int = LENGTH, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCABULARY, (size, length), generator=generator)
    return tokens, torch.ones(size, length, dtype=torch.bool)


def stepped(decoder: Any, clips: Fused, tokens: Tensor) -> Tensor:
    """Logits, one token at a time."""
    state, found = decoder.start(clips), []
    for token in tokens.unbind(1):
        logits, state = decoder.step(token, state)
        found.append(logits)
    return torch.stack(found, dim=1)


def test_there_are_decoders() -> None:
    assert {"bert", "causal_lm", "git", "gpt2", "t5", "transformer"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("real", [(5, 5, 5), (5, 2, 0)], ids=["whole", "masked"])
def test_steps_equal_teacher_forcing(name: str, real: tuple[int, ...]) -> None:
    decoder = build(name)
    clips, (tokens, mask) = fused(real=real), some_tokens()
    forward = decoder(clips, tokens, mask)
    assert forward.shape == (3, LENGTH, VOCABULARY)
    assert forward.isfinite().all()
    torch.testing.assert_close(stepped(decoder, clips, tokens), forward, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_token_depends_on_the_former_ones_alone(name: str) -> None:
    decoder = build(name)
    tokens, mask = some_tokens()
    before = decoder(fused(), tokens, mask)
    for place in range(LENGTH):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % VOCABULARY
        difference = (decoder(fused(), changed, mask) - before).abs().amax(dim=(0, 2))
        assert (difference[:place] < 1e-6).all()
        assert (difference[place:] > 1e-4).all()  # each later logit saw the change


@pytest.mark.parametrize("name", NAMES)
def test_padding_of_tokens_is_irrelevant(name: str) -> None:
    decoder = build(name)
    tokens, mask = some_tokens()
    padded = torch.cat([tokens, torch.zeros(3, 4, dtype=torch.int64)], dim=1)
    padded_mask = torch.cat([mask, torch.zeros(3, 4, dtype=torch.bool)], dim=1)
    found = decoder(fused(), padded, padded_mask)[:, :LENGTH]
    torch.testing.assert_close(found, decoder(fused(), tokens, mask), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_padding_of_positions_is_irrelevant(name: str) -> None:
    decoder = build(name)
    tokens, mask = some_tokens()
    short, whole = fused(positions=3), fused(positions=5, real=(3, 3, 3))
    filled = whole.data.clone()
    filled[:, :3], filled[:, 3:] = short.data, 100 * filled[:, 3:]
    longer = replace(whole, data=filled)
    before = decoder(short, tokens, mask)
    torch.testing.assert_close(decoder(longer, tokens, mask), before, rtol=0, atol=1e-5)
    # Its twin: positions that are real count.
    believed = replace(longer, mask=torch.ones_like(longer.mask))
    assert (decoder(believed, tokens, mask) - before).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_attend_to_is_finite_and_the_same_whatever_the_padding(name: str) -> None:
    decoder = build(name)
    tokens, mask = some_tokens()
    nothing = fused(real=(0, 0, 0))
    found = decoder(nothing, tokens, mask)
    assert found.isfinite().all()
    other = decoder(replace(nothing, data=100 * nothing.data), tokens, mask)
    torch.testing.assert_close(other, found, rtol=0, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert decoder(nothing, tokens, mask).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_reordered_state_goes_on_from_the_rows_that_were_kept(name: str) -> None:
    # Two beams of one clip: the second takes the place of the first.
    decoder = build(name)
    clips = fused(size=1).take(torch.tensor([0, 0]))
    tokens, _ = some_tokens(size=2)
    state = decoder.start(clips)
    for token in tokens[:, :3].unbind(1):
        _, state = decoder.step(token, state)
    kept = torch.tensor([1, 1])
    logits, _ = decoder.step(tokens[:, 3], state.reorder(kept))
    whole = torch.cat([tokens[kept, :3], tokens[:, 3:4]], dim=1)
    torch.testing.assert_close(logits, stepped(decoder, clips, whole)[:, -1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [[0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 2, 1], [2, 1]], ids=["beams", "any", "some"])
def test_rows_that_are_taken_go_on_as_if_they_had_been_there_from_the_start(name: str, rows: list[int]) -> None:
    decoder, clips, taken = build(name), fused(real=(5, 2, 0)), torch.tensor(rows)
    begun, _ = some_tokens()
    more, _ = some_tokens(size=len(rows), seed=1)
    state = decoder.start(clips)
    for said in (0, 3):  # at the start, and in the midst
        found, now = [], state.take(taken)
        for token in more.unbind(1):
            logits, now = decoder.step(token, now)
            found.append(logits)
        whole = stepped(decoder, clips.take(taken), torch.cat([begun[taken, :said], more], dim=1))
        torch.testing.assert_close(torch.stack(found, dim=1), whole[:, said:], rtol=0, atol=1e-5)
        # Of rows that were taken, rows may be taken again.
        again = torch.tensor([1, 0])
        logits, _ = decoder.step(more[again, 0], state.take(taken).take(again))
        torch.testing.assert_close(logits, whole[again, said], rtol=0, atol=1e-5)
        for token in begun[:, :3].unbind(1):
            _, state = decoder.step(token, state)


@pytest.mark.parametrize("name", NAMES)
def test_holds_as_many_tokens_as_it_says(name: str) -> None:
    decoder = build(name)
    tokens, mask = some_tokens(length=decoder.max_tokens)
    assert decoder(fused(), tokens, mask).shape[1] == decoder.max_tokens


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter_and_the_fusion(name: str) -> None:
    decoder: nn.Module = build(name)
    clips = fused()
    clips.data.requires_grad_()
    logits = decoder(clips, *some_tokens(length=16))
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    for key, parameter in decoder.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        # What is added to all keys alike cannot change a softmax: its gradient is zero but for rounding.
        if not key.endswith("key.bias"):
            assert parameter.grad.abs().max() > 1e-6, key
    assert clips.data.grad is not None
    assert clips.data.grad.abs().amax(dim=(1, 2)).min() > 1e-6


def test_heads_must_divide_width() -> None:
    with pytest.raises(ValueError, match=r"heads must divide width \(16\)"):
        build("transformer", heads=3)
