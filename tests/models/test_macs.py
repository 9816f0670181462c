"""The closed form against two counts that know nothing of it: fvcore's trace, and the exported ONNX graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from ptsr_edge.core.config import MODELS, ModelConfig
from ptsr_edge.core.errors import InputError
from ptsr_edge.export.onnx_graph import trace
from ptsr_edge.export.static_model import to_static
from ptsr_edge.models.macs import (
    EMBEDDING,
    HEAD,
    SCORE,
    SELECTING,
    count_macs,
    eager_macs,
    explain,
    exported_macs,
    onnx_macs,
)
from ptsr_edge.models.ptsr import build_model

RATES = (1.0, 0.5, 0.25, 0.12)
BUDGETS = [
    pytest.param(config, rate, id=f"{config.name} {rate:g}")
    for config in MODELS.values()
    for rate in (RATES if config.kind == "ptsr" else RATES[:1])
]


def zeros(config: ModelConfig) -> torch.Tensor:
    return torch.zeros(1, *config.input_shape)


def counted_eager(config: ModelConfig, tokens: int) -> int:
    found = count_macs(build_model(config), (zeros(config), tokens))
    assert found.uncounted == {}
    return found.total


def counted_static(config: ModelConfig, tokens: int) -> int:
    found = count_macs(to_static(build_model(config), tokens), (zeros(config),))
    assert found.uncounted == {}
    return found.total


@pytest.mark.parametrize(("config", "rate"), BUDGETS)
def test_every_named_model_at_every_budget(config: ModelConfig, rate: float, tmp_path: Path) -> None:
    tokens = config.tokens_at(rate)
    assert sum(eager_macs(config, tokens).values()) == counted_eager(config, tokens)
    static = to_static(build_model(config), tokens)
    exported = count_macs(static, (zeros(config),))
    onnx.save(trace(static, config), tmp_path / "graph.onnx")
    graph = onnx_macs(tmp_path / "graph.onnx")
    assert exported.uncounted == graph.uncounted == {}
    assert sum(exported_macs(config, tokens).values()) == exported.total == graph.total


@pytest.mark.parametrize("score", ["strain", "random", "class-attention", "rollout"])
@pytest.mark.parametrize("local", [True, False], ids=["local", "global"])
@pytest.mark.parametrize("means", [True, False], ids=["means", "no means"])
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_every_form_at_odd_budgets(
    ptsr_config: Callable[..., ModelConfig], score: str, local: bool, means: bool, norm: str
) -> None:
    config = ptsr_config(
        score=score, local_readout=local, mean_readout=means, token_norm=norm, select_block=1, mlp_ratio=1.5
    )
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
    config = MODELS["ptsr-tiny"]
    assert eager_macs(config, 49)[EMBEDDING] == 5 * 196 * 192 * 192
    assert exported_macs(config, 49)[EMBEDDING] == 49 * (4 * 192 * 192 + 16 * 192 + 32)
    assert exported_macs(config, 49)[HEAD] == 3 * 192 + 49 * 3 * 192
    # ptsr-small: d = 384, MLP 1536; keys and values of 197 rows, the rest of 50, and one query over 196 keys.
    small = exported_macs(MODELS["ptsr-small"], 49)
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
            assert ("the class token's row" in text) == (config.name == "ptsr-small" and rate < 1)


def test_budgets_that_there_are_none_of() -> None:
    with pytest.raises(InputError, match="keeps 1 to 49 tokens, got 50"):
        eager_macs(MODELS["ptsr-nano"], 50)
    with pytest.raises(InputError, match="vit-nano keeps all of its 49 tokens, got a budget of 5"):
        exported_macs(MODELS["vit-nano"], 5)
