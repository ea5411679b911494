"""What is wrong with a feature set, and what is odd about it.

Quick: marks and sizes, and whether the shards are those that the manifest plans; reads no shard. Deep: reads every
shard, so that what a failing disk, a broken encoder or an empty file did is found before a training finds it.

A *problem* is something that cannot be so: bytes that changed, a missing shard, a number that is none. An *oddity* can
be so, and is worth a look: a clip whose features are all zero may be silent, or its decoding went wrong.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avpipe.pipeline import shards
from avpipe.pipeline.errors import CorruptShardError, StoreError
from avpipe.pipeline.features import STATUSES, Segments
from avpipe.pipeline.shards import Mark, Problem, ShardPlan
from avpipe.pipeline.store import Reader, TextReader, open_reader

OUTLIER_SPREADS = 6.0
LEAST_SPREAD = 0.05
"""Of the logarithms of the norms: so a norm within 35 % of the median is never an outlier, however alike the others."""
LEAST_CLIPS = 10
"""Fewer say nothing about what is usual."""
USUAL_SHARE = 0.9
DEFAULT_WINDOW_SECONDS = 1.0
REPETITIVE_RATIO = 2.4
"""Text that shrinks by more is repetitive: the measure of OpenAI's Whisper, and its threshold."""
REPETITIVE_BYTES = 80
_BLOCK_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Oddity:
    """A clip that is not as the others, or not as one expects.

    Attributes:
        clip_id: of the clip; "" where it is about all of them.
        kind: ``"arithmetic"``, ``"zero"``, ``"constant"``, ``"norm"``, ``"times"``, ``"order"`` or ``"repetition"``.
        reason: for a person.
    """

    clip_id: str
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"{self.clip_id}: {self.reason}" if self.clip_id else self.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a check found in one feature set.

    Attributes:
        expected: how many clips the manifest has.
        counts: of those, how many have an outcome, by status; what lies in shards with problems does not count.
        problems: what cannot be so.
        oddities: what is worth a look; but for mixed arithmetic, empty unless the check was deep.
        facts: what a deep check measured: ``rows``, ``median_norm``; of text, ``empty_share``, ``repetitive_share``.
    """

    expected: int
    counts: Mapping[str, int]
    problems: tuple[Problem, ...]
    oddities: tuple[Oddity, ...] = ()
    facts: Mapping[str, float] = field(default_factory=dict)

    @property
    def missing(self) -> int:
        """How many clips no sound shard says anything about."""
        return self.expected - sum(self.counts.values())

    @property
    def is_whole(self) -> bool:
        """Whether nothing is wrong. A clip that failed is accounted for, and no problem."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON-ready values."""
        return {
            "whole": self.is_whole,
            "expected": self.expected,
            "counts": dict(self.counts),
            "missing": self.missing,
            "problems": [str(problem) for problem in self.problems],
            "warnings": [{"clip_id": odd.clip_id, "kind": odd.kind, "reason": odd.reason} for odd in self.oddities],
            "facts": dict(self.facts),
        }


def check(
    folder: Path,
    plans: Sequence[ShardPlan],
    *,
    deep: bool = False,
    durations: Mapping[str, float] | None = None,
    on_shard: Callable[[], None] = lambda: None,
) -> Report:
    """Check a feature set. Changes nothing.

    Args:
        folder: of the feature set.
        plans: how the manifest is cut.
        deep: read every shard, several at a time; memory holds one clip of each, and a few numbers of every clip.
        durations: of the clips, in seconds, where the manifest knows them.
        on_shard: called whenever a deep check is done with one of the finished shards.

    Raises:
        StoreError: the folder cannot be read.
    """
    problems = shards.verify(folder, deep=False)
    accused = {Path(problem.file).stem for problem in problems}
    found = shards.whole_marks(folder)
    problems += _against_manifest(found, plans, accused)
    accused |= {Path(problem.file).stem for problem in problems}
    sound = [mark for name, mark in found.items() if name not in accused]
    findings = list(_examine_all(folder, sound, durations or {}, on_shard)) if deep else []
    problems += [problem for finding in findings for problem in finding.problems]
    broken = {problem.file for problem in problems}
    outcomes = Counter(outcome.status for mark in sound if mark.file not in broken for outcome in mark.outcomes)
    return Report(
        expected=sum(len(plan.clip_ids) for plan in plans),
        counts={status: outcomes[status] for status in STATUSES},
        problems=tuple(sorted(problems, key=lambda problem: problem.file)),
        oddities=(*_mixture(list(found.values())), *_oddities(findings)),
        facts=_facts(findings) if deep else {},
    )


def _against_manifest(found: Mapping[str, Mark], plans: Sequence[ShardPlan], accused: set[str]) -> Iterator[Problem]:
    """Shards that the manifest does not plan, and planned ones that are not there."""
    by_name = {plan.name: plan for plan in plans}
    for name, mark in found.items():
        planned = by_name.get(name)
        if name not in accused and (planned is None or planned.clip_ids_sha256 != mark.clip_ids_sha256):
            expected = f"{len(planned.clip_ids)} clips" if planned else "no such shard"
            yield Problem(
                mark.file,
                f"was made for other clips ({len(mark.outcomes)}; the manifest now has {expected} there): the manifest "
                f"changed after the extraction",
            )
    lacking = [plan for plan in plans if plan.name not in found and plan.name not in accused]
    for run in _runs(lacking):
        names = run[0].name if len(run) == 1 else f"{run[0].name} to {run[-1].name}"
        clips = sum(len(plan.clip_ids) for plan in run)
        yield Problem(
            names,
            f"{len(run)} of {len(plans)} shards, with {clips} clips: not extracted yet; `avpipe extract` goes on",
        )


def _runs(plans: Sequence[ShardPlan]) -> Iterator[list[ShardPlan]]:
    """Plans that follow one another, together."""
    start = 0
    for i, (one, next_one) in enumerate(pairwise(plans), start=1):
        if next_one.index != one.index + 1:
            yield list(plans[start:i])
            start = i
    if plans:
        yield list(plans[start:])


# -- one shard ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Finding:
    """What a deep check found in one shard.

    Attributes:
        file: name of the shard.
        norms: of each clip, the median and the largest norm of the rows of its plain view.
        ascends: of each clip with several rows, whether their times ascend.
        rows: how many.
        texts: how many; of those ``empty`` and ``repetitive``.
    """

    file: str
    problems: list[Problem] = field(default_factory=list)
    oddities: list[Oddity] = field(default_factory=list)
    norms: dict[str, tuple[float, float]] = field(default_factory=dict)
    ascends: dict[str, bool] = field(default_factory=dict)
    rows: int = 0
    texts: Counter[str] = field(default_factory=Counter)

    def wrong(self, reason: str) -> None:
        self.problems.append(Problem(self.file, reason))

    def odd(self, clip_id: str, kind: str, reason: str) -> None:
        self.oddities.append(Oddity(clip_id, kind, reason))


def _examine_all(
    folder: Path, marks: Sequence[Mark], durations: Mapping[str, float], on_shard: Callable[[], None]
) -> Iterator[_Finding]:
    """In threads: hashing, reading and arithmetic all let go of the interpreter."""
    pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="check")
    try:
        for finding in pool.map(lambda mark: _examine(folder, mark, durations), marks):
            on_shard()
            yield finding
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, what is under way ends and nothing else begins


def _examine(folder: Path, mark: Mark, durations: Mapping[str, float]) -> _Finding:
    finding = _Finding(mark.file)
    try:
        if fault := shards.byte_fault(folder, mark):
            finding.wrong(fault)
            return finding
        reader = open_reader(folder / mark.file, mark.sha256)
    except StoreError as error:  # one unreadable shard is no reason not to look at the others
        finding.wrong(str(error))
        return finding
    expected = tuple(outcome.clip_id for outcome in mark.outcomes if outcome.status == "ok")
    if reader.spec.fingerprint != mark.fingerprint:
        finding.wrong(f"holds features {reader.spec.fingerprint}, its completion mark says {mark.fingerprint}")
    elif reader.clip_ids != expected:
        finding.wrong(
            f"its index names {len(reader.clip_ids)} clips, its completion mark {len(expected)} with features; they "
            f"must be the same, in the same order"
        )
    elif isinstance(reader, TextReader):
        for clip_id in expected:
            _examine_text(finding, clip_id, reader.segments(clip_id), durations.get(clip_id))
    else:
        for clip_id in expected:
            try:
                _examine_rows(finding, clip_id, reader, durations.get(clip_id))
            except (CorruptShardError, ValueError) as error:  # an index that makes no sense
                finding.wrong(f"clip {clip_id!r}: its rows cannot be read ({error})")
    return finding


def _examine_rows(finding: _Finding, clip_id: str, reader: Reader, duration: float | None) -> None:
    window = float(reader.spec.clock.get("window_seconds", DEFAULT_WINDOW_SECONDS))
    views = reader.spec.views
    for view in range(views):
        features = reader.read(clip_id, view)
        where = f" of view {view}" if view else ""
        data, times = features.data, features.pts_seconds
        norms = _row_norms(data)
        count = len(norms)
        finding.rows += count
        not_finite, zero = int((~np.isfinite(norms)).sum()), int((norms == 0).sum())
        if not_finite:
            finding.wrong(f"clip {clip_id!r}: NaN or infinity in {not_finite} of {count} rows{where}")
            continue
        if zero:
            finding.odd(clip_id, "zero", f"{zero} of {count} rows{where} are all zero")
        elif (data[0] == data[0, 0]).all() and (data == data[0, 0]).all() and data.size > 1:
            finding.odd(clip_id, "constant", f"every value{where} is {data[0, 0]:g}")
        elif count > 1 and (data[0] == data[-1]).all() and (data == data[0]).all():
            finding.odd(clip_id, "constant", f"all {count} rows{where} are the same")
        if not view:
            finding.norms[clip_id] = (float(np.median(norms)), float(norms.max()))
        if not np.isfinite(times).all():
            finding.wrong(f"clip {clip_id!r}: NaN or infinity in the times of its rows{where}")
            continue
        _examine_times(finding, clip_id, float(times.min()), float(times.max()), window, duration)
        if count > 1:
            finding.ascends[clip_id] = finding.ascends.get(clip_id, True) and bool((np.diff(times) >= 0).all())


def _row_norms(data: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """``(T,)``; NaN or infinite where something in the row is. Block by block: clips may have many rows."""
    starts = range(0, len(data), _BLOCK_ROWS)
    blocks = (data[start : start + _BLOCK_ROWS].astype(np.float64) for start in starts)
    return np.concatenate([np.sqrt(np.einsum("td,td->t", block, block)) for block in blocks])


def _examine_times(
    finding: _Finding, clip_id: str, first: float, last: float, window: float, duration: float | None
) -> None:
    """Times are the middles of windows, and media files end when they like: a window's slack on either side."""
    if first < -window:
        finding.odd(clip_id, "times", f"begins at {first:.3f} s, before the clip does")
    if duration is not None and last > duration + window:
        finding.odd(clip_id, "times", f"reaches to {last:.3f} s, the clip only to {duration:.3f} s")


def _examine_text(finding: _Finding, clip_id: str, segments: Segments, duration: float | None) -> None:
    """Their order was checked when they were read."""
    finding.texts["all"] += 1
    if not segments.text:
        finding.texts["empty"] += 1
        return
    content = segments.text.encode()
    ratio = len(content) / len(zlib.compress(content))
    if len(content) >= REPETITIVE_BYTES and ratio > REPETITIVE_RATIO:
        finding.texts["repetitive"] += 1
        finding.odd(clip_id, "repetition", f"repeats itself (compresses {ratio:.1f} times): {segments.text[:60]!r} ...")
    last = max(segment.stop_seconds for segment in segments.items)
    _examine_times(finding, clip_id, 0.0, last, DEFAULT_WINDOW_SECONDS, duration)


# -- all shards together -----------------------------------------------------------------------------------------------


def _mixture(found: Sequence[Mark]) -> Iterator[Oddity]:
    """Shards that were computed on devices of different kinds."""
    if mixed := shards.mixture(found):
        reason = f"shards were computed on different devices ({mixed}): features differ by about 1 % between them"
        yield Oddity("", "arithmetic", reason)


def _oddities(findings: Sequence[_Finding]) -> list[Oddity]:
    """Those of the shards, and the clips that are unlike the others."""
    norms = {clip_id: pair for finding in findings for clip_id, pair in finding.norms.items()}
    ascends = {clip_id: rises for finding in findings for clip_id, rises in finding.ascends.items()}
    found = [odd for finding in findings for odd in finding.oddities]
    return [*found, *norm_outliers(norms), *_disordered(ascends)]


def norm_outliers(norms: Mapping[str, tuple[float, float]]) -> list[Oddity]:
    """Clips whose median row norm, or largest row norm, is far from what it is in the others.

    Like is compared with like, for transformers have a few rows of huge norm in every clip. The middle is the median,
    the spread the median absolute deviation (as a standard deviation), both of the logarithms: neither is moved by the
    outliers themselves.

    Args:
        norms: of each clip, the median and the largest norm of its rows.
    """
    worst: dict[str, tuple[float, Oddity]] = {}
    for position, what in enumerate(("median", "largest")):
        values = {clip_id: pair[position] for clip_id, pair in norms.items() if pair[position] > 0}
        if len(values) < LEAST_CLIPS:
            continue
        logs = np.log(list(values.values()))
        middle = np.median(logs)
        spread = max(1.4826 * float(np.median(np.abs(logs - middle))), LEAST_SPREAD)
        for (clip_id, value), away in zip(values.items(), np.abs(logs - middle) / spread, strict=True):
            if away > OUTLIER_SPREADS and away > worst.get(clip_id, (0.0, None))[0]:
                reason = f"{what} row norm {value:.4g}, usual is {np.exp(middle):.4g} ({away:.0f} spreads away)"
                worst[clip_id] = float(away), Oddity(clip_id, "norm", reason)
    return [oddity for _, oddity in sorted(worst.values(), key=lambda pair: -pair[0])]


def _disordered(ascends: Mapping[str, bool]) -> Iterable[Oddity]:
    """Clips whose row times do not ascend, where those of nearly all others do. (Some encoders tile time.)"""
    if len(ascends) >= LEAST_CLIPS and sum(ascends.values()) / len(ascends) >= USUAL_SHARE:
        reason = "the times of its rows do not ascend, as those of the others do"
        return [Oddity(clip_id, "order", reason) for clip_id, rises in ascends.items() if not rises]
    return []


def _facts(findings: Sequence[_Finding]) -> dict[str, float]:
    texts = sum((finding.texts for finding in findings), Counter[str]())
    if texts:
        return {f"{kind}_share": texts[kind] / texts["all"] for kind in ("empty", "repetitive")}
    medians = [median for finding in findings for median, _ in finding.norms.values()]
    norm = {"median_norm": float(np.median(medians))} if medians else {}
    return {"rows": sum(finding.rows for finding in findings), **norm}
