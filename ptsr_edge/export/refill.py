"""A static graph that is exported once, and whose weights file is written anew for each model of its geometry.

The rewrites change weights (norms and temperatures are folded in), and torch's exporter moves them: it transposes
products' weights, merges equal tensors, renames. So the graph is traced with *numbered* weights: every value of every
parameter of the static module is a different float, whose bits say which value it is. What stands in the traced graph
then tells where each of its numbers comes from, whatever was moved; for another model the rewrites are done in torch
and the values are put in their places. Numbered weights lie above 2^100, so that anything computed from them would
show: it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from torch import nn

from ptsr_edge.core.config import ModelConfig
from ptsr_edge.core.errors import JobError
from ptsr_edge.core.files import write_whole
from ptsr_edge.export.onnx_graph import ALIGNMENT, point_at, trace
from ptsr_edge.export.static_model import to_static
from ptsr_edge.models.ptsr import Model, build_model

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
class Template:
    """A graph at one budget without its weights.

    Attributes:
        tokens: how many patches it keeps.
        graph: the ONNX file, whose weights lie in a file of `weights` name beside it.
        weights: that name.
        slots: what is in it.
    """

    tokens: int
    graph: bytes
    weights: str
    slots: tuple[Slot, ...]

    def write(self, model: Model, folder: Path) -> Path:
        """Writes the graph and a model's weights into a folder; the path of the graph, which runs as it is.

        Args:
            model: of the geometry that the template was made for.
            folder: to write into.
        """
        values = flat_weights(to_static(model, self.tokens))
        content = bytearray(self.slots[-1].offset + self.slots[-1].source.nbytes)
        for slot in self.slots:
            content[slot.offset : slot.offset + slot.source.nbytes] = values[slot.source].tobytes()
        write_whole(folder / self.weights, bytes(content))
        path = folder / f"{model.config.name}-k{self.tokens}.onnx"
        write_whole(path, self.graph)
        return path


def export_templates(config: ModelConfig, tokens: Sequence[int]) -> list[Template]:
    """Exports the graph of each budget once, without weights.

    Raises:
        JobError: torch cannot export it, or its exporter computes with the weights.
    """
    return [export_template(config, count) for count in tokens]


def export_template(config: ModelConfig, tokens: int) -> Template:
    """The graph of one budget; see `export_templates`."""
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
        point_at(tensor, weights, offset, source.nbytes)
        offset += -(-source.nbytes // ALIGNMENT) * ALIGNMENT
    _check_complete(slots, graph, config, count)
    return Template(tokens, graph.SerializeToString(), weights, tuple(slots))


def number_weights(static: nn.Module) -> None:
    """Sets the parameters of a module to numbered weights, in place."""
    first = FIRST
    with torch.no_grad():
        for parameter in static.parameters():
            bits = np.arange(first, first + parameter.numel(), dtype=np.uint32)
            parameter.copy_(torch.from_numpy(bits.view(np.float32)).view_as(parameter))
            first += parameter.numel()


def flat_weights(static: nn.Module) -> NDArray[np.float32]:
    """All values of a module's parameters, one behind the other, in the module's order."""
    return np.concatenate([value.detach().float().numpy().ravel() for value in static.parameters()])


def _source(tensor: TensorProto, count: int) -> NDArray[np.uint32] | None:
    """Which of `count` numbered weights stand in a tensor; None for a constant."""
    array = onnx.numpy_helper.to_array(tensor)
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
    """Weights must stand nowhere else in the graph: a weights file would not reach a constant node."""
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t") and _source(attribute.t, count) is not None:
                raise JobError(f"the graph of {config.name} has weights inside of its node {node.name}")
    if not slots:
        raise JobError(f"the graph of {config.name} has no weights")
