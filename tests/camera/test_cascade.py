from __future__ import annotations

from pathlib import Path

import pytest
from bundle_data import write_tiny_bundle
from camera_data import cascade

from ptsr_edge.bundle import read_bundle, write_bundle
from ptsr_edge.camera.inference import cascade_of, goes_on, probability_margin
from ptsr_edge.core.errors import InputError


def test_the_margin_is_the_lead_over_the_second() -> None:
    assert probability_margin({"a": 0.2, "b": 0.7, "c": 0.1}) == pytest.approx(0.5)
    assert probability_margin([0.5, 0.5, 0.0]) == 0.0
    assert probability_margin([0.0, 1.0]) == 1.0


def test_a_margin_below_the_calibrated_one_goes_on() -> None:
    rule = cascade(margin=0.3)
    assert goes_on(rule, 0.29)
    assert not goes_on(rule, 0.3)
    assert not goes_on(cascade(margin=0.0), 0.0)


def test_the_rule_is_that_of_target_and_precision(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path)
    rules = [cascade(target="openvino"), cascade(margin=0.1), cascade(precision="int8")]
    write_bundle(tmp_path, bundle.model_copy(update={"cascades": rules}))
    again = read_bundle(tmp_path)
    assert cascade_of(again, again.variants[0]).margin == 0.1
    with pytest.raises(
        InputError, match=r"no calibrated cascade for cpu/fp32 \(it has none\): export it with --cas"
    ):
        cascade_of(bundle, bundle.variants[0])
