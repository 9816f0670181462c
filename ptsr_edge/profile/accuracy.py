"""The accuracy part of a profile: every variant through its artifact, on the same samples of the same people.

The differences are paired by subject. Beside them stand a few samples with the patches that variants keep, and what
only the eager model can tell: DTSM against random selection and strain energy at the same budget, and the counts of
its dynamic mode. Those two alone need torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.bundle import Bundle, Variant
from ptsr_edge.core.config import ModelConfig
from ptsr_edge.core.console import progress, say
from ptsr_edge.core.errors import InputError
from ptsr_edge.core.files import sha256_of
from ptsr_edge.data.datasets import FlowDataset, known_dataset
from ptsr_edge.evaluate.evaluation import evaluate_session, is_random, scores_of
from ptsr_edge.profile.schema import Accuracy, Control, Dynamic, Judged, KeptPatches
from ptsr_edge.profile.worker import ProfiledVariant
from ptsr_edge.session import open_variant
from ptsr_edge.stats.classification import Classes, confusion, paired_bootstrap, uar
from ptsr_edge.vision.flow import to_input

if TYPE_CHECKING:
    import torch

    from ptsr_edge.models.ptsr import Ptsr

SHOWN_PER_CLASS = 1

PICTURE_SIDE = 56
"""Largest side of a recorded strain image: enough to see, small enough for a record that is text."""

BATCH = 64


@dataclass(frozen=True)
class AccuracyResults:
    """The parts of a profile about accuracy, as `schema.Profile` names them; empty where nothing was judged."""

    accuracies: dict[str, Accuracy] = field(default_factory=dict)
    judged: Judged | None = None
    kept_patches: KeptPatches | None = None
    controls: list[Control] | None = None
    dynamic_counts: Dynamic | None = None


def evaluate_variants(
    references: Sequence[ProfiledVariant],
    variants: Sequence[ProfiledVariant],
    samples: tuple[FlowDataset, str] | None,
    refused: Collection[str],
    threads: int,
    *,
    checkpoint: Path | None = None,
    control_seeds: int = 0,
) -> AccuracyResults:
    """Evaluates every variant that can run here.

    Args:
        references: the baseline, and after it the ViT's other variants.
        variants: those of the bundles, of one model.
        samples: the data to judge on, and how the choice of its subjects is named; None: nothing is judged.
        refused: ids of variants that cannot run here.
        threads: CPU threads of an artifact.
        checkpoint: of the bundles, for the eager model; None: the embedded one, if the bundles are of that.
        control_seeds: draws of random selection; 0: DTSM is not compared with other selections.

    Raises:
        InputError: the checkpoint is another one than the bundles'.
        JobError: an artifact gives an answer that is not finite.
    """
    bundle = variants[0].bundle
    if samples is None:
        return AccuracyResults(dynamic_counts=dynamic_record(bundle, None, None))
    data, protocol = samples
    model = eager_model(bundle, checkpoint) if control_seeds or checkpoint else None
    say(f"judging on {data.source}, {protocol}: {len(data)} samples of {len(data.subject_names)} subjects")
    found = {
        one.id: evaluate_variant(one.folder, one.variant, data, protocol, threads)
        for one in (*references, *variants)
        if one.id not in refused and not is_random(one.bundle)
    }
    controls = None
    if model is not None and control_seeds:
        budgets = [one.variant.tokens for one in variants]
        controls = compare_selections(model, data, budgets, control_seeds) or None
    elif control_seeds:
        say(
            "DTSM is not compared with random and strain selection: the weights of the bundle are not at hand; "
            "name them with --checkpoint"
        )
    shown = {one.id: (one.folder, one.variant) for one in variants if one.id not in refused}
    return AccuracyResults(
        accuracies=against_baseline(found, references[0].id, data),
        judged=judged_record(data),
        kept_patches=kept_patches(bundle, shown, data),
        controls=controls,
        dynamic_counts=dynamic_record(bundle, model, data),
    )


def evaluate_variant(
    folder: Path, variant: Variant, data: FlowDataset, protocol: str, threads: int
) -> Accuracy:
    """Calculates UF1, UAR and confusion of one variant, one sample at a time as a camera would.

    Raises:
        JobError: the artifact cannot be run here, or gives an answer that is not finite.
    """
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


def against_baseline(found: Mapping[str, Accuracy], baseline: str, data: FlowDataset) -> dict[str, Accuracy]:
    """Adds to each accuracy its drop of UAR against the baseline's, and the drop's 95 % interval."""
    base = found.get(baseline)
    if base is None:
        return dict(found)
    results = {}
    for name, accuracy in found.items():
        _, low, high = paired_bootstrap(
            data.labels, np.array(base.predicted), np.array(accuracy.predicted), data.subjects,
            classes=len(data.label_names),
        )  # fmt: skip
        drop = {"uar_drop": base.uar - accuracy.uar, "uar_drop_low": low, "uar_drop_high": high}
        results[name] = accuracy.model_copy(update=drop)
    return results


def judged_record(data: FlowDataset) -> Judged:
    """Records the truth, and subjects as numbers in the order in which they first appear."""
    numbers: dict[str, int] = {}
    places = [numbers.setdefault(str(subject), len(numbers)) for subject in data.subjects]
    return Judged(truth=data.labels.tolist(), subject=places)


def kept_patches(
    bundle: Bundle, variants: Mapping[str, tuple[Path, Variant]], data: FlowDataset
) -> KeptPatches | None:
    """Records a sample of each class with the patches that each variant keeps of it.

    Variants that keep all are left out.

    Args:
        bundle: of the model that all variants are of.
        variants: folder and variant by the id under which the profile lists it.
        data: samples that were judged.

    Returns:
        None for data whose samples may not be passed on (see `data.datasets.DatasetEntry`).
    """
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
        if variant.tokens < bundle.model.patches:
            session = open_variant(folder, variant, threads=1)
            kept[name] = [sorted(session.predict(data.flows[place]).kept_tokens.tolist()) for place in places]
    return KeptPatches(
        data=data.source,
        grid=bundle.model.grid,
        names=[data.names[place] for place in places],
        labels=[data.label_names[int(data.labels[place])] for place in places],
        strain=[gray_picture(data.flows[place, ..., 2], bundle.model.grid) for place in places],
        kept=kept,
        depth=bundle.model.depth,
        select_block=_select_block(bundle.model),
    )


def _select_block(config: ModelConfig) -> int | None:
    """Returns the block after which tokens are dropped, -1 before the embedding; None without torch, whose models know."""
    if find_spec("torch") is None:
        return None
    from ptsr_edge.models.ptsr import selects_before_embedding

    return -1 if selects_before_embedding(config) else config.select_block


def gray_picture(strain: NDArray[np.float32], grid: int) -> list[list[int]]:
    """Turns strain (S, S) into gray values 0..255, the largest at 255.

    Takes block means of at most `PICTURE_SIDE` a side, such that patches are still whole numbers of pixels.
    """
    size = len(strain)
    fits = (step for step in range(1, size // grid + 1) if size % (step * grid) == 0)
    step = next((step for step in fits if size // step <= PICTURE_SIDE), 1)
    means = strain.reshape(size // step, step, size // step, step).mean(axis=(1, 3))
    top = max(float(means.max()), 1e-12)
    gray: list[list[int]] = np.clip(np.round(255 * means / top), 0, 255).astype(int).tolist()
    return gray


RESAMPLES = 4000


def eager_model(bundle: Bundle, checkpoint: Path | None) -> Ptsr | None:
    """Loads the eager model with the weights of a bundle: of the checkpoint, else of the embedded one if it is that.

    Returns:
        None where no checkpoint was named and the embedded weights are others.

    Raises:
        InputError: the checkpoint named is not the one that the bundle was exported from.
    """
    from ptsr_edge.models.checkpoint import embedded_checkpoint, load_checkpoint
    from ptsr_edge.models.ptsr import Ptsr

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
    """Compares DTSM with random selection and strain energy at each budget below all tokens.

    Args:
        model: eager PTSR.
        data: the samples to judge on.
        budgets: in tokens.
        seeds: draws of the random selection: its gain is over their mean. At least 1.

    Returns:
        By budget: DTSM, then its baselines. Where DTSM selects by strain itself, strain is left out.
    """
    import torch

    from ptsr_edge.models.ptsr import random_tokens, static_selection, strain_scores

    def mean_uar(runs: Sequence[Classes]) -> float:
        classes = len(data.label_names)
        return float(np.mean([uar(confusion(data.labels, answers, classes)) for answers in runs]))

    controls = []
    inputs = to_input(data.flows)
    strain = strain_scores(torch.from_numpy(inputs), model.config.patch_size)
    patches = model.config.patches
    wanted = [tokens for tokens in sorted(set(budgets), reverse=True) if tokens < patches]
    for tokens in progress(wanted, "DTSM beside other selections"):
        ours = [_answers(model, inputs, tokens, None)]
        controls.append(Control(tokens=tokens, selection="DTSM", seeds=1, uar=mean_uar(ours)))
        others = {
            "random": [
                _answers(model, inputs, tokens, random_tokens(len(data), patches, tokens, seed))
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
                    tokens=tokens, selection=name, seeds=len(answers), uar=mean_uar(answers), gain=gain,
                    gain_low=low, gain_high=high,
                )
            )  # fmt: skip
    return controls


def _answers(model: Ptsr, inputs: NDArray[np.float32], tokens: int, forced: torch.Tensor | None) -> Classes:
    """Returns the classes (n,) of normalised samples, with the tokens (n, K) that are forced on the model."""
    import torch

    parts = []
    with torch.no_grad():
        for start in range(0, len(inputs), BATCH):
            chosen = None if forced is None else forced[start : start + BATCH]
            output = model(torch.from_numpy(inputs[start : start + BATCH]), tokens, chosen)
            parts.append(output.logits.argmax(dim=1).numpy())
    return np.concatenate(parts)


def dynamic_record(bundle: Bundle, model: Ptsr | None, data: FlowDataset | None) -> Dynamic | None:
    """Counts the tokens of DTSM's dynamic mode: the export's counts on calibration samples, else made on `data`.

    A selection by strain needs no weights. None where nothing can be counted.
    """
    config, said = bundle.model, bundle.provenance.get("dynamic_counts")
    if said is not None:
        name = str((bundle.provenance.get("calibration") or {}).get("data", "unknown data"))
        return Dynamic(data=name, on="calibration", mass=said["mass"], counts=said["counts"])
    if data is None or config.kind != "ptsr" or (model is None and config.score != "strain"):
        return None
    from ptsr_edge.export.calibration import budgets_from_data
    from ptsr_edge.models.ptsr import Ptsr, build_model

    counting = model or build_model(config)
    if not isinstance(counting, Ptsr):
        return None
    found = budgets_from_data(counting, to_input(data.flows))
    return Dynamic(data=data.source, on="judged", mass=found["mass"], counts=found["counts"])
