"""Shares by class of operator, from what real runtimes say of themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundle_data import SIDE, write_tiny_bundle

from ptsr_edge.profile.roofline import CLASSES, operator_shares, shares_of

FLOW = np.ones((1, 3, SIDE, SIDE), dtype=np.float32)


def test_shares_add_up_by_class_and_an_unknown_operator_keeps_its_name() -> None:
    shares = shares_of([("MatMul", 3.0), ("FullyConnected", 3.0), ("Softmax", 1.0), ("Hadamard", 1.0)])
    # 6, 1 and 1 of 8.
    assert shares == {"matrix products": 0.75, "softmax and activations": 0.125, "Hadamard": 0.125}
    assert shares_of([]) == {}


def test_no_operator_stands_in_two_classes() -> None:
    names = [name for group in CLASSES.values() for name in group]
    assert len(set(names)) == len(names)


def test_onnx_runtime_tells(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path, [1.0])
    shares, why = operator_shares("cpu", tmp_path / bundle.variants[0].artifact, 1, FLOW, 4)
    assert why is None
    assert shares is not None
    assert "matrix products" in shares
    assert sum(shares.values()) == pytest.approx(1)
    assert set(shares) <= set(CLASSES)
    assert not list(tmp_path.glob("*.json*")) or [p.name for p in tmp_path.glob("*.json")] == ["bundle.json"]


def test_openvino_tells(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    from ptsr_edge.export.exporter import export_bundle

    bundle = export_bundle(
        out=tmp_path / "b", model="ptsr-nano", target="openvino", budgets=[0.25], precisions=["fp32"]
    )
    flow = np.random.default_rng(0).normal(size=(1, 3, 28, 28)).astype(np.float32)
    shares, why = operator_shares("openvino", tmp_path / "b" / bundle.variants[0].artifact, 1, flow, 4)
    assert why is None
    assert shares is not None
    assert "matrix products" in shares
    assert sum(shares.values()) == pytest.approx(1)
    assert set(shares) <= set(CLASSES)


def test_a_runtime_that_is_not_read_says_so() -> None:
    assert operator_shares("trt", Path("x.plan"), 1, FLOW, 1) == (
        None, "the profiler of target trt is not read"
    )  # fmt: skip
