"""Motion of a face's parts, against displacements that were rendered."""

from __future__ import annotations

import numpy as np
import pytest

from ptsr_edge.camera.face_motion import EYES, REGIONS, SIDE, MotionMeter, changed_share, expressive_mask
from ptsr_edge.data import synthetic_faces as faces
from ptsr_edge.data.synthetic_faces import LANDMARKS, CameraPose

cv2 = pytest.importorskip("cv2")


@pytest.fixture(scope="module")
def subject() -> faces.Subject:
    return faces.make_subject(np.random.default_rng(3))


def frame(
    subject: faces.Subject, moves: dict[str, tuple[float, float]], view: CameraPose | None = None
) -> np.ndarray:
    landmarks = np.zeros((len(LANDMARKS), 2))
    for name, move in moves.items():
        landmarks[LANDMARKS.index(name)] = move
    return faces.render(
        subject, subject.displacement(landmarks, SIDE), view or CameraPose(), np.random.default_rng(0)
    )


def measured(subject: faces.Subject, *frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    meter = MotionMeter()
    meter.measure(frame(subject, {}))
    for each in frames:
        motion = meter.measure(each)
    return motion.regions, motion.rigid, motion.residual_share


def test_the_first_frame_is_where_everything_is_zero(subject: faces.Subject) -> None:
    motion = MotionMeter().measure(frame(subject, {}))
    assert not motion.regions.any()
    assert not motion.rigid.any()
    assert motion.regions.shape == (len(REGIONS), 2)


def test_the_same_frame_again_has_not_moved(subject: faces.Subject) -> None:
    regions, rigid, residual = measured(subject, frame(subject, {}))
    np.testing.assert_allclose(regions, 0, atol=1e-4)
    np.testing.assert_allclose(rigid, 0, atol=1e-4)
    assert residual < 1e-4


def test_a_raised_brow_moves_its_region_up_and_little_else(subject: faces.Subject) -> None:
    parts = ("brow_inner", "brow_mid", "brow_outer", "forehead", "lid_crease")
    regions, _, _ = measured(subject, frame(subject, {f"{part}.left": (0.0, -1.0) for part in parts}))
    here = REGIONS.index("brow_inner.left")
    # The field's mean over the region is (0, -1.06); the forehead, which the head is read by, moved along, so
    # that about half is seen. Edges that slant turn it a little.
    assert -1.1 < regions[here, 1] < -0.4
    assert abs(regions[here, 0]) < 0.3 * abs(regions[here, 1])
    for name in ("mouth_corner.left", "mouth_corner.right", "lower_lip", "brow_outer.right"):
        assert np.abs(regions[REGIONS.index(name)]).max() < 0.5 * abs(regions[here, 1]), name


def test_a_mouth_corner_that_is_pulled_moves_out_and_up(subject: faces.Subject) -> None:
    regions, _, _ = measured(subject, frame(subject, {"mouth_corner.right": (0.8, -0.8)}))
    across, down = regions[REGIONS.index("mouth_corner.right")]
    assert across > 0.2
    assert down < -0.2


@pytest.mark.parametrize("shift", [(1.0, 0.0), (0.0, -1.5), (1.3, 1.1)])
def test_a_head_that_moves_is_rigid_motion_alone(subject: faces.Subject, shift: tuple[float, float]) -> None:
    regions, rigid, _ = measured(subject, frame(subject, {}, CameraPose(shift=shift)))
    # A pure shift may be told as a turn in part, which takes the parts along a little unequally.
    np.testing.assert_allclose((rigid + regions)[:-EYES], [shift] * (len(REGIONS) - EYES), atol=0.15)
    assert np.abs(regions[:-EYES]).max() < 0.15


def test_light_is_no_motion(subject: faces.Subject) -> None:
    regions, rigid, _ = measured(subject, frame(subject, {}, CameraPose(gain=0.9, gradient=(0.05, -0.05))))
    # Ten per cent of gain alone would be pixels of motion; ramps within a region remain.
    assert np.abs(regions[:-EYES]).max() < 0.12
    assert np.abs(rigid).max() < 0.12


def test_a_new_reference_continues_where_the_old_one_was(subject: faces.Subject) -> None:
    """Six pixels in steps of one: the reference is replaced on the way, and the way stays whole."""
    steps = [frame(subject, {}, CameraPose(shift=(float(step), 0.0))) for step in range(1, 7)]
    regions, rigid, _ = measured(subject, *steps)
    np.testing.assert_allclose((rigid + regions)[:-EYES, 0], 6.0, atol=0.3)
    back = [frame(subject, {}, CameraPose(shift=(float(step), 0.0))) for step in range(5, -1, -1)]
    regions, rigid, _ = measured(subject, *steps, *back)
    np.testing.assert_allclose((rigid + regions)[:-EYES], 0.0, atol=0.15)


def test_another_picture_leaves_much_unexplained(subject: faces.Subject) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE)).astype(np.uint8)
    face = frame(subject, {})
    assert measured(subject, face)[2] < 0.05
    # sqrt(1 - r^2): independent gray levels do not correlate; nor does what is flat or negative.
    for other in (noise, np.full_like(face, 90), 255 - face):
        assert measured(subject, other)[2] > 0.9


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_flat_picture_has_no_motion(level: int) -> None:
    meter, flat = MotionMeter(), np.full((SIDE, SIDE), level, np.uint8)
    meter.measure(flat)
    motion = meter.measure(flat)
    np.testing.assert_allclose(motion.regions, 0, atol=1e-3)
    assert np.isfinite(motion.rigid).all()


def test_motion_is_stated_at_112_pixels_whatever_the_crop() -> None:
    person = faces.make_subject(np.random.default_rng(3))
    moves = np.zeros((len(LANDMARKS), 2))
    moves[LANDMARKS.index("mouth_corner.left")] = (-1.0, -1.0)
    found = []
    for size in (112, 224):
        meter = MotionMeter()
        for share in (0, 1):
            field = person.displacement(share * moves, size)
            motion = meter.measure(faces.render(person, field, CameraPose(), np.random.default_rng(0)))
        found.append(motion.regions[REGIONS.index("mouth_corner.left")])
    np.testing.assert_allclose(*found, atol=0.1)


def test_the_mask_leaves_the_eyes_out() -> None:
    mask = expressive_mask()
    assert mask.shape == (SIDE, SIDE)
    assert not mask[round(0.33 * SIDE), round(0.30 * SIDE)]  # the left eye
    assert mask[round(0.20 * SIDE), round(0.33 * SIDE)]  # the left brow
    assert mask[round(0.66 * SIDE), round(0.30 * SIDE)]  # the left mouth corner


def hand(crop: np.ndarray, x: float, y: float, size: float = 0.35) -> np.ndarray:
    """The crop with a patterned square before it, `size` of its side wide; x, y is its corner, likewise."""
    covered, side = crop.copy(), round(size * len(crop))
    top, left = round(y * len(crop)), round(x * len(crop))
    grain = cv2.GaussianBlur(np.random.default_rng(1).normal(0, 1, (side, side)), (0, 0), 3)
    covered[top : top + side, left : left + side] = np.clip(160 + 40 * grain / grain.std(), 0, 255)
    return covered


def test_a_motion_is_no_change_of_what_is_seen(subject: faces.Subject) -> None:
    plain = frame(subject, {})
    assert changed_share(plain, plain) == 0
    smile = {f"mouth_corner.{side}": (sign * 2.0, -2.0) for side, sign in (("left", -1), ("right", 1))}
    turned = CameraPose(shift=(2.0, -1.0), angle=0.02, scale=1.01, gain=0.8, gradient=(0.05, 0.05))
    for other in (frame(subject, smile), frame(subject, {}, turned)):
        assert changed_share(plain, other) < 0.02
    lids = {f"eye_top.{side}": (0.0, 5.0) for side in ("left", "right")}
    assert (
        changed_share(plain, frame(subject, {name: move for name, move in lids.items() if name in LANDMARKS}))
        < 0.02
    )


@pytest.mark.parametrize("side", [112, 224])
def test_a_hand_before_the_mouth_is_a_change(subject: faces.Subject, side: int) -> None:
    plain = cv2.resize(frame(subject, {}), (side, side))
    covered = hand(plain, 0.3, 0.55)
    # The square of 39 pixels is .19 of the inner .8 x .8 of the face; neighbourhoods reach 7 pixels further: .35.
    for one, other in ((plain, covered), (covered, plain)):
        assert 0.1 < changed_share(one, other) < 0.36
