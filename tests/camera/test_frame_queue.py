from __future__ import annotations

import threading
import time

import pytest

from ptsr_edge.camera.runner import FrameQueue
from ptsr_edge.core.errors import InputError


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


def test_bad_settings_are_told() -> None:
    with pytest.raises(InputError, match="at least 1 frame; found 0"):
        FrameQueue(0, "block")
    with pytest.raises(InputError, match="unknown drop policy 'lifo'; known: oldest, newest, block"):
        FrameQueue(1, "lifo")
