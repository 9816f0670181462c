"""A bounded queue between a source and the pipeline, and what happens when it is full."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

from ptsr_edge.core.errors import InputError

T = TypeVar("T")

DROP_POLICIES = ("oldest", "newest", "block")
"""What gives way when the queue is full: the frame that waited longest, the one that comes, or the source."""


class FrameQueue(Generic[T]):
    """A queue of at most `size` frames between two threads, by one of `DROP_POLICIES`.

    Beside frames it takes marks, which are never dropped and take no room: a gap in the stream must not be lost.

    Attributes:
        dropped: frames that gave way so far.
        deepest: the most frames that ever waited.
    """

    def __init__(self, size: int, drop: str) -> None:
        """An open, empty queue.

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
        self._items: deque[tuple[T, bool, float]] = deque()
        self._frames = 0
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        """How many frames wait."""
        return self._frames

    def put(self, frame: T) -> bool:
        """Hands over a frame; waits for room with the policy "block" only.

        Returns:
            Whether the queue is still open; the frame is lost where it is not.
        """
        with self._changed:
            while self._drop == "block" and self._frames >= self._size and not self._closed:
                self._changed.wait()
            if self._closed:
                return False
            if self._frames >= self._size:
                self.dropped += 1
                if self._drop == "newest":
                    return True
                self._drop_oldest()
            self._items.append((frame, True, time.perf_counter()))
            self._frames += 1
            self.deepest = max(self.deepest, self._frames)
            self._changed.notify_all()
            return True

    def mark(self, mark: T) -> None:
        """Hands over something that is no frame and is not dropped."""
        with self._changed:
            self._items.append((mark, False, time.perf_counter()))
            self._changed.notify_all()

    def get(self) -> tuple[T, float] | None:
        """Waits for what comes next.

        Returns:
            It, and for how many seconds it has waited; None when the queue is closed and empty.
        """
        with self._changed:
            while not self._items and not self._closed:
                self._changed.wait()
            if not self._items:
                return None
            item, is_frame, since = self._items.popleft()
            self._frames -= is_frame
            self._changed.notify_all()
            return item, time.perf_counter() - since

    def close(self) -> None:
        """Nothing comes any more; what waits can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def cancel(self) -> None:
        """Closes the queue and forgets what waits in it."""
        with self._changed:
            self._items.clear()
            self._frames = 0
            self.close()

    def _drop_oldest(self) -> None:
        for place, (_, is_frame, _since) in enumerate(self._items):
            if is_frame:
                del self._items[place]
                self._frames -= 1
                return
