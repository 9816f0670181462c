"""Test data of the camera: frames with a rendered face, a detector of painted squares, a spotter by the clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ptsr_edge.bundle import Cascade
from ptsr_edge.camera.metrics import Cause
from ptsr_edge.data.synthetic_clips import person
from ptsr_edge.data.synthetic_faces import CameraPose, render
from ptsr_edge.vision.face_detection import Face

FRAME_NS = 33_333_333

FACE = 160
"""Side of the rendered face in a frame, in pixels."""


def face_image(subject: int = 0, side: int = FACE, displacement: Any = None) -> NDArray[np.uint8]:
    """(S, S) uint8: a synthetic face without noise."""
    field = np.zeros((side, side, 2), np.float32) if displacement is None else displacement
    return render(person(subject).face, field, CameraPose(), np.random.default_rng(0))


def scene(width: int = 320, height: int = 240, seed: int = 0) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 BGR: a smooth wall without a face."""
    noise = np.random.default_rng(seed).normal(120, 30, (height // 20 + 1, width // 20 + 1, 3))
    wall = cv2.resize(np.clip(noise, 0, 255).astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(wall)


def with_face(
    frame: NDArray[np.uint8], x: int, y: int, subject: int = 0, side: int = FACE
) -> NDArray[np.uint8]:
    """The frame with a face at x, y, cut where it leaves the frame."""
    shown: NDArray[np.uint8] = frame.copy()
    face = cv2.cvtColor(face_image(subject, side), cv2.COLOR_GRAY2BGR)
    height, width = frame.shape[:2]
    x0, y0, x1, y1 = max(0, x), max(0, y), min(width, x + side), min(height, y + side)
    if x0 < x1 and y0 < y1:
        shown[y0:y1, x0:x1] = face[y0 - y : y1 - y, x0 - x : x1 - x]
    return shown


PAINT = ((0, 0, 255), (0, 255, 0), (255, 0, 0))


def painted(*boxes: tuple[int, int, int, int], width: int = 320, height: int = 240) -> NDArray[np.uint8]:
    """A wall with plain squares, x, y, width, height, with a pattern on them that can be tracked."""
    frame = scene(width, height) // 4
    for box, colour in zip(boxes, PAINT, strict=False):
        x, y, wide, high = box
        grain = np.random.default_rng(wide).integers(0, 120, (high, wide, 3)).astype(np.uint8)
        grain[..., int(np.argmax(colour))] = 255
        x0, y0, x1, y1 = max(0, x), max(0, y), min(width, x + wide), min(height, y + high)
        if x0 < x1 and y0 < y1:
            frame[y0:y1, x0:x1] = grain[y0 - y : y1 - y, x0 - x : x1 - x]
    return frame


class PaintDetector:
    """Finds the painted squares, by their colour."""

    def __init__(self) -> None:
        self.calls = 0

    def detect(self, frame: NDArray[np.uint8]) -> list[Face]:
        self.calls += 1
        found = []
        for colour in PAINT:
            rows, columns = np.nonzero(frame[..., int(np.argmax(colour))] == 255)
            if len(rows):
                x, y = int(columns.min()), int(rows.min())
                wide, high = int(columns.max()) - x + 1, int(rows.max()) - y + 1
                found.append(Face(float(x), float(y), float(wide), float(high)))
        return found


@dataclass(frozen=True)
class Move:
    onset_ns: int
    apex_ns: int
    offset_ns: int
    score: float = 1.0
    cause: Cause | None = None


class ClockSpotter:
    """Calls every eighth frame an offset: the apex lies two frames before it, the onset five."""

    def __init__(self) -> None:
        self.reset()

    def push(self, _crop: NDArray[np.uint8], pts_ns: int) -> list[Move]:
        self.taken += 1
        self.latest.append(pts_ns)
        if self.taken % 8:
            return []
        return [Move(self.latest[-6], self.latest[-3], self.latest[-1])]

    def flush(self) -> list[Move]:
        if self.taken < 4:
            return []
        return [Move(self.latest[-4], self.latest[-2], self.latest[-1], 0.5)]

    def reset(self) -> None:
        self.taken = 0
        self.latest: deque[int] = deque(maxlen=8)  # a soak feeds it for hours


def steady(count: int, frame: NDArray[np.uint8], first: int = 0) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """The same frame again and again at 30 frames a second."""
    for number in range(first, first + count):
        yield frame, number * FRAME_NS


def cascade(**changes: Any) -> Cascade:
    """A rule from the half budget to the full one in the precision of `bundle_data`'s bundles."""
    content: dict[str, Any] = dict(
        target="cpu", precision="fp32", small=0.5, full=1.0, margin=0.5, escalated=0.3, limit=0.05, drop=0.0,
        upper=0.04, confidence=0.95, unit="subject", units=100, samples=600, data="synthetic", sha256="0" * 64,
    )  # fmt: skip
    return Cascade(**content | changes)


def yunet_like(path: Path) -> Path:
    """A graph with YuNet's outputs that sees a face of 96 x 128 pixels around each bright cell of 32 x 32 pixels."""
    nodes, outputs = [], []
    constants: dict[str, Any] = {
        "zero": np.float32(0), "flat": np.array([1, -1, 1]),
        "box": np.array([0.5, 0.5, np.log(3), np.log(4)], np.float32).reshape(1, 1, 4),
        # Eyes (right one of the subject first), nose, mouth, in cells from the upper left corner of the cell.
        "points": np.array([1.2, 0.1, 0.2, 0, 0.5, 0.6, 0.1, 1.1, 0.9, 1.2], np.float32).reshape(1, 1, 10),
        "dark": np.float32(200), "steep": np.float32(0.5),
    }  # fmt: skip

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))

    for stride in (8, 16, 32):
        add(
            "AveragePool", ["input"], f"pool{stride}", kernel_shape=[stride, stride], strides=[stride, stride]
        )
        add("ReduceMean", [f"pool{stride}"], f"gray{stride}", axes=[1], keepdims=1)
        add("Reshape", [f"gray{stride}", "flat"], f"cells{stride}")
        add("Mul", [f"cells{stride}", "zero"], f"none{stride}")
        if stride == 32:
            add("Sub", ["cells32", "dark"], "over32")
            add("Mul", ["over32", "steep"], "steep32")
            add("Sigmoid", ["steep32"], "cls_32")
            add("Sigmoid", ["steep32"], "obj_32")
        else:
            add("Identity", [f"none{stride}"], f"cls_{stride}")
            add("Identity", [f"none{stride}"], f"obj_{stride}")
        add("Add", [f"none{stride}", "box"], f"bbox_{stride}")
        add("Add", [f"none{stride}", "points"], f"kps_{stride}")
    for name, size in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
        for stride in (8, 16, 32):
            shape: list[str | int | None] = [1, f"n{stride}", size]
            outputs.append(helper.make_tensor_value_info(f"{name}_{stride}", TensorProto.FLOAT, shape))
    graph = helper.make_graph(
        nodes,
        "yunet-like",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "H", "W"])],
        outputs,
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path
