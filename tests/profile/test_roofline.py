"""Products and operators in real runtimes; how fast they are is no matter of a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundle_data import SIDE, write_tiny_bundle

from ptsr_edge.profile.roofline import (
    CLASSES,
    ROWS,
    WIDTH,
    Untold,
    measure_ceiling,
    operator_shares,
    operators_run,
    shares_of,
)

pytestmark = pytest.mark.slow


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
    assert found["missing"] == {}


@pytest.mark.parametrize(
    ("target", "precision", "why"),
    [
        ("trt", "fp16", "no ceiling is measured for target trt"),
        ("toy", "fp32", "no ceiling is measured for target toy"),
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
    reason = {"kind": "not_supported", "reason": f"there is no ceiling: {found['why']}"}
    assert found["missing"] == {"gmacs_per_s": reason, "share": reason}


def test_shares_add_up_by_class_and_an_unknown_operator_keeps_its_name() -> None:
    shares = shares_of([("MatMul", 3.0), ("FullyConnected", 3.0), ("Softmax", 1.0), ("Hadamard", 1.0)])
    # 6, 1 and 1 of 8.
    assert shares == {"matrix products": 0.75, "softmax and activations": 0.125, "Hadamard": 0.125}
    assert shares_of([]) == {}


def test_no_operator_stands_in_two_classes() -> None:
    names = [name for group in CLASSES.values() for name in group]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("target", ["cpu", "openvino"])
def test_the_runtimes_profiler_tells(target: str, tmp_path: Path) -> None:
    side = SIDE
    if target == "cpu":
        bundle = write_tiny_bundle(tmp_path / "b", [1.0])
    else:
        pytest.importorskip("openvino")
        from ptsr_edge.export.exporter import export_bundle

        side = 28
        bundle = export_bundle(
            out=tmp_path / "b",
            model="ptsr-nano",
            target=target,
            budgets=[0.25],
            precisions=["fp32"],
            cache=True,
        )
    flow = np.random.default_rng(0).normal(size=(1, 3, side, side)).astype(np.float32)
    before = set((tmp_path / "b").iterdir())
    shares = operator_shares(target, tmp_path / "b" / bundle.variants[0].artifact, 1, flow, 4)
    assert isinstance(shares, dict)
    assert "matrix products" in shares
    assert sum(shares.values()) == pytest.approx(1)
    assert set(shares) <= set(CLASSES)
    counts = operators_run(target, tmp_path / "b" / bundle.variants[0].artifact, 1, flow)
    assert isinstance(counts, dict)
    assert {"MatMul", "FullyConnected"} & set(counts)
    # Compiled again it is the same count, although some operators take less than the profiler's clock can tell.
    for _ in range(3):
        assert operators_run(target, tmp_path / "b" / bundle.variants[0].artifact, 1, flow) == counts
    assert list(counts.values()) == sorted(counts.values(), reverse=True)
    assert set((tmp_path / "b").iterdir()) == before


def test_operators_that_run_are_those_of_the_graph(tmp_path: Path) -> None:
    """Three products and three sines that nothing fuses or folds: six nodes run, whatever the number of runs."""
    import onnx
    from onnx import TensorProto, helper

    nodes = []
    for step in range(3):
        nodes.append(helper.make_node("Mul", [f"x{step}" if step else "flow", "flow"], [f"y{step}"]))
        nodes.append(helper.make_node("Sin", [f"y{step}"], [f"x{step + 1}"]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 4, 4]) for name in ("flow", "x3")]
    graph = helper.make_graph(nodes, "six", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "six.onnx")
    flow = np.ones((1, 3, 4, 4), np.float32)
    assert operators_run("cpu", tmp_path / "six.onnx", 1, flow) == {"Mul": 3, "Sin": 3}


def test_operators_of_a_profiler_that_is_not_read(tmp_path: Path) -> None:
    found = operators_run("trt", tmp_path / "x.engine", 1, np.ones((1, 3, 4, 4), np.float32))
    assert found == Untold(
        "not_supported", "operators were not counted: the profiler of target trt is not read"
    )


@pytest.mark.parametrize("target", ["trt", "toy"])
def test_a_runtime_that_is_not_read_says_so(target: str) -> None:
    flow = np.ones((1, 3, SIDE, SIDE), dtype=np.float32)
    told = Untold("not_supported", f"the profiler of target {target} is not read")
    assert operator_shares(target, Path("x.plan"), 1, flow, 1) == told
