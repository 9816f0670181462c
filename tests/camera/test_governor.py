from __future__ import annotations

import itertools
import math

import pytest

from ptsr_edge.camera.inference import HOLD_S, BudgetController
from ptsr_edge.core.errors import InputError

COSTS = {0.25: 2.0, 0.5: 4.0, 1.0: 10.0}
FRAME_NS = 33_333_333


class Load:
    """Pushes of a machine that is `slow` times slower than when it was timed; every third one has an inference."""

    def __init__(self, governor: BudgetController) -> None:
        self.governor, self.pts, self.misses = governor, 0, 0

    def run(self, pushes: int, slow: float, rest_ms: float = 4.0) -> list[float]:
        budgets = []
        for number in range(pushes):
            self.pts += FRAME_NS
            budget = self.governor.budget
            spent = {budget: slow * COSTS[budget]} if number % 3 == 0 else {}
            took = slow * rest_ms + sum(spent.values())
            self.governor.saw_push(took, spent, self.pts)
            budgets.append(budget)
        return budgets


def test_it_starts_at_the_largest_budget_that_fits() -> None:
    assert BudgetController(COSTS, 33).budget == 1.0
    assert BudgetController(COSTS, 9).budget == 0.5
    assert BudgetController(COSTS, 1).budget == 0.25
    assert BudgetController(COSTS, 9).ladder == (0.25, 0.5, 1.0)


def test_it_steps_down_when_the_machine_slows_and_comes_back_up_when_it_does_not() -> None:
    load = Load(BudgetController(COSTS, 33))
    assert set(load.run(60, slow=1.0)) == {1.0}
    slow = load.run(120, slow=4.0)  # 16 + 40 ms at full budget, 16 + 16 at half
    assert slow[-1] < 1.0
    misses = load.governor.misses
    load.run(60, slow=4.0)
    assert load.governor.misses == misses, "the deadline is held once it has stepped down"
    assert load.run(1200, slow=1.0)[-1] == 1.0


def test_it_does_not_swing() -> None:
    """At a load where full budget just fits and leaves no reserve, it goes down once and stays."""
    load = Load(BudgetController(COSTS, 33))
    load.run(3, slow=3.0)
    budgets = load.run(
        900, slow=2.1, rest_ms=5.0
    )  # 10.5 + 21 = 31.5 of 33 ms: fits, with less than a fifth left
    moves = sum(one != other for one, other in itertools.pairwise(budgets))
    assert moves <= 1


def test_it_holds_a_budget_for_some_time_before_it_goes_up() -> None:
    load = Load(BudgetController(COSTS, 33))
    load.run(30, slow=6.0)
    assert load.governor.budget == 0.25
    budgets = load.run(2000, slow=1.0)
    changes = [place for place in range(1, len(budgets)) if budgets[place] != budgets[place - 1]]
    assert budgets[-1] == 1.0
    assert len(changes) == 2
    assert (changes[1] - changes[0]) * FRAME_NS >= HOLD_S * 1e9


def test_a_slow_push_without_an_inference_is_a_miss_but_no_reason_to_move() -> None:
    governor = BudgetController(COSTS, 33)
    for number in range(40):
        governor.saw_push(3.0, {}, number * FRAME_NS)
    governor.saw_push(50.0, {}, 41 * FRAME_NS)
    assert governor.misses == 1
    assert governor.budget == 1.0


def test_a_clock_that_jumps_back_does_not_hold_it_forever() -> None:
    load = Load(BudgetController(COSTS, 33))
    load.run(30, slow=6.0)
    load.pts -= 10**15
    assert load.run(2000, slow=1.0)[-1] == 1.0


@pytest.mark.parametrize("deadline", [0, -1, math.nan, math.inf])
def test_a_deadline_that_is_none_is_refused(deadline: float) -> None:
    with pytest.raises(InputError, match="deadline_ms must be positive"):
        BudgetController(COSTS, deadline)
    with pytest.raises(InputError, match="at least one budget"):
        BudgetController({}, 33)
