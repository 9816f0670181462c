"""The layer that int8 hurts most is found, and by how much it hurts is what int8's own definition says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper
from typed_graphs import graph as ptsr_graph
from typed_graphs import small_graph

from ptsr_edge.export.accuracy_control import SAMPLES, layer_of, quantizable_layers, rank_layers

pytest.importorskip("onnxruntime")

WIDTH = 32
OUTLIER = 2000.0
"""How much larger one hidden channel is than the others; the next layer's weights make up for it."""

Array = NDArray[np.float64]


def weights(outlier: float = OUTLIER) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    made = {name: rng.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5 for name in ("fc1", "fc2", "fc3")}
    made["fc1"][:, 7] *= outlier
    made["fc2"][7] /= outlier
    return made


def write(path: Path, values: dict[str, Array]) -> Path:
    """relu(relu(flow @ fc1) @ fc2) @ fc3, and its square products, which no weight takes part in."""
    nodes = [
        helper.make_node("Flatten", ["flow"], ["flat"]),
        helper.make_node("MatMul", ["flat", "fc1"], ["h1"], name="blocks.0.fc1"),
        helper.make_node("Relu", ["h1"], ["a1"]),
        helper.make_node("MatMul", ["a1", "fc2"], ["h2"], name="blocks.0.fc2"),
        helper.make_node("Relu", ["h2"], ["a2"]),
        helper.make_node("MatMul", ["a2", "fc3"], ["logits"], name="head"),
    ]
    constants = {name: value.astype(np.float32) for name, value in values.items()}
    onnx.save(small_graph(nodes, [1, WIDTH, 1, 1], constants), path)
    return path


@pytest.fixture(scope="module")
def samples() -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(SAMPLES, WIDTH, 1, 1)).astype(np.float32)


def forward(values: dict[str, Array], rows: Array, quantized: str | None) -> Array:
    """The graph in float64, one layer as int8 by definition: activations by 255 steps, weights by +-64."""
    for name in ("fc1", "fc2", "fc3"):
        weight = values[name]
        if name == quantized:
            low, high = min(rows.min(), 0.0), max(rows.max(), 0.0)
            step = (high - low) / 255
            zero = np.rint(-low / step)
            rows = (np.clip(np.rint(rows / step) + zero, 0, 255) - zero) * step
            steps = np.abs(weight).max(axis=0) / 64  # 7 bits, which no processor's sums overflow
            weight = np.rint(weight / steps) * steps
        rows = rows @ weight
        rows = rows if name == "fc3" else np.maximum(rows, 0)
    return rows


def test_the_layer_behind_an_outlier_is_the_first(tmp_path: Path, samples: NDArray[np.float32]) -> None:
    ranking = rank_layers(write(tmp_path / "graph.onnx", weights()), samples)
    assert ranking[0].layer == "blocks.0.fc2"
    assert [one.error for one in ranking] == sorted((one.error for one in ranking), reverse=True)
    # One range for all channels: 255 steps over the outlier leave none for the others.
    assert ranking[0].error > 10 * ranking[1].error
    even = rank_layers(write(tmp_path / "even.onnx", weights(outlier=1.0)), samples)
    assert even[0].error < 0.2 * ranking[0].error


@pytest.mark.parametrize("outlier", [1.0, OUTLIER])
def test_errors_are_those_of_int8_by_definition(
    tmp_path: Path, samples: NDArray[np.float32], outlier: float
) -> None:
    values = weights(outlier)
    ranking = rank_layers(write(tmp_path / "graph.onnx", values), samples)
    rows = samples.reshape(SAMPLES, WIDTH).astype(np.float64)
    exact = forward(values, rows, None)
    found = {one.layer: one.error for one in ranking}
    assert set(found) == {"blocks.0.fc1", "blocks.0.fc2", "head"}
    for layer, name in (("blocks.0.fc1", "fc1"), ("blocks.0.fc2", "fc2"), ("head", "fc3")):
        expected = np.abs(forward(values, rows, name) - exact).mean()
        # Integer sums are exact; float32 around them rounds, and may move an activation by one step of 255.
        assert found[layer] == pytest.approx(expected, rel=1e-3), layer


def test_only_the_first_samples_are_looked_at(tmp_path: Path, samples: NDArray[np.float32]) -> None:
    path = write(tmp_path / "graph.onnx", weights())
    more = np.concatenate([samples, 1e6 * samples[:3]])
    assert rank_layers(path, more) == rank_layers(path, samples)


def test_progress_sees_every_layer(tmp_path: Path, samples: NDArray[np.float32]) -> None:
    seen: list[str] = []

    def progress(items: Iterable[str], label: str) -> Iterator[str]:
        assert label == "layer sensitivity"
        for item in items:
            seen.append(item)
            yield item

    ranking = rank_layers(write(tmp_path / "graph.onnx", weights()), samples[:4], progress)
    assert seen == ["blocks.0.fc1", "blocks.0.fc2", "head"]
    assert {one.layer for one in ranking} == set(seen)


def test_nothing_is_left_beside_the_graph(tmp_path: Path, samples: NDArray[np.float32]) -> None:
    path = write(tmp_path / "graph.onnx", weights())
    before = path.read_bytes()
    rank_layers(path, samples[:2])
    assert [one.name for one in tmp_path.iterdir()] == ["graph.onnx"]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("node", "layer"),
    [
        ("blocks.1.attention.query", "blocks.1.attention.query"),
        ("blocks.1.attention.query/2", "blocks.1.attention.query"),
        ("head/12", "head"),
        ("", ""),
    ],
)
def test_products_by_one_weight_are_one_layer(node: str, layer: str) -> None:
    assert layer_of(node) == layer


def test_attention_and_statistics_are_no_candidates(tmp_path: Path) -> None:
    """By the model's own linear layers: 2 blocks, of which the first has a second query for the class row."""
    onnx.save(ptsr_graph(), tmp_path / "ptsr.onnx")
    parts = ("attention.key_value", "attention.query", "attention.proj", "tail.mlp.fc1", "tail.mlp.fc2")
    linear = [f"blocks.{block}.{part}" for block in (0, 1) for part in parts]
    assert quantizable_layers(tmp_path / "ptsr.onnx") == ["tokenizer.kernel", *linear, "head.global_"]


def test_a_second_product_of_a_layer_is_quantized_with_the_first(
    tmp_path: Path, samples: NDArray[np.float32]
) -> None:
    values = weights(outlier=1.0)
    nodes = [
        helper.make_node("Flatten", ["flow"], ["flat"]),
        helper.make_node("MatMul", ["flat", "fc1"], ["h1"], name="shared"),
        helper.make_node("Relu", ["h1"], ["a1"]),
        helper.make_node("MatMul", ["a1", "fc1"], ["logits"], name="shared/2"),
    ]
    path = tmp_path / "twice.onnx"
    constants = {"fc1": values["fc1"].astype(np.float32)}
    onnx.save(small_graph(nodes, [1, WIDTH, 1, 1], constants), path)
    assert quantizable_layers(path) == ["shared"]
    (both,) = rank_layers(path, samples)
    assert both.layer == "shared"
    assert both.error > 0
