"""Geometry and budgets: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ptsr_edge.core.config import LABELS, MODELS, ModelConfig, Preprocess, baseline_of, named_model
from ptsr_edge.core.errors import InputError
from ptsr_edge.core.records import parse

GOOD: dict[str, Any] = dict(
    name="ptsr-x", kind="ptsr", image_size=32, patch_size=8, dim=24, depth=3, heads=2, select_block=2
)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"patch_size": 6}, "patch_size must divide image_size, got 6 for 32"),
        ({"image_size": 35, "patch_size": 7}, "patch_size must be even for half-patch shifts, got 7"),
        ({"heads": 5}, "heads must divide dim, got 5 for 24"),
        ({"select_block": 3}, "select_block must be in [0, 2] for depth 3, got 3"),
        ({"select_block": -1}, "select_block: Input should be greater than or equal to 0 (found -1)"),
        ({"depth": 0}, "depth: Input should be greater than or equal to 1 (found 0)"),
        ({"classes": 1}, "classes: Input should be greater than or equal to 2 (found 1)"),
        ({"dim": "wide"}, "found 'wide'"),
        ({"dropout": 1.0}, "dropout: Input should be less than 1 (found 1.0)"),
        ({"patchsize": 8}, "unknown key 'patchsize'; the nearest known key is 'patch_size'"),
        ({"selectblock": 1}, "unknown key 'selectblock'; the nearest known key is 'select_block'"),
    ],
)
def test_a_bad_configuration_is_refused_with_value_and_rule(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(ModelConfig, GOOD | changes, "recipe.toml")
    message = str(caught.value)
    assert message.startswith("recipe.toml: ")
    assert says in message
    assert "\n" not in message


def test_a_baseline_may_have_an_odd_patch() -> None:
    # Only the half-patch shifts of DNSPT need an even patch.
    odd = parse(ModelConfig, GOOD | {"kind": "vit", "image_size": 35, "patch_size": 7}, "here")
    assert odd.patches == 25


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        named_model("ptsr-tiny").dim = 7


@pytest.mark.parametrize(
    ("rate", "tokens"),
    # ceil(rate x 16), by hand; .3 x 10 style products must not round up past a whole number.
    [
        (1.0, 16),
        (0.5, 8),
        (0.25, 4),
        (0.26, 5),
        (0.01, 1),
        (1e-12, 1),
        (5 / 16, 5),
        (1 / 3, 6),
        (15.01 / 16, 16),
    ],
)
def test_tokens_at_a_keep_rate(rate: float, tokens: int) -> None:
    assert ModelConfig(**GOOD).tokens_at(rate) == tokens


def test_every_whole_number_of_tokens_is_reached_by_its_own_rate() -> None:
    config = named_model("ptsr-tiny")
    assert [config.tokens_at(k / config.patches) for k in range(1, 197)] == list(range(1, 197))


@pytest.mark.parametrize("rate", [0, -0.25, 1.5, math.nan, math.inf, -math.inf])
def test_a_budget_outside_of_0_to_1_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match=r"a budget is a keep rate in \(0, 1\], got ") as caught:
        ModelConfig(**GOOD).tokens_at(rate)
    assert f"got {rate:g}" in str(caught.value)


@pytest.mark.parametrize("tokens", [0, -1, 17])
def test_token_counts_that_there_are_not(tokens: int) -> None:
    with pytest.raises(InputError, match=f"ptsr-x keeps 1 to 16 tokens, got {tokens}"):
        ModelConfig(**GOOD).check_tokens(tokens)


def test_the_named_models_are_those_of_the_contract() -> None:
    # Side, patch, width, heads and depth as the contract lists them.
    listed = {"nano": (28, 4, 24, 2, 1), "tiny": (112, 8, 192, 3, 6), "small": (224, 16, 384, 6, 12)}
    assert set(MODELS) == {f"{kind}-{size}" for kind in ("ptsr", "vit") for size in listed}
    for config in MODELS.values():
        side, patch, dim, heads, depth = listed[config.name.partition("-")[2]]
        found = (config.image_size, config.patch_size, config.dim, config.heads, config.depth)
        assert found == (side, patch, dim, heads, depth)
        assert config.kind == config.name.partition("-")[0]
        assert config.patches == (side // patch) ** 2
        assert config.classes == len(LABELS)


@pytest.mark.parametrize("size", ["nano", "tiny", "small"])
def test_the_baseline_has_the_geometry_and_nothing_of_ptsr(size: str) -> None:
    assert baseline_of(named_model(f"ptsr-{size}")) == named_model(f"vit-{size}")
    assert baseline_of(named_model(f"vit-{size}")) == named_model(f"vit-{size}")


def test_an_unknown_model_names_the_nearest_and_all() -> None:
    with pytest.raises(InputError, match=r"unknown model 'ptsr-tin'.*vit-small.*nearest: ptsr-tiny"):
        named_model("ptsr-tin")


def test_an_unknown_flow_method_is_refused() -> None:
    with pytest.raises(InputError, match="flow: Input should be 'dis-medium' or 'published'"):
        parse(Preprocess, {"image_size": 28, "flow": "tv-l1"}, "here")
