"""Energy by the machine's own meters: counters of the processor (RAPL) or the GPU (NVML), sensors of a Jetson.

A meter sees the whole package, GPU or board, whatever else runs on it: idle power is included.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ptsr_edge.profile.schema import Missing, MissingKind, needs_gpu

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


def find_meter(target: str, root: Path = Path("/")) -> Meter | Missing:
    """Finds the meter for the device that a target runs on.

    Args:
        target: one that needs a GPU is metered by the GPU's counter or the board's sensor, others by the processor's.
        root: the folder that holds `sys`.

    Returns:
        The meter, or the reasons why there is none.
    """
    on_gpu = needs_gpu(target)
    found = [_nvml()] if on_gpu and root == Path("/") else []
    found += [_jetson(root)] if on_gpu else [_rapl(root), _jetson(root)]
    reasons = []
    for meter in found:
        if isinstance(meter, Meter):
            return meter
        reasons.append(meter)
    kind: MissingKind = "not_supported"
    if any(reason.kind == "not_installed" for reason in reasons):
        kind = "not_installed"
    return Missing(kind=kind, reason="; ".join(reason.reason for reason in reasons))


def _rapl(root: Path) -> Meter | Missing:
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


def _jetson(root: Path) -> Meter | Missing:
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


def _nvml() -> Meter | Missing:
    if importlib.util.find_spec("pynvml") is None:
        return Missing(
            kind="not_installed",
            reason="the package nvidia-ml-py, which reads the GPU's counter, is not installed",
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


def _untold(reason: str) -> Missing:
    return Missing(kind="not_supported", reason=reason)


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
