from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from video_files import write_video

from ptsr_edge.camera.sources import InputPipe, RawSource, SourceSettings, VideoSource, parse_source
from ptsr_edge.core.errors import InputError, JobError

WIDTH, HEIGHT = 10, 6


@contextmanager
def pipe_with(content: bytes, *, end: bool = True) -> Iterator[int]:
    """The reading end of a pipe into which a thread writes."""
    reading, writing = os.pipe()

    def write() -> None:
        os.write(writing, content) if len(content) < 60_000 else _write_all(writing, content)
        if end:
            os.close(writing)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield reading
    finally:
        thread.join(timeout=10)
        os.close(reading)
        if not end:
            os.close(writing)


def _write_all(descriptor: int, content: bytes) -> None:
    with os.fdopen(os.dup(descriptor), "wb") as stream:
        stream.write(content)


def settings(**changes: object) -> SourceSettings:
    return SourceSettings(**{"size": (WIDTH, HEIGHT), "fps": 30.0, "stall_s": 5.0} | changes)  # type: ignore[arg-type]


def test_frames_come_as_they_were_written_at_their_rate() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, HEIGHT, WIDTH, 3), np.uint8)
    with pipe_with(images.tobytes()) as reading:
        source = RawSource(reading, settings())
        frames = list(source.frames(threading.Event()))
    assert np.array_equal([frame.image for frame in frames], images)
    assert [frame.pts_ns for frame in frames] == [0, 33_333_333, 66_666_667, 100_000_000]
    assert source.damaged == 0
    assert not source.live


def test_a_rate_of_television_does_not_drift() -> None:
    """The n-th frame of 30000/1001 is at n * 1001 / 30000 s; written as 29.97 it would be 3 ms off after 3,000."""
    with pipe_with(bytes(WIDTH * HEIGHT * 3000)) as reading:
        *_, last = RawSource(reading, settings(pixels="gray", fps=30000 / 1001)).frames(threading.Event())
    assert last.pts_ns == round(2999 * 1001 / 30000 * 1e9)


def test_gray_frames_come_in_three_channels() -> None:
    image = np.arange(WIDTH * HEIGHT, dtype=np.uint8).reshape(HEIGHT, WIDTH)
    with pipe_with(image.tobytes()) as reading:
        (frame,) = RawSource(reading, settings(pixels="gray")).frames(threading.Event())
    assert np.array_equal(frame.image, np.dstack([image] * 3))


def test_frames_larger_than_the_pipe_are_put_together() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 240, 320, 3), np.uint8)
    with pipe_with(images.tobytes()) as reading:
        frames = list(RawSource(reading, settings(size=(320, 240))).frames(threading.Event()))
    assert np.array_equal([frame.image for frame in frames], images)


def test_a_short_last_frame_is_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    with pipe_with(bytes(WIDTH * HEIGHT * 3 * 2 + 100)) as reading, caplog.at_level(logging.WARNING):
        source = RawSource(reading, settings())
        assert len(list(source.frames(threading.Event()))) == 2
    assert source.damaged == 1
    assert "100 bytes are left over, a frame of 10x6 bgr24 has 180" in caplog.text
    assert "--size and --pixels" in caplog.text


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "ended before the first frame"), (bytes(100), "not one whole")]
)
def test_less_than_a_frame_is_an_error(content: bytes, said: str) -> None:
    with pipe_with(content) as reading, pytest.raises(JobError, match=said):
        list(RawSource(reading, settings()).frames(threading.Event()))


def test_a_pipe_that_stalls_is_left_after_the_limit() -> None:
    with (
        pipe_with(bytes(100), end=False) as reading,
        pytest.raises(JobError, match=r"nothing came for 0\.3 s"),
    ):
        list(RawSource(reading, settings(stall_s=0.3)).frames(threading.Event()))


def test_a_read_that_waits_ends_when_it_is_told_to() -> None:
    stop = threading.Event()
    with pipe_with(bytes(100), end=False) as reading:
        threading.Timer(0.2, stop.set).start()
        began = time.monotonic()
        assert list(RawSource(reading, settings(stall_s=60)).frames(stop)) == []
        assert time.monotonic() - began < 10


def test_frames_come_from_a_file_as_well(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(WIDTH * HEIGHT * 3 * 5))
    with (tmp_path / "raw").open("rb") as stream:
        assert len(list(RawSource(stream.fileno(), settings()).frames(threading.Event()))) == 5


def test_a_container_on_standard_input_keeps_its_timestamps(tmp_path: Path) -> None:
    times_ms = [0, 10, 50, 300]
    content = write_video(tmp_path / "a.mkv", times_ms).read_bytes()
    stop = threading.Event()
    with pipe_with(content) as reading:
        source = VideoSource(parse_source("-"), settings(size=None), InputPipe(reading, stop, 5))
        found = [frame.pts_ns for frame in source.frames(stop)]
    assert found == [time * 1_000_000 for time in times_ms]


@pytest.mark.parametrize("content", [b"", bytes(20_000)], ids=["nothing", "raw frames"])
def test_standard_input_without_a_container_is_told(content: bytes) -> None:
    stop = threading.Event()
    with pipe_with(content) as reading:
        source = VideoSource(parse_source("-"), settings(size=None), InputPipe(reading, stop, 5))
        with pytest.raises(JobError, match="Invalid data|End of file"):
            list(source.frames(stop))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": None}, "--size 640x360 --fps 30"),
        ({"fps": None}, "--size 640x360 --fps 30"),
        ({"size": (0, 6)}, r"1 to 16384 a side; found \(0, 6\)"),
        ({"fps": 0.0}, "at most 1000 frames a second; found 0"),
        ({"fps": float("nan")}, "found nan"),
        ({"pixels": "yuv420p"}, "pixels bgr24, gray; found 'yuv420p'"),
    ],
)
def test_bad_settings_are_told(changes: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        RawSource(0, settings(**changes))
