"""Runs that are repeated, on small real graphs; a test says what is stable, never a clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from bundle_data import write_pair

from ptsr_edge.profile import timing as measure
from ptsr_edge.profile import timing as profile_timing
from ptsr_edge.profile.profiler import profile_bundles
from ptsr_edge.profile.timing import TimingConfig

QUICK = TimingConfig(duration_s=0.05, min_runs=20, block=2)


@pytest.fixture(scope="module", autouse=True)
def short_runs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "WARM_UP_S", 0.0)
        patch.setattr(measure, "MIN_BLOCK_S", 0.001)
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("bundles"))


def test_an_unstable_run_is_measured_again_and_all_samples_are_kept(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, baseline = folders
    verdicts = iter(["a neighbour woke up", None])
    monkeypatch.setattr(profile_timing, "why_unstable", lambda *_: next(verdicts))
    setting = replace(QUICK, attempts=3)
    record = profile_bundles([bundle], out=tmp_path / "p", baseline=baseline, setting=setting)
    assert [attempt.unstable for attempt in record.attempts] == ["a neighbour woke up", None]
    for row in record.variants:
        assert (tmp_path / "p" / str(row.raw_samples)).is_file()
        assert (tmp_path / "p" / "attempt-1" / str(row.raw_samples)).is_file()


def test_attempts_are_bounded_and_the_last_one_is_named_unstable(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile_timing, "why_unstable", lambda *_: "always")
    setting = replace(QUICK, attempts=2)
    record = profile_bundles([folders[0]], out=tmp_path / "p", baseline=folders[1], setting=setting)
    assert [attempt.unstable for attempt in record.attempts] == ["always", "always"]
