"""Variants side by side: names, raw samples, what stands in no report, and how numbers are written."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_data import LABELS, compared, make_profile, without, write_profile

from ptsr_edge.core.errors import InputError
from ptsr_edge.report.comparison import (
    ComparedVariant,
    bytes_text,
    difference_text,
    pareto,
    quantity,
    ratio_text,
    raw_samples,
    read_sources,
    rounded_up,
    sentence,
    signed,
    three_digits,
    uar_bounds,
    undominated,
)
from ptsr_edge.stats.latency import Ratio


def test_names_hold_only_what_differs(tmp_path: Path) -> None:
    make_profile(tmp_path / "one")
    assert [row.name for row in compared(tmp_path / "one").rows] == ["full ViT", "100 %", "50 %", "25 %"]
    make_profile(tmp_path / "two", rates=(0.125,), precisions=("int8", "fp32"), uars={0.125: 0.8})
    names = [row.name for row in compared(tmp_path / "two").rows]
    assert names == ["full ViT fp32", "full ViT int8", "12.5 % fp32", "12.5 % int8"]


def test_names_differ_in_any_case(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "one")
    same = [row.model_copy(update={"keep_rate": 0.25}) for row in profile.variants]
    write_profile(tmp_path / "one", profile.model_copy(update={"variants": same}))
    names = [row.name for row in compared(tmp_path / "one").rows]
    assert len(set(names)) == len(names)


def test_a_variant_is_compared_with_what_it_was_measured_against(tmp_path: Path) -> None:
    make_profile(tmp_path / "one", precisions=("fp32", "int8"))
    comparison = compared(tmp_path / "one")
    for row in comparison.rows:
        if not row.is_baseline:
            reference = comparison.reference(row)
            assert reference is not None
            assert row.measured.ratio is not None
            assert reference.measured.id == row.measured.ratio.against


def test_two_profiles_get_two_names_and_keep_their_baselines(tmp_path: Path) -> None:
    for parent in ("a", "b"):
        make_profile(tmp_path / parent / "profile")
    comparison = compared(tmp_path / "a" / "profile", tmp_path / "b" / "profile")
    assert [source.name for source in comparison.sources] == ["profile", "profile-2"]
    assert len({row.name for row in comparison.rows}) == 8
    last = comparison.rows[-1]
    reference = comparison.reference(last)
    assert reference is not None
    assert reference.source is last.source


def test_pareto_is_what_brute_force_finds(tmp_path: Path) -> None:
    make_profile(tmp_path / "one", precisions=("fp32", "int8"), targets=("cpu", "openvino"))
    rows = compared(tmp_path / "one").rows
    points = {row: (row.p50_ms or 0.0, row.uar or 0.0) for row in rows}
    expected = {
        row
        for row, (time, uar) in points.items()
        if not any(
            other_time <= time and other_uar >= uar and (other_time, other_uar) != (time, uar)
            for other_time, other_uar in points.values()
        )
    }
    front = pareto(rows)
    assert set(front) == expected
    assert front == sorted(front, key=lambda row: points[row][0])


def test_what_nothing_beats_in_all_three(tmp_path: Path) -> None:
    make_profile(tmp_path / "one")
    *others, last = compared(tmp_path / "one").rows
    assert last.measured.latency_ms is not None
    slow = last.measured.latency_ms.model_copy(update={"p50": 1e3})
    small = replace(last, measured=last.measured.model_copy(update={"latency_ms": slow, "size_bytes": 1}))
    large = replace(last, measured=last.measured.model_copy(update={"latency_ms": slow, "size_bytes": 10**9}))
    # The slowest and least accurate is beaten by all, unless it is the smallest.
    assert small in undominated([small, *others])
    assert large not in undominated([large, *others])
    assert undominated([last, last]) == [last, last]


def test_accuracies_on_other_data_are_not_compared(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "one")
    last = profile.variants[-1]
    assert last.accuracy is not None
    other = last.model_copy(update={"accuracy": last.accuracy.model_copy(update={"data": "smic"})})
    variants = [*profile.variants[:-1], other]
    write_profile(tmp_path / "one", profile.model_copy(update={"variants": variants}))
    names = [row.name for row in compared(tmp_path / "one").comparable()]
    assert names == ["full ViT", "100 %", "50 %"]


@pytest.mark.parametrize("raw", ["npz", "npy"], ids=["nanoseconds", "milliseconds"])
def test_raw_samples_are_milliseconds(tmp_path: Path, raw: str) -> None:
    make_profile(tmp_path / "one", raw=raw, samples=300)
    for row in compared(tmp_path / "one").rows:
        samples, _ = raw_samples(row)
        assert samples is not None
        assert samples.size == 300
        assert np.median(samples) == pytest.approx(row.p50_ms, rel=1e-5)


def spoil_nothing(_: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("stored", "spoil", "reason"),
    [
        (None, spoil_nothing, "no raw samples were recorded"),
        ("samples/none.npz", spoil_nothing, "is not beside profile.json"),
        ("../other.npy", lambda at: np.save(at.parent / "other.npy", np.ones(3)), "outside"),
        ("bad.npz", lambda at: (at / "bad.npz").write_bytes(b"PK\3\4 not an archive"), "cannot be read"),
        ("bad.npy", lambda at: np.save(at / "bad.npy", np.array(["a"])), "cannot be read"),
        ("bad.npz", lambda at: np.savez(at / "bad.npz", other=np.ones(3)), "holds none of the arrays"),
        ("bad.npy", lambda at: np.save(at / "bad.npy", np.full(9, 8.1e6)), "median is not its p50"),
        ("bad.npy", lambda at: np.save(at / "bad.npy", np.zeros(0)), "median is not its p50"),
    ],
    ids=["none", "missing", "outside", "damaged", "no numbers", "other arrays", "other unit", "empty"],
)
def test_samples_that_cannot_be_used_say_why(tmp_path: Path, stored: str, spoil: Any, reason: str) -> None:
    profile = make_profile(tmp_path / "one")
    write_profile(tmp_path / "one", without(profile, raw_samples=stored))
    spoil(tmp_path / "one")
    samples, why = raw_samples(compared(tmp_path / "one").rows[0])
    assert samples is None
    assert reason in why


def change(**changes: Any) -> Any:
    def spoil(folder: Path) -> None:
        path = folder / "profile.json"
        record = json.loads(path.read_text())
        for place, value in changes.items():
            *parents, last = place.split("__")
            target = record
            for key in parents:
                target = target[int(key) if key.isdigit() else key]
            target[last] = value
        path.write_text(json.dumps(record))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "profile.json").unlink(), "does not exist"),
        (lambda folder: (folder / "profile.json").write_text("{"), "not a readable JSON"),
        (change(schema=3), "schema: Input should be 1 or 2"),
        (change(modle="x"), "the nearest known key is 'model'"),
        (change(variants=[]), "variants"),
        (change(variants__1__latency_ms__p50=float("nan")), "NaN is no number of JSON"),
        (change(variants__1__latency_ms__p50=0), "latency_ms.p50: Input should be greater than 0"),
        (change(variants__1__accuracy__confusion=[[1, 2], [3, 4]]), "must be 3 x 3"),
        (change(kept_patches__names=["one"]), "kept_patches must have"),
        (change(kept_patches__strain=[[[1, 2]]] * 3), "kept_patches must have"),
        (change(kept_patches__kept={"a": [[196], [0], [0]]}), "kept_patches must have"),
    ],
    ids=["missing", "no JSON", "schema", "key", "empty", "nan", "zero", "matrix", "names", "image", "patch"],
)
def test_a_bad_profile_is_one_line(tmp_path: Path, spoil: Any, message: str) -> None:
    make_profile(tmp_path / "one")
    spoil(tmp_path / "one")
    with pytest.raises(InputError, match=message) as error:
        read_sources([tmp_path / "one"])
    assert "\n" not in str(error.value)


def test_profiles_that_do_not_belong_together(tmp_path: Path) -> None:
    one, other, classes = tmp_path / "one", tmp_path / "other", tmp_path / "classes"
    make_profile(one)
    make_profile(other, model="ptsr-nano")
    make_profile(classes, labels=LABELS[::-1])
    with pytest.raises(InputError, match="no profile given"):
        read_sources([])
    with pytest.raises(InputError, match="given twice"):
        read_sources([one, tmp_path / "other" / ".." / "one"])
    with pytest.raises(InputError, match=r"'ptsr-nano'.*'ptsr-tiny': one report is about one model"):
        read_sources([one, other])
    with pytest.raises(InputError, match="surprise, positive, negative"):
        read_sources([one, classes])


def test_interval_of_uar_by_hand(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "one", samples=50, kept=False)
    accuracy = profile.variants[0].accuracy
    assert accuracy is not None
    matrix = [[8, 2, 0], [0, 20, 0], [5, 0, 35]]
    changed = accuracy.model_copy(update={"confusion": matrix})
    write_profile(tmp_path / "one", without(profile, accuracy=changed))
    row: ComparedVariant = compared(tmp_path / "one").rows[0]
    # Agresti & Coull: two hits and two misses more; UAR is the mean of three independent recalls.
    shares = [(10 / 14, 14), (22 / 24, 24), (37 / 44, 44)]
    by_hand = 1.96 * math.sqrt(sum(share * (1 - share) / count for share, count in shares)) / 3
    assert uar_bounds(row) == pytest.approx((accuracy.uar - by_hand, accuracy.uar + by_hand))


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0"), (999, "999"), (1234, "1.23 k"), (999_600, "1 M"), (540_000_000, "540 M"), (1.234e9, "1.23 G")],
)
def test_quantity(count: float, expected: str) -> None:
    assert quantity(count) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0536, "0.0536"), (0.79, "0.790"), (3.1, "3.10"), (9.996, "10.0"), (99.96, "100"), (1234.5, "1,234")],
)
def test_three_digits(value: float, expected: str) -> None:
    assert three_digits(value) == expected


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        ((2.61, 2.5, 2.7), "2.6x [2.5, 2.7]"),
        ((1.02, 0.99, 1.05), "1.02x [0.99, 1.05]"),
        ((2.61, 2.60, 2.62), "2.61x [2.60, 2.62]"),
    ],
)
def test_ratio_text_has_the_digits_that_its_interval_deserves(
    ratio: tuple[float, float, float], expected: str
) -> None:
    median, low, high = ratio
    assert ratio_text(Ratio(against="", median=median, low=low, high=high)) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (512, "512 B"), (1000, "1 kB"), (10_900_000, "10.9 MB"), (999_999_999, "1 GB")],
)
def test_bytes_text(count: int, expected: str) -> None:
    assert bytes_text(count) == expected


def test_signed() -> None:
    assert [signed(value) for value in (0.0124, -0.02, 0.0004)] == ["+0.012", "-0.020", "0.000"]


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ((0.02, -0.01, 0.05), "none [-0.010, +0.050]"),
        ((0.02, 0.0, 0.05), "none [0.000, +0.050]"),
        ((0.02, 0.01, 0.03), "+0.020 [+0.010, +0.030]"),
        ((-0.02, -0.03, -0.01), "-0.020 [-0.030, -0.010]"),
    ],
)
def test_a_difference_whose_interval_holds_zero_is_called_none(
    figures: tuple[float, float, float], text: str
) -> None:
    assert difference_text(*figures) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0301, "0.031"), (0.03, "0.030"), (0.0, "0.000"), (np.nextafter(0.03, 0), "0.030")]
)
def test_a_bound_is_rounded_upwards(value: float, text: str) -> None:
    assert rounded_up(value) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [("no clause", "No clause."), ("MACs leave out", "MACs leave out."), ("no sentence.", "No sentence.")],
)
def test_a_clause_becomes_a_sentence(text: str, expected: str) -> None:
    assert sentence(text) == expected
