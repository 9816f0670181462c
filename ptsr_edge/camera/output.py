"""Output of a run: events as lines of JSON, and annotated frames into a video file or a window.

Nothing is drawn unless somebody asks for a recording or a window.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.camera.pipeline import Box, Event, FaceView, Pipeline
from ptsr_edge.camera.sources import TimedFrame, require_av
from ptsr_edge.core.errors import InputError, JobError, require
from ptsr_edge.core.files import check_file, staged_file
from ptsr_edge.vision.flow import opencv

if TYPE_CHECKING:
    import av

log = logging.getLogger(__name__)

Image = NDArray[np.uint8]
"""(H, W, 3) uint8 BGR."""

STRIP = 36
"""Height of the strip in pixels."""

STRIP_S = 10.0
"""Time of the source that the strip spans."""

SHOWN_S = 1.5
"""Time that flow and patches of an event stay."""

_FLOW_SIDE = 112
"""Side in pixels of the picture of an event's flow."""

_FULL_PX = 1.0
"""Motion, in pixels of the crop, that is shown in full colour."""

_FACE, _CROP, _TEXT, _GROUND = (80, 220, 80), (200, 200, 200), (255, 255, 255), (32, 32, 32)

_COLOURS = ((60, 60, 230), (80, 200, 60), (230, 160, 40), (60, 200, 230), (200, 80, 200))


class Overlay:
    """Draws onto the frames of one stream: the face's box and crop, the flow and the kept patches of an event, and a
    strip of the latest events along the bottom.
    """

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=64)
        self._colours: dict[str, tuple[int, int, int]] = {}

    def draw(self, image: Image, pts_ns: int, view: FaceView, events: Sequence[Event]) -> Image:
        """Draws one frame.

        Args:
            image: (H, W, 3) uint8 BGR; it is not changed.
            pts_ns: its timestamp.
            view: the face, the crop and the flow after this frame.
            events: the events that were answered with it.

        Returns:
            (H + STRIP, W, 3) uint8 BGR.
        """
        cv2 = opencv()
        for event in events:
            self._events.append(event)
            self._colours.setdefault(event.label, _COLOURS[len(self._colours) % len(_COLOURS)])
        height, width = image.shape[:2]
        canvas = np.empty((height + STRIP, width, 3), np.uint8)
        canvas[:height], canvas[height:] = image, _GROUND
        for box, colour in ((view.crop, _CROP), (view.face, _FACE)):
            if box is not None:
                cv2.rectangle(canvas[:height], *_corners(box), colour, 1)
        if self._events and 0 <= pts_ns - self._events[-1].answered_ns <= SHOWN_S * 1e9:
            self._draw_event(cv2, canvas[:height], self._events[-1], view.flow)
        self._draw_strip(cv2, canvas[height:], pts_ns)
        return canvas

    def _draw_event(self, cv2: Any, picture: Image, event: Event, flow: NDArray[np.float32] | None) -> None:
        colour = self._colours[event.label]
        place = event.crop
        for token in event.kept_tokens:
            row, column = divmod(token, event.grid)
            patch = Box(
                x=place.x + column * place.width / event.grid,
                y=place.y + row * place.height / event.grid,
                width=place.width / event.grid,
                height=place.height / event.grid,
            )
            cv2.rectangle(picture, *_corners(patch), colour, 1)
        if flow is not None:
            side = min(_FLOW_SIDE, picture.shape[0], picture.shape[1])
            colours = flow_colours(flow)
            picture[:side, -side:] = cv2.resize(colours, (side, side), interpolation=cv2.INTER_AREA)
        text = f"{event.label} {event.probabilities[event.label]:.2f}  budget {event.budget:g}  {event.latency_ms:.0f} ms"
        _write(cv2, picture, text, (6, 18), 0.5)

    def _draw_strip(self, cv2: Any, strip: Image, pts_ns: int) -> None:
        """Draws the last `STRIP_S` seconds, now at the right: a bar from onset to offset, a line at the apex."""
        width: int = strip.shape[1]

        def column(time_ns: int) -> int:
            share = 1 - (pts_ns - time_ns) / (STRIP_S * 1e9)
            return round(share * (width - 1))

        for event in self._events:
            left, middle, right = (column(t) for t in (event.onset_ns, event.apex_ns, event.offset_ns))
            if right < 0 or left >= width:
                continue
            cv2.rectangle(
                strip, (left, 16), (max(right, left + 1), STRIP - 4), self._colours[event.label], -1
            )
            cv2.line(strip, (middle, 14), (middle, STRIP - 3), _TEXT, 1)
            _write(cv2, strip, event.label, (max(left, 0), 11), 0.35)


def flow_colours(flow: NDArray[np.float32]) -> Image:
    """Returns flow as colours: the hue is its direction, the saturation its size up to 1 pixel; no motion is white.

    Args:
        flow: (H, W, 2 or more) float32: u, v in pixels; further channels are not read.

    Returns:
        (H, W, 3) uint8 BGR.

    Source: the colour coding of Baker et al., A database and evaluation methodology for optical flow, IJCV 2011.
    """
    cv2 = opencv()
    size, angle = cv2.cartToPolar(flow[..., 0], flow[..., 1], angleInDegrees=True)
    hsv = np.empty((*flow.shape[:2], 3), np.uint8)
    hsv[..., 0] = np.round(angle / 2).astype(np.int32) % 180
    hsv[..., 1] = np.round(255 * np.clip(size / _FULL_PX, 0, 1))
    hsv[..., 2] = 255
    colours: Image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    return colours


def _corners(box: Box) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the first and the last pixel of a box."""
    first = (round(box.x), round(box.y))
    return first, (round(box.x + box.width) - 1, round(box.y + box.height) - 1)


def _write(cv2: Any, picture: Image, text: str, at: tuple[int, int], size: float) -> None:
    """Writes in white on a dark ground, so that it can be read on any picture."""
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
    x, y = at
    cv2.rectangle(picture, (x - 2, y - height - 2), (x + width + 2, y + below), _GROUND, -1)
    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, _TEXT, 1, cv2.LINE_AA)


SUFFIXES = (".mp4", ".mkv", ".mov")
"""Containers that are written."""

_CODECS = ("libx264", "mpeg4")

_TICKS = 90_000

_STEP = _TICKS // 30
"""Ticks between two frames where the timestamps do not rise."""

_STOP_KEYS = (27, ord("q"))


def recording_paths(path: Path, streams: list[str]) -> dict[str, Path]:
    """Returns the path of each stream's video: the path itself; with several streams, `stem-NAME.suffix` beside it.

    Raises:
        InputError: the suffix is unknown, or nothing can be written there.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"a recording is {', '.join(SUFFIXES)}; found {path}")
    if len(streams) == 1:
        paths = {streams[0]: path}
    else:
        plain = {name: re.sub(r"[^\w.-]", "_", name) for name in streams}
        paths = {name: path.with_name(f"{path.stem}-{part}{path.suffix}") for name, part in plain.items()}
    for one in paths.values():
        check_file(one)
    return paths


@contextmanager
def recording(path: Path) -> Iterator[Recorder]:
    """Yields a recorder whose file appears at `path` only when the block ends well.

    Raises:
        JobError: the file cannot be written; an older one stays as it was.
    """
    with staged_file(path) as stage:
        recorder = Recorder(path, stage)
        try:
            yield recorder
        finally:
            recorder.close()


class Recorder:
    """Writes a video with the timestamps of its frames. For one thread.

    Its size is that of the first frame, made even; a later frame of another size is fitted in with bars. Without one
    frame there is no file.
    """

    def __init__(self, path: Path, stage: Path) -> None:
        """Use `recording`, which writes to `stage` and names `path` in errors."""
        self.path = path
        self.frames = 0
        self._stage = stage
        self._container: av.container.OutputContainer | None = None
        self._stream: Any = None
        self._offset = 0
        self._latest = -1

    def add(self, image: Image, pts_ns: int) -> None:
        """Adds a frame, (H, W, 3) uint8 BGR; where time does not rise, it goes on by a thirtieth of a second.

        Raises:
            JobError: it cannot be written.
        """
        av = require_av()
        try:
            if self._container is None:
                self._container = self._open(av, image)
                self._offset = -round(pts_ns * _TICKS / 1_000_000_000)
            ticks = round(pts_ns * _TICKS / 1_000_000_000) + self._offset
            if ticks <= self._latest:
                self._offset += self._latest + _STEP - ticks
                ticks = self._latest + _STEP
            frame = av.VideoFrame.from_ndarray(
                fitted(image, self._stream.width, self._stream.height), format="bgr24"
            )
            frame.pts, frame.time_base = ticks, Fraction(1, _TICKS)
            self._container.mux(self._stream.encode(frame))
        except (av.FFmpegError, OSError) as error:
            raise JobError(f"cannot write {self.path}: {error.strerror or error}") from error
        self._latest = ticks
        self.frames += 1

    def close(self) -> None:
        """Writes the frames that are still in the encoder, and closes the file.

        Raises:
            JobError: it cannot be written.
        """
        if self._container is None:
            return
        try:
            with self._container as container:
                container.mux(self._stream.encode(None))
        except OSError as error:  # FFmpeg's errors of writing are among them
            raise JobError(f"cannot write {self.path}: {error.strerror or error}") from error

    def _open(self, ffmpeg: Any, image: Image) -> av.container.OutputContainer:
        container = cast("av.container.OutputContainer", ffmpeg.open(str(self._stage), "w"))
        codec = next(name for name in _CODECS if name in ffmpeg.codecs_available)
        fast = {"preset": "ultrafast", "crf": "20"} if codec == "libx264" else {"qscale": "3"}
        self._stream = container.add_stream(codec, rate=30, options=fast)
        height, width = image.shape[:2]
        self._stream.width, self._stream.height = width + width % 2, height + height % 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.thread_count = 1
        self._stream.codec_context.time_base = Fraction(1, _TICKS)
        return container


def fitted(image: Image, width: int, height: int) -> Image:
    """Returns the image in a given size: with a row or column repeated, or shrunk or enlarged between bars."""
    high, wide = image.shape[:2]
    if 0 <= height - high <= 1 and 0 <= width - wide <= 1:
        return np.pad(image, ((0, height - high), (0, width - wide), (0, 0)), mode="edge")
    cv2 = opencv()
    zoom = min(height / high, width / wide)
    size = (max(1, round(wide * zoom)), max(1, round(high * zoom)))
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - size[1]) // 2, (width - size[0]) // 2
    canvas[top : top + size[1], left : left + size[0]] = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return canvas


class Windows:
    """One window per stream, drawn by the thread that calls `update`; any thread may hand in frames."""

    def __init__(self) -> None:
        """Makes sure that windows can be opened here.

        Raises:
            JobError: OpenCV has none, or there is no display.
        """
        self._cv2 = require("cv2", "camera", "--show")
        found = re.search(r"^ +GUI: +(\w+)", self._cv2.getBuildInformation(), re.MULTILINE)
        if found is None or found[1] == "NONE":
            raise JobError(
                "--show needs windows, and OpenCV is built without them here: put opencv-python in the place of "
                "opencv-python-headless, or use --record"
            )
        if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise JobError("--show needs a display, and neither DISPLAY nor WAYLAND_DISPLAY is set")
        self._latest: dict[str, Image] = {}
        self._lock = threading.Lock()

    def hand_in(self, name: str, image: Image) -> None:
        """Keeps an image for the next update; an earlier one that was not shown yet is dropped."""
        with self._lock:
            self._latest[name] = image

    def update(self) -> bool:
        """Draws the images that were handed in; returns False where somebody pressed q or Escape."""
        with self._lock:
            images, self._latest = self._latest, {}
        for name, image in images.items():
            self._cv2.imshow(name, image)
        return self._cv2.waitKey(1) & 0xFF not in _STOP_KEYS

    def close(self) -> None:
        """Closes the windows."""
        self._cv2.destroyAllWindows()


class CameraOutput:
    """Prints, records and shows each frame's result; called from one thread per stream, as `runner.Output`."""

    def __init__(
        self, pipeline: Pipeline, recorders: Mapping[str, Recorder], windows: Windows | None
    ) -> None:
        """Takes recorders by stream; without recorder and window, no frame is drawn on or kept."""
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
            for later_ns in (1, round(SHOWN_S * 1e9)):  # an event that came with the end is seen for a moment
                self._draw(name, replace(latest, pts_ns=latest.pts_ns + later_ns), events)
                events = ()

    def _draw(self, name: str, frame: TimedFrame, events: Sequence[Event]) -> None:
        overlay = self._overlays.setdefault(name, Overlay())
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
                # The rest of the buffer would raise again when Python ends.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                self._closed.set()
