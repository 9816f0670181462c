"""The named baseline of spotting, on fields whose values follow from its definition."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "mdmd.py"


@pytest.fixture(scope="module")
def mdmd() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mdmd", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mdmd"] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


def everywhere(u: float, v: float = 0.0) -> np.ndarray:
    return np.zeros((24, 24, 2), np.float32) + np.float32([u, v])


ALL = np.ones((24, 24), dtype=bool)


def test_what_came_and_went_counts_with_its_length(mdmd: ModuleType) -> None:
    # 3 px away at the frame itself and back at the tail: 3 - 0; still away: 3 - 3; further away: 3 - 5.
    assert mdmd.maximal_difference(everywhere(3), everywhere(0), ALL) == pytest.approx(3)
    assert mdmd.maximal_difference(everywhere(3), everywhere(3), ALL) == pytest.approx(0)
    assert mdmd.maximal_difference(everywhere(3), everywhere(0, 5), ALL) == pytest.approx(-2)


def test_a_third_of_the_blocks_is_averaged(mdmd: ModuleType) -> None:
    flow = everywhere(0)
    flow[:8, :, 0] = 2.0  # two of six rows of blocks are twelve of 36: just the third
    assert mdmd.maximal_difference(flow, everywhere(0), ALL) == pytest.approx(2)
    flow[4:8] = 0.0  # six of the twelve
    assert mdmd.maximal_difference(flow, everywhere(0), ALL) == pytest.approx(1)


def test_in_a_block_the_main_direction_alone_counts(mdmd: ModuleType) -> None:
    flow = everywhere(1)
    flow[::4, :, :] = (0.0, -9.0)  # a quarter of each block's pixels goes up, far: not the main direction
    assert mdmd.maximal_difference(flow, everywhere(0), ALL) == pytest.approx(1)


def test_the_top_third_of_a_block_is_averaged(mdmd: ModuleType) -> None:
    flow = everywhere(1)
    flow[::4, ::4, 0] = 6.0  # one of a block's 16 pixels; the top third are 6
    assert mdmd.maximal_difference(flow, everywhere(0), ALL) == pytest.approx((6 + 5 * 1) / 6)


def test_what_is_masked_does_not_count(mdmd: ModuleType) -> None:
    flow, mask = everywhere(1), ALL.copy()
    flow[8:12, :, 0] = 50.0
    mask[8:12] = False
    assert mdmd.maximal_difference(flow, everywhere(0), mask) == pytest.approx(1)


def test_a_frame_is_held_against_its_neighbours(mdmd: ModuleType) -> None:
    values = np.array([0, 0, 0, 4.0, 0, 0, 2.0, 0, 0, np.nan])
    # k = 3: two frames before and after. Frame 3: 4 - (0 + 0) / 2; frame 6: 2; frames 1 and 5: 0 - 2 < 0.
    np.testing.assert_allclose(mdmd.relative_differences(values, 3), [0, 0, 0, 4, 0, 0, 2, 0, 0, 0])


def test_frames_above_the_threshold_form_intervals(mdmd: ModuleType) -> None:
    times = np.arange(10) / 10
    relative = np.array([0, 0, 5, 6, 5, 0, 0, 0, 4, 0], dtype=float)
    # Mean 2, maximum 6; p = .6 puts the threshold at 4.4. Each frame is .1 s wide.
    narrow = mdmd.intervals(times, relative, mdmd.Rule(0.4, 0.6, False), longest_s=1)
    assert [tuple(np.round(one, 6)) for one in narrow] == [(0.15, 0.45)]
    # p = .4: 3.6, so the lone frame too; k/2 = .2 s before and after.
    wide = mdmd.intervals(times, relative, mdmd.Rule(0.2, 0.4, True), longest_s=1)
    assert [tuple(np.round(one, 6)) for one in wide] == [(0.1, 0.5), (0.7, 0.9)]
    short = mdmd.intervals(times, relative, mdmd.Rule(0.2, 0.4, True), longest_s=0.3)
    assert [tuple(np.round(one, 6)) for one in short] == [(0.7, 0.9)]
