"""Clips become flow samples: read, cropped, measured by `flow.flow_sample`, in parallel, and kept.

Threads, not processes: OpenCV and hashing release the interpreter, and a caller's script needs no guard around
its main part.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.config import Preprocess
from ptsr_edge.core.console import progress
from ptsr_edge.core.errors import InputError
from ptsr_edge.data.annotations import Clip, Finding, RowFault
from ptsr_edge.data.face_crop import FaceFinder, face_finder, face_pair
from ptsr_edge.data.flow_cache import FlowCache, flow_key
from ptsr_edge.data.images import decode_image, read_file
from ptsr_edge.vision.flow import MIN_FRAME, flow_sample

T = TypeVar("T")
MOST_THREADS = 8


def finder_for(clips: Sequence[Clip], model: Path | None) -> FaceFinder | None:
    """The face detector that clips need: None where all are face crops.

    Raises:
        InputError: one is needed and there is none, or the model cannot be read.
    """
    return face_finder(model) if any(not clip.cropped for clip in clips) else None


def measure_clips(
    clips: Sequence[Clip], preprocess: Preprocess, finder: FaceFinder | None, skip_bad: bool = False,
    store: FlowCache | None = None,
) -> tuple[NDArray[np.float32], dict[str, Finding]]:  # fmt: skip
    """The flow samples of clips, from the cache where it has them.

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

    def measure(clip: Clip) -> NDArray[np.float32]:
        return clip_sample(clip, preprocess, None if clip.cropped else finder, kept)

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
    """What is wrong with the frames of clips, by name, without measuring anything."""

    def look(clip: Clip) -> None:
        _frames(clip, [read_file(path) for path in clip.files], None if clip.cropped else finder)

    return {
        clip.name: answer
        for clip, answer in _each(clips, look, "reading frames")
        if isinstance(answer, Finding)
    }


def clip_sample(
    clip: Clip, preprocess: Preprocess, finder: FaceFinder | None, store: FlowCache
) -> NDArray[np.float32]:
    """The flow sample of one clip: (S, S, 3) float32.

    Raises:
        RowFault: a frame cannot be read, or shows no face.
    """
    side = preprocess.image_size
    contents = [read_file(path) for path in clip.files]
    identity = finder.identity if finder is not None else None
    key = flow_key(contents, preprocess.model_dump(mode="json"), identity)
    sample = store.fetch(key, (side, side, 3))
    if sample is None:
        sample = flow_sample(*_frames(clip, contents, finder), preprocess)
        store.store(key, sample)
    return sample


def _frames(
    clip: Clip, contents: Sequence[bytes], finder: FaceFinder | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    first, second = (decode_image(part, path) for part, path in zip(contents, clip.files, strict=True))
    onset, apex = face_pair(first, second, finder)
    if min(onset.shape) < MIN_FRAME:
        height, width = onset.shape
        raise RowFault(f"{clip.files[0]}: a face needs {MIN_FRAME} pixels a side, found {width}x{height}")
    return onset, apex


def _each(clips: Sequence[Clip], work: Callable[[Clip], T], label: str) -> Iterator[tuple[Clip, T | Finding]]:
    """Each clip with what came of it, or with what is wrong with it, in the order of the clips."""

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
