from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ptsr_edge.camera.sources import DeviceSource, SourceSettings, parse_source
from ptsr_edge.core.errors import InputError, JobError


def test_a_device_that_is_not_there_is_told_with_those_that_are() -> None:
    if Path("/dev/video97").exists():
        pytest.skip("this machine has a 98th capture device")
    source = DeviceSource(parse_source("97"), SourceSettings())
    with pytest.raises(InputError, match=r"no capture device 97 here; found: ([\d, ]+|none)$"):
        source.check()
    with pytest.raises(JobError, match="device 97 cannot be opened"):
        next(source.frames(threading.Event()))


def test_a_device_gives_frames_with_rising_timestamps() -> None:
    there = sorted(Path("/dev").glob("video[0-9]*"))
    if not there:
        pytest.skip("no capture device here")
    source = DeviceSource(parse_source(str(there[0])), SourceSettings())
    frames = source.frames(threading.Event())
    times = [next(frames).pts_ns for _ in range(5)]
    frames.close()
    assert times == sorted(set(times))
