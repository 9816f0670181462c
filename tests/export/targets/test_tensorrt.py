"""Engines are built for real: tensorrt-rtx needs no GPU for it."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typed_graphs import TOKENS, flows, request, small_graph

from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.export.targets.base import Artifact, BuildRequest, Graph
from ptsr_edge.export.targets.tensorrt import (
    TrtOptions,
    TrtTarget,
    run_builder,
    write_graphs,
)
from ptsr_edge.export.targets.typed_graph import product_types
from ptsr_edge.runtimes import build_on_device
from ptsr_edge.runtimes.onnxruntime import OrtRunner
from ptsr_edge.runtimes.tensorrt import TensorRtVersion, choose_version

pytestmark = pytest.mark.slow

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt-rtx is missing: the extra trt-rtx brings it",
)
TARGET = TrtTarget()
RTX = {"flavour": "tensorrt-rtx"}


@needs_rtx
@pytest.mark.parametrize("capability", ["8.6", "8.9", "12.0"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_an_engine_is_built_without_a_gpu(precision: str, capability: str, tmp_path: Path) -> None:
    asked = request(tmp_path / "bundle", precision, compute_capabilities=[capability], **RTX)
    artifact = TARGET.build(asked)[TOKENS]
    name = f"SM{capability.replace('.', '')}"
    assert artifact.path.name == f"ptsr-test-trt-{precision}-k{TOKENS}.plan"
    assert artifact.path.read_bytes()[:4] == b"vtrt"
    assert artifact.runs_on["compute_capabilities"] == [name]
    assert artifact.built_with["products"].keys() <= {"fp16", "int8"}
    assert artifact.built_with["products"][precision] >= 8
    assert all(path.is_file() and path.parent == asked.folder for path in artifact.files)
    assert {path.suffix for path in artifact.files} == {".plan", ".onnx", ".json", ".bin", ".py"}
    record = json.loads(artifact.path.with_suffix(".build.json").read_text())
    assert record["engine"]["capabilities"] == [name]
    assert record["engine"]["bytes"] == artifact.path.stat().st_size


@needs_rtx
def test_fp32_is_built_for_all_that_have_it(tmp_path: Path) -> None:
    artifact = TARGET.build(request(tmp_path / "bundle", "fp32", **RTX))[TOKENS]
    assert artifact.runs_on["compute_capabilities"] == ["SM80", "SM86", "SM89", "SM120", "SM121"]
    assert artifact.built_with["products"].keys() == {"fp32"}


@pytest.mark.parametrize(
    ("precision", "limit"),
    # fp32: sums in another order; fp16: ten roundings of 4.9e-4; int8: some steps of 1/127.
    [("fp32", 1e-5), ("fp16", 5e-3), ("int8", 0.1)],
)
def test_the_typed_graph_answers_as_the_fp32_graph(precision: str, limit: float, tmp_path: Path) -> None:
    asked = request(tmp_path / "bundle", precision, onnx_only=True)
    artifact = TARGET.build(asked)[TOKENS]
    assert artifact.path.suffix == ".onnx"
    assert TARGET.runner(artifact, None) is None
    assert not artifact.not_built, "graphs are what was asked for"
    typed, exact = TARGET.graph_runner(artifact), OrtRunner(asked.graphs[TOKENS].path, threads=1)
    for one in flows(3, seed=1):
        logits, _ = typed.run(one[None])
        assert np.abs(logits - exact.run(one[None])[0]).max() < limit


def test_without_a_builder_graph_and_script_are_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_here(name: str | None) -> TensorRtVersion:
        raise JobError(f"no TensorRT can build here: {name}: it builds on the GPU itself")

    monkeypatch.setattr("ptsr_edge.export.targets.tensorrt.choose_version", none_here)
    artifact = TARGET.build(request(tmp_path / "bundle", "fp16", flavour="tensorrt"))[TOKENS]
    assert artifact.not_built == (
        "no engine was built, only typed ONNX graphs and build_on_device.py: no TensorRT can build here: tensorrt: "
        "it builds on the GPU itself; run the script on the device, or ask for --onnx-only"
    )
    names = {path.name for path in artifact.files}
    assert names == {
        f"ptsr-test-trt-fp16-k{TOKENS}.onnx", f"ptsr-test-trt-fp16-k{TOKENS}.build.json",
        "build_on_device.py", "weights-trt-fp16.bin",
    }  # fmt: skip
    assert (tmp_path / "bundle" / "build_on_device.py").read_text() == Path(
        build_on_device.__file__
    ).read_text()
    assert "none yet" in artifact.runs_on["device"]


@needs_rtx
def test_an_engine_of_another_precision_fails_the_job(tmp_path: Path) -> None:
    asked = request(tmp_path / "bundle", "fp32")
    path = write_graphs(asked, TrtOptions())[TOKENS]
    side = path.with_suffix(".build.json")
    record = json.loads(side.read_text())
    record["settings"]["precision"] = "fp16"
    side.write_text(json.dumps(record))
    with pytest.raises(JobError, match=r"is not fp16: of its matrix products \d+ in fp32"):
        run_builder(path, choose_version("tensorrt-rtx"), ["SM86"])
    assert not path.with_suffix(".plan").exists()


def own(folder: Path, model: onnx.ModelProto) -> BuildRequest:
    """A request for a graph of one's own."""
    made = request(folder, "fp32", compute_capabilities=["8.6"], **RTX)
    return replace(made, graphs={TOKENS: Graph(made.graphs[TOKENS].path, model)})


@needs_rtx
def test_a_refused_operator_is_named_with_a_hint(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["flow", "weights"], ["product"], "product"),
        helper.make_node("NonZero", ["product"], ["found"], "find"),
        helper.make_node("Cast", ["found"], ["logits"], "cast", to=TensorProto.FLOAT),
    ]
    model = small_graph(nodes, [4, 4], {"weights": np.eye(4, dtype=np.float32)})
    with pytest.raises(JobError, match=r"refuses operator NonZero \(node 'find' .*fixed number with TopK"):
        TARGET.build(own(tmp_path / "bundle", model))


@needs_rtx
def test_a_crash_of_the_builder_is_a_failed_job(tmp_path: Path) -> None:
    node = helper.make_node(
        "Attention", ["flow", "flow", "flow"], ["attended"], "attend", q_num_heads=2, kv_num_heads=2
    )
    nodes = [node, helper.make_node("MatMul", ["attended", "weights"], ["logits"], "product")]
    model = small_graph(nodes, [1, 4, 8], {"weights": np.eye(8, dtype=np.float32)}, opset=23)
    model.ir_version = 11
    model.graph.output[0].type.tensor_type.shape.dim.add()
    with pytest.raises(JobError, match=r"Attention.*export at opset 20"):
        TARGET.build(own(tmp_path / "bundle", model))


@pytest.mark.parametrize(
    ("precision", "options", "fault"),
    [
        ("bf16", {}, "no precision 'bf16'; it has: fp32, fp16, int8"),
        ("fp16", {"flavor": "tensorrt"}, "unknown key 'flavor'; the nearest known key is 'flavour'"),
        ("fp16", {"flavour": "trt"}, "flavour: Input should be 'tensorrt' or 'tensorrt-rtx' .found 'trt'"),
        ("int8", {"keep_float": ["blocks.9"]}, "names 'blocks.9', which is a layer of none of the graphs"),
        ("fp16", {"keep_float": ["node_add"]}, "names 'node_add', which is a layer of none of the graphs"),
    ],
)
def test_a_wrong_call_is_refused(
    precision: str, options: dict[str, object], fault: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=fault):
        TARGET.build(request(tmp_path / "bundle", precision, **options))


@needs_rtx
@pytest.mark.parametrize(
    ("precision", "capability", "fault"),
    [
        ("fp16", "9.0", "unknown compute capability '9.0'"),
        ("fp32", "7.5", "no fp32 matrix products for SM75"),
    ],
)
def test_a_capability_that_is_not_to_be_had(
    precision: str, capability: str, fault: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=fault):
        TARGET.build(request(tmp_path / "bundle", precision, compute_capabilities=[capability], **RTX))
    assert not any((tmp_path / "bundle").iterdir())


def product_kinds(artifact: Artifact) -> dict[str, str]:
    return product_types(onnx.load(artifact.path.with_suffix(".onnx")))


def test_a_layer_kept_float_is_fp16_with_all_of_its_products_and_no_other_is(tmp_path: Path) -> None:
    # In the selecting block the query's weights are used twice: for the class row, and for the kept rows.
    layers = ["blocks.0.attention.query", "blocks.1.tail.mlp.fc2"]
    plain = TARGET.build(request(tmp_path / "all", "int8", onnx_only=True))[TOKENS]
    spared = TARGET.build(request(tmp_path / "some", "int8", onnx_only=True, keep_float=layers))[TOKENS]
    before, after = product_kinds(plain), product_kinds(spared)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"blocks.0.attention.query", "blocks.0.attention.query/2", "blocks.1.tail.mlp.fc2"}
    assert {before[name] for name in changed} == {"int8"}
    assert {after[name] for name in changed} == {"fp16"}
    assert spared.built_with["keep_float"] == layers
    assert plain.built_with["keep_float"] == []


def test_a_layer_that_is_fp16_anyway_may_be_named(tmp_path: Path) -> None:
    artifact = TARGET.build(
        request(tmp_path / "bundle", "int8", onnx_only=True, keep_float=["tokenizer.kernel"])
    )[TOKENS]
    assert product_kinds(artifact)["tokenizer.kernel"] == "fp16"


@needs_rtx
def test_an_engine_has_the_kept_layers_in_fp16(tmp_path: Path) -> None:
    options = {"compute_capabilities": ["8.6"], "keep_float": ["blocks.0.tail.mlp.fc1"], **RTX}
    artifact = TARGET.build(request(tmp_path / "bundle", "int8", **options))[TOKENS]
    kinds = list(product_kinds(artifact).values())
    assert product_kinds(artifact)["blocks.0.tail.mlp.fc1"] == "fp16"
    # What TensorRT read back from the network that it parsed, against the graph.
    assert artifact.built_with["products"] == {kind: kinds.count(kind) for kind in set(kinds)}
