"""A camera on the network: a real RTSP server on loopback that is stopped, started again, and made to hang."""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import gstreamer
import pytest
from bundle_data import write_tiny_bundle
from camera_data import ClockSpotter
from video_files import write_video

from ptsr_edge.camera.pipeline import Pipeline
from ptsr_edge.camera.runner import Backoff, FrameQueue, Stream, Streams
from ptsr_edge.camera.sources import SourceRefusedError, SourceSettings, TimedFrame, VideoSource, parse_source

LIMIT_S = 60.0
"""Much more than any step takes; a step that does not end fails then."""

STALL_S = 1.5

pytest.importorskip("onnxruntime")
_MISSING = gstreamer.missing("Gst,GstRtspServer", "videotestsrc,jpegenc,rtpjpegpay")
pytestmark = pytest.mark.skipif(
    bool(_MISSING),
    reason=f"no RTSP server here ({_MISSING}): apt-get install python3-gi gir1.2-gst-rtsp-server-1.0 "
    "gstreamer1.0-plugins-base gstreamer1.0-plugins-good",
)


class Server:
    """The server as a process, at one port."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        script = Path(__file__).parents[1] / "support" / "rtsp_server.py"
        self.process = subprocess.Popen(
            [gstreamer.PYTHON, str(script), str(self.port)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.process.stdout
        assert self.process.stdout.readline() == "ready\n"

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate(timeout=LIMIT_S)
            self.process = None


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    one.start()
    yield one
    one.stop()


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    write_tiny_bundle(tmp_path / "bundle")
    with Pipeline(tmp_path / "bundle", face="crop", spotter=ClockSpotter) as opened:
        yield opened


def stream(text: str, *, drop: str) -> Stream:
    address = parse_source(text)
    source = VideoSource(address, SourceSettings(stall_s=STALL_S))
    backoff = Backoff(0.1, 0.5, 1000, random.Random(0))
    return Stream(address.name, address.shown, source, FrameQueue(8, drop), backoff)


def wait_for(what: Callable[[], bool], name: str) -> None:
    ends_at = time.monotonic() + LIMIT_S
    while not what():
        assert time.monotonic() < ends_at, f"{name}: not within {LIMIT_S:g} s"
        time.sleep(0.02)


def test_a_camera_that_goes_and_hangs_comes_back_and_disturbs_no_other(
    server: Server, pipeline: Pipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(
        logging.INFO, logger="ptsr_edge"
    )  # whatever a tool of an earlier test made of the root's
    times: dict[str, list[int]] = {"door": [], "hall": []}
    events: list[Any] = []

    def output(name: str, frame: TimedFrame | None, found: Sequence[Any]) -> None:
        if frame is not None:
            times[name].append(frame.pts_ns)
        events.extend(found)

    hall = write_video(tmp_path / "hall.mkv", range(0, 20_000, 40))
    streams = Streams(
        pipeline,
        [
            stream(f"door=rtsp://127.0.0.1:{server.port}/live", drop="oldest"),
            stream(f"hall={hall}", drop="block"),
        ],
        output,
    )
    before = set(threading.enumerate())
    running = threading.Thread(target=streams.run)
    running.start()
    try:
        door = streams.streams[0].counters
        wait_for(lambda: door.pushed > 20, "frames")
        server.stop()
        wait_for(lambda: door.state == "waiting", "the break is noticed")
        server.start()
        seen = door.pushed
        wait_for(lambda: door.connects == 2 and door.pushed > seen + 20, "frames after the restart")
        assert server.process
        os.kill(server.process.pid, signal.SIGSTOP)
        wait_for(lambda: door.state == "waiting", "the stall is noticed")
        os.kill(server.process.pid, signal.SIGCONT)
        seen = door.pushed
        wait_for(lambda: door.connects == 3 and door.pushed > seen + 20, "frames after the stall")
        wait_for(lambda: streams.observe()["hall"].state == "ended", "the file")
    finally:
        began = time.monotonic()
        streams.stop.set()
        running.join(timeout=LIMIT_S)
    assert time.monotonic() - began < STALL_S + 10
    assert set(threading.enumerate()) == before
    assert streams.observe()["door"].reconnects == 2
    assert times["door"] == sorted(times["door"]), "its time goes on over the breaks"
    assert times["hall"] == [time_ms * 1_000_000 for time_ms in range(0, 20_000, 40)]
    assert {event.stream for event in events} == {"door", "hall"}
    assert (
        f"door: nothing came for {STALL_S:g} s; opening rtsp://127.0.0.1:{server.port}/... again"
        in caplog.text
    )
    assert "hall:" not in caplog.text


def test_times_of_a_network_stream_are_the_cameras(server: Server) -> None:
    """30 frames a second: the median step is a thirtieth of a second, to the RTP clock's 90 kHz and its jitter."""
    source = VideoSource(parse_source(f"rtsp://127.0.0.1:{server.port}/live"), SourceSettings(stall_s=10))
    frames = source.frames(threading.Event())
    taken = [next(frames) for _ in range(31)]
    frames.close()
    steps = sorted(b.pts_ns - a.pts_ns for a, b in pairwise(taken))
    assert steps[15] == pytest.approx(1e9 / 30, rel=0.2)
    assert taken[0].image.shape == (112, 112, 3)


def test_a_path_that_the_server_does_not_have_is_a_refusal(server: Server) -> None:
    source = VideoSource(parse_source(f"rtsp://127.0.0.1:{server.port}/other"), SourceSettings(stall_s=10))
    with pytest.raises(SourceRefusedError, match="404"):
        next(source.frames(threading.Event()))
