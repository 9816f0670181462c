"""From measurements to the record: the row of one variant with its reasons, its raw samples, and the method in words."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ptsr_edge.bundle import Variant, files_digest
from ptsr_edge.core.config import ModelConfig
from ptsr_edge.core.errors import InputError
from ptsr_edge.evaluate.evaluation import is_random
from ptsr_edge.models.macs import MacCount, eager_macs, explain, exported_macs
from ptsr_edge.profile.schema import (
    ITSELF,
    Accuracy,
    Ceiling,
    Measured,
    Missing,
    Stages,
    needs_gpu,
    null_results,
)
from ptsr_edge.profile.timing import (
    DRIFT_LIMIT,
    INTERVAL_LIMIT,
    WARM_UP_RUNS,
    TimingConfig,
    ratio_between,
)
from ptsr_edge.profile.worker import SETTLE_RUNS, ProfiledVariant, RawTiming, all_runs, shown_path
from ptsr_edge.session import settings_text
from ptsr_edge.stats.latency import (
    CV_LIMIT,
    Ratio,
    lag_one_correlation,
    latency_summary,
    ratio_interval,
    round_ratios,
)

ALONE_SHARE = 0.97
"""A single-threaded process that had its core for less of the timed time was not alone on it."""

TAIL_SAMPLES = 10
"""Percentiles with fewer samples beyond them are called weak."""

SAMPLES = "samples"

Reasons = dict[str, Missing]
"""Why results are missing, by field."""

NOT_MEASURED: Reasons = {
    "peak_rss_bytes": Missing(
        kind="not_supported", reason="peak memory was not measured: this system does not tell it"
    ),
    "base_rss_bytes": Missing(
        kind="not_supported",
        reason="the memory of the runtime alone was not measured: this system does not tell it",
    ),
    "predict_ms": Missing(kind="not_asked", reason="a whole predict call was not timed"),
    "sample_ms": Missing(kind="not_asked", reason="a whole sample was not timed"),
    "ratio_sample": Missing(kind="not_asked", reason="a whole sample was not timed"),
    "operators_run": Missing(kind="not_asked", reason="operators were not counted"),
    "instructions": Missing(kind="not_asked", reason="instructions were not counted"),
    "stages": Missing(kind="not_asked", reason="stages were not timed"),
    "ceiling": Missing(kind="not_asked", reason="the ceiling was not measured"),
    "energy_mj": Missing(kind="not_asked", reason="energy was not measured: only the latency was asked for"),
    "throughput_per_s": Missing(
        kind="not_asked", reason="throughput was not measured: all runs are synchronous"
    ),
    "accuracy": Missing(
        kind="random_weights", reason="accuracy was not measured: the weights of the model are random"
    ),
}
"""Why results of a variant that ran are missing, where the measurement itself does not say why."""

LEFT_OUT = {
    "stages": "time by stage",
    "ceiling": "the ceiling",
    "energy_mj": "energy",
    "throughput_per_s": "throughput",
}
"""Results of a variant that a quick run leaves out."""


def measured(
    profiled: ProfiledVariant,
    references: Sequence[ProfiledVariant],
    timings: Mapping[str, RawTiming],
    refusals: Mapping[str, Missing],
    accuracy: Accuracy | None,
    data: str | None,
    config: TimingConfig,
) -> Measured:
    """Builds the row of one variant, with a reason for each result that is null.

    Args:
        profiled: the variant.
        references: the baseline, and after it the ViT's variants in other targets and precisions.
        timings: by id, of all that ran.
        refusals: by id, why the others did not.
        accuracy: through this artifact.
        data: the name of the data that accuracy was judged on, None where it was not asked for.
        config: of the timing.
    """
    variant = profiled.variant
    counted, reasons, notes = mac_results(profiled.bundle.model, variant, profiled.folder / variant.artifact)
    reasons |= _accuracy_reasons(profiled, references[0], accuracy, data)
    timed: dict[str, Any] = {}
    refusal = refusals.get(profiled.id)
    if refusal is None:
        timed, more = _timed_results(profiled, references, timings, config)
        reasons = NOT_MEASURED | _left_out(config) | timings[profiled.id].missing | more | reasons
        notes = (
            timing_notes(
                timings[profiled.id],
                timings[references[0].id],
                timed["ratio"],
                is_alone=config.threads == 1 and not needs_gpu(variant.target),
            )
            + notes
        )
    row = Measured(
        id=profiled.id,
        bundle=profiled.shown,
        files_sha256=files_digest(variant),
        target=variant.target,
        precision=variant.precision,
        keep_rate=variant.keep_rate,
        tokens=variant.tokens,
        parameters=variant.parameters,
        size_bytes=sum(file.bytes for file in variant.files),
        accuracy=accuracy,
        int8_layers=variant.built_with.get("accuracy"),
        notes=notes,
        **counted,
        **timed,
    )
    unknown = null_results(row)
    if refusal is not None:
        reasons = dict.fromkeys(unknown, refusal) | reasons
    return row.model_copy(update={"missing": {name: reasons[name] for name in unknown}})


def _left_out(config: TimingConfig) -> Reasons:
    return {
        name: Missing(kind="not_asked", reason=f"{what}: left out of a quick run")
        for name, what in LEFT_OUT.items()
        if config.quick
    }


def _timed_results(
    profiled: ProfiledVariant,
    references: Sequence[ProfiledVariant],
    timings: Mapping[str, RawTiming],
    config: TimingConfig,
) -> tuple[dict[str, Any], Reasons]:
    """Returns the fields of a variant that ran, and why ratios are missing."""
    timing, baseline = timings[profiled.id], references[0]
    summary = latency_summary(timing.samples_ns)
    reasons: Reasons = {}
    itself = Missing(kind="not_applicable", reason=ITSELF)
    ratio, cpu_ratio = None, None
    on_gpu = any(needs_gpu(one.variant.target) for one in (profiled, baseline))
    ask: dict[str, Any] = {"threads": config.threads, "on_gpu": on_gpu, "seed": config.seed}
    if profiled.id == baseline.id:
        reasons |= dict.fromkeys(("ratio", "ratio_cpu_time", "ratio_sample"), itself)
    else:
        base = timings[baseline.id]
        ratio = _ratio_or_reason(
            "ratio", ratio_between(base.blocks, timing.blocks, baseline.id, **ask), reasons
        )
        cpu_ratio = _ratio_or_reason(
            "ratio_cpu_time", _cpu_ratio(profiled, baseline, timings, config), reasons
        )
    sample_ms, sample_ratio = None, None
    if timing.whole:
        sample_ms = float(np.median(all_runs(timing.whole).wall_ns)) / 1e6
        if profiled.id != baseline.id:
            found = ratio_between(timings[baseline.id].whole, timing.whole, baseline.id, **ask)
            sample_ratio = _ratio_or_reason("ratio_sample", found, reasons)
    fair = [one.id for one in references if one.id in timings and one.kind == profiled.kind]
    same_precision = None
    if not fair:
        kind = f"{profiled.variant.precision} on {profiled.variant.target}"
        reason = f"there is no ratio within {kind}: the baseline was not given so"
        reasons["ratio_same_precision"] = Missing(kind="no_counterpart", reason=reason)
    elif fair[0] == profiled.id:
        reasons["ratio_same_precision"] = itself
    else:
        found = ratio_between(timings[fair[0]].blocks, timing.blocks, fair[0], **ask)
        same_precision = _ratio_or_reason("ratio_same_precision", found, reasons)
    return {
        "load_ms": timing.load_ms,
        "first_ms": timing.first_ms,
        "latency_ms": summary,
        "cpu_share": timing.cpu_share,
        "ratio": ratio,
        "ratio_same_precision": same_precision,
        "ratio_cpu_time": cpu_ratio,
        "predict_ms": timing.predict_ms,
        "sample_ms": sample_ms,
        "ratio_sample": sample_ratio,
        "operators_run": timing.operators_run,
        "instructions": timing.instructions,
        "peak_rss_bytes": timing.peak_rss_bytes,
        "base_rss_bytes": timing.base_rss_bytes,
        "throughput_per_s": timing.throughput_per_s,
        "streams": timing.streams,
        "energy_mj": timing.energy_mj,
        "stages": None if timing.stages is None else Stages(**timing.stages),
        "ceiling": _ceiling(timing.ceiling, profiled.variant.macs, summary.p50),
        "raw_samples": samples_file(profiled.id),
    }, reasons


def _ratio_or_reason(name: str, found: Ratio | Missing, reasons: Reasons) -> Ratio | None:
    """Returns a ratio, or notes why there is none."""
    if isinstance(found, Ratio):
        return found
    reasons[name] = found
    return None


def _cpu_ratio(
    profiled: ProfiledVariant,
    baseline: ProfiledVariant,
    timings: Mapping[str, RawTiming],
    config: TimingConfig,
) -> Ratio | Missing:
    """Returns the ratio to the baseline by CPU time, which means something for one thread on a processor."""
    on_gpu = any(needs_gpu(one.variant.target) for one in (profiled, baseline))
    if on_gpu or config.threads > 1:
        why = "a process that waits for a GPU" if on_gpu else "several threads"
        return Missing(kind="not_applicable", reason=f"CPU time tells no speed of {why}")
    base, timing = timings[baseline.id], timings[profiled.id]
    if min(int(base.cpu_ns.min()), int(timing.cpu_ns.min())) <= 0:
        return Missing(kind="not_supported", reason="this system's clock of CPU time is too coarse")
    pair = [[np.array([block.cpu_ns.mean()]) for block in one.blocks] for one in (base, timing)]
    launches = [block.launch for block in timing.blocks]
    return ratio_interval(*pair, against=baseline.id, launches=launches, seed=config.seed).model_copy(
        update={"clock": "cpu"}
    )


def _ceiling(found: Mapping[str, Any] | None, macs: int, p50_ms: float) -> Ceiling | None:
    if found is None:
        return None
    most = found["gmacs_per_s"]
    return Ceiling(share=None if most is None else macs / (p50_ms * 1e6) / most, **found)


def _accuracy_reasons(
    profiled: ProfiledVariant, baseline: ProfiledVariant, accuracy: Accuracy | None, data: str | None
) -> Reasons:
    if accuracy is not None:
        reason = f"no drop of UAR: the weights of the baseline {baseline.bundle.name} are random"
        why = Missing(kind="random_weights", reason=reason)
        return dict.fromkeys(("accuracy.uar_drop", "accuracy.uar_drop_low", "accuracy.uar_drop_high"), why)
    if is_random(profiled.bundle):
        why = Missing(kind="random_weights", reason="accuracy was not measured: the weights are random")
        return {"accuracy": why}
    if data is None:
        return {
            "accuracy": Missing(kind="not_asked", reason="accuracy was not measured: no --data was given")
        }
    return {}


def timing_notes(timing: RawTiming, baseline: RawTiming, ratio: Ratio | None, *, is_alone: bool) -> list[str]:
    """Says what a reader has to know of one variant's results.

    Args:
        timing: of the variant.
        baseline: of the baseline; the same object for the baseline itself.
        ratio: times as fast as the baseline; None for the baseline itself, or where it was withheld.
        is_alone: the variant runs on one thread of the processor, which should have a core of its own.
    """
    summary = latency_summary(timing.samples_ns)
    beyond = math.floor(summary.n * 0.01)
    weak = "" if beyond >= TAIL_SAMPLES else ": too few to quote it"
    notes = [f"p99 has {beyond} of {summary.n} samples beyond it{weak}"]
    if summary.cv > CV_LIMIT:
        notes.append(
            f"the latency varies by {summary.cv:.1%} (coefficient of variation): above {CV_LIMIT:.1%} the "
            "mean and the tail say as much about the machine as about the model"
        )
    if is_alone and timing.cpu_share < ALONE_SHARE:
        notes.append(
            f"the process had a core for {timing.cpu_share:.0%} of the timed time: it was not alone on it"
        )
    if ratio is not None and ratio.clock == "cpu":
        notes.append(
            "the ratio is by CPU time, since other processes used the cores: wall time would mislead. Its interval takes in "
            "typical runs and those that were disturbed least"
        )
    elif ratio is not None and ratio.rounds < len(timing.blocks):
        notes.append(
            f"the ratio is of {ratio.rounds} of {len(timing.blocks)} rounds: those in which both had the cores that they needed"
        )
    if timing is not baseline and timing.processes == 1:
        pair = [[block.wall_ns for block in one.blocks] for one in (baseline, timing)]
        correlation = lag_one_correlation(round_ratios(*pair))
        if correlation > 2 / math.sqrt(len(timing.blocks)):
            notes.append(
                f"neighbouring rounds resemble each other (correlation {correlation:.2f}): the ratio's "
                "interval is too narrow"
            )
    if timing.settings:
        notes.append(f"ran with settings that were tuned on this device: {settings_text(timing.settings)}")
    if timing.predict_ms is not None:
        notes.append(
            f"a whole predict call takes {timing.predict_ms:.3g} ms at the median, normalising included"
        )
    if timing.base_rss_bytes is not None and timing.peak_rss_bytes is not None:
        notes.append(
            f"{timing.base_rss_bytes / 1e6:.0f} MB of the peak memory are Python, numpy and the runtime"
        )
    return notes


def mac_results(
    config: ModelConfig, variant: Variant, artifact: Path
) -> tuple[dict[str, Any], Reasons, list[str]]:
    """Counts multiply-adds: the fields of `schema.Measured` about them, why some are missing, and notes.

    Args:
        config: of the model.
        variant: whose manifest holds the count of the exported graph.
        artifact: the file that the runtime opens; only ONNX graphs can be counted themselves.
    """
    reasons: Reasons = {}
    graph, eager = None, None
    if isinstance(in_graph := graph_count(artifact), Missing):
        reasons["macs_graph"] = reasons["macs_by_operator"] = in_graph
    else:
        graph = in_graph
    if isinstance(as_written := eager_count(config, variant.tokens), Missing):
        reasons["macs_eager"] = as_written
    else:
        eager = as_written
    uncounted = dict(variant.macs_uncounted)
    for count in (graph, eager):
        uncounted |= {} if count is None else count.uncounted
    notes = []
    if uncounted:
        met = ", ".join(f"{name} ({times}x)" for name, times in sorted(uncounted.items()))
        notes.append(f"MACs leave out operators without a formula: {met}")
    if graph is not None and graph.total != variant.macs:
        notes.append(f"the artifact's own graph has {graph.total} MACs, its source {variant.macs}")
    fields = {
        "macs": variant.macs,
        "macs_by_operator": None if graph is None else graph.by_operator,
        "macs_eager": None if eager is None else eager.total,
        "macs_graph": None if graph is None else graph.total,
        "macs_uncounted": uncounted,
        "macs_explained": _explained(config, variant, eager),
    }
    return fields, reasons, notes


def graph_count(artifact: Path) -> MacCount | Missing:
    """Counts the graph that runs; or says why it cannot be counted."""
    if artifact.suffix != ".onnx":
        return Missing(
            kind="not_supported",
            reason="the artifact's own graph is not ONNX: its MACs are those of the graph that it was built from",
        )
    not_counted = "MACs by operator were not counted"
    if find_spec("onnx") is None:
        return Missing(kind="not_installed", reason=f"{not_counted}: the package onnx is not installed")
    from ptsr_edge.models.macs import onnx_macs

    try:
        return onnx_macs(artifact)
    except InputError:
        return Missing(kind="failed", reason=f"{not_counted}: the artifact is no readable ONNX model")


@lru_cache(maxsize=64)
def eager_count(config: ModelConfig, tokens: int) -> MacCount | Missing:
    """Counts the model as it is written, by fvcore; or says which package is not installed."""
    gone = [name for name in ("torch", "fvcore") if find_spec(name) is None]
    if gone:
        reason = f"MACs of the model as it is written were not counted: {' and '.join(gone)} not installed"
        return Missing(kind="not_installed", reason=reason)
    import torch

    from ptsr_edge.models.macs import count_macs
    from ptsr_edge.models.ptsr import build_model

    return count_macs(build_model(config), (torch.zeros(1, *config.input_shape), tokens))


def _explained(config: ModelConfig, variant: Variant, eager: MacCount | None) -> str:
    """Says why the counts differ, or that the closed form does not give them."""
    if find_spec("torch") is None:  # the scores' entries, which the closed form asks, need it
        return "not explained: torch is not installed"
    written = sum(eager_macs(config, variant.tokens).values())
    exported = sum(exported_macs(config, variant.tokens).values())
    if variant.macs != exported or (eager is not None and eager.total != written):
        return f"not explained: the closed form gives {written:,} as written and {exported:,} exported"
    return explain(config, variant.tokens)


def samples_file(name: str) -> str:
    """Returns the place of a variant's raw samples, relative to the profile."""
    return f"{SAMPLES}/{name.replace('/', '--')}.npz"


def write_samples(path: Path, timing: RawTiming) -> None:
    """Writes, of inferences, (n,) `samples_ns` and `cpu_ns` int64, `round` and `launch` int32, the start of the process.

    Of whole samples there are (m,) `whole_ns`, `whole_cpu_ns` and `whole_launch` alike; m may be 0.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    runs, whole = all_runs(timing.blocks), all_runs(timing.whole)
    np.savez_compressed(
        path,
        samples_ns=runs.wall_ns,
        cpu_ns=runs.cpu_ns,
        round=runs.round,
        launch=runs.launch,
        whole_ns=whole.wall_ns,
        whole_cpu_ns=whole.cpu_ns,
        whole_launch=whole.launch,
    )


def method_of(config: TimingConfig, timings: Mapping[str, RawTiming]) -> dict[str, Any]:
    """Says for the record how the results were measured."""
    some = next(iter(timings.values()))
    left_out = f"{', '.join(LEFT_OUT.values())} and DTSM against other selections"
    return {
        "quick": config.quick,
        **({"left_out": left_out} if config.quick else {}),
        "timed": "Session.infer, synchronous, batch 1: the network alone on a normalised input",
        "clock": "time.perf_counter_ns around each call; where other processes used the cores, ratios are of undisturbed "
        "rounds alone, else of one thread's CPU time, or withheld",
        "whole_sample": "Session.predict_frames on two crops of the model's size, in rounds of their own",
        "processes": "one for each variant, all loaded, one running at a time; all ended and started again "
        f"until there were {some.processes} of each, in an order drawn anew",
        "interleaving": f"{len(some.blocks)} rounds; in each, every variant runs one block, in an order "
        f"drawn anew; a block has at least {config.block} runs and takes the same time for all",
        "warm_up": f"at least {config.warm_up_s:g} s and {WARM_UP_RUNS} runs, and "
        f"{SETTLE_RUNS} untimed runs at the start of each block",
        "least_duration_s": config.duration_s,
        "least_runs": config.min_runs,
        "threads": config.threads,
        "pinned": config.pin,
        "seed": config.seed,
        "outliers": "none removed; all samples lie beside this file",
        "ratio": ratio_text(some.processes),
        "unstable": f"measured again, up to {config.attempts} times in all, where a ratio was known to less than "
        f"{INTERVAL_LIMIT:.0%} or withheld, or the baseline drifted by more than {DRIFT_LIMIT:.0%}",
        "throughput": f"{config.streams} sessions in threads of one process"
        if config.streams
        else "not measured",
        "energy": some.energy_from or "not measured",
        "load": "Session.open: manifest, SHA-256 of all files, loading or compiling; the import comes before",
        "memory": "VmHWM of the process that runs one variant, Python and runtime included",
        "operators": "one inference, after the runtime's own optimisations: by ONNX Runtime's profiler, by OpenVINO's execution graph",
        "instructions": next((raw.counted_by for raw in timings.values() if raw.counted_by), "not counted"),
        "macs": "one multiply-add counts as one; matrix products and convolutions only",
        "accuracy": "through the same artifacts, one sample at a time",
    }


def ratio_text(processes: int) -> str:
    """Says how a ratio is calculated."""
    inside = "median over rounds of (block median of the baseline / block median of the variant)"
    if processes == 1:
        return f"{inside}, 95 % percentile bootstrap over rounds: how processes differ is not in it"
    return f"geometric mean over processes of the {inside}, 95 % bootstrap over processes, widened for few"


def command_of(
    folders: Sequence[Path],
    out: Path,
    config: TimingConfig,
    *,
    baseline: Path | None = None,
    data: str | None = None,
    root: Path | None = None,
    subjects: int | None = None,
    checkpoint: Path | None = None,
    control_seeds: int = 0,
) -> str:
    """Returns the command that repeats the run; folders as `shown_path` names them, that of the data as DIR."""
    places = [("--bundle", folder) for folder in folders] + [("--baseline", baseline)]
    words = [word for option, place in places if place for word in (option, shown_path(place))]
    words += ["--data", data] if data is not None else []
    words += ["--root", "DIR"] if root is not None else []
    words += ["--subjects", str(subjects)] if subjects is not None else []
    words += ["--quick"] if config.quick else []
    for name in ("duration_s", "min_runs", "threads", "seed"):
        words += [f"--{name.replace('_', '-')}", f"{getattr(config, name):g}"]
    for name in ("processes", "attempts", "streams"):
        words += [f"--{name}", str(getattr(config, name))]
    words += ["--pin"] if config.pin else []
    words += ["--count-instructions"] if config.count_instructions else []
    words += ["--out", shown_path(out)]
    words += ["--checkpoint", shown_path(checkpoint)] if checkpoint is not None else []
    words += ["--control-seeds", str(control_seeds)] if control_seeds and data is not None else []
    return shlex.join(["python", "-m", "ptsr_edge.profile", *words])
