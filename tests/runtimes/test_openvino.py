"""The real runtime, its precision read back, what is shared and kept, files that are not what they should be, and no event
that leaves.

OpenVINO's and NNCF's sender is absent before they are imported, or made dumb if it was there. The programs that show it
run in a process of their own: NNCF replaces its telemetry by a mock where pytest is loaded. The user's consent file
says yes, and whatever would reach for the network raises: a test that fails sends nothing.
"""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from no_network import CI
from openvino_models import request_for, samples, write_graphs

import ptsr_edge
from ptsr_edge.core.errors import InputError, JobError, MissingExtraError

ov = pytest.importorskip("openvino", reason="openvino is missing: the extra openvino brings it")

from ptsr_edge.export.targets.openvino import OpenVinoTarget  # noqa: E402
from ptsr_edge.runtimes import openvino  # noqa: E402
from ptsr_edge.runtimes.openvino import (  # noqa: E402
    DEVICE,
    OpenVinoRunner,
    check_precision,
    choose_precision,
    compile_model,
    load_openvino,
    matrix_products,
    read_ir,
    require_silenced,
    weights_of,
)

pytestmark = pytest.mark.slow

CAPABILITIES = ov.Core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
OPEN = """
import sys, pathlib
from ptsr_edge.runtimes.openvino import OpenVinoRunner
OpenVinoRunner(pathlib.Path(sys.argv[1]), threads=1)
"""


@pytest.fixture(scope="module")
def bundle(ptsr_config, randomised, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the IRs of two budgets in fp32 and bf16, and their two weights files."""
    folder = tmp_path_factory.mktemp("ovrun")
    graphs = write_graphs(folder / "graphs", randomised(ptsr_config(score="strain")))
    for precision in ("fp32", "bf16") if "BF16" in CAPABILITIES else ("fp32",):
        OpenVinoTarget().build(request_for(folder / "out", graphs, precision))
    return folder / "out"


@pytest.fixture
def artifact(bundle: Path) -> Path:
    return bundle / "ptsr-test-openvino-fp32-k8.xml"


def test_the_precision_is_set_and_read_back(artifact: Path) -> None:
    runner = OpenVinoRunner(artifact, threads=1)
    assert runner.inference_precision == "f32"
    assert set(runner.matrix_products) == {"f32"}


def test_the_same_input_gives_the_same_answer_again(artifact: Path) -> None:
    runner = OpenVinoRunner(artifact, threads=1)
    first, second = samples(2)
    logits, _ = runner.run(first[None])
    kept = logits.copy()
    runner.run(second[None])
    np.testing.assert_array_equal(logits, kept)  # an answer is the caller's own, not a view
    np.testing.assert_array_equal(runner.run(first[None])[0], kept)


def test_an_input_that_may_not_be_written_is_read_where_it_lies(artifact: Path) -> None:
    runner = OpenVinoRunner(artifact, threads=1)
    one = samples(1)
    expected = runner.run(one)[0]
    one.setflags(write=False)
    np.testing.assert_array_equal(runner.run(one)[0], expected)


def test_another_shape_or_type_is_refused(artifact: Path) -> None:
    runner = OpenVinoRunner(artifact, threads=1)
    with pytest.raises(InputError, match=r"takes float32 \(1, 3, 32, 32\), got float32 \(3, 32, 32\)"):
        runner.run(samples(1)[0])
    with pytest.raises(InputError, match="got float64"):
        runner.run(samples(1).astype(np.float64))


def test_idle_threads_do_not_spin(artifact: Path) -> None:
    runner = OpenVinoRunner(artifact, threads=2)
    runner.run(samples(1))
    started = time.process_time()
    time.sleep(0.3)
    # A thread that waits busily would use all of the .3 s.
    assert time.process_time() - started < 0.1


def test_of_several_precisions_the_first_that_the_cpu_can() -> None:
    assert choose_precision(["f16", "f32"], ["FP32", "INT8"], "x") == "f32"
    assert choose_precision(["f16", "f32"], ["FP32", "FP16"], "x") == "f16"
    with pytest.raises(JobError, match="x is to be calculated in bf16; OpenVINO on this CPU offers FP32"):
        choose_precision(["bf16"], ["FP32"], "x")


@pytest.mark.skipif("FP16" in CAPABILITIES, reason="this CPU calculates in float16")
def test_openvino_that_takes_another_precision_than_asked_for_is_caught(artifact: Path) -> None:
    # Asked for float16 on a CPU without, OpenVINO takes bfloat16 or float32 and says nothing.
    core = ov.Core()
    compiled = compile_model(core, read_ir(core, artifact), "f16", 1, artifact.name)
    with pytest.raises(JobError, match=r"was to be calculated in f16; OpenVINO made it b?f(16|32)"):
        check_precision(compiled, "f16", False, matrix_products(compiled), artifact.name)


def test_a_model_that_is_not_quantized_does_not_pass_for_int8(artifact: Path) -> None:
    core = ov.Core()
    compiled = compile_model(core, read_ir(core, artifact), "f32", 1, artifact.name)
    with pytest.raises(JobError, match="was to run its matrix products in i8 or u8"):
        check_precision(compiled, "f32", True, matrix_products(compiled), artifact.name)


@pytest.mark.skipif("BF16" not in CAPABILITIES, reason="OpenVINO offers no bfloat16 on this CPU")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN's limit on instruction sets is for x86-64")
def test_bf16_is_refused_where_the_instructions_are_missing(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    OpenVinoRunner(bundle / "ptsr-test-openvino-bf16-k8.xml", threads=1)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    call = [sys.executable, "-c", OPEN, str(bundle / "ptsr-test-openvino-bf16-k8.xml")]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert "ptsr_edge.core.errors.JobError: " in done.stderr
    assert "bf16" in done.stderr.splitlines()[-1]


def test_weights_are_found_beside_the_ir(tmp_path: Path) -> None:
    xml = tmp_path / "m-openvino-int8-k49.xml"
    assert weights_of(xml) == tmp_path / "m-openvino-int8-k49.bin"
    (tmp_path / "m-openvino-int8.bin").touch()  # as in bundles of older versions
    assert weights_of(xml) == tmp_path / "m-openvino-int8.bin"
    (tmp_path / "m-openvino-int8-k49.bin").touch()
    assert weights_of(xml) == tmp_path / "m-openvino-int8-k49.bin"
    assert weights_of(tmp_path / "model.xml") == tmp_path / "model.bin"


def test_a_bundle_of_an_older_version_is_read(artifact: Path, tmp_path: Path) -> None:
    expected, _ = OpenVinoRunner(artifact, threads=1).run(samples(1))
    shutil.copy(artifact, tmp_path)
    shutil.copy(artifact.with_suffix(".bin"), tmp_path / "ptsr-test-openvino-fp32.bin")
    found, _ = OpenVinoRunner(tmp_path / artifact.name, threads=1).run(samples(1))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("copied", [False, True], ids=["as exported", "each with weights of its own"])
def test_budgets_that_share_their_weights_answer_as_each_alone(
    bundle: Path, tmp_path: Path, copied: bool
) -> None:
    folder = bundle
    if copied:
        folder = Path(shutil.copytree(bundle, tmp_path / "copy"))
        own = weights_of(folder / "ptsr-test-openvino-fp32-k8.xml")
        own.write_bytes(
            own.read_bytes() + b"0"
        )  # longer than the others: no file that all could be read from
    artifacts = sorted(folder.glob("*-fp32-k*.xml"))
    sharing = OpenVinoRunner.open_sharing(artifacts, threads=1)
    assert len({id(runner._request) for runner in sharing}) == 1
    for _ in range(2):  # in turn, as a camera's budget goes up and down
        for artifact, runner in zip(artifacts, sharing, strict=True):
            one = samples(1)
            logits, kept = runner.run(one)
            expected, alone = OpenVinoRunner(artifact, threads=1).run(one)
            np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
            assert kept is not None
            assert alone is not None
            assert set(kept.tolist()) == set(alone.tolist())


def test_threads_that_share_a_runner_or_its_weights_get_their_own_answers(bundle: Path) -> None:
    inputs = [sample[None] for sample in samples(16)]
    artifacts = sorted(bundle.glob("*-fp32-k*.xml"))
    runners = [OpenVinoRunner(artifacts[0], threads=1), *OpenVinoRunner.open_sharing(artifacts, threads=1)]
    jobs = [(runner, one) for runner in runners for one in inputs] * 20
    alone = [runner.run(one) for runner, one in jobs[: len(jobs) // 20]] * 20
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda job: job[0].run(job[1]), jobs))
    for (logits, kept), (expected, expected_kept) in zip(together, alone, strict=True):
        np.testing.assert_array_equal(logits, expected)
        np.testing.assert_array_equal(kept, expected_kept)


@pytest.fixture(scope="module")
def quantized(ptsr_config, randomised, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ovint8")
    graphs = write_graphs(folder / "graphs", randomised(ptsr_config(score="strain")))
    return OpenVinoTarget().build(request_for(folder / "out", graphs, "int8"))[8].path


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The names of the models that are compiled from now on, with an empty cache."""
    seen: list[str] = []
    plain = openvino.compile_model

    def counted(core: Any, model: Any, precision: str, threads: int | None, name: str, *more: Any) -> Any:
        seen.append(name)
        return plain(core, model, precision, threads, name, *more)

    monkeypatch.setattr(openvino, "compile_model", counted)
    monkeypatch.setenv("PTSR_EDGE_CACHE", str(tmp_path / "cache"))
    return seen


def test_an_int8_model_is_compiled_once_and_answers_alike(quantized: Path, compilations: list[str]) -> None:
    first, second = (OpenVinoRunner(quantized, threads=1, digest="a") for _ in range(2))
    assert len(compilations) == 1
    assert (second.inference_precision, second.matrix_products) == ("f32", first.matrix_products)
    for one in samples(4):
        np.testing.assert_array_equal(second.run(one[None])[0], first.run(one[None])[0])


def test_other_files_or_threads_are_compiled_anew(quantized: Path, compilations: list[str]) -> None:
    for threads, digest in ((1, "a"), (2, "a"), (1, "b"), (1, "")):
        OpenVinoRunner(quantized, threads=threads, digest=digest)
    assert len(compilations) == 4


def test_settings_reach_the_compiled_model_also_from_the_cache(
    quantized: Path, compilations: list[str]
) -> None:
    told = []
    for settings in (None, {"ENABLE_CPU_PINNING": True}, {"ENABLE_CPU_PINNING": True}):
        runner = OpenVinoRunner(quantized, threads=1, digest="a", settings=settings)
        told.append(runner._request.get_compiled_model().get_property("ENABLE_CPU_PINNING"))
    assert told == [False, True, True]
    assert len(compilations) == 2, "the third is kept from the second"


def test_every_parameter_is_one_that_this_openvino_takes(artifact: Path) -> None:
    for parameter in OpenVinoRunner.parameters:
        for value in parameter.values:
            OpenVinoRunner(artifact, threads=2, settings={parameter.name: value}).run(samples(1))


@pytest.mark.parametrize("harm", ["a bit", "all of it"])
def test_a_spoiled_entry_is_compiled_anew(
    quantized: Path, compilations: list[str], tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = OpenVinoRunner(quantized, threads=1, digest="a").run(samples(1))[0]
    (entry,) = (tmp_path / "cache").rglob("*.entry")
    content = bytearray(entry.read_bytes())
    if harm == "a bit":
        content[-1000] ^= 1
        said = "its content has changed"
    else:  # whole by its hash, and not what OpenVINO writes
        content[4096:] = bytes(8000)
        content[:32] = hashlib.sha256(content[32:]).digest()
        said = "OpenVINO refuses what was kept"
    entry.write_bytes(content)
    with caplog.at_level("INFO", logger="ptsr_edge"):
        np.testing.assert_array_equal(
            OpenVinoRunner(quantized, threads=1, digest="a").run(samples(1))[0], expected
        )
    assert len(compilations) == 2
    assert said in caplog.text


def test_a_float_model_is_not_kept(artifact: Path, compilations: list[str], tmp_path: Path) -> None:
    for _ in range(2):
        OpenVinoRunner(artifact, threads=1, digest="a")
    assert len(compilations) == 2
    assert not (tmp_path / "cache").exists()


def test_a_corrupt_ir_is_refused(artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(artifact.parent, folder)
    (folder / artifact.name).write_text("<net>")
    with pytest.raises(JobError, match=f"OpenVINO cannot read {artifact.name}"):
        OpenVinoRunner(folder / artifact.name, threads=1)


def test_truncated_and_missing_weights_are_refused(artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(artifact.parent, folder)
    weights = weights_of(folder / artifact.name)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(JobError, match=f"OpenVINO cannot read {artifact.name}"):
        OpenVinoRunner(folder / artifact.name, threads=1)
    weights.unlink()
    with pytest.raises(
        JobError, match=r"openvino-fp32-k8\.bin is missing, or no manifest lists it: export the bundle again"
    ):
        OpenVinoRunner(folder / artifact.name, threads=1)


def test_an_ir_from_elsewhere_is_refused(tmp_path: Path) -> None:
    one = ov.opset13.parameter([1, 4], ov.Type.f32)
    ov.save_model(ov.Model([ov.opset13.relu(one)], [one], "m"), tmp_path / "m.xml")
    with pytest.raises(JobError, match="not an IR made by `ptsr-edge export`"):
        OpenVinoRunner(tmp_path / "m.xml")


def test_a_missing_openvino_names_its_extra(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_openvino() is ov
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[openvino\]"):
        OpenVinoRunner(artifact)


WATCH = """
import sys

def watch(event, arguments):
    # The sender forks, and connects from there.
    if event.startswith("socket.") or event in ("os.fork", "urllib.Request"):
        print("CALLS HOME", event, arguments, flush=True)
        raise RuntimeError("refused by the test")
"""

QUANTIZE = """
sys.addaudithook(watch)
from ptsr_edge.runtimes.openvino import require_silenced
ov = require_silenced("openvino", "openvino", "a test")
nncf = require_silenced("nncf", "openvino", "a test")
assert sys.modules["openvino_telemetry"] is None
import contextlib, io, logging
import numpy as np
nncf.set_log_level(logging.ERROR)
one = ov.opset13.parameter([1, 4], ov.Type.f32, name="one")
weights = ov.opset13.constant(np.ones((4, 4), np.float32))
model = ov.Model([ov.opset13.matmul(one, weights, False, False)], [one], "m")
with contextlib.redirect_stdout(io.StringIO()):
    model = nncf.quantize(model, nncf.Dataset([np.ones((1, 4), np.float32)]), subset_size=1)
assert ov.Core().compile_model(model, "CPU")([np.ones((1, 4), np.float32)])[0].shape == (1, 4)
print("quantized and ran")
"""

SENDER_FIRST = """
import openvino_telemetry
from ptsr_edge.runtimes.openvino import silence
sender = openvino_telemetry.Telemetry("a test", "1", "G-NONE", backend="ga4", enable_opt_in_dialog=False)
assert sender.consent
sys.addaudithook(watch)
silence()
sender.send_event("a", "b", "c", force_send=True)
sender.start_session("a")
sender.end_session("a")
sender.send_error("a", "b")
sender.send_stack_trace("a", "b")
sender.sender.send(sender.backend, {})
print("nothing sent")
"""


def run_consenting(program: str, home: Path) -> list[str]:
    """The lines that a program prints, run as a user who consented to telemetry."""
    consent = home / "intel" / "openvino_telemetry"
    consent.parent.mkdir()
    consent.write_text("1")
    outside_of_ci = {k: v for k, v in os.environ.items() if k not in CI}
    done = subprocess.run(
        [sys.executable, "-c", WATCH + program],
        capture_output=True, text=True, check=False, env=outside_of_ci | {"HOME": str(home)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_importing_quantizing_and_compiling_open_no_socket(tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="nncf is missing: the extra openvino-build brings it")
    assert run_consenting(QUANTIZE, tmp_path) == ["quantized and ran"]
    # A client id or usage counts would lie beside the consent.
    assert [path.name for path in (tmp_path / "intel").iterdir()] == ["openvino_telemetry"]


def test_a_sender_that_was_imported_before_is_silenced(tmp_path: Path) -> None:
    pytest.importorskip("openvino_telemetry", reason="openvino_telemetry is missing: it comes with nncf")
    assert run_consenting(SENDER_FIRST, tmp_path) == ["nothing sent"]


def test_the_package_imports_neither_in_another_way() -> None:
    for path in Path(ptsr_edge.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("require", "errors.require"):
                names = (
                    [str(ast.literal_eval(node.args[0]))] if isinstance(node.args[0], ast.Constant) else []
                )
            found = {name.partition(".")[0] for name in names} & {"openvino", "nncf"}
            assert not found, (
                f"{path.name}:{node.lineno} imports {found}; use runtimes.openvino.require_silenced"
            )


def test_what_is_missing_names_its_extra() -> None:
    with pytest.raises(MissingExtraError, match=r"pip install .*\[openvino\]"):
        require_silenced("no_such_openvino", "openvino", "a test")


def test_a_bundle_that_names_no_precision_cannot_run_here(artifact: Path) -> None:
    assert "does not say which precision" in OpenVinoRunner.why_not_here(artifact, {})


def spoilt(artifact: Path, folder: Path, kind: str, value: int) -> Path:
    """A copy of an IR in whose weights a constant that decides a Gather's places, or a Pad's amounts, is another."""
    copy = Path(shutil.copytree(artifact.parent, folder)) / artifact.name
    model = ov.Core().read_model(copy)
    names = [
        found.get_friendly_name()
        for node in model.get_ops()
        if node.get_type_name() == kind
        for found in [places_of(node.input_value(1).get_node())]
        if found is not None and found.get_data().size > 1
    ]
    data = ElementTree.parse(copy).getroot().find(f"layers/layer[@name='{names[0]}']/data")
    assert data is not None
    assert data.get("element_type") == "i64"
    weights = weights_of(copy)
    content = bytearray(weights.read_bytes())
    at = int(str(data.get("offset")))
    content[at : at + 8] = value.to_bytes(8, "little", signed=True)
    weights.unlink()  # it may be a further name of another's
    weights.write_bytes(content)
    return copy


def places_of(node: Any) -> Any:
    """The constant that an index comes from, through what hands it on."""
    while node.get_type_name() in openvino.MOVES:
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None


@pytest.mark.parametrize(
    ("kind", "value"), [("Gather", 10**9), ("Gather", -(10**9)), ("Pad", -(2**32)), ("Pad", 2**31)]
)
def test_places_from_outside_are_refused_before_openvino_goes_there(
    artifact: Path, tmp_path: Path, kind: str, value: int
) -> None:
    with pytest.raises(JobError, match=r"(takes the places|pads by) .*export the bundle again|cannot read"):
        OpenVinoRunner(spoilt(artifact, tmp_path / "copy", kind, value), threads=1)
