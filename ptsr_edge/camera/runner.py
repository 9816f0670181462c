"""Several sources in one process: each has a thread that reads, a bounded queue, and a thread that pushes.

A source that stalls, breaks off, changes its resolution or sends garbage is told in one line, counted, and opened
again with back-off; the others go on. Streams share nothing but the pipeline.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.camera.metrics import StreamCounters
from ptsr_edge.camera.sources import FrameSource, SourceRefusedError, TimedFrame
from ptsr_edge.core.errors import InputError, JobError, PtsrError
from ptsr_edge.vision.face_detection import CropOutsideError

STEADY_S = 10.0
"""Time without a failure after which earlier ones are forgotten."""

_TICK_S = 0.05

log = logging.getLogger(__name__)


@dataclass
class Backoff:
    """Exponential back-off with jitter.

    The k-th wait is drawn evenly between a half and the whole of `first_s` * 2^(k - 1), at most `longest_s`: cameras
    behind one switch, which all break off together, do not all come back in the same moment.

    Attributes:
        first_s: the longest first wait, in seconds.
        longest_s: the longest wait of all.
        retries: tries in a row without a frame, after which the source is given up.
        draw: the source of randomness.
        failures: failures in a row so far.

    Source: Brooker, Exponential backoff and jitter, AWS Architecture Blog, 2015 ("equal jitter").
    """

    first_s: float = 1.0
    longest_s: float = 30.0
    retries: int = 30
    draw: random.Random = field(default_factory=random.Random, repr=False)
    failures: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.first_s <= self.longest_s:
            raise InputError(
                "the first wait must be above 0 and at most the longest; "
                f"found {self.first_s:g} s and {self.longest_s:g} s"
            )
        if self.retries < 0:
            raise InputError(f"retries must be 0 or more; found {self.retries}")

    def next_s(self) -> float | None:
        """Counts a failure; returns the seconds to wait, or None where the source is given up."""
        self.failures += 1
        if self.failures > self.retries:
            return None
        # 64 doublings pass any limit, and a float holds them.
        whole = min(self.longest_s, self.first_s * 2.0 ** min(self.failures - 1, 64))
        return whole / 2 + self.draw.random() * whole / 2

    def reset(self) -> None:
        """Forgets the failures: the source works again."""
        self.failures = 0


T = TypeVar("T")

DROP_POLICIES = ("oldest", "newest", "block")
"""A full queue drops the frame that waited longest, drops the one that comes, or makes the source wait."""


QUEUE_BYTES = 256_000_000
"""What the frames of one queue may take together; one frame may wait whatever its size."""


class FrameQueue(Generic[T]):
    """A queue of at most `size` frames and `QUEUE_BYTES` between two threads, with one of `DROP_POLICIES`.

    It also takes marks, which are never dropped and take no room: a gap in the stream must not be lost.

    Attributes:
        dropped: frames that gave way so far.
        deepest: the most frames that ever waited.
    """

    def __init__(self, size: int, drop: str) -> None:
        """Opens an empty queue.

        Raises:
            InputError: the size is below 1, or the policy is unknown.
        """
        if size < 1:
            raise InputError(f"a queue must hold at least 1 frame; found {size}")
        if drop not in DROP_POLICIES:
            raise InputError(f"unknown drop policy {drop!r}; known: {', '.join(DROP_POLICIES)}")
        self.dropped = 0
        self.deepest = 0
        self._size = size
        self._drop = drop
        self._items: deque[tuple[T, int | None, float]] = deque()  # with the bytes of a frame; None: a mark
        self._frames = 0
        self._bytes = 0
        self._closed = False
        self._changed = threading.Condition()

    @property
    def drops(self) -> bool:
        """Whether frames may give way."""
        return self._drop != "block"

    def never_drop(self) -> None:
        """Makes the source wait from now on."""
        with self._changed:
            self._drop = "block"

    def __len__(self) -> int:
        """Returns how many frames wait."""
        return self._frames

    def put(self, frame: T, nbytes: int = 0) -> bool:
        """Hands over a frame of so many bytes; waits for room with the policy "block" only.

        Returns:
            Whether the queue is still open; the frame is lost where it is not.
        """

        def is_full() -> bool:
            return bool(self._frames) and (self._frames >= self._size or self._bytes + nbytes > QUEUE_BYTES)

        with self._changed:
            while self._drop == "block" and is_full() and not self._closed:
                self._changed.wait()
            if self._closed:
                return False
            while is_full():
                self.dropped += 1
                if self._drop == "newest":
                    return True
                self._drop_oldest()
            self._items.append((frame, nbytes, time.perf_counter()))
            self._frames += 1
            self._bytes += nbytes
            self.deepest = max(self.deepest, self._frames)
            self._changed.notify_all()
            return True

    def mark(self, mark: T) -> None:
        """Hands over a mark."""
        with self._changed:
            self._items.append((mark, None, time.perf_counter()))
            self._changed.notify_all()

    def get(self) -> tuple[T, float] | None:
        """Waits for the next frame or mark.

        Returns:
            It, and the seconds that it has waited; None when the queue is closed and empty.
        """
        with self._changed:
            while not self._items and not self._closed:
                self._changed.wait()
            if not self._items:
                return None
            item, nbytes, since = self._items.popleft()
            self._took(nbytes)
            self._changed.notify_all()
            return item, time.perf_counter() - since

    def close(self) -> None:
        """Ends the queue: frames that wait can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def cancel(self) -> None:
        """Closes the queue and drops what waits in it."""
        with self._changed:
            self._items.clear()
            self._frames = self._bytes = 0
            self.close()

    def _drop_oldest(self) -> None:
        for place, (_, nbytes, _since) in enumerate(self._items):
            if nbytes is not None:
                del self._items[place]
                self._took(nbytes)
                return

    def _took(self, nbytes: int | None) -> None:
        if nbytes is not None:
            self._frames -= 1
            self._bytes -= nbytes


class Consumer(Protocol):
    """Takes frames, from one thread per stream: `pipeline.Pipeline`, or a stand-in."""

    def push(self, frame: NDArray[np.uint8], pts_ns: int, stream: str, *, live: bool) -> Sequence[Any]:
        """Takes a frame, of a source that goes on in real time or of one that waits; returns the events that it completed."""

    def flush(self, stream: str) -> Sequence[Any]:
        """Ends the stream, or marks a gap in it; returns the events that were still open."""


Output = Callable[[str, TimedFrame | None, Sequence[Any]], None]
"""Called for each frame that was pushed, in its stream's thread: name of the stream, frame (None after a flush), events."""


@dataclass
class Stream:
    """One source at work.

    Attributes:
        name: its name.
        shown: its address for logs, without password.
        source: gives the frames.
        queue: frames between its two threads; None in it is a gap.
        backoff: gives the time to wait before the source is opened again.
        counters: of this stream.
        refusal: why the latest of the frames that the pipeline did not take was refused.
    """

    name: str
    shown: str
    source: FrameSource
    queue: FrameQueue[TimedFrame | None]
    backoff: Backoff
    counters: StreamCounters = field(default_factory=StreamCounters)
    refusal: str = ""

    @property
    def live(self) -> bool:
        """Whether it goes on as time does: a camera, or a pipe that frames may be dropped of."""
        return self.source.live or self.queue.drops

    def observe(self) -> StreamCounters:
        """Returns the counters, after bringing those of the queue and the source up to date."""
        counters = self.counters
        counters.dropped, counters.queue_deepest = self.queue.dropped, self.queue.deepest
        counters.queue_depth, counters.damaged = len(self.queue), self.source.damaged
        return counters

    def fail(self, reason: str) -> None:
        """Notes that the stream has failed, and logs why."""
        self.counters.state, self.counters.reason = "failed", reason
        log.error("%s: failed: %s: %s", self.name, self.shown, reason)


class Streams:
    """Runs streams through a pipeline until they end or are told to stop."""

    def __init__(
        self,
        pipeline: Consumer,
        streams: Sequence[Stream],
        output: Output,
        stop: threading.Event | None = None,
    ) -> None:
        """Prepares streams; nothing starts before `run`.

        Args:
            pipeline: takes the frames; its `push` is called from one thread per stream.
            streams: their names differ.
            output: is called for each frame that was pushed.
            stop: ends the run when it is set; by default an event of its own.
        """
        self.streams = list(streams)
        self.stop = stop or threading.Event()
        self._pipeline = pipeline
        self._output = output

    def run(self, duration_s: float | None = None, tick: Callable[[], None] | None = None) -> None:
        """Works until every stream has ended, `stop` is set, or the time is over; then no thread is left.

        A stream that fails does not end the others: see the `state` and `reason` of its counters.

        Args:
            duration_s: time after which the run ends; None: no limit.
            tick: called in this thread about 20 times a second.
        """
        ends_at = None if duration_s is None else time.monotonic() + duration_s
        with ThreadPoolExecutor(2 * len(self.streams), thread_name_prefix="ptsr-edge-stream") as pool:
            try:
                readers = [pool.submit(_Reader(stream, self.stop).run) for stream in self.streams]
                futures = [*readers, *(pool.submit(self._work, stream) for stream in self.streams)]
                pending = set(futures)
                while pending and not self.stop.is_set():
                    pending = wait(pending, timeout=_TICK_S).not_done
                    if ends_at is not None and time.monotonic() >= ends_at:
                        break
                    if tick is not None:
                        tick()
            finally:
                self.stop.set()
                for stream in self.streams:
                    stream.queue.cancel()
        for future in futures:
            future.result()  # raises a fault of the code: an exception that is no `PtsrError`

    def observe(self) -> Mapping[str, StreamCounters]:
        """Returns the counters of each stream at this moment, by name."""
        return {stream.name: stream.observe() for stream in self.streams}

    def _work(self, stream: Stream) -> None:
        """Pushes what the queue holds, until it is closed; runs in a thread of its own."""
        try:
            while (taken := stream.queue.get()) is not None:
                frame, waited_s = taken
                if frame is None:
                    self._flush(stream)
                else:
                    stream.counters.stages["wait"].add(waited_s * 1e3)
                    self._push(stream, frame)
            self._flush(stream)
            if stream.counters.refused and not stream.counters.pushed and stream.counters.state != "failed":
                stream.fail(f"none of its frames was accepted: {stream.refusal}")
            if stream.counters.state != "failed":
                stream.counters.state, stream.counters.reason = "ended", ""
        except BaseException as error:
            stream.fail(f"{type(error).__name__}: {error}")
            raise
        finally:
            stream.queue.cancel()

    def _push(self, stream: Stream, frame: TimedFrame) -> None:
        counters = stream.counters
        started = time.perf_counter()
        try:
            events = self._pipeline.push(frame.image, frame.pts_ns, stream=stream.name, live=stream.live)
        except CropOutsideError as error:
            stream.fail(str(error))
            stream.queue.cancel()
            return
        except PtsrError as error:
            counters.refused += 1
            stream.refusal = str(error)
            if counters.refused.bit_count() == 1:  # 1, 2, 4, 8, ...: a broken stream floods no log
                log.warning("%s: frame refused (%d so far): %s", stream.name, counters.refused, error)
            return
        counters.stages["push"].add((time.perf_counter() - started) * 1e3)
        counters.pushed += 1
        counters.events += len(events)
        with counters.stages["output"].timed():
            self._output(stream.name, frame, events)

    def _flush(self, stream: Stream) -> None:
        events: Sequence[Any]
        try:
            events = self._pipeline.flush(stream.name)
        except JobError as error:  # the runtime's: the stream can go on behind the gap
            log.warning("%s: what was open before the gap is lost: %s", stream.name, error)
            events = []
        stream.counters.events += len(events)
        self._output(stream.name, None, events)


class _Reader:
    """Opens a source again and again, and keeps its time going on from one connection to the next."""

    def __init__(self, stream: Stream, stop: threading.Event) -> None:
        self._stream = stream
        self._stop = stop
        self._seemed_live = stream.source.live
        self._latest_ns: int | None = None
        self._latest_at = 0.0

    def run(self) -> None:
        """Reads until the source has ended or is given up, or until `stop`; runs in a thread of its own."""
        stream = self._stream
        try:
            while not self._stop.is_set():
                try:
                    if not self._read() or not stream.source.live or self._stop.is_set():
                        break
                    reason = "the stream ended"
                except PtsrError as error:
                    reason = str(error)
                    refused = isinstance(error, SourceRefusedError) and not stream.counters.connects
                    if refused or not stream.source.live:
                        stream.fail(reason)
                        break
                if not self._wait_after(reason):
                    break
        except BaseException as error:
            stream.fail(f"{type(error).__name__}: {error}")
            raise
        finally:
            stream.queue.close()

    def _wait_after(self, reason: str) -> bool:
        """Waits before the next try; returns False where there is none."""
        stream, counters = self._stream, self._stream.counters
        counters.failures += 1
        stream.queue.mark(None)
        delay_s = stream.backoff.next_s()
        if delay_s is None:
            stream.fail(f"{reason}; given up after {stream.backoff.retries} tries")
            return False
        counters.state, counters.reason = "waiting", reason
        log.warning("%s: %s; opening %s again in %.1f s", stream.name, reason, stream.shown, delay_s)
        self._stop.wait(delay_s)
        return True

    def _read(self) -> bool:
        """Reads one connection to its end, or until `stop`; returns whether the queue still takes frames.

        Raises:
            JobError: the source could not be opened or broke off.
        """
        stream, offset_ns, opened_at = self._stream, 0, None
        with contextlib.closing(stream.source.frames(self._stop)) as frames:
            for frame in frames:
                now = time.monotonic()
                if opened_at is None:
                    opened_at = now
                    self._connected()
                    if self._latest_ns is not None:
                        # A stream that was opened again starts at 0, or anywhere: its time goes on from where it was.
                        away_ns = round((now - self._latest_at) * 1e9)
                        offset_ns = self._latest_ns + away_ns - frame.pts_ns
                elif stream.backoff.failures and now - opened_at > STEADY_S:
                    stream.backoff.reset()
                moved = replace(frame, pts_ns=frame.pts_ns + offset_ns)
                self._count(moved)
                self._latest_ns, self._latest_at = moved.pts_ns, now
                if not stream.queue.put(moved, moved.image.nbytes):
                    return False
        return True

    def _connected(self) -> None:
        counters = self._stream.counters
        counters.connects += 1
        counters.state, counters.reason = "running", ""
        if self._seemed_live and not self._stream.source.live:
            # An address that turned out to be that of a file: like other files, it waits and loses nothing.
            self._stream.queue.never_drop()
        if counters.connects > 1:
            log.warning("%s: frames come again from %s", self._stream.name, self._stream.shown)

    def _count(self, frame: TimedFrame) -> None:
        counters = self._stream.counters
        counters.frames += 1
        counters.latest_ns = frame.pts_ns
        if counters.first_ns is None:
            counters.first_ns = frame.pts_ns
        counters.stages["decode"].add(frame.decode_s * 1e3)
        height, width = frame.image.shape[:2]
        if (width, height) != (counters.width, counters.height):
            if counters.width:
                counters.resolution_changes += 1
                log.warning(
                    "%s: the resolution changed from %dx%d to %dx%d",
                    self._stream.name, counters.width, counters.height, width, height,
                )  # fmt: skip
            counters.width, counters.height = width, height


def raise_failed(counters: Mapping[str, StreamCounters]) -> None:
    """Raises one error for all streams that failed.

    Raises:
        JobError: at least one has; the message names them and why.
    """
    failed = [f"{name}: {one.reason}" for name, one in counters.items() if one.state == "failed"]
    if failed:
        raise JobError(f"{len(failed)} of {len(counters)} streams failed: {'; '.join(failed)}")
