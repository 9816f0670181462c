"""int8 for every runtime that reads ONNX: Q/DQ pairs from calibration samples, or dynamic ranges; and what stays float.

ONNX Runtime on CPUs is quickest with U8 activations x S8 weights; TensorRT takes symmetric S8 x S8 only, no
quantized bias and no zero point but 0. Both come from `quantize_static_qdq`. Products of two computed
values (attention) stay as they are: quantized, they cost accuracy and gain nothing.

Weights for ONNX Runtime use 7 of their 8 bits. x86 processors without VNNI add two products of U8 and S8 in 16
bits, which 8 bits overflow: on such a processor (Haswell, emulated) the embedded ptsr-tiny at 25 % of the tokens
with dynamic ranges then answers 6 % of 64 samples otherwise, with logits up to 0.38 apart. With 7 bits the largest
difference is 0.002; time and accuracy are the same.

Where int8 loses too much accuracy all the same (`build_within`), layers are ranked by what the logits lose when that
layer *alone* is int8, so that the error of one is not taken for that of the next; then as many are put back to floating
point as it takes, twice as many each time.
"""

from __future__ import annotations

import io
import logging
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from ptsr_edge.core.config import Record
from ptsr_edge.core.console import progress, say
from ptsr_edge.core.errors import InputError, JobError, require
from ptsr_edge.core.files import scratch_folder
from ptsr_edge.export.config import Method
from ptsr_edge.export.onnx_graph import MEANS, PRODUCTS, layer_of
from ptsr_edge.export.targets.base import (
    THROUGH_ARTIFACT,
    THROUGH_GRAPH,
    Artifact,
    Graph,
    Target,
    open_built,
)
from ptsr_edge.runtimes.base import Runner
from ptsr_edge.runtimes.onnxruntime import OrtRunner
from ptsr_edge.stats.classification import confusion, uar

NARROW = 16
"""Products over so few inputs are statistics of a window's cells: nothing to gain, and their error is
divided by a standard deviation."""


ORT_DOMAIN = "com.microsoft"

FUSED_PRODUCT = "MatMulIntegerToFloat"
"""ONNX Runtime's product of quantized operands: both, their scales, their zero points, and a bias where there is one."""

FUSED_BIAS = 6
"""Where that operator's bias stands among its inputs."""


def quantize_static_qdq(
    source: ModelProto,
    calibration: NDArray[np.float32],
    *,
    symmetric_activations: bool,
    exclude: Sequence[str],
    method: Method = "minmax",
) -> ModelProto:
    """Returns a graph whose products have Q/DQ pairs around their inputs, weights per output channel; for ONNX Runtime
    (unsigned activations) pairs and product are its fused operator.

    Args:
        source: fp32 ONNX graph, its weights in it; it is not changed.
        calibration: (n, C, S, S) normalised inputs, n >= 1.
        symmetric_activations: S8 with zero point 0 (TensorRT); otherwise U8 with a zero point (ONNX Runtime).
        exclude: names of nodes that stay in floating point; see `products_kept_float`.
        method: how an activation's range is taken from what the samples show.

    Raises:
        InputError: no calibration sample, or a name in `exclude` that the graph does not have.
        MissingExtraError: onnxruntime is not installed.
        JobError: ONNX Runtime cannot quantize the graph.
    """
    if calibration.ndim != 4 or not len(calibration):
        raise InputError(f"calibration must be (n, C, S, S) with n >= 1, got {calibration.shape}")
    quantization = require("onnxruntime.quantization", "ort", "quantizing to int8")
    model = infer_shapes(source)
    _require_names(model, exclude)
    activations = quantization.QuantType.QInt8 if symmetric_activations else quantization.QuantType.QUInt8
    methods = quantization.CalibrationMethod
    chosen = {"minmax": methods.MinMax, "percentile": methods.Percentile, "entropy": methods.Entropy}[method]
    with _quantized() as target:
        quantization.quantize_static(
            model, target, _Samples(calibration),
            quant_format=quantization.QuantFormat.QDQ, op_types_to_quantize=list(PRODUCTS), per_channel=True,
            activation_type=activations, weight_type=quantization.QuantType.QInt8,
            reduce_range=not symmetric_activations,
            nodes_to_exclude=list(exclude), calibrate_method=chosen,
            extra_options={
                "ActivationSymmetric": symmetric_activations, "WeightSymmetric": True, "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": list(PRODUCTS),
            },
        )  # fmt: skip
        quantized = onnx.load(target)
    if not symmetric_activations:
        fuse_quantized_products(quantized)
    return quantized


def quantize_dynamic_int8(source: ModelProto, *, exclude: Sequence[str]) -> ModelProto:
    """Returns a graph with S8 weights per channel whose activations' ranges are taken at run time.

    Needs no calibration; only ONNX Runtime runs it.

    Raises:
        InputError: a name in `exclude` that the graph does not have.
        MissingExtraError: onnxruntime is not installed.
        JobError: ONNX Runtime cannot quantize the graph.
    """
    quantization = require("onnxruntime.quantization", "ort", "quantizing to int8")
    model = infer_shapes(source)
    _require_names(model, exclude)
    with _quantized() as target:
        quantization.quantize_dynamic(
            model, target, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, reduce_range=True,
            weight_type=quantization.QuantType.QInt8, nodes_to_exclude=list(exclude),
            extra_options={"MatMulConstBOnly": True, "WeightSymmetric": True},
        )  # fmt: skip
        return onnx.load(target)


def fuse_quantized_products(model: ModelProto) -> None:
    """Replaces each product between Q/DQ pairs, and the bias behind it, by ONNX Runtime's operator for that, in place.

    The operator is the one that ONNX Runtime picks itself; but it leaves the bias to an addition of
    its own where the MatMul has three axes, and where it has two it makes a Gemm of both that runs in floating point. The
    answers are the same but for a rounding less. The embedded ptsr-tiny at 25 % of the tokens has 30 nodes fewer and takes .93 of
    the time.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    readers = Counter(name for node in model.graph.node for name in node.input)
    added = {
        name: node
        for node in model.graph.node
        if node.op_type == "Add"
        for name in node.input
        if readers[name] == 1
    }
    gone: set[str] = set()
    for node in model.graph.node:
        sides = [made.get(name) for name in node.input]
        if node.op_type != "MatMul" or not all(side and side.op_type == "DequantizeLinear" for side in sides):
            continue
        inputs = [side.input[place] for place in (0, 1, 2) for side in sides if side is not None]
        addition = added.get(node.output[0])
        if addition is not None:
            bias = next(name for name in addition.input if name != node.output[0])
            if bias in constants and list(constants[bias].dims) == constants[inputs[1]].dims[-1:]:
                inputs.append(bias)
                gone.add(addition.output[0])
                node.output[0] = addition.output[0]
        node.op_type, node.domain = FUSED_PRODUCT, ORT_DOMAIN
        node.input[:] = inputs
    _drop(model, gone)
    model.opset_import.append(onnx.helper.make_opsetid(ORT_DOMAIN, 1))


def _drop(model: ModelProto, additions: Collection[str]) -> None:
    """Removes additions by the name of their output, and what nothing reads any more."""
    nodes = [node for node in model.graph.node if node.op_type != "Add" or node.output[0] not in additions]
    answers = {value.name for value in model.graph.output}
    read = answers.union(*(node.input for node in nodes))
    nodes = [node for node in nodes if read.intersection(node.output)]
    read = answers.union(*(node.input for node in nodes))
    constants = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(constants)


def attention_products(model: ModelProto) -> list[str]:
    """Returns the names of the MatMuls whose right-hand side is no constant: attention, and the positional read-out."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [n.name for n in model.graph.node if n.op_type == "MatMul" and n.input[1] not in constants]


def statistics_products(model: ModelProto) -> list[str]:
    """Returns the names of the MatMuls by a constant of at most `NARROW` rows: statistics of a window's cells."""
    rows = {tensor.name: tensor.dims[-2] for tensor in model.graph.initializer if len(tensor.dims) >= 2}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and rows.get(node.input[1], NARROW + 1) <= NARROW
    ]


def first_products(model: ModelProto) -> list[str]:
    """Returns the names of the products that read the input before any other does: the tokenizer's.

    A window's values are divided by their standard deviation behind this product, so that one int8 step for
    all windows is too coarse for the faint ones: on a trained nano PTSR with symmetric int8, 25 of 49 tokens,
    the largest error of a logit is 0.030 with them and 0.004 without.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    statistics = set(statistics_products(model))
    early = {value.name for value in model.graph.input}
    found = []
    for node in model.graph.node:
        computed = [name for name in node.input if name and name not in constants]
        if not computed or not early.issuperset(computed):
            continue
        if node.op_type in PRODUCTS and node.name not in statistics:
            found.append(node.name)
        else:
            early.update(node.output)
    return found


def means_products(model: ModelProto) -> list[str]:
    """Returns the names of the products of the layers `MEANS`."""
    return [
        node.name for node in model.graph.node if node.op_type in PRODUCTS and layer_of(node.name) in MEANS
    ]


def products_kept_float(model: ModelProto) -> list[str]:
    """Returns the names of what int8 always leaves in floating point: attention, read-outs and statistics."""
    return [*attention_products(model), *statistics_products(model), *means_products(model)]


def infer_shapes(source: ModelProto) -> ModelProto:
    """Returns a copy of a graph with the shape of every value inferred.

    Raises:
        JobError: it is no valid ONNX graph.
    """
    try:
        return onnx.shape_inference.infer_shapes(source, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        raise JobError(f"no valid ONNX graph: {error}") from error


def _require_names(model: ModelProto, names: Sequence[str]) -> None:
    known = {node.name for node in model.graph.node}
    for name in names:
        if name not in known:
            raise InputError(f"cannot leave {name!r} unquantized: the graph has no node of that name")


class _Samples:
    """What ONNX Runtime's calibration asks for: one input after the other, then None."""

    def __init__(self, calibration: NDArray[np.float32]) -> None:
        self._calibration = calibration
        self.rewind()

    def rewind(self) -> None:
        self._rows: Iterator[NDArray[np.float32]] = iter(self._calibration)

    def get_next(self) -> dict[str, Any] | None:
        row = next(self._rows, None)
        return None if row is None else {"flow": np.ascontiguousarray(row[None], np.float32)}


@contextmanager
def _quantized() -> Iterator[Path]:
    """A file for ONNX Runtime to quantize into; it is kept quiet meanwhile.

    `onnx` names files by `uuid1`, which opens a socket to read a network card's address; random names serve.
    """
    level, by_address = logging.root.level, uuid.uuid1
    logging.root.setLevel(logging.ERROR)
    uuid.uuid1 = _random_name
    try:
        with scratch_folder() as folder, redirect_stdout(io.StringIO()):
            yield folder / "int8.onnx"
    except (InputError, JobError):
        raise
    except Exception as error:
        raise JobError(f"ONNX Runtime cannot quantize the graph: {error}") from error
    finally:
        logging.root.setLevel(level)
        uuid.uuid1 = by_address


def _random_name(node: int | None = None, clock_seq: int | None = None) -> uuid.UUID:  # noqa: ARG001
    return uuid.uuid4()


RANKED_SAMPLES = 32
"""Calibration samples that a ranking looks at."""


@dataclass(frozen=True)
class JudgedSamples:
    """Samples that int8 is judged on, and what fp32 reaches on them.

    Attributes:
        inputs: (n, C, S, S) float32, normalised.
        labels: (n,) true classes.
        classes: how many there are.
        expected: UAR of fp32 by token count.
    """

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: int
    expected: Mapping[int, float]

    def uar(self, runner: Runner) -> float:
        """Returns the UAR of an artifact on the samples."""
        answers = [
            int(runner.run(one[None])[0].argmax()) for one in progress(list(self.inputs), "judging int8")
        ]
        return uar(confusion(self.labels, np.array(answers), self.classes))


def build_within(
    limit: float,
    target: Target,
    build: Callable[[Sequence[str]], Mapping[int, Artifact]],
    samples: JudgedSamples,
    rank: Callable[[], list[LayerSensitivity]],
) -> tuple[Mapping[int, Artifact], dict[str, Any]]:
    """Builds int8 and puts layers back, twice as many each time, until no budget loses more than the limit.

    Args:
        limit: the largest loss of UAR, in [0, 1].
        target: opens what was built.
        build: builds all budgets with some layers kept in floating point.
        samples: to judge on.
        rank: returns the layers, the most sensitive first; called only when something has to be repaired.

    Returns:
        The artifacts, and a record: `limit`, `kept_float`, `uar` and `uar_fp32` by token count, the
        `sensitivity` list, null where nothing had to be repaired, how many `samples` were judged on, and what
        the artifacts were judged `through`.

    Raises:
        JobError: putting all layers back does not reach the limit, or nothing can be judged here.
    """
    kept: list[str] = []
    ranking: list[LayerSensitivity] | None = None
    by_graph = False
    while True:
        artifacts = build(kept)
        found: dict[int, float] = {}
        for tokens, artifact in artifacts.items():
            runner, through = open_built(target, artifact)
            if runner is None:
                raise JobError(
                    "the loss of UAR cannot be measured here: the artifact cannot run on this machine"
                )
            if through == "graph" and not by_graph:
                by_graph = True
                say(f"{target.name} int8 is judged through its {THROUGH_GRAPH}: no engine runs here")
            found[tokens] = samples.uar(runner)
        worst = max(samples.expected[tokens] - value for tokens, value in found.items())
        if worst <= limit:
            return artifacts, {
                "limit": limit,
                "kept_float": kept,
                "uar": {str(tokens): round(value, 4) for tokens, value in found.items()},
                "uar_fp32": {str(tokens): round(samples.expected[tokens], 4) for tokens in found},
                "sensitivity": None if ranking is None else [layer.model_dump() for layer in ranking],
                "samples": len(samples.inputs),
                "through": THROUGH_GRAPH if by_graph else THROUGH_ARTIFACT,
            }
        ranking = rank() if ranking is None else ranking
        if len(kept) == len(ranking):
            listed = ", ".join(f"{layer.layer} ({layer.error:.2g})" for layer in ranking[:8])
            raise JobError(
                f"int8 loses {worst:.3f} UAR (limit {limit:g}) "
                f"with every layer put back; the most sensitive: {listed}"
            )
        kept = [layer.layer for layer in ranking[: max(1, 2 * len(kept))]]


class LayerSensitivity(Record):
    """The mean absolute change of the logits when this layer alone is int8."""

    layer: str
    error: float


def rank_layers(graph: Graph, calibration: NDArray[np.float32]) -> list[LayerSensitivity]:
    """Quantizes one layer at a time and measures what that does to the logits; the worst first.

    Args:
        graph: its products are named by `onnx_graph.name_products`.
        calibration: (n, C, S, S) float32 normalised inputs; the first `RANKED_SAMPLES` are used.
    """
    samples = calibration[:RANKED_SAMPLES]
    expected = _logits(graph.path, samples)
    products = [node.name for node in graph.model.graph.node if node.op_type in PRODUCTS]
    ranking = []
    with scratch_folder() as scratch:
        for layer in progress(quantizable_layers(graph.model), "layer sensitivity"):
            others = [name for name in products if layer_of(name) != layer]
            alone = scratch / "alone.onnx"
            onnx.save(
                quantize_static_qdq(graph.model, samples, symmetric_activations=False, exclude=others), alone
            )
            error = float(np.abs(_logits(alone, samples) - expected).mean())
            ranking.append(LayerSensitivity(layer=layer, error=error))
    return sorted(ranking, key=lambda found: -found.error)


def quantizable_layers(model: ModelProto) -> list[str]:
    """Returns the layers that int8 would take, in the graph's order; products by one layer count once."""
    kept = set(products_kept_float(model))
    names = [node.name for node in model.graph.node if node.op_type in PRODUCTS and node.name not in kept]
    return list(dict.fromkeys(layer_of(name) for name in names))


def _logits(graph: Path, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    runner = OrtRunner(graph, threads=1)
    return np.stack([runner.run(one[None])[0] for one in samples])
