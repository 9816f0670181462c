"""Frames in, events out, for any number of cameras.

    pipeline = Pipeline("bundle", budget="auto", deadline_ms=33)
    for event in pipeline.push(frame, pts_ns, stream="door"):
        print(event.to_json())

Threads: `push` may be called from several threads. Streams share the runtime session, which is lent to one at a time
for each inference, and the face detector, likewise; everything else belongs to one stream. Pushes to the same stream
follow one another. OpenCV's own threads are the process's and are left as they are: where several streams run,
`cv2.setNumThreads(1)` keeps them from competing. No frame leaves the process, and nothing is written.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from pydantic import Field

from ptsr_edge.bundle import bundle_card
from ptsr_edge.camera.inference import BudgetController, InferenceResult, SharedSession
from ptsr_edge.camera.metrics import StreamStats
from ptsr_edge.camera.spotting import Spotter
from ptsr_edge.camera.stream import CameraStream, OnlineSpotter, Sighting, check_frame, check_pts
from ptsr_edge.core.config import Preprocess
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.core.records import Record
from ptsr_edge.vision.face_detection import Face, FaceOption, open_detector
from ptsr_edge.vision.face_tracking import DETECT_EVERY_S, Region
from ptsr_edge.vision.flow import flow_sample

# FOLDED from camera.camera_event: What the camera answers: one record an event, one JSON line a record.


class Box(Record):
    """A rectangle in pixels of the frame, +x right and +y down; it may reach over the frame's edge."""

    x: float
    y: float
    width: float = Field(gt=0)
    height: float = Field(gt=0)


class FaceView(Record):
    """What of a stream's frames is looked at now.

    Attributes:
        face: the face that is followed; null where there is none.
        crop: the crop that flow is measured in; null where none is placed.
    """

    face: Box | None = None
    crop: Box | None = None


class Event(Record):
    """One micro-expression that was spotted and classified. Times are those of the source, in nanoseconds.

    Attributes:
        stream: the name under which the frames were pushed.
        label: the most probable class.
        probabilities: by label; their sum is 1.
        onset_ns, apex_ns, offset_ns: pts of the frames where the motion starts, is largest and ends.
        answered_ns: pts of the frame with which the answer was complete.
        score: of the spotter; how far the motion stands out.
        face: the face's box at the time of the answer.
        crop: what of the frame was looked at, the same from onset to offset.
        kept_tokens: row-major indices of the patches of the crop that the answer was read from.
        grid: patches along one side of the crop.
        budget: keep rate of the variant that answered.
        budgets_run: keep rates of all variants that were run for it, in order: two where a cascade went on.
        processing_ms: from the beginning of the push that completed the answer to the answer.
        truncated: the stream ended or was cut before the offset was seen.
    """

    stream: str
    label: str
    probabilities: dict[str, float]
    onset_ns: int
    apex_ns: int
    offset_ns: int
    answered_ns: int
    score: float
    face: Box
    crop: Box
    kept_tokens: list[int]
    grid: int
    budget: float
    budgets_run: list[float]
    processing_ms: float
    truncated: bool = False

    @property
    def wait_ms(self) -> float:
        """Time of the source from the apex to the frame that completed the answer."""
        return (self.answered_ns - self.apex_ns) / 1e6

    @property
    def latency_ms(self) -> float:
        """From apex to answer: what was waited for, and what was computed."""
        return self.wait_ms + self.processing_ms

    def to_json(self) -> str:
        """The event as one line of JSON, `latency_ms` and `wait_ms` included."""
        content = self.model_dump_json()
        return f'{content[:-1]},"wait_ms":{self.wait_ms:.3f},"latency_ms":{self.latency_ms:.3f}}}'


CROP_SIDE = 112
"""Least side of the crops that flow is measured in: smaller faces show no flow of half a pixel. As in training."""

MAX_STREAMS = 64

_STATS_WAIT_S = 0.1


class Pipeline:
    """A bundle at work on streams of frames."""

    def __init__(
        self,
        bundle: str | Path,
        *,
        budget: float | str = "auto",
        deadline_ms: float = 33.0,
        face: FaceOption = "auto",
        target: str | None = None,
        precision: str | None = None,
        threads: int | None = 1,
        share_weights: bool = False,
        detect_every_s: float = DETECT_EVERY_S,
        spotter: Callable[[], OnlineSpotter] = Spotter,
    ) -> None:
        """Opens the bundle, loads all budgets and times them, and opens the face detector.

        Args:
            bundle: a folder that `ptsr-edge export` made, of a model whose flow is measured from frames.
            budget: "auto" (the largest that holds the deadline, moved while running), "cascade" (the small one
                first, the full one where that is close; calibrated at export), or a keep rate.
            deadline_ms: that one push may take; "auto" holds it, all count what missed it.
            face: how faces are found; see `face_boxes.open_detector`.
            target, precision, threads, share_weights: as `Session.open`.
            detect_every_s: time of the source between two detections of a face that is followed.
            spotter: makes a spotter for each stream; by default one with `SpotSettings`' defaults.

        Raises:
            InputError: an option or the bundle is not acceptable.
            MissingExtraError: the runtime, OpenCV or the face detector is not installed.
            JobError: the runtime refuses an artifact.
        """
        if not (isinstance(detect_every_s, int | float) and 0 <= detect_every_s < float("inf")):
            raise InputError(f"detect_every_s must be 0 or more seconds, found {detect_every_s!r}")
        self._detector = open_detector(face)
        self._session = SharedSession(
            bundle, target=target, precision=precision, threads=threads, share_weights=share_weights
        )
        self._budget = self._check_budget(budget)
        self._deadline_ms = deadline_ms
        self._detect_every_s = float(detect_every_s)
        self._make_spotter = spotter
        self._side = max(CROP_SIDE, self._session.bundle.preprocess.image_size)
        self._lock = threading.Lock()
        self._streams: dict[str, _Stream] = {}
        self._closed = False
        self._governor()  # refuses a deadline that is none

    def push(self, frame: Any, pts_ns: int, stream: str = "default") -> list[Event]:
        """Takes the next frame of a stream; the events that are complete with it, as a rule none.

        Args:
            frame: (H, W, 3) uint8 BGR, or (H, W) uint8 gray, at least 16 pixels a side; it is not kept.
            pts_ns: when it was taken, in nanoseconds of the source's clock.
            stream: the camera's name.

        Raises:
            InputError: the call is not acceptable; the stream is as it was.
            JobError: the runtime failed, or the pipeline is closed; the stream goes on with the next frame.
        """
        started = time.perf_counter()
        state = self._state(stream)
        with state.lock:
            try:
                taken, pts = check_frame(frame), check_pts(pts_ns)
                sightings = state.camera.take(taken, pts)
            except InputError:
                state.camera.counters.count("rejected")
                raise
            return self._answer(state, sightings, pts, started)

    def flush(self, stream: str = "default") -> list[Event]:
        """A stream's video ends here: the events that can still be told. It may begin anew with the next push."""
        started = time.perf_counter()
        with self._lock:
            state = self._streams.get(stream)
        if state is None:
            return []
        with state.lock:
            pts = state.camera.last_pts_ns
            sightings = state.camera.end()
            return [] if pts is None else self._answer(state, sightings, pts, started)

    def close(self, stream: str | None = None) -> list[Event]:
        """Flushes and forgets a stream, or all of them: then the pipeline takes no more frames."""
        with self._lock:
            names = [stream] if stream is not None else list(self._streams)
            self._closed = self._closed or stream is None
        events = [event for name in names for event in self.flush(name)]
        with self._lock:
            for name in names:
                self._streams.pop(name, None)
        return events

    def stats(self) -> dict[str, StreamStats]:
        """Counters of every stream, by its name."""
        with self._lock:
            streams = list(self._streams.values())
        return {state.name: state.stats() for state in streams}

    def view(self, stream: str = "default") -> FaceView:
        """Where the face and its crop are in the stream's last frame, for drawing them."""
        with self._lock:
            state = self._streams.get(stream)
        if state is None:
            return FaceView()
        with state.lock:
            seen = state.camera.seen
        return FaceView() if seen is None else FaceView(face=_box(seen[0]), crop=_box(seen[1]))

    @property
    def preprocess(self) -> Preprocess:
        """How two crops become the model's input."""
        return self._session.bundle.preprocess

    @property
    def model_card(self) -> str:
        """What the model was trained on, what it may be used for, and what law forbids."""
        provenance = self._session.bundle.provenance
        return str(provenance.get("model_card") or bundle_card(provenance.get("card")))

    @property
    def budgets(self) -> list[float]:
        """Keep rates that are loaded."""
        return list(self._session.budgets)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_budget(self, budget: float | str) -> float | str:
        if budget == "cascade":
            self._session.check_cascade()
            return budget
        return budget if budget == "auto" else self._session.check_budget(budget)  # type: ignore[arg-type]

    def _governor(self) -> BudgetController:
        """Of "auto" over the whole ladder; else one with a single step, which only counts misses."""
        costs = self._session.inference_ms
        if isinstance(self._budget, float):
            costs = {self._budget: costs[self._budget]}
        return BudgetController(costs, self._deadline_ms)

    def _state(self, name: str) -> _Stream:
        if not isinstance(name, str) or not name:
            raise InputError(f"a stream is named by a text that is not empty, found {name!r:.80}")
        with self._lock:
            if self._closed:
                raise JobError("the pipeline is closed: open another one")
            if name not in self._streams:
                if len(self._streams) >= MAX_STREAMS:
                    raise InputError(f"{MAX_STREAMS} streams are open: close(stream) those that have ended")
                camera = CameraStream(
                    self._detector, self._make_spotter, self._side, detect_every_s=self._detect_every_s
                )
                self._streams[name] = _Stream(name, camera, self._governor(), self._budget)
            return self._streams[name]

    def _answer(self, state: _Stream, sightings: list[Sighting], pts_ns: int, started: float) -> list[Event]:
        counters = state.camera.counters
        events, spent = [], dict[float, float]()
        try:
            for sighting in sightings:
                with counters.timed("flow"):
                    flow = flow_sample(sighting.onset, sighting.apex, self._session.bundle.preprocess)
                answer = self._predict(flow, state)
                for took in answer.inference_ms.values():
                    counters.spent("inference", took)
                spent |= answer.inference_ms
                took_ms = (time.perf_counter() - started) * 1e3
                events.append(self._event(state.name, sighting, answer, pts_ns, took_ms))
        except JobError:
            counters.count("failed")
            raise
        finally:
            push_ms = (time.perf_counter() - started) * 1e3
            counters.count("events", len(events))
            counters.pushes_ms.append(push_ms)
            state.governor.saw_push(push_ms, spent, pts_ns)
        return events

    def _predict(self, flow: Any, state: _Stream) -> InferenceResult:
        if self._budget == "cascade":
            return self._session.predict_in_cascade(flow)
        return self._session.predict(flow, state.governor.budget)

    def _event(
        self, stream: str, sighting: Sighting, answer: InferenceResult, pts_ns: int, took_ms: float
    ) -> Event:
        motion, face, region = sighting.motion, sighting.face, sighting.region
        prediction = answer.prediction
        return Event(
            stream=stream,
            label=prediction.label,
            probabilities=prediction.probabilities,
            onset_ns=motion.onset_ns,
            apex_ns=motion.apex_ns,
            offset_ns=motion.offset_ns,
            answered_ns=pts_ns,
            score=motion.score,
            face=_box(face),
            crop=_box(region),
            kept_tokens=np.asarray(prediction.kept_tokens).tolist(),
            grid=self._session.bundle.model.grid,
            budget=prediction.budget,
            budgets_run=list(answer.inference_ms),
            processing_ms=took_ms,
            truncated=sighting.truncated,
        )


def _box(place: Face | Region) -> Box:
    return Box(x=place.x, y=place.y, width=place.width, height=place.height)


class _Stream:
    """A stream, its governor and its lock."""

    def __init__(
        self, name: str, camera: CameraStream, governor: BudgetController, budget: float | str
    ) -> None:
        self.name = name
        self.camera = camera
        self.governor = governor
        self.lock = threading.RLock()
        self._budget = budget
        self._known = self._count()

    def stats(self) -> StreamStats:
        """The counters now; those of the last call where a push does not end, so that one stream holds up no reader."""
        if self.lock.acquire(timeout=_STATS_WAIT_S):
            try:
                self._known = self._count()
            finally:
                self.lock.release()
        return self._known

    def _count(self) -> StreamStats:
        counters = self.camera.counters
        p50, p95, most = counters.percentiles()
        return StreamStats(
            stream=self.name,
            detections=self.camera.tracker.detections,
            tracks=self.camera.tracker.tracks,
            deadline_misses=self.governor.misses,
            budget=None if self._budget == "cascade" else self.governor.budget,
            budget_moves=self.governor.moves,
            last_pts_ns=self.camera.last_pts_ns,
            ring=self.camera.held,
            stages=dict(counters.stages),
            push_ms_p50=p50,
            push_ms_p95=p95,
            push_ms_max=most,
            **counters.counts,
        )
