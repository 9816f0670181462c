"""`profile.json`: what was measured, under which conditions.

A result that was not measured is null, and `missing` of its variant says why.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ptsr_edge.core.config import Record, read_record
from ptsr_edge.core.errors import PtsrError
from ptsr_edge.runtimes.base import find_runtime
from ptsr_edge.stats.latency import Latency, Ratio

PROFILE = "profile.json"

FLEET = "fleet.json"

NOT_RUN = "built, not run here"
"""In words, kind `no_device` of `Missing`: an engine on a machine without its GPU has no result that needs a run."""

NEW_CLIPS = 6
"""Clips of each person whom `profile --subjects` renders. A bound takes people as the unit, so few clips of many people
show more than many clips of few; below this, chance answers of a person weigh too much."""

MissingKind = Literal[
    "no_device", "failed", "not_asked", "not_installed", "not_supported", "not_applicable", "random_weights",
    "no_counterpart", "disturbed",
]  # fmt: skip
"""Why a result is missing. In this order: the device that runs the artifact is not in this machine; it was tried and
failed; nobody asked for it; a package is not installed; this system or runtime does not tell it; it has no meaning for
this variant; the weights are random; the baseline was not given in this target and precision; other processes used the machine too much."""


ITSELF = "it is the baseline itself"
"""Why the baseline has no ratio."""


class Missing(Record):
    """Why a result was not measured: the kind, for programs, and one sentence, for people."""

    kind: MissingKind
    reason: str


class Accuracy(Record):
    """Accuracy through the artifact, on subjects that training never saw unless `protocol` says so.

    Attributes:
        uar_drop: UAR of the baseline minus that of this variant; `uar_drop_low` and `uar_drop_high` are its 95 %
            interval by a paired bootstrap over subjects.
        confusion: counts; true classes are rows.
        predicted: (n,) the classes answered, in the order of the profile's `judged`.
    """

    data: str
    protocol: str
    n: int = Field(ge=1)
    uf1: float
    uar: float
    uar_drop: float | None
    confusion: list[list[int]] | None = None
    uar_drop_low: float | None = None
    uar_drop_high: float | None = None
    predicted: list[int] | None = None

    @property
    def is_told_apart(self) -> bool | None:
        """True where the interval of the drop leaves out zero; None where there is no interval."""
        if self.uar_drop_low is None or self.uar_drop_high is None:
            return None
        return not self.uar_drop_low <= 0 <= self.uar_drop_high


class Stages(Record):
    """Time of one sample by stage, medians in milliseconds; timed apart from `latency_ms`.

    Attributes:
        face_ms: one detection in a frame of 640 x 360; a camera needs one twice a second, not for every sample.
        flow_ms: optical flow between two frames of the model's size; `strain_ms` is the strain of that flow.
        operators: shares of the inference by class of operator, as the runtime's own profiler tells them.
        operators_why: why there are none.
    """

    face_ms: float | None = None
    flow_ms: float | None
    strain_ms: float | None
    normalise_ms: float
    inference_ms: float
    postprocess_ms: float
    operators: dict[str, float] | None
    operators_why: str | None


class Ceiling(Record):
    """Speed of a plain matrix product of `shape` (m, k, n) in the same runtime, precision and threads.

    `share` is the variant's own multiply-adds a second at p50 over that; `why` says why there is no ceiling.
    """

    gmacs_per_s: float | None
    shape: list[int]
    share: float | None
    why: str | None


FaultKind = Literal["withheld", "wide", "drift"]
"""What makes a run unstable: a ratio is withheld; one is hardly known; the baseline differs between its processes."""


class Attempt(Record):
    """One time that everything was measured; `unstable` says why it cannot be trusted, null where it can.

    `faults` has the kinds of what it says; empty in earlier records.
    """

    unstable: str | None
    faults: list[FaultKind] = Field(default_factory=list)


class Measured(Record):
    """One variant.

    Attributes:
        bundle: its folder; null for a baseline that was exported for this run alone.
        files_sha256: `bundle.files_digest` of its files: which artifact was measured. Null in earlier records.
        macs: multiply-adds of the static graph; `macs_eager` are those of the model as it is written, `macs_graph`
            those of the ONNX file itself, and `macs_explained` says in a sentence why they differ.
        cpu_share: CPU time over wall time of the timed runs; one thread that was alone on its core has 1.
        ratio_cpu_time: `ratio` by CPU time instead of wall time: on a busy machine, the fairer one.
        predict_ms: median of a whole `Session.predict` call, normalising included.
        sample_ms: median of a whole sample, `Session.predict_frames`: from two face crops to the answer, flow and strain
            included; `ratio_sample` is how many times as fast as the baseline's whole sample that is.
        operators_run: how many operators the runtime executes in one inference, by its own names.
        instructions: that a processor executes in user space for one inference on one thread; `method` says by which counter.
        base_rss_bytes: the part of `peak_rss_bytes` that Python, numpy and the runtime take with nothing loaded.
        int8_layers: what the export says of an int8 whose accuracy it judged.
        notes: for people, beside results that are there: nothing is decided by them.
        missing: why each result that is null was not measured, by the name of its field; a field inside of another
            is written `stages.flow_ms`, and has an entry only where `stages` itself is there.
    """

    id: str
    bundle: str | None
    files_sha256: str | None = None
    target: str
    precision: str
    keep_rate: float
    tokens: int
    macs: int
    macs_by_operator: dict[str, int] | None = None
    macs_eager: int | None = None
    macs_graph: int | None = None
    macs_uncounted: dict[str, int] = Field(default_factory=dict)
    macs_explained: str | None = None
    operators_run: dict[str, int] | None = None
    instructions: int | None = None
    parameters: int
    size_bytes: int
    load_ms: float | None = None
    first_ms: float | None = None
    latency_ms: Latency | None = None
    cpu_share: float | None = None
    ratio: Ratio | None = None
    ratio_same_precision: Ratio | None = None
    ratio_cpu_time: Ratio | None = None
    predict_ms: float | None = None
    sample_ms: float | None = None
    ratio_sample: Ratio | None = None
    peak_rss_bytes: int | None = None
    base_rss_bytes: int | None = None
    throughput_per_s: float | None = None
    streams: int | None = None
    energy_mj: float | None = None
    stages: Stages | None = None
    ceiling: Ceiling | None = None
    accuracy: Accuracy | None = None
    raw_samples: str | None = None
    int8_layers: dict[str, Any] | None = None
    notes: list[str] = Field(default_factory=list)
    missing: dict[str, Missing] = Field(default_factory=dict)


class KeptPatches(Record):
    """Real samples with the patches that a variant keeps: for the report's picture.

    Attributes:
        strain: (samples, H, W) the input's strain channel, scaled to 0..255.
        kept: per budget id, per sample, the kept patch indices in row-major order.
        depth: how many blocks the model has.
        select_block: the block (from 0) after which tokens are dropped; -1: before the embedding.
    """

    data: str
    grid: int
    names: list[str]
    labels: list[str]
    strain: list[list[list[int]]]
    kept: dict[str, list[list[int]]]
    depth: int | None = None
    select_block: int | None = None


class Judged(Record):
    """The samples that accuracy was judged on, without names: `truth` (n,) classes, `subject` (n,) numbers from 0."""

    truth: list[int] = Field(min_length=1)
    subject: list[int] = Field(min_length=1)


class Control(Record):
    """A way to select tokens, through the eager model with the same weights on the judged samples.

    Attributes:
        tokens: the budget.
        selection: `DTSM`, or a baseline of it: `random`, or `strain` energy.
        seeds: number of draws that its UAR is the mean of.
        uar: unweighted average recall.
        gain: UAR of DTSM minus this one's, with a 95 % interval by a paired bootstrap over subjects; null for
            DTSM itself.
    """

    tokens: int
    selection: str
    seeds: int = Field(ge=1)
    uar: float
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None


class Dynamic(Record):
    """Counts of DTSM's dynamic mode: the smallest set of tokens that holds `mass` of a sample's score.

    `counts` is a histogram, tokens to samples; `on` names the samples: `calibration` or `judged`.
    """

    data: str
    on: str
    mass: float
    counts: dict[str, int]

    @property
    def samples(self) -> int:
        """Number of samples."""
        return sum(self.counts.values())

    def truncated(self, tokens: int) -> float:
        """Returns the share of samples of which a static budget keeps fewer tokens than the dynamic mode."""
        return sum(n for count, n in self.counts.items() if int(count) > tokens) / max(self.samples, 1)


class Profile(Record):
    """The record of one `profile` run; `command` reproduces it.

    `data_is_rendered` says of the samples that accuracy was judged on whether a program made them; null where nothing
    was judged, and in schema 1. `weights_are_named` says whether `export --model` makes the same weights: the embedded ones
    or the seeded random ones of that name; null where that was not looked at.
    """

    schema_: Literal[1, 2] = Field(default=2, alias="schema")
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
    data_is_rendered: bool | None = None
    judged: Judged | None = None
    controls: list[Control] | None = None
    dynamic_counts: Dynamic | None = None
    attempts: list[Attempt] = Field(default_factory=list)
    weights_are_named: bool | None = None

    @property
    def is_of_rendered_data(self) -> bool:
        """True where a program made the samples; schema 1 does not say it, and knew only one such data set."""
        if self.schema_ > 1:
            return bool(self.data_is_rendered)
        names = {row.accuracy.data for row in self.variants if row.accuracy}
        names |= {self.kept_patches.data} if self.kept_patches else set()
        return names == {"synthetic"}


DESCRIPTIONS = {
    "bundle", "files_sha256", "streams", "raw_samples", "int8_layers", "macs_explained", "stages.operators_why", "ceiling.why",
}  # fmt: skip
"""Fields of a variant that describe it or another field: none of them is a result that could be missing."""

WITHOUT_RUN = {"macs_by_operator", "macs_eager", "macs_graph"}
"""Results that are counted in files: no artifact has to run for them."""

IN_NOTES = "a record of schema 1 tells it in its notes"


def null_results(row: Measured) -> list[str]:
    """Names of the results of a variant that are null, as `Measured.missing` names them."""
    names = []
    for name, value in row:
        if value is None:
            names.append(name)
        elif isinstance(value, Record):
            names += [f"{name}.{inner}" for inner, found in value if found is None]
    return [name for name in names if name not in DESCRIPTIONS]


def needs_gpu(target: str) -> bool:
    """Says whether the artifacts of a target run on a GPU; False for a target that is not known here."""
    try:
        return find_runtime(target).needs_gpu
    except PtsrError:  # the package that brings the target is not installed where a profile is read
        return False


def read_profile(folder: Path) -> Profile:
    """Reads `profile.json` in a folder that `ptsr-edge profile` wrote.

    A record of schema 1 has its reasons in notes alone: its `missing` is filled by facts, never by their words.

    Raises:
        InputError: it is not there, or is of another schema.
    """
    profile = read_record(Profile, folder / PROFILE)
    if profile.schema_ > 1:
        return profile
    rows = [_with_reasons(row, is_baseline=row.id == profile.baseline) for row in profile.variants]
    return profile.model_copy(update={"variants": rows})


def _with_reasons(row: Measured, *, is_baseline: bool) -> Measured:
    """A row of schema 1 with a reason for each result that is null."""
    not_run: MissingKind | None = None
    if row.latency_ms is None:
        not_run = "no_device" if needs_gpu(row.target) else "failed"

    def why(name: str) -> Missing:
        if not_run and name not in WITHOUT_RUN:
            said = NOT_RUN if not_run == "no_device" else "could not be run, so nothing was timed"
            return Missing(kind=not_run, reason=f"{said}: {IN_NOTES}")
        if is_baseline and name.startswith("ratio"):
            return Missing(kind="not_applicable", reason=ITSELF)
        return Missing(kind="not_asked", reason=IN_NOTES)

    return row.model_copy(update={"missing": {name: why(name) for name in null_results(row)} | row.missing})


# ---------------------------------------------------------------------------------------------
# Many devices

DeviceMissingKind = Literal[
    "not_installed", "other_version", "no_runtime", "refused", "failed", "killed", "lost", "unfinished"
]  # fmt: skip
"""Why a device has no results. In this order: its worker has no ptsr-edge; it has another one; no runtime that the bundles
need is there; the call is not acceptable on that device; the profile failed; its process was killed; the worker left the
cluster; the run was ended before the device had answered."""


class DeviceMissing(Record):
    """Why a device has no results: the kind, for programs, and one sentence, for people."""

    kind: DeviceMissingKind
    reason: str


class Machine(Record):
    """A device in short; what its system does not tell is null."""

    cpu: str | None
    board: str | None
    architecture: str
    cores: int
    gpus: list[str]
    memory_bytes: int | None
    os: str
    python: str
    packages: dict[str, str]


class FleetBundle(Record):
    """What was sent: a bundle or the baseline's; `sha256` is over its manifest and all files of its variants."""

    name: str
    sha256: str
    files: int
    bytes: int
    is_baseline: bool


class FleetVariant(Record):
    """A variant on one device, fields as in `Measured`; of those that are null, `missing` says why."""

    id: str
    target: str
    precision: str
    keep_rate: float
    tokens: int
    is_baseline: bool
    latency_ms: Latency | None
    ratio: Ratio | None
    ratio_same_precision: Ratio | None
    missing: dict[str, Missing]


class FleetDevice(Record):
    """A worker of the cluster.

    Attributes:
        name: of its folder, which holds its profile.
        worker, address: as the cluster names it.
        machine: null where it was lost before it told.
        sent_files, sent_bytes: what was sent to it in this run; a device keeps what it has got.
        created: when its profile was made.
        unstable: why its last attempt is to be taken with care.
        missing: why there are no results; null where there are.
    """

    name: str
    worker: str
    address: str
    machine: Machine | None = None
    sent_files: int = 0
    sent_bytes: int = 0
    created: str | None = None
    unstable: str | None = None
    variants: list[FleetVariant] = Field(default_factory=list)
    missing: DeviceMissing | None = None

    @property
    def fastest(self) -> FleetVariant | None:
        """The variant with the lowest p95, the ViT aside; None where it has none."""
        return min((row for row in self.variants if not row.is_baseline), key=_p95_ms, default=None)

    @property
    def vit(self) -> FleetVariant | None:
        """The full-token ViT that ratios are against, which is the first of the variants."""
        return next((row for row in self.variants if row.is_baseline), None)


def _p95_ms(row: FleetVariant) -> float:
    return row.latency_ms.p95 if row.latency_ms else math.inf


def slowest_first(devices: Iterable[FleetDevice]) -> list[FleetDevice]:
    """Sorts devices by the p95 of the fastest variant that each can run; those without results come last."""

    def best_ms(device: FleetDevice) -> float:
        return -1.0 if device.fastest is None else _p95_ms(device.fastest)

    return sorted(devices, key=lambda device: (device.missing is not None, -best_ms(device), device.name))


class Fleet(Record):
    """The record of one `profile --fleet` run: `command` reproduces it; each device's folder holds its whole profile."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    command: str
    created: str
    model: str
    model_card: str
    is_quick: bool
    bundles: list[FleetBundle] = Field(min_length=1)
    devices: list[FleetDevice] = Field(min_length=1)


def read_fleet(folder: Path) -> Fleet:
    """Reads `fleet.json` in a folder that `ptsr-edge profile --fleet` wrote.

    Raises:
        InputError: it is not there, or is of another schema.
    """
    return read_record(Fleet, folder / FLEET)
