"""Whether the tests of ``avpipe compare`` keep what they promise, on made-up systems whose difference is known.

    python benchmarks/significance.py --experiments 4000

Each experiment makes its systems anew and tests two of them. Scores of a clip are like CIDEr's: skewed, not negative,
alike for all systems because some clips are easy, different because systems are. Counts of a clip are like BLEU's. A
checkpoint of another seed has its own luck with every clip, and over all clips.

- *false alarms*: both systems are equally good; how often p is below 5 %. The interval is that of the rate itself
  (95 %, Wilson). *drawn seeds* is the hierarchical bootstrap that draws seeds with replacement as it draws clips: what
  avpipe does not do, and why.
- *among others*: the same of two systems out of three and four whose seeds spread by different amounts.
- *power*: one system is better by exactly what was said to be the smallest detectable difference; how often p is below
  5 %, which should be 80 %.
- *coverage*: how often the 95 % interval of a score holds the true score.

Ends with exit status 1 where a rate of avpipe's own is, beyond chance, out of bounds: false alarms above 6.5 % (or
below 3.5 % of one seed each, below 1.5 % of three or more each, below 0.5 % of two); power out of 75 to 85 % (of
several seeds 65 to 95 %); coverage out of 93 to 97 % (of several seeds below 92 %).
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from avpipe.eval.metrics import bleu
from avpipe.eval.statistics import Sample, bootstrap, bootstrap_metrics, contrast, randomisation

Floats = npt.NDArray[np.float64]
Systems = tuple[Sample, ...]
Test = Callable[[Systems, int, int], float]
ALPHA = 0.05
OWN_LUCK = 0.25  # standard deviation of what a checkpoint alone makes of a clip
SYSTEM_LUCK = 0.4  # ... and all checkpoints of a system


def cider_like(
    rng: np.random.Generator,
    clips: int,
    seeds: Sequence[int],
    by_seed: Sequence[float] = (0.0, 0.0),
    better: float = 0.0,
) -> Systems:
    """Systems of equal true score, but the first ``better``; ``by_seed``: the standard deviations over seeds."""
    easy = rng.gamma(2, 0.3, clips)
    made = []
    for number, (count, spread) in enumerate(zip(seeds, by_seed, strict=True)):
        system = easy + (rng.gamma(1, SYSTEM_LUCK, clips) - SYSTEM_LUCK)
        own = rng.gamma(1, OWN_LUCK, (count, clips)) - OWN_LUCK
        values = system + own + spread * rng.standard_normal((count, 1)) + (0.0 if number else better)
        made.append(Sample.of_means(values[:, :, None]))
    return tuple(made)


def bleu_4(sums: Floats) -> Floats:
    return bleu.aggregate(sums)["Bleu_4"][:, None]


def bleu_1_to_4(sums: Floats) -> Floats:
    return np.column_stack(list(bleu.aggregate(sums).values()))


def bleu_like(
    rng: np.random.Generator, clips: int, seeds: tuple[int, int], by_seed: float = 0.0, *, four: bool = False
) -> Systems:
    """Counts of n-grams; the more words a clip's caption gets right, the longer are the n-grams that are right."""
    easy = rng.normal(0, 0.5, clips)
    made = []
    for count in seeds:
        system = easy + rng.normal(0, 0.5, clips)
        values = np.empty((count, clips, 10))
        for one in range(count):
            lengths = rng.integers(7, 13, clips)
            right = 1 / (1 + np.exp(-(0.6 + system + rng.normal(0, 0.3, clips) + by_seed * rng.standard_normal())))
            guessed = np.maximum(lengths[:, None] - np.arange(4), 0)
            correct = rng.binomial(guessed, right[:, None] ** np.arange(1, 5))
            values[one] = np.column_stack([correct, guessed, lengths, rng.integers(7, 13, clips)])
        made.append(Sample(values=values, score=bleu_1_to_4 if four else bleu_4))
    return tuple(made)


def by_bootstrap(systems: Systems, resamples: int, seed: int) -> float:
    """Of the first two, whatever the others are."""
    first, second, *_ = bootstrap(systems, resamples=resamples, seed=seed)
    return float(contrast(first, second).p[0])


def by_randomisation(systems: Systems, resamples: int, seed: int) -> float:
    first, second = systems
    return float(randomisation([(first, second)], resamples=resamples, seed=seed)[0][0])


def by_drawn_seeds(pair: Systems, resamples: int, seed: int) -> float:
    """What a hierarchical bootstrap is elsewhere: seeds and clips drawn with replacement. Of means."""
    rng = np.random.default_rng(seed)
    clips = pair[0].clips
    counts = rng.multinomial(clips, np.full(clips, 1 / clips), resamples).astype(float)
    drawn = []
    for system in pair:
        of_seeds = counts @ system.values[:, :, 0].T / clips
        times = rng.multinomial(system.seeds, np.full(system.seeds, 1 / system.seeds), resamples)
        drawn.append((of_seeds * times).sum(axis=1) / system.seeds)
    difference = float(pair[0].values.mean() - pair[1].values.mean())
    away = np.abs(drawn[0] - drawn[1] - difference)
    return float((1 + (away >= abs(difference)).sum()) / (1 + resamples))


def rate(make: Callable[[np.random.Generator], Systems], test: Test, experiments: int, resamples: int) -> int:
    """In how many experiments p is below alpha."""
    return sum(
        test(make(np.random.default_rng([7, number])), resamples, number) < ALPHA for number in range(experiments)
    )


def wilson(hits: int, of: int) -> tuple[float, float]:
    """95 % interval of a rate."""
    z = 1.96
    middle = (hits / of + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * math.sqrt(hits / of * (1 - hits / of) / of + z * z / (4 * of * of))
    return middle - half, middle + half


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=4000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--clips", type=int, default=200)
    options = parser.parse_args()
    clips, experiments, resamples = options.clips, options.experiments, options.resamples
    wrong = 0

    def line(what: str, hits: int, low: float, high: float) -> None:
        nonlocal wrong
        found, (least, most) = hits / experiments, wilson(hits, experiments)
        is_wrong = least > high or most < low  # beyond chance
        wrong += is_wrong
        print(f"{what:76} {100 * found:5.1f} %  [{100 * least:.1f}, {100 * most:.1f}]{'  WRONG' if is_wrong else ''}")

    def shown(what: str, hits: int) -> None:
        line(what, hits, 0, 1)

    print(f"{experiments} experiments, {clips} clips, {resamples} resamples\n\nfalse alarms, alpha = 5 %")
    for name, test in (("paired bootstrap", by_bootstrap), ("randomisation", by_randomisation)):
        for kind, make in (("means", cider_like), ("BLEU-4", bleu_like)):
            hits = rate(lambda rng, make=make: make(rng, clips, (1, 1)), test, experiments, resamples)  # type: ignore[misc]
            line(f"{name}, {kind}", hits, 0.035, 0.065)
    # What seeds do, in standard errors of a score's dependence on the clips.
    error = math.sqrt((2 * 0.3**2 + SYSTEM_LUCK**2 + OWN_LUCK**2) / clips)

    def alarms(test: Test, seeds: Sequence[int], spreads: Sequence[float]) -> int:
        by_seed = [spread * error for spread in spreads]
        return rate(lambda rng: cider_like(rng, clips, seeds, by_seed), test, experiments, resamples)

    def least(seeds: Sequence[int]) -> float:
        return 0.015 if min(seeds[:2]) >= 3 else 0.005 if min(seeds[:2]) == 2 else 0.0

    for seeds in ((2, 2), (3, 3), (5, 5), (3, 5), (1, 5)):
        for spread in (0.0, 0.5, 1.0, 3.0):
            what = f"{seeds[0]} and {seeds[1]} seeds, spread {spread} standard errors"
            line(f"hierarchical, {what}", alarms(by_bootstrap, seeds, (spread, spread)), least(seeds), 0.065)
    for seeds, spreads in (((3, 3), (0.5, 2.0)), ((3, 3), (0.0, 3.0)), ((3, 5), (0.5, 2.0)), ((5, 3), (0.5, 2.0))):
        what = f"{seeds[0]} and {seeds[1]} seeds, spreads {spreads[0]} and {spreads[1]}"
        line(f"hierarchical, {what}", alarms(by_bootstrap, seeds, spreads), least(seeds), 0.065)
    for seeds, spreads in (((1, 5), (0.5, 2.0)), ((1, 5), (2.0, 0.5))):
        what = f"1 and 5 seeds, spreads {spreads[0]} and {spreads[1]}, not the same as assumed"
        shown(f"hierarchical, {what}", alarms(by_bootstrap, seeds, spreads))
    for many, spreads in (
        ((3, 3, 3), (3.0, 3.0, 0.0)),
        ((3, 3, 3), (0.5, 0.5, 5.0)),
        ((3, 3, 3), (3.0, 0.0, 1.0)),
        ((3, 3, 3, 3), (3.0, 3.0, 0.0, 0.0)),
        ((3, 3, 3, 3), (0.5, 2.0, 5.0, 0.0)),
        ((5, 3, 2, 1), (3.0, 1.0, 5.0, 0.0)),
    ):
        what = f"{len(many)} systems of {', '.join(map(str, many))} seeds, spreads {', '.join(map(str, spreads))}"
        line(f"among others, {what}", alarms(by_bootstrap, many, spreads), least(many), 0.065)
    for spread in (0.0, 1.0, 3.0):
        what = f"3 and 3 seeds, spread {spread} standard errors"
        shown(f"drawn seeds, {what}", alarms(by_drawn_seeds, (3, 3), (spread, spread)))
    shown("trainings judged by one seed each, spread 1.0", alarms(by_bootstrap, (1, 1), (1.0, 1.0)))
    hits = rate(lambda rng: bleu_like(rng, clips, (3, 3), 0.1), by_bootstrap, experiments, resamples)
    line("hierarchical, 3 and 3 seeds, BLEU-4", hits, least((3, 3)), 0.065)

    print("\npower at the smallest detectable difference, which should be 80 %")
    for number_of, seeds, spread in (
        (clips, (1, 1), 0.0),
        (5 * clips, (1, 1), 0.0),
        (clips, (3, 3), error),
        (clips, (5, 5), error),
    ):
        said = []
        for number in range(400):
            pair = cider_like(np.random.default_rng([8, number]), number_of, seeds, (spread, spread))
            first, second = bootstrap(pair, resamples=resamples, seed=number)
            said.append(float(contrast(first, second).detectable[0]))
        better = float(np.mean(said))

        def make(
            rng: np.random.Generator,
            number_of: int = number_of,
            seeds: tuple[int, int] = seeds,
            spread: float = spread,
            better: float = better,
        ) -> Systems:
            return cider_like(rng, number_of, seeds, (spread, spread), better)

        what = f"{seeds[0]} and {seeds[1]} seeds, {number_of} clips, difference {better:.4f}"
        # With few seeds, what is said of a difference varies from case to case as much as they do.
        low, high = (0.75, 0.85) if seeds == (1, 1) else (0.65, 0.95)
        line(f"paired bootstrap, {what}", rate(make, by_bootstrap, experiments, resamples), low, high)
        if seeds == (1, 1):
            line(f"randomisation, {what}", rate(make, by_randomisation, experiments, resamples), low, high)

    print("\ncoverage of 95 % intervals")
    for seeds, spread in (((1, 1), 0.0), ((2, 2), error), ((3, 3), error)):
        hits = 0
        for number in range(experiments):
            pair = cider_like(np.random.default_rng([9, number]), clips, seeds, (spread, spread))
            low_end, high_end = bootstrap(pair, resamples=resamples, seed=number)[0].interval()
            hits += bool(low_end[0] <= 0.6 <= high_end[0])
        line(f"a mean, {seeds[0]} seeds", hits, 0.93 if seeds == (1, 1) else 0.92, 1 if seeds != (1, 1) else 0.97)

    print("\ntime of 10,000 resamples, 2,990 clips, 2 systems, 7 scores")
    rng = np.random.default_rng(0)
    made = [bleu_like(rng, 2990, (1, 1), four=True), *(cider_like(rng, 2990, (1, 1)) for _ in range(3))]
    pairs = [(first, second) for first, second in made]
    for name, work in (
        ("bootstrap", lambda: bootstrap_metrics(pairs)),
        ("randomisation", lambda: randomisation(pairs)),
    ):
        start = time.perf_counter()
        work()
        print(f"{name:14} {time.perf_counter() - start:.2f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
