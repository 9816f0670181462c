"""TensorRT versions, GPUs and plans are judged without a GPU; running a plan needs one, and says so here."""

from __future__ import annotations

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typed_graphs import CONFIG, TOKENS, flows, request

from ptsr_edge.core.errors import InputError, JobError, MissingExtraError
from ptsr_edge.export.targets.tensorrt import TrtTarget
from ptsr_edge.export.targets.typed_graph import TypedGraphRunner
from ptsr_edge.runtimes.build_on_device import cuda_devices
from ptsr_edge.runtimes.tensorrt import (
    CAPABILITIES,
    Cuda,
    TensorRtPlan,
    TensorRtVersion,
    TrtRunner,
    check_plan,
    choose_capabilities,
    choose_version,
    hindrances,
    read_capability,
    read_plan,
    require_capability,
    require_version,
)

needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None,
    reason="tensorrt-rtx is missing: the extra trt-rtx brings it",
)
no_gpu = pytest.mark.skipif(bool(cuda_devices()), reason="a GPU is here")
ORIN = {"name": "Orin", "capability": "SM87"}


@pytest.mark.parametrize("text", ["8.6", "86", "SM86", "sm_86", " sm86 "])
def test_a_capability_is_read_however_it_is_written(text: str) -> None:
    assert read_capability(text) == "SM86"


def test_capabilities_of_three_digits() -> None:
    assert read_capability("12.0") == read_capability("sm_120") == "SM120"


@pytest.mark.parametrize("text", ["9.0", "SM90", "banana", "", "8"])
def test_an_unknown_capability_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"builds for 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"):
        read_capability(text)


def test_by_default_all_that_the_precision_allows() -> None:
    assert choose_capabilities("tensorrt-rtx", "fp16", None) == list(CAPABILITIES)
    assert choose_capabilities("tensorrt-rtx", "int8", None) == list(CAPABILITIES)
    assert choose_capabilities("tensorrt-rtx", "fp32", None) == [c for c in CAPABILITIES if c != "SM75"]
    assert choose_capabilities("tensorrt-rtx", "fp16", ["8.6", "sm_86", "12.0"]) == ["SM86", "SM120"]


def test_turing_has_no_fp32_products() -> None:
    with pytest.raises(InputError, match="no fp32 matrix products for SM75"):
        choose_capabilities("tensorrt-rtx", "fp32", ["7.5"])


def test_no_capability_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="no compute capability given"):
        choose_capabilities("tensorrt-rtx", "fp16", [])


def test_tensorrt_proper_builds_for_its_own_gpu() -> None:
    assert choose_capabilities("tensorrt", "fp16", None) == []
    with pytest.raises(InputError, match=r"the GPU in the machine only, got 8.7"):
        choose_capabilities("tensorrt", "fp16", ["8.7"])


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="tensorrt is installed here")
def test_a_flavour_that_is_missing_says_where_it_comes_from() -> None:
    with pytest.raises(
        MissingExtraError, match=r"no TensorRT can build here: tensorrt: not installed .*JetPack"
    ):
        choose_version("tensorrt")


@needs_rtx
def test_tensorrt_rtx_builds_without_a_gpu() -> None:
    found = choose_version("tensorrt-rtx")
    assert found.version
    assert not found.hindrance


@pytest.mark.parametrize(
    ("modules", "gpus", "build", "run"),
    [
        (["tensorrt_rtx"], [], "", "running needs an NVIDIA GPU and its driver"),
        (["tensorrt"], [], "building with TensorRT needs an NVIDIA GPU", "running needs an NVIDIA GPU"),
        (["tensorrt_rtx"], [{"name": "H", "capability": "SM90"}], "", "on compute capability 7.5, .*; H has 9.0"),
        (["tensorrt", "tensorrt_rtx"], [{"name": "H", "capability": "SM90"}], "", ""),
        (["tensorrt_rtx"], [{"name": "A", "capability": "SM86"}], "", ""),
    ],
)  # fmt: skip
def test_what_is_in_the_way_on_a_machine(
    modules: list[str], gpus: list[dict[str, str]], build: str, run: str
) -> None:
    for said, expected in zip(hindrances(modules, gpus), (build, run), strict=True):
        assert re.search(expected, said) if expected else not said


def test_one_that_is_there_and_cannot_build_is_a_failed_job(monkeypatch: pytest.MonkeyPatch) -> None:
    old = TensorRtVersion("tensorrt", "8.6.1", "version 8.6.1 is installed, 10.x or 11.x is needed")
    monkeypatch.setattr("ptsr_edge.runtimes.tensorrt.find_version", lambda _name: old)
    with pytest.raises(JobError, match=r"10.x or 11.x is needed"):
        choose_version("tensorrt")


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
     '{"engine": {"gpu": 7}}', '{"engine": {"capabilities": 7}}', "[" * 100_000, "\xff", '{"engine": {"bytes": Infinity}}',
     '{"engine": {"capabilities": "SM86"}}', '{"engine": {"capabilities": ["/etc/passwd"]}}',
     '{"engine": {"gpu": {"capability": ""}}}'],
    ids=lambda text: text[:30] or "empty",
)  # fmt: skip
def test_a_damaged_record_is_refused(tmp_path: Path, record: str) -> None:
    path = plan_file(tmp_path)
    path.with_suffix(".build.json").write_text(record, encoding="latin-1")
    with pytest.raises(JobError, match=r"model\.build\.json is damaged"):
        read_plan(path)


def test_a_pipe_is_no_plan_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.plan")
    with pytest.raises(JobError, match=r"model\.plan is no file"):
        read_plan(tmp_path / "model.plan")


def test_another_version_is_refused_with_what_mends_it() -> None:
    plan = TensorRtPlan(Path("bundle/model.plan"), "tensorrt", "10.3.0.30", ("SM87",))
    require_version(plan, "10.3.0.30")
    fault = r"built by tensorrt 10\.3\.0\.30, here is 10\.16\.0\.1, .*: run `python3 -m ptsr_edge"
    with pytest.raises(JobError, match=fault):
        require_version(plan, "10.16.0.1")


def test_another_gpu_is_refused_with_what_mends_it() -> None:
    plan = TensorRtPlan(Path("bundle/model.plan"), "tensorrt-rtx", "1.7.1.116", ("SM86", "SM89"))
    require_capability(plan, {"name": "RTX 3060", "capability": "SM86"})
    fault = r"built for SM86, SM89, the GPU here is H100 \(SM90\): run `python3 -m ptsr_edge\.runtimes\.build_on_device BUNDLE`"
    with pytest.raises(JobError, match=fault):
        require_capability(plan, {"name": "H100", "capability": "SM90"})


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real plan for SM86 and SM89."""
    folder = tmp_path_factory.mktemp("trt") / "bundle"
    asked = request(folder, "fp16", flavour="tensorrt-rtx", compute_capabilities=["8.6", "8.9"])
    return TrtTarget().build(asked)[TOKENS].path


@needs_rtx
@no_gpu
def test_a_machine_without_a_gpu_is_told_what_is_needed(plan: Path) -> None:
    with pytest.raises(JobError, match=r"needs an NVIDIA GPU \(SM86, SM89\) and its driver; none was found"):
        TrtRunner(plan)
    assert "needs an NVIDIA GPU" in TrtRunner.why_not_here(plan, {})


@needs_rtx
def test_a_truncated_plan_is_not_opened(plan: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.plan"
    cut.write_bytes(plan.read_bytes()[:-1])
    with pytest.raises(JobError, match="truncated; export the bundle again"):
        TrtRunner(cut)


@needs_rtx
def test_a_plan_of_another_version_is_refused(plan: Path, tmp_path: Path) -> None:
    content = bytearray(plan.read_bytes())
    content[24:28] = bytes([1, 4, 0, 76])
    old = tmp_path / "old.plan"
    old.write_bytes(content)
    with pytest.raises(
        JobError, match=r"built by tensorrt-rtx 1\.4\.0\.76, here is .*build_on_device BUNDLE"
    ):
        TrtRunner(old)


@needs_rtx
def test_a_plan_for_another_gpu_is_refused(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptsr_edge.runtimes.tensorrt.cuda_devices", lambda: [ORIN])
    with pytest.raises(JobError, match=r"built for SM86, SM89, the GPU here is Orin \(SM87\): run `python3"):
        check_plan(plan)


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="tensorrt is installed here")
def test_a_plan_of_a_jetson_needs_its_tensorrt(tmp_path: Path) -> None:
    path = tmp_path / "orin.plan"
    path.write_bytes(b"ftrt" + bytes(20) + bytes([10, 3, 0, 30]) + bytes(100))
    with pytest.raises(
        MissingExtraError, match=r"needs tensorrt 10\.3\.0\.30, which is not installed .*JetPack"
    ):
        TrtRunner(path)


@no_gpu
def test_cuda_says_what_is_wrong() -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is missing: the extra trt brings it")
    with pytest.raises(JobError, match=r"cudaStreamCreate failed: .*driver"):
        Cuda().call("cudaStreamCreate")


def test_missing_cuda_bindings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("ptsr_edge.runtimes.tensorrt.importlib.import_module", missing)
    with pytest.raises(MissingExtraError, match=r"needs cuda-bindings: pip install .*\[trt\]"):
        Cuda()


@needs_rtx
@pytest.mark.skipif(not cuda_devices(), reason="running an engine needs an NVIDIA GPU; none is here")
def test_an_engine_answers_as_its_typed_graph(plan: Path) -> None:
    typed = TypedGraphRunner(plan.with_suffix(".onnx"))
    with TrtRunner(plan) as runner, TrtRunner(plan) as plain:
        plain._graph = None  # as where an engine cannot be captured
        for one in flows(3):
            logits, kept = runner.run(one[None])
            # Ten roundings of 4.9e-4 lie between either and the fp32 answer.
            np.testing.assert_allclose(logits, typed.run(one[None])[0], atol=1e-2)
            same, _ = plain.run(one[None])
            np.testing.assert_array_equal(logits, same)
            assert kept is not None
            assert kept.shape == (TOKENS,)
        with pytest.raises(InputError, match="the engine takes"):
            runner.run(np.zeros((1, 3, CONFIG.image_size, 1), np.float32))
