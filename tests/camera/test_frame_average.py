"""Samples of frames at different rates."""

from __future__ import annotations

import numpy as np
import pytest

from ptsr_edge.camera.spotting import FrameAverager


def samples(fps: float, seconds: float = 1.0) -> list[tuple[float, float]]:
    """Time and gray level of each sample of frames whose level is their number."""
    average, found = FrameAverager(0.02), []
    for number in range(round(seconds * fps)):
        sample = average.push(np.full((4, 4), number, np.uint8), round(1e9 * number / fps))
        if sample is not None:
            assert sample.frame.dtype == np.float32
            found.append((sample.time_s, float(sample.frame[0, 0])))
    return found


@pytest.mark.parametrize("fps", [10, 25, 30, 50])
def test_at_a_low_rate_each_frame_is_a_sample(fps: int) -> None:
    found = samples(fps)
    assert len(found) == fps
    # The level is the frame's number, so level / fps is its time.
    np.testing.assert_allclose([time for time, _ in found], [level / fps for _, level in found], atol=1e-8)


@pytest.mark.parametrize(("fps", "together"), [(100, 2), (150, 3), (200, 4)])
def test_at_a_high_rate_frames_are_averaged(fps: int, together: int) -> None:
    found = samples(fps)[1:]  # the first frame is a sample by itself
    steps = np.diff([level for _, level in found])
    np.testing.assert_allclose(steps, together)
    # Mean of the numbers and mean of the times belong together: nothing is shifted.
    np.testing.assert_allclose([time for time, _ in found], [level / fps for _, level in found], atol=1e-8)


def test_large_timestamps_keep_their_digits() -> None:
    average = FrameAverager(0.02)
    frame = np.zeros((2, 2), np.uint8)
    average.push(frame, 10**15)
    average.push(frame, 10**15 + 10_000_000)
    sample = average.push(frame, 10**15 + 20_000_000)
    assert sample is not None
    # A million seconds in a double leave 1e-10 s.
    assert sample.time_s - 1e6 == pytest.approx(0.015, abs=1e-9)
