"""Flow samples in, answers out, for several streams at once: one session, all of its budgets loaded, and a lock.

A `Session` is for one thread; here it is lent to one at a time, for the inference alone.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.bundle import Bundle
from ptsr_edge.camera.cascade import cascade_of, goes_on, probability_margin
from ptsr_edge.core.errors import InputError
from ptsr_edge.session import Prediction, Session
from ptsr_edge.vision.flow import check_flow, to_input

WARM_UPS = 6
"""Inferences a budget when it is loaded; the quickest counts as what it takes on an idle machine."""


@dataclass(frozen=True)
class Answer:
    """A prediction and what it took.

    Attributes:
        prediction: of the last variant that was run.
        inference_ms: by keep rate, in the order in which they were run.
    """

    prediction: Prediction
    inference_ms: dict[float, float]


class SharedSession:
    """A bundle's variants of one target and precision, at work for many threads."""

    def __init__(
        self,
        bundle: str | Path,
        *,
        target: str | None = None,
        precision: str | None = None,
        threads: int | None = 1,
        share_weights: bool = False,
    ) -> None:
        """Opens a session, loads all its budgets and times each once warm; arguments as `Session.open`.

        Raises:
            InputError: as `Session.open`; or the model takes flow fields that came ready-made.
            MissingExtraError: the runtime is not installed.
            JobError: the runtime refuses an artifact.
        """
        self._session = Session.open(
            bundle, target=target, precision=precision, threads=threads, share_weights=share_weights
        )
        self._lock = threading.Lock()
        variant = self._session.variant
        if self.bundle.preprocess.flow == "published":
            raise InputError(
                f"{self.bundle.name} was trained on flow fields that came ready-made ('published'): nobody knows "
                "how to measure them from a camera's frames; it needs a model whose flow is 'dis-medium'"
            )
        self.budgets = sorted(
            {
                other.keep_rate
                for other in self.bundle.variants
                if (other.target, other.precision) == (variant.target, variant.precision)
            }
        )
        for budget in self.budgets:
            self._session.load(budget)
        self.inference_ms = {budget: self._time(budget) for budget in self.budgets}

    @property
    def bundle(self) -> Bundle:
        """The manifest."""
        return self._session.bundle

    @property
    def artifact(self) -> str:
        """Target and precision, such as cpu/int8."""
        variant = self._session.variant
        return f"{variant.target}/{variant.precision}"

    def check_budget(self, budget: float) -> float:
        """The keep rate of the loaded variant that a budget means.

        Raises:
            InputError: there is none.
        """
        if not isinstance(budget, int | float) or isinstance(budget, bool) or not 0 < budget <= 1:
            raise InputError(f"a budget is auto, cascade or a keep rate in (0, 1]; found {budget!r}")
        tokens = self.bundle.model.tokens_at(budget)
        for known in self.budgets:
            if self.bundle.model.tokens_at(known) == tokens:
                return known
        have = ", ".join(f"{known:g}" for known in self.budgets)
        raise InputError(f"the bundle has no budget {budget:g} in {self.artifact}; it has {have}")

    def check_cascade(self) -> None:
        """Makes sure that the bundle has a cascade.

        Raises:
            InputError: it has none for this target and precision.
        """
        rule = cascade_of(self.bundle, self._session.variant)
        for budget in (rule.small, rule.full):
            self.check_budget(budget)

    def predict(self, flow: NDArray[np.float32], budget: float) -> Answer:
        """Classifies a sample at a budget; (S, S, 3) float32 before normalisation.

        Raises:
            InputError: as `Session.predict`.
            JobError: the runtime gave an answer that is not finite.
        """
        prediction, took = self._run(self._prepared(flow), budget)
        return Answer(prediction, {budget: took})

    def predict_in_cascade(self, flow: NDArray[np.float32]) -> Answer:
        """Classifies a sample by the small budget, and by the full one where that is close.

        Raises:
            InputError, JobError: as `predict`; or no cascade was calibrated.
        """
        rule = cascade_of(self.bundle, self._session.variant)
        inputs = self._prepared(flow)
        prediction, took = self._run(inputs, rule.small)
        spent = {rule.small: took}
        if goes_on(rule, probability_margin(prediction.probabilities)):
            prediction, spent[rule.full] = self._run(inputs, rule.full)
        return Answer(prediction, spent)

    def _prepared(self, flow: NDArray[np.float32]) -> NDArray[np.float32]:
        check_flow(flow, self.bundle.preprocess.image_size)
        return to_input(flow)

    def _run(self, inputs: NDArray[np.float32], budget: float) -> tuple[Prediction, float]:
        with self._lock:
            started = time.perf_counter()
            self._session.switch(budget)
            prediction = self._session.answer(*self._session.infer(inputs))
            return prediction, (time.perf_counter() - started) * 1e3

    def _time(self, budget: float) -> float:
        size = self.bundle.preprocess.image_size
        flow = np.random.default_rng(0).normal(size=(size, size, 3)).astype(np.float32)
        flow[..., 2] = np.abs(flow[..., 2])
        return min(self.predict(flow, budget).inference_ms[budget] for _ in range(WARM_UPS))
