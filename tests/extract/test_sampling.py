"""Which frames are looked at."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avpipe.extract import sampling

POLICIES = [sampling.uniform, sampling.span_starts, sampling.linspace]
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
