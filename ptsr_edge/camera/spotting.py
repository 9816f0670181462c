"""Online spotting: finds where in a stream of face crops a micro-expression starts, peaks and ends.

    crop --FrameAverager--> sample --MotionMeter--> motion of each region --bump_kernels--> heights --> Spot

Sampled alike at every frame rate, a region's motion is searched for a rise and return within half a second.
A height counts by how far it stands out of three things: the noise of the trailing seconds, the rest of the
head's own motion, and the pull of a blink on the skin around the eyes. No answer waits longer than
`SpotSettings.max_delay_s`. What comes and goes as quickly but is no micro-expression, such as a turn of the head or
speech, is told with its cause.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ptsr_edge.camera.face_motion import EYES, MIN_SIDE, REGIONS, Frame, MotionMeter
from ptsr_edge.camera.metrics import Cause
from ptsr_edge.core.config import Record
from ptsr_edge.core.errors import InputError

Array = NDArray[np.float64]

_FACE = len(REGIONS) - EYES

_NEAR_EYES = np.array([name.startswith(("brow", "glabella")) for name in REGIONS[:_FACE]])

_MOUTH = np.array(
    [name.startswith(("mouth", "upper_lip", "lower_lip", "jaw", "chin")) for name in REGIONS[:_FACE]]
)

_NS = 1e9


class SpotSettings(Record):
    """The shape of the motions to look for, in seconds whatever the frame rate, and how far they have to stand out.

    The threshold is printed by `python benchmarks/spotting.py --tuning-only --tuning-clips 2`, from clips of
    people that no result is reported on. The other defaults were chosen by hand, on clips of such people too; the limits
    of what is no micro-expression also on the face clips of `benchmarks/false_alarms.py`. A pixel at 112 is about
    1.5 mm of a face.

    Attributes:
        threshold: least score of a spot.
        durations_s: durations of the bumps that are looked for, onset to offset, ascending.
        rest_s: time of the resting face before and after a bump that a height is measured against.
        separation_s: least time between two spots.
        return_share: the smaller of rise and return has to be this share of the larger one.
        longest_s: longest duration; a longer motion is no micro-expression.
        sample_s: time between two samples; frames in between are averaged.
        trailing_s: length of the window that the noise is learned from.
        warm_up_s: time of crops before the first spot.
        noise_floor_px: least noise that is assumed, in pixels at 112.
        head_share: share of the head's own motion that may be left in a region.
        blink_share: share of the lids' motion that may show at the brows.
        blink_share_far: the same at mouth and cheeks.
        max_gap_s: longest time between two crops; after a longer one everything begins anew.
        lost_share: residual, as a share of the crop's contrast, above which a crop shows something else.
        largest_px: farthest that a part of the face moves in a micro-expression, in pixels at 112.
        head_px: most that the head may move meanwhile, on the mean over the face, in pixels at 112.
        speech_s: time before an apex in which the mouth's motion is looked at.
        speech_swings: swings of the mouth from which on it is at work; a single motion that returns has two.
        speech_px: least height of a swing, in pixels at 112, on the root mean square over the parts of the mouth.
        speech_share: least height as a share of the mouth's motion in the spot itself.
    """

    threshold: float = Field(default=3.15, gt=0)
    durations_s: tuple[float, ...] = (0.08, 0.12, 0.18, 0.26, 0.36, 0.5)
    rest_s: float = Field(default=0.12, gt=0)
    separation_s: float = Field(default=0.15, gt=0)
    return_share: float = Field(default=0.5, ge=0, le=1)
    longest_s: float = Field(default=0.65, gt=0)
    sample_s: float = Field(default=0.02, gt=0)
    trailing_s: float = Field(default=15.0, gt=0)
    warm_up_s: float = Field(default=2.0, gt=0)
    noise_floor_px: float = Field(default=0.01, gt=0)
    head_share: float = Field(default=0.05, ge=0)
    blink_share: float = Field(default=0.3, ge=0)
    blink_share_far: float = Field(default=0.06, ge=0)
    max_gap_s: float = Field(default=0.25, gt=0)
    lost_share: float = Field(default=0.6, gt=0)
    largest_px: float = Field(default=2.5, gt=0)
    head_px: float = Field(default=2.0, gt=0)
    speech_s: float = Field(default=2.0, gt=0)
    speech_swings: int = Field(default=4, ge=3)
    speech_px: float = Field(default=0.2, gt=0)
    speech_share: float = Field(default=0.4, ge=0)

    @model_validator(mode="after")
    def _check_times(self) -> SpotSettings:
        if not self.durations_s or list(self.durations_s) != sorted(set(self.durations_s)):
            raise ValueError(f"durations_s must ascend, got {self.durations_s}")
        if self.durations_s[0] < 2 * self.sample_s:
            raise ValueError(
                f"the shortest of durations_s must be at least two samples, {2 * self.sample_s} s, "
                f"got {self.durations_s[0]}"
            )
        if self.sample_s > self.rest_s:
            raise ValueError(f"sample_s must be at most rest_s, {self.rest_s}, got {self.sample_s}")
        return self

    @property
    def max_delay_s(self) -> float:
        """The longest time from an apex to the pts of the frame that completes its answer.

        Half of the longest bump and its rest, the separation within which it has to be the best, half of
        the longest bump again, as the apex may come before the middle; rounding to samples; and the
        longest gap between two frames.
        """
        return self.durations_s[-1] + self.rest_s + self.separation_s + 3 * self.sample_s + self.max_gap_s


@dataclass(frozen=True)
class Spot:
    """A motion that came and went back.

    Attributes:
        onset_ns: pts of the frame where it starts.
        apex_ns: pts of the frame where it is largest.
        offset_ns: pts of the frame where it is over.
        score: how far it stands out: root mean square over the regions, in standard deviations of noise.
        cause: why it is no micro-expression that can be classified; None where it may be one.
    """

    onset_ns: int
    apex_ns: int
    offset_ns: int
    score: float
    cause: Cause | None = None


@dataclass(frozen=True)
class _Moment:
    """The best bump around one sample."""

    score: float
    bump: int
    weights: Array


class Spotter:
    """Spots micro-expressions in a stream of aligned face crops. It belongs to one stream and one thread."""

    def __init__(self, settings: SpotSettings | None = None) -> None:
        self.settings = settings or SpotSettings()
        step = self.settings.sample_s
        self._kernels = bump_kernels(self.settings.durations_s, self.settings.rest_s, step)
        self._half = self._kernels.shape[1] // 2
        self._apart = round(self.settings.separation_s / step)
        self._look_back = round(self.settings.longest_s / step)
        self._thin = max(1, round(0.1 / step))
        self._noise = TrailingNoise(
            window=max(2, round(self.settings.trailing_s / step / self._thin)),
            refresh=max(1, round(0.5 / step / self._thin)),
            floor=self.settings.noise_floor_px,
        )
        self._held_ns = round(_NS * (self.settings.max_delay_s + 2 * self.settings.longest_s))
        self._meter = MotionMeter()
        self._side = 0
        self.reset()

    def reset(self) -> None:
        """Forgets the crops: the next one shows another place or time.

        The noise is kept, as it belongs to the camera and the light.
        """
        self._meter.reset()
        self._pts: deque[int] = deque()
        self._average = FrameAverager(self.settings.sample_s)
        self._before: tuple[float, Array] | None = None
        looked_at = (
            2 * self._half
            + self._apart
            + max(self._look_back, round(self.settings.speech_s / self.settings.sample_s))
        )
        self._rows: deque[Array] = deque(maxlen=looked_at + 1)
        self._start_s = 0.0
        self._count = 0
        self._moments: deque[_Moment | None] = deque(maxlen=2 * self._apart + 1)
        self._answered: float = -np.inf

    def push(self, crop: Frame, pts_ns: int) -> list[Spot]:
        """Takes the next crop.

        A crop with the pts of the one before is left out. After a step back, a gap of more than
        `max_gap_s` or a change of size, everything begins anew.

        Args:
            crop: (S, S) uint8, gray, an aligned face crop that stays where it is.
            pts_ns: when it was taken, in nanoseconds of the source's clock.

        Returns:
            Spots that are certain with this crop, in the order of their apexes; usually none.

        Raises:
            InputError: the crop is no such image; it was not taken.
            MissingExtraError: OpenCV is not installed.
        """
        _check_crop(crop)
        ended: list[Spot] = []
        if self._pts:
            step = pts_ns - self._pts[-1]
            if step == 0:
                return []
            if not 0 < step <= self.settings.max_gap_s * _NS or crop.shape[0] != self._side:
                ended = self.flush()
        self._side = crop.shape[0]
        self._pts.append(pts_ns)
        while pts_ns - self._pts[0] > self._held_ns:
            self._pts.popleft()
        sample = self._average.push(crop, pts_ns)
        return ended + (self._take(sample) if sample is not None else [])

    def flush(self) -> list[Spot]:
        """Ends or interrupts the stream; returns the spots that can still be told, as "truncated" at the least.

        The next crop begins anew.
        """
        return self._end("truncated")

    def _end(self, cause: Cause) -> list[Spot]:
        spots: list[Spot] = []
        if self._rows:
            for _ in range(self._half + self._apart):
                spots += self._advance(self._rows[-1])
        self.reset()
        return [replace(spot, cause=spot.cause or cause) for spot in spots]

    def _take(self, sample: Sample) -> list[Spot]:
        """Brings a sample onto the grid of `sample_s`, by linear interpolation."""
        motion, time_s = self._meter.measure(sample.frame), sample.time_s
        if motion.residual_share > self.settings.lost_share:
            pts = self._pts[-1]
            spots = self._end("occlusion")
            self._pts.append(pts)
            return spots
        row = np.stack([motion.regions, motion.rigid])  # (2, R, 2)
        if self._before is None:
            self._before, self._start_s = (time_s, row), time_s
            return self._advance(row)
        spots = []
        before_s, before = self._before
        while (due_s := self._start_s + self._count * self.settings.sample_s) <= time_s:
            share = (due_s - before_s) / (time_s - before_s)
            spots += self._advance(before + share * (row - before))
        self._before = (time_s, row)
        return spots

    def _advance(self, row: Array) -> list[Spot]:
        """Takes the signals (2, R, 2) of the next grid time and judges the moment that now has all of its future."""
        self._rows.append(row)
        self._count += 1
        if len(self._rows) < 2 * self._half + 1:
            return []
        window = np.stack([self._rows[place] for place in range(-2 * self._half - 1, 0)])
        heights = (self._kernels @ window.reshape(len(window), -1)).reshape(-1, *row.shape)  # (D, 2, R, 2)
        self._moments.append(self._moment(heights))
        return self._peak()

    def _moment(self, heights: Array) -> _Moment | None:
        face, eyes, rigid = heights[:, 0, :_FACE], heights[:, 0, _FACE:], heights[:, 1, :_FACE]
        if self._count % self._thin == 0 or not len(self._noise):
            self._noise.add(face)
        if len(self._noise) * self._thin * self.settings.sample_s < self.settings.warm_up_s:
            return None
        head = np.sqrt((rigid**2).sum(axis=-1).mean(axis=-1))[:, None]  # (D, 1)
        lids = np.sqrt((eyes**2).sum(axis=-1).max(axis=-1))[:, None]
        share = np.where(_NEAR_EYES, self.settings.blink_share, self.settings.blink_share_far)
        nuisance = (self.settings.head_share * head) ** 2 + (share * lids) ** 2  # (D, R)
        variance = self._noise.sigma**2 + nuisance[..., None]
        scores = np.sqrt((face**2 / variance).sum(axis=-1).mean(axis=-1))  # (D,)
        best = int(scores.argmax())
        return _Moment(float(scores[best]), best, face[best] / variance[best])

    def _peak(self) -> list[Spot]:
        """Returns the moment in the middle of those held, if it is the best of them and shaped as a bump."""
        if len(self._moments) < 2 * self._apart + 1 or self._moments[self._apart] is None:
            return []
        moment = self._moments[self._apart]
        assert moment is not None
        scores = [other.score if other else 0.0 for other in self._moments]
        if moment.score < self.settings.threshold or moment.score < max(scores):
            return []
        middle = self._count - 1 - self._half - self._apart
        if middle - self._answered <= self._apart:
            return []
        spot = self._shape(moment, middle)
        if spot is not None:
            self._answered = middle
            return [spot]
        return []

    def _shape(self, moment: _Moment, middle: int) -> Spot | None:
        """Returns onset, apex and offset of a bump; None where the motion did not come back in time."""
        rows = np.stack(self._rows)[:, 0, :_FACE]  # (n, R, 2)
        signal = np.tensordot(rows, moment.weights, axes=2)  # (n,)
        first = self._count - len(rows)
        centre = middle - first
        half = max(1, round(self.settings.durations_s[moment.bump] / 2 / self.settings.sample_s))
        low = max(0, centre - half)
        apex = low + int(signal[low : centre + half + 1].argmax())
        reach = round(0.45 / self.settings.sample_s)
        before, after = signal[max(0, apex - reach) : apex + 1][::-1], signal[apex : apex + reach + 1]
        rise, fall = signal[apex] - before.min(), signal[apex] - after.min()
        if min(rise, fall) < self.settings.return_share * max(rise, fall) or min(rise, fall) <= 0:
            return None
        onset, offset = apex - 2 * _half_height(before, rise), apex + 2 * _half_height(after, fall)
        if (offset - onset) * self.settings.sample_s > self.settings.longest_s:
            return None
        cause = self._cause(math.floor(onset), apex, math.ceil(offset))
        return self._spot(first + np.array([onset, apex, offset]), moment.score, cause)

    def _cause(self, onset: int, apex: int, offset: int) -> Cause | None:
        """Returns why the motion between two of the rows that are held is no micro-expression; None if nothing says so."""
        rows = np.stack(self._rows)
        during = slice(max(0, onset), offset + 1)
        face, head = (np.linalg.norm(np.ptp(rows[during, kind, :_FACE], axis=0), axis=1) for kind in (0, 1))
        turned, moved = head.mean() / self.settings.head_px, face.max() / self.settings.largest_px
        if max(turned, moved) > 1:
            # A large motion of the face pulls the skin along that the head's motion is read from.
            return "head_turn" if turned > moved else "large_motion"
        since = max(0, apex - round(self.settings.speech_s / self.settings.sample_s))
        mouth = rows[since:, 0, :_FACE][:, _MOUTH].reshape(len(rows) - since, -1)  # (n, 2 regions)
        # Along its main direction, scaled to a root mean square over the regions.
        main = np.linalg.svd(mouth - mouth.mean(axis=0), full_matrices=False)[2][0]
        signal = mouth @ main / math.sqrt(_MOUTH.sum())
        own = float(np.ptp(signal[max(0, onset - since) : offset - since + 1]))
        least = max(self.settings.speech_px, self.settings.speech_share * own)
        return "speech" if count_swings(signal, least) >= self.settings.speech_swings else None

    def _spot(self, places: Array, score: float, cause: Cause | None) -> Spot:
        """Turns onset, apex and offset on the grid into the pts of the three different frames nearest to them."""
        pts = np.array(self._pts)
        times = _NS * (self._start_s + self.settings.sample_s * places)
        nearest = np.abs(pts[:, None] - times).argmin(axis=0)
        middle = min(max(int(nearest[1]), 1), len(pts) - 2)
        left, right = min(int(nearest[0]), middle - 1), max(int(nearest[2]), middle + 1)
        return Spot(int(pts[left]), int(pts[middle]), int(pts[right]), score, cause)


def count_swings(signal: Array, least: float) -> int:
    """Returns how often a signal (n,) goes up or down by at least so much before it turns back by as much."""
    swings, rising = 0, 0
    low = high = signal[0]
    for value in signal[1:]:
        low, high = min(low, value), max(high, value)
        if rising >= 0 and high - value >= least:
            swings, rising, low = swings + 1, -1, value
        elif rising <= 0 and value - low >= least:
            swings, rising, high = swings + 1, 1, value
    return swings


def _half_height(signal: Array, height: float) -> float:
    """Returns the number of samples from the start of a fall to its half, between samples by a straight line."""
    level = signal[0] - height / 2
    below = int(np.argmax(signal <= level))
    return below - float((level - signal[below]) / (signal[below - 1] - signal[below]))


def _check_crop(crop: Any) -> None:
    accepted = f"a face crop must be (S, S) uint8, gray, at least {MIN_SIDE} pixels a side"
    if not isinstance(crop, np.ndarray):
        raise InputError(f"{accepted}; found {type(crop).__name__}")
    square = crop.ndim == 2 and crop.shape[0] == crop.shape[1]
    if not square or crop.dtype != np.uint8 or crop.shape[0] < MIN_SIDE:
        raise InputError(f"{accepted}; found {crop.shape} {crop.dtype}")


@dataclass(frozen=True)
class Sample:
    """The mean of frames that follow one another.

    Attributes:
        frame: (H, W) float32.
        time_s: the mean of their pts.
    """

    frame: NDArray[np.float32]
    time_s: float


class FrameAverager:
    """Averages frames over `sample_s`, so that a high rate loses no frame; at a low rate each frame is a sample.

    For one stream of one frame size.
    """

    def __init__(self, sample_s: float) -> None:
        self._sample_ns = _NS * sample_s
        self._sum: NDArray[np.float32] | None = None
        self._pts: list[int] = []
        self._last_ns: int | None = None
        self._sampled_ns: int | None = None

    def push(self, frame: NDArray[np.uint8], pts_ns: int) -> Sample | None:
        """Takes the next frame, (H, W); returns the sample that ends with it, if one does.

        A sample ends with the frame that is nearest to its end, so that nothing waits for the next one.
        """
        interval = 0 if self._last_ns is None else pts_ns - self._last_ns
        self._last_ns = pts_ns
        self._sum = frame.astype(np.float32) if self._sum is None else self._sum + frame
        self._pts.append(pts_ns)
        if self._sampled_ns is not None and pts_ns - self._sampled_ns < self._sample_ns - interval / 2:
            return None
        middle_ns = self._pts[0] + sum(pts - self._pts[0] for pts in self._pts) / len(self._pts)
        sample = Sample(self._sum / np.float32(len(self._pts)), middle_ns / _NS)
        self._sum, self._pts, self._sampled_ns = None, [], pts_ns
        return sample


def bump(times_s: Array, lasts_s: float) -> Array:
    """Returns a raised cosine around 0, from 0 to 1 and back within `lasts_s`."""
    inside = np.abs(times_s) < lasts_s / 2
    return np.where(inside, 0.5 + 0.5 * np.cos(2 * np.pi * times_s / lasts_s), 0.0)


def bump_kernels(durations_s: Sequence[float], rest_s: float, step_s: float) -> Array:
    """Returns rows whose product with a window of samples is the height of a bump in its middle.

    Args:
        durations_s: durations of the bumps, ascending.
        rest_s: time that is looked at before and after a bump.
        step_s: time between samples.

    Returns:
        (durations, 2 h + 1): least squares over bump, level and slope; h samples make half of the longest
        bump and its rest. A shorter bump looks at less: its row is 0 further out.
    """
    half = round((max(durations_s) / 2 + rest_s) / step_s)
    kernels = np.zeros((len(durations_s), 2 * half + 1))
    for row, lasts_s in zip(kernels, durations_s, strict=True):
        reach = round((lasts_s / 2 + rest_s) / step_s)
        times = step_s * np.arange(-reach, reach + 1, dtype=np.float64)
        terms = np.stack([bump(times, lasts_s), np.ones_like(times), times], axis=1)
        row[half - reach : half + reach + 1] = np.linalg.pinv(terms)[0]
    return kernels


class TrailingNoise:
    """The standard deviation of each of many signals, from the median of their size in a trailing window.

    The median absolute deviation about 0, as bump heights have no level, times 1.4826: the standard
    deviation of a normal distribution, which rare events do not change.
    """

    def __init__(self, window: int, refresh: int, floor: float) -> None:
        """Takes counts of `add`: `window` are held, and every `refresh` the deviation is computed anew."""
        self._heights: deque[Array] = deque(maxlen=window)
        self._refresh = refresh
        self._floor = floor
        self._since = 0
        self._sigma: Array | None = None

    def __len__(self) -> int:
        return len(self._heights)

    def add(self, heights: Array) -> None:
        """Takes the next heights, of the same shape each time."""
        self._heights.append(np.abs(heights).astype(np.float32))
        self._since += 1
        if self._sigma is None or self._since >= self._refresh:
            median = np.median(np.stack(self._heights), axis=0)
            self._sigma = np.maximum(1.4826 * median, self._floor).astype(np.float64)
            self._since = 0

    @property
    def sigma(self) -> Array:
        """The deviations, of the shape of the heights; only after the first `add`."""
        assert self._sigma is not None
        return self._sigma
