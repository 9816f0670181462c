"""The accuracy part of a profile: paired, by subject, without names."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from bundle_data import tiny_flows, write_pair

from ptsr_edge.bundle import read_bundle
from ptsr_edge.core.errors import InputError
from ptsr_edge.profile.accuracy import check_control_seeds, judge_entries, judged_record
from ptsr_edge.profile.variants import Entry
from ptsr_edge.stats.classification import paired_bootstrap


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    folders = write_pair(tmp_path_factory.mktemp("bundles"))
    found = []
    for folder in reversed(folders):
        bundle = read_bundle(folder)
        found += [Entry(variant.id, folder, bundle, variant, None) for variant in bundle.variants]
    return found


def test_answers_truth_and_subjects_can_be_paired_again(entries: list[Entry]) -> None:
    data = tiny_flows(24)
    found = judge_entries(entries, 1, (data, "held-out subjects"), {}, threads=1)
    assert found.judged is not None
    assert found.judged.truth == data.labels.tolist()
    base = found.accuracies[entries[0].id]
    for accuracy in found.accuracies.values():
        assert accuracy.predicted is not None
        hits = np.array(accuracy.predicted) == data.labels
        assert accuracy.uar == pytest.approx(np.mean([hits[data.labels == k].mean() for k in range(3)]))
        expected = paired_bootstrap(
            data.labels, np.array(base.predicted), np.array(accuracy.predicted), data.subjects, classes=3
        )
        assert (accuracy.uar_drop, accuracy.uar_drop_low, accuracy.uar_drop_high) == pytest.approx(expected)
    assert base.is_told_apart is False


def test_what_cannot_run_here_is_not_judged(entries: list[Entry]) -> None:
    refused = entries[2].id
    found = judge_entries(entries, 1, (tiny_flows(), "x"), {refused: "no GPU"}, threads=1)
    assert set(found.accuracies) == {entry.id for entry in entries} - {refused}
    assert found.kept is not None
    assert refused not in found.kept.kept


def test_subjects_become_numbers() -> None:
    data = dataclasses.replace(
        tiny_flows(4), subjects=np.array(["casme2/b", "casme2/a", "casme2/b", "smic/c"])
    )
    record = judged_record(data)
    assert record.subject == [0, 1, 0, 2]
    assert "casme2" not in record.model_dump_json()


def test_nothing_is_judged_without_samples(entries: list[Entry]) -> None:
    found = judge_entries(entries, 1, None, {}, threads=1)
    assert (found.accuracies, found.judged, found.kept, found.controls) == ({}, None, None, None)


def test_controls_need_the_weights(entries: list[Entry], capsys: pytest.CaptureFixture[str]) -> None:
    found = judge_entries(entries, 1, (tiny_flows(), "x"), {}, threads=1, control_seeds=1)
    assert found.controls is None
    assert "no controls of DTSM" in capsys.readouterr().err
    with pytest.raises(InputError, match="number of draws, 0 for no controls, got -1"):
        check_control_seeds(-1)
