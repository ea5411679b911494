"""What the ``coattention`` fusion does beyond what every fusion promises, and what its settings change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from avpipe.pipeline.errors import ConfigError
from avpipe.pipeline.features import FeatureSpec
from avpipe.train.batch import Batch
from avpipe.train.fusions import coattention
from tests.train import toys
from tests.train.toys import alive, batch, pick, small_config

SETS = {
    **toys.SPECS,
    "look": FeatureSpec(name="look", encoder="toy", modality="video", dim=4, dtype="float32"),
    "read": FeatureSpec(name="read", encoder="toy", modality="text", dim=16, dtype="float32"),
}
# Two sets a stream; every clip lacks something else.
LENGTHS = {"see": (4, 3, 0, 0, 1), "read": (3, 0, 2, 0, 4), "hear": (5, 0, 6, 0, 0), "look": (2, 0, 3, 0, 2)}


@pytest.fixture(autouse=True)
def _four_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toys, "SPECS", SETS)
    monkeypatch.setattr(toys, "HOP_SECONDS", dict.fromkeys(SETS, 0.5))


def build(names: Sequence[str] = ("see", "hear"), **config: Any) -> Any:
    torch.manual_seed(0)
    specs = {name: SETS[name] for name in names}
    return alive(coattention.Fusion(small_config(coattention, **config), specs))


def real_rows(fusion: nn.Module, clips: Batch) -> list[Tensor]:
    """What a decoder may look at, and what an objective may, clip by clip."""
    fused = fusion(clips)
    return [
        torch.cat(
            [fused.data[clip][fused.mask[clip]].flatten(), *(value[clip].flatten() for value in fused.aux.values())]
        )
        for clip in range(len(clips))
    ]


def assert_same(left: Sequence[Tensor], right: Sequence[Tensor]) -> None:
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


EVERY = [{}, {"share": "separate"}, {"pool": "post"}, {"pool": "pre", "gate": True}, {"project": "all"}]


# -- two streams of several sets ---------------------------------------------------------------------------------------


def test_audio_and_text_come_before_video_each_set_in_its_order() -> None:
    clips = batch(LENGTHS)
    fused = build(LENGTHS)(clips, return_attention=True)
    assert fused.sources == ("read", "hear", "see", "look")
    assert [fused.sources[index] for index in fused.source] == ["read"] * 4 + ["hear"] * 6 + ["see"] * 4 + ["look"] * 3
    assert torch.equal(fused.mask, torch.cat([clips.mask[name] for name in fused.sources], dim=1))
    assert torch.equal(fused.pts_seconds, torch.cat([clips.pts_seconds[name] for name in fused.sources], dim=1))
    named = {(found.queries, found.keys): tuple(found.weights.shape[2:]) for found in fused.attention}
    heard, seen = "read + hear", "see + look"
    assert named == {(heard, seen): (10, 7), (seen, heard): (7, 10), (heard, heard): (10, 10), (seen, seen): (7, 7)}
    for found in fused.attention:  # padding in the middle, too, is not looked at
        mask = fused.mask[:, :10] if found.keys == heard else fused.mask[:, 10:]
        assert (found.weights.abs().amax(dim=(1, 2))[~mask] == 0).all()
        sums = found.weights.sum(-1)
        torch.testing.assert_close(sums, mask.any(dim=1).float()[:, None, None].expand_as(sums))


@pytest.mark.parametrize("config", EVERY, ids=str)
def test_padding_and_company_change_no_number(config: Mapping[str, Any]) -> None:
    # Above all the padding of a set that stands before another one: it moves no row.
    fusion = build(LENGTHS, **config)
    clips = batch(LENGTHS)
    there = real_rows(fusion, clips)
    assert_same(there, real_rows(fusion, batch(LENGTHS, longer=3, junk=100.0)))
    order = [3, 0, 4, 2, 1]
    assert_same([there[clip] for clip in order], real_rows(fusion, pick(clips, order)))
    for clip in range(len(clips)):
        alone = {name: (counts[clip],) for name, counts in LENGTHS.items()}
        one = pick(clips, [clip])
        cut = {name: max(1, *counts) for name, counts in alone.items()}
        one = replace(
            one,
            **{
                field: {name: data[:, : cut[name]] for name, data in getattr(one, field).items()}
                for field in ("features", "mask", "pts_seconds")
            },
        )
        assert_same([there[clip]], real_rows(fusion, one))


@pytest.mark.parametrize("config", EVERY, ids=str)
def test_gradients_reach_every_parameter(config: Mapping[str, Any]) -> None:
    fusion = build(LENGTHS, **config)
    fused = fusion(batch(LENGTHS))
    probe = torch.randn(fused.data.shape, generator=torch.Generator().manual_seed(1))
    loss = (fused.data * probe)[fused.mask].sum()
    loss = loss + sum(value.sum() for value in fused.aux.values() if value.is_floating_point())
    loss.backward()
    for key, parameter in fusion.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        if not key.endswith("key.bias"):
            assert parameter.grad.abs().max() > 1e-6, key


def test_order_within_a_stream_counts() -> None:
    # There are learned positions: the same rows the other way round are something else.
    clips = batch()
    features = {**clips.features, "hear": clips.features["hear"].clone()}
    features["hear"][0, :5] = features["hear"][0, [4, 3, 2, 1, 0]]
    fusion = build()
    assert (fusion(clips).data[0, 5:] - fusion(replace(clips, features=features)).data[0, 5:]).abs().max() > 1e-3


# -- one stream alone --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("see", "look"), ("hear", "read")], ids=str)
@pytest.mark.parametrize("share", ["shared", "separate"])
def test_one_stream_alone(names: tuple[str, str], share: str) -> None:
    clips = batch({name: LENGTHS[name] for name in names})
    fusion = build(names, share=share, pool="post")
    fused = fusion(clips, return_attention=True)
    assert fused.sources == names
    assert fused.data.isfinite().all()
    assert fused.aux == {}  # nothing to match
    assert {(found.queries, found.keys) for found in fused.attention} == {(" + ".join(names),) * 2}
    assert not [key for key, _ in fusion.named_parameters() if "cross" in key or "pool" in key]


# -- settings ----------------------------------------------------------------------------------------------------------


def test_sharing() -> None:
    shared, separate = build(), build(share="separate")
    for kind in ("cross_attentions", "self_attentions"):
        assert len(getattr(shared.layers[0], kind)) == 1
        assert len(getattr(separate.layers[0], kind)) == 2
    # The same weights in both places are the shared form; others are not.
    state = shared.state_dict()
    for key in list(state):
        if "attentions.0" in key:
            state[key.replace("attentions.0", "attentions.1")] = state[key].clone()
    separate.load_state_dict(state)
    torch.testing.assert_close(shared(batch()).data, separate(batch()).data)
    for kind in ("cross_attentions", "self_attentions"):
        separate.load_state_dict(state)
        with torch.no_grad():
            getattr(separate.layers[0], kind)[1].value.weight.add_(0.5)
        assert (shared(batch()).data - separate(batch()).data).abs().max() > 1e-2


def test_the_streams_ask_at_the_same_time() -> None:
    # In one layer, what is heard reads the pictures as they came in, not as their own cross-attention has made them.
    fusion = build(layers=1, share="separate")
    before = fusion(batch()).data[:, :6]
    with torch.no_grad():
        fusion.layers[0].cross_attentions[1].norm.weight.mul_(2)
    after = fusion(batch()).data
    torch.testing.assert_close(after[:, :6], before)
    with torch.no_grad():
        fusion.layers[0].cross_attentions[0].norm.weight.mul_(2)
    assert (fusion(batch()).data[:, :6] - before).abs().max() > 1e-3


def test_a_clip_without_sound_depends_on_padding_only_where_asked() -> None:
    silent = {"see": (4,), "hear": (0,)}

    def change(**config: Any) -> float:
        fusion = build(**config)
        one, other = (real_rows(fusion, batch(silent, longer=longer, junk=1.0))[0] for longer in (1, 5))
        return float((one - other).abs().max().detach())

    assert change(absent="unmasked") > 1e-3
    assert change(absent="zero") < 1e-5


def test_pooled_vectors() -> None:
    clips = batch(LENGTHS)
    assert build(LENGTHS)(clips).aux == {}
    for pool in ("pre", "post"):
        fused = build(LENGTHS, pool=pool)(clips)
        assert set(fused.aux) == {"pooled_video", "pooled_audio", "paired"}
        assert fused.aux["paired"].tolist() == [True, False, True, False, True]
        for key, here in (("pooled_video", [0, 1, 2, 4]), ("pooled_audio", [0, 2, 4])):
            vectors = fused.aux[key]
            assert vectors.shape == (5, 16)
            assert vectors.abs().amax(dim=1).gt(1e-3).nonzero().flatten().tolist() == here  # else zeros


@pytest.mark.parametrize(("pool", "knows"), [("pre", False), ("post", True)])
def test_what_is_pooled_after_the_layers_has_seen_the_other_stream(pool: str, knows: bool) -> None:
    fusion = build(pool=pool)
    clips = batch()
    louder = replace(clips, features={**clips.features, "hear": clips.features["hear"].roll(1, dims=-1)})
    change = (fusion(clips).aux["pooled_video"] - fusion(louder).aux["pooled_video"])[0].abs().max()
    assert (change > 1e-3) == knows
    assert (fusion(clips).aux["pooled_audio"] - fusion(louder).aux["pooled_audio"])[0].abs().max() > 1e-3


def test_rows_of_one_time_are_a_frame() -> None:
    clips = batch()
    times = torch.tensor([0.0, 0.0, 0.5, 0.5]).expand(5, 4)
    clips = replace(clips, pts_seconds={**clips.pts_seconds, "see": times})
    fusion = build()
    frames = fusion.streams["video"].inputs[0].frames.weight
    assert not torch.equal(frames[0], frames[1])
    before = fusion(clips).data[0]

    def after(frame: int) -> Tensor:
        with torch.no_grad():
            frames[frame] += 1
        found: Tensor = (fusion(clips).data[0] - before).abs()
        with torch.no_grad():
            frames[frame] -= 1
        return found

    assert after(0).max() > 1e-3
    assert after(1).max() > 1e-3
    assert after(2).max() < 1e-5  # there are two
    later = replace(clips, pts_seconds={**clips.pts_seconds, "see": times + 3})
    torch.testing.assert_close(fusion(later).data[0], before)  # frames are counted, not timed
    whole = replace(clips, pts_seconds={**clips.pts_seconds, "see": torch.zeros(5, 4)})
    assert (fusion(whole).data[0] - before).abs().max() > 1e-3
    without = build(frame_embedding=False)
    torch.testing.assert_close(without(whole).data, without(clips).data)


def test_frames_start_as_nothing() -> None:
    torch.manual_seed(0)
    fusion = coattention.Fusion(small_config(coattention), toys.SPECS)
    assert (fusion.streams["video"].inputs[0].frames.weight == 0).all()  # type: ignore[union-attr,operator,index]


@pytest.mark.parametrize(
    ("project", "projected"),
    [("none", {"see", "hear"}), ("video", {"see", "hear", "wide"}), ("all", {"see", "hear", "wide", "read"})],
)
def test_what_is_projected(project: str, projected: set[str]) -> None:
    # `see` and `hear` are of another width than 16, `wide` (video) and `read` (text) of the same.
    wide = FeatureSpec(name="wide", encoder="toy", modality="video", dim=16)
    specs = {**{name: SETS[name] for name in ("see", "hear", "read")}, "wide": wide}
    fusion = coattention.Fusion(small_config(coattention, project=project), specs)
    found = {
        name
        for stream in fusion.streams.values()
        for name, enter in zip(stream.names, stream.inputs, strict=True)  # type: ignore[arg-type,union-attr]
        if not isinstance(enter.project, nn.Identity)
    }
    assert found == projected


def test_more_rows_than_positions() -> None:
    lengths = {"see": (4, 3), "look": (1, 5), "hear": (9, 1)}
    build(lengths, positions=9)(batch(lengths))
    # Padding needs no positions: 4 + 5 columns of video, of which no clip has more than 8.
    build({"see": 0, "look": 0}, positions=8)(batch({"see": (4, 3), "look": (1, 5)}))
    with pytest.raises(
        ConfigError,
        match=r"fusion\.positions: 7 is too small: clip 'clip1' has 8 rows of video \(see: 3, look: 5\)\. "
        r"Train with fusion\.positions=8 or more",
    ):
        build({"see": 0, "look": 0}, positions=7)(batch({"see": (4, 3), "look": (1, 5)}))
    with pytest.raises(ConfigError, match=r"clip 'clip0' has 9 rows of audio \(hear: 9\)"):
        build(lengths, positions=8)(batch(lengths))


def test_defaults_are_the_authors_sizes() -> None:
    config = coattention.Config()
    assert (config.width, config.layers, config.heads, config.feed_forward) == (768, 2, 12, 3072)
    assert (config.positions, config.dropout, config.share, config.gate) == (1024, 0.0, "shared", False)
    assert coattention.Config(**coattention.PAPER).pool == "post"


def test_heads_must_divide_width() -> None:
    with pytest.raises(ValueError, match=r"heads must divide width \(16\)"):
        small_config(coattention, heads=3)
