from __future__ import annotations

import errno
import io
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast, get_args

import av
import cv2
import numpy as np
import pytest
from bundle_data import write_tiny_bundle
from camera_data import ClockSpotter, steady
from video_files import stripes

from ptsr_edge.camera.metrics import CAUSES
from ptsr_edge.camera.output import (
    _CROP,
    _FACE,
    _PATCH,
    LEAST_HEIGHT,
    MOST_WIDTH,
    PANEL,
    SHOWN_S,
    STRIP,
    CameraOutput,
    Encoder,
    Image,
    Overlay,
    Recorder,
    Windows,
    check_encoder,
    class_colours,
    enlarged,
    fitted,
    kept_patches,
    motion_arrows,
    recording,
    recording_paths,
)
from ptsr_edge.camera.pipeline import Box, Event, FaceView, Pipeline
from ptsr_edge.camera.sources import SourceSettings, TimedFrame, VideoSource, parse_source
from ptsr_edge.core.errors import InputError, JobError

MS = 1_000_000


FACE, CROP = Box(x=30, y=10, width=60, height=80), Box(x=20, y=8, width=112, height=112)


def read(path: Path) -> list[TimedFrame]:
    return list(VideoSource(parse_source(str(path)), SourceSettings()).frames(threading.Event()))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("encoder", get_args(Encoder))
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_a_recording_has_the_frames_and_their_times(tmp_path: Path, suffix: str, encoder: Encoder) -> None:
    """Both encoders lose some: 12 gray levels of 255 on the mean, where frames differ by 180."""
    if encoder == "libx264" and encoder not in av.codecs_available:
        pytest.skip("this FFmpeg was built without libx264")
    path, images, times_ms = tmp_path / f"seen{suffix}", stripes(6), [100, 133, 150, 400, 401, 900]
    with recording(path, encoder) as recorder:
        for image, time_ms in zip(images, times_ms, strict=True):
            recorder.add(image, time_ms * MS)
        assert not path.exists()
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == {"libx264": "h264"}.get(encoder, encoder)
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


def test_an_encoder_that_ffmpeg_lacks_is_told_beforehand() -> None:
    check_encoder("mpeg4")
    with pytest.raises(InputError, match="was built without the encoder libnone; known: mpeg4, libx264"):
        check_encoder(cast("Encoder", "libnone"))


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
        apex_ns=100 * MS, offset_ns=200 * MS, answered_ns=200 * MS, onset_frame=0, apex_frame=3, offset_frame=6,
        answered_frame=6, apex_at="", answered_at="", score=1.0, face=FACE, crop=CROP,
        kept_tokens=[0, 15], grid=4, budget=0.5, budgets_run=[0.5], processing_ms=1.0,
    )  # fmt: skip
    return Event(**content | changes)


LARGE = np.full((480, 640, 3), 100, np.uint8)
"""Large enough to be shown as it is: everything beside it is the panel, below it the strip."""

LABELS = ("negative", "positive", "surprise")


def overlay(**changes: Any) -> Overlay:
    return Overlay(**dict(stream="door", labels=LABELS) | changes)


def picture(canvas: Image) -> Image:
    return canvas[:480, :640]


def panel(canvas: Image) -> Image:
    return canvas[:-STRIP, 640:]


def rows_that_differ(one: Image, other: Image) -> set[int]:
    """Lines of text, of 17 pixels below a margin of 8, in which two panels differ."""
    return {(int(row) - 8) // 17 for row in np.nonzero((one != other).any(axis=(1, 2)))[0]}


def test_without_a_face_the_picture_is_as_it_was_beside_the_panel_above_the_strip() -> None:
    canvas = overlay().draw(LARGE, 0, FaceView(), [])
    assert canvas.shape == (480 + STRIP, 640 + PANEL, 3)
    assert (picture(canvas) == 100).all()
    assert (LARGE == 100).all(), "the frame that was given is untouched"


def test_face_and_crop_are_framed() -> None:
    drawn = (picture(overlay().draw(LARGE, 0, FaceView(face=FACE, crop=CROP), [])) != LARGE).any(axis=-1)
    expected = np.zeros_like(drawn)
    for box in (FACE, CROP):
        left, top = int(box.x), int(box.y)
        right, bottom = left + int(box.width) - 1, top + int(box.height) - 1
        expected[[top, bottom], left : right + 1] = expected[top : bottom + 1, [left, right]] = True
    assert np.array_equal(drawn, expected)


def seen(**changes: Any) -> FaceView:
    flow = np.random.default_rng(0).normal(0, 0.4, (112, 112, 3)).astype(np.float32)
    apex = np.full((112, 112), 90, np.uint8)
    return FaceView(**dict(face=FACE, crop=CROP, flow=flow, apex=apex, frame=7) | changes)


def test_nothing_of_an_event_lies_over_the_picture() -> None:
    plain = overlay().draw(LARGE, 200 * MS, seen(), [])
    told = overlay().draw(LARGE, 200 * MS, seen(), [event()])
    assert np.array_equal(picture(told), picture(plain))
    assert not np.array_equal(panel(told), panel(plain))


def test_what_an_event_was_read_from_stays_for_a_moment_and_the_event_on_the_strip() -> None:
    drawing = overlay()
    at_once = drawing.draw(LARGE, 200 * MS, seen(), [event()])
    patches = kept_patches(seen().apex, [0, 15], 4, (PANEL - 3 * 8) // 2)
    assert any(
        np.array_equal(panel(at_once)[row : row + len(patches), 8 : 8 + len(patches)], patches)
        for row in range(480 - len(patches))
    )
    drawing.draw(LARGE, 200 * MS + round(SHOWN_S * 1e9), seen(), [])
    later = drawing.draw(LARGE, 201 * MS + round(SHOWN_S * 1e9), seen(), [])
    assert (
        rows_that_differ(
            panel(later), panel(overlay().draw(LARGE, 201 * MS + round(SHOWN_S * 1e9), seen(), []))
        )
        == set()
    )
    assert len(np.unique(later[-STRIP:].reshape(-1, 3), axis=0)) > 2


@pytest.mark.parametrize(
    ("drawing", "pts_ns", "changes", "row"),
    [
        ({"stream": "hall"}, 0, {}, 0),
        ({}, 0, {"frame": 8}, 0),
        ({}, 1000 * MS, {}, 1),
        ({}, 0, {"face": None}, 1),
        ({"note": "synthetic weights"}, 0, {}, 2),
    ],
    ids=["stream", "frame", "time", "no face", "weights"],
)
def test_the_panel_says(drawing: dict[str, Any], pts_ns: int, changes: dict[str, Any], row: int) -> None:
    plain = panel(overlay().draw(LARGE, 0, seen(), []))
    other = panel(overlay(**drawing).draw(LARGE, pts_ns, seen(**changes), []))
    assert rows_that_differ(plain, other) == {row}


def test_the_panel_counts_what_was_set_aside_without_growing() -> None:
    counts = dict.fromkeys(CAUSES, 12)
    plain, full = (overlay().draw(LARGE, 0, seen(set_aside=aside), []) for aside in ({}, counts))
    assert full.shape == plain.shape
    # Below stream, time, weights, three colours and two lines of classes: a title and three lines of two causes each.
    assert len(rows_that_differ(panel(plain), panel(full))) in (4, 5)


def test_one_colour_has_one_meaning() -> None:
    canvas = overlay().draw(LARGE, 0, seen(), [])
    marks = {tuple(pixel) for pixel in panel(canvas)[8:150:1, 8 + 2].tolist()} - {(32, 32, 32)}
    second_column = {tuple(pixel) for pixel in panel(canvas)[:150, PANEL // 2 + 2].tolist()}
    colours = class_colours(LABELS)
    assert len(set(colours.values())) == len(LABELS)
    assert set(colours.values()) <= marks | second_column
    assert not set(class_colours([str(number) for number in range(9)]).values()) & {_FACE, _CROP, _PATCH}
    assert {_FACE, _CROP, _PATCH} <= marks


def test_kept_patches_are_framed_and_the_others_dark() -> None:
    """Patches 0 and 15 of a grid of 4, 28 pixels wide each; 90 gray levels are 30 where nothing was kept."""
    shown = kept_patches(np.full((56, 56), 90, np.uint8), [0, 15], 4, 112)
    for first in (0, 84):
        inner = shown[first + 1 : first + 27, first + 1 : first + 27]
        assert (inner == 90).all()
        assert (shown[first, first : first + 28] == _PATCH).all()
    assert (shown[:28, 28:] == 30).all()
    everything = kept_patches(np.full((56, 56), 90, np.uint8), list(range(16)), 4, 112)
    assert (everything == 90).all(), "no frames where all were kept"


def test_arrows_are_eight_times_as_long_as_the_motion() -> None:
    """A pixel to the right everywhere: the first arrow goes from (4, 4), the middle of its 8 pixels, to (12, 4)."""
    flow = np.zeros((112, 112, 3), np.float32)
    still = motion_arrows(flow, 112)
    flow[..., 0] = 1
    moved = motion_arrows(flow, 112)
    assert (moved[4, 4:13, 0] > 100).all()
    assert not moved[4, :3].any()
    assert np.count_nonzero(still) < np.count_nonzero(moved) / 4


def test_the_strip_moves_with_time_and_forgets() -> None:
    """The strip spans 10 s over 940 columns: an apex 5 s ago stands at column 470 (469.5 rounded)."""
    drawing = overlay()
    drawing.draw(LARGE, 200 * MS, FaceView(), [event()])

    def apex_column(at_ms: int) -> set[int]:
        strip = drawing.draw(LARGE, at_ms * MS, FaceView(), [])[-STRIP:]
        return set(np.nonzero((strip[22] == 255).all(axis=-1))[0].tolist())

    assert apex_column(5100) == {470}
    assert apex_column(8100) == {188}
    assert apex_column(20_000) == set()


def test_the_bar_of_an_unsure_event_is_hollow() -> None:
    def coloured(outcome: str) -> int:
        answered = event(outcome=outcome, onset_ns=0, offset_ns=2000 * MS)
        strip = overlay().draw(LARGE, 3000 * MS, FaceView(), [answered])[-STRIP:]
        return int((strip == class_colours(LABELS)["surprise"]).all(axis=-1).sum())

    assert 0 < coloured("unsure") < coloured("classified") / 2


@pytest.mark.parametrize("size", [(16, 16), (40, 900), (112, 112), (1080, 1920), (900, 40)])
def test_frames_of_any_size_can_be_drawn_on_and_text_has_room(size: tuple[int, int]) -> None:
    frame = np.full((*size, 3), 100, np.uint8)
    canvas = overlay().draw(frame, 200 * MS, seen(face=None, crop=None), [event()])
    larger, zoom = enlarged(frame)
    assert larger.shape[0] >= LEAST_HEIGHT or larger.shape[1] >= MOST_WIDTH
    assert larger.shape[:2] == tuple(round(zoom * side) for side in size)
    assert np.array_equal(canvas[: larger.shape[0], : larger.shape[1]], larger)
    assert canvas.shape[0] >= LEAST_HEIGHT
    assert canvas.shape[1] >= larger.shape[1] + PANEL


FRAME = np.full((48, 64, 3), 90, np.uint8)


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    write_tiny_bundle(tmp_path / "bundle")
    how = dict(face="crop", spotter=ClockSpotter, tell_truncated=True)
    with Pipeline(tmp_path / "bundle", **how) as opened:  # type: ignore[arg-type]
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
    assert not any("kept_tokens" in event for event in events)
    feed(pipeline, CameraOutput(pipeline, {}, None, kept=True), "hall", 10)
    assert json.loads(capsys.readouterr().out.splitlines()[0])["kept_tokens"]


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
    assert frames[-1].height == LEAST_HEIGHT + STRIP
    last_s = float(frames[-1].time - frames[11].time)
    assert last_s == pytest.approx(SHOWN_S, abs=0.1)


def test_a_recording_that_fails_is_told_once_and_ends_no_events(
    pipeline: Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write() -> None:
        with recording(tmp_path / "seen.mp4") as recorder:
            feed(pipeline, CameraOutput(pipeline, {"door": recorder}, None), "door", 20)

    monkeypatch.setattr(av, "open", full)
    with pytest.raises(JobError, match=r"cannot write .*seen\.mp4: No space left on device"):
        write()
    assert len(capsys.readouterr().out.splitlines()) == 3
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said.endswith("No space left on device: the stream goes on without its recording")
    assert not (tmp_path / "seen.mp4").exists()


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
