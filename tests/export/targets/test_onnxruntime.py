"""Target `cpu`: what is built runs, is what was asked for, and shares its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundle_data import PATCHES, SIDE, tiny_graph
from numpy.typing import NDArray
from onnx import TensorProto

from ptsr_edge.core.config import LABELS, Preprocess
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.export.onnx_graph import write_sharing_weights
from ptsr_edge.export.targets.base import BuildRequest, Graph
from ptsr_edge.export.targets.onnxruntime import (
    SCHEMES,
    CpuOptions,
    CpuTarget,
    choose_scheme,
    measure_schemes,
)

pytestmark = pytest.mark.slow

pytest.importorskip("onnxruntime")

BUDGETS = (PATCHES, PATCHES // 2)
WIDTH = 32
"""More than `quantize.NARROW`, so that both products are quantized."""


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Graph]:
    """relu(flow @ a) @ b at two budgets; the layers are `first` and `second`."""
    folder = tmp_path_factory.mktemp("graphs")
    models = {}
    for tokens in BUDGETS:
        model = tiny_graph(tokens, len(LABELS), WIDTH)
        layers = iter(("first/MatMul", "second/MatMul"))
        for node in model.graph.node:
            node.name = next(layers) if node.op_type == "MatMul" else f"node_{node.op_type}"
        models[folder / f"k{tokens}.onnx"] = model
    write_sharing_weights(models, folder / "weights.bin")
    return dict(zip(BUDGETS, (Graph(path, model) for path, model in models.items()), strict=True))


@pytest.fixture(scope="module")
def samples() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(24, 3, SIDE, SIDE)).astype(np.float32)


def request_for(
    folder: Path, graphs: dict[int, Graph], samples: NDArray[np.float32], precision: str, **options: Any
) -> BuildRequest:
    folder.mkdir(exist_ok=True)
    return BuildRequest(
        name="ptsr-test", graphs=graphs, precision=precision, folder=folder, labels=list(LABELS),
        preprocess=Preprocess(image_size=SIDE), calibration=samples, options=options,
    )  # fmt: skip


def logits_of(path: Path, samples: NDArray[np.float32]) -> NDArray[np.float64]:
    """What ONNX's reference evaluator, which is another implementation, answers in float64."""
    constants = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer
    }
    flat = samples.reshape(len(samples), -1).astype(np.float64)
    return np.maximum(flat @ constants["a"], 0) @ constants["b"]


def weights_of(path: Path) -> dict[str, int]:
    """Element types of the weight matrices in a graph."""
    return {
        tensor.name: tensor.data_type
        for tensor in onnx.load(path).graph.initializer
        if len(tensor.dims) == 2 and tensor.dims[0] >= WIDTH
    }


def test_fp32_is_the_graph_itself_and_its_budgets_share_their_weights(
    tmp_path: Path, graphs: dict[int, Graph], samples: NDArray[np.float32]
) -> None:
    target = CpuTarget()
    built = target.build(request_for(tmp_path / "out", graphs, samples, "fp32"))
    assert list(built) == list(BUDGETS)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "ptsr-test-cpu-fp32-k16.onnx",
        "ptsr-test-cpu-fp32-k8.onnx",
        "weights-cpu-fp32.bin",
    ]
    for tokens, artifact in built.items():
        assert [path.name for path in artifact.files] == [artifact.path.name, "weights-cpu-fp32.bin"]
        assert artifact.runs_on == {"runtime": "onnxruntime", "device": "any CPU"}
        assert {"opset", "onnx", "onnxruntime"} <= set(artifact.built_with)
        runner = target.runner(artifact, threads=1)
        for sample, expected in zip(samples[:4], logits_of(graphs[tokens].path, samples[:4]), strict=True):
            logits, kept = runner.run(sample[None])
            # 768 float32 terms of size 1, then 32 of size 30: a few units in the last place of their sums.
            np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-3)
            assert kept is not None
            assert kept.tolist() == list(range(tokens))
    json.dumps([artifact.built_with for artifact in built.values()])  # goes into the manifest


@pytest.mark.parametrize("scheme", SCHEMES)
def test_int8_has_int8_weights_and_answers_nearly_the_same(
    tmp_path: Path, graphs: dict[int, Graph], samples: NDArray[np.float32], scheme: str
) -> None:
    target = CpuTarget()
    built = target.build(request_for(tmp_path / "out", graphs, samples, "int8", int8_scheme=scheme))
    for tokens, artifact in built.items():
        assert artifact.built_with["int8_scheme"] == scheme
        types = weights_of(artifact.path)
        assert sorted(types.values()) == [TensorProto.INT8, TensorProto.INT8]
        runner = target.runner(artifact, threads=1)
        expected = logits_of(graphs[tokens].path, samples)
        answered = np.stack([runner.run(sample[None])[0] for sample in samples])
        # 8 bits keep an activation to 1/255 of its range and a weight to 1/127 of its largest; over sums of
        # 768 and 32 terms of random sign the errors add up like the terms: about 1 % of the answers' size.
        spread = np.abs(answered - expected).mean() / np.abs(expected).mean()
        assert 0 < spread < 0.03
        assert (answered.argmax(1) == expected.argmax(1)).mean() >= 0.9


def test_static_int8_takes_unsigned_activations(
    tmp_path: Path, graphs: dict[int, Graph], samples: NDArray[np.float32]
) -> None:
    """U8S8, which is quicker than S8S8 in ONNX Runtime's kernels for x86."""
    built = CpuTarget().build(request_for(tmp_path / "out", graphs, samples, "int8", int8_scheme="static"))
    model = onnx.load(built[8].path)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert quantizers
    assert {types[node.input[2]] for node in quantizers} == {TensorProto.UINT8}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_layer_that_is_kept_stays_float(
    tmp_path: Path, graphs: dict[int, Graph], samples: NDArray[np.float32], scheme: str
) -> None:
    request = request_for(tmp_path / "out", graphs, samples, "int8", int8_scheme=scheme, keep_float=["first"])
    built = CpuTarget().build(request)
    types = weights_of(built[8].path)
    assert types["a"] == TensorProto.FLOAT
    assert [kind for name, kind in types.items() if name != "a"] == [TensorProto.INT8]
    assert built[8].built_with["keep_float"] == ["first"]


def test_auto_measures_both_schemes_and_takes_the_smaller_product_of_time_and_error(
    tmp_path: Path, graphs: dict[int, Graph], samples: NDArray[np.float32]
) -> None:
    built = CpuTarget().build(request_for(tmp_path / "out", graphs, samples, "int8", int8_scheme="auto"))
    choice = built[8].built_with["int8_choice"]
    assert built[8].built_with["int8_scheme"] == choice["chosen"]
    assert built[16].built_with["int8_choice"] == choice, "one scheme for all budgets"
    assert choice["chosen"] == choose_scheme(choice)["chosen"]
    assert all(choice[scheme]["error"] > 0 and choice[scheme]["median_ms"] > 0 for scheme in SCHEMES)


@pytest.mark.parametrize(
    ("static", "dynamic", "chosen"),
    [
        ((2.0, 0.1), (1.0, 0.1), "dynamic"),
        ((2.0, 0.1), (2.0, 0.05), "dynamic"),
        ((1.0, 0.1), (2.0, 0.1), "static"),
        ((2.0, 0.1), (1.6, 0.1), "static"),
        ((1.6, 0.1), (2.0, 0.1), "static"),
        ((0.0, 0.0), (0.0, 0.0), "static"),
    ],
)
def test_ties_take_static(static: tuple[float, float], dynamic: tuple[float, float], chosen: str) -> None:
    found = {
        scheme: dict(zip(("median_ms", "error"), values, strict=True))
        for scheme, values in (("static", static), ("dynamic", dynamic))
    }
    assert choose_scheme(found)["chosen"] == chosen


def test_the_default_measures_nothing(
    tmp_path: Path, graphs: dict[int, Graph], samples: NDArray[np.float32]
) -> None:
    built = CpuTarget().build(request_for(tmp_path, graphs, samples, "int8"))
    assert built[8].built_with["int8_scheme"] == "static"
    assert "int8_choice" not in built[8].built_with


def test_the_schemes_are_measured_against_fp32(
    tmp_path: Path, graphs: dict[int, Graph], samples: NDArray[np.float32]
) -> None:
    found = measure_schemes(request_for(tmp_path / "out", graphs, samples, "int8"), CpuOptions(), tmp_path)
    expected = logits_of(graphs[8].path, samples)
    target = CpuTarget()
    for scheme in SCHEMES:
        built = target.build(request_for(tmp_path / scheme, graphs, samples, "int8", int8_scheme=scheme))
        runner = target.runner(built[8], threads=1)
        answered = np.stack([runner.run(sample[None])[0] for sample in samples])
        # The record has six decimals, and fp32 itself is 1e-3 from float64 at the worst.
        assert found[scheme]["error"] == pytest.approx(np.abs(answered - expected).mean(), abs=2e-3)


def test_an_unknown_scheme_is_refused(
    tmp_path: Path, graphs: dict[int, Graph], samples: NDArray[np.float32]
) -> None:
    request = request_for(tmp_path / "out", graphs, samples, "int8", int8_scheme="statik")
    with pytest.raises(
        InputError, match="options of target cpu: int8_scheme: .*'static' or 'dynamic' .found 'statik'"
    ):
        CpuTarget().build(request)
    assert list((tmp_path / "out").iterdir()) == []


def test_int8_from_no_samples_is_refused(
    tmp_path: Path, graphs: dict[int, Graph], samples: NDArray[np.float32]
) -> None:
    request = request_for(tmp_path / "out", graphs, samples[:0], "int8", int8_scheme="static")
    with pytest.raises(InputError, match="n >= 1"):
        CpuTarget().build(request)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_runner_says_when_its_file_is_no_graph(
    tmp_path: Path, graphs: dict[int, Graph], samples: NDArray[np.float32]
) -> None:
    built = CpuTarget().build(request_for(tmp_path / "out", graphs, samples, "fp32"))
    built[8].path.write_bytes(built[8].path.read_bytes()[:200])
    with pytest.raises(JobError, match=r"cannot load ptsr-test-cpu-fp32-k8\.onnx"):
        CpuTarget().runner(built[8], threads=1)
