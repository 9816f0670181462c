"""What an application calls: a bundle in, predictions out. Needs numpy and one runtime.

session = Session.open("bundle", budget=0.25)
prediction = session.predict(flow)
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.errors import InputError, JobError
from ptsr_edge.flow import check_flow, to_input
from ptsr_edge.manifest import Bundle, Variant, check_files, read_bundle
from ptsr_edge.target import Runner

RUNNERS = {
    "cpu": ("ptsr_edge.backend_ort", "OrtRunner"),
    "openvino": ("ptsr_edge.backend_openvino", "OpenVinoRunner"),
    "trt": ("ptsr_edge.backend_trt", "TrtRunner"),
}
"""Who runs a target's artifacts: module and class, imported when an artifact is opened."""


@dataclass(frozen=True)
class Prediction:
    """The answer for one flow sample.

    Attributes:
        label: the most probable class.
        probabilities: softmax over the logits, by label.
        kept_tokens: (K,) row-major indices of the patches that the answer was read from.
        logits: (k,) float32.
        budget: keep rate of the variant that answered.
    """

    label: str
    probabilities: dict[str, float]
    kept_tokens: NDArray[np.int64]
    logits: NDArray[np.float32]
    budget: float


class Session:
    """A bundle, one of its variants at work. Not thread-safe: open one session a thread.

    Budgets can be switched without loading again: each variant is loaded once and kept.
    """

    def __init__(self, bundle: Bundle, folder: Path, variant: Variant, threads: int | None) -> None:
        """Use `Session.open`."""
        self.bundle = bundle
        self._folder = folder
        self._threads = threads
        self._loaded: dict[str, Runner] = {}
        self._use(variant)

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        *,
        budget: float | None = None,
        target: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
    ) -> Session:
        """Opens a bundle's variant.

        Args:
            bundle: a folder that `ptsr-edge export` made.
            budget: keep rate; by default the largest there is.
            target: by default the first one that can run here.
            precision: by default the first one in the bundle.
            threads: of one operator; by default the runtime's choice.

        Raises:
            InputError: no bundle there, a file that has changed, or no such variant.
            MissingExtraError: the runtime is not installed.
            JobError: the runtime refuses the artifact.
        """
        if threads is not None and threads < 1:
            raise InputError(f"threads must be at least 1, got {threads}")
        folder = Path(bundle)
        manifest = read_bundle(folder)
        return cls(manifest, folder, choose_variant(manifest, budget, target, precision), threads)

    def switch(self, budget: float) -> None:
        """Answers at another budget from now on, in the same target and precision.

        The first switch to a budget loads its graph; later ones cost nothing.

        Raises:
            InputError: the bundle has no such variant.
        """
        self._use(choose_variant(self.bundle, budget, self.variant.target, self.variant.precision))

    def _use(self, variant: Variant) -> None:
        if variant.id not in self._loaded:
            check_files(self._folder, variant)
            self._loaded[variant.id] = open_artifact(variant, self._folder, self._threads)
        self.variant = variant
        self._runner = self._loaded[variant.id]

    def predict(self, flow: NDArray[np.float32]) -> Prediction:
        """Classifies one sample.

        Args:
            flow: (H, W, 3) float32: u, v in pixels and strain, before normalisation.

        Raises:
            InputError: wrong shape or type, or NaN or infinite values.
            JobError: the runtime gave an answer that is not finite.
        """
        check_flow(flow, self.bundle.preprocess.image_size)
        logits, kept = self.infer(to_input(flow))
        if not np.isfinite(logits).all():
            raise JobError(f"{self.variant.id} answered {logits.tolist()}: not finite")
        weights = np.exp(logits.astype(np.float64) - logits.max())
        shares = weights / weights.sum()
        labels = self.bundle.labels
        return Prediction(
            label=labels[int(logits.argmax())],
            probabilities={label: float(share) for label, share in zip(labels, shares, strict=True)},
            kept_tokens=kept,
            logits=logits,
            budget=self.variant.keep_rate,
        )

    def infer(self, flow: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The network alone: normalised (1, 3, H, W) float32 -> logits (k,), kept patches (K,)."""
        logits, kept = self._runner.run(flow)
        return logits, np.arange(self.bundle.model.patches) if kept is None else kept


def open_artifact(variant: Variant, folder: Path, threads: int | None) -> Runner:
    """Loads a variant by the runtime of its target.

    Raises:
        InputError: a target that this version does not know.
        MissingExtraError: the runtime is not installed.
        JobError: the runtime refuses the artifact.
    """
    if variant.target not in RUNNERS:
        raise InputError(
            f"{variant.id} is for target {variant.target!r}, which this version cannot run; "
            f"it runs: {', '.join(RUNNERS)}"
        )
    module, name = RUNNERS[variant.target]
    runner: Runner = getattr(importlib.import_module(module), name)(folder / variant.artifact, threads)
    return runner


def choose_variant(
    bundle: Bundle, budget: float | None, target: str | None, precision: str | None
) -> Variant:
    """The variant that was asked for; what is left open is the first or, for the budget, the largest.

    Raises:
        InputError: there is none; the message lists what the bundle has.
    """
    fits = [
        variant
        for variant in bundle.variants
        if target in (None, variant.target) and precision in (None, variant.precision)
    ]
    if budget is not None:
        if not 0 < budget <= 1:
            raise InputError(f"a budget is a keep rate in (0, 1], got {budget:g}")
        tokens = bundle.model.tokens_at(budget)
        fits = [variant for variant in fits if variant.tokens == tokens]
    if not fits:
        asked = f"target {target or 'any'}, precision {precision or 'any'}, budget {budget or 'any'}"
        have = ", ".join(f"{v.target}/{v.precision}/{v.keep_rate:g}" for v in bundle.variants)
        raise InputError(f"the bundle has no variant with {asked}; it has {have}")
    first = (fits[0].target, fits[0].precision)
    return max((v for v in fits if (v.target, v.precision) == first), key=lambda v: v.tokens)
