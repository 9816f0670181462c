"""The layer that was tampered with is the one that is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from ptsr_edge.export.onnx_graph import trace, write_sharing_weights
from ptsr_edge.export.parity import Departure, before_selection, first_departure, other_tokens, product_values
from ptsr_edge.export.static_model import to_static


@pytest.fixture(scope="module")
def traced(ptsr_config, randomised) -> onnx.ModelProto:
    model = randomised(ptsr_config(score="strain", depth=2))
    return trace(to_static(model, 4), model.config)


def write(folder: Path, model: onnx.ModelProto) -> Path:
    folder.mkdir()
    write_sharing_weights({folder / "graph.onnx": model}, folder / "weights.bin")
    return folder / "graph.onnx"


def test_a_tampered_layer_is_named(traced: onnx.ModelProto, tmp_path: Path) -> None:
    one = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)
    good, bad = onnx.ModelProto(), onnx.ModelProto()
    good.CopyFrom(traced)
    bad.CopyFrom(traced)
    node = next(node for node in bad.graph.node if node.name == "blocks.1.tail.mlp.fc1")
    weights = next(tensor for tensor in bad.graph.initializer if tensor.name in node.input)
    weights.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights) * 1.01, weights.name))
    reference = product_values(write(tmp_path / "good", good), one)
    found = product_values(write(tmp_path / "bad", bad), one)
    departure = first_departure(reference, found, tolerance=1e-4)
    assert departure is not None
    assert departure.layer == "blocks.1.tail.mlp.fc1"
    # Every weight of it was made 1 % larger, and its bias is added by the next node.
    assert departure.relative == pytest.approx(0.01, rel=1e-3)
    assert "blocks.1.tail.mlp.fc1" in str(departure)
    assert first_departure(reference, reference, tolerance=0.0) is None


def test_not_a_number_departs_and_missing_layers_are_passed_over() -> None:
    reference = {"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)}
    assert first_departure(reference, {"b": np.ones(2, np.float32)}, 0.1) is None
    broken = first_departure(reference, {"b": np.array([1, np.nan], np.float32)}, 0.1)
    assert isinstance(broken, Departure)
    assert broken.layer == "b"


def test_only_what_the_selection_is_calculated_from_stands_before_it(
    ptsr_config, randomised, traced: onnx.ModelProto, tmp_path: Path
) -> None:
    # Strain is read off the input; attention comes from the tokenizer and the queries and keys of its block.
    assert before_selection(write(tmp_path / "strain", traced)) == set()
    model = randomised(ptsr_config(depth=2, select_block=0))
    before = before_selection(write(tmp_path / "attention", trace(to_static(model, 4), model.config)))
    assert "tokenizer.kernel" in before
    assert not [name for name in before if name.startswith(("blocks.1", "blocks.0.tail", "head"))]


def test_other_tokens_are_told_as_sets() -> None:
    assert other_tokens(np.array([3, 1, 2]), np.array([1, 2, 3])) == ""
    said = other_tokens(np.array([3, 1, 2]), np.array([1, 7, 2]))
    assert said == "the selection differs first: tokens 7 are kept in place of 3"
    said = other_tokens(np.arange(7), np.arange(7, 14))
    assert "tokens 7, 8, 9, 10, 11 and 2 more are kept in place of 0, 1, 2, 3, 4 and 2 more" in said
    assert "tokens none are kept in place of 2" in other_tokens(np.array([1, 2]), np.array([1, 1]))
