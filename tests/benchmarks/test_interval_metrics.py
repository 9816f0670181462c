"""Matching of intervals, with counts worked out by hand."""

from __future__ import annotations

import pytest
from interval_metrics import IntervalCounts, count_intervals, match_intervals, overlap

from ptsr_edge.core.errors import InputError


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ((0, 4), (0, 4), 1.0),
        ((0, 4), (2, 6), 1 / 3),  # 2 shared of 6
        ((0, 4), (1, 3), 1 / 2),
        ((0, 4), (4, 5), 0.0),
        ((0, 4), (9, 10), 0.0),
    ],
)
def test_overlap(one: tuple[float, float], other: tuple[float, float], share: float) -> None:
    assert overlap(one, other) == pytest.approx(share)
    assert overlap(other, one) == pytest.approx(share)


def test_one_half_is_enough() -> None:
    assert match_intervals([(0, 4)], [(1, 3)]) == [(0, 0)]
    assert match_intervals([(0, 4.01)], [(1, 3)]) == []


def test_a_true_interval_is_found_once_and_by_the_better_one() -> None:
    # .6, .8 and .5 of the true one.
    assert match_intervals([(0, 6), (0, 8), (5, 10)], [(0, 10)]) == [(1, 0)]
    assert count_intervals([(0, 6), (0, 8), (5, 10)], [(0, 10)]) == IntervalCounts(1, 3, 1)


def test_a_spotted_interval_meets_one_true_interval_at_most() -> None:
    assert match_intervals([(0, 10)], [(0, 5), (5, 10)]) == [(0, 0)]
    assert count_intervals([(0, 10)], [(0, 5), (5, 10)]) == IntervalCounts(1, 1, 2)


def test_counts_add_up_to_the_metric() -> None:
    total = IntervalCounts(3, 4, 5) + IntervalCounts(1, 4, 3)
    assert total == IntervalCounts(4, 8, 8)
    assert (total.f1, total.precision, total.recall, total.false_alarms) == (0.5, 0.5, 0.5, 4)
    uneven = IntervalCounts(2, 3, 7)
    assert uneven.f1 == pytest.approx(2 * 2 / (2 * 2 + 1 + 5))  # 2 TP / (2 TP + FP + FN)


def test_nothing_is_no_division_by_zero() -> None:
    assert match_intervals([], [(0, 1)]) == []
    assert match_intervals([(0, 1)], []) == []
    nothing = count_intervals([], [])
    assert (nothing.f1, nothing.precision, nothing.recall) == (0, 0, 0)


@pytest.mark.parametrize("bad", [(2, 1), (1, 1)])
def test_what_is_no_interval_is_refused(bad: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="must end after it starts"):
        match_intervals([bad], [(0, 1)])
    with pytest.raises(InputError, match=r"in \(0, 1\]; found 0"):
        match_intervals([], [], least=0)
