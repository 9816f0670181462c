"""Spotting of micro-expressions in long synthetic clips, beside MDMD.

    python benchmarks/spotting.py --tuning-only         # what the default threshold comes from
    python benchmarks/spotting.py                       # both methods, on clips of other people
    python benchmarks/spotting.py --fps 30              # at one frame rate
    python benchmarks/spotting.py --causes              # what the causes cost: with and without them, MDMD left out

Thresholds are set on tuning clips and reported on other clips, of other people. MDMD has its own distance k,
threshold p, width and regions chosen on the tuning clips, at each frame rate apart; it sees the samples that
`Spotter` sees, with the head's motion removed by the similarity that the preprocessing removes, and looks at a
whole clip at once. `Spotter` has one threshold for all rates and answers while frames come in.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import cv2
import mdmd
import numpy as np
from interval_metrics import Interval, IntervalCounts, count_intervals
from numpy.typing import NDArray

from ptsr_edge.camera.face_motion import SIDE, expressive_mask
from ptsr_edge.camera.spotting import FrameAverager, SpotSettings, Spotter
from ptsr_edge.core.config import Preprocess
from ptsr_edge.data.synthetic_clips import draw_script, film
from ptsr_edge.vision.flow import head_motion, optical_flow

RATES = (30, 100, 200)
CLIP_S = 60.0
TUNING = (100, 1)
REPORT = (0, 2)
"""First subject and seed of the data set."""

NEUTRAL_EVERY = 4
"""One clip in so many shows no expression at all."""

K_S = (0.1, 0.2, 0.4)
P = tuple(np.round(np.arange(0.02, 1.0, 0.02), 2))
LONGEST_S = (0.5, 0.65)
MASKS = ("whole face", "brows and mouth")
THRESHOLDS = tuple(np.round(np.geomspace(2.0, 12.0, 60), 3))
LOWEST = 1.5


@dataclass(frozen=True)
class Clip:
    """One clip to run.

    Attributes:
        subject, seed: of the clip.
        fps: at which it is filmed.
        k_s: distances at which MDMD is run.
        masks: parts of the face that MDMD is run on.
    """

    subject: int
    seed: int
    fps: int
    k_s: tuple[float, ...]
    masks: tuple[str, ...]

    @property
    def expressive(self) -> bool:
        return self.subject % NEUTRAL_EVERY != NEUTRAL_EVERY - 1


@dataclass
class Seen:
    """What came out of a clip.

    Attributes:
        clip: which.
        true: intervals in seconds.
        spots: (onset, apex, offset, score, pts of the answer), times in seconds; without those that have a cause.
        caused: the same of those.
        push_ms: processor time of each push.
        times_s: of the samples that MDMD looked at.
        relative: per (k_s, mask) MDMD's r of each sample.
    """

    clip: Clip
    true: list[Interval]
    spots: list[tuple[float, float, float, float, float]] = field(default_factory=list)
    caused: list[tuple[float, float, float, float, float]] = field(default_factory=list)
    push_ms: list[float] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    relative: dict[tuple[float, str], NDArray[np.float64]] = field(default_factory=dict)


def run_clip(clip: Clip) -> Seen:
    """Films a clip once and lets both methods see it."""
    cv2.setNumThreads(1)
    script = draw_script(clip.subject, CLIP_S, clip.seed, expressive=clip.expressive)
    seen = Seen(clip, [(happening.onset_s, happening.offset_s) for happening in script.micro])
    spotter, average = Spotter(SpotSettings(threshold=LOWEST)), FrameAverager(SpotSettings().sample_s)
    frames = []
    for pts_ns, frame in film(script, clip.fps):
        start = time.thread_time()
        spots = spotter.push(frame, pts_ns)
        seen.push_ms.append(1e3 * (time.thread_time() - start))
        for one in spots:
            times = (one.onset_ns / 1e9, one.apex_ns / 1e9, one.offset_ns / 1e9, one.score, pts_ns / 1e9)
            (seen.spots if one.cause is None else seen.caused).append(times)
        sample = average.push(frame, pts_ns)
        if sample is not None and clip.k_s:
            frames.append(np.rint(sample.frame).astype(np.uint8))
            seen.times_s.append(sample.time_s)
    if clip.k_s:
        seen.relative = run_mdmd(frames, np.array(seen.times_s), clip)
    return seen


def run_mdmd(
    frames: Sequence[NDArray[np.uint8]], times_s: NDArray[np.float64], clip: Clip
) -> dict[tuple[float, str], NDArray[np.float64]]:
    """MDMD's r of each frame, at each distance and on each part of the face."""
    step = float(np.median(np.diff(times_s)))
    distances = {k_s: max(1, round(k_s / step)) for k_s in clip.k_s}
    masks = {
        name: np.ones((SIDE, SIDE), dtype=bool) if name == "whole face" else expressive_mask()
        for name in clip.masks
    }
    differences = {(k_s, name): np.full(len(frames), np.nan) for k_s in clip.k_s for name in masks}
    for first in range(len(frames)):
        flows: dict[int, NDArray[np.float32]] = {}
        for k_s, k in distances.items():
            if first + 2 * k >= len(frames):
                continue
            for lag in (k, 2 * k):
                if lag not in flows:
                    flows[lag] = steadied_flow(frames[first], frames[first + lag])
            for name, mask in masks.items():
                differences[k_s, name][first + k] = mdmd.maximal_difference(flows[k], flows[2 * k], mask)
    return {
        (k_s, name): mdmd.relative_differences(values, distances[k_s])
        for (k_s, name), values in differences.items()
    }


def steadied_flow(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The flow between two frames, less the similarity that the still parts of the face follow."""
    flow = optical_flow(one, other, Preprocess(image_size=SIDE, global_motion="none"))
    motion = head_motion(flow)
    if motion is None:
        return flow
    rigid = pixels() @ (motion[:, :2] - np.eye(2)).T + motion[:, 2]
    return flow - rigid.astype(np.float32)


@cache
def pixels() -> NDArray[np.float64]:
    """(S, S, 2): x and y of each pixel."""
    return np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).astype(np.float64)


def count_ours(seen: Iterable[Seen], threshold: float) -> IntervalCounts:
    total = IntervalCounts()
    for one in seen:
        spotted = [(onset, offset) for onset, _, offset, score, _ in one.spots if score >= threshold]
        total += count_intervals(spotted, one.true)
    return total


def count_mdmd(seen: Iterable[Seen], rule: mdmd.Rule, mask: str, longest_s: float) -> IntervalCounts:
    total = IntervalCounts()
    for one in seen:
        spotted = mdmd.intervals(np.array(one.times_s), one.relative[rule.k_s, mask], rule, longest_s)
        total += count_intervals(spotted, one.true)
    return total


def tune_mdmd(seen: Sequence[Seen]) -> tuple[mdmd.Rule, str, float]:
    """Distance, threshold, width, part of the face and longest interval with the best F1 on the tuning clips."""
    options = itertools.product(K_S, P, (False, True), MASKS, LONGEST_S)
    choices = [(mdmd.Rule(k_s, p, widen), mask, longest_s) for k_s, p, widen, mask, longest_s in options]
    return max(choices, key=lambda choice: count_mdmd(seen, *choice).f1)


def run_all(clips: Sequence[Clip], jobs: int) -> list[Seen]:
    with ProcessPoolExecutor(jobs) as pool:
        done = []
        for number, seen in enumerate(pool.map(run_clip, clips), start=1):
            done.append(seen)
            print(f"\r{number} of {len(clips)} clips", end="", file=sys.stderr)
        print(file=sys.stderr)
    return done


def clips_of(
    part: tuple[int, int], count: int, fps: int, k_s: tuple[float, ...], masks: tuple[str, ...]
) -> list[Clip]:
    first, seed = part
    return [Clip(first + number, seed, fps, k_s, masks) for number in range(count)]


def describe(name: str, counts: IntervalCounts, seen: Sequence[Seen]) -> str:
    minutes = len(seen) * CLIP_S / 60
    return (
        f"{name:8} F1 {counts.f1:.3f}  precision {counts.precision:.3f}  recall {counts.recall:.3f}  "
        f"{counts.false_alarms / minutes:5.2f} false alarms a minute  "
        f"({counts.hits} of {counts.true} found, {counts.spotted} spotted, {minutes:g} minutes)"
    )


def report_rate(
    fps: int, seen: Sequence[Seen], threshold: float, choice: tuple[mdmd.Rule, str, float]
) -> dict:
    minutes = len(seen) * CLIP_S / 60
    ours, theirs = count_ours(seen, threshold), count_mdmd(seen, *choice)
    neutral = [one for one in seen if not one.clip.expressive]
    calm = count_ours(neutral, threshold).false_alarms / max(1e-9, len(neutral) * CLIP_S / 60)
    their_calm = count_mdmd(neutral, *choice).false_alarms / max(1e-9, len(neutral) * CLIP_S / 60)
    delays = [answer - apex for one in seen for _, apex, _, score, answer in one.spots if score >= threshold]
    push_ms = np.concatenate([one.push_ms for one in seen])
    print(f"{fps} fps, report clips")
    print("  " + describe("Spotter", ours, seen))
    print("  " + describe("MDMD", theirs, seen) + f"  {choice}")
    print(f"  on the neutral clips alone: {calm:.2f} and {their_calm:.2f} false alarms a minute")
    print(
        f"  apex to answer: median {np.median(delays):.2f} s, longest {max(delays):.2f} s, "
        f"stated at most {SpotSettings().max_delay_s:.2f} s"
    )
    print(f"  a push: mean {push_ms.mean():.2f}, p95 {np.percentile(push_ms, 95):.2f} ms of processor time")
    bins = by_duration(seen, threshold)
    print(
        "  recall by duration: " + ", ".join(f"{name} {hits}/{true}" for name, hits, true in bins), flush=True
    )
    return {"fps": fps, "spotter": asdict(ours), "mdmd": asdict(theirs), "minutes": minutes}


def by_duration(seen: Iterable[Seen], threshold: float) -> list[tuple[str, int, int]]:
    edges = (0.04, 0.1, 0.2, 0.3, 0.5)
    counts = {pair: [0, 0] for pair in itertools.pairwise(edges)}
    for one in seen:
        spotted = [(onset, offset) for onset, _, offset, score, _ in one.spots if score >= threshold]
        for interval in one.true:
            hit = count_intervals(spotted, [interval]).hits
            for (low, high), pair in counts.items():
                if low <= interval[1] - interval[0] < high:
                    pair[0] += hit
                    pair[1] += 1
    return [(f"{low:g}-{high:g} s", *pair) for (low, high), pair in counts.items()]


def report_causes(rates: Sequence[int], clips: int, jobs: int) -> None:
    """Prints what `Spotter` finds in the report clips when motions with a cause are set aside, and when they are told."""
    threshold = SpotSettings().threshold
    for fps in rates:
        seen = run_all(clips_of(REPORT, clips, fps, (), ()), jobs)
        print(f"{fps} fps, set aside  " + describe("Spotter", count_ours(seen, threshold), seen))
        for one in seen:
            one.spots += one.caused
        print(f"{fps} fps, told       " + describe("Spotter", count_ours(seen, threshold), seen), flush=True)


def tune_threshold(rates: Sequence[int], clips: int, jobs: int) -> None:
    """Prints the one threshold with the best mean F1 over the frame rates, on the tuning clips."""
    tuning = {fps: run_all(clips_of(TUNING, clips, fps, (), ()), jobs) for fps in rates}
    scores = np.array(
        [np.mean([count_ours(seen, threshold).f1 for seen in tuning.values()]) for threshold in THRESHOLDS]
    )
    # The middle of what is as good as the best to a hundredth: the edge of a plateau is chance.
    good = np.flatnonzero(scores >= scores.max() - 0.01)
    best = THRESHOLDS[good[len(good) // 2]]
    for threshold, score in zip(THRESHOLDS, scores, strict=True):
        print(f"threshold {threshold:6.3f}: mean F1 {score:.3f}")
    print(f"threshold from the tuning clips: {best:.2f}; the default is {SpotSettings().threshold:g}")
    for fps, seen in tuning.items():
        print(f"{fps} fps  " + describe("Spotter", count_ours(seen, best), seen))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--fps", type=int, action="append", help=f"a frame rate; may be repeated (default: {RATES})"
    )
    parser.add_argument("--tuning-clips", type=int, default=1, help="of a minute each (default: 1)")
    parser.add_argument("--report-clips", type=int, default=3, help="of a minute each (default: 3)")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--tuning-only", action="store_true", help="of Spotter; MDMD is left out")
    parser.add_argument("--causes", action="store_true", help="with and without what is set aside")
    parser.add_argument("--out", type=Path, help="a JSON file for the counts")
    args = parser.parse_args()
    rates = tuple(args.fps or RATES)
    if args.tuning_only:
        tune_threshold(rates, args.tuning_clips, args.jobs)
        return
    if args.causes:
        report_causes(rates, args.report_clips, args.jobs)
        return
    record = []
    for fps in rates:
        tuning = run_all(clips_of(TUNING, args.tuning_clips, fps, K_S, MASKS), args.jobs)
        choice = tune_mdmd(tuning)
        print(f"{fps} fps, tuning clips")
        print("  " + describe("Spotter", count_ours(tuning, SpotSettings().threshold), tuning))
        print("  " + describe("MDMD", count_mdmd(tuning, *choice), tuning), flush=True)
        rule, mask, _ = choice
        report = run_all(clips_of(REPORT, args.report_clips, fps, (rule.k_s,), (mask,)), args.jobs)
        record.append(report_rate(fps, report, SpotSettings().threshold, choice))
    if args.out:
        args.out.write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
