"""Several learners through the same folds and seeds of a protocol, by any engine: what each of them answers.

A learner is anything that trains on some clips and answers for others: a model of this package, or a classifier that
it is to be compared with.
"""

from __future__ import annotations

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

from ptsr_edge.core.errors import InputError
from ptsr_edge.data.datasets import FlowData
from ptsr_edge.evaluate.executor import Arrays, Task, run_tasks
from ptsr_edge.evaluate.protocol import GROUPS, Fold, folds

DECIDING = (
    "core/config",
    "evaluate/cross_validation",
    "evaluate/model_learner",
    "evaluate/protocol",
    "export/onnx_graph",
    "export/parity",
    "export/refill",
    "export/rewrite",
    "export/static_model",
    "models/blocks",
    "models/checkpoint",
    "models/inference",
    "models/ptsr",
    "models/selection",
    "runtimes/onnxruntime",
    "train/augment",
    "train/ridge",
    "train/trainer",
    "vision/flow",
)
"""Modules whose source decides what a fold's model answers: a result is taken over only where all are the same."""

TOOLS = ("torch", "numpy", "onnx", "onnxruntime")


class Learner(Protocol):
    """What is trained afresh in each fold. Picklable."""

    @property
    def name(self) -> str:
        """What results call it; unique among those that are compared."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the samples that it takes."""
        ...

    @property
    def keep_rates(self) -> Sequence[float]:
        """At which it answers; (1.0,) where it drops nothing."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """As JSON, all that its answers depend on but code, data and seed."""
        ...

    def answer(self, train: FlowData, held: FlowData, seed: int) -> Arrays:
        """`logits` (rates, n, k) for the held-out clips, of whose labels nothing may go into them.

        It may add `oracle` (rates, n): classes that were chosen by those labels, and are leaky.
        """
        ...


@dataclass(frozen=True)
class Answers:
    """What a learner answered, over all folds.

    Attributes:
        learner: which.
        data: the clips that were judged (n), in the order of the data.
        seeds: of the runs.
        logits: (seeds, rates, n, k) float32.
        oracle: (seeds, rates, n) classes by the leaky oracle; None where it was not asked for.
    """

    learner: Learner
    data: FlowData
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
    data: Mapping[int, FlowData]


@dataclass(frozen=True)
class _Job:
    learner: int
    seed: int
    fold: Fold


def cross_validate(
    learners: Sequence[Learner],
    data: FlowData | Mapping[int, FlowData],
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
        protocol: one of `protocol.PROTOCOLS`.
        seeds: of weights and draws, and of the folds of `groups`.
        groups: how many subject-disjoint groups.
        on_fold: called after each fold.
        how: `engine`, `jobs`, `scheduler`, `folder` and `resume` of `engine.run_tasks`.

    Raises:
        InputError: two learners have one name, their clips differ, or as `protocol.folds` and `run_tasks`.
        JobError: as `run_tasks`.
    """
    by_size = {learners[0].image_size: data} if isinstance(data, FlowData) else dict(data)
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


def run_fold(shared: _Shared, job: _Job) -> Arrays:
    """Trains a learner on a fold's training side and returns its answers for the held-out clips."""
    learner = shared.learners[job.learner]
    data = shared.data[learner.image_size]
    return learner.answer(data.of_subjects(job.fold.train), data.of_subjects(job.fold.held_out), job.seed)


@cache
def deciding_versions() -> dict[str, str]:
    """Versions of the tools, and a digest of the modules, that decide what a fold gives; asked once a process."""
    digest = hashlib.sha256()
    for name in DECIDING:
        digest.update((Path(__file__).parents[1] / f"{name}.py").read_bytes())
    return {"code": digest.hexdigest(), **{tool: version(tool) for tool in TOOLS}}


def _jobs(shared: _Shared, protocol: str, seeds: Sequence[int], groups: int) -> Iterator[_Job]:
    subjects = next(iter(shared.data.values())).subjects
    for seed in seeds:
        for fold in folds(protocol, subjects, seed, groups):
            for learner in range(len(shared.learners)):
                yield _Job(learner, seed, fold)


def _tasks(shared: _Shared, jobs: Sequence[_Job]) -> Iterator[Task]:
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


def _check_clips(learners: Sequence[Learner], data: Mapping[int, FlowData]) -> None:
    missing = sorted({learner.image_size for learner in learners} - set(data))
    if missing:
        raise InputError(f"there are no samples of {missing[0]} pixels, which a learner takes")
    first, *others = data.values()
    for other in others:
        if other.names != first.names or not np.array_equal(other.labels, first.labels):
            raise InputError("the samples of each size must be of the same clips in the same order")


def _gather(
    shared: _Shared, place: int, seeds: Sequence[int], found: Sequence[tuple[_Job, Arrays]]
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
