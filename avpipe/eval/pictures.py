"""Pictures of scores: intervals of systems, bars of slices. Drawn by matplotlib, which is optional (``avpipe[plots]``).

The same numbers give the same file, byte for byte, with one version of matplotlib: nothing in it tells the time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avpipe.eval.metric import is_share
from avpipe.eval.scores import titled
from avpipe.pipeline.errors import MissingPackageError, UsageError
from avpipe.pipeline.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from avpipe.eval.comparison import Standing

# What of a file would tell the time, or which version drew it.
_METADATA: Mapping[str, Mapping[str, None]] = {
    ".svg": {"Date": None},
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None},
}
# Okabe and Ito's, which people who see colours differently can tell apart, the darker ones first.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MOST_COLUMNS = 4
_LONGEST_NAME = 40


def check_picture(path: Path) -> None:
    """Before long work: whether a picture could be drawn into this file.

    Raises:
        UsageError: its ending is that of no picture that can be drawn, or no folder can be made where it should lie.
        MissingPackageError: matplotlib is not installed.
    """
    if path.suffix.lower() not in _METADATA:
        raise UsageError(f"{path}: expected a file that ends in {', '.join(_METADATA)}")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(f"{path}: expected a folder that can be written to; {there} is none")
    if find_spec("matplotlib") is None:
        raise MissingPackageError("pictures need a package that is not here: pip install 'avpipe[plots]'")


def interval_plot(
    standings: Mapping[str, Mapping[str, Standing]], path: Path, *, percent: bool = False, alpha: float = 0.05
) -> None:
    """Draw every score of every system with its interval: a panel a metric, each on its own scale.

    Args:
        standings: by system, then by score; scores that are missing everywhere have no panel.
        path: a file ``.svg``, ``.png`` or ``.pdf``.
        percent: times 100, but for counts; titles say of which.
        alpha: 1 - alpha is what the intervals hold.

    Raises:
        UsageError: another ending, or there is no score.
        MissingPackageError: matplotlib is not installed.
    """
    check_picture(path)
    names = [
        name
        for name in next(iter(standings.values()), {})
        if any(s[name].score is not None for s in standings.values())
    ]
    if not names:
        raise UsageError(f"{path}: there is no score to draw")
    columns = min(len(names), _MOST_COLUMNS)
    rows = -(-len(names) // columns)
    inches = 0.4 + 0.08 * max(len(_short(system)) for system in standings) + 2.1 * columns
    with _drawn(path, (inches, rows * (0.9 + 0.28 * len(standings)) + 0.4)) as figure:
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for panel, name in zip(panels, names, strict=False):
            for row, by_metric in enumerate(standings.values()):
                standing = by_metric[name]
                if standing.score is None:
                    continue
                score, low, high = _scaled(standing.score, standing.low, standing.high, percent and is_share(name))
                colour = _COLOURS[row % len(_COLOURS)]
                # Drawn about its own middle: nothing says that a percentile interval holds the score.
                panel.errorbar((low + high) / 2, row, xerr=(high - low) / 2, fmt="none", ecolor=colour, capsize=3)
                panel.plot(score, row, "o", color=colour)
            panel.set_title(titled(name, percent))
            panel.margins(x=0.12)
            panel.locator_params(axis="x", nbins=3)
            panel.grid(axis="x", alpha=0.3)
        for panel in panels[len(names) :]:
            panel.set_axis_off()
        panels[0].set_yticks(range(len(standings)), [_short(system) for system in standings])
        panels[0].set_ylim(len(standings) - 0.5, -0.5)
        drawn = [by_metric[name] for by_metric in standings.values() for name in names]
        with_ends = [standing.low is not None for standing in drawn if standing.score is not None]
        if any(with_ends):
            some = "" if all(with_ends) else ", of scores that have one"
            figure.supxlabel(f"with {100 * (1 - alpha):g} % intervals{some}", fontsize="small")


def slice_bars(
    slices: Mapping[str, tuple[float, float | None, float | None, int]],
    path: Path,
    *,
    metric: str,
    percent: bool = False,
    few: int = 0,
) -> None:
    """Draw one score on several slices of the clips: a bar a slice; names stand on the left, where long ones have room.

    Args:
        slices: by name: the score, both ends of its 95 % interval (``None`` without one), and the number of clips.
        path: a file ``.svg``, ``.png`` or ``.pdf``.
        metric: name of the score.
        percent: times 100, if it is no count.
        few: slices of fewer clips are pale, and marked so.

    Raises:
        UsageError: another ending, or there is no slice.
        MissingPackageError: matplotlib is not installed.
    """
    check_picture(path)
    if not slices:
        raise UsageError(f"{path}: there is no score to draw")
    times = percent and is_share(metric)
    labels = [f"{_short(name)}, n = {count}{' (few)' if count < few else ''}" for name, (*_, count) in slices.items()]
    with _drawn(path, (4.2 + 0.08 * max(map(len, labels)), 0.9 + 0.32 * len(slices))) as figure:
        panel = figure.subplots()
        for place, (given, low_end, high_end, count) in enumerate(slices.values()):
            score, low, high = _scaled(given, low_end, high_end, times)
            panel.barh(place, score, 0.7, color=_COLOURS[0], alpha=0.4 if count < few else 1)
            if low < high:
                middle, half = (low + high) / 2, (high - low) / 2
                panel.errorbar(middle, place, xerr=half, fmt="none", ecolor="#444444", capsize=2)
        panel.set_ylim(len(slices) - 0.5, -0.5)  # the first on top
        panel.set_yticks(range(len(slices)), labels)
        has_ends = any(low is not None for _, low, _, _ in slices.values())
        panel.set_xlabel(f"{titled(metric, percent)}{', with 95 % intervals' if has_ends else ''}")
        panel.grid(axis="x", alpha=0.3)
        panel.set_axisbelow(True)


@contextmanager
def _drawn(path: Path, inches: tuple[float, float]) -> Iterator[Figure]:
    """A figure to draw on, which is then written. pyplot is not used: nothing is left behind in it."""
    from matplotlib import rc_context, rcdefaults, rcParams
    from matplotlib.figure import Figure

    style: Any = {"svg.hashsalt": "avpipe", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with rc_context():
        rcdefaults()  # whatever a user's matplotlibrc says
        rcParams.update(style)
        figure = Figure(figsize=inches, layout="constrained", dpi=150)
        yield figure
        with atomic_write(path) as aside:
            form = path.suffix.lower()
            figure.savefig(aside, format=form[1:], metadata=dict(_METADATA[form]))


def _scaled(score: float, low: float | None, high: float | None, percent: bool) -> tuple[float, float, float]:
    """Score and both ends; without an interval, both are the score."""
    times = 100 if percent else 1
    return times * score, times * (score if low is None else low), times * (score if high is None else high)


def _short(name: str) -> str:
    """A name that fits, both its ends, for names of runs differ at either; matplotlib would take what stands between
    two dollars for a formula.
    """
    half = _LONGEST_NAME // 2
    short = name if len(name) <= _LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"
    return short.replace("$", r"\$")
