"""Frames in, events out, for any number of cameras.

    pipeline = Pipeline("bundle", budget="auto", deadline_ms=33)
    for event in pipeline.push(frame, pts_ns, stream="door"):
        print(event.to_json())

Threads: `push` may be called from several threads. Streams share the runtime session, which is lent to one at a time
for each inference, and the face detector, likewise; everything else belongs to one stream. Pushes to the same stream
follow one another. OpenCV has threads of its own, whose number is left as it is: where several streams run,
`cv2.setNumThreads(1)` keeps them from competing. No frame leaves the process, and nothing is written.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ptsr_edge.bundle import bundle_card
from ptsr_edge.camera.inference import BudgetController, SharedSession
from ptsr_edge.camera.metrics import StageTimes, StreamStats
from ptsr_edge.camera.spotting import Spotter
from ptsr_edge.camera.stream import CameraStream, OnlineSpotter, Sighting, check_pts
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.core.records import Record
from ptsr_edge.vision.face_detection import Face, FaceOption, open_detector
from ptsr_edge.vision.face_tracking import DETECT_EVERY_S, Region, crop_side
from ptsr_edge.vision.flow import check_frame, flow_sample, opencv


class Box(Record):
    """A rectangle in pixels of the frame, +x right and +y down; it may reach over the frame's edge."""

    x: float
    y: float
    width: float = Field(gt=0)
    height: float = Field(gt=0)


@dataclass(frozen=True)
class FaceView:
    """The part of a stream's last frame that is looked at, and the flow of its last event.

    Attributes:
        face: the face that is followed; None where there is none.
        crop: the crop that flow is measured in; None where none is placed.
        flow: (S, S, 3) float32: u, v in pixels of the crop, and strain, as the last event was classified by; None
            before the first.
    """

    face: Box | None = None
    crop: Box | None = None
    flow: NDArray[np.float32] | None = None


class Event(Record):
    """One spotted and classified micro-expression. Times are those of the source, in nanoseconds.

    Attributes:
        stream: the name under which the frames were pushed.
        label: the most probable class.
        probabilities: by label; their sum is 1.
        onset_ns, apex_ns, offset_ns: pts of the frames where the motion starts, is largest and ends.
        answered_ns: pts of the frame with which the answer was complete.
        score: how far the motion stands out, by the spotter.
        face: the face's box at the time of the answer.
        crop: the part of the frame that was looked at, the same from onset to offset.
        kept_tokens: row-major indices of the patches of the crop that the answer was read from.
        grid: patches along one side of the crop.
        budget: keep rate of the variant that answered.
        budgets_run: keep rates of all variants that were run for the answer, in order: two where a cascade went on.
        processing_ms: time from the beginning of the push that completed the answer to the answer.
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
        """Time from apex to answer: waiting and processing."""
        return self.wait_ms + self.processing_ms

    def to_json(self) -> str:
        """Returns the event as one line of JSON, with `wait_ms` and `latency_ms`."""
        content = self.model_dump_json()
        return f'{content[:-1]},"wait_ms":{self.wait_ms:.3f},"latency_ms":{self.latency_ms:.3f}}}'


MAX_STREAMS = 64


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
            budget: "auto" (the recommended one, or the largest below it that holds the deadline; moved while running), "cascade" (the small one
                first, the full one where that is close; calibrated at export), or a keep rate.
            deadline_ms: time that one push may take; "auto" holds it, and every budget counts misses.
            face: how faces are found; see `face_detection.open_detector`.
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
        opencv()  # which every frame needs: its absence is told here and not at the first one
        self._detector = open_detector(face)
        self._session = SharedSession(
            bundle, target=target, precision=precision, threads=threads, share_weights=share_weights
        )
        self._budget = self._check_budget(budget)
        self._deadline_ms = deadline_ms
        self._detect_every_s = float(detect_every_s)
        self._make_spotter = spotter
        self._side = crop_side(self._session.bundle.preprocess)
        self._lock = threading.Lock()
        self._streams: dict[str, _StreamState] = {}
        self._closed = False
        self._controller()  # refuses a bad deadline

    def push(self, frame: Any, pts_ns: int, stream: str = "default") -> list[Event]:
        """Takes the next frame of a stream; returns the events that are complete with it, usually none.

        Args:
            frame: (H, W, 3) uint8 BGR, or (H, W) uint8 gray, at least 16 pixels a side; it is not kept.
            pts_ns: when it was taken, in nanoseconds of the source's clock.
            stream: the camera's name.

        Raises:
            InputError: the call is not acceptable; the stream stays as it was.
            JobError: the runtime failed, or the pipeline is closed; the stream goes on with the next frame.
        """
        started = time.perf_counter()
        state = self._state(stream)
        with state.lock:
            try:
                taken, pts = check_frame(frame), check_pts(pts_ns)
                sightings = state.camera.take(taken, pts)
            except InputError:
                state.camera.stats.rejected += 1
                raise
            return self._answer(state, sightings, pts, started)

    def flush(self, stream: str = "default") -> list[Event]:
        """Ends a stream's video; returns the events that can still be told. The next push begins anew."""
        started = time.perf_counter()
        with self._lock:
            state = self._streams.get(stream)
        if state is None:
            return []
        with state.lock:
            pts = state.camera.stats.last_pts_ns
            sightings = state.camera.end()
            return [] if pts is None else self._answer(state, sightings, pts, started)

    def close(self, stream: str | None = None) -> list[Event]:
        """Flushes and forgets a stream; without a name all of them, and the pipeline takes no more frames."""
        with self._lock:
            names = [stream] if stream is not None else list(self._streams)
            self._closed = self._closed or stream is None
        events = [event for name in names for event in self.flush(name)]
        with self._lock:
            for name in names:
                self._streams.pop(name, None)
        return events

    def stats(self) -> dict[str, StreamStats]:
        """Returns a copy of every stream's counters, by its name."""
        with self._lock:
            streams = list(self._streams.items())
        return {name: state.stats() for name, state in streams}

    def view(self, stream: str = "default") -> FaceView:
        """Returns what the stream's last frame shows, for drawing it."""
        with self._lock:
            state = self._streams.get(stream)
        if state is None:
            return FaceView()
        with state.lock:
            seen = state.camera.seen
            face, crop = (_box(seen[0]), _box(seen[1])) if seen else (None, None)
            return FaceView(face, crop, state.flow)

    @property
    def model_card(self) -> str:
        """The model card: training data, permitted use, and the limits of law."""
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
            self._session.cascade()
            return budget
        return budget if budget == "auto" else self._session.check_budget(budget)  # type: ignore[arg-type]

    def _controller(self) -> BudgetController:
        """Makes a controller: for "auto" over the whole ladder, else with a single step, which only counts misses."""
        costs = self._session.ladder
        if isinstance(self._budget, float):
            costs = {self._budget: self._session.inference_ms[self._budget]}
        return BudgetController(costs, self._deadline_ms)

    def _state(self, name: str) -> _StreamState:
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
                camera.stats.stream = name
                self._streams[name] = _StreamState(camera, self._controller(), self._budget == "cascade")
            return self._streams[name]

    def _answer(
        self, state: _StreamState, sightings: list[Sighting], pts_ns: int, started: float
    ) -> list[Event]:
        stats, bundle = state.camera.stats, self._session.bundle
        events, spent = [], dict[float, float]()
        try:
            for sighting in sightings:
                with stats.stages["flow"].timed():
                    flow = flow_sample(sighting.onset, sighting.apex, bundle.preprocess)
                if state.in_cascade:
                    result = self._session.predict_in_cascade(flow)
                else:
                    result = self._session.predict(flow, state.controller.budget)
                state.flow = flow
                for took in result.inference_ms.values():
                    stats.stages["inference"].add(took)
                spent |= result.inference_ms
                prediction = result.prediction
                events.append(
                    Event(
                        stream=stats.stream,
                        label=prediction.label,
                        probabilities=prediction.probabilities,
                        onset_ns=sighting.motion.onset_ns,
                        apex_ns=sighting.motion.apex_ns,
                        offset_ns=sighting.motion.offset_ns,
                        answered_ns=pts_ns,
                        score=sighting.motion.score,
                        face=_box(sighting.face),
                        crop=_box(sighting.region),
                        kept_tokens=np.asarray(prediction.kept_tokens).tolist(),
                        grid=bundle.model.grid,
                        budget=prediction.budget,
                        budgets_run=list(result.inference_ms),
                        processing_ms=(time.perf_counter() - started) * 1e3,
                        truncated=sighting.truncated,
                    )
                )
        except JobError:
            stats.failed += 1
            raise
        finally:
            push_ms = (time.perf_counter() - started) * 1e3
            stats.events += len(events)
            state.pushes.add(push_ms)
            state.controller.saw_push(push_ms, spent, pts_ns)
        return events


class _StreamState:
    """One stream, the controller of its budget, the flow of its last answer, and its lock."""

    def __init__(self, camera: CameraStream, controller: BudgetController, in_cascade: bool) -> None:
        self.camera = camera
        self.controller = controller
        self.in_cascade = in_cascade
        self.flow: NDArray[np.float32] | None = None
        self.pushes = StageTimes()
        self.lock = threading.RLock()

    def stats(self) -> StreamStats:
        """Copies the counters, without the lock: a push that does not end holds up no reader."""
        counted = self.camera.stats
        p50, p95, most = self.pushes.percentiles()
        return replace(
            counted,
            deadline_misses=self.controller.misses,
            budget=None if self.in_cascade else self.controller.budget,
            budget_moves=self.controller.moves,
            stages={stage: replace(times) for stage, times in counted.stages.items()},
            push_ms_p50=p50,
            push_ms_p95=p95,
            push_ms_max=most,
        )


def _box(place: Face | Region) -> Box:
    return Box(x=place.x, y=place.y, width=place.width, height=place.height)
