"""The accuracy part of a profile: every variant on the same samples, and what its differences are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ptsr_edge.bundle import Bundle, Variant
from ptsr_edge.core.config import ModelConfig
from ptsr_edge.core.console import progress, say
from ptsr_edge.core.errors import InputError
from ptsr_edge.core.files import sha256_of
from ptsr_edge.data.datasets import FlowDataset
from ptsr_edge.evaluate.evaluation import is_random
from ptsr_edge.export.calibration import budgets_from_data
from ptsr_edge.models.checkpoint import embedded_checkpoint, load_checkpoint
from ptsr_edge.models.ptsr import (
    Ptsr,
    build_model,
    random_tokens,
    selects_before_embedding,
    static_selection,
    strain_scores,
)
from ptsr_edge.profile.schema import Accuracy, Control, Dynamic, Judged, KeptPatches
from ptsr_edge.profile.variants import Entry
from ptsr_edge.session import open_variant
from ptsr_edge.stats.classification import Classes, confusion, paired_bootstrap, uar
from ptsr_edge.vision.flow import to_input

if TYPE_CHECKING:
    from ptsr_edge.data.datasets import FlowDataset
    from ptsr_edge.models.ptsr import Ptsr

# FOLDED from profile.judge: Accuracy of variants through their artifacts, all on the same samples, and what they keep of a few.

if TYPE_CHECKING:
    from ptsr_edge.data.datasets import FlowDataset

SHOWN_PER_CLASS = 1

PICTURE_SIDE = 56
"""Largest side of a recorded strain image: enough to see, small enough for a record that is text."""


def judge(folder: Path, variant: Variant, data: FlowDataset, protocol: str, threads: int) -> Accuracy:
    """UF1, UAR and confusion of one variant, one sample at a time as a camera would.

    Raises:
        JobError: the artifact cannot be run here, or gives an answer that is not finite.
    """
    from ptsr_edge.evaluate.evaluation import evaluate_session, scores_of

    answers = evaluate_session(open_variant(folder, variant, threads), data)
    record = scores_of(data, answers)
    return Accuracy(
        data=data.source,
        protocol=protocol,
        n=record["n"],
        uf1=record["uf1"],
        uar=record["uar"],
        uar_drop=None,
        confusion=record["confusion"],
        predicted=answers.tolist(),
    )


def kept_patches(
    bundle: Bundle, variants: Mapping[str, tuple[Path, Variant]], data: FlowDataset
) -> KeptPatches | None:
    """A sample of each class with the patches that each variant keeps of it.

    Variants that keep all are left out. None for data whose samples may not be passed on.

    Args:
        bundle: of the model that all variants are of.
        variants: by the id under which the profile lists them.
        data: samples that were judged.
    """
    from ptsr_edge.data.datasets import known_dataset

    entry = known_dataset(data.source)
    if entry is None or not entry.may_be_shown:
        return None
    places = [
        int(place)
        for label in range(len(data.label_names))
        for place in np.flatnonzero(data.labels == label)[:SHOWN_PER_CLASS]
    ]
    kept = {}
    for name, (folder, variant) in variants.items():
        if variant.tokens == bundle.model.patches:
            continue
        session = open_variant(folder, variant, threads=1)
        kept[name] = [sorted(session.predict(data.flows[place]).kept_tokens.tolist()) for place in places]
    return KeptPatches(
        data=data.source,
        grid=bundle.model.grid,
        names=[data.names[place] for place in places],
        labels=[data.label_names[int(data.labels[place])] for place in places],
        strain=[grey_picture(data.flows[place, ..., 2], bundle.model.grid) for place in places],
        kept=kept,
        depth=bundle.model.depth,
        select_block=-1 if selects_before_embedding(bundle.model) else bundle.model.select_block,
    )


def grey_picture(strain: NDArray[np.float32], grid: int) -> list[list[int]]:
    """Strain (S, S) as grey values 0..255, the largest at 255.

    Block means of at most `PICTURE_SIDE` a side, such that patches are still whole numbers of pixels.
    """
    size = len(strain)
    fits = (step for step in range(1, size // grid + 1) if size % (step * grid) == 0)
    step = next((step for step in fits if size // step <= PICTURE_SIDE), 1)
    means = strain.reshape(size // step, step, size // step, step).mean(axis=(1, 3))
    top = max(float(means.max()), 1e-12)
    grey: list[list[int]] = np.clip(np.round(255 * means / top), 0, 255).astype(int).tolist()
    return grey


BATCH = 64

RESAMPLES = 4000


def eager_model(bundle: Bundle, checkpoint: Path | None) -> Ptsr | None:
    """The eager model with a bundle's weights: of the checkpoint, else of the embedded one if it is that.

    Returns:
        None where no checkpoint was named and the embedded weights are others.

    Raises:
        InputError: the checkpoint named is not the one that the bundle was exported from.
    """
    path = checkpoint or embedded_checkpoint(bundle.name)
    if path is None or not path.is_file():
        if checkpoint is not None:
            raise InputError(f"{checkpoint} does not exist")
        return None
    if sha256_of(path) != bundle.provenance.get("checkpoint_sha256"):
        if checkpoint is not None:
            raise InputError(f"{checkpoint} is not the checkpoint that {bundle.name} was exported from")
        return None
    model, _ = load_checkpoint(path)
    return model.eval() if isinstance(model, Ptsr) else None


def compare_selections(model: Ptsr, data: FlowDataset, budgets: Sequence[int], seeds: int) -> list[Control]:
    """DTSM, random selection and strain energy at each budget below all tokens.

    Args:
        model: eager PTSR.
        data: what is judged.
        budgets: in tokens.
        seeds: draws of the random selection: its gain is over their mean. At least 1.

    Returns:
        By budget: DTSM, then its controls. Where DTSM selects by strain itself, that is no control and is left
        out.
    """
    controls = []
    inputs = to_input(data.flows)
    strain = strain_scores(torch.from_numpy(inputs), model.config.patch_size)
    wanted = [tokens for tokens in sorted(set(budgets), reverse=True) if tokens < model.config.patches]
    for tokens in progress(wanted, "DTSM against its controls"):
        ours = [_answers(model, inputs, tokens, None)]
        controls.append(Control(tokens=tokens, selection="DTSM", seeds=1, uar=_mean_uar(data, ours)))
        others = {
            "random": [
                _answers(model, inputs, tokens, random_tokens(len(data), model.config.patches, tokens, seed))
                for seed in range(seeds)
            ]
        }
        if model.config.score != "strain":
            others["strain"] = [_answers(model, inputs, tokens, static_selection(strain, tokens))]
        for name, answers in others.items():
            gain, low, high = paired_bootstrap(
                data.labels, np.stack(ours), np.stack(answers), data.subjects, resamples=RESAMPLES,
                classes=len(data.label_names),
            )  # fmt: skip
            controls.append(
                Control(
                    tokens=tokens, selection=name, seeds=len(answers), uar=_mean_uar(data, answers), gain=gain,
                    gain_low=low, gain_high=high,
                )
            )  # fmt: skip
    return controls


def dynamic_record(
    bundle: Bundle, model: Ptsr | None, data: FlowDataset | None, config: ModelConfig
) -> Dynamic | None:
    """Counts of DTSM's dynamic mode: the export's on calibration samples, else made here on judged ones.

    A selection by strain needs no weights. None where nothing can be counted.
    """
    said = bundle.provenance.get("dynamic_counts")
    if said is not None:
        name = str((bundle.provenance.get("calibration") or {}).get("data", "unknown data"))
        return Dynamic(data=name, on="calibration", mass=said["mass"], counts=said["counts"])
    if data is None or config.kind != "ptsr":
        return None
    if model is None and config.score == "strain":
        built = build_model(config)
        model = built if isinstance(built, Ptsr) else None
    if model is None:
        return None
    found = budgets_from_data(model, to_input(data.flows))
    return Dynamic(data=data.source, on="judged", mass=found["mass"], counts=found["counts"])


def _answers(model: Ptsr, inputs: NDArray[np.float32], tokens: int, forced: torch.Tensor | None) -> Classes:
    parts = []
    with torch.no_grad():
        for start in range(0, len(inputs), BATCH):
            chosen = None if forced is None else forced[start : start + BATCH]
            output = model(torch.from_numpy(inputs[start : start + BATCH]), tokens, chosen)
            parts.append(output.logits.argmax(dim=1).numpy())
    return np.concatenate(parts)


def _mean_uar(data: FlowDataset, runs: Sequence[Classes]) -> float:
    classes = len(data.label_names)
    return float(np.mean([uar(confusion(data.labels, answers, classes)) for answers in runs]))


Samples = tuple["FlowDataset", str]
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


def against_baseline(found: Mapping[str, Accuracy], baseline: str, data: FlowDataset) -> dict[str, Accuracy]:
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


def judged_record(data: FlowDataset) -> Judged:
    """The truth, and subjects as numbers in the order in which they first appear."""
    numbers: dict[str, int] = {}
    places = [numbers.setdefault(str(subject), len(numbers)) for subject in data.subjects]
    return Judged(truth=data.labels.tolist(), subject=places)


def _eager(bundle: Bundle, checkpoint: Path | None) -> Ptsr | None:

    return eager_model(bundle, checkpoint)


def _dynamic(bundle: Bundle, model: Ptsr | None, data: FlowDataset | None) -> Dynamic | None:
    if data is None and "dynamic_counts" not in bundle.provenance:
        return None

    return dynamic_record(bundle, model, data, bundle.model)
