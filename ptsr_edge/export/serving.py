"""A bundle as the model repositories that Triton and OpenVINO Model Server (OVMS) take.

For those who outgrow one device: the same artifacts, byte for byte, in the folders that the servers expect. A repository
shares no file with the bundle; within it, the weights that several IRs read are one file where there are hard links.

    Triton   ID/config.pbtxt, ID/labels.txt, ID/1/model.onnx or model.xml + model.bin or model.plan
    OVMS     config.json, ID/1/model.onnx or model.xml + model.bin

Sources: Triton's `model_config.proto` (message ModelConfig), "Model Repository" in its user guide, and the
README of its OpenVINO backend; "Classic Models" and "Starting the Server" in OVMS' documentation.

Triton runs ONNX files, OpenVINO IR and TensorRT engines; OVMS the first two. What cannot be served is left out and said;
what goes in and out of a model is read from the artifact itself.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import onnx

from ptsr_edge.bundle import Bundle, Variant, check_files
from ptsr_edge.core.config import nearest
from ptsr_edge.core.errors import InputError
from ptsr_edge.core.files import check_place, link_file, staged_folder, write_json, write_whole
from ptsr_edge.export.config import LAYOUTS
from ptsr_edge.runtimes.base import find_runtime
from ptsr_edge.sign import read_verified

log = logging.getLogger("ptsr_edge")

VERSION = "1"

CONFIG = {"triton": "config.pbtxt", "ovms": "config.json"}

LABELS_FILE = "labels.txt"


def write_layout(bundle_folder: Path, layout: str, out: Path) -> list[Path]:
    """Writes a finished bundle as a model repository, whole or not at all.

    Variants that the server cannot serve are left out, each with a line in the log.

    Args:
        bundle_folder: as `export` made it.
        layout: one of `LAYOUTS`.
        out: a new or empty folder, or a repository of the same layout to replace.

    Returns:
        The folder of each model.

    Raises:
        InputError: unknown layout, no bundle there, a file that has changed since the export, no variant that
            the server can serve, or an `out` that holds something else.
        JobError: the repository cannot be written.
    """
    if layout not in LAYOUTS:
        near = nearest(layout, LAYOUTS)
        raise InputError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)} (nearest: {near})")
    bundle = read_verified(bundle_folder)
    left_out = refusals(bundle_folder, bundle, layout)
    for name, reason in left_out.items():
        log.warning("%s: %s is left out: %s", layout, name, reason)
    variants = [variant for variant in bundle.variants if variant.id not in left_out]
    if not variants:
        first, reason = next(iter(left_out.items()))
        raise InputError(
            f"layout {layout} can serve none of the {len(left_out)} variants of {bundle_folder}; "
            f"{first}: {reason}"
        )
    check_repository(out, layout)
    models = [describe(bundle_folder, bundle, variant) for variant in variants]
    with staged_folder(out) as stage:
        written: dict[str, Path] = {}
        for model in models:
            _write_model(stage / model.variant.id, layout, bundle, model, written)
        if layout == "ovms":
            write_json(stage / CONFIG[layout], ovms_config(models))
    return [out / variant.id for variant in variants]


def check_repository(out: Path, layout: str) -> None:
    """The folder is replaced as a whole: it must be new, empty or an earlier repository of the layout.

    Raises:
        InputError: it is a file, holds anything else, or cannot be written.
    """
    check_place(out)
    if out.is_file():
        raise InputError(f"{out} is a file; a model repository is a folder")
    inside = list(out.iterdir()) if out.is_dir() else []
    config = CONFIG[layout]
    if layout == "triton":
        ours = all((path / config).is_file() for path in inside)
    else:
        ours = all(path.name == config or (path / VERSION).is_dir() for path in inside)
        ours &= not inside or (out / config).is_file()
    if not ours:
        raise InputError(
            f"{out} holds something else than a {layout} repository; accepted: a new or empty folder, "
            "or a repository to replace"
        )


def _write_model(
    folder: Path, layout: str, bundle: Bundle, model: ServedModel, written: dict[str, Path]
) -> None:
    """Writes a model's folder; `written` has the weights of IRs by their SHA-256, and gets those of this one."""
    version = folder / VERSION
    hashes = {Path(entry.path).name: entry.sha256 for entry in model.variant.files}
    if layout == "triton":
        write_whole(folder / CONFIG[layout], triton_config(bundle, model))
        write_whole(folder / LABELS_FILE, "".join(f"{label}\n" for label in bundle.labels))
        if model.format.backend == "onnxruntime" and len(model.files) > 1:
            # "An ONNX model composed from multiple files must be contained in a directory", here model.onnx.
            version /= model.format.file
    for name, source in model.files.items():
        target = version / name
        target.parent.mkdir(parents=True, exist_ok=True)
        # Of ONNX always copies: its own loader refuses weights that have a second name.
        first = written.setdefault(hashes[source.name], target) if model.format is IR else target
        if first == target:
            shutil.copyfile(source, target)
        else:
            link_file(first, target)


def triton_config(bundle: Bundle, model: ServedModel) -> str:
    """Returns the text of `config.pbtxt`: a `ModelConfig` of batch 1 (so `max_batch_size` is 0, shapes are whole)."""
    variant = model.variant
    lines = [
        f"# {bundle.name}, {variant.target} {variant.precision}, "
        f"{variant.tokens} of {bundle.model.patches} tokens",
        f"name: {_quoted(variant.id)}",
        f"backend: {_quoted(model.format.backend)}",
        "max_batch_size: 0",
        f"default_model_filename: {_quoted(model.format.file)}",
    ]
    for role, tensors in (("input", model.inputs), ("output", model.outputs)):
        for tensor in tensors:
            lines += [
                f"{role} {{",
                f"  name: {_quoted(tensor.name)}",
                f"  data_type: {tensor.type}",
                f"  dims: [ {', '.join(map(str, tensor.shape))} ]",
                *([f"  label_filename: {_quoted(LABELS_FILE)}"] if tensor.name == "logits" else []),
                "}",
            ]
    lines += ["instance_group {", "  count: 1", f"  kind: {model.format.kind}", "}"]
    for key, value in _parameters(bundle, model).items():
        lines += [
            "parameters {",
            f"  key: {_quoted(key)}",
            f"  value {{ string_value: {_quoted(value)} }}",
            "}",
        ]
    return "\n".join(lines) + "\n"


def _parameters(bundle: Bundle, model: ServedModel) -> dict[str, str]:
    """Returns the parameters of a model; `preprocess` tells a client how the input is made, no backend reads it."""
    parameters = {"preprocess": json.dumps(bundle.preprocess.model_dump(mode="json"), sort_keys=True)}
    if model.format.backend == "openvino":
        if inference_precision(model.variant) == "bf16":
            parameters["HINT_BF16"] = "YES"
        else:
            log.warning(
                "triton: %s: its OpenVINO backend calculates in bfloat16 on a CPU that has it, and has no "
                "setting for %s", model.variant.id, inference_precision(model.variant),
            )  # fmt: skip
    return parameters


def ovms_config(models: list[ServedModel]) -> dict[str, Any]:
    """Returns `config.json`; its paths are relative to itself. The precision is set: left alone, OpenVINO takes
    bfloat16 where a CPU has it, and answers change."""
    return {
        "model_config_list": [
            {
                "config": {
                    "name": model.variant.id,
                    "base_path": model.variant.id,
                    "target_device": "CPU",
                    "plugin_config": {"INFERENCE_PRECISION_HINT": inference_precision(model.variant)},
                }
            }
            for model in models
        ]
    }


def _quoted(text: str) -> str:
    """A string of protobuf's text format, whose escapes are among JSON's."""
    return json.dumps(text, ensure_ascii=False)


@dataclass(frozen=True)
class Format:
    """A kind of artifact, as the servers know it.

    Attributes:
        backend: Triton's name of what runs it.
        file: the name that the servers look for.
        kind: where Triton runs it; its OpenVINO backend takes no other kind, whatever the device.
    """

    backend: str
    file: str
    kind: str


PLAN = Format("tensorrt", "model.plan", "KIND_GPU")

IR = Format("openvino", "model.xml", "KIND_CPU")

FORMATS = {
    ".onnx": Format("onnxruntime", "model.onnx", "KIND_CPU"),
    ".xml": IR,
    ".plan": PLAN,
    ".engine": PLAN,
}

TYPES = {
    "FLOAT": "TYPE_FP32", "FP32": "TYPE_FP32", "FLOAT16": "TYPE_FP16", "FP16": "TYPE_FP16",
    "INT64": "TYPE_INT64", "I64": "TYPE_INT64", "INT32": "TYPE_INT32", "I32": "TYPE_INT32",
}  # fmt: skip
"""Triton's names of element types, by ONNX's and by OpenVINO's."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of a model; `type` is Triton's, `shape` has the batch of 1."""

    name: str
    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ServedModel:
    """A variant as a server loads it.

    `files` are the bundle's, by their path in the model's version folder; `inputs` and `outputs` are what the
    artifact itself says, of an engine what the manifest says.
    """

    variant: Variant
    format: Format
    files: Mapping[str, Path]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def refusals(folder: Path, bundle: Bundle, layout: str) -> dict[str, str]:
    """Returns the variants of a bundle that a server cannot serve, and why.

    Raises:
        InputError: a file of a variant that it could serve is missing or has changed since the export.
    """
    reasons = {variant.id: _refusal(folder, variant, layout) for variant in bundle.variants}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _refusal(folder: Path, variant: Variant, layout: str) -> str | None:
    """Returns why a server cannot serve a variant, None where it can."""
    artifact = folder / variant.artifact
    form = FORMATS.get(artifact.suffix)
    if form is None:
        return f"no server takes {variant.artifact}; known: {', '.join(FORMATS)}"
    if find_runtime(variant.target).needs_gpu and form is not PLAN:
        return "its engine is still to be built on the device"
    if form is PLAN and layout == "ovms":
        return "OpenVINO Model Server takes IR and ONNX, no TensorRT engines"
    if form is PLAN and "rtx" in str(variant.runs_on.get("runtime", "")):
        return "Triton loads engines of TensorRT, not of TensorRT-RTX"
    check_files(folder, variant)
    if layout == "ovms" and artifact.suffix == ".onnx" and _misleads_openvino(_read_graph(artifact)):
        return "OpenVINO computes this graph wrongly as ONNX: export with --target openvino"
    return None


def _misleads_openvino(graph: onnx.GraphProto) -> bool:
    """Tells whether a reduction drops its axes and a transpose or reshape follows.

    The CPU plugin of OpenVINO 2025.4 to 2026.4 leaves that one out: (k, 1) is added where (1, k) is meant, and
    logits come out (k, k) (https://github.com/openvinotoolkit/openvino/issues/37959). Target `openvino` writes
    its IR in another form.
    """
    dropping = {
        name
        for node in graph.node
        if node.op_type.startswith("Reduce") and any(a.name == "keepdims" and not a.i for a in node.attribute)
        for name in node.output
    }
    shaping = (
        node for node in graph.node if node.op_type in ("Transpose", "Reshape", "Squeeze", "Unsqueeze")
    )
    return any(node.input[0] in dropping for node in shaping)


def describe(folder: Path, bundle: Bundle, variant: Variant) -> ServedModel:
    """Reads what a server needs of a variant: its files, and its inputs and outputs.

    Raises:
        InputError: the artifact is not what its name says, or reads a file that the manifest does not list.
    """
    artifact = folder / variant.artifact
    form = FORMATS[artifact.suffix]
    if artifact.suffix in (".onnx", ".xml"):
        read = _describe_onnx if artifact.suffix == ".onnx" else _describe_ir
        model = read(folder, variant, form)
        names = {tensor.name for tensor in (*model.inputs, *model.outputs)}
        for name in ("flow", "logits"):
            if name not in names:
                raise InputError(f"{artifact} has no input or output {name!r}: export the bundle again")
        return model
    config = bundle.model
    outputs = [Tensor("logits", "TYPE_FP32", (1, config.classes))]
    if config.kind == "ptsr":
        outputs.append(Tensor("kept", "TYPE_INT64", (1, variant.tokens)))
    flow = Tensor("flow", "TYPE_FP32", (1, *config.input_shape))
    return ServedModel(variant, form, {form.file: artifact}, (flow,), tuple(outputs))


def _read_graph(artifact: Path) -> onnx.GraphProto:
    try:
        return onnx.load(artifact, load_external_data=False).graph
    except Exception as error:  # noqa: BLE001  # whatever protobuf's implementation raises
        raise InputError(f"{artifact} is no ONNX file: {error}") from None


def _describe_onnx(folder: Path, variant: Variant, form: Format) -> ServedModel:
    artifact = folder / variant.artifact
    graph = _read_graph(artifact)
    external = {
        entry.value
        for tensor in graph.initializer
        if onnx.external_data_helper.uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    listed = {folder / entry.path for entry in variant.files}
    files = {form.file: artifact}
    for location in sorted(external):
        if artifact.parent / location not in listed:
            raise InputError(f"{artifact} reads {location!r}, which is not among the variant's files")
        files[location] = artifact.parent / location

    def tensor(value: onnx.ValueInfoProto) -> Tensor:
        kind = value.type.tensor_type
        shape = tuple(axis.dim_value for axis in kind.shape.dim)
        return Tensor(value.name, _type(onnx.TensorProto.DataType.Name(kind.elem_type), artifact), shape)

    return ServedModel(
        variant, form, files, tuple(map(tensor, graph.input)), tuple(map(tensor, graph.output))
    )


def _describe_ir(folder: Path, variant: Variant, form: Format) -> ServedModel:
    """An IR names no weights file: servers look for one of its own name beside it."""
    artifact = folder / variant.artifact
    weights = [folder / entry.path for entry in variant.files if entry.path.endswith(".bin")]
    if len(weights) != 1:
        raise InputError(
            f"{variant.id}: an IR needs one .bin file beside it, the manifest lists {len(weights)}"
        )
    try:
        layers = ElementTree.parse(artifact).getroot().findall("layers/layer")
    except ElementTree.ParseError as error:
        raise InputError(f"{artifact} is no OpenVINO IR: {error}") from None

    def tensors(layer_type: str) -> tuple[Tensor, ...]:
        found = []
        for layer in (layer for layer in layers if layer.get("type") == layer_type):
            port = layer.find(".//port")
            assert port is not None
            names = layer.get("output_names") or port.get("names") or layer.get("name", "").partition("/")[0]
            shape = tuple(int(axis.text or 0) for axis in port.findall("dim"))
            name = names.partition(",")[0]
            found.append(Tensor(name, _type(port.get("precision", ""), artifact), shape))
        return tuple(found)

    files = {form.file: artifact, str(Path(form.file).with_suffix(".bin")): weights[0]}
    return ServedModel(variant, form, files, tensors("Parameter"), tensors("Result"))


def _type(name: str, artifact: Path) -> str:
    if name not in TYPES:
        raise InputError(f"{artifact} has an input or output of type {name!r}; known: {', '.join(TYPES)}")
    return TYPES[name]


def inference_precision(variant: Variant) -> str:
    """Returns the type that OpenVINO is to calculate a variant in: of several the one that every CPU has."""
    return (str(variant.runs_on.get("inference_precision", "")).split() or ["f32"])[-1]
