"""Output of a run: events as lines of JSON, and annotated frames into a video file or a window.

Nothing is drawn unless somebody asks for a recording or a window.
"""

from __future__ import annotations

import colorsys
import logging
import math
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
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.camera.metrics import CAUSES
from ptsr_edge.camera.pipeline import Box, Event, FaceView, Pipeline
from ptsr_edge.camera.sources import TimedFrame, require_av
from ptsr_edge.core.console import printable
from ptsr_edge.core.errors import InputError, JobError, require
from ptsr_edge.core.files import check_file, staged_file
from ptsr_edge.vision.flow import opencv

if TYPE_CHECKING:
    import av

log = logging.getLogger(__name__)

Image = NDArray[np.uint8]
"""(H, W, 3) uint8 BGR."""

LEAST_HEIGHT, MOST_WIDTH = 440, 1280
"""A lower picture is enlarged to this height, or to this width where that is reached first."""

PANEL = 300
"""Width of the panel at the right, in pixels; more beside a high picture."""

STRIP = 44
"""Height of the strip along the bottom in pixels."""

STRIP_S = 10.0
"""Time of the source that the strip spans."""

SHOWN_S = 1.5
"""Time that what an event was read from stays in the panel."""

_TALL = 540
"""Height of a picture above which the panel grows with it."""

_ROW, _PAD, _ARROWS, _ARROW_GAIN = 17, 8, 14, 8

_FACE, _CROP, _PATCH = (80, 220, 80), (150, 150, 150), (60, 230, 250)
_TEXT, _GROUND = (255, 255, 255), (32, 32, 32)


def class_colours(labels: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Returns a colour, BGR, for each class: evenly over the hues from cyan over blue and red to orange, which nothing
    else in the picture has.
    """
    colours = {}
    for place, label in enumerate(labels):
        hue = (185 + 205 * place / max(1, len(labels) - 1)) % 360
        red, green, blue = colorsys.hsv_to_rgb(hue / 360, 0.65, 1.0)
        colours[label] = (round(255 * blue), round(255 * green), round(255 * red))
    return colours


class Overlay:
    """Draws the frames of one stream, with a panel beside the picture and a strip below it.

    On the picture are the frames of the face and of the crop alone, so that nothing lies over a face. The panel has the
    stream, its time, what each colour means, what was set aside, and for a moment the latest event with what it was
    read from: the crop of its apex with the kept patches, and the motion from onset to apex. The strip has the latest
    events.
    """

    def __init__(self, stream: str, labels: Sequence[str], note: str = "") -> None:
        """Takes the stream's name, the classes, and what to know of the weights, which stands in the panel."""
        self._stream = stream
        self._note = note
        self._events: deque[Event] = deque(maxlen=64)
        self._colours = class_colours(labels)

    def draw(self, image: Image, pts_ns: int, view: FaceView, events: Sequence[Event]) -> Image:
        """Draws one frame.

        Args:
            image: (H, W, 3) uint8 BGR; it is not changed.
            pts_ns: its timestamp.
            view: what is seen after this frame.
            events: the events that were answered with it.

        Returns:
            (H', W', 3) uint8 BGR, of the same size for the same size of frames.
        """
        cv2 = opencv()
        self._events.extend(events)
        picture, zoom = enlarged(image)
        for box, colour in ((view.crop, _CROP), (view.face, _FACE)):
            if box is not None:
                cv2.rectangle(picture, *_corners(box, zoom), colour, 1 if zoom < 2 else 2)
        high, wide = picture.shape[:2]
        scale = max(1.0, high / _TALL)
        panel = _Panel(cv2, scale, max(high, math.ceil(scale * self._panel_height())))
        self._fill(panel, pts_ns, view)
        body = np.full((panel.image.shape[0], wide + panel.image.shape[1], 3), _GROUND, np.uint8)
        body[:high, :wide], body[:, wide:] = picture, panel.image
        strip = np.full((round(scale * STRIP), body.shape[1], 3), _GROUND, np.uint8)
        self._draw_strip(cv2, strip, pts_ns, scale)
        return np.concatenate([body, strip])

    def _panel_height(self) -> int:
        """Height that the panel needs when everything is in it, before it is scaled."""
        rows = 3 + 3 + math.ceil(len(self._colours) / 2) + 1 + math.ceil(len(CAUSES) / 2) + 2 + 1
        return rows * _ROW + (PANEL - 3 * _PAD) // 2 + 5 * _PAD

    def _fill(self, panel: _Panel, pts_ns: int, view: FaceView) -> None:
        seconds = pts_ns / 1e9
        clock = f"{int(seconds // 60):02d}:{seconds % 60:06.3f}"
        panel.row(self._stream if view.frame is None else f"{self._stream}   frame {view.frame}")
        panel.row(clock if view.face is not None else f"{clock}   no face")
        panel.row(self._note)
        for colour, meaning in ((_FACE, "face"), (_CROP, "crop that is looked at"), (_PATCH, "kept patches")):
            panel.row(meaning, mark=colour)
        panel.pairs([(label, colour) for label, colour in self._colours.items()])
        panel.space()
        counts = [(f"{count} {cause}", None) for cause, count in view.set_aside.items() if count]
        panel.row("set aside:" if counts else "")
        panel.pairs(counts, rows=math.ceil(len(CAUSES) / 2))
        panel.space()
        event = self._events[-1] if self._events else None
        if event is None or not 0 <= pts_ns - event.answered_ns <= SHOWN_S * 1e9:
            return
        unsure = "unsure: " if event.outcome == "unsure" else ""
        text = f"{unsure}{event.label} {event.probabilities[event.label]:.2f}"
        panel.row(text, mark=self._colours.get(event.label, _TEXT))
        panel.row(
            f"apex {event.apex_ns / 1e9:.2f} s, budget {event.budget:g}, told {event.latency_ms:.0f} ms later"
        )
        if view.apex is not None and view.flow is not None:
            patches = kept_patches(view.apex, event.kept_tokens, event.grid, panel.inset)
            panel.insets(
                patches,
                "apex, kept patches",
                motion_arrows(view.flow, panel.inset),
                f"motion, x {_ARROW_GAIN}",
            )

    def _draw_strip(self, cv2: Any, strip: Image, pts_ns: int, scale: float) -> None:
        """Draws the last `STRIP_S` seconds, now at the right: a bar from onset to offset, a line at the apex.

        The bar of an unsure event is hollow.
        """
        high: int = strip.shape[0]
        wide: int = strip.shape[1]
        top, bottom = round(15 * scale), high - round(14 * scale)

        def column(time_ns: int) -> int:
            share = 1 - (pts_ns - time_ns) / (STRIP_S * 1e9)
            return round(share * (wide - 1))

        cv2.line(strip, (0, bottom + 1), (wide, bottom + 1), _CROP, 1)
        for ago_s in range(2, round(STRIP_S), 2):
            at = column(pts_ns - ago_s * 1_000_000_000)
            _write(cv2, strip, f"-{ago_s} s", (at, high - round(3 * scale)), 0.35 * scale, _CROP)
        for event in self._events:
            left, middle, right = (column(t) for t in (event.onset_ns, event.apex_ns, event.offset_ns))
            if right < 0 or left >= wide:
                continue
            colour = self._colours.get(event.label, _TEXT)
            filled = -1 if event.outcome == "classified" else 1
            cv2.rectangle(strip, (left, top), (max(right, left + 1), bottom), colour, filled)
            cv2.line(strip, (middle, top - 2), (middle, bottom), _TEXT, 1)
            _write(cv2, strip, event.label, (max(left, 0), top - 4), 0.38 * scale)


class _Panel:
    """The panel beside the picture, filled from the top to the bottom."""

    def __init__(self, cv2: Any, scale: float, height: int) -> None:
        self.image: Image = np.full((height, round(scale * PANEL), 3), _GROUND, np.uint8)
        self.inset = (self.image.shape[1] - 3 * round(scale * _PAD)) // 2
        self._cv2 = cv2
        self._scale = scale
        self._line = round(scale * _ROW)
        self._pad = round(scale * _PAD)
        self._y = self._pad

    def row(self, text: str, mark: tuple[int, int, int] | None = None) -> None:
        """Writes a line, with a square in front that shows a colour."""
        self._cell(text, mark, self._pad)
        self._y += self._line

    def pairs(self, cells: Sequence[tuple[str, tuple[int, int, int] | None]], rows: int = 0) -> None:
        """Writes two cells a line, and leaves at least so many lines."""
        for place, (text, mark) in enumerate(cells):
            self._cell(text, mark, self._pad if place % 2 == 0 else self.image.shape[1] // 2)
            self._y += self._line * (place % 2)
        self._y += self._line * (len(cells) % 2 + max(0, rows - math.ceil(len(cells) / 2)))

    def space(self) -> None:
        """Leaves a little room."""
        self._y += self._pad

    def insets(self, left: Image, left_says: str, right: Image, right_says: str) -> None:
        """Shows two pictures of `inset` pixels a side, with a line below each."""
        for place, (picture, text) in enumerate(((left, left_says), (right, right_says))):
            x = self._pad + place * (self.inset + self._pad)
            self.image[self._y : self._y + self.inset, x : x + self.inset] = picture
            below = (x, self._y + self.inset + round(0.8 * self._line))
            _write(self._cv2, self.image, text, below, 0.38 * self._scale)

    def _cell(self, text: str, mark: tuple[int, int, int] | None, x: int) -> None:
        base = self._y + round(0.75 * self._line)
        if mark is not None:
            side = round(0.6 * self._line)
            self._cv2.rectangle(self.image, (x, base - side), (x + side, base), mark, -1)
            x += round(1.2 * self._line)
        _write(self._cv2, self.image, text, (x, base), 0.42 * self._scale)


def enlarged(image: Image) -> tuple[Image, float]:
    """Returns a copy that is not smaller than text needs, and how many times as large it is."""
    high, wide = image.shape[:2]
    zoom = max(1.0, min(LEAST_HEIGHT / high, MOST_WIDTH / wide))
    if zoom == 1.0:
        return image.copy(), zoom
    cv2 = opencv()
    larger: Image = cv2.resize(image, (round(zoom * wide), round(zoom * high)), interpolation=cv2.INTER_CUBIC)
    return larger, zoom


def kept_patches(crop: NDArray[np.uint8], tokens: Sequence[int], grid: int, side: int) -> Image:
    """Returns a crop, (S, S) uint8 gray, as (side, side, 3) uint8 BGR: framed where patches were kept, else dark.

    Where all were kept it is the crop alone.
    """
    cv2 = opencv()
    picture: Image = cv2.cvtColor(cv2.resize(crop, (side, side)), cv2.COLOR_GRAY2BGR)
    edges = [round(place * side / grid) for place in range(grid + 1)]
    for token in range(grid**2) if len(tokens) < grid**2 else ():
        row, column = divmod(token, grid)
        patch = picture[edges[row] : edges[row + 1], edges[column] : edges[column + 1]]
        if token in tokens:
            cv2.rectangle(patch, (0, 0), (patch.shape[1] - 1, patch.shape[0] - 1), _PATCH, 1)
        else:
            patch //= 3
    return picture


def motion_arrows(flow: NDArray[np.float32], side: int) -> Image:
    """Returns flow, (S, S, 2 or more) float32: u, v in pixels, as arrows on a dark ground, (side, side, 3) uint8 BGR.

    Each of 14 x 14 arrows is the mean around its foot, `_ARROW_GAIN` times as long as the motion in the picture.
    """
    cv2 = opencv()
    picture: Image = np.zeros((side, side, 3), np.uint8)
    coarse = cv2.resize(flow[..., :2], (_ARROWS, _ARROWS), interpolation=cv2.INTER_AREA)
    longer = _ARROW_GAIN * side / flow.shape[0]
    for row in range(_ARROWS):
        for column in range(_ARROWS):
            foot = ((column + 0.5) * side / _ARROWS, (row + 0.5) * side / _ARROWS)
            tip = (foot[0] + longer * coarse[row, column, 0], foot[1] + longer * coarse[row, column, 1])
            start, end = (tuple(round(float(part)) for part in point) for point in (foot, tip))
            cv2.arrowedLine(picture, start, end, _TEXT, 1, cv2.LINE_AA, tipLength=0.3)
    return picture


def _corners(box: Box, zoom: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the first and the last pixel of a box in a picture that is `zoom` times as large as the frame."""
    first = (round(zoom * box.x), round(zoom * box.y))
    return first, (round(zoom * (box.x + box.width)) - 1, round(zoom * (box.y + box.height)) - 1)


def _write(
    cv2: Any,
    picture: Image,
    text: str,
    at: tuple[int, int],
    size: float,
    colour: tuple[int, int, int] = _TEXT,
) -> None:
    """Writes in the letters that OpenCV has: others become question marks."""
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(picture, plain, at, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)


SUFFIXES = (".mp4", ".mkv", ".mov")
"""Containers that are written."""

Encoder = Literal["mpeg4", "libx264"]
"""How a recording is encoded: MPEG-4 part 2 by FFmpeg itself (LGPL), or H.264 by x264, which is under the GPL."""

_TICKS = 60_000  # MPEG-4 has 16 bits for it

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


def check_encoder(encoder: Encoder) -> None:
    """Makes sure that FFmpeg was built with an encoder here.

    Raises:
        InputError: it was not.
        MissingExtraError: PyAV is not installed.
    """
    ffmpeg = require_av()
    try:
        ffmpeg.codec.Codec(encoder, "w")
    except ffmpeg.codec.codec.UnknownCodecError:
        known = ", ".join(get_args(Encoder))
        raise InputError(
            f"the FFmpeg of PyAV here was built without the encoder {encoder}; known: {known}"
        ) from None


@contextmanager
def recording(path: Path, encoder: Encoder = "mpeg4") -> Iterator[Recorder]:
    """Yields a recorder whose file appears at `path` only when the block ends well.

    Raises:
        JobError: the file cannot be written; an older one stays as it was.
    """
    with staged_file(path) as stage:
        recorder = Recorder(path, stage, encoder)
        try:
            yield recorder
        finally:
            recorder.close()


class Recorder:
    """Writes a video with the timestamps of its frames. For one thread.

    Its size is that of the first frame, made even; a later frame of another size is fitted in with bars. Without one
    frame there is no file. Where a frame cannot be written the recording ends there, and nothing but it: that is logged,
    later frames are not taken, and `close` raises.
    """

    def __init__(self, path: Path, stage: Path, encoder: Encoder) -> None:
        """Use `recording`, which writes to `stage` and names `path` in errors."""
        self.path = path
        self.frames = 0
        self._stage = stage
        self._encoder = encoder
        self._container: av.container.OutputContainer | None = None
        self._stream: Any = None
        self._offset = 0
        self._latest = -1
        self._fault: JobError | None = None

    def add(self, image: Image, pts_ns: int) -> None:
        """Adds a frame, (H, W, 3) uint8 BGR; where time does not rise, it goes on by a thirtieth of a second."""
        if self._fault is not None:
            return
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
            self._fault = self._cannot(error)
            log.warning("%s: the stream goes on without its recording", self._fault)
            return
        self._latest = ticks
        self.frames += 1

    def close(self) -> None:
        """Writes the frames that are still in the encoder, and closes the file.

        Raises:
            JobError: it cannot be written, or a frame could not be.
        """
        container, self._container = self._container, None
        if container is not None:
            try:
                with container:
                    # FFmpeg crashes where it is to flush into a file whose header could not be written.
                    if self._fault is None:
                        container.mux(self._stream.encode(None))
            except OSError as error:  # FFmpeg's errors of writing are among them
                self._fault = self._fault or self._cannot(error)
        if self._fault is not None:
            raise self._fault

    def _cannot(self, error: OSError) -> JobError:
        return JobError(f"cannot write {self.path}: {error.strerror or error}")

    def _open(self, ffmpeg: Any, image: Image) -> av.container.OutputContainer:
        container = cast("av.container.OutputContainer", ffmpeg.open(str(self._stage), "w"))
        fast = {"preset": "ultrafast", "crf": "20"} if self._encoder == "libx264" else {}
        self._stream = container.add_stream(self._encoder, rate=30, options=fast)
        height, width = image.shape[:2]
        self._stream.width, self._stream.height = width + width % 2, height + height % 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.thread_count = 1
        self._stream.codec_context.time_base = Fraction(1, _TICKS)
        if self._encoder == "mpeg4":  # of a fixed quality, as crf is for the other: its default is a bit rate
            self._stream.codec_context.qmin = self._stream.codec_context.qmax = 3
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
        self,
        pipeline: Pipeline,
        recorders: Mapping[str, Recorder],
        windows: Windows | None,
        *,
        kept: bool = False,
    ) -> None:
        """Takes recorders by stream; without recorder and window, no frame is drawn on or kept.

        With `kept` the lines have the kept tokens, too.
        """
        self._kept = kept
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
        overlay = self._overlays.get(name)
        if overlay is None:
            overlay = self._overlays[name] = Overlay(name, self._pipeline.labels, self._pipeline.weights_note)
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
                    sys.stdout.write(printable(event.to_json(kept=self._kept)) + "\n")
                    sys.stdout.flush()
            except BrokenPipeError:
                log.warning("standard output was closed: stopping")
                # The rest of the buffer would raise again when Python ends.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                self._closed.set()
