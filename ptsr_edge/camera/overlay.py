"""What was seen, drawn onto frames: the face's box and crop, the flow of an event and the patches it was read from,
and a strip of the latest events along the bottom.

Nothing is drawn unless somebody asks for a recording or a window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.camera.camera_event import Box, Event, View
from ptsr_edge.core.config import Preprocess
from ptsr_edge.core.errors import require
from ptsr_edge.vision.crop_window import CropRing, CropWindow, Region
from ptsr_edge.vision.flow import optical_flow

Image = NDArray[np.uint8]
"""(H, W, 3) uint8 BGR."""

STRIP = 36
"""Height of the strip in pixels."""

STRIP_S = 10.0
"""Time of the source that the strip shows."""

SHOWN_S = 1.5
"""For how long flow and patches of an event stay."""

RING_S = 4.0

_SIDE = 112
_FULL_PX = 1.0
"""Motion, in pixels of the crop, that is shown in full colour."""

_FACE, _CROP, _TEXT, _GROUND = (80, 220, 80), (200, 200, 200), (255, 255, 255), (32, 32, 32)
_COLOURS = ((60, 60, 230), (80, 200, 60), (230, 160, 40), (60, 200, 230), (200, 80, 200))


class Overlay:
    """Draws onto the frames of one stream."""

    def __init__(self, preprocess: Preprocess) -> None:
        """`preprocess`: of the model, whose flow is shown."""
        self._preprocess = preprocess
        self._window = CropWindow(_SIDE)
        self._ring = CropRing(round(RING_S * 1e9), 1024)
        self._events: deque[Event] = deque(maxlen=64)
        self._flow: Image | None = None
        self._colours: dict[str, tuple[int, int, int]] = {}

    def draw(self, image: Image, pts_ns: int, view: View, events: Sequence[Event]) -> Image:
        """Draws one frame.

        Args:
            image: (H, W, 3) uint8 BGR; it is not changed.
            pts_ns: its timestamp.
            view: where face and crop are.
            events: that were answered with it.

        Returns:
            (H + STRIP, W, 3) uint8 BGR.
        """
        cv2 = _cv2()
        self._remember(image, pts_ns, view)
        for event in events:
            self._take(event)
        height, width = image.shape[:2]
        canvas = np.empty((height + STRIP, width, 3), np.uint8)
        canvas[:height], canvas[height:] = image, _GROUND
        for box, colour in ((view.crop, _CROP), (view.face, _FACE)):
            if box is not None:
                cv2.rectangle(canvas[:height], *_corners(box), colour, 1)
        if self._events and 0 <= pts_ns - self._events[-1].answered_ns <= SHOWN_S * 1e9:
            self._draw_event(cv2, canvas[:height], self._events[-1])
        self._draw_strip(cv2, canvas[height:], pts_ns)
        return canvas

    def _remember(self, image: Image, pts_ns: int, view: View) -> None:
        """Keeps the crop, so that the flow of an event can be measured again for showing it."""
        if view.crop is None:
            return
        region = _region(view.crop)
        if region != self._window.region:
            self._window.region = region
            self._ring.clear()
        self._ring.add(pts_ns, self._window.cut(image))

    def _take(self, event: Event) -> None:
        self._events.append(event)
        self._colours.setdefault(event.label, _COLOURS[len(self._colours) % len(_COLOURS)])
        onset, apex = self._ring.at(event.onset_ns), self._ring.at(event.apex_ns)
        same_place = self._window.region == _region(event.crop)
        there = onset is not None and apex is not None and same_place
        self._flow = flow_colours(optical_flow(onset, apex, self._preprocess)) if there else None  # type: ignore[arg-type]

    def _draw_event(self, cv2: Any, picture: Image, event: Event) -> None:
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
        if self._flow is not None:
            side = min(_SIDE, picture.shape[0], picture.shape[1])
            picture[:side, -side:] = cv2.resize(self._flow, (side, side), interpolation=cv2.INTER_AREA)
        text = f"{event.label} {event.probabilities[event.label]:.2f}  budget {event.budget:g}  {event.latency_ms:.0f} ms"
        _write(cv2, picture, text, (6, 18), 0.5)

    def _draw_strip(self, cv2: Any, strip: Image, pts_ns: int) -> None:
        """The last `STRIP_S` seconds, now at the right: a bar from onset to offset, a line at the apex."""
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
    """Flow as colours: the hue is its direction, the saturation its size up to 1 pixel; no motion is white.

    Args:
        flow: (H, W, 2) float32: u, v in pixels.

    Returns:
        (H, W, 3) uint8 BGR.

    Source: the colour coding of Baker et al., A database and evaluation methodology for optical flow, IJCV 2011.
    """
    cv2 = _cv2()
    size, angle = cv2.cartToPolar(flow[..., 0], flow[..., 1], angleInDegrees=True)
    hsv = np.empty((*flow.shape[:2], 3), np.uint8)
    hsv[..., 0] = np.round(angle / 2).astype(np.int32) % 180
    hsv[..., 1] = np.round(255 * np.clip(size / _FULL_PX, 0, 1))
    hsv[..., 2] = 255
    colours: Image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    return colours


def _region(box: Box) -> Region:
    return Region(round(box.x), round(box.y), round(box.width), round(box.height))


def _corners(box: Box) -> tuple[tuple[int, int], tuple[int, int]]:
    """The first and the last pixel of a box."""
    first = (round(box.x), round(box.y))
    return first, (round(box.x + box.width) - 1, round(box.y + box.height) - 1)


def _write(cv2: Any, picture: Image, text: str, at: tuple[int, int], size: float) -> None:
    """White on a dark ground, so that it can be read on any picture."""
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
    x, y = at
    cv2.rectangle(picture, (x - 2, y - height - 2), (x + width + 2, y + below), _GROUND, -1)
    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, _TEXT, 1, cv2.LINE_AA)


def _cv2() -> Any:
    return require("cv2", "camera", "drawing onto frames")
