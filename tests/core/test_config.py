"""Strict records, geometry and budgets: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from ptsr_edge.core.config import (
    LABELS,
    MODELS,
    ModelConfig,
    Preprocess,
    Record,
    baseline_of,
    named_model,
    nearest,
    parse,
    read_json,
    read_record,
)
from ptsr_edge.core.errors import InputError

GOOD: dict[str, Any] = dict(
    name="ptsr-x", kind="ptsr", image_size=32, patch_size=8, dim=24, depth=3, heads=2, select_block=2
)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"patch_size": 6}, "patch_size must divide image_size, got 6 for 32"),
        ({"image_size": 35, "patch_size": 7}, "patch_size must be even for half-patch shifts, got 7"),
        ({"heads": 5}, "heads must divide dim, got 5 for 24"),
        ({"layer_scale": 1e308}, "layer_scale: Input should be less than or equal to 1000 (found 1e+308)"),
        (
            {"norm_eps": 1e-60},
            "norm_eps: Input should be greater than or equal to 0.000000000001 (found 1e-60)",
        ),
        ({"select_block": 3}, "select_block must be in [0, 2] for depth 3, got 3"),
        ({"select_block": -1}, "select_block: Input should be greater than or equal to 0 (found -1)"),
        ({"depth": 0}, "depth: Input should be greater than or equal to 1 (found 0)"),
        ({"mean_hidden": 8}, "mean_hidden is read with mean_readout only, got 8 without it"),
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
    named = {f"{kind}-{size}" for kind in ("ptsr", "vit") for size in listed}
    assert set(MODELS) == named | {"ptsr-small-attention"}
    for config in MODELS.values():
        side, patch, dim, heads, depth = listed[config.name.split("-")[1]]
        found = (config.image_size, config.patch_size, config.dim, config.heads, config.depth)
        assert found == (side, patch, dim, heads, depth)
        assert config.kind == config.name.partition("-")[0]
        assert config.patches == (side // patch) ** 2
        assert config.classes == len(LABELS)


@pytest.mark.parametrize("size", ["nano", "tiny", "small"])
def test_the_baseline_has_the_geometry_and_nothing_of_ptsr(size: str) -> None:
    assert baseline_of(named_model(f"ptsr-{size}")) == named_model(f"vit-{size}")
    assert baseline_of(named_model(f"vit-{size}")) == named_model(f"vit-{size}")


def test_two_models_of_one_geometry_have_one_baseline() -> None:
    assert baseline_of(named_model("ptsr-small-attention")) == named_model("vit-small")
    own = named_model("ptsr-small-attention").model_copy(update={"classes": 2})
    assert baseline_of(own).name == "vit-small-attention"  # its own classes: the named ViT is another one


def test_an_unknown_model_names_the_nearest_and_all() -> None:
    with pytest.raises(InputError, match=r"unknown model 'ptsr-tin'.*vit-small.*nearest: ptsr-tiny"):
        named_model("ptsr-tin")


def test_an_unknown_flow_method_is_refused() -> None:
    with pytest.raises(InputError, match="flow: Input should be 'dis-light', 'dis-medium' or 'published'"):
        parse(Preprocess, {"image_size": 28, "flow": "tv-l1"}, "here")


class Inner(Record):
    width_px: int = Field(gt=0)


class Outer(Record):
    name: str
    inner: Inner
    many: tuple[Inner, ...] = ()


def test_the_nearest_name_is_found_however_far_it_is() -> None:
    assert nearest("exprot", ["train", "export", "report"]) == "export"
    assert nearest("123", ["train"]) == "train"


def test_a_record_reads_back_what_it_wrote(tmp_path: Path) -> None:
    record = Outer(name="a", inner=Inner(width_px=3), many=(Inner(width_px=4),))
    path = tmp_path / "record.json"
    path.write_text(record.model_dump_json(), encoding="utf-8")
    assert read_record(Outer, path) == record


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"nam": "a", "inner": {"width_px": 1}}, "where: name: Field required"),
        (
            {"name": "a", "inner": {"width_px": 0}},
            "where: inner.width_px: Input should be greater than 0 (found 0)",
        ),
        (
            {"name": "a", "inner": {"width_px": 1, "width_pxs": 1}},
            "where: unknown key 'inner.width_pxs'; the nearest known key is 'width_px'",
        ),
        (
            {"name": "a", "inner": {"width_px": 1}, "many": [{"width_px": 1}, {"width_px": 1, "widht": 2}]},
            "where: unknown key 'many.1.widht'; the nearest known key is 'width_px'",
        ),
        (
            {"name": "a", "inner": {"width_px": 1}, "mny": []},
            "unknown key 'mny'; the nearest known key is 'many'",
        ),
        ([1, 2], "where: Input should be a valid dictionary"),
        (None, "where: Input should be a valid dictionary"),
    ],
)
def test_the_first_fault_is_named(data: object, says: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(Outer, data, "where")
    assert says in str(caught.value)
    assert len(str(caught.value)) < 450


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000])
def test_what_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"record\.json is not a readable JSON file"):
        read_record(Outer, path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json does not exist"):
        read_record(Outer, tmp_path / "none.json")


def test_a_folder_is_no_record(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a readable JSON file"):
        read_record(Outer, tmp_path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e309"])
def test_numbers_that_json_has_not_are_refused(tmp_path: Path, number: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(f'{{"image_size": 16, "flow": {number}}}', encoding="utf-8")
    with pytest.raises(InputError, match="is not a readable JSON file: .* is no number of JSON"):
        read_record(Preprocess, path)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":[', "]}")])
def test_json_has_a_greatest_depth(opening: str, closing: str) -> None:
    levels = opening.count("[") + opening.count("{")
    for depth in (64 // levels, 64 // levels + 1, 500, 100_000):
        text = opening * depth + closing * depth
        if depth * levels <= 64:
            read_json(text)
            continue
        with pytest.raises(ValueError, match="^it is nested more than 64 deep$"):
            read_json(text)


def test_json_has_a_greatest_whole_number() -> None:
    assert read_json(f"[{2**64 - 1}, {1 - 2**64}]") == [2**64 - 1, 1 - 2**64]
    for digits in (str(2**64), str(-(2**64)), "9" * 5000):
        with pytest.raises(ValueError, match=r"^-?\d+\.\.\. is no whole number of 64 bits$"):
            read_json(digits)


def test_text_of_json_can_be_written_again() -> None:
    assert read_json(r'["\ud83d\ude00", "\\ud800"]') == ["\U0001f600", r"\ud800"]
    for text in (r'["a\ud800"]', r'{"\udfff": 1}', r'["\ude00\ud83d"]'):
        with pytest.raises(ValueError, match=r"^it holds \\u[0-9a-f]{4}, which is half of a character$"):
            read_json(text)


def test_json_has_a_greatest_size_and_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptsr_edge.core.config.MOST_JSON_BYTES", 1000)
    path = tmp_path / "record.json"
    for size, says in ((1000, "is not a readable JSON file: Expecting"), (1001, "it has more than")):
        path.write_text(" " * size, encoding="utf-8")
        with pytest.raises(InputError, match=says):
            read_record(Preprocess, path)
    os.mkfifo(tmp_path / "pipe.json")
    for endless in (tmp_path / "pipe.json", Path("/dev/zero")):
        with pytest.raises(InputError, match="it is no file"):
            read_record(Preprocess, endless)
