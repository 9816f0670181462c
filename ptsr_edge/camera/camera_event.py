"""What the camera answers: one record an event, one JSON line a record."""

from __future__ import annotations

from pydantic import Field

from ptsr_edge.core.records import Record


class Box(Record):
    """A rectangle in pixels of the frame, +x right and +y down; it may reach over the frame's edge."""

    x: float
    y: float
    width: float = Field(gt=0)
    height: float = Field(gt=0)


class View(Record):
    """What of a stream's frames is looked at now.

    Attributes:
        face: the face that is followed; null where there is none.
        crop: the crop that flow is measured in; null where none is placed.
    """

    face: Box | None = None
    crop: Box | None = None


class Event(Record):
    """One micro-expression that was spotted and classified. Times are those of the source, in nanoseconds.

    Attributes:
        stream: the name under which the frames were pushed.
        label: the most probable class.
        probabilities: by label; their sum is 1.
        onset_ns, apex_ns, offset_ns: pts of the frames where the motion starts, is largest and ends.
        answered_ns: pts of the frame with which the answer was complete.
        score: of the spotter; how far the motion stands out.
        face: the face's box at the time of the answer.
        crop: what of the frame was looked at, the same from onset to offset.
        kept_tokens: row-major indices of the patches of the crop that the answer was read from.
        grid: patches along one side of the crop.
        budget: keep rate of the variant that answered.
        budgets_run: keep rates of all variants that were run for it, in order: two where a cascade went on.
        processing_ms: from the beginning of the push that completed the answer to the answer.
        truncated: the stream ended or was cut before the offset was seen.
    """

    stream: str
    label: str
    probabilities: dict[str, float]
    onset_ns: int
    apex_ns: int
    offset_ns: int
    answered_ns: int
    score: float
    face: Box
    crop: Box
    kept_tokens: list[int]
    grid: int
    budget: float
    budgets_run: list[float]
    processing_ms: float
    truncated: bool = False

    @property
    def wait_ms(self) -> float:
        """Time of the source from the apex to the frame that completed the answer."""
        return (self.answered_ns - self.apex_ns) / 1e6

    @property
    def latency_ms(self) -> float:
        """From apex to answer: what was waited for, and what was computed."""
        return self.wait_ms + self.processing_ms

    def to_json(self) -> str:
        """The event as one line of JSON, `latency_ms` and `wait_ms` included."""
        content = self.model_dump_json()
        return f'{content[:-1]},"wait_ms":{self.wait_ms:.3f},"latency_ms":{self.latency_ms:.3f}}}'
