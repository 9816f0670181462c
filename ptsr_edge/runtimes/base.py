"""Runners: one small interface over every runtime, and what runs each target."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Runner(Protocol):
    """A loaded artifact."""

    def run(self, flow: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """Normalised flow (1, C, S, S) -> logits (k,) and kept patches (K,), None where all are kept."""
        ...


RUNTIMES = {"cpu": ("onnxruntime",), "openvino": ("openvino",), "trt": ("tensorrt", "tensorrt_rtx")}
"""Packages that run a target; what is installed of them is imported before the loading is timed."""
