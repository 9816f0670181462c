"""What targets have in common: names of variants, and the interface that each of them keeps."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import numpy as np
import pytest

from ptsr_edge.core.config import LABELS, MODELS, Preprocess
from ptsr_edge.export.exporter import TARGETS
from ptsr_edge.export.targets.base import Artifact, BuildRequest, Target, variant_id
from ptsr_edge.runtimes.base import Runner


def request_for(folder: Path) -> BuildRequest:
    return BuildRequest(
        name="ptsr-test", graphs={}, precision="fp32", folder=folder, labels=list(LABELS),
        preprocess=Preprocess(image_size=32), calibration=np.zeros((0, 3, 32, 32), np.float32),
    )  # fmt: skip


def test_the_name_of_a_variant_tells_what_it_is() -> None:
    assert variant_id("ptsr-tiny", "cpu", "int8", 49) == "ptsr-tiny-cpu-int8-k49"


def test_no_two_variants_have_one_name() -> None:
    names = [
        variant_id(model, target.name, precision, tokens)
        for model in MODELS
        for target in TARGETS.values()
        for precision in target.precisions
        for tokens in (1, 11, 49, 196)
    ]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_is_known_by_its_name_and_has_precisions(name: str) -> None:
    target = TARGETS[name]
    assert target.name == name
    assert target.precisions[0] == "fp32", "what the others are compared with comes first"
    assert len(set(target.precisions)) == len(target.precisions)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("method", ["build", "runner"])
def test_a_target_takes_what_the_interface_says(name: str, method: str) -> None:
    expected = list(inspect.signature(getattr(Target, method)).parameters)
    assert ["self", *inspect.signature(getattr(TARGETS[name], method)).parameters] == expected
    assert list(inspect.signature(Runner.run).parameters) == ["self", "flow"]


def test_requests_and_artifacts_do_not_change_and_share_nothing(tmp_path: Path) -> None:
    first, second = request_for(tmp_path), request_for(tmp_path)
    assert first.options == {}
    assert first.options is not second.options
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.precision = "int8"  # type: ignore[misc]
    artifact = Artifact(tmp_path / "a", [tmp_path / "a"], {}, {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        artifact.path = tmp_path / "b"  # type: ignore[misc]
