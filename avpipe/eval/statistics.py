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

The interval of a difference is of percentiles, p of shifted differences. Where what is drawn is skewed or, as of BLEU,
off the observed score on average, they may disagree about a difference near the level: p is the test.

**Seeds.** With one checkpoint a system, the claim is about these checkpoints on clips like these. With several, trained
alike but for the seed, it is about the training: another seed would give another checkpoint. Resampling is then
hierarchical, clips and seeds. Clips are drawn as above. Three or five seeds cannot be drawn from one another: three
have ten different resamples, whose variance is too small by a third, and the test would cry wolf (measured:
benchmarks/significance.py). So seeds are drawn from a normal distribution, whose variance is not known and drawn too
(a generalised confidence interval of variance components: Tsui and Weerahandi, 1989; Weerahandi, 1993). Of a
difference, that variance is estimated from its two systems alone, each by itself, with the degrees of freedom nu of
Welch ("The Generalization of 'Student's' Problem ...", 1947) and Satterthwaite (1946). With s the standard deviation
over a system's S seeds, v that part of s^2 that is due to the choice of clips (from the bootstrap), and sums over the
two systems::

    nu       = (sum s^2 / S)^2 / sum (s^2 / S)^2 / (S - 1)
    w        = nu (sum s^2 / S) / chi^2(nu)                       plausible variance of the difference
    resample = difference of the means over seeds on the drawn clips + normal(0, max(0, w - sum v / S))

Without effects of clips that is Welch's t test; v is taken off because the drawn clips bring it in already. Systems may
vary by different amounts and have different numbers of seeds, and what other systems there are changes nothing. The
interval of one system's score is the same with a sum of one term, so nu = S - 1: of two seeds it may be wider than the
scale. Assumed: seeds make scores differ normally.

A system with a single seed says nothing of how seeds vary. Its own interval is over clips only; in a difference it is
taken to vary as the other system does (nu is that one's S - 1). Where that is not so, the test is wrong: too often
significant if the single one varies more, too seldom if it varies less.
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

_BLOCK = 1_000_000
"""Drawn clips at a time: 8 MB of each of a few arrays, however many clips and resamples there are."""

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
        seeds: how many.
        variance: of the corpus scores over seeds, ``(names,)``; 0 of a single one.
        variance_by_clips: that part of it which is due to the choice of clips.
        random_seed: of the random numbers.
    """

    point: Floats
    on_clips: Floats
    seeds: int
    variance: Floats
    variance_by_clips: Floats
    random_seed: int

    @property
    def resampled(self) -> Floats:
        """Corpus scores with other clips and, where there are several, other seeds, ``(resamples, names)``."""
        return self.on_clips + _other_seeds([self])[0]

    def interval(self, alpha: float = 0.05) -> tuple[Floats, Floats]:
        """Percentile interval of the corpus scores, lower and upper end: ``(names,)``."""
        low, high = np.quantile(self.resampled, [alpha / 2, 1 - alpha / 2], axis=0)
        return low, high


def bootstrap(systems: Sequence[Sample], *, resamples: int = 10_000, seed: int = 0) -> list[Draws]:
    """Resample clips, the same for all systems.

    Args:
        systems: of the same metric and the same clips in the same order. What is drawn of one does not depend on the
            others.
        resamples: how many.
        seed: of the random numbers.

    Raises:
        ValueError: there is none, or they differ in their numbers of clips.
    """
    return bootstrap_metrics([systems], resamples=resamples, seed=seed)[0]


def bootstrap_metrics(
    metrics: Sequence[Sequence[Sample]], *, resamples: int = 10_000, seed: int = 0
) -> list[list[Draws]]:
    """:func:`bootstrap` of several metrics, with the same clips drawn for all."""
    samples = [system for systems in metrics for system in systems]
    clips = _clips(samples)
    # One product a system: how digits are rounded depends on how wide the matrices are.
    columns = [np.concatenate(list(sample.values), axis=1) for sample in samples]
    blocks: list[list[Floats]] = [[] for _ in samples]
    for counts in _drawn_clips(clips, resamples, seed):
        for sample, own, scores in zip(samples, columns, blocks, strict=True):
            of_seeds = np.split(counts @ own, sample.seeds, axis=1)
            scores.append(np.stack([sample.score(sums) for sums in of_seeds], axis=1))
    drawn = iter([_drawn(sample, np.concatenate(own), seed) for sample, own in zip(samples, blocks, strict=True)])
    return [[next(drawn) for _ in systems] for systems in metrics]


def _drawn(system: Sample, on_clips: Floats, seed: int) -> Draws:
    """Of scores on drawn clips, ``(resamples, seeds, names)``."""
    observed, means = system.observed(), on_clips.mean(axis=1)
    apart = observed - observed.mean(axis=0)
    moved = (on_clips - means[:, None]) - apart  # what drawn clips change in how the seeds differ
    freedom = max(system.seeds - 1, 1)
    return Draws(
        point=observed.mean(axis=0),
        on_clips=means,
        seeds=system.seeds,
        variance=(apart**2).sum(axis=0) / freedom,
        variance_by_clips=(moved**2).sum(axis=1).mean(axis=0) / freedom,
        random_seed=seed,
    )


def _other_seeds(systems: Sequence[Draws]) -> tuple[Floats, Floats]:
    """What other seeds would change in the score of a system, or in the difference of two; see the module's head.

    Returns:
        Resamples of the change, ``(resamples, names)``, and its estimated variance, ``(names,)``.
    """
    several = [system for system in systems if system.seeds > 1]
    if not several:
        return np.zeros_like(systems[0].on_clips), np.zeros_like(systems[0].point)
    # A single seed is taken to vary as those of the other system.
    shares = [sum(1 / each.seeds for each in systems if each is system or each.seeds == 1) for system in several]
    own = [share * system.variance for share, system in zip(shares, several, strict=True)]
    by_clips = sum(share * system.variance_by_clips for share, system in zip(shares, several, strict=True))
    total = np.sum(own, axis=0)
    parts = [np.divide(each, total, out=np.full_like(total, 1 / len(own)), where=total > 0) for each in own]
    freedom = 1 / np.sum([part**2 / (system.seeds - 1) for part, system in zip(parts, several, strict=True)], axis=0)
    rng = np.random.default_rng([several[0].random_seed, 1])
    normal = rng.standard_normal((len(several[0].on_clips), 1))
    chi = rng.chisquare(freedom, (len(normal), len(total)))
    plausible = np.maximum(freedom * total / chi - by_clips, 0)
    return normal * np.sqrt(plausible), np.maximum(total - by_clips, 0)


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

    How much seeds matter is judged from these two alone.

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
    on_clips = system.on_clips - other.on_clips
    by_seeds, variance_of_seeds = _other_seeds([system, other])
    resampled = on_clips + np.where(difference < 0, -1, 1) * by_seeds  # so that swapping both negates every digit
    low, high = np.quantile(resampled, [alpha / 2, 1 - alpha / 2], axis=0)
    away = np.abs(resampled - difference)
    # Not the variance of all draws: with few seeds their tails are so long that it has none.
    variance = on_clips.var(axis=0) + variance_of_seeds
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
