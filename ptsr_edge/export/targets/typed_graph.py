"""fp32 ONNX graphs rewritten so that every type stands in the graph, and such graphs computed on the CPU.

TensorRT 11 and TensorRT-RTX know no other way to a precision: what the graph says is what is computed.

Products (MatMul, Gemm, Conv) and what lies between them become fp16. Three parts stay fp32, each cheap:

- what comes before the first product: on motionless skin a window's standard deviation is far below
  fp16's smallest normal number, and dividing by it amplifies rounding by up to 1000;
- what comes after the last product: the sum of the positional read-out and the logits;
- what lies between a product and a selection (TopK): scores rounded to fp16 tie with each other.

Normalisations and softmax stay fp16 outside; ONNX's LayerNormalization (stash_type 1) and TensorRT compute
both in fp32 inside.

ONNX Runtime ships a converter (`onnxruntime.transformers.float16`). Left alone it rounds the statistics: the
logits of a constant flow are off by 0.09 (tiny PTSR, 49 tokens) where this one is off by 0.0006. Told to
spare the same nodes it is as accurate, with 51 casts instead of 5 and the columns still fp32 products.

ONNX Runtime on a CPU computes an fp16 graph in fp32 and drops the roundings in between, which flatters it. So
`TypedGraphRunner` has ONNX's reference evaluator round every value to its type. Inside of an operator that adds up many
values (products, normalisation, softmax) or has a function of its own (GELU) it computes in fp32 and rounds once, as
TensorRT's kernels do. It shows what a GPU's arithmetic will cost, not how fast it is, and it is no proof of an engine.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor
from torch.nn import functional as F

from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.export.onnx_graph import PRODUCTS

Array = NDArray[Any]

NAMES: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}


def to_strong_fp16(model: ModelProto) -> ModelProto:
    """Returns a graph of the same inputs and outputs whose products are fp16; Q/DQ pairs keep their int8.

    Raises:
        InputError: the graph has an operator with a graph of its own, or a weight beyond fp16's range.
        JobError: it, or the result, is no valid ONNX graph.
    """
    source = inline_constants(model)
    columns_to_sums(source.graph)
    floats = {name for name, kind in value_types(source).items() if kind == TensorProto.FLOAT}
    kept = nodes_kept_fp32(source.graph, floats)
    typed = _Emitter(source.graph, floats, kept).emit()
    del source.graph.node[:], source.graph.initializer[:], source.graph.value_info[:]
    source.graph.node.extend(typed.nodes)
    source.graph.initializer.extend(typed.constants.values())
    value_types(source)
    return source


def value_types(model: ModelProto) -> dict[str, int]:
    """Returns the element type of every value and constant by name, by ONNX's own strict inference.

    Raises:
        JobError: the graph is no valid ONNX graph, or the types of a node's inputs contradict each other.
    """
    light = helper.make_model(
        helper.make_graph(model.graph.node, "types", model.graph.input, model.graph.output),
        opset_imports=model.opset_import, ir_version=model.ir_version,
    )  # fmt: skip
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.INT64:  # shapes, axes and indices: inference reads their values
            light.graph.initializer.append(tensor)
        else:  # the type of weights is enough, and they are large
            light.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    try:
        onnx.checker.check_model(light)
        inferred = onnx.shape_inference.infer_shapes(light, check_type=True, strict_mode=True).graph
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise JobError(f"no valid ONNX graph: {error}") from error
    types = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def inline_constants(model: ModelProto) -> ModelProto:
    """A copy whose Constant nodes are initializers.

    Raises:
        InputError: a node holds a graph of its own.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    nodes = list(copy.graph.node)
    del copy.graph.node[:]
    for node in nodes:
        if any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute):
            raise InputError(f"node {node.name!r} ({node.op_type}) holds a graph: only flat graphs are typed")
        value = node.attribute[0] if node.op_type == "Constant" else None
        if value is not None and value.name == "value":
            tensor = copy.graph.initializer.add()
            tensor.CopyFrom(value.t)
            tensor.name = node.output[0]
        else:
            copy.graph.node.append(node)
    return copy


def columns_to_sums(graph: GraphProto) -> None:
    """Replaces products with a constant of one column (k, 1) by a multiplication and a sum.

    These are weighted means of a window's cells, statistics and no matrix products: they stay fp32, and
    TensorRT has no fp32 product on every GPU.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        column = constants.get(node.input[1]) if node.op_type == "MatMul" else None
        if column is None or len(column.dims) != 2 or column.dims[1] != 1:
            graph.node.append(node)
            continue
        base = node.output[0]
        row = numpy_helper.to_array(column).reshape(-1)
        graph.initializer.append(numpy_helper.from_array(row, f"{base}_weights"))
        graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), f"{base}_axis"))
        graph.node.extend(
            [
                helper.make_node(
                    "Mul", [node.input[0], f"{base}_weights"], [f"{base}_parts"], f"{node.name}_mul"
                ),
                helper.make_node(
                    "ReduceSum", [f"{base}_parts", f"{base}_axis"], [base], f"{node.name}_sum", keepdims=1
                ),
            ]
        )


def nodes_kept_fp32(graph: GraphProto, floats: set[str]) -> set[str]:
    """Returns the outputs (each node's first) of the nodes before, after and beside the products, as told above."""
    constants = {tensor.name for tensor in graph.initializer}
    early = {value.name for value in graph.input if value.name in floats}
    kept: set[str] = set()
    for node in graph.node:
        inputs = [name for name in node.input if name in floats and name not in constants]
        if node.op_type not in PRODUCTS and inputs and early.issuperset(inputs):
            kept.add(node.output[0])
            early.update(node.output)
    consumers: defaultdict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            consumers[name].append(node)
    outputs = {value.name for value in graph.output}
    late: set[str] = set()
    for node in reversed(graph.node):
        values = [name for name in node.output if name in floats]
        read = [reader for name in values for reader in consumers[name]]
        ends = any(name in outputs for name in values) or node.op_type == "TopK"
        if node.op_type in PRODUCTS or not values or not (read or ends):
            continue
        if all(reader.output[0] in late for reader in read):
            late.add(node.output[0])
    return kept | late


@dataclass
class _Emitter:
    """Writes the typed graph node by node, casting where a value crosses between the types."""

    graph: GraphProto
    floats: set[str]
    kept: set[str]
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, TensorProto] = field(default_factory=dict)
    halves: set[str] = field(default_factory=set)
    casts: dict[tuple[str, int], str] = field(default_factory=dict)

    def emit(self) -> _Emitter:
        self.sources = {tensor.name: tensor for tensor in self.graph.initializer}
        outputs = {value.name for value in self.graph.output}
        for node in self.graph.node:
            kind = TensorProto.FLOAT if node.output[0] in self.kept else TensorProto.FLOAT16
            copy = NodeProto()
            copy.CopyFrom(node)
            for index, name in enumerate(node.input):
                copy.input[index] = self._read(name, kind)
            if kind == TensorProto.FLOAT16:
                self._retype(copy)
                for index, name in enumerate(node.output):
                    if name in self.floats:
                        copy.output[index] = self._written(name, outputs)
            self.nodes.append(copy)
            self.nodes.extend(self._output_casts(copy, node))
        for value in self.graph.output:
            if value.name in self.sources:
                self._constant(value.name, self.sources[value.name].data_type)
        return self

    def _written(self, name: str, outputs: set[str]) -> str:
        self.halves.add(name)
        return f"{name}_fp16" if name in outputs else name

    def _output_casts(self, typed: NodeProto, node: NodeProto) -> Iterator[NodeProto]:
        for new, old in zip(typed.output, node.output, strict=True):
            if new != old:
                yield helper.make_node("Cast", [new], [old], f"{old}_to_fp32", to=TensorProto.FLOAT)
                self.halves.discard(old)

    def _read(self, name: str, kind: int) -> str:
        """The name under which a value is there in a type; non-float values as they are."""
        if name in self.sources:
            return self._constant(name, kind if name in self.floats else self.sources[name].data_type)
        have = TensorProto.FLOAT16 if name in self.halves else TensorProto.FLOAT
        if name not in self.floats or have == kind:
            return name
        if (name, kind) not in self.casts:
            suffix = "half" if kind == TensorProto.FLOAT16 else "float"
            self.casts[name, kind] = f"{name}_{suffix}"
            self.nodes.append(
                helper.make_node("Cast", [name], [f"{name}_{suffix}"], f"{name}_cast_{suffix}", to=kind)
            )
        return self.casts[name, kind]

    def _constant(self, name: str, kind: int) -> str:
        typed = f"{name}_half" if kind == TensorProto.FLOAT16 and name in self.floats else name
        if typed not in self.constants:
            tensor = self.sources[name]
            if typed != name:
                tensor = numpy_helper.from_array(as_half(numpy_helper.to_array(tensor), name), typed)
            self.constants[typed] = tensor
        return typed

    def _retype(self, node: NodeProto) -> None:
        """A node's own mention of fp32, if it has one."""
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16


def as_half(values: NDArray[np.float32], name: str) -> NDArray[np.float16]:
    """Rounds values to fp16.

    Raises:
        InputError: one lies beyond fp16's range.
    """
    largest = float(np.abs(values).max(initial=0.0))
    if largest > float(np.finfo(np.float16).max):
        raise InputError(f"constant {name!r} reaches {largest:.4g}: fp16 ends at 65504")
    return values.astype(np.float16)


def product_types(model: ModelProto) -> dict[str, str]:
    """Returns the type that each product computes in, by node name: fp32, fp16, or int8 between Q/DQ pairs."""
    types = value_types(model)
    producers = {name: node for node in model.graph.node for name in node.output}
    result = {}
    for node in model.graph.node:
        if node.op_type in PRODUCTS:
            sources = [producers.get(name) for name in node.input[:2]]
            quantized = all(source and source.op_type == "DequantizeLinear" for source in sources)
            kind = types[node.input[0]]
            result[node.name] = "int8" if quantized else NAMES.get(kind, f"ONNX type {kind}")
    return result


def require_types(model: ModelProto, precision: str, kept_float: Iterable[str] = ()) -> Counter[str]:
    """Makes sure that a graph's products are of the precision; returns how many there are of each type.

    With int8 every product is int8 except those named in `kept_float`, which are fp16.

    Raises:
        JobError: a product is of another type; the message names it.
    """
    spared = set(kept_float)
    found = product_types(model)
    for name, kind in found.items():
        wanted = "fp16" if precision == "int8" and name in spared else precision
        if kind != wanted:
            raise JobError(
                f"{precision} was asked for, but product {name!r} computes in {kind}, not {wanted}"
            )
    return Counter(found.values())


class TypedGraphRunner:
    """A typed graph computed on the CPU with the rounding that its types mean.

    ONNX Runtime on a CPU computes an fp16 graph in fp32 and drops the roundings in between, which flatters it. Here
    ONNX's reference evaluator rounds every value to its type. Inside of an operator that adds up many values
    (products, normalisation, softmax) or has a function of its own (GELU) it is computed in fp32 and rounded once,
    as TensorRT's kernels do. It shows what a GPU's arithmetic will cost, not how fast it is, and it is no proof of an
    engine. `run` takes (1, C, S, S) float32, gives logits (k,) and kept patches or None.
    """

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
