"""Test data: profiles whose variants have answers by sample, drawn from a seeded generator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from report_data import LABELS, make_profile, write_profile

from ptsr_edge.profile.schema import Control, Judged, Profile
from ptsr_edge.stats.classification import confusion, uar

CONTROLS = [
    Control(tokens=98, selection="DTSM", seeds=1, uar=0.80),
    Control(tokens=98, selection="random", seeds=3, uar=0.79, gain=0.01, gain_low=-0.02, gain_high=0.04),
    Control(tokens=98, selection="strain", seeds=1, uar=0.75, gain=0.05, gain_low=0.02, gain_high=0.08),
]


def judged_profile(
    folder: Path,
    *,
    worse: Mapping[float, float],
    samples: int = 900,
    subjects: int = 300,
    right: float = 0.85,
    precisions: tuple[str, ...] = ("fp32",),
) -> Profile:
    """Writes a profile in which a variant of keep rate r answers wrong where its reference was right, on a share
    `worse[r]` of the subjects (all of their samples); the reference is right on a share `right` of the samples.
    """
    profile = make_profile(folder, precisions=precisions, samples=200)
    rng = np.random.default_rng(1)
    truth = np.arange(samples) % 3
    subject = np.arange(samples) * subjects // samples
    reference = np.where(rng.random(samples) < right, truth, (truth + 1) % 3)
    order = rng.permutation(subjects)
    rows = []
    for row in profile.variants:
        lost = np.isin(
            subject, order[: round(subjects * (0 if row.bundle is None else worse[row.keep_rate]))]
        )
        answers = np.where(lost, (truth + 2) % 3, reference)
        counts = confusion(truth, answers, len(LABELS))
        assert row.accuracy is not None
        figures = {
            "n": samples, "uar": uar(counts), "predicted": answers.tolist(), "confusion": counts.tolist(),
            "uar_drop": uar(confusion(truth, reference, 3)) - uar(counts), "uar_drop_low": -0.01, "uar_drop_high": 0.03,
        }  # fmt: skip
        rows.append(row.model_copy(update={"accuracy": row.accuracy.model_copy(update=figures)}))
    judged = Judged(truth=truth.tolist(), subject=subject.tolist())
    profile = profile.model_copy(update={"variants": rows, "judged": judged, "controls": CONTROLS})
    write_profile(folder, profile)
    return profile
