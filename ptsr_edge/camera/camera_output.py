"""What becomes of frames and events in the command: a line of JSON an event, a recording, a window."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ptsr_edge.camera.camera_event import Event
from ptsr_edge.camera.output import Recorder, Windows
from ptsr_edge.camera.overlay import SHOWN_S, Overlay
from ptsr_edge.camera.pipeline import Pipeline
from ptsr_edge.camera.sources import TimedFrame

log = logging.getLogger(__name__)


class CameraOutput:
    """Called with what each frame gave, from one thread a stream: see `streams.Output`."""

    def __init__(
        self, pipeline: Pipeline, recorders: Mapping[str, Recorder], windows: Windows | None
    ) -> None:
        """Recorders by stream; where there are none and no window, no frame is drawn on or kept."""
        self._pipeline = pipeline
        self._recorders = recorders
        self._windows = windows
        self._overlays: dict[str, Overlay] = {}
        self._latest: dict[str, TimedFrame] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def __call__(self, name: str, frame: TimedFrame | None, events: Sequence[Event]) -> None:
        """Prints events at once; records and shows the frame, if there is one."""
        self._print(events)
        if name not in self._recorders and self._windows is None:
            return
        if frame is not None:
            self._latest[name] = frame
            self._draw(name, frame, events)
        elif events and name in self._latest:
            latest = self._latest[name]
            for later_ns in (1, round(SHOWN_S * 1e9)):  # what came with the end stays to be seen for a moment
                self._draw(name, replace(latest, pts_ns=latest.pts_ns + later_ns), events)
                events = ()

    def _draw(self, name: str, frame: TimedFrame, events: Sequence[Event]) -> None:
        overlay = self._overlays.setdefault(name, Overlay(self._pipeline.preprocess))
        image = overlay.draw(frame.image, frame.pts_ns, self._pipeline.view(name), events)
        if name in self._recorders:
            self._recorders[name].add(image, frame.pts_ns)
        if self._windows is not None:
            self._windows.hand_in(name, image)

    def tick(self, stop: threading.Event) -> None:
        """Draws the windows; sets `stop` where somebody closed them, or where nobody reads the events any more."""
        if self._closed.is_set() or (self._windows is not None and not self._windows.update()):
            stop.set()

    def _print(self, events: Sequence[Event]) -> None:
        with self._lock:
            try:
                for event in events:
                    sys.stdout.write(event.to_json() + "\n")
                    sys.stdout.flush()
            except BrokenPipeError:
                log.warning("standard output was closed: stopping")
                # What is left in the buffer would raise again when Python ends.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                self._closed.set()
