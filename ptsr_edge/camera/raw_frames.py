"""Frames without a container, on standard input: `ffmpeg -f rawvideo -pix_fmt bgr24 - | ptsr-edge camera --source -`.

Such a stream has no timestamps of its own: its rate is given with it. Where it is not constant, a container that
holds timestamps goes through the same pipe: `ffmpeg ... -c:v rawvideo -f nut -`.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Generator
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.camera.sources import SourceSettings, TimedFrame
from ptsr_edge.core.errors import InputError, JobError

BYTES_PER_PIXEL = {"bgr24": 3, "gray": 1}
"""Pixel formats of raw frames, by their names in FFmpeg."""

MAX_SIDE = 16384

_LOOK_S = 0.1
"""How often a read that waits looks whether it should stop."""

log = logging.getLogger(__name__)


class InputPipe:
    """Bytes from a file descriptor, in reads that end when they are told to, or when nothing comes for too long."""

    def __init__(self, descriptor: int, stop: threading.Event, stall_s: float) -> None:
        """A descriptor that stays its owner's: it is not closed here."""
        self._descriptor = descriptor
        self._stop = stop
        self._stall_s = stall_s
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end or after `stop`.

        Raises:
            JobError: nothing came for `stall_s` seconds.
        """
        return os.read(self._descriptor, size) if self._wait() else b""

    def fill(self, buffer: memoryview) -> int:
        """Fills a buffer; returns how many bytes it holds, fewer than its length only at the end or after `stop`.

        Raises:
            JobError: nothing came for `stall_s` seconds.
        """
        filled = 0
        while filled < len(buffer) and self._wait():
            got = os.readv(self._descriptor, [buffer[filled:]])
            if got == 0:
                break
            filled += got
        return filled

    def _wait(self) -> bool:
        """Whether there is something to read, or the end; False after `stop`."""
        waiting_since = time.monotonic()
        while not self._stop.is_set():
            if self._poll.poll(_LOOK_S * 1000):
                return True
            if time.monotonic() - waiting_since > self._stall_s:
                raise JobError(f"nothing came for {self._stall_s:g} s")
        return False


class RawSource:
    """Raw frames of one size from a file descriptor, at a constant rate.

    What is left over at the end is no frame: it is told and counted in `damaged`.
    """

    live = False

    def __init__(self, descriptor: int, settings: SourceSettings) -> None:
        """A pipe that nothing has been read from yet.

        Raises:
            InputError: size, rate or pixel format is missing or out of range.
        """
        self.damaged = 0
        self._descriptor = descriptor
        self._stall_s = settings.stall_s
        self._size, self._fps = check_raw(settings)
        self._pixels = settings.pixels

    def check(self) -> None:
        """Nothing can be told before the first frame."""

    def frames(self, stop: threading.Event) -> Generator[TimedFrame, None, None]:
        """See `FrameSource.frames`; the n-th frame is at n / fps seconds."""
        pipe = InputPipe(self._descriptor, stop, self._stall_s)
        width, height = self._size
        shape = (height, width, BYTES_PER_PIXEL[self._pixels])
        period_ns = 1_000_000_000 / Fraction(self._fps).limit_denominator(1001)
        count = 0
        while True:
            image = np.empty(shape, np.uint8)
            filled = pipe.fill(image.data.cast("B"))
            if stop.is_set():
                return
            if filled < image.nbytes:
                break
            started = time.perf_counter()
            frame = _as_bgr(image)
            yield TimedFrame(frame, round(count * period_ns), time.perf_counter() - started)
            count += 1
        if filled:
            self.damaged += 1
            left = (
                f"{filled} bytes are left over, a frame of {width}x{height} {self._pixels} has {image.nbytes}"
            )
            if count == 0:
                raise JobError(f"not one whole frame came: {left}")
            log.warning("standard input: %s: left out; are --size and --pixels those of the input?", left)
        elif count == 0:
            raise JobError("standard input ended before the first frame")


def check_raw(settings: SourceSettings) -> tuple[tuple[int, int], float]:
    """Size and rate of raw frames.

    Raises:
        InputError: one is missing or out of range, or the pixel format is none of `BYTES_PER_PIXEL`.
    """
    if settings.pixels not in BYTES_PER_PIXEL:
        known = ", ".join(BYTES_PER_PIXEL)
        raise InputError(f"raw frames have pixels {known}; found {settings.pixels!r}")
    if settings.size is None or settings.fps is None:
        raise InputError("raw frames need their size and rate: --size 640x360 --fps 30")
    if not all(1 <= side <= MAX_SIDE for side in settings.size):
        raise InputError(f"the size of raw frames must be 1 to {MAX_SIDE} a side; found {settings.size}")
    if not 0 < settings.fps <= 1000:
        raise InputError(f"the rate must be above 0 and at most 1000 frames a second; found {settings.fps:g}")
    return settings.size, settings.fps


def _as_bgr(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return image if image.shape[2] == 3 else np.repeat(image, 3, axis=2)
