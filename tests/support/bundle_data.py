"""Test data: bundles of graphs that are two matrix products each, for a real runtime, and flow samples."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ptsr_edge.bundle import Bundle, Parity, Variant, describe_file, read_bundle, write_bundle
from ptsr_edge.core.config import LABELS, ModelConfig, Preprocess
from ptsr_edge.data.datasets import FlowDataset
from ptsr_edge.profile.schema import DESCRIPTIONS, Measured
from ptsr_edge.profile.worker import ProfiledVariant

SIDE, PATCH = 16, 4
PATCHES = (SIDE // PATCH) ** 2


def write_tiny_bundle(
    folder: Path,
    rates: Sequence[float] = (1.0, 0.5),
    *,
    kind: str = "ptsr",
    name: str | None = None,
    labels: Sequence[str] = LABELS,
    provenance: dict[str, Any] | None = None,
    width: int = 8,
    broken: Sequence[float] = (),
) -> Bundle:
    """A bundle whose graphs answer relu(flow @ A) @ B, and keep the first K patches.

    At the keep rates in `broken` the file is none that a runtime takes.
    """
    config = ModelConfig(
        name=name or f"{kind}-test", kind=kind, image_size=SIDE, patch_size=PATCH, dim=8, depth=1, heads=2,
        classes=len(labels), score="strain",
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    variants = []
    for rate in rates:
        tokens = config.tokens_at(rate)
        path = folder / f"{config.name}-cpu-fp32-k{tokens}.onnx"
        if rate in broken:
            path.write_bytes(b"no graph")
        else:
            onnx.save(tiny_graph(tokens, len(labels), width), path)
        variants.append(
            Variant(
                id=path.stem, target="cpu", keep_rate=rate, tokens=tokens, precision="fp32",
                artifact=path.name,
                files=[describe_file(folder, path)], macs=3 * SIDE**2 * width + width * len(labels),
                parameters=3 * SIDE**2 * width + width * len(labels),
                parity=Parity(reference="itself", samples=0, max_abs=0.0, top1_agreement=1.0, limit=1e-3),
                built_with={}, runs_on={},
            )
        )  # fmt: skip
    bundle = Bundle(
        schema=1, name=config.name, target="cpu", model=config, labels=list(labels),
        preprocess=Preprocess(image_size=SIDE),
        provenance={"card": "random weights, for tests"} if provenance is None else provenance,
        variants=variants,
    )  # fmt: skip
    write_bundle(folder, bundle)
    return bundle


def tiny_graph(tokens: int, classes: int, width: int) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    constants = {
        "shape": np.array([1, 3 * SIDE * SIDE]),
        "a": rng.normal(size=(3 * SIDE * SIDE, width)).astype(np.float32),
        "b": rng.normal(size=(width, classes)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Reshape", ["flow", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "a"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "b"], ["logits"]),
        helper.make_node(
            "Constant", [], ["kept"], value=numpy_helper.from_array(np.arange(tokens)[None], "places")
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("flow", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, classes]),
            helper.make_tensor_value_info("kept", TensorProto.INT64, [1, tokens]),
        ],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


TRAINED = {"kind": "trained", "data": "synthetic", "card": "weights that a test made up"}


def write_pair(place: Path) -> tuple[Path, Path]:
    """A PTSR bundle of two budgets, and its baseline's, as if both were trained on one split."""
    split = {"train_subjects": ["p001"], "held_out_subjects": ["s000", "s001"]}
    write_tiny_bundle(place / "ptsr", provenance=TRAINED | split)
    write_tiny_bundle(place / "vit", [1.0], kind="vit", provenance=TRAINED | split)
    return place / "ptsr", place / "vit"


def profiled(folder: Path, *names: str) -> list[ProfiledVariant]:
    """The variants of a bundle for a run, under `names` or their own ids."""
    bundle = read_bundle(folder)
    ids = names or tuple(variant.id for variant in bundle.variants)
    return [
        ProfiledVariant(name, folder, bundle, variant, folder.name)
        for name, variant in zip(ids, bundle.variants, strict=True)
    ]


def check_reasons(row: Measured) -> None:
    """Every result that is null has its reason, and no other has one."""
    record = row.model_dump(exclude={"missing", "notes"})
    inner = {f"{name}.{key}": found for name, value in record.items() if name in RECORDS and value
             for key, found in value.items()}  # fmt: skip
    null = {name for name, value in (record | inner).items() if value is None}
    assert set(row.missing) == null - DESCRIPTIONS
    assert all(why.reason for why in row.missing.values())


RECORDS = {"latency_ms", "ratio", "ratio_same_precision", "ratio_cpu_time", "stages", "ceiling", "accuracy"}


def ended(pid: int) -> bool:
    """Whether there is no process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def tiny_flows(count: int = 12) -> FlowDataset:
    """Noise as samples of three classes by four subjects, named as if it were synthetic data."""
    rng = np.random.default_rng(5)
    return FlowDataset(
        flows=rng.normal(size=(count, SIDE, SIDE, 3)).astype(np.float32),
        labels=np.arange(count) % 3,
        subjects=np.array([f"s{place % 4}" for place in range(count)]),
        names=[f"clip{place}" for place in range(count)],
        label_names=("negative", "positive", "surprise"),
        preprocess=Preprocess(image_size=SIDE),
        source="synthetic",
    )
