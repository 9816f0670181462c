"""Profiles in time: which changes are told, what a gate fails on, and what is acknowledged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report_data import changed, make_profile
from timings import ratio

from ptsr_edge.core.errors import InputError
from ptsr_edge.profile.schema import Profile
from ptsr_edge.report.comparison import Source
from ptsr_edge.report.history import (
    Acknowledged,
    History,
    acknowledge,
    changed_variants,
    count_rows,
    headline,
    history_lines,
    history_of,
    profile_folders,
    timelines,
)


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    return make_profile(tmp_path, samples=20, raw="none", kept=False)


RUN = {"MatMul": 20, "Transpose": 6, "Reorder": 2, "QuantizeLinear": 3, "DequantizeLinear": 4}


def at(profile: Profile, day: int, *, machine: str | None = None, **fields: Any) -> Source:
    """A profile of that day, on another machine if one is named, with fields of the second variant replaced."""
    cpu = {**profile.environment["cpu"], **({"model": machine} if machine else {})}
    made = changed(profile, **{"ratio": ratio(day, 1.0), "operators_run": RUN} | fields).model_copy(
        update={
            "created": f"2026-01-{day:02}T10:00:00+00:00",
            "environment": {**profile.environment, "cpu": cpu},
        }
    )
    return Source(f"p{day}", Path(f"p{day}"), made)


def history(*sources: Source, acknowledged: Acknowledged | None = None) -> History:
    return history_of(timelines(sources), acknowledged or Acknowledged(), "command")


MORE = {**RUN, "Transpose": 8}


def test_neighbours_in_time_are_compared_machine_by_machine(profile: Profile) -> None:
    # In any order; the other machine is faster as a whole and has other nodes, which is no change.
    found = history(
        at(profile, 3, ratio=ratio(3, 1.2)), at(profile, 1), at(profile, 2, machine="Other", operators_run=MORE),
        at(profile, 4, ratio=ratio(4, 1.2)),
    )  # fmt: skip
    assert [(machine.name, machine.folders) for machine in found.machines] == [
        ("Other, 1 thread", ["p2"]), ("Test CPU 3000, 1 thread", ["p1", "p3", "p4"]),
    ]  # fmt: skip
    (slower,) = found.findings
    assert (slower.variant, slower.result, slower.is_, slower.is_newest) == (
        profile.variants[1].id, "time", "worse", False,
    )  # fmt: skip
    assert (slower.before[:10], slower.created[:10]) == ("2026-01-01", "2026-01-03")
    threads = profile.model_copy(update={"method": {**profile.method, "threads": 2}})
    baseline = profile.model_copy(update={"baseline": profile.variants[1].id})
    names = [line.name for line in timelines([at(profile, 1), at(threads, 2), at(baseline, 3)])]
    assert names == [
        "Test CPU 3000, 1 thread, against ptsr-k1-fp32-cpu", "Test CPU 3000, 1 thread, against vit-k1-fp32-cpu",
        "Test CPU 3000, 2 threads",
    ]  # fmt: skip


def test_the_gate_is_the_newest_step_and_what_is_acknowledged_passes(profile: Profile) -> None:
    name = profile.variants[1].id
    first, slow = at(profile, 1), at(profile, 2, ratio=ratio(2, 1.2), operators_run=MORE)
    found = history(first, slow)
    assert [one.result for one in found.failures("all")] == ["time", "nodes", "transposes"]
    assert [one.result for one in found.failures("counts")] == ["nodes", "transposes"]
    assert headline(found) == f"Worse at the newest step: time, nodes run, transposes of {name}."

    accepted = acknowledge(found, Acknowledged(), [f"{name}@{slow.profile.created}"], " needed for opset 21 ")
    (entry,) = accepted.entries
    assert (entry.machine, entry.results, entry.reason) == (
        "Test CPU 3000, 1 thread", ["time", "nodes", "transposes"], "needed for opset 21",
    )  # fmt: skip
    passed = history(first, slow, acknowledged=accepted)
    assert passed.failures("all") == []
    assert headline(passed) == "Nothing got worse at the newest step."
    assert [row.acknowledged for row in changed_variants(passed, entry.machine)] == ["needed for opset 21"]
    # It is about these results of this profile: another result of it fails, and so does a later one.
    worse = at(profile, 2, ratio=ratio(2, 1.2), operators_run={**MORE, "Reorder": 3})
    assert [one.result for one in history(first, worse, acknowledged=accepted).failures("all")] == [
        "reorders"
    ]
    later = at(profile, 3, ratio=ratio(3, 1.2), operators_run={**MORE, "Transpose": 9})
    assert [one.result for one in history(first, slow, later, acknowledged=accepted).failures("all")] == [
        "nodes", "transposes",
    ]  # fmt: skip
    # What was never acknowledged fails at its own step alone, and stays in the headline.
    calm = history(first, slow, at(profile, 3, ratio=ratio(3, 1.2), operators_run=MORE))
    assert calm.failures("all") == []
    assert headline(calm) == (
        "Nothing got worse at the newest step. Not acknowledged: what got worse at an earlier step."
    )


def test_only_what_got_worse_can_be_acknowledged(profile: Profile) -> None:
    name = profile.variants[1].id
    found = history(at(profile, 1, operators_run=MORE), at(profile, 2), at(profile, 3, operators_run=MORE))
    at_day = "2026-01-0{}T10:00:00+00:00".format
    with pytest.raises(InputError, match=f"nothing got worse there; what did: {name}@2026-01-03"):
        acknowledge(found, Acknowledged(), [f"{name}@{at_day(2)}"], "better")
    with pytest.raises(InputError, match="--reason is empty"):
        acknowledge(found, Acknowledged(), [f"{name}@{at_day(3)}"], " ")
    once = acknowledge(found, Acknowledged(), [f"{name}@{at_day(3)}"], "one reason")
    twice = acknowledge(found, once, [f"{name}@{at_day(3)}"], "a better one")
    assert [entry.reason for entry in twice.entries] == ["a better one"]


def test_a_gate_that_could_judge_nothing_says_so(profile: Profile) -> None:
    alone = history(at(profile, 1), at(profile, 2, machine="Other"))
    first = "the newest profile is the first of Other, 1 thread"
    assert alone.nothing_compared("all") == alone.nothing_compared("counts") == first
    # Neighbours on another machine do not speak for it; what got worse there fails all the same.
    beside = history(at(profile, 1), at(profile, 2, operators_run=MORE), at(profile, 3, machine="Other"))
    assert beside.nothing_compared("counts") == first
    assert [one.result for one in beside.failures("counts")] == ["nodes", "transposes"]
    # One process each: no time can be told, but counts can.
    single = ratio(1, 1.0).model_copy(update={"per_process": [1.3]})
    times = history(at(profile, 1, ratio=single), at(profile, 2, ratio=single))
    assert "profile with --processes 5" in (times.nothing_compared("all") or "")
    assert times.nothing_compared("counts") is None
    assert headline(times) == (
        "No time can be told to have changed or not at the newest step. No count grew."
    )
    assert any("left open" in line and "--processes 5" in line for line in history_lines(times))


def test_counts_stand_in_one_row_as_long_as_they_stay(profile: Profile) -> None:
    days = [
        at(profile, 1),
        at(profile, 2),
        at(profile, 3, operators_run=MORE),
        at(profile, 4, operators_run=None),
    ]
    (line,) = timelines(days)
    rows = [row for row in count_rows(line) if row.variant == profile.variants[1].id]
    assert [(row.since[8:10], row.profiles) for row in rows] == [("01", 2), ("03", 1), ("04", 1)]
    assert [row.cells[1] for row in rows] == [("35", ""), ("37 (+2)", "worse"), ("not counted", "")]


@pytest.mark.parametrize(
    ("days", "said"),
    [
        ([(1, {}), (1, {})], "p1 and p1 were both created 2026-01-01T10:00:00"),
        ([(1, {"created": "yesterday"})], "created must be a time such as 2026-01-31T12:00:00"),
    ],
)
def test_times_that_cannot_be_ordered(
    profile: Profile, days: list[tuple[int, dict[str, str]]], said: str
) -> None:
    sources = [at(profile, day) for day, _ in days]
    sources = [
        Source(source.name, source.folder, source.profile.model_copy(update=more))
        for source, (_, more) in zip(sources, days, strict=True)
    ]
    with pytest.raises(InputError, match=said):
        timelines(sources)


def test_a_folder_may_hold_profiles_or_be_one(tmp_path: Path) -> None:
    for name in ("all/b", "all/a", "one"):
        make_profile(tmp_path / name, samples=20, raw="none", kept=False)
    (tmp_path / "all" / "notes").mkdir()
    found = profile_folders([tmp_path / "one", tmp_path / "all"])
    assert [folder.relative_to(tmp_path).as_posix() for folder in found] == ["one", "all/a", "all/b"]
    with pytest.raises(InputError, match="notes holds no profile.json"):
        profile_folders([tmp_path / "all" / "notes"])
