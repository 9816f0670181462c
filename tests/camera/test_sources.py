from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from video_files import PLAYLISTS, SIZE, stripes, write_video

from ptsr_edge.camera.sources import (
    DeviceSource,
    FrameSource,
    InputPipe,
    RawSource,
    SourceAddress,
    SourceRefusedError,
    SourceSettings,
    TimedFrame,
    VideoSource,
    parse_source,
    parse_sources,
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


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_file_that_names_other_files_opens_none_of_them(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / "other.ts", [40 * number for number in range(30)])
    path = tmp_path / name
    path.write_text(PLAYLISTS[name], encoding="utf-8")
    with av.open(str(path)) as container:
        assert len(list(container.decode(video=0))) == 30, "this FFmpeg follows no such list"
    with pytest.raises(InputError, match="is no video that FFmpeg can read"):
        video(path).check()
    with pytest.raises(JobError):
        read(video(path))
    with path.open("rb") as file:
        pipe = InputPipe(file.fileno(), threading.Event(), 5)
        source = VideoSource(SourceAddress("stdin", "stdin", "-"), SourceSettings(), pipe)
        with pytest.raises(JobError):
            read(source)


def test_a_numbered_name_is_a_file_of_that_name(tmp_path: Path) -> None:
    for name in ("%d.png", "0.png", "1.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((48, 64, 3), np.uint8))
    assert len(read(video(tmp_path / "%d.png"))) == 1


def test_frames_that_no_machine_has_room_for_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = video(write_video(tmp_path / "a.mkv", [0, 40]))
    monkeypatch.setattr("ptsr_edge.camera.sources.MOST_PIXELS", 64 * 48)
    assert len(read(source)) == 2
    monkeypatch.setattr("ptsr_edge.camera.sources.MOST_PIXELS", 64 * 48 - 1)
    with pytest.raises(SourceRefusedError, match="its frames of 64x48 are larger than"):
        read(source)


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
    with pytest.raises(MissingExtraError, match=r"reading video needs the package 'av'.*\[camera\]"):
        require_av()


def test_ffmpeg_does_not_write_into_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_video(tmp_path / "a.mkv", range(0, 400, 40))
    with caplog.at_level(logging.INFO):
        read(video(path))
    assert caplog.records == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-", ("stdin", "stdin", "-")),
        ("in=-", ("in", "stdin", "-")),
        ("0", ("camera0", "device", "0")),
        ("door=2", ("door", "device", "2")),
        ("rtsp://10.0.0.7:554/live", ("10.0.0.7", "network", "rtsp://10.0.0.7:554/live")),
        ("door=RTSP://cam/live?channel=1", ("door", "network", "RTSP://cam/live?channel=1")),
        ("rtsp://cam/live?channel=1", ("cam", "network", "rtsp://cam/live?channel=1")),
    ],
)
def test_a_source_is_what_it_looks_like(text: str, expected: tuple[str, str, str]) -> None:
    found = parse_source(text)
    assert (found.name, found.kind, found.address) == expected


def test_a_file_is_called_after_its_stem_or_as_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hall=1.mp4").touch()
    monkeypatch.chdir(tmp_path)
    assert parse_source("./hall=1.mp4") == SourceAddress("hall=1", "file", "./hall=1.mp4")
    assert parse_source(f"x={tmp_path}/hall=1.mp4").name == "x"


def test_credentials_are_never_shown() -> None:
    source = parse_source("door=rtsp://admin:se%40cret@10.0.0.7:554/user=admin_password=abc.sdp?token=abc")
    assert source.shown == "rtsp://10.0.0.7:554/..."
    assert parse_source("rtsp://10.0.0.7:554/").shown == "rtsp://10.0.0.7:554"
    assert parse_source("-").shown == "standard input"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("door=", "no source 'door='"),
        ("nowhere.mp4", "no source 'nowhere.mp4'"),
        ("concat://a|b", "scheme 'concat'"),
        ("file:///etc/passwd", "accepted: rtsp"),
        ("rtsp:///live", "names no host"),
        ("rtsp://cam:port/live", "cannot be read"),
        ("/", "is a folder"),
    ],
)
def test_what_is_no_source_is_told_in_one_line(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        parse_source(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "rtsp://admin:secret@cam:port/live", "rtsp://admin:sec#secret@cam/live", "rtsp://admin:12/secret@cam/live",
        "rtsp://admin:12?secret@cam/live", "rtsp://admin:secret/@cam/live", "admin:secret@cam/live",
        "rtsp:/admin:secret@cam/live", "rtsp//admin:secret@cam/live", "door=admin:secret@cam",
    ],
)  # fmt: skip
def test_an_error_about_an_address_does_not_show_its_password(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_source(text)
    assert "sec" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_pipe_that_nobody_writes_to_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "video")
    with pytest.raises(InputError, match=r"is no file; a pipe is read by --source - < "):
        parse_source(str(tmp_path / "video"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "closed.mp4"
    path.touch(mode=0)
    with pytest.raises(InputError, match="Permission denied"):
        parse_source(str(path))


def test_several_sources_have_different_names() -> None:
    sources = parse_sources(["door=rtsp://cam/1", "hall=rtsp://cam/2"])
    assert [source.name for source in sources] == ["door", "hall"]
    with pytest.raises(InputError, match="name 'cam' is given twice: write NAME=SOURCE"):
        parse_sources(["rtsp://cam/1", "rtsp://cam/2"])
    with pytest.raises(InputError, match="source '-' is given twice"):
        parse_sources(["a=-", "b=-"])
    with pytest.raises(InputError, match="no source"):
        parse_sources([])


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
        ({"size": (8192, 8193)}, r"at most 67 million pixels; found a size of \(8192, 8193\)"),
        ({"fps": 0.0}, "at most 1000 frames a second; found 0"),
        ({"fps": float("nan")}, "found nan"),
        ({"pixels": "yuv420p"}, "pixels bgr24, gray; found 'yuv420p'"),
    ],
)
def test_bad_raw_settings_are_told(changes: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        RawSource(0, settings(**changes))
