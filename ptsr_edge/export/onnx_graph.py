"""ONNX graphs of fixed shapes, opset 20, whose budget variants share one weights file."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, external_data_helper
from torch import nn

from ptsr_edge.core.config import ModelConfig, Preprocess
from ptsr_edge.core.errors import JobError
from ptsr_edge.core.files import write_whole

OPSET = 20
PRODUCTS = ("MatMul", "Gemm", "Conv")

ALIGNMENT = 4096
"""Where a shared tensor starts: a page, so that a runtime can map it."""

SHARED_FROM_BYTES = 512
"""Smaller tensors stay inside their graph."""


def trace(static: nn.Module, config: ModelConfig) -> onnx.ModelProto:
    """Exports a module of fixed shapes: input `flow` (1, C, S, S), outputs `logits` and `kept`.

    Raises:
        JobError: torch cannot export it.
    """
    example = torch.linspace(-1, 1, config.channels * config.image_size**2)
    example = example.view(1, config.channels, config.image_size, config.image_size)
    with warnings.catch_warnings(), _quiet("torch.onnx", "onnxscript", "onnx_ir"):
        warnings.simplefilter("ignore")  # of torch's exporter about its own internals
        try:
            program = torch.onnx.export(
                static, (example,), dynamo=True, opset_version=OPSET, verbose=False,
                input_names=["flow"], output_names=["logits", "kept"],
            )  # fmt: skip
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            raise JobError(f"torch cannot export {config.name}: {error}") from error
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    for node in model.graph.node:
        # What torch notes about its source holds paths of the machine that exported.
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.metadata_props[:], model.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    name_products(model, static)
    return model


def name_products(model: onnx.ModelProto, static: nn.Module) -> None:
    """Names each product by the layer that its weights belong to, so that names hold across budgets.

    `blocks.2.mlp.fc1`, for a second product by the same weights `blocks.2.mlp.fc1/2`. Weights are found by
    their content, as torch stores them or transposed.
    """
    layers: dict[bytes, str] = {}
    for name, value in static.named_parameters():
        if value.ndim >= 2:
            layer = name.removesuffix(".weight").removesuffix("_weight")
            for array in (value.numpy(), value.numpy().T):
                layers.setdefault(_content(array), layer)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    seen: dict[str, int] = {}
    for node in model.graph.node:
        weights = [constants[name] for name in node.input if name in constants]
        if node.op_type not in PRODUCTS or not weights:
            continue
        found = [layers.get(_content(onnx.numpy_helper.to_array(tensor))) for tensor in weights]
        known = [layer for layer in found if layer is not None]
        if known:
            seen[known[0]] = seen.get(known[0], 0) + 1
            node.name = known[0] if seen[known[0]] == 1 else f"{known[0]}/{seen[known[0]]}"


def _content(array: NDArray[np.floating]) -> bytes:
    return repr(array.shape).encode() + hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()


def add_metadata(model: onnx.ModelProto, labels: list[str], preprocess: Preprocess) -> None:
    """Writes labels and preprocessing under the keys that OpenVINO's Model API reads from ONNX files.

    Its adapter splits each key at blanks into a path below `model_info`; labels are parted by blanks.
    """
    entries = {
        "model_info model_type": "Classification",
        "model_info labels": " ".join(label.replace(" ", "_") for label in labels),
        "model_info multilabel": "False",
        "model_info hierarchical": "False",
        "model_info output_raw_scores": "True",
        "model_info preprocess": json.dumps(preprocess.model_dump(mode="json"), sort_keys=True),
    }
    onnx.helper.set_model_props(model, entries)
    model.producer_name = "ptsr-edge"
    model.producer_version = ""


def write_sharing_weights(models: Mapping[Path, onnx.ModelProto], weights: Path) -> None:
    """Writes graphs into one folder with their large tensors in one file beside them, each tensor once.

    Raises:
        JobError: a file cannot be written, or a graph fails ONNX's checker.
    """
    offsets: dict[str, int] = {}
    content = bytearray()
    for model in models.values():
        for tensor in model.graph.initializer:
            data = onnx.numpy_helper.to_array(tensor).tobytes()
            if len(data) < SHARED_FROM_BYTES:
                continue
            key = hashlib.sha256(data).hexdigest()
            if key not in offsets:
                content.extend(b"\0" * (-len(content) % ALIGNMENT))
                offsets[key] = len(content)
                content.extend(data)
            point_at(tensor, weights.name, offsets[key], len(data))
    write_whole(weights, bytes(content))
    for path, model in models.items():
        write_whole(path, model.SerializeToString())
        try:
            onnx.checker.check_model(path, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise JobError(f"{path.name} is no valid ONNX graph: {error}") from error


def point_at(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Makes a tensor one that lies in a file beside its graph: `length` bytes at `offset`."""
    tensor.ClearField("raw_data")
    for field in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(field)
    tensor.raw_data = b""
    external_data_helper.set_external_data(tensor, location=location, offset=offset, length=length)
    tensor.ClearField("raw_data")


class _quiet:  # noqa: N801
    """Raises the level of some loggers inside a `with` block."""

    def __init__(self, *names: str) -> None:
        self.loggers = [logging.getLogger(name) for name in names]

    def __enter__(self) -> None:
        self.levels = [logger.level for logger in self.loggers]
        for logger in self.loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        for logger, level in zip(self.loggers, self.levels, strict=True):
            logger.setLevel(level)
