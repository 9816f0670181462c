from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from ptsr_edge.camera.pipeline import Box, Event


def event(**changes: Any) -> Event:
    content: dict[str, Any] = dict(
        stream="door", label="surprise", probabilities={"negative": 0.1, "positive": 0.2, "surprise": 0.7},
        onset_ns=1_000_000_000, apex_ns=1_100_000_000, offset_ns=1_250_000_000, answered_ns=1_300_000_000,
        score=2.5, face=Box(x=-1.5, y=2, width=100, height=120), crop=Box(x=0, y=10, width=112, height=112),
        kept_tokens=[3, 1], grid=14, budget=0.25, budgets_run=[0.25], processing_ms=4.5,
    )  # fmt: skip
    return Event(**content | changes)


def test_latency_is_what_was_waited_for_and_what_was_computed() -> None:
    assert event().wait_ms == 200.0
    assert event().latency_ms == 204.5


def test_an_event_is_one_line_of_json_with_everything_in_it() -> None:
    line = event(stream='a "quoted"\nname').to_json()
    assert "\n" not in line
    content = json.loads(line)
    assert content["stream"] == 'a "quoted"\nname'
    assert (content["wait_ms"], content["latency_ms"]) == (200.0, 204.5)
    assert content["face"] == {"x": -1.5, "y": 2.0, "width": 100.0, "height": 120.0}
    assert content["apex_ns"] == 1_100_000_000
    assert set(content) == {*Event.model_fields, "wait_ms", "latency_ms"}


def test_an_event_does_not_change() -> None:
    with pytest.raises(ValidationError):
        event().label = "positive"
