"""The samples that a bundle is judged on: none that training saw, none with other classes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from bundle_data import TRAINED, tiny_flows, write_pair

from ptsr_edge.bundle import read_bundle
from ptsr_edge.core.errors import InputError
from ptsr_edge.evaluate.evaluation import is_random, judged_data


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("bundles"))


def test_subjects_seen_in_training_are_not_judged(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = read_bundle(folders[0]).model_copy(
        update={"provenance": TRAINED | {"train_subjects": ["s0", "s2"]}}
    )
    other = read_bundle(folders[1]).model_copy(update={"provenance": TRAINED | {"train_subjects": ["s1"]}})
    monkeypatch.setattr("ptsr_edge.evaluate.evaluation.load", lambda *_, **__: tiny_flows())
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
    monkeypatch.setattr("ptsr_edge.evaluate.evaluation.load", lambda *_, **__: odd)
    with pytest.raises(InputError, match="data synthetic has the classes a, b, c"):
        judged_data("synthetic", None, [read_bundle(folders[0])])


def test_random_weights_are_known_by_their_provenance(folders: tuple[Path, Path]) -> None:
    bundle = read_bundle(folders[0])
    assert not is_random(bundle)
    assert is_random(bundle.model_copy(update={"provenance": {"kind": "random"}}))
