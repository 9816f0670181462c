"""ptsr-edge: PTSR, from checkpoint to something that runs in a camera.

from ptsr_edge import Session
session = Session.open("bundle", budget=0.25)
prediction = session.predict(flow)      # flow: (H, W, 3) float32: u, v, strain
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptsr_edge.session import Prediction, Session

__all__ = ["Prediction", "Session", "__version__"]
__version__ = "0.1.0"

# From 1.29 on, ONNX Runtime sends events to its maker: processor, program, device id, models. It reads this variable
# when it is first imported, which nothing above does; child processes inherit it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def __getattr__(name: str) -> Any:
    """Imports `Session` and `Prediction` when they are asked for (PEP 562): numpy and pydantic take their time."""
    if name in ("Prediction", "Session"):
        return getattr(importlib.import_module("ptsr_edge.session"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
