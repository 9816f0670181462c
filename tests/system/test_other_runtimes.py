"""Artifacts without this package's `Session`: others' tools give its answers, on 32 rendered samples.

Model API, plain OpenVINO and ONNX Runtime, the programs in C++ and the client over HTTP in `examples`. What a machine lacks
is said: for `onnxruntime.cpp` the headers of ONNX Runtime, which its Python package does not hold.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import kserve_server
import numpy as np
import pytest
from numpy.typing import NDArray

from ptsr_edge import Session
from ptsr_edge.bundle import MANIFEST, read_bundle
from ptsr_edge.data.datasets import load
from ptsr_edge.export.exporter import export_bundle
from ptsr_edge.export.serving import write_layout
from ptsr_edge.session import choose_variant
from ptsr_edge.vision.flow import flow_sample, normalise, to_input

pytestmark = pytest.mark.slow

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino", reason="openvino is missing: the extra openvino brings it")
pytest.importorskip("nncf", reason="nncf is missing: the extra openvino-build brings it")

from ptsr_edge.runtimes.openvino import load_openvino  # noqa: E402

EXAMPLES = Path(__file__).parents[2] / "examples"
HEADERS = (
    os.environ.get("PTSR_EDGE_ORT_INCLUDE", ""),
    "/usr/include/onnxruntime",
    "/usr/local/include/onnxruntime",
)
BUDGET = 0.25
KINDS = [("cpu", "fp32"), ("cpu", "int8"), ("openvino", "fp32"), ("openvino", "int8")]

Answers = list[tuple[str, NDArray[np.float64]]]
"""A label and the probabilities of all classes, for each sample."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model at a quarter of the tokens."""
    folder = tmp_path_factory.mktemp("others") / "bundle"
    export_bundle(
        out=folder, target=("cpu", "openvino"), precisions=("fp32", "int8"), budgets=(BUDGET,),
        calibration_samples=32, cache=True,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def flows() -> NDArray[np.float32]:
    """(32, S, S, 3)."""
    return load("synthetic", image_size=112, subjects=("synthetic/128", "synthetic/159"), limit=16).flows


@pytest.fixture(scope="module")
def expected(bundle: Path, flows: NDArray[np.float32]) -> dict[tuple[str, str], Answers]:
    found: dict[tuple[str, str], Answers] = {}
    for target, precision in KINDS:
        session = Session.open(bundle, budget=BUDGET, target=target, precision=precision, threads=1)
        predictions = [session.predict(flow) for flow in flows]
        found[target, precision] = [(p.label, np.array([*p.probabilities.values()])) for p in predictions]
    assert len({label for label, _ in found["cpu", "fp32"]}) == 3, "samples of one class would show little"
    return found


def artifact_of(bundle: Path, target: str, precision: str) -> Path:
    return bundle / choose_variant(read_bundle(bundle), bundle, BUDGET, target, precision).artifact


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def answers_of(bundle: Path, logits: Sequence[NDArray[np.float32]]) -> Answers:
    labels = read_bundle(bundle).labels
    return [(labels[int(one.argmax())], softmax(one)) for one in logits]


def printed(text: str) -> Answers:
    """What the examples print: a line a sample, its label and the probabilities."""
    lines = [line.split() for line in text.splitlines()]
    return [(label, np.array(shares, np.float64)) for label, *shares in lines]


def check_same(found: Answers, expected: Answers, atol: float = 2e-6) -> None:
    """Labels are the same; probabilities are printed with six decimals."""
    assert len(found) == len(expected) == 32
    assert [label for label, _ in found] == [label for label, _ in expected]
    np.testing.assert_allclose(
        [shares for _, shares in found], [shares for _, shares in expected], rtol=0, atol=atol
    )


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_plain_onnx_runtime(
    bundle: Path, flows: NDArray[np.float32], expected: dict[tuple[str, str], Answers], precision: str
) -> None:
    import onnxruntime as ort

    session = ort.InferenceSession(artifact_of(bundle, "cpu", precision), providers=["CPUExecutionProvider"])
    logits = [session.run(["logits"], {"flow": to_input(flow)})[0][0] for flow in flows]
    check_same(answers_of(bundle, logits), expected["cpu", precision])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_plain_openvino(
    bundle: Path, flows: NDArray[np.float32], expected: dict[tuple[str, str], Answers], precision: str
) -> None:
    core = load_openvino().Core()
    variant = choose_variant(read_bundle(bundle), bundle, BUDGET, "openvino", precision)
    compiled = core.compile_model(
        core.read_model(bundle / variant.artifact), "CPU", variant.runs_on["config"]
    )
    logits = [compiled([to_input(flow)])["logits"][0].copy() for flow in flows]
    check_same(answers_of(bundle, logits), expected["openvino", precision])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_model_api(
    bundle: Path, flows: NDArray[np.float32], expected: dict[tuple[str, str], Answers], precision: str
) -> None:
    load_openvino()  # its telemetry is off before Model API imports it
    if importlib.util.find_spec("model_api") is None:
        pytest.skip("Model API is missing: pip install openvino-model-api")
    from model_api.adapters import OpenvinoAdapter, create_core
    from model_api.models import Model

    variant = choose_variant(read_bundle(bundle), bundle, BUDGET, "openvino", precision)
    path, config = str(bundle / variant.artifact), variant.runs_on["config"]
    model = Model.create_model(OpenvinoAdapter(create_core(), path, device="CPU", plugin_config=config))
    results = [model(normalise(flow)) for flow in flows]
    found = [(result.top_labels[0].name, np.asarray(result.raw_scores, np.float64)) for result in results]
    # Its softmax is in float32.
    check_same(found, expected["openvino", precision])


def test_model_api_left_alone_gives_the_same_labels(
    bundle: Path, flows: NDArray[np.float32], expected: dict[tuple[str, str], Answers]
) -> None:
    """By the path alone, as its own examples do: OpenVINO then takes bfloat16 where the CPU has it.

    Of two patches with nearly the same strain bfloat16 may keep the other one; probabilities are as near as its arithmetic is
    where the same are kept.
    """
    load_openvino()
    if importlib.util.find_spec("model_api") is None:
        pytest.skip("Model API is missing: pip install openvino-model-api")
    from model_api.models import Model

    model = Model.create_model(str(artifact_of(bundle, "openvino", "fp32")), device="CPU")
    found = [model(normalise(flow)) for flow in flows]
    shares = np.array([result.raw_scores for result in found])
    session = Session.open(bundle, budget=BUDGET, target="openvino", precision="fp32", threads=1)
    compiled = model.inference_adapter.compiled_model
    swapped = np.array(
        [
            len(
                {*compiled([normalise(flow)[None]])["kept"][0].tolist()}
                - {*session.predict(flow).kept_tokens.tolist()}
            )
            for flow in flows
        ]
    )
    assert swapped.max() <= 1
    assert swapped.sum() <= 2
    exact = np.array([one for _, one in expected["openvino", "fp32"]])
    np.testing.assert_allclose(shares[swapped == 0], exact[swapped == 0], rtol=0, atol=0.01)
    for result, (label, probabilities) in zip(found, expected["openvino", "fp32"], strict=True):
        first, second, *_ = sorted(probabilities, reverse=True)
        # Where two classes are nearly even, 8 bits, or a patch, may swap them.
        assert result.top_labels[0].name == label or first - second < 0.02


def compiled_program(folder: Path, name: str, arguments: Sequence[str]) -> Path:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler: apt-get install g++")
    program = folder / name
    source = EXAMPLES / "cpp" / f"{name}.cpp"
    call = [compiler, "-std=c++17", "-O2", "-Wall", "-Werror=return-type", str(source), *arguments]
    done = subprocess.run([*call, "-o", str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


@pytest.fixture(scope="module")
def in_cpp(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The programs that can be built here, by their target, against the libraries of the Python packages."""
    folder = tmp_path_factory.mktemp("cpp")
    programs = {}
    root = Path(load_openvino().__file__).parent
    (library,) = (root / "libs").glob("libopenvino.so*")
    arguments = ["-isystem", str(root / "include"), str(library), f"-Wl,-rpath,{library.parent}"]
    programs["openvino"] = compiled_program(folder, "openvino", arguments)
    include = next(
        (path for path in HEADERS if path and (Path(path) / "onnxruntime_cxx_api.h").is_file()), None
    )
    if include is not None:
        import onnxruntime

        (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*")
        (folder / "libonnxruntime.so.1").symlink_to(library)  # the name that the linker notes
        arguments = ["-isystem", include, str(folder / "libonnxruntime.so.1"), f"-Wl,-rpath,{folder}"]
        programs["cpu"] = compiled_program(folder, "onnxruntime", arguments)
    return programs


@pytest.mark.parametrize(("target", "precision"), KINDS)
def test_a_program_in_cpp(
    bundle: Path, flows: NDArray[np.float32], expected: dict[tuple[str, str], Answers], in_cpp: dict[str, Path],
    tmp_path: Path, target: str, precision: str,
) -> None:  # fmt: skip
    if target not in in_cpp:
        pytest.skip(
            "the headers of ONNX Runtime are missing: apt-get install libonnxruntime-dev (Debian 13 or later), or "
            "unpack a release and name its include folder in PTSR_EDGE_ORT_INCLUDE"
        )
    flows.tofile(tmp_path / "flow.bin")
    call = [str(in_cpp[target]), str(artifact_of(bundle, target, precision)), str(tmp_path / "flow.bin")]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check_same(printed(done.stdout), expected[target, precision])


@pytest.mark.parametrize("content", [b"", b"\0" * 10], ids=["empty", "cut"])
def test_a_program_in_cpp_refuses_what_is_no_sample(
    bundle: Path, in_cpp: dict[str, Path], tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "flow.bin").write_bytes(content)
    for target, program in in_cpp.items():
        call = [str(program), str(artifact_of(bundle, target, "fp32")), str(tmp_path / "flow.bin")]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.endswith("flow.bin must hold samples of 37632 float32\n")


def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / "http_client.py"), *arguments],
        capture_output=True, text=True, check=False,
        env={key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")},
    )  # fmt: skip


@pytest.mark.parametrize(("layout", "targets"), [("triton", {"cpu"}), ("ovms", {"openvino"})])
def test_the_client_over_http(
    bundle: Path, flows: NDArray[np.float32], expected: dict[tuple[str, str], Answers], tmp_path: Path,
    layout: str, targets: set[str],
) -> None:  # fmt: skip
    repository = tmp_path / "repository"
    for model in write_layout(bundle, layout, repository):
        if not any(f"-{target}-" in model.name for target in targets):
            shutil.rmtree(model)
    np.save(tmp_path / "flow.npy", flows)
    with kserve_server.serving(repository) as address:
        for target in targets:
            for precision in ("fp32", "int8"):
                variant = choose_variant(read_bundle(bundle), bundle, BUDGET, target, precision)
                done = ask(address, variant.id, str(bundle / MANIFEST), str(tmp_path / "flow.npy"))
                assert done.returncode == 0, done.stderr
                check_same(printed(done.stdout), expected[target, precision])


def test_the_client_over_http_takes_two_frames_and_says_what_is_wrong(bundle: Path, tmp_path: Path) -> None:
    # Smooth noise, and the same moved by a pixel and a bit.
    onset = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (128, 128), np.uint8), (0, 0), 2)
    shift = np.array([[1, 0.01, 1.3], [0, 1, 0.4]])
    apex = cv2.warpAffine(onset, shift, (128, 128), borderMode=cv2.BORDER_REPLICATE)
    for name, frame in (("onset", onset), ("apex", apex)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), frame)
    made = read_bundle(bundle)
    session = Session.open(bundle, budget=BUDGET, target="cpu", precision="fp32", threads=1)
    answer = session.predict(flow_sample(onset, apex, made.preprocess))
    write_layout(bundle, "triton", tmp_path / "repository")
    for model in (tmp_path / "repository").iterdir():
        if model.name != session.variant.id:
            shutil.rmtree(model)
    manifest, pictures = str(bundle / MANIFEST), [str(tmp_path / f"{name}.png") for name in ("onset", "apex")]
    with kserve_server.serving(tmp_path / "repository") as address:
        done = ask(address, session.variant.id, manifest, *pictures)
        assert done.returncode == 0, done.stderr
        ((label, shares),) = printed(done.stdout)
        assert label == answer.label
        np.testing.assert_allclose(shares, [*answer.probabilities.values()], rtol=0, atol=2e-6)
        np.save(tmp_path / "small.npy", np.zeros((28, 28, 3), np.float32))
        refused = {
            "404 ": (address, "other", manifest, *pictures),
            "found float32 (28, 28, 3)": (address, session.variant.id, manifest, str(tmp_path / "small.npy")),
            "bundle.json is no picture": (address, session.variant.id, manifest, pictures[0], manifest),
        }
        for said, call in refused.items():
            done = ask(*call)
            assert (done.returncode, done.stdout) == (1, "")
            assert said in done.stderr
            assert done.stderr.count("\n") == 1, "one line"
    done = ask(address, session.variant.id, manifest, *pictures)
    assert done.returncode == 1
    assert "Connection refused" in done.stderr


def test_the_server_of_these_tests_is_strict() -> None:
    """Each of these is refused by the protocol's servers too."""
    sound = {"inputs": [{"name": "flow", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}]}
    np.testing.assert_array_equal(kserve_server.read_input(sound, b"", (1, 2)), [[1.0, 2.0]])
    (given,) = sound["inputs"]
    faults = [
        {"name": "x"}, {"shape": [2]}, {"datatype": "FP64"}, {"data": [1.0]}, {"parameters": {"binary_data_size": 8}},
    ]  # fmt: skip
    for fault in faults:
        with pytest.raises(kserve_server.RefusedError):
            kserve_server.read_input({"inputs": [given | fault]}, b"", (1, 2))
    binary = {key: value for key, value in given.items() if key != "data"}
    binary |= {"parameters": {"binary_data_size": 8}}
    data = np.array([1, 2], "<f4").tobytes()
    np.testing.assert_array_equal(kserve_server.read_input({"inputs": [binary]}, data, (1, 2)), [[1.0, 2.0]])
    with pytest.raises(kserve_server.RefusedError, match="4 bytes came"):
        kserve_server.read_input({"inputs": [binary]}, data[:4], (1, 2))
    assert json.loads(json.dumps(sound)) == sound
