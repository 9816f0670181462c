"""Frames of a capture device: a USB or ribbon camera that the system lists as /dev/video0, /dev/video1, ...

OpenCV reads these: its reads end after a time where a device hangs, FFmpeg's do not.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from ptsr_edge.camera.source_address import SourceAddress
from ptsr_edge.camera.sources import SourceSettings, TimedFrame
from ptsr_edge.core.errors import InputError, JobError, require

_SELECT_TIMEOUT = "OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT"
"""OpenCV's setting, in whole seconds, for how long a read from a V4L2 device may wait."""


class DeviceSource:
    """A capture device by its index. Its timestamps are the driver's; where it gives none, the time of arrival."""

    live = True

    def __init__(self, source: SourceAddress, settings: SourceSettings) -> None:
        """A device that is not opened yet."""
        self.source = source
        self.damaged = 0
        self._index = int(source.address)
        self._settings = settings

    def check(self) -> None:
        """Looks for the device.

        Raises:
            InputError: there is none of this index; the message names those that are there.
        """
        require("cv2", "camera", "reading a capture device")
        if os.uname().sysname == "Linux" and not Path(f"/dev/video{self._index}").exists():
            there = sorted(path.name.removeprefix("video") for path in Path("/dev").glob("video[0-9]*"))
            raise InputError(f"no capture device {self._index} here; found: {', '.join(there) or 'none'}")

    def frames(self, stop: threading.Event) -> Generator[TimedFrame, None, None]:
        """See `FrameSource.frames`."""
        cv2 = require("cv2", "camera", "reading a capture device")
        os.environ.setdefault(_SELECT_TIMEOUT, str(max(1, round(self._settings.stall_s))))
        device = cv2.VideoCapture(self._index)
        try:
            if not device.isOpened():
                raise JobError(f"device {self._index} cannot be opened: in use, or no permission?")
            if self._settings.size is not None:
                width, height = self._settings.size
                device.set(cv2.CAP_PROP_FRAME_WIDTH, width)
                device.set(cv2.CAP_PROP_FRAME_HEIGHT, height)
            if self._settings.fps is not None:
                device.set(cv2.CAP_PROP_FPS, self._settings.fps)
            while not stop.is_set():
                yield self._next(cv2, device)
        finally:
            device.release()

    def _next(self, cv2: Any, device: Any) -> TimedFrame:
        if not device.grab():
            raise JobError("it gives no frames any more: unplugged, or stalled")
        arrived_ns = time.monotonic_ns()
        started = time.perf_counter()
        there, image = device.retrieve()
        if not there:
            raise JobError("a frame could not be read")
        driver_ns = round(device.get(cv2.CAP_PROP_POS_MSEC) * 1_000_000)
        pts_ns = driver_ns if driver_ns > 0 else arrived_ns
        return TimedFrame(image, pts_ns, time.perf_counter() - started)
