"""Results are the same wherever tasks run, and are taken over only where everything is the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import engine_tasks
import numpy as np
import pytest
import torch
from dask_cluster import dask_cluster
from engine_tasks import noted, shared_by, tasks

from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.evaluate import executor
from ptsr_edge.evaluate.executor import Arrays, check_engine, run_tasks

pytestmark = pytest.mark.slow


def products(results: list[Arrays]) -> list[bytes]:
    return [result["products"].tobytes() for result in results]


def numbers_done(notes: Path) -> list[int]:
    return sorted(int(path.name.partition(".")[0]) for path in notes.iterdir())


def test_processes_give_the_bits_of_this_one() -> None:
    pytest.importorskip("joblib")
    names: list[str] = []
    alone = run_tasks(noted, tasks(5), shared=shared_by(None))
    beside = run_tasks(
        noted, tasks(5), shared=shared_by(None), jobs=2, on_done=lambda task: names.append(task.name)
    )
    assert products(beside) == products(alone)
    assert sorted(names) == [f"task {number}/5" for number in range(5)]
    processes = {int(result["process"][0]) for result in beside}
    assert os.getpid() not in processes
    assert {int(result["process"][1]) for result in (*alone, *beside)} == {1}


def test_a_task_has_one_thread_and_the_caller_keeps_its_own() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (result,) = run_tasks(noted, tasks(1), shared=shared_by(None))
        assert result["process"].tolist() == [os.getpid(), 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_resumed_run_does_what_is_missing(tmp_path: Path) -> None:
    folder, notes = tmp_path / "results", tmp_path / "notes"
    notes.mkdir()
    first = run_tasks(noted, tasks(4)[:2], shared=shared_by(notes), folder=folder)
    assert len(list(folder.iterdir())) == 2
    told: list[str] = []
    results = run_tasks(
        noted, tasks(4), shared=shared_by(notes), folder=folder, resume=True,
        on_done=lambda task: told.append(task.name),
    )  # fmt: skip
    assert numbers_done(notes) == [0, 1, 2, 3]
    assert len(told) == 4
    assert products(results[:2]) == products(first)
    run_tasks(noted, tasks(4)[:1], shared=shared_by(notes), folder=folder)
    assert (notes / f"0.{os.getpid()}").stat().st_mtime_ns > (notes / f"3.{os.getpid()}").stat().st_mtime_ns


@pytest.mark.parametrize("change", ["identity", "versions", "damaged", "another", "lost", "changed"])
def test_a_kept_result_is_not_taken_for_another(
    change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, notes = tmp_path / "results", tmp_path / "notes"
    notes.mkdir()
    call: dict[str, Any] = dict(shared=shared_by(notes), folder=folder, versions=lambda: {"torch": "1"})
    run_tasks(noted, tasks(2), **call)
    for path in notes.iterdir():
        path.unlink()
    again, expected = tasks(2), [0, 1]
    files = sorted(folder.iterdir())
    if change == "identity":
        again = tasks(2, lr=0.1)
    elif change == "versions":
        call["versions"] = lambda: {"torch": "2"}
    elif change in ("lost", "changed"):  # a sound file, of which an array is gone or another one
        with np.load(files[1]) as stored:
            arrays = dict(stored)
        name = next(iter(arrays.keys() - {"identity", "digest"}))
        lost = arrays.pop(name)
        np.savez(files[1], **arrays, **({name: lost + 1} if change == "changed" else {}))
        expected = [1]
    else:
        files[1].write_bytes(files[1].read_bytes()[:-9] if change == "damaged" else files[0].read_bytes())
        expected = [1]
    results = run_tasks(noted, again, resume=True, **call)
    assert numbers_done(notes) == expected
    assert products(results) == products(run_tasks(noted, tasks(2), shared=shared_by(None)))
    assert ("cannot be used" in capsys.readouterr().err) == (change not in ("identity", "versions"))


def test_a_killed_run_goes_on_where_it_stood(tmp_path: Path) -> None:
    folder, notes = tmp_path / "results", tmp_path / "notes"
    notes.mkdir()
    program = [sys.executable, engine_tasks.__file__, str(folder), str(notes)]
    running = subprocess.Popen(program)
    try:
        end = time.monotonic() + 60
        while len(list(folder.glob("*.npz"))) < 2 and time.monotonic() < end:
            assert running.poll() is None
            time.sleep(0.02)
    finally:
        running.kill()
        running.wait()
    kept = len(list(folder.glob("*.npz")))
    assert 2 <= kept < 6
    for path in notes.iterdir():
        path.unlink()
    # What is shared is in no identity here, so that the second run need not sleep.
    results = run_tasks(noted, tasks(6), shared=shared_by(notes), folder=folder, resume=True)
    assert numbers_done(notes) == list(range(kept, 6))
    assert products(results) == products(run_tasks(noted, tasks(6), shared=shared_by(None)))


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_of_a_task_comes_through(jobs: int) -> None:
    with pytest.raises(InputError, match="task . is not acceptable"):
        run_tasks(engine_tasks.refused, tasks(2), jobs=jobs)


def test_a_process_with_other_versions_computes_nothing() -> None:
    pytest.importorskip("joblib")
    with pytest.raises(JobError, match=rf"process \d+ where {os.getpid()} is expected"):
        run_tasks(noted, tasks(2), shared=shared_by(None), versions=engine_tasks.own_version, jobs=2)


def test_a_killed_process_is_told() -> None:
    pytest.importorskip("joblib")
    with pytest.raises(JobError, match="a process was killed"):
        run_tasks(engine_tasks.killed, tasks(2), jobs=2)


def test_one_task_twice_is_refused() -> None:
    with pytest.raises(InputError, match="two tasks are the same"):
        run_tasks(noted, [*tasks(2), *tasks(2)], shared=shared_by(None))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"engine": "ray"}, "accepted: joblib, dask"),
        ({"jobs": 0}, "at least 1, got 0"),
        ({"engine": "dask"}, "needs the address of a scheduler"),
        ({"engine": "dask", "scheduler": "tcp://x:1", "jobs": 2}, "as many jobs as the cluster has workers"),
        ({"scheduler": "tcp://x:1"}, "goes with engine dask"),
        ({"resume": True}, "name the folder"),
    ],
)
def test_ways_to_run_that_do_not_go_together(call: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_engine(**({"engine": "joblib", "jobs": 1, "scheduler": None} | call))


def test_a_folder_that_cannot_be_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is no folder"):
        run_tasks(noted, tasks(1), shared=shared_by(None), folder=tmp_path / "file")


def test_no_scheduler_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(executor, "CONNECT_S", 1.0)
    with pytest.raises(InputError, match=r"no Dask scheduler answers at 'tcp://127.0.0.1:1'"):
        run_tasks(noted, tasks(1), shared=shared_by(None), engine="dask", scheduler="tcp://127.0.0.1:1")


def test_a_cluster_without_workers_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(executor, "CONNECT_S", 1.0)
    with dask_cluster(tmp_path, workers=0) as address, pytest.raises(JobError, match="has no worker"):
        run_tasks(noted, tasks(1), shared=shared_by(None), engine="dask", scheduler=address)


def kill_one_of_two(notes: Path, gate: Path, killed: list[int]) -> None:
    """Waits until two processes have begun a task, none of which ends before the gate is opened; kills one."""
    end = time.monotonic() + engine_tasks.GATE_S
    while time.monotonic() < end and not killed:
        processes = sorted({int(path.suffix[1:]) for path in notes.iterdir()})
        if len(processes) == 2:
            os.kill(processes[0], signal.SIGKILL)
            killed.append(processes[0])
        time.sleep(0.02)
    gate.touch()


def test_a_lost_workers_tasks_are_done_again(tmp_path: Path) -> None:
    """One of two workers is killed in the middle of a task, with whatever it holds of what is shared."""
    pytest.importorskip("distributed")
    notes, gate = tmp_path / "notes", tmp_path / "gate"
    notes.mkdir()
    killed: list[int] = []
    killer = threading.Thread(target=kill_one_of_two, args=(notes, gate, killed))
    with dask_cluster(tmp_path, workers=2) as address:
        killer.start()
        results = run_tasks(
            noted, tasks(12), shared=shared_by(notes) | {"gate": str(gate)}, engine="dask", scheduler=address
        )
        killer.join()
    assert len(killed) == 1
    assert products(results) == products(run_tasks(noted, tasks(12), shared=shared_by(None)))
    begun_by_the_lost = {path.stem for path in notes.glob(f"*.{killed[0]}")}
    by_the_other = {path.stem for path in notes.iterdir() if path.suffix != f".{killed[0]}"}
    assert begun_by_the_lost
    assert by_the_other == {str(number) for number in range(12)}
    assert killed[0] not in {int(result["process"][0]) for result in results}
