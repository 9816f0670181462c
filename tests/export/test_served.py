"""What a server is told of an artifact is what the artifact itself says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundle_data import PATCHES, SIDE, tiny_graph, write_tiny_bundle
from onnx import TensorProto, helper, numpy_helper

from ptsr_edge.bundle import Bundle, Variant, describe_file, read_bundle
from ptsr_edge.core.config import LABELS
from ptsr_edge.core.errors import InputError
from ptsr_edge.export.serving import PLAN, Tensor, describe, inference_precision, refusals

FLOW = Tensor("flow", "TYPE_FP32", (1, 3, SIDE, SIDE))
LOGITS = Tensor("logits", "TYPE_FP32", (1, len(LABELS)))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle at 16 and 8 tokens in `tmp_path`."""
    return write_tiny_bundle(tmp_path)


def changed(folder: Path, variant: Variant, artifact: str, **fields: Any) -> Variant:
    """The variant with another artifact, which lies in `folder`."""
    files = [describe_file(folder, folder / artifact)]
    return variant.model_copy(update={"artifact": artifact, "files": files} | fields)


def with_variant(bundle: Bundle, variant: Variant) -> Bundle:
    return bundle.model_copy(update={"variants": [variant]})


def readout(keepdims: int) -> onnx.ModelProto:
    """logits = start + transpose(sum(rows, axis 0)): (3, 1) becomes (1, 3), as in a head that reads by place."""
    constants = {
        "shape": np.array([1, 3 * SIDE * SIDE]),
        "start": np.random.default_rng(0).normal(size=(3 * SIDE * SIDE, 3)).astype(np.float32),
        "rows": np.random.default_rng(1).normal(size=(4, 3, 1)).astype(np.float32),
        "axis": np.array([0]),
    }
    nodes = [
        helper.make_node("Reshape", ["flow", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "start"], ["first"]),
        helper.make_node("ReduceSum", ["rows", "axis"], ["sum"], keepdims=keepdims),
        *([helper.make_node("Squeeze", ["sum", "axis"], ["column"])] if keepdims else []),
        helper.make_node("Transpose", ["column" if keepdims else "sum"], ["row"], perm=[1, 0]),
        helper.make_node("Add", ["first", "row"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "readout",
        [helper.make_tensor_value_info("flow", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_an_onnx_file_says_what_goes_in_and_out(tmp_path: Path, bundle: Bundle) -> None:
    model = describe(tmp_path, bundle, bundle.variants[1])
    assert (model.format.backend, model.format.file, model.format.kind) == (
        "onnxruntime",
        "model.onnx",
        "KIND_CPU",
    )
    assert model.inputs == (FLOW,)
    assert model.outputs == (LOGITS, Tensor("kept", "TYPE_INT64", (1, 8)))
    assert model.files == {"model.onnx": tmp_path / bundle.variants[1].artifact}


def test_types_are_those_of_the_graph_and_not_those_that_were_expected(
    tmp_path: Path, bundle: Bundle
) -> None:
    graph = tiny_graph(8, len(LABELS), width=8)
    graph.graph.node.append(helper.make_node("Cast", ["kept"], ["places"], to=TensorProto.INT32))
    graph.graph.output[1].CopyFrom(helper.make_tensor_value_info("places", TensorProto.INT32, [1, 8]))
    onnx.save(graph, tmp_path / "other.onnx")
    model = describe(tmp_path, bundle, changed(tmp_path, bundle.variants[1], "other.onnx"))
    assert model.outputs == (LOGITS, Tensor("places", "TYPE_INT32", (1, 8)))


def test_a_type_that_no_server_here_has_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    graph = tiny_graph(8, len(LABELS), width=8)
    graph.graph.output[1].type.tensor_type.elem_type = TensorProto.COMPLEX64
    (tmp_path / "other.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(InputError, match=r"other\.onnx has an input or output of type 'COMPLEX64'; known: "):
        describe(tmp_path, bundle, changed(tmp_path, bundle.variants[1], "other.onnx"))


@pytest.mark.parametrize("name", ["flow", "logits"])
def test_a_graph_that_lacks_what_the_contract_names_is_refused(
    tmp_path: Path, bundle: Bundle, name: str
) -> None:
    """An empty file is a valid ONNX model too: one without inputs and outputs."""
    graph = tiny_graph(8, len(LABELS), width=8)
    del (graph.graph.input if name == "flow" else graph.graph.output)[:]
    for content in (graph.SerializeToString(), b""):
        (tmp_path / "other.onnx").write_bytes(content)
        with pytest.raises(InputError, match=r"other\.onnx has no input or output '(flow|logits)'"):
            describe(tmp_path, bundle, changed(tmp_path, bundle.variants[1], "other.onnx"))


@pytest.mark.parametrize("suffix", [".plan", ".engine"])
@pytest.mark.parametrize("kind", ["ptsr", "vit"])
def test_of_an_engine_the_manifest_is_believed(tmp_path: Path, suffix: str, kind: str) -> None:
    """Nothing reads an engine without its GPU."""
    bundle = write_tiny_bundle(tmp_path, [1.0], kind=kind)
    (tmp_path / f"x{suffix}").write_bytes(b"engine")
    model = describe(tmp_path, bundle, changed(tmp_path, bundle.variants[0], f"x{suffix}"))
    assert model.format is PLAN
    assert model.files == {"model.plan": tmp_path / f"x{suffix}"}
    assert model.inputs == (FLOW,)
    kept = Tensor("kept", "TYPE_INT64", (1, PATCHES))
    assert model.outputs == ((LOGITS, kept) if kind == "ptsr" else (LOGITS,))


@pytest.mark.parametrize(
    ("artifact", "target", "runtime", "triton", "ovms"),
    [
        ("x.plan", "trt", "tensorrt", None, "no TensorRT engines"),
        ("x.engine", "trt", "tensorrt", None, "no TensorRT engines"),
        ("x.plan", "trt", "tensorrt-rtx", "not of TensorRT-RTX", "no TensorRT engines"),
        ("x.onnx", "trt", "TensorRT 10 or later", "still to be built", "still to be built"),
        ("x.tflite", "cpu", "tflite", "no server takes x.tflite", "no server takes x.tflite"),
    ],
)
def test_who_can_serve_what(
    tmp_path: Path, bundle: Bundle, artifact: str, target: str, runtime: str, triton: str | None, ovms: str
) -> None:
    (tmp_path / artifact).write_bytes(b"x")
    variant = changed(tmp_path, bundle.variants[0], artifact, target=target, runs_on={"runtime": runtime})
    only = with_variant(bundle, variant)
    found = refusals(tmp_path, only, "triton")
    assert (triton or "") in found.get(variant.id, "")
    assert bool(found) == (triton is not None)
    assert ovms in refusals(tmp_path, only, "ovms")[variant.id]


@pytest.mark.parametrize("keepdims", [0, 1])
def test_ovms_is_not_given_a_graph_that_openvino_computes_wrongly(
    tmp_path: Path, bundle: Bundle, keepdims: int
) -> None:
    onnx.save(readout(keepdims), tmp_path / "readout.onnx")
    only = with_variant(bundle, changed(tmp_path, bundle.variants[0], "readout.onnx"))
    assert refusals(tmp_path, only, "triton") == {}
    found = refusals(tmp_path, only, "ovms")
    assert [*found.values()] == (
        [] if keepdims else ["OpenVINO computes this graph wrongly as ONNX: export with --target openvino"]
    )


def test_the_form_that_ovms_is_given_is_computed_rightly(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    import onnxruntime as ort

    from ptsr_edge.core.errors import MissingExtraError
    from ptsr_edge.runtimes.openvino import load_openvino

    try:
        ov = load_openvino()
    except MissingExtraError as error:
        pytest.skip(str(error))
    onnx.save(readout(keepdims=1), tmp_path / "readout.onnx")
    flow = np.random.default_rng(2).normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)
    (expected,) = ort.InferenceSession(str(tmp_path / "readout.onnx")).run(None, {"flow": flow})
    compiled = ov.Core().compile_model(tmp_path / "readout.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answer = compiled([flow])["logits"]
    assert answer.shape == expected.shape == (1, 3)
    # float32 sums of 768 terms of size 1 in another order.
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-3)


def test_what_is_not_served_need_not_be_whole_and_what_is_must_be(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "x.plan").write_bytes(b"engine")
    variant = changed(tmp_path, bundle.variants[0], "x.plan", target="trt", runs_on={"runtime": "tensorrt"})
    (tmp_path / "x.plan").write_bytes(b"other")
    assert list(refusals(tmp_path, with_variant(bundle, variant), "ovms")) == [variant.id]
    with pytest.raises(InputError, match=r"x\.plan has changed since it was exported"):
        refusals(tmp_path, with_variant(bundle, variant), "triton")


@pytest.mark.parametrize(
    ("wanted", "told"), [("f32", "f32"), ("f16 f32", "f32"), ("bf16", "bf16"), (None, "f32")]
)
def test_of_several_precisions_a_server_is_told_the_one_that_every_cpu_has(
    bundle: Bundle, wanted: str | None, told: str
) -> None:
    runs_on = {} if wanted is None else {"inference_precision": wanted}
    assert inference_precision(bundle.variants[0].model_copy(update={"runs_on": runs_on})) == told


def test_the_bundle_of_these_tests_is_one(tmp_path: Path, bundle: Bundle) -> None:
    assert read_bundle(tmp_path) == bundle
