"""The two stages between a frame and an event: a stream's spotted motions, and answers to their flow.

A window is a stretch of frames with one crop. It ends with a jump of the pts, another size of frames, a lost face, or a
crop that had to be moved; nothing is measured across its border. Each stream has a `CameraStream` of its own.

All streams share one session. A switch of a `Session` counts for all threads; `SharedSession` lends it to one at a time, for switch
and inference together. All budgets are loaded and timed beforehand, so that moving from one to another costs nothing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.bundle import Bundle, Cascade, find_variant
from ptsr_edge.camera.face_motion import changed_share
from ptsr_edge.camera.metrics import Cause, StreamStats
from ptsr_edge.core.errors import InputError
from ptsr_edge.session import Prediction, Session
from ptsr_edge.vision.face_detection import Detector, Face, FixedCrop, Frame
from ptsr_edge.vision.face_tracking import DETECT_EVERY_S, CropRing, FaceTracker, Gray, Region, StableCrop
from ptsr_edge.vision.flow import SEARCHES, check_flow, to_input

MAX_GAP_S = 0.5
"""Longest time between two frames; more is a jump, as a micro-expression would fit in between."""

RING_S = 2.5
RING_MOST = 640
"""Most crops that are held: two and a half seconds at up to 256 frames a second."""

OCCLUDED_SHARE = 0.05
"""Share of the face above which something has come before it or left it between onset and apex."""


class SpottedMotion(Protocol):
    """A finding of a spotter: pts of the frames where a motion starts, is largest and ends, how far it stands out, and why
    it is no micro-expression that can be classified; None where it may be one.
    """

    @property
    def onset_ns(self) -> int: ...
    @property
    def apex_ns(self) -> int: ...
    @property
    def offset_ns(self) -> int: ...
    @property
    def score(self) -> float: ...
    @property
    def cause(self) -> Cause | None: ...


class OnlineSpotter(Protocol):
    """Finds motions in a stream of crops of one place."""

    def push(self, crop: Gray, pts_ns: int) -> Sequence[SpottedMotion]:
        """Takes the next crop; returns the motions that are complete with it."""
        ...

    def flush(self) -> Sequence[SpottedMotion]:
        """Ends the stream; returns the motions that can still be told."""
        ...

    def reset(self) -> None:
        """Forgets the crops: the next one shows another place or time."""
        ...


@dataclass(frozen=True)
class Held:
    """A frame of the window.

    Attributes:
        crop: (S, S) uint8, gray.
        number: of the frame in its stream, from 0.
        came_s: wall clock when it came in, in seconds since 1970.
    """

    crop: Gray
    number: int
    came_s: float


@dataclass(frozen=True)
class Sighting:
    """A spotted motion with the frames that it is classified by.

    Attributes:
        motion: the finding of the spotter.
        onset, apex, offset: frames; the first two hold the crops that flow is measured between.
        face: the face's box at the time of the sighting.
        region: the place of the crop.
        cause: why it is not to be classified; None where it is.
    """

    motion: SpottedMotion
    onset: Held
    apex: Held
    offset: Held
    face: Face
    region: Region
    cause: Cause | None


class CameraStream:
    """The state of one stream. For one thread at a time."""

    def __init__(
        self,
        detector: Detector,
        spotter: Callable[[], OnlineSpotter],
        side: int,
        *,
        detect_every_s: float = DETECT_EVERY_S,
    ) -> None:
        """Begins a stream; `spotter` makes a spotter of its own, `side` is S, of the crops."""
        self.stats = StreamStats()
        self._tracker = FaceTracker(detector, detect_every_s)
        self._detector = detector
        self._window = StableCrop(side)
        self._ring: CropRing[Held] = CropRing(round(RING_S * 1e9), RING_MOST)
        self.number = -1
        self._spotter = spotter()
        self._face: Face | None = None
        self._shape: tuple[int, int] | None = None

    @property
    def seen(self) -> tuple[Face, Region] | None:
        """The face and the place of the crop in the last frame; None where there was no face."""
        if self._face is None or self._window.region is None:
            return None
        return self._face, self._window.region

    def take(self, frame: Frame, pts_ns: int) -> list[Sighting]:
        """Takes the next frame; returns what is complete with it.

        A frame with the pts of the one before, or a little before it, is left out and counted.

        Raises:
            InputError: a fixed crop lies outside of the frame; the stream stays as it was.
        """
        came_s = time.time()
        if self._shape != frame.shape[:2] and isinstance(self._detector, FixedCrop):
            self._detector.detect(frame)
        self.number += 1
        ended = self._continues(frame, pts_ns)
        if ended is None:
            return []
        stats, stages = self.stats, self.stats.stages
        with stages["face"].timed():
            face = self._tracker.update(frame, pts_ns)
        stats.detections, stats.tracks = self._tracker.detections, self._tracker.tracks
        stats.last_pts_ns = pts_ns
        self._shape = (frame.shape[0], frame.shape[1])
        stats.frames += 1
        if face is None:
            stats.no_face += 1
            return [*ended, *self._end_window()]
        with stages["crop"].timed():
            before = self._window.region
            if self._window.follow(face):
                if before is not None:
                    placed, self._window.region = self._window.region, before
                    ended += self._end_window()
                    self._window.region = placed
                stats.windows += 1
            self._face = face
            crop = self._window.cut(frame)
            self._ring.add(pts_ns, Held(crop, self.number, came_s))
            stats.ring = len(self._ring)
        with stages["spot"].timed():
            motions = self._spotter.push(crop, pts_ns)
        return [*ended, *self._sightings(motions)]

    def end(self) -> list[Sighting]:
        """Ends or interrupts the stream; returns what can still be told. The next frame begins anew."""
        ended = self._end_window()
        self._tracker.reset()
        self.stats.last_pts_ns = self._shape = None
        return ended

    def _continues(self, frame: Frame, pts_ns: int) -> list[Sighting] | None:
        """Returns the sightings of a window that ends with this frame; None where the frame is left out."""
        if self.stats.last_pts_ns is None:
            return []
        step = pts_ns - self.stats.last_pts_ns
        if step == 0:
            self.stats.duplicates += 1
            return None
        if -MAX_GAP_S * 1e9 <= step < 0:
            self.stats.backwards += 1
            return None
        jumped = not 0 < step <= MAX_GAP_S * 1e9
        resized = self._shape != frame.shape[:2]
        if not jumped and not resized:
            return []
        self.stats.jumps += jumped
        self.stats.size_changes += resized
        return self.end()

    def _end_window(self) -> list[Sighting]:
        if self._window.region is None:
            return []
        ended = self._sightings(self._spotter.flush(), "truncated")
        self._spotter.reset()
        self._ring.clear()
        self.stats.ring = 0
        self._window.leave()
        self._face = None
        return ended

    def _sightings(self, motions: Sequence[SpottedMotion], ended: Cause | None = None) -> list[Sighting]:
        found = []
        for motion in motions:
            times = (motion.onset_ns, motion.apex_ns, motion.offset_ns)
            onset, apex, offset = (self._ring.at(pts_ns) for pts_ns in times)
            if not (onset and apex and offset) or self._face is None or self._window.region is None:
                self.stats.lost_spots += 1
                continue
            cause = motion.cause or ended
            if changed_share(onset.crop, apex.crop) > OCCLUDED_SHARE:
                cause = "occlusion"
            found.append(Sighting(motion, onset, apex, offset, self._face, self._window.region, cause))
        return found


def check_pts(pts_ns: Any) -> int:
    """Returns a timestamp as a plain integer.

    Raises:
        InputError: it is no integer, or does not fit 64 bits.
    """
    if (
        isinstance(pts_ns, int | np.integer)
        and not isinstance(pts_ns, bool)
        and -(2**63) <= int(pts_ns) < 2**63
    ):
        return int(pts_ns)
    raise InputError(
        f"pts_ns must be an integer number of nanoseconds of the source's clock; found {pts_ns!r:.80}"
    )


WARM_UPS = 6
"""Inferences per budget when it is loaded; the quickest counts as its time on an idle machine."""


@dataclass(frozen=True)
class InferenceResult:
    """A prediction and the time that it took.

    Attributes:
        prediction: of the last variant that was run.
        inference_ms: by keep rate, in the order in which they were run.
    """

    prediction: Prediction
    inference_ms: dict[float, float]


class SharedSession:
    """A bundle's variants of one target and precision, at work for many threads."""

    def __init__(
        self,
        bundle: str | Path,
        *,
        target: str | None = None,
        precision: str | None = None,
        threads: int | None = 1,
        share_weights: bool = False,
        verify: str | Path | None = None,
    ) -> None:
        """Opens a session, loads all its budgets and times each once warm; arguments as `Session.open`.

        Raises:
            InputError: as `Session.open`; or the model was trained on ready-made flow fields.
            MissingExtraError: the runtime is not installed.
            JobError: the runtime refuses an artifact.
        """
        self._session = Session.open(
            bundle,
            target=target,
            precision=precision,
            threads=threads,
            share_weights=share_weights,
            verify=verify,
        )
        self._lock = threading.Lock()
        variant = self._session.variant
        if self.bundle.preprocess.flow == "published":
            measured = " or ".join(map(repr, SEARCHES))
            raise InputError(
                f"{self.bundle.name} was trained on flow fields that came ready-made ('published'): nobody knows "
                f"how to measure them from a camera's frames; it needs a model whose flow is {measured}"
            )
        self.budgets = sorted(
            {
                other.keep_rate
                for other in self.bundle.variants
                if (other.target, other.precision) == (variant.target, variant.precision)
            }
        )
        for budget in self.budgets:
            self._session.load(budget)
        self.inference_ms = {budget: self._time(budget) for budget in self.budgets}

    @property
    def bundle(self) -> Bundle:
        """The manifest of the bundle."""
        return self._session.bundle

    @property
    def ladder(self) -> dict[float, float]:
        """Milliseconds of an inference by keep rate, of the budgets that `auto` moves among: none above the recommended
        one, as more patches would cost more and are not known to give more.
        """
        choice = self.bundle.recommended
        top = 1.0 if choice is None else find_variant(self.bundle, choice.variant).keep_rate
        return {rate: took for rate, took in self.inference_ms.items() if rate <= top} or self.inference_ms

    @property
    def artifact(self) -> str:
        """Target and precision, such as cpu/int8."""
        variant = self._session.variant
        return f"{variant.target}/{variant.precision}"

    def check_budget(self, budget: float) -> float:
        """Returns the keep rate of the loaded variant that keeps as many tokens as `budget` asks for.

        Raises:
            InputError: there is none.
        """
        if not isinstance(budget, int | float) or isinstance(budget, bool) or not 0 < budget <= 1:
            raise InputError(f"a budget is auto, cascade or a keep rate in (0, 1]; found {budget!r}")
        tokens = self.bundle.model.tokens_at(budget)
        for known in self.budgets:
            if self.bundle.model.tokens_at(known) == tokens:
                return known
        have = ", ".join(f"{known:g}" for known in self.budgets)
        raise InputError(f"the bundle has no budget {budget:g} in {self.artifact}; it has {have}")

    def cascade(self) -> Cascade:
        """Returns the bundle's cascade for this target and precision.

        Raises:
            InputError: it has none, and the message says how to get one; or it lacks one of the cascade's budgets.
        """
        variant = self._session.variant
        for rule in self.bundle.cascades:
            if (rule.target, rule.precision) == (variant.target, variant.precision):
                for budget in (rule.small, rule.full):
                    self.check_budget(budget)
                return rule
        have = ", ".join(f"{rule.target}/{rule.precision}" for rule in self.bundle.cascades) or "none"
        raise InputError(
            f"the bundle has no calibrated cascade for {self.artifact} (it has {have}): "
            "export it with --cascade-loss, such as 0.05, the drop of UAR to allow"
        )

    def predict(self, flow: NDArray[np.float32], budget: float) -> InferenceResult:
        """Classifies a sample at a budget; (S, S, 3) float32 before normalisation.

        Raises:
            InputError: as `Session.predict`.
            JobError: the runtime gave an answer that is not finite.
        """
        prediction, took = self._run(self._prepared(flow), budget)
        return InferenceResult(prediction, {budget: took})

    def predict_in_cascade(self, flow: NDArray[np.float32]) -> InferenceResult:
        """Classifies a sample at the small budget, and at the full one where the small answer is close.

        Raises:
            InputError, JobError: as `predict`; or no cascade was calibrated.
        """
        rule, inputs = self.cascade(), self._prepared(flow)
        prediction, took = self._run(inputs, rule.small)
        spent = {rule.small: took}
        if goes_on(rule, probability_margin(prediction.probabilities)):
            prediction, spent[rule.full] = self._run(inputs, rule.full)
        return InferenceResult(prediction, spent)

    def close(self) -> None:
        """Gives back what the runtime holds, behind the inference that is under way."""
        with self._lock:
            self._session.close()

    def _prepared(self, flow: NDArray[np.float32]) -> NDArray[np.float32]:
        check_flow(flow, self.bundle.preprocess.image_size)
        return to_input(flow)

    def _run(self, inputs: NDArray[np.float32], budget: float) -> tuple[Prediction, float]:
        with self._lock:
            started = time.perf_counter()
            self._session.switch(budget)
            prediction = self._session.answer(*self._session.infer(inputs))
            return prediction, (time.perf_counter() - started) * 1e3

    def _time(self, budget: float) -> float:
        size = self.bundle.preprocess.image_size
        flow = np.random.default_rng(0).normal(size=(size, size, 3)).astype(np.float32)
        flow[..., 2] = np.abs(flow[..., 2])
        return min(self.predict(flow, budget).inference_ms[budget] for _ in range(WARM_UPS))


def probability_margin(probabilities: Mapping[str, float] | Sequence[float]) -> float:
    """Returns the lead of the most probable class over the second, in [0, 1]."""
    values = probabilities.values() if isinstance(probabilities, Mapping) else probabilities
    first, second = sorted(values, reverse=True)[:2]
    return float(first - second)


def goes_on(rule: Cascade, margin: float) -> bool:
    """Returns whether the full budget is asked after a small one that answered with this margin."""
    return margin < rule.margin


RESERVE = 0.8
"""Share of the deadline that a larger budget must fit into before it is taken."""

HOLD_S = 2.0
"""Time of the source that a budget is kept before a larger one is tried."""

_RECENT_PUSHES = 256
_SMOOTHING = 0.2


class BudgetController:
    """Chooses the budget of the next answer so that a push stays within its deadline. For one thread at a time.

    Down is quick, up is slow (hysteresis): a push that missed its deadline, or a prediction that the next one will,
    moves one step down at once. One step up is taken only when the larger budget would leave a reserve, and not before
    `HOLD_S` after the last move. The slowdown of inferences since they were timed is learnt as one factor for the whole
    ladder: the time of a small budget tells about the large one too, which would otherwise never be tried again after
    a busy moment.
    """

    def __init__(self, inference_ms: Mapping[float, float], deadline_ms: float) -> None:
        """Starts at the largest budget that fits.

        Args:
            inference_ms: measured time of one inference, by keep rate.
            deadline_ms: time that a whole push may take.

        Raises:
            InputError: the deadline is not positive and finite.
        """
        if not (deadline_ms > 0 and np.isfinite(deadline_ms)):
            raise InputError(f"deadline_ms must be positive, got {deadline_ms:g}")
        self.deadline_ms = float(deadline_ms)
        self._cost_ms = dict(inference_ms)
        self._ladder = sorted(inference_ms)
        self._rest_ms: deque[float] = deque(maxlen=_RECENT_PUSHES)
        self._slowdown = 1.0
        self._moved_ns: int | None = None
        self.misses = 0
        self.moves = 0
        fitting = [place for place in range(len(self._ladder)) if self._predicted(place) <= self.deadline_ms]
        self._place = max(fitting, default=0)

    @property
    def budget(self) -> float:
        """The keep rate of the next answer."""
        return self._ladder[self._place]

    def saw_push(self, push_ms: float, inference_ms: Mapping[float, float], pts_ns: int) -> None:
        """Learns from a push and moves.

        Args:
            push_ms: time of the whole push.
            inference_ms: time of each inference in it, by keep rate; empty where there was none.
            pts_ns: timestamp of the frame.
        """
        for rate, took in inference_ms.items():
            self._slowdown += _SMOOTHING * (took / max(self._cost_ms[rate], 1e-3) - self._slowdown)
        self._rest_ms.append(max(0.0, push_ms - sum(inference_ms.values())))
        missed = push_ms > self.deadline_ms
        self.misses += missed
        answered = bool(inference_ms)
        if self._place > 0 and ((missed and answered) or self._predicted(self._place) > self.deadline_ms):
            self._move(-1, pts_ns)
        elif self._may_rise(pts_ns):
            self._move(1, pts_ns)

    def _may_rise(self, pts_ns: int) -> bool:
        if self._place + 1 == len(self._ladder):
            return False
        held = self._moved_ns is None or not 0 <= pts_ns - self._moved_ns < HOLD_S * 1e9
        return held and self._predicted(self._place + 1) <= RESERVE * self.deadline_ms

    def _predicted(self, place: int) -> float:
        """Returns the 95th percentile of a push without its inference, plus one inference at a place of the ladder."""
        rest = float(np.quantile(np.fromiter(self._rest_ms, float), 0.95)) if self._rest_ms else 0.0
        return rest + self._slowdown * self._cost_ms[self._ladder[place]]

    def _move(self, steps: int, pts_ns: int) -> None:
        self._place += steps
        self._moved_ns = pts_ns
        self.moves += 1
