"""DTSM beside its controls at equal budget, and what its dynamic mode would keep: same weights, same samples.

A selection has shown something where it beats random tokens and plain strain energy. All go through the eager
model, since an artifact has its selection inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ptsr_edge.bundle import Bundle
from ptsr_edge.core.config import ModelConfig
from ptsr_edge.core.console import progress
from ptsr_edge.core.errors import InputError
from ptsr_edge.core.files import sha256_of
from ptsr_edge.data.datasets import FlowData
from ptsr_edge.export.calibration import budgets_from_data
from ptsr_edge.models.checkpoint import embedded_checkpoint, load_checkpoint
from ptsr_edge.models.ptsr import Ptsr, build_model, random_tokens, static_selection, strain_scores
from ptsr_edge.profile.schema import Control, Dynamic
from ptsr_edge.stats.classification import Classes, confusion, gain_interval, uar
from ptsr_edge.vision.flow import to_input

BATCH = 64


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


def compare_selections(model: Ptsr, data: FlowData, budgets: Sequence[int], seeds: int) -> list[Control]:
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
            gain, low, high = gain_interval(data.labels, ours, answers, data.subjects)
            controls.append(
                Control(
                    tokens=tokens, selection=name, seeds=len(answers), uar=_mean_uar(data, answers), gain=gain,
                    gain_low=low, gain_high=high,
                )
            )  # fmt: skip
    return controls


def dynamic_record(
    bundle: Bundle, model: Ptsr | None, data: FlowData | None, config: ModelConfig
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


def _mean_uar(data: FlowData, runs: Sequence[Classes]) -> float:
    classes = len(data.label_names)
    return float(np.mean([uar(confusion(data.labels, answers, classes)) for answers in runs]))
