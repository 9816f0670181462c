"""Counts against formulas worked out by hand, with dimensions that are all different.

A product of (m, k) with (k, n) takes m k n multiply-adds; everything below comes from that.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptsr_edge.core.config import named_model
from ptsr_edge.export.static_model import to_static
from ptsr_edge.models.macs import MacCount, count_macs, einsum_macs, matmul_macs
from ptsr_edge.models.ptsr import Vit, build_model


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


def test_vit_is_the_closed_form() -> None:
    # ViT-nano: N = 49 patches of 4 x 4 x 3, T = 50, d = 24, one block, MLP ratio 1, 3 classes:
    # embedding N 48 d; q, k, v and output 4 T d^2; scores and mix 2 T^2 d; MLP 2 T d^2; head 3 d.
    expected = 49 * 48 * 24 + 4 * 50 * 24**2 + 2 * 50**2 * 24 + 2 * 50 * 24**2 + 3 * 24
    counted = count_macs(build_model(named_model("vit-nano")), (torch.zeros(1, 3, 28, 28),))
    assert (counted.total, counted.uncounted) == (expected, {})


@pytest.mark.parametrize("kept", [49, 25, 13])
def test_static_ptsr_is_the_closed_form(kept: int) -> None:
    # PTSR-nano folds DNSPT into one (d, 16 C half^2) = (24, 192) product for each kept patch; then as
    # the ViT with T = 1 + K, and each kept token once more through its own (3, d) head. The
    # means of three channels of 49 patches meet three classes.
    tokens = 1 + kept
    expected = kept * 192 * 24 + 6 * tokens * 24**2 + 2 * tokens**2 * 24 + 3 * 24 + kept * 3 * 24 + 3 * 49 * 3
    model = build_model(named_model("ptsr-nano"))
    counted = count_macs(to_static(model, kept), (torch.zeros(1, 3, 28, 28),))
    assert (counted.total, counted.uncounted) == (expected, {})


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
