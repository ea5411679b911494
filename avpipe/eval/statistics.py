"""Is a difference between systems real? Intervals and tests on the clips' scores, by resampling.

What is resampled are clips, the same for all systems and metrics, so comparisons are paired. Of a metric whose corpus
score is a mean, the clips' scores are what is drawn; of one like BLEU, the counts that its corpus score is made of
(``MetricResult.statistics``). Nothing is scored again: CIDEr's document frequencies stay those of all references.

- **Bootstrap** (Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979; Efron and Tibshirani, "An Introduction
  to the Bootstrap", 1993): as many clips are drawn as there are, with replacement. Percentiles of what comes out are
  an interval. As a test of a difference (paired bootstrap: Koehn, "Statistical Significance Tests for Machine
  Translation Evaluation", EMNLP 2004) the resampled differences are shifted to be about 0, which is what the null
  hypothesis says (Noreen, "Computer-Intensive Methods for Testing Hypotheses", 1989; Riezler and Maxwell, "On Some
  Pitfalls in Automatic Evaluation and Significance Testing for MT", 2005)::

      p = (1 + #{|resampled difference - difference| >= |difference|}) / (1 + resamples)

- **Approximate randomisation** (Noreen 1989; Riezler and Maxwell 2005): if both systems were the same, it would not
  matter which of them a caption is from. Each clip's two captions change places or not, at random::

      p = (1 + #{|difference after the change| >= |difference|}) / (1 + resamples)

Both are two-sided, and the 1 counts what was observed as one of the resamples, without which p could be 0. Graham,
Mathur and Baldwin, "Randomized Significance Tests in Machine Translation", WMT 2014, found very little difference in
how often such tests agree with people.

**Seeds.** With one checkpoint a system, the claim is about these checkpoints on clips like these. With several, trained
alike but for the seed, it is about the training: another seed would give another checkpoint. Resampling is then
hierarchical, clips and seeds. Clips are drawn as above. Three or five seeds cannot be drawn from one another: three
have ten different resamples, whose variance is too small by a third, and the test would cry wolf (measured:
benchmarks/significance.py). So seeds are drawn from a normal distribution, whose variance is not known and drawn too
(a generalised confidence interval of variance components: Tsui and Weerahandi, 1989; Weerahandi, 1993). For a resample,
with m_s the corpus score of a checkpoint, S its system's number of seeds, nu = sum (S - 1) over the systems, and v that
part of the scores' variance about their system's mean that is due to the choice of clips (from the bootstrap)::

    w        = sum (m_s - mean of its system)^2 / chi^2(nu)       plausible variance of checkpoints of one system
    resample = mean of the seeds' scores on the drawn clips + normal(0, max(0, w - v) / S)

Without effects of clips that is Student's t test with nu degrees of freedom; v is taken off because the drawn clips
bring it in already. Assumed: seeds make scores differ normally, and by as much in every system. So systems may have
different numbers of seeds, and one that has a single seed is taken to vary as the others do. Where that is not so,
equal numbers of seeds still keep false alarms at 5 %; with three and five they were 9 % where the system of three
varied four times as much, and 3 % the other way round (measured there too).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

POWER = 0.8
"""With which the smallest detectable difference would be detected."""

_BLOCK = 4_000_000
"""Drawn clips at a time: 32 MB of each of a few arrays, however many clips and resamples there are."""

_SAME = 1e-12
"""Differences that differ by less, relative to the scores, are the same: sums depend on the order of their terms."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """What one metric says of one system, clip by clip, in a form that can be resampled.

    Attributes:
        values: ``(seeds, clips, k)``: what is summed over clips.
        score: of sums over as many clips as there are, ``(samples, k)``: the corpus scores, ``(samples, names)``.
    """

    values: Floats
    score: Callable[[Floats], Floats]

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or 0 in self.values.shape:
            raise ValueError(f"values: expected (seeds, clips, k), none of them 0, got {self.values.shape}")

    @classmethod
    def of_means(cls, scores: Floats) -> Sample:
        """Of scores of clips whose mean is the corpus score: ``(seeds, clips, names)``."""
        clips = scores.shape[1]
        return cls(values=scores, score=lambda sums: sums / clips)

    @property
    def seeds(self) -> int:
        """How many checkpoints."""
        return int(self.values.shape[0])

    @property
    def clips(self) -> int:
        """How many clips."""
        return int(self.values.shape[1])

    def observed(self) -> Floats:
        """Corpus scores of each seed, ``(seeds, names)``."""
        return self.score(self.values.sum(axis=1))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draws:
    """Resampled corpus scores of one system, to be compared with those of others of the same call.

    Attributes:
        point: the corpus scores, means over seeds: ``(names,)``.
        on_clips: means over the seeds on drawn clips, ``(resamples, names)``.
        by_seeds: what other seeds would add, likewise; 0 where no system has several.
        variance_of_seeds: the estimated variance of ``point`` that is due to the seeds alone, ``(names,)``.
    """

    point: Floats
    on_clips: Floats
    by_seeds: Floats
    variance_of_seeds: Floats

    @property
    def resampled(self) -> Floats:
        """Corpus scores with other clips and other seeds, ``(resamples, names)``."""
        return self.on_clips + self.by_seeds

    def interval(self, alpha: float = 0.05) -> tuple[Floats, Floats]:
        """Percentile interval of the corpus scores, lower and upper end: ``(names,)``."""
        low, high = np.quantile(self.resampled, [alpha / 2, 1 - alpha / 2], axis=0)
        return low, high


def bootstrap(systems: Sequence[Sample], *, resamples: int = 10_000, seed: int = 0) -> list[Draws]:
    """Resample clips, the same for all systems, and seeds, for each system anew.

    Args:
        systems: of the same metric and the same clips in the same order. How much seeds matter is judged from all of
            them together.
        resamples: how many.
        seed: of the random numbers. Clips are drawn alike whatever the systems are.

    Raises:
        ValueError: there is none, or they differ in their numbers of clips.
    """
    return bootstrap_metrics([systems], resamples=resamples, seed=seed)[0]


def bootstrap_metrics(
    metrics: Sequence[Sequence[Sample]], *, resamples: int = 10_000, seed: int = 0
) -> list[list[Draws]]:
    """:func:`bootstrap` of several metrics, with the same clips drawn for all: one matrix product."""
    samples = [system for systems in metrics for system in systems]
    clips = _clips(samples)
    checkpoints = [(sample.score, values) for sample in samples for values in sample.values]
    columns = np.concatenate([values for _, values in checkpoints], axis=1)
    ends = np.cumsum([values.shape[1] for _, values in checkpoints])[:-1]
    blocks: list[list[Floats]] = [[] for _ in checkpoints]
    for counts in _drawn_clips(clips, resamples, seed):
        for scores, (score, _), sums in zip(blocks, checkpoints, np.split(counts @ columns, ends, axis=1), strict=True):
            scores.append(score(sums))
    whole = map(np.concatenate, blocks)
    return [
        _with_seeds(systems, [np.stack([next(whole) for _ in range(system.seeds)], axis=1) for system in systems], seed)
        for systems in metrics
    ]


def _with_seeds(systems: Sequence[Sample], on_clips: Sequence[Floats], seed: int) -> list[Draws]:
    """Add what other seeds would change; see the head of the module.

    Args:
        systems: of one metric.
        on_clips: their scores on drawn clips, of each ``(resamples, seeds, names)``.
        seed: of the random numbers.
    """
    rng = np.random.default_rng([seed, 1])
    observed = [system.observed() for system in systems]
    points = [scores.mean(axis=0) for scores in observed]
    means = [scores.mean(axis=1) for scores in on_clips]
    freedom = sum(system.seeds - 1 for system in systems)
    squares, by_clips = np.zeros_like(points[0]), np.zeros_like(points[0])
    plausible = np.zeros_like(means[0])
    if freedom:
        for own, point, scores, mean in zip(observed, points, on_clips, means, strict=True):
            squares += ((own - point) ** 2).sum(axis=0)
            moved = (scores - mean[:, None]) - (own - point)  # what drawn clips change in how the seeds differ
            by_clips += (moved**2).sum(axis=1).mean(axis=0) / freedom
        plausible = np.maximum(squares / rng.chisquare(freedom, (len(plausible), 1)) - by_clips, 0)
    variance = np.maximum(squares / max(freedom, 1) - by_clips, 0)
    return [
        Draws(
            point=point,
            on_clips=mean,
            by_seeds=rng.standard_normal((len(mean), 1)) * np.sqrt(plausible / system.seeds),
            variance_of_seeds=variance / system.seeds,
        )
        for system, point, mean in zip(systems, points, means, strict=True)
    ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contrast:
    """A system less another one; of each score, ``(names,)``.

    Attributes:
        difference: of the corpus scores.
        low: lower end of the interval of the difference.
        high: upper end.
        p: two-sided, not corrected for others.
        detectable: see :func:`contrast`.
    """

    difference: Floats
    low: Floats
    high: Floats
    p: Floats
    detectable: Floats


def contrast(system: Draws, other: Draws, alpha: float = 0.05) -> Contrast:
    """Compare two systems by their resampled scores (the paired bootstrap).

    The smallest difference that a test at level alpha would detect with a power of 80 %, had the systems that
    difference, and the spread that is observed::

        detectable = c + z(0.8) * standard error

    c is the (1 - alpha) quantile of |resampled difference - difference|, above which a difference is significant;
    z(0.8) = 0.84. With one seed a system and many clips c is 1.96 standard errors at alpha = 5 %, so ``detectable`` is
    2.80 of them, and of a mean the standard error is sd(paired differences of the clips) / sqrt(clips). (Cohen,
    "Statistical Power Analysis for the Behavioral Sciences", 1988, of a paired test; Card et al., "With Little Power
    Comes Great Responsibility", EMNLP 2020.)

    Args:
        system: of one call of :func:`bootstrap`.
        other: of the same call.
        alpha: 1 - alpha is the coverage of the interval.
    """
    difference = system.point - other.point
    resampled = system.resampled - other.resampled
    low, high = np.quantile(resampled, [alpha / 2, 1 - alpha / 2], axis=0)
    away = np.abs(resampled - difference)
    # Not the variance of all draws: with few seeds their tails are so long that it has none.
    variance = (system.on_clips - other.on_clips).var(axis=0) + system.variance_of_seeds + other.variance_of_seeds
    return Contrast(
        difference=difference,
        low=low,
        high=high,
        p=(1 + _as_far(away, system.point, other.point)) / (1 + len(away)),
        detectable=np.quantile(away, 1 - alpha, axis=0) + NormalDist().inv_cdf(POWER) * np.sqrt(variance),
    )


def randomisation(pairs: Sequence[tuple[Sample, Sample]], *, resamples: int = 10_000, seed: int = 0) -> list[Floats]:
    """Approximate randomisation: two-sided p of each pair's difference, ``(names,)``.

    Args:
        pairs: of any metrics, on the same clips in the same order; the same clips change places in all.
        resamples: how many.
        seed: of the random numbers.

    Raises:
        ValueError: a system has several seeds, between which captions cannot be exchanged clip by clip; or the numbers
            of clips differ.
    """
    samples = [sample for pair in pairs for sample in pair]
    if any(sample.seeds != 1 for sample in samples):
        raise ValueError(f"expected one seed a system, got {[sample.seeds for sample in samples]}")
    clips = _clips(samples)
    changes = np.concatenate([other.values[0] - system.values[0] for system, other in pairs], axis=1)
    ends = np.cumsum([system.values.shape[2] for system, _ in pairs])[:-1]
    as_far: list[Floats] = [np.ones(1) for _ in pairs]  # what was observed is one of them
    for swapped in _swapped(clips, resamples, seed):
        moved = np.split(swapped @ changes, ends, axis=1)
        for index, (system, other) in enumerate(pairs):
            own = system.score(system.values[0].sum(axis=0) + moved[index])
            their = other.score(other.values[0].sum(axis=0) - moved[index])
            as_far[index] = as_far[index] + _as_far(np.abs(own - their), system.observed()[0], other.observed()[0])
    return [count / (1 + resamples) for count in as_far]


def holm(p: Sequence[float]) -> list[float]:
    """Values of p corrected for their number: at level alpha the chance of any false alarm among them is at most alpha.

    Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979: the smallest of m times m, the next times
    m - 1, and so on; none smaller than the one before, none above 1.
    """
    corrected, highest = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = highest
    return corrected


def _as_far(away: Floats, own: Floats, their: Floats) -> Floats:
    """How many of ``(resamples, names)`` are as far from 0 as the observed difference."""
    least = np.abs(own - their) - _SAME * (np.abs(own) + np.abs(their))
    count: Floats = (away >= least).sum(axis=0).astype(np.float64)
    return count


def _clips(samples: Sequence[Sample]) -> int:
    counts = {sample.clips for sample in samples}
    if len(counts) != 1:  # or there is none
        raise ValueError(f"expected systems with the same clips, got {sorted(counts)} of them")
    return counts.pop()


def _blocks(clips: int, resamples: int) -> Iterator[int]:
    """Numbers of resamples that are held at a time."""
    most = max(_BLOCK // clips, 1)
    for start in range(0, resamples, most):
        yield min(most, resamples - start)


def _drawn_clips(clips: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each clip is drawn: ``(some resamples, clips)`` at a time."""
    rng = np.random.default_rng([seed, 0])
    for count in _blocks(clips, resamples):
        drawn = rng.integers(0, clips, (count, clips)) + clips * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * clips).reshape(count, clips).astype(np.float64)


def _swapped(clips: int, resamples: int, seed: int) -> Iterator[Floats]:
    """1 for a clip whose captions change places, else 0: ``(some resamples, clips)`` at a time."""
    rng = np.random.default_rng([seed, 2])
    for count in _blocks(clips, resamples):
        bits = rng.integers(0, 256, (count, -(-clips // 8)), dtype=np.uint8)
        yield np.unpackbits(bits, axis=1, count=clips).astype(np.float64)
