"""What every deployment target has in common: how it is asked to build, and what it hands back.

The pipeline makes one fp32 ONNX graph a token budget; a target turns each into its own artifact in a
precision that it has, and says how the artifact can be run here, if at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.bundle import Through
from ptsr_edge.core.config import Preprocess
from ptsr_edge.runtimes.base import Runner

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class Graph:
    """An fp32 ONNX graph at one budget: opset 20, batch 1.

    Attributes:
        path: of its file, with its weights in a file beside it.
        model: the same in memory, weights inside. All builders read it: none may change it.
    """

    path: Path
    model: ModelProto


@dataclass(frozen=True)
class BuildRequest:
    """One precision of one model, at all of its budgets.

    Attributes:
        name: the model's name; artifacts are named `variant_id(name, target, precision, tokens)`.
        graphs: by token count.
        precision: one that the target has.
        folder: where the artifacts go.
        labels: of the classes, in order.
        preprocess: how the input is made.
        calibration: (n, C, S, S) float32 normalised inputs from the training side.
        options: what the target alone understands (compute capabilities, scheme, threads, ...).
    """

    name: str
    graphs: Mapping[int, Graph]
    precision: str
    folder: Path
    labels: list[str]
    preprocess: Preprocess
    calibration: NDArray[np.float32]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """What was built at one budget.

    Attributes:
        path: the file that a runtime opens, inside the request's folder.
        files: every file that belongs to it, `path` among them; files may be shared between artifacts.
        built_with: tool versions and build settings.
        runs_on: what the artifact needs (runtime, its version, device class).
        not_built: why this is less than was asked for, such as a graph in place of an engine; empty where it is not.
    """

    path: Path
    files: list[Path]
    built_with: dict[str, Any]
    runs_on: dict[str, Any]
    not_built: str = ""


class Target(Protocol):
    """A deployment target."""

    name: str
    precisions: tuple[str, ...]
    options: tuple[str, ...]
    """Keys of `BuildRequest.options` that it understands."""

    def build(self, request: BuildRequest) -> dict[int, Artifact]:
        """Artifacts by token count.

        Raises:
            MissingExtraError: the tool chain is not installed.
            JobError: the tool chain refuses a graph, or built another precision than was asked for.
        """
        ...

    def runner(self, artifact: Artifact, threads: int | None) -> Runner | None:
        """The artifact, loaded; None where it cannot run on this machine."""
        ...


@runtime_checkable
class GraphTarget(Protocol):
    """A target whose artifacts may not run here, while the graphs that they were built from can be computed."""

    def graph_runner(self, artifact: Artifact) -> Runner:
        """The graph that an artifact was built from, computed on the CPU."""
        ...


def variant_id(model: str, target: str, precision: str, tokens: int) -> str:
    """The name of a variant, unique within a bundle and telling outside of it."""
    return f"{model}-{target}-{precision}-k{tokens}"


THROUGH_ARTIFACT = "artifact"

THROUGH_GRAPH = "typed graph computed on the CPU"
"""What a result was measured through, in the words of the records: an engine that cannot run here is stood for
by the graph that it was built from."""


def open_built(target: Target, artifact: Artifact) -> tuple[Runner | None, Through]:
    """Loads an artifact, or the graph that it was built from where the artifact cannot run here.

    Returns:
        What runs, None where neither does; and which of the two it is.
    """
    runner = target.runner(artifact, threads=1)
    if runner is None and isinstance(target, GraphTarget):
        return target.graph_runner(artifact), "graph"
    return runner, "artifact"
