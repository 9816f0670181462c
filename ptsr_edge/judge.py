"""Accuracy of variants through their artifacts, all on the same samples, and what they keep of a few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ptsr_edge.errors import InputError, require
from ptsr_edge.manifest import Bundle, Variant
from ptsr_edge.profile_record import Accuracy, KeptPatches
from ptsr_edge.worker_process import open_variant

if TYPE_CHECKING:
    from ptsr_edge.data import FlowData

SHAREABLE = ("synthetic",)
"""Data whose samples may be shown in a profile; recorded data may not be passed on."""

SHOWN_PER_CLASS = 2


def is_random(bundle: Bundle) -> bool:
    """Whether a bundle's weights were never trained: its answers mean nothing."""
    return bundle.provenance.get("kind") == "random"


def judged_data(name: str, root: Path | None, bundles: Sequence[Bundle]) -> tuple[FlowData, str]:
    """The samples that none of the bundles was trained on, and how to name that choice.

    Args:
        name: of the data set.
        root: its folder; synthetic data needs none.
        bundles: of one input size and one list of labels.

    Raises:
        InputError: unknown data, other classes than the bundles', or no subject left.
        MissingExtraError: what reads the data is not installed.
    """
    require("torch", "train", "judging accuracy")
    from ptsr_edge.data import load
    from ptsr_edge.evaluate import judged_samples

    first = bundles[0]
    known = first.provenance.get("held_out_subjects") if first.provenance.get("data") == name else None
    data = load(name, root, image_size=first.preprocess.image_size, subjects=known or None)
    if list(data.label_names) != first.labels:
        raise InputError(
            f"data {name} has the classes {', '.join(data.label_names)}; "
            f"{first.name} answers {', '.join(first.labels)}"
        )
    protocol = ""
    for bundle in bundles:
        whole = len(data)
        data, named = judged_samples(data, bundle.provenance, everyone=False)
        protocol = "held-out subjects" if known or len(data) < whole else protocol or named
    return data, protocol


def judge(folder: Path, variant: Variant, data: FlowData, protocol: str, threads: int) -> Accuracy:
    """UF1, UAR and confusion of one variant, one sample at a time as a camera would.

    Raises:
        JobError: the artifact cannot be run here, or gives an answer that is not finite.
    """
    from ptsr_edge.evaluate import evaluate_session
    from ptsr_edge.protocol import figures

    record = figures(data, evaluate_session(open_variant(folder, variant, threads), data))
    return Accuracy(
        data=data.source,
        protocol=protocol,
        n=record["n"],
        uf1=record["uf1"],
        uar=record["uar"],
        uar_drop=None,
        confusion=record["confusion"],
    )


def kept_patches(
    bundle: Bundle, variants: Mapping[str, tuple[Path, Variant]], data: FlowData
) -> KeptPatches | None:
    """A few samples of each class with the patches that each variant keeps of them.

    None for data whose samples may not be passed on (see `SHAREABLE`).

    Args:
        bundle: of the model that all variants are of.
        variants: by the id under which the profile lists them.
        data: samples that were judged.
    """
    if data.source not in SHAREABLE:
        return None
    places = [
        int(place)
        for label in range(len(data.label_names))
        for place in np.flatnonzero(data.labels == label)[:SHOWN_PER_CLASS]
    ]
    kept = {}
    for name, (folder, variant) in variants.items():
        session = open_variant(folder, variant, threads=1)
        kept[name] = [sorted(session.predict(data.flows[place]).kept_tokens.tolist()) for place in places]
    return KeptPatches(
        data=data.source,
        grid=bundle.model.grid,
        names=[data.names[place] for place in places],
        labels=[data.label_names[int(data.labels[place])] for place in places],
        strain=[_grey(data, place) for place in places],
        kept=kept,
    )


def _grey(data: FlowData, place: int) -> list[list[int]]:
    """A sample's strain (H, W), its largest value at 255."""
    strain = data.flows[place, ..., 2]
    top = max(float(strain.max()), 1e-12)
    grey: list[list[int]] = np.clip(np.round(255 * strain / top), 0, 255).astype(int).tolist()
    return grey
