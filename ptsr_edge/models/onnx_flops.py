"""Multiply-adds of an ONNX graph, by the convention of `flops`: the graph that runs, not its source.

What is left out on purpose is in `NOT_COUNTED`; any other operator that is met is listed as uncounted,
never taken for zero.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from ptsr_edge.core.errors import InputError, require
from ptsr_edge.models.flops import MacCount, conv_macs, einsum_macs, matmul_macs

NOT_COUNTED: dict[str, tuple[str, ...]] = {
    "normalisation: a few operations per element": (
        "LayerNormalization", "BatchNormalization", "InstanceNormalization", "GroupNormalization",
        "RMSNormalization", "LpNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization",
        "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceMax", "ReduceMin", "ReduceL2", "Sqrt",
    ),
    "softmax and activations": (
        "Softmax", "LogSoftmax", "Gelu", "FastGelu", "BiasGelu", "QuickGelu", "Relu", "Sigmoid", "Tanh",
        "Erf", "Exp", "Log", "HardSigmoid", "HardSwish", "QLinearSigmoid", "QLinearSoftmax",
    ),
    "element-wise arithmetic and comparison": (
        "Add", "Sub", "Mul", "Div", "Neg", "Abs", "Pow", "Reciprocal", "Max", "Min", "Sum", "Mean",
        "Clip", "Where", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Not", "And",
        "Or", "Round", "Floor", "Ceil", "CumSum", "Sign", "Mod", "QLinearAdd", "QLinearMul",
    ),
    "selection, ordering and gathering": (
        "TopK", "ArgMax", "ArgMin", "Gather", "GatherElements", "GatherND", "ScatterElements",
        "ScatterND", "OneHot", "NonZero", "Trilu",
    ),
    "pooling and resampling": (
        "AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool", "Resize", "Upsample",
    ),
    "number formats": (
        "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast", "CastLike",
    ),
    "shapes, copies and constants": (
        "Reshape", "Transpose", "Concat", "Split", "Slice", "Squeeze", "Unsqueeze", "Expand", "Tile",
        "Pad", "Flatten", "Identity", "Constant", "ConstantOfShape", "Shape", "Size", "Range",
        "EyeLike", "DepthToSpace", "SpaceToDepth", "Dropout", "QLinearConcat",
    ),
}  # fmt: skip
"""ONNX operators that are no matrix product, with the reason."""

_PRODUCTS: dict[str, tuple[int, int]] = {
    "MatMul": (0, 1),
    "Gemm": (0, 1),
    "FusedMatMul": (0, 1),
    "FusedGemm": (0, 1),
    "MatMulInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "DynamicQuantizeMatMul": (0, 1),
    "QLinearMatMul": (0, 3),
    "QGemm": (0, 3),
}
"""Matrix products: at which inputs the two matrices are."""

_CONVOLUTIONS: dict[str, int] = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}
"""Convolutions: at which input the weights are."""

_SMALL_TENSOR_BYTES = 4096


def onnx_macs(path: Path) -> MacCount:
    """Multiply-adds of an ONNX graph of fixed shapes, by shape inference; quantized forms as well.

    Weights that lie in another file are not read.

    Raises:
        InputError: the file is not there or is no ONNX model.
        MissingExtraError: onnx is not installed.
    """
    onnx = require("onnx", "train", "counting MACs")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except Exception as error:  # noqa: BLE001  (protobuf's decoder raises several unrelated kinds)
        raise InputError(f"{path} is no readable ONNX model: {error}") from None
    _read_small_tensors(onnx, model, path.parent)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = _known_shapes(graph)
    light = {name for names in NOT_COUNTED.values() for name in names}
    macs: Counter[str] = Counter()
    uncounted: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type in light:
            continue
        found = _node_macs(node, shapes)
        if isinstance(found, int):
            macs[node.op_type] += found
        else:
            uncounted[found] += 1
    return MacCount(macs.total(), dict(sorted(macs.items())), dict(sorted(uncounted.items())))


def _read_small_tensors(onnx: Any, model: Any, folder: Path) -> None:
    """Shapes and indices may lie in another file too, and shape inference needs their values."""
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            length = next((int(e.value) for e in tensor.external_data if e.key == "length"), None)
            if length is not None and length <= _SMALL_TENSOR_BYTES:
                onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
                tensor.data_location = onnx.TensorProto.DEFAULT
                del tensor.external_data[:]


def _known_shapes(graph: Any) -> dict[str, list[int]]:
    """Name to shape of every value of the graph whose shape is fixed."""
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(axis.HasField("dim_value") for axis in tensor.shape.dim):
            shapes.setdefault(value.name, [axis.dim_value for axis in tensor.shape.dim])
    return shapes


def _node_macs(node: Any, shapes: dict[str, list[int]]) -> int | str:
    """MACs of a node, or under which name it goes uncounted."""
    try:
        macs = _node_formula(node, shapes)
    except KeyError:
        return f"{node.op_type} (shape unknown)"
    return node.op_type if macs is None else macs


def _node_formula(node: Any, shapes: dict[str, list[int]]) -> int | None:
    """MACs of a node, None without a formula; KeyError where a shape is not known."""
    inputs, kind = node.input, node.op_type
    if kind in _PRODUCTS:
        left, right = (shapes[inputs[place]] for place in _PRODUCTS[kind])
        flags = {a.name: a.i for a in node.attribute if a.name in ("transA", "transB")}
        left = [*left[:-2], left[-1], left[-2]] if flags.get("transA") else left
        right = [*right[:-2], right[-1], right[-2]] if flags.get("transB") else right
        return matmul_macs(left, right)
    if kind in _CONVOLUTIONS:
        return conv_macs(shapes[inputs[_CONVOLUTIONS[kind]]], shapes[node.output[0]])
    if kind == "ConvTranspose":
        return conv_macs(shapes[inputs[1]], shapes[inputs[0]])
    if kind == "Einsum":
        equation = next(a.s for a in node.attribute if a.name == "equation").decode()
        return einsum_macs(equation, [shapes[name] for name in inputs])
    return None
