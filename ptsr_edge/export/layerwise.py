"""Where an artifact departs from its fp32 graph: the products of both, compared in the graph's order."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from ptsr_edge.core.errors import require
from ptsr_edge.export.onnx_graph import PRODUCTS
from ptsr_edge.export.parity import OVERLAP, Reference, compare_selection, score_limit
from ptsr_edge.export.targets.base import Artifact, Target, _open
from ptsr_edge.runtimes.openvino import DEVICE, choose_precision, compile_ir, load_openvino, read_ir, rt_entry


@dataclass(frozen=True)
class Departure:
    """The first layer whose result differs by more than the tolerance, and by how much.

    `relative` is the largest difference over the largest value of the reference's result.
    """

    layer: str
    relative: float
    tolerance: float

    def __str__(self) -> str:
        return f"the first layer to depart is {self.layer} (by {self.relative:.2g}, limit {self.tolerance:g})"


def product_values(graph: Path, inputs: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """What each product of an ONNX graph gives for one input (1, C, S, S): value by the node's name.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    ort = require("onnxruntime", "ort", "comparing layers")
    model = onnx.load(graph, load_external_data=False)
    tapped = {node.name: node.output[0] for node in model.graph.node if node.op_type in PRODUCTS}
    have = {output.name for output in model.graph.output}
    model.graph.output.extend(
        onnx.ValueInfoProto(name=value) for value in tapped.values() if value not in have
    )
    options = ort.SessionOptions()
    # Fused operators have no products to look at.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Beside the graph: ONNX Runtime reads weights from the folder of the file alone.
    beside = graph.with_name(f".taps-{os.getpid()}-{graph.name}")
    try:
        onnx.save(model, beside)
        session = ort.InferenceSession(str(beside), options, providers=["CPUExecutionProvider"])
        names = list(tapped)
        values = session.run([tapped[name] for name in names], {"flow": inputs})
    finally:
        beside.unlink(missing_ok=True)
    return dict(zip(names, values, strict=True))


def ir_values(
    artifact: Path, names: Iterable[str], inputs: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """What the operations of some names give in an IR, for one input, calculated as the IR asks for.

    An IR names its operations as the ONNX graph that it was made of does; those that it lacks are left out. One
    that is read out is fused less than one that is not, so that the last digits may differ.

    Raises:
        MissingExtraError: openvino is not installed.
        JobError: a file is missing or no IR, or this CPU cannot calculate in its precision.
    """
    core = load_openvino().Core()
    model = read_ir(core, artifact)
    wanted = set(names)
    tapped = [op for op in model.get_ordered_ops() if op.get_friendly_name() in wanted]
    model.add_outputs([operation.output(0) for operation in tapped])
    precision = choose_precision(
        rt_entry(model, "inference_precision", artifact).split(),
        core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"),
        artifact.name,
    )
    answers = list(compile_ir(core, model, precision, 1, artifact.name)([inputs]).values())
    return {
        operation.get_friendly_name(): np.array(value)
        for operation, value in zip(tapped, answers[len(answers) - len(tapped) :], strict=True)
    }


def first_departure(
    reference: dict[str, NDArray[np.float32]], found: dict[str, NDArray[np.float32]], tolerance: float
) -> Departure | None:
    """The first product, in the reference's order, that differs by more than `tolerance`, relative.

    Products that only one side has (fused or quantized ones) are passed over.
    """
    for layer, value in reference.items():
        other = found.get(layer)
        if other is None or other.shape != value.shape:
            continue
        scale = max(float(np.abs(value).max()), 1e-30)
        relative = float(np.abs(other.astype(np.float64) - value).max()) / scale
        if not relative <= tolerance:
            return Departure(layer, relative, tolerance)
    return None


def before_selection(graph: Path) -> set[str]:
    """The names of the products of an ONNX graph that its selection of tokens is calculated from."""
    model = onnx.load(graph, load_external_data=False)
    makers = {value: node for node in model.graph.node for value in node.output}
    wanted = [node for node in model.graph.node if node.op_type == "TopK"]
    seen: set[str] = set()
    names = set()
    while wanted:
        node = wanted.pop()
        names |= {node.name} if node.op_type in PRODUCTS else set()
        for value in node.input:
            if value in makers and value not in seen:
                seen.add(value)
                wanted.append(makers[value])
    return names


def other_tokens(reference: NDArray[np.int64], found: NDArray[np.int64]) -> str:
    """How two selections (K,) differ, in words; empty where they hold the same tokens, in whichever order.

    Behind a selection of other tokens every layer has other inputs, and its results cannot be compared.
    """
    theirs, ours = set(reference.tolist()), set(found.tolist())
    if theirs == ours:
        return ""
    few = 5
    lists = []
    for tokens in (sorted(ours - theirs), sorted(theirs - ours)):
        more = f" and {len(tokens) - few} more" if len(tokens) > few else ""
        lists.append(", ".join(map(str, tokens[:few])) + more if tokens else "none")
    return f"the selection differs first: tokens {lists[0]} are kept in place of {lists[1]}"


DEPARTURES = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2, "int8": 0.1}
"""Relative difference from which a layer of a refused artifact is named: several times what rounding to the
precision does to a sound layer (int8: .01 to .05), or the first layer would be named whatever is wrong."""


def _sample_at_fault(
    reference: Reference, target: Target, artifact: Artifact, precision: str
) -> tuple[int, str]:
    """A sample to look for the fault with, and how the artifact's selection differs there, empty where it does not.

    The first whose selection no rounding explains; else the first with the reference's own tokens.
    """
    runner, _ = _open(target, artifact)
    same = []
    for index, one in enumerate(reference.inputs):
        kept = None if runner is None else runner.run(one[None])[1]
        others = "" if kept is None else other_tokens(reference.kept[index], kept)
        if not others:
            same.append(index)
        elif kept is not None:
            limit = 0.0 if OVERLAP[precision] == 1.0 else score_limit(reference, precision, index)
            if compare_selection(reference, index, kept)[1] > limit:
                return index, others
    return (same[0], "") if same else (0, others)


def _first_fault(
    one: NDArray[np.float32], others: str, graph: Path, artifact: Artifact, precision: str
) -> str:
    """Which layer departs first, for `one` input, from the graph that the artifact was made of.

    Of an engine those of its typed graph, which lies beside it. Where the artifact selects `others`, layers behind
    the selection are not compared: their inputs are of other tokens.
    """
    limit, reference = DEPARTURES[precision], product_values(graph, one)
    if others:
        before = before_selection(graph)
        reference = {layer: value for layer, value in reference.items() if layer in before}
    if artifact.path.suffix == ".xml":
        found = ir_values(artifact.path, reference, one)
    else:
        found = product_values(artifact.path.with_suffix(".onnx"), one)
    departure = first_departure(reference, found, limit)
    if departure is not None:
        return f"{departure}, and with it the selection" if others else str(departure)
    if others:
        return others
    return f"no layer departs from the fp32 graph by more than {limit:g}: the graph does, or rounding adds up"
