"""Counts of operators against formulas worked out by hand, and the closed form against both counts.

A product of (m, k) with (k, n) takes m k n multiply-adds; all that is worked out by hand comes from that, with
dimensions that are all different. The closed form knows nothing of fvcore's trace or of the exported ONNX graph.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from ptsr_edge.core.config import MODELS, ModelConfig, named_model
from ptsr_edge.core.errors import InputError
from ptsr_edge.export.onnx_graph import trace
from ptsr_edge.export.static_model import to_static
from ptsr_edge.models.macs import (
    EMBEDDING,
    HEAD,
    SCORE,
    SELECTING,
    MacCount,
    count_macs,
    eager_macs,
    einsum_macs,
    explain,
    exported_macs,
    matmul_macs,
    onnx_macs,
)
from ptsr_edge.models.ptsr import SCORES, Vit, build_model

pytestmark = pytest.mark.slow


class Call(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors)


def zeros(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.zeros(shape) for shape in shapes)


@pytest.mark.parametrize(
    ("function", "shapes", "name", "macs"),
    [
        (torch.matmul, [(3, 5), (5, 7)], "matmul", 3 * 5 * 7),
        (torch.matmul, [(2, 1, 3, 5), (11, 5, 7)], "matmul", 2 * 11 * 3 * 5 * 7),
        (torch.matmul, [(5, 7), (2, 11, 7, 3)], "matmul", 2 * 11 * 5 * 7 * 3),
        (torch.matmul, [(5,), (2, 5, 7)], "matmul", 2 * 5 * 7),
        (torch.matmul, [(2, 3, 5), (5,)], "matmul", 2 * 3 * 5),
        (torch.mm, [(3, 5), (5, 7)], "matmul", 3 * 5 * 7),
        (torch.mv, [(3, 5), (5,)], "matmul", 3 * 5),
        (torch.dot, [(5,), (5,)], "matmul", 5),
        (torch.bmm, [(2, 3, 5), (2, 5, 7)], "matmul", 2 * 3 * 5 * 7),
        (torch.addmm, [(7,), (3, 5), (5, 7)], "matmul", 3 * 5 * 7),
        (torch.baddbmm, [(2, 3, 7), (2, 3, 5), (2, 5, 7)], "matmul", 2 * 3 * 5 * 7),
        (F.linear, [(2, 3, 5), (7, 5), (7,)], "linear", 2 * 3 * 5 * 7),
        (F.linear, [(2, 3, 5), (7, 5)], "linear", 2 * 3 * 5 * 7),
        # 11 x 9 with a 3 x 2 kernel, stride 2: 5 x 4 places, each 7 filters of 4 x 3 x 2.
        (lambda x, w: F.conv2d(x, w, stride=2), [(2, 4, 11, 9), (7, 4, 3, 2)], "conv", 2 * 20 * 7 * 24),
        # In 2 groups each filter sees 2 of the 4 channels.
        (
            lambda x, w: F.conv2d(x, w, groups=2),
            [(1, 4, 5, 6), (6, 2, 3, 2)],
            "conv",
            (3 * 5) * 6 * (2 * 3 * 2),
        ),
        (F.conv1d, [(2, 3, 11), (5, 3, 4)], "conv", 2 * 8 * 5 * 3 * 4),
        # Transposed: every input place meets the whole kernel, (in, out, 3, 2).
        (F.conv_transpose2d, [(2, 4, 5, 7), (4, 6, 3, 2)], "conv", 2 * 35 * 4 * 6 * 6),
        (
            lambda a, b: torch.einsum("bnd,bnkd->bk", a, b),
            [(2, 3, 5), (2, 3, 7, 5)],
            "einsum",
            2 * 3 * 7 * 5,
        ),
        # Queries (L 5, d 7) against 11 keys, then weights over values of width 13, in 2 x 3 heads.
        (
            F.scaled_dot_product_attention,
            [(2, 3, 5, 7), (2, 3, 11, 7), (2, 3, 11, 13)],
            "scaled_dot_product_attention",
            2 * 3 * (5 * 7 * 11 + 5 * 11 * 13),
        ),
    ],
)
def test_torch_operators(function: Any, shapes: list[tuple[int, ...]], name: str, macs: int) -> None:
    assert count_macs(Call(function), zeros(*shapes)) == MacCount(macs, {name: macs}, {})


def test_norms_and_activations_are_no_macs_by_convention() -> None:
    module = nn.Sequential(nn.LayerNorm(5), nn.GELU(), nn.Softmax(dim=-1), nn.Dropout(0.5))
    assert count_macs(module, zeros((2, 3, 5))) == MacCount(0, {}, {})


def test_an_unknown_operator_is_listed_never_zero() -> None:
    counted = count_macs(Call(lambda x: torch.fft.fft(x).real @ x), zeros((3, 3)))
    assert counted.total == 27
    assert counted.uncounted == {"fft_fft": 1, "real": 1}


@pytest.mark.parametrize(
    "equation", ["ab,bc,cd->ad", "...ab,...bc->...ac"], ids=["three operands", "ellipsis"]
)
def test_an_einsum_without_one_answer_is_listed(equation: str) -> None:
    operands = zeros(*[(3, 3)] * (equation.count(",") + 1))
    counted = count_macs(Call(lambda *t: torch.einsum(equation, *t)), operands)
    assert (counted.total, counted.uncounted) == (0, {"einsum": 1})


@pytest.mark.filterwarnings(r"ignore:`torch\.jit\.\w+` is deprecated")
def test_scripted_control_flow_is_listed() -> None:
    def looping(x: Tensor, times: int) -> Tensor:
        for _ in range(times):
            x = x @ x
        return x

    scripted = torch.jit.script(looping)
    counted = count_macs(Call(lambda x: scripted(x, 4)), zeros((3, 3)))
    assert sum(counted.uncounted.values()) >= 1


def test_the_fused_attention_of_torch_is_listed() -> None:
    # In evaluation mode torch runs all of it as one operator that no formula here knows.
    attention = nn.MultiheadAttention(6, 2, batch_first=True).eval().requires_grad_(False)
    counted = count_macs(Call(lambda x: attention(x, x, x, need_weights=False)[0]), zeros((1, 3, 6)))
    assert counted.uncounted == {"_native_multi_head_attention": 1}


def test_counting_leaves_the_module_as_it_was() -> None:
    norm, linear = nn.BatchNorm1d(3).train(), nn.Linear(3, 2).eval()
    before = norm.state_dict()["num_batches_tracked"].clone()
    count_macs(nn.Sequential(norm, linear), (torch.randn(4, 3),))
    assert (norm.training, linear.training) == (True, False)
    assert torch.equal(norm.state_dict()["num_batches_tracked"], before)


def test_vit_small_is_the_published_figure() -> None:
    # DeiT-S / ViT-S at 224, patch 16: 4.6 G in Touvron et al. 2021 (table 5) and in timm's results.
    counted = count_macs(Vit(named_model("vit-small")), zeros((1, 3, 224, 224)))
    assert counted.total == pytest.approx(4.6e9, rel=0.005)


def test_formulas_of_shapes() -> None:
    assert matmul_macs((5,), (5,)) == 5
    # c is summed within its operand before the product; the trace index of one operand likewise.
    assert einsum_macs("abc,bd->ad", [(2, 3, 5), (3, 7)]) == 2 * 3 * 7
    assert einsum_macs("a,b->ab", [(2,), (3,)]) == 6
    assert einsum_macs("ab->ba", [(2, 3)]) == 0


FLOAT, UINT8, INT8 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT8


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[Any]]],
    constants: dict[str, np.ndarray] | None = None,
    output: str = "y",
) -> Path:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_empty_tensor_value_info(output)],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), path)
    return path


@pytest.mark.parametrize(
    ("node", "inputs", "macs"),
    [
        (helper.make_node("MatMul", ["a", "b"], ["y"]), {"a": [2, 3, 5], "b": [5, 7]}, 2 * 3 * 5 * 7),
        (helper.make_node("MatMul", ["a", "b"], ["y"]), {"a": [3, 5], "b": [2, 5, 7]}, 2 * 3 * 5 * 7),
        (helper.make_node("Gemm", ["a", "b"], ["y"]), {"a": [3, 5], "b": [5, 7]}, 3 * 5 * 7),
        (
            helper.make_node("Gemm", ["a", "b"], ["y"], transA=1, transB=1),
            {"a": [5, 3], "b": [7, 5]},
            3 * 5 * 7,
        ),
        (
            helper.make_node("Conv", ["a", "b"], ["y"], strides=[2, 2]),
            {"a": [2, 4, 11, 9], "b": [7, 4, 3, 2]},
            2 * 20 * 7 * 24,
        ),
        (
            helper.make_node("Conv", ["a", "b"], ["y"], group=2),
            {"a": [1, 4, 5, 6], "b": [6, 2, 3, 2]},
            15 * 6 * 12,
        ),
        (
            helper.make_node("ConvTranspose", ["a", "b"], ["y"]),
            {"a": [2, 4, 5, 7], "b": [4, 6, 3, 2]},
            2 * 35 * 4 * 36,
        ),
        (
            helper.make_node("Einsum", ["a", "b"], ["y"], equation="bnd,bnkd->bk"),
            {"a": [2, 3, 5], "b": [2, 3, 7, 5]},
            2 * 3 * 7 * 5,
        ),
        (
            helper.make_node("FusedMatMul", ["a", "b"], ["y"], domain="com.microsoft", transB=1),
            {"a": [2, 3, 5], "b": [2, 7, 5]},
            2 * 3 * 5 * 7,
        ),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else "",
)
def test_onnx_operators(
    tmp_path: Path, node: onnx.NodeProto, inputs: dict[str, list[int]], macs: int
) -> None:
    path = save(tmp_path / "g.onnx", [node], {name: (FLOAT, shape) for name, shape in inputs.items()})
    assert onnx_macs(path) == MacCount(macs, {node.op_type: macs}, {})


SCALE = np.float32(0.1)


ZERO = np.uint8(0)


def test_onnx_quantized_operators(tmp_path: Path) -> None:
    constants = {"s": np.array(SCALE), "z": np.array(ZERO)}
    nodes = [
        helper.make_node("QLinearMatMul", ["a", "s", "z", "b", "s", "z", "s", "z"], ["m"]),  # (3,5)(5,7)
        helper.make_node("MatMulInteger", ["m", "c"], ["i"]),  # (3,7)(7,2)
        helper.make_node("QLinearConv", ["x", "s", "z", "w", "s", "z", "s", "z"], ["q"]),
        helper.make_node("ConvInteger", ["x", "w"], ["y"]),
    ]
    inputs = {"a": [3, 5], "b": [5, 7], "c": [7, 2], "x": [1, 4, 6, 5], "w": [2, 4, 3, 2]}
    path = save(tmp_path / "g.onnx", nodes, {n: (UINT8, shape) for n, shape in inputs.items()}, constants)
    conv = (4 * 4) * 2 * (4 * 3 * 2)
    counted = onnx_macs(path)
    assert counted.uncounted == {}
    assert counted.by_operator == {
        "QLinearMatMul": 3 * 5 * 7,
        "MatMulInteger": 3 * 7 * 2,
        "QLinearConv": conv,
        "ConvInteger": conv,
    }


def test_onnx_qdq_counts_the_product_once(tmp_path: Path) -> None:
    constants = {"s": np.array(SCALE), "z": np.array(ZERO), "w8": np.zeros((5, 7), np.uint8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x8"]),
        helper.make_node("DequantizeLinear", ["x8", "s", "z"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w8", "s", "z"], ["wf"]),
        helper.make_node("MatMul", ["xf", "wf"], ["y"]),
    ]
    path = save(tmp_path / "g.onnx", nodes, {"x": (FLOAT, [3, 5])}, constants)
    assert onnx_macs(path) == MacCount(105, {"MatMul": 105}, {})


def test_onnx_what_it_cannot_count_is_listed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DFT", ["x"], ["d"]),
        helper.make_node("Secret", ["x"], ["u"], domain="com.microsoft"),
        helper.make_node("MatMul", ["x", "u"], ["y"]),
    ]
    path = save(tmp_path / "g.onnx", nodes, {"x": (FLOAT, [1, 4, 4, 1])})
    assert onnx_macs(path) == MacCount(0, {}, {"DFT": 1, "MatMul (shape unknown)": 1, "Secret": 1})


def test_onnx_a_product_inside_of_a_local_function_is_counted(tmp_path: Path) -> None:
    inside = helper.make_node("MatMul", ["a", "b"], ["c"])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    function = helper.make_function("local", "Product", ["a", "b"], ["c"], [inside], opsets[:1])
    graph = helper.make_graph(
        [helper.make_node("Product", ["x", "w"], ["y"], domain="local")],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (3, 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (3, 5))],
        [numpy_helper.from_array(np.ones((4, 5), np.float32), "w")],
    )
    model = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=9)
    onnx.save(model, tmp_path / "function.onnx")
    assert onnx_macs(tmp_path / "function.onnx").total == 3 * 4 * 5


def test_onnx_a_symbolic_shape_is_not_guessed(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    path = save(tmp_path / "g.onnx", nodes, {"x": (FLOAT, ["batch", 5]), "w": (FLOAT, [5, 7])})
    assert onnx_macs(path).uncounted == {"MatMul (shape unknown)": 1}


def test_onnx_needs_no_weights_beside_it(tmp_path: Path) -> None:
    # The reshape's target lies in the second file as well and is needed; the 140 kB of weights are not.
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    constants = {"shape": np.array([3, 500]), "w": np.zeros((500, 70), np.float32)}
    path = save(tmp_path / "g.onnx", nodes, {"x": (FLOAT, [1500])}, constants)
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    weights = tmp_path / "weights.bin"
    content = weights.read_bytes()
    assert onnx_macs(path).total == 3 * 500 * 70
    shape_end = 4096
    weights.write_bytes(content[:shape_end])
    assert onnx_macs(path).total == 3 * 500 * 70


def test_onnx_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        onnx_macs(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(InputError, match="no readable ONNX model"):
        onnx_macs(tmp_path / "text.onnx")


RATES = (1.0, 0.5, 0.25, 0.12)

FEW = 3


BUDGETS = [
    pytest.param(config, rate, id=f"{config.name} {rate:g}")
    for config in MODELS.values()
    for rate in (RATES if config.kind == "ptsr" else RATES[:1])
]


def no_flow(config: ModelConfig) -> torch.Tensor:
    return torch.zeros(1, *config.input_shape)


def counted_eager(config: ModelConfig, tokens: int) -> int:
    found = count_macs(build_model(config), (no_flow(config), tokens))
    assert found.uncounted == {}
    return found.total


def counted_static(config: ModelConfig, tokens: int) -> int:
    found = count_macs(to_static(build_model(config), tokens), (no_flow(config),))
    assert found.uncounted == {}
    return found.total


@pytest.mark.parametrize(("config", "rate"), BUDGETS)
def test_every_named_model_at_every_budget(config: ModelConfig, rate: float, tmp_path: Path) -> None:
    """The closed forms against counts of the model and of its static form, and of the graph that is traced from it.

    Of a larger PTSR only the smallest graph is traced, which takes seconds: budgets differ in sizes alone. So do blocks behind
    the first `FEW`, which every kind of block is among.
    """
    tokens = config.tokens_at(rate)
    model = build_model(config)
    eager = count_macs(model, (no_flow(config), tokens))
    static = to_static(model, tokens)
    exported = count_macs(static, (no_flow(config),))
    assert eager.uncounted == exported.uncounted == {}
    assert sum(eager_macs(config, tokens).values()) == eager.total
    assert sum(exported_macs(config, tokens).values()) == exported.total
    if config.kind == "vit" or config.name == "ptsr-nano" or rate == RATES[-1]:
        few = config.model_copy(update={"depth": min(config.depth, FEW)})
        onnx.save(trace(to_static(build_model(few), tokens), few), tmp_path / "graph.onnx")
        graph = onnx_macs(tmp_path / "graph.onnx")
        assert (graph.total, graph.uncounted) == (sum(exported_macs(few, tokens).values()), {})


FORMS = [
    *[dict(score=score, local_readout=local) for score in SCORES for local in (True, False)],
    dict(score="strain", token_norm="batch", mean_readout=True),
    dict(score="strain", mean_readout=True, mean_hidden=20),
    dict(score="rollout", token_norm="batch", select_block=0),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: " ".join(f"{value}" for value in form.values()))
def test_every_form_at_odd_budgets(ptsr_config: Callable[..., ModelConfig], form: dict[str, Any]) -> None:
    config = ptsr_config(**dict(select_block=1, mlp_ratio=1.5) | form)
    for tokens in (1, 7, 16):
        assert sum(eager_macs(config, tokens).values()) == counted_eager(config, tokens)
        assert sum(exported_macs(config, tokens).values()) == counted_static(config, tokens)


def test_every_number_of_tokens_of_the_smallest_model() -> None:
    config = MODELS["ptsr-nano"]
    for tokens in range(1, config.patches + 1, 4):
        assert sum(eager_macs(config, tokens).values()) == counted_eager(config, tokens)
        assert sum(exported_macs(config, tokens).values()) == counted_static(config, tokens)


def test_parts_by_hand() -> None:
    # ptsr-tiny: N = 196, F = 3 x 8 x 8 = 192, d = 192, 3 classes, strain before the embedding, LayerNorm.
    config = MODELS["ptsr-tiny"].model_copy(update={"token_norm": "layer", "mean_readout": False})
    assert eager_macs(config, 49)[EMBEDDING] == 5 * 196 * 192 * 192
    assert exported_macs(config, 49)[EMBEDDING] == 49 * (4 * 192 * 192 + 16 * 192 + 32)
    assert exported_macs(config, 49)[HEAD] == 3 * 192 + 49 * 3 * 192
    # d = 384, MLP 1536; keys and values of 197 rows, the rest of 50, and one query over 196 keys.
    small = exported_macs(MODELS["ptsr-small-attention"], 49)
    kept = 2 * 50 * 384**2 + 2 * 50 * 197 * 384 + 2 * 50 * 384 * 1536
    assert small[SELECTING] == 2 * 197 * 384**2 + kept
    assert small[SCORE] == 384**2 + 196 * 384


def test_the_difference_is_explained_and_adds_up() -> None:
    for config in MODELS.values():
        for rate in RATES if config.kind == "ptsr" else (1.0,):
            tokens = config.tokens_at(rate)
            text = explain(config, tokens)
            saved = sum(eager_macs(config, tokens).values()) - sum(exported_macs(config, tokens).values())
            if config.kind == "vit":
                assert text == "the exported graph takes as many multiply-adds as the model as it is written"
                continue
            assert f"takes {saved:,} multiply-adds fewer" in text
            told = [
                word for word in text.replace("; ", " ").split() if word[0] in "+-" and word[1:2].isdigit()
            ]
            assert sum(int(word.replace(",", "")) for word in told) == -saved
            assert "by rows" not in text
            assert ("the class token's row" in text) == (config.name == "ptsr-small-attention" and rate < 1)


def test_budgets_that_there_are_none_of() -> None:
    with pytest.raises(InputError, match="keeps 1 to 49 tokens, got 50"):
        eager_macs(MODELS["ptsr-nano"], 50)
    with pytest.raises(InputError, match="vit-nano keeps all of its 49 tokens, got a budget of 5"):
        exported_macs(MODELS["vit-nano"], 5)
