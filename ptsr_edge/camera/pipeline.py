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

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ptsr_edge.bundle import bundle_card
from ptsr_edge.camera.metrics import Cause, StageTimes, StreamStats
from ptsr_edge.camera.spotting import SpotSettings, Spotter
from ptsr_edge.camera.stages import (
    BudgetController,
    CameraStream,
    OnlineSpotter,
    SharedSession,
    Sighting,
    check_pts,
)
from ptsr_edge.core.config import Record
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.vision.face_detection import Face, FaceOption, open_detector
from ptsr_edge.vision.face_tracking import DETECT_EVERY_S, Region, crop_side
from ptsr_edge.vision.flow import check_frame, flow_sample, opencv, shown


class Box(Record):
    """A rectangle in pixels of the frame, +x right and +y down; it may reach over the frame's edge."""

    x: float
    y: float
    width: float = Field(gt=0)
    height: float = Field(gt=0)


@dataclass(frozen=True)
class FaceView:
    """The part of a stream's last frame that is looked at, and what its last event was classified by.

    Attributes:
        face: the face that is followed; None where there is none.
        crop: the crop that flow is measured in; None where none is placed.
        flow: (S, S, 3) float32: u, v in pixels of the crop, and strain, of the last event; None before the first.
        apex: (S, S) uint8, gray: the crop of its apex; None before the first.
        frame: number of the stream's last frame, from 0; None before the first.
        set_aside: motions that were spotted and not classified so far, by cause.
    """

    face: Box | None = None
    crop: Box | None = None
    flow: NDArray[np.float32] | None = None
    apex: NDArray[np.uint8] | None = None
    frame: int | None = None
    set_aside: Mapping[Cause, int] = field(default_factory=dict)


Outcome = Literal["classified", "unsure"]


class Event(Record):
    """One spotted and classified micro-expression. Times are those of the source, in nanoseconds.

    Attributes:
        stream: the name under which the frames were pushed.
        label: the most probable class.
        outcome: "unsure" where the most probable class does not reach the least probability, else "classified".
        probabilities: by label; their sum is 1.
        onset_ns, apex_ns, offset_ns: pts of the frames where the motion starts, is largest and ends.
        answered_ns: pts of the frame with which the answer was complete.
        onset_frame, apex_frame, offset_frame, answered_frame: numbers of these frames among those of the stream, from 0.
        apex_at, answered_at: wall clock, UTC in ISO 8601, when these two came in.
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
    outcome: Outcome = "classified"
    probabilities: dict[str, float]
    onset_ns: int
    apex_ns: int
    offset_ns: int
    answered_ns: int
    onset_frame: int
    apex_frame: int
    offset_frame: int
    answered_frame: int
    apex_at: str
    answered_at: str
    score: float
    face: Box
    crop: Box
    kept_tokens: list[int] = Field(default_factory=list)
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

    def to_json(self, *, kept: bool = True) -> str:
        """Returns the event as one line of JSON, with `wait_ms` and `latency_ms`; without `kept_tokens` where not `kept`.

        Probabilities are rounded to four digits, scores and times in ms to two, places to a tenth of a pixel.
        """
        content = self.model_dump(exclude=None if kept else {"kept_tokens"})
        content |= {"wait_ms": self.wait_ms, "latency_ms": self.latency_ms}
        for key in ("score", "processing_ms", "wait_ms", "latency_ms"):
            content[key] = round(content[key], 2)
        for key, digits in (("probabilities", 4), ("face", 1), ("crop", 1)):
            content[key] = {name: round(value, digits) for name, value in content[key].items()}
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


MAX_STREAMS = 64

MIN_PROBABILITY = 0.5
"""Default of the least probability: a class that is less probable than all others together is no answer."""


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
        verify: str | Path | None = None,
        detect_every_s: float = DETECT_EVERY_S,
        min_probability: float = MIN_PROBABILITY,
        threshold: float | None = None,
        tell_truncated: bool = False,
        spotter: Callable[[], OnlineSpotter] | None = None,
    ) -> None:
        """Opens the bundle, loads all budgets and times them, and opens the face detector.

        Args:
            bundle: a folder that `ptsr-edge export` made, of a model whose flow is measured from frames.
            budget: "auto" (the recommended one, or the largest below it that holds the deadline; moved while running), "cascade" (the small one
                first, the full one where that is close; calibrated at export), or a keep rate.
            deadline_ms: time that one push may take; "auto" holds it, and every budget counts misses.
            face: how faces are found; see `face_detection.open_detector`.
            target, precision, threads, share_weights, verify: as `Session.open`.
            detect_every_s: time of the source between two detections of a face that is followed.
            min_probability: an event whose class is less probable has the outcome "unsure".
            threshold: least score of a motion, of the spotter; by default that of `SpotSettings`.
            tell_truncated: classify motions that were cut by the end of the video or of the view, too.
            spotter: makes a spotter for each stream, with a threshold of its own; by default one with `SpotSettings`'
                defaults.

        Raises:
            InputError: an option or the bundle is not acceptable.
            MissingExtraError: the runtime, OpenCV or the face detector is not installed.
            JobError: the runtime refuses an artifact.
        """
        if not (_is_number(detect_every_s) and 0 <= detect_every_s < float("inf")):
            raise InputError(f"detect_every_s must be 0 or more seconds, found {detect_every_s!r}")
        if not (_is_number(min_probability) and 0 <= min_probability <= 1):
            raise InputError(f"min_probability must be from 0 to 1, found {min_probability!r}")
        if threshold is not None and not (_is_number(threshold) and 0 < threshold < float("inf")):
            raise InputError(f"threshold, the least score of a motion, must be above 0, found {threshold!r}")
        if threshold is not None and spotter is not None:
            raise InputError(
                "threshold and spotter exclude one another: a spotter has a threshold of its own"
            )
        opencv()  # which every frame needs: its absence is told here and not at the first one
        self._detector = open_detector(face)
        self._session = SharedSession(
            bundle,
            target=target,
            precision=precision,
            threads=threads,
            share_weights=share_weights,
            verify=verify,
        )
        self._budget = self._check_budget(budget)
        self._deadline_ms = deadline_ms
        self._detect_every_s = float(detect_every_s)
        self._min_probability = min_probability
        self._tell_truncated = tell_truncated
        settings = SpotSettings() if threshold is None else SpotSettings(threshold=threshold)
        self._make_spotter = spotter or partial(Spotter, settings)
        self._side = crop_side(self._session.bundle.preprocess)
        self._lock = threading.Lock()
        self._streams: dict[str, _StreamState] = {}
        self._closed = False
        self._controller()  # refuses a bad deadline

    def push(self, frame: Any, pts_ns: int, stream: str = "default", *, live: bool = True) -> list[Event]:
        """Takes the next frame of a stream; returns the events that are complete with it, usually none.

        Args:
            frame: (H, W, 3) uint8 BGR, or (H, W) uint8 gray, at least 16 pixels a side; it is not kept.
            pts_ns: when it was taken, in nanoseconds of the source's clock.
            stream: the camera's name.
            live: frames come as time goes by. A recording can wait instead: its budget "auto" is the largest and stays,
                so that the same recording gives the same answers however busy the machine is. The first push of a
                stream decides.

        Raises:
            InputError: the call is not acceptable; the stream stays as it was.
            JobError: the runtime or the face detector failed, or the pipeline is closed; the stream goes on with the next frame.
        """
        started = time.perf_counter()
        state = self._state(stream, live)
        with state.lock:
            try:
                taken, pts = check_frame(frame), check_pts(pts_ns)
                sightings = state.camera.take(taken, pts)
            except InputError:
                state.camera.stats.rejected += 1
                raise
            except JobError:
                state.camera.stats.failed += 1
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
        """Flushes and forgets a stream; without a name all of them, the pipeline takes no more frames and gives
        back what the runtime holds.
        """
        with self._lock:
            names = [stream] if stream is not None else list(self._streams)
            self._closed = self._closed or stream is None
        try:
            return [event for name in names for event in self.flush(name)]
        finally:
            with self._lock:
                for name in names:
                    self._streams.pop(name, None)
            if stream is None:
                self._session.close()

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
            number = state.camera.number
            set_aside = dict(state.camera.stats.set_aside)
            return FaceView(face, crop, state.flow, state.apex, number if number >= 0 else None, set_aside)

    @property
    def model_card(self) -> str:
        """The model card: training data, permitted use, and the limits of law."""
        provenance = self._session.bundle.provenance
        return str(provenance.get("model_card") or bundle_card(provenance.get("card")))

    @property
    def labels(self) -> list[str]:
        """The classes, in the order of the model's logits."""
        return list(self._session.bundle.labels)

    @property
    def weights_note(self) -> str:
        """What to know of the weights wherever their answers are shown; empty where they were trained on people."""
        provenance = self._session.bundle.provenance
        if provenance.get("kind") == "random":
            return "random weights"
        # Older checkpoints say it of no data but `synthetic`.
        is_synthetic = provenance.get("synthetic", provenance.get("data") == "synthetic")
        return "synthetic weights" if is_synthetic is True else ""

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

    def _controller(self, live: bool = True) -> BudgetController:
        """Makes a controller: for "auto" over the whole ladder, else with a single step, which only counts misses."""
        costs = self._session.ladder
        if isinstance(self._budget, float):
            costs = {self._budget: self._session.inference_ms[self._budget]}
        elif not live:
            costs = {max(costs): costs[max(costs)]}
        return BudgetController(costs, self._deadline_ms)

    def _state(self, name: str, live: bool) -> _StreamState:
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
                self._streams[name] = _StreamState(camera, self._controller(live), self._budget == "cascade")
            return self._streams[name]

    def _answer(
        self, state: _StreamState, sightings: list[Sighting], pts_ns: int, started: float
    ) -> list[Event]:
        stats, bundle = state.camera.stats, self._session.bundle
        events, spent = [], dict[float, float]()
        try:
            for sighting in sightings:
                truncated = sighting.cause == "truncated"
                if sighting.cause is not None and not (truncated and self._tell_truncated):
                    stats.set_aside[sighting.cause] += 1
                    continue
                with stats.stages["flow"].timed():
                    flow = flow_sample(sighting.onset.crop, sighting.apex.crop, bundle.preprocess)
                if state.in_cascade:
                    result = self._session.predict_in_cascade(flow)
                else:
                    result = self._session.predict(flow, state.controller.budget)
                state.flow, state.apex = flow, shown(sighting.apex.crop, bundle.preprocess.crop)
                for took in result.inference_ms.values():
                    stats.stages["inference"].add(took)
                spent |= result.inference_ms
                prediction = result.prediction
                unsure = prediction.probabilities[prediction.label] < self._min_probability
                stats.unsure += unsure
                events.append(
                    Event(
                        stream=stats.stream,
                        label=prediction.label,
                        outcome="unsure" if unsure else "classified",
                        probabilities=prediction.probabilities,
                        onset_ns=sighting.motion.onset_ns,
                        apex_ns=sighting.motion.apex_ns,
                        offset_ns=sighting.motion.offset_ns,
                        answered_ns=pts_ns,
                        onset_frame=sighting.onset.number,
                        apex_frame=sighting.apex.number,
                        offset_frame=sighting.offset.number,
                        answered_frame=state.camera.number,
                        apex_at=_clock(sighting.apex.came_s),
                        answered_at=_clock(time.time()),
                        score=sighting.motion.score,
                        face=_box(sighting.face),
                        crop=_box(sighting.region),
                        kept_tokens=np.asarray(prediction.kept_tokens).tolist(),
                        grid=bundle.model.grid,
                        budget=prediction.budget,
                        budgets_run=list(result.inference_ms),
                        processing_ms=(time.perf_counter() - started) * 1e3,
                        truncated=truncated,
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
    """One stream, the controller of its budget, what its last answer was read from, and its lock."""

    def __init__(self, camera: CameraStream, controller: BudgetController, in_cascade: bool) -> None:
        self.camera = camera
        self.controller = controller
        self.in_cascade = in_cascade
        self.flow: NDArray[np.float32] | None = None
        self.apex: NDArray[np.uint8] | None = None
        self.pushes = StageTimes()
        self.lock = threading.RLock()

    def stats(self) -> StreamStats:
        """Copies the counters, without the lock: a push that does not end holds up no reader."""
        counted = self.camera.stats
        p50, p95, most = self.pushes.percentiles()
        return replace(
            counted,
            set_aside=dict(counted.set_aside),
            deadline_misses=self.controller.misses,
            budget=None if self.in_cascade else self.controller.budget,
            budget_moves=self.controller.moves,
            stages={stage: replace(times) for stage, times in counted.stages.items()},
            push_ms_p50=p50,
            push_ms_p95=p95,
            push_ms_max=most,
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")


def _box(place: Face | Region) -> Box:
    return Box(x=place.x, y=place.y, width=place.width, height=place.height)
