"""A typed graph computed on the CPU with the rounding that its types mean.

ONNX Runtime on a CPU computes an fp16 graph in fp32 and drops the roundings in between, which flatters it.
Here ONNX's reference evaluator rounds every value to its type. Inside of an operator that adds up many values
(products, normalisation, softmax) or has a function of its own (GELU) it is computed in fp32 and rounded once,
as TensorRT's kernels do. It shows what a GPU's arithmetic will cost, not how fast it is, and it is no proof
of an engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor
from torch.nn import functional as F

from ptsr_edge.core.errors import JobError

Array = NDArray[Any]


class TypedGraphRunner:
    """One typed graph: `run` takes (1, C, S, S) float32, gives logits (k,) and kept patches or None."""

    def __init__(self, artifact: Path) -> None:
        """Loads an ONNX file with its weights.

        Raises:
            JobError: it cannot be read.
        """
        try:
            model = onnx.load(artifact)
            fold_constants(model)
            self._graph = ReferenceEvaluator(model, new_ops=OPERATORS)
        except Exception as error:
            raise JobError(
                f"{artifact} is no readable ONNX graph: {error or type(error).__name__}"
            ) from error

    def run(self, flow: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """flow (1, C, S, S) -> logits (k,) and kept (K,), None where the graph keeps all."""
        with np.errstate(over="ignore"):
            values = self._graph.run(None, {"flow": flow})
        outputs = dict(zip(self._graph.output_names, values, strict=True))
        kept = outputs.get("kept")
        return outputs["logits"][0], None if kept is None else kept[0]


def fold_constants(model: ModelProto) -> None:
    """Computes once what does not depend on the input, such as int8 weights times their scales."""
    graph = model.graph
    known = {tensor.name for tensor in graph.initializer}
    fixed, rest = [], []
    for node in graph.node:
        if node.input and known.issuperset(node.input):
            fixed.append(node)
            known.update(node.output)
        else:
            rest.append(node)
    if not fixed:
        return
    outputs = [onnx.ValueInfoProto(name=name) for node in fixed for name in node.output]
    part = helper.make_graph(fixed, "constants", [], outputs, graph.initializer)
    constants = helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)
    values = ReferenceEvaluator(constants, new_ops=OPERATORS).run(None, {})
    del graph.node[:]
    graph.node.extend(rest)
    for value, output in zip(values, outputs, strict=True):
        graph.initializer.append(numpy_helper.from_array(value, output.name))


def _tensor(values: Array) -> Tensor:
    """The values for torch, which calculates with fp16 ten times as fast as numpy does."""
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def _wide(values: Array) -> Tensor:
    """The values in fp32."""
    return _tensor(values).float()


def _rounded(result: Tensor, like: Array) -> tuple[Array]:
    """The result in the type of `like`."""
    return (result.to(torch.from_numpy(np.empty(0, like.dtype)).dtype).numpy(),)


class Add(OpRun):
    """A sum, rounded as its operands are."""

    op_domain = ""

    def _run(self, left: Array, right: Array) -> tuple[Array]:
        return ((_tensor(left) + _tensor(right)).numpy(),)


class MatMul(OpRun):
    """A product that is rounded once, at its end."""

    op_domain = ""

    def _run(self, left: Array, right: Array) -> tuple[Array]:
        return _rounded(_wide(left) @ _wide(right), left)


class Gemm(OpRun):
    """A product with a bias that is rounded once, at its end."""

    op_domain = ""

    def _run(
        self, left: Array, right: Array, bias: Array | None = None,
        alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0,  # noqa: N803
    ) -> tuple[Array]:  # fmt: skip
        result = alpha * _wide(left.T if transA else left) @ _wide(right.T if transB else right)
        return _rounded(result if bias is None else result + beta * _wide(bias), left)


class Gelu(OpRun):
    """x Phi(x), rounded once, at its end."""

    op_domain = ""

    def _run(self, values: Array, approximate: str = "none") -> tuple[Array]:
        return _rounded(F.gelu(_wide(values), approximate=approximate), values)


class Softmax(OpRun):
    """Shares that are rounded once, at their end."""

    op_domain = ""

    def _run(self, values: Array, axis: int = -1) -> tuple[Array]:
        return _rounded(_wide(values).softmax(axis), values)


class LayerNormalization(OpRun):
    """Statistics, scale and shift in fp32 (ONNX: stash_type 1), rounded once, at their end."""

    op_domain = ""

    def _run(
        self, values: Array, scale: Array, shift: Array,
        axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1,  # noqa: ARG002
    ) -> tuple[Array]:  # fmt: skip
        normed = F.layer_norm(_wide(values), values.shape[axis:], _wide(scale), _wide(shift), epsilon)
        return _rounded(normed, values)


class QuantizeLinear(OpRun):
    """Steps of one scale, symmetric int8; the division is rounded as its operands are."""

    op_domain = ""

    def _run(
        self, values: Array, scale: Array, zero_point: Array, axis: int = 1, **_: Any  # noqa: ARG002
    ) -> tuple[Array]:  # fmt: skip
        steps = (_tensor(values) / _tensor(scale)).round().clamp(-128, 127)
        return _rounded(steps, zero_point)


class TopK(OpRun):
    """The k first by value; of equal ones those of the lower index, as ONNX asks and the evaluator's own does not."""

    op_domain = ""

    def _run(
        self, values: Array, k: Array, axis: int = -1, largest: int = 1, sorted: int = 1  # noqa: ARG002
    ) -> tuple[Array, Array]:  # fmt: skip
        order = np.argsort(-values if largest else values, axis=axis, kind="stable")
        places = np.take(order, np.arange(int(k.item())), axis=axis)
        return np.take_along_axis(values, places, axis=axis), places.astype(np.int64)


OPERATORS = [Add, MatMul, Gemm, Gelu, Softmax, LayerNormalization, QuantizeLinear, TopK]
