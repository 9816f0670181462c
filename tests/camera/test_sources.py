from __future__ import annotations

import logging
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from video_files import SIZE, stripes, write_video

from ptsr_edge.camera.sources import (
    FrameSource,
    SourceAddress,
    SourceRefusedError,
    SourceSettings,
    TimedFrame,
    VideoSource,
    parse_source,
    require_av,
)
from ptsr_edge.core.errors import InputError, JobError, MissingExtraError


def video(path: Path, **settings: float) -> VideoSource:
    return VideoSource(parse_source(str(path)), SourceSettings(**settings))


def read(source: FrameSource) -> list[TimedFrame]:
    return list(source.frames(threading.Event()))


def test_timestamps_are_the_sources_own_even_where_the_rate_varies(tmp_path: Path) -> None:
    times_ms = [0, 33, 40, 100, 150, 151, 1000]
    frames = read(video(write_video(tmp_path / "a.mkv", times_ms)))
    assert [frame.pts_ns for frame in frames] == [time * 1_000_000 for time in times_ms]


@pytest.mark.parametrize("rate", [25, 30, 100, 200])
def test_timestamps_of_a_constant_rate_are_exact_to_the_containers_unit(tmp_path: Path, rate: int) -> None:
    times_ms = [round(number * 1000 / rate) for number in range(40)]
    frames = read(video(write_video(tmp_path / "a.mp4", times_ms)))
    assert [frame.pts_ns for frame in frames] == pytest.approx([t * 1e6 for t in times_ms], abs=1e5)


def test_images_are_those_that_opencv_reads(tmp_path: Path) -> None:
    images = stripes(5)
    images[3][..., 2] = 255
    path = write_video(tmp_path / "a.mkv", range(0, 200, 40), images)
    frames = read(video(path))
    capture = cv2.VideoCapture(str(path))
    for frame in frames:
        assert frame.image.dtype == np.uint8
        assert frame.image.flags.c_contiguous
        assert frame.decode_s > 0
        assert np.array_equal(frame.image, capture.read()[1])
    capture.release()
    blue, green, red = (int(level) for level in frames[3].image[-1, -1])
    assert red > 200 > max(blue, green)


def test_a_video_that_a_phone_took_upright_comes_upright(tmp_path: Path) -> None:
    """A phone writes the sensor's rows and how far they are turned; OpenCV's reader turns them too."""
    program = shutil.which("ffmpeg")
    if program is None:
        pytest.skip("no ffmpeg here: nothing else here writes a turned video")
    path, turned = write_video(tmp_path / "a.mp4", [0, 40, 80]), tmp_path / "turned.mp4"
    call = [program, "-loglevel", "error", "-i", path, "-c", "copy", "-metadata:s:v:0", "rotate=90", turned]
    subprocess.run(call, check=True, stdin=subprocess.DEVNULL)
    capture = cv2.VideoCapture(str(turned))
    expected = [capture.read()[1] for _ in range(3)]
    capture.release()
    if expected[0].shape != (SIZE[0], SIZE[1], 3):
        pytest.skip("this ffmpeg does not write the rotation any more")
    assert np.array_equal([frame.image for frame in read(video(turned))], expected)


def test_gray_video_comes_in_three_channels(tmp_path: Path) -> None:
    path = tmp_path / "gray.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = (*SIZE, "gray")
        frame = av.VideoFrame.from_ndarray(np.full(SIZE[::-1], 77, np.uint8), format="gray")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    (only,) = read(video(path))
    assert np.unique(only.image).tolist() == [77]
    assert only.image.shape == (SIZE[1], SIZE[0], 3)


def test_a_file_that_is_cut_off_gives_what_there_is(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mkv", range(0, 3000, 33))
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert 0 < len(read(video(cut))) < len(read(video(whole)))


@pytest.mark.parametrize("suffix", [".ts", ".mp4"], ids=["marked by the container", "seen by the decoder"])
def test_garbage_in_a_file_is_counted_and_passed(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"a{suffix}", range(0, 6000, 33))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = np.random.default_rng(0).bytes(2000)
    path.write_bytes(content)
    source = video(path)
    frames = read(source)
    assert source.damaged > 0
    assert 100 < len(frames) < 182
    assert frames[-1].pts_ns - frames[0].pts_ns > 5.5e9, "frames after the garbage are there"


def test_a_change_of_resolution_is_passed_on(tmp_path: Path) -> None:
    first = write_video(tmp_path / "a.ts", range(0, 400, 40))
    second = write_video(tmp_path / "b.ts", range(400, 800, 40), size=(96, 64))
    both = tmp_path / "both.ts"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    shapes = [frame.image.shape for frame in read(video(both))]
    assert shapes == [(48, 64, 3)] * 10 + [(64, 96, 3)] * 10


def test_a_stream_without_timestamps_needs_its_rate(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.h264", range(0, 400, 40))
    with pytest.raises(SourceRefusedError, match="no timestamps: give its rate with --fps"):
        read(video(path))
    assert [frame.pts_ns for frame in read(video(path, fps=50))] == [n * 20_000_000 for n in range(10)]


def test_reading_ends_when_it_is_told_to(tmp_path: Path) -> None:
    stop = threading.Event()
    frames = video(write_video(tmp_path / "a.mkv", range(0, 4000, 40))).frames(stop)
    next(frames)
    stop.set()
    assert len(list(frames)) < 10


def test_a_file_is_closed_with_its_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", range(0, 400, 40))
    frames = video(path).frames(threading.Event())
    next(frames)
    open_files = Path("/proc/self/fd")
    if not open_files.is_dir():
        pytest.skip("no /proc here: open files cannot be listed")
    assert str(path) in [str(link.readlink()) for link in open_files.iterdir() if link.is_symlink()]
    frames.close()
    assert str(path) not in [str(link.readlink()) for link in open_files.iterdir() if link.is_symlink()]


@pytest.mark.parametrize(
    "content", [b"", b"no video at all\n" * 100, bytes(5000)], ids=["empty", "text", "zeros"]
)
def test_a_file_that_is_no_video_is_told_before_anything_starts(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.mp4 is no video that FFmpeg can read \(") as caught:
        video(path).check()
    assert "\n" not in str(caught.value)


def test_a_file_with_sound_only_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux([*stream.encode(sound), *stream.encode(None)])
    with pytest.raises(InputError, match=r"a\.wav holds no video"):
        video(path).check()


def test_a_video_passes_the_check(tmp_path: Path) -> None:
    video(write_video(tmp_path / "a.mkv", [0, 40])).check()


def test_nobody_listening_is_an_error_that_names_no_password() -> None:
    source = VideoSource(
        SourceAddress("door", "network", "rtsp://admin:secret@127.0.0.1:9/live"), SourceSettings(stall_s=2)
    )
    assert source.live
    source.check()
    with pytest.raises(JobError, match="Connection refused") as caught:
        read(source)
    assert "secret" not in str(caught.value)


def test_a_server_that_accepts_and_says_nothing_is_left_after_the_limit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"rtsp://127.0.0.1:{server.getsockname()[1]}/live"
        source = VideoSource(SourceAddress("door", "network", address), SourceSettings(stall_s=0.5))
        with pytest.raises(JobError, match=r"nothing came for 0\.5 s"):
            read(source)


def test_opencv_is_loaded_before_pyav() -> None:
    """With PyAV loaded first, OpenCV's windows hang: both bring a libxcb, and the first one serves both."""
    program = (
        "import sys\nfrom ptsr_edge.camera.sources import require_av\n"
        "assert not {'av', 'cv2'} & set(sys.modules)\nrequire_av()\n"
        "names = list(sys.modules)\nassert names.index('cv2') < names.index('av')"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_missing_package_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"reading video needs the package 'av'.*ptsr-edge\[camera\]"):
        require_av()


def test_ffmpeg_does_not_write_into_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_video(tmp_path / "a.mkv", range(0, 400, 40))
    with caplog.at_level(logging.INFO):
        read(video(path))
    assert caplog.records == []
