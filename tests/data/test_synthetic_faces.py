"""Rendered faces: the field that moves landmarks, the pose, the light and the noise of a frame."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ptsr_edge.core.errors import InputError
from ptsr_edge.data import synthetic_clips as synthetic
from ptsr_edge.data import synthetic_faces as faces
from ptsr_edge.data.synthetic_faces import DEPTHS, LANDMARKS, REFERENCE_SIZE, CameraPose

SIZE = 112


@pytest.fixture(scope="module")
def subject() -> faces.Subject:
    return faces.make_subject(np.random.default_rng(3))


def still(size: int = SIZE) -> np.ndarray:
    return np.zeros((size, size, 2), dtype=np.float32)


def test_the_field_passes_through_every_landmark(subject: faces.Subject) -> None:
    moves = np.random.default_rng(0).normal(size=(len(LANDMARKS), 2))
    controls = np.concatenate([subject.landmarks, faces.RIM_PLACES])
    basis = faces.thin_plate_basis(controls, subject.landmarks)
    # Interpolation: exact at its controls up to float32 sums, with the rim held at zero.
    at_landmarks = basis[:, : len(LANDMARKS)] @ moves
    np.testing.assert_allclose(at_landmarks, moves, atol=2e-3)
    field = subject.displacement(moves, SIZE)
    # The same spline at the pixels' centres, from the definition and not from what is kept.
    centres = faces.pixel_centres(SIZE)[[0, 3000, 6328, 12543]]
    expected = faces.thin_plate_basis(controls, centres)[:, : len(LANDMARKS)] @ moves
    np.testing.assert_allclose(field.reshape(-1, 2)[[0, 3000, 6328, 12543]], expected, atol=2e-3)


def test_the_field_is_linear_in_its_moves(subject: faces.Subject) -> None:
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=(2, len(LANDMARKS), 2))
    together = subject.displacement(2 * one - other, 56)
    parts = 2 * subject.displacement(one, 56) - subject.displacement(other, 56)
    np.testing.assert_allclose(together, parts, atol=1e-4)
    assert together.dtype == np.float32
    assert not np.any(subject.displacement(0 * one, 56))


def test_landmarks_stay_on_the_face_in_their_order() -> None:
    for seed in range(20):
        places = dict(zip(LANDMARKS, faces.make_subject(np.random.default_rng(seed)).landmarks, strict=True))
        across, down = np.array(list(places.values())).T
        assert across.min() > 0
        assert across.max() < 1
        # A long face's chin may be cut off, as in any crop; nothing else may.
        assert down.min() > 0
        assert {name for name, place in places.items() if place[1] >= 1} <= {"chin"}
        assert down.max() < 1.05
        for name in ("eye_top", "mouth_corner", "brow_inner"):
            assert places[f"{name}.left"][0] < places[f"{name}.right"][0], "left is the image's left"
        heights = [places[n][1] for n in ("glabella", "nose_tip", "upper_lip", "lower_lip", "chin")]
        assert heights == sorted(heights)


def test_a_subject_is_its_seed() -> None:
    one, same, other = (faces.make_subject(np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one.texture, same.texture)
    np.testing.assert_array_equal(one.landmarks, same.landmarks)
    assert np.abs(one.landmarks - other.landmarks).max() > 0.005
    assert np.abs(one.texture - other.texture).mean() > 5
    assert one.texture.shape == (256, 256)
    assert one.texture.min() >= 0
    assert one.texture.max() <= np.nextafter(np.float32(255), np.float32(256))  # rounding of a blur


@pytest.mark.parametrize("size", [56, 112, 224])
def test_a_frame_is_the_same_again(subject: faces.Subject, size: int) -> None:
    view = CameraPose(shift=(1.2, -0.4), angle=0.05, scale=1.03, gain=0.9, read_noise=2, shot_noise=0.02)
    field = subject.displacement(faces.turn_moves(0.05, 0.0), size)
    before = field.copy()
    first = faces.render(subject, field, view, np.random.default_rng(9))
    again = faces.render(subject, field, view, np.random.default_rng(9))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(field, before)
    assert (first.shape, first.dtype) == ((size, size), np.uint8)
    assert (first != faces.render(subject, field, view, np.random.default_rng(10))).mean() > 0.5


def test_noise_is_drawn_only_where_there_is_some(subject: faces.Subject) -> None:
    rng = np.random.default_rng(0)
    faces.render(subject, still(), CameraPose(), rng)
    assert rng.random() == np.random.default_rng(0).random()


def test_a_displaced_face_shows_its_points_where_the_field_puts_them(subject: faces.Subject) -> None:
    """The same displacement everywhere is a shift: (dx, dy) moves the picture right and down."""
    field = still() + np.float32([2.0, 1.0])
    moved = faces.render(subject, field, CameraPose(), np.random.default_rng(0)).astype(int)
    here = faces.render(subject, still(), CameraPose(), np.random.default_rng(0)).astype(int)
    # Whole pixels fall on samples: rounding to uint8 is left. A rim is cut for what was reflected.
    assert np.abs(moved[5:-4, 6:-4] - here[4:-5, 4:-6]).max() <= 1


def test_a_view_turns_and_scales_about_the_middle(subject: faces.Subject) -> None:
    here = faces.render(subject, still(), CameraPose(), np.random.default_rng(0)).astype(int)
    quarter = faces.render(subject, still(), CameraPose(angle=math.pi / 2), np.random.default_rng(0)).astype(
        int
    )
    # Clockwise in the image; numpy's quarter turn is anticlockwise, so three of them.
    assert np.abs(quarter - np.rot90(here, 3))[3:-3, 3:-3].max() <= 1
    twice = faces.render(subject, still(), CameraPose(scale=2.0), np.random.default_rng(0)).astype(float)
    middle = twice.reshape(56, 2, 56, 2).mean((1, 3))
    # Two by two pixels of the enlarged middle are one pixel of it, but for the cubic's sharpness.
    assert np.abs(middle - here[28:84, 28:84]).mean() < 2.5


def test_a_head_turn_takes_what_stands_out_further() -> None:
    yaw, pitch = 0.1, -0.04
    moves = faces.turn_moves(yaw, pitch)
    # Orthographic: a point at depth z in front of the axis moves by z sin(angle).
    expected = REFERENCE_SIZE * DEPTHS[:, None] * np.array([math.sin(yaw), math.sin(pitch)])
    np.testing.assert_allclose(moves, expected, rtol=1e-12)
    nose, cheek = LANDMARKS.index("nose_tip"), LANDMARKS.index("cheek_outer.left")
    assert moves[nose, 0] == pytest.approx(112 * 0.30 * math.sin(0.1))  # .30 of the side before the ears
    assert moves[nose, 0] > 5 * moves[cheek, 0] > 0
    assert moves[nose, 1] < 0  # up: y grows downwards
    np.testing.assert_array_equal(faces.turn_moves(-yaw, -pitch), -moves)
    assert not faces.turn_moves(0.0, 0.0).any()


def test_a_head_turn_shows_in_the_frame(subject: faces.Subject) -> None:
    """By the definition of flow: a point seen at x in the first frame is at x + d(x) in the second."""
    cv2 = pytest.importorskip("cv2")
    field = subject.displacement(faces.turn_moves(0.09, 0.0), SIZE)
    turned = faces.render(subject, field, CameraPose(), np.random.default_rng(0)).astype(np.float32)
    front = faces.render(subject, still(), CameraPose(), np.random.default_rng(0)).astype(np.float32)
    pixels = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)), axis=-1).astype(np.float32)
    followed = cv2.remap(turned, pixels + field, None, cv2.INTER_CUBIC)
    middle = np.s_[15:-15, 15:-15]
    # Sampled twice, by cubics, and rounded to whole levels twice: about a level is left.
    unexplained = np.abs(followed - front)[middle].mean()
    assert unexplained < 1.5
    assert np.abs(turned - front)[middle].mean() > 4 * unexplained
    column, row = (subject.landmarks[LANDMARKS.index("nose_tip")] * SIZE).astype(int)
    assert field[row, column, 0] == pytest.approx(112 * 0.30 * math.sin(0.09), abs=0.2)


@pytest.mark.parametrize("shape", [(8, 9, 2), (8, 8), (8, 8, 3), (2, 8, 8), (1, 8, 8, 2)])
def test_what_is_no_displacement_is_refused(subject: faces.Subject, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="a displacement must be") as caught:
        faces.render(subject, np.zeros(shape, np.float32), CameraPose(), np.random.default_rng(0))
    assert str(shape) in str(caught.value)


def at(name: str, field: np.ndarray, who: synthetic.Person) -> np.ndarray:
    """The field's value at the pixel that a landmark falls on."""
    column, row = (who.face.landmarks[LANDMARKS.index(name)] * len(field)).astype(int)
    return field[row, column]


def test_thin_plate_reproduces_affine_fields():
    # Bookstein 1989: an affine field has no bending energy, so it is its own interpolant.
    rng = np.random.default_rng(0)
    controls, points = rng.random((12, 2)), rng.random((30, 2))
    matrix, offset = np.array([[1.5, 0.2], [-0.4, 0.8]]), np.array([0.3, -2.0])
    found = faces.thin_plate_basis(controls, points) @ (controls @ matrix + offset)
    np.testing.assert_allclose(found, points @ matrix + offset, atol=1e-4)


def test_displacement_takes_landmarks_along_and_pins_the_rim():
    who = synthetic.person(0)
    moves = np.zeros((len(LANDMARKS), 2))
    moves[LANDMARKS.index("mouth_corner.left")] = (-1.0, -0.5)
    field = who.face.displacement(moves, 112)
    # A landmark is up to .7 px from its pixel's centre, where the bump has fallen by some percent.
    np.testing.assert_allclose(at("mouth_corner.left", field, who), (-1.0, -0.5), atol=0.08)
    np.testing.assert_allclose(at("mouth_corner.right", field, who), 0, atol=0.05)
    rim = np.concatenate([field[0], field[-1], field[:, 0], field[:, -1]])
    assert np.abs(rim).max() < 0.12


def test_displacement_grows_with_the_frame():
    who = synthetic.person(0)
    at_112 = who.face.displacement(who.habits[12], 112)
    at_224 = who.face.displacement(who.habits[12], 224)
    halved = at_224.reshape(112, 2, 112, 2, 2).mean((1, 3)) / 2
    # Pixel centres differ by a quarter of a pixel.
    np.testing.assert_allclose(halved, at_112, atol=0.01)


def test_render_shifts_the_picture_by_its_view():
    # By one whole pixel: the cubic's samples fall on pixels, so only rounding to uint8 is left.
    face = synthetic.person(0).face
    still, rng = np.zeros((112, 112, 2), dtype=np.float32), np.random.default_rng(0)
    here = faces.render(face, still, CameraPose(), rng).astype(int)
    there = faces.render(face, still, CameraPose(shift=(3.0, 1.0)), rng).astype(int)
    assert np.abs(there[11:-10, 13:-10] - here[10:-11, 10:-13]).max() <= 1


def test_render_applies_light_and_noise():
    face = synthetic.person(0).face
    still = np.zeros((112, 112, 2), dtype=np.float32)
    plain = faces.render(face, still, CameraPose(), np.random.default_rng(0)).astype(float)
    dark = faces.render(face, still, CameraPose(gain=0.5), np.random.default_rng(0))
    np.testing.assert_allclose(dark, plain / 2, atol=1)
    # Noise of 2 levels and .04 per level at each pixel: the mean variance is 4 + .04 x the mean level.
    noisy = faces.render(face, still, CameraPose(read_noise=2, shot_noise=0.04), np.random.default_rng(0))
    middle = (plain > 20) & (plain < 235)
    expected = 4 + 0.04 * plain[middle].mean() + 1 / 12
    assert (noisy - plain)[middle].var() == pytest.approx(expected, rel=0.1)
