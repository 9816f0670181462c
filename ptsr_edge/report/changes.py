"""What changed from one profile to another beyond noise: time, size, multiply-adds, memory, accuracy, counts.

Times are compared through the ratios against the baseline of each run, so that a machine that is slower today
as a whole is no change. A change is called only where its whole 95 % interval, over the processes of both runs,
lies beyond `MARGIN`: a difference that is real and too small to matter is none. Nothing is called from a run by wall time
that was unstable: what disturbed it lasts longer than a process, so that its interval is too narrow.

Counts depend on no load: any that grew is a change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ptsr_edge.core.config import Record
from ptsr_edge.core.errors import InputError
from ptsr_edge.profile.schema import Accuracy, Judged, Measured, Profile
from ptsr_edge.stats.classification import paired_bootstrap, uar_half_width
from ptsr_edge.stats.latency import Ratio, ratio_change

MARGIN = 0.02
"""Changes of time, size and multiply-adds within this share are none."""

UNCLEAR = 0.10
"""An interval that reaches beyond this share to either side leaves open whether anything changed."""

MEMORY_MARGIN = 0.05
"""The peak of a process moves by some per cent from start to start."""

Verdict = Literal["slower", "faster", "no change", "unclear", "not compared"]
WORSE, BETTER = "worse", "better"

INSTRUCTIONS_MARGIN = 0.005
"""Counted instructions move by far less from run to run; what they all share (Python, the system) may move by this."""


def _run(*names: str) -> Callable[[Measured], int | None]:
    """Returns a reader of how many operators of these names run, or of all operators."""

    def read(row: Measured) -> int | None:
        if row.operators_run is None:
            return None
        return sum(n for name, n in row.operators_run.items() if not names or name in names)

    return read


COUNTS: dict[str, tuple[str, Callable[[Measured], int | None]]] = {
    "macs": ("multiply-adds", lambda row: row.macs),
    "nodes": ("nodes run", _run()),
    "transposes": ("transposes", _run("Transpose", "Permute")),
    "reorders": ("reorders", _run("Reorder", "ReorderInput", "ReorderOutput")),
    "quantizers": (
        "Q/DQ",
        _run("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "FakeQuantize", "Quantize"),
    ),
    "size_bytes": ("bytes", lambda row: row.size_bytes),
    "instructions": ("instructions", lambda row: row.instructions),
}
"""What does not depend on load, by name: its heading, and how it is read from a variant."""


class Score(Record):
    """A result beside the time that changed: from `old` to `new`, and whether that is `worse` or `better`."""

    name: str
    old: float
    new: float
    is_: Literal["worse", "better"] = Field(alias="is")


class Change(Record):
    """The change of one variant. `times_as_long` is its new time over its old one, with a 95 % interval.

    `counts` has the counts of `COUNTS` that are others now; `uncounted` names those that one of the two profiles lacks.
    """

    id: str
    time: Verdict
    times_as_long: float | None = None
    low: float | None = None
    high: float | None = None
    scores: list[Score] = Field(default_factory=list, alias="figures")
    counts: list[Score] = Field(default_factory=list)
    uncounted: list[str] = Field(default_factory=list)
    note: str | None = None

    @property
    def is_regression(self) -> bool:
        """True where anything got worse."""
        return self.time == "slower" or any(score.is_ == WORSE for score in self.scores)

    @property
    def is_called(self) -> bool:
        """True where its time is told to have changed or not, or another result changed."""
        return self.time in ("slower", "faster", "no change") or bool(self.scores)


WIDE = "its interval is so wide that it shows neither a change nor none"


class Regression(Record):
    """Two profiles compared; `conditions` names the rest that was not the same in the two runs."""

    baseline: str
    old_created: str
    new_created: str
    changes: list[Change]
    only_old: list[str]
    only_new: list[str]
    conditions: list[str]

    @property
    def regressions(self) -> list[str]:
        """Ids of the variants that got worse in anything."""
        return [change.id for change in self.changes if change.is_regression]

    @property
    def nothing_compared(self) -> str | None:
        """Why no variant at all can be told to have changed or not; None where one can."""
        if any(change.is_called for change in self.changes):
            return None
        return "; ".join(self.left_open) or "no variant beside the baseline is in both profiles"

    @property
    def left_open(self) -> list[str]:
        """Why times cannot be told to have changed or not, each reason with the variants that it holds for."""
        names: dict[str, list[str]] = {}
        for change in self.changes:
            if change.id != self.baseline and change.time in ("unclear", "not compared"):
                names.setdefault(change.note or WIDE, []).append(change.id)
        return [f"{why} ({', '.join(ids)})" for why, ids in names.items()]


def compare_profiles(old: Profile, new: Profile) -> Regression:
    """Returns what changed from an old profile to a new one, variant by variant, which are matched by id.

    Raises:
        InputError: the two are of different models, classes or baselines.
    """
    for what, before, after in (
        ("model", old.model, new.model),
        ("classes", ", ".join(old.labels), ", ".join(new.labels)),
        ("baseline", old.baseline, new.baseline),
    ):
        if before != after:
            raise InputError(f"the profiles differ in their {what}: {before} before, {after} now")
    before_rows = {row.id: row for row in old.variants}
    after_rows = {row.id: row for row in new.variants}
    both = [name for name in after_rows if name in before_rows]
    sides = (old, new)
    counter = old.method.get("instructions") == new.method.get("instructions")
    judged = new.judged if new.judged is not None and new.judged == old.judged else None
    return Regression(
        baseline=new.baseline,
        old_created=old.created,
        new_created=new.created,
        changes=[
            _change(before_rows[name], after_rows[name], new.baseline, sides, judged, same_counter=counter)
            for name in both
        ],
        only_old=[name for name in before_rows if name not in after_rows],
        only_new=[name for name in after_rows if name not in before_rows],
        conditions=list(_conditions(old, new)),
    )


def _fault(profile: Profile, ratio: Ratio) -> str | None:
    """Returns what made a run unstable, so that this ratio of it cannot be held against another run's; None where nothing did.

    That another ratio is hardly known, or withheld, says nothing of this one, which has an interval of its own. A baseline that
    drifted does by wall time alone: by CPU time both were disturbed within each round, and the interval says how much.
    """
    last = profile.attempts[-1] if profile.attempts else None
    if last is None or last.unstable is None:
        return None
    return last.unstable if not last.faults or ("drift" in last.faults and ratio.clock == "wall") else None


def _change(
    old: Measured,
    new: Measured,
    baseline: str,
    sides: tuple[Profile, Profile],
    judged: Judged | None,
    *,
    same_counter: bool,
) -> Change:
    scores = list(_scores(old, new, judged))
    counts, uncounted = _counts(old, new, same_counter=same_counter)

    def change(time: Verdict, note: str | None, **more: float) -> Change:
        return Change(
            id=new.id, time=time, note=note, figures=scores, counts=counts, uncounted=uncounted, **more
        )

    if new.id == baseline:
        return change("not compared", "all times are relative to it: what changes it moves all the others")
    for when, row in (("before", old), ("now", new)):
        if row.ratio is None:
            why = row.missing.get("ratio")
            is_disturbed = why is not None and why.kind == "disturbed"
            return change("not compared", f"{'disturbed' if is_disturbed else 'it was not timed'} {when}")
    assert old.ratio is not None
    assert new.ratio is not None
    if min(len(old.ratio.per_process), len(new.ratio.per_process)) < 2:
        return change(
            "unclear", "one process of each variant says nothing about the next: profile with --processes 5"
        )
    middle, low, high = ratio_change(old.ratio, new.ratio)
    faults = (_fault(sides[0], old.ratio), _fault(sides[1], new.ratio))
    unstable = next(
        (
            f"the run {when} was unstable: {why}"
            for when, why in zip(("before", "now"), faults, strict=True)
            if why
        ),
        None,
    )
    time = time_verdict(low, high) if unstable is None else "unclear"
    return change(time, unstable or _clocks(old.ratio, new.ratio), times_as_long=middle, low=low, high=high)


def _clocks(old: Ratio, new: Ratio) -> str | None:
    """Says by what the two were timed, where either was timed by CPU time."""
    if old.clock == new.clock == "wall":
        return None
    if old.clock == new.clock:
        return "both by CPU time, beside other processes"
    return f"by {_CLOCKS[old.clock]} before, by {_CLOCKS[new.clock]} now"


_CLOCKS = {"wall": "wall time", "cpu": "CPU time"}


def _counts(old: Measured, new: Measured, *, same_counter: bool) -> tuple[list[Score], list[str]]:
    """Returns the counts that changed, and the names of those that cannot be compared though one of the two has them."""
    changed, uncounted = [], []
    for name, (_, read) in COUNTS.items():
        before, after = read(old), read(new)
        is_instructions = name == "instructions"
        if before is None or after is None or (is_instructions and not same_counter):
            uncounted += [] if before is None and after is None else [name]
        elif abs(after - before) > (INSTRUCTIONS_MARGIN * before if is_instructions else 0):
            changed.append(_score(name, before, after, after > before))
    return changed, uncounted


def time_verdict(low: float, high: float) -> Verdict:
    """Judges an interval of new time over old time."""
    if low > 1 + MARGIN:
        return "slower"
    if high < 1 / (1 + MARGIN):
        return "faster"
    return "unclear" if high > 1 + UNCLEAR or low < 1 / (1 + UNCLEAR) else "no change"


def _scores(old: Measured, new: Measured, judged: Judged | None) -> Iterator[Score]:
    for name, margin in (("size_bytes", MARGIN), ("macs", MARGIN), ("peak_rss_bytes", MEMORY_MARGIN)):
        before, after = getattr(old, name), getattr(new, name)
        if before and after and abs(math.log(after / before)) > math.log1p(margin):
            yield _score(name, before, after, after > before)
    if old.accuracy and new.accuracy and _uar_changed(old.accuracy, new.accuracy, judged):
        yield _score("uar", old.accuracy.uar, new.accuracy.uar, new.accuracy.uar < old.accuracy.uar)


def _uar_changed(old: Accuracy, new: Accuracy, judged: Judged | None) -> bool:
    """Tells whether a UAR changed beyond its 95 % interval: paired where both runs answered the same samples."""
    if judged is None or old.predicted is None or new.predicted is None:
        limit = _uar_noise(old, new)
        return limit is not None and abs(new.uar - old.uar) > limit
    _, low, high = paired_bootstrap(
        judged.truth, new.predicted, old.predicted, np.array([str(number) for number in judged.subject])
    )
    return low > 0 or high < 0


def _score(name: str, old: float, new: float, worse: bool) -> Score:
    return Score(name=name, old=old, new=new, **{"is": WORSE if worse else BETTER})


def _uar_noise(old: Accuracy, new: Accuracy) -> float | None:
    """Returns half the 95 % interval of a difference of two UARs; None where they cannot be compared.

    For runs that answered other samples, or kept no answers: recalls as independent binomials.
    """
    if (old.data, old.protocol, old.n) != (new.data, new.protocol, new.n):
        return None
    if old.confusion is None or new.confusion is None:
        return None
    return uar_half_width([old.confusion, new.confusion], added=1)


def _conditions(old: Profile, new: Profile) -> Iterator[str]:
    """Yields what differs in the machine, its tools and the setting, as far as a time depends on it."""
    for what, before, after in (
        *_entries("environment", old.environment, new.environment, ("cpu", "gpus", "packages", "kernel")),
        *_entries("method", old.method, new.method, ("threads", "pinned")),
    ):
        if before != after:
            yield f"{what}: {before} before, {after} now"
    was, is_now = ("a quick run" if side.method.get("quick") else "a full run" for side in (old, new))
    if was != is_now:
        yield f"{was} before, {is_now} now"


def _entries(
    where: str, old: dict[str, Any], new: dict[str, Any], keys: tuple[str, ...]
) -> Iterator[tuple[str, Any, Any]]:
    for key in keys:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            for name in dict.fromkeys([*before, *after]):
                yield f"{where}.{key}.{name}", before.get(name), after.get(name)
        else:
            yield f"{where}.{key}", before, after


# ---------------------------------------------------------------------------------------------
# Words


def sentence(change: Change) -> str:
    """Tells the change of one variant in words."""
    time: str = change.time
    if change.times_as_long is not None:
        time += f": {change.times_as_long:.3f} times as long [{change.low:.3f}, {change.high:.3f}]"
    parts = [time]
    counted = {score.name for score in change.counts}
    parts += [
        f"{score.name} {score.is_}: {score.old:g} -> {score.new:g}"
        for score in change.scores
        if score.name not in counted
    ]
    parts += [f"{COUNTS[score.name][0]} {count_text(score)}" for score in change.counts]
    if change.uncounted:
        parts.append(f"not comparable: {', '.join(COUNTS[name][0] for name in change.uncounted)}")
    parts += [change.note] if change.note else []
    return "; ".join(parts)


def count_text(score: Score) -> str:
    """Writes what a count was and is."""
    return f"{score.old:,.0f} -> {score.new:,.0f} ({score.new - score.old:+,.0f})"


def summary(regression: Regression) -> list[str]:
    """Returns the terminal's lines: one per variant, then what came and went, what else differs, and the outcome."""
    lines = [f"{change.id:32} {sentence(change)}" for change in regression.changes]
    lines += [f"{name:32} was there before and is gone" for name in regression.only_old]
    lines += [f"{name:32} is new" for name in regression.only_new]
    lines += [f"not the same in both runs: {text}" for text in regression.conditions]
    return [*lines, outcome(regression)]


def outcome(regression: Regression) -> str:
    """Returns the last line: what got worse, that nothing did, or that nothing could be compared and why."""
    if worse := regression.regressions:
        return f"worse than before: {', '.join(worse)}"
    if why := regression.nothing_compared:
        return f"nothing could be compared: {why}"
    return "nothing got worse beyond noise"


def changes_words(regression: Regression) -> dict[str, Any]:
    """Returns what the templates write: `since`, `rows` of a variant and its change, and the `rest` in sentences."""
    return {
        "since": regression.old_created,
        "rows": [(change.id, sentence(change)) for change in regression.changes],
        "rest": summary(regression)[len(regression.changes) :],
    }
