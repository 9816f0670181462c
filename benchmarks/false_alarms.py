"""Events a minute on real face video, and what was set aside instead: a false alarm is the first thing that a user sees.

    python benchmarks/false_alarms.py --bundle DIR             on every clip that tests/support/face_clips.py fetches
    python benchmarks/false_alarms.py --bundle DIR CLIP ...    on clips of one's own

Nobody has labelled these clips: people talk, laugh, turn and grimace in them and no micro-expression is known, so each event
counts as a false alarm. What the spotter lets through at the defaults is counted, whatever the class.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import av
import cv2

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from face_clips import CLIPS, clip

from ptsr_edge.camera.metrics import CAUSES
from ptsr_edge.camera.pipeline import Pipeline
from ptsr_edge.core.files import write_json


def run(bundle: Path, video: Path, threshold: float | None) -> dict[str, Any]:
    """Events and counts of a clip."""
    with Pipeline(bundle, threshold=threshold) as pipeline, av.open(str(video)) as container:
        events, latest_ns, before_ns, shown_s = [], 0, None, 0.0
        for frame in container.decode(video=0):
            latest_ns = round(frame.pts * frame.time_base * 1e9)
            events += pipeline.push(frame.to_ndarray(format="bgr24"), latest_ns, "clip", live=False)
            if pipeline.view("clip").face is not None and before_ns is not None:
                shown_s += (latest_ns - before_ns) / 1e9
            before_ns = latest_ns
        events += pipeline.flush("clip")
        stats = pipeline.stats()["clip"]
    return {
        "clip": video.name, "face_s": round(shown_s, 2), "frames": stats.frames, "no_face": stats.no_face,
        "events": [round(event.apex_ns / 1e9, 2) for event in events], "unsure": stats.unsure,
        "set_aside": stats.set_aside,
    }  # fmt: skip


def row(name: str, face_s: float, events: int, unsure: int, set_aside: dict[str, int]) -> str:
    rate = f"{60 * events / face_s:.2f}" if face_s else ""
    aside = " | ".join(str(set_aside[cause]) for cause in CAUSES)
    return f"| {name} | {face_s:.1f} | {events} | {unsure} | {rate} | {aside} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", type=Path, nargs="*", help="video files (default: those of face_clips.py)")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--threshold", type=float, help="least score of a motion (default: the spotter's)")
    parser.add_argument("--out", type=Path, help="a JSON file for what was found")
    arguments = parser.parse_args()
    videos = arguments.clips or [path for path in map(clip, CLIPS) if path is not None]
    if not videos:
        parser.error("the clips are not there: python tests/support/face_clips.py fetches them")
    cv2.setNumThreads(1)
    print(
        f"| clip | seconds with a face | events | of them unsure | events a minute | {' | '.join(CAUSES)} |"
    )
    print("|---|" + "---:|" * (4 + len(CAUSES)))
    found, total = [], Counter[str]()
    for video in videos:
        one = run(arguments.bundle, video, arguments.threshold)
        found.append(one)
        total.update(one["set_aside"], events=len(one["events"]), unsure=one["unsure"])
        print(row(video.name, one["face_s"], len(one["events"]), one["unsure"], one["set_aside"]), flush=True)
    face_s = sum(one["face_s"] for one in found)
    print(row("all", face_s, total["events"], total["unsure"], total))
    if arguments.out:
        words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv]
        write_json(arguments.out, {"command": shlex.join(["python", *words]), "clips": found})


if __name__ == "__main__":
    main()
