"""`profile.json`: what was measured, under which conditions. A figure that was not measured is null."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ptsr_edge.schema import Record, read_record

PROFILE = "profile.json"


class Latency(Record):
    """Synchronous batch-1 latency in milliseconds; nothing is trimmed.

    `cv` is the coefficient of variation (standard deviation over mean), `n` the sample count.
    """

    p50: float
    p90: float
    p95: float
    p99: float
    min: float
    mean: float
    cv: float
    n: int = Field(ge=1)


class Ratio(Record):
    """How many times as fast as `against` (its latency over this one's), with a 95 % bootstrap interval."""

    against: str
    median: float
    low: float
    high: float


class Accuracy(Record):
    """Accuracy through the artifact, on subjects that training never saw unless `protocol` says so.

    `uar_drop` is the baseline's UAR minus this variant's; `confusion` has true classes as rows.
    """

    data: str
    protocol: str
    n: int = Field(ge=1)
    uf1: float
    uar: float
    uar_drop: float | None
    confusion: list[list[int]] | None = None


class Measured(Record):
    """One variant. `bundle` is null for a baseline that was exported for this run alone."""

    id: str
    bundle: str | None
    target: str
    precision: str
    keep_rate: float
    tokens: int
    macs: int
    macs_by_operator: dict[str, int] | None = None
    parameters: int
    size_bytes: int
    load_ms: float | None = None
    first_ms: float | None = None
    latency_ms: Latency | None = None
    ratio: Ratio | None = None
    peak_rss_bytes: int | None = None
    throughput_per_s: float | None = None
    accuracy: Accuracy | None = None
    raw_samples: str | None = None
    notes: list[str] = Field(default_factory=list)


class KeptPatches(Record):
    """Real samples with the patches that a variant keeps: for the report's picture.

    Attributes:
        strain: (samples, H, W) the input's strain channel, scaled to 0..255.
        kept: per budget id, per sample, the kept patch indices in row-major order.
    """

    data: str
    grid: int
    names: list[str]
    labels: list[str]
    strain: list[list[list[int]]]
    kept: dict[str, list[list[int]]]


class Profile(Record):
    """The record of one `profile` run; `command` reproduces it."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    command: str
    created: str
    model: str
    model_card: str
    labels: list[str]
    environment: dict[str, Any]
    method: dict[str, Any]
    baseline: str
    variants: list[Measured] = Field(min_length=1)
    kept_patches: KeptPatches | None = None


def read_profile(folder: Path) -> Profile:
    """Reads `profile.json` in a folder that `ptsr-edge profile` wrote.

    Raises:
        InputError: it is not there, or is of another schema.
    """
    return read_record(Profile, folder / PROFILE)
