"""What every fusion promises, whichever it is, and what the Q-Former's switches change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from avpipe.train.batch import Batch, Fused
from avpipe.train.fusions import REGISTRY
from tests.train.toys import LENGTHS, SPECS, alive, batch, pick, small_config

NAMES = REGISTRY.names()


def build(name: str, specs: tuple[str, ...] = ("see", "hear"), **config: Any) -> nn.Module:
    torch.manual_seed(0)
    module = REGISTRY.load(name)
    return alive(module.Fusion(small_config(module, **config), {key: SPECS[key] for key in specs}))


def real_rows(fused: Fused) -> list[Tensor]:
    """What a decoder may look at, clip by clip."""
    return [data[mask] for data, mask in zip(fused.data, fused.mask, strict=True)]


def assert_same(one: Fused, other: Fused) -> None:
    for left, right in zip(real_rows(one), real_rows(other), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-5)
    assert set(one.aux) == set(other.aux)
    for key, tensor in one.aux.items():
        torch.testing.assert_close(tensor, other.aux[key], rtol=0, atol=1e-5, msg=key)


def test_there_are_fusions() -> None:
    assert {"concat", "qformer"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_gives_positions_with_their_origin(name: str) -> None:
    fusion = build(name)
    clips = batch()
    fused = fusion(clips)
    size, positions = fused.mask.shape
    assert fused.data.shape == (size, positions, fusion.width)
    assert size == len(clips)
    assert fused.data.isfinite().all()
    assert fused.mask.dtype == torch.bool
    assert fused.source.dtype == torch.int64
    assert fused.pts_seconds.dtype == torch.float32
    assert sorted(fused.sources) == sorted(SPECS)
    assert set(fused.source.tolist()) == {0, 1}  # every feature set has positions
    assert fused.mask[0].any()  # a whole clip has something to look at
    # A position that has a time has it from a row of its own feature set.
    for clip, place in (fused.mask & ~fused.pts_seconds.isnan()).nonzero().tolist():
        source = fused.sources[fused.source[place]]
        times = clips.pts_seconds[source][clip][clips.mask[source][clip]]
        assert fused.pts_seconds[clip, place] in times


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_no_number(name: str) -> None:
    fusion = build(name)
    assert_same(fusion(batch()), fusion(batch(longer=7)))
    assert_same(fusion(batch()), fusion(batch(longer=2, junk=100.0)))


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_are_real_change_numbers(name: str) -> None:
    # The twin of the test above: the same junk, called real.
    fusion = build(name)
    clips = batch(longer=2, junk=100.0)
    believed = replace(clips, mask={key: torch.ones_like(mask) for key, mask in clips.mask.items()})
    shortest = min(len(real_rows(fusion(clips))[0]), 4)
    left, right = fusion(clips).data[0, :shortest], fusion(believed).data[0, :shortest]
    assert (left - right).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("clip", range(len(LENGTHS["see"])))
def test_the_rest_of_the_batch_is_irrelevant(name: str, clip: int) -> None:
    # Also for clips without sound, without sight, without both.
    fusion = build(name)
    alone = {key: (counts[clip],) for key, counts in LENGTHS.items()}
    clips = batch()
    cut = {key: max(1, *counts) for key, counts in alone.items()}
    one = pick(clips, [clip])
    one = Batch(
        clip_ids=one.clip_ids,
        features={key: data[:, : cut[key]] for key, data in one.features.items()},
        mask={key: data[:, : cut[key]] for key, data in one.mask.items()},
        pts_seconds={key: data[:, : cut[key]] for key, data in one.pts_seconds.items()},
        present=one.present,
    )
    torch.testing.assert_close(real_rows(fusion(one))[0], real_rows(fusion(clips))[clip], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_clips_is_irrelevant(name: str) -> None:
    fusion = build(name)
    order = [3, 0, 4, 2, 1]
    there, shuffled = real_rows(fusion(batch())), real_rows(fusion(pick(batch(), order)))
    for place, clip in enumerate(order):
        torch.testing.assert_close(shuffled[place], there[clip], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("junk", [0.0, 100.0])
def test_nothing_present_is_finite(name: str, junk: float) -> None:
    nothing = batch({"see": (0, 0), "hear": (0, 0)}, longer=3, junk=junk)
    fused = build(name)(nothing, return_attention=True)
    assert fused.data.isfinite().all()
    assert all(attention.weights.isfinite().all() for attention in fused.attention)
    with torch.autocast("cpu", torch.bfloat16):
        assert build(name)(nothing).data.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", SPECS)
def test_one_modality_alone(name: str, key: str) -> None:
    clips = batch({key: (4, 0, 2)})
    fused = build(name, (key,))(clips)
    assert fused.sources == (key,)
    assert set(fused.source.tolist()) == {0}
    assert fused.data.isfinite().all()
    louder = replace(clips, features={key: clips.features[key].roll(1, dims=-1)})
    assert (real_rows(build(name, (key,))(louder))[0] - real_rows(fused)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", SPECS)
def test_both_modalities_count(name: str, key: str) -> None:
    fusion = build(name)
    clips = batch()
    other = replace(clips, features={**clips.features, key: clips.features[key].roll(1, dims=-1)})
    change = (real_rows(fusion(clips))[0] - real_rows(fusion(other))[0]).abs()
    assert change.max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_attention_maps(name: str) -> None:
    fusion = build(name)
    clips = batch()
    plain, told = fusion(clips), fusion(clips, return_attention=True)
    assert plain.attention == ()
    assert told.attention
    torch.testing.assert_close(plain.data, told.data, rtol=0, atol=1e-5)  # looking changes nothing
    for found in told.attention:
        where = f"layer {found.layer}, {found.queries} to {found.keys}"
        assert {found.queries, found.keys} <= {"all", *SPECS}
        assert found.weights.shape[0] == len(clips), where
        sums = found.weights.sum(-1)
        assert torch.minimum(sums.abs(), (sums - 1).abs()).max() < 1e-5, where  # a row sums to 1, or is all 0
        if found.keys in SPECS:
            is_present = clips.present[found.keys].float()[:, None, None].expand_as(sums)
            torch.testing.assert_close(sums, is_present, msg=where)
            padding = ~clips.mask[found.keys]
        elif found.weights.shape[-1] == told.mask.shape[1]:
            padding = ~told.mask
        else:
            continue
        assert (found.weights.abs().amax(dim=(1, 2))[padding] == 0).all(), where


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name: str) -> None:
    fusion = build(name)
    fused = fusion(batch())
    probe = torch.randn(fused.data.shape, generator=torch.Generator().manual_seed(1))
    (fused.data * probe)[fused.mask].sum().backward()
    for key, parameter in fusion.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        # What is added to all keys alike cannot change a softmax: its gradient is zero but for rounding.
        if not key.endswith("key.bias"):
            assert parameter.grad.abs().max() > 1e-6, key


def test_dropout_acts_in_training_alone() -> None:
    for name in NAMES:
        fusion = build(name, dropout=0.5)
        assert torch.equal(fusion(batch()).data, fusion(batch()).data)
        fusion.train()
        assert not torch.equal(fusion(batch()).data, fusion(batch()).data)


# -- time: what the Q-Former can tell ----------------------------------------------------------------------------------

BACKWARDS = [3, 2, 1, 0]


def backwards(clips: Batch, *, rows: bool, times: bool) -> Batch:
    """The video of the first clip (4 rows) backwards: its rows, or their times, or both."""
    features, pts_seconds = clips.features["see"].clone(), clips.pts_seconds["see"].clone()
    if rows:
        features[0, :4] = features[0, BACKWARDS]
    if times:
        pts_seconds[0, :4] = pts_seconds[0, BACKWARDS]
    return replace(
        clips,
        features={**clips.features, "see": features},
        pts_seconds={**clips.pts_seconds, "see": pts_seconds},
    )


def change(fusion: nn.Module, clips: Batch, other: Batch) -> float:
    with torch.inference_mode():
        return float((fusion(clips).data[0] - fusion(other).data[0]).abs().max())


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_qformer_without_times_sees_a_bag_of_rows(norm: str) -> None:
    # Why the original cannot tell "first ... then ...": a clip played backwards gives the same numbers.
    fusion = build("qformer", time_embedding="none", norm=norm)
    assert change(fusion, batch(), backwards(batch(), rows=True, times=False)) < 1e-5
    assert change(fusion, batch(), backwards(batch(), rows=False, times=True)) < 1e-5


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_qformer_with_times_hears_the_order(norm: str) -> None:
    fusion = build("qformer", time_embedding="sinusoidal", norm=norm)
    assert change(fusion, batch(), backwards(batch(), rows=True, times=False)) > 1e-3
    assert change(fusion, batch(), backwards(batch(), rows=False, times=True)) > 1e-3
    # It is the time that matters, not the place in memory.
    assert change(fusion, batch(), backwards(batch(), rows=True, times=True)) < 1e-5


def test_qformer_with_uniform_absence_depends_on_padding() -> None:
    # As the authors' code does; `zero`, the default, is tested above with every fusion.
    silent = {"see": (4,), "hear": (0,)}
    one, longer = batch(silent, longer=1, junk=1.0), batch(silent, longer=5, junk=1.0)
    assert change(build("qformer", absent="uniform"), one, longer) > 1e-3
    assert change(build("qformer", absent="zero"), one, longer) < 1e-5


@pytest.mark.parametrize("absent", ["uniform", "zero"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_attention_written_out(name: str, absent: str) -> None:
    # The fused attention kernel's backward pass is wrong where all keys are masked; see qformer's `meets_empty`.
    switch = {"absent": absent} if name == "qformer" else {}
    silent = batch({"see": (4, 2), "hear": (0, 3)}, longer=3, junk=1.0)

    def gradients(return_attention: bool) -> dict[str, Tensor]:
        fusion = build(name, **switch)
        fused = fusion(silent, return_attention=return_attention)
        (fused.data**2)[fused.mask].sum().backward()
        return {key: parameter.grad for key, parameter in fusion.named_parameters() if parameter.grad is not None}

    written_out = gradients(True)
    assert written_out
    for key, gradient in gradients(False).items():
        torch.testing.assert_close(gradient, written_out[key], rtol=1e-3, atol=1e-3, msg=key)


def test_qformer_gives_audio_first() -> None:
    fused = build("qformer", queries={"video": 3, "audio": 2})(batch())
    assert [fused.sources[index] for index in fused.source] == ["hear"] * 2 + ["see"] * 3


def test_qformer_out_width() -> None:
    fusion = build("qformer", out_width=10)
    assert fusion.width == 10
    assert fusion(batch()).data.shape[-1] == 10


@pytest.mark.parametrize("name", ["concat", "qformer"])
def test_heads_must_divide_width(name: str) -> None:
    with pytest.raises(ValueError, match=r"heads must divide width \(16\)"):
        small_config(REGISTRY.load(name), heads=3)
