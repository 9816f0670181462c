"""`speed.json`: who was timed side by side, and what came out.

A `Speed` has what the numbers depend on (`machine`, `tools` by environment, `method`), a `Row` for each contender at each number
of threads, and `comparisons`, the ratios that matter. What could not be measured is null, and `missing` of its row says why, by field;
a contender that could not run at all has a row too, with `latency_ms` missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ptsr_edge.core.config import Record, read_record
from ptsr_edge.profile.schema import Missing
from ptsr_edge.stats.latency import Latency, Ratio

SPEED = "speed.json"

Group = Literal["full ViT by others", "token reduction by others", "ours"]


class Agreement(Record):
    """How far logits are from those of the eager fp32 model.

    Attributes:
        max_abs: largest absolute difference of a logit.
        relative: root of the mean square of the differences over that of the eager logits: 1 for an answer of zeros. Null of
            ours, whose bundle tells `max_abs` and its own limit, which the export kept.
        limit: the largest `relative`, or of ours `max_abs`, that is timed.
        samples: inputs that were compared.
    """

    max_abs: float
    relative: float | None
    limit: float
    samples: int


class Products(Record):
    """The artifact's matrix products alone, in the same runtime, precision and threads; see `products`.

    Attributes:
        share: their time over the artifact's: 1 where nothing else takes time; `share_low` and `share_high` are its 95 % interval.
    """

    count: int
    latency_ms: Latency
    gmacs_per_s: float
    share: float | None = None
    share_low: float | None = None
    share_high: float | None = None


class Row(Record):
    """One contender at one number of threads.

    Attributes:
        id: `NAME@THREADS`.
        size: of the geometry, as in `vit-SIZE`.
        tokens: patch tokens that the last block attends to; `keep_rate` is the share that was asked for.
        macs: multiply-adds of one inference; null where they were not counted.
        cpu_ms: median CPU time of a run, of all threads.
        ratio: how many times as fast as the plain export of the same size and threads.
        operators: share of the time by the runtime's own names of operators, as its profiler tells them.
    """

    id: str
    name: str
    group: Group
    size: str
    threads: int = Field(ge=1)
    label: str
    runtime: str
    precision: str
    tokens: int
    keep_rate: float
    macs: int | None
    gmacs_per_s: float | None = None
    agreement: Agreement | None = None
    latency_ms: Latency | None = None
    cpu_ms: float | None = None
    ratio: Ratio | None = None
    products: Products | None = None
    operators: dict[str, float] | None = None
    missing: dict[str, Missing] = Field(default_factory=dict)


class Comparison(Record):
    """How many times as fast `row` is as `against`, both ids of rows; null, and why, where that is not known."""

    what: str
    row: str
    against: str
    ratio: Ratio | None
    missing: Missing | None = None


class Speed(Record):
    """A whole run. `baseline` is the name of what ratios are against, by size."""

    schema_version: Literal[1] = 1
    created: str
    command: str
    machine: dict[str, Any]
    tools: dict[str, dict[str, str]]
    method: dict[str, Any]
    baseline: dict[str, str]
    rows: list[Row]
    comparisons: list[Comparison]


def read_speed(path: Path) -> Speed:
    """Reads a record.

    Raises:
        InputError: there is none, or it is no such record.
    """
    return read_record(Speed, path)
