"""The picture of where the time goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_data import make_profile, without, write_profile

from ptsr_edge.profile.schema import Stages
from ptsr_edge.report.comparison import compare, read_sources
from ptsr_edge.report.cost_charts import stages, stages_ms
from ptsr_edge.report.plotting import Picture
from ptsr_edge.report.recommendation import decide


def drawn(folder: Path) -> Picture:
    comparison = compare(read_sources([folder]))
    return stages(comparison, decide(comparison))


def test_parts_add_up_to_the_time_of_a_sample() -> None:
    record = Stages(
        flow_ms=2.0, strain_ms=0.5, normalise_ms=0.1, inference_ms=4.0, postprocess_ms=0.2,
        operators={"selection": 0.25, "matrix products": 0.75}, operators_why=None,
    )  # fmt: skip
    parts = stages_ms(record)
    assert parts == pytest.approx(
        {"flow and strain": 2.5, "matrix products": 3.0, "selection": 1.0, "before and after": 0.3}
    )
    assert list(parts)[1] == "matrix products"
    whole = stages_ms(record.model_copy(update={"operators": None, "flow_ms": None, "strain_ms": None}))
    assert whole == pytest.approx({"inference": 4.0, "before and after": 0.3})


def test_every_variant_has_its_bar_and_small_classes_share_one(tmp_path: Path) -> None:
    profile = make_profile(tmp_path)
    picture = drawn(tmp_path)
    assert picture.wide is not None
    assert picture.narrow is not None
    # Flow, three classes of operators, the others together, before and after.
    assert picture.wide.count("<title>") == 6 * len(profile.variants)
    assert picture.words.count("matrix products") == len(profile.variants)
    assert "other operators: " in picture.wide


def test_what_was_not_split_and_what_was_not_timed_is_said(tmp_path: Path) -> None:
    profile = make_profile(tmp_path)
    first = profile.variants[0]
    assert first.stages is not None
    unsplit = first.stages.model_copy(update={"operators": None, "operators_why": "no profiler"})
    write_profile(tmp_path, without(profile, stages=unsplit))
    assert f"{len(profile.variants)} of these could not be split" in drawn(tmp_path).caption
    write_profile(tmp_path, without(profile, stages=None))
    assert drawn(tmp_path).note == "Not drawn: stages were not timed."
