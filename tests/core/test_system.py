"""Facts and meters of the machine: this one's, and those of others from the files that their kernels show."""

from __future__ import annotations

import ast
import getpass
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ptsr_edge.core import system as environment
from ptsr_edge.core.system import (
    TELLING_FLAGS,
    Meter,
    NoMeter,
    describe_cpu,
    describe_environment,
    describe_gpus,
    disturbances,
    find_meter,
    installed,
    timed_runs,
    visible_cpus,
)

# As a Raspberry Pi 5 prints them: Cortex-A76 (implementer 0x41 is ARM, part 0xd0b).
PI_CPUINFO = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1
"""


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def board(tmp_path: Path) -> Path:
    write(tmp_path, "proc/cpuinfo", PI_CPUINFO)
    write(tmp_path, "proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    write(tmp_path, "proc/meminfo", "MemTotal:        8256128 kB\nMemFree: 1 kB\n")
    write(tmp_path, "proc/loadavg", "0.52 0.58 0.59 1/467 12345\n")
    write(tmp_path, "etc/os-release", 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n')
    for number in visible_cpus():
        write(tmp_path, f"sys/devices/system/cpu/cpu{number}/cpufreq/scaling_governor", "ondemand\n")
    return tmp_path


def test_a_board_is_recognised(board: Path) -> None:
    record = describe_environment(board)
    assert record["cpu"]["board"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert record["cpu"]["model"] == "ARM implementer 0x41 part 0xd0b"
    assert record["cpu"]["flags"] == ["asimd", "fp16", "dotprod"]
    assert record["cpu"]["governor"] == "ondemand"
    assert record["cpu"]["virtual"] is False
    assert record["memory_bytes"] == 8256128 * 1024
    assert record["load_average"] == [0.52, 0.58, 0.59]
    assert record["os"] == "Debian GNU/Linux 12 (bookworm)"


def test_memory_is_found_wherever_it_stands(tmp_path: Path) -> None:
    write(tmp_path, "proc/meminfo", "HugePages_Total: 0\nMemTotal:  2048 kB\n")
    assert describe_environment(tmp_path)["memory_bytes"] == 2048 * 1024


def test_without_affinity_all_processors_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(environment.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(environment.os, "cpu_count", lambda: 3)
    assert visible_cpus() == [0, 1, 2]


def test_flags_are_whole_words(tmp_path: Path) -> None:
    # avx512_vnni must not be read out of avx512_vnni_future, nor avx2 out of avx2x.
    write(tmp_path, "proc/cpuinfo", "flags\t\t: fpu avx512_vnni_future avx2x avx512f hypervisor\n")
    cpu = describe_cpu(tmp_path)
    assert cpu["flags"] == ["avx512f"]
    assert cpu["virtual"] is True


def test_cores_that_share_an_identity_are_one_physical_core(tmp_path: Path) -> None:
    for number in visible_cpus():
        topology = f"sys/devices/system/cpu/cpu{number}/topology"
        write(tmp_path, f"{topology}/physical_package_id", "0")
        write(tmp_path, f"{topology}/core_id", "0")
    assert describe_cpu(tmp_path)["cores_physical"] == 1


@pytest.mark.parametrize(
    ("group", "files", "cores"),
    [
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        # The quota of a parent binds its children: 2 cores here, .5 above.
        ("0::/a/b", {"a/b/cpu.max": "200000 100000", "a/cpu.max": "50000 100000"}, 0.5),
        (
            "3:cpu,cpuacct:/a",
            {"cpu/a/cpu.cfs_quota_us": "25000", "cpu/a/cpu.cfs_period_us": "100000"},
            0.25,
        ),
        ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("7:memory:/a", {}, None),
    ],
    ids=["v2 unlimited", "v2", "v2 parent", "v1", "v1 unlimited", "no cpu controller"],
)
def test_cgroup_limit(tmp_path: Path, group: str, files: dict[str, str], cores: float | None) -> None:
    write(tmp_path, "proc/self/cgroup", group + "\n")
    for name, text in files.items():
        write(tmp_path, f"sys/fs/cgroup/{name}", text + "\n")
    assert describe_cpu(tmp_path)["cgroup_limit_cores"] == cores


def test_a_system_that_tells_nothing_gives_nulls(tmp_path: Path) -> None:
    record = describe_environment(tmp_path)
    assert record["memory_bytes"] is None
    assert record["load_average"] is None
    assert record["cpu"]["governor"] is None
    assert record["cpu"]["cores_physical"] is None
    assert record["cpu"]["flags"] == []


def test_this_machine_is_json_without_names_or_paths() -> None:
    record = describe_environment()
    text = json.dumps(record)
    assert record["cpu"]["cores_visible"] == len(visible_cpus()) >= 1
    assert set(record["cpu"]["flags"]) <= set(TELLING_FLAGS.values())
    for private in (socket.gethostname(), str(Path.home()), str(Path.cwd()), getpass.getuser() + "@"):
        assert len(private) < 4 or private not in text


def test_versions_are_those_of_installed_distributions() -> None:
    import numpy as np

    assert installed(["numpy", "no-such-distribution-here"]) == {"numpy": np.__version__}


def test_gpus_are_what_the_tool_on_the_path_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_gpus() == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Orin (nvgpu), 540.3.0, 8.7, 306 MHz, 1020 MHz, [N/A]'\n")
    tool.chmod(0o755)
    assert describe_gpus() == [
        {
            "name": "Orin (nvgpu)",
            "driver_version": "540.3.0",
            "compute_cap": "8.7",
            "clocks.sm": "306 MHz",
            "clocks.max.sm": "1020 MHz",
            "power.limit": "[N/A]",
        }
    ]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert describe_gpus() == []


def test_it_needs_no_package() -> None:
    tree = ast.parse(Path(environment.__file__).read_text())
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names


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


def found(root: Path, on_gpu: bool = False) -> Meter:
    meter = find_meter(on_gpu, root)
    assert isinstance(meter, Meter), meter
    return meter


def test_rapl_counts_joules(tmp_path: Path) -> None:
    (zone,) = rapl(tmp_path)
    meter = found(tmp_path)
    assert meter.source == "RAPL, 1 processor package(s)"
    assert meter.used(lambda: (zone / "energy_uj").write_text("6500000")) == pytest.approx(1.5)


def test_rapl_wraps(tmp_path: Path) -> None:
    (zone,) = rapl(tmp_path)
    # From 5 J over the end at 8 J to 1 J: 4 J.
    assert found(tmp_path).used(lambda: (zone / "energy_uj").write_text("1000000")) == pytest.approx(4)


def test_packages_are_summed(tmp_path: Path) -> None:
    zones = rapl(tmp_path, 2)

    def work() -> None:
        zones[0].joinpath("energy_uj").write_text("6000000")
        zones[1].joinpath("energy_uj").write_text("7000000")

    assert found(tmp_path).used(work) == pytest.approx(3)


def test_a_jetson_is_read_by_its_input_channel(tmp_path: Path) -> None:
    folder = tmp_path / "sys/class/hwmon/hwmon3"
    folder.mkdir(parents=True)
    for number, (name, volts, amperes) in enumerate(
        (("VDD_CPU_GPU_CV", 5000, 100), ("VDD_IN", 5000, 2000)), start=1
    ):
        (folder / f"in{number}_label").write_text(f"{name}\n")
        (folder / f"in{number}_input").write_text(str(volts))
        (folder / f"curr{number}_input").write_text(str(amperes))
    meter = found(tmp_path, on_gpu=True)
    assert meter.source == "INA3221, channel VDD_IN: the whole board"
    # 5 V at 2 A are 10 W, for as long as it took: at least the nap, at most what passed around it.
    started = time.monotonic()
    joules = meter.used(lambda: time.sleep(0.05))
    assert 10 * 0.05 <= joules <= 10 * (time.monotonic() - started)


def test_without_a_meter_the_reason_is_told(tmp_path: Path) -> None:
    why = find_meter(False, tmp_path)
    assert isinstance(why, NoMeter)
    assert why.kind == "not_supported"
    assert "no RAPL counter" in why.reason
    assert "no INA3221" in why.reason
    assert "RAPL" not in str(find_meter(True, tmp_path))
    if importlib.util.find_spec("pynvml") is None:
        why = find_meter(True)
        assert isinstance(why, NoMeter)
        assert why.kind == "not_installed"
        assert "nvidia-ml-py" in why.reason


def test_a_counter_that_cannot_be_read(tmp_path: Path) -> None:
    (zone,) = rapl(tmp_path)
    (zone / "energy_uj").write_text("soon")
    assert "the RAPL counter cannot be read" in str(find_meter(False, tmp_path))


@pytest.mark.slow
def test_timed_runs_counts_every_call() -> None:
    calls: list[int] = []

    def nap() -> None:
        calls.append(1)
        time.sleep(0.001)

    samples, _ = timed_runs(lambda: calls.append(1), 0.0, 9)
    assert len(calls) == len(samples) == 9
    calls.clear()
    samples, cpu = timed_runs(nap, 0.01, 1)
    assert len(calls) == len(samples) == len(cpu)
    # Asleep is not at work: a run of a millisecond and more on the wall, hardly any of it on a core.
    assert sum(cpu) < sum(samples) / 2
    # Ten milliseconds of sleeps of one and more are ten calls at most, each measured as one and more.
    assert len(samples) <= 10
    assert min(samples) >= 1_000_000


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_being_sent_away_is_counted() -> None:
    cpus, before = os.sched_getaffinity(0), disturbances()
    assert {"switches", "stolen_ns"} <= set(before)
    # Another process wants the same core until it is killed: sooner or later one of the two is sent away.
    rival = subprocess.Popen(
        [sys.executable, "-c", "while True: pass"], preexec_fn=lambda: os.sched_setaffinity(0, {min(cpus)})
    )
    try:
        os.sched_setaffinity(0, {min(cpus)})
        end = time.monotonic() + 30
        while disturbances()["switches"] < before["switches"] + 3 and time.monotonic() < end:
            sum(range(100_000))
    finally:
        os.sched_setaffinity(0, cpus)
        rival.kill()
        rival.wait()
    assert disturbances()["switches"] >= before["switches"] + 3
