from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import av
import numpy as np
import pytest
from bundle_data import write_tiny_bundle
from camera_data import ClockSpotter, steady

from ptsr_edge.camera.output import SHOWN_S, STRIP, CameraOutput, recording
from ptsr_edge.camera.pipeline import Pipeline
from ptsr_edge.camera.sources import TimedFrame

pytest.importorskip("onnxruntime")
FRAME = np.full((48, 64, 3), 90, np.uint8)


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    write_tiny_bundle(tmp_path / "bundle")
    with Pipeline(tmp_path / "bundle", face="crop", spotter=ClockSpotter) as opened:
        yield opened


def feed(pipeline: Pipeline, output: CameraOutput, name: str, count: int) -> None:
    for frame, pts_ns in steady(count, FRAME):
        output(name, TimedFrame(frame, pts_ns, 0.0), pipeline.push(frame, pts_ns, name))
    output(name, None, pipeline.flush(name))


def test_events_are_lines_at_once(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    feed(pipeline, CameraOutput(pipeline, {}, None), "door", 20)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["stream"] for event in events] == ["door"] * 3
    assert [event["truncated"] for event in events] == [False, False, True]


def test_lines_of_several_threads_do_not_mix(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    output = CameraOutput(pipeline, {}, None)
    threads = [threading.Thread(target=feed, args=(pipeline, output, name, 80)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = capsys.readouterr().out.splitlines()
    assert sorted(json.loads(line)["stream"] for line in lines) == sorted("abc" * 11)


def test_a_recording_shows_what_came_with_the_end_for_a_moment(pipeline: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "seen.mkv"
    with ExitStack() as stack:
        recorders = {"door": stack.enter_context(recording(path))}
        output = CameraOutput(pipeline, recorders, None)
        feed(pipeline, output, "door", 12)
        feed(pipeline, output, "hall", 12)
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 12 + 2, "of the stream that is recorded alone"
    assert frames[-1].height == 48 + STRIP
    last_s = float(frames[-1].time - frames[11].time)
    assert last_s == pytest.approx(SHOWN_S, abs=0.1)


def test_nobody_who_reads_ends_the_run(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

        def fileno(self) -> int:
            return spare.fileno()

    stop, output = threading.Event(), CameraOutput(pipeline, {}, None)
    with Path("/dev/null").open("w", encoding="utf-8") as spare:
        monkeypatch.setattr(sys, "stdout", Closed())
        output.tick(stop)
        assert not stop.is_set()
        feed(pipeline, output, "door", 10)
    output.tick(stop)
    assert stop.is_set()
