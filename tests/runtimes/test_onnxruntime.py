"""ONNX Runtime behind the common interface: right answers, no spinning, refusals in one line, nothing to send."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundle_data import SIDE, tiny_graph
from no_network import FILTERED, run_watched
from onnx import TensorProto, helper, numpy_helper
from typed_graphs import small_graph

from ptsr_edge.core.errors import JobError, MissingExtraError
from ptsr_edge.export.onnx_graph import write_sharing_weights
from ptsr_edge.runtimes.onnxruntime import PARAMETERS, OrtRunner, open_session

pytest.importorskip("onnxruntime")

TOKENS, CLASSES, WIDTH = 5, 3, 32


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ort") / "graph.onnx"
    onnx.save(tiny_graph(TOKENS, CLASSES, WIDTH), path)
    return path


def flow(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_the_answer_is_the_graphs(graph: Path, threads: int | None) -> None:
    weights = {t.name: numpy_helper.to_array(t).astype(float) for t in onnx.load(graph).graph.initializer}
    logits, kept = OrtRunner(graph, threads).run(flow())
    # relu(flow @ a) @ b in float64; 768 float32 terms of size 1, then 32 of size 30.
    expected = np.maximum(flow().reshape(1, -1) @ weights["a"], 0) @ weights["b"]
    np.testing.assert_allclose(logits, expected[0], rtol=1e-5, atol=1e-3)
    assert (logits.shape, logits.dtype) == ((CLASSES,), np.float32)
    assert kept is not None
    assert (kept.tolist(), kept.dtype) == (list(range(TOKENS)), np.int64)


def test_a_graph_that_keeps_all_has_no_tokens_to_name(tmp_path: Path) -> None:
    nodes = [
        onnx.helper.make_node("Flatten", ["flow"], ["flat"]),
        onnx.helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    constants = {"w": np.arange(6, dtype=np.float32).reshape(3, 2)}
    onnx.save(small_graph(nodes, [1, 3, 1, 1], constants), tmp_path / "all.onnx")
    one = np.array([1, 10, 100], np.float32).reshape(1, 3, 1, 1)
    logits, kept = OrtRunner(tmp_path / "all.onnx", threads=1).run(one)
    assert kept is None
    assert logits.tolist() == [0 + 20 + 400, 1 + 30 + 500]  # (1, 10, 100) @ [[0, 1], [2, 3], [4, 5]]


def test_outputs_are_known_by_name_and_not_by_place(graph: Path, tmp_path: Path) -> None:
    swapped = onnx.load(graph)
    outputs = list(swapped.graph.output)
    del swapped.graph.output[:]
    swapped.graph.output.extend(outputs[::-1])
    onnx.save(swapped, tmp_path / "swapped.onnx")
    found, expected = OrtRunner(tmp_path / "swapped.onnx", 1).run(flow()), OrtRunner(graph, 1).run(flow())
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_an_answer_is_not_overwritten_by_the_next(graph: Path) -> None:
    runner = OrtRunner(graph, threads=1)
    first, _ = runner.run(flow(0))
    copied = first.copy()
    second, _ = runner.run(flow(1))
    assert np.abs(second - copied).max() > 1
    np.testing.assert_array_equal(first, copied)


def test_weights_are_read_from_beside_the_graph(graph: Path, tmp_path: Path) -> None:
    model = onnx.load(graph)
    write_sharing_weights({tmp_path / "split.onnx": model}, tmp_path / "weights.bin")
    np.testing.assert_array_equal(
        OrtRunner(tmp_path / "split.onnx", 1).run(flow())[0], OrtRunner(graph, 1).run(flow())[0]
    )
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(JobError, match="cannot load split.onnx"):
        OrtRunner(tmp_path / "split.onnx", 1)


def test_every_parameter_reaches_the_session(tmp_path: Path) -> None:
    nodes = [
        onnx.helper.make_node("Relu", ["flow"], ["other"]),
        onnx.helper.make_node("Add", ["flow", "other"], ["sum"]),
        onnx.helper.make_node("LayerNormalization", ["sum", "scale", "bias"], ["normed"]),
        onnx.helper.make_node("Flatten", ["normed"], ["logits"]),
    ]
    constants = {name: np.ones(4, np.float32) for name in ("scale", "bias")}
    path = tmp_path / "norm.onnx"
    onnx.save(small_graph(nodes, [1, 2, 4], constants), path)

    def operators(**settings: str) -> set[str]:
        """What runs of the graph, by ONNX Runtime's own profiler."""
        session = open_session(path, 1, profile=tmp_path / "ops", settings=settings)
        session.run(None, {"flow": np.ones((1, 2, 4), np.float32)})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return {event["args"]["op_name"] for event in events if event.get("cat") == "Node"}

    assert "SkipLayerNormalization" not in operators()
    assert "SkipLayerNormalization" in operators(disabled_optimizers="")
    for parameter in PARAMETERS:
        if parameter.name == "disabled_optimizers":
            continue
        for value in parameter.values:
            options = open_session(path, settings={parameter.name: value}).get_session_options()
            if parameter.name.startswith("session."):
                assert options.get_session_config_entry(parameter.name) == value
            else:
                found = getattr(options, parameter.name)
                assert getattr(found, "name", found) == value


COPIES = """
import pathlib, sys
import numpy as np
from ptsr_edge.runtimes.onnxruntime import OrtRunner

def anonymous_bytes():  # memory that is the process's own and no mapped file's
    lines = pathlib.Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))

first, *others = [pathlib.Path(name) for name in sys.argv[3:]]
flow = np.load(sys.argv[1])
share = sys.argv[2] == "True"
runners = [OrtRunner(first, threads=1, share_weights=share)]
runners[0].run(flow)
before = anonymous_bytes()
runners += [OrtRunner(path, threads=1, share_weights=share) for path in others]
print([runner.run(flow)[0].tolist() for runner in runners])
print(anonymous_bytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="no smaps: not Linux")
@pytest.mark.parametrize("share", [False, True])
def test_graphs_of_one_weights_file_can_share_it_in_memory(tmp_path: Path, share: bool) -> None:
    models = {tmp_path / f"{name}.onnx": tiny_graph(TOKENS, CLASSES, width=4096) for name in "abc"}
    weights = tmp_path / "weights.bin"
    write_sharing_weights(models, weights)
    np.save(tmp_path / "flow.npy", flow())
    call = [sys.executable, "-c", COPIES, str(tmp_path / "flow.npy"), str(share), *map(str, models)]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    answers, grown = (json.loads(line) for line in done.stdout.splitlines())
    copies = grown / weights.stat().st_size
    assert (copies < 0.2) if share else (copies > 1.8), copies  # of the second and third graph
    # The same products with sums in another order: 4096 terms in float32.
    expected = OrtRunner(tmp_path / "a.onnx", threads=1).run(flow())[0]
    np.testing.assert_allclose(
        answers, np.tile(expected, (3, 1)), rtol=1e-4, atol=1e-4 * np.abs(expected).max()
    )


def test_idle_threads_do_not_spin(graph: Path) -> None:
    runner = OrtRunner(graph, threads=4)
    runner.run(flow())
    before = time.process_time()
    time.sleep(0.3)
    # Spinning, three threads would take up to .3 s of processor time for each core that they get.
    assert time.process_time() - before < 0.1


@pytest.mark.parametrize("content", [b"", b"no graph", None], ids=["empty", "garbage", "missing"])
def test_a_file_that_is_no_graph(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(JobError, match=r"ONNX Runtime [\d.]+ cannot load broken\.onnx: ") as caught:
        OrtRunner(path)
    assert "\n" not in str(caught.value)


def test_without_onnx_runtime(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"target cpu needs .*pip install .*\[ort\]"):
        OrtRunner(graph)


RUN_ONNX = """
import sys, numpy as np
from pathlib import Path
from ptsr_edge.runtimes.onnxruntime import OrtRunner
OrtRunner(Path(sys.argv[1]), threads=1).run(np.zeros((1, 3, 32, 32), np.float32))
"""
IMPORT_ONNX = "import time, onnxruntime; time.sleep(0.5)"


def test_onnx_runtime_keeps_nothing_to_send(tiny_bundle: Path, tmp_path: Path) -> None:
    """Its sender is C++ from 1.29 on, and starts with the import: it names the device and stores its events."""
    artifact = next(tiny_bundle.glob("*.onnx"))
    done, tried, left = run_watched([sys.executable, "-c", RUN_ONNX, str(artifact)], tmp_path / "ours")
    assert (done.returncode, tried, left) == (0, "", []), done.stderr
    version = tuple(int(part) for part in metadata.version("onnxruntime").split(".")[:2])
    if version < (1, 29) or not FILTERED:
        pytest.skip(f"ONNX Runtime {version} has no sender here, or it could not be held back")
    # Without this package it does, or the test above could not fail. The kernel holds it back.
    _, _, left = run_watched([sys.executable, "-c", IMPORT_ONNX], tmp_path / "theirs")
    assert [name for name in left if "onnxruntime" in name]


def test_a_graph_that_cannot_be_computed_is_told_as_the_projects_error(tmp_path: Path) -> None:
    """Weights can hold any index; which of them is outside shows when the graph is computed."""
    nodes = [helper.make_node("Gather", ["flow", "places"], ["logits"], axis=3)]
    graph = helper.make_graph(
        nodes,
        "outside",
        [helper.make_tensor_value_info("flow", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([0, 400]), "places")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "outside.onnx")
    runner = OrtRunner(tmp_path / "outside.onnx", threads=1)
    with pytest.raises(JobError, match=r"ONNX Runtime cannot run outside\.onnx: .*out of data bounds"):
        runner.run(np.zeros((1, 3, 4, 4), np.float32))
