"""Several learners through the same folds and seeds of a protocol, by any engine: the answers of each.

A learner is anything that trains on some clips and answers for others: a model of this package (`ModelLearner`), or a
classifier that it is to be compared with.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ptsr_edge.core.config import ModelConfig
from ptsr_edge.core.errors import InputError
from ptsr_edge.core.files import closure_digest, scratch_folder, sha256_of
from ptsr_edge.data.datasets import FlowDataset
from ptsr_edge.evaluate.evaluation import GROUPS, THROUGH, Fold, folds
from ptsr_edge.evaluate.executor import Arrays, Task, run_tasks
from ptsr_edge.export.onnx_graph import GraphTemplate, export_template
from ptsr_edge.export.parity import eager_reference, measure_parity, require_parity
from ptsr_edge.models.checkpoint import embedded_checkpoint, predict_logits
from ptsr_edge.models.ptsr import Model, random_tokens
from ptsr_edge.runtimes.onnxruntime import OrtRunner
from ptsr_edge.train.trainer import Epoch, TrainConfig, digest_weights, fit

TOOLS = ("torch", "numpy", "onnx", "onnxruntime")


class Learner(Protocol):
    """A thing that is trained afresh in each fold. Picklable."""

    @property
    def name(self) -> str:
        """Its name in results; unique among those that are compared."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the samples that it takes."""
        ...

    @property
    def keep_rates(self) -> Sequence[float]:
        """The keep rates at which it answers; (1.0,) where it drops nothing."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """All that its answers depend on but code, data and seed, as JSON."""
        ...

    def answer(self, train: FlowDataset, held: FlowDataset, seed: int) -> Arrays:
        """`logits` (rates, n, k) for the held-out clips, of whose labels nothing may go into them.

        It may add `oracle` (rates, n): classes that were chosen by those labels, and are leaky.
        """
        ...


@dataclass(frozen=True)
class Answers:
    """The answers of a learner, over all folds.

    Attributes:
        learner: the one that answered.
        data: the clips that were judged (n), in the order of the data.
        seeds: of the runs.
        logits: (seeds, rates, n, k) float32.
        oracle: (seeds, rates, n) classes by the leaky oracle; None where it was not asked for.
    """

    learner: Learner
    data: FlowDataset
    seeds: tuple[int, ...]
    logits: NDArray[np.float32]
    oracle: NDArray[np.int64] | None

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(seeds, rates, n) classes."""
        classes: NDArray[np.int64] = self.logits.argmax(axis=-1)
        return classes


@dataclass(frozen=True)
class _Shared:
    learners: tuple[Learner, ...]
    data: Mapping[int, FlowDataset]


@dataclass(frozen=True)
class FoldJob:
    """One learner, by its place, in one fold with one seed."""

    learner: int
    seed: int
    fold: Fold


def cross_validate(
    learners: Sequence[Learner],
    data: FlowDataset | Mapping[int, FlowDataset],
    protocol: str,
    seeds: Sequence[int],
    *,
    groups: int = GROUPS,
    on_fold: Callable[[], None] | None = None,
    **how: Any,
) -> list[Answers]:
    """Trains and judges each learner in each fold for each seed.

    Args:
        learners: of different names.
        data: the same clips for all, or by the size of the samples where learners differ in it.
        protocol: one of `evaluation.PROTOCOLS`.
        seeds: of weights and draws, and of the folds of `groups`.
        groups: how many subject-disjoint groups.
        on_fold: called after each fold.
        how: `engine`, `jobs`, `scheduler`, `folder` and `resume` of `executor.run_tasks`.

    Raises:
        InputError: two learners have one name, their clips differ, or as `evaluation.folds` and `run_tasks`.
        JobError: as `run_tasks`.
    """
    by_size = {learners[0].image_size: data} if isinstance(data, FlowDataset) else dict(data)
    names = [learner.name for learner in learners]
    if len(set(names)) < len(names):
        raise InputError(f"learners need names of their own, got {', '.join(names)}")
    _check_clips(learners, by_size)
    shared = _Shared(tuple(learners), by_size)
    jobs = list(_jobs(shared, protocol, seeds, groups))
    results = run_tasks(
        run_fold, list(_tasks(shared, jobs)), shared=shared, versions=deciding_versions,
        on_done=None if on_fold is None else lambda _: on_fold(), **how,
    )  # fmt: skip
    found = list(zip(jobs, results, strict=True))
    return [
        _gather(shared, place, seeds, [entry for entry in found if entry[0].learner == place])
        for place in range(len(learners))
    ]


def run_fold(shared: _Shared, job: FoldJob) -> Arrays:
    """Trains a learner on a fold's training side and returns its answers for the held-out clips."""
    learner = shared.learners[job.learner]
    data = shared.data[learner.image_size]
    return learner.answer(data.of_subjects(job.fold.train), data.of_subjects(job.fold.held_out), job.seed)


@cache
def deciding_versions() -> dict[str, str]:
    """Versions of the tools, and a digest of the source, that decide what a fold gives; asked once a process."""
    return {"code": closure_digest(__name__), **{tool: version(tool) for tool in TOOLS}}


def _jobs(shared: _Shared, protocol: str, seeds: Sequence[int], groups: int) -> Iterator[FoldJob]:
    subjects = next(iter(shared.data.values())).subjects
    for seed in seeds:
        for fold in folds(protocol, subjects, seed, groups):
            for learner in range(len(shared.learners)):
                yield FoldJob(learner, seed, fold)


def _tasks(shared: _Shared, jobs: Sequence[FoldJob]) -> Iterator[Task]:
    digests = {size: data.digest() for size, data in shared.data.items()}
    own = [_own_code(learner) for learner in shared.learners]
    for job in jobs:
        learner, held = shared.learners[job.learner], job.fold.held_out
        identity = {
            "learner": dict(learner.identity()),
            "name": learner.name,
            "code": own[job.learner],
            "data": digests[learner.image_size],
            "seed": job.seed,
            "train": list(job.fold.train),
            "held_out": list(held),
        }
        more = f"-and-{len(held) - 1}" if len(held) > 1 else ""
        yield Task(f"{learner.name}-seed{job.seed}-{held[0]}{more}", identity, job)


def _own_code(learner: Learner) -> str:
    """Digest of the file that a learner's class stands in, which may be anybody's."""
    path = inspect.getsourcefile(type(learner))
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""


def _check_clips(learners: Sequence[Learner], data: Mapping[int, FlowDataset]) -> None:
    missing = sorted({learner.image_size for learner in learners} - set(data))
    if missing:
        raise InputError(f"there are no samples of {missing[0]} pixels, which a learner takes")
    first, *others = data.values()
    for other in others:
        if other.names != first.names or not np.array_equal(other.labels, first.labels):
            raise InputError("the samples of each size must be of the same clips in the same order")


def _gather(
    shared: _Shared, place: int, seeds: Sequence[int], found: Sequence[tuple[FoldJob, Arrays]]
) -> Answers:
    learner = shared.learners[place]
    data = shared.data[learner.image_size]
    held = {name for job, _ in found for name in job.fold.held_out}
    judged = data.subset(np.isin(data.subjects, list(held)))
    rates, classes = len(learner.keep_rates), len(data.label_names)
    logits = np.full((len(seeds), rates, len(judged), classes), np.nan, dtype=np.float32)
    oracle = np.zeros((len(seeds), rates, len(judged)), dtype=np.int64)
    for job, arrays in found:
        run = list(seeds).index(job.seed)
        places = np.isin(judged.subjects, job.fold.held_out)
        logits[run][:, places] = arrays["logits"]
        if "oracle" in arrays:
            oracle[run][:, places] = arrays["oracle"]
    leaky = all("oracle" in arrays for _, arrays in found)
    return Answers(learner, judged, tuple(seeds), logits, oracle if leaky else None)


@dataclass(frozen=True)
class ModelLearner:
    """A model and its recipe, judged at some keep rates; see `Learner`.

    Attributes:
        config: geometry.
        recipe: how it is trained.
        keep_rates: judged with one set of weights.
        oracle: also answer for each held-out subject by the epoch that does best on that very subject.
        templates: graphs, one per keep rate, through which folds answer; none: they answer in torch.
        device: where it is trained, `cpu` or `cuda`.
        label: its name among the others, where that is not the model's.
        initial: weights that training begins with; None: those that the recipe says.
    """

    config: ModelConfig
    recipe: TrainConfig
    keep_rates: tuple[float, ...]
    oracle: bool = False
    templates: tuple[GraphTemplate, ...] = ()
    device: str = "cpu"
    label: str = ""
    initial: Model | None = None

    @property
    def name(self) -> str:
        """The name that results have for it."""
        return self.label or self.config.name

    @property
    def image_size(self) -> int:
        """Side of the samples that it takes."""
        return self.config.image_size

    def identity(self) -> dict[str, Any]:
        """All that its answers depend on but code, data and seed."""
        begins = self.recipe.start == "synthetic" and self.initial is None
        start = embedded_checkpoint(self.config.name) if begins else None
        return {
            "model": self.config.model_dump(mode="json"),
            "recipe": self.recipe.model_dump(mode="json"),
            "keep_rates": list(self.keep_rates),
            "oracle": self.oracle,
            "through": THROUGH[bool(self.templates)],
            "device": self.device,
            "initial": None if self.initial is None else digest_weights(self.initial),
            "start": None if start is None else sha256_of(start),
        }

    def answer(self, train: FlowDataset, held: FlowDataset, seed: int) -> Arrays:
        """Trains, and answers for the held-out clips.

        Returns:
            `logits` (rates, n, k) float32; with `oracle` also `oracle` (rates, n), the classes by the best epoch.

        Raises:
            ParityError: an artifact departs from the model that it holds the weights of.
        """
        best = _BestEpoch(held, self._tokens) if self.oracle else None
        first = copy.deepcopy(self.initial)
        model = fit(self.config, train, self.recipe, seed, initial=first, on_epoch=best, device=self.device)
        if self.templates:
            logits = [artifact_logits(model, template, held) for template in self.templates]
        else:
            logits = [
                predict_logits(model, held.flows, tokens, forced=self._drawn(held, tokens, seed))[0]
                for tokens in self._tokens
            ]
        answers: Arrays = {"logits": np.stack(logits)}
        if best is not None:
            answers["oracle"] = best.predicted
        return answers

    def with_templates(self) -> ModelLearner:
        """The same, answering through artifacts: exports the graph of each keep rate, once for all folds."""
        templates = tuple(export_template(self.config, tokens) for tokens in self._tokens)
        return dataclasses.replace(self, templates=templates)

    def _drawn(self, held: FlowDataset, tokens: int, seed: int) -> Tensor | None:
        """The control's patches, drawn anew for each clip as they are in training; None for all other scores.

        A random model's own choice in evaluation, one set of places for all clips, can be exported; but which
        places these are decides more than anything else, so it is no measure of random selection.
        """
        if self.config.kind != "ptsr" or self.config.score != "random":
            return None
        fold = int(held.digest()[:12], 16)
        return random_tokens(len(held), self.config.patches, tokens, fold + seed)

    @property
    def _tokens(self) -> list[int]:
        return [self.config.tokens_at(rate) for rate in self.keep_rates]


def artifact_logits(model: Model, template: GraphTemplate, data: FlowDataset) -> NDArray[np.float32]:
    """Logits (n, k) of the artifact that holds a model's weights, one sample at a time, as a camera runs it.

    Raises:
        ParityError: it departs from the eager model by more than fp32 may.
    """
    reference = eager_reference(model, template.tokens, data.flows)
    with scratch_folder() as folder:
        runner = OrtRunner(template.write(model, folder), threads=1)
        parity = measure_parity(reference, runner.run, "fp32")
        require_parity(parity, f"{model.config.name} at {template.tokens} tokens", "fp32")
        return np.stack([runner.run(one[None])[0] for one in reference.inputs])


class _BestEpoch:
    """Keeps, for each held-out subject and budget, the answers of the epoch that had most of them right.

    This looks at the held-out labels: it gives the leaky score that some published code reports, and nothing that is trained or chosen may depend on it. Of equal epochs the first is kept.
    """

    def __init__(self, held: FlowDataset, tokens: Sequence[int]) -> None:
        self.held, self.tokens = held, tokens
        self.predicted = np.zeros((len(tokens), len(held)), dtype=np.int64)
        self.hits = np.full((len(tokens), len(held)), -1, dtype=np.int64)

    def __call__(self, epoch: Epoch) -> None:
        _, owner = np.unique(self.held.subjects, return_inverse=True)
        for place, tokens in enumerate(self.tokens):
            answers = predict_logits(epoch.model, self.held.flows, tokens)[0].argmax(axis=1)
            hits = np.bincount(owner, answers == self.held.labels).astype(np.int64)[owner]
            better = hits > self.hits[place]
            self.predicted[place, better] = answers[better]
            self.hits[place, better] = hits[better]
