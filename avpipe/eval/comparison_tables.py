"""A comparison for people and for papers: its scores, its differences, its examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from avpipe.eval.comparison import Comparison, Difference, Example, Standing
from avpipe.eval.metric import direction, find_metrics, is_of_the_set, is_share
from avpipe.eval.scores import titled, versions_line
from avpipe.eval.tables import Cell, Table, interval, number

MARK = "*"


def scores_table(
    comparison: Comparison, *, percent: bool = False, for_terminal: bool = False, notes: Sequence[str] = ()
) -> Table:
    """Every score of every system, with its interval; the best in bold, and a mark where a system differs from the
    baseline.

    Args:
        comparison: what to show.
        percent: times 100, as papers print.
        for_terminal: narrow: a row a metric, and intervals below their scores, instead of a row a system.
        notes: lines to stand below; :func:`scores_notes`.
    """
    metrics = list(comparison.signatures)
    best = {metric: _best(comparison.standings, metric) for metric in metrics}
    marked = {(each.system, each.metric) for each in comparison.differences if each.significant and comparison.baseline}

    def cell(system: str, metric: str) -> Cell:
        standing = comparison.standings[system][metric]
        mark = MARK if (system, metric) in marked else ""
        times = percent and is_share(metric)
        within = interval(standing.low, standing.high, percent=times)
        text = f"{number(standing.score, percent=times)}{mark}\n{within}".rstrip()
        return Cell(text, bold=standing.score is not None and standing.score == best[metric])

    seeds = {
        system: f"{system} ({count} seeds)" if count > 1 else system for system, count in comparison.systems.items()
    }
    rows: list[list[Cell | str]]
    if for_terminal:
        rows = [[titled(metric, percent), *(cell(system, metric) for system in seeds)] for metric in metrics]
        return Table(header=["metric", *seeds.values()], rows=rows, notes=notes)
    rows = [[shown, *(cell(system, metric) for metric in metrics)] for system, shown in seeds.items()]
    header = ["system", *(titled(metric, percent) for metric in metrics)]
    return Table(header=header, rows=rows, notes=notes)


def scores_notes(comparison: Comparison) -> list[str]:
    """Lines to print below the scores where the tests stand elsewhere: what brackets and marks mean, the protocol."""
    marks = f"; {MARK} differs from {comparison.baseline}, p (Holm) < {comparison.alpha:g}"
    brackets = f"brackets: intervals that hold {100 * (1 - comparison.alpha):g} %"
    return [brackets + (marks if comparison.baseline else ""), *_how(comparison)]


def _how(comparison: Comparison) -> list[str]:
    """How scores were made: the protocol, and what of its signature each has beside that."""
    return [comparison.protocol, *versions_line(comparison.metric_versions)]


def differences_table(comparison: Comparison, *, percent: bool = False, notes: Sequence[str] = ()) -> Table:
    """Every test; :func:`footnotes` belong below it, or among its ``notes``."""

    def row(each: Difference) -> list[Cell | str]:
        times = percent and is_share(each.metric)
        within = interval(each.low, each.high, percent=times, signed=True)
        return [
            titled(each.metric, percent),
            each.system if comparison.baseline else f"{each.system} - {each.baseline}",
            f"{number(each.difference, percent=times, signed=True)}\n{within}",
            Cell(f"{each.p_holm:.4f}{MARK if each.significant else ''}", bold=each.significant),
            number(each.detectable, percent=times),
            "" if each.wins is None else f"{each.wins}/{each.ties}/{each.losses}",
        ]

    systems = f"system - {comparison.baseline}" if comparison.baseline else "systems"
    header = ["metric", systems, "difference", "p (Holm)", "detectable", "win/tie/loss"]
    return Table(header=header, rows=[row(each) for each in comparison.differences], words=2, notes=notes)


def long_table(comparison: Comparison) -> Table:
    """Everything in one table for programs: a row a score of a system, and beside it each test of it."""
    rows: list[list[Cell | str]] = []
    for metric, signature in comparison.signatures.items():
        for system, standings in comparison.standings.items():
            one = standings[metric]
            own = [metric, system, str(comparison.systems[system]), *_digits(one.score, one.low, one.high)]
            said = [
                comparison.test,
                str(comparison.resamples),
                str(comparison.seed),
                f"{comparison.alpha:g}",
                signature,
            ]
            tests = [each for each in comparison.differences if (each.system, each.metric) == (system, metric)]
            for each in tests:
                shown = _digits(each.difference, each.low, each.high)
                p = [repr(each.p), repr(each.p_holm)]
                counts = ["" if count is None else str(count) for count in (each.wins, each.ties, each.losses)]
                rows.append([*own, each.baseline, *shown, *p, *_digits(each.detectable), *counts, *said])
            if not tests:
                rows.append([*own, *[""] * 10, *said])
    header = "metric system seeds score low high baseline difference difference_low difference_high p p_holm detectable"
    ends = "wins ties losses test resamples seed alpha signature"
    return Table(header=[*header.split(), *ends.split()], rows=rows)


def _digits(*values: float | None) -> list[str]:
    return ["" if value is None else repr(value) for value in values]


def footnotes(comparison: Comparison) -> list[str]:
    """Lines to print below the tables: what was tested and what it claims, the protocol, and what else to know."""
    return [
        comparison.method,
        comparison.claim,
        "detectable: the smallest difference that one such test finds with a power of 80 %",
        *_how(comparison),
        *(f"no {name}: {reason}" for name, reason in comparison.reasons.items()),
        *comparison.notes,
    ]


def example_lines(examples: Sequence[Example], *, percent: bool = False) -> list[str]:
    """Clips where two systems differ most, for people to read."""
    lines = []
    for each in examples:
        apart = number(each.difference, percent=percent and is_share(each.metric), signed=True)
        lines.append(f"{each.clip_id}: {each.metric} {apart} ({each.system} - {each.baseline})")
        for system, captions in each.captions.items():
            lines += [f"  {system}: {caption}" for caption in captions]
        lines += [f"  reference: {reference}" for reference in each.references]
    return [_one_line(line) for line in lines]


def _one_line(text: str) -> str:
    """A line break in a reference would end the comment that it stands in."""
    words = text.lstrip(" ")
    return " " * (len(text) - len(words)) + " ".join(words.split())


def _best(standings: Mapping[str, Mapping[str, Standing]], metric: str) -> float | None:
    """The best score of a metric of which more or less is better and which more than one system has."""
    ((module, _),) = find_metrics([metric]).items()
    scores = [score for by_metric in standings.values() if (score := by_metric[metric].score) is not None]
    better = direction(module)
    if len(scores) < 2 or not better or is_of_the_set(module):
        return None
    return max(scores, key=lambda score: better * score)
