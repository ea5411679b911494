"""Reports on the same clips side by side: one as it is, the others with their difference to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from avpipe.eval.comparison import Comparison, Difference, compare
from avpipe.eval.metric import is_share
from avpipe.eval.scores import ScoreReport, digits, footnotes, titled, write_scores
from avpipe.eval.tables import Table, interval, number

MARK = "*"
_TESTED = ("low", "high", "p", "p_holm")


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Reports by label; the first is what the others are compared with.

    Attributes:
        reports: of the same clips.
        comparison: tests of their differences to the first; ``None``: there are none.
        untested: why there are none though they were asked for.

    Raises:
        ValueError: they are not of the same references with the same metrics, or there is none.
    """

    reports: Mapping[str, ScoreReport]
    comparison: Comparison | None = None
    untested: str = ""

    @classmethod
    def of(cls, reports: Mapping[str, ScoreReport], *, with_intervals: bool = False) -> SideBySide:
        """Of at least one report.

        Args:
            reports: by label.
            with_intervals: test the differences, too, where they are of the same clips, and of two or more.

        Raises:
            ValueError: see :class:`SideBySide`.
        """
        plain = cls(reports)
        if not with_intervals or len(reports) < 2:
            return plain
        clips = [report.per_clip.keys() for report in reports.values()]
        if any(own != clips[0] for own in clips):
            return replace(plain, untested="no tests: clips were left out, and not the same of all")
        if len(clips[0]) < 2:
            return replace(plain, untested="no tests: of one clip nothing can be said of others")
        return replace(plain, comparison=compare(reports))

    def __post_init__(self) -> None:
        if len({(report.references_sha256, tuple(report.scores)) for report in self.reports.values()}) != 1:
            raise ValueError("side by side: expected reports of the same references and metrics")

    @property
    def first(self) -> ScoreReport:
        """What the others are compared with."""
        return next(iter(self.reports.values()))

    @property
    def complete(self) -> bool:
        """Every score asked for could be computed."""
        return all(report.complete for report in self.reports.values())

    def difference(self, label: str, name: str) -> float | None:
        """A report's score less that of the first; ``None`` where either is not there."""
        score, first = self.reports[label].scores[name], self.first.scores[name]
        return None if score is None or first is None else score - first

    def test(self, label: str, name: str) -> Difference | None:
        """The test of a report's difference to the first; ``None`` where there is none."""
        tests = self.comparison.differences if self.comparison else ()
        return next((each for each in tests if (each.system, each.metric) == (label, name)), None)

    def to_json(self) -> dict[str, Any]:
        """By label, everything that a report says, ``differences``, and if there are any ``tests`` of these, as
        JSON-ready values.
        """

        def tests(label: str) -> dict[str, Any]:
            found = {name: test for name in self.first.scores if (test := self.test(label, name))}
            ends = {name: {key: getattr(test, key) for key in _TESTED} for name, test in found.items()}
            return {"tests": ends} if self.comparison else {}

        return {
            label: {
                **report.to_json(),
                "differences": {name: self.difference(label, name) for name in report.scores},
                **tests(label),
            }
            for label, report in self.reports.items()
        }

    def write(self, folder: Path, stem: str) -> tuple[Path, Path]:
        """Write ``<stem>.json`` and, one row a report, ``<stem>.csv``.

        Returns:
            Both paths.

        Raises:
            StoreError: the disk is full, the folder cannot be written, ...
        """
        return write_scores(folder, stem, self.to_json(), rows(self).csv())


def table(side_by_side: SideBySide, *, percent: bool = False) -> Table:
    """The scores as a table for people, one row a report, each difference below its score in parentheses, with its
    interval where there are tests, and a star where it is significant; :func:`notes_below` belong below it.

    Args:
        side_by_side: what to show.
        percent: times 100, as papers print.
    """
    lines = []
    for label, report in side_by_side.reports.items():
        cells = [label]
        for name, score in report.scores.items():
            times = percent and is_share(name)
            difference = None if report is side_by_side.first else side_by_side.difference(label, name)
            below = "" if difference is None else f"\n({number(difference, percent=times, signed=True)})"
            test = side_by_side.test(label, name)
            if test:
                below += MARK if test.significant else ""
                below += f"\n{interval(test.low, test.high, percent=times, signed=True)}"
            cells.append(f"{number(score, percent=times)}{below}")
        lines.append(cells)
    return Table(header=["", *(titled(name, percent) for name in side_by_side.first.scores)], rows=lines)


def rows(side_by_side: SideBySide) -> Table:
    """The same for programs: all digits, and the differences in columns of their own."""
    names = list(side_by_side.first.scores)
    tested = [f"{name}_difference_{key}" for name in names for key in _TESTED] if side_by_side.comparison else []
    lines = []
    for label, report in side_by_side.reports.items():
        differences = [side_by_side.difference(label, name) for name in names]
        tests = [side_by_side.test(label, name) for name in names] if tested else []
        ends = [getattr(test, key, None) for test in tests for key in _TESTED]
        lines.append([label, str(report.scored), *map(digits, (*report.scores.values(), *differences, *ends))])
    return Table(header=["", "n", *names, *(f"{name}_difference" for name in names), *tested], rows=lines)


def notes_below(side_by_side: SideBySide) -> list[str]:
    """Lines to print below the table: the protocol of the first report, how those of the others differ, notes, and how
    differences were tested.
    """
    first, *others = side_by_side.reports.items()
    lines = footnotes(first[1])
    for label, report in others:
        changed = [part for part in report.protocol.split("|") if part not in first[1].protocol.split("|")]
        lines.append(f"{label}: {'|'.join(changed) or 'the same protocol'}")
        lines += [line for line in footnotes(report)[1:] if line not in lines]
    if side_by_side.untested:
        lines.append(side_by_side.untested)
    if found := side_by_side.comparison:
        own = {f"{label}: {note}" for label, report in side_by_side.reports.items() for note in report.notes}
        lines += [found.method, found.claim, *(line for line in found.notes if line not in own)]
    return lines
