"""Dask clusters of processes on this machine whose workers can be killed: on its loopback, or each in a network of its own.

Test material.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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


# ---------------------------------------------------------------------------------------------
# Devices: workers in network namespaces


def why_no_networks() -> str:
    """What keeps network namespaces from being made here, empty where nothing does."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    name = f"try{os.getpid()}"
    try:
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "network namespaces need the command ip: apt-get install iproute2"
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return made.stderr.strip()


@dataclass(frozen=True)
class Device:
    """A worker in a network of its own: its process, and the end of its cable."""

    process: subprocess.Popen[bytes]
    cable: str

    def cut(self) -> None:
        """Takes its network away."""
        _ip("link", "set", self.cable, "down")

    def measures(self) -> bool:
        """Whether a child of it has a child: what times a variant."""
        return any(_children(child) for child in _children(self.process.pid))

    def is_idle(self) -> bool:
        """Whether it has no child."""
        return not _children(self.process.pid)


@contextmanager
def device_cluster(
    folder: Path, environments: Mapping[str, Mapping[str, str]]
) -> Iterator[tuple[str, dict[str, Device]]]:
    """A scheduler in the network of this machine, and a device each in one of its own, of these names.

    Args:
        folder: for logs, and for what each device keeps: `NAME-cache`.
        environments: by device, what its environment has besides.

    Yields:
        The scheduler's address from here, and the devices.
    """
    # What is sent into a cable that was cut is given up after that; distributed takes nothing much below it.
    base = os.environ | {"OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s"}
    mark = os.getpid() % 10_000
    # Of this process as well: a second run, or cables that a killed one left, would take its packets.
    net = f"10.{192 + mark // 256}.{mark % 256}"
    devices: dict[str, Device] = {}
    started: list[subprocess.Popen[bytes]] = []
    spaces: list[str] = []

    def start(name: str, call: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with (folder / f"{name}.log").open("wb") as log:
            started.append(subprocess.Popen(call, stdout=log, stderr=log, cwd=folder, env=dict(environment)))
        return started[-1]

    file = folder / "scheduler.json"
    run = [sys.executable, "-m"]
    try:
        call = [
            "distributed.cli.dask_scheduler",
            "--port",
            "0",
            "--no-dashboard",
            "--scheduler-file",
            str(file),
        ]
        _wait_for(file, start("scheduler", [*run, *call], base))
        port = json.loads(file.read_text())["address"].rpartition(":")[2]
        for number, (name, more) in enumerate(environments.items(), start=1):
            space, cable = f"d{mark}-{number}", f"v{mark}-{number}"
            here, there = (f"{net}.{4 * number + end}" for end in (1, 2))
            _ip("netns", "add", space)
            spaces.append(space)
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("address", "add", f"{here}/30", "dev", cable)
            _ip("link", "set", cable, "up")
            for change in (
                ["address", "add", f"{there}/30", "dev", "eth0"],
                ["link", "set", "eth0", "up"],
                ["link", "set", "lo", "up"],
            ):
                _ip("-n", space, *change)
            call = [
                "distributed.cli.dask_worker",
                f"tcp://{here}:{port}",
                "--host",
                there,
                "--nthreads",
                "1",
                "--name",
                name,
            ]
            environment = base | {"PTSR_EDGE_CACHE": str(folder / f"{name}-cache")} | dict(more)
            inside = ["ip", "netns", "exec", space, *run, *call, "--no-nanny", "--no-dashboard"]
            devices[name] = Device(start(name, inside, environment), cable)
        yield f"tcp://127.0.0.1:{port}", devices
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()
        for space in spaces:
            _ip("netns", "delete", space)  # and the cable with it


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(word) for word in task.read_text().split()]
        except OSError:  # it has ended
            continue
    return found
