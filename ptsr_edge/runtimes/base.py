"""The registry of targets: what builds and what runs the artifacts of each, and the interface of all runners.

A target is built in (`RUNTIMES`), or another package brings it: that package names a `Runtime` in its entry points,
group `ptsr_edge.targets`, under the target's name. Such a package is imported when its target is asked for, not before.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.errors import InputError, JobError

GROUP = "ptsr_edge.targets"
"""The group of entry points by which other packages bring targets."""


Value = bool | int | str
"""Of a runtime's parameter, as JSON holds it."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a runtime that may cost or save time and does not change what is calculated.

    Attributes:
        name: as the runtime calls it.
        values: worth trying beside the one that an artifact is opened with where nothing is said.
        needs: what a machine or a session has to have for it to matter.
    """

    name: str
    values: tuple[Value, ...]
    needs: Literal["", "several threads", "cores of two kinds"] = ""


class Runner(Protocol):
    """A loaded artifact."""

    def run(self, flow: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """Normalised flow (1, C, S, S) -> logits (k,) and kept patches (K,), None where all are kept."""
        ...


class RunnerClass(Protocol):
    """The class of a target's runners.

    One whose runtime can let several artifacts compute on one copy of their weights also has a class method
    `open_sharing(artifacts, threads)`, which loads artifacts of one precision at once and returns their runners.

    One that can be tuned also has `parameters`, a sequence of `Parameter`; takes `settings`, values by the names of these;
    and has a static method `version()`, which returns name and version of the runtime that runs here.
    """

    def __call__(self, artifact: Path, threads: int | None, **more: Any) -> Runner:
        """Loads an artifact.

        Args:
            artifact: the file that the builder named, its other files beside it.
            threads: of one operator; None leaves it to the runtime.
            more: `settings`, for one that can be tuned; and for a `Runtime` that `keeps_compiled` `digest`, of the artifact's
                files as they were checked: what a runtime makes of them may be kept under it for the next start.

        Raises:
            MissingExtraError: the runtime is not installed.
            JobError: the runtime refuses the artifact.
        """
        ...

    def why_not_here(self, artifact: Path, runs_on: Mapping[str, Any]) -> str:
        """Returns what keeps an artifact from running on this machine and what mends it, empty where nothing does.

        A static method. `runs_on` is what the bundle says that the artifact needs.
        """
        ...


@dataclass(frozen=True)
class Runtime:
    """A target, and what builds and runs its artifacts.

    Attributes:
        runner: `module:class` of its runners (`RunnerClass`), imported when an artifact is opened.
        builder: `module:class` of its builder (`export.targets.base.Target`), imported by an export only.
        packages: modules that it runs with, as they are imported; one of them is enough.
        precisions: that can be asked for; empty: the builder says it.
        options: `module:class` of its own options (`export.targets.base.TargetOptions`), in a module that loads no
            tool chain; empty: the builder says it.
        extra: the extra of ptsr-edge that installs `packages`; empty for a target of another package.
        build_extra: the extra that installs what building needs; by default `train`.
        facts: a Python expression over `module`, one of the packages: a list of texts that `doctor` shows.
        comes_with_system: what to say where the registry has no package for a machine and the system brings one, so
            that the extra is not needed; empty: the packages come from the registry only.
        hindrances: `module:function` that judges this machine beyond what is installed: names of the packages that
            work and GPUs as of `build_on_device.cuda_devices` -> why nothing can be built and why nothing can be run,
            each empty where nothing is in the way. Empty: every machine will do.
        is_threaded: artifacts run on processor threads, whose number can be set.
        needs_gpu: artifacts run on a GPU, and may be built where they cannot run.
        keeps_compiled: its runners take `digest`.
        marker: its mark in charts, in matplotlib's letters.
    """

    runner: str
    builder: str
    packages: tuple[str, ...]
    precisions: tuple[str, ...] = ()
    options: str = ""
    extra: str = ""
    build_extra: str = "train"
    facts: str = "[]"
    comes_with_system: str = ""
    hindrances: str = ""
    is_threaded: bool = True
    needs_gpu: bool = False
    keeps_compiled: bool = False
    marker: str = "o"


RUNTIMES: dict[str, Runtime] = {
    "cpu": Runtime(
        runner="ptsr_edge.runtimes.onnxruntime:OrtRunner",
        builder="ptsr_edge.export.targets.onnxruntime:CpuTarget",
        packages=("onnxruntime",),
        precisions=("fp32", "int8"),
        options="ptsr_edge.export.config:CpuOptions",
        extra="ort",
        facts="module.get_available_providers()",
        marker="o",
    ),
    "openvino": Runtime(
        runner="ptsr_edge.runtimes.openvino:OpenVinoRunner",
        builder="ptsr_edge.export.targets.openvino:OpenVinoTarget",
        packages=("openvino",),
        precisions=("fp32", "fp16", "bf16", "int8"),
        options="ptsr_edge.export.config:OpenVinoOptions",
        extra="openvino",
        build_extra="openvino-build",
        facts="module.Core().available_devices",
        keeps_compiled=True,
        marker="s",
    ),
    "trt": Runtime(
        runner="ptsr_edge.runtimes.tensorrt:TrtRunner",
        builder="ptsr_edge.export.targets.tensorrt:TrtTarget",
        packages=("tensorrt", "tensorrt_rtx"),
        precisions=("fp32", "fp16", "int8"),
        options="ptsr_edge.export.config:TrtOptions",
        extra="trt-rtx",
        comes_with_system="TensorRT comes with the system here (JetPack), not from the registry",
        hindrances="ptsr_edge.runtimes.tensorrt:hindrances",
        is_threaded=False,
        needs_gpu=True,
        marker="^",
    ),
}
"""The built-in targets by name. Of a bundle with several, the last of these that can run here is taken."""


def target_names() -> list[str]:
    """Names of all targets: the built-in ones, then those of other packages, none of which is imported."""
    return list(dict.fromkeys([*RUNTIMES, *sorted(entry_points(group=GROUP).names)]))


def find_runtime(name: str) -> Runtime:
    """Returns a target by its name; a built-in one wins over another of the same name.

    Raises:
        InputError: there is none of that name.
        JobError: the package that brings it is broken.
    """
    if name in RUNTIMES:
        return RUNTIMES[name]
    for point in entry_points(group=GROUP, name=name):
        runtime = load_part(name, point.value)
        if not isinstance(runtime, Runtime):
            raise JobError(f"target {name!r} is broken: {point.value} is no ptsr_edge.runtimes.base.Runtime")
        return runtime
    raise InputError(f"unknown target {name!r}; accepted: {', '.join(target_names())}")


def load_part(name: str, place: str) -> Any:
    """Imports one part of a target.

    Args:
        name: of the target.
        place: `module:attribute`, as in a `Runtime`.

    Raises:
        JobError: it is not there or its import fails, whatever the reason.
    """
    module, _, attribute = place.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:
        fault = " ".join(f"{type(error).__name__}: {error}".split())
        raise JobError(f"target {name!r} is broken: {place} cannot be loaded ({fault})") from error


def find_runner(name: str) -> RunnerClass:
    """Imports the class that runs a target's artifacts.

    Raises:
        InputError: there is no such target.
        JobError: its code cannot be loaded.
    """
    runner: RunnerClass = load_part(name, find_runtime(name).runner)
    return runner


def find_parameters(name: str) -> Sequence[Parameter]:
    """Returns what can be tuned of a target's runtime; empty where its runner says nothing.

    Raises:
        InputError: there is no such target.
        JobError: its code cannot be loaded.
    """
    declared: Sequence[Parameter] = getattr(find_runner(name), "parameters", ())
    return declared
