"""The one preprocessing: flow, strain, normalisation."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import cv2
import numpy as np
import pytest

from ptsr_edge.core.config import Preprocess
from ptsr_edge.core.errors import InputError
from ptsr_edge.data.synthetic_clips import person, render_clip
from ptsr_edge.data.synthetic_faces import LANDMARKS, CameraPose, render
from ptsr_edge.vision import flow
from ptsr_edge.vision.flow import close_up, resize, shown

SIMILARITY = Preprocess(image_size=112)
NO_GLOBAL_MOTION = Preprocess(image_size=112, global_motion="none")


def rendered(view: CameraPose, moves: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Onset, apex and the true field of a noise-free face."""
    face = person(0).face
    field = face.displacement(np.zeros((len(LANDMARKS), 2)) if moves is None else moves, 112)
    rng = np.random.default_rng(0)
    return render(face, np.zeros_like(field), CameraPose(), rng), render(face, field, view, rng), field


def smile(px: float) -> np.ndarray:
    return px * person(0).habits[12] / np.hypot(*person(0).habits[12].T).max()


def error_px(found: np.ndarray, true: np.ndarray) -> float:
    """Mean end-point error over the middle of the face: 16 pixels of rim are left out."""
    return float(np.hypot(*np.moveaxis(found - true, -1, 0))[16:-16, 16:-16].mean())


def test_strain_of_a_linear_field_is_its_tensor_norm():
    # By hand: u = .1 x + .03 y, v = -.05 x + .2 y, so ux = .1, uy = .03, vx = -.05, vy = .2 and
    # sqrt(.1^2 + .2^2 + (.03 - .05)^2 / 2) = sqrt(.0502). Differences of a linear field are exact.
    y, x = np.mgrid[0:9, 0:13].astype(np.float32)
    strain = flow.optical_strain(np.stack([0.1 * x + 0.03 * y, -0.05 * x + 0.2 * y], axis=-1))
    assert strain.shape == (9, 13)
    assert strain.dtype == np.float32
    np.testing.assert_allclose(strain[1:-1, 1:-1], np.sqrt(0.0502), rtol=1e-5)


def test_strain_at_the_border_sees_a_replicated_border():
    # By hand: u = .4 x; at the border the replicated pixel halves the difference: ux = .2.
    u = np.broadcast_to(0.4 * np.arange(6, dtype=np.float32), (5, 6))
    strain = flow.optical_strain(np.stack([u, np.zeros_like(u)], axis=-1))
    np.testing.assert_allclose(strain[:, [0, -1]], 0.2, rtol=1e-6)
    np.testing.assert_allclose(strain[:, 1:-1], 0.4, rtol=1e-6)


def test_strain_of_a_rotation_is_only_its_second_order_part():
    # By hand: u = -w y, v = w x has ux = vy = 0 and uy + vx = 0.
    y, x = np.mgrid[0:8, 0:8].astype(np.float32)
    strain = flow.optical_strain(np.stack([-0.25 * y, 0.25 * x], axis=-1))
    np.testing.assert_allclose(strain[1:-1, 1:-1], 0, atol=1e-6)


def test_strain_weighs_neighbouring_rows_as_sobel_does():
    # By hand: u = 8 at one pixel only. ux there is 0; right and left of it -+8 * 2 / 8 = -+2; at the
    # diagonal neighbours -+8 / 8 = -+1 from ux and the same from uy: sqrt(1 + 1 / 2).
    u = np.zeros((5, 5), dtype=np.float32)
    u[2, 2] = 8
    strain = flow.optical_strain(np.stack([u, np.zeros_like(u)], axis=-1))
    expected = np.array([[1.5, 2, 1.5], [4, 0, 4], [1.5, 2, 1.5]])  # squares; uy = 2 gives 4 / 2
    np.testing.assert_allclose(strain[1:4, 1:4] ** 2, expected, rtol=1e-5)


def test_flow_finds_a_known_translation():
    # The face is rendered 1.5 px further right and 1 px higher. DIS was seen to err by .1 to .5 px.
    onset, apex, _ = rendered(CameraPose(shift=(1.5, -1.0)))
    found = flow.optical_flow(onset, apex, NO_GLOBAL_MOTION)
    assert found.shape == (112, 112, 2)
    assert found.dtype == np.float32
    assert error_px(found, np.array([1.5, -1.0])) < 0.15


def test_flow_finds_an_action_unit():
    onset, apex, true = rendered(CameraPose(), smile(1.5))
    assert np.hypot(*np.moveaxis(true, -1, 0)).max() == pytest.approx(1.5, rel=0.1)
    assert error_px(flow.optical_flow(onset, apex, NO_GLOBAL_MOTION), true) < 0.15


def test_similarity_takes_the_head_out_and_leaves_the_expression():
    head = CameraPose(shift=(2.0, -1.2), angle=0.015, scale=1.008)
    onset, apex, true = rendered(head, smile(1.5))
    with_head = error_px(flow.optical_flow(onset, apex, NO_GLOBAL_MOTION), true)
    without = error_px(flow.optical_flow(onset, apex, SIMILARITY), true)
    assert with_head > 1.5  # the head moved by more than 2 px, less what scale and angle give back
    assert without < 0.25  # DIS's own error, plus what the fit takes of the expression


def test_what_one_fit_leaves_of_the_head_the_next_one_takes():
    # 6 px and 3 degrees are more than a quick flow finds at once.
    onset, apex, _ = rendered(CameraPose(shift=(6.0, -3.0), angle=0.05))
    left = []
    for passes in (0, 1, flow.HEAD_PASSES):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(flow, "HEAD_PASSES", passes)
            left.append(error_px(flow.optical_flow(onset, apex, SIMILARITY), np.zeros(2)))
    assert left[0] > 3 > 2 * left[1] > 4 * left[2]


def test_equal_frames_have_no_flow():
    onset, apex, _ = rendered(CameraPose())
    sample = flow.flow_sample(onset, apex.copy(), SIMILARITY)
    np.testing.assert_allclose(sample, 0, atol=1e-3)


def test_flat_frames_have_finite_flow():
    flat = np.full((40, 40), 90, dtype=np.uint8)
    sample = flow.flow_sample(flat, flat, Preprocess(image_size=40))
    assert np.isfinite(sample).all()
    np.testing.assert_array_equal(flow.to_input(sample), 0)


def test_flow_is_the_same_bit_for_bit_whatever_ran_before():
    onset, apex, _ = rendered(CameraPose(shift=(0.7, 0.4)), smile(1.0))
    first = flow.flow_sample(onset, apex, SIMILARITY)
    cv2.setRNGSeed(12345)
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        second = flow.flow_sample(onset, apex, SIMILARITY)
    finally:
        cv2.setNumThreads(threads)
    np.testing.assert_array_equal(first, second)


def test_the_light_search_leaves_no_lattice_of_patches_in_the_strain():
    def lattice(method: str) -> float:
        strain = np.zeros((112, 112))
        for onset, apex in pairs:
            strain += flow.flow_sample(onset, apex, Preprocess(image_size=112, flow=method))[..., 2]
        strain /= strain.mean()
        return float((strain - cv2.GaussianBlur(strain, (0, 0), 3))[12:-12, 12:-12].std())

    pairs = [render_clip(subject, 0, 112, seed=3)[:2] for subject in range(24)]
    # A patch every 4 pixels, in place of every 3, gives 2.2 times the medium search's.
    assert lattice("dis-light") < 1.4 * lattice("dis-medium")


@pytest.mark.parametrize("preprocess", [NO_GLOBAL_MOTION, SIMILARITY], ids=["none", "similarity"])
def test_flipped_frames_have_flipped_flow(preprocess):
    # DIS sweeps its patches in one direction, so the two fields are not equal: .1 px is below the
    # error that it makes anyway.
    onset, apex, _ = rendered(CameraPose(shift=(0.6, 0.3)), smile(1.5))
    straight = flow.optical_flow(onset, apex, preprocess)
    flipped = flow.optical_flow(onset[:, ::-1].copy(), apex[:, ::-1].copy(), preprocess)
    assert error_px(flipped[:, ::-1] * np.array([-1, 1], dtype=np.float32), straight) < 0.1


def test_flow_is_measured_at_the_frames_own_size():
    # The mean of an area average is the mean: u and v stay in pixels of the 112-pixel frames.
    onset, apex, _ = rendered(CameraPose(), smile(1.5))
    large = flow.flow_sample(onset, apex, SIMILARITY)
    small = flow.flow_sample(onset, apex, Preprocess(image_size=28))
    assert small.shape == (28, 28, 3)
    np.testing.assert_allclose(small.mean((0, 1)), large.mean((0, 1)), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(small, large.reshape(28, 4, 28, 4, 3).mean((1, 3)), atol=1e-5)


def test_small_frames_are_enlarged_to_the_model():
    onset, apex, _ = rendered(CameraPose(), smile(1.5))
    assert flow.flow_sample(onset, apex, Preprocess(image_size=224)).shape == (224, 224, 3)


def random_flow(*lead: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    sample = rng.normal(size=(*lead, 12, 10, 3)) * (1.0, 3.0, 1.0) + (5.0, -2.0, 0.0)
    sample[..., 2] = np.abs(sample[..., 2])
    return sample.astype(np.float32)


def test_normalise_by_its_definition():
    sample = random_flow()
    u, v, strain = np.moveaxis(sample.astype(np.float64), -1, 0)
    spread = np.sqrt((u.var() + v.var()) / 2)
    expected = [(u - np.median(u)) / spread, (v - np.median(v)) / spread, strain / strain.std()]
    found = flow.normalise(sample)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.stack(expected, axis=-1), rtol=1e-5, atol=1e-6)
    assert found[..., 2].min() >= 0


def test_normalise_takes_out_shift_and_scale():
    sample = random_flow()
    changed = sample * np.array([4, 4, 7], dtype=np.float32) + np.array([3, -8, 0], dtype=np.float32)
    # float32 holds 3 + 4 u with an error of 1e-7 of its size, which is up to 40 here.
    np.testing.assert_allclose(flow.normalise(changed), flow.normalise(sample), atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.5, -3.7, 1000.1])
def test_normalise_of_a_flat_field_is_zero(value):
    flat = np.full((28, 28, 3), value, dtype=np.float32)
    np.testing.assert_array_equal(flow.normalise(flat), 0)


def test_normalise_is_the_same_alone_and_in_a_batch():
    batch = random_flow(2, 3)
    together = flow.normalise(batch)
    assert together.shape == batch.shape
    for place in np.ndindex(2, 3):
        np.testing.assert_array_equal(together[place], flow.normalise(batch[place]))


OTHER_THREADS = """
import time
import numpy as np
from ptsr_edge.vision.flow import to_input

flow = np.random.default_rng(0).normal(size=(224, 224, 3)).astype(np.float32)
whole, own = time.process_time(), time.thread_time()
for _ in range(200):
    to_input(flow)
print((time.process_time() - whole) / (time.thread_time() - own))
"""


def test_normalise_wakes_no_other_thread():
    # BLAS wakes its threads for a dot product of 10,000 values and more; they spin for long after it. Without a word about
    # their number, as in a camera.
    words = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    call = [sys.executable, "-c", OTHER_THREADS]
    done = subprocess.run(call, env=words, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.2  # all threads' CPU time over this one's


def test_normalise_leaves_its_input_alone():
    sample = random_flow()
    before = sample.copy()
    flow.normalise(sample)
    np.testing.assert_array_equal(sample, before)


def test_to_input_puts_channels_first():
    sample = random_flow(2)
    found = flow.to_input(sample)
    assert found.shape == (2, 3, 12, 10)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found[1, 2], flow.normalise(sample)[1, ..., 2])
    np.testing.assert_array_equal(flow.to_input(sample[1]), found[1:])


def test_resize_keeps_what_has_the_size_already():
    sample = random_flow()[:10]
    assert flow.resize(sample, 10) is sample


FRAME = np.zeros((32, 32), dtype=np.uint8)


@pytest.mark.parametrize(
    ("onset", "apex", "says"),
    [
        pytest.param(FRAME, FRAME[:30], r"one size; found \(32, 32\) and \(30, 32\)", id="two sizes"),
        pytest.param(FRAME.astype(np.float32), FRAME, "onset .* uint8.*float32", id="float frame"),
        pytest.param(FRAME, np.zeros((32, 32, 3), dtype=np.uint8), "apex .*gray", id="colour frame"),
        pytest.param(FRAME, None, "apex .*NoneType", id="no frame"),
        pytest.param(FRAME[:8], FRAME[:8], "at least 16", id="too small for DIS"),
    ],
)
def test_unfit_frames(onset, apex, says):
    with pytest.raises(InputError, match=says):
        flow.optical_flow(onset, apex, SIMILARITY)


def test_published_flow_cannot_be_measured():
    with pytest.raises(InputError, match="'published'"):
        flow.flow_sample(FRAME, FRAME, Preprocess(image_size=28, flow="published"))


GOOD = np.zeros((28, 28, 3), dtype=np.float32)


def with_value(value: float) -> np.ndarray:
    bad = GOOD.copy()
    bad[3, 4, 1] = value
    return bad


@pytest.mark.parametrize(
    ("sample", "says"),
    [
        pytest.param(GOOD.astype(np.float64), "float64", id="double"),
        pytest.param(GOOD[:20], r"\(28, 28, 3\) float32: u, v, strain; found \(20, 28, 3\)", id="shape"),
        pytest.param(GOOD[None], r"found \(1, 28, 28, 3\)", id="batch"),
        pytest.param(np.moveaxis(GOOD, -1, 0), r"found \(3, 28, 28\)", id="channels first"),
        pytest.param(with_value(np.nan), "found 1 values that are NaN", id="nan"),
        pytest.param(with_value(np.inf), "NaN or infinite", id="inf"),
        pytest.param([[0.0]], "found list", id="no array"),
    ],
)
def test_unfit_samples(sample, says):
    with pytest.raises(InputError, match=says):
        flow.check_flow(sample, 28)


def test_a_good_sample_passes():
    flow.check_flow(GOOD, 28)


@pytest.mark.parametrize(
    ("frame", "found"),
    [
        (np.zeros((20, 20, 3), np.float32), r"\(20, 20, 3\) float32"),
        (np.zeros((20, 20, 4), np.uint8), r"\(20, 20, 4\) uint8"),
        (np.zeros((3, 20, 20), np.uint8), r"\(3, 20, 20\) uint8"),
        (np.zeros((15, 20, 3), np.uint8), r"\(15, 20, 3\) uint8"),
        (np.zeros((0, 20, 3), np.uint8), r"\(0, 20, 3\) uint8"),
        (np.zeros(20, np.uint8), r"\(20,\) uint8"),
        (None, "NoneType"),
        ([[0]], "list"),
    ],
)
def test_what_is_no_frame_is_refused(frame: Any, found: str) -> None:
    with pytest.raises(InputError, match=rf"^a frame must be .*; found {found}$"):
        flow.check_frame(frame)


def test_gray_frames_with_and_without_a_third_axis_are_taken() -> None:
    gray = np.zeros((240, 320, 1), np.uint8)
    assert flow.check_frame(gray).shape == (240, 320)
    assert flow.check_frame(gray[..., 0]).shape == (240, 320)


def test_the_close_up_stretches_a_linear_field_to_itself_over_the_part() -> None:
    # At 112 pixels the part is columns 17 to 91 and rows 14 to 105: 75 of 112 columns fill the width. u = x in
    # pixels of the wide picture is then (17 + 75 (X + .5) / 112 - .5) * 112 / 75 in pixels of the close one.
    x = np.arange(112, dtype=np.float32)
    field = np.zeros((112, 112, 3), dtype=np.float32)
    field[..., 0], field[..., 1], field[..., 2] = x, x[:, None], x
    close = resize(close_up(field), 112)
    columns = np.arange(20, 92)
    at = 17 + 75 * (columns + 0.5) / 112 - 0.5
    assert np.abs(close[50, columns, 0] - at * 112 / 75).max() < 0.05  # bilinear weights have five bits
    assert np.abs(close[50, columns, 2] - at).max() < 0.05  # the strain is not stretched
    rows = 14 + 92 * (columns + 0.5) / 112 - 0.5
    assert np.abs(close[columns, 50, 1] - rows * 112 / 92).max() < 0.05


def test_a_picture_shows_what_the_close_sample_shows() -> None:
    picture = np.zeros((112, 112), dtype=np.uint8)
    picture[14:106, 17:92] = 200
    assert (shown(picture, "close") == 200).all()
    assert shown(picture, "close").shape == (112, 112)
    assert shown(picture, "wide") is picture
