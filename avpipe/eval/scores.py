"""What a scoring says: :class:`ScoreReport`, its files and its table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avpipe.eval.coverage import share
from avpipe.pipeline.files import atomic_write, write_json

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from avpipe.eval.tables import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreReport:
    """Scores of one set of captions, with the protocol that they were made by.

    Attributes:
        split: name of the reference set; may be empty.
        scores: corpus score by name, on the scale of pycocoevalcap (0 to 1; CIDEr 0 to 10). ``None``: could not be
            computed, and ``reasons`` says why. Never 0 for that.
        reasons: why a score is ``None``, by name.
        per_clip: score by clip id, then by name.
        statistics: ``(clips, k)`` by metric module, in the order of ``per_clip``, where the corpus score is made of
            sums (:class:`avpipe.eval.metric.MetricResult`).
        captions: what was scored, by clip id, as cleaned but not tokenised.
        references_per_clip: how many references the clips have: fewest and most.
        references_sha256: of all references.
        scored: number of clips that the scores are over.
        expected: number of clips that have references.
        missing_policy: ``"error"``, ``"empty"`` or ``"drop"``.
        missing: ids that this policy let pass.
        altered_candidates: captions in which control characters or ``|||`` became spaces.
        altered_references: the same of references.
        tokeniser: its name.
        metric_versions: what changes a metric's numbers, by score name (``"idf:refs"``), and the Java that it ran in.
        java: version of the Java that ran, or empty: no metric needed one, and no caption.
        versions: of the packages that made the numbers.
        notes: what a reader of the numbers should know.
        senses: what was done to the captioner's senses (``"-audio"``); empty: nothing.
    """

    split: str
    scores: Mapping[str, float | None]
    reasons: Mapping[str, str]
    per_clip: Mapping[str, Mapping[str, float]]
    statistics: Mapping[str, npt.NDArray[np.float64]]
    captions: Mapping[str, str]
    references_per_clip: tuple[int, int]
    references_sha256: str
    scored: int
    expected: int
    missing_policy: str
    missing: tuple[str, ...]
    altered_candidates: int
    altered_references: int
    tokeniser: str
    metric_versions: Mapping[str, str]
    java: str
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()
    senses: str = ""

    def __post_init__(self) -> None:
        unexplained = [name for name, score in self.scores.items() if (score is None) != (name in self.reasons)]
        if unexplained:
            raise ValueError(f"reasons: expected one for each score that is None, and no other; got {unexplained}")
        if self.per_clip.keys() != self.captions.keys() or len(self.captions) != self.scored:
            raise ValueError(
                f"per_clip and captions: expected the {self.scored} scored clips, "
                f"got {len(self.per_clip)} and {len(self.captions)}"
            )

    @property
    def complete(self) -> bool:
        """Every score asked for could be computed."""
        return not self.reasons

    @property
    def idf(self) -> str:
        """Where the word weights of its metrics come from, as signatures say: ``"refs"``, the hash of another corpus,
        or nothing, where no metric has any.
        """
        return next((found for version in self.metric_versions.values() if (found := idf_of(version))), "")

    @property
    def protocol(self) -> str:
        """How all scores were made: their signatures, without what tells one metric from another."""
        fewest, most = self.references_per_clip
        parts = [
            f"n:{share(self.captions, self.expected)}",
            f"refs:{fewest}" if fewest == most else f"refs:{fewest}-{most}",
            f"split:{self.split}@{self.references_sha256[:8]}",
            *([f"senses:{self.senses}"] if self.senses else []),
            f"tok:{self.tokeniser}",
            f"missing:{self.missing_policy}",
            *(f"{package}:{version}" for package, version in self.versions.items()),
        ]
        return "|".join(parts)

    def signature(self, name: str) -> str:
        """One line that tells how a score was made: two scores may be compared if their lines agree.

        Example:
            ``CIDEr|n:240/240|refs:5|split:test@3f2a01bc|tok:ptb3.4.1|idf:refs|missing:error|pycocoevalcap:1.2|...``
        """
        before, missing, after = self.protocol.partition("|missing:")
        own = f"|{self.metric_versions[name]}" if self.metric_versions[name] else ""
        return f"{name}|{before}{own}{missing}{after}"

    def to_json(self) -> dict[str, Any]:
        """Everything but the per-clip table, as JSON-ready values."""
        return {
            "split": self.split,
            "scores": dict(self.scores),
            "reasons": dict(self.reasons),
            "signatures": {name: self.signature(name) for name in self.scores},
            "scored": self.scored,
            "expected": self.expected,
            "missing_policy": self.missing_policy,
            "missing": list(self.missing),
            "references_per_clip": list(self.references_per_clip),
            "references_sha256": self.references_sha256,
            "altered_candidates": self.altered_candidates,
            "altered_references": self.altered_references,
            "tokeniser": self.tokeniser,
            "java": self.java,
            "versions": dict(self.versions),
            "notes": list(self.notes),
            "senses": self.senses,
        }

    def write(self, folder: Path, stem: str = "") -> tuple[Path, Path]:
        """Write ``<stem>.json`` and, one row a clip, ``<stem>.csv``.

        Args:
            folder: made if need be; a run's ``scores/``.
            stem: the split's name where not given.

        Returns:
            Both paths.

        Raises:
            StoreError: the disk is full, the folder cannot be written, ...
        """
        return write_scores(folder, stem or self.split or "scores", self.to_json(), self._csv())

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["clip_id", *self.scores, "caption"])
        for clip_id, scores in self.per_clip.items():
            writer.writerow([clip_id, *(scores.get(name, "") for name in self.scores), self.captions[clip_id]])
        return text.getvalue()


def idf_of(version: str) -> str:
    """What stands behind ``idf:`` in the version of a metric; nothing where it has no word weights."""
    return next((part.removeprefix("idf:") for part in version.split("|") if part.startswith("idf:")), "")


def write_scores(folder: Path, stem: str, values: Mapping[str, Any], rows: str) -> tuple[Path, Path]:
    """Write ``<stem>.json`` and ``<stem>.csv``, each whole or not at all.

    Args:
        folder: made if need be.
        stem: of both names.
        values: JSON-ready.
        rows: the text of the CSV file.

    Returns:
        Both paths.

    Raises:
        StoreError: the disk is full, the folder cannot be written, ...
    """
    summary, table = folder / f"{stem}.json", folder / f"{stem}.csv"
    with atomic_write(table) as aside:
        aside.write_text(rows, encoding="utf-8", errors="backslashreplace", newline="")
    write_json(summary, values)
    return summary, table


def titled(name: str, percent: bool) -> str:
    """The name of a score, and that it is printed times 100 where it is; counts never are."""
    from avpipe.eval.metric import is_share

    return f"{name} x 100" if percent and is_share(name) else name


def digits(value: float | None) -> str:
    """A number for programs, as it is; nothing if there is none."""
    return "" if value is None else repr(value)


def table(
    report: ScoreReport,
    *,
    percent: bool = False,
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> Table:
    """The scores as a table for people; :func:`footnotes` belong below it, or among its notes.

    Args:
        report: what to show.
        percent: times 100, as papers print.
        intervals: of :func:`avpipe.eval.comparison.intervals`; a column more.
    """
    from avpipe.eval.metric import is_share
    from avpipe.eval.tables import Table, interval, number

    header = ["metric", "score", *(["95 % interval"] if intervals is not None else [])]
    rows = []
    for name, score in report.scores.items():
        times = percent and is_share(name)
        within = [] if intervals is None else [interval(*intervals.get(name, (None, None)), percent=times)]
        rows.append([titled(name, percent), number(score, percent=times), *within])
    return Table(header=header, rows=rows)


def long_table(report: ScoreReport, intervals: Mapping[str, tuple[float, float]] | None = None) -> Table:
    """The scores for programs, a row a score: all digits, both ends of its interval, and its signature.

    Args:
        report: what to show.
        intervals: see :func:`table`.
    """
    from avpipe.eval.tables import Table

    ends = intervals or {}
    rows = [
        [name, *map(digits, (score, *ends.get(name, (None, None)))), report.signature(name)]
        for name, score in report.scores.items()
    ]
    return Table(header=["metric", "score", "low", "high", "signature"], rows=rows)


def footnotes(report: ScoreReport) -> list[str]:
    """Lines to print below the table: the protocol, what of its signature each metric has beside that, why a score is
    missing, and what else a reader should know.
    """
    return [
        report.protocol,
        *versions_line(report.metric_versions),
        *(f"no {', '.join(names)}: {reason}" for reason, names in _turned(report.reasons).items()),
        *report.notes,
    ]


def versions_line(metric_versions: Mapping[str, str]) -> list[str]:
    """What tells one metric's signature from another's, in one line, or none where nothing does:
    ``CIDEr idf:refs; METEOR meteor:1.5|java:17``.
    """
    known = [f"{', '.join(names)} {version}" for version, names in _turned(metric_versions).items() if version]
    return ["; ".join(known)] if known else []


def _turned(values: Mapping[str, str]) -> dict[str, list[str]]:
    """Names by value."""
    found: dict[str, list[str]] = {}
    for name, value in values.items():
        found.setdefault(value, []).append(name)
    return found
