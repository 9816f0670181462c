"""ptsr-edge: PTSR, from checkpoint to something that runs in a camera.

from ptsr_edge import Session
session = Session.open("bundle", budget=0.25)
prediction = session.predict(flow)      # flow: (H, W, 3) float32: u, v, strain
"""

from ptsr_edge.runtime import Prediction, Session

__all__ = ["Prediction", "Session", "__version__"]
__version__ = "0.1.0"
