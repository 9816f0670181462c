from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ptsr_edge.camera.output import STRIP, Overlay, flow_colours
from ptsr_edge.camera.pipeline import Box, Event, FaceView
from ptsr_edge.core.config import Preprocess
from ptsr_edge.data.synthetic_clips import render_clip
from ptsr_edge.vision.flow import optical_flow

MS = 1_000_000
FACE, CROP = Box(x=30, y=10, width=60, height=80), Box(x=20, y=8, width=112, height=112)
GRAY = np.full((160, 320, 3), 100, np.uint8)


def event(**changes: Any) -> Event:
    content: dict[str, Any] = dict(
        stream="door", label="surprise", probabilities={"surprise": 0.8, "negative": 0.2}, onset_ns=0,
        apex_ns=100 * MS, offset_ns=200 * MS, answered_ns=200 * MS, score=1.0, face=FACE, crop=CROP,
        kept_tokens=[0, 15], grid=4, budget=0.5, budgets_run=[0.5], processing_ms=1.0,
    )  # fmt: skip
    return Event(**content | changes)


def overlay() -> Overlay:
    return Overlay(Preprocess(image_size=112))


def changed(canvas: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(H, W) bool: where something was drawn onto the gray frame."""
    drawn: np.ndarray[Any, Any] = (canvas[:-STRIP] != GRAY).any(axis=-1)
    return drawn


def test_without_a_face_the_frame_is_as_it_was_above_an_empty_strip() -> None:
    canvas = overlay().draw(GRAY, 0, FaceView(), [])
    assert canvas.shape == (160 + STRIP, 320, 3)
    assert not changed(canvas).any()
    assert len(np.unique(canvas[-STRIP:].reshape(-1, 3), axis=0)) == 1
    assert (GRAY == 100).all(), "the frame that was given is untouched"


def test_face_and_crop_are_framed() -> None:
    drawn = changed(overlay().draw(GRAY, 0, FaceView(face=FACE, crop=CROP), []))
    expected = np.zeros_like(drawn)
    for box in (FACE, CROP):
        left, top = int(box.x), int(box.y)
        right, bottom = left + int(box.width) - 1, top + int(box.height) - 1
        expected[[top, bottom], left : right + 1] = expected[top : bottom + 1, [left, right]] = True
    assert np.array_equal(drawn, expected)


def test_an_event_shows_its_kept_patches_for_a_moment_and_stays_on_the_strip() -> None:
    """Patches 0 and 15 of a grid of 4: the first and the last of the crop, 28 pixels wide each."""
    drawing, view = overlay(), FaceView(face=None, crop=CROP)
    drawing.draw(GRAY, 0, view, [])
    at_once = changed(drawing.draw(GRAY, 200 * MS, view, [event()]))
    frame_only = changed(overlay().draw(GRAY, 0, view, []))
    patches = (at_once & ~frame_only)[25:, :200]
    rows, columns = np.nonzero(patches)
    assert {(20 + 27, 30 - 25), (20 + 84, 100 - 25)} <= set(zip(columns.tolist(), rows.tolist(), strict=True))
    assert not patches[45 - 25 : 85 - 25, 60:80].any(), "no patch in the middle"
    later = drawing.draw(GRAY, 2000 * MS, view, [])
    assert np.array_equal(changed(later), frame_only)
    assert len(np.unique(later[-STRIP:].reshape(-1, 3), axis=0)) > 2


def test_the_strip_moves_with_time_and_forgets() -> None:
    """The strip spans 10 s over 320 columns: an apex 5 s ago stands at column 160 (159.5 rounded)."""
    drawing = overlay()
    drawing.draw(GRAY, 200 * MS, FaceView(), [event()])

    def apex_column(at_ms: int) -> set[int]:
        strip = drawing.draw(GRAY, at_ms * MS, FaceView(), [])[-STRIP:]
        return set(np.nonzero((strip[24] == 255).all(axis=-1))[0].tolist())

    assert apex_column(5100) == {160}
    assert apex_column(8100) == {64}
    assert apex_column(20_000) == set()


def test_the_flow_of_an_event_is_measured_again_and_shown() -> None:
    onset, apex, _ = render_clip(subject=1, clip=0, size=112)
    drawing, view = overlay(), FaceView(crop=CROP)
    shown = None
    for time_ms, gray in ((0, onset), (100, apex), (200, onset)):
        frame = GRAY.copy()
        frame[8:120, 20:132] = gray[..., None]
        shown = drawing.draw(frame, time_ms * MS, view, [event()] if time_ms == 200 else [])
    assert shown is not None
    expected = flow_colours(optical_flow(onset, apex, Preprocess(image_size=112)))
    assert np.array_equal(shown[24:112, -112:], expected[24:]), "below the line of text"
    assert (expected != 255).any()


def test_the_flow_is_not_shown_where_the_crop_was_elsewhere() -> None:
    drawing = overlay()
    drawing.draw(GRAY, 0, FaceView(crop=CROP), [])
    drawing.draw(GRAY, 100 * MS, FaceView(crop=CROP), [])
    elsewhere = Box(x=60, y=8, width=112, height=112)
    canvas = drawing.draw(GRAY, 200 * MS, FaceView(crop=elsewhere), [event()])
    assert (canvas[30:112, -112:] == 100).all()


@pytest.mark.parametrize("size", [(16, 16), (40, 900)])
def test_frames_of_any_size_can_be_drawn_on(size: tuple[int, int]) -> None:
    frame = np.zeros((*size, 3), np.uint8)
    canvas = overlay().draw(frame, 200 * MS, FaceView(face=FACE, crop=CROP), [event()])
    assert canvas.shape == (size[0] + STRIP, size[1], 3)


def test_colours_say_direction_and_size() -> None:
    """No motion is white, by the docstring; right, left, down, up at full size are four pure hues:
    red, cyan, and the hues at 90 and 270 degrees."""
    flow = np.array([[[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1], [0.5, 0]]], np.float32)
    white, right, left, down, up, half = flow_colours(flow)[0].tolist()
    assert white == [255, 255, 255]
    assert right == [0, 0, 255]
    assert left == [255, 255, 0]
    assert down == pytest.approx([0, 255, 128], abs=2)
    assert up == pytest.approx([255, 0, 128], abs=2)
    assert half == pytest.approx([127, 127, 255], abs=2)
