"""Meters on made-up trees of `/sys`: what they read, how they wrap, and why there is none."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import pytest

from ptsr_edge.profile.energy import Meter, find_meter
from ptsr_edge.profile.schema import Missing


def rapl(root: Path, packages: int = 1) -> list[Path]:
    zones = [root / f"sys/class/powercap/intel-rapl:{number}" for number in range(packages)]
    for zone in zones:
        zone.mkdir(parents=True)
        (zone / "energy_uj").write_text("5000000\n")
        (zone / "max_energy_range_uj").write_text("8000000\n")
    # The cores are a part of their package: counted with it, not beside it.
    (zones[0].parent / "intel-rapl:0:0").mkdir()
    (zones[0].parent / "intel-rapl:0:0" / "energy_uj").write_text("1\n")
    return zones


def found(target: str, root: Path) -> Meter:
    meter = find_meter(target, root)
    assert isinstance(meter, Meter), meter
    return meter


def test_rapl_counts_joules(tmp_path: Path) -> None:
    (zone,) = rapl(tmp_path)
    meter = found("cpu", tmp_path)
    assert meter.source == "RAPL, 1 processor package(s)"
    assert meter.used(lambda: (zone / "energy_uj").write_text("6500000")) == pytest.approx(1.5)


def test_rapl_wraps(tmp_path: Path) -> None:
    (zone,) = rapl(tmp_path)
    # From 5 J over the end at 8 J to 1 J: 4 J.
    assert found("cpu", tmp_path).used(lambda: (zone / "energy_uj").write_text("1000000")) == pytest.approx(4)


def test_packages_are_summed(tmp_path: Path) -> None:
    zones = rapl(tmp_path, 2)

    def work() -> None:
        zones[0].joinpath("energy_uj").write_text("6000000")
        zones[1].joinpath("energy_uj").write_text("7000000")

    assert found("cpu", tmp_path).used(work) == pytest.approx(3)


def test_a_jetson_is_read_by_its_input_channel(tmp_path: Path) -> None:
    folder = tmp_path / "sys/class/hwmon/hwmon3"
    folder.mkdir(parents=True)
    for number, (name, volts, amperes) in enumerate(
        (("VDD_CPU_GPU_CV", 5000, 100), ("VDD_IN", 5000, 2000)), start=1
    ):
        (folder / f"in{number}_label").write_text(f"{name}\n")
        (folder / f"in{number}_input").write_text(str(volts))
        (folder / f"curr{number}_input").write_text(str(amperes))
    meter = found("trt", tmp_path)
    assert meter.source == "INA3221, channel VDD_IN: the whole board"
    # 5 V at 2 A are 10 W, for as long as it took: at least the nap, at most what passed around it.
    started = time.monotonic()
    joules = meter.used(lambda: time.sleep(0.05))
    assert 10 * 0.05 <= joules <= 10 * (time.monotonic() - started)


def test_without_a_meter_the_reason_is_told(tmp_path: Path) -> None:
    why = find_meter("cpu", tmp_path)
    assert isinstance(why, Missing)
    assert why.kind == "not_supported"
    assert "no RAPL counter" in why.reason
    assert "no INA3221" in why.reason
    assert find_meter("toy", tmp_path) == why
    assert "RAPL" not in str(find_meter("trt", tmp_path))
    if importlib.util.find_spec("pynvml") is None:
        why = find_meter("trt")
        assert isinstance(why, Missing)
        assert why.kind == "not_installed"
        assert "nvidia-ml-py" in why.reason


def test_a_counter_that_cannot_be_read(tmp_path: Path) -> None:
    (zone,) = rapl(tmp_path)
    (zone / "energy_uj").write_text("soon")
    assert "the RAPL counter cannot be read" in str(find_meter("cpu", tmp_path))
