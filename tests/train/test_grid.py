"""Grid files: which cells they stand for, what their runs are called, and what is said of faulty ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from avpipe.pipeline.errors import ConfigError
from avpipe.train.config import read
from avpipe.train.grid import check_parts, expand, is_same, read_grid, run_name
from tests.train.toys import SPECS

FOLDER_NAME = r"[A-Za-z0-9][A-Za-z0-9_.+=,@-]{0,199}"

keys = st.sampled_from(["fusion", "modalities", "seed", "train.lr", "objectives.contrastive.weight", "fusion.layers"])
values = st.one_of(
    st.integers(0, 9), st.booleans(), st.none(), st.text(max_size=60), st.lists(st.sampled_from(["video", "audio"])),
    st.dictionaries(st.sampled_from(["name", "layers"]), st.integers(0, 3), max_size=2),
)  # fmt: skip
grids = st.dictionaries(keys, st.lists(values, min_size=1, max_size=3, unique_by=repr), max_size=4)


def written(folder: Path, **content: Any) -> Path:
    path = folder / "ablation.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


# -- the product -------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(grids)
def test_every_combination_is_there_once(axes: Mapping[str, list[Any]]) -> None:
    cells = list(expand(axes))
    assert len(cells) == prod(len(some) for some in axes.values())
    assert len({repr(cell) for cell in cells}) == len(cells)
    assert [tuple(cell.values()) for cell in cells] == list(product(*axes.values()))
    assert all(list(cell) == list(axes) for cell in cells)


@settings(deadline=None)
@given(grids, st.data())
def test_what_is_excluded_is_missing_and_nothing_else(axes: Mapping[str, list[Any]], data: st.DataObject) -> None:
    everything = list(expand(axes))
    victim = data.draw(st.sampled_from(everything))
    entry = {key: victim[key] for key in data.draw(st.sets(st.sampled_from(list(axes)), min_size=1))} if axes else {}
    left = list(map(repr, expand(axes, [entry] if entry else [])))
    for cell in everything:
        is_out = bool(entry) and all(is_same(cell[key], value) for key, value in entry.items())
        assert (repr(cell) in left) is not is_out


def test_a_part_may_be_excluded_by_its_name_alone() -> None:
    axes = {"fusion": [{"name": "concat"}, "qformer"], "seed": [0, 1]}
    assert list(expand(axes, [{"fusion": "concat"}])) == [{"fusion": "qformer", "seed": seed} for seed in (0, 1)]


# -- names -------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(grids)
def test_names_are_folders_and_tell_cells_apart(axes: Mapping[str, list[Any]]) -> None:
    names = [run_name("sweep", cell) for cell in expand(axes)]
    assert all(re.fullmatch(FOLDER_NAME, name) for name in names)


@settings(deadline=None)
@given(st.dictionaries(keys, st.one_of(st.integers(0, 99), st.sampled_from(["a", "b", "a b", "a/b"])), max_size=4))
def test_names_do_not_hang_on_the_order_of_the_file(choices: Mapping[str, Any]) -> None:
    assert run_name("s", choices) == run_name("s", dict(reversed(choices.items())))


def test_names_are_readable() -> None:
    choices = {
        "seed": 2,
        "train.lr": 1e-3,
        "fusion": {"name": "qformer", "layers": 4, "queries": {"video": 8}},
        "modalities": ["video", "audio"],
        "objectives.contrastive.weight": 0.5,
    }
    assert run_name("ablation", choices) == (
        "ablation-video+audio-qformer,layers=4,queries=video=8-contrastive.weight=0.5-lr=0.001-seed2"
    )
    assert run_name("s", {"modalities": [], "objectives": {"contrastive": {}}}) == "s-all-contrastive"


def test_what_a_name_cannot_hold_still_tells_cells_apart() -> None:
    one, other = (run_name("s", {"tokenizer.name": path}) for path in ("/data/a b", "/data/a-b"))
    assert one != other
    assert re.fullmatch(r"s-tokenizer\.name=-data-a-b-[0-9a-f]{6}", one)
    long = [run_name("s", {"fusion": "x" * 300 + end}) for end in "ab"]
    assert long[0] != long[1]
    assert all(re.fullmatch(FOLDER_NAME, name) for name in long)


# -- cells -------------------------------------------------------------------------------------------------------------


def test_a_cell_is_what_the_command_line_would_make(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        dataset="synthetic",
        set={"train.epochs": 8, "fusion.width": 32},
        grid={"fusion": ["concat", {"name": "qformer", "layers": 4}], "train.lr": [1e-4], "seed": [0, 1]},
        exclude=[{"fusion": "concat", "seed": 1}],
    )
    grid = read_grid(path)
    assert grid.name == "ablation"
    assert [cell.run for cell in grid.cells] == [
        "ablation-concat-lr=0.0001-seed0",
        "ablation-qformer,layers=4-lr=0.0001-seed0",
        "ablation-qformer,layers=4-lr=0.0001-seed1",
    ]
    last = grid.cells[-1]
    assert last.config == read(
        "default",
        ["fusion={name: qformer, layers: 4}", "fusion.width=32", "train.epochs=8", "train.lr=1e-4"],
        {"dataset": "synthetic", "train.seed": 1},
    )
    assert last.config == read(last.recipe, last.overrides)
    # The name of a fusion comes before what is said of it, wherever they stand in the file.
    assert grid.cells[0].config.fusion["width"] == 32


def test_recipes_and_datasets_may_be_lists(tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("fusion: concat\n", encoding="utf-8")
    grid = read_grid(written(tmp_path, recipe=["default", str(other)], dataset=["msvd", "vatex"]))
    assert [(cell.config.dataset, cell.config.fusion["name"]) for cell in grid.cells] == [
        ("msvd", "qformer"), ("vatex", "qformer"), ("msvd", "concat"), ("vatex", "concat"),
    ]  # fmt: skip
    assert len({cell.run for cell in grid.cells}) == 4


def test_a_recipe_may_be_excluded(tmp_path: Path) -> None:
    content = {"recipe": ["default", "avcap"], "grid": {"seed": [0, 1]}}
    grid = read_grid(written(tmp_path, **content, exclude=[{"recipe": "avcap", "seed": 1}]))
    assert [f"{cell.recipe} {cell.choices['seed']}" for cell in grid.cells] == ["default 0", "default 1", "avcap 0"]
    with pytest.raises(ConfigError, match=r"exclude\[0\]\.recipe: expected one of .*, got \"nobody\""):
        read_grid(written(tmp_path, **content, exclude=[{"recipe": "nobody"}]))


def test_a_grid_of_nothing_is_one_run(tmp_path: Path) -> None:
    (cell,) = read_grid(written(tmp_path, name="once", set={"seed": 3})).cells
    assert (cell.run, cell.config.train.seed) == ("once", 3)


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        ({"grids": {}}, ["grids: unknown key (did you mean 'grid'?)"]),
        ({"grid": {"seed": 3}}, ["grid.seed: input should be a valid list, got 3"]),
        ({"grid": {"seed": []}}, ["grid.seed: expected at least one value, got an empty list"]),
        ({"grid": {"seed": [0, 0]}}, ["grid.seed: 0 stands there twice"]),
        ({"grid": {"seed": [0], "train.seed": [1]}}, ["grid.train.seed: stands there twice, as train.seed too"]),
        ({"grid": {"seed": [0]}, "set": {"train.seed": 1}}, ["seed: stands in several places of the file"]),
        ({"grid": {"dataset": ["a"]}, "dataset": "b"}, ["dataset: stands in several places of the file"]),
        ({"grid": {"recipe": ["default"]}}, ["grid.recipe: expected at the top of the file"]),
        ({"grid": {"train.captions_per_clip": [1, "1"]}}, ["2 cells would be trained in one run"]),
        ({"set": {"train": {"epochs": 3}}}, ["set.train: would replace the recipe's whole; expected a longer key: "
                                             "train.epochs"]),
        ({"grid": {"seed": [0]}, "exclude": [{}]}, ["exclude[0]: expected a key of the grid and a value, got nothing"]),
        ({"grid": {"seed": [0]}, "exclude": [{"sed": 0}]}, ["exclude[0].sed: no key of the grid (did you mean"]),
        ({"grid": {"seed": [0, 1]}, "exclude": [{"seed": 2}]}, ["exclude[0].seed: expected one of 0, 1, got 2"]),
        ({"grid": {"seed": [0]}, "exclude": [{"seed": 0}]}, ["exclude: expected to leave something"]),
        ({"grid": {"seed": list(range(101)), "train.lr": list(range(1, 101))}},
         ["grid: expected at most 10,000 cells, got 10,100"]),
        # of cells: each fault once, with the cells that have it
        ({"set": {"train.lrr": 1}, "grid": {"seed": [0, 1]}}, ["- train.lrr: unknown key (did you mean 'lr'?)"]),
        ({"grid": {"fusion": ["concat", "qfromer"], "seed": [0, -1]}},
         ["[fusion=qfromer seed=0; fusion=qfromer seed=-1] unknown fusion 'qfromer' (did you mean 'qformer'?)",
          "[fusion=concat seed=-1] train.seed: input should be greater than or equal to 0, got -1"]),
        ({"grid": {"fusion": ["concat", "qformer"], "fusion.queries.video": [1, 2, 3]}},
         ["[fusion=concat fusion.queries.video=1; fusion=concat fusion.queries.video=2 and 1 more cells] "
          "fusion.queries: unknown key"]),
    ],
)  # fmt: skip
def test_faults_are_named_all_at_once(tmp_path: Path, content: dict[str, Any], faults: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read_grid(written(tmp_path, **content))
    for fault in faults:
        assert fault in str(caught.value)
    assert len(caught.value.faults) == len(faults)


def test_what_an_objective_lacks_is_known_without_a_decoder() -> None:
    config = read("default", ["fusion=coattention", "fusion.pool=post", "objectives.contrastive.weight=0.5"])
    check_parts(config, SPECS)
    seen = {name: spec for name, spec in SPECS.items() if spec.modality == "video"}
    with pytest.raises(ConfigError, match=r"objectives\.contrastive: .*gives no pooled vectors of"):
        check_parts(config, seen)
