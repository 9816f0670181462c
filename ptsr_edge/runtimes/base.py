"""The runtimes: one small interface over all of them, and the registry of what runs the artifacts of each target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Runner(Protocol):
    """A loaded artifact."""

    def run(self, flow: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """Normalised flow (1, C, S, S) -> logits (k,) and kept patches (K,), None where all are kept."""
        ...


@dataclass(frozen=True)
class Runtime:
    """What builds and runs the artifacts of one target.

    Attributes:
        runner: module and class of its `Runner`, imported when an artifact is opened.
        builder: module and class of its builder, imported by an export only.
        packages: modules that it runs with, any of which will do.
        extra: of ptsr-edge, that installs them.
        is_threaded: it runs on processor threads, whose number can be set.
        needs_gpu: it runs on a GPU; artifacts are built in advance and may not run where they were built.
        marker: its mark in charts, in matplotlib's letters.
    """

    runner: str
    builder: str
    packages: tuple[str, ...]
    extra: str
    is_threaded: bool = True
    needs_gpu: bool = False
    marker: str = "o"


RUNTIMES: dict[str, Runtime] = {
    "cpu": Runtime(
        runner="ptsr_edge.runtimes.onnxruntime:OrtRunner",
        builder="ptsr_edge.export.targets.onnxruntime:CpuTarget",
        packages=("onnxruntime",),
        extra="ort",
        marker="o",
    ),
    "openvino": Runtime(
        runner="ptsr_edge.runtimes.openvino:OpenVinoRunner",
        builder="ptsr_edge.export.targets.openvino:OpenVinoTarget",
        packages=("openvino",),
        extra="openvino",
        marker="s",
    ),
    "trt": Runtime(
        runner="ptsr_edge.runtimes.tensorrt:TrtRunner",
        builder="ptsr_edge.export.targets.tensorrt:TrtTarget",
        packages=("tensorrt", "tensorrt_rtx"),
        extra="trt",
        is_threaded=False,
        needs_gpu=True,
        marker="^",
    ),
}
"""Every target by its name: the one place where one is added. Where a bundle has several, the last that can run here is
taken, unless one is asked for."""
