"""What every source of frames has in common, and the one that most are: a container or stream that FFmpeg reads.

PyAV is used because a frame's presentation timestamp comes with it, in the stream's own time base. OpenCV's reader
gives milliseconds whose first two are both 0, and counts frames where the rate varies.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.camera.source_address import SourceAddress
from ptsr_edge.core.errors import InputError, JobError, require

if TYPE_CHECKING:
    import av

STALL_S = 5.0
"""By default, how long a source may send nothing until it counts as stalled; also how long an opening may take."""


class SourceRefusedError(JobError):
    """A source has answered, and the answer is no: trying again changes nothing."""


@dataclass(frozen=True)
class TimedFrame:
    """A frame and when it was taken.

    Attributes:
        image: (H, W, 3) uint8, BGR.
        pts_ns: presentation timestamp in the source's own clock, in nanoseconds.
        decode_s: how long decoding and conversion took, without waiting for data.
    """

    image: NDArray[np.uint8]
    pts_ns: int
    decode_s: float


class FrameSource(Protocol):
    """Frames of one file, stream, device or pipe.

    Attributes:
        live: whether it can be opened again after it broke off, and goes on in real time.
        damaged: how many packets or frames could not be used so far.
    """

    live: bool
    damaged: int

    def check(self) -> None:
        """Makes sure, where it can be told beforehand, that frames can be read; starts nothing.

        Raises:
            InputError: they cannot.
        """

    def frames(self, stop: threading.Event) -> Generator[TimedFrame, None, None]:
        """Opens the source, yields its frames, and closes it: at its end, on `stop`, or with the generator.

        Raises:
            SourceRefusedError: it cannot be opened, now or later.
            JobError: it cannot be opened now, broke off, or sent nothing usable for too long.
        """


@dataclass(frozen=True)
class SourceSettings:
    """How sources are read.

    Attributes:
        stall_s: how long nothing may come.
        rtsp_transport: "tcp", or "udp" where packets may be lost.
        size: (width, height) of raw frames on standard input; None where a container comes there.
        fps: frames a second of raw frames, and of video that has no timestamps.
        pixels: "bgr24" or "gray", of raw frames.
    """

    stall_s: float = STALL_S
    rtsp_transport: str = "tcp"
    size: tuple[int, int] | None = None
    fps: float | None = None
    pixels: str = "bgr24"


def require_av() -> Any:
    """Imports PyAV, after OpenCV: the other way round, OpenCV's windows hang (both bring a libxcb of their own).

    Raises:
        MissingExtraError: PyAV is not installed.
    """
    with contextlib.suppress(ImportError):
        import cv2  # noqa: F401
    return require("av", "camera", "reading video")


class VideoSource:
    """A video file, a network stream, or a container on standard input, through FFmpeg.

    A frame that says to be shown turned, as phones write it, comes turned. A packet that cannot be decoded and a
    frame that FFmpeg marks as corrupt are left out and counted in `damaged`; where nothing else comes for `stall_s`
    seconds, the source has failed.
    """

    def __init__(self, source: SourceAddress, settings: SourceSettings, pipe: Any = None) -> None:
        """A source that is not opened yet.

        Args:
            source: what is read.
            settings: how.
            pipe: for standard input, an object whose `read(n)` gives bytes.
        """
        self.source = source
        self.live = source.kind == "network"
        self.damaged = 0
        self._settings = settings
        self._pipe = pipe

    def check(self) -> None:
        """Opens a file once; a stream or a pipe is opened only to be read.

        Raises:
            InputError: the file is no video.
        """
        av = require_av()
        if self.source.kind != "file":
            return
        try:
            with av.open(self.source.address) as container:
                if not container.streams.video:
                    raise InputError(f"{self.source.shown} holds no video")
        except av.FFmpegError as error:
            raise InputError(
                f"{self.source.shown} is no video that FFmpeg can read ({error.strerror})"
            ) from error

    def frames(self, stop: threading.Event) -> Generator[TimedFrame, None, None]:
        """See `FrameSource.frames`."""
        av = require_av()
        opening = time.monotonic()
        try:
            with self._opened(av) as container:
                opening = math.inf
                yield from self._decoded(av, container, stop)
        except (av.error.ExitError, av.error.InvalidDataError) as error:
            # An opening that ran out of time is reported as either.
            if isinstance(error, av.error.ExitError) or time.monotonic() - opening >= self._settings.stall_s:
                raise JobError(f"nothing came for {self._settings.stall_s:g} s") from error
            raise JobError(_reason(error)) from error
        except (av.error.HTTPClientError, av.error.ProtocolNotFoundError) as error:
            raise SourceRefusedError(_reason(error)) from error
        except av.FFmpegError as error:
            raise JobError(_reason(error)) from error

    def _opened(self, ffmpeg: Any) -> av.container.InputContainer:
        options = {}
        if self.source.address.lower().startswith("rtsp"):
            options["rtsp_transport"] = self._settings.rtsp_transport
        limit_s = self._settings.stall_s if self.source.kind == "network" else None
        place = self.source.address if self._pipe is None else self._pipe
        container = cast("av.container.InputContainer", ffmpeg.open(place, options=options, timeout=limit_s))
        if not container.streams.video:
            container.close()
            raise SourceRefusedError("it holds no video")
        # An address of a file on a web server has an end; a camera's has none.
        if self.source.address.lower().startswith("http"):
            self.live = container.duration is None
        return container

    def _decoded(
        self, ffmpeg: Any, container: av.container.InputContainer, stop: threading.Event
    ) -> Generator[TimedFrame, None, None]:
        stream = container.streams.video[0]
        convert = ffmpeg.video.reformatter.VideoReformatter()
        usable_at = time.monotonic()
        count = 0
        for packet in container.demux(stream):
            if stop.is_set():
                return
            started = time.perf_counter()
            self.damaged += packet.is_corrupt
            try:
                decoded = packet.decode()
            except ffmpeg.FFmpegError:
                decoded = []
                self.damaged += 1
            for frame in decoded:
                if frame.is_corrupt:
                    self.damaged += 1
                    continue
                pts_ns = self._pts_ns(frame, count)
                image = _image(convert, frame)
                yield TimedFrame(image, pts_ns, time.perf_counter() - started)
                count += 1
                usable_at, started = time.monotonic(), time.perf_counter()
            if self.live and time.monotonic() - usable_at > self._settings.stall_s:
                raise JobError(f"nothing that can be decoded came for {self._settings.stall_s:g} s")
        if count == 0:
            raise JobError("not one frame could be decoded")

    def _pts_ns(self, frame: av.VideoFrame, count: int) -> int:
        """The frame's own timestamp; the given rate only where a stream has none at all."""
        if frame.pts is not None and frame.time_base is not None:
            return round(frame.pts * frame.time_base * 1_000_000_000)
        if self._settings.fps is None:
            raise SourceRefusedError(
                "it carries no timestamps: give its rate with --fps, or put it into a container"
            )
        return round(count * 1_000_000_000 / self._settings.fps)


def _image(convert: Any, frame: av.VideoFrame) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 BGR, upright."""
    image: NDArray[np.uint8] = convert.reformat(frame, format="bgr24").to_ndarray()
    quarters = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, quarters)) if quarters else image


def _reason(error: Any) -> str:
    """What FFmpeg said, without the address: it may hold a password."""
    return str(error.strerror or type(error).__name__)
