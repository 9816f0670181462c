"""What every deployment target has in common: how it is asked to build, and what it hands back.

The exporter makes one fp32 ONNX graph per token budget; a target turns each into its own artifact in a
precision that it has, and says how the artifact can be run here, if at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.bundle import Through
from ptsr_edge.core.config import Preprocess, Record, parse
from ptsr_edge.core.errors import InputError
from ptsr_edge.runtimes.base import Runner, find_runtime, load_part

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class Flag:
    """How an option of a target is called on the command line: `Annotated[kind, Flag("--name", "help")]`."""

    name: str
    help: str


class TargetOptions(Record):
    """What a target understands beyond budgets and precisions; each target has a subclass of its own.

    A field is an option of `export_bundle` and of a recipe, and with a `Flag` also of the command line.

    Attributes:
        keep_float: layers that int8 leaves in floating point, named as in the graphs (`onnx_graph.name_products`).
    """

    keep_float: tuple[str, ...] = ()

    def check(self, precisions: Sequence[str]) -> None:
        """Makes sure that the options go with the precisions that are asked for.

        Raises:
            InputError: one does not; nothing was started.
        """


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
        options: fields of the target's own `TargetOptions`; see `read_options`.
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
    options: type[TargetOptions]

    def build(self, request: BuildRequest) -> dict[int, Artifact]:
        """Builds one artifact per graph; returns them by token count.

        Raises:
            MissingExtraError: the tool chain is not installed.
            JobError: the tool chain refuses a graph, or built another precision than was asked for.
        """
        ...

    def runner(self, artifact: Artifact, threads: int | None) -> Runner | None:
        """Loads an artifact; None where it cannot run on this machine."""
        ...


@runtime_checkable
class GraphTarget(Protocol):
    """A target whose artifacts may not run here, while the graphs that they were built from can be computed."""

    def graph_runner(self, artifact: Artifact) -> Runner:
        """Loads the graph that an artifact was built from, computed on the CPU."""
        ...


@dataclass(frozen=True)
class Offer:
    """What can be asked of a target."""

    name: str
    precisions: tuple[str, ...]
    options: type[TargetOptions]


def find_offer(name: str) -> Offer:
    """Returns what can be asked of a target; the builder is imported only where the registry leaves that to it.

    Raises:
        InputError: there is no target of that name.
        JobError: its code cannot be loaded.
    """
    runtime = find_runtime(name)
    if runtime.options:
        return Offer(name, runtime.precisions, load_part(name, runtime.options))
    target = find_target(name)
    return Offer(name, target.precisions, target.options)


@runtime_checkable
class ChecksTools(Protocol):
    """A target that can tell ahead of time that its tool chain is not there."""

    def check_tools(self, precisions: Sequence[str]) -> None:
        """Makes sure that what building needs is installed.

        Raises:
            MissingExtraError: it is not; nothing was started.
        """


def find_target(name: str) -> Target:
    """Imports a target's builder.

    Raises:
        InputError: there is no target of that name.
        JobError: its code cannot be loaded.
    """
    target: Target = load_part(name, find_runtime(name).builder)()
    return target


Options = TypeVar("Options", bound=TargetOptions)


def read_options(target: Target, kind: type[Options], request: BuildRequest) -> Options:
    """Returns a request's options, read as those of a target.

    Raises:
        InputError: an option or a value that the target does not know, or a precision that it lacks.
    """
    if request.precision not in target.precisions:
        have = ", ".join(target.precisions)
        raise InputError(f"target {target.name} has no precision {request.precision!r}; it has: {have}")
    return parse(kind, dict(request.options), f"options of target {target.name}")


def variant_id(model: str, target: str, precision: str, tokens: int) -> str:
    """The name of a variant, unique within a bundle and telling outside of it."""
    return f"{model}-{target}-{precision}-k{tokens}"


THROUGH_ARTIFACT = "artifact"

THROUGH_GRAPH = "typed graph computed on the CPU"
"""Through what a result was measured, in the words of the records: an engine that cannot run here is stood for
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
