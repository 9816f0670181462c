"""Functions that other processes run for the tests of the engine. Test material."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ptsr_edge.core.errors import InputError
from ptsr_edge.evaluate.executor import Arrays, Task, run_tasks

GATE_S = 60.0


def noted(shared: dict[str, Any], number: int) -> Arrays:
    """Sums whose order depends on the number of threads; leaves a file that says which process did which task."""
    folder = shared.get("folder")
    if folder is not None:
        (Path(folder) / f"{number}.{os.getpid()}").touch()
    time.sleep(shared.get("sleep_s", 0.0))
    end = time.monotonic() + GATE_S
    while shared.get("gate") and not Path(shared["gate"]).exists() and time.monotonic() < end:
        time.sleep(0.02)
    generator = torch.Generator().manual_seed(number)
    matrix = torch.randn(300, 300, generator=generator)
    products = (matrix @ matrix.T @ torch.from_numpy(shared["vector"])).numpy()
    return {"products": products, "process": np.array([os.getpid(), torch.get_num_threads()])}


def refused(_shared: object, number: int) -> Arrays:
    raise InputError(f"task {number} is not acceptable")


def killed(_shared: object, _number: int) -> Arrays:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def own_version() -> dict[str, str]:
    """Differs in each process."""
    return {"process": str(os.getpid())}


def shared_by(folder: Path | None, sleep_s: float = 0.0) -> dict[str, Any]:
    vector = np.random.default_rng(0).normal(size=300).astype(np.float32)
    return {"vector": vector, "folder": None if folder is None else str(folder), "sleep_s": sleep_s}


def tasks(count: int, **identity: Any) -> list[Task]:
    return [Task(f"task {number}/{count}", {"number": number, **identity}, number) for number in range(count)]


if __name__ == "__main__":  # a run to be killed: two folders, of the results and of the notes
    run_tasks(noted, tasks(6), shared=shared_by(Path(sys.argv[2]), 0.5), folder=Path(sys.argv[1]))
