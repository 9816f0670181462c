"""The script as a device runs it: alone in a bundle's folder, in a process of its own."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from no_network import FILTERED, KILL, NO_FILTER, confine
from typed_graphs import TOKENS, request

from ptsr_edge.export.targets.tensorrt import TrtTarget
from ptsr_edge.runtimes.build_on_device import BuildError, adopt, build, build_with_trtexec, main, runs_on

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt-rtx is missing: pip install 'ptsr-edge[trt]'",
)
NAME = f"ptsr-test-trt-fp16-k{TOKENS}"


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


@pytest.mark.parametrize(
    "record",
    ["", "[]", "{}", "null", '{"settings": 7, "graph": {}}', '{"settings": {}, "graph": {}}',
     '{"settings": {"precision": "fp8"}, "graph": {}}', '{"settings": {"precision": "fp16"}, "graph": {}}',
     "[" * 100_000],
    ids=lambda text: text[:40] or "empty",
)  # fmt: skip
def test_a_damaged_record_is_refused(bundle: Path, record: str) -> None:
    (bundle / f"{NAME}.build.json").write_text(record)
    with pytest.raises(BuildError, match="missing or damaged"):
        build(bundle / f"{NAME}.onnx", None, [])


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"variants": 7}', '{"variants": [{"files": [{}]}]}'])
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
    assert "no graph given" in capsys.readouterr().err


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
