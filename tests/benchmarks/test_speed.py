"""The speed benchmark: real processes on a small graph; whoever fails is told, and the others are measured."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from profile_index import with_tables
from speed import environments
from speed.contenders import BASELINE, Contender, prepare
from speed.measure import Plan, ToolProcess, agreement_of, comparisons_of, fastest, measure, rows_of
from speed.record import SPEED, Row, Speed, read_speed
from speed.show import as_markdown, as_picture

from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.core.files import write_json
from ptsr_edge.profile.schema import Missing
from ptsr_edge.stats.latency import Block

INPUTS = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(48, 3)).astype(np.float32)
EAGER = INPUTS.reshape(2, 48).astype(np.float64) @ WEIGHTS


def linear(folder: Path) -> Contender:
    """The plain export of a network of one layer."""
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["flow"], ["x"]), helper.make_node("MatMul", ["x", "w"], ["logits"])], "linear",
        [helper.make_tensor_value_info("flow", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3])], [numpy_helper.from_array(WEIGHTS, "w")],
    )  # fmt: skip
    path = folder / "linear.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    np.save(folder / "inputs.npy", INPUTS)
    return Contender(
        name=f"{BASELINE}-nano", group="full ViT by others", label="plain export", runtime="ONNX Runtime", precision="fp32",
        tokens=49, keep_rate=1.0, macs=144, kind="onnxruntime", path=path, inputs=folder / "inputs.npy", eager=EAGER,
    )  # fmt: skip


@pytest.mark.slow
def test_who_fails_is_told_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = linear(tmp_path)
    others = [
        replace(base, name="same-nano"),
        replace(base, name="wrong-nano", eager=EAGER[::-1]),
        replace(base, name="gone-nano", path=tmp_path / "none.onnx"),
        replace(base, name="dies-nano"),
        replace(base, name="absent-nano", environment="litert"),
    ]
    monkeypatch.setattr(environments, "FOLDER", tmp_path / "environments")
    block = ToolProcess.block

    def die(self: ToolProcess, **asked: float) -> Block:
        if self._name == "dies-nano" and asked["duration_s"] < 0.1:  # after the warm-up
            os.kill(self.pid, signal.SIGKILL)
        return block(self, **asked)

    monkeypatch.setattr(ToolProcess, "block", die)
    plan = Plan(threads=1, rounds=6, processes=1)
    timings, missing = measure([base, *others], plan, "nano")
    assert {name: len(timing.blocks) for name, timing in timings.items()} == {"plain-nano": 6, "same-nano": 6}
    assert {name: why.kind for name, why in missing.items()} == {
        "wrong-nano": "failed", "gone-nano": "failed", "dies-nano": "failed", "absent-nano": "not_installed",
    }  # fmt: skip
    assert "does not agree" in missing["wrong-nano"].reason
    assert "SIGKILL" in missing["dies-nano"].reason
    assert "make bench-speed-peers" in missing["absent-nano"].reason

    rows = rows_of([base, *others], timings, missing, plan, "nano")
    assert [row.id for row in rows] == [f"{one.name}@1" for one in (base, *others)]
    assert rows[0].missing["ratio"].kind == "not_applicable"
    assert rows[1].agreement is not None
    assert rows[1].agreement.max_abs < 1e-4
    speed = record(rows)
    write_json(tmp_path / SPEED, speed.model_dump(mode="json"))
    assert read_speed(tmp_path / SPEED) == speed
    page = as_markdown(speed)
    assert "not measured: there is no environment litert: `make bench-speed-peers` makes it" in page
    quoted = with_tables(
        f"<!-- speed: {SPEED} same-nano@1 -->\nold\n<!-- end of speed -->", tmp_path / "page.md"
    )
    assert "\nold\n" not in quoted
    assert "| plain export | ONNX Runtime | fp32 | 49 | 144 |" in quoted
    with pytest.raises(InputError, match="has not measured none@1; it has plain-nano@1"):
        with_tables(quoted.replace("same-nano@1", "none@1"), tmp_path / "page.md")


def record(rows: list[Row]) -> Speed:
    return Speed(
        created="2026-01-15T00:00:00+00:00", command="python -m benchmarks.speed", rows=rows, comparisons=[], tools={"": {"numpy": "2"}},
        machine={"cpu": {"model": "Test CPU", "cores_visible": 2}}, method={"rounds": 6, "processes": 1}, baseline={"nano": "plain-nano"},
    )  # fmt: skip


def a_row(name: str, cpu_ms: float, wall_ms: float, threads: int = 1, **more: object) -> Row:
    latency = dict(p50=wall_ms, p90=wall_ms, p95=wall_ms, p99=wall_ms, min=wall_ms, mean=wall_ms, cv=0.0, n=1)
    ratio = dict(against="plain-nano@1", median=10 / cpu_ms, low=9 / cpu_ms, high=11 / cpu_ms)
    fields = dict(
        id=f"{name}@{threads}", name=name, group="ours", size="nano", threads=threads, label=name, runtime="ONNX Runtime",
        precision="fp32", tokens=13, keep_rate=0.25, macs=1, latency_ms=latency, cpu_ms=cpu_ms, ratio=ratio,
    )  # fmt: skip
    return Row.model_validate(fields | more)


def test_the_fastest_is_by_cpu_time_of_one_thread_and_by_the_wall_of_several() -> None:
    assert fastest([a_row("busy", 1, 9), a_row("slow", 2, 3)]) == a_row("busy", 1, 9)
    assert fastest([a_row("busy", 1, 9, 2), a_row("wide", 2, 3, 2)]) == a_row("wide", 2, 3, 2)
    assert fastest([]) is None


def test_a_picture_has_the_fastest_of_each() -> None:
    full = {"group": "full ViT by others", "keep_rate": 1.0}
    rows = [a_row("slow way", 5, 5, **full), a_row("quick way", 2, 2, **full), a_row("PTSR", 1, 1)]
    drawn = as_picture(record(rows))
    assert "quick way" in drawn
    assert "slow way" not in drawn


def test_a_picture_without_a_ratio_says_so() -> None:
    assert "No ratio is known" in as_picture(record([a_row("PTSR", 1, 1, ratio=None)]))


def blocks(ns: int) -> list[Block]:
    times = np.full(3, ns, dtype=np.int64)
    return [Block(times, times) for _ in range(6)]


def test_ours_is_compared_within_its_runtime_and_precision() -> None:
    from speed.measure import Timing

    rows = [
        a_row(f"{BASELINE}-nano", 12, 12, group="full ViT by others", keep_rate=1.0),
        a_row("evit", 3, 3, group="token reduction by others"),
        a_row("evit-int8", 1, 1, group="token reduction by others", precision="int8"),
        a_row("vit-nano-cpu", 8, 8, keep_rate=1.0),
        a_row("ptsr", 2, 2),
    ]
    timings = {row.name: Timing(blocks(round(1e6 * (row.cpu_ms or 0)))) for row in rows}
    found = comparisons_of(rows, timings, Plan(1, 6, 1))
    ratios = {one.against: one.ratio.median for one in found if one.ratio}
    # 12 / 2, 3 / 2 and not the int8 one, 8 / 2 of the fastest full ViT, which is the same one.
    assert ratios == pytest.approx({"plain-nano@1": 6, "evit@1": 1.5, "vit-nano-cpu@1": 4})
    assert len(found) == 5


@pytest.mark.parametrize(
    ("logits", "said"),
    [
        (np.zeros((2, 3)), "1 of them"),
        (np.full((2, 3), np.nan), "no finite"),
        (np.zeros((2, 2)), r"logits \(2, 2\)"),
    ],
)
def test_answers_that_do_not_agree_are_refused(logits: np.ndarray, said: str) -> None:
    with pytest.raises(JobError, match=said):
        agreement_of(logits, EAGER, "int8")


def test_a_plan_needs_rounds_for_an_interval() -> None:
    with pytest.raises(InputError, match="at least 6 rounds, got 5"):
        Plan(1, 5, 1)


def test_a_build_for_a_gpu_is_refused_and_the_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def answer(command: list[str]) -> str:
        asked.append(command)
        return json.dumps(
            {"install": [{"metadata": {"name": "torch"}}, {"metadata": {"name": "nvidia-cublas"}}]}
        )

    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    monkeypatch.setattr(environments, "_run", answer)
    with pytest.raises(JobError, match="a build for a GPU"):
        environments.make("litert")
    assert "--dry-run" in asked[-1]  # nothing was installed after it
    why = environments.python_of("litert")
    assert isinstance(why, Missing)
    assert "name an index with CPU builds in PIP_ARGS" in why.reason
    with pytest.raises(InputError, match="unknown environment 'litrt'.*nearest: litert"):
        environments.make("litrt")


@pytest.mark.slow
def test_hugging_faces_vit_has_the_same_weights(tmp_path: Path) -> None:
    prepared = prepare("nano", tmp_path)  # whose layer scale has to go into other weights
    assert prepared.checked.shape == (8, 3, 28, 28)
