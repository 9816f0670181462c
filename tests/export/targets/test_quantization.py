"""int8 graphs hold Q/DQ pairs where they should; of the layers that int8 hurts no more are put back than it takes."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper
from typed_graphs import flows, graph, saved, small_graph

import ptsr_edge
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.export.onnx_graph import layer_of, trace
from ptsr_edge.export.static_model import to_static
from ptsr_edge.export.targets.base import Artifact, Graph
from ptsr_edge.export.targets.onnxruntime import CpuTarget
from ptsr_edge.export.targets.quantization import (
    RANKED_SAMPLES,
    JudgedSamples,
    LayerSensitivity,
    attention_products,
    build_within,
    first_products,
    fuse_quantized_products,
    means_products,
    products_kept_float,
    quantizable_layers,
    quantize_dynamic_int8,
    quantize_static_qdq,
    rank_layers,
    statistics_products,
)
from ptsr_edge.runtimes.onnxruntime import OrtRunner
from ptsr_edge.stats.classification import confusion, uar

pytestmark = pytest.mark.slow

EMULATOR = "qemu-x86_64-static"
ANSWERS = """
import json, sys, numpy as np
from pathlib import Path
from ptsr_edge.runtimes.onnxruntime import OrtRunner
runner = OrtRunner(Path(sys.argv[1]), threads=1)
print(json.dumps([runner.run(one[None])[0].tolist() for one in np.load(sys.argv[2])]))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return saved(graph(), tmp_path_factory.mktemp("fp32") / "graph.onnx")


def zero_points(model: ModelProto) -> dict[str, list[np.generic]]:
    """Zero points by the type of the quantized values."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found: dict[str, list[np.generic]] = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            values = constants[node.input[2]]
            found.setdefault(str(values.dtype), []).extend(values.reshape(-1))
    return found


def quantized_products(model: ModelProto) -> set[str]:
    producers = {name: node.op_type for node in model.graph.node for name in node.output}
    return {
        node.name
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm")
        and all(producers.get(name) == "DequantizeLinear" for name in node.input[:2])
    }


def test_symmetric_pairs_have_zero_points_of_zero(source: Graph, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    kept = products_kept_float(source.model)
    onnx.save(quantize_static_qdq(source.model, flows(), symmetric_activations=True, exclude=kept), out)
    model = onnx.load(out)
    points = zero_points(model)
    assert set(points) == {"int8"}
    assert not np.any(points["int8"])
    products = {n.name for n in model.graph.node if n.op_type in ("MatMul", "Gemm")}
    assert quantized_products(model) == products - set(kept)


def test_onnx_runtime_gets_unsigned_activations(source: Graph, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    kept = products_kept_float(source.model)
    onnx.save(quantize_static_qdq(source.model, flows(), symmetric_activations=False, exclude=kept), out)
    assert set(zero_points(onnx.load(out))) == {"uint8"}


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_onnx_runtime_multiplies_integers(dynamic: bool, source: Graph, tmp_path: Path) -> None:
    """Read back from the graph that ONNX Runtime makes of it: Q/DQ pairs alone may end in float products."""
    out = tmp_path / "int8.onnx"
    kept = products_kept_float(source.model)
    if dynamic:
        onnx.save(quantize_dynamic_int8(source.model, exclude=kept), out)
    else:
        onnx.save(quantize_static_qdq(source.model, flows(), symmetric_activations=False, exclude=kept), out)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(str(out), options, providers=["CPUExecutionProvider"])
    kernels = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    integer = ("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger", "QLinearMatMul", "QGemm")
    every = sum(node.op_type in ("MatMul", "Gemm") for node in source.model.graph.node)
    assert sum(kernels[kind] for kind in integer) == every - len(kept) > 10
    assert kernels["MatMul"] + kernels["Gemm"] + kernels["FusedMatMul"] == len(kept)


def test_weights_have_a_scale_per_output_channel(source: Graph, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    onnx.save(quantize_static_qdq(source.model, flows(), symmetric_activations=True, exclude=[]), out)
    model = onnx.load(out)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            weight, scale = constants[node.input[0]], constants[node.input[1]]
            assert weight.data_type == onnx.TensorProto.INT8
            assert list(scale.dims) in ([weight.dims[0]], [weight.dims[-1]])


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_int8_answers_nearly_as_fp32(dynamic: bool, source: Graph, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    model = source.model
    kept = [*products_kept_float(model), *first_products(model)]
    if dynamic:
        onnx.save(quantize_dynamic_int8(source.model, exclude=kept), out)
    else:
        onnx.save(quantize_static_qdq(source.model, flows(16), symmetric_activations=True, exclude=kept), out)
    exact, int8 = OrtRunner(source.path, threads=1), OrtRunner(out, threads=1)
    errors = [np.abs(exact.run(one[None])[0] - int8.run(one[None])[0]).max() for one in flows(4)]
    # A step of int8 is 1/127 of a range; behind a dozen products errors of some steps add up.
    assert max(errors) < 0.1


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not shutil.which(EMULATOR),
    reason=f"{EMULATOR} is missing: apt-get install qemu-user-static",
)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_int8_answers_alike_on_a_cpu_without_vnni(dynamic: bool, source: Graph, tmp_path: Path) -> None:
    """Haswell adds two products of 8 bits in 16 bits: 255 x 127 + 255 x 127 would not fit, 255 x 64 does."""
    out = tmp_path / "int8.onnx"
    kept = products_kept_float(source.model)
    if dynamic:
        onnx.save(quantize_dynamic_int8(source.model, exclude=kept), out)
    else:
        onnx.save(quantize_static_qdq(source.model, flows(), symmetric_activations=False, exclude=kept), out)
    np.save(tmp_path / "flows.npy", 3 * flows(8, seed=1))  # beyond the calibrated range: 255 is common
    # An emulated program does not find its virtual environment.
    call = [str(Path(sys.executable).resolve()), "-c", ANSWERS, str(out), str(tmp_path / "flows.npy")]
    packages = os.pathsep.join([sysconfig.get_path("purelib"), str(Path(ptsr_edge.__file__).parents[1])])
    answers = []
    for emulator in ([], [EMULATOR, "-cpu", "Haswell"]):
        done = subprocess.run(
            [*emulator, *call], capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONPATH": packages},
        )  # fmt: skip
        answers.append(np.array(json.loads(done.stdout)))
    # Integer sums are exact unless they overflow; float32 between them rounds in another order, which at
    # worst moves an activation by one step (1/255 of its range). 8-bit weights are 0.17 and 0.24 apart.
    assert np.abs(answers[0] - answers[1]).max() < 0.02
    assert np.median(np.abs(answers[0] - answers[1])) < 1e-4


def test_a_product_and_its_bias_are_one_node_and_answer_the_same(source: Graph, tmp_path: Path) -> None:
    # Compared with what ONNX Runtime makes of the pairs by itself, bias apart: a sum is rounded once less.
    kept = products_kept_float(source.model)
    pairs = tmp_path / "pairs.onnx"
    onnx.save(quantize_static_qdq(source.model, flows(), symmetric_activations=True, exclude=kept), pairs)
    fused = onnx.load(pairs)
    fuse_quantized_products(fused)
    onnx.save(fused, tmp_path / "fused.onnx")
    before, after = (
        Counter(node.op_type for node in onnx.load(path).graph.node)
        for path in (pairs, tmp_path / "fused.onnx")
    )
    assert after["MatMulIntegerToFloat"] == before["MatMul"] - after["MatMul"] > 10
    biases = sum(len(node.input) == 7 for node in fused.graph.node)
    assert before["Add"] - after["Add"] == biases > 10
    for one in flows(8, seed=1):
        expected, found = (
            OrtRunner(path, threads=1).run(one[None]) for path in (pairs, tmp_path / "fused.onnx")
        )
        np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-6)


def test_which_products_stay_in_floating_point() -> None:
    model = graph()
    by_name = {node.name: node for node in model.graph.node}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    assert len(attention_products(model)) == 6  # the class row's, 2 blocks x 2, and the positional read-out
    statistics = [constants[by_name[name].input[1]].dims for name in statistics_products(model)]
    assert [list(dims) for dims in statistics] == [[16, 1], [16, 1], [16, 32]]
    first = [list(constants[by_name[name].input[1]].dims) for name in first_products(model)]
    assert first == [[16 * 3 * 2 * 2, 32]]  # the tokenizer's: 16 cells of 3 channels and 2 x 2 pixels


def test_the_read_out_of_the_means_stays_in_floating_point(ptsr_config: Any, randomised: Any) -> None:
    linear, hidden = dict(mean_readout=True), dict(mean_readout=True, mean_hidden=8)
    for score, tokens, means, expected in (
        ("strain", 4, linear, ["means.linear"]), ("class-attention", 4, linear, ["means.linear"]),
        ("strain", 16, linear, ["means.linear"]), ("strain", 4, hidden, ["means.hidden", "means.linear"]),
        ("strain", 4, {}, []),
    ):  # fmt: skip
        config = ptsr_config(score=score, depth=1, **means)
        model = trace(to_static(randomised(config), tokens), config)
        assert means_products(model) == expected
        assert set(expected) <= set(products_kept_float(model))


def test_a_wrong_call_is_refused(source: Graph, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    with pytest.raises(InputError, match="with n >= 1, got \\(0, 3, 24, 24\\)"):
        onnx.save(quantize_static_qdq(source.model, flows(0), symmetric_activations=True, exclude=[]), out)
    with pytest.raises(InputError, match="no node of that name"):
        onnx.save(
            quantize_static_qdq(source.model, flows(), symmetric_activations=True, exclude=["nowhere"]), out
        )
    assert not out.exists()


def test_an_invalid_graph_is_refused() -> None:
    node = helper.make_node("MatMul", ["flow", "weights"], ["logits"], "product")
    broken = small_graph([node], [4, 4], {"weights": np.eye(3, dtype=np.float32)})
    with pytest.raises(JobError, match="no valid ONNX graph: .*MatMul"):
        quantize_dynamic_int8(broken, exclude=[])


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


def write(path: Path, values: dict[str, Array]) -> Graph:
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
    return saved(small_graph(nodes, [1, WIDTH, 1, 1], constants), path)


@pytest.fixture(scope="module")
def samples() -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(RANKED_SAMPLES, WIDTH, 1, 1)).astype(np.float32)


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
    rows = samples.reshape(RANKED_SAMPLES, WIDTH).astype(np.float64)
    exact = forward(values, rows, None)
    found = {one.layer: one.error for one in ranking}
    assert set(found) == {"blocks.0.fc1", "blocks.0.fc2", "head"}
    for layer, name in (("blocks.0.fc1", "fc1"), ("blocks.0.fc2", "fc2"), ("head", "fc3")):
        expected = np.abs(forward(values, rows, name) - exact).mean()
        # Integer sums are exact; float32 around them rounds, and may move an activation by one step of 255.
        assert found[layer] == pytest.approx(expected, rel=1e-3), layer


def test_only_the_first_samples_are_looked_at(tmp_path: Path, samples: NDArray[np.float32]) -> None:
    graph = write(tmp_path / "graph.onnx", weights())
    more = np.concatenate([samples, 1e6 * samples[:3]])
    assert rank_layers(graph, more) == rank_layers(graph, samples)


def test_nothing_is_left_beside_the_graph(tmp_path: Path, samples: NDArray[np.float32]) -> None:
    graph = write(tmp_path / "graph.onnx", weights())
    before = graph.model.SerializeToString()
    rank_layers(graph, samples[:2])
    assert [one.name for one in tmp_path.iterdir()] == ["graph.onnx"]
    assert graph.path.read_bytes() == graph.model.SerializeToString() == before


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


def test_attention_and_statistics_are_no_candidates() -> None:
    """By the model's own linear layers: 2 blocks, of which the first has a second query for the class row."""
    parts = ("attention.key_value", "attention.query", "attention.proj", "tail.mlp.fc1", "tail.mlp.fc2")
    linear = [f"blocks.{block}.{part}" for block in (0, 1) for part in parts]
    assert quantizable_layers(graph()) == ["tokenizer.kernel", *linear, "head.global_"]


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
    constants = {"fc1": values["fc1"].astype(np.float32)}
    graph = saved(small_graph(nodes, [1, WIDTH, 1, 1], constants), tmp_path / "twice.onnx")
    assert quantizable_layers(graph.model) == ["shared"]
    (both,) = rank_layers(graph, samples)
    assert both.layer == "shared"
    assert both.error > 0


pytest.importorskip("onnxruntime")

LAYERS = ["fc1", "proj", "query", "fc2", "key", "head"]
RANKING = [LayerSensitivity(layer=layer, error=0.5**place) for place, layer in enumerate(LAYERS)]
JUDGED, CLASSES = 30, 3
LABELS = np.arange(JUDGED) % CLASSES
INPUTS = np.eye(CLASSES, dtype=np.float32)[LABELS].reshape(JUDGED, CLASSES, 1, 1)
"""Each sample shows its class: a graph that multiplies by the identity is always right."""


class Builder:
    """Builds graphs that answer wrongly while one of `faulty` layers is int8.

    A graph at `tokens` mixes up classes 0 and 1 for such a layer, which takes UAR from 1 to 1/3: the
    recalls become 0, 0 and 1.
    """

    def __init__(self, folder: Path, faulty: Mapping[int, Sequence[str]]) -> None:
        self.folder, self.faulty = folder, faulty
        self.asked: list[list[str]] = []

    def __call__(self, kept: Sequence[str]) -> dict[int, Artifact]:
        self.asked.append(list(kept))
        built = {}
        for tokens, faulty in self.faulty.items():
            weights = np.eye(CLASSES, dtype=np.float32)
            if set(faulty) - set(kept):
                weights = weights[[1, 0, 2]]
            nodes = [
                onnx.helper.make_node("Flatten", ["flow"], ["flat"]),
                onnx.helper.make_node("MatMul", ["flat", "w"], ["logits"]),
            ]
            path = self.folder / f"k{tokens}-{len(self.asked)}.onnx"
            onnx.save(small_graph(nodes, [1, CLASSES, 1, 1], {"w": weights}), path)
            built[tokens] = Artifact(path, [path], {"keep_float": list(kept)}, {})
        return built


def judged(**expected: float) -> JudgedSamples:
    """The samples, with the UAR that fp32 is said to reach: `k8=1.0`."""
    return JudgedSamples(INPUTS, LABELS, CLASSES, {int(name[1:]): value for name, value in expected.items()})


def opened(artifact: Artifact) -> OrtRunner:
    return OrtRunner(artifact.path, threads=1)


def counted() -> tuple[Callable[[], list[LayerSensitivity]], list[int]]:
    calls: list[int] = []

    def rank() -> list[LayerSensitivity]:
        calls.append(1)
        return RANKING

    return rank, calls


def answers(runner: OrtRunner) -> NDArray[np.intp]:
    return np.array([runner.run(one[None])[0].argmax() for one in INPUTS])


def test_uar_is_that_of_the_artifacts_answers(tmp_path: Path) -> None:
    wrong = opened(Builder(tmp_path, {4: ["fc1"]})([])[4])
    assert judged().uar(wrong) == pytest.approx(1 / 3)
    few = np.array([0, 2, 2, 1])  # all of class 2's right, others wrong: recalls 0, 0, 1 whatever the counts
    assert JudgedSamples(INPUTS[few], few, CLASSES, {}).uar(wrong) == pytest.approx(1 / 3)
    assert uar(confusion(LABELS, answers(wrong), CLASSES)) == pytest.approx(1 / 3)


def test_what_holds_the_limit_is_left_as_it_is(tmp_path: Path) -> None:
    build, (rank, ranked) = Builder(tmp_path, {8: [], 4: []}), counted()
    artifacts, record = build_within(0.0, CpuTarget(), build, judged(k8=1.0, k4=1.0), rank)
    assert build.asked == [[]]
    assert not ranked, "ranking takes minutes: only when something has to be repaired"
    assert list(artifacts) == [8, 4]
    assert record == {
        "limit": 0.0,
        "kept_float": [],
        "uar": {"8": 1.0, "4": 1.0},
        "uar_fp32": {"8": 1.0, "4": 1.0},
        "sensitivity": None,
        "samples": JUDGED,
        "through": "artifact",
    }


@pytest.mark.parametrize(
    ("faulty", "rounds"),
    [
        (["fc1"], [0, 1]),
        (["proj"], [0, 1, 2]),
        (["fc1", "fc2"], [0, 1, 2, 4]),
        (["head"], [0, 1, 2, 4, 6]),  # there are six layers: the last step is no doubling
    ],
)
def test_twice_as_many_layers_are_put_back_until_it_holds(
    tmp_path: Path, faulty: list[str], rounds: list[int]
) -> None:
    build, (rank, ranked) = Builder(tmp_path, {8: [], 4: faulty}), counted()
    artifacts, record = build_within(0.1, CpuTarget(), build, judged(k8=1.0, k4=1.0), rank)
    assert build.asked == [LAYERS[:count] for count in rounds]
    assert len(ranked) == 1
    assert record["kept_float"] == LAYERS[: rounds[-1]]
    assert record["uar"] == {"8": 1.0, "4": 1.0}
    assert record["sensitivity"] == [{"layer": one.layer, "error": one.error} for one in RANKING]
    # The artifacts are those of the last round and not of one before.
    assert artifacts[4].built_with == {"keep_float": LAYERS[: rounds[-1]]}
    np.testing.assert_array_equal(answers(opened(artifacts[4])), LABELS)


def test_the_loss_is_against_fp32_of_the_same_budget(tmp_path: Path) -> None:
    # 1/3 is no loss where fp32 itself reaches no more; more than fp32 is none either.
    build, (rank, _) = Builder(tmp_path, {8: [], 4: ["fc1"]}), counted()
    _, record = build_within(0.0, CpuTarget(), build, judged(k8=0.9, k4=1 / 3), rank)
    assert build.asked == [[]]
    assert record["uar_fp32"] == {"8": 0.9, "4": 0.3333}


def test_the_limit_itself_holds(tmp_path: Path) -> None:
    build, (rank, _) = Builder(tmp_path, {4: ["fc1"]}), counted()
    build_within(1 - judged().uar(opened(build([])[4])), CpuTarget(), build, judged(k4=1.0), rank)
    assert build.asked == [[], []]


def test_what_cannot_be_repaired_lists_the_layers(tmp_path: Path) -> None:
    build, (rank, ranked) = Builder(tmp_path, {8: [], 4: ["no layer of the ranking"]}), counted()
    with pytest.raises(JobError) as caught:
        build_within(0.05, CpuTarget(), build, judged(k8=1.0, k4=1.0), rank)
    assert str(caught.value) == (
        "int8 loses 0.667 UAR (limit 0.05) with every layer put back; the most sensitive: "
        "fc1 (1), proj (0.5), query (0.25), fc2 (0.12), key (0.062), head (0.031)"
    )
    assert [len(kept) for kept in build.asked] == [0, 1, 2, 4, 6]
    assert len(ranked) == 1


def test_what_cannot_run_here_is_not_called_accurate(tmp_path: Path) -> None:
    class Elsewhere(CpuTarget):
        def runner(self, artifact: Artifact, threads: int | None) -> Any:
            return super().runner(artifact, threads) if "k8" in artifact.path.name else None

    build, (rank, ranked) = Builder(tmp_path, {8: [], 4: []}), counted()
    with pytest.raises(JobError, match="cannot be measured here: the artifact cannot run on this machine"):
        build_within(1.0, Elsewhere(), build, judged(k8=1.0, k4=1.0), rank)
    assert (len(build.asked), ranked) == (1, [])
