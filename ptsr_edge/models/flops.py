"""Multiply-adds of a torch module, and the formulas behind them.

Convention: one multiply-add is one MAC (fvcore's convention; FLOPs in the other common sense are twice
as many). Matrix products and convolutions are counted, biases are not. What is left out on purpose is
in `NOT_COUNTED`; any other operator that is met is listed as uncounted, never taken for zero.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ptsr_edge.core.errors import require

Shape = Sequence[int]

NOT_COUNTED: dict[str, tuple[str, ...]] = {
    "normalisation: a few operations per element": (
        "batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "rsqrt", "sqrt", "var",
        "std", "mean", "sum", "norm", "linalg_vector_norm",
    ),
    "softmax and activations": (
        "softmax", "log_softmax", "gelu", "relu", "silu", "sigmoid", "tanh", "erf", "exp", "log",
    ),
    "element-wise arithmetic and comparison": (
        "add", "add_", "sub", "sub_", "rsub", "mul", "mul_", "div", "div_", "neg", "abs", "pow",
        "square", "reciprocal", "maximum", "minimum", "clamp", "clamp_min", "clamp_max", "where",
        "masked_fill", "masked_fill_", "eq", "ne", "lt", "le", "gt", "ge", "logical_not", "logical_and",
        "cumsum", "floor_divide", "lift_fresh", "dropout", "bitwise_and", "__and__",
    ),
    "selection, ordering and gathering": (
        "topk", "sort", "argsort", "max", "min", "argmax", "gather", "index", "index_select", "one_hot",
        "take_along_dim", "scatter", "scatter_", "repeat_interleave", "rand",
    ),
    "pooling and resampling": (
        "avg_pool2d", "max_pool2d", "adaptive_avg_pool2d", "upsample_nearest2d", "upsample_bilinear2d",
    ),
    "shapes, copies and constants": (
        "im2col", "col2im", "pad", "expand_as", "repeat", "view_as", "clone", "alias", "broadcast_to",
        "flip", "numel", "eye", "ones_like", "full_like", "movedim", "unflatten", "swapaxes", "numpy_T",
    ),
}  # fmt: skip
"""Torch operators that are no matrix product, with the reason; fvcore's own list of shape and copy
operators comes on top."""


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


# ---------------------------------------------------------------------------------------------
# Formulas over shapes


def matmul_macs(left: Shape, right: Shape) -> int:
    """MACs of numpy's `left @ right`: (..., m, k) with (..., k, n), batches broadcast; vectors too."""
    left = [1, *left] if len(left) == 1 else list(left)
    right = [*right, 1] if len(right) == 1 else list(right)
    return math.prod(_broadcast(left[:-2], right[:-2])) * left[-2] * left[-1] * right[-1]


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


def _broadcast(left: Shape, right: Shape) -> list[int]:
    width = max(len(left), len(right))
    padded = ([1] * (width - len(side)) + list(side) for side in (left, right))
    return [b if a == 1 else a for a, b in zip(*padded, strict=True)]


# ---------------------------------------------------------------------------------------------
# Torch

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
        for names in NOT_COUNTED.values():
            for name in names:
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
