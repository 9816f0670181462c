"""ptsr-edge: PTSR, from checkpoint to something that runs in a camera.

from ptsr_edge import Session
session = Session.open("bundle", budget=0.25)
prediction = session.predict(flow)      # flow: (H, W, 3) float32: u, v, strain
"""

import os

from ptsr_edge.session import Prediction, Session

__all__ = ["Prediction", "Session", "__version__"]
__version__ = "0.1.0"

# From 1.29 on, ONNX Runtime sends events to its maker: processor, program, device id, models. It reads this variable
# when it is first imported, which nothing above does; child processes inherit it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
