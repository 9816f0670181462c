"""Multiply-adds: counted on the eager model, counted on the ONNX graph that runs, and in closed form for both.

One multiply-add (MAC) is one product with its addition: a product of (a, b) with (b, c) takes a b c. By convention
only matrix products, convolutions and attention count; `NOT_COUNTED` lists all that is left out, with the reason. An
operator that is in no table is reported as uncounted and never taken for zero.

* `count_macs` has fvcore trace a torch module: an independent count, by operator.
* `onnx_macs` walks an ONNX graph of fixed shapes, quantized or not.
* `eager_macs` and `exported_macs` are closed forms by part of the model, which need neither; `explain` says where
  they differ. As it is written, PTSR embeds and attends to all patches and drops tokens afterwards; in the exported
  graph nothing is calculated for a row that is dropped later.

Letters of the closed form: N patches, K kept ones, T = 1 + tokens in a block, d width, m width of the MLP, k classes,
F = C p^2 values of a patch.

    block of T tokens     4 T d^2 (queries, keys, values, output) + 2 T^2 d (scores, mix) + 2 T d m (MLP)
    embedding             N F d (ViT), 5 N F d (DNSPT as written), 4 K F d (DNSPT as one window product)
    head                  d k, and K k d for a local read-out, and C N k for the read-out of the means
    score                 as its entry in `models.ptsr.SCORES` says
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ptsr_edge.core.config import ModelConfig
from ptsr_edge.core.errors import InputError, require

Shape = Sequence[int]


@dataclass(frozen=True)
class MacCount:
    """Multiply-adds of one forward pass.

    Attributes:
        total: sum over all counted operators.
        by_operator: operator name to its MACs.
        uncounted: operator name to how often it was met without a formula for it; `total` is a lower
            bound unless this is empty.
    """

    total: int
    by_operator: dict[str, int]
    uncounted: dict[str, int]


NOT_COUNTED = {
    "normalisation: a few operations per element": (
        "batch_norm layer_norm group_norm instance_norm rms_norm rsqrt sqrt var std mean sum norm "
        "linalg_vector_norm",
        "LayerNormalization BatchNormalization InstanceNormalization GroupNormalization RMSNormalization "
        "LpNormalization SkipLayerNormalization SimplifiedLayerNormalization ReduceMean ReduceSum "
        "ReduceSumSquare ReduceMax ReduceMin ReduceL2 Sqrt",
    ),
    "softmax and activations": (
        "softmax log_softmax gelu relu silu sigmoid tanh erf exp log",
        "Softmax LogSoftmax Gelu FastGelu BiasGelu QuickGelu Relu Sigmoid Tanh Erf Exp Log HardSigmoid "
        "HardSwish QLinearSigmoid QLinearSoftmax",
    ),
    "element-wise arithmetic and comparison": (
        "add add_ sub sub_ rsub mul mul_ div div_ neg abs pow square reciprocal maximum minimum clamp "
        "clamp_min clamp_max where masked_fill masked_fill_ eq ne lt le gt ge logical_not logical_and "
        "cumsum floor_divide lift_fresh dropout bitwise_and __and__",
        "Add Sub Mul Div Neg Abs Pow Reciprocal Max Min Sum Mean Clip Where Equal Less LessOrEqual "
        "Greater GreaterOrEqual Not And Or Round Floor Ceil CumSum Sign Mod QLinearAdd QLinearMul",
    ),
    "selection, ordering and gathering": (
        "topk sort argsort max min argmax gather index index_select one_hot take_along_dim scatter "
        "scatter_ repeat_interleave rand",
        "TopK ArgMax ArgMin Gather GatherElements GatherND ScatterElements ScatterND OneHot NonZero Trilu",
    ),
    "pooling and resampling": (
        "avg_pool2d max_pool2d adaptive_avg_pool2d upsample_nearest2d upsample_bilinear2d",
        "AveragePool MaxPool GlobalAveragePool GlobalMaxPool Resize Upsample",
    ),
    "shapes, copies and constants": (
        "im2col col2im pad expand_as repeat view_as clone alias broadcast_to flip numel eye ones_like "
        "full_like movedim unflatten swapaxes numpy_T",
        "Reshape Transpose Concat Split Slice Squeeze Unsqueeze Expand Tile Pad Flatten Identity Constant "
        "ConstantOfShape Shape Size Range EyeLike DepthToSpace SpaceToDepth Dropout QLinearConcat",
    ),
    "number formats": (
        "",
        "QuantizeLinear DequantizeLinear DynamicQuantizeLinear Cast CastLike",
    ),
}  # fmt: skip
"""Operators that are no product, by reason: those of torch (fvcore knows more that only reshape or copy), those of ONNX."""


def matmul_macs(left: Shape, right: Shape) -> int:
    """MACs of numpy's `left @ right`: (..., m, k) with (..., k, n), batches broadcast; vectors too."""
    left = (1, *left) if len(left) == 1 else tuple(left)
    right = (*right, 1) if len(right) == 1 else tuple(right)
    batch = np.broadcast_shapes(left[:-2], right[:-2])
    return math.prod(batch) * left[-2] * left[-1] * right[-1]


def conv_macs(weight: Shape, places: Shape) -> int:
    """MACs of a convolution: one product with the whole kernel per place.

    Args:
        weight: (out, in / groups, *kernel), or (in, out / groups, *kernel) of a transposed one.
        places: (batch, channels, *spatial) of the output, or of the input of a transposed one.
    """
    return places[0] * math.prod(places[2:]) * math.prod(weight)


def attention_macs(query: Shape, key: Shape, output: Shape) -> int:
    """MACs of scaled dot product attention: query (..., L, d) times key (..., S, d), then the mix.

    `output` is (..., L, d_v); the mix of the values takes L S d_v for each head.
    """
    return math.prod(output[:-1]) * key[-2] * (query[-1] + output[-1])


def einsum_macs(equation: str, shapes: Sequence[Shape]) -> int | None:
    """MACs of a two-operand einsum: the product of all its indices.

    An index that only one operand has and the result has not is summed before the product. A
    one-operand einsum is none. None stands for what this cannot tell: three operands and more (their
    count depends on the order of contraction) and ellipses.
    """
    terms, _, result = equation.replace(" ", "").partition("->")
    operands = terms.split(",")
    if "." in equation or len(operands) > 2 or "->" not in equation:
        return None
    if len(operands) == 1:
        return 0
    sizes = {
        index: size
        for term, shape in zip(operands, shapes, strict=True)
        for index, size in zip(term, shape, strict=True)
    }
    shared = set(operands[0]) & set(operands[1])
    return math.prod(size for index, size in sizes.items() if index in shared or index in result)


_UNCOUNTED = "uncounted:"
"""Marks an entry of fvcore's counter that holds occurrences, not MACs."""


def count_macs(module: Any, inputs: tuple[Any, ...]) -> MacCount:
    """Multiply-adds of `module(*inputs)` in evaluation mode, by fvcore over a trace.

    Args:
        module: a `torch.nn.Module`; its training mode is restored afterwards.
        inputs: tensors as `forward` takes them.

    Raises:
        MissingExtraError: torch or fvcore is not installed.
    """
    torch = require("torch", "train", "counting MACs")
    with warnings.catch_warnings(), _evaluating(module), torch.no_grad():
        # fvcore stands on torch.jit, which newer torch calls deprecated already at fvcore's import.
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated")
        fvcore = require("fvcore.nn", "train", "counting MACs")
        analysis = fvcore.FlopCountAnalysis(module, inputs).clear_op_handles()
        analysis.set_op_handle(**_TORCH_HANDLERS)
        for of_torch, _ in NOT_COUNTED.values():
            for name in of_torch.split():
                analysis.set_op_handle(f"aten::{name}", None)
        # fvcore would log what `uncounted` says, and modules that are called by their parts.
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        counts = analysis.by_operator()
    uncounted = Counter({name.removeprefix("aten::"): n for name, n in analysis.unsupported_ops().items()})
    macs = {}
    for name, value in counts.items():
        if name.startswith(_UNCOUNTED):
            uncounted[name.removeprefix(_UNCOUNTED)] += int(value)
        else:
            macs[name] = int(value)
    return MacCount(sum(macs.values()), dict(sorted(macs.items())), dict(sorted(uncounted.items())))


@contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    """A trace in training mode would move batch statistics and count dropout."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _sizes(value: Any) -> list[int]:
    sizes: list[int] = value.type().sizes()
    return sizes


def _product(name: str, left: int, right: int) -> Callable[[list[Any], list[Any]], Counter[str]]:
    """A handler for a matrix product of the inputs at two places."""
    return lambda inputs, _: Counter({name: matmul_macs(_sizes(inputs[left]), _sizes(inputs[right]))})


def _linear(inputs: list[Any], _: list[Any]) -> Counter[str]:
    """`linear` of (..., in) with weights (out, in)."""
    return Counter({"linear": math.prod(_sizes(inputs[0])) * _sizes(inputs[1])[0]})


def _convolution(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    transposed = bool(inputs[6].toIValue())
    return Counter({"conv": conv_macs(_sizes(inputs[1]), _sizes((inputs if transposed else outputs)[0]))})


def _einsum(inputs: list[Any], _: list[Any]) -> Counter[str]:
    shapes = [_sizes(value) for value in inputs[1].node().inputs()]
    macs = einsum_macs(inputs[0].toIValue(), shapes)
    return Counter({f"{_UNCOUNTED}einsum": 1} if macs is None else {"einsum": macs})


def _attention(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    macs = attention_macs(_sizes(inputs[0]), _sizes(inputs[1]), _sizes(outputs[0]))
    return Counter({"scaled_dot_product_attention": macs})


def _control_flow(name: str) -> Callable[[list[Any], list[Any]], Counter[str]]:
    """fvcore neither enters nor mentions the blocks of scripted control flow."""
    return lambda _, __: Counter({f"{_UNCOUNTED}{name}": 1})


_TORCH_HANDLERS: dict[str, Callable[[list[Any], list[Any]], Counter[str]]] = {
    "aten::linear": _linear,
    "aten::matmul": _product("matmul", 0, 1),
    "aten::mm": _product("matmul", 0, 1),
    "aten::mv": _product("matmul", 0, 1),
    "aten::dot": _product("matmul", 0, 1),
    "aten::bmm": _product("matmul", 0, 1),
    "aten::addmm": _product("matmul", 1, 2),
    "aten::addmv": _product("matmul", 1, 2),
    "aten::baddbmm": _product("matmul", 1, 2),
    "aten::addbmm": _product("matmul", 1, 2),
    "aten::_convolution": _convolution,
    "aten::einsum": _einsum,
    "aten::scaled_dot_product_attention": _attention,
    "prim::If": _control_flow("if"),
    "prim::Loop": _control_flow("loop"),
}

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
        inliner = require("onnx.inliner", "train", "counting MACs")
        model = inliner.inline_local_functions(model)
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = _known_shapes(graph)
    light = {name for _, of_onnx in NOT_COUNTED.values() for name in of_onnx.split()}
    macs: Counter[str] = Counter()
    uncounted: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type in light:
            continue
        try:
            found = _node_macs(node, shapes)
        except KeyError:
            uncounted[f"{node.op_type} (shape unknown)"] += 1
            continue
        if found is None:
            uncounted[node.op_type] += 1
        else:
            macs[node.op_type] += found
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


def _node_macs(node: Any, shapes: dict[str, list[int]]) -> int | None:
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


EMBEDDING = "patch embedding"
BLOCKS = "blocks"
SELECTING = "block that selects"
LAST = "last block"
SCORE = "selection score"
HEAD = "head"
"""The parts of a model, by which the closed forms count."""

REASONS = {
    EMBEDDING: "DNSPT is one product over each kept patch's window, not over five views of all patches",
    SELECTING: "only rows that are kept are queried, projected and put through the MLP",
    SCORE: "the class token's row is scored by itself",
    LAST: "only the class token is read from the last block",
}
"""Why the exported graph takes another number of multiply-adds than the model as it is written, by part."""

CELLS = 16
"""Cells of a patch's window in the folded DNSPT (see `export.static_model`): 2 x 2 blocks of 2 x 2."""


def eager_macs(config: ModelConfig, tokens: int) -> dict[str, int]:
    """Multiply-adds of the model as it is written, by part, at a budget of `tokens`.

    Raises:
        InputError: more tokens than there are, or fewer than 1; of a ViT, any but all; an unknown score.
        MissingExtraError: tokens are dropped by a score, whose entry needs torch, which is not installed.
    """
    config.check_tokens(tokens)
    if config.kind == "vit":
        return _vit(config)
    before, scoring = _selection(config, tokens)
    parts = Counter({EMBEDDING: 5 * config.patches * _features(config) * config.dim})
    for index in range(config.depth):
        sees_all = before is False and index <= config.select_block
        rows = 1 + (config.patches if sees_all else tokens)
        parts[_part(config, before, index)] += _block(config, rows, rows)
    return dict(parts | Counter({SCORE: scoring, HEAD: _head(config, tokens)}))


def exported_macs(config: ModelConfig, tokens: int) -> dict[str, int]:
    """Multiply-adds of the static graph (see `export.static_model`), by part, at a budget of `tokens`.

    Raises:
        InputError: as `eager_macs`.
        MissingExtraError: as `eager_macs`.
    """
    config.check_tokens(tokens)
    if config.kind == "vit":
        return _vit(config)
    before, scoring = _selection(config, tokens)
    embedded = tokens if before else config.patches
    per_patch = 4 * _features(config) * config.dim
    if config.token_norm == "layer":
        # Statistics from the cells: their means through (16, d), and two weighted sums over 16.
        per_patch += CELLS * config.dim + 2 * CELLS
    parts = Counter({EMBEDDING: embedded * per_patch})
    rows = 1 + embedded
    for index in range(config.depth):
        part = _part(config, before, index)
        if part == SELECTING:
            parts[part] += _block(config, rows, queried=1 + tokens)
            # The class token's query, against the keys of the patches.
            scoring += config.dim**2 + config.patches * config.dim
            rows = 1 + tokens
        elif part == LAST:
            parts[part] += _block(config, rows - 1, queried=1)
        else:
            parts[part] += _block(config, rows, rows)
    return dict(parts | Counter({SCORE: scoring, HEAD: _head(config, tokens)}))


def explain(config: ModelConfig, tokens: int) -> str:
    """Says in one sentence how many multiply-adds the exported graph saves, and by which rewrites."""
    written, exported = eager_macs(config, tokens), exported_macs(config, tokens)
    if written == exported:
        return "the exported graph takes as many multiply-adds as the model as it is written"
    gaps = {part: exported.get(part, 0) - written.get(part, 0) for part in {**written, **exported}}
    told = "; ".join(f"{gap:+,} {part} ({REASONS.get(part, 'by rows')})" for part, gap in gaps.items() if gap)
    saved = -sum(gaps.values())
    more_or_less = "fewer" if saved >= 0 else "more"
    return (
        f"the exported graph takes {abs(saved):,} multiply-adds {more_or_less} than the eager model: {told}"
    )


def _selection(config: ModelConfig, tokens: int) -> tuple[bool | None, int]:
    """Returns whether tokens are dropped before the embedding, None where none are, and the score's multiply-adds."""
    if tokens == config.patches:
        return None, 0
    require("torch", "train", "counting MACs")  # which a device that reads a profile's bundle need not have
    from ptsr_edge.models.ptsr import InputScore, find_score

    score = find_score(config.score)
    return isinstance(score, InputScore), score.macs(config)


def _features(config: ModelConfig) -> int:
    return config.channels * config.patch_size**2


def _part(config: ModelConfig, before: bool | None, index: int) -> str:
    """The part under which a block counts: some are calculated for fewer rows than they are written for."""
    if before is False and index == config.select_block:
        return SELECTING
    return LAST if index == config.depth - 1 and not config.local_readout else BLOCKS


def _block(config: ModelConfig, rows: int, queried: int) -> int:
    """A block with keys and values of `rows` rows, and all else calculated for `queried` of them."""
    keys_values = 2 * rows * config.dim**2
    attention = 2 * queried * config.dim**2 + 2 * queried * rows * config.dim
    return keys_values + attention + 2 * queried * config.dim * config.mlp_dim


def _head(config: ModelConfig, tokens: int) -> int:
    local = tokens * config.classes * config.dim if config.local_readout else 0
    return config.dim * config.classes + local + _means(config)


def _means(config: ModelConfig) -> int:
    if not config.mean_readout:
        return 0
    features, hidden = config.channels * config.patches, config.mean_hidden
    return hidden * (features + config.classes) if hidden else features * config.classes


def _vit(config: ModelConfig) -> dict[str, int]:
    rows = 1 + config.patches
    return {
        EMBEDDING: config.patches * _features(config) * config.dim,
        BLOCKS: config.depth * _block(config, rows, rows),
        HEAD: config.dim * config.classes,
    }
