from __future__ import annotations

import random

import pytest

from ptsr_edge.camera.runner import Backoff
from ptsr_edge.core.errors import InputError


def waits(seed: int, retries: int = 12) -> list[float | None]:
    backoff = Backoff(first_s=1, longest_s=30, retries=retries, draw=random.Random(seed))
    return [backoff.next_s() for _ in range(retries + 1)]


def test_waits_double_up_to_the_longest_and_then_end() -> None:
    """By the docstring: between a half and the whole of 1, 2, 4, 8, 16, 30, 30, ... seconds, then None."""
    *found, last = waits(seed=0)
    assert last is None
    for wait_s, whole in zip(found, [1, 2, 4, 8, 16, *[30] * 7], strict=True):
        assert wait_s is not None
        assert whole / 2 <= wait_s <= whole


def test_two_sources_do_not_come_back_together() -> None:
    assert all(one != other for one, other in zip(waits(0)[:-1], waits(1)[:-1], strict=True))


def test_a_source_that_works_again_starts_over() -> None:
    backoff = Backoff(retries=3)
    for _ in range(3):
        backoff.next_s()
    backoff.reset()
    wait_s = backoff.next_s()
    assert wait_s is not None
    assert wait_s <= 1


def test_a_thousand_failures_stay_bounded() -> None:
    backoff = Backoff(retries=2000)
    assert max(backoff.next_s() or 0 for _ in range(2000)) <= 30


def test_no_retries_means_none() -> None:
    assert Backoff(retries=0).next_s() is None


def test_bad_settings_are_told() -> None:
    with pytest.raises(InputError, match="at most the longest; found 5 s and 1 s"):
        Backoff(first_s=5, longest_s=1)
    with pytest.raises(InputError, match="retries must be 0 or more; found -1"):
        Backoff(retries=-1)
