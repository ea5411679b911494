"""Compare systems that were scored on the same clips: :func:`compare`, and what it says: :class:`Comparison`.

::

    reports = {"ours": [first_seed, second_seed], "theirs": theirs}      # of Scorer.score
    comparison = compare(reports, baseline="theirs")
    comparison.differences[0].p_holm

How the tests work and what they claim: :mod:`avpipe.eval.statistics`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from avpipe.eval.metric import aggregate, direction, find_metrics, is_of_the_set
from avpipe.eval.scores import ScoreReport
from avpipe.pipeline.errors import ScoringError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from avpipe.eval.statistics import Draws, Sample

Test = Literal["bootstrap", "randomisation"]
TESTS: Mapping[str, str] = {"bootstrap": "paired bootstrap", "randomisation": "approximate randomisation"}
RESAMPLES = 10_000
HOW_INTERVALS = f"intervals hold 95 %: bootstrap of the clips, {RESAMPLES:,} resamples, seed 0"
"""What is said below intervals that were made without another word."""
FEW_CLIPS = 50
"""With fewer, percentile intervals are too narrow to be silent about."""
FEW_SEEDS = 4
"""With fewer, there are less than three degrees of freedom to judge by how seeds vary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One score of one system.

    Attributes:
        score: the mean over seeds; ``None``: could not be computed.
        low: lower end of its interval; ``None``: it belongs to the set of captions as a whole, and has none.
        high: upper end.
        seeds: the score of each seed.
    """

    score: float | None
    low: float | None
    high: float | None
    seeds: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One score of one system less that of another.

    Attributes:
        system: its name.
        baseline: whose score is taken off.
        metric: name of the score.
        difference: of the scores.
        low: lower end of its interval.
        high: upper end.
        p: two-sided.
        p_holm: corrected for the number of comparisons of this metric.
        significant: ``p_holm`` is below alpha.
        detectable: the smallest difference that the test would find with a power of 80 %, uncorrected.
        wins: clips where the system does better; with several seeds by their mean. ``None``, as the next two: neither
            more nor less of this score is better.
        ties: clips with the same score.
        losses: clips where the baseline does better.
    """

    system: str
    baseline: str
    metric: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    significant: bool
    detectable: float
    wins: int | None
    ties: int | None
    losses: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What :func:`compare` found.

    Attributes:
        systems: number of seeds, by name.
        baseline: that the others are compared with; empty: all pairs are.
        standings: by system, then by score.
        differences: metric by metric.
        reasons: why a score is missing, by name.
        signatures: by score.
        metric_versions: what of its signature each score has beside the protocol.
        protocol: see :class:`avpipe.eval.ScoreReport`.
        test: which.
        resamples: how many.
        seed: of the random numbers.
        alpha: level of the tests; 1 - alpha is the coverage of the intervals.
        clips: how many the scores are over.
        notes: what a reader should know.
    """

    systems: Mapping[str, int]
    baseline: str
    standings: Mapping[str, Mapping[str, Standing]]
    differences: tuple[Difference, ...]
    reasons: Mapping[str, str]
    signatures: Mapping[str, str]
    metric_versions: Mapping[str, str]
    protocol: str
    test: Test
    resamples: int
    seed: int
    alpha: float
    clips: int
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Every score asked for could be computed."""
        return not self.reasons

    @property
    def method(self) -> str:
        """One line that says what was done, to stand below a table."""
        seeds = set(self.systems.values()) != {1}
        what = f"{self.clips:,} clips{' and of seeds' if seeds else ''}"
        family = len(self.differences) // max(len({each.metric for each in self.differences}), 1)
        return (
            f"{TESTS[self.test]}, {self.resamples:,} resamples of {what}, seed {self.seed}; "
            f"intervals hold {100 * (1 - self.alpha):g} %; p is two-sided, corrected by Holm over the "
            f"{family} comparison{'' if family == 1 else 's'} of each metric; * p (Holm) < {self.alpha:g}; near that "
            f"level p and an interval may disagree, for intervals are percentiles of the bootstrap, and p is of "
            f"{'shifted differences' if self.test == 'bootstrap' else 'exchanged captions'}"
        )

    @property
    def claim(self) -> str:
        """What a significant difference says, in one line."""
        if set(self.systems.values()) == {1}:
            return "one checkpoint a system: what is claimed is about these checkpoints, not about another seed's"
        counts = ", ".join(f"{name} {count}" for name, count in self.systems.items())
        alone = [name for name, count in self.systems.items() if count == 1]
        more = ""
        if alone:
            more += f"; {', '.join(alone)}: one seed, whose interval is over clips only, and which in a difference is "
            more += "taken to vary as the other system does: if it varies more, p is too small"
        if any(each.system in alone and each.baseline in alone for each in self.differences):
            more += "; between two systems of one seed it is about these checkpoints"
        return f"several seeds ({counts}): what is claimed is about the trainings, whatever the seed{more}"

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON-ready values."""
        return {**asdict(self), "method": self.method, "claim": self.claim}


def compare(
    systems: Mapping[str, ScoreReport | Sequence[ScoreReport]],
    *,
    baseline: str = "",
    all_pairs: bool = False,
    test: Test = "bootstrap",
    resamples: int = RESAMPLES,
    seed: int = 0,
    alpha: float = 0.05,
) -> Comparison:
    """Test the differences of systems that were scored on the same clips against the same references.

    Args:
        systems: the report of each, or one of each seed.
        baseline: that the others are compared with; default: the first.
        all_pairs: compare every system with every other one instead.
        test: see :mod:`avpipe.eval.statistics`. Intervals are of the bootstrap in either case.
        resamples: how many.
        seed: of the random numbers; the same gives the same digits, in whatever order systems and clips come.
        alpha: level of the tests.

    Raises:
        UsageError: settings that cannot be meant: see :func:`check_settings`.
        ScoringError: the systems were not scored alike or on the same clips, or there is a single clip.
    """
    from avpipe.eval.statistics import bootstrap_metrics, contrast, holm, randomisation

    reports = {name: _several(found) for name, found in systems.items()}
    seeds = {name: len(several) for name, several in reports.items()}
    check_settings(
        seeds, baseline=baseline, all_pairs=all_pairs, test=test, resamples=resamples, seed=seed, alpha=alpha
    )
    check_alike(reports)
    first = next(iter(reports.values()))[0]
    pairs = pairs_of(list(reports), baseline=baseline, all_pairs=all_pairs)
    samples = {name: samples_of(several, sorted(first.per_clip)) for name, several in reports.items()}
    modules = [module for module in find_metrics(first.scores) if all(module in found for found in samples.values())]
    by_module = [[found[module] for found in samples.values()] for module in modules]
    drawn = bootstrap_metrics(by_module, resamples=resamples, seed=seed) if modules else []
    draws = {
        module: dict(zip(samples, of_systems, strict=True)) for module, of_systems in zip(modules, drawn, strict=True)
    }
    differences: list[Difference] = []
    for module in modules:
        contrasts = [contrast(draws[module][name], draws[module][other], alpha) for name, other in pairs]
        p = [found.p for found in contrasts]
        if test == "randomisation":
            both = [(samples[name][module], samples[other][module]) for name, other in pairs]
            p = randomisation(both, resamples=resamples, seed=seed)
        for index, metric in enumerate(_names(module)):
            corrected = holm([float(each[index]) for each in p])
            for (name, other), found, own, its in zip(pairs, contrasts, p, corrected, strict=True):
                better = direction(module)
                of_clips = wins_of(reports[name], reports[other], metric, better) if better else (None, None, None)
                wins, ties, losses = of_clips
                differences.append(
                    Difference(
                        system=name,
                        baseline=other,
                        metric=metric,
                        difference=float(found.difference[index]),
                        low=float(found.low[index]),
                        high=float(found.high[index]),
                        p=float(own[index]),
                        p_holm=its,
                        significant=its < alpha,
                        detectable=float(found.detectable[index]),
                        wins=wins,
                        ties=ties,
                        losses=losses,
                    )
                )
    return Comparison(
        systems=seeds,
        baseline="" if all_pairs else baseline or next(iter(reports)),
        standings={name: _standings(name, several, draws, alpha) for name, several in reports.items()},
        differences=tuple(differences),
        reasons=_reasons(reports),
        signatures={name: first.signature(name) for name in first.scores},
        metric_versions=dict(first.metric_versions),
        protocol=first.protocol,
        test=test,
        resamples=resamples,
        seed=seed,
        alpha=alpha,
        clips=first.scored,
        notes=(
            *_notes(first),
            *_about_seeds(seeds),
            *(f"{name}: {note}" for name, several in reports.items() for note in _own(several)),
        ),
    )


def check_settings(
    seeds: Mapping[str, int],
    *,
    baseline: str = "",
    all_pairs: bool = False,
    test: str = "bootstrap",
    resamples: int = RESAMPLES,
    seed: int = 0,
    alpha: float = 0.05,
) -> None:
    """What can be known to be wrong before anything is scored.

    Args:
        seeds: how many each system has, by name.
        baseline: see :func:`compare`, as the others.
        all_pairs: likewise.
        test: likewise.
        resamples: likewise.
        seed: likewise.
        alpha: likewise.

    Raises:
        UsageError: fewer than two systems, or one without a checkpoint; a baseline beside ``all_pairs``; a
            randomisation of several seeds; no level; so few resamples that nothing could be significant.
        UnknownNameError: no system or test of that name.
    """
    if len(seeds) < 2:
        raise UsageError(f"compare: expected at least two systems, got {', '.join(seeds) or 'none'}")
    empty = [name for name, count in seeds.items() if not count]
    if empty:
        raise UsageError(f"compare: expected at least one set of captions a system, got none of {', '.join(empty)}")
    if test not in TESTS:
        raise UnknownNameError("test", test, TESTS)
    if baseline and all_pairs:
        raise UsageError(f"compare: all pairs have no baseline; got both --all-pairs and --baseline {baseline}")
    if baseline and baseline not in seeds:
        raise UnknownNameError("system", baseline, seeds, "The baseline is one of the systems that are compared")
    several = [name for name, count in seeds.items() if count > 1]
    if test == "randomisation" and several:
        raise UsageError(
            f"compare: randomisation exchanges two systems' captions clip by clip and knows nothing of seeds; got "
            f"several seeds of {', '.join(several)}. Try: --test bootstrap, which resamples seeds too"
        )
    if not 0 < alpha < 1:
        raise UsageError(f"compare: alpha: expected a level between 0 and 1, as 0.05, got {alpha:g}")
    if seed < 0:
        raise UsageError(f"compare: seed: expected 0 or more, got {seed}")
    family = len(seeds) * (len(seeds) - 1) // 2 if all_pairs else len(seeds) - 1
    if not family / (resamples + 1) < alpha:
        raise UsageError(
            f"compare: resamples: with {resamples} the smallest p, corrected for {family} comparisons, is "
            f"{min(family / (max(resamples, 0) + 1), 1):.2g}, never below alpha = {alpha:g}. Try: {RESAMPLES}"
        )


def check_alike(systems: Mapping[str, Sequence[ScoreReport]]) -> None:
    """Systems can be compared if they were scored alike, on the same clips.

    Raises:
        ScoringError: they were not; what differs is named.
    """
    flat = {
        name if len(several) == 1 else f"{name} (number {number} of {len(several)})": report
        for name, several in systems.items()
        for number, report in enumerate(several, start=1)
    }
    (first_name, first), *others = flat.items()
    for name, report in others:
        both = [metric for metric in first.scores if None not in (first.scores[metric], report.scores.get(metric))]
        for what, one, other in (
            ("references", first.references_sha256[:8], report.references_sha256[:8]),
            ("scores", ", ".join(first.scores), ", ".join(report.scores)),
            ("what a missing caption means", first.missing_policy, report.missing_policy),
            ("tokeniser", first.tokeniser, report.tokeniser),
            ("versions of metrics", _versions(first, both), _versions(report, both)),
            ("versions of packages", dict(first.versions), dict(report.versions)),
        ):
            if one != other:
                raise ScoringError(f"{first_name} and {name} were not scored alike: {what}: {one} against {other}")
    check_clips({name: report.per_clip for name, report in flat.items()})


def check_clips(captioned: Mapping[str, Collection[str]]) -> None:
    """Systems can be compared on the same clips, of which there must be two.

    Args:
        captioned: ids of what is scored, by what to call it.

    Raises:
        ScoringError: they are others; which is said.
    """
    (first_name, first), *others = captioned.items()
    for name, ids in others:
        apart = sorted(set(first) ^ set(ids))
        if apart:
            more = f" and {len(apart) - 10} more" if len(apart) > 10 else ""
            raise ScoringError(
                f"{first_name} and {name} were scored on other clips: {len(apart)} are of one of them only: "
                f"{', '.join(apart[:10])}{more}. Try: --missing empty, which leaves no clip out"
            )
    if len(first) < 2:
        raise ScoringError("compare: expected at least two clips, got one: nothing can be said of others by it")


def pairs_of(names: Sequence[str], *, baseline: str = "", all_pairs: bool = False) -> list[tuple[str, str]]:
    """Which systems are compared with which, the baseline second; of all pairs, the earlier one."""
    if all_pairs:
        return [(later, earlier) for earlier, later in combinations(names, 2)]
    baseline = baseline or names[0]
    return [(name, baseline) for name in names if name != baseline]


def samples_of(reports: Sequence[ScoreReport], clip_ids: Sequence[str]) -> dict[str, Sample]:
    """What can be resampled of one system, by metric module.

    Args:
        reports: of each seed.
        clip_ids: all that were scored, in the order wanted.
    """
    import numpy as np

    from avpipe.eval.statistics import Sample

    found: dict[str, Sample] = {}
    for module in find_metrics(reports[0].scores):
        names = _names(module)
        if is_of_the_set(module) or any(report.scores[name] is None for report in reports for name in names):
            continue
        if module not in reports[0].statistics:
            scores = [
                [[report.per_clip[clip_id][name] for name in names] for clip_id in clip_ids] for report in reports
            ]
            found[module] = Sample.of_means(np.array(scores, dtype=np.float64))
            continue
        values = []
        for report in reports:
            place = {clip_id: row for row, clip_id in enumerate(report.per_clip)}
            values.append(report.statistics[module][[place[clip_id] for clip_id in clip_ids]])
        found[module] = Sample(
            values=np.stack(values),
            score=lambda sums, module=module, names=names: np.column_stack(  # type: ignore[misc]
                [aggregate(module, sums)[name] for name in names]
            ),
        )
    return found


def intervals(
    report: ScoreReport, *, resamples: int = RESAMPLES, seed: int = 0, alpha: float = 0.05
) -> dict[str, tuple[float, float]]:
    """Bootstrap intervals of the scores of one report, by name; of those that can be resampled.

    Raises:
        ScoringError: there is a single clip.
    """
    from avpipe.eval.statistics import bootstrap_metrics

    if report.scored < 2:
        raise ScoringError("intervals: expected at least two clips, got one: nothing can be said of others by it")
    samples = samples_of([report], sorted(report.per_clip))
    if not samples:
        return {}
    drawn = bootstrap_metrics([[sample] for sample in samples.values()], resamples=resamples, seed=seed)
    ends = {module: of_system[0].interval(alpha) for module, of_system in zip(samples, drawn, strict=True)}
    return {
        name: (float(low[index]), float(high[index]))
        for module, (low, high) in ends.items()
        for index, name in enumerate(_names(module))
    }


def wins_of(
    own: Sequence[ScoreReport], their: Sequence[ScoreReport], metric: str, better: int = 1
) -> tuple[int, int, int]:
    """Clips where a system does better, as well, and worse than another; with several seeds by their means.

    Args:
        own: reports of the system.
        their: of the other.
        metric: name of a score.
        better: -1 where less is better.
    """
    apart = [better * value for value in clip_differences(own, their, metric).values()]
    wins, losses = sum(value > 0 for value in apart), sum(value < 0 for value in apart)
    return wins, len(apart) - wins - losses, losses


def clip_differences(own: Sequence[ScoreReport], their: Sequence[ScoreReport], metric: str) -> dict[str, float]:
    """A score of one system less another's, by clip; with several seeds of their means. Rounding is no difference."""

    def mean(reports: Sequence[ScoreReport], clip_id: str) -> float:
        return sum(report.per_clip[clip_id][metric] for report in reports) / len(reports)

    apart = {clip_id: mean(own, clip_id) - mean(their, clip_id) for clip_id in own[0].per_clip}
    return {clip_id: value if abs(value) > 1e-9 else 0.0 for clip_id, value in apart.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A clip on which two systems differ.

    Attributes:
        clip_id: which.
        metric: by which score.
        system: its name.
        baseline: the other's.
        difference: of the clip's scores.
        captions: of each seed, by system.
        references: of the clip.
    """

    clip_id: str
    metric: str
    system: str
    baseline: str
    difference: float
    captions: Mapping[str, tuple[str, ...]]
    references: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON-ready values."""
        return asdict(self)


def examples(
    systems: Mapping[str, ScoreReport | Sequence[ScoreReport]],
    references: Mapping[str, Sequence[str]],
    *,
    system: str,
    baseline: str,
    metric: str,
    count: int,
) -> tuple[Example, ...]:
    """The clips where a system does most better than another, and then those where it does most worse.

    Of a score of which neither more nor less is better: where it has most more, and most less.

    Args:
        systems: see :func:`compare`.
        references: of all clips.
        system: one of them.
        baseline: another one.
        metric: name of a score.
        count: how many of each kind; clips that do not differ are none.
    """
    reports = {name: _several(systems[name]) for name in (system, baseline)}
    apart = clip_differences(reports[system], reports[baseline], metric)
    (module,) = find_metrics([metric])
    sign = direction(module) or 1
    ordered = sorted(apart, key=lambda clip_id: -sign * apart[clip_id])
    better = [clip_id for clip_id in ordered[:count] if sign * apart[clip_id] > 0]
    worse = [clip_id for clip_id in ordered[::-1][:count] if sign * apart[clip_id] < 0]
    return tuple(
        Example(
            clip_id=clip_id,
            metric=metric,
            system=system,
            baseline=baseline,
            difference=apart[clip_id],
            captions={name: tuple(report.captions[clip_id] for report in found) for name, found in reports.items()},
            references=tuple(references[clip_id]),
        )
        for clip_id in (*better, *worse)
    )


def _versions(report: ScoreReport, metrics: Sequence[str]) -> dict[str, str]:
    return {name: report.metric_versions[name] for name in metrics}


def _several(found: ScoreReport | Sequence[ScoreReport]) -> list[ScoreReport]:
    return [found] if isinstance(found, ScoreReport) else list(found)


def _names(module: str) -> tuple[str, ...]:
    return find_metrics([module])[module].NAMES


def _standings(
    system: str, reports: Sequence[ScoreReport], draws: Mapping[str, Mapping[str, Draws]], alpha: float
) -> dict[str, Standing]:
    ends: dict[str, tuple[float, float]] = {}
    for module, by_system in draws.items():
        low, high = by_system[system].interval(alpha)
        ends |= {name: (float(low[index]), float(high[index])) for index, name in enumerate(_names(module))}
    standings = {}
    for name in reports[0].scores:
        seeds = [score for report in reports if (score := report.scores[name]) is not None]
        whole = sum(seeds) / len(seeds) if len(seeds) == len(reports) else None
        low_end, high_end = ends.get(name, (None, None))
        standings[name] = Standing(score=whole, low=low_end, high=high_end, seeds=tuple(seeds))
    return standings


def _notes(report: ScoreReport) -> list[str]:
    whole = [name for module in find_metrics(report.scores) if is_of_the_set(module) for name in _names(module)]
    notes = [f"{', '.join(whole)}: of the set of captions as a whole, hence not tested"] if whole else []
    return [*notes, *about_few(report.scored, ", and p values too small")]


def about_few(clips: int, more: str = "") -> list[str]:
    """What to say below intervals that were made of few clips; nothing of enough."""
    return [f"{clips} clips are few: intervals are too narrow{more}"] if clips < FEW_CLIPS else []


def _about_seeds(seeds: Mapping[str, int]) -> list[str]:
    few = [f"{name} {count}" for name, count in seeds.items() if 1 < count < FEW_SEEDS]
    if not few:
        return []
    return [f"fewer than {FEW_SEEDS} seeds ({', '.join(few)}): intervals are wide, and may leave the scale"]


def _reasons(systems: Mapping[str, Sequence[ScoreReport]]) -> dict[str, str]:
    """Why a score is missing, by its name; and of which systems, where it is not all that lack it for one reason."""
    found: dict[str, dict[str, list[str]]] = {}
    for system, several in systems.items():
        for report in several:
            for metric, reason in report.reasons.items():
                found.setdefault(metric, {}).setdefault(reason, []).append(system)
    total = sum(map(len, systems.values()))
    return {
        metric: "; ".join(
            reason if len(lacking) == total else f"{', '.join(dict.fromkeys(lacking))}: {reason}"
            for reason, lacking in by_reason.items()
        )
        for metric, by_reason in found.items()
    }


def _own(reports: Sequence[ScoreReport]) -> list[str]:
    return list(dict.fromkeys(note for report in reports for note in report.notes))
