"""A variant's row in the record, out of what was measured of it, and the file of its raw samples."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.bundle import Variant
from ptsr_edge.core.config import ModelConfig
from ptsr_edge.core.errors import InputError
from ptsr_edge.evaluate.evaluation import is_random
from ptsr_edge.models.macs import MacCount, eager_macs, explain, exported_macs
from ptsr_edge.profile.schema import NOT_RUN, Accuracy, Ceiling, Measured, Stages
from ptsr_edge.profile.timing import (
    DRIFT_LIMIT,
    INTERVAL_LIMIT,
    WARM_UP_RUNS,
    WARM_UP_S,
    TimingConfig,
    ratios_to,
)
from ptsr_edge.profile.variants import Entry, shown_path
from ptsr_edge.profile.worker import SETTLE_RUNS, RawTiming
from ptsr_edge.stats.latency import (
    CV_LIMIT,
    Ratio,
    lag_one_correlation,
    latency_summary,
    ratio_interval,
    round_ratios,
)

CPU_SHARE_LIMIT = 0.97
"""A single-threaded process that had its core for less of the timed time was not alone."""

TAIL_SAMPLES = 10
"""Percentiles with fewer samples beyond them are called weak."""


def timing_notes(timing: RawTiming, baseline: RawTiming, target: str, threads: int) -> list[str]:
    """What a reader has to know of one variant's latency.

    Args:
        timing: of the variant.
        baseline: of the baseline; the same object for the baseline itself.
        target: what the variant runs on.
        threads: how many it may use.
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
    if threads == 1 and target != "trt" and timing.cpu_share < CPU_SHARE_LIMIT:
        notes.append(
            f"the process had a core for {timing.cpu_share:.0%} of the timed time: it was not alone on it"
        )
        if timing is not baseline:
            ratio = ratio_interval(_cpu_per_run(baseline), _cpu_per_run(timing), against="")
            notes.append(
                f"by CPU time instead of wall time it is {ratio.median:.2f} [{ratio.low:.2f}, "
                f"{ratio.high:.2f}] times as fast: on a busy machine, the fairer figure"
            )
    if timing is not baseline and timing.processes == 1:
        correlation = lag_one_correlation(round_ratios(baseline.blocks_ns, timing.blocks_ns))
        if correlation > 2 / math.sqrt(len(timing.blocks_ns)):
            notes.append(
                f"neighbouring rounds resemble each other (correlation {correlation:.2f}): the ratio's "
                "interval is too narrow"
            )
    if timing.predict_ms is not None:
        notes.append(
            f"a whole predict call takes {timing.predict_ms:.3g} ms at the median, normalising included"
        )
    if timing.peak_rss_bytes is None:
        notes.append("peak memory was not measured: this system does not tell it")
    elif timing.base_rss_bytes is not None:
        notes.append(
            f"{timing.base_rss_bytes / 1e6:.0f} MB of the peak memory are Python, numpy and the runtime"
        )
    if timing.ceiling is not None and timing.ceiling["why"]:
        notes.append(f"there is no ceiling: {timing.ceiling['why']}")
    if timing.stages is None:
        notes.append("stages were not timed")
    elif timing.stages["flow_ms"] is None:
        notes.append(
            "the stages flow and strain were not timed: no OpenCV, or the model takes ready-made flow"
        )
    if timing.throughput_per_s is None:
        notes.append("throughput was not measured: all runs are synchronous")
    if timing.energy_mj is None and timing.energy_why:
        notes.append(f"energy was not measured: {timing.energy_why}")
    return notes


def _cpu_per_run(timing: RawTiming) -> list[NDArray[np.float64]]:
    """Per round, (1,) mean CPU nanoseconds of a run."""
    return [np.array([cpu / len(b)]) for cpu, b in zip(timing.cpu_ns, timing.blocks_ns, strict=True)]


def mac_figures(config: ModelConfig, variant: Variant, artifact: Path) -> tuple[dict[str, Any], list[str]]:
    """The fields of `profile_record.Measured` about multiply-adds, and what is to be said about them.

    Args:
        config: of the model.
        variant: whose manifest holds the count of the exported graph.
        artifact: what the runtime opens; only ONNX graphs can be counted themselves.
    """
    graph, notes = graph_count(artifact)
    eager = eager_count(config, variant.tokens)
    uncounted = dict(variant.macs_uncounted)
    for count in (graph, eager):
        uncounted |= {} if count is None else count.uncounted
    if uncounted:
        met = ", ".join(f"{name} ({times}x)" for name, times in sorted(uncounted.items()))
        notes.append(f"MACs leave out operators without a formula: {met}")
    if graph is not None and graph.total != variant.macs:
        notes.append(f"the artifact's own graph has {graph.total} MACs, its source {variant.macs}")
    return {
        "macs": variant.macs,
        "macs_by_operator": None if graph is None else graph.by_operator,
        "macs_eager": None if eager is None else eager.total,
        "macs_graph": None if graph is None else graph.total,
        "macs_uncounted": uncounted,
        "macs_explained": _explained(config, variant, eager),
    }, notes


def graph_count(artifact: Path) -> tuple[MacCount | None, list[str]]:
    """What the graph that runs takes; None and why, where it cannot be counted."""
    if artifact.suffix != ".onnx":
        return None, [
            "the artifact's own graph is not ONNX: its MACs are those of the graph that it was built from"
        ]
    if find_spec("onnx") is None:
        return None, ["MACs by operator were not counted: the package onnx is not installed"]
    from ptsr_edge.models.macs import onnx_macs

    try:
        return onnx_macs(artifact), []
    except InputError:
        return None, ["MACs by operator were not counted: the artifact is no readable ONNX model"]


@lru_cache(maxsize=64)
def eager_count(config: ModelConfig, tokens: int) -> MacCount | None:
    """What the model takes as it is written, by fvcore; None where torch or fvcore is not installed."""
    if find_spec("torch") is None or find_spec("fvcore") is None:
        return None
    import torch

    from ptsr_edge.models.macs import count_macs
    from ptsr_edge.models.ptsr import build_model

    return count_macs(build_model(config), (torch.zeros(1, *config.input_shape), tokens))


def _explained(config: ModelConfig, variant: Variant, eager: MacCount | None) -> str:
    """Why the counts differ; where the closed form does not give them, that is said instead."""
    if find_spec("torch") is None:  # the scores' entries, which the closed form asks, need it
        return "not explained: torch is not installed"
    written = sum(eager_macs(config, variant.tokens).values())
    exported = sum(exported_macs(config, variant.tokens).values())
    if variant.macs != exported or (eager is not None and eager.total != written):
        return f"not explained: the closed form gives {written:,} as written and {exported:,} exported"
    return explain(config, variant.tokens)


SAMPLES = "samples"


def samples_file(name: str) -> str:
    """Where a variant's raw samples lie, relative to the profile."""
    return f"{SAMPLES}/{name.replace('/', '--')}.npz"


def write_samples(path: Path, timing: RawTiming) -> None:
    """Writes (n,) `samples_ns` int64, `round` int32 and `launch` int32: which start of the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        samples_ns=timing.samples_ns,
        round=timing.rounds.astype(np.int32),
        launch=timing.launch_of_samples.astype(np.int32),
    )


def measured(
    entry: Entry,
    references: Sequence[Entry],
    timings: Mapping[str, RawTiming],
    refusals: Mapping[str, str],
    accuracy: Accuracy | None,
    data: str | None,
    setting: TimingConfig,
) -> Measured:
    """The row of one variant; what was not measured of it is null, and a note says why.

    Args:
        entry: the variant.
        references: the baseline, and after it the ViT's variants in other targets and precisions.
        timings: by id, of all that ran.
        refusals: by id, why the others did not.
        accuracy: through this artifact.
        data: the name of what accuracy was judged on, None where it was not asked for.
        setting: of the timing.
    """
    variant, reference = entry.variant, references[0]
    counted, notes = mac_figures(entry.bundle.model, variant, entry.folder / variant.artifact)
    notes += _accuracy_notes(entry, reference, accuracy, data)
    figures: dict[str, Any] = {}
    if entry.id in refusals:
        told = NOT_RUN if variant.target == "trt" else "could not be run here, so nothing was timed"
        notes.insert(0, f"{told}: {refusals[entry.id]}")
    else:
        timing, base = timings[entry.id], timings[reference.id]
        summary = latency_summary(timing.samples_ns)
        figures = {
            "load_ms": timing.load_ms,
            "first_ms": timing.first_ms,
            "latency_ms": summary,
            "ratio": _ratio(entry, reference, timings, setting.seed),
            "ratio_same_precision": _ratio(entry, _fair(entry, references, timings), timings, setting.seed),
            "peak_rss_bytes": timing.peak_rss_bytes,
            "throughput_per_s": timing.throughput_per_s,
            "streams": timing.streams,
            "energy_mj": timing.energy_mj,
            "stages": None if timing.stages is None else Stages(**timing.stages),
            "ceiling": _ceiling(timing.ceiling, variant.macs, summary.p50),
            "raw_samples": samples_file(entry.id),
        }
        notes = timing_notes(timing, base, variant.target, setting.threads) + notes
        if figures["ratio"] is not None and figures["ratio_same_precision"] is None:
            kind = f"{variant.precision} on {variant.target}"
            notes.append(f"there is no ratio within {kind}: the baseline was not given so")
    return Measured(
        id=entry.id,
        bundle=entry.shown,
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
        **figures,
    )


def _fair(entry: Entry, references: Sequence[Entry], timings: Mapping[str, RawTiming]) -> Entry | None:
    """The ViT in the variant's own target and precision, where it was timed."""
    kind = (entry.variant.target, entry.variant.precision)
    alike = [
        other
        for other in references
        if other.id in timings and (other.variant.target, other.variant.precision) == kind
    ]
    return alike[0] if alike else None


def _ratio(entry: Entry, to: Entry | None, timings: Mapping[str, RawTiming], seed: int) -> Ratio | None:
    if to is None or to.id == entry.id:
        return None
    return ratios_to({to.id: timings[to.id], entry.id: timings[entry.id]}, to.id, seed)[entry.id]


def _ceiling(found: Mapping[str, Any] | None, macs: int, p50_ms: float) -> Ceiling | None:
    if found is None:
        return None
    reached = macs / (p50_ms * 1e6)  # 10^9 a second
    most = found["gmacs_per_s"]
    return Ceiling(share=None if most is None else reached / most, **found)


def _accuracy_notes(entry: Entry, reference: Entry, accuracy: Accuracy | None, data: str | None) -> list[str]:
    if is_random(entry.bundle):
        return ["accuracy was not measured: the weights are random"]
    if data is None:
        return ["accuracy was not measured: no --data was given"]
    if accuracy is not None and accuracy.uar_drop is None:
        return [f"no drop of UAR: the weights of the baseline {reference.bundle.name} are random"]
    return []


# FOLDED from profile.profile_method: How a profile was made: its setting, the method in words, and the command that repeats it.


def method_of(setting: TimingConfig, timings: Mapping[str, RawTiming]) -> dict[str, Any]:
    """How the figures were made, for the record."""
    some = next(iter(timings.values()))
    return {
        "timed": "Session.infer, synchronous, batch 1: the network alone on a normalised input",
        "clock": "time.perf_counter_ns around each call",
        "processes": "one for each variant, all loaded, one running at a time; all ended and started again "
        f"until there were {some.processes} of each",
        "interleaving": f"{len(some.blocks_ns)} rounds; in each, every variant runs one block, in an order "
        f"drawn anew; a block has at least {setting.block} runs and takes the same time for all",
        "warm_up": f"at least {WARM_UP_S:g} s and {WARM_UP_RUNS} runs, and "
        f"{SETTLE_RUNS} untimed runs at the start of each block",
        "least_duration_s": setting.duration_s,
        "least_runs": setting.min_runs,
        "threads": setting.threads,
        "pinned": setting.pin,
        "seed": setting.seed,
        "outliers": "none removed; all samples lie beside this file",
        "ratio": ratio_text(some.processes),
        "unstable": f"measured again, up to {setting.attempts} times in all, where a ratio was known to less than "
        f"{INTERVAL_LIMIT:.0%}, the baseline drifted by more than {DRIFT_LIMIT:.0%} or a core was shared",
        "throughput": f"{setting.streams} sessions in threads of one process"
        if setting.streams
        else "not measured",
        "energy": some.energy_why or "not measured",
        "load": "Session.open: manifest, SHA-256 of all files, loading or compiling; the import comes before",
        "memory": "VmHWM of the process that runs one variant, Python and runtime included",
        "macs": "one multiply-add counts as one; matrix products and convolutions only",
        "accuracy": "through the same artifacts, one sample at a time",
    }


def ratio_text(processes: int) -> str:
    """How a ratio came about."""
    inside = "median over rounds of (block median of the baseline / block median of the variant)"
    if processes == 1:
        return f"{inside}, 95 % percentile bootstrap over rounds: how processes differ is not in it"
    return f"geometric mean over processes of the {inside}, 95 % bootstrap over processes, widened for few"


def command_of(
    folders: Sequence[Path],
    out: Path,
    baseline: Path | None,
    data: str | None,
    root: Path | None,
    setting: TimingConfig,
) -> str:
    """What reproduces the run; folders as `shown_path` names them."""
    words = [word for folder in folders for word in ("--bundle", shown_path(folder))]
    if baseline is not None:
        words += ["--baseline", shown_path(baseline)]
    if data is not None:
        words += ["--data", data]
    if root is not None:
        words += ["--root", shown_path(root)]
    for name, value in (
        ("--duration-s", setting.duration_s),
        ("--min-runs", setting.min_runs),
        ("--threads", setting.threads),
        ("--seed", setting.seed),
    ):
        words += [name, f"{value:g}"]
    for name, number in (
        ("--processes", setting.processes), ("--attempts", setting.attempts), ("--streams", setting.streams),
    ):  # fmt: skip
        words += [name, str(number)]
    words += ["--pin"] if setting.pin else []
    return shlex.join(["python", "-m", "ptsr_edge.profile", *words, "--out", shown_path(out)])
