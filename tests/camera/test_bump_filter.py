"""Heights of bumps, and the noise of a trailing window."""

from __future__ import annotations

import numpy as np
import pytest

from ptsr_edge.camera.spotting import TrailingNoise, bump, bump_kernels

STEP_S = 0.02
DURATIONS_S = (0.08, 0.2, 0.5)


@pytest.fixture(scope="module")
def kernels() -> np.ndarray:
    return bump_kernels(DURATIONS_S, 0.12, STEP_S)


def times(kernels: np.ndarray) -> np.ndarray:
    half = kernels.shape[1] // 2
    return STEP_S * np.arange(-half, half + 1, dtype=float)


def test_a_bump_rises_from_0_to_1_and_comes_back() -> None:
    at = bump(np.array([-0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2]), 0.2)
    # Half a cosine down from the middle: (1 + cos(pi / 2)) / 2 = .5 halfway.
    np.testing.assert_allclose(at, [0, 0, 0.5, 1, 0.5, 0, 0], atol=1e-12)


def test_each_kernel_reads_the_height_of_its_bump(kernels: np.ndarray) -> None:
    for row, lasts_s in zip(kernels, DURATIONS_S, strict=True):
        # Least squares of a signal that it can explain is exact.
        assert row @ (0.7 * bump(times(kernels), lasts_s)) == pytest.approx(0.7, abs=1e-9)


def test_level_and_slope_are_no_bump(kernels: np.ndarray) -> None:
    np.testing.assert_allclose(kernels @ (3.0 - 8.0 * times(kernels)), 0, atol=1e-9)


def test_a_shorter_bump_looks_at_less(kernels: np.ndarray) -> None:
    # Half of .5 s and .12 s of rest are 18 or 19 samples of .02 s; half of .08 s and .12 s are 8.
    assert kernels.shape[1] == 2 * round((0.25 + 0.12) / STEP_S) + 1
    middle = kernels.shape[1] // 2
    assert not kernels[0, : middle - 8].any()
    assert not kernels[0, middle + 9 :].any()
    assert kernels[0, middle - 8] != 0


def test_noise_is_the_standard_deviation_that_rare_events_do_not_change() -> None:
    rng = np.random.default_rng(0)
    noise = TrailingNoise(window=2000, refresh=1, floor=0.01)
    for number in range(2000):
        noise.add(np.array([rng.normal(0, 0.3), 0.0]) + (50 if number % 40 == 0 else 0))
    # 2.5 % of outliers move the median by about 4 %; 2000 draws leave about 3 %.
    assert noise.sigma[0] == pytest.approx(0.3, rel=0.1)
    assert noise.sigma[1] == pytest.approx(0.01), "no noise at all is taken to be the floor"


def test_noise_forgets_what_is_older_than_its_window() -> None:
    noise = TrailingNoise(window=10, refresh=1, floor=1e-6)
    for height in [5.0] * 10 + [1.0] * 10:
        noise.add(np.array([height]))
    assert noise.sigma == pytest.approx(1.4826)  # the median of ten ones, as a standard deviation
    assert len(noise) == 10


def test_noise_is_looked_at_now_and_then() -> None:
    noise = TrailingNoise(window=10, refresh=4, floor=1e-6)
    seen = []
    for height in (1.0, 9.0, 9.0, 9.0, 9.0):
        noise.add(np.array([height]))
        seen.append(float(noise.sigma[0]) / 1.4826)
    assert seen == pytest.approx([1, 1, 1, 1, 9])  # the first, then after four more
