from __future__ import annotations

import io
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from bundle_data import write_tiny_bundle
from camera_data import ClockSpotter, steady
from video_files import stripes

from ptsr_edge.camera.output import (
    SHOWN_S,
    STRIP,
    CameraOutput,
    Overlay,
    Recorder,
    Windows,
    fitted,
    flow_colours,
    recording,
    recording_paths,
)
from ptsr_edge.camera.pipeline import Box, Event, FaceView, Pipeline
from ptsr_edge.camera.sources import SourceSettings, TimedFrame, VideoSource, parse_source
from ptsr_edge.core.errors import InputError, JobError

MS = 1_000_000


FACE, CROP = Box(x=30, y=10, width=60, height=80), Box(x=20, y=8, width=112, height=112)
GRAY = np.full((160, 320, 3), 100, np.uint8)


def read(path: Path) -> list[TimedFrame]:
    return list(VideoSource(parse_source(str(path)), SourceSettings()).frames(threading.Event()))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_a_recording_has_the_frames_and_their_times(tmp_path: Path, suffix: str) -> None:
    """H.264 loses some: 12 gray levels of 255 on the mean, where frames differ by 180."""
    path, images, times_ms = tmp_path / f"seen{suffix}", stripes(6), [100, 133, 150, 400, 401, 900]
    with recording(path) as recorder:
        for image, time_ms in zip(images, times_ms, strict=True):
            recorder.add(image, time_ms * MS)
        assert not path.exists()
    frames = read(path)
    assert [round((f.pts_ns - frames[0].pts_ns) / MS) for f in frames] == [t - 100 for t in times_ms]
    for image, frame in zip(images, frames, strict=True):
        assert np.abs(frame.image.astype(int) - image).mean() < 12
    assert names(tmp_path) == [f"seen{suffix}"]


def test_time_that_does_not_rise_goes_on_by_a_thirtieth(tmp_path: Path) -> None:
    with recording(tmp_path / "seen.mkv") as recorder:
        for image, time_ms in zip(stripes(5), [1000, 1040, 1040, 0, 40], strict=True):
            recorder.add(image, time_ms * MS)
    frames = read(tmp_path / "seen.mkv")
    assert [round(frame.pts_ns / MS) for frame in frames] == [0, 40, 73, 107, 147]


def test_sizes_are_made_even_and_a_change_is_fitted_in(tmp_path: Path) -> None:
    images = [np.full((33, 45, 3), 200, np.uint8), np.full((100, 40, 3), 200, np.uint8)]
    with recording(tmp_path / "seen.mp4") as recorder:
        for number, image in enumerate(images):
            recorder.add(image, number * 40 * MS)
    first, second = (frame.image for frame in read(tmp_path / "seen.mp4"))
    assert first.shape == second.shape == (34, 46, 3)
    assert first.min() > 180
    assert second[:, 20:26].min() > 150
    assert second[:, :8].max() < 60, "bars at the sides: the second image is higher than wide"


@pytest.mark.parametrize(
    ("shape", "inside"),
    [
        ((10, 20), (0, 10, 0, 20)),
        ((9, 19), (0, 10, 0, 20)),
        ((20, 20), (0, 10, 5, 15)),
        ((5, 5), (0, 10, 5, 15)),
    ],
    ids=["same", "odd", "higher", "smaller"],
)
def test_an_image_is_fitted_by_hand_worked_places(shape: tuple[int, int], inside: tuple[int, ...]) -> None:
    canvas = fitted(np.full((*shape, 3), 255, np.uint8), 20, 10)
    expected = np.zeros((10, 20, 3), np.uint8)
    top, bottom, left, right = inside
    expected[top:bottom, left:right] = 255
    assert np.array_equal(canvas, expected)


def test_what_fails_leaves_the_older_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "seen.mp4"
    path.write_bytes(b"older")

    def fail() -> None:
        with recording(path) as recorder:
            recorder.add(stripes(1)[0], 0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_bytes() == b"older"
    assert names(tmp_path) == ["seen.mp4"]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file goes to /dev/full: every write fails there as on a full disk."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    path = tmp_path / "seen.mkv"
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)

    def to_full(_name: str, *rest: Any) -> Any:
        return real("/dev/full", *rest, format="matroska")

    def write() -> None:
        with recording(path) as recorder:
            for number in range(60):
                recorder.add(noise, number * 40 * MS)

    real = av.open
    monkeypatch.setattr(av, "open", to_full)
    with pytest.raises(JobError, match=r"cannot write .*seen\.mkv: No space left on device"):
        write()
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JobError, match="cannot write"), recording(tmp_path / "file" / "seen.mp4"):
        pass


def test_without_a_frame_there_is_no_file(tmp_path: Path) -> None:
    with recording(tmp_path / "seen.mp4") as recorder:
        pass
    assert isinstance(recorder, Recorder)
    assert recorder.frames == 0
    assert names(tmp_path) == []


def test_each_of_several_streams_has_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "seen.mp4"
    assert recording_paths(path, ["door"]) == {"door": path}
    assert recording_paths(path, ["door", "a/b"]) == {
        "door": tmp_path / "seen-door.mp4",
        "a/b": tmp_path / "seen-a_b.mp4",
    }
    assert names(tmp_path) == []


def test_a_recording_that_cannot_be_is_told_beforehand(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a recording is \.mp4, \.mkv, \.mov; found seen\.gif"):
        recording_paths(Path("seen.gif"), ["door"])
    (tmp_path / "seen-b.mp4").mkdir()
    with pytest.raises(InputError, match=r"seen-b\.mp4 cannot be written: it is a folder"):
        recording_paths(tmp_path / "seen.mp4", ["a", "b"])


def test_windows_need_an_opencv_that_has_them_and_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    headless = "GUI:                           NONE" in cv2.getBuildInformation()
    if not headless and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        pytest.skip("this OpenCV has windows, and there is a display to open them on")
    with pytest.raises(
        JobError, match="opencv-python in the place" if headless else "needs a display"
    ) as caught:
        Windows()
    assert "\n" not in str(caught.value)
    with_windows = cv2.getBuildInformation().replace("NONE", "QT5")
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: with_windows)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(JobError, match="needs a display"):
        Windows()


def event(**changes: Any) -> Event:
    content: dict[str, Any] = dict(
        stream="door", label="surprise", probabilities={"surprise": 0.8, "negative": 0.2}, onset_ns=0,
        apex_ns=100 * MS, offset_ns=200 * MS, answered_ns=200 * MS, score=1.0, face=FACE, crop=CROP,
        kept_tokens=[0, 15], grid=4, budget=0.5, budgets_run=[0.5], processing_ms=1.0,
    )  # fmt: skip
    return Event(**content | changes)


def changed(canvas: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(H, W) bool: where something was drawn onto the gray frame."""
    drawn: np.ndarray[Any, Any] = (canvas[:-STRIP] != GRAY).any(axis=-1)
    return drawn


def test_without_a_face_the_frame_is_as_it_was_above_an_empty_strip() -> None:
    canvas = Overlay().draw(GRAY, 0, FaceView(), [])
    assert canvas.shape == (160 + STRIP, 320, 3)
    assert not changed(canvas).any()
    assert len(np.unique(canvas[-STRIP:].reshape(-1, 3), axis=0)) == 1
    assert (GRAY == 100).all(), "the frame that was given is untouched"


def test_face_and_crop_are_framed() -> None:
    drawn = changed(Overlay().draw(GRAY, 0, FaceView(face=FACE, crop=CROP), []))
    expected = np.zeros_like(drawn)
    for box in (FACE, CROP):
        left, top = int(box.x), int(box.y)
        right, bottom = left + int(box.width) - 1, top + int(box.height) - 1
        expected[[top, bottom], left : right + 1] = expected[top : bottom + 1, [left, right]] = True
    assert np.array_equal(drawn, expected)


def test_an_event_shows_its_kept_patches_for_a_moment_and_stays_on_the_strip() -> None:
    """Patches 0 and 15 of a grid of 4: the first and the last of the crop, 28 pixels wide each."""
    drawing, view = Overlay(), FaceView(face=None, crop=CROP)
    drawing.draw(GRAY, 0, view, [])
    at_once = changed(drawing.draw(GRAY, 200 * MS, view, [event()]))
    frame_only = changed(Overlay().draw(GRAY, 0, view, []))
    patches = (at_once & ~frame_only)[25:, :200]
    rows, columns = np.nonzero(patches)
    assert {(20 + 27, 30 - 25), (20 + 84, 100 - 25)} <= set(zip(columns.tolist(), rows.tolist(), strict=True))
    assert not patches[45 - 25 : 85 - 25, 60:80].any(), "no patch in the middle"
    later = drawing.draw(GRAY, 2000 * MS, view, [])
    assert np.array_equal(changed(later), frame_only)
    assert len(np.unique(later[-STRIP:].reshape(-1, 3), axis=0)) > 2


def test_the_strip_moves_with_time_and_forgets() -> None:
    """The strip spans 10 s over 320 columns: an apex 5 s ago stands at column 160 (159.5 rounded)."""
    drawing = Overlay()
    drawing.draw(GRAY, 200 * MS, FaceView(), [event()])

    def apex_column(at_ms: int) -> set[int]:
        strip = drawing.draw(GRAY, at_ms * MS, FaceView(), [])[-STRIP:]
        return set(np.nonzero((strip[24] == 255).all(axis=-1))[0].tolist())

    assert apex_column(5100) == {160}
    assert apex_column(8100) == {64}
    assert apex_column(20_000) == set()


def test_the_flow_of_an_event_is_shown_beside_it() -> None:
    flow = np.random.default_rng(0).normal(0, 0.4, (112, 112, 3)).astype(np.float32)
    shown = Overlay().draw(GRAY, 200 * MS, FaceView(crop=CROP, flow=flow), [event()])
    assert np.array_equal(shown[24:112, -112:], flow_colours(flow)[24:]), "below the line of text"
    again = Overlay().draw(GRAY, 200 * MS, FaceView(crop=CROP, flow=flow), [])
    assert (again[:-STRIP, 200:] == 100).all(), "without an event there is none"


@pytest.mark.parametrize("size", [(16, 16), (40, 900)])
def test_frames_of_any_size_can_be_drawn_on(size: tuple[int, int]) -> None:
    frame = np.zeros((*size, 3), np.uint8)
    canvas = Overlay().draw(frame, 200 * MS, FaceView(face=FACE, crop=CROP), [event()])
    assert canvas.shape == (size[0] + STRIP, size[1], 3)


def test_colours_say_direction_and_size() -> None:
    """No motion is white, by the docstring; right, left, down, up at full size are four pure hues:
    red, cyan, and the hues at 90 and 270 degrees."""
    flow = np.array([[[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1], [0.5, 0]]], np.float32)
    white, right, left, down, up, half = flow_colours(flow)[0].tolist()
    assert white == [255, 255, 255]
    assert right == [0, 0, 255]
    assert left == [255, 255, 0]
    assert down == pytest.approx([0, 255, 128], abs=2)
    assert up == pytest.approx([255, 0, 128], abs=2)
    assert half == pytest.approx([127, 127, 255], abs=2)


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
