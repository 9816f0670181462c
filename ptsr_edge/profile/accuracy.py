"""The accuracy part of a profile: every variant on the same samples, and what its differences are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ptsr_edge.bundle import Bundle
from ptsr_edge.core.console import say
from ptsr_edge.core.errors import InputError
from ptsr_edge.evaluate.evaluation import is_random
from ptsr_edge.profile.judge import judge, kept_patches
from ptsr_edge.profile.schema import Accuracy, Control, Dynamic, Judged, KeptPatches
from ptsr_edge.profile.variants import Entry
from ptsr_edge.stats.classification import paired_bootstrap

if TYPE_CHECKING:
    from ptsr_edge.data.datasets import FlowData
    from ptsr_edge.models.ptsr import Ptsr

Samples = tuple["FlowData", str]
"""What is judged, and how that choice is named."""


@dataclass(frozen=True)
class Judgement:
    """What a profile says of accuracy; empty where nothing was judged."""

    accuracies: dict[str, Accuracy] = field(default_factory=dict)
    judged: Judged | None = None
    kept: KeptPatches | None = None
    controls: list[Control] | None = None
    dynamic_counts: Dynamic | None = None


def check_control_seeds(seeds: int) -> None:
    """Raises InputError for a negative number of draws."""
    if seeds < 0:
        raise InputError(f"--control-seeds is a number of draws, 0 for no controls, got {seeds}")


def judge_entries(
    entries: Sequence[Entry],
    baselines: int,
    samples: Samples | None,
    refusals: Mapping[str, str],
    threads: int,
    *,
    checkpoint: Path | None = None,
    control_seeds: int = 0,
) -> Judgement:
    """Judges every variant that can run here, the baseline first.

    Args:
        entries: the baseline, other variants of the ViT, then those of the bundles.
        baselines: how many of them are the ViT's.
        samples: what to judge on; None: nothing is judged.
        refusals: ids of what cannot run here.
        threads: CPU threads of an artifact.
        checkpoint: of the bundles, for the controls; None: the embedded one, if it is that.
        control_seeds: draws of random selection; 0: DTSM is not set against its controls.

    Raises:
        InputError: the checkpoint is another one than the bundles'.
        JobError: an artifact gives an answer that is not finite.
    """
    first = entries[baselines].bundle
    if samples is None:
        return Judgement(dynamic_counts=_dynamic(first, None, None))
    data, protocol = samples
    model = _eager(first, checkpoint) if control_seeds or checkpoint else None
    say(f"judging on {data.source}, {protocol}: {len(data)} samples of {len(data.subject_names)} subjects")
    runnable = [entry for entry in entries if entry.id not in refusals]
    found = {
        entry.id: judge(entry.folder, entry.variant, data, protocol, threads)
        for entry in runnable
        if not is_random(entry.bundle)
    }
    controls = None
    if model is not None and control_seeds:
        from ptsr_edge.profile.controls import compare_selections

        tokens = [entry.variant.tokens for entry in entries[baselines:]]
        controls = compare_selections(model, data, tokens, control_seeds) or None
    elif control_seeds:
        say("no controls of DTSM: the weights of the bundle are not at hand; name them with --checkpoint")
    return Judgement(
        accuracies=against_baseline(found, entries[0].id, data),
        judged=judged_record(data),
        kept=kept_patches(
            first,
            {
                entry.id: (entry.folder, entry.variant)
                for entry in runnable
                if entry not in entries[:baselines]
            },
            data,
        ),
        controls=controls,
        dynamic_counts=_dynamic(first, model, data),
    )


def against_baseline(found: Mapping[str, Accuracy], baseline: str, data: FlowData) -> dict[str, Accuracy]:
    """Each accuracy with its drop of UAR against the baseline's, and the drop's 95 % interval."""
    base = found.get(baseline)
    if base is None:
        return dict(found)
    results = {}
    for name, accuracy in found.items():
        _, low, high = paired_bootstrap(
            data.labels, np.array(base.predicted), np.array(accuracy.predicted), data.subjects,
            classes=len(data.label_names),
        )  # fmt: skip
        figures = {"uar_drop": base.uar - accuracy.uar, "uar_drop_low": low, "uar_drop_high": high}
        results[name] = accuracy.model_copy(update=figures)
    return results


def judged_record(data: FlowData) -> Judged:
    """The truth, and subjects as numbers in the order in which they first appear."""
    numbers: dict[str, int] = {}
    places = [numbers.setdefault(str(subject), len(numbers)) for subject in data.subjects]
    return Judged(truth=data.labels.tolist(), subject=places)


def _eager(bundle: Bundle, checkpoint: Path | None) -> Ptsr | None:
    from ptsr_edge.profile.controls import eager_model

    return eager_model(bundle, checkpoint)


def _dynamic(bundle: Bundle, model: Ptsr | None, data: FlowData | None) -> Dynamic | None:
    if data is None and "dynamic_counts" not in bundle.provenance:
        return None
    from ptsr_edge.profile.controls import dynamic_record

    return dynamic_record(bundle, model, data, bundle.model)
