from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from video_files import stripes

from ptsr_edge.camera.output import Recorder, Windows, fitted, recording, recording_paths
from ptsr_edge.camera.sources import SourceSettings, TimedFrame, VideoSource, parse_source
from ptsr_edge.core.errors import InputError, JobError

MS = 1_000_000


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
