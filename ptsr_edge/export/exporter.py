"""A checkpoint becomes a bundle: static token-budget variants, each proven before it is written.

The stages: resolve the model, draw calibration samples, choose budgets, trace one graph per budget, build
each precision of each target, prove every variant against the eager model, recommend one of them, write the bundle.
The same export again is a copy out of the cache, and another one of the same weights takes its graphs from there.
"""

from __future__ import annotations

import hashlib
import logging
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import nn

from ptsr_edge.bundle import (
    Bundle,
    Variant,
    bundle_card,
    check_files,
    describe_file,
    describe_io,
    read_bundle,
    write_bundle,
)
from ptsr_edge.core.config import DEFAULT_MODEL, LABELS, MODELS, baseline_of, parse
from ptsr_edge.core.console import doing, progress, say
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.core.files import (
    DiskCache,
    SpoiledEntryError,
    cache_key,
    code_digest,
    scratch_folder,
    staged_folder,
)
from ptsr_edge.core.system import describe_cpu, describe_gpus, installed
from ptsr_edge.data.datasets import FlowDataset, dataset_origin, known_dataset
from ptsr_edge.export.calibration import (
    budgets_from_data,
    calibrate,
    calibration_side,
    cascade_samples,
    check_reach,
    describe_calibration,
    describe_staircase,
    draw,
    judging_samples,
    measure_staircase,
    on_steps,
    recommend,
)
from ptsr_edge.export.config import (
    BUDGETS,
    CALIBRATION_SAMPLES,
    ExportConfig,
    FromMachine,
    Rates,
    check_out,
    rates_of,
)
from ptsr_edge.export.onnx_graph import add_metadata, trace, write_sharing_weights
from ptsr_edge.export.parity import Reference, eager_reference, prove, require_dependence
from ptsr_edge.export.static_model import to_static
from ptsr_edge.export.targets.base import (
    Artifact,
    BuildRequest,
    ChecksTools,
    Graph,
    Target,
    find_target,
    variant_id,
)
from ptsr_edge.export.targets.quantization import JudgedSamples, build_within, rank_layers
from ptsr_edge.models.checkpoint import CheckpointInfo, predict_logits, random_info, resolve, save_checkpoint
from ptsr_edge.models.macs import MacCount, count_macs
from ptsr_edge.models.ptsr import Model, build_model, count_parameters
from ptsr_edge.runtimes.base import find_runtime
from ptsr_edge.stats.classification import confusion, uar
from ptsr_edge.vision.flow import to_input

log = logging.getLogger("ptsr_edge")

PROOF_SAMPLES = 32
"""Of the calibration samples, those that every variant is proven on."""

JUDGED_SAMPLES = 400
"""Other samples of the training side, at most, on which the loss of int8 is measured."""


def export_bundle(
    *,
    out: Path,
    model: str | None = None,
    checkpoint: Path | None = None,
    target: str | Sequence[str] = "cpu",
    budgets: Sequence[float] | FromMachine | None = None,
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
        budgets: keep rates in (0, 1], or "auto": from DTSM's dynamic mode over the calibration samples; "steps":
            the default ones, moved to the last count before a step of the latency on this machine, of the first target (in
            int8 where that is asked for); "auto,steps": those of the samples, so moved. By default 1, .5 and .25 for PTSR
            and 1 for a baseline.
        precisions: by default all that each target has.
        calibration, calibration_data: folder and name of the data to calibrate and to prove on; see
            `calibration.calibration_side`.
        calibration_samples: by default `CALIBRATION_SAMPLES` where int8 is made, else fewer.
        max_uar_drop: repair int8 that loses more UAR than this on the calibration side, or refuse it.
        cascade_loss: also calibrate cascades that lose at most this much UAR; see `calibration.calibrate`.
        threads: `Session`'s default for one inference on a processor; None leaves it to the runtime.
        options: fields of the targets' own options; see `TargetOptions`.
        cache: serve a bundle made before from the same inputs by the same tools.

    Raises:
        InputError: something in the call is not acceptable; nothing was started.
        ParityError: a variant misses its limit; nothing was written.
        JobError: anything else failed; nothing was written, except where no engine could be built here:
            then the bundle holds the checked graphs and what builds them on the device.
    """
    check_out(out)
    asked = {
        "target": target,
        "budgets": budgets,
        "precisions": precisions,
        "threads": threads,
        "options": options or {},
        "calibration_samples": calibration_samples,
        "max_uar_drop": max_uar_drop,
    }
    config = parse(ExportConfig, asked)
    plan = [(find_target(offer.name), names) for offer, names in config.plan]
    loaded, info, digest = resolve(checkpoint, model or (None if checkpoint else DEFAULT_MODEL))
    rates = config.rates_for(info.model)
    quantizes = any("int8" in wanted for _, wanted in plan)
    count = calibration_samples or (CALIBRATION_SAMPLES if quantizes else PROOF_SAMPLES)
    key, identity = "", None
    if cache:
        wanted = [[builder.name, names] for builder, names in plan]
        data = calibration_data or str(info.provenance.get("data") or "")
        source = [calibration_data, count, data_fingerprint(data, calibration)]
        call = [digest, wanted, rates, source, max_uar_drop, cascade_loss, threads, dict(options or {})]
        around = surroundings()
        key, identity = cache_key({"call": call, **around}), {"weights": digest, **around}
        if (kept := fetch_bundle(key, out)) is not None:
            say("served from the cache: nothing that the export depends on has changed")
            return kept
    with doing("loading the tool chains"):
        for builder, names in plan:
            if isinstance(builder, ChecksTools):
                builder.check_tools(names)
    limit = max_uar_drop if quantizes else None
    first, wanted_first = plan[0]
    on = first.name, "int8" if "int8" in wanted_first else "fp32"
    job, side, said = _prepare(
        loaded, info, rates, count, calibration, calibration_data, limit, options, on, threads
    )
    job = replace(job, identity=identity)
    aside = None if cascade_loss is None else _set_aside(job, side, cascade_loss)
    card = bundle_card(info.provenance.get("card"))
    not_built = ""
    with staged_folder(out) as stage, scratch_folder() as scratch:
        traced = trace_budgets(job, scratch)
        variants = []
        for builder, names in plan:
            for precision in names:
                with doing(f"building {builder.name} {precision}"):
                    artifacts, accuracy = build(job, builder, precision, traced, stage)
                variants += prove_all(job, builder, precision, traced, artifacts, accuracy, stage, threads)
                not_built = not_built or next(iter(artifacts.values())).not_built
        chosen = recommend(variants, stage, *_to_judge(variants, job, side, aside))
        bundle = Bundle(
            name=info.model.name,
            target=plan[0][0].name,
            model=info.model,
            labels=info.labels,
            preprocess=info.preprocess,
            io=describe_io(info.model, info.preprocess),
            provenance={"checkpoint_sha256": digest, **info.provenance, "model_card": card, **said},
            variants=variants,
            cascades=[]
            if aside is None or cascade_loss is None
            else calibrate(variants, stage, aside, cascade_loss),
            recommended=chosen,
        )
        write_bundle(stage, bundle)
    if not_built:
        raise JobError(f"{out} holds checked graphs and the script that builds on the device; {not_built}")
    if cache:
        store_bundle(key, out)
    return bundle


def export_baseline(
    bundle: Bundle,
    out: Path,
    *,
    target: str | Sequence[str],
    precisions: Sequence[str],
    threads: int | None = None,
    options: Mapping[str, Any] | None = None,
    cache: bool = True,
) -> Bundle:
    """Exports the full-token ViT of a bundle's model: same geometry and classes.

    It has the embedded weights, which were trained as those of the model, where there are some for this geometry and
    these classes; else seeded random ones, which tell of cost and not of accuracy.

    Args:
        bundle: whose model it is the baseline of.
        out: its folder.
        target: one or more, as `export_bundle` takes them.
        precisions: fp32, which ratios are against, is made as well.
        threads, options, cache: as of `export_bundle`; layers of PTSR that int8 is to spare are no layers of a ViT.

    Raises:
        InputError, JobError: as `export_bundle` does.
    """
    config = baseline_of(bundle.model)
    named = MODELS.get(config.name)
    # Dropout is of training: it changes neither the geometry nor an answer.
    is_named = named is not None and named == config.model_copy(update={"dropout": named.dropout})
    with scratch_folder() as scratch:
        weights = None
        if not is_named or bundle.labels != list(LABELS):
            weights = scratch / f"{config.name}.safetensors"
            save_checkpoint(weights, build_model(config, seed=0), random_info(config, bundle.labels))
        return export_bundle(
            out=out,
            model=config.name,
            checkpoint=weights,
            target=target,
            budgets=[1.0],
            precisions=list(dict.fromkeys(["fp32", *precisions])),
            threads=threads,
            options={key: value for key, value in (options or {}).items() if key != "keep_float"},
            cache=cache,
        )


@dataclass(frozen=True)
class ExportJob:
    """What is exported, and on which samples it is calibrated, proven and judged.

    Attributes:
        model: the eager fp32 model.
        info: what its checkpoint says of it.
        rates: keep rates, from the largest down.
        calibration: samples that ranges are taken from; `PROOF_SAMPLES` of them prove every variant.
        judged: other samples of the training side, on which the loss of int8 is measured.
        options: what targets understand; see their `build`.
        max_uar_drop: the largest loss of UAR of int8 against fp32 on `judged`; None: not judged.
        identity: all that a traced graph depends on beside its budget, as a part of `cache_key`; None: every graph is
            traced anew.
    """

    model: Model
    info: CheckpointInfo
    rates: Sequence[float]
    calibration: FlowDataset
    judged: FlowDataset
    options: Mapping[str, Any] = field(default_factory=dict)
    max_uar_drop: float | None = None
    identity: Mapping[str, Any] | None = None

    @cached_property
    def calibration_inputs(self) -> NDArray[np.float32]:
        """(n, C, S, S) float32, normalised."""
        return to_input(self.calibration.flows)


def _prepare(
    model: Model, info: CheckpointInfo, rates: Rates, count: int, root: Path | None, data: str | None,
    max_uar_drop: float | None, options: Mapping[str, Any] | None, measured_on: tuple[str, str], threads: int | None,
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
    if isinstance(rates, str):
        counts = [info.model.tokens_at(rate) for rate in BUDGETS]
        if rates != "steps":
            said["dynamic_counts"] = budgets_from_data(model, to_input(samples.flows))
            counts = list(said["dynamic_counts"]["quantiles"].values())
        if rates != "auto":
            staircase = measure_staircase(model, *measured_on, threads or 1)
            said["staircase"] = staircase.model_dump()
            counts = on_steps(counts, staircase)
            say(describe_staircase(staircase))
        rates = rates_of(info.model, counts)
    others = side.subset(~np.isin(side.names, samples.names))
    if judges and not len(others):
        raise InputError(
            f"calibration takes all {len(side)} clips of the training side of {side.source}, and none is left "
            "to judge a drop of UAR on: ask for fewer with --calibration-samples"
        )
    judged = draw(others, JUDGED_SAMPLES)[0] if judges else others
    log.info(describe_calibration(record, info.provenance, min(PROOF_SAMPLES, len(samples))))
    return ExportJob(model, info, rates, samples, judged, dict(options or {}), max_uar_drop), side, said


def _set_aside(job: ExportJob, side: FlowDataset, loss: float) -> FlowDataset:
    """Returns samples to calibrate a cascade on."""
    if len(job.rates) < 2:
        raise InputError("a cascade needs two budgets: name more with --budgets")
    if list(side.label_names) != job.info.labels:
        raise InputError(
            f"data {side.source} has the classes {', '.join(side.label_names)}, {job.info.model.name} answers "
            f"{', '.join(job.info.labels)}: a cascade cannot be calibrated on it"
        )
    used = [*job.calibration.names, *(job.judged.names if job.max_uar_drop is not None else ())]
    samples = cascade_samples(side, used)
    check_reach(samples.labels, samples.subjects, loss)
    return samples


def _to_judge(
    variants: Sequence[Variant], job: ExportJob, side: FlowDataset, aside: FlowDataset | None
) -> tuple[FlowDataset | None, str]:
    """Returns the samples that budgets are judged on; None, and why, where their answers would say nothing."""
    if len(variants) == 1:
        return None, "there is no other variant"
    if job.info.model.kind == "vit":
        return None, "a full-token ViT is there to be compared with"
    if job.info.provenance.get("kind") == "random":
        return None, "its weights are random"
    if list(side.label_names) != job.info.labels:
        return None, f"data {side.source} has other classes than the model"
    used = [*job.calibration.names, *(() if aside is None else aside.names)]
    return judging_samples(side, used), ""


@dataclass(frozen=True)
class TracedBudget:
    """One token budget: what every target builds from, and what its artifacts are proven against."""

    keep_rate: float
    graph: Graph
    macs: MacCount
    reference: Reference


def trace_budgets(job: ExportJob, folder: Path) -> dict[int, TracedBudget]:
    """Traces one fp32 graph per budget and writes them with shared weights; by token count."""
    config = job.info.model
    count = min(PROOF_SAMPLES, len(job.calibration))
    places = np.linspace(0, len(job.calibration) - 1, count).round().astype(np.intp)
    flows = job.calibration.flows[places]
    traced: dict[int, TracedBudget] = {}
    for rate in progress(job.rates, "tracing graphs"):
        tokens = config.tokens_at(rate)
        static = to_static(job.model, tokens)
        model = _traced(static, tokens, job)
        add_metadata(model, job.info.labels, job.info.preprocess)
        macs = count_macs(static, (torch.zeros(1, *config.input_shape),))
        if macs.uncounted:
            say(f"MACs at {tokens} tokens leave out operators without a formula: {', '.join(macs.uncounted)}")
        graph = Graph(folder / f"{config.name}-k{tokens}.onnx", model)
        reference = eager_reference(job.model, tokens, flows)
        require_dependence(reference)
        traced[tokens] = TracedBudget(rate, graph, macs, reference)
    models = {budget.graph.path: budget.graph.model for budget in traced.values()}
    write_sharing_weights(models, folder / "weights.bin")
    return traced


def _traced(static: nn.Module, tokens: int, job: ExportJob) -> ModelProto:
    """Returns the graph of a budget; out of the cache, where other targets or options were built from it before."""
    if job.identity is None:
        return trace(static, job.info.model)
    graphs, key = DiskCache("graphs"), cache_key({**job.identity, "tokens": tokens})
    found = graphs.fetch(key, lambda stream: ModelProto.FromString(stream.read()))
    if found is None:
        found = trace(static, job.info.model)
        content = found.SerializeToString()

        def write(stream: BinaryIO) -> None:
            stream.write(content)

        graphs.store(key, write)
        graphs.shrink()
    return found


def build(
    job: ExportJob, target: Target, precision: str, traced: Mapping[int, TracedBudget], stage: Path
) -> tuple[Mapping[int, Artifact], dict[str, Any] | None]:
    """Builds all budgets in one precision.

    Returns:
        The artifacts by token count; with `max_uar_drop`, int8 ones that hold it, and the record of what that took.

    Raises:
        JobError: the target's tools refuse a graph, or int8 loses more than `max_uar_drop`.
    """
    info = job.info
    graphs = {tokens: budget.graph for tokens, budget in traced.items()}

    def sparing(layers: Sequence[str]) -> Mapping[int, Artifact]:
        options = {key: value for key, value in job.options.items() if key in target.options.model_fields}
        if layers:
            options["keep_float"] = list(dict.fromkeys([*options.get("keep_float", ()), *layers]))
        return target.build(
            BuildRequest(
                name=info.model.name,
                graphs=graphs,
                precision=precision,
                folder=stage,
                labels=info.labels,
                preprocess=info.preprocess,
                calibration=job.calibration_inputs,
                options=options,
            )
        )

    if precision != "int8" or job.max_uar_drop is None:
        return sparing(()), None
    judged, classes = job.judged, len(info.labels)
    expected = {}
    for tokens in traced:
        answers = predict_logits(job.model, judged.flows, tokens)[0].argmax(axis=1)
        expected[tokens] = uar(confusion(judged.labels, answers, classes))
    samples = JudgedSamples(to_input(judged.flows), judged.labels, classes, expected)
    return build_within(
        job.max_uar_drop,
        target,
        sparing,
        samples,
        lambda: rank_layers(graphs[min(graphs)], job.calibration_inputs),
    )


def prove_all(
    job: ExportJob, target: Target, precision: str, traced: Mapping[int, TracedBudget],
    artifacts: Mapping[int, Artifact], accuracy: dict[str, Any] | None, stage: Path, threads: int | None = None,
) -> list[Variant]:  # fmt: skip
    """Compares what was built in one precision with the eager model, and describes it for the manifest.

    Args:
        accuracy: what keeping to `max_uar_drop` took, see `build`.
        threads: `Session`'s default, where a processor is what runs the artifact.

    Raises:
        ParityError: a variant misses its limit.
    """
    variants = []
    for tokens, budget in progress(list(traced.items()), f"{target.name} {precision}"):
        artifact = artifacts[tokens]
        name = variant_id(job.info.model.name, target.name, precision, tokens)
        runs_on = artifact.runs_on
        if threads is not None and find_runtime(target.name).is_threaded:
            runs_on = {**runs_on, "threads": threads}
        built_with = {"torch": version("torch"), **artifact.built_with}
        variants.append(
            Variant(
                id=name,
                target=target.name,
                keep_rate=budget.keep_rate,
                tokens=tokens,
                precision=precision,
                artifact=artifact.path.relative_to(stage).as_posix(),
                files=[describe_file(stage, path) for path in artifact.files],
                macs=budget.macs.total,
                macs_uncounted=budget.macs.uncounted,
                parameters=count_parameters(job.model),
                parity=prove(name, precision, budget.reference, budget.graph, target, artifact),
                built_with=built_with if accuracy is None else {**built_with, "accuracy": accuracy},
                runs_on=runs_on,
            )
        )
    return variants


def fetch_bundle(key: str, out: Path) -> Bundle | None:
    """Copies a bundle out of the cache to `out`, or returns None and leaves `out` as it is.

    Raises:
        JobError: `out` cannot be written.
    """

    def unpack(stream: BinaryIO) -> Bundle:
        with staged_folder(out) as stage:
            try:
                with tarfile.open(fileobj=stream, mode="r:") as archive:
                    archive.extractall(stage, filter="data")
                return _checked(stage)
            except (tarfile.TarError, InputError) as error:
                raise SpoiledEntryError(str(error)) from None

    return DiskCache("bundles").fetch(key, unpack)


def store_bundle(key: str, folder: Path) -> None:
    """Keeps a copy of a bundle in the cache, if it is what its manifest says."""
    try:
        _checked(folder)
    except InputError as error:
        log.warning("cache: %s is not kept: %s", folder, error)
        return

    def pack(stream: BinaryIO) -> None:
        with tarfile.open(fileobj=stream, mode="w") as archive:
            archive.add(folder, arcname=".")

    kept = DiskCache("bundles")
    kept.store(key, pack)
    kept.shrink()


def _checked(folder: Path) -> Bundle:
    """Reads a bundle of which every file is what the manifest says.

    Raises:
        InputError: one is not.
    """
    bundle = read_bundle(folder)
    for variant in bundle.variants:
        check_files(folder, variant)
    return bundle


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


def surroundings() -> dict[str, Any]:
    """Returns the parts of a key that no call names: versions of the tools, source, and the machine.

    Of the machine what decides which kernels are picked: processor, instruction sets, and each GPU with its driver.
    Nothing of it changes while a machine runs, and no tool is imported.
    """
    cpu = describe_cpu()
    return {
        "tools": installed(TOOLS),
        "code": code_digest(),
        "hardware": {
            "cpu": {key: cpu[key] for key in ("model", "architecture", "flags")},
            "gpus": [
                {key: gpu.get(key) for key in ("name", "compute_cap", "driver_version")}
                for gpu in describe_gpus()
            ],
        },
    }


def data_fingerprint(name: str, root: Path | None) -> str:
    """Returns what tells one state of a data set from another, without reading the files.

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
