"""A grid file: the product of choices, each of which is a run. Checked whole before anything starts.

::

    recipe: default                       # or a list: a choice like the others
    dataset: synthetic                    # or a list; default: the only one with features
    set: {train.epochs: 8}                # laid over the recipe in every cell
    grid:
      fusion: [concat, {name: qformer, layers: 4}]
      modalities: [[video, audio], [video], [audio]]
      objectives.contrastive.weight: [0, 0.5]
      seed: [0, 1, 2]                     # short for train.seed
    exclude:
      - {fusion: concat, seed: 2}         # every cell of which all of this is true

A cell is what ``avpipe train -r RECIPE KEY=VALUE ...`` would train (:attr:`Cell.overrides`), and nothing else: values
are laid over the recipe as overrides are, those of shorter keys first, so that ``fusion`` comes before
``fusion.layers``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import nn

from avpipe.pipeline.config import Config, parse, read_yaml
from avpipe.pipeline.errors import ConfigError, UsageError, did_you_mean
from avpipe.pipeline.features import FeatureSpec
from avpipe.train import fusions
from avpipe.train.captioner import Captioner
from avpipe.train.config import RunConfig, read
from avpipe.train.learner import Learner

MOST_CELLS = 10_000
SEED = "seed"

_SHORT = {SEED: "train.seed"}
_SECTIONS = ("train", "tokenizer", "generate")
_FIRST = ("dataset", "recipe", "features", "modalities", "fusion", "decoder", "objectives")
"""The keys whose values speak for themselves in the name of a run, in which they come in this order."""
_LONGEST_VALUE, _LONGEST_NAME = 48, 180
_SHOWN = 2


class GridFile(Config):
    """What stands in a grid file."""

    name: str = ""
    """Of the sweep: its runs' names begin with it. Empty: the file's, without its ending."""
    recipe: str | list[str] = "default"
    """Name of a training recipe, or a YAML file; a list makes it a choice."""
    dataset: str | list[str] = ""
    """Which dataset; a list makes it a choice. Empty: the only one with features."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted keys and their values, the same in every cell."""
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    """Dotted keys, each with the list of its values. The cells are their product."""
    exclude: list[dict[str, Any]] = Field(default_factory=list)
    """Some keys of the grid with a value each: cells in which all of it is so are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run of a sweep.

    Attributes:
        run: its name.
        choices: its value of every key that the grid has a list for, in the file's order.
        recipe: what is laid over.
        overrides: as on the command line of ``avpipe train``.
        config: what comes of it, complete.
    """

    run: str
    choices: Mapping[str, Any]
    recipe: str
    overrides: tuple[str, ...]
    config: RunConfig

    @property
    def label(self) -> str:
        """For messages: ``fusion=concat seed=0``."""
        return _label(self.choices)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A grid file, read and checked.

    Attributes:
        name: of the sweep.
        source: the file, for messages.
        axes: the values of every key that has a list, in the file's order.
        cells: with distinct names; those of one setting and several seeds may stand anywhere.
    """

    name: str
    source: str
    axes: Mapping[str, Sequence[Any]]
    cells: tuple[Cell, ...]


def read_grid(path: Path) -> Grid:
    """Read a grid file and make the configuration of every cell.

    Raises:
        ConfigError: the file, or the configuration of some cells, is wrong; all faults at once, each with its cells.
    """
    file = parse(GridFile, read_yaml(path), str(path))
    faults: list[str] = []
    fixed = _keyed(file.set, "set", faults)
    axes = _axes(file, fixed, faults)
    excluded = [_excluded(entry, f"exclude[{index}]", axes, faults) for index, entry in enumerate(file.exclude)]
    size = prod(map(len, axes.values()))
    if size > MOST_CELLS:
        faults.append(f"grid: expected at most {MOST_CELLS:,} cells, got {size:,}")
    if faults:
        raise ConfigError(str(path), faults)
    name = file.name or path.stem
    cells: list[Cell] = []
    wrong: dict[str, list[str]] = {}
    top = {"recipe": file.recipe, **({"dataset": file.dataset} if file.dataset else {})}
    for choices in expand(axes, excluded):
        asked = {**top, **fixed, **choices}
        recipe = asked.pop("recipe")
        overrides = tuple(f"{_full(key)}={_json(asked[key])}" for key in _laid(asked))
        try:
            config = read(recipe, overrides)
        except ConfigError as error:
            for fault in error.faults:
                wrong.setdefault(fault, []).append(_label(choices))
        except UsageError as error:
            wrong.setdefault(str(error), []).append(_label(choices))
        else:
            run = run_name(name, choices)
            cells.append(Cell(run=run, choices=choices, recipe=recipe, overrides=overrides, config=config))
    if not cells and not wrong:
        raise ConfigError(str(path), ["exclude: expected to leave something, but no cell is left"])
    if not wrong:
        wrong = twice([(cell.label, cell.run) for cell in cells], "cells would be trained in one run")
    if wrong:
        count = len(cells) + len({label for found in wrong.values() for label in found})
        raise ConfigError(str(path), listed(wrong, count))
    return Grid(name=name, source=str(path), axes=axes, cells=tuple(cells))


def expand(axes: Mapping[str, Sequence[Any]], excluded: Sequence[Mapping[str, Any]] = ()) -> Iterator[dict[str, Any]]:
    """Every choice of one value an axis, but those of which all that one of ``excluded`` says is so. The last axis
    changes fastest; without axes there is one choice, of nothing.
    """
    for values in product(*axes.values()):
        choices = dict(zip(axes, values, strict=True))
        if not any(all(is_same(choices[key], value) for key, value in entry.items()) for entry in excluded):
            yield choices


def run_name(sweep: str, choices: Mapping[str, Any]) -> str:
    """The name of a cell's run: that of the sweep and the values, whatever their order in the file.

    It says all that is varied, also where there is one value only: a second one, added later, changes no name.
    ``ablation-video+audio-qformer-contrastive.weight=0.5-seed0``
    """
    order = [*(key for key in _FIRST if key in choices), *sorted(choices.keys() - {*_FIRST, SEED})]
    parts = [sweep, *(_part(key, choices[key]) for key in [*order, *([SEED] if SEED in choices else [])])]
    return _cut("-".join(part for part in parts if part), _LONGEST_NAME)


def listed(faults: Mapping[str, Sequence[str]], cells: int) -> list[str]:
    """Faults with the cells that have them, as lines; ``cells``: how many there are in all."""
    lines = []
    for fault, found in faults.items():
        labels = list(dict.fromkeys(found))
        more = f" and {len(labels) - _SHOWN} more cells" if len(labels) > _SHOWN else ""
        where = f"[{'; '.join(labels[:_SHOWN])}{more}] " if any(labels) and len(labels) < max(cells, 2) else ""
        lines.append(f"{where}{fault}")
    return lines


def twice(named: Iterable[tuple[str, str]], what: str) -> dict[str, list[str]]:
    """Which names have the same value, as faults; the names themselves may be the same, as those of 1 and "1"."""
    by_value: dict[str, list[str]] = {}
    for name, value in named:
        by_value.setdefault(value, []).append(name)
    return {
        f"{len(names)} {what}: leave out all but one, by its value or under exclude": names
        for names in by_value.values()
        if len(names) > 1
    }


def is_same(one: Any, other: Any) -> bool:
    """Whether two values of a grid file are the same; a part's name is the part without settings. 1 is not true."""
    return _canonical(one) == _canonical(other)


def check_parts(config: RunConfig, specs: Mapping[str, FeatureSpec]) -> None:
    """Build the fusion and the objectives of a cell, which say what they lack of the feature sets and of one another.

    Raises:
        AvpipeError: the cell cannot be trained.
    """
    module = fusions.REGISTRY.load(config.fusion["name"])
    settings = {key: value for key, value in config.fusion.items() if key != "name"}
    fusion = module.Fusion(module.Config(**settings), specs)
    # No objective is told of the decoder, which may be large.
    Learner(Captioner(fusion, nn.Identity()), config.objectives, specs)


# -- the file ----------------------------------------------------------------------------------------------------------


def _keyed(values: Mapping[str, Any], where: str, faults: list[str]) -> dict[str, Any]:
    """With every key in its one form; faults are added."""
    long = {full: short for short, full in _SHORT.items()}
    found: dict[str, Any] = {}
    for given, value in values.items():
        key = ".".join(part.strip() for part in given.split(".")).replace("-", "_")
        key = long.get(key, key)
        if key in found:
            faults.append(f"{where}.{given}: stands there twice, as {_full(key)} too")
        if not all(key.split(".")) or "=" in key:
            faults.append(f"{where}: expected dotted keys such as train.lr, got {given!r}")
        if key == "recipe" and where in ("set", "grid"):
            faults.append(f"{where}.recipe: expected at the top of the file, as a name or a list of them")
        if key in _SECTIONS or (key == "objectives" and where == "set"):
            example = next(iter(value), "...") if isinstance(value, Mapping) else "..."
            faults.append(f"{where}.{given}: would replace the recipe's whole; expected a longer key: {key}.{example}")
        found[key] = value
    return found


def _axes(file: GridFile, fixed: Mapping[str, Any], faults: list[str]) -> dict[str, list[Any]]:
    top = {key: value for key, value in (("recipe", file.recipe), ("dataset", file.dataset)) if value}
    below = _keyed(file.grid, "grid", faults)
    several = [key for key in {**top, **fixed, **below} if sum(key in part for part in (top, fixed, below)) > 1]
    faults += [f"{key}: stands in several places of the file; expected one" for key in several if key != "recipe"]
    axes = {**{key: value for key, value in top.items() if isinstance(value, list)}, **below}
    for key, values in axes.items():
        if not values:
            faults.append(f"grid.{key}: expected at least one value, got an empty list")
        seen: list[str] = []
        for value in values:
            if _canonical(value) in seen:
                faults.append(f"grid.{key}: {_json(value)} stands there twice")
            seen.append(_canonical(value))
    return axes


def _excluded(entry: Mapping[str, Any], where: str, axes: Mapping[str, list[Any]], faults: list[str]) -> dict[str, Any]:
    found = _keyed(entry, where, faults)
    if not found:
        faults.append(f"{where}: expected a key of the grid and a value, got nothing; it would leave out everything")
    for key, value in found.items():
        if key not in axes:
            faults.append(f"{where}.{key}: no key of the grid{did_you_mean(key, axes)}; known: {', '.join(axes)}")
        elif not any(is_same(value, known) for known in axes[key]):
            faults.append(f"{where}.{key}: expected one of {', '.join(map(_json, axes[key]))}, got {_json(value)}")
    return found


def _laid(keys: Iterable[str]) -> list[str]:
    """The order in which keys are laid over a recipe: what holds another comes before it."""
    return sorted(keys, key=lambda key: _full(key).count("."))


def _full(key: str) -> str:
    return _SHORT.get(key, key)


def _canonical(value: Any) -> str:
    if isinstance(value, Mapping) and set(value) == {"name"}:
        value = value["name"]
    return json.dumps(value, sort_keys=True, default=str)


def _json(value: Any) -> str:
    """As YAML reads it, too; what JSON has no form for (a date) as its text."""
    return json.dumps(value, ensure_ascii=False, default=str)


# -- names -------------------------------------------------------------------------------------------------------------


def _label(choices: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={text_of(value)}" for key, value in choices.items())


def _part(key: str, value: Any) -> str:
    text = _cut(text_of(value) or "all", _LONGEST_VALUE, _canonical(value))
    if key in _FIRST:
        return text
    if key == SEED:
        return f"seed{text}"
    return f"{key.removeprefix('train.').removeprefix('objectives.')}={text}"


def text_of(value: Any) -> str:
    """A value for people: ``video+audio``, ``qformer,layers=4``."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "+".join(map(text_of, value))
    if isinstance(value, Mapping):
        settings = [
            f"{key}={text_of(each)}" if each != {} else str(key) for key, each in value.items() if key != "name"
        ]
        return ",".join([str(value["name"]), *settings] if "name" in value else settings)
    return _json(value)


def _cut(text: str, longest: int, whole: str = "") -> str:
    """A text that may be part of a folder's name; one that loses something by it gets a piece of a hash of it all."""
    safe = re.sub(r"[^A-Za-z0-9_.+=,@-]+", "-", text)
    if safe == text and len(safe) <= longest:
        return safe
    digest = hashlib.sha256((whole or text).encode()).hexdigest()[:6]
    return f"{safe[: longest - 7].rstrip('-')}-{digest}"
