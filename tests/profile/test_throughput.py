"""Calls are counted; how many there are a second is the machine's affair."""

from __future__ import annotations

import threading
import time

import pytest

from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.profile.worker_process import runs_per_second


def test_every_stream_runs_in_a_thread_of_its_own_and_all_at_once() -> None:
    together = threading.Barrier(3, timeout=20)
    seen: set[int] = set()

    def run() -> None:
        seen.add(threading.get_ident())
        if len(seen) < 4:
            together.wait()  # passes only when three are inside at once
            time.sleep(0.001)

    first = threading.local()

    def once() -> None:
        if not getattr(first, "done", False):
            first.done = True
            run()

    assert runs_per_second([once] * 3, 0.01) > 0
    assert len(seen) == 3


def test_calls_that_last_bound_the_figure() -> None:
    # A call of 5 ms and more: no more than 200 a second and stream, however quick the machine is.
    assert 0 < runs_per_second([lambda: time.sleep(0.005)] * 2, 0.05) <= 2 * 200


def test_a_stream_that_fails_ends_all_with_its_own_error() -> None:
    def broken() -> None:
        raise JobError("the runtime gave up")

    with pytest.raises(JobError, match="the runtime gave up"):
        runs_per_second([lambda: None, broken, lambda: None], 0.05)


@pytest.mark.parametrize(("count", "duration_s"), [(0, 1.0), (1, 0.0), (1, -1.0)])
def test_calls_that_are_refused(count: int, duration_s: float) -> None:
    with pytest.raises(InputError, match="a call and a positive duration"):
        runs_per_second([lambda: None] * count, duration_s)
