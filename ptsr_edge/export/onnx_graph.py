"""ONNX graphs of fixed shapes, opset 20: traced, written with shared weights, or kept as templates without any.

A `GraphTemplate` is a graph that is exported once, and whose weights file is written anew for each model of its geometry:
cross-validation has hundreds of them. The rewrites of `static_model` change weights (norms and temperatures are folded
in), and torch's exporter moves them: it transposes products' weights, merges equal tensors, renames. So a template is
traced with *numbered* weights: every value of every parameter of the static module is a different float, whose bits
say which value it is. What stands in the traced graph then tells where each of its numbers comes from, whatever was
moved; for another model the rewrites are done in torch and the values are put in their places. Numbered weights lie
above 2^100, so that anything computed from them would show: it is refused.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, external_data_helper, numpy_helper
from torch import Tensor, nn

from ptsr_edge.core.config import ModelConfig, Preprocess
from ptsr_edge.core.errors import JobError
from ptsr_edge.core.files import write_whole
from ptsr_edge.export.static_model import to_static
from ptsr_edge.models.ptsr import Model, build_model

OPSET = 20

PRODUCTS = ("MatMul", "Gemm", "Conv")

ALIGNMENT = 4096
"""Where a shared tensor starts: a page, so that a runtime can map it."""

SHARED_FROM_BYTES = 512
"""Smaller tensors stay inside their graph."""


def trace(static: nn.Module, config: ModelConfig) -> ModelProto:
    """Exports a module of fixed shapes: input `flow` (1, C, S, S), outputs `logits` and `kept`.

    Raises:
        JobError: torch cannot export it.
    """
    example = torch.linspace(-1, 1, config.channels * config.image_size**2)
    example = example.view(1, config.channels, config.image_size, config.image_size)
    model = _export(static, example, ["logits", "kept"], config.name)
    name_products(model, static)
    return model


class _Rows(nn.Module):
    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, rows: Tensor) -> Tensor:
        rows = rows[:, 0]
        for block in self.blocks:
            rows = block(rows)[0]
        return rows


def trace_blocks(blocks: Sequence[nn.Module], example: NDArray[np.float32]) -> ModelProto:
    """Exports transformer blocks for any number of rows: input `flow` (1, 1, rows, d), output (1, rows, d).

    Raises:
        JobError: torch cannot export it.
    """
    dynamic = ({2: torch.export.Dim("rows", min=2)},)
    return _export(_Rows(blocks), torch.from_numpy(example[:1]), ["rows"], "a block", dynamic_shapes=dynamic)


def _export(module: nn.Module, example: Tensor, outputs: Sequence[str], name: str, **how: Any) -> ModelProto:
    """torch's exporter, without what it notes about its own source.

    Raises:
        JobError: torch cannot export it.
    """
    with warnings.catch_warnings(), _quiet("torch.onnx", "onnxscript", "onnx_ir"), _without_collection():
        warnings.simplefilter("ignore")  # of torch's exporter about its own internals
        try:
            program = torch.onnx.export(
                module, (example,), dynamo=True, opset_version=OPSET, verbose=False,
                input_names=["flow"], output_names=outputs, **how,
            )  # fmt: skip
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            raise JobError(f"torch cannot export {name}: {error}") from error
    assert program is not None
    model: ModelProto = program.model_proto
    for node in model.graph.node:
        # What torch notes about its source holds paths of the machine that exported.
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.metadata_props[:], model.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    return model


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Raises the level of some loggers to errors inside a `with` block."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Holds the garbage collector inside a `with` block: an export makes so many objects that a fifth of it is collection."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def name_products(model: ModelProto, static: nn.Module) -> None:
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
        found = [layers.get(_content(numpy_helper.to_array(tensor))) for tensor in weights]
        known = [layer for layer in found if layer is not None]
        if known:
            seen[known[0]] = seen.get(known[0], 0) + 1
            node.name = known[0] if seen[known[0]] == 1 else f"{known[0]}/{seen[known[0]]}"


def layer_of(product: str) -> str:
    """Returns the layer that a named product belongs to: of `blocks.1.attention.query/2` all before the slash."""
    return product.partition("/")[0]


MEANS = ("means.hidden", "means.linear")
"""The layers that read patches' means: one row each, so that int8 saves nothing and costs logits.

On a trained nano PTSR the largest error of a logit in OpenVINO's int8 is 0.15 with them and 0.02 without.
"""


def _content(array: NDArray[np.floating]) -> bytes:
    """Returns a key of shape and values, the same for equal weights."""
    return repr(array.shape).encode() + hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()


def add_metadata(model: ModelProto, labels: list[str], preprocess: Preprocess) -> None:
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


def write_sharing_weights(models: Mapping[Path, ModelProto], weights: Path) -> None:
    """Writes graphs into one folder with their large tensors in one file beside them, each tensor once.

    The graphs in memory keep their weights.

    Raises:
        JobError: a file cannot be written, or a graph fails ONNX's checker.
    """
    offsets: dict[bytes, int] = {}
    content = bytearray()
    light: dict[Path, ModelProto] = {}
    for path, model in models.items():
        light[path] = ModelProto()
        light[path].CopyFrom(model)
        for tensor in light[path].graph.initializer:
            data = numpy_helper.to_array(tensor).tobytes()
            if len(data) < SHARED_FROM_BYTES:
                continue
            key = hashlib.sha256(data).digest()
            if key not in offsets:
                content.extend(b"\0" * (-len(content) % ALIGNMENT))
                offsets[key] = len(content)
                content.extend(data)
            _point_at(tensor, weights.name, offsets[key], len(data))
    write_whole(weights, bytes(content))
    for path, model in light.items():
        write_whole(path, model.SerializeToString())
        try:
            onnx.checker.check_model(path, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise JobError(f"{path.name} is no valid ONNX graph: {error}") from error


def _point_at(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Makes a tensor one that lies in a file beside its graph: `length` bytes at `offset`."""
    for field in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(field)
    tensor.raw_data = b""  # what `set_external_data` asks for
    external_data_helper.set_external_data(tensor, location=location, offset=offset, length=length)
    tensor.ClearField("raw_data")


FIRST = int(np.array(2.0**100, dtype=np.float32).view(np.uint32))
"""Bits of the first numbered weight; there are 226 million floats above it."""

ORDINARY = (2.0**-60, 2.0**60)
"""Between these lie the constants of a graph that no weight has gone into."""


@dataclass(frozen=True)
class Slot:
    """Where values of the static module go in the weights file.

    Attributes:
        name: of the graph's initializer.
        source: for each of its values, in row-major order, the place among all values of the module's parameters.
        offset: in bytes, in the weights file.
    """

    name: str
    source: NDArray[np.uint32]
    offset: int


@dataclass(frozen=True)
class GraphTemplate:
    """A graph at one budget without its weights.

    Attributes:
        tokens: how many patches it keeps.
        graph: content of the ONNX file.
        weights: name of the weights file beside it.
        slots: what is in the weights file.
    """

    tokens: int
    graph: bytes
    weights: str
    slots: tuple[Slot, ...]

    def write(self, model: Model, folder: Path) -> Path:
        """Writes the graph and the weights of a model of its geometry; returns the path of the graph, which runs as it is."""
        values = flat_weights(to_static(model, self.tokens))
        content = bytearray(self.slots[-1].offset + self.slots[-1].source.nbytes)
        for slot in self.slots:
            content[slot.offset : slot.offset + slot.source.nbytes] = values[slot.source].tobytes()
        write_whole(folder / self.weights, bytes(content))
        path = folder / f"{model.config.name}-k{self.tokens}.onnx"
        write_whole(path, self.graph)
        return path


def export_template(config: ModelConfig, tokens: int) -> GraphTemplate:
    """Exports the graph of one budget, without weights.

    Raises:
        JobError: torch cannot export it, or its exporter computes with the weights.
    """
    static = to_static(build_model(config), tokens)
    number_weights(static)
    count = len(flat_weights(static))
    graph = trace(static, config)
    weights = f"weights-k{tokens}.bin"
    slots: list[Slot] = []
    offset = 0
    for tensor in graph.graph.initializer:
        source = _source(tensor, count)
        if source is None:
            continue
        slots.append(Slot(tensor.name, source, offset))
        _point_at(tensor, weights, offset, source.nbytes)
        offset += -(-source.nbytes // ALIGNMENT) * ALIGNMENT
    _check_complete(slots, graph, config, count)
    return GraphTemplate(tokens, graph.SerializeToString(), weights, tuple(slots))


def number_weights(static: nn.Module) -> None:
    """Sets the parameters of a module to numbered weights, in place."""
    first = FIRST
    with torch.no_grad():
        for parameter in static.parameters():
            bits = np.arange(first, first + parameter.numel(), dtype=np.uint32)
            parameter.copy_(torch.from_numpy(bits.view(np.float32)).view_as(parameter))
            first += parameter.numel()


def flat_weights(static: nn.Module) -> NDArray[np.float32]:
    """Returns all values of a module's parameters, one behind the other, in the module's order."""
    return np.concatenate([value.detach().float().numpy().ravel() for value in static.parameters()])


def _source(tensor: TensorProto, count: int) -> NDArray[np.uint32] | None:
    """Returns which of `count` numbered weights stand in a tensor, in row-major order; None for a constant.

    Raises:
        JobError: the tensor mixes them with other numbers, or was computed from them.
    """
    array = numpy_helper.to_array(tensor)
    if array.dtype != np.float32 or not array.size:
        return None
    numbers: NDArray[np.uint32] = np.ascontiguousarray(array).view(np.uint32).ravel() - np.uint32(FIRST)
    numbered = numbers < count  # unsigned: what lies below FIRST wraps around to above
    if numbered.all():
        return numbers
    size = np.abs(array[array != 0])
    if numbered.any() or (size < ORDINARY[0]).any() or (size > ORDINARY[1]).any():
        raise JobError(f"torch's exporter computes with weights: {tensor.name} holds none of them as it was")
    return None


def _check_complete(slots: Sequence[Slot], graph: ModelProto, config: ModelConfig, count: int) -> None:
    """Refuses weights that stand elsewhere in the graph: a weights file would not reach a constant node."""
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t") and _source(attribute.t, count) is not None:
                raise JobError(f"the graph of {config.name} has weights inside of its node {node.name}")
    if not slots:
        raise JobError(f"the graph of {config.name} has no weights")
