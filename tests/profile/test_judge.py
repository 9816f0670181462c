"""Accuracy through artifacts, against the public call and the metrics' own formulas."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from bundle_data import TRAINED, tiny_flows, write_pair

from ptsr_edge.bundle import read_bundle
from ptsr_edge.core.errors import InputError
from ptsr_edge.evaluate.evaluation import is_random, judged_data
from ptsr_edge.profile.accuracy import grey_picture, judge, kept_patches
from ptsr_edge.session import Session
from ptsr_edge.stats.classification import confusion, uar, uf1


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("bundles"))


def test_accuracy_is_the_artifacts_own(folders: tuple[Path, Path]) -> None:
    bundle, _ = folders
    variant = read_bundle(bundle).variants[1]
    data = tiny_flows()
    found = judge(bundle, variant, data, "held-out subjects", threads=1)
    # The same through the public call, sample by sample, and the metrics' own tested formulas.
    session = Session.open(bundle, budget=0.5)
    labels = [data.label_names.index(session.predict(flow).label) for flow in data.flows]
    counts = confusion(data.labels, np.array(labels), 3)
    assert found.confusion == counts.tolist()
    assert (found.n, found.uar, found.uf1) == (12, uar(counts), uf1(counts))
    assert found.protocol == "held-out subjects"


def test_recorded_data_is_never_shown(folders: tuple[Path, Path]) -> None:
    bundle = read_bundle(folders[0])
    licensed = dataclasses.replace(tiny_flows(), source="megc-flow")
    assert kept_patches(bundle, {"half": (folders[0], bundle.variants[1])}, licensed) is None
    shown = kept_patches(bundle, {"half": (folders[0], bundle.variants[1])}, tiny_flows())
    assert shown is not None
    assert shown.kept == {"half": [list(range(8))] * 3}


def test_a_variant_that_keeps_all_shows_nothing(folders: tuple[Path, Path]) -> None:
    bundle = read_bundle(folders[0])
    shown = kept_patches(bundle, {"all": (folders[0], bundle.variants[0])}, tiny_flows())
    assert shown is not None
    assert shown.kept == {}


@pytest.mark.parametrize(
    ("size", "grid", "side"),
    [(112, 14, 56), (224, 14, 56), (28, 7, 28), (16, 4, 16), (120, 5, 40), (118, 59, 118)],
)
def test_pictures_keep_whole_patches(size: int, grid: int, side: int) -> None:
    # 120 of 5 patches: steps 2 (60 a side), then 3 (40): the first that fits into 56. 118 of 59 patches:
    # a patch is 2 pixels, and 59 a side is still too many, so nothing is averaged.
    strain = np.zeros((size, size), dtype=np.float32)
    strain[: size // grid, : size // grid] = 2.0
    picture = np.array(grey_picture(strain, grid))
    assert picture.shape == (side, side)
    assert picture[: side // grid, : side // grid].min() == picture.max() == 255
    assert picture.sum() == 255 * (side // grid) ** 2
    assert np.array(grey_picture(strain * 0, grid)).max() == 0


def test_subjects_seen_in_training_are_not_judged(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = read_bundle(folders[0]).model_copy(
        update={"provenance": TRAINED | {"train_subjects": ["s0", "s2"]}}
    )
    other = read_bundle(folders[1]).model_copy(update={"provenance": TRAINED | {"train_subjects": ["s1"]}})
    monkeypatch.setattr("ptsr_edge.data.datasets.load", lambda *_, **__: tiny_flows())
    data, protocol = judged_data("synthetic", None, [seen, other])
    assert data.subject_names == ["s3"]
    assert protocol == "held-out subjects"
    all_seen = seen.model_copy(update={"provenance": TRAINED | {"train_subjects": ["s0", "s1", "s2", "s3"]}})
    with pytest.raises(InputError, match="training has seen all 4 subjects"):
        judged_data("synthetic", None, [all_seen])


def test_data_with_other_classes_is_refused(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = dataclasses.replace(tiny_flows(), label_names=("a", "b", "c"))
    monkeypatch.setattr("ptsr_edge.data.datasets.load", lambda *_, **__: odd)
    with pytest.raises(InputError, match="data synthetic has the classes a, b, c"):
        judged_data("synthetic", None, [read_bundle(folders[0])])


def test_random_weights_are_known_by_their_provenance(folders: tuple[Path, Path]) -> None:
    bundle = read_bundle(folders[0])
    assert not is_random(bundle)
    assert is_random(bundle.model_copy(update={"provenance": {"kind": "random"}}))
