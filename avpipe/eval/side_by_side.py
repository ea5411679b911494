"""Reports on the same clips side by side: one as it is, the others with their difference to it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avpipe.eval.metric import is_share
from avpipe.eval.scores import ScoreReport, footnotes
from avpipe.eval.tables import Table, number
from avpipe.pipeline.files import atomic_write, write_json


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Reports by label; the first is what the others are compared with.

    Raises:
        ValueError: they are not of the same references with the same metrics, or there is none.
    """

    reports: Mapping[str, ScoreReport]

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

    def to_json(self) -> dict[str, Any]:
        """By label, everything that a report says and ``differences``, as JSON-ready values."""
        return {
            label: {
                **report.to_json(),
                "differences": {name: self.difference(label, name) for name in report.scores},
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
        summary, rows = folder / f"{stem}.json", folder / f"{stem}.csv"
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = list(self.first.scores)
        writer.writerow(["", "n", *names, *(f"{name}_difference" for name in names)])
        for label, report in self.reports.items():
            differences = [self.difference(label, name) for name in names]
            writer.writerow([label, report.scored, *(report.scores[name] for name in names), *differences])
        with atomic_write(rows) as aside:
            aside.write_text(text.getvalue(), encoding="utf-8", newline="")
        write_json(summary, self.to_json())
        return summary, rows


def table(side_by_side: SideBySide, *, percent: bool = False) -> Table:
    """The scores as a table, one row a report, each difference below its score; :func:`notes_below` belong below it.

    Args:
        side_by_side: what to show.
        percent: times 100, as papers print.
    """
    rows = []
    for label, report in side_by_side.reports.items():
        cells = [label]
        for name, score in report.scores.items():
            times = percent and is_share(name)
            difference = None if report is side_by_side.first else side_by_side.difference(label, name)
            below = "" if difference is None else f"\n{number(difference, percent=times, signed=True)}"
            cells.append(f"{number(score, percent=times)}{below}")
        rows.append(cells)
    return Table(header=["x 100" if percent else "", *side_by_side.first.scores], rows=rows)


def notes_below(side_by_side: SideBySide) -> list[str]:
    """Lines to print below the table: the protocol of the first report, how those of the others differ, and notes."""
    first, *others = side_by_side.reports.items()
    lines = footnotes(first[1])
    for label, report in others:
        changed = [part for part in report.protocol.split("|") if part not in first[1].protocol.split("|")]
        lines.append(f"{label}: {'|'.join(changed) or 'the same protocol'}")
        lines += [line for line in footnotes(report)[1:] if line not in lines]
    return lines
