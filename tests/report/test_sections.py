"""What stands below charts and headings, and what the numbers do not say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from judged_data import CONTROLS, judged_profile
from report_data import DYNAMIC, compared, make_profile, without, write_profile

from ptsr_edge.profile.schema import Attempt
from ptsr_edge.report.comparison import Comparison
from ptsr_edge.report.recommendation import Limits, recommend
from ptsr_edge.report.sections import (
    TAIL_SAMPLES,
    Evidence,
    controls_evidence,
    decision_evidence,
    dynamic_evidence,
    instability,
    int8_evidence,
    limitations,
    macs_evidence,
)
from ptsr_edge.report.tables import pipe_table


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    judged_profile(tmp_path, worse={1.0: 0.0, 0.5: 0.0, 0.25: 0.1})
    return compared(tmp_path)


def cells(evidence: Evidence) -> list[list[str]]:
    """The lines of a table, with their names."""
    assert evidence.table is not None
    return [[line.name, *(cell.text for cell in line.cells)] for line in evidence.table.lines]


def test_controls_are_shown_in_table_and_text(tmp_path: Path, comparison: Comparison) -> None:
    found = controls_evidence(comparison)
    assert [(line[0], line[-1]) for line in cells(found)] == [
        ("DTSM", "-"),
        ("random", "none [-0.020, +0.040]"),
        ("strain", "+0.050 [+0.020, +0.080]"),
    ]
    (text,) = found.texts
    assert "Over random selection DTSM gains UAR: none [-0.020, +0.040] at 98 tokens." in text
    assert "Over selection by strain energy DTSM gains UAR: +0.050 [+0.020, +0.080] at 98 tokens." in text
    assert "selects by strain energy itself" not in text
    assert text.endswith("Weights that were trained with DTSM's selection favour it.")
    make_profile(tmp_path, samples=50, controls=CONTROLS[:2])
    assert "selects by strain energy itself" in controls_evidence(compared(tmp_path)).texts[0]


def test_what_each_budget_truncates(comparison: Comparison) -> None:
    # 20 samples: 5 of 40, 10 of 60, 4 of 98, 1 of 120 tokens; the budgets are 196, 98 and 49.
    assert [DYNAMIC.truncated(tokens) for tokens in (196, 98, 49, 39)] == [0, 1 / 20, 15 / 20, 1]
    found = dynamic_evidence(comparison)
    assert [line[-1] for line in cells(found)] == ["0.0 %", "5.0 %", "75.0 %"]
    assert "40 to 120 tokens, 60 at the median, over 20 calibration samples of synthetic" in found.texts[0]


def test_candidates_are_listed_with_what_they_lack(comparison: Comparison) -> None:
    _, decision = recommend(comparison, Limits(max_uar_drop=0.05))
    assert decision is not None
    found = decision_evidence(decision)
    stands = {line[0]: line[1] for line in cells(found)}
    assert stands["50 %"] == "taken"
    assert stands["25 %"] == "drop too large"
    assert found.table is not None
    assert [line.name for line in found.table.lines if line.is_picked] == ["50 %"]
    assert "Assumed: subjects are independent of one another" in " ".join(found.texts)


def test_layers_that_went_back_are_listed(tmp_path: Path) -> None:
    profile = make_profile(tmp_path, precisions=("int8",))
    record = {
        "limit": 0.01, "kept_float": ["blocks.0.mlp"],
        "sensitivity": [{"layer": "blocks.0.mlp", "error": 0.2}, {"layer": "head", "error": 0.01}],
    }  # fmt: skip
    write_profile(tmp_path, without(profile, int8_layers=record))
    found = int8_evidence(compared(tmp_path))
    assert cells(found) == [
        ["blocks.0.mlp", "cpu", "0.2", "floating point"],
        ["head", "cpu", "0.01", "int8"],
    ]
    assert "put back to floating point: blocks.0.mlp." in found.texts[0]
    assert found.table is not None
    assert len(pipe_table(found.table)) == 4


@pytest.mark.parametrize(
    ("tell", "said"),
    [
        (controls_evidence, "was not set against its controls"),
        (dynamic_evidence, "Not counted"),
        (int8_evidence, "No int8 was judged"),
    ],
)
def test_what_was_not_had_is_said(tmp_path: Path, tell: Callable[[Comparison], Evidence], said: str) -> None:
    make_profile(tmp_path, kept=False)
    found = tell(compared(tmp_path))
    assert found.table is None
    assert said in found.texts[0]


def test_three_counts_of_multiply_adds_and_why_they_differ(tmp_path: Path) -> None:
    profile = make_profile(tmp_path, samples=50, kept=False, rates=(0.25,), targets=("cpu", "openvino"))
    rows = [
        row.model_copy(
            update={
                "macs": 600 if row.bundle else 1000,
                "macs_eager": 1000,
                "macs_graph": None if row.target == "openvino" else 600 if row.bundle else 1000,
                "macs_explained": "fewer rows" if row.bundle else "as many",
            }
        )
        for row in profile.variants
    ]
    write_profile(tmp_path, profile.model_copy(update={"variants": rows}))
    written = "multiply-adds as written (fvcore on the eager model)"
    assert macs_evidence(compared(tmp_path)).texts == [
        f"The full-token ViT: 1,000 {written}, 1,000 exported, the same counted on the ONNX file itself.",
        f"At 25 %: 1,000 {written}, 600 exported, the same counted on the ONNX file itself: fewer rows.",
    ]


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
