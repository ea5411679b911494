"""Which frames are looked at."""

from __future__ import annotations

import random as stdlib_random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avpipe.extract import sampling
from avpipe.extract.media import FrameRequest

POLICIES = [sampling.uniform, sampling.span_starts, sampling.linspace]
NAMES = [
    "uniform", "span_starts", "linspace", "headtail", "consecutive", "consecutive:3", "somewhere", "somewhere:3",
    "middle:20", "stretch:20",
]  # fmt: skip
DRAWN = ["headtail", "somewhere", "stretch:20"]
Policy = Callable[[npt.NDArray[np.float64], int], npt.NDArray[np.int64]]


def frames(total: int, rate: float = 25) -> npt.NDArray[np.float64]:
    return np.arange(total) / rate


@pytest.mark.parametrize(
    ("policy", "total", "count", "expected"),
    [
        (sampling.uniform, 10, 5, [1, 3, 5, 7, 9]),
        (sampling.uniform, 10, 2, [2, 7]),
        (sampling.uniform, 10, 1, [5]),
        (sampling.uniform, 2, 5, [0, 0, 1, 1, 1]),
        (sampling.span_starts, 10, 5, [0, 2, 4, 6, 8]),
        (sampling.span_starts, 10, 3, [0, 3, 6]),
        (sampling.span_starts, 2, 5, [0, 0, 0, 1, 1]),
        (sampling.linspace, 10, 5, [0, 2, 4, 6, 9]),
        (sampling.linspace, 10, 1, [0]),
        (sampling.linspace, 2, 5, [0, 0, 0, 0, 1]),
        (sampling.consecutive, 10, 4, [3, 4, 5, 6]),
        (sampling.consecutive, 9, 4, [3, 4, 5, 6]),
        (sampling.consecutive, 4, 4, [0, 1, 2, 3]),
        (sampling.consecutive, 2, 4, [0, 0, 1, 1]),
        (partial(sampling.consecutive, interval=2), 10, 4, [1, 3, 5, 7]),
        (partial(sampling.consecutive, interval=2), 8, 4, [0, 2, 4, 6]),
        (partial(sampling.consecutive, interval=2), 7, 4, [0, 1, 3, 5]),
    ],
)
def test_by_hand(policy: Policy, total: int, count: int, expected: list[int]) -> None:
    assert policy(frames(total), count).tolist() == expected


@pytest.mark.parametrize("policy", POLICIES)
@given(total=st.integers(1, 5000), count=st.integers(1, 200))
def test_as_many_as_asked_for_ascending_and_in_the_clip(policy: Policy, total: int, count: int) -> None:
    indices = policy(frames(total), count)
    assert indices.dtype == np.int64
    assert len(indices) == count
    assert (np.diff(indices) >= 0).all()
    assert indices[0] >= 0
    assert indices[-1] < total
    if total >= count:
        assert len(np.unique(indices)) == count


@given(total=st.integers(1, 5000), count=st.integers(1, 200))
def test_uniform_is_one_frame_of_each_span(total: int, count: int) -> None:
    indices = sampling.uniform(frames(total), count)
    spans = np.arange(count + 1) * total / count
    assert (spans[:-1] <= indices + 1).all()
    assert (indices < spans[1:]).all()


@given(total=st.integers(1, 3000), count=st.integers(1, 64))
def test_span_starts_are_those_of_lavis(total: int, count: int) -> None:
    ours = sampling.span_starts(frames(total), count)
    if total >= count:
        lavis = np.arange(0, total, total / count).astype(int)[:count]
        # LAVIS adds up a rounded step, and may fall one short of a whole number.
        assert np.abs(ours - lavis).max() <= 1
        exact = np.arange(count) * total % count != 0
        np.testing.assert_array_equal(ours[exact], lavis[exact])


def test_so_many_a_second() -> None:
    assert sampling.per_second(frames(26), 5).tolist() == [0, 5, 10, 15, 20, 25]
    assert sampling.per_second(frames(3, rate=1), 2).tolist() == [0, 0, 1, 1, 2]
    assert sampling.per_second(np.array([0.5]), 4).tolist() == [0]
    assert sampling.per_second(np.array([0.2, 0.3, 2.0, 2.1]), 1).tolist() == [0, 1]


@given(gaps=st.lists(st.floats(0.001, 2), max_size=50), rate=st.floats(0.1, 60), first=st.floats(0, 5))
def test_so_many_a_second_is_what_is_on_the_screen(gaps: list[float], rate: float, first: float) -> None:
    times = first + np.concatenate([[0.0], np.cumsum(gaps)])
    indices = sampling.per_second(times, rate)
    asked = first + np.arange(len(indices)) / rate
    assert (times[indices] <= asked + 1e-5).all()
    following = np.append(times, np.inf)[indices + 1]
    assert (following >= asked - 1e-5).all()
    assert len(indices) == pytest.approx((times[-1] - first) * rate + 1, abs=1)


@pytest.mark.parametrize("policy", POLICIES)
def test_no_frame_or_no_count_is_a_mistake(policy: Policy) -> None:
    with pytest.raises(ValueError, match="at least one frame, got none"):
        policy(frames(0), 4)
    with pytest.raises(ValueError, match="count: expected at least 1, got 0"):
        policy(frames(4), 0)


def test_a_rate_must_be_one() -> None:
    with pytest.raises(ValueError, match="rate: expected more than 0 frames per second, got 0"):
        sampling.per_second(frames(4), 0)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("policy", NAMES)
@given(total=st.integers(1, 600), count=st.integers(1, 64), seed=st.integers(0, 2**32))
def test_by_name_as_many_as_asked_for_ascending_and_in_the_clip(policy: str, total: int, count: int, seed: int) -> None:
    indices = sampling.choose(policy, frames(total), count, generator(seed))
    assert indices.dtype == np.int64
    assert len(indices) == count
    assert (np.diff(indices) >= 0).all()
    assert indices[0] >= 0
    assert indices[-1] < total
    long_enough = 3 * count if policy.endswith(":3") else 2 * count
    if total >= long_enough and "20" not in policy:
        assert len(np.unique(indices)) == count
    np.testing.assert_array_equal(indices, sampling.choose(policy, frames(total), count, generator(seed)))


@pytest.mark.parametrize("policy", NAMES)
def test_chance_is_drawn_from_where_it_says(policy: str) -> None:
    drawn = {tuple(sampling.choose(policy, frames(300), 8, generator(seed))) for seed in range(40)}
    assert (len(drawn) > 1) == policy.startswith(tuple(DRAWN))


def lavis(vlen: int, n_frms: int, policy: str, sample: Callable[[range, int], list[int]]) -> list[int]:
    """What ``load_video`` of lavis/datasets/data_utils.py does, with another source of chance."""
    if policy == "uniform":
        return [int(index) for index in np.arange(0, vlen, vlen / n_frms)][:n_frms]
    half = n_frms // 2
    return sorted(sample(range(vlen // 2), half)) + sorted(sample(range(vlen // 2, vlen), half))


@given(total=st.integers(2, 2000), half=st.integers(1, 32), seed=st.integers(0, 2**32))
def test_headtail_is_that_of_lavis(total: int, half: int, seed: int) -> None:
    ours = sampling.headtail(frames(total), 2 * half, generator(seed))
    head, tail = np.split(ours, 2)
    assert (head < total // 2).all()
    assert (tail >= total // 2).all()
    if half <= total // 2:
        chance = generator(seed)

        def sample(places: range, number: int) -> list[int]:
            return chance.choice(np.array(places), number, replace=False).tolist()

        assert ours.tolist() == lavis(total, 2 * half, "headtail", sample)


def test_headtail_draws_every_frame_as_often_as_lavis() -> None:
    chance = stdlib_random.Random(0)
    ours, theirs = np.zeros(12), np.zeros(12)
    for seed in range(3000):
        ours[sampling.headtail(frames(12), 6, generator(seed))] += 1
        theirs[lavis(12, 6, "headtail", chance.sample)] += 1
    np.testing.assert_allclose(ours, 1500, atol=150)  # five standard deviations
    np.testing.assert_allclose(theirs, 1500, atol=150)


@pytest.mark.parametrize(
    ("total", "count", "ends"), [(1, 4, (0, 0)), (2, 4, (0, 1)), (3, 4, (0, 2)), (5, 3, (0, 4)), (1, 1, (0, 0))]
)
def test_headtail_repeats_where_lavis_would_fail(total: int, count: int, ends: tuple[int, int]) -> None:
    indices = sampling.headtail(frames(total), count, generator())
    assert len(indices) == count
    assert indices[0] >= ends[0]
    assert indices[-1] <= ends[1]


@pytest.mark.parametrize(("total", "count"), [(480, 16), (257, 8), (30, 30), (31, 7)])
def test_span_starts_equal_lavis_where_its_sums_do(total: int, count: int) -> None:
    assert sampling.span_starts(frames(total), count).tolist() == lavis(total, count, "uniform", None)


def mmaction(total: int, clip_len: int, interval: int, chance: np.random.Generator | None) -> list[int]:
    """Offsets of mmaction's ``SampleFrames`` with one clip; ``chance``: in training."""
    room = total - clip_len * interval + 1
    first = int(chance.integers(room)) if chance else int(room / 2)
    return [first + interval * step for step in range(clip_len)]


@given(count=st.integers(1, 32), interval=st.integers(1, 4), more=st.integers(0, 500), seed=st.integers(0, 2**32))
def test_consecutive_is_mmactions_clip(count: int, interval: int, more: int, seed: int) -> None:
    total = count * interval + more
    pts = frames(total)
    assert sampling.consecutive(pts, count, interval).tolist() == mmaction(total, count, interval, None)
    drawn = sampling.somewhere(pts, count, generator(seed), interval)
    assert drawn.tolist() == mmaction(total, count, interval, generator(seed))


def test_somewhere_reaches_both_ends() -> None:
    drawn = [sampling.somewhere(frames(8), 3, generator(seed), 2) for seed in range(60)]
    assert {int(indices[0]) for indices in drawn} == {0, 1, 2}


@pytest.mark.parametrize(
    ("total", "count", "rate", "expected"),
    [(100, 8, "1", [0, 25, 50, 75]), (100, 2, "1", [25, 75]), (100, 3, "0.5", [0, 50]), (1, 4, "2", [0])],
)
def test_fps_gives_at_most_so_many(total: int, count: int, rate: str, expected: list[int]) -> None:
    assert sampling.choose(f"fps:{rate}", frames(total), count, generator()).tolist() == expected


@pytest.mark.parametrize(
    "name",
    ["", "random", "Uniform", "uniform:2", "consecutive:0", "consecutive:", "consecutive:1.5", "fps", "fps:0", "fps:-1",
     "fps:0.0", "headtail:4", "somewhere:0", "middle", "stretch:0"],
)  # fmt: skip
def test_unknown_policies_fail(name: str) -> None:
    with pytest.raises(ValueError, match=rf"sampling: expected one of uniform, .*fps:<rate>; got '{name}'"):
        sampling.check(name)
    with pytest.raises(ValueError, match="sampling: expected one of uniform"):
        sampling.choose(name, frames(4), 2, generator())


def test_known_policies_are_themselves() -> None:
    for name in (*NAMES, "fps:2", "fps:0.25"):
        assert sampling.check(name) == name


@pytest.mark.parametrize("interval", [0, -1])
def test_an_interval_must_be_one(interval: int) -> None:
    with pytest.raises(ValueError, match=f"interval: expected at least 1 frame, got {interval}"):
        sampling.consecutive(frames(9), 2, interval)
    with pytest.raises(ValueError, match=f"interval: expected at least 1 frame, got {interval}"):
        sampling.somewhere(frames(9), 2, generator(), interval)


@pytest.mark.parametrize(
    ("total", "rate", "count", "of", "expected"),
    [
        (250, 25, 4, 20, [100, 112, 125, 137]),  # 12.5 apart; AVCap: from frame 8 of 20 on
        (250, 25, 1, 20, [125]),  # AVCap's and CAV-MAE's one frame: number of / 2
        (250, 25, 1, 10, [125]),
        (750, 25, 4, 20, [100, 112, 125, 137]),  # of 30 s, the first 10 are looked at
        (900, 29.97, 2, 20, [134, 149]),  # 299 whole frames in 10 s
        (300, 29.97, 4, 20, [119, 134, 149, 164]),  # also where the clip ends with the frame that is not whole
        (20, 2, 4, 20, [8, 9, 10, 11]),
        (4, 25, 4, 20, [1, 1, 2, 2]),
        (1, 25, 3, 20, [0, 0, 0]),
        (100, 25, 4, 2, [0, 25, 50, 75]),
    ],
)
def test_middle_by_hand(total: int, rate: float, count: int, of: int, expected: list[int]) -> None:
    assert sampling.choose(f"middle:{of}", frames(total, rate), count, generator()).tolist() == expected


@given(total=st.integers(1, 2000), count=st.integers(1, 30), of=st.integers(1, 30), seed=st.integers(0, 100))
def test_stretch_is_a_stretch_of_what_middle_looks_at(total: int, count: int, of: int, seed: int) -> None:
    pts, most = frames(total), max(count, of)
    every = sampling.middle(pts, most, most).tolist()
    drawn = sampling.stretch(pts, count, of, generator(seed))
    assert drawn.dtype == np.int64
    assert drawn.tolist() in [every[start : start + count] for start in range(most - count + 1)]
    assert sampling.middle(pts, count, of).tolist() in [every[s : s + count] for s in range(most - count + 1)]


def test_stretch_begins_anywhere() -> None:
    starts = {int(sampling.stretch(frames(20, 2), 4, 20, generator(seed))[0]) for seed in range(300)}
    assert starts == set(range(17))


def test_a_request_without_views_is_its_policy() -> None:
    pts = frames(100)
    chosen = FrameRequest(sampling="uniform", count=7).choose(pts, seed=3)
    np.testing.assert_array_equal(chosen, sampling.uniform(pts, 7))


@given(total=st.integers(1, 200), count=st.integers(1, 16), views=st.integers(0, 3), seed=st.integers(0, 2**64 - 1))
def test_views_of_a_request_follow_the_plain_one(total: int, count: int, views: int, seed: int) -> None:
    pts = frames(total)
    request = FrameRequest(sampling="span_starts", count=count, views=views, view_sampling="headtail")
    plain, *others = np.split(request.choose(pts, seed), 1 + views)
    np.testing.assert_array_equal(plain, sampling.span_starts(pts, count))
    for view, indices in enumerate(others, 1):
        np.testing.assert_array_equal(indices, sampling.headtail(pts, count, np.random.default_rng((seed, view))))


def test_views_differ_from_each_other_and_between_clips() -> None:
    request = FrameRequest(sampling="uniform", count=8, views=2, view_sampling="headtail")
    _, one, other = np.split(request.choose(frames(200), seed=1), 3)
    _, elsewhere, _ = np.split(request.choose(frames(200), seed=2), 3)
    assert one.tolist() != other.tolist()
    assert one.tolist() != elsewhere.tolist()


def test_views_have_as_many_frames_as_the_plain_one() -> None:
    request = FrameRequest(sampling="fps:1", count=8, views=1, view_sampling="headtail")
    assert len(request.choose(frames(76), seed=0)) == 2 * 4  # 3 s: frames at 0, 1, 2 and 3
    request = FrameRequest(sampling="uniform", count=8, views=2, view_sampling="fps:1")
    plain, *views = np.split(request.choose(frames(76), seed=0), 3)
    np.testing.assert_array_equal(plain, sampling.uniform(frames(76), 8))
    assert [view.tolist() for view in views] == [[0, 0, 25, 25, 50, 50, 75, 75]] * 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sampling": "all"}, "sampling: expected one of .*got 'all'"),
        ({"view_sampling": "all"}, "sampling: expected one of .*got 'all'"),
        ({"count": 0}, "count: expected at least 1, got 0"),
        ({"views": -1}, "views: expected at least 0, got -1"),
    ],
)
def test_a_request_checks_itself(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrameRequest(**{"sampling": "uniform", "count": 4, **values})
