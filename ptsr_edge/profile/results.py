"""A variant's row in the record, out of what was measured of it, and the file of its raw samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ptsr_edge.evaluate.evaluation import is_random
from ptsr_edge.profile.profile_macs import mac_figures
from ptsr_edge.profile.profile_notes import timing_notes
from ptsr_edge.profile.schema import NOT_RUN, Accuracy, Ceiling, Measured, Stages
from ptsr_edge.profile.timing import Setting, ratios_to
from ptsr_edge.profile.variants import Entry
from ptsr_edge.profile.worker import RawTiming
from ptsr_edge.stats.latency import Ratio, latency_summary

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
    setting: Setting,
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
