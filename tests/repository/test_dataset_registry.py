"""A data set of another package, found by its entry point alone, goes through every verb that takes data."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ptsr_edge.__main__ import main
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.data.datasets import data_names, dataset_origin, known_dataset, load
from ptsr_edge.export.exporter import data_fingerprint
from ptsr_edge.models.checkpoint import read_info

pytestmark = pytest.mark.slow

MODULE = '''\
"""What somebody else writes to add a data set: a loader and an entry."""
import numpy as np
from ptsr_edge.core.config import LABELS, Preprocess
from ptsr_edge.core.errors import InputError
from ptsr_edge.data.datasets import DatasetEntry, FlowDataset
from ptsr_edge.vision.flow import resize


def read(request):
    path = request.root / "toy.npz"
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    stored = np.load(path)
    places = request.choose(stored["subjects"].tolist())
    flows = np.stack([resize(flow, request.image_size) for flow in stored["flows"][places]])
    return FlowDataset(
        flows=flows,
        labels=stored["labels"][places],
        subjects=stored["subjects"][places],
        names=[f"toy/{place}" for place in places],
        label_names=LABELS,
        preprocess=Preprocess(image_size=request.image_size, flow="published", global_motion="none"),
        source=request.name,
    )


TOY = DatasetEntry(read, card="trained on toy data: for tests alone")
NO_ENTRY = "a string"
'''
POINTS = """\
[ptsr_edge.datasets]
toy = toy_expressions:TOY
synthetic = toy_expressions:TOY
wrong = toy_expressions:NO_ENTRY
broken = toy_expressions_that_are_gone:TOY
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data; the package that reads them is installed beside."""
    site = tmp_path / "site"
    about = site / "toy_expressions-1.2.dist-info"
    about.mkdir(parents=True)
    (site / "toy_expressions.py").write_text(MODULE, encoding="utf-8")
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: toy-expressions\nVersion: 1.2\n", encoding="utf-8"
    )
    (about / "entry_points.txt").write_text(POINTS, encoding="utf-8")
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "toy_expressions", raising=False)
    folder = tmp_path / "data"
    folder.mkdir()
    flows = np.random.default_rng(0).normal(0, 0.1, (36, 28, 28, 3)).astype(np.float32)
    labels = np.arange(36) % 3
    for flow, label in zip(flows, labels, strict=True):
        flow[9 * label : 9 * label + 9] += 1.0
    subjects = np.array([f"toy/{number // 6}" for number in range(36)])
    np.savez(folder / "toy.npz", flows=flows, labels=labels, subjects=subjects)
    return folder


def ptsr_edge(*arguments: object) -> Result:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done


def test_a_toy_data_set_goes_through_every_verb(root: Path, tmp_path: Path) -> None:
    checkpoint, bundle = tmp_path / "toy.safetensors", tmp_path / "bundle"
    data = ("--data", "toy", "--root", root)

    record = json.loads(ptsr_edge("data", "check", *data, "--json").stdout)
    (found,) = record["sets"]
    assert (record["ok"], found["name"], found["used"], found["subjects"]["used"]) == (True, "toy", 36, 6)
    assert {name: counts["used"] for name, counts in found["classes"].items()} == {
        "negative": 12, "positive": 12, "surprise": 12,
    }  # fmt: skip

    ptsr_edge("train", *data, "--model", "ptsr-nano", "--epochs", 1, "--clips", 3, "--device", "cpu",
              "--out", checkpoint)  # fmt: skip
    said = read_info(checkpoint).provenance
    assert (said["data"], said["card"]) == ("toy", "trained on toy data: for tests alone")

    ptsr_edge("export", "--checkpoint", checkpoint, "--budgets", "0.5", "--precision", "fp32",
              "--calibration", root, "--calibration-samples", 6, "--out", bundle)  # fmt: skip
    calibration = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["provenance"][
        "calibration"
    ]
    assert (calibration["data"], calibration["samples"]) == ("toy", 6)
    assert set(calibration["subjects"]) <= set(said["train_subjects"])

    judged = json.loads(ptsr_edge("evaluate", *data, "--bundle", bundle, "--json").stdout)
    (result,) = judged["results"]
    assert (judged["data"], result["n"]) == ("toy", 6)  # one of six subjects is held out


def test_a_request_is_answered_by_the_loader(root: Path) -> None:
    loaded = load("toy", root, image_size=16, subjects=["toy/4", "toy/1"], limit=2)
    assert loaded.subjects.tolist() == ["toy/1", "toy/1", "toy/4", "toy/4"]
    assert loaded.flows.shape == (4, 16, 16, 3)
    with pytest.raises(InputError, match="unknown subject 'toy/9'; there are 6"):
        load("toy", root, image_size=16, subjects=["toy/9"])


def test_names_are_listed_without_loading_anybodys_code(root: Path) -> None:
    del root
    assert data_names()[0] == "synthetic"
    assert {"toy", "wrong", "broken"} <= set(data_names())
    assert "toy" in ptsr_edge("train", "--help").stdout
    with pytest.raises(InputError, match=r"unknown data 'toi'; known: .*, toy, .*nearest: toy"):
        load("toi", image_size=28)
    assert "toy_expressions" not in sys.modules


def test_the_packages_own_data_come_first(root: Path) -> None:
    del root
    entry = known_dataset("synthetic")
    assert entry is not None
    assert entry.is_rendered
    assert "toy_expressions" not in sys.modules


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("broken", "cannot be loaded: ModuleNotFoundError: No module named 'toy_expressions_that_are_gone'"),
        ("wrong", "must be a DatasetEntry, found str"),
    ],
)
def test_a_broken_data_set_is_one_line_and_no_harm_to_the_others(root: Path, name: str, says: str) -> None:
    with pytest.raises(
        JobError, match=f"data '{name}' comes from the package toy-expressions, whose .*{says}"
    ):
        load(name, root, image_size=28)
    done = CliRunner().invoke(main, ["data", "check", "--data", name, "--root", str(root)])
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert len(load("toy", root, image_size=28)) == 36


def test_what_is_missing_is_told_by_the_check(root: Path, tmp_path: Path) -> None:
    del root
    (tmp_path / "empty").mkdir()
    done = CliRunner().invoke(main, ["data", "check", "--data", "toy", "--root", str(tmp_path / "empty")])
    assert done.exit_code == 1
    assert "toy.npz does not exist" in done.stdout


def test_an_export_is_made_anew_for_another_version_of_the_package(root: Path) -> None:
    assert dataset_origin("toy") == "toy-expressions 1.2"
    assert (dataset_origin("synthetic"), dataset_origin("nobodys")) == ("", "")
    before = data_fingerprint("toy", root)
    (about,) = (root.parent / "site").glob("*.dist-info")
    metadata = (about / "METADATA").read_text(encoding="utf-8").replace("1.2", "1.3")
    (about / "METADATA").write_text(metadata, encoding="utf-8")
    assert data_fingerprint("toy", root) != before
