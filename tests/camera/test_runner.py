"""The threads, with sources that fail on purpose and a consumer that counts; the real ones meet in test_cli.py."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from video_files import write_video

from ptsr_edge.camera.runner import Backoff, FrameQueue, Stream, Streams, raise_failed
from ptsr_edge.camera.sources import SourceRefusedError, SourceSettings, TimedFrame, VideoSource, parse_source
from ptsr_edge.core.errors import InputError, JobError

SECOND_NS = 1_000_000_000


class Scripted:
    """A source that plays connections one after another: a number of frames, then an error or the end."""

    def __init__(
        self, *connections: tuple[int, Exception | None], live: bool = True, pause_s: float = 0
    ) -> None:
        self.live = live
        self.damaged = 0
        self.opened = 0
        self.closed = 0
        self.size = (6, 8)
        self._connections = list(connections)
        self._pause_s = pause_s

    def check(self) -> None:
        pass

    def frames(self, stop: threading.Event) -> Generator[TimedFrame, None, None]:
        count, error = self._connections.pop(0) if self._connections else (0, JobError("gone"))
        self.opened += 1
        try:
            for number in range(count):
                if stop.wait(self._pause_s):
                    return
                yield TimedFrame(np.zeros((*self.size, 3), np.uint8), number * SECOND_NS // 10, 1e-4)
            if error is not None:
                raise error
        finally:
            self.closed += 1


class Counting:
    """Notes what is pushed; a frame can be made to fail or to take long."""

    def __init__(self, pause_s: float = 0) -> None:
        self.pushed: dict[str, list[int]] = {}
        self.live: dict[str, bool] = {}
        self.flushed: list[str] = []
        self.shapes: list[tuple[int, ...]] = []
        self.fails: dict[str, Exception] = {}
        self._pause_s = pause_s

    def push(self, frame: NDArray[np.uint8], pts_ns: int, stream: str, *, live: bool) -> Sequence[str]:
        time.sleep(self._pause_s)
        if stream in self.fails:
            raise self.fails[stream]
        self.shapes.append(frame.shape)
        self.live[stream] = live
        self.pushed.setdefault(stream, []).append(pts_ns)
        return ["event"] if len(self.pushed[stream]) == 3 else []

    def flush(self, stream: str) -> Sequence[str]:
        self.flushed.append(stream)
        return []


def ignore(_name: str, _frame: TimedFrame | None, _events: Sequence[Any]) -> None:
    pass


def stream(name: str, source: Any, *, drop: str = "block", size: int = 4, retries: int = 5) -> Stream:
    backoff = Backoff(0.01, 0.05, retries, random.Random(0))
    return Stream(name, f"rtsp://{name}", source, FrameQueue(size, drop), backoff)


def run(*streams: Stream, consumer: Counting | None = None, **how: Any) -> tuple[Streams, Counting]:
    before = set(threading.enumerate())
    consumer = consumer or Counting()
    streams_ = Streams(consumer, streams, ignore)
    streams_.run(**how)
    assert set(threading.enumerate()) == before, "threads are left"
    assert all(one.source.opened == one.source.closed for one in streams if isinstance(one.source, Scripted))
    return streams_, consumer


def test_every_frame_of_a_file_is_pushed_in_order_and_the_end_is_flushed(tmp_path: Path) -> None:
    path = write_video(tmp_path / "hall.mkv", range(0, 4000, 40))
    source = VideoSource(parse_source(str(path)), SourceSettings())
    streams, consumer = run(stream("hall", source))
    assert consumer.pushed == {"hall": [time_ms * 1_000_000 for time_ms in range(0, 4000, 40)]}
    assert consumer.flushed == ["hall"]
    counters = streams.observe()["hall"]
    assert (counters.state, counters.reason) == ("ended", "")
    assert (counters.frames, counters.pushed, counters.dropped, counters.events) == (100, 100, 0, 1)
    assert (counters.width, counters.height) == (64, 48)
    assert {name: times.count for name, times in counters.stages.items()} == {
        "decode": 100, "wait": 100, "push": 100, "output": 100,
    }  # fmt: skip
    raise_failed(streams.observe())


def test_a_stream_that_breaks_off_is_opened_again_and_its_time_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = Scripted(
        (5, JobError("Connection reset")), (0, JobError("Connection refused")), (5, None), (5, None)
    )
    one = stream("door", source, retries=2)
    with caplog.at_level(logging.WARNING):
        streams, consumer = run(one)
    counters = streams.observe()["door"]
    times = consumer.pushed["door"]
    assert len(times) == 10
    assert times == sorted(times)
    assert 0 < times[5] - times[4] < SECOND_NS, "the gap is as long as the waiting was"
    assert (counters.connects, counters.reconnects, counters.failures) == (2, 1, 3)
    assert consumer.flushed.count("door") == 4, "each break is a gap; the end is one"
    assert "door: Connection reset; opening rtsp://door again in 0.0 s" in caplog.text
    assert "door: frames come again from rtsp://door" in caplog.text
    assert counters.state == "failed"
    assert counters.reason == "the stream ended; given up after 2 tries"


def test_what_comes_before_a_gap_is_pushed_before_the_flush() -> None:
    source = Scripted((3, JobError("reset")), (3, JobError("reset")))
    order: list[str] = []

    class Ordered(Counting):
        def push(self, frame: NDArray[np.uint8], pts_ns: int, stream: str, *, live: bool) -> Sequence[str]:
            order.append("frame")
            return super().push(frame, pts_ns, stream, live=live)

        def flush(self, stream: str) -> Sequence[str]:
            order.append("gap")
            return super().flush(stream)

    run(stream("door", source, retries=1), consumer=Ordered())
    assert order == ["frame"] * 3 + ["gap"] + ["frame"] * 3 + ["gap"] * 2


def test_one_stream_that_fails_disturbs_no_other() -> None:
    good = Scripted((40, None), live=False, pause_s=0.002)
    streams, consumer = run(
        stream("gone", Scripted((1, JobError("unplugged")), live=False)),
        stream("flaky", Scripted(*[(1, JobError("reset"))] * 3), retries=2),
        stream("good", good),
    )
    assert len(consumer.pushed["good"]) == 40
    states = {name: counters.state for name, counters in streams.observe().items()}
    assert states == {"gone": "failed", "flaky": "failed", "good": "ended"}
    with pytest.raises(
        JobError, match=r"^2 of 3 streams failed: gone: unplugged; flaky: reset; given up after 2 tr"
    ):
        raise_failed(streams.observe())


def test_a_refusal_is_final_only_where_the_stream_never_worked() -> None:
    refusal = SourceRefusedError("Server returned 401 Unauthorized")
    streams, _ = run(
        stream("wrong", Scripted((0, refusal), (3, None))),
        stream("worked", Scripted((3, None), (0, refusal), (3, None)), retries=2),
    )
    assert streams.observe()["wrong"].failures == 0
    assert streams.observe()["wrong"].frames == 0
    assert streams.observe()["worked"].frames == 6


@pytest.mark.parametrize(("drop", "kept"), [("oldest", 49), ("newest", 0)])
def test_a_pipeline_that_is_too_slow_drops_by_the_policy(drop: str, kept: int) -> None:
    """50 frames within 100 ms, 20 ms each to push: most must give way. "oldest" ends with the last frame,
    "newest" starts with the first."""
    source = Scripted((50, None), live=False, pause_s=0.002)
    streams, consumer = run(stream("door", source, drop=drop, size=2), consumer=Counting(pause_s=0.02))
    counters = streams.observe()["door"]
    assert counters.dropped > 10
    assert counters.pushed + counters.dropped == counters.frames == 50
    assert counters.queue_deepest == 2
    assert kept * SECOND_NS // 10 in consumer.pushed["door"]


def test_frames_that_the_pipeline_refuses_are_counted_and_told_rarely(
    caplog: pytest.LogCaptureFixture,
) -> None:
    consumer = Counting()
    consumer.fails["tiny"] = InputError("a frame must be at least 16 pixels a side")
    with caplog.at_level(logging.WARNING):
        streams, _ = run(
            stream("tiny", Scripted((20, None), live=False)),
            stream("good", Scripted((20, None), live=False)),
            consumer=consumer,
        )
    assert streams.observe()["tiny"].refused == 20
    assert streams.observe()["good"].state == "ended"
    said = "none of its frames was accepted: a frame must be at least 16 pixels a side"
    with pytest.raises(JobError, match=f"1 of 2 streams failed: tiny: {said}"):
        raise_failed(streams.observe())
    assert len(consumer.pushed["good"]) == 20
    assert caplog.text.count("tiny: frame refused") == 5, "after 1, 2, 4, 8 and 16"


def test_an_end_that_the_runtime_cannot_answer_disturbs_no_frame_and_no_other_stream() -> None:
    class Failing(Counting):
        def flush(self, stream: str) -> Sequence[str]:
            super().flush(stream)
            raise JobError("an answer that is not finite")

    _, consumer = run(
        stream("door", Scripted((3, JobError("broke off")), (3, None)), retries=1), consumer=Failing()
    )
    assert len(consumer.pushed["door"]) == 6
    assert len(consumer.flushed) > 1


def test_a_fault_of_the_pipeline_ends_its_stream_alone_and_is_raised_at_the_end() -> None:
    consumer = Counting()
    consumer.fails["bad"] = ZeroDivisionError("a fault")
    good = stream("good", Scripted((20, None), live=False))
    bad = stream("bad", Scripted((100, None)), size=2)
    streams = Streams(consumer, [bad, good], ignore)
    with pytest.raises(ZeroDivisionError, match="a fault"):
        streams.run()
    assert len(consumer.pushed["good"]) == 20
    assert streams.observe()["bad"].state == "failed"
    assert streams.observe()["bad"].reason == "ZeroDivisionError: a fault"
    assert bad.source.opened == bad.source.closed == 1  # type: ignore[attr-defined]


def test_a_change_of_resolution_is_passed_on_counted_and_told(caplog: pytest.LogCaptureFixture) -> None:
    class Changing(Scripted):
        def frames(self, stop: threading.Event) -> Generator[TimedFrame, None, None]:
            yield from super().frames(stop)
            self.size = (12, 10)

    source = Changing((3, None), (3, None))
    with caplog.at_level(logging.WARNING):
        streams, consumer = run(stream("door", source, retries=1))
    assert consumer.shapes == [(6, 8, 3)] * 3 + [(12, 10, 3)] * 3
    assert streams.observe()["door"].resolution_changes == 1
    assert "door: the resolution changed from 8x6 to 10x12" in caplog.text


def test_the_run_ends_by_time_and_flushes() -> None:
    ticks: list[float] = []
    source = Scripted((10**6, None), pause_s=0.001)
    began = time.monotonic()
    streams, consumer = run(
        stream("door", source), duration_s=0.3, tick=lambda: ticks.append(time.monotonic())
    )
    assert 0.3 <= time.monotonic() - began < 5
    assert len(ticks) > 2
    assert streams.observe()["door"].state == "ended"
    assert consumer.flushed[-1:] == ["door"]


def test_the_run_ends_when_it_is_told_to_even_while_it_waits_to_connect() -> None:
    one = stream("door", Scripted(), retries=100)
    one.backoff = Backoff(60, 60, 100)
    streams = Streams(Counting(), [one], ignore)
    threading.Timer(0.2, streams.stop.set).start()
    began = time.monotonic()
    streams.run()
    assert time.monotonic() - began < 5
    assert streams.observe()["door"].failures == 1


def test_after_a_while_without_failures_earlier_ones_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptsr_edge.camera.runner.STEADY_S", 0.02)
    steady = [(30, JobError("reset"))] * 4
    streams, _ = run(stream("door", Scripted(*steady, pause_s=0.002), retries=1))
    assert streams.observe()["door"].connects == 4
    hasty = [(1, JobError("reset"))] * 4
    streams, _ = run(stream("door", Scripted(*hasty), retries=1))
    assert streams.observe()["door"].connects == 2


def waits(seed: int, retries: int = 12) -> list[float | None]:
    backoff = Backoff(first_s=1, longest_s=30, retries=retries, draw=random.Random(seed))
    return [backoff.next_s() for _ in range(retries + 1)]


def test_waits_double_up_to_the_longest_and_then_end() -> None:
    """By the docstring: between a half and the whole of 1, 2, 4, 8, 16, 30, 30, ... seconds, then None."""
    *found, last = waits(seed=0)
    assert last is None
    for wait_s, whole in zip(found, [1, 2, 4, 8, 16, *[30] * 7], strict=True):
        assert wait_s is not None
        assert whole / 2 <= wait_s <= whole


def test_two_sources_do_not_come_back_together() -> None:
    assert all(one != other for one, other in zip(waits(0)[:-1], waits(1)[:-1], strict=True))


def test_a_source_that_works_again_starts_over() -> None:
    backoff = Backoff(retries=3)
    for _ in range(3):
        backoff.next_s()
    backoff.reset()
    wait_s = backoff.next_s()
    assert wait_s is not None
    assert wait_s <= 1


def test_a_thousand_failures_stay_bounded() -> None:
    assert Backoff(retries=0).next_s() is None
    backoff = Backoff(retries=2000)
    assert max(backoff.next_s() or 0 for _ in range(2000)) <= 30


def test_a_bad_backoff_is_told() -> None:
    with pytest.raises(InputError, match="at most the longest; found 5 s and 1 s"):
        Backoff(first_s=5, longest_s=1)
    with pytest.raises(InputError, match="retries must be 0 or more; found -1"):
        Backoff(retries=-1)


def taken(queue: FrameQueue[int | None]) -> list[int | None]:
    queue.close()
    items = []
    while (item := queue.get()) is not None:
        items.append(item[0])
    return items


@pytest.mark.parametrize(("drop", "left"), [("oldest", [3, 4]), ("newest", [0, 1])])
def test_a_full_queue_drops_by_its_policy(drop: str, left: list[int]) -> None:
    queue: FrameQueue[int | None] = FrameQueue(2, drop)
    assert all(queue.put(number) for number in range(5))
    assert (len(queue), queue.dropped, queue.deepest) == (2, 3, 2)
    assert taken(queue) == left


@pytest.mark.parametrize("drop", ["oldest", "newest"])
def test_a_mark_is_never_dropped_takes_no_room_and_keeps_its_place(drop: str) -> None:
    queue: FrameQueue[int | None] = FrameQueue(1, drop)
    queue.put(0)
    queue.mark(None)
    queue.put(1)
    assert len(queue) == 1
    assert taken(queue) == ([None, 1] if drop == "oldest" else [0, None])


def test_block_waits_for_room_and_loses_nothing() -> None:
    queue: FrameQueue[int | None] = FrameQueue(2, "block")
    source = threading.Thread(target=lambda: [queue.put(number) for number in range(200)])
    source.start()
    got = [queue.get() for _ in range(200)]
    source.join(timeout=10)
    assert not source.is_alive()
    assert [item[0] for item in got if item] == list(range(200))
    assert (queue.dropped, len(queue)) == (0, 0)
    assert queue.deepest <= 2


def test_a_source_that_waits_for_room_is_released_when_the_queue_is_given_up() -> None:
    queue: FrameQueue[int | None] = FrameQueue(1, "block")
    queue.put(0)
    answers: list[bool] = []
    source = threading.Thread(target=lambda: answers.append(queue.put(1)))
    source.start()
    queue.cancel()
    source.join(timeout=10)
    assert answers == [False]
    assert queue.get() is None
    assert len(queue) == 0


def test_how_long_a_frame_waited_is_told() -> None:
    queue: FrameQueue[int | None] = FrameQueue(1, "oldest")
    before = time.perf_counter()
    queue.put(7)
    time.sleep(0.02)
    item = queue.get()
    assert item is not None
    assert 0.02 <= item[1] <= time.perf_counter() - before


@pytest.mark.parametrize(("drop", "left"), [("oldest", [3]), ("newest", [1, 2])])
def test_large_frames_fill_a_queue_before_many_do(
    monkeypatch: pytest.MonkeyPatch, drop: str, left: list[int]
) -> None:
    monkeypatch.setattr("ptsr_edge.camera.runner.QUEUE_BYTES", 100)
    queue: FrameQueue[int] = FrameQueue(8, drop)
    for frame, nbytes in ((1, 50), (2, 50), (3, 400)):
        assert queue.put(frame, nbytes)
    queue.close()
    assert [item[0] for item in iter(queue.get, None)] == left
    again: FrameQueue[int] = FrameQueue(8, drop)
    for frame in range(4):  # what was taken makes room
        assert again.put(frame, 100)
        item = again.get()
        assert item is not None
        assert item[0] == frame
    assert again.dropped == 0


def test_a_bad_queue_is_told() -> None:
    with pytest.raises(InputError, match="at least 1 frame; found 0"):
        FrameQueue(0, "block")
    with pytest.raises(InputError, match="unknown drop policy 'lifo'; known: oldest, newest, block"):
        FrameQueue(1, "lifo")


def test_an_address_that_turns_out_to_be_a_file_loses_nothing() -> None:
    """Live until it is opened, as an address of a web server is; then it waits, as other files do."""

    class Web(Scripted):
        def frames(self, stop: threading.Event) -> Generator[TimedFrame, None, None]:
            self.live = False
            return super().frames(stop)

    streams, consumer = run(
        stream("web", Web((40, None)), drop="oldest", size=2), consumer=Counting(pause_s=0.002)
    )
    assert streams.observe()["web"].dropped == 0
    assert len(consumer.pushed["web"]) == 40
    assert consumer.live == {"web": False}


@pytest.mark.parametrize(
    ("live", "drop", "told"),
    [(True, "block", True), (True, "oldest", True), (False, "oldest", True), (False, "block", False)],
    ids=["camera that waits", "camera", "pipe that drops", "file"],
)
def test_the_consumer_is_told_whether_a_stream_is_live(live: bool, drop: str, told: bool) -> None:
    _, consumer = run(stream("door", Scripted((3, None), live=live), drop=drop, retries=0))
    assert consumer.live == {"door": told}
