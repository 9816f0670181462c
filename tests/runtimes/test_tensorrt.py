"""What can be told of a plan without a GPU. Running one needs an NVIDIA GPU, and says so here."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from typed_graphs import CONFIG, TOKENS, flows, request

from ptsr_edge.core.errors import InputError, JobError, MissingExtraError
from ptsr_edge.export.targets.tensorrt import TrtTarget
from ptsr_edge.export.targets.typed_graph import TypedGraphRunner
from ptsr_edge.runtimes.build_on_device import describe_gpus
from ptsr_edge.runtimes.tensorrt import Cuda, TrtRunner, check_plan, why_not_here

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt-rtx is missing: pip install 'ptsr-edge[trt]'",
)
no_gpu = pytest.mark.skipif(bool(describe_gpus()), reason="a GPU is here")
ORIN = {"name": "Orin", "capability": "SM87"}


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
    assert "needs an NVIDIA GPU" in why_not_here(plan)


@needs_rtx
def test_a_truncated_plan_is_refused(plan: Path, tmp_path: Path) -> None:
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
    with pytest.raises(JobError, match=r"built by tensorrt-rtx 1\.4\.0\.76, here is .*build_on_device\.py"):
        TrtRunner(old)


@needs_rtx
def test_a_plan_for_another_gpu_is_refused(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptsr_edge.runtimes.tensorrt.describe_gpus", lambda: [ORIN])
    with pytest.raises(JobError, match=r"built for SM86, SM89, the GPU here is Orin \(SM87\): run `python3"):
        check_plan(plan)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed here")
def test_a_plan_of_a_jetson_needs_its_tensorrt(tmp_path: Path) -> None:
    path = tmp_path / "orin.plan"
    path.write_bytes(b"ftrt" + bytes(20) + bytes([10, 3, 0, 30]) + bytes(100))
    with pytest.raises(
        MissingExtraError, match=r"needs tensorrt 10\.3\.0\.30, which is not installed .*JetPack"
    ):
        TrtRunner(path)


@no_gpu
def test_cuda_says_what_is_wrong() -> None:
    pytest.importorskip(
        "cuda.bindings.runtime", reason="cuda-bindings is missing: pip install 'ptsr-edge[trt]'"
    )
    with pytest.raises(JobError, match=r"cudaStreamCreate failed: .*driver"):
        Cuda().call("cudaStreamCreate")


def test_missing_cuda_bindings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("ptsr_edge.runtimes.tensorrt.importlib.import_module", missing)
    with pytest.raises(MissingExtraError, match=r"needs cuda-bindings: pip install 'ptsr-edge\[trt\]'"):
        Cuda()


@needs_rtx
@pytest.mark.skipif(not describe_gpus(), reason="running an engine needs an NVIDIA GPU; none is here")
def test_an_engine_answers_as_its_typed_graph(plan: Path) -> None:
    typed = TypedGraphRunner(plan.with_suffix(".onnx"))
    with TrtRunner(plan) as runner, TrtRunner(plan, cuda_graph=False) as plain:
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
