"""How many inferences a second several sessions of one process answer at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from ptsr_edge.core.errors import InputError


def runs_per_second(runs: Sequence[Callable[[], object]], duration_s: float) -> float:
    """Calls a second of all of `runs` together, each called again and again in a thread of its own.

    All threads start together, after a call each that is not counted. Every thread ends with the call that it
    is in when the duration is over; the time is taken until the last one has ended.

    Raises:
        InputError: nothing to run, or a duration that is not positive.
    """
    if not runs or not duration_s > 0:
        raise InputError(
            f"throughput needs a call and a positive duration, got {len(runs)} and {duration_s:g} s"
        )
    barrier = threading.Barrier(len(runs))

    def stream(run: Callable[[], object]) -> tuple[int, float, float]:
        try:
            run()
        except BaseException:
            barrier.abort()  # the others would wait for this one for ever
            raise
        barrier.wait()
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < duration_s:
            run()
            count += 1
        return count, start, time.perf_counter()

    with ThreadPoolExecutor(len(runs)) as pool:
        futures = [pool.submit(stream, run) for run in runs]
        # The first failure that is a run's own: the others only say that the barrier broke.
        for future in futures:
            error = future.exception()
            if error is not None and not isinstance(error, threading.BrokenBarrierError):
                raise error
        done = [future.result() for future in futures]
    wall_s = max(end for *_, end in done) - min(start for _, start, _ in done)
    return sum(count for count, *_ in done) / wall_s
