"""The samples that a bundle is judged on: none that training saw, none with other classes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from bundle_data import TRAINED, tiny_flows, write_pair

from ptsr_edge.bundle import read_bundle
from ptsr_edge.core.errors import InputError
from ptsr_edge.data.datasets import load
from ptsr_edge.data.synthetic_clips import new_subject_names, subject_names
from ptsr_edge.evaluate.evaluation import is_random, judged_data
from ptsr_edge.export.calibration import JUDGED_SEED, SYNTHETIC_SEED


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


def test_new_people_are_seen_by_nothing_else(folders: tuple[Path, Path]) -> None:
    bundle = read_bundle(folders[0])
    data, protocol = judged_data("synthetic", None, [bundle], new=(3, 2))
    assert protocol == "subjects rendered to be judged alone"
    assert (len(data), len(data.subject_names)) == (6, 3)
    # No name is one that a checkpoint could have recorded, and no picture one of another stage.
    assert not set(data.subject_names) & set(subject_names())
    size = bundle.preprocess.image_size
    for seed in (0, SYNTHETIC_SEED, JUDGED_SEED):
        others = load("synthetic", image_size=size, subjects=subject_names()[:3], limit=2, seed=seed)
        for flow in data.flows:
            assert not (flow == others.flows).all(axis=(1, 2, 3)).any(), seed
    # More people are the same ones and others, so that a larger number judges no one twice.
    more, _ = judged_data("synthetic", None, [bundle], new=(4, 2))
    np.testing.assert_array_equal(more.flows[:6], data.flows)
    assert len(np.unique(more.flows, axis=0)) == 8


def test_a_model_that_saw_new_people_is_not_judged_on_them(folders: tuple[Path, Path]) -> None:
    """Whoever trains on them has their names in the provenance."""
    names = new_subject_names(3)
    seen = {"provenance": TRAINED | {"train_subjects": names[:2]}}
    bundle = read_bundle(folders[0]).model_copy(update=seen)
    assert judged_data("synthetic", None, [bundle], new=(3, 1))[0].subject_names == [names[2]]
    with pytest.raises(InputError, match="training has seen all 2 subjects"):
        judged_data("synthetic", None, [bundle], new=(2, 1))


def test_people_of_recorded_data_cannot_be_rendered(folders: tuple[Path, Path]) -> None:
    bundle = read_bundle(folders[0])
    with pytest.raises(InputError, match="which data casme2 cannot; accepted: synthetic"):
        judged_data("casme2", None, [bundle], new=(3, 1))
    with pytest.raises(InputError, match="is rendered and lies in no folder"):
        judged_data("synthetic", Path("x"), [bundle], new=(3, 1))


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
