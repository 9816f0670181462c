"""Facts of the machine: this one's, and those of others from the files that their kernels show."""

from __future__ import annotations

import ast
import getpass
import json
import socket
import sys
from pathlib import Path

import pytest

from ptsr_edge.core import system as environment
from ptsr_edge.core.system import (
    TELLING_FLAGS,
    describe_cpu,
    describe_environment,
    describe_gpus,
    installed,
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
