"""What became of the runs of a sweep: read from their folders, whoever trained them and whoever still does."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from avpipe.api.training import run_differences
from avpipe.pipeline.config import read_yaml
from avpipe.pipeline.errors import ConfigError, StoreError
from avpipe.pipeline.files import atomic_write, bytes_text, storage_errors, write_json
from avpipe.pipeline.workspace import Workspace
from avpipe.train.grid import SEED, Cell, Grid, text_of

if TYPE_CHECKING:
    from rich.table import Table

    from avpipe.train.config import RunConfig

METRIC = "CIDEr"
"""By what rows are sorted; what a training chooses its best checkpoint by."""

State = Literal["finished", "failed", "begun", "waiting", "with other settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """What is known of one run.

    Attributes:
        run: its name.
        choices: what was chosen for it.
        state: ``begun``: it is being trained, or was broken off. ``with other settings``: the run of that name is none
            of this grid, and nothing more is told of it.
        reason: why it failed, or what the other settings are, in one line.
        scores: by metric; empty as long as there is none.
        step: how far it came.
        best_step: of its best checkpoint.
        parameters: how many were trained.
        parameters_total: the frozen ones too.
        seconds: that it was trained for, over all calls.
        peak_memory_bytes: see :class:`avpipe.train.loop.TrainResult`.
        signatures: of the scores, by metric; none of val, which a training always scores in one way.
    """

    run: str
    choices: Mapping[str, Any]
    state: State
    reason: str = ""
    scores: Mapping[str, float]
    step: int
    best_step: int | None = None
    parameters: int | None = None
    parameters_total: int | None = None
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    signatures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A score over seeds.

    Attributes:
        mean: of the n seeds.
        sd: the sample standard deviation (n - 1 below); ``None`` of a single one.
        n: how many there are.
    """

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        sd = statistics.stdev(values) if len(values) > 1 else None
        return cls(mean=statistics.fmean(values), sd=sd, n=len(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The runs that differ in their seed alone.

    Attributes:
        choices: of all but the seed.
        runs: their names.
        scores: by metric, of those that have one.
        parameters: trained; of the largest, if they differ.
        parameters_total: likewise.
        minutes: the mean of the finished ones.
        peak_memory_bytes: the largest.
        states: how many are in each state.
        reasons: why some failed or are none of this grid, each reason once.
    """

    choices: Mapping[str, Any]
    runs: tuple[str, ...]
    scores: Mapping[str, Spread]
    parameters: int | None
    parameters_total: int | None
    minutes: float | None
    peak_memory_bytes: int | None
    states: Mapping[State, int]
    reasons: tuple[str, ...]

    @property
    def state(self) -> str:
        """``finished``, or ``2 of 3 finished, 1 failed``."""
        if set(self.states) == {"finished"}:
            return "finished"
        count = len(self.runs)
        others = [f"{number} {state}" for state, number in self.states.items() if state != "finished"]
        return ", ".join([f"{self.states.get('finished', 0)} of {count} finished", *others])


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaderboard:
    """The rows of a sweep, the best first; those without a score last, in the order of the grid.

    Attributes:
        sweep: its name.
        split: which clips the scores are of. Of ``val``, that of the best checkpoint, which was chosen by it.
        keys: what is varied: keys of the grid with more than one value, without the seed.
        metrics: the names of the scores that some row has, :data:`METRIC` first.
        rows: see :class:`Row`.
        cells: every run.
        warnings: scores that were not made alike, and should not be compared.
    """

    sweep: str
    split: str
    keys: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    cells: tuple[CellResult, ...]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON-ready values."""
        return asdict(self)

    def write(self, folder: Path) -> list[Path]:
        """Write ``leaderboard.json``, ``.csv`` and ``.md``; of another split than val ``leaderboard-<split>``.

        Raises:
            StoreError: the folder cannot be written.
        """
        stem = "leaderboard" if self.split == "val" else f"leaderboard-{self.split}"
        paths = [folder / f"{stem}{suffix}" for suffix in (".json", ".csv", ".md")]
        write_json(paths[0], self.to_json())
        for path, text in zip(paths[1:], (self.csv(), self.markdown()), strict=True):
            with atomic_write(path) as aside:
                aside.write_text(text, encoding="utf-8")
        return paths

    def csv(self) -> str:
        """One line a row, numbers as they are."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        spreads = [f"{metric}{suffix}" for metric in self.metrics for suffix in ("", "_sd", "_n")]
        writer.writerow([*self.keys, *spreads, "parameters", "minutes", "peak_memory_bytes", "state"])
        for row in self.rows:
            found = [row.scores.get(metric) for metric in self.metrics]
            numbers = [value for each in found for value in ((each.mean, each.sd, each.n) if each else ("", "", 0))]
            rest = (row.parameters, row.minutes, row.peak_memory_bytes, row.state)
            writer.writerow([*(_value(row.choices[key]) for key in self.keys), *numbers, *rest])
        return text.getvalue()

    def markdown(self) -> str:
        """A table for a report."""
        lines = [self.header(), ["---"] * len(self.keys) + ["---:"] * (len(self.metrics) + 3) + ["---"], *self.table()]
        cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
        return "".join(f"| {' | '.join(line)} |\n" for line in cells) + f"\n{self.footnote()}\n"

    def header(self) -> list[str]:
        """The titles of :meth:`table`."""
        return [*self.keys, *self.metrics, "parameters", "minutes", "peak memory", "state"]

    def table(self) -> list[list[str]]:
        """The rows for people."""
        return [
            [
                *(_value(row.choices[key]) for key in self.keys),
                *(_spread(row.scores.get(metric)) for metric in self.metrics),
                _parameters(row),
                "" if row.minutes is None else f"{row.minutes:.1f}",
                "" if row.peak_memory_bytes is None else bytes_text(row.peak_memory_bytes),
                row.state,
            ]
            for row in self.rows
        ]

    def footnote(self) -> str:
        """What the numbers are."""
        chosen = ", by which that checkpoint was chosen" if self.split == "val" else ""
        what = (
            f"{self.sweep}, {len(self.cells)} runs: mean ± sample standard deviation (number of seeds) of the best "
            f"checkpoint's scores on {self.split}{chosen}. Minutes are those of one run, beside whatever else the "
            "machine did; memory is the most that a run's process held, or its GPU."
        )
        return "\n\n".join((what, *self.warnings))

    def rich(self) -> Table:
        """The table for a terminal."""
        from rich.table import Table
        from rich.text import Text

        grid = Table()
        for title in self.header():
            is_number = title in (*self.metrics, "parameters", "minutes", "peak memory")
            grid.add_column(Text(title), justify="right" if is_number else "left")
        for line in self.table():
            grid.add_row(*map(Text, line))
        return grid


def leaderboard(workspace: Workspace, grid: Grid, split: str = "val") -> Leaderboard:
    """Look at every run of a sweep.

    Raises:
        StoreError: what a run has written cannot be read.
    """
    cells = tuple(look(workspace, grid.name, cell, split) for cell in grid.cells)
    keys = tuple(key for key, values in grid.axes.items() if len(values) > 1 and key != SEED)
    groups: dict[str, list[CellResult]] = {}
    for cell in cells:
        groups.setdefault(json.dumps(_without_seed(cell.choices), sort_keys=True), []).append(cell)
    rows = [_row(group) for group in groups.values()]
    names = dict.fromkeys(metric for row in rows for metric in row.scores)
    metrics = (METRIC, *(name for name in names if name != METRIC))
    rows.sort(key=lambda row: -row.scores[METRIC].mean if METRIC in row.scores else float("inf"))
    return Leaderboard(
        sweep=grid.name,
        split=split,
        keys=keys,
        metrics=metrics,
        rows=tuple(rows),
        cells=cells,
        warnings=tuple(_unlike(cells)),
    )


def look(workspace: Workspace, sweep: str, cell: Cell, split: str = "val") -> CellResult:
    """What is known of one cell's run."""
    folder = workspace.run(cell.run)
    failure = failure_file(workspace, sweep, cell.run)
    known: dict[str, Any] = {}
    state: State = "waiting"
    reason = ""
    with storage_errors(folder, "read"):
        if differences := _differences(folder, cell.config):
            reason = f"other settings than the grid's: {', '.join(differences)}"
            return CellResult(
                run=cell.run, choices=cell.choices, state="with other settings", reason=reason, scores={}, step=0
            )
        if is_trained(folder):
            result = _read(folder / "result.json")
            known = {key: result[key] for key in ("step", "best_step", "parameters", "parameters_total", "seconds")}
            known["peak_memory_bytes"] = result["peak_memory_bytes"]
            known["scores"] = _scores(folder, split, result)
            if known["scores"] and split != "val":
                known["signatures"] = _read(folder / "scores" / f"{split}.json")["signatures"]
            state = "finished"
        elif (folder / "config.yaml").exists():
            state = "begun"
        why = _text(failure)  # it may be tried again just now, which removes the file
        if why is not None and (state != "finished" or not is_scored(folder, split)):
            state, reason = "failed", why.partition("\n")[0]
        if "step" not in known:
            known |= {"step": _last_step(folder / "metrics.jsonl"), "scores": {}}
    return CellResult(run=cell.run, choices=cell.choices, state=state, reason=reason, **known)


def is_trained(folder: Path) -> bool:
    """Whether a run is trained to its end, and its validation clips, if there are any, are captioned by its best
    checkpoint.
    """
    if not (folder / "result.json").exists():
        return False
    result = _read(folder / "result.json")
    return result["best_score"] is None or _is_captioned(folder, "val", result)


def is_scored(folder: Path, split: str) -> bool:
    """Whether a trained run has whole scores of a split by its best checkpoint."""
    return split == "val" or METRIC in _scores(folder, split, _read(folder / "result.json"))


def failure_file(workspace: Workspace, sweep: str, run: str) -> Path:
    """Where it says why a run failed when it was last tried; not there if it did not."""
    return workspace.sweep(sweep) / "failed" / f"{run}.txt"


def _scores(folder: Path, split: str, result: Mapping[str, Any]) -> dict[str, float]:
    """Of val, what the training says; of another split, those of the best checkpoint's captions, if all metrics that
    ``avpipe score`` calculates by itself were asked for.
    """
    from avpipe.eval import DEFAULT
    from avpipe.eval.metric import find_metrics

    if split == "val":
        return {} if result["best_score"] is None else {METRIC: result["best_score"]}
    scored, captioned = folder / "scores" / f"{split}.json", folder / "captions" / f"{split}.checkpoint"
    if not (scored.exists() and _is_captioned(folder, split, result)):
        return {}
    if scored.stat().st_mtime_ns < captioned.stat().st_mtime_ns:  # of former captions
        return {}
    found = _read(scored)["scores"]
    expected = [name for module in find_metrics(DEFAULT).values() for name in module.NAMES]
    if not all(name in found for name in expected):
        return {}
    return {name: score for name, score in found.items() if score is not None}


def _unlike(cells: Sequence[CellResult]) -> list[str]:
    """What to say where scores of one metric have other signatures in some runs than in the first that has one."""
    first: dict[str, tuple[str, str]] = {}
    others: dict[tuple[str, str, str, str], list[str]] = {}  # runs, by metric and by what is told of them
    for cell in cells:
        for metric, signature in cell.signatures.items():
            run, usual = first.setdefault(metric, (cell.run, signature))
            own, its = signature.split("|"), usual.split("|")
            apart = "|".join(part for part in own if part not in its), "|".join(part for part in its if part not in own)
            if any(apart):
                others.setdefault((metric, run, *apart), []).append(cell.run)
    metrics: dict[tuple[str, ...], list[str]] = {}
    for (metric, *told), runs in others.items():
        metrics.setdefault((*told, ", ".join(runs)), []).append(metric)
    return [
        f"not scored alike, and not to be compared: {', '.join(names)} of {runs} ({own}) and of {run} ({usual})"
        for (run, own, usual, runs), names in metrics.items()
    ]


def _is_captioned(folder: Path, split: str, result: Mapping[str, Any]) -> bool:
    """Whether the captions of a split are those of the best checkpoint."""
    return _text(folder / "captions" / f"{split}.checkpoint") == f"{folder.name}@{result['best_step']}"


def _differences(folder: Path, config: RunConfig) -> list[str]:
    """How the settings of a run differ from those of its cell. What a sweep fills in is as the run has it: the dataset
    where none is named, and which feature sets there are of some modalities.
    """
    try:
        there = read_yaml(folder / "config.yaml") if (folder / "config.yaml").exists() else {}
    except ConfigError as error:
        raise StoreError(f"{error}; remove the run, and the sweep trains it again") from None
    filled: dict[str, Any] = {}
    if not config.dataset:
        filled["dataset"] = there.get("dataset", "")
    if config.modalities or not config.features:
        filled["features"] = tuple(there.get("features", ()))
    return run_differences(folder, config.model_copy(update=filled))


def _text(path: Path) -> str | None:
    """What stands in a file that may be removed at any time; ``None`` if it is not there."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _read(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}); remove it, and the sweep writes it again") from None
    return values


def _last_step(path: Path) -> int:
    """Of a log that may be written just now: its last line may be half there."""
    whole = [line for line in (_text(path) or "").splitlines(keepends=True) if line.endswith("\n")]
    return int(json.loads(whole[-1])["step"]) if whole else 0


def _row(cells: Sequence[CellResult]) -> Row:
    def largest(of: Callable[[CellResult], int | None]) -> int | None:
        return max((value for cell in cells if (value := of(cell)) is not None), default=None)

    names = dict.fromkeys(metric for cell in cells for metric in cell.scores)
    seconds = [cell.seconds for cell in cells if cell.seconds is not None]
    return Row(
        choices=_without_seed(cells[0].choices),
        runs=tuple(cell.run for cell in cells),
        scores={name: Spread.of([cell.scores[name] for cell in cells if name in cell.scores]) for name in names},
        parameters=largest(lambda cell: cell.parameters),
        parameters_total=largest(lambda cell: cell.parameters_total),
        minutes=statistics.fmean(seconds) / 60 if seconds else None,
        peak_memory_bytes=largest(lambda cell: cell.peak_memory_bytes),
        states=dict(sorted(Counter(cell.state for cell in cells).items())),
        reasons=tuple(dict.fromkeys(cell.reason for cell in cells if cell.reason)),
    )


def _without_seed(choices: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in choices.items() if key != SEED}


def _value(value: Any) -> str:
    return text_of(value) or "all"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return ""
    sd = "" if spread.sd is None else f" ± {spread.sd:.4f}"
    return f"{spread.mean:.4f}{sd} ({spread.n})"


def _parameters(row: Row) -> str:
    if row.parameters is None:
        return ""
    is_all = row.parameters_total in (None, row.parameters)
    return f"{row.parameters:,}" if is_all else f"{row.parameters:,} of {row.parameters_total:,}"
