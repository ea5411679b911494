"""Resampling: against enumeration by hand, against chance, and what must not change anything."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avpipe.eval import statistics
from avpipe.eval.metrics import bleu
from avpipe.eval.statistics import Sample, bootstrap, bootstrap_metrics, contrast, holm, randomisation

Floats = npt.NDArray[np.float64]


def means(*seeds: list[float]) -> Sample:
    """Of one score, a list of clips a seed."""
    return Sample.of_means(np.array(seeds, dtype=np.float64)[:, :, None])


def bleu_4(sums: Floats) -> Floats:
    return bleu.aggregate(sums)["Bleu_4"][:, None]


def counts(rng: np.random.Generator, clips: int, right: float) -> Sample:
    """As BLEU counts captions, of whose words so many are right."""
    lengths = rng.integers(7, 13, clips)
    guessed = np.maximum(lengths[:, None] - np.arange(4), 0)
    correct = rng.binomial(guessed, right ** np.arange(1, 5))
    values = np.column_stack([correct, guessed, lengths, rng.integers(7, 13, clips)]).astype(np.float64)
    return Sample(values=values[None], score=bleu_4)


# -- by hand -----------------------------------------------------------------------------------------------------------

A, B = [1.0, 0.5, 0.75, 0.25], [0.5, 0.75, 0.5, 0.0]


def test_bootstrap_is_every_draw_there_could_be() -> None:
    # Of 4 clips there are 4^4 draws, all as likely.
    apart = np.subtract(A, B)
    every = np.array([apart[list(drawn)].mean() for drawn in product(range(4), repeat=4)])
    found = contrast(*bootstrap([means(A), means(B)], resamples=40_000, seed=3))
    p = (abs(every - apart.mean()) >= abs(apart.mean()) - 1e-12).mean()
    assert found.p[0] == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 40_000))
    assert (found.difference[0], found.low[0], found.high[0]) == pytest.approx(
        (0.1875, np.quantile(every, 0.025), np.quantile(every, 0.975))
    )
    critical = np.quantile(abs(every - apart.mean()), 0.95)
    assert found.detectable[0] == pytest.approx(critical + NormalDist().inv_cdf(0.8) * every.std(), rel=0.02)


def test_bootstrap_interval_of_one_system() -> None:
    every = np.array([np.array(A)[list(drawn)].mean() for drawn in product(range(4), repeat=4)])
    low, high = bootstrap([means(A)], resamples=40_000)[0].interval(0.1)
    assert (low[0], high[0]) == pytest.approx((np.quantile(every, 0.05), np.quantile(every, 0.95)))


def test_randomisation_is_every_change_of_places_there_could_be() -> None:
    apart = np.subtract(A, B)
    every = np.array([np.multiply(apart, signs).mean() for signs in product((1, -1), repeat=4)])
    p = (abs(every) >= abs(apart.mean()) - 1e-12).mean()
    assert 0.2 < p < 0.8
    found = randomisation([(means(A), means(B))], resamples=40_000, seed=3)[0]
    assert found[0] == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 40_000))


def test_randomisation_of_sums_is_every_change_of_places_there_could_be() -> None:
    rng = np.random.default_rng(1)
    one, two = counts(rng, 6, 0.75), counts(rng, 6, 0.9)
    every = []
    for swapped in product((False, True), repeat=6):
        mask = np.array(swapped)[:, None]
        own = np.where(mask, two.values[0], one.values[0]).sum(axis=0)
        their = np.where(mask, one.values[0], two.values[0]).sum(axis=0)
        every.append(float((bleu_4(own[None]) - bleu_4(their[None]))[0, 0]))
    p = np.mean(np.abs(every) >= abs(every[0]) - 1e-12)
    assert 0.01 < p < 0.5
    found = randomisation([(one, two)], resamples=40_000)[0]
    assert found[0] == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 40_000))


def test_a_score_of_sums_is_computed_of_the_drawn_sums() -> None:
    rng = np.random.default_rng(1)
    sample = counts(rng, 5, 0.8)
    every = np.array(
        [bleu_4(sample.values[0][list(drawn)].sum(axis=0)[None])[0, 0] for drawn in product(range(5), repeat=5)]
    )
    (drawn,) = bootstrap([sample], resamples=40_000)
    assert drawn.point == pytest.approx(bleu_4(sample.values.sum(axis=1))[0])
    low, high = drawn.interval()
    assert (low[0], high[0]) == pytest.approx((np.quantile(every, 0.025), np.quantile(every, 0.975)), abs=0.005)


def test_p_counts_what_was_observed() -> None:
    # No resample is as far away; p is 1 / (resamples + 1), not 0.
    better = means([1.0, 1.1, 0.9, 1.05] * 50), means([0.0, 0.1, 0.0, 0.05] * 50)
    assert contrast(*bootstrap(better, resamples=999)).p[0] == pytest.approx(0.001)
    assert randomisation([better], resamples=999)[0][0] == pytest.approx(0.001)


def test_systems_that_are_the_same_do_not_differ() -> None:
    found = contrast(*bootstrap([means(A), means(A)], resamples=100))
    assert (found.difference[0], found.low[0], found.high[0], found.p[0], found.detectable[0]) == (0, 0, 0, 1, 0)
    assert randomisation([(means(A), means(A))], resamples=100)[0][0] == 1


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3 x 0.01; 2 x 0.03; not less than that
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


# -- seeds -------------------------------------------------------------------------------------------------------------


def alike(*seeds: float) -> Sample:
    """Checkpoints whose clips are all alike, so that nothing depends on which are drawn."""
    return Sample.of_means(np.repeat(np.array(seeds)[:, None, None], 5, axis=1))


def student(difference: float, error: float, freedom: float) -> float:
    """Two-sided p of Student's t, by drawing."""
    drawn = np.random.default_rng(0).standard_t(freedom, 400_000)
    return float((abs(drawn) >= abs(difference) / error).mean())


def test_seeds_alone_are_welchs_t_test() -> None:
    one, two = [0.50, 0.54, 0.55], [0.46, 0.36, 0.49, 0.45]
    found = contrast(*bootstrap([alike(*one), alike(*two)], resamples=40_000))
    shares = np.var(one, ddof=1) / 3, np.var(two, ddof=1) / 4
    freedom = sum(shares) ** 2 / (shares[0] ** 2 / 2 + shares[1] ** 2 / 3)
    assert 4 < freedom < 5  # neither that of one system nor that of both
    difference, error = np.mean(one) - np.mean(two), math.sqrt(sum(shares))
    assert found.difference[0] == pytest.approx(difference)
    assert found.p[0] == pytest.approx(student(difference, error, freedom), abs=0.003)
    wide = np.quantile(np.random.default_rng(1).standard_t(freedom, 400_000), 0.975) * error
    assert (found.low[0], found.high[0]) == pytest.approx((difference - wide, difference + wide), abs=0.004)


def test_a_single_seed_is_taken_to_vary_as_the_other_system_does() -> None:
    several, single, noisy = [0.50, 0.54, 0.58], 0.4, [0.1, 0.5, 0.9]
    first, alone, third = bootstrap([alike(*several), alike(single), alike(*noisy)], resamples=40_000)
    found = contrast(alone, first)
    error = math.sqrt(0.04**2 * (1 + 1 / 3))
    assert found.p[0] == pytest.approx(student(0.14, error, 2), abs=0.003)
    assert contrast(alone, third).high[0] - contrast(alone, third).low[0] > 5 * (found.high[0] - found.low[0])
    # By itself it says nothing of seeds, and with another single one neither.
    assert alone.interval() == (pytest.approx(single), pytest.approx(single))
    other = bootstrap([alike(0.3), alike(single)], resamples=100)
    assert contrast(*other).low[0] == pytest.approx(-0.1)
    assert contrast(*other).high[0] == pytest.approx(-0.1)


def test_the_interval_of_a_system_is_students_of_its_own_seeds() -> None:
    (drawn, _) = bootstrap([alike(0.50, 0.54, 0.58), alike(0.1, 0.9)], resamples=40_000)
    wide = np.quantile(np.random.default_rng(1).standard_t(2, 400_000), 0.975) * 0.04 / math.sqrt(3)
    low, high = drawn.interval()
    assert (low[0], high[0]) == pytest.approx((0.54 - wide, 0.54 + wide), abs=0.006)


def test_what_other_systems_there_are_changes_no_digit_of_a_difference() -> None:
    rng = np.random.default_rng(3)
    systems = [
        Sample.of_means(rng.random((seeds, 30, 2)) + spread * rng.normal(size=(seeds, 1, 1)))
        for seeds, spread in ((3, 0.3), (2, 0.1), (1, 0.0), (5, 0.0), (4, 3.0))
    ]
    for pair in ([0, 1], [1, 2], [0, 3]):
        own = contrast(*bootstrap([systems[index] for index in pair], resamples=300))
        every = bootstrap(systems, resamples=300)
        among = contrast(*(every[index] for index in pair))
        for what in ("difference", "low", "high", "p", "detectable"):
            np.testing.assert_array_equal(getattr(own, what), getattr(among, what))


def test_what_the_choice_of_clips_does_to_seeds_counts_once() -> None:
    # Seeds have other luck with every clip and none over all: what they differ by is due to the clips alone.
    rng = np.random.default_rng(5)
    systems = [Sample.of_means(rng.normal(0.5, 0.2, (40, 300, 1))) for _ in range(2)]
    for drawn in bootstrap(systems, resamples=2000):
        wide = float(np.subtract(*drawn.interval()[::-1])[0])
        assert wide == pytest.approx(2 * 1.96 * 0.2 / math.sqrt(40 * 300), rel=0.35)


# -- what must not change anything -------------------------------------------------------------------------------------

scores = st.lists(
    st.tuples(st.floats(0, 10, width=16), st.floats(0, 10, width=16)), min_size=2, max_size=30
)  # of two systems, a clip each


@given(scores)
def test_swapping_the_systems_negates_the_difference_and_nothing_else(pairs: list[tuple[float, float]]) -> None:
    one, two = (means(list(side)) for side in zip(*pairs, strict=True))
    drawn = bootstrap([one, two], resamples=50)
    there, back = contrast(*drawn), contrast(*drawn[::-1])
    assert back.difference[0] == -there.difference[0]
    assert (back.low[0], back.high[0]) == pytest.approx((-there.high[0], -there.low[0]), abs=1e-9)
    assert (back.p[0], back.detectable[0]) == pytest.approx((there.p[0], there.detectable[0]))
    assert randomisation([(one, two)], resamples=50)[0] == randomisation([(two, one)], resamples=50)[0]


def test_swapping_systems_of_several_seeds_negates_the_difference_and_nothing_else() -> None:
    rng = np.random.default_rng(6)
    drawn = bootstrap([Sample.of_means(rng.random((seeds, 20, 3))) for seeds in (2, 3)], resamples=200)
    there, back = contrast(*drawn), contrast(*drawn[::-1])
    np.testing.assert_allclose(back.low, -there.high)
    np.testing.assert_allclose(back.high, -there.low)
    np.testing.assert_array_equal(back.p, there.p)
    np.testing.assert_array_equal(back.detectable, there.detectable)


@given(scores, st.sampled_from([-4.0, 0.5, 100.0]))
def test_a_constant_added_to_both_changes_nothing(pairs: list[tuple[float, float]], constant: float) -> None:
    # Sixteenths, so that sums are exact.
    one, two = (np.round(np.array(side) * 16) / 16 for side in zip(*pairs, strict=True))
    before, after = ((means(list(one + add)), means(list(two + add))) for add in (0, constant))
    first, second = (contrast(*bootstrap(pair, resamples=50)) for pair in (before, after))
    assert second.p[0] == first.p[0]
    assert second.difference[0] == pytest.approx(first.difference[0], abs=1e-9)
    assert second.detectable[0] == pytest.approx(first.detectable[0], abs=1e-9)
    assert randomisation([before], resamples=50)[0] == randomisation([after], resamples=50)[0]


FORTY = np.random.default_rng(2).gamma(2, 0.3, (2, 40)) + np.array([[0.0], [0.15]])
KNOWN = contrast(*bootstrap([means(list(FORTY[0])), means(list(FORTY[1]))], resamples=20_000))


@given(st.permutations(range(40)))
def test_order_of_the_clips_changes_nothing_but_the_draws(order: list[int]) -> None:
    one, two = FORTY[:, order]
    found, known = contrast(*bootstrap([means(list(one)), means(list(two))], resamples=1000)), KNOWN
    assert found.difference[0] == pytest.approx(known.difference[0])
    assert found.p[0] == pytest.approx(known.p[0], abs=5 * math.sqrt(known.p[0] / 1000) + 0.001)
    assert found.detectable[0] == pytest.approx(known.detectable[0], rel=0.15)


def test_the_same_seed_gives_the_same_digits_and_another_one_others() -> None:
    pair = [means(A), means(B)]
    one, again, other = (contrast(*bootstrap(pair, resamples=500, seed=seed)) for seed in (1, 1, 2))
    assert one.p[0] == again.p[0]
    assert one.p[0] != other.p[0]
    assert randomisation([tuple(pair)], seed=1)[0] != randomisation([tuple(pair)], seed=2)[0]


def test_blocks_metrics_and_other_systems_change_no_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    first, second, third = (Sample.of_means(rng.random((2, 30, 2))) for _ in range(3))
    sums = counts(rng, 30, 0.8)
    together = bootstrap_metrics([[first, second], [sums]], resamples=333)
    monkeypatch.setattr(statistics, "_BLOCK", 30 * 7)
    (small,) = bootstrap_metrics([[first, second]], resamples=333)
    np.testing.assert_allclose(small[0].on_clips, together[0][0].on_clips, rtol=1e-12)
    np.testing.assert_array_equal(bootstrap([first, third], resamples=333)[0].on_clips, small[0].on_clips)
    np.testing.assert_allclose(bootstrap([sums], resamples=333)[0].resampled, together[1][0].resampled)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_systems_of_other_clips_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected systems with the same clips, got \[2, 4\] of them"):
        bootstrap([means(A), means([1.0, 2.0])])
    with pytest.raises(ValueError, match=r"got \[2, 4\] of them"):
        randomisation([(means(A), means(B)), (means([1.0, 2.0]), means([1.0, 2.0]))])


def test_captions_of_several_seeds_cannot_change_places() -> None:
    with pytest.raises(ValueError, match=r"expected one seed a system, got \[2, 1\]"):
        randomisation([(means(A, A), means(B))])


@pytest.mark.parametrize("shape", [(3, 2), (1, 0, 2), (0, 3, 2)])
def test_values_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(seeds, clips, k\), none of them 0, got \("):
        Sample.of_means(np.zeros(shape))


# -- by chance ---------------------------------------------------------------------------------------------------------

EXPERIMENTS, RESAMPLES, CLIPS = 400, 200, 80


def alarms(make: Callable[[np.random.Generator], tuple[Sample, Sample]], test: str = "bootstrap") -> int:
    """How often p is below 5 %."""
    found = 0
    for number in range(EXPERIMENTS):
        pair = make(np.random.default_rng([11, number]))
        if test == "bootstrap":
            found += contrast(*bootstrap(pair, resamples=RESAMPLES, seed=number)).p[0] < 0.05
        else:
            found += randomisation([pair], resamples=RESAMPLES, seed=number)[0][0] < 0.05
    return int(found)


def within(rate: float) -> tuple[float, float]:
    """Where a count lies by chance in all but 1 of 1,000 cases."""
    middle, sigma = EXPERIMENTS * rate, math.sqrt(EXPERIMENTS * rate * (1 - rate))
    return middle - 3.3 * sigma, middle + 3.3 * sigma


def cider_like(rng: np.random.Generator, seeds: int = 1, spread: float = 0.0) -> tuple[Sample, Sample]:
    """Two systems that are equally good, but for luck: of the system with a clip, of a seed with a clip, of a seed."""
    easy = rng.gamma(2, 0.3, CLIPS)
    one, two = (
        easy + rng.gamma(1, 0.4, CLIPS) + rng.normal(0, 0.2, (seeds, CLIPS)) + spread * rng.normal(size=(seeds, 1))
        for _ in range(2)
    )
    return Sample.of_means(one[:, :, None]), Sample.of_means(two[:, :, None])


@pytest.mark.parametrize("test", ["bootstrap", "randomisation"])
def test_false_alarms_are_as_many_as_promised(test: str) -> None:
    low, high = within(0.05)
    assert low <= alarms(cider_like, test) <= high
    assert low <= alarms(lambda rng: (counts(rng, CLIPS, 0.8), counts(rng, CLIPS, 0.8)), test) <= high


def test_a_difference_is_no_false_alarm() -> None:
    def make(rng: np.random.Generator) -> tuple[Sample, Sample]:
        one, two = cider_like(rng)
        return Sample.of_means(one.values + 0.3), two

    assert alarms(make) > 0.9 * EXPERIMENTS


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.4])
def test_seeds_raise_no_false_alarms(spread: float) -> None:
    # A test that never says anything raises none either.
    assert 0.01 * EXPERIMENTS < alarms(lambda rng: cider_like(rng, 3, spread)) <= within(0.05)[1]


BESIDE = {
    "a noisy and a quiet system": ((3, 0.4), (3, 0.02)),
    "a noisy system and another quiet one": ((3, 0.02), (3, 0.02), (3, 1.0)),
    "two noisy systems among quiet ones": ((3, 0.4), (3, 0.4), (3, 0.0), (5, 0.0)),
    "a noisy one of five seeds among others": ((5, 0.4), (3, 0.1), (2, 1.0), (1, 0.0)),
}
"""Numbers of seeds and their spreads; the first two systems are tested, the clips' luck is 0.07 of their difference."""


def several(rng: np.random.Generator, systems: tuple[tuple[int, float], ...], better: float = 0.0) -> list[Sample]:
    """Equally good systems, but for how much the first is better."""
    easy = rng.gamma(2, 0.3, CLIPS)
    made = []
    for number, (seeds, spread) in enumerate(systems):
        own = (
            easy + rng.gamma(1, 0.4, CLIPS) + rng.normal(0, 0.2, (seeds, CLIPS)) + spread * rng.normal(size=(seeds, 1))
        )
        made.append(Sample.of_means(own[:, :, None] + (better if number == 0 else 0.0)))
    return made


def alarms_among(systems: tuple[tuple[int, float], ...], better: float = 0.0) -> int:
    """How often p of the first two is below 5 %."""
    found = 0
    for number in range(EXPERIMENTS):
        drawn = bootstrap(
            several(np.random.default_rng([13, number]), systems, better), resamples=RESAMPLES, seed=number
        )
        found += contrast(drawn[0], drawn[1]).p[0] < 0.05
    return int(found)


@pytest.mark.parametrize("beside", BESIDE)
def test_systems_of_different_spread_get_the_false_alarms_promised(beside: str) -> None:
    assert 0.01 * EXPERIMENTS < alarms_among(BESIDE[beside]) <= within(0.05)[1]


def test_a_noisy_system_hides_no_difference_of_quiet_ones() -> None:
    assert alarms_among(((3, 0.02), (3, 0.02), (3, 1.0)), better=0.35) > 0.9 * EXPERIMENTS


def test_one_seed_of_a_training_would_raise_them() -> None:
    # The failing twin: what is true of these checkpoints is not true of the trainings.
    assert alarms(lambda rng: cider_like(rng, 1, 0.2)) > within(0.2)[1]


def test_the_smallest_detectable_difference_is_detected_in_four_of_five_cases() -> None:
    # For normal differences of 80 clips with a standard deviation of 0.5: (1.96 + 0.84) * 0.5 / sqrt(80).
    expected = (NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)) * 0.5 / math.sqrt(CLIPS)

    def make(rng: np.random.Generator) -> tuple[Sample, Sample]:
        easy = rng.random(CLIPS)
        return means(list(easy + rng.normal(expected, 0.5, CLIPS))), means(list(easy))

    said = [
        contrast(*bootstrap(make(np.random.default_rng([12, number])), resamples=500)).detectable[0]
        for number in range(40)
    ]
    assert np.mean(said) == pytest.approx(expected, rel=0.05)
    low, high = within(0.8)
    assert low <= alarms(make) <= high
