"""From frames to events.

from ptsr_edge.camera import Pipeline
pipeline = Pipeline("bundle", budget="auto", deadline_ms=33)
"""

from ptsr_edge.camera.pipeline import Box, Event, Pipeline

__all__ = ["Box", "Event", "Pipeline"]
