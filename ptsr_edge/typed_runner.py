"""A typed graph computed on the CPU with the rounding that its types mean.

ONNX Runtime on a CPU computes an fp16 graph in fp32 and drops the roundings in between, which flatters it.
Here ONNX's reference evaluator rounds every value to its type; products add up in fp32 before they are
rounded, as TensorRT's kernels on tensor cores do. It shows what a GPU's arithmetic will cost, not how fast
it is, and it is no proof of an engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from ptsr_edge.errors import JobError

Array = NDArray[Any]


class TypedGraphRunner:
    """One typed graph: `run` takes (1, C, S, S) float32, gives logits (k,) and kept patches or None."""

    def __init__(self, artifact: Path) -> None:
        """Loads an ONNX file with its weights.

        Raises:
            JobError: it cannot be read.
        """
        try:
            self._graph = ReferenceEvaluator(onnx.load(artifact), new_ops=[MatMul, Gemm])
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


def _product(left: Array, right: Array) -> Array:
    product: Array = np.matmul(left.astype(np.float32), right.astype(np.float32))
    return product


class MatMul(OpRun):
    """A product that is rounded once, at its end."""

    op_domain = ""

    def _run(self, left: Array, right: Array) -> tuple[Array]:
        return (_product(left, right).astype(left.dtype),)


class Gemm(OpRun):
    """A product with a bias that is rounded once, at its end."""

    op_domain = ""

    def _run(
        self, left: Array, right: Array, bias: Array | None = None,
        alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0,  # noqa: N803
    ) -> tuple[Array]:  # fmt: skip
        result = alpha * _product(left.T if transA else left, right.T if transB else right)
        if bias is not None:
            result = result + beta * bias.astype(np.float32)
        return (result.astype(left.dtype),)
