"""Image files, read whole or refused with what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.errors import require
from ptsr_edge.data.annotations import RowFault
from ptsr_edge.data.png import SIGNATURE, png_fault

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
"""Of the files that count as frames; anything else in a folder of frames is passed over."""


def read_file(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        RowFault: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise RowFault(f"{path} cannot be read: {error.strerror}") from None


def decode_image(content: bytes, path: Path, kind: str = "image") -> NDArray[np.uint8]:
    """The pixels of an image file.

    From its bytes: OpenCV's own file reading prints warnings and knows no Unicode paths on Windows.

    Args:
        content: of the file.
        path: of the file, for the message.
        kind: what it should be, for the message.

    Returns:
        (H, W, 3) uint8: blue, green, red.

    Raises:
        RowFault: the file is damaged, or no image.
        MissingExtraError: OpenCV is not installed.
    """
    cv2 = require("cv2", "train", "reading images")
    fault = image_fault(content)
    if fault:
        raise RowFault(f"{path} is no readable {kind}: {fault}")
    try:
        image = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise RowFault(f"{path} is no readable {kind}: {error.err}") from None
    if image is None:
        raise RowFault(f"{path} is no readable {kind}: OpenCV {cv2.__version__} refuses its pixels")
    pixels: NDArray[np.uint8] = image
    return pixels


def image_fault(content: bytes) -> str:
    """What is wrong with an image file's frame, empty where nothing is; pixels are not looked at.

    A JPEG file that ends before its pixels do is decoded without a word, its lower part gray: the marker
    EOI (FF D9) must follow the last SOS (FF DA; ITU-T T.81, B.1.1). A BMP file says its own length.
    """
    if not content:
        return "it is empty"
    if content[:8] == SIGNATURE:
        return png_fault(content)
    cut = f"it is cut short after {len(content)} bytes"
    if content[:2] == b"\xff\xd8":
        return "" if content.rfind(b"\xff\xd9") > content.rfind(b"\xff\xda") > 0 else cut
    if content[:2] == b"BM":
        return cut if len(content) < int.from_bytes(content[2:6], "little") else ""
    if content[:4] in (b"II*\0", b"MM\0*"):
        return ""
    return "it is no JPEG, PNG, BMP or TIFF"
