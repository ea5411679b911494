"""The ``cross_attention`` fusion against a plain implementation of its formulas, and what its settings change.

There is no code of the authors, so there are no numbers of theirs; see the fusion's docstring for what is stated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from avpipe.pipeline.errors import ConfigError, UsageError
from avpipe.pipeline.features import FeatureSpec
from avpipe.train.batch import Batch
from avpipe.train.config import read
from avpipe.train.fusions.cross_attention import Config, Fusion
from tests.train import plain
from tests.train.toys import LENGTHS, SPECS, alive, batch

ALL_SPECS = {**SPECS, "words": FeatureSpec(name="words", encoder="toy", modality="text", dim=4)}
SMALL = {"width": 16, "heads": 2, "feed_forward": 24, "layers": 2, "positions": 8}
SIZES: dict[str, dict[str, Any]] = {
    "small": SMALL,
    "as_the_formula_has_it": {**SMALL, "projection_norm": False},
    "one_head": {**SMALL, "heads": 1, "layers": 1},
    "bare": {**SMALL, "layers": 0},
    "bare_formula": {**SMALL, "layers": 0, "projection_norm": False},
    "three": {"width": 24, "heads": 3, "feed_forward": 20, "layers": 3, "positions": 6},
}
SETS = {"sight": ("see",), "sound": ("hear",), "both": ("see", "hear"), "turned": ("hear", "see")}


def build(names: Sequence[str] = ("see", "hear"), dtype: torch.dtype = torch.float64, **config: Any) -> Fusion:
    torch.manual_seed(0)
    fusion = Fusion(Config(**{**SMALL, **config}), {name: ALL_SPECS[name] for name in names})
    alive(fusion)
    return fusion.to(dtype)


def some_clips(names: Sequence[str], *, longer: int = 0) -> Batch:
    """Whole clips, and clips that lack one or both; padded with junk."""
    return batch({name: LENGTHS[name] for name in names}, longer=longer, junk=50.0).to("cpu", torch.float64)


def by_hand(
    fusion: Fusion, clip: Mapping[str, Any], *, layers: int, heads: int, projection_norm: bool = True, **_: Any
) -> tuple[list[Any], list[Any]]:
    """One clip's rows of each feature set, to what is given out and each layer's ``[head][query][key]`` weights."""
    weights = {name: value.numpy() for name, value in fusion.state_dict().items()}
    rows = []
    for index, features in enumerate(clip.values()):
        for place, row in enumerate(features):
            token = plain.linear(weights, f"inputs.{index}.project", row)  # f W_p
            if projection_norm:
                token = plain.norm(weights, f"inputs.{index}.norm", token)
            rows.append(token + weights[f"inputs.{index}.positions.weight"][place])  # + P
    maps = []
    for depth in range(layers):
        part = plain.part(weights, f"layers.{depth}.")
        for kind in ("weight", "bias"):  # three matrices lie in one
            stacked = np.split(part[f"query_key_value.{kind}"], 3)
            part |= {f"{name}.{kind}": each for name, each in zip(("query", "key", "value"), stacked, strict=True)}
        rows, looked = plain.layer(part, rows, rows, heads)
        maps.append(looked)
    if layers:
        rows = [plain.norm(weights, "norm", row) for row in rows]
    return rows, maps


def clip_rows(clips: Batch, clip: int) -> dict[str, Any]:
    return {name: data[clip][clips.mask[name][clip]].numpy() for name, data in clips.features.items()}


@pytest.mark.parametrize("names", SETS)
@pytest.mark.parametrize("sizes", SIZES)
def test_gives_the_numbers_of_the_formulas(sizes: str, names: str) -> None:
    config = SIZES[sizes]
    fusion, clips = build(SETS[names], **config), some_clips(SETS[names])
    with torch.inference_mode():
        fused, told = fusion(clips), fusion(clips, return_attention=True)
    assert fused.attention == ()
    assert [found.layer for found in told.attention] == list(range(config["layers"]))
    for clip, mask in enumerate(fused.mask):
        rows, maps = by_hand(fusion, clip_rows(clips, clip), **config)
        expected = torch.tensor(np.array(rows).reshape(-1, fusion.width))
        for found in (fused, told):
            torch.testing.assert_close(found.data[clip][mask], expected, rtol=0, atol=1e-9)
        for found_map, looked in zip(told.attention, maps, strict=True):
            assert (found_map.queries, found_map.keys) == ("all", "all")
            if rows:
                weights = found_map.weights[clip][:, mask]
                there = torch.tensor(looked, dtype=torch.float64)
                torch.testing.assert_close(weights[:, :, mask], there, rtol=0, atol=1e-9)
                assert (weights[:, :, ~mask] == 0).all()


@pytest.mark.parametrize("other", [{"heads": 4}, {"layers": 1}, {"projection_norm": False}, {"layers": 0}], ids=str)
def test_another_formula_gives_other_numbers(other: dict[str, Any]) -> None:
    # The twin of the test above: what it compares with can tell.
    fusion, clips = build(), some_clips(("see", "hear"))
    rows, _ = by_hand(fusion, clip_rows(clips, 0), **{**SMALL, **other})
    fused = fusion(clips)
    assert (fused.data[0][fused.mask[0]] - torch.tensor(np.array(rows))).abs().max() > 1e-2


def test_the_bare_formula_is_one_matrix_and_positions() -> None:
    fusion, clips = build(("see",), layers=0, projection_norm=False), some_clips(("see",))
    assert {key: tuple(value.shape) for key, value in fusion.state_dict().items()} == {
        "inputs.0.project.weight": (16, 6),
        "inputs.0.positions.weight": (8, 16),
    }
    state = fusion.state_dict()
    expected = clips.features["see"] @ state["inputs.0.project.weight"].T + state["inputs.0.positions.weight"][:4]
    torch.testing.assert_close(fusion(clips).data, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layers", [0, 2])
def test_a_row_knows_its_place(layers: int) -> None:
    # The rows of a clip backwards: without positions each would be given out as before, at its new place.
    fusion, clips = build(("see",), layers=layers), some_clips(("see",))
    order = torch.tensor([3, 2, 1, 0])
    backwards = clips.features["see"].clone()
    backwards[0, :4] = backwards[0, order]
    other = replace(clips, features={"see": backwards})

    def change() -> float:
        with torch.inference_mode():
            return float((fusion(clips).data[0, order] - fusion(other).data[0, :4]).abs().max())

    assert change() > 1e-2
    with torch.no_grad():
        fusion.inputs[0].positions.weight.zero_()  # type: ignore[union-attr, operator]
    assert change() < 1e-12


def test_rows_see_one_another_through_layers_alone() -> None:
    clips = some_clips(("see", "hear"))
    louder = replace(clips, features={**clips.features, "hear": clips.features["hear"] + 1.0})

    def change(**config: Any) -> Tensor:
        fusion = build(**config)
        return (fusion(clips).data[0, :4] - fusion(louder).data[0, :4]).abs().amax(dim=1)

    assert change(layers=1).min() > 1e-4
    assert change(layers=0).max() == 0


@pytest.mark.parametrize("names", [("see", "hear", "words"), ("words", "hear", "see")], ids="_".join)
def test_feature_sets_lie_end_to_end_as_they_are_given(names: tuple[str, ...]) -> None:
    some = some_clips(("see", "hear"))
    words = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(2)).double()
    mask = torch.tensor([3, 0, 2, 0, 1])[:, None] > torch.arange(3)
    clips = replace(
        some,
        features={**some.features, "words": words},
        mask={**some.mask, "words": mask},
        pts_seconds={**some.pts_seconds, "words": torch.arange(3.0).expand(5, 3)},
        present={**some.present, "words": mask.any(dim=1)},
    )
    fused = build(names)(clips)
    assert fused.sources == names
    for index, name in enumerate(names):
        assert torch.equal(fused.mask[:, fused.source == index], clips.mask[name])
        assert torch.equal(fused.pts_seconds[:, fused.source == index], clips.pts_seconds[name])
    assert fused.source.tolist() == sorted(fused.source.tolist())


# -- the number of positions -------------------------------------------------------------------------------------------


def test_as_many_rows_as_there_are_positions_and_padding_beyond() -> None:
    names = ("see", "hear")
    fusion = build(positions=6)  # the longest clip has 4 and 6 rows
    short, long = fusion(some_clips(names)), fusion(some_clips(names, longer=5))
    assert long.mask.shape[1] == short.mask.shape[1] + 10
    for clip in range(5):
        one, two = short.data[clip][short.mask[clip]], long.data[clip][long.mask[clip]]
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


@pytest.mark.parametrize("longer", [0, 5])
def test_more_rows_than_positions_are_refused(longer: int) -> None:
    message = (
        r"clip 'clip2' has 6 rows of 'hear', but fusion\.positions is 5; "
        r"train with fusion\.positions=6 or more, or extract fewer rows"
    )
    with pytest.raises(UsageError, match=message):
        build(positions=5)(some_clips(("see", "hear"), longer=longer))


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", SIZES)
def test_every_parameter_gets_a_gradient(sizes: str) -> None:
    fusion = build(**SIZES[sizes])
    fused = fusion(some_clips(("see", "hear")))
    probe = torch.randn(fused.data.shape, generator=torch.Generator().manual_seed(1)).double()
    (fused.data * probe)[fused.mask].sum().backward()
    for key, parameter in fusion.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 1e-6, key


def test_settings() -> None:
    config = read("default", ["fusion=cross_attention"]).fusion
    expected = {"width": 768, "layers": 2, "heads": 12, "feed_forward": 3072, "dropout": 0.1, "positions": 16}
    assert {key: config[key] for key in expected} == expected
    assert read("default", ["fusion=cross_attention", "fusion.heads=1", "fusion.layers=0"]).fusion["heads"] == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("positions=0", r"positions: .*greater than or equal to 1, got 0"),
        ("layers=-1", r"layers: .*greater than or equal to 0, got -1"),
        ("heads=7", r"heads must divide width \(768\)"),
        ("position=4", r"position: unknown key.*positions"),
    ],
)
def test_settings_that_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read("default", ["fusion=cross_attention", f"fusion.{override}"])
