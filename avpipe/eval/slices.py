"""Scores of one evaluation by kind of clip.

A slice's score is made of its clips alone: the mean of their scores, or what the metric makes of the sums of their
statistics (BLEU). Nothing is counted anew: CIDEr's document frequencies are those of the whole reference set, so that a
clip has one score whatever slice it is in, and the means of all slices of a partition, weighted by their clips, are
the score of the whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from avpipe.eval.comparison import FEW_CLIPS, intervals
from avpipe.eval.kinds import EXTRA, Partition
from avpipe.eval.metric import aggregate, find_metrics, is_of_the_set, is_share
from avpipe.eval.scores import ScoreReport, digits, idf_of, titled, write_scores
from avpipe.eval.tables import Cell, Table, interval, number
from avpipe.pipeline.errors import UnknownNameError

Intervals = Mapping[str, tuple[float, float]]
"""Both ends, by score."""

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
        intervals: 95 % bootstrap intervals by partition and slice, of all clips at ``("", "all")``; empty: not asked
            for. A slice of few clips has none: it would be too narrow.
    """

    whole: ScoreReport
    slices: Mapping[str, Mapping[str, ScoreReport]]
    notes: tuple[str, ...]
    intervals: Mapping[tuple[str, str], Intervals] = field(default_factory=dict)

    @classmethod
    def of(cls, report: ScoreReport, partitions: Sequence[Partition], *, with_intervals: bool = False) -> SlicedScores:
        """Score every slice.

        Args:
            report: on all clips.
            partitions: of them.
            with_intervals: of each score, too.

        Raises:
            ValueError: a scored clip is in no group of a partition.
        """
        for each in partitions:
            known = {clip_id for ids in each.groups.values() for clip_id in ids}
            if lost := report.per_clip.keys() - known:
                raise ValueError(f"{each.name}: expected every scored clip in a group, got none for {min(lost)!r}")
        slices = {each.name: slice_scores(report, each.groups) for each in partitions}
        few = any(is_few(part) for parts in slices.values() for part in parts.values())
        notes = [f"few: under {FEW_CLIPS} clips{', too few for an interval' if with_intervals else ''}"] if few else []
        notes += [*_notes(report), *(note for each in partitions for note in each.notes)]
        sliced = cls(whole=report, slices=slices, notes=tuple(notes))
        if not with_intervals:
            return sliced
        wanted = [(name, label, part) for name, label, part in sliced if part.scored > 1]
        found = {(name, label): intervals(part) for name, label, part in wanted if part is report or not is_few(part)}
        return replace(sliced, intervals=found)

    def __iter__(self) -> Iterator[tuple[str, str, ScoreReport]]:
        """Partition, slice and report, first of all clips: ``("", "all", whole)``."""
        yield "", "all", self.whole
        for name, parts in self.slices.items():
            for label, part in parts.items():
                yield name, label, part

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready values, by partition and slice."""

        def told(name: str, label: str, part: ScoreReport) -> dict[str, Any]:
            few = {} if part is self.whole else {"few": is_few(part)}
            own = {"intervals": self.intervals.get((name, label), {})} if self.intervals else {}
            return {"n": part.scored, **few, "scores": dict(part.scores), **own}

        return {
            "whole": told("", "all", self.whole),
            "slices": {
                name: {label: told(name, label, part) for label, part in parts.items()}
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
        return write_scores(folder, stem, self.to_json(), rows(self).csv())


def is_few(part: ScoreReport) -> bool:
    """Whether a slice has so few clips that its scores say little."""
    return part.scored < FEW_CLIPS


def table(sliced: SlicedScores, *, percent: bool = False, with_intervals: bool = False) -> Table:
    """The slices as a table for people; the notes belong below it.

    Args:
        sliced: what to show.
        percent: times 100, as papers print.
        with_intervals: below each score, where there is one.
    """

    def row(name: str, label: str, part: ScoreReport) -> list[Cell]:
        found = sliced.intervals.get((name, label), {}) if with_intervals else {}
        few = " few" if name and is_few(part) else ""
        cells = [_shown(name, label), f"{part.scored}{few}"]
        for metric, score in part.scores.items():
            times = percent and is_share(metric)
            ends = f"\n{interval(*found[metric], percent=times)}" if metric in found else ""
            cells.append(f"{number(score, percent=times)}{ends}")
        return [Cell(text, bold=not name) for text in cells]

    header = ["", "n", *(titled(metric, percent) for metric in sliced.whole.scores)]
    return Table(header=header, rows=[row(*each) for each in sliced])


def rows(sliced: SlicedScores) -> Table:
    """The slices for programs: all digits, and both ends of an interval in columns of their own."""
    metrics = list(sliced.whole.scores)
    ends = [f"{metric}{end}" for metric in metrics for end in ("_low", "_high")] if sliced.intervals else []
    lines = []
    for name, label, part in sliced:
        found = sliced.intervals.get((name, label), {})
        both = [end for metric in metrics for end in found.get(metric, (None, None))] if sliced.intervals else []
        few = "few" if name and is_few(part) else ""
        lines.append([name, label, str(part.scored), few, *map(digits, (*part.scores.values(), *both))])
    return Table(header=["kind", "slice", "n", "few", *metrics, *ends], rows=lines)


def bars(sliced: SlicedScores, metric: str) -> dict[str, tuple[float, float | None, float | None, int]]:
    """One score of each slice, both ends of its interval, and the number of clips, for
    :func:`avpipe.eval.pictures.slice_bars`.

    Args:
        sliced: what to draw.
        metric: name of the score.

    Raises:
        UnknownNameError: there is no such score.
    """
    if metric not in sliced.whole.scores:
        raise UnknownNameError("score", metric, list(sliced.whole.scores))
    found = {}
    for name, label, part in sliced:
        score = part.scores[metric]
        low, high = sliced.intervals.get((name, label), {}).get(metric, (None, None))
        if score is not None:
            found[_shown(name, label)] = (score, low, high, part.scored)
    return found


def _shown(name: str, label: str) -> str:
    return f"{name.removeprefix(EXTRA)}: {label}" if name else label


def _notes(report: ScoreReport) -> list[str]:
    """What is not the same in a slice as it is in the whole."""
    notes = []
    by_refs = [name for name, version in report.metric_versions.items() if idf_of(version) == "refs"]
    if by_refs:
        notes.append(f"{', '.join(by_refs)}: words weigh in each slice what they weigh in the whole reference set")
    by_module = {name: next(iter(find_metrics([name]))) for name in report.scores}
    for name, score in report.scores.items():
        if score is None:
            continue
        if is_of_the_set(by_module[name]):
            notes.append(f"{name}: none of a slice, {OF_THE_SET}")
        elif by_module[name] not in report.statistics:  # hence a mean, unless somebody's own metric keeps no contract
            mean = sum(scores[name] for scores in report.per_clip.values()) / report.scored
            if abs(mean - score) > 1e-9:
                notes.append(f"{name}: of a slice the mean of its clips' scores, which of the whole is {mean:.4f}")
    return notes
