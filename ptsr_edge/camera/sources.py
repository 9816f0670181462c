"""Sources of frames: video files and network streams, capture devices, and raw frames on standard input.

Files and streams are read by PyAV, because a frame's presentation timestamp comes with it, in the stream's own time
base. OpenCV's reader gives milliseconds whose first two are both 0, and counts frames where the rate varies.

Raw frames carry no timestamps: their rate is given with them. Where it is not constant, a container with timestamps
goes through the same pipe: `ffmpeg ... -c:v rawvideo -f nut - | ptsr-edge camera --source -`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import select
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.errors import InputError, JobError, require
from ptsr_edge.core.files import ALONE

if TYPE_CHECKING:
    import av

log = logging.getLogger(__name__)

Kind = Literal["file", "network", "device", "stdin"]

NETWORK_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "srt", "udp", "rtp", "http", "https")
"""Schemes of addresses that are opened; FFmpeg would also take some that read local files or run filters."""

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*)=(.+)", re.DOTALL)

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True)
class SourceAddress:
    """One source: its name, its kind and its address.

    Attributes:
        name: tells it apart from the others.
        kind: tells which class reads it.
        address: the path, address or index; `-` for standard input. May hold a password.
    """

    name: str
    kind: Kind
    address: str

    @property
    def shown(self) -> str:
        """The address for logs and errors: of a stream scheme and host alone, as cameras take passwords in paths too."""
        if self.kind != "network":
            return "standard input" if self.kind == "stdin" else self.address
        parts = urlsplit(self.address)
        host = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{host}" + ("/..." if parts.path.strip("/") else "")


def parse_sources(texts: Sequence[str]) -> list[SourceAddress]:
    """Reads all sources of a call.

    Raises:
        InputError: there is none, two are called alike, standard input is named twice, or one cannot be read.
    """
    if not texts:
        raise InputError(
            "no source: give a video file, an address such as rtsp://..., a device index or - for stdin"
        )
    sources = [parse_source(text) for text in texts]
    for what, values in (("name", [s.name for s in sources]), ("source", [s.address for s in sources])):
        again = [value for value, times in Counter(values).items() if times > 1]
        if again and (what == "name" or again == ["-"]):
            raise InputError(f"the {what} {again[0]!r} is given twice: write NAME=SOURCE, each NAME once")
    return sources


def parse_source(text: str) -> SourceAddress:
    """Reads `NAME=SOURCE` or `SOURCE`; a path that holds `=` is written with a folder, as `./a=b.mp4`.

    Raises:
        InputError: it is empty, a scheme that is not opened, or a file that is not there or may not be read.
    """
    named = _NAMED.fullmatch(text)
    name, address = named.groups() if named else ("", text)
    if not address.strip():
        raise InputError(f"the source {text!r} is empty")
    if address == "-":
        return SourceAddress(name or "stdin", "stdin", address)
    if re.fullmatch(r"\d{1,3}", address):
        return SourceAddress(name or f"camera{address}", "device", address)
    if scheme := _SCHEME.match(address):
        return _network(name, scheme[1].lower(), address)
    return _file(name, address)


def _network(name: str, scheme: str, address: str) -> SourceAddress:
    if scheme not in NETWORK_SCHEMES:
        raise InputError(
            f"sources of scheme {scheme!r} are not opened; accepted: {', '.join(NETWORK_SCHEMES)}, or a path"
        )
    try:
        parts = urlsplit(address)
        host = parts.hostname
        _ = parts.port  # raises where it is no number
        if "@" in f"{parts.path}{parts.query}{parts.fragment}":
            raise ValueError("what stands before it is no host")
    except ValueError:
        # Python's own words would show what it took for a port: a part of the password.
        raise InputError(
            f"the address {scheme}://... cannot be read; in its user, password and path write # as %23, / as %2F, "
            "? as %3F, : as %3A and @ as %40"
        ) from None
    if not host:
        raise InputError(f"the address {scheme}://... names no host")
    return SourceAddress(name or host, "network", address)


def _file(name: str, address: str) -> SourceAddress:
    path = Path(address)
    if not path.exists():
        # An address whose scheme is missing or misspelt: what stands before its host may be a password.
        shown = "..." + address[address.rfind("@") :] if "@" in address else address
        raise InputError(
            f"no source {shown!r}: there is no such file, and it is no address (rtsp://...), device index or -"
        )
    if path.is_char_device() and re.fullmatch(r"video\d+", path.name):
        return SourceAddress(name or path.name, "device", path.name.removeprefix("video"))
    if path.is_dir():
        raise InputError(f"the source {address} is a folder; give a video file")
    if not path.is_file():  # opening a pipe would wait for its writer, for ever
        raise InputError(f"the source {address} is no file; a pipe is read by --source - < {address}")
    try:
        path.open("rb").close()
    except OSError as error:
        raise InputError(f"the source {address} cannot be read: {error.strerror}") from error
    return SourceAddress(name or path.stem, "file", address)


MOST_PIXELS = 8192 * 8192
"""Of a frame: a small file can hold frames that no machine has room for."""

STALL_S = 5.0
"""Default of the time that a source may send nothing before it counts as stalled, and that an opening may take."""


class SourceRefusedError(JobError):
    """A source has answered no: trying again changes nothing."""


@dataclass(frozen=True)
class TimedFrame:
    """A frame and its time.

    Attributes:
        image: (H, W, 3) uint8, BGR.
        pts_ns: presentation timestamp in the source's own clock, in nanoseconds.
        decode_s: time of decoding and conversion, without waiting for data.
    """

    image: NDArray[np.uint8]
    pts_ns: int
    decode_s: float


class FrameSource(Protocol):
    """Frames of one file, stream, device or pipe.

    Attributes:
        live: it goes on in real time, and can be opened again after it broke off.
        damaged: packets or frames that could not be used so far.
    """

    live: bool
    damaged: int

    def check(self) -> None:
        """Makes sure that frames can be read, as far as it can be told beforehand; starts nothing.

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
    """Options of reading, for all sources.

    Attributes:
        stall_s: longest time without data.
        rtsp_transport: "tcp", or "udp" where packets may be lost.
        size: (width, height) of raw frames on standard input; None where a container comes there.
        fps: rate of raw frames, and of video without timestamps, in frames per second.
        pixels: "bgr24" or "gray", of raw frames.
    """

    stall_s: float = STALL_S
    rtsp_transport: str = "tcp"
    size: tuple[int, int] | None = None
    fps: float | None = None
    pixels: str = "bgr24"


def require_av() -> Any:
    """Imports PyAV, after OpenCV: in the other order, OpenCV's windows hang (both bring a libxcb of their own).

    Raises:
        MissingExtraError: PyAV is not installed.
    """
    with contextlib.suppress(ImportError):
        import cv2  # noqa: F401
    return require("av", "camera", "reading video")


class VideoSource:
    """A video file, a network stream, or a container on standard input, through FFmpeg.

    A frame whose metadata asks for a turn, as phones write it, comes turned. A packet that cannot be decoded and a
    frame that FFmpeg marks as corrupt are left out and counted in `damaged`; where nothing else comes for `stall_s`
    seconds, the source has failed.
    """

    def __init__(self, source: SourceAddress, settings: SourceSettings, pipe: Any = None) -> None:
        """Prepares a source; `pipe` is, for standard input, an object whose `read(n)` gives bytes."""
        self.source = source
        self.live = source.kind == "network"
        self.damaged = 0
        self._settings = settings
        self._pipe = pipe

    def check(self) -> None:
        """Opens a file once; a stream or a pipe can only be read.

        Raises:
            InputError: the file is no video.
        """
        av = require_av()
        if self.source.kind != "file":
            return
        try:
            with self._opened(av):
                pass
        except SourceRefusedError as error:
            raise InputError(f"{self.source.shown} holds no video") from error
        except (av.FFmpegError, OSError) as error:
            raise InputError(
                f"{self.source.shown} is no video that FFmpeg can read ({error.strerror})"
            ) from error
        except UnicodeDecodeError as error:
            raise InputError(f"{self.source.shown} has a title or another text that is no UTF-8") from error

    def frames(self, stop: threading.Event) -> Generator[TimedFrame, None, None]:
        """See `FrameSource.frames`."""
        av = require_av()
        opening = time.monotonic()
        try:
            with self._opened(av) as container:
                opening = math.inf
                yield from self._decoded(av, container, stop)
        except (av.error.ExitError, av.error.InvalidDataError) as error:
            # FFmpeg reports an opening that ran out of time as either.
            if isinstance(error, av.error.ExitError) or time.monotonic() - opening >= self._settings.stall_s:
                raise JobError(f"nothing came for {self._settings.stall_s:g} s") from error
            raise JobError(_reason(error)) from error
        except (av.error.HTTPClientError, av.error.ProtocolNotFoundError) as error:
            raise SourceRefusedError(_reason(error)) from error
        except UnicodeDecodeError as error:
            raise SourceRefusedError("it has a title or another text that is no UTF-8") from error
        except (av.FFmpegError, OSError) as error:
            raise JobError(_reason(error)) from error

    @contextlib.contextmanager
    def _opened(self, ffmpeg: Any) -> Iterator[av.container.InputContainer]:
        address = self.source.address
        with contextlib.ExitStack() as stack:
            place: Any
            if self.source.kind == "network":
                place, limit_s = address, self._settings.stall_s
                transport = self._settings.rtsp_transport
                options = {"rtsp_transport": transport} if address.lower().startswith("rtsp") else {}
            else:
                place, limit_s, options = self._pipe, None, ALONE
                if self.source.kind == "file":
                    place = stack.enter_context(Path(address).open("rb"))
            container: av.container.InputContainer = stack.enter_context(
                ffmpeg.open(place, options=options, timeout=limit_s)
            )
            if not container.streams.video:
                raise SourceRefusedError("it holds no video")
            # An address of a file on a web server has an end; a camera's has none.
            if address.lower().startswith("http"):
                self.live = container.duration is None
            yield container

    def _decoded(
        self, ffmpeg: Any, container: av.container.InputContainer, stop: threading.Event
    ) -> Generator[TimedFrame, None, None]:
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise SourceRefusedError("no codec is known for its video")
        _check_size(stream.width, stream.height)
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
                _check_size(frame.width, frame.height)
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
        """Returns the frame's own timestamp; one by the given rate only where the stream has none."""
        if frame.pts is not None and frame.time_base is not None:
            return round(frame.pts * frame.time_base * 1_000_000_000)
        if self._settings.fps is None:
            raise SourceRefusedError(
                "it carries no timestamps: give its rate with --fps, or put it into a container"
            )
        return round(count * 1_000_000_000 / self._settings.fps)


def _check_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise SourceRefusedError(
            f"its frames of {width}x{height} are larger than {MOST_PIXELS / 1e6:.0f} million pixels"
        )


def _image(convert: Any, frame: av.VideoFrame) -> NDArray[np.uint8]:
    """Converts a frame to (H, W, 3) uint8 BGR, upright."""
    image: NDArray[np.uint8] = convert.reformat(frame, format="bgr24").to_ndarray()
    quarters = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, quarters)) if quarters else image


def _reason(error: Any) -> str:
    """Returns FFmpeg's reason without the address, which may hold a password."""
    return str(error.strerror or type(error).__name__)


_SELECT_TIMEOUT = "OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT"
"""OpenCV's setting of how long a read from a V4L2 device may wait, in whole seconds."""


class DeviceSource:
    """A capture device by its index. Its timestamps are the driver's; where it gives none, the time of arrival."""

    live = True

    def __init__(self, source: SourceAddress, settings: SourceSettings) -> None:
        """Prepares a device; nothing is opened."""
        self.source = source
        self.damaged = 0
        self._index = int(source.address)
        self._settings = settings

    def check(self) -> None:
        """Makes sure that the device is there.

        Raises:
            InputError: it is not; the message names those that are.
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


BYTES_PER_PIXEL = {"bgr24": 3, "gray": 1}
"""Pixel formats of raw frames, by their names in FFmpeg."""

MAX_SIDE = 16384

_LOOK_S = 0.1
"""Time between two looks at `stop` of a read that waits."""


class InputPipe:
    """Bytes from a file descriptor, in reads that end on `stop`, or when nothing comes for too long."""

    def __init__(self, descriptor: int, stop: threading.Event, stall_s: float) -> None:
        """Takes a descriptor, which stays open: it is its owner's."""
        self._descriptor = descriptor
        self._stop = stop
        self._stall_s = stall_s
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def read(self, size: int) -> bytes:
        """Reads at most `size` bytes; none at the end or after `stop`.

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
        """Waits for data or the end; returns False after `stop`."""
        waiting_since = time.monotonic()
        while not self._stop.is_set():
            if self._poll.poll(_LOOK_S * 1000):
                return True
            if time.monotonic() - waiting_since > self._stall_s:
                raise JobError(f"nothing came for {self._stall_s:g} s")
        return False


class RawSource:
    """Raw frames of one size from a file descriptor, at a constant rate.

    Bytes that are left over at the end are no frame: they are logged and counted in `damaged`.
    """

    live = False

    def __init__(self, descriptor: int, settings: SourceSettings) -> None:
        """Prepares a pipe; nothing is read yet.

        Raises:
            InputError: size, rate or pixel format is missing or out of range.
        """
        if settings.pixels not in BYTES_PER_PIXEL:
            known = ", ".join(BYTES_PER_PIXEL)
            raise InputError(f"raw frames have pixels {known}; found {settings.pixels!r}")
        if settings.size is None or settings.fps is None:
            raise InputError("raw frames need their size and rate: --size 640x360 --fps 30")
        if not all(1 <= side <= MAX_SIDE for side in settings.size):
            raise InputError(f"the size of raw frames must be 1 to {MAX_SIDE} a side; found {settings.size}")
        if settings.size[0] * settings.size[1] > MOST_PIXELS:
            raise InputError(
                f"raw frames have at most {MOST_PIXELS / 1e6:.0f} million pixels; found a size of {settings.size}"
            )
        if not 0.01 <= settings.fps <= 1000:
            raise InputError(
                f"the rate must be at least 0.01 and at most 1000 frames a second; found {settings.fps:g}"
            )
        self.damaged = 0
        self._descriptor = descriptor
        self._stall_s = settings.stall_s
        self._size, self._fps, self._pixels = settings.size, settings.fps, settings.pixels

    def check(self) -> None:
        """Does nothing: a pipe tells nothing before its first frame."""

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
            frame = image if image.shape[2] == 3 else np.repeat(image, 3, axis=2)
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
