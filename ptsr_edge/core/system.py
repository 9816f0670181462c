"""The machine, as far as a timing depends on it, and its meters of energy. Never a host name, a user or a path.

Facts are read from the standard places of Linux (`/proc`, `/sys`, `/etc/os-release`); what a system does not tell is
null. This module needs no package, not even numpy.

Energy is read from counters of the processor (RAPL) or the GPU (NVML), or sensors of a Jetson. A meter sees the whole
package, GPU or board, whatever else runs on it: idle power is included.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
import os
import platform
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

TELLING_FLAGS: dict[str, str] = {
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "avx_vnni": "avx_vnni",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_tile": "amx_tile",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "neon": "neon",
    "asimd": "asimd",
    "asimdhp": "fp16",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
    "sme": "sme",
}
"""Flags of `/proc/cpuinfo` that decide which kernels a runtime picks, with their names in records."""

TOOLS = (
    "ptsr-edge",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "nncf",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx",
    "tensorrt-rtx-cu12",
    "tensorrt-rtx-cu13",
    "torch",
    "onnx",
    "onnxscript",
    "fvcore",
    "opencv-python-headless",
)
"""Distributions whose version can change a result."""

MOST_THREADS = 1024
"""Of an operator, and processes or sessions at once: more would take the machine's memory before they compute."""

_GPU_FIELDS = ("name", "driver_version", "compute_cap", "clocks.sm", "clocks.max.sm", "power.limit")


def describe_environment(root: Path = Path("/")) -> dict[str, Any]:
    """Returns the machine, its load just now and the versions of tools, ready for JSON.

    Args:
        root: the folder that holds `proc`, `sys` and `etc`.

    Returns:
        `cpu` (model, board, architecture, flags, visible and physical cores, cgroup limit in cores,
        governor, whether virtual), `gpus`, `memory_bytes`, `load_average` (1, 5, 15 minutes), `os`,
        `kernel`, `python`, `packages` (name to version, installed ones only).
    """
    return {
        "cpu": describe_cpu(root),
        "gpus": describe_gpus(),
        "memory_bytes": _memory_bytes(root),
        "load_average": _load_average(root),
        "os": _operating_system(root),
        "kernel": platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": installed(TOOLS),
    }


def describe_cpu(root: Path = Path("/")) -> dict[str, Any]:
    """Returns the processor, its instruction sets, and how much of it this process may use."""
    facts = _cpuinfo(root)
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    return {
        "model": facts.get("model name") or _arm_part(facts) or platform.processor() or None,
        "board": _text(root / "proc/device-tree/model"),
        "architecture": platform.machine(),
        "flags": [TELLING_FLAGS[flag] for flag in TELLING_FLAGS if flag in flags],
        "cores_visible": len(visible_cpus()),
        "cores_physical": _physical_cores(root),
        "cgroup_limit_cores": _cgroup_limit(root),
        "governor": _governor(root),
        "virtual": "hypervisor" in flags,
    }


def describe_gpus() -> list[dict[str, str]]:
    """Returns, by `nvidia-smi`, of each GPU: name, driver, compute capability, clocks, power limit."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    call = [tool, f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(call, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = (line.split(", ") for line in answer.stdout.splitlines() if line.strip())
    return [dict(zip(_GPU_FIELDS, row, strict=False)) for row in rows]


def visible_cpus() -> list[int]:
    """Returns the numbers of the CPUs that this process may run on, ascending."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def has_two_kinds_of_cores(root: Path = Path("/")) -> bool:
    """Tells whether an Intel processor has fast and efficient cores, which Linux then lists apart."""
    return (root / "sys/devices/cpu_atom").is_dir()


def installed(distributions: Iterable[str]) -> dict[str, str]:
    """Returns the versions of those distributions that are installed; imports nothing."""
    versions = {}
    for name in distributions:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n") or None
    except OSError:
        return None


def _cpuinfo(root: Path) -> dict[str, str]:
    """Returns the first value of each key of `/proc/cpuinfo`."""
    facts: dict[str, str] = {}
    for line in (_text(root / "proc/cpuinfo") or "").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            facts.setdefault(key.strip(), value.strip())
    return facts


def _arm_part(facts: dict[str, str]) -> str | None:
    """Returns the implementer and part numbers, by which a core is known where an ARM kernel names no model."""
    if "CPU part" not in facts:
        return None
    return f"ARM implementer {facts.get('CPU implementer', '?')} part {facts['CPU part']}"


def _physical_cores(root: Path) -> int | None:
    cores = set()
    for number in visible_cpus():
        topology = root / f"sys/devices/system/cpu/cpu{number}/topology"
        core = (_text(topology / "physical_package_id"), _text(topology / "core_id"))
        if None in core:
            return None
        cores.add(core)
    return len(cores)


def _governor(root: Path) -> str | None:
    found = {
        _text(root / f"sys/devices/system/cpu/cpu{number}/cpufreq/scaling_governor")
        for number in visible_cpus()
    }
    return ", ".join(sorted(name for name in found if name)) or None


def _cgroup_limit(root: Path) -> float | None:
    """Returns CPU quota over period of the tightest group above this process, in cores; None: no limit."""
    limits = []
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            base, names = root / "sys/fs/cgroup", ["cpu.max"]
        elif "cpu" in controllers.split(","):
            base, names = root / "sys/fs/cgroup/cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        inside = Path(group.lstrip("/"))
        for folder in (inside, *inside.parents):
            words = " ".join(_text(base / folder / name) or "" for name in names).split()
            if len(words) == 2 and words[0].isdigit():
                limits.append(int(words[0]) / int(words[1]))
    return round(min(limits), 3) if limits else None


def _memory_bytes(root: Path) -> int | None:
    for line in (_text(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _load_average(root: Path) -> list[float] | None:
    words = (_text(root / "proc/loadavg") or "").split()
    return [float(word) for word in words[:3]] if len(words) >= 3 else None


def _operating_system(root: Path) -> str:
    for line in (_text(root / "etc/os-release") or "").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.system()


def timed_runs(run: Callable[[], object], duration_s: float, runs: int) -> tuple[list[int], list[int]]:
    """Times calls one after the other until both minima are reached: wall and CPU nanoseconds of each."""
    clock, cpu_clock = time.perf_counter_ns, time.process_time_ns
    wall: list[int] = []
    cpu: list[int] = []
    end = clock() + int(duration_s * 1e9)
    while len(wall) < runs or clock() < end:
        cpu_start = cpu_clock()  # outside of the wall clock's reading: this one is a system call
        start = clock()
        run()
        wall.append(clock() - start)
        cpu.append(cpu_clock() - cpu_start)
    return wall, cpu


def disturbances() -> dict[str, int]:
    """Counts what kept this process from its cores since it started, of what the system tells, as `stats.latency.Block` names it."""
    counts = {"waited_ns": _waited_ns(), "stolen_ns": _stolen_ns()}
    if resource is not None:
        counts["switches"] = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    return {name: count for name, count in counts.items() if count is not None}


def _waited_ns() -> int | None:
    """Sums the threads' time on a run queue; None where the kernel keeps no such statistics."""
    try:
        told = [
            path.read_text(encoding="ascii").split() for path in Path("/proc/self/task").glob("*/schedstat")
        ]
    except OSError:  # a thread has ended meanwhile
        return None
    return sum(int(fields[1]) for fields in told) if told and all(told) else None


def _stolen_ns() -> int | None:
    """Returns the time that a hypervisor took from all cores of this machine."""
    try:
        ticks = Path("/proc/stat").read_text(encoding="ascii").split(maxsplit=9)[8]
    except (OSError, IndexError):
        return None
    return int(ticks) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


SAMPLE_S = 0.02
"""How often a sensor of power is read; the INA3221 of a Jetson converts a channel in a millisecond or more."""


@dataclass(frozen=True)
class Meter:
    """A source of energy readings.

    Attributes:
        source: its name, in words.
        joules: the energy used since some moment, wrapping at `wraps_at` joules; or None,
        watts: the power just now, which is summed up over time.
    """

    source: str
    joules: Callable[[], float] | None = None
    wraps_at: float | None = None
    watts: Callable[[], float] | None = None

    def used(self, work: Callable[[], object]) -> float:
        """Returns the joules that went by while `work` ran.

        Raises:
            OSError: the source stopped answering.
        """
        if self.joules is not None:
            start = self.joules()
            work()
            gone = self.joules() - start
            return gone if gone >= 0 or self.wraps_at is None else gone + self.wraps_at
        assert self.watts is not None
        return _integrated(self.watts, work)


@dataclass(frozen=True)
class NoMeter:
    """Why there is no meter; the kinds are those of results that are missing."""

    kind: Literal["not_supported", "not_installed"]
    reason: str


def find_meter(on_gpu: bool, root: Path = Path("/")) -> Meter | NoMeter:
    """Finds the meter for a device.

    Args:
        on_gpu: a GPU is metered by its own counter or the board's sensor, else the processor by its counter.
        root: the folder that holds `sys`.

    Returns:
        The meter, or the reasons why there is none.
    """
    found = [_nvml()] if on_gpu and root == Path("/") else []
    found += [_jetson(root)] if on_gpu else [_rapl(root), _jetson(root)]
    reasons = []
    for meter in found:
        if isinstance(meter, Meter):
            return meter
        reasons.append(meter)
    lacking = any(reason.kind == "not_installed" for reason in reasons)
    return NoMeter(
        "not_installed" if lacking else "not_supported", "; ".join(reason.reason for reason in reasons)
    )


def _rapl(root: Path) -> Meter | NoMeter:
    """Intel's and AMD's counters: Linux, Documentation/power/powercap/powercap.rst."""
    packages = [
        zone
        for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
        if zone.name.count(":") == 1 and (zone / "energy_uj").exists()
    ]
    if not packages:
        return _untold("no RAPL counter in /sys/class/powercap")
    try:
        for zone in packages:
            _number(zone / "energy_uj")
        # Of several packages the sum cannot be unwrapped; one is what nearly every machine of this kind has.
        wraps_at = _number(packages[0] / "max_energy_range_uj") / 1e6 if len(packages) == 1 else None
    except PermissionError:
        return _untold("the RAPL counter may be read by root only")
    except (OSError, ValueError) as error:
        return _untold(f"the RAPL counter cannot be read: {error}")
    return Meter(
        f"RAPL, {len(packages)} processor package(s)",
        joules=lambda: sum(_number(zone / "energy_uj") for zone in packages) / 1e6,
        wraps_at=wraps_at,
    )


def _jetson(root: Path) -> Meter | NoMeter:
    """The board's input channel of an INA3221: millivolts times milliamperes."""
    for label in sorted((root / "sys/class/hwmon").glob("hwmon*/in*_label")):
        name = label.read_text(encoding="utf-8").strip()
        number = label.name.removeprefix("in").removesuffix("_label")
        volts, amperes = (label.with_name(f"{kind}{number}_input") for kind in ("in", "curr"))
        if name in ("VDD_IN", "POM_5V_IN") and volts.is_file() and amperes.is_file():
            return Meter(
                f"INA3221, channel {name}: the whole board",
                watts=partial(_power, volts, amperes),
            )
    return _untold("no INA3221 channel of a Jetson's input in /sys/class/hwmon")


def _nvml() -> Meter | NoMeter:
    if importlib.util.find_spec("pynvml") is None:
        return NoMeter(
            "not_installed",
            "the package nvidia-ml-py, which reads the GPU's counter, is not installed",
        )
    pynvml = importlib.import_module("pynvml")
    try:
        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(0)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(device)
    except pynvml.NVMLError as error:
        return _untold(f"NVML tells no energy: {error}")
    return Meter(
        "NVML, the first GPU", joules=lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(device) / 1e3
    )


def _untold(reason: str) -> NoMeter:
    return NoMeter("not_supported", reason)


def _power(millivolts: Path, milliamperes: Path) -> float:
    """Returns watts."""
    return _number(millivolts) * _number(milliamperes) / 1e6


def _number(path: Path) -> float:
    return float(path.read_text(encoding="ascii"))


def _integrated(watts: Callable[[], float], work: Callable[[], object]) -> float:
    """Returns joules by the trapezoidal rule over readings that a thread takes while `work` runs."""
    readings: list[tuple[float, float]] = [(time.monotonic(), watts())]
    done = threading.Event()

    def sample() -> None:
        with contextlib.suppress(OSError):
            while not done.wait(SAMPLE_S):
                readings.append((time.monotonic(), watts()))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        work()
    finally:
        done.set()
        thread.join()
    readings.append((time.monotonic(), watts()))
    return sum((later - earlier) * (a + b) / 2 for (earlier, a), (later, b) in itertools.pairwise(readings))
