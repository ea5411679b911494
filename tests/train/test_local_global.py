"""The ``local_global`` fusion against a plain implementation of its formulas, and what each of its variants may see.

There is no code of the authors, so there are no numbers of theirs; see the fusion's docstring for what is stated. Of
the project, the plain implementation uses the code of times alone, which is float32 wherever it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from avpipe.pipeline.errors import ConfigError
from avpipe.pipeline.features import FeatureSpec
from avpipe.train.batch import Batch, Fused
from avpipe.train.config import read
from avpipe.train.fusions.local_global import Config, Fusion
from avpipe.train.layers import time_code
from tests.train import plain
from tests.train.toys import alive

SPECS = {
    "swin": FeatureSpec(name="swin", encoder="toy", modality="video", dim=6),
    "ast": FeatureSpec(name="ast", encoder="toy", modality="audio", dim=5),
    "clip": FeatureSpec(name="clip", encoder="toy", modality="video", dim=3),
    "speech": FeatureSpec(name="speech", encoder="toy", modality="text", dim=4),
}
TWO = ("swin", "ast")
SMALL = {"width": 16, "heads": 2, "feed_forward": 24, "layers": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "merged": {"variant": "merged"},
    "cross": {"variant": "cross"},
    "global_cross": {"variant": "global_cross"},
    "merged_and_global": {"variant": "local_global", "local": "merged"},
    "cross_and_global": {"variant": "local_global", "local": "cross"},
}
SIZES: dict[str, dict[str, Any]] = {
    "small": SMALL,
    "one_head_one_layer": {"width": 10, "heads": 1, "feed_forward": 8, "layers": 1, "time_embedding": "none"},
    "three": {"width": 24, "heads": 3, "feed_forward": 20, "layers": 3, "global_tokens": 3},
}
# Whole, without sound, without sight, with nothing, with a single row; in the last, only some sets of a side.
LENGTHS = {
    "swin": (4, 3, 0, 0, 1, 0),
    "ast": (5, 0, 6, 0, 1, 3),
    "clip": (2, 4, 0, 0, 1, 3),
    "speech": (3, 0, 2, 0, 1, 0),
}
STREAMS = {
    "both": TWO,
    "many": ("swin", "ast", "clip", "speech"),
    "sight": ("swin",),
    "sound": ("ast",),
    "words": ("speech",),
    "sights": ("swin", "clip"),
}

Clips = list[dict[str, tuple[Any, Any]]]
"""For each clip, the rows and times of each feature set that it has."""


def build(names: Sequence[str] = TWO, dtype: torch.dtype = torch.float64, **config: Any) -> Fusion:
    torch.manual_seed(0)
    fusion = Fusion(Config(**{**SMALL, **config}), {name: SPECS[name] for name in names})
    alive(fusion)
    return fusion.to(dtype)


def some_clips(names: Sequence[str] = TWO, seed: int = 0) -> Clips:
    random = np.random.default_rng(seed)
    clips: Clips = []
    for clip in range(len(LENGTHS["swin"])):
        lengths = {name: LENGTHS[name][clip] for name in names}
        clips.append(
            {
                name: (random.standard_normal((rows, SPECS[name].dim)), 0.3 * np.arange(rows, dtype=np.float32))
                for name, rows in lengths.items()
                if rows
            }
        )
    return clips


def batch_of(clips: Clips, names: Sequence[str] = TWO) -> Batch:
    """Padded, two rows more than need be, with junk."""
    random = np.random.default_rng(7)
    features, mask, pts_seconds = {}, {}, {}
    for name in names:
        total = 2 + max((len(clip[name][0]) for clip in clips if name in clip), default=0)
        data = 50 * random.standard_normal((len(clips), total, SPECS[name].dim))
        times = 50 * random.random((len(clips), total)).astype(np.float32)
        real = np.zeros((len(clips), total), dtype=bool)
        for index, clip in enumerate(clips):
            if name in clip:
                rows, seconds = clip[name]
                data[index, : len(rows)], times[index, : len(rows)], real[index, : len(rows)] = rows, seconds, True
        features[name], pts_seconds[name], mask[name] = map(torch.tensor, (data, times, real))
    return Batch(
        clip_ids=tuple(f"clip{index}" for index in range(len(clips))),
        features=features,
        mask=mask,
        pts_seconds=pts_seconds,
        present={name: real.any(dim=1) for name, real in mask.items()},
    )


def rows_of(fused: Fused, clip: int, *names: str) -> Tensor:
    """What is given out for the real rows of these feature sets."""
    wanted = torch.tensor([fused.sources[index] in names for index in fused.source])
    return fused.data[clip][wanted & fused.mask[clip]].detach()


# -- the plain implementation ------------------------------------------------------------------------------------------


class Plain:
    """The fusion of one clip, from the formulas of the docstring, with the weights of ``fusion``.

    Positions are called by name, ``("ast", 3)`` a row, ``("global", "sound", 0)`` a global token.
    """

    def __init__(self, fusion: Fusion, names: Sequence[str], **config: Any) -> None:
        self.config = Config(**{**SMALL, **config})
        self.weights = {name: value.numpy() for name, value in fusion.state_dict().items()}
        sound = [name for name in names if SPECS[name].modality in ("audio", "text")]
        sight = [name for name in names if SPECS[name].modality == "video"]
        self.order = sound + sight
        self.sides = {key: side for key, side in (("sound", sound), ("sight", sight)) if side}
        self.attention: list[dict[Any, float]] = []  # a layer: (head, query, key) -> weight
        self.there: set[Any] = set()  # rows and global tokens

    def __call__(self, clip: Mapping[str, tuple[Any, Any]]) -> list[Any]:
        config = self.config
        self.attention, self.there = [], set()
        entering: dict[str, dict[Any, Any]] = {side: {} for side in self.sides}
        projected: dict[str, list[Any]] = {side: [] for side in self.sides}
        for side, names in self.sides.items():
            for name in names:
                index = self.order.index(name)
                data, seconds = clip.get(name, ((), ()))
                for place, (row, second) in enumerate(zip(data, seconds, strict=True)):
                    mapped = plain.linear(self.weights, f"projections.{index}", row)
                    projected[side].append(mapped)
                    entering[side][name, place] = mapped + self.weights["types.weight"][index]
                    if config.time_embedding == "sinusoidal":
                        code = time_code(torch.tensor([[second]]), config.width)[0, 0]
                        entering[side][name, place] = entering[side][name, place] + code.double().numpy()
        kinds = [config.local, "global_cross"] if config.variant == "local_global" else [config.variant]
        found = []
        for place, kind in enumerate(kinds):
            weights = plain.part(self.weights, f"branches.{place}.")
            if kind == "merged":
                found.append(self.merged(weights, entering))
            elif kind == "cross":
                found.append(self.cross(weights, entering))
            else:
                found.append(self.global_cross(weights, entering, projected))
        rows = [key for side in entering.values() for key in side]
        self.there.update(rows)
        return [sum(given[key] for given in found) / len(found) for key in rows]

    def merged(self, weights: plain.Weights, entering: dict[str, dict[Any, Any]]) -> dict[Any, Any]:
        rows = {key: row for side in entering.values() for key, row in side.items()}
        for depth in range(self.config.layers):
            looked: dict[Any, Any] = {}
            rows = self.step(plain.part(weights, f"transformer.layers.{depth}."), rows, rows, looked)
            self.attention.append(looked)
        return {key: plain.norm(weights, "transformer.norm", row) for key, row in rows.items()}

    def cross(self, weights: plain.Weights, entering: dict[str, dict[Any, Any]]) -> dict[Any, Any]:
        sides = dict(entering)
        for depth in range(self.config.layers):
            looked: dict[Any, Any] = {}
            after = {}
            for number, side in enumerate(self.sides):
                other = {"sound": "sight", "sight": "sound"}[side]
                after[side] = self.step(
                    plain.part(weights, f"transformers.sides.{number}.layers.{depth}."),
                    sides[side],
                    sides.get(other, {}),
                    looked,
                )
            sides = after
            if len(sides) == 2:
                self.attention.append(looked)
        return self.end(weights, sides)

    def global_cross(
        self, weights: plain.Weights, entering: dict[str, dict[Any, Any]], projected: dict[str, list[Any]]
    ) -> dict[Any, Any]:
        count = self.config.global_tokens
        rows, tokens = dict(entering), {}
        for number, side in enumerate(self.sides):
            learned = weights["tokens.weight"][number * count : (number + 1) * count]
            tokens[side] = {
                ("global", side, index): sum(projected[side]) / len(projected[side]) + vector
                for index, vector in enumerate(learned)
                if projected[side]  # a side that the clip lacks has none
            }
            self.there.update(tokens[side])
        for depth in range(self.config.layers):
            looked: dict[Any, Any] = {}
            after_rows, after_tokens = {}, {}
            for number, side in enumerate(self.sides):
                other = {"sound": "sight", "sight": "sound"}[side]
                own = {**tokens[side], **rows[side]}
                found = self.step(
                    plain.part(weights, f"transformers.sides.{number}.layers.{depth}."),
                    own,
                    {**own, **tokens.get(other, {})},
                    looked,
                )
                after_rows[side] = {key: found[key] for key in rows[side]}
                after_tokens[side] = {key: found[key] for key in tokens[side]}
            rows, tokens = after_rows, after_tokens
            self.attention.append(looked)
        return self.end(weights, rows)

    def step(
        self, weights: plain.Weights, rows: dict[Any, Any], context: dict[Any, Any], looked: dict[Any, Any]
    ) -> dict[Any, Any]:
        out, lines = plain.layer(weights, list(rows.values()), list(context.values()), self.config.heads)
        for head, of_queries in enumerate(lines):
            for query, of_keys in zip(rows, of_queries, strict=True):
                for key, weight in zip(context, of_keys, strict=True):
                    looked[head, query, key] = weight
        return dict(zip(rows, out, strict=True))

    def end(self, weights: plain.Weights, sides: dict[str, dict[Any, Any]]) -> dict[Any, Any]:
        return {
            key: plain.norm(weights, f"transformers.sides.{number}.norm", row)
            for number, side in enumerate(self.sides)
            for key, row in sides[side].items()
        }


@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gives_the_numbers_of_the_formulas(variant: str, sizes: str, streams: str) -> None:
    config, names = {**VARIANTS[variant], **SIZES[sizes]}, STREAMS[streams]
    fusion, clips = build(names, **config), some_clips(names)
    by_hand, batch = Plain(fusion, names, **config), batch_of(clips, names)
    with torch.inference_mode():
        fused, told = fusion(batch), fusion(batch, return_attention=True)
    for clip, features in enumerate(clips):
        expected = np.array(by_hand(features)).reshape(-1, fusion.width)
        for found in (fused, told):
            given = found.data[clip][found.mask[clip]]
            torch.testing.assert_close(given, torch.tensor(expected), rtol=0, atol=1e-9)
        # The maps: the same weight for each query and key that are there, 0 for every other key.
        assert len(told.attention) == len(by_hand.attention)
        for found_map, looked in zip(told.attention, by_hand.attention, strict=True):
            keys = [(name, place) for name in told.sources for place in range(batch.features[name].shape[1])]
            if found_map.weights.shape[-1] > len(keys):  # a global fusion
                keys += [("global", side, i) for side in by_hand.sides for i in range(by_hand.config.global_tokens)]
            weights = np.zeros((by_hand.config.heads, len(keys), len(keys)))
            for (head, query, key), weight in looked.items():
                weights[head, keys.index(query), keys.index(key)] = weight
            asking = [index for index, key in enumerate(keys) if key in by_hand.there]
            assert (found_map.queries, found_map.keys) == ("all", "all")
            there = found_map.weights[clip][:, asking]
            torch.testing.assert_close(there, torch.tensor(weights[:, asking]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_formula_that_is_another_gives_other_numbers(variant: str) -> None:
    # The twin of the test above: what it compares with can tell.
    names = STREAMS["many"]
    config = VARIANTS[variant]
    fusion, clips = build(names, **config), some_clips(names)
    given = rows_of(fusion(batch_of(clips, names)), 0, *names)
    others: list[dict[str, Any]] = [{"heads": 4}, {"time_embedding": "none"}, {"layers": 1}]
    if config["variant"] == "local_global":  # the other branch's weights do not fit the other local fusion
        others.append({"variant": config["local"]})
    for other in others:
        expected = Plain(fusion, names, **{**config, **other})(clips[0])
        assert (given - torch.tensor(np.array(expected))).abs().max() > 1e-3, other


# -- what each variant may see -----------------------------------------------------------------------------------------


def with_rows(clips: Clips, clip: int, name: str, rows: Any) -> Clips:
    """The clips with other rows at the same times."""
    changed = [dict(features) for features in clips]
    changed[clip][name] = (rows, clips[clip][name][1])
    return changed


def change(fusion: Fusion, clips: Clips, other: Clips, *names: str, clip: int = 0) -> float:
    """By how much the positions of these feature sets differ."""
    with torch.inference_mode():
        one, two = fusion(batch_of(clips)), fusion(batch_of(other))
    return float((rows_of(one, clip, *names) - rows_of(two, clip, *names)).abs().max())


def same_mean(rows: Any) -> Any:
    """Other rows with the same mean."""
    moved = rows.copy()
    moved[0] += 1.5
    moved[1] -= 1.5
    return moved


@pytest.mark.parametrize(("name", "other"), [("swin", "ast"), ("ast", "swin")])
def test_global_cross_hears_of_the_other_side_through_its_global_tokens_alone(name: str, other: str) -> None:
    clips = some_clips()
    moved = with_rows(clips, 0, name, same_mean(clips[0][name][0]))
    louder = with_rows(clips, 0, name, clips[0][name][0] + 1.5)
    # One layer: the tokens that the other side sees are those at the start, the mean and a learned vector.
    fusion = build(variant="global_cross", layers=1)
    assert change(fusion, clips, moved, other) < 1e-12
    assert change(fusion, clips, moved, name) > 1e-3
    assert change(fusion, clips, louder, other) > 1e-3
    # Its twins: the local fusions see the rows themselves.
    for local in ("merged", "cross"):
        assert change(build(variant=local, layers=1), clips, moved, other) > 1e-3


@pytest.mark.parametrize(("name", "other"), [("swin", "ast"), ("ast", "swin")])
def test_global_cross_of_several_layers_with_its_tokens_held(name: str, other: str) -> None:
    clips = some_clips()
    moved = with_rows(clips, 0, name, same_mean(clips[0][name][0]))
    fusion = build(variant="global_cross", layers=3, global_tokens=2)
    # The tokens carry what the first layer saw of the rows ...
    assert change(fusion, clips, moved, other) > 1e-3
    # ... and where they are held, nothing else does.
    side = next(own for own, names in enumerate(fusion.sides) if name in names)

    def hold(module: Any, given: Any, found: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
        data, weights = found
        return torch.cat([data[:, :-2], torch.full_like(data[:, -2:], 0.3)], dim=1), weights

    hooks = [
        layer.register_forward_hook(hold)
        for layer in fusion.branches[0].transformers.sides[side].layers  # type: ignore[union-attr, index]
    ]
    assert len(hooks) == 3
    assert change(fusion, clips, moved, other) < 1e-12
    assert change(fusion, clips, moved, name) > 1e-3


def test_global_tokens_of_a_side_differ() -> None:
    # They start at the same mean: were their learned vectors the same, two would be no more than one.
    torch.manual_seed(0)
    fusion = Fusion(Config(**SMALL, variant="global_cross", global_tokens=2), {name: SPECS[name] for name in TWO})
    learned = fusion.branches[0].tokens.weight  # type: ignore[union-attr]
    assert torch.pdist(learned.detach()).min() > 0.1


@pytest.mark.parametrize(("name", "other"), [("swin", "ast"), ("ast", "swin")])
def test_cross_asks_with_its_own_row_and_sees_the_other_side(name: str, other: str) -> None:
    clips = some_clips()
    rows = clips[0][name][0]
    last = with_rows(clips, 0, name, np.concatenate([rows[:-1], rows[-1:] + 1.5]))
    fusion, merged = build(variant="cross", layers=1), build(variant="merged", layers=1)

    def changes(fusion: Fusion, name: str) -> Tensor:
        one, two = fusion(batch_of(clips)), fusion(batch_of(last))
        return (rows_of(one, 0, name) - rows_of(two, 0, name)).abs().amax(dim=1)

    # Queries: a row that changes changes its own result, and no other of its side ...
    assert changes(fusion, name)[:-1].max() < 1e-12
    assert changes(fusion, name)[-1] > 1e-3
    # ... which it does where rows of a side see one another.
    assert changes(merged, name)[:-1].min() > 1e-3
    # Keys and values: all rows of the other side saw it.
    assert changes(fusion, other).min() > 1e-3


def test_cross_maps_from_each_side_to_the_other() -> None:
    batch = batch_of(some_clips())
    fused = build(variant="cross")(batch, return_attention=True)
    heard = batch.features["ast"].shape[1]
    assert len(fused.attention) == 2
    for found in fused.attention:
        weights = found.weights
        assert weights.shape == (6, 2, fused.mask.shape[1], fused.mask.shape[1])
        assert (weights[:, :, :heard, :heard] == 0).all()
        assert (weights[:, :, heard:, heard:] == 0).all()
        for clip in (0, 4):  # with both sides
            for rows in (weights[clip, :, :heard, heard:], weights[clip, :, heard:, :heard]):
                torch.testing.assert_close(rows.sum(-1), torch.ones_like(rows.sum(-1)))
        # A side alone has nothing to look at: sight in the second clip, sound in the third; the fourth has neither.
        for alone in (weights[1, :, heard:], weights[2, :, :heard], weights[3]):
            assert (alone == 0).all()


def load_branches(into: Fusion, whole: Fusion, place: int) -> Fusion:
    """The entering rows and one branch of ``whole``."""
    state = {
        name.replace(f"branches.{place}.", "branches.0."): value
        for name, value in whole.state_dict().items()
        if not name.startswith("branches.") or name.startswith(f"branches.{place}.")
    }
    into.load_state_dict(state)
    return into


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("names", [TWO, ("ast",), ("swin",)], ids="_".join)
@pytest.mark.parametrize("local", ["merged", "cross"])
def test_local_global_is_the_mean_to_the_last_bit(local: str, names: tuple[str, ...], dtype: torch.dtype) -> None:
    both = build(names, dtype, variant="local_global", local=local)
    one = load_branches(build(names, dtype, variant=local), both, 0)
    other = load_branches(build(names, dtype, variant="global_cross"), both, 1)
    batch = batch_of(some_clips(names), names).to("cpu", dtype)
    with torch.inference_mode():
        fused, local_fused, global_fused = both(batch), one(batch), other(batch)
        assert torch.equal(fused.data, 0.5 * (local_fused.data + global_fused.data))
        assert (local_fused.data - global_fused.data)[fused.mask].abs().max() > 1e-2
        # Token by token: all three have the same positions.
        for same in (local_fused, global_fused):
            assert torch.equal(fused.mask, same.mask)
            assert torch.equal(fused.source, same.source)
            assert fused.sources == same.sources
        # The maps: first the local fusion's layers, then the global one's.
        found = both(batch, return_attention=True).attention
        expected = [
            (2 * place + found.layer, found.weights)
            for place, fusion in enumerate((one, other))
            for found in fusion(batch, return_attention=True).attention
        ]
    assert [map_.layer for map_ in found] == [layer for layer, _ in expected]
    assert all(torch.equal(map_.weights, weights) for map_, (_, weights) in zip(found, expected, strict=True))


# -- one side alone ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TWO)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_with_one_side_is_to_all_clips_what_both_are_to_a_clip_without_the_other(variant: str, name: str) -> None:
    clip = some_clips()[0]
    lacking: Clips = [{name: clip[name]}]
    whole = build(**VARIANTS[variant])
    alone = build((name,), **VARIANTS[variant])
    index = whole.names.index(name)
    theirs = whole.state_dict()

    def of_this_side(key: str, mine: Tensor) -> Tensor:
        if key == "types.weight":
            return theirs[key][index : index + 1]
        if key.endswith("tokens.weight"):
            return theirs[key][index : index + 1]  # one a side
        return theirs[key.replace("projections.0.", f"projections.{index}.").replace("sides.0.", f"sides.{index}.")]

    alone.load_state_dict({key: of_this_side(key, mine) for key, mine in alone.state_dict().items()})
    with torch.inference_mode():
        expected = rows_of(whole(batch_of(lacking)), 0, name)
        found = rows_of(alone(batch_of(lacking, (name,))), 0, name)
        assert len(expected) >= 4
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        assert (rows_of(whole(batch_of([clip])), 0, name) - expected).abs().max() > 1e-3  # the other side counts


@pytest.mark.parametrize("name", ["swin", "ast", "speech"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_one_side_alone_has_what_the_docstring_says(variant: str, name: str) -> None:
    clips = some_clips((name,))
    fusion = build((name,), **VARIANTS[variant])
    rows = clips[0][name][0]
    changed = with_rows(clips, 0, name, np.concatenate([rows[:-1], rows[-1:] + 1.5]))
    with torch.inference_mode():
        one = fusion(batch_of(clips, (name,)), return_attention=True)
        two = fusion(batch_of(changed, (name,)))
    others = (rows_of(one, 0, name) - rows_of(two, 0, name))[:-1].abs()
    weights = [key for key, _ in fusion.named_parameters() if ".query." in key]
    if variant == "cross":  # feed-forward alone: no row sees another, there is no attention and nothing to make it with
        assert others.max() < 1e-12
        assert one.attention == ()
        assert weights == []
    else:
        assert others.amax(dim=1).min() > 1e-4
        assert one.attention
        assert weights


# -- positions, gradients, settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_sound_and_words_first_each_in_the_order_given(variant: str) -> None:
    names = STREAMS["many"]
    clips = some_clips(names)
    batch = batch_of(clips, names)
    fused = build(names, **VARIANTS[variant])(batch)
    assert fused.sources == ("ast", "speech", "swin", "clip")
    counts = [batch.features[name].shape[1] for name in fused.sources]
    assert fused.source.tolist() == [index for index, count in enumerate(counts) for _ in range(count)]
    for name in names:
        places = fused.source == fused.sources.index(name)
        assert torch.equal(fused.pts_seconds[:, places], batch.pts_seconds[name])
        assert torch.equal(fused.mask[:, places], batch.mask[name])


@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_gets_a_gradient(variant: str, streams: str) -> None:
    names = STREAMS[streams]
    fusion = build(names, **VARIANTS[variant])
    fused = fusion(batch_of(some_clips(names), names))
    probe = torch.randn(fused.data.shape, generator=torch.Generator().manual_seed(1)).double()
    (fused.data * probe)[fused.mask].sum().backward()
    for key, parameter in fusion.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        if not key.endswith("key.bias"):  # what is added to all keys alike cannot change a softmax
            assert parameter.grad.abs().max() > 1e-6, key


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_attention_written_out(variant: str) -> None:
    # Clips without sound, without sight, and with nothing among them; see qformer's `meets_empty`.
    batch = batch_of(some_clips())

    def gradients(return_attention: bool) -> dict[str, Tensor | None]:
        fusion = build(**VARIANTS[variant])
        fused = fusion(batch, return_attention=return_attention)
        (fused.data**2 * torch.arange(fusion.width))[fused.mask].sum().backward()
        return {key: parameter.grad for key, parameter in fusion.named_parameters()}

    expected = gradients(True)
    for key, gradient in gradients(False).items():
        assert gradient is not None, key
        torch.testing.assert_close(gradient, expected[key], rtol=1e-9, atol=1e-8, msg=key)


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_present_is_finite_under_autocast(variant: str) -> None:
    batch = batch_of(some_clips()).to("cpu", torch.float32)
    fusion = build(dtype=torch.float32, **VARIANTS[variant])
    with torch.autocast("cpu", torch.bfloat16):
        fused = fusion(batch, return_attention=True)
    assert not fused.mask[3].any()
    assert fused.data.isfinite().all()
    assert all(found.weights.isfinite().all() for found in fused.attention)
    # ... and is near what float32 gives.
    difference = (fused.data.float() - fusion(batch).data)[fused.mask].abs()
    assert 0 < difference.max() < 0.2


@pytest.mark.parametrize("variant", VARIANTS)
def test_dropout_acts_in_training_alone(variant: str) -> None:
    fusion, batch = build(dropout=0.5, **VARIANTS[variant]), batch_of(some_clips())
    assert torch.equal(fusion(batch).data, fusion(batch).data)
    fusion.train()
    assert not torch.equal(fusion(batch).data, fusion(batch).data)


def test_settings() -> None:
    config = read("default", ["fusion=local_global"]).fusion
    expected = {
        "variant": "local_global",
        "local": "merged",
        "width": 768,
        "layers": 2,
        "heads": 12,
        "feed_forward": 3072,
        "dropout": 0.1,
        "global_tokens": 1,
    }
    assert {key: config[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("variant=global", r"variant: .*'merged', 'cross', 'global_cross' or 'local_global', got 'global'"),
        ("local=global_cross", r"local: .*'merged' or 'cross', got 'global_cross'"),
        ("global_tokens=0", r"global_tokens: .*greater than or equal to 1, got 0"),
        ("layers=0", r"layers: .*greater than or equal to 1, got 0"),
        ("heads=7", r"heads must divide width \(768\)"),
        ("tokens=2", r"tokens: unknown key.*global_tokens"),
    ],
)
def test_settings_that_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read("default", ["fusion=local_global", f"fusion.{override}"])
