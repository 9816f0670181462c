"""Hazards that the record shows, each planted and looked for, and what the numbers do not say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_data import compared, lacking, make_profile, with_effects, without, write_profile

from ptsr_edge.profile.schema import Attempt, Ceiling, Measured, Profile
from ptsr_edge.report.comparison import Comparison
from ptsr_edge.report.hazards import (
    HAZARDS,
    SEVERITIES,
    TAIL_SAMPLES,
    Hazard,
    hazards,
    instability,
    limitations,
)
from ptsr_edge.report.recommendation import recommend


def found(folder: Path, profile: Profile) -> dict[str, Hazard]:
    write_profile(folder, profile)
    comparison = compared(folder)
    return {hazard.kind: hazard for hazard in hazards(comparison, recommend(comparison)[0])}


def changed(profile: Profile, change: Callable[[Measured], dict[str, Any]]) -> Profile:
    """The profile with what `change` gives for each variant of 25 % replaced."""
    rows = [row.model_copy(update=change(row)) if row.keep_rate == 0.25 else row for row in profile.variants]
    return profile.model_copy(update={"variants": rows})


def ratio(row: Measured, times: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    assert row.ratio is not None
    made = row.ratio.model_copy(update={"median": times, "low": low, "high": high, **more})
    return {"ratio": made, "ratio_same_precision": made}


def latency(row: Measured, **changes: float) -> dict[str, Any]:
    assert row.latency_ms is not None
    return {"latency_ms": row.latency_ms.model_copy(update=changes)}


def stages(row: Measured, **changes: Any) -> dict[str, Any]:
    assert row.stages is not None
    return {"stages": row.stages.model_copy(update=changes)}


def accuracy(row: Measured, **changes: Any) -> dict[str, Any]:
    assert row.accuracy is not None
    return {"accuracy": row.accuracy.model_copy(update=changes)}


def disturbed(row: Measured) -> dict[str, Any]:
    bad = lacking(row, "disturbed", "the cores were shared", "ratio", "ratio_same_precision")
    return {"ratio": None, "ratio_same_precision": None, "missing": bad.missing}


PLANTED: dict[str, tuple[Callable[[Measured], dict[str, Any]], str]] = {
    "ratio withheld": (disturbed, "no ratio can be told: 25 % fp32, 25 % int8."),
    "slower than the ViT alike": (lambda row: ratio(row, 0.8, 0.75, 0.9), "25 % fp32 0.80x [0.75, 0.90]; 25 % int8"),
    "slower in less precision": (
        lambda row: ratio(row, 2.0, 1.9, 2.1) if row.precision == "int8" else {}, "int8 is slower than fp32 here: 25 % int8",
    ),
    "ratio by CPU time": (
        lambda row: ratio(row, 3.0, 2.9, 3.1, clock="cpu"), "ratios are of CPU time, and the latencies in milliseconds",
    ),
    "shared core": (lambda _: {"cpu_share": 0.4}, "a thread had its core for 40 % of the time at the least"),
    "interval wider than the gain": (lambda row: ratio(row, 1.2, 1.0, 1.4), "wider than the gain: 25 % fp32, 25 % int8."),
    "loss not excluded": (
        lambda row: accuracy(row, uar_drop=0.0, uar_drop_low=-0.01, uar_drop_high=0.047), "of up to 0.047 is not excluded for 25 % int8",
    ),
    "restless tail": (lambda row: latency(row, p95=99.0), "p95 is more than 1.5 times the median: 25 % fp32, 25 % int8."),
    "little inference": (lambda _: {"sample_ms": 20.0}, "Of a whole sample at 25 % int8, inference is only 6 %"),
    "reorders": (
        lambda row: stages(row, operators={"matrix products": 0.8, "shapes and copies": 0.11, "number formats": 0.09}),
        "20 % of the inference at 25 % int8 goes into reordering",
    ),
    "far from the ceiling": (
        lambda _: {"ceiling": Ceiling(gmacs_per_s=1.0, shape=[1, 1, 1], share=0.1, why=None)},
        "25 % int8 reaches 10 % of the speed of a plain matrix product",
    ),
}  # fmt: skip


@pytest.fixture
def healthy(tmp_path: Path) -> Profile:
    """A profile in which nothing is wrong."""
    profile = make_profile(tmp_path, samples=50, precisions=("fp32", "int8"), kept=False)
    profile = with_effects(without(profile, cpu_share=1.0))
    rows = [
        row.model_copy(update=stages(row, flow_ms=0.1, strain_ms=0.1) | latency(row, p95=1.05 * row.latency_ms.p50)
                       | {"sample_ms": 1.3 * row.latency_ms.p50})
        for row in profile.variants
        if (row.latency_ms and row.keep_rate < 1) or row.bundle is None
    ]  # fmt: skip
    return profile.model_copy(update={"variants": rows})


def test_nothing_is_found_where_nothing_is_wrong(tmp_path: Path, healthy: Profile) -> None:
    assert found(tmp_path, healthy) == {}


@pytest.mark.parametrize("kind", [rule.kind for rule in HAZARDS])
def test_each_hazard_is_found_where_it_was_planted(tmp_path: Path, healthy: Profile, kind: str) -> None:
    change, said = PLANTED[kind]
    hazard = found(tmp_path, changed(healthy, change))[kind]
    assert said in hazard.text
    assert hazard.variants
    assert all(name.startswith("25 %") for name in hazard.variants)


def test_the_worst_comes_first(tmp_path: Path, healthy: Profile) -> None:
    bad = changed(healthy, lambda row: ratio(row, 0.8, 0.75, 0.9) | {"sample_ms": 20.0, "cpu_share": 0.4})
    order = [SEVERITIES.index(hazard.severity) for hazard in found(tmp_path, bad).values()]
    assert order == sorted(order)
    assert set(order) == {0, 1, 2}


def told(*folders: Path) -> str:
    return " ".join(limitations(compared(*folders)))


def test_few_samples_and_a_restless_machine_are_named(tmp_path: Path) -> None:
    profile = make_profile(tmp_path)
    assert "The tail percentiles rest on 1,200 samples" in told(tmp_path)
    assert "The latency of 4 of 4 variants varied by more than 2.5 %" in told(tmp_path)
    latency = profile.variants[0].latency_ms
    assert latency is not None
    quiet = latency.model_copy(update={"n": TAIL_SAMPLES, "cv": 0.01})
    write_profile(tmp_path, without(profile, latency_ms=quiet))
    assert "tail percentiles" not in told(tmp_path)
    assert "varied by more" not in told(tmp_path)


@pytest.mark.parametrize("schema", [1, 2])
def test_rendered_data_and_separate_runs_are_named_where_they_are(tmp_path: Path, schema: int) -> None:
    of_old = {"schema": 1, "data_is_rendered": None} if schema == 1 else {}
    make_profile(tmp_path / "a", **of_old)
    make_profile(tmp_path / "b", data="megc-flow", **of_old)
    assert "no evidence about people" in told(tmp_path / "a")
    assert "no evidence about people" not in told(tmp_path / "b")
    assert "separate runs" not in told(tmp_path / "a")
    assert "separate runs" in told(tmp_path / "a", tmp_path / "b")


def test_data_that_a_program_made_need_not_be_called_synthetic(tmp_path: Path) -> None:
    make_profile(tmp_path, data="toy-faces", data_is_rendered=True)
    assert "no evidence about people" in told(tmp_path)


def test_an_unstable_run_is_named_where_the_last_attempt_was(tmp_path: Path) -> None:
    assert instability(compared_after(tmp_path, [])) == []
    assert instability(compared_after(tmp_path, ["a neighbour", None])) == []
    (said,) = instability(compared_after(tmp_path, ["a neighbour", "the ratio of b is known to 9% only"]))
    assert said.startswith(
        "This profile is unstable: the ratio of b is known to 9% only. It was measured 2 times"
    )


def compared_after(folder: Path, attempts: list[str | None]) -> Comparison:
    make_profile(folder, samples=50, attempts=[Attempt(unstable=unstable) for unstable in attempts])
    return compared(folder)


def test_a_quick_run_is_a_limitation(tmp_path: Path) -> None:
    profile = make_profile(tmp_path, samples=50)
    assert "quick run" not in told(tmp_path)
    method = {"quick": True, "left_out": "time by stage"}
    write_profile(tmp_path, profile.model_copy(update={"method": profile.method | method}))
    assert "A quick run, for a first look: few starts and rounds; not measured: time by stage." in told(
        tmp_path
    )


@pytest.mark.parametrize("alike", [True, False])
def test_a_baseline_trained_otherwise_is_a_limitation(tmp_path: Path, alike: bool) -> None:
    profile = make_profile(tmp_path, samples=50)
    method = {"baseline_trained": "otherwise than the model, in seed", "baseline_trained_alike": alike}
    write_profile(tmp_path, profile.model_copy(update={"method": profile.method | method}))
    assert ("The baseline was trained otherwise than the model, in seed" in told(tmp_path)) == (not alike)
