"""A graph that was exported once answers with any model's weights as that model does."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from ptsr_edge.core.config import ModelConfig
from ptsr_edge.core.errors import JobError
from ptsr_edge.export import onnx_graph as refill
from ptsr_edge.export.onnx_graph import Template, export_template, flat_weights, number_weights, trace
from ptsr_edge.export.parity import eager_reference, measure_parity
from ptsr_edge.export.static_model import to_static
from ptsr_edge.models.ptsr import build_model
from ptsr_edge.runtimes.onnxruntime import OrtRunner

SMALL = dict(name="small", kind="ptsr", image_size=32, patch_size=8, dim=16, depth=2, heads=2, mlp_ratio=2.0)

KINDS: dict[str, tuple[dict[str, Any], int]] = {
    "strain, BatchNorm, LayerScale": (dict(score="strain", token_norm="batch", layer_scale=0.1, depth=1), 4),
    "with the means": (dict(score="strain", mean_readout=True, depth=1), 4),
    "class attention, LayerNorm": (dict(score="class-attention", select_block=0), 4),
    "rollout, all tokens": (dict(score="rollout", select_block=1), 16),
    "no local read-out": (dict(score="random", local_readout=False, depth=1), 8),
    "the baseline": (dict(kind="vit", depth=1), 16),
}


@pytest.mark.parametrize("kind", KINDS)
def test_models_answer_through_one_graph(
    kind: str, randomised: Any, random_flows: Any, tmp_path: Path
) -> None:
    changes, tokens = KINDS[kind]
    config = ModelConfig(**SMALL | changes)
    template = export_template(config, tokens)
    graphs = set()
    for seed in (1, 2):
        model = randomised(config)
        with torch.no_grad():
            for value in model.parameters():  # another model than the one before
                value.mul_(
                    1 + 0.1 * seed * torch.rand(value.shape, generator=torch.Generator().manual_seed(seed))
                )
        path = template.write(model, tmp_path / str(seed))
        graphs.add(path.read_bytes())
        parity = measure_parity(
            eager_reference(model, tokens, random_flows(6, 32)), OrtRunner(path, 1).run, "fp32"
        )
        # The gate that an export in fp32 has to pass.
        assert parity.max_abs <= parity.limit == 1e-4
        assert parity.kept_agreement == parity.top1_agreement == 1.0
    assert len(graphs) == 1, "the graph is the same file, only the weights differ"


CONFIG = ModelConfig(**SMALL | dict(score="strain", depth=1))


@pytest.fixture(scope="module")
def numbered() -> onnx.ModelProto:
    """The graph of `CONFIG` at 4 tokens with numbered weights, traced once."""
    static = to_static(build_model(CONFIG), 4)
    number_weights(static)
    return trace(static, CONFIG)


def template_of(graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> Template:
    monkeypatch.setattr(refill, "trace", lambda *_: copy.deepcopy(graph))
    return export_template(CONFIG, 4)


def test_a_template_is_the_graph_that_an_export_makes(
    numbered: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Same nodes, same constants; the weights alone lie outside."""
    model = build_model(CONFIG, seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():  # equal tensors, such as biases of 0, the exporter would merge
            value.copy_(torch.randn(value.shape, generator=generator))
    exported = trace(to_static(model, 4), CONFIG)
    filled = onnx.load(template_of(numbered, monkeypatch).write(model, tmp_path))
    assert [node.SerializeToString() for node in filled.graph.node] == [
        node.SerializeToString() for node in exported.graph.node
    ]
    found, expected = (
        {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
        for graph in (filled, exported)
    )
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_every_weight_of_the_model_is_in_the_file(
    numbered: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed = np.concatenate([slot.source for slot in template_of(numbered, monkeypatch).slots])
    # Each once: nothing is left out, and no value is read from another's place.
    count = len(flat_weights(to_static(build_model(CONFIG), 4)))
    np.testing.assert_array_equal(np.sort(placed), np.arange(count))


def test_numbered_weights_are_all_different_and_finite() -> None:
    layers = nn.Sequential(nn.Linear(30, 20), nn.LayerNorm(20))
    number_weights(layers)
    values = flat_weights(layers)
    assert len(np.unique(values)) == len(values) == 30 * 20 + 3 * 20
    assert np.isfinite(values).all()
    assert values.min() == 2.0**100


@pytest.mark.parametrize("factor", [0.5, 2.0**-170], ids=["half", "tiny"])
def test_weights_that_the_exporter_computed_with_are_refused(
    numbered: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    graph = copy.deepcopy(numbered)
    (tensor,) = [tensor for tensor in graph.graph.initializer if tensor.name == "norm.weight"]
    array = onnx.numpy_helper.to_array(tensor).astype(np.float64) * factor
    tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), tensor.name))
    with pytest.raises(JobError, match=r"computes with weights: norm\.weight"):
        template_of(graph, monkeypatch)


def test_weights_inside_of_a_node_are_refused(
    numbered: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = copy.deepcopy(numbered)
    place = next(i for i, tensor in enumerate(graph.graph.initializer) if tensor.name == "norm.weight")
    node = onnx.helper.make_node(
        "Constant", [], ["norm.weight"], "hidden", value=graph.graph.initializer.pop(place)
    )
    graph.graph.node.insert(0, node)
    with pytest.raises(JobError, match="weights inside of its node hidden"):
        template_of(graph, monkeypatch)
