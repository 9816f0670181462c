"""What a registry promises: a thing of its kind from outside of the package works through all stages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from ptsr_edge import Session
from ptsr_edge.__main__ import main
from ptsr_edge.core.config import parse
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.export.config import ExportConfig
from ptsr_edge.export.exporter import export_bundle
from ptsr_edge.runtimes.base import RUNTIMES, find_runtime, target_names

pytestmark = pytest.mark.slow

TOY = """
from ptsr_edge.runtimes.base import Runtime

TOY = Runtime(runner="toy_runner:ToyRunner", builder="toy_builder:ToyTarget", packages=("onnxruntime",), marker="D")
SHADOW = Runtime(runner="nowhere:Nobody", builder="nowhere:Nobody", packages=())
HOLLOW = Runtime(runner="toy_runner:ToyRunner", builder="no_such_builder:None", packages=("onnxruntime",))
NO_RUNTIME = "a text"
"""

RUNNER = '''
class ToyRunner:
    """Runs the graph that is in the file with ONNX Runtime."""

    def __init__(self, artifact, threads=None):
        import onnxruntime

        self.session = onnxruntime.InferenceSession(artifact.read_bytes(), providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def run(self, flow):
        outputs = dict(zip(self.names, self.session.run(None, {"flow": flow})))
        return outputs["logits"][0], outputs["kept"][0] if "kept" in outputs else None

    @staticmethod
    def why_not_here(artifact, runs_on):
        return ""
'''

BUILDER = '''
from toy_runner import ToyRunner

from ptsr_edge.export.targets.base import Artifact, TargetOptions, read_options, variant_id


class ToyOptions(TargetOptions):
    greeting: str = "none"


class ToyTarget:
    """Writes each graph with its weights inside, under a suffix of its own."""

    name, precisions, options = "toy", ("fp32",), ToyOptions

    def build(self, request):
        options = read_options(self, ToyOptions, request)
        built = {}
        for tokens, graph in request.graphs.items():
            path = request.folder / f"{variant_id(request.name, self.name, request.precision, tokens)}.toy"
            path.write_bytes(graph.model.SerializeToString())
            built[tokens] = Artifact(path, [path], {"greeting": options.greeting}, {"runtime": "toy", "device": "any"})
        return built

    def runner(self, artifact, threads):
        return ToyRunner(artifact.path, threads)
'''

ENTRY_POINTS = """
[ptsr_edge.targets]
toy = toy_target:TOY
cpu = toy_target:SHADOW
hollow = toy_target:HOLLOW
textual = toy_target:NO_RUNTIME
absent = no_such_package:TARGET
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package that brings a target, and some that are broken."""
    place = tmp_path / "site"
    (place / "toy-1.0.dist-info").mkdir(parents=True)
    (place / "toy-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (place / "toy-1.0.dist-info" / "entry_points.txt").write_text(ENTRY_POINTS)
    for name, source in {"toy_target": TOY, "toy_runner": RUNNER, "toy_builder": BUILDER}.items():
        (place / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("PYTHONPATH", str(place), prepend=os.pathsep)  # for processes that are started
    yield place
    for name in ("toy_target", "toy_runner", "toy_builder"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("toy")
def test_a_toy_target_is_exported_and_run(
    tiny_checkpoint: Path, tiny_bundle: Path, megc_folder: Path, random_flows: Any, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    export_bundle(
        out=bundle, checkpoint=tiny_checkpoint, calibration=megc_folder, budgets=(1.0, 0.5), target="toy",
        options={"greeting": "hello"}, cache=True,
    )  # fmt: skip
    session = Session.open(bundle, budget=0.5)
    assert session.variant.artifact == "ptsr-test-toy-fp32-k8.toy"
    assert session.variant.built_with["greeting"] == "hello"
    assert session.variant.parity is not None
    flow = random_flows(1)[0]
    expected = Session.open(tiny_bundle, budget=0.5).predict(flow).logits
    # The same float32 graph in the same runtime.
    np.testing.assert_allclose(session.predict(flow).logits, expected, atol=1e-5 * np.abs(expected).max())
    with pytest.raises(
        InputError, match=r"target toy has no option 'greting'; the nearest known is 'greeting'"
    ):
        parse(ExportConfig, {"target": "toy", "greting": "x"})


@pytest.mark.usefixtures("toy")
def test_a_toy_target_is_told_by_doctor_and_a_broken_one_harms_no_other() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ptsr_edge.doctor", "--json"], capture_output=True, text=True, check=True
    )
    targets = json.loads(done.stdout)["targets"]
    assert targets["toy"] == {"build": True, "run": True, "notes": [], "install": []}
    assert targets["cpu"]["run"]
    hollow = targets["hollow"]
    assert (hollow["build"], hollow["run"]) == (False, True), (
        "a module that is missing is told, not taken for there"
    )
    assert hollow["notes"] == ["target 'hollow' is broken: there is no module no_such_builder"]
    assert targets["absent"]["notes"] == [
        "target 'absent' is broken: no_such_package:TARGET cannot be loaded "
        "(ModuleNotFoundError: No module named 'no_such_package')"
    ]
    assert (targets["textual"]["build"], targets["textual"]["run"]) == (False, False)


@pytest.mark.usefixtures("toy")
def test_targets_of_other_packages_are_known_by_name_and_built_in_ones_win() -> None:
    assert target_names() == [*RUNTIMES, "absent", "hollow", "textual", "toy"]
    assert find_runtime("toy").marker == "D"
    assert find_runtime("cpu") is RUNTIMES["cpu"]
    with pytest.raises(JobError, match="textual' is broken: toy_target:NO_RUNTIME is no ptsr_edge.*Runtime"):
        find_runtime("textual")
    with pytest.raises(
        InputError, match="unknown target 'tyo'; accepted: cpu, openvino, trt, absent, hollow"
    ):
        find_runtime("tyo")


@pytest.mark.usefixtures("toy")
def test_no_other_package_is_imported_before_its_target_is_asked_for() -> None:
    program = (
        "import sys, ptsr_edge, ptsr_edge.doctor, ptsr_edge.export.cli; print('toy_target' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.usefixtures("toy")
def test_a_toy_target_is_profiled_and_reported(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    export_bundle(
        out=bundle, model="ptsr-nano", target="toy", budgets=(1.0, 0.5), calibration_samples=4, cache=True
    )
    profile = ["profile", "--bundle", bundle, "--out", tmp_path / "profile", "--duration-s", "0.1",
               "--processes", "1", "--attempts", "1"]  # fmt: skip
    report = ["report", "--profile", tmp_path / "profile", "--out", tmp_path / "report"]
    for call in (profile, report):
        done = CliRunner().invoke(main, [*map(str, call)])
        assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "profile" / "profile.json").read_text(encoding="utf-8"))
    measured = [variant for variant in record["variants"] if variant["target"] == "toy"]
    assert [variant["tokens"] for variant in measured] == [49, 49, 25], "the full-token baseline comes first"
    assert all(variant["latency_ms"]["p50"] > 0 for variant in measured)
    assert "toy" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
