"""Model repositories for Triton and OpenVINO Model Server: what the servers document, what artifacts say, what loads."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from bundle_data import PATCH, PATCHES, SIDE, tiny_graph, write_tiny_bundle
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ptsr_edge.bundle import MANIFEST, Bundle, Variant, describe_file, read_bundle, write_bundle
from ptsr_edge.core.config import LABELS, ModelConfig, Preprocess
from ptsr_edge.core.errors import InputError, JobError, MissingExtraError
from ptsr_edge.export.onnx_graph import write_sharing_weights
from ptsr_edge.export.serving import (
    LAYOUTS,
    PLAN,
    Tensor,
    describe,
    inference_precision,
    refusals,
    write_layout,
)
from ptsr_edge.runtimes.openvino import load_openvino
from ptsr_edge.vision.flow import to_input

pytestmark = pytest.mark.slow

INTEGER, TEXT, FLAG = "integer", "string", "bool"

DATA_TYPES = {"TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64", "TYPE_INT8",
              "TYPE_INT16", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_STRING",
              "TYPE_BF16"}  # fmt: skip
TENSOR = {
    "name": TEXT, "data_type": DATA_TYPES, "dims": [INTEGER], "reshape": {"shape": [INTEGER]},
    "is_shape_tensor": FLAG, "is_non_linear_format_io": FLAG,
}  # fmt: skip
MODEL_CONFIG: dict[str, Any] = {
    "name": TEXT, "platform": TEXT, "backend": TEXT, "runtime": TEXT, "max_batch_size": INTEGER,
    "input": [TENSOR | {
        "format": {"FORMAT_NONE", "FORMAT_NHWC", "FORMAT_NCHW"}, "allow_ragged_batch": FLAG, "optional": FLAG,
    }],
    "output": [TENSOR | {"label_filename": TEXT}],
    "instance_group": [{
        "name": TEXT, "kind": {"KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"}, "count": INTEGER,
        "gpus": [INTEGER], "profile": [TEXT], "passive": FLAG, "host_policy": TEXT,
    }],
    "default_model_filename": TEXT,
    "parameters": [{"key": TEXT, "value": {"string_value": TEXT}}],
}  # fmt: skip
"""Triton's message ModelConfig (`model_config.proto`), as far as a repository without batching, ensembles and
states can use it. A list is a repeated field, a set an enum, a dictionary a message."""

TOKEN = re.compile(r"""\s*(?:\#[^\n]*\n\s*)*("(?:[^"\\\n]|\\.)*"|[A-Za-z_]\w*|-?\d+|[{}\[\]:,])""")


class TextFormat:
    """A strict reader of protobuf's text format, for messages of a given schema."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = []
        place = 0
        while text[place:].strip():
            found = TOKEN.match(text, place)
            assert found, f"no token at {text[place : place + 40]!r}"
            self.tokens.append(found[1])
            place = found.end()
        self.tokens.append("end")

    def take(self, *accepted: str) -> str:
        token = self.tokens.pop(0)
        assert not accepted or token in accepted, f"expected {' or '.join(accepted)}, found {token}"
        return token

    def message(self, schema: Mapping[str, Any], end: str = "end") -> dict[str, Any]:
        record: dict[str, Any] = {}
        while self.tokens[0] != end:
            name = self.take()
            assert name in schema, f"no field {name!r}; there are {sorted(schema)}"
            kind = schema[name]
            if isinstance(kind, list):
                record.setdefault(name, []).extend(self.values(kind[0]))
            else:
                assert name not in record, f"{name} may be given once"
                record[name] = self.value(kind)
        self.take(end)
        return record

    def values(self, kind: Any) -> list[Any]:
        if self.tokens[:2] != [":", "["]:
            return [self.value(kind)]
        self.take(":")
        self.take("[")
        items = []
        while self.tokens[0] != "]":
            items.append(self.item(kind))
            if self.tokens[0] != "]":
                self.take(",")
        self.take("]")
        return items

    def value(self, kind: Any) -> Any:
        if self.tokens[0] == ":" or not isinstance(kind, dict):
            self.take(":")
        return self.item(kind)

    def item(self, kind: Any) -> Any:
        token = self.take()
        if isinstance(kind, dict):
            assert token == "{", f"a message starts with a brace, found {token}"
            return self.message(kind, "}")
        if isinstance(kind, set):
            assert token in kind, f"{token} is none of {sorted(kind)}"
            return token
        if kind == INTEGER:
            assert re.fullmatch(r"-?\d+", token), f"{token} is no integer"
            return int(token)
        if kind == FLAG:
            assert token in ("true", "false")
            return token == "true"
        assert token.startswith('"'), f"{token} is no string"
        return json.loads(token)


def read_config(path: Path) -> dict[str, Any]:
    return TextFormat(path.read_text(encoding="utf-8")).message(MODEL_CONFIG)


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def model_config(kind: str = "ptsr") -> ModelConfig:
    return ModelConfig(
        name=f"{kind}-test",
        kind=kind,
        image_size=SIDE,
        patch_size=PATCH,
        dim=8,
        depth=1,
        heads=2,
        score="strain",
    )


def bundle_of(folder: Path, variants: list[Variant], kind: str = "ptsr") -> Bundle:
    bundle = Bundle(
        schema=1, name=f"{kind}-test", target=variants[0].target, model=model_config(kind),
        labels=list(LABELS), preprocess=Preprocess(image_size=SIDE),
        provenance={"card": "random weights, for tests"}, variants=variants,
    )  # fmt: skip
    write_bundle(folder, bundle)
    return bundle


def variant_of(
    folder: Path, artifact: str, *more: str, target: str, tokens: int, precision: str = "fp32",
    runs_on: dict[str, Any] | None = None,
) -> Variant:  # fmt: skip
    return Variant(
        id=f"ptsr-test-{target}-{precision}-k{tokens}", target=target, keep_rate=tokens / PATCHES,
        tokens=tokens, precision=precision, artifact=artifact,
        files=[describe_file(folder, folder / name) for name in (artifact, *more)],
        macs=1, parameters=1, parity=None, built_with={}, runs_on=runs_on or {},
    )  # fmt: skip


def write_graphs(folder: Path, tokens: tuple[int, ...]) -> dict[int, Path]:
    """ONNX files whose large tensor lies in a file that they share."""
    graphs = {folder / f"g-k{count}.onnx": tiny_graph(count, len(LABELS), width=8) for count in tokens}
    write_sharing_weights(graphs, folder / "weights-shared.bin")
    return dict(zip(tokens, graphs, strict=True))


@pytest.fixture
def cpu(tmp_path: Path) -> Path:
    """A bundle for ONNX Runtime at 16 and 8 tokens."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    bundle_of(
        folder,
        [
            variant_of(folder, path.name, "weights-shared.bin", target="cpu", tokens=count)
            for count, path in write_graphs(folder, (16, 8)).items()
        ],
    )
    return folder


@pytest.fixture
def ov() -> ModuleType:
    """The module `openvino`; imported as the package does, its telemetry off."""
    try:
        return load_openvino()
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture
def openvino(tmp_path: Path, ov: ModuleType) -> Path:
    """A bundle of three IRs, whose weights have another name than the servers look for."""
    folder = tmp_path / "bundle-ir"
    folder.mkdir()
    onnx.save(tiny_graph(8, len(LABELS), width=8), tmp_path / "g.onnx")
    variants = []
    for precision, inference in (("fp32", "f32"), ("fp16", "f16 f32"), ("bf16", "bf16")):
        xml = folder / f"ptsr-test-openvino-{precision}-k8.xml"
        ov.save_model(ov.Core().read_model(tmp_path / "g.onnx"), xml, compress_to_fp16=precision != "fp32")
        weights = xml.with_suffix(".bin").rename(folder / f"ptsr-test-openvino-{precision}.bin")
        variants.append(
            variant_of(
                folder, xml.name, weights.name, target="openvino", tokens=8, precision=precision,
                runs_on={"runtime": "openvino", "inference_precision": inference},
            )
        )  # fmt: skip
    bundle_of(folder, variants)
    return folder


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    """A bundle of two engines; nothing here reads one, and only their names and bytes matter."""
    folder = tmp_path / "bundle-trt"
    folder.mkdir()
    (folder / "a.plan").write_bytes(b"engine of TensorRT")
    (folder / "b.engine").write_bytes(b"engine of TensorRT-RTX")
    (folder / "c.onnx").write_bytes(b"graph to build from")
    bundle_of(
        folder,
        [
            variant_of(folder, "a.plan", "c.onnx", target="trt", tokens=8, precision="fp16",
                       runs_on={"runtime": "tensorrt", "compute_capability": "8.7"}),
            variant_of(folder, "b.engine", target="trt", tokens=4, precision="fp16",
                       runs_on={"runtime": "tensorrt-rtx"}),
            variant_of(folder, "c.onnx", target="trt", tokens=2, precision="fp16"),
        ],
    )  # fmt: skip
    return folder


@pytest.fixture
def flow() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)


def ort_answers(path: Path, flow: NDArray[np.float32]) -> list[NDArray[Any]]:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    answers: list[NDArray[Any]] = session.run(["logits", "kept"], {"flow": flow})
    return answers


def test_triton_gets_a_folder_a_model_with_graph_weights_config_and_labels(
    tmp_path: Path, cpu: Path, flow: NDArray[np.float32]
) -> None:
    out = tmp_path / "repository"
    names = ["ptsr-test-cpu-fp32-k16", "ptsr-test-cpu-fp32-k8"]
    assert write_layout(cpu, "triton", out) == [out / name for name in names]
    # "An ONNX model composed from multiple files must be contained in a directory. By default this directory
    # must be named model.onnx [...] The main model file within this directory must be named model.onnx."
    inside = ["1/model.onnx/model.onnx", "1/model.onnx/weights-shared.bin", "config.pbtxt", "labels.txt"]
    assert tree(out) == [f"{name}/{path}" for name in names for path in inside]
    assert (out / names[0] / "labels.txt").read_text(encoding="utf-8") == "negative\npositive\nsurprise\n"
    for name, source in zip(names, ("g-k16.onnx", "g-k8.onnx"), strict=True):
        served = ort_answers(out / name / "1" / "model.onnx" / "model.onnx", flow)
        for answer, expected in zip(served, ort_answers(cpu / source, flow), strict=True):
            np.testing.assert_array_equal(answer, expected)  # the same bytes in the same runtime


def test_triton_is_told_types_shapes_and_where_to_run(tmp_path: Path, cpu: Path) -> None:
    folder = write_layout(cpu, "triton", tmp_path / "repository")[1]
    config = read_config(folder / "config.pbtxt")
    parameters = {entry["key"]: entry["value"]["string_value"] for entry in config.pop("parameters")}
    # `max_batch_size: 0`: "the dimension/shape of the input and output tensors must exactly match".
    assert config == {
        "name": "ptsr-test-cpu-fp32-k8",
        "backend": "onnxruntime",
        "max_batch_size": 0,
        "default_model_filename": "model.onnx",
        "input": [{"name": "flow", "data_type": "TYPE_FP32", "dims": [1, 3, 16, 16]}],
        "output": [
            {"name": "logits", "data_type": "TYPE_FP32", "dims": [1, 3], "label_filename": "labels.txt"},
            {"name": "kept", "data_type": "TYPE_INT64", "dims": [1, 8]},
        ],
        "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
    }
    assert json.loads(parameters["preprocess"]) == Preprocess(image_size=SIDE).model_dump(mode="json")


def test_a_baseline_has_one_output_and_a_graph_without_weights_beside_it_is_one_file(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    graph = tiny_graph(PATCHES, len(LABELS), width=8)
    del graph.graph.output[1]
    onnx.save(graph, folder / "vit.onnx")
    bundle_of(folder, [variant_of(folder, "vit.onnx", target="cpu", tokens=PATCHES)], kind="vit")
    (model,) = write_layout(folder, "triton", tmp_path / "repository")
    assert tree(model) == ["1/model.onnx", "config.pbtxt", "labels.txt"]
    assert [tensor["name"] for tensor in read_config(model / "config.pbtxt")["output"]] == ["logits"]


def test_triton_gets_an_ir_under_the_names_that_its_backend_looks_for(
    tmp_path: Path, openvino: Path, ov: ModuleType, flow: NDArray[np.float32]
) -> None:
    out = tmp_path / "repository"
    models = write_layout(openvino, "triton", out)
    for model in models:
        assert tree(model) == ["1/model.bin", "1/model.xml", "config.pbtxt", "labels.txt"]
    config = read_config(models[0] / "config.pbtxt")
    assert (config["backend"], config["default_model_filename"]) == ("openvino", "model.xml")
    # "Triton OpenVINO backend supports only Kind CPU and AUTO"
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_CPU"}]
    assert config["input"] == [{"name": "flow", "data_type": "TYPE_FP32", "dims": [1, 3, 16, 16]}]
    assert config["output"][1] == {"name": "kept", "data_type": "TYPE_INT64", "dims": [1, 8]}
    compiled = ov.Core().compile_model(
        models[0] / "1" / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    expected, _ = ort_answers(tmp_path / "g.onnx", flow)
    # float32 sums of 768 terms of size 1 in another order: a few units in the last place of their sum.
    np.testing.assert_allclose(compiled([flow])["logits"], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_that_irs_share_are_one_file_in_a_repository_and_none_of_the_bundles(
    tmp_path: Path, openvino: Path, layout: str
) -> None:
    models = write_layout(openvino, layout, tmp_path / "repository")
    fp32, fp16, bf16 = ((model / "1" / "model.bin").stat() for model in models)
    assert fp16.st_ino == bf16.st_ino != fp32.st_ino
    assert fp32.st_nlink == 1
    assert (openvino / "ptsr-test-openvino-fp16.bin").stat().st_nlink == 1


def test_weights_of_onnx_files_stay_copies(tmp_path: Path, cpu: Path) -> None:
    for model in write_layout(cpu, "ovms", tmp_path / "repository"):
        assert (model / "1" / "weights-shared.bin").stat().st_nlink == 1


def test_triton_is_asked_for_bfloat16_and_where_it_cannot_be_told_otherwise_that_is_said(
    tmp_path: Path, openvino: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = write_layout(openvino, "triton", tmp_path / "repository")
    hints = [
        [entry["value"]["string_value"] for entry in read_config(model / "config.pbtxt")["parameters"]
         if entry["key"] == "HINT_BF16"]
        for model in models
    ]  # fmt: skip
    assert hints == [[], [], ["YES"]]
    warned = [record.getMessage().split(": ")[1] for record in caplog.records]
    assert warned == ["ptsr-test-openvino-fp32-k8", "ptsr-test-openvino-fp16-k8"]


def test_triton_gets_engines_of_tensorrt_and_no_others(
    tmp_path: Path, engines: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "repository"
    assert write_layout(engines, "triton", out) == [out / "ptsr-test-trt-fp16-k8"]
    assert tree(out / "ptsr-test-trt-fp16-k8") == ["1/model.plan", "config.pbtxt", "labels.txt"]
    assert (out / "ptsr-test-trt-fp16-k8" / "1" / "model.plan").read_bytes() == b"engine of TensorRT"
    config = read_config(out / "ptsr-test-trt-fp16-k8" / "config.pbtxt")
    assert (config["backend"], config["default_model_filename"]) == ("tensorrt", "model.plan")
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_GPU"}]
    assert config["input"] == [{"name": "flow", "data_type": "TYPE_FP32", "dims": [1, 3, 16, 16]}]
    assert [(tensor["name"], tensor["dims"]) for tensor in config["output"]] == [
        ("logits", [1, 3]),
        ("kept", [1, 8]),
    ]
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "triton: ptsr-test-trt-fp16-k4 is left out: Triton loads engines of TensorRT, not of TensorRT-RTX",
        "triton: ptsr-test-trt-fp16-k2 is left out: its engine is still to be built on the device",
    ]


def test_a_real_graph_is_served_by_ovms_only_if_openvino_computes_it_as_onnxruntime_does(
    tmp_path: Path, tiny_bundle: Path, ov: ModuleType, random_flows: Callable[..., NDArray[np.float32]]
) -> None:
    left_out = refusals(tiny_bundle, read_bundle(tiny_bundle), "ovms")
    if len(left_out) == len(read_bundle(tiny_bundle).variants):
        pytest.skip(f"OVMS is given none of these graphs: {next(iter(left_out.values()))}")
    flow = to_input(random_flows(1))
    models = write_layout(tiny_bundle, "ovms", tmp_path / "repository")
    for model in (model for model in models if "fp32" in model.name):
        (file,) = (model / "1").glob("*.onnx")
        expected, _ = ort_answers(file, flow)
        answer = ov.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([flow])
        assert answer["logits"].shape == expected.shape
        # The parity limit of fp32 artifacts.
        np.testing.assert_allclose(answer["logits"], expected, rtol=0, atol=1e-4)


CONFIG_KEYS = {
    "name", "base_path", "batch_size", "model_version_policy", "shape", "nireq", "target_device",
    "plugin_config", "stateful", "idle_sequence_cleanup", "low_latency_transformation", "max_sequence_number",
    "custom_loader_options",
}  # fmt: skip
"""Of OVMS' schema of `config.json`, which takes no others; the first two are required."""


@pytest.mark.parametrize("kind", ["cpu", "openvino"])
def test_ovms_form_is_loaded_by_openvino_as_its_config_says(
    tmp_path: Path, kind: str, ov: ModuleType, flow: NDArray[np.float32], request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(kind)
    out = tmp_path / "repository"
    models = write_layout(source, "ovms", out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert set(config) == {"model_config_list"}
    entries = [entry["config"] for entry in config["model_config_list"]]
    assert [entry["name"] for entry in entries] == [path.name for path in models]
    graph = tmp_path / "g.onnx" if kind == "openvino" else source / "g-k8.onnx"
    expected, _ = ort_answers(graph, flow)
    capabilities = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for entry in entries:
        assert {"name", "base_path"} <= set(entry) <= CONFIG_KEYS
        # "Use relative paths to make the config.json transferable"
        version = out / entry["base_path"] / "1"
        (file,) = [path for path in version.iterdir() if path.suffix in (".xml", ".onnx")]
        hint = entry["plugin_config"]["INFERENCE_PRECISION_HINT"]
        if hint == "bf16" and "BF16" not in capabilities:
            continue
        model = ov.Core().compile_model(
            ov.Core().read_model(file), entry["target_device"], entry["plugin_config"]
        )
        assert model.get_property("INFERENCE_PRECISION_HINT").get_type_name() == hint
        answer = model([flow])
        # bfloat16 keeps 8 bits of each of two factors; else sums in another order, or weights of 11 bits.
        limit = {"bf16": 0.1, "f32": 0.01}[hint] * float(np.abs(expected).max())
        np.testing.assert_allclose(answer["logits"], expected, rtol=0, atol=limit)
        assert answer["kept"].shape == (1, 8 if "k8" in entry["name"] else 16)


def test_ovms_asks_for_a_precision_that_every_cpu_has_where_there_is_a_choice(
    tmp_path: Path, openvino: Path
) -> None:
    out = tmp_path / "repository"
    write_layout(openvino, "ovms", out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    hints = [entry["config"]["plugin_config"] for entry in config["model_config_list"]]
    assert hints == [{"INFERENCE_PRECISION_HINT": hint} for hint in ("f32", "f32", "bf16")]
    name = config["model_config_list"][0]["config"]["name"]
    assert tree(out / name) == ["1/model.bin", "1/model.xml"]


def test_ovms_serves_no_engine(tmp_path: Path, engines: Path) -> None:
    with pytest.raises(
        InputError, match=r"layout ovms can serve none of the 3 variants .*no TensorRT engines"
    ):
        write_layout(engines, "ovms", tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_a_file_that_no_server_takes_is_left_out(
    tmp_path: Path, cpu: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (cpu / "model.tflite").write_bytes(b"x")
    known = [
        variant_of(cpu, "g-k8.onnx", "weights-shared.bin", target="cpu", tokens=8),
        variant_of(cpu, "model.tflite", target="cpu", tokens=4),
    ]
    bundle_of(cpu, known)
    assert [path.name for path in write_layout(cpu, "ovms", tmp_path / "repository")] == [known[0].id]
    assert "ptsr-test-cpu-fp32-k4 is left out: no server takes model.tflite" in caplog.text


def test_a_layout_that_is_not_known_names_the_nearest(tmp_path: Path, cpu: Path) -> None:
    with pytest.raises(InputError, match=r"unknown layout 'tritn'; known: triton, ovms \(nearest: triton\)"):
        write_layout(cpu, "tritn", tmp_path / "repository")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["g-k16.onnx", "weights-shared.bin"])
def test_a_file_that_changed_since_the_export_is_refused(
    tmp_path: Path, cpu: Path, layout: str, name: str
) -> None:
    (cpu / name).write_bytes(b"other")
    with pytest.raises(InputError, match="has changed since it was exported"):
        write_layout(cpu, layout, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("artifact", "content", "said"),
    [
        ("x.onnx", b"\xff\xff no graph", "is no ONNX file"),
        ("x.xml", b"<net>", "is no OpenVINO IR"),
    ],
)
def test_an_artifact_that_is_not_what_its_name_says_is_one_line(
    tmp_path: Path, artifact: str, content: bytes, said: str
) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / artifact).write_bytes(content)
    (folder / "x.bin").write_bytes(b"")
    bundle_of(folder, [variant_of(folder, artifact, "x.bin", target="cpu", tokens=8)])
    with pytest.raises(InputError, match=said):
        write_layout(folder, "triton", tmp_path / "repository")


def test_weights_that_the_manifest_does_not_list_are_refused(tmp_path: Path, cpu: Path) -> None:
    bundle_of(cpu, [variant_of(cpu, "g-k8.onnx", target="cpu", tokens=8)])
    with pytest.raises(
        InputError, match=r"reads 'weights-shared\.bin', which is not among the variant's files"
    ):
        write_layout(cpu, "ovms", tmp_path / "repository")


def test_an_ir_without_weights_is_refused(tmp_path: Path, openvino: Path) -> None:
    bundle_of(openvino, [variant_of(openvino, "ptsr-test-openvino-fp32-k8.xml", target="openvino", tokens=8)])
    with pytest.raises(InputError, match=r"an IR needs one \.bin file beside it, the manifest lists 0"):
        write_layout(openvino, "triton", tmp_path / "repository")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_earlier_repository_is_replaced_as_a_whole(tmp_path: Path, cpu: Path, layout: str) -> None:
    out = tmp_path / "repository"
    write_layout(cpu, layout, out)
    bundle_of(cpu, [variant_of(cpu, "g-k8.onnx", "weights-shared.bin", target="cpu", tokens=8)])
    (model,) = write_layout(cpu, layout, out)
    assert [path for path in out.iterdir() if path.is_dir()] == [model]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("found", ["file", "bundle", "work", "other layout"])
def test_what_is_no_such_repository_is_not_replaced(
    tmp_path: Path, cpu: Path, layout: str, found: str
) -> None:
    out = tmp_path / "out"
    if found == "file":
        out.write_bytes(b"work")
    elif found == "bundle":
        out = cpu
    elif found == "work":
        (out / "thesis").mkdir(parents=True)
    else:
        write_layout(cpu, "ovms" if layout == "triton" else "triton", out)
    before = tree(tmp_path)
    with pytest.raises(InputError, match=rf"is a file|holds something else than a {layout} repository"):
        write_layout(cpu, layout, out)
    assert tree(tmp_path) == before


def test_no_room_leaves_the_earlier_repository(
    tmp_path: Path, cpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "repository"
    write_layout(cpu, "triton", out)
    bundle_of(cpu, [variant_of(cpu, "g-k8.onnx", "weights-shared.bin", target="cpu", tokens=8)])
    before = tree(tmp_path)

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("shutil.copyfile", no_room)
    with pytest.raises(JobError, match=r"cannot write .*repository: No space left"):
        write_layout(cpu, "triton", out)
    assert tree(tmp_path) == before


def test_no_bundle_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=MANIFEST):
        write_layout(tmp_path, "triton", tmp_path / "repository")


@pytest.mark.parametrize(
    "text",
    [
        'nam: "x"',
        'name: "x" name: "y"',
        "name: x",
        "max_batch_size: 0.5",
        "max_batch_size 0",
        "input { data_type: TYPE_FLOAT }",
        "input { dims: [ 1 3 ] }",
        "instance_group { kind: KIND_TPU }",
        'parameters { key: "a" value: "b" }',
        "input {",
    ],
)
def test_the_reader_of_the_text_format_is_strict(text: str) -> None:
    """Each of these is refused by protobuf's own reader too."""
    with pytest.raises((AssertionError, IndexError)):
        TextFormat(text).message(MODEL_CONFIG)


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


def test_the_manifest_says_what_the_graphs_take_and_give(tiny_bundle: Path) -> None:
    made = read_bundle(tiny_bundle)
    assert made.io is not None
    for variant in made.variants:
        model = describe(tiny_bundle, made, variant)
        for tensors, said in ((model.inputs, made.io.inputs), (model.outputs, made.io.outputs)):
            shapes = [tuple(variant.tokens if n == "tokens" else n for n in spec.shape) for spec in said]
            types = [{"float32": "TYPE_FP32", "int64": "TYPE_INT64"}[spec.type] for spec in said]
            assert [(t.name, t.type, t.shape) for t in tensors] == [
                (spec.name, kind, shape) for spec, kind, shape in zip(said, types, shapes, strict=True)
            ]
            assert all(len(spec.layout) == len(spec.shape) for spec in said)


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
