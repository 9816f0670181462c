from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ptsr_edge.core.errors import JobError
from ptsr_edge.runtimes.tensorrt import TensorRtPlan, read_plan, require_capability, require_version


def plan_file(
    folder: Path,
    tag: bytes = b"vtrt",
    version: tuple[int, ...] = (1, 7, 1, 116),
    size: int = 100,
    **engine: Any,
) -> Path:
    """A file with a plan's header (layout: NVIDIA's trtexec, `--getPlanVersionOnly`) and its record."""
    header = tag + bytes(12) + size.to_bytes(8, "little") + bytes(version)
    path = folder / "model.plan"
    path.write_bytes(header + bytes(size - len(header)))
    if engine:
        path.with_suffix(".build.json").write_text(json.dumps({"engine": engine}))
    return path


def test_header_and_record_are_read(tmp_path: Path) -> None:
    plan = read_plan(plan_file(tmp_path, capabilities=["SM86"], gpu=None, bytes=100))
    assert (plan.flavour, plan.version, plan.capabilities) == ("tensorrt-rtx", "1.7.1.116", ("SM86",))


def test_a_plan_of_a_jetson(tmp_path: Path) -> None:
    gpu = {"name": "Orin", "capability": "SM87"}
    plan = read_plan(plan_file(tmp_path, b"ftrt", (10, 3, 0, 30), capabilities=[], gpu=gpu, bytes=100))
    assert (plan.flavour, plan.version, plan.capabilities) == ("tensorrt", "10.3.0.30", ("SM87",))


@pytest.mark.parametrize("left", [0, 3, 27, 28, 99], ids=lambda n: f"{n} bytes")
def test_a_truncated_plan_is_refused(left: int, tmp_path: Path) -> None:
    path = plan_file(tmp_path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(JobError, match="export the bundle again"):
        read_plan(path)


def test_a_truncated_plan_of_a_jetson_is_known_by_its_record(tmp_path: Path) -> None:
    path = plan_file(tmp_path, b"ftrt", (10, 3, 0, 30), bytes=100, gpu=None)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(JobError, match="has 60 bytes, 100 are needed: truncated"):
        read_plan(path)


def test_another_file_is_no_plan(tmp_path: Path) -> None:
    path = tmp_path / "model.plan"
    path.write_bytes(b"\x08\x0a" * 50)
    with pytest.raises(JobError, match="is no TensorRT plan"):
        read_plan(path)
    with pytest.raises(JobError, match=r"cannot read .*: No such file"):
        read_plan(tmp_path / "missing.plan")


@pytest.mark.parametrize(
    "record",
    ["", "{", "[]", "{}", "null", '{"engine": 7}', '{"engine": "x"}', '{"engine": {"bytes": "x"}}',
     '{"engine": {"gpu": 7}}', '{"engine": {"capabilities": 7}}', "[" * 100_000, "\xff"],
    ids=lambda text: text[:30] or "empty",
)  # fmt: skip
def test_a_damaged_record_is_refused(tmp_path: Path, record: str) -> None:
    path = plan_file(tmp_path)
    path.with_suffix(".build.json").write_text(record, encoding="latin-1")
    with pytest.raises(JobError, match=r"model\.build\.json is damaged"):
        read_plan(path)


def test_another_version_is_refused_with_what_mends_it() -> None:
    plan = TensorRtPlan(Path("bundle/model.plan"), "tensorrt", "10.3.0.30", ("SM87",))
    require_version(plan, "10.3.0.30")
    fault = r"built by tensorrt 10\.3\.0\.30, here is 10\.16\.0\.1, .*: run `python3 build_on_dev"
    with pytest.raises(JobError, match=fault):
        require_version(plan, "10.16.0.1")


def test_another_gpu_is_refused_with_what_mends_it() -> None:
    plan = TensorRtPlan(Path("bundle/model.plan"), "tensorrt-rtx", "1.7.1.116", ("SM86", "SM89"))
    require_capability(plan, {"name": "RTX 3060", "capability": "SM86"})
    fault = (
        r"built for SM86, SM89, the GPU here is H100 \(SM90\): run `python3 build_on_device\.py` in bundle"
    )
    with pytest.raises(JobError, match=fault):
        require_capability(plan, {"name": "H100", "capability": "SM90"})
