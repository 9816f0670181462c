from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_data import SIDE, tiny_flows, write_tiny_bundle
from camera_data import cascade

from ptsr_edge.bundle import write_bundle
from ptsr_edge.camera.inference import SharedSession, probability_margin
from ptsr_edge.core.errors import InputError
from ptsr_edge.session import Session

pytest.importorskip("onnxruntime")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    bundle = write_tiny_bundle(tmp_path / "tiny", (1.0, 0.5, 0.25))
    write_bundle(tmp_path / "tiny", bundle.model_copy(update={"cascades": [cascade()]}))
    return tmp_path / "tiny"


def test_all_budgets_are_loaded_and_timed_beforehand(folder: Path) -> None:
    shared = SharedSession(folder)
    assert shared.budgets == [0.25, 0.5, 1.0]
    assert set(shared.inference_ms) == {0.25, 0.5, 1.0}
    assert all(took > 0 for took in shared.inference_ms.values())
    assert shared.artifact == "cpu/fp32"
    for variant in shared.bundle.variants:
        (folder / variant.artifact).unlink()  # nothing is loaded any more
    flow = tiny_flows(1).flows[0]
    assert [len(shared.predict(flow, budget).prediction.kept_tokens) for budget in shared.budgets] == [
        4,
        8,
        16,
    ]


def test_it_answers_as_a_session_does(folder: Path) -> None:
    shared = SharedSession(folder)
    for flow in tiny_flows(5).flows:
        for budget in (0.5, 1.0):
            answer = shared.predict(flow, budget)
            expected = Session.open(folder, budget=budget).predict(flow)
            np.testing.assert_array_equal(answer.prediction.logits, expected.logits)
            assert answer.prediction.budget == budget
            assert list(answer.inference_ms) == [budget]


def test_a_cascade_goes_on_exactly_where_the_small_answer_is_close(folder: Path) -> None:
    shared, went_on = SharedSession(folder), []
    small = Session.open(folder, budget=0.5)
    for flow in tiny_flows(40).flows / 40:
        answer = shared.predict_in_cascade(flow)
        close = probability_margin(small.predict(flow).probabilities) < 0.5
        assert list(answer.inference_ms) == ([0.5, 1.0] if close else [0.5])
        assert answer.prediction.budget == (1.0 if close else 0.5)
        went_on.append(close)
    assert {True, False} == set(went_on)


def test_many_threads_get_their_own_answers(folder: Path) -> None:
    shared, flows = SharedSession(folder), tiny_flows(40).flows
    expected = {budget: Session.open(folder, budget=budget) for budget in shared.budgets}
    wanted = [[expected[budget].predict(flow).logits for flow in flows] for budget in shared.budgets]
    wrong: list[Any] = []
    start = threading.Barrier(6)

    def work(place: int) -> None:
        budget = shared.budgets[place % 3]
        start.wait()
        for number, flow in enumerate(flows):
            answer = shared.predict(flow, budget).prediction
            if answer.budget != budget or not np.array_equal(answer.logits, wanted[place % 3][number]):
                wrong.append((place, number))

    workers = [threading.Thread(target=work, args=(place,)) for place in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_budgets_that_there_are_not_are_refused(folder: Path) -> None:
    shared = SharedSession(folder)
    assert shared.check_budget(0.5) == 0.5
    assert shared.check_budget(0.24) == 0.25  # as many tokens
    assert shared.check_budget(1) == 1.0
    with pytest.raises(InputError, match=r"no budget 0\.7 in cpu/fp32; it has 0\.25, 0\.5, 1"):
        shared.check_budget(0.7)
    for wrong in (0, 1.5, True, "half", None):
        with pytest.raises(InputError, match="a budget is auto, cascade or a keep rate"):
            shared.check_budget(wrong)  # type: ignore[arg-type]


def test_a_flow_that_is_none_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="a flow sample must be"):
        SharedSession(folder).predict(np.zeros((SIDE, SIDE), np.float32), 1.0)


def test_a_model_of_ready_made_flow_cannot_be_used_with_a_camera(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="trained on flow fields that came ready-made"):
        SharedSession(tiny_bundle)


def test_a_bundle_without_a_cascade_says_how_to_get_one(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "tiny")
    with pytest.raises(InputError, match="export it with --cascade-loss"):
        SharedSession(tmp_path / "tiny").check_cascade()
