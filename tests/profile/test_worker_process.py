"""The measuring process, called in this one: what it answers to which request."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_data import SIDE, write_tiny_bundle

from ptsr_edge.bundle import write_bundle
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.profile import worker_process
from ptsr_edge.vision.flow import to_input


def answers(*requests: dict[str, Any]) -> list[dict[str, Any]]:
    said = io.StringIO()
    worker_process.serve([json.dumps(request) + "\n" for request in requests], said)
    return [json.loads(line) for line in said.getvalue().splitlines()]


def test_timed_runs_counts_every_call() -> None:
    calls: list[int] = []

    def nap() -> None:
        calls.append(1)
        time.sleep(0.001)

    samples = worker_process.timed_runs(lambda: calls.append(1), 0.0, 9)
    assert len(calls) == len(samples) == 9
    calls.clear()
    samples = worker_process.timed_runs(nap, 0.01, 1)
    assert len(calls) == len(samples)
    # Ten milliseconds of sleeps of one and more are ten calls at most, each measured as one and more.
    assert len(samples) <= 10
    assert min(samples) >= 1_000_000


def test_requests_are_answered_line_by_line() -> None:
    answers = io.StringIO()
    worker_process.serve(
        ['{"op": "memory"}\n', '{"op": "block", "call": "x", "duration_s": 0, "runs": 1, "settle": 0}\n'],
        answers,
    )
    memory, refused = (json.loads(line) for line in answers.getvalue().splitlines())
    assert memory["peak_rss_bytes"] > 0
    assert refused == {
        "error": "nothing is loaded, or no call 'x'; accepted: infer, predict",
        "kind": "InputError",
    }


def test_load_and_block(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path, [0.5])
    load = {
        "op": "load", "bundle": str(tmp_path), "variant": bundle.variants[0].id, "threads": 1, "cpus": None,
        "seed": 3,
    }  # fmt: skip
    block = {"op": "block", "duration_s": 0.0, "runs": 4, "settle": 1}
    loaded, infer, predict, refused = answers(
        load, block | {"call": "infer"}, block | {"call": "predict"}, block | {"call": "train"}
    )
    assert sorted(loaded) == ["base_rss_bytes", "first_ms", "import_ms", "load_ms"]
    for timed in (infer, predict):
        assert len(timed["ns"]) == 4
        assert min(timed["ns"]) > 0
        assert timed["cpu_ns"] >= 0
    assert refused["kind"] == "InputError"


def test_the_input_is_seeded_and_its_strain_is_not_negative(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path, [0.5])
    flow, prepared = worker_process.make_input(bundle, 3)
    assert flow.shape == (SIDE, SIDE, 3)
    assert flow.dtype == prepared.dtype == np.float32
    assert flow[..., 2].min() >= 0
    assert np.array_equal(prepared, to_input(flow))
    assert np.array_equal(flow, worker_process.make_input(bundle, 3)[0])
    assert not np.array_equal(flow, worker_process.make_input(bundle, 4)[0])


def test_variants_by_id(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path)
    for variant in bundle.variants:
        assert worker_process.find_variant(bundle, variant.id) is variant
        assert worker_process.open_variant(tmp_path, variant, threads=1).variant == variant
    with pytest.raises(InputError, match="no variant 'x'; it has ptsr-test-cpu-fp32-k16, ptsr-test"):
        worker_process.find_variant(bundle, "x")


def test_two_variants_of_one_kind_are_not_mixed_up(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path, [0.5])
    twin = bundle.variants[0].model_copy(update={"id": "twin"})
    write_bundle(tmp_path, bundle.model_copy(update={"variants": [bundle.variants[0], twin]}))
    with pytest.raises(JobError, match="asked for twin, the session opened ptsr-test-cpu-fp32-k8"):
        worker_process.open_variant(tmp_path, twin, threads=1)


def test_the_process_ends_with_its_input_and_keeps_stdout_for_answers() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ptsr_edge.profile.worker_process"],
        input='{"op": "memory"}\n', capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["peak_rss_bytes"] > 0
