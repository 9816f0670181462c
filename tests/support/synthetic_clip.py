"""A clip of a synthetic face with one micro-expression, for tests of the whole camera."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from video_files import write_video

from ptsr_edge.data.synthetic_clips import Happening, draw_script, film

SIDE, FPS, SECONDS = 112, 30, 8.5


@cache
def filmed() -> tuple[list[int], list[NDArray[np.uint8]], Happening]:
    """Times in ms, (S, S, 3) uint8 BGR frames, and what happens: the micro-expression lies at 5.7 to 6.0 s."""
    script = draw_script(1, 12, seed=3, moving=False)
    times_ms, images = [], []
    for pts_ns, gray in film(script, FPS, SIDE):
        if pts_ns >= SECONDS * 1e9:
            break
        times_ms.append(round(pts_ns / 1e6))
        images.append(np.dstack([gray] * 3))
    (micro,) = script.micro
    return times_ms, images, micro


def write_clip(path: Path) -> Path:
    """The clip as a video file."""
    times_ms, images, _ = filmed()
    return write_video(path, times_ms, images, (SIDE, SIDE))
