"""Real products in real runtimes; how fast they are is no matter of a test."""

from __future__ import annotations

import pytest

from ptsr_edge.profile.roofline import ROWS, WIDTH, measure_ceiling


@pytest.mark.parametrize(
    ("target", "precision"),
    [("cpu", "fp32"), ("cpu", "int8"), ("openvino", "fp32"), ("openvino", "int8")],
)
def test_a_product_runs_in_the_runtime(target: str, precision: str) -> None:
    pytest.importorskip("onnxruntime" if target == "cpu" else "openvino")
    found = measure_ceiling(target, precision, 1, 0.01)
    assert found["shape"] == [ROWS, WIDTH, WIDTH]
    assert found["why"] is None
    assert found["gmacs_per_s"] > 0


@pytest.mark.parametrize(
    ("target", "precision", "why"),
    [
        ("trt", "fp16", "no ceiling is measured for target trt"),
        ("cpu", "fp16", "no matrix product in fp16"),
        ("openvino", "int4", "not for int4"),
    ],
)
def test_where_there_is_none_it_says_why(target: str, precision: str, why: str) -> None:
    if target == "openvino":
        pytest.importorskip("openvino")
    found = measure_ceiling(target, precision, 1, 0.01)
    assert found["gmacs_per_s"] is None
    assert why in found["why"]
