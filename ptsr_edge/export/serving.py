"""A bundle as the model repositories that Triton and OpenVINO Model Server (OVMS) take.

For those who outgrow one device: the same artifacts, byte for byte, in the folders that the servers expect.

    Triton   ID/config.pbtxt, ID/labels.txt, ID/1/model.onnx or model.xml + model.bin or model.plan
    OVMS     config.json, ID/1/model.onnx or model.xml + model.bin

Sources: Triton's `model_config.proto` (message ModelConfig), "Model Repository" in its user guide, and the
README of its OpenVINO backend; "Classic Models" and "Starting the Server" in OVMS' documentation.
"""

from __future__ import annotations

import difflib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from ptsr_edge.bundle import Bundle, read_bundle
from ptsr_edge.core.errors import InputError
from ptsr_edge.core.files import check_place, staged_folder, write_json, write_whole
from ptsr_edge.export.served import ServedModel, describe, inference_precision, refusals

log = logging.getLogger("ptsr_edge")

LAYOUTS = ("triton", "ovms")
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
        near = difflib.get_close_matches(layout, LAYOUTS, n=1, cutoff=0.0)[0]
        raise InputError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)} (nearest: {near})")
    bundle = read_bundle(bundle_folder)
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
        for model in models:
            _write_model(stage / model.variant.id, layout, bundle, model)
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


def _write_model(folder: Path, layout: str, bundle: Bundle, model: ServedModel) -> None:
    version = folder / VERSION
    if layout == "triton":
        write_whole(folder / CONFIG[layout], triton_config(bundle, model))
        write_whole(folder / LABELS_FILE, "".join(f"{label}\n" for label in bundle.labels))
        if model.format.backend == "onnxruntime" and len(model.files) > 1:
            # "An ONNX model composed from multiple files must be contained in a directory", here model.onnx.
            version /= model.format.file
    for name, source in model.files.items():
        # Copies, not links: ONNX's own loader refuses weights that have a second name.
        (version / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, version / name)


def triton_config(bundle: Bundle, model: ServedModel) -> str:
    """The text of `config.pbtxt`: a `ModelConfig` of batch 1 (so `max_batch_size` is 0, shapes are whole)."""
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
    """`preprocess` tells a client how the input is made; no backend reads it."""
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
    """`config.json`; its paths are relative to itself. The precision is set: left alone, OpenVINO takes
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
