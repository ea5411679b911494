"""Scores of one evaluation by kind of clip.

A slice's score is made of its clips alone: the mean of their scores, or what the metric makes of the sums of their
statistics (BLEU). Nothing is counted anew: CIDEr's document frequencies are those of the whole reference set, so that a
clip has one score whatever slice it is in, and the means of all slices of a partition, weighted by their clips, are
the score of the whole.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from avpipe.eval.kinds import EXTRA, Partition
from avpipe.eval.metric import aggregate, find_metrics, is_of_the_set, is_share
from avpipe.eval.scores import ScoreReport
from avpipe.eval.tables import Cell, Table, interval, number
from avpipe.pipeline.errors import UnknownNameError
from avpipe.pipeline.files import atomic_write, write_json

FEW = 30
"""Clips: a slice of fewer says little, and is marked so."""

OF_THE_SET = "it belongs to the set of captions as a whole"


def part_of(report: ScoreReport, clip_ids: Collection[str]) -> ScoreReport:
    """The report on some of its clips: their scores, statistics and captions, and what these make together.

    What can be said of a report (an interval, a comparison) can be said of this one, too.

    Args:
        report: on all clips.
        clip_ids: of those that count; others of the report's are left out.

    Raises:
        ValueError: the report holds none of them.
    """
    import numpy as np

    wanted = frozenset(clip_ids)
    chosen = [clip_id for clip_id in report.per_clip if clip_id in wanted]
    if not chosen:
        raise ValueError("slice: expected at least one clip of the report, got none")
    rows = np.array([row for row, clip_id in enumerate(report.per_clip) if clip_id in wanted])
    statistics = {module: values[rows] for module, values in report.statistics.items()}
    scores: dict[str, float | None] = {}
    reasons = dict(report.reasons)
    for name, whole in report.scores.items():
        ((module, _),) = find_metrics([name]).items()
        if whole is None:
            scores[name] = None
        elif is_of_the_set(module):
            scores[name], reasons[name] = None, OF_THE_SET
        elif module in statistics:
            scores[name] = float(aggregate(module, statistics[module].sum(axis=0, keepdims=True))[name][0])
        else:
            scores[name] = sum(report.per_clip[clip_id][name] for clip_id in chosen) / len(chosen)
    return replace(
        report,
        scores=scores,
        reasons=reasons,
        per_clip={clip_id: report.per_clip[clip_id] for clip_id in chosen},
        statistics=statistics,
        captions={clip_id: report.captions[clip_id] for clip_id in chosen},
        scored=len(chosen),
        missing=tuple(clip_id for clip_id in report.missing if clip_id in wanted and clip_id in report.per_clip),
    )


def slice_scores(report: ScoreReport, groups: Mapping[str, Collection[str]]) -> dict[str, ScoreReport]:
    """The reports on groups of clips, by slice: ``.scores`` are a slice's, ``.scored`` is how many clips it has.

    Args:
        report: on all clips.
        groups: ids by slice; clips that were not scored are passed over, and with them slices that have no other.
    """
    return {label: part_of(report, ids) for label, ids in groups.items() if not report.per_clip.keys().isdisjoint(ids)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SlicedScores:
    """Scores by kind of clip.

    Attributes:
        whole: on all clips.
        slices: by partition, then by slice.
        notes: what a reader should know.
    """

    whole: ScoreReport
    slices: Mapping[str, Mapping[str, ScoreReport]]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, report: ScoreReport, partitions: Sequence[Partition]) -> SlicedScores:
        """Score every slice.

        Raises:
            ValueError: a scored clip is in no group of a partition.
        """
        for each in partitions:
            known = {clip_id for ids in each.groups.values() for clip_id in ids}
            if lost := report.per_clip.keys() - known:
                raise ValueError(f"{each.name}: expected every scored clip in a group, got none for {min(lost)!r}")
        slices = {each.name: slice_scores(report, each.groups) for each in partitions}
        few = any(is_few(part) for parts in slices.values() for part in parts.values())
        notes = [f"few: under {FEW} clips"] if few else []
        notes += [*_notes(report), *(note for each in partitions for note in each.notes)]
        return cls(whole=report, slices=slices, notes=tuple(notes))

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready values, by partition and slice."""
        return {
            "whole": {"n": self.whole.scored, "scores": dict(self.whole.scores)},
            "slices": {
                name: {
                    label: {"n": part.scored, "few": is_few(part), "scores": dict(part.scores)}
                    for label, part in parts.items()
                }
                for name, parts in self.slices.items()
            },
            "signatures": {name: self.whole.signature(name) for name in self.whole.scores},
            "notes": list(self.notes),
        }

    def write(self, folder: Path, stem: str) -> tuple[Path, Path]:
        """Write ``<stem>.json`` and, one row a slice, ``<stem>.csv``.

        Returns:
            Both paths.

        Raises:
            StoreError: the disk is full, the folder cannot be written, ...
        """
        summary, rows = folder / f"{stem}.json", folder / f"{stem}.csv"
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["kind", "slice", "n", "few", *self.whole.scores])
        writer.writerow(["", "all", self.whole.scored, "", *self.whole.scores.values()])
        for name, parts in self.slices.items():
            for label, part in parts.items():
                writer.writerow([name, label, part.scored, "few" if is_few(part) else "", *part.scores.values()])
        with atomic_write(rows) as aside:
            aside.write_text(text.getvalue(), encoding="utf-8", errors="backslashreplace", newline="")
        write_json(summary, self.to_json())
        return summary, rows


def is_few(part: ScoreReport) -> bool:
    """Whether a slice has so few clips that its scores say little."""
    return part.scored < FEW


def table(sliced: SlicedScores, *, percent: bool = False, with_intervals: bool = False) -> Table:
    """The slices as a table; the notes belong below it.

    Args:
        sliced: what to show.
        percent: times 100, as papers print.
        with_intervals: each score's 95 % bootstrap interval below it, where a slice has two clips or more.
    """

    def row(label: str, part: ScoreReport) -> list[Cell]:
        found = _intervals(part) if with_intervals else {}
        few = " few" if part is not sliced.whole and is_few(part) else ""
        cells = [label, f"{part.scored}{few}"]
        for name, score in part.scores.items():
            times = percent and is_share(name)
            ends = f"\n{interval(*found[name], percent=times)}" if name in found else ""
            cells.append(f"{number(score, percent=times)}{ends}")
        return [Cell(text, bold=part is sliced.whole) for text in cells]

    rows = [row("all", sliced.whole)]
    for name, parts in sliced.slices.items():
        rows += [row(f"{name.removeprefix(EXTRA)}: {label}", part) for label, part in parts.items()]
    return Table(header=["x 100" if percent else "", "n", *sliced.whole.scores], rows=rows)


def bars(
    sliced: SlicedScores, metric: str, system: str
) -> dict[str, dict[str, tuple[float, float | None, float | None, int]]]:
    """One score of each slice with its interval, for :func:`avpipe.eval.pictures.slice_bars`.

    Args:
        sliced: what to draw.
        metric: name of the score.
        system: whose scores they are.

    Raises:
        UnknownNameError: there is no such score.
    """
    if metric not in sliced.whole.scores:
        raise UnknownNameError("score", metric, list(sliced.whole.scores))
    found = {}
    several = {"all": sliced.whole} | {
        f"{name.removeprefix(EXTRA)}: {label}": part
        for name, parts in sliced.slices.items()
        for label, part in parts.items()
    }
    for label, part in several.items():
        score = part.scores[metric]
        if score is not None:
            low, high = _intervals(part).get(metric, (None, None))
            found[label] = {system: (score, low, high, part.scored)}
    return found


def _intervals(part: ScoreReport) -> dict[str, tuple[float, float]]:
    from avpipe.eval.comparison import intervals

    return intervals(part) if part.scored > 1 else {}


def _notes(report: ScoreReport) -> list[str]:
    """What is not the same in a slice as it is in the whole."""
    notes = []
    with_idf = [name for name, version in report.metric_versions.items() if "idf:" in version]
    if with_idf:
        notes.append(f"{', '.join(with_idf)}: words weigh in each slice what they weigh in the whole reference set")
    by_module = {name: next(iter(find_metrics([name]))) for name in report.scores}
    for name, score in report.scores.items():
        if score is None:
            continue
        if is_of_the_set(by_module[name]):
            notes.append(f"{name}: none of a slice, {OF_THE_SET}")
        elif by_module[name] not in report.statistics:
            mean = sum(scores[name] for scores in report.per_clip.values()) / report.scored
            if abs(mean - score) > 1e-9:
                notes.append(f"{name}: of a slice the mean of its clips' scores, which of the whole is {mean:.4f}")
    return notes
