"""What an application calls: a bundle in, predictions out. Needs numpy and one runtime.

session = Session.open("bundle", budget=0.25)
prediction = session.predict(flow)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.bundle import Bundle, Variant, check_files, read_bundle
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.runtimes.base import RUNTIMES, Runner, find_runner
from ptsr_edge.vision.flow import check_flow, to_input


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
    """A bundle, one of its variants at work. Not thread-safe: open one session per thread.

    Budgets can be switched without loading again: each variant is loaded once and kept.
    """

    def __init__(
        self, bundle: Bundle, folder: Path, variant: Variant, threads: int | None, share_weights: bool
    ) -> None:
        """Use `Session.open`."""
        self.bundle = bundle
        self._folder = folder
        self._threads = threads
        self._share_weights = share_weights
        self._loaded: dict[str, Runner] = {}
        self.variant = variant
        self.switch(variant.keep_rate)

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        *,
        budget: float | None = None,
        target: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
        share_weights: bool = False,
    ) -> Session:
        """Opens a bundle's variant.

        Args:
            bundle: a folder that `ptsr-edge export` made.
            budget: keep rate; by default the largest there is.
            target: by default the last of `runtimes.base.RUNTIMES` that can run here.
            precision: by default int8 where its accuracy was judged at the export (`--max-uar-drop`), else
                the first that the bundle has for the target.
            threads: of one operator; by default what the export's recipe said, else the runtime's choice.
            share_weights: let the budgets of this session compute on one copy of the weights, the mapped
                file, for some more time an inference. ONNX Runtime can; the others keep their own copies.

        Raises:
            InputError: no bundle there, a file that has changed, or no such variant.
            MissingExtraError: the runtime is not installed.
            JobError: the runtime refuses the artifact, or none of several can run here.
        """
        if threads is not None and threads < 1:
            raise InputError(f"threads must be at least 1, got {threads}")
        folder = Path(bundle)
        manifest = read_bundle(folder)
        variant = choose_variant(manifest, folder, budget, target, precision)
        return cls(manifest, folder, variant, threads, share_weights)

    def switch(self, budget: float) -> None:
        """Answers at another budget from now on, in the same target and precision.

        The first switch to a budget loads its graph, unless `load` has; later ones cost nothing.

        Raises:
            InputError: the bundle has no such variant.
        """
        variant = self._at(budget)
        self.load(budget)
        self.variant, self._runner = variant, self._loaded[variant.id]

    def load(self, budget: float) -> None:
        """Loads the graph of another budget ahead of a `switch` to it.

        Raises:
            InputError: the bundle has no such variant, or a file has changed.
            JobError: the runtime refuses the artifact.
        """
        variant = self._at(budget)
        if variant.id not in self._loaded:
            check_files(self._folder, variant)
            self._loaded[variant.id] = open_artifact(
                variant, self._folder, self._threads, share_weights=self._share_weights
            )

    def _at(self, budget: float) -> Variant:
        return choose_variant(self.bundle, self._folder, budget, self.variant.target, self.variant.precision)

    def predict(self, flow: NDArray[np.float32]) -> Prediction:
        """Classifies one sample.

        Args:
            flow: (H, W, 3) float32: u, v in pixels and strain, before normalisation.

        Raises:
            InputError: wrong shape or type, or NaN or infinite values.
            JobError: the runtime gave an answer that is not finite.
        """
        check_flow(flow, self.bundle.preprocess.image_size)
        return self.answer(*self.infer(to_input(flow)))

    def answer(self, logits: NDArray[np.float32], kept: NDArray[np.int64]) -> Prediction:
        """Makes a prediction of what `infer` found: logits (k,), kept patches (K,).

        Raises:
            JobError: the logits are not finite.
        """
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
        """Runs the network alone: normalised (1, 3, H, W) float32 -> logits (k,), kept patches (K,)."""
        logits, kept = self._runner.run(flow)
        return logits, np.arange(self.bundle.model.patches) if kept is None else kept


def open_artifact(
    variant: Variant, folder: Path, threads: int | None, *, share_weights: bool = False
) -> Runner:
    """Loads a variant by the runtime of its target; `threads` by default those that the bundle names.

    Raises:
        InputError: a target that this version does not know.
        MissingExtraError: the runtime is not installed.
        JobError: the runtime refuses the artifact.
    """
    threads = variant.runs_on.get("threads") if threads is None else threads
    return find_runner(variant.target)(folder / variant.artifact, threads, share_weights=share_weights)


def why_not_here(variant: Variant, folder: Path) -> str:
    """Returns what keeps a variant from running here and what mends it; empty where nothing does.

    Raises:
        InputError: a target that this version does not know.
    """
    return find_runner(variant.target).why_not_here(folder / variant.artifact, variant.runs_on)


def choose_variant(
    bundle: Bundle, folder: Path, budget: float | None, target: str | None, precision: str | None
) -> Variant:
    """Returns the variant that was asked for; see `Session.open` for what is taken where something is left open.

    Raises:
        InputError: there is none; the message lists what the bundle has.
        JobError: several targets would do and none can run here; the message says why for each.
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
    order = [*reversed(RUNTIMES)]
    targets = sorted(
        {v.target: None for v in fits}, key=lambda name: order.index(name) if name in order else len(order)
    )
    best = [_preferred([v for v in fits if v.target == name]) for name in targets]
    if len(best) == 1:
        return best[0]
    reasons = []
    for variant in best:
        reason = why_not_here(variant, folder)
        if not reason:
            return variant
        reasons.append(f"{variant.target}: {reason}")
    raise JobError(f"nothing of the bundle can run here: {'; '.join(reasons)}")


def _preferred(variants: Sequence[Variant]) -> Variant:
    """Returns the largest budget in the default precision of one target's variants."""
    judged = any(v.precision == "int8" and "accuracy" in v.built_with for v in variants)
    precision = "int8" if judged else variants[0].precision
    return max((v for v in variants if v.precision == precision), key=lambda v: v.tokens)


def find_variant(bundle: Bundle, name: str) -> Variant:
    """Returns a bundle's variant by its id.

    Raises:
        InputError: there is none of that id; the message lists those that there are.
    """
    for variant in bundle.variants:
        if variant.id == name:
            return variant
    have = ", ".join(variant.id for variant in bundle.variants)
    raise InputError(f"{bundle.name} has no variant {name!r}; it has {have}")


def open_variant(folder: Path, variant: Variant, threads: int) -> Session:
    """Opens a session of exactly this variant of a bundle.

    Raises:
        InputError: the bundle's files have changed.
        JobError: the runtime refuses the artifact, or the bundle has two variants of one kind.
    """
    session = Session.open(
        folder,
        budget=variant.keep_rate,
        target=variant.target,
        precision=variant.precision,
        threads=threads,
    )
    if session.variant.id != variant.id:
        raise JobError(
            f"asked for {variant.id}, the session opened {session.variant.id}: the bundle has two variants "
            "of one target, precision and budget"
        )
    return session
