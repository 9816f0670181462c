"""A checkpoint becomes a bundle: static token-budget variants, each proven before it is written.

The stages: resolve the model, draw calibration samples, choose budgets, trace one graph a budget, build
each precision of each target, prove every variant against the eager model, write the bundle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from ptsr_edge.bundle import Bundle, Variant, bundle_card, write_bundle
from ptsr_edge.core.config import DEFAULT_MODEL
from ptsr_edge.core.console import say
from ptsr_edge.core.disk_cache import cache_key
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.core.files import staged_folder
from ptsr_edge.data.datasets import FlowData
from ptsr_edge.export.build import JUDGED_SAMPLES, Job, build_and_prove, trace_budgets
from ptsr_edge.export.cache import BundleCache, data_fingerprint, surroundings
from ptsr_edge.export.calibration import budgets_from_data, calibration_side, draw
from ptsr_edge.export.cascade import calibrate, cascade_samples, check_reach
from ptsr_edge.export.plan import Rates, check_budgets, check_options, check_out, check_targets, rates_of
from ptsr_edge.export.targets.base import Target
from ptsr_edge.export.targets.onnxruntime import CpuTarget
from ptsr_edge.export.targets.openvino import OpenVinoTarget
from ptsr_edge.export.targets.tensorrt import TrtTarget
from ptsr_edge.models.checkpoint import CheckpointInfo, resolve
from ptsr_edge.models.ptsr import Model
from ptsr_edge.vision.flow import to_input

TARGETS: dict[str, Target] = {target.name: target for target in (CpuTarget(), OpenVinoTarget(), TrtTarget())}

THREADED = ("cpu", "openvino")
"""Targets whose artifacts run on processor threads; an engine of `trt` runs on a GPU."""

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
        target: one or more of `TARGETS`.
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
        options: what a target understands besides; see its `build`.
        cache: serve a bundle made before from the same inputs by the same tools.

    Raises:
        InputError: something in the call is not acceptable; nothing was started.
        ParityError: a variant misses its limit; nothing was written.
        JobError: anything else failed; nothing was written, except where no engine could be built here:
            then the bundle holds the checked graphs and what builds them on the device.
    """
    check_out(out)
    plan = check_targets([target] if isinstance(target, str) else target, precisions, TARGETS)
    check_options(options or {}, plan)
    loaded, info, digest = resolve(checkpoint, model or (None if checkpoint else DEFAULT_MODEL))
    rates = check_budgets(info, budgets)
    quantizes = any("int8" in wanted for _, wanted in plan)
    count = calibration_samples or (CALIBRATION_SAMPLES if quantizes else PROOF_ONLY_SAMPLES)
    wanted = [[builder.name, names] for builder, names in plan]
    source = [calibration_data, count, data_fingerprint(calibration_data or "", calibration)]
    call = [digest, wanted, rates, source, max_uar_drop, cascade_loss, threads, dict(options or {})]
    key = cache_key({"call": call, **surroundings()}) if cache else ""
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
) -> tuple[Job, FlowData, dict[str, Any]]:  # fmt: skip
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
    return Job(model, info, rates, samples, judged, dict(options or {}), max_uar_drop), side, said


def _set_aside(job: Job, side: FlowData, loss: float) -> FlowData:
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
    out: Path, job: Job, plan: Sequence[tuple[Target, list[str]]], provenance: dict[str, Any],
    threads: int | None, aside: tuple[FlowData, float] | None,
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
    if threads is None or variant.target not in THREADED:
        return variant
    return variant.model_copy(update={"runs_on": {**variant.runs_on, "threads": threads}})
