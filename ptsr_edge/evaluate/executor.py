"""Tasks that know nothing of one another: in this process, in several, or on a Dask cluster; resumable.

    results = run_tasks(function, tasks, shared=data, jobs=2, folder=Path("out/folds"), resume=True)

Where a task runs, and beside how many others, decides nothing about its result: it has its process to itself and
torch one thread, so that sums are added up in one order. (Processors of another kind may still round otherwise.)

joblib can hand work to Dask too, but scatters what tasks share, and what is scattered is lost with its worker. Here it
is the result of a task itself, which the scheduler has done again like any other that a lost worker held.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.console import say
from ptsr_edge.core.errors import InputError, JobError, require
from ptsr_edge.core.files import DAMAGED_ARRAYS, check_place, digest_arrays, read_arrays, write_whole

ENGINES = ("joblib", "dask")
IDENTITY, DIGEST = "identity", "digest"
"""Beside the arrays of a kept result: what its task was, and the SHA-256 over them, as an array may be lost whole."""

CONNECT_S = 15.0
"""How long a scheduler, and its first worker, may take to answer."""

Arrays = dict[str, NDArray[Any]]
Function = Callable[[Any, Any], Arrays]
Versions = Callable[[], Mapping[str, str]]

_ALONE = threading.Lock()


@dataclass(frozen=True)
class Task:
    """One call of `function(shared, argument)`.

    Attributes:
        name: for people, and the beginning of its file's name.
        identity: all that the result depends on, as JSON: what is shared, by a digest, as well.
        argument: what the function gets; picklable.
    """

    name: str
    identity: Mapping[str, Any]
    argument: Any


@dataclass(frozen=True)
class _Planned:
    """A task, its identity with the versions that it is made by as text, and its key."""

    task: Task
    identity: str
    key: str

    def file(self, folder: Path) -> Path:
        return folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', self.task.name)}-{self.key[:16]}.npz"


def run_tasks(
    function: Function,
    tasks: Sequence[Task],
    *,
    shared: Any = None,
    versions: Versions = dict,
    engine: str = "joblib",
    jobs: int = 1,
    scheduler: str | None = None,
    folder: Path | None = None,
    resume: bool = False,
    on_done: Callable[[Task], None] | None = None,
) -> list[Arrays]:
    """The results of all tasks, in their order.

    Args:
        function: of a module's top level; gets `shared` and a task's argument, gives arrays by name.
        tasks: whose names or identities differ.
        shared: what all of them read; sent to a process once.
        versions: what makes results besides: asked here and wherever a task runs, and must be the same there.
        engine: `joblib`: this process, or `jobs` others on this machine; `dask`: the workers of a cluster.
        jobs: how many processes.
        scheduler: address of a Dask scheduler, such as `tcp://10.0.0.1:8786`.
        folder: keeps each result in a file of its own, written whole or not at all; None keeps none.
        resume: take results from `folder` whose identity is the task's.
        on_done: called with each task that is done, in this process; also for one that was taken over.

    Raises:
        InputError: see `check_engine`; two tasks are the same; no scheduler answers.
        JobError: a process was killed or a cluster was lost; a worker has other versions.
        MissingExtraError: joblib or distributed is not installed.
    """
    check_engine(engine, jobs, scheduler, folder, resume)
    here = dict(versions())
    planned = [_plan(task, here) for task in tasks]
    if len({plan.key for plan in planned}) < len(planned):
        raise InputError("two tasks are the same: each may be there once")
    done: dict[str, Arrays] = {}
    for plan in planned if resume else ():
        kept = _read(plan.file(folder), plan.identity) if folder is not None else None
        if kept is not None:
            done[plan.key] = kept
            if on_done is not None:
                on_done(plan.task)
    pending = [plan for plan in planned if plan.key not in done]
    work = _Work(function, versions, here)
    running: Iterator[tuple[int, Arrays]] = iter(())
    if pending and engine == "dask":
        running = _on_cluster(work, shared, pending, str(scheduler))
    elif pending:
        running = _in_processes(work, shared, pending, jobs) if jobs > 1 else _here(work, shared, pending)
    for place, result in running:
        plan = pending[place]
        if folder is not None:
            _write(plan.file(folder), plan.identity, result)
        done[plan.key] = result
        if on_done is not None:
            on_done(plan.task)
    return [done[plan.key] for plan in planned]


def check_engine(
    engine: str, jobs: int, scheduler: str | None, folder: Path | None = None, resume: bool = False
) -> None:
    """Makes sure that a way to run goes together, before anything is started.

    Raises:
        InputError: it does not, or `folder` cannot be written to.
    """
    if engine not in ENGINES:
        raise InputError(f"unknown engine {engine!r}; accepted: {', '.join(ENGINES)}")
    if jobs < 1:
        raise InputError(f"jobs must be at least 1, got {jobs}")
    if engine == "dask" and not scheduler:
        raise InputError("engine dask needs the address of a scheduler, such as tcp://10.0.0.1:8786")
    if engine == "dask" and jobs > 1:
        raise InputError(
            f"engine dask has as many jobs as the cluster has workers; {jobs} cannot be asked for"
        )
    if engine != "dask" and scheduler:
        raise InputError(f"a scheduler goes with engine dask, not with {engine}")
    if resume and folder is None:
        raise InputError("to resume, name the folder that the results were kept in")
    if folder is not None:
        check_place(folder / "file")


@dataclass(frozen=True)
class _Work:
    """What is called in another process: the function, alone there, by the versions that are expected."""

    function: Function
    versions: Versions
    expected: dict[str, str]

    def __call__(self, shared: Any, argument: Any) -> Arrays:
        torch = require("torch", "train", "running tasks")
        found = dict(self.versions())
        if found != self.expected:
            names = sorted(set(found) | set(self.expected))
            differ = [
                f"{name} {found.get(name)} where {self.expected.get(name)} is expected"
                for name in names
                if found.get(name) != self.expected.get(name)
            ]
            raise JobError(f"a worker would compute something else: {'; '.join(differ)}")
        # A Dask worker may have several threads; torch's global generator is one a process.
        with _ALONE:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                return self.function(shared, argument)
            finally:
                torch.set_num_threads(threads)

    def at(self, place: int, shared: Any, argument: Any) -> tuple[int, Arrays]:
        """The result with its place: results come in the order in which they are done."""
        return place, self(shared, argument)


def _here(work: _Work, shared: Any, pending: Sequence[_Planned]) -> Iterator[tuple[int, Arrays]]:
    for place, plan in enumerate(pending):
        yield work.at(place, shared, plan.task.argument)


def _in_processes(
    work: _Work, shared: Any, pending: Sequence[_Planned], jobs: int
) -> Iterator[tuple[int, Arrays]]:
    joblib = require("joblib", "scale", f"running in {jobs} processes")
    calls = (joblib.delayed(work.at)(place, shared, plan.task.argument) for place, plan in enumerate(pending))
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1, initializer=_leave_ctrl_c):
        parallel = joblib.Parallel(min(jobs, len(pending)), return_as="generator_unordered", batch_size=1)
        try:
            yield from parallel(calls)
        except BrokenProcessPool as error:
            said = str(error).partition("\n")[0]
            raise JobError(f"a process was killed, perhaps for want of memory: {said}") from error


def _leave_ctrl_c() -> None:
    """Leaves Ctrl-C, which a terminal sends to all processes, to the one that ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _on_cluster(
    work: _Work, shared: Any, pending: Sequence[_Planned], scheduler: str
) -> Iterator[tuple[int, Arrays]]:
    distributed = require("distributed", "scale", "running on a Dask cluster")
    try:
        client = distributed.Client(scheduler, timeout=CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at {scheduler!r}: {error}") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_S)
        except TimeoutError:
            raise JobError(f"the Dask cluster at {scheduler} has no worker") from None
        # Bytes, so that Dask does not look into it; a task, so that it outlives the worker that holds it.
        content = require("cloudpickle", "scale", "running on a Dask cluster").dumps(shared)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sending large graph")
            held = client.submit(pickle.loads, content, pure=False)
        futures = {
            client.submit(work.at, place, held, plan.task.argument, pure=False)
            for place, plan in enumerate(pending)
        }
        try:
            for future in distributed.as_completed(futures, loop=client.loop):
                yield future.result()
                futures.discard(future)  # or the cluster keeps the result to the end
        except distributed.KilledWorker as error:
            raise JobError(f"a task was lost with each worker that it was given to: {error}") from error
        except distributed.client.FutureCancelledError as error:
            raise JobError(f"the Dask cluster at {scheduler} was lost: {error}") from error


def _plan(task: Task, versions: Mapping[str, str]) -> _Planned:
    record = {"task": task.identity, "versions": versions}
    identity = json.dumps(record, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return _Planned(task, identity, hashlib.sha256(identity.encode()).hexdigest())


def _write(path: Path, identity: str, result: Arrays) -> None:
    stream = io.BytesIO()
    record = {IDENTITY: np.array(identity), DIGEST: np.array(digest_arrays(result))}
    np.savez(stream, **record, **result)  # type: ignore[arg-type]
    write_whole(path, stream.getvalue())


def _read(path: Path, identity: str) -> Arrays | None:
    """A kept result; None where there is none, or it is damaged, which is said."""
    if not path.is_file():
        return None
    try:
        arrays = read_arrays(path)
        digest = str(arrays.pop(DIGEST))
        fault = "it is of another task"
        if str(arrays.pop(IDENTITY)) == identity:
            if digest_arrays(arrays) == digest:
                return arrays
            fault = "its arrays are not those that were kept"
    except DAMAGED_ARRAYS as error:
        fault = str(error)
    say(f"{path} cannot be used ({fault}): done again")
    return None
