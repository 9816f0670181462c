from __future__ import annotations

import pytest

from ptsr_edge.camera.metrics import RECENT, STAGES, Counters, StageTime


def test_stages_add_up() -> None:
    counters = Counters()
    for took in (1.0, 3.0, 2.0):
        counters.spent("flow", took)
    assert counters.stages["flow"] == StageTime(3, 6.0, 3.0)
    assert tuple(counters.stages) == STAGES
    assert counters.stages["crop"] == StageTime(0, 0.0, 0.0)


def test_a_stage_that_raises_is_timed_all_the_same() -> None:
    counters = Counters()
    with pytest.raises(ValueError, match="no"), counters.timed("face"):
        raise ValueError("no")
    assert counters.stages["face"].count == 1


def test_percentiles_are_those_of_the_last_pushes() -> None:
    counters = Counters()
    assert counters.percentiles() == (0.0, 0.0, 0.0)
    counters.pushes_ms.extend(float(number) for number in range(2 * RECENT))
    p50, p95, most = counters.percentiles()
    # The integers from 512 to 1023; percentiles interpolate linearly.
    assert (p50, p95, most) == pytest.approx((767.5, 512 + 0.95 * 511, 1023))


def test_an_unknown_count_is_an_error() -> None:
    with pytest.raises(KeyError):
        Counters().count("tea")
