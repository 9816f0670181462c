"""Engines are built by the real tensorrt-rtx, which needs no GPU for it, in this process and by the script as a device
runs it: alone in a bundle's folder, in a process of its own."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from no_network import FILTERED, KILL, NO_FILTER, confine
from onnx import TensorProto, helper
from typed_graphs import TOKENS, graph, request, small_graph

from ptsr_edge.export.targets.tensorrt import TrtTarget
from ptsr_edge.export.targets.typed_graph import product_types, to_strong_fp16
from ptsr_edge.runtimes import build_on_device
from ptsr_edge.runtimes.build_on_device import (
    BuildError,
    adopt,
    build,
    build_plan,
    build_with_trtexec,
    count_products,
    cuda_devices,
    judge_layers,
    load_tensorrt,
    main,
    parse_network,
    require_precision,
    runs_on,
    shared_log,
)

needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None,
    reason="tensorrt-rtx is missing: the extra trt-rtx brings it",
)
NAME = f"ptsr-test-trt-fp16-k{TOKENS}"
FP16 = {"precision": "fp16"}


@pytest.fixture(scope="module")
def rtx() -> ModuleType:
    return pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is missing: the extra trt-rtx brings it")


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "graph.onnx"
    onnx.save(model, path)
    return path


def test_the_network_tells_what_its_products_compute_in(rtx: ModuleType, tmp_path: Path) -> None:
    builder = rtx.Builder(shared_log(rtx))
    for model in (graph(), to_strong_fp16(graph())):
        network = parse_network(rtx, builder, saved(model, tmp_path))
        assert count_products(rtx, network) == Counter(product_types(model).values())


def test_kept_patches_come_out_as_int64(rtx: ModuleType, tmp_path: Path) -> None:
    network = parse_network(rtx, rtx.Builder(shared_log(rtx)), saved(to_strong_fp16(graph()), tmp_path))
    outputs = {network.get_output(i).name: network.get_output(i) for i in range(network.num_outputs)}
    assert outputs["kept"].dtype == rtx.DataType.INT64
    assert outputs["logits"].dtype == rtx.DataType.FLOAT


def test_a_graph_that_keeps_all_has_a_constant_output(rtx: ModuleType, tmp_path: Path) -> None:
    path = saved(to_strong_fp16(graph(36)), tmp_path)
    plan, record = build_plan("tensorrt-rtx", rtx, path, FP16, ["SM86"])
    assert plan[:4] == b"vtrt"
    assert record["capabilities"] == ["SM86"]


def test_an_fp32_graph_is_no_fp16_engine(rtx: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"graph\.onnx is not fp16: of its matrix products \d+ in fp32"):
        build_plan("tensorrt-rtx", rtx, saved(graph(), tmp_path), FP16, ["SM86"])


@pytest.mark.parametrize(
    ("operator", "attributes", "hint"),
    [
        ("NonZero", {}, "select a fixed number with TopK"),
        ("Unique", {"sorted": 1}, "select a fixed number with TopK"),
        ("Det", {}, "rewrite it with operators that TensorRT has"),
    ],
)
def test_a_refused_operator_is_named_with_a_hint(
    operator: str, attributes: dict[str, int], hint: str, rtx: ModuleType, tmp_path: Path
) -> None:
    node = helper.make_node(operator, ["flow"], ["logits"], "culprit", **attributes)
    path = saved(small_graph([node], [4, 4], {}), tmp_path)
    with pytest.raises(
        BuildError, match=f"refuses operator {operator} \\(node 'culprit' of graph.onnx\\): .*{hint}"
    ):
        parse_network(rtx, rtx.Builder(shared_log(rtx)), path)


def test_a_zero_point_is_refused_with_a_hint(rtx: ModuleType, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["flow", "scale", "zero"], ["int8"], "quantize"),
        helper.make_node("DequantizeLinear", ["int8", "scale", "zero"], ["logits"], "dequantize"),
    ]
    model = small_graph(nodes, [4, 4], {"scale": np.array(0.1, np.float32)})
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(128, np.uint8), "zero"))
    with pytest.raises(BuildError, match=r"QuantizeLinear .*signed int8 with zero point 0"):
        parse_network(rtx, rtx.Builder(shared_log(rtx)), saved(model, tmp_path))


def test_a_corrupt_graph_is_refused(rtx: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(b"garbage" * 9)
    with pytest.raises(BuildError, match=r"graph\.onnx"):
        parse_network(rtx, rtx.Builder(shared_log(rtx)), path)


def test_turing_refuses_fp32_products(rtx: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="FP32 GEMM is not supported"):
        build_plan("tensorrt-rtx", rtx, saved(graph(), tmp_path), {"precision": "fp32"}, ["SM75"])


@pytest.mark.skipif(bool(cuda_devices()), reason="a GPU is here")
def test_the_gpu_of_a_machine_without_one_is_refused(rtx: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"cannot build graph.onnx: .*CUDA"):
        build_plan("tensorrt-rtx", rtx, saved(to_strong_fp16(graph()), tmp_path), FP16, [])


@pytest.mark.parametrize(
    ("precision", "found", "fault"),
    [
        ("fp32", {"fp32": 3}, None),
        ("fp16", {"fp16": 3}, None),
        ("int8", {"int8": 2, "fp16": 1}, None),
        ("fp16", {"fp16": 2, "fp32": 1}, "is not fp16: of its matrix products 2 in fp16, 1 in fp32"),
        ("int8", {"int8": 1, "fp16": 2}, "expected 2 in int8"),
        ("int8", {"fp16": 3}, "is not int8"),
        ("fp32", {"fp16": 3}, "is not fp32"),
        ("fp16", {}, "of its matrix products none"),
    ],
)
def test_which_products_a_precision_allows(precision: str, found: dict[str, int], fault: str | None) -> None:
    settings = {"precision": precision, "products": {"int8": 2}}
    if fault is None:
        require_precision(Counter(found), settings, "engine")
    else:
        with pytest.raises(BuildError, match=fault):
            require_precision(Counter(found), settings, "engine")


@pytest.mark.parametrize("mark", ["Half", "Row major linear FP16 format"], ids=["TensorRT 10", "TensorRT 8"])
def test_an_engine_that_tells_its_types(mark: str) -> None:
    layers = json.dumps({"Layers": [{"Inputs": [{"Name": "x", "Format/Datatype": mark}]}]})
    assert judge_layers(layers, FP16, "engine")["tensor_types"] == {"fp32": 0, "fp16": 1, "int8": 0}
    with pytest.raises(BuildError, match="asked for int8, but the engine has"):
        judge_layers(layers, {"precision": "int8"}, "engine")


def test_an_engine_that_tells_nothing_is_not_judged() -> None:
    assert judge_layers('{"Layers": ["one", "two"]}', FP16, "engine") == {}


def test_a_missing_module_is_named() -> None:
    if find_spec("tensorrt"):
        pytest.skip("tensorrt is installed here")
    with pytest.raises(BuildError, match=r"no TensorRT here \(tensorrt: No module named 'tensorrt'"):
        load_tensorrt("tensorrt")


def test_the_device_script_needs_nothing_but_the_standard_library() -> None:
    imported = set()
    for node in ast.walk(ast.parse(Path(build_on_device.__file__).read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module.partition(".")[0])
    assert imported <= sys.stdlib_module_names


def test_a_mixed_graph_names_its_node(rtx: ModuleType, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["flow"], ["half"], "cast", to=TensorProto.FLOAT16),
        helper.make_node("Add", ["half", "flow"], ["logits"], "mixed"),
    ]
    with pytest.raises(BuildError, match=r"refuses operator Add \(node 'mixed'"):
        parse_network(rtx, rtx.Builder(shared_log(rtx)), saved(small_graph(nodes, [1, 4], {}), tmp_path))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with a typed graph and no engine, and a manifest that says so."""
    folder = tmp_path / "bundle"
    artifact = TrtTarget().build(request(folder, "fp16", onnx_only=True))[TOKENS]
    files = [
        {"path": f.name, "bytes": f.stat().st_size, "sha256": hashlib.sha256(f.read_bytes()).hexdigest()}
        for f in artifact.files
    ]
    variant = {
        "artifact": artifact.path.name, "files": files, "built_with": artifact.built_with,
        "runs_on": artifact.runs_on,
    }  # fmt: skip
    (folder / "bundle.json").write_text(json.dumps({"variants": [variant, {"files": []}]}))
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-I", str(folder / "build_on_device.py"), *arguments]
    return subprocess.run(call, capture_output=True, text=True, cwd="/", check=False)


@needs_rtx
def test_the_script_builds_all_of_its_folder_and_enters_it_into_the_manifest(bundle: Path) -> None:
    done = run(bundle, "--flavour", "tensorrt-rtx", "--compute-capability", "SM86")
    assert (done.returncode, done.stderr) == (0, "")
    plan = bundle / f"{NAME}.plan"
    assert done.stdout.split() == [str(plan)]
    variant = json.loads((bundle / "bundle.json").read_text())["variants"][0]
    assert variant["artifact"] == plan.name
    assert variant["runs_on"]["compute_capabilities"] == ["SM86"]
    for entry in variant["files"]:
        content = (bundle / entry["path"]).read_bytes()
        assert entry["bytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert len({entry["path"] for entry in variant["files"]}) == len(variant["files"]) == 5
    assert not [path for path in bundle.iterdir() if "partial" in path.name]


@needs_rtx
def test_the_package_builds_a_folder_without_running_anything_of_it(bundle: Path) -> None:
    (bundle / "build_on_device.py").write_text("raise SystemExit('a script of the bundle was run')")
    call = [
        sys.executable,
        "-m",
        "ptsr_edge.runtimes.build_on_device",
        str(bundle),
        "--flavour",
        "tensorrt-rtx",
    ]
    done = subprocess.run(
        [*call, "--compute-capability", "SM86"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [str(bundle / f"{NAME}.plan")]


@needs_rtx
def test_an_unknown_capability_fails_and_leaves_the_old_plan(bundle: Path) -> None:
    old = bundle / f"{NAME}.plan"
    old.write_bytes(b"old")
    done = run(bundle, "--flavour", "tensorrt-rtx", "--compute-capability", "SM90")
    assert done.returncode == 1
    assert done.stderr.startswith("build_on_device: TensorRT-RTX")
    assert "does not build for SM90" in done.stderr
    assert old.read_bytes() == b"old"


def test_a_changed_file_is_refused(bundle: Path) -> None:
    weights = bundle / "weights-trt-fp16.bin"
    weights.write_bytes(weights.read_bytes() + b"\0")
    with pytest.raises(BuildError, match=r"weights-trt-fp16\.bin is missing or has changed"):
        build(bundle / f"{NAME}.onnx", None, [])


@pytest.mark.parametrize("cut", [0, 1, 500])
def test_a_truncated_graph_is_refused(bundle: Path, cut: int) -> None:
    graph = bundle / f"{NAME}.onnx"
    graph.write_bytes(graph.read_bytes()[:cut])
    with pytest.raises(BuildError, match=r"\.onnx is missing or has changed since it was exported"):
        build(graph, None, [])


RECORD = f'{{"settings": {{"precision": "fp16", %s}}, "graph": {{"{NAME}.onnx": ""}}}}'


@pytest.mark.parametrize(
    "record",
    ["", "[]", "{}", "null", '{"settings": 7, "graph": {}}', '{"settings": {}, "graph": {}}',
     '{"settings": {"precision": "fp8"}, "graph": {}}', '{"settings": {"precision": "fp16"}, "graph": {}}',
     "[" * 100_000, *(RECORD % value for value in (
         '"products": []', '"products": 7', '"products": {"fp16": "1"}', '"tf32": 1e999', '"tf32": 18446744073709551616',
         '"tf32": NaN', r'"tf32": "\ud800"', f'"tf32": {"[" * 64 + "]" * 64}'))],
    ids=lambda text: text[:40] or "empty",
)  # fmt: skip
def test_a_damaged_record_is_refused(bundle: Path, record: str) -> None:
    (bundle / f"{NAME}.build.json").write_text(record)
    with pytest.raises(BuildError, match="missing or damaged"):
        build(bundle / f"{NAME}.onnx", None, [])


def test_a_record_that_is_no_text_or_no_file_is_told_in_a_short_line(bundle: Path) -> None:
    side = bundle / f"{NAME}.build.json"
    side.write_bytes(side.read_bytes().replace(b'"fp16"', b'"fp\xff16"'))
    with pytest.raises(BuildError, match="it is no UTF-8") as caught:
        build(bundle / f"{NAME}.onnx", None, [])
    assert len(str(caught.value)) < 400
    side.unlink()
    os.mkfifo(side)  # a read would wait for its writer, for ever
    with pytest.raises(BuildError, match="it is no file"):
        build(bundle / f"{NAME}.onnx", None, [])


@pytest.mark.parametrize(
    "manifest",
    ["", "[]", "{}", '{"variants": 7}', '{"variants": [{"files": [{}]}]}',
     '{"variants": [{"files": [{"path": "x"}], "built_with": []}]}', r'{"variants": [], "name": "\ud800"}'],
)  # fmt: skip
def test_a_damaged_manifest_is_found_before_the_building(bundle: Path, manifest: str) -> None:
    (bundle / "bundle.json").write_text(manifest)
    done = run(bundle)
    assert done.returncode == 1
    assert "bundle.json is damaged" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(bundle.glob("*.plan"))


def test_a_graph_that_is_not_there_is_a_wrong_call(bundle: Path) -> None:
    done = run(bundle, "nowhere.onnx")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "build_on_device: there is no graph at nowhere.onnx\n"


def test_a_folder_without_graphs_is_a_wrong_call(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "no graph with its .build.json in" in capsys.readouterr().err


def test_trtexec_stands_in_for_a_missing_module(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call as trtexec documents it; the program here only writes what trtexec would write."""
    program = bundle / "trtexec"
    layers = '{"Layers": [{"Outputs": [{"Name": "y", "Format/Datatype": "Half"}]}]}'
    program.write_text(
        f"#!{sys.executable}\nimport sys\n"
        "options = dict(a.lstrip('-').partition('=')[::2] for a in sys.argv[1:])\n"
        "assert {'onnx', 'stronglyTyped', 'skipInference', 'noTF32'} <= options.keys(), options\n"
        "open(options['saveEngine'], 'wb').write(b'ftrt' + bytes(20) + bytes([10, 3, 0, 30]) + bytes(9))\n"
        f"open(options['exportLayerInfo'], 'w').write({layers!r})\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(bundle), prepend=":")
    plan = bundle / "out.plan"
    record = build_with_trtexec(bundle / f"{NAME}.onnx", plan, {"precision": "fp16"})
    assert (record["flavour"], record["version"]) == ("tensorrt", "10.3.0.30")
    assert record["tensor_types"] == {"fp32": 0, "fp16": 1, "int8": 0}
    with pytest.raises(BuildError, match="asked for int8"):
        build_with_trtexec(bundle / f"{NAME}.onnx", plan, {"precision": "int8"})


def test_a_machine_without_any_tensorrt_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="neither a TensorRT module nor the program trtexec"):
        build_with_trtexec(tmp_path / "a.onnx", tmp_path / "a.plan", {"precision": "fp16"})


def test_what_an_engine_built_here_runs_on() -> None:
    gpu = {"name": "Orin", "capability": "SM87"}
    engine = {"flavour": "tensorrt", "version": "10.3.0", "capabilities": [], "gpu": gpu}
    assert runs_on({"engine": engine})["compute_capabilities"] == ["SM87"]


def test_a_folder_without_a_manifest_is_fine(tmp_path: Path) -> None:
    adopt(tmp_path, tmp_path / "a.onnx", {"engine": None})
    assert not any(tmp_path.iterdir())


@needs_rtx
@pytest.mark.skipif(not FILTERED, reason=NO_FILTER)
def test_the_builder_opens_no_socket(bundle: Path) -> None:
    """The kernel kills a process with SIGSYS that asks for a socket of the internet (seccomp)."""

    def isolated(call: list[str]) -> int:
        return subprocess.run(call, preexec_fn=confine(KILL), capture_output=True, check=False).returncode

    assert isolated([sys.executable, "-c", "import socket; socket.socket()"]) == -31
    script = str(bundle / "build_on_device.py")
    call = [sys.executable, "-I", script, "--flavour", "tensorrt-rtx", "--compute-capability", "SM86"]
    assert isolated(call) == 0
