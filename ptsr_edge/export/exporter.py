"""A checkpoint becomes a bundle: static token-budget variants, each proven before it is written.

The stages: resolve the model, draw calibration samples, choose budgets, trace one graph a budget, build
each precision of each target, prove every variant against the eager model, write the bundle.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto

from ptsr_edge.bundle import Bundle, Parity, Variant, bundle_card, describe_file, read_bundle, write_bundle
from ptsr_edge.core.config import DEFAULT_MODEL
from ptsr_edge.core.console import progress, say
from ptsr_edge.core.disk_cache import (
    ABANDONED_S,
    _copy,
    _names,
    _rename_new,
    _size_of,
    _Spoiled,
    cache_key,
    code_digest,
    default_folder,
)
from ptsr_edge.core.errors import InputError, JobError, ParityError
from ptsr_edge.core.files import staged_folder, write_json
from ptsr_edge.core.records import parse
from ptsr_edge.core.system import describe_cpu, describe_gpus, installed
from ptsr_edge.data.datasets import FlowDataset, dataset_origin, known_dataset
from ptsr_edge.export.accuracy_control import build_within, rank_layers, uar_of
from ptsr_edge.export.calibration import (
    budgets_from_data,
    calibrate,
    calibration_side,
    cascade_samples,
    check_reach,
    draw,
)
from ptsr_edge.export.config import ExportConfig, Rates, check_out, rates_of
from ptsr_edge.export.onnx_graph import add_metadata, trace, write_sharing_weights
from ptsr_edge.export.parity import (
    Reference,
    _first_fault,
    _sample_at_fault,
    eager_reference,
    measure_parity,
    require_parity,
)
from ptsr_edge.export.static_model import to_static
from ptsr_edge.export.targets.base import (
    THROUGH_ARTIFACT,
    THROUGH_GRAPH,
    Artifact,
    BuildRequest,
    Target,
    open_built,
    variant_id,
)
from ptsr_edge.export.targets.tensorrt import NoEngineError
from ptsr_edge.models.checkpoint import CheckpointInfo, predict_logits, resolve
from ptsr_edge.models.macs import count_macs
from ptsr_edge.models.ptsr import Model, count_parameters
from ptsr_edge.runtimes.base import Runner, find_runtime
from ptsr_edge.stats.classification import confusion, uar
from ptsr_edge.vision.flow import to_input

# FOLDED from export.build: Graphs are traced once a budget, built for a target in a precision, and proven.

PROOF_SAMPLES = 32

JUDGED_SAMPLES = 400

GRAPH_ONLY = f"{THROUGH_GRAPH}, engine not run here"


@dataclass(frozen=True)
class ExportJob:
    """What is exported, and on which samples it is calibrated, proven and judged.

    Attributes:
        model: the eager fp32 model.
        info: what it says of itself.
        rates: keep rates, from the largest down.
        calibration: samples that ranges are taken from; `PROOF_SAMPLES` of them prove every variant.
        judged: other samples of the training side, on which the loss of int8 is measured.
        options: what targets understand; see their `build`.
        max_uar_drop: the largest loss of UAR of int8 against fp32 on `judged`; None: not judged.
        uncounted: filled while tracing: by token count, operators that the MACs leave out for want of a formula.
        not_built: filled while building: why there are graphs where engines were asked for.
    """

    model: Model
    info: CheckpointInfo
    rates: Sequence[float]
    calibration: FlowDataset
    judged: FlowDataset
    options: Mapping[str, Any] = field(default_factory=dict)
    max_uar_drop: float | None = None
    uncounted: dict[int, dict[str, int]] = field(default_factory=dict)
    not_built: list[str] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        """Token counts, in the order of the rates."""
        return [self.info.model.tokens_at(rate) for rate in self.rates]

    @cached_property
    def references(self) -> dict[int, Reference]:
        """What eager fp32 says of the proof's samples, by token count."""
        places = np.linspace(0, len(self.calibration) - 1, min(PROOF_SAMPLES, len(self.calibration)))
        flows = self.calibration.flows[places.round().astype(np.intp)]
        return {tokens: eager_reference(self.model, tokens, flows) for tokens in self.tokens}

    @cached_property
    def calibration_inputs(self) -> NDArray[np.float32]:
        """(n, C, S, S) float32, normalised."""
        return to_input(self.calibration.flows)


def trace_budgets(job: ExportJob, folder: Path) -> tuple[dict[int, Path], dict[int, int]]:
    """Writes one fp32 graph a token count, with shared weights; their paths and their MACs."""
    config = job.info.model
    models: dict[Path, ModelProto] = {}
    graphs, macs = {}, {}
    for tokens in progress(job.tokens, "tracing graphs"):
        static = to_static(job.model, tokens)
        graphs[tokens] = folder / f"{config.name}-k{tokens}.onnx"
        models[graphs[tokens]] = trace(static, config)
        add_metadata(models[graphs[tokens]], job.info.labels, job.info.preprocess)
        counted = count_macs(static, (torch.zeros(1, *config.input_shape),))
        macs[tokens], job.uncounted[tokens] = counted.total, counted.uncounted
        if counted.uncounted:
            say(
                f"MACs at {tokens} tokens leave out operators without a formula: {', '.join(counted.uncounted)}"
            )
    write_sharing_weights(models, folder / "weights.bin")
    return graphs, macs


def build_and_prove(
    job: ExportJob,
    target: Target,
    precision: str,
    graphs: Mapping[int, Path],
    macs: Mapping[int, int],
    stage: Path,
) -> list[Variant]:
    """Builds all budgets in one precision and compares each with the eager model.

    Raises:
        ParityError: a variant misses its limit.
        JobError: the target's tools refuse a graph, or int8 loses more than `max_uar_drop`.
    """
    info = job.info
    artifacts, repaired = _build(job, target, precision, graphs, stage)
    variants = []
    for rate, tokens in progress(list(zip(job.rates, job.tokens, strict=True)), f"{target.name} {precision}"):
        artifact = artifacts[tokens]
        name = variant_id(info.model.name, target.name, precision, tokens)
        parity = _measure(job.references[tokens], target, artifact, precision)
        if parity is not None:
            try:
                require_parity(parity, name, precision)
            except ParityError as error:
                index, others = _sample_at_fault(job.references[tokens], target, artifact, precision)
                one = job.references[tokens].inputs[index : index + 1]
                raise ParityError(
                    f"{error}; {_first_fault(one, others, graphs[tokens], artifact, precision)}"
                ) from None
        built_with = {"torch": version("torch"), **artifact.built_with}
        variants.append(
            Variant(
                id=name,
                target=target.name,
                keep_rate=rate,
                tokens=tokens,
                precision=precision,
                artifact=artifact.path.relative_to(stage).as_posix(),
                files=[describe_file(stage, path) for path in artifact.files],
                macs=macs[tokens],
                macs_uncounted=job.uncounted.get(tokens, {}),
                parameters=count_parameters(job.model),
                parity=parity,
                built_with=built_with if repaired is None else {**built_with, "accuracy": repaired},
                runs_on=artifact.runs_on,
            )
        )
    return variants


def _measure(reference: Reference, target: Target, artifact: Artifact, precision: str) -> Parity | None:
    """Parity of the artifact; of the graph it was built from where it cannot run here, and that is said.

    None where neither can be computed.
    """
    runner, through = open_built(target, artifact)
    if runner is None:
        return None
    parity = measure_parity(reference, runner.run, precision)
    if through == THROUGH_ARTIFACT:
        return parity
    return parity.model_copy(update={"reference": f"{parity.reference}; {GRAPH_ONLY}"})


def _build(
    job: ExportJob, target: Target, precision: str, graphs: Mapping[int, Path], stage: Path
) -> tuple[Mapping[int, Artifact], dict[str, Any] | None]:
    """The artifacts; with `max_uar_drop`, int8 ones that hold it, and the record of what that took."""
    info = job.info

    def build(kept: Sequence[str]) -> Mapping[int, Artifact]:
        options = {key: value for key, value in job.options.items() if key in target.options.model_fields}
        if kept:
            options["keep_float"] = list(dict.fromkeys([*options.get("keep_float", ()), *kept]))
        request = BuildRequest(
            name=info.model.name,
            graphs=graphs,
            precision=precision,
            folder=stage,
            labels=info.labels,
            preprocess=info.preprocess,
            calibration=job.calibration_inputs,
            options=options,
        )
        try:
            return target.build(request)
        except NoEngineError as error:
            job.not_built.append(str(error))
            return error.artifacts

    if precision != "int8" or job.max_uar_drop is None:
        return build(()), None
    judged, classes = job.judged, len(info.labels)
    inputs = to_input(judged.flows)
    expected = {}
    for tokens in job.tokens:
        answers = predict_logits(job.model, judged.flows, tokens)[0].argmax(axis=1)
        expected[tokens] = uar(confusion(judged.labels, answers, classes))
    said: dict[str, Any] = {"samples": len(inputs)}

    def open_artifact(artifact: Artifact) -> Runner | None:
        runner, through = open_built(target, artifact)
        if through == THROUGH_GRAPH and "through" not in said:
            say(f"{target.name} int8 is judged through its {through}: no engine runs here")
        said["through"] = through
        return runner

    artifacts, record = build_within(
        job.max_uar_drop,
        build,
        open_artifact,
        expected,
        lambda runner: uar_of(runner, inputs, judged.labels, classes),
        lambda: rank_layers(graphs[min(graphs)], job.calibration_inputs, progress),
    )
    return artifacts, record | said


log = logging.getLogger("ptsr_edge")

LIMIT_BYTES = 2_000_000_000

TOOLS = (
    "torch",
    "onnx",
    "onnxscript",
    "onnx-ir",
    "onnxruntime",
    "openvino",
    "nncf",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx",
    "tensorrt-rtx-cu12",
    "tensorrt-rtx-cu13",
    "numpy",
    "opencv-python-headless",
)
"""Distributions whose version can change an artifact, its proof or the samples that it is calibrated on."""

CONTENT = "bundle"

RECORD = "entry.json"

UNFINISHED = ".new-"


def surroundings() -> dict[str, Any]:
    """The parts of a key that no call names: tools, source, machine."""
    return {"tools": tool_versions(), "code": code_digest(), "hardware": hardware()}


def tool_versions() -> dict[str, str]:
    """Versions of those of `TOOLS` that are installed; nothing is imported."""
    return installed(TOOLS)


def hardware() -> dict[str, Any]:
    """What decides which kernels are picked: processor, instruction sets, and each GPU with its driver."""
    cpu = describe_cpu()
    return {
        "cpu": {key: cpu[key] for key in ("model", "architecture", "flags")},
        "gpus": [
            {key: gpu.get(key) for key in ("name", "compute_cap", "driver_version")}
            for gpu in describe_gpus()
        ],
    }


def data_fingerprint(name: str, root: Path | None) -> str:
    """What tells one state of a data set from another, without reading the files.

    Data in files: SHA-256 over names, sizes and times of change below `root`, of the content and of the file's
    own record, which no tool can set back. Rendered data are made by this package's source, which
    `code_digest` stands for, or by another package, whose name and version count.

    Raises:
        JobError: a file below `root` cannot be looked at.
    """
    digest = hashlib.sha256(f"{name}{dataset_origin(name)}".encode())
    entry = known_dataset(name)
    if root is None or (entry is not None and entry.is_rendered):
        return digest.hexdigest()
    try:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                facts = path.stat()
                place = path.relative_to(root).as_posix()
                times = f"{facts.st_mtime_ns}\0{facts.st_ctime_ns}"
                digest.update(f"\0{place}\0{facts.st_size}\0{times}".encode())
    except OSError as error:
        raise JobError(f"cannot look at the data below {root}: {error}") from error
    return digest.hexdigest()


class BundleCache:
    """A folder of finished bundles. Processes may share it; a fault of the cache never fails an export."""

    def __init__(self, folder: Path | None = None, limit_bytes: int = LIMIT_BYTES) -> None:
        """`folder` by default `default_folder()`; nothing is written before the first `store`."""
        self.folder = folder if folder is not None else default_folder()
        self.limit_bytes = limit_bytes
        self._told = False
        if self.folder is None:
            self._tell("there is no home directory")

    def fetch(self, key: str, out: Path) -> Bundle | None:
        """Copies a stored bundle to `out`, or returns None.

        Every byte that is copied is hashed on its way. Where a hash is not the one of the entry or of its
        manifest, where a file is missing or there is one too many, the entry is removed; `out` is untouched.

        Raises:
            JobError: `out` cannot be written.
        """
        if self.folder is None or not (self.folder / key).is_dir():
            return None
        entry = self.folder / key
        try:
            digests = _read_record(entry)
            with staged_folder(out) as stage:
                for name, digest in digests.items():
                    if _copy(entry / CONTENT / name, stage / name) != digest:
                        raise _Spoiled(f"{name} has changed")
                bundle = _checked(stage, digests)
        except _Spoiled as error:
            if entry.is_dir():  # else another process made room just now
                log.warning("cache: %s: %s; it is made anew", entry, error)
                self._remove(entry)
            return None
        with contextlib.suppress(OSError):  # a cache that may only be read
            os.utime(entry)
        return bundle

    def store(self, key: str, bundle_folder: Path) -> None:
        """Keeps a copy of a bundle under a key; one that is there already stays.

        The entry appears whole or not at all. What was not used for longest goes when the cache grows over
        its bound; a bundle larger than that is not kept.
        """
        if self.folder is None or self._told:
            return
        stage = None
        try:
            if _size_of(bundle_folder) > self.limit_bytes:
                log.info("cache: %s is larger than the cache may be: not kept", bundle_folder)
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            stage = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=self.folder))
            digests = {
                name: _copy(bundle_folder / name, stage / CONTENT / name) for name in _names(bundle_folder)
            }
            _checked(stage / CONTENT, digests)
            write_json(stage / RECORD, {"files": digests})
            if not (self.folder / key).exists():
                _rename_new(stage, self.folder / key)
            self._shrink()
        except _Spoiled as error:
            log.warning("cache: %s is not kept: %s", bundle_folder, error)
        except (OSError, JobError) as error:
            self._tell(str(error))
        finally:
            if stage is not None:
                shutil.rmtree(stage, ignore_errors=True)

    def _shrink(self) -> None:
        """Removes what was used longest ago until the rest fits; and what dead processes left."""
        assert self.folder is not None
        now = time.time()
        entries = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process was at it
                if path.name.startswith(UNFINISHED):
                    if now - path.stat().st_mtime > ABANDONED_S:
                        shutil.rmtree(path, ignore_errors=True)
                elif (path / RECORD).is_file():
                    entries.append((path.stat().st_mtime_ns, path, _size_of(path)))
        total = sum(size for _, _, size in entries)
        for _, path, size in sorted(entries):
            if total <= self.limit_bytes:
                break
            self._remove(path)
            total -= size

    def _remove(self, entry: Path) -> None:
        """Takes an entry away in one step, so that nobody meets half of it."""
        assert self.folder is not None
        try:
            trash = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=self.folder))
            try:
                entry.rename(trash / "old")
            finally:
                shutil.rmtree(trash, ignore_errors=True)
        except FileNotFoundError:
            log.debug("cache: %s was removed by another process", entry)
        except OSError as error:
            self._tell(str(error))

    def _tell(self, reason: str) -> None:
        if not self._told:
            log.info("cache: off, exports are not kept: %s", reason)
        self._told = True


def _read_record(entry: Path) -> dict[str, str]:
    """Names and hashes of an entry's files, which must be exactly those that are there."""
    try:
        record = json.loads((entry / RECORD).read_text(encoding="utf-8"))
        digests: dict[str, str] = record["files"]
        found = _names(entry / CONTENT)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _Spoiled(f"{RECORD} cannot be read: {error}") from None
    if not isinstance(digests, dict) or sorted(digests) != found:
        raise _Spoiled("its files are not those that were stored")
    return digests


def _checked(folder: Path, digests: Mapping[str, str]) -> Bundle:
    """The manifest of a copied bundle, if it lists the hashes that the copied files have."""
    try:
        bundle = read_bundle(folder)
    except InputError as error:
        raise _Spoiled(str(error)) from None
    for variant in bundle.variants:
        for file in variant.files:
            if digests.get(file.path) != file.sha256:
                raise _Spoiled(f"{file.path} is not what the manifest says")
    return bundle


PROOF_ONLY_SAMPLES = 32

CALIBRATION_SAMPLES = 64


def export_bundle(
    *,
    out: Path,
    model: str | None = None,
    checkpoint: Path | None = None,
    target: str | Sequence[str] = "cpu",
    budgets: Sequence[float] | Literal["auto"] | None = None,
    precisions: Sequence[str] | None = None,
    calibration: Path | None = None,
    calibration_data: str | None = None,
    calibration_samples: int | None = None,
    max_uar_drop: float | None = None,
    cascade_loss: float | None = None,
    threads: int | None = None,
    options: Mapping[str, Any] | None = None,
    cache: bool = False,
) -> Bundle:
    """Exports one model for one or more targets, proves every variant and writes the bundle.

    Args:
        out: the bundle's folder; one that stands there is replaced only when all variants are proven.
        model: a named model; with `checkpoint`, the name that it must have.
        checkpoint: by default the embedded weights, or seeded random ones where none are embedded.
        target: one or more of `runtimes.base.target_names()`.
        budgets: keep rates in (0, 1], or "auto": from DTSM's dynamic mode over the calibration samples; by
            default 1, .5 and .25 for PTSR and 1 for a baseline.
        precisions: by default all that each target has.
        calibration, calibration_data: folder and name of the data to calibrate and to prove on; see
            `calibration.calibration_side`.
        calibration_samples: by default `CALIBRATION_SAMPLES` where int8 is made, else fewer.
        max_uar_drop: repair int8 that loses more UAR than this on the calibration side, or refuse it.
        cascade_loss: also calibrate cascades that lose at most this much UAR; see `cascade_calibration`.
        threads: what `Session` gives to one inference on a processor unless it is told otherwise; None
            leaves it to the runtime.
        options: fields of the targets' own options; see `TargetOptions`.
        cache: serve a bundle made before from the same inputs by the same tools.

    Raises:
        InputError: something in the call is not acceptable; nothing was started.
        ParityError: a variant misses its limit; nothing was written.
        JobError: anything else failed; nothing was written, except where no engine could be built here:
            then the bundle holds the checked graphs and what builds them on the device.
    """
    check_out(out)
    call = {
        "target": target,
        "budgets": budgets,
        "precisions": precisions,
        "threads": threads,
        "options": options or {},
    }
    config = parse(
        ExportConfig, call | {"calibration_samples": calibration_samples, "max_uar_drop": max_uar_drop}
    )
    plan = config.plan
    loaded, info, digest = resolve(checkpoint, model or (None if checkpoint else DEFAULT_MODEL))
    rates = config.rates_for(info.model)
    quantizes = any("int8" in wanted for _, wanted in plan)
    count = calibration_samples or (CALIBRATION_SAMPLES if quantizes else PROOF_ONLY_SAMPLES)
    wanted = [[builder.name, names] for builder, names in plan]
    data_name = calibration_data or str(info.provenance.get("data") or "")
    source = [calibration_data, count, data_fingerprint(data_name, calibration)]
    inputs = [digest, wanted, rates, source, max_uar_drop, cascade_loss, threads, dict(options or {})]
    key = cache_key({"call": inputs, **surroundings()}) if cache else ""
    if cache and (kept := BundleCache().fetch(key, out)) is not None:
        say("served from the cache: nothing that the export depends on has changed")
        return kept
    limit = max_uar_drop if quantizes else None
    job, side, said = _prepare(loaded, info, rates, count, calibration, calibration_data, limit, options)
    aside = None if cascade_loss is None else (_set_aside(job, side, cascade_loss), cascade_loss)
    card = bundle_card(info.provenance.get("card"))
    provenance = {"checkpoint_sha256": digest, **info.provenance, "model_card": card, **said}
    bundle = _write(out, job, plan, provenance, threads, aside)
    if job.not_built:
        raise JobError(
            f"{out} holds checked graphs and the script that builds on the device; {job.not_built[0]}"
        )
    if cache:
        BundleCache().store(key, out)
    return bundle


def _prepare(
    model: Model, info: CheckpointInfo, rates: Rates, count: int, root: Path | None, data: str | None,
    max_uar_drop: float | None, options: Mapping[str, Any] | None,
) -> tuple[ExportJob, FlowDataset, dict[str, Any]]:  # fmt: skip
    """Draws the samples and chooses the budgets; the job, all samples, and what the manifest says of both."""
    judges = max_uar_drop is not None
    side = calibration_side(info, root, data, count + (JUDGED_SAMPLES if judges else 0))
    if judges and list(side.label_names) != info.labels:
        raise InputError(
            f"data {side.source} has the classes {', '.join(side.label_names)}, {info.model.name} answers "
            f"{', '.join(info.labels)}: a drop of UAR cannot be judged"
        )
    samples, record = draw(side, count)
    said: dict[str, Any] = {"calibration": record.model_dump()}
    if rates == "auto":
        said["dynamic_counts"] = budgets_from_data(model, to_input(samples.flows))
        rates = rates_of(info.model, list(said["dynamic_counts"]["quantiles"].values()))
    others = side.subset(~np.isin(side.names, samples.names))
    if judges and not len(others):
        raise InputError(
            f"calibration takes all {len(side)} clips of the training side of {side.source}, and none is left "
            "to judge a drop of UAR on: ask for fewer with --calibration-samples"
        )
    judged = draw(others, JUDGED_SAMPLES)[0] if judges else others
    return ExportJob(model, info, rates, samples, judged, dict(options or {}), max_uar_drop), side, said


def _set_aside(job: ExportJob, side: FlowDataset, loss: float) -> FlowDataset:
    """Samples to calibrate a cascade on."""
    if len(job.rates) < 2:
        raise InputError("a cascade needs two budgets: name more with --budgets")
    if list(side.label_names) != job.info.labels:
        raise InputError(
            f"data {side.source} has the classes {', '.join(side.label_names)}, {job.info.model.name} answers "
            f"{', '.join(job.info.labels)}: a cascade cannot be calibrated on it"
        )
    used = [*job.calibration.names, *(job.judged.names if job.max_uar_drop is not None else ())]
    samples = cascade_samples(side, used, job.info.model.image_size)
    check_reach(samples.labels, samples.subjects, loss)
    return samples


def _write(
    out: Path, job: ExportJob, plan: Sequence[tuple[Target, list[str]]], provenance: dict[str, Any],
    threads: int | None, aside: tuple[FlowDataset, float] | None,
) -> Bundle:  # fmt: skip
    """Traces, builds and proves; the bundle takes its place only when all of it is proven."""
    with staged_folder(out) as stage, TemporaryDirectory(prefix="ptsr-edge-") as scratch:
        graphs, macs = trace_budgets(job, Path(scratch))
        variants = [
            _with_threads(variant, threads)
            for builder, wanted in plan
            for precision in wanted
            for variant in build_and_prove(job, builder, precision, graphs, macs, stage)
        ]
        bundle = Bundle(
            name=job.info.model.name,
            target=plan[0][0].name,
            model=job.info.model,
            labels=job.info.labels,
            preprocess=job.info.preprocess,
            provenance=provenance,
            variants=variants,
            cascades=[] if aside is None else calibrate(variants, stage, *aside),
        )
        write_bundle(stage, bundle)
    return bundle


def _with_threads(variant: Variant, threads: int | None) -> Variant:
    """Says in `runs_on` how many threads one inference gets, where a processor is what runs it."""
    if threads is None or not find_runtime(variant.target).is_threaded:
        return variant
    return variant.model_copy(update={"runs_on": {**variant.runs_on, "threads": threads}})
