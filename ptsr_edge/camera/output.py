"""Annotated frames into a video file, or into a window."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.camera.sources import require_av
from ptsr_edge.core.errors import InputError, JobError, require
from ptsr_edge.core.files import check_file, staged_file

if TYPE_CHECKING:
    import av

Image = NDArray[np.uint8]

SUFFIXES = (".mp4", ".mkv", ".mov")
"""Containers that are written."""

_CODECS = ("libx264", "mpeg4")
_TICKS = 90_000
_STEP = _TICKS // 30
"""Between two frames where the timestamps do not rise."""

_STOP_KEYS = (27, ord("q"))


def recording_paths(path: Path, streams: list[str]) -> dict[str, Path]:
    """Where each stream's video goes: to the path; with several streams, to `stem-NAME.suffix` beside it.

    Raises:
        InputError: an unknown suffix, or nothing can be written there.
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
    """A recorder whose file appears at `path` when the block ends well, and only then.

    Raises:
        JobError: the file cannot be written; an older one is untouched.
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
        """Use `recording`. `stage`: where the file is written; `path`: what it is called in errors."""
        self.path = path
        self.frames = 0
        self._stage = stage
        self._container: av.container.OutputContainer | None = None
        self._stream: Any = None
        self._offset = 0
        self._latest = -1

    def add(self, image: Image, pts_ns: int) -> None:
        """Adds a frame, (H, W, 3) uint8 BGR. Where time does not rise, it goes on by a thirtieth of a second.

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
        """Writes what is left.

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
    """The image in a given size: as it is with a row or column repeated, or shrunk or enlarged with bars."""
    high, wide = image.shape[:2]
    if 0 <= height - high <= 1 and 0 <= width - wide <= 1:
        return np.pad(image, ((0, height - high), (0, width - wide), (0, 0)), mode="edge")
    cv2 = require("cv2", "camera", "drawing onto frames")
    zoom = min(height / high, width / wide)
    size = (max(1, round(wide * zoom)), max(1, round(high * zoom)))
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - size[1]) // 2, (width - size[0]) // 2
    canvas[top : top + size[1], left : left + size[0]] = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return canvas


class Windows:
    """One window a stream, drawn by the thread that calls `update`; frames may be handed in by any."""

    def __init__(self) -> None:
        """Looks whether windows can be opened here.

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
        """Shows an image with the next update; an earlier one that was not shown yet is forgotten."""
        with self._lock:
            self._latest[name] = image

    def update(self) -> bool:
        """Draws what was handed in; False where somebody pressed q or Escape."""
        with self._lock:
            images: Mapping[str, Image] = self._latest
            self._latest = {}
        for name, image in images.items():
            self._cv2.imshow(name, image)
        return self._cv2.waitKey(1) & 0xFF not in _STOP_KEYS

    def close(self) -> None:
        """Closes the windows."""
        self._cv2.destroyAllWindows()
