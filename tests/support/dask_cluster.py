"""A Dask cluster of processes on this machine's loopback, whose workers can be killed. Test material."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_S = 60.0


@contextmanager
def dask_cluster(folder: Path, workers: int) -> Iterator[str]:
    """A scheduler and so many workers of one thread, without nannies that would start them again; its address."""
    file = folder / "scheduler.json"
    places = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places)), "OMP_NUM_THREADS": "1"}
    common = ["--scheduler-file", str(file), "--host", "127.0.0.1", "--no-dashboard"]
    calls = [["dask_scheduler", "--port", "0", *common]]
    calls += workers * [["dask_worker", "--nthreads", "1", "--no-nanny", *common]]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for number, (name, *options) in enumerate(calls):
            with (folder / f"{name}-{number}.log").open("wb") as log:
                program = [sys.executable, "-m", f"distributed.cli.{name}", *options]
                started.append(subprocess.Popen(program, stdout=log, stderr=log, cwd=folder, env=environment))
            if number == 0:
                _wait_for(file, started[0])
        yield str(json.loads(file.read_text())["address"])
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()


def _wait_for(file: Path, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_S
    while not (file.is_file() and file.read_text().strip().endswith("}")):
        assert process.poll() is None, f"the scheduler ended: see {file.parent}"
        assert time.monotonic() < end, f"the scheduler did not start: see {file.parent}"
        time.sleep(0.05)
