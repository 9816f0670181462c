"""Accuracy of variants through their artifacts, all on the same samples, and what they keep of a few."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.bundle import Bundle, Variant
from ptsr_edge.profile.schema import Accuracy, KeptPatches
from ptsr_edge.session import open_variant

if TYPE_CHECKING:
    from ptsr_edge.data.datasets import FlowData

SHAREABLE = ("synthetic",)
"""Data whose samples may be shown in a profile; recorded data may not be passed on."""

SHOWN_PER_CLASS = 1

PICTURE_SIDE = 56
"""Largest side of a recorded strain image: enough to see, small enough for a record that is text."""


def judge(folder: Path, variant: Variant, data: FlowData, protocol: str, threads: int) -> Accuracy:
    """UF1, UAR and confusion of one variant, one sample at a time as a camera would.

    Raises:
        JobError: the artifact cannot be run here, or gives an answer that is not finite.
    """
    from ptsr_edge.evaluate.evaluation import evaluate_session, figures

    answers = evaluate_session(open_variant(folder, variant, threads), data)
    record = figures(data, answers)
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
    bundle: Bundle, variants: Mapping[str, tuple[Path, Variant]], data: FlowData
) -> KeptPatches | None:
    """A sample of each class with the patches that each variant keeps of it.

    Variants that keep all are left out. None for data whose samples may not be passed on (see
    `SHAREABLE`).

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
        select_block=-1 if bundle.model.selects_before_embedding else bundle.model.select_block,
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
