"""Tables and sentences behind the verdict."""

from __future__ import annotations

from pathlib import Path

import pytest
from judged_data import CONTROLS, judged_profile
from report_data import DYNAMIC, make_profile, write_profile

from ptsr_edge.report.comparison import Comparison, compare, read_sources
from ptsr_edge.report.recommendation import Limits, choose, decide
from ptsr_edge.report.sections import build_evidence, controls_text, difference_text, dynamic_text
from ptsr_edge.report.tables import pipe_table


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    judged_profile(tmp_path, worse={1.0: 0.0, 0.5: 0.0, 0.25: 0.1})
    return compare(read_sources([tmp_path]))


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ((0.02, -0.01, 0.05), "none [-0.010, +0.050]"),
        ((0.02, 0.0, 0.05), "none [+0.000, +0.050]"),
        ((0.02, 0.01, 0.03), "+0.020 [+0.010, +0.030]"),
        ((-0.02, -0.03, -0.01), "-0.020 [-0.030, -0.010]"),
    ],
)
def test_a_difference_whose_interval_holds_zero_is_called_none(
    figures: tuple[float, float, float], text: str
) -> None:
    assert difference_text(*figures) == text


def test_controls_are_shown_in_table_and_text(comparison: Comparison) -> None:
    table = build_evidence(comparison, None)["controls_table"]
    assert [(line.name, line.cells[-1].text) for line in table.lines] == [
        ("DTSM", "-"),
        ("random", "none [-0.020, +0.040]"),
        ("strain", "+0.050 [+0.020, +0.080]"),
    ]
    text = controls_text(CONTROLS)
    assert "Over random selection DTSM gains UAR: none [-0.020, +0.040] at 98 tokens." in text
    assert "Over selection by strain energy DTSM gains UAR: +0.050 [+0.020, +0.080] at 98 tokens." in text
    assert "selects by strain energy itself" not in text
    assert text.endswith("Weights that were trained with DTSM's selection favour it.")
    assert "selects by strain energy itself" in controls_text(CONTROLS[:2])


def test_what_each_budget_truncates(comparison: Comparison) -> None:
    # 20 samples: 5 of 40, 10 of 60, 4 of 98, 1 of 120 tokens; the budgets are 196, 98 and 49.
    assert [DYNAMIC.truncated(tokens) for tokens in (196, 98, 49, 39)] == [0, 1 / 20, 15 / 20, 1]
    table = build_evidence(comparison, None)["dynamic_table"]
    assert [line.cells[1].text for line in table.lines] == ["0.0 %", "5.0 %", "75.0 %"]
    assert "40 to 120 tokens, 60 at the median, over 20 calibration samples of synthetic" in dynamic_text(
        DYNAMIC
    )


def test_candidates_are_listed_with_what_they_lack(comparison: Comparison) -> None:
    _, decision = choose(comparison, Limits(max_uar_drop=0.05))
    found = build_evidence(comparison, decision)
    lines = {line.name: [cell.text for cell in line.cells] for line in found["decision_table"].lines}
    assert lines["50 %"][0] == "taken"
    assert lines["25 %"][0] == "drop too large"
    assert any(line.is_picked for line in found["decision_table"].lines)
    assert "Assumed: subjects are independent of one another" in " ".join(found["decision_text"])


def test_layers_that_went_back_are_listed(tmp_path: Path) -> None:
    profile = make_profile(tmp_path, precisions=("int8",))
    record = {
        "limit": 0.01, "kept_float": ["blocks.0.mlp"],
        "sensitivity": [{"layer": "blocks.0.mlp", "error": 0.2}, {"layer": "head", "error": 0.01}],
    }  # fmt: skip
    rows = [row.model_copy(update={"int8_layers": record}) for row in profile.variants]
    write_profile(tmp_path, profile.model_copy(update={"variants": rows}))
    found = build_evidence(compare(read_sources([tmp_path])), None)
    assert [[line.name, *(c.text for c in line.cells)] for line in found["int8_table"].lines] == [
        ["blocks.0.mlp", "cpu", "0.2", "floating point"],
        ["head", "cpu", "0.01", "int8"],
    ]
    assert "put back to floating point: blocks.0.mlp." in found["int8_text"]
    assert len(pipe_table(found["int8_table"])) == 4


def test_what_was_not_had_is_said(tmp_path: Path) -> None:
    make_profile(tmp_path, kept=False)
    found = build_evidence(compare(read_sources([tmp_path])), None)
    assert [found[name] for name in ("decision_table", "controls_table", "dynamic_table", "int8_table")] == [
        None
    ] * 4
    assert "was not set against its controls" in found["controls_text"]
    assert "Not counted" in found["dynamic_text"]
    assert "No int8 was judged" in found["int8_text"]


def test_no_difference_is_called_none_in_the_verdict_too(tmp_path: Path) -> None:
    judged_profile(tmp_path, worse={1.0: 0.0, 0.5: 0.0, 0.25: 0.01})  # every interval holds zero
    sentence = decide(compare(read_sources([tmp_path]))).sentence
    assert "in UAR there is no difference" in sentence
    assert "lower" not in sentence


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
    found = build_evidence(compare(read_sources([tmp_path])), None)["macs_text"]
    written = "multiply-adds as written (fvcore on the eager model)"
    assert found == [
        f"The full-token ViT: 1,000 {written}, 1,000 exported, the same counted on the ONNX file itself.",
        f"At 25 %: 1,000 {written}, 600 exported, the same counted on the ONNX file itself: fewer rows.",
    ]
