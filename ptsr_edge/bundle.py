"""`bundle.json`, the manifest of a bundle: its variants and files, their origin, their proofs, and the model card."""

from __future__ import annotations

import datetime
import hashlib
import os
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ptsr_edge.core.config import (
    FLAT,
    NAME,
    VARIANT_NAME,
    ModelConfig,
    Preprocess,
    Record,
    check_fit,
    parse,
    read_json_file,
)
from ptsr_edge.core.errors import InputError, JobError, PtsrError
from ptsr_edge.core.files import link_file, scratch_folder, sha256_of, write_json

MANIFEST = "bundle.json"

SIGNATURE = "bundle.sig"
"""Beside the manifest of a bundle that is signed (`sign`)."""


MOST_PATH_BYTES = 200
"""Of a file in a bundle: no file system refuses its name, nor that of the record of its build beside it."""


class BundleFile(Record):
    """A file of a variant: its path relative to the bundle, its size and its SHA-256."""

    path: str
    bytes: int = Field(ge=0)
    sha256: str

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        path = PurePosixPath(value)
        leaves = path.is_absolute() or ".." in path.parts or not path.parts
        if leaves or {*value} & {"\\", "\0"} or len(value.encode()) > MOST_PATH_BYTES:
            raise ValueError(
                f"a path must be relative and stay inside the bundle, in at most {MOST_PATH_BYTES} bytes"
            )
        return value


Through = Literal["artifact", "graph"]
"""What was run: the artifact itself, or the graph that it was built from where the artifact could not run."""


class Parity(Record):
    """How far an artifact departs from the eager fp32 model on calibration samples.

    Attributes:
        reference: what it was compared with, in words.
        through: what was compared.
        samples: how many inputs were compared.
        max_abs: largest absolute difference of a logit.
        top1_agreement: share of inputs with the same top class.
        kept_agreement: mean overlap of the selected tokens, as sets (1.0: identical).
        limit: the largest `max_abs` that the gate lets through.
    """

    reference: str
    samples: int = Field(ge=0)
    max_abs: float
    top1_agreement: float
    kept_agreement: float = 1.0
    limit: float
    through: Through = "artifact"


class VerifiedOn(Record):
    """A run of an artifact on another machine, compared with its run on the machine that exported it.

    Attributes:
        machine: its architecture, and the emulator or the board.
        runtime: name and version of the runtime that ran it.
        reference: runtime and architecture of the machine that exported it.
        samples: how many inputs were compared.
        max_abs: largest absolute difference of a logit.
        top1_agreement: share of inputs with the same top class.
        kept_agreement: mean overlap of the selected tokens, as sets (1.0: identical).
        date: of the run, in UTC.
    """

    machine: str
    runtime: str
    reference: str
    samples: int = Field(ge=1)
    max_abs: float = Field(ge=0)
    top1_agreement: float = Field(ge=0, le=1)
    kept_agreement: float = Field(default=1.0, ge=0, le=1)
    date: datetime.date


class Speedup(Record):
    """How many times as fast as another setting a setting is, with its 95 % interval (see `stats.latency.trusted_ratio`)."""

    median: float = Field(gt=0)
    low: float = Field(gt=0)
    high: float = Field(gt=0)
    clock: Literal["wall", "cpu"]


Setting = bool | int | str

Outcome = Literal["kept", "not faster", "other answers", "disturbed", "refused"]
"""What became of a trial: kept; not shown to be faster; logits or kept patches were others; other processes used the cores; or the
runtime refused the value."""


class Trial(Record):
    """A value of a parameter that was tried against the best settings so far.

    Attributes:
        parameter: as the runtime calls it, or threads.
        value: that was tried.
        outcome: what became of it, for programs.
        speedup: against the best so far; null where it was not timed or nothing can be told.
        detail: why it was not kept, for people, where the ratio does not say it.
    """

    parameter: str
    value: Setting
    outcome: Outcome
    speedup: Speedup | None = None
    detail: str = ""


class Tuned(Record):
    """What a search for the runtime's parameters found on a device, and what it gave.

    Attributes:
        settings: values by parameter that a session takes where CPU, cores, runtime and threads are these; empty: the
            runtime's defaults are not shown to be slower.
        speedup: all settings together against the defaults, measured anew; null where no trial was kept.
        trials: in their order.
        cpu, cores: of the device: the processor's name, and the cores that the search could use.
        runtime: name and version.
        threads: of one operator, which the search was held to; null: they were searched as well.
        date: of the search, in UTC.
    """

    settings: dict[str, Setting]
    speedup: Speedup | None
    trials: list[Trial]
    cpu: str
    cores: int = Field(ge=1)
    runtime: str
    threads: int | None = Field(ge=1)
    date: datetime.date

    @field_validator("settings")
    @classmethod
    def _has_a_number_of_threads(cls, value: dict[str, Setting]) -> dict[str, Setting]:
        threads = value.get("threads", 1)
        if type(threads) is not int or threads < 1:
            raise ValueError("threads must be a whole number of at least 1")
        return value


class Variant(Record):
    """One static token budget in one precision for one target.

    `parity` is null where the artifact could be built but not run on the machine that exported it;
    `verified_on` has a record for each other machine and runtime that it was run on since; `tuned` what `ptsr-edge tune` found
    last. `macs_uncounted` counts
    the operators that no formula is known for: `macs` leaves them out.
    """

    id: str = Field(pattern=VARIANT_NAME)
    target: str
    keep_rate: float = Field(gt=0, le=1)
    tokens: int = Field(ge=1)
    precision: str
    artifact: str
    files: list[BundleFile]
    macs: int = Field(ge=0)
    parameters: int = Field(ge=0)
    parity: Parity | None
    macs_uncounted: dict[str, int] = Field(default_factory=dict)
    built_with: dict[str, Any]
    runs_on: dict[str, Any]
    verified_on: list[VerifiedOn] = Field(default_factory=list)
    tuned: Tuned | None = None

    @model_validator(mode="after")
    def _checks_what_it_runs(self) -> Variant:
        # A file outside of the list has no hash to check, and may lie anywhere.
        paths = [entry.path for entry in self.files]
        if self.artifact not in paths:
            raise ValueError(f"artifact must be one of the variant's files {paths}, got {self.artifact!r}")
        return self


class Cascade(Record):
    """A small budget that passes close answers on to the full one, with the proven bound on its cost.

    Attributes:
        target, precision: of the two variants.
        small, full: their keep rates.
        margin: lead of the most probable class over the second, below which the full budget is asked.
        escalated: share of the samples that the full budget was asked for.
        limit: most drop of UAR, against the full budget alone, that was allowed.
        drop: measured drop of UAR.
        upper: upper bound of the drop, at most `limit`, that holds with `confidence` (see `stats.classification`).
        confidence: of the bound, for the margin that was chosen (fixed-sequence testing, from the safest margin on).
        unit: the unit that is taken as independent.
        units, samples: their numbers in the calibration data.
        data: the calibration data: samples that were used for nothing else.
        sha256: hash of these samples.
    """

    target: str
    precision: str
    small: float = Field(gt=0, le=1)
    full: float = Field(gt=0, le=1)
    margin: float = Field(ge=0, le=1)
    escalated: float = Field(ge=0, le=1)
    limit: float = Field(gt=0, lt=1)
    drop: float
    upper: float = Field(ge=0, le=1)
    confidence: float = Field(gt=0, lt=1)
    unit: Literal["subject", "sample"]
    units: int = Field(ge=1)
    samples: int = Field(ge=1)
    data: str
    sha256: str


class TensorSpec(Record):
    """An array that goes into a model or comes out of it.

    Attributes:
        name: of the graph's input or output.
        shape: of every variant; "tokens" stands for the variant's number of that name.
        layout: a letter an axis: N batch, C channels or classes, H rows, W columns, K kept patches.
        type: of an element.
        meaning: of the values, in a sentence.
    """

    name: str
    shape: list[int | Literal["tokens"]]
    layout: str
    type: Literal["float32", "int64"]
    meaning: str


class Normalisation(Record):
    """How a flow sample becomes the input of the network, each image by itself, in float64.

    Attributes:
        method: its name in `preprocess`.
        formula: each channel of the input, in order, as an expression of the sample's channels. `median`, `var`
            and `std` are over all pixels of the channel; `var` and `std` divide by their number.
        constants: numbers that the expressions name.
    """

    method: str
    formula: dict[str, str]
    constants: dict[str, float]


class BundleIO(Record):
    """What every variant of a bundle takes and gives, for those who run the artifacts without this package.

    Attributes:
        sample: what `preprocess` makes of two frames, before normalisation.
        normalisation: from the sample to the input.
        inputs, outputs: of the graph.
    """

    sample: TensorSpec
    normalisation: Normalisation
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


def describe_io(model: ModelConfig, preprocess: Preprocess) -> BundleIO:
    """Returns what the variants of a model take and give."""
    side = preprocess.image_size
    outputs = [
        TensorSpec(
            name="logits",
            shape=[1, model.classes],
            layout="NC",
            type="float32",
            meaning="one a class, in the order of `labels`; their softmax gives the probabilities",
        )
    ]
    if model.kind == "ptsr":
        outputs.append(
            TensorSpec(
                name="kept",
                shape=[1, "tokens"],
                layout="NK",
                type="int64",
                meaning=f"the patches that the answer was read from: row * {model.grid} + column of a patch of "
                f"{model.patch_size} x {model.patch_size} pixels, both from 0 at the top left; their order means nothing",
            )
        )
    spread = "sqrt((var(u) + var(v)) / 2)"
    return BundleIO(
        sample=TensorSpec(
            name="flow sample",
            shape=[side, side, 3],
            layout="HWC",
            type="float32",
            meaning="u, v: the motion from onset to apex in pixels of the frames, +x to the right and +y down; strain: "
            "sqrt(ux^2 + vy^2 + (uy + vx)^2 / 2) of it",
        ),
        normalisation=Normalisation(
            method=preprocess.normalise,
            formula={
                "u": f"where({spread} > flat, (u - median(u)) / {spread}, 0)",
                "v": f"where({spread} > flat, (v - median(v)) / {spread}, 0)",
                "strain": "where(std(strain) > flat, strain / std(strain), 0)",
            },
            constants={"flat": FLAT},
        ),
        inputs=[
            TensorSpec(
                name="flow",
                shape=[1, *model.input_shape],
                layout="NCHW",
                type="float32",
                meaning="the normalised sample, its channels first",
            )
        ],
        outputs=outputs,
    )


RecommendedBy = Literal["measured", "judged", "unjudged"]
"""How a recommended variant was found: chosen from a profile under limits; judged at the export; or nothing could be
judged there, and it is the largest budget."""


class RecommendedVariant(Record):
    """The variant that a session takes where nothing else is asked for.

    Attributes:
        variant: its id in the bundle.
        kind: how it was found, for programs.
        reason: the same in one sentence, for people.
    """

    variant: str
    kind: RecommendedBy
    reason: str


class Bundle(Record):
    """The manifest of a bundle; `target` is the first target it was exported for.

    `cascades` has one for each target and precision that it was calibrated for; usually it is empty. `io` and
    `recommended` are null in bundles of older versions.
    """

    schema_: Literal[1] = Field(default=1, alias="schema")
    name: str = Field(pattern=NAME)
    target: str
    model: ModelConfig
    labels: list[str]
    preprocess: Preprocess
    io: BundleIO | None = None
    provenance: dict[str, Any]
    variants: list[Variant] = Field(min_length=1)
    cascades: list[Cascade] = Field(default_factory=list)
    recommended: RecommendedVariant | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Bundle:
        check_fit(self.model, self.labels, self.preprocess)
        return self

    @model_validator(mode="after")
    def _names_its_variants(self) -> Bundle:
        ids = [variant.id for variant in self.variants]
        commonest, count = Counter(ids).most_common(1)[0]
        if count > 1:
            raise ValueError(f"each variant must have an id of its own, got {commonest!r} {count} times")
        if self.recommended is not None and self.recommended.variant not in ids:
            raise ValueError(
                f"recommended.variant must be one of {', '.join(ids)}, got {self.recommended.variant!r}"
            )
        return self


def baseline_place(folder: Path) -> Path:
    """Returns where the full-token ViT of a bundle lies, if it was exported with one: `NAME-baseline` beside it."""
    named = folder if folder.name not in ("", "..") else folder.resolve()
    return named.with_name(f"{named.name}-baseline")


def read_manifest(folder: Path) -> Any:
    """Returns what the manifest of a bundle holds, as JSON has it: signatures are over that.

    Raises:
        InputError: there is no such folder, or it holds no manifest.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; a bundle is a folder with a {MANIFEST}")
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder} holds no {MANIFEST}: not a bundle made by `ptsr-edge export`")
    return read_json_file(folder / MANIFEST)


def read_bundle(folder: Path) -> Bundle:
    """Reads a bundle's manifest, whoever wrote it: what opens a bundle takes `sign.read_verified`.

    Raises:
        InputError: there is no such folder, it is no bundle, or its manifest is of another schema.
    """
    return parse(Bundle, read_manifest(folder), str(folder / MANIFEST))


def write_bundle(folder: Path, bundle: Bundle) -> None:
    """Writes the manifest of a bundle."""
    write_json(folder / MANIFEST, bundle.model_dump(mode="json", by_alias=True))


def add_verification(folder: Path, variant_id: str, record: VerifiedOn) -> None:
    """Adds a record to a variant of the bundle at `folder`; it replaces an earlier one of the same machine and runtime.

    Raises:
        InputError: there is no such bundle or variant, or its files are not the ones that were exported.
        JobError: the manifest cannot be written; the old one stays.
    """
    manifest, variant, entry = _entry(folder, variant_id)
    others = [
        earlier
        for earlier in variant.verified_on
        if (earlier.machine, earlier.runtime) != (record.machine, record.runtime)
    ]
    entry["verified_on"] = [one.model_dump(mode="json") for one in (*others, record)]
    write_json(folder / MANIFEST, manifest)


def write_tuned(folder: Path, variant_id: str, record: Tuned | None) -> None:
    """Writes what a search found for a variant of the bundle at `folder`, in place of an earlier record; None takes that out.

    Raises:
        InputError: there is no such bundle or variant, or its files are not the ones that were exported.
        JobError: the manifest cannot be written; the old one stays.
    """
    manifest, _, entry = _entry(folder, variant_id)
    entry["tuned"] = None if record is None else record.model_dump(mode="json")
    write_json(folder / MANIFEST, manifest)


def write_recommended(folder: Path, choice: RecommendedVariant) -> None:
    """Writes which variant of the bundle at `folder` is recommended; it replaces an earlier choice.

    Raises:
        InputError: there is no such bundle or variant, its files are not the ones that were exported, or it is signed.
        JobError: the manifest cannot be written; the old one stays.
    """
    if (folder / SIGNATURE).exists():
        raise InputError(
            f"{folder} is signed, and what it recommends with it: remove {folder / SIGNATURE}, choose, and sign it again"
        )
    manifest, _, _ = _entry(folder, choice.variant)
    manifest["recommended"] = choice.model_dump(mode="json")
    write_json(folder / MANIFEST, manifest)


def _entry(folder: Path, variant_id: str) -> tuple[dict[str, Any], Variant, dict[str, Any]]:
    """Returns a manifest as it stands in its file, and a variant whose files are right: its record and its place there.

    What is not changed stays as it was written, and no key is added: a signature is over these.
    """
    manifest = read_manifest(folder)
    bundle = parse(Bundle, manifest, str(folder / MANIFEST))
    variant = find_variant(bundle, variant_id)
    check_files(folder, variant)
    return manifest, variant, manifest["variants"][bundle.variants.index(variant)]


def find_variant(bundle: Bundle, name: str) -> Variant:
    """Returns a bundle's variant by its id.

    Raises:
        InputError: there is none of that id; the message lists those that there are.
    """
    for variant in bundle.variants:
        if variant.id == name:
            return variant
    have = ", ".join(variant.id for variant in bundle.variants)
    raise InputError(f"{bundle.name} has no variant {name!r}; it has {have}")


def files_digest(variant: Variant) -> str:
    """Returns one SHA-256 over the paths and hashes of a variant's files: equal for equal artifacts only."""
    lines = sorted(f"{entry.path}\0{entry.sha256}\n" for entry in variant.files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def describe_file(folder: Path, path: Path) -> BundleFile:
    """Returns the manifest's entry for a file of the bundle at `folder`."""
    return BundleFile(
        path=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=sha256_of(path)
    )


def check_files(folder: Path, variant: Variant) -> None:
    """Makes sure that a variant's files are the ones that were proven.

    What opens them afterwards may find others: a runtime is given a `private_copy`.

    Raises:
        InputError: a file is missing, is no file, or has changed since the export.
    """
    for entry in variant.files:
        for _ in _proven(folder, entry):
            pass


@contextmanager
def private_copy(folder: Path, variants: Sequence[Variant]) -> Iterator[Path]:
    """Yields a folder that holds the files of some variants, as they were proven, and nothing else.

    What is hashed is what is copied. So neither a file that is exchanged after its hash was right, nor one that no
    manifest lists, reaches a runtime, which may look for further files beside those that it is given. The folder is the
    user's alone, and goes when the block ends; what a runtime has mapped by then stays mapped.

    Raises:
        InputError: a file is missing, is no file, or has changed since the export.
        JobError: there is no room for the copy.
    """
    with ExitStack() as held:
        try:
            place = held.enter_context(scratch_folder())
            copies: dict[str, Path] = {}
            for entry in dict.fromkeys(entry for variant in variants for entry in variant.files):
                path = place / entry.path
                path.parent.mkdir(parents=True, exist_ok=True)
                # Weights that budgets share stay one file, which is then mapped once.
                if entry.sha256 in copies:
                    link_file(copies[entry.sha256], path)
                    continue
                with path.open("xb") as stream:
                    for block in _proven(folder, entry):
                        stream.write(block)
                copies[entry.sha256] = path
        except OSError as error:
            raise JobError(
                f"{folder} cannot be copied into {tempfile.gettempdir()} to be opened there ({error.strerror}): "
                "set TMPDIR to a folder with more room"
            ) from error
        try:
            yield place
        except PtsrError as error:
            # A runtime names the file that it was given: to its reader the bundle's is the one.
            if str(place) not in str(error):
                raise
            raise type(error)(str(error).replace(str(place), str(folder))) from error


def _proven(folder: Path, entry: BundleFile) -> Iterator[bytes]:
    """Yields the bytes of a file in blocks; once all were taken, they are the ones that were proven.

    Raises:
        InputError: the file is missing, is no file, or has changed since the export.
    """
    path = folder / entry.path
    changed = InputError(
        f"{path} has changed since it was exported (its SHA-256 is not the manifest's): export the bundle again"
    )
    try:
        # Without waiting: a pipe without a writer would hold whoever opens it.
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: export the bundle again") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    with os.fdopen(number, "rb", buffering=0) as stream:
        facts = os.fstat(number)
        if not stat.S_ISREG(facts.st_mode):
            raise InputError(f"{path} is no file: export the bundle again")
        if facts.st_size != entry.bytes:
            raise changed
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
            yield block
        if digest.hexdigest() != entry.sha256:
            raise changed


LAW = (
    "Where law forbids it, do not use it: in the European Union, Regulation (EU) 2024/1689, article 5(1)(f), prohibits "
    "AI systems that infer emotions of people at the workplace and in education, other than for medical or safety "
    "reasons; elsewhere there emotion recognition is high-risk (Annex III), and people must be told of it (article 50(3))"
)

EVIDENCE = (
    "A class is what a movement of the face resembles, no evidence of what a person feels, thinks or intends: no "
    "decision about a person may rest on it"
)


def bundle_card(trained: str | None) -> str:
    """Returns the model card: training, use, and law.

    Args:
        trained: the checkpoint's sentence about its training, such as a data set's `card`; None: it has none.
    """
    return f"{trained or 'training unknown'}. {EVIDENCE}. {LAW}."
