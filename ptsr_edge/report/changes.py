"""What changed between profiles beyond noise: time, size, multiply-adds, memory, accuracy; between two, and over many in time.

Times are compared through the ratios against the baseline of each run, so that a machine that is slower today
as a whole is no change. A change is called only where its whole 95 % interval, over the processes of both runs,
lies beyond `MARGIN`: a difference that is real and too small to matter is none. Nothing is called from a run that
was unstable: what disturbed it lasts longer than a process, so that its interval is too narrow.

Counts depend on no load: any that grew is a change. A history compares neighbours in time, machine by machine.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ptsr_edge.core.errors import InputError
from ptsr_edge.core.records import Record
from ptsr_edge.profile.schema import PROFILE, Accuracy, Judged, Measured, Profile
from ptsr_edge.report.comparison import ComparedVariant, Source, uar_bounds
from ptsr_edge.report.plotting import Canvas, Drawing, NotDrawn, colour, shortened, text_width
from ptsr_edge.stats.classification import paired_bootstrap, uar_half_width
from ptsr_edge.stats.latency import Ratio, change_interval, process_interval

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
    unstable = _unstable(old, new)
    counter = old.method.get("instructions") == new.method.get("instructions")
    judged = new.judged if new.judged is not None and new.judged == old.judged else None
    return Regression(
        baseline=new.baseline,
        old_created=old.created,
        new_created=new.created,
        changes=[
            _change(before_rows[name], after_rows[name], new.baseline, unstable, judged, same_counter=counter)
            for name in both
        ],
        only_old=[name for name in before_rows if name not in after_rows],
        only_new=[name for name in after_rows if name not in before_rows],
        conditions=list(_conditions(old, new)),
    )


def _unstable(old: Profile, new: Profile) -> str | None:
    """Returns what made a run unstable, so that its times cannot be held against another run's."""
    for when, profile in (("before", old), ("now", new)):
        if profile.attempts and (fault := profile.attempts[-1].unstable):
            return f"the run {when} was unstable: {fault}"
    return None


def _change(
    old: Measured,
    new: Measured,
    baseline: str,
    unstable: str | None,
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
    middle, low, high = change_interval(old.ratio.per_process, new.ratio.per_process)
    # The new time over the old one is the old ratio over the new one.
    (old_below, old_above), (new_below, new_above) = (
        _beyond_processes(old.ratio),
        _beyond_processes(new.ratio),
    )
    low, high = low * old_below / new_above, high * old_above / new_below
    time = time_verdict(low, high) if unstable is None else "unclear"
    return change(time, unstable or _clocks(old.ratio, new.ratio), times_as_long=middle, low=low, high=high)


def _beyond_processes(ratio: Ratio) -> tuple[float, float]:
    """Returns by which factors the interval of a ratio reaches beyond that of its processes: (below, at most 1; above, at least 1).

    By wall time there is nothing beyond it. A ratio by CPU time was taken beside other processes, and its interval holds
    more than how its own processes differ.
    """
    if ratio.clock == "wall":
        return 1.0, 1.0
    middle, low, high = process_interval(ratio.per_process)
    return (
        min(1.0, (ratio.low / ratio.median) / (low / middle)),
        max(1.0, (ratio.high / ratio.median) / (high / middle)),
    )


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


# ---------------------------------------------------------------------------------------------
# History: neighbours in time, machine by machine

ACKNOWLEDGED = "acknowledged.json"

Gate = Literal["counts", "all"]


class Acknowledgement(Record):
    """What somebody accepted: results of a variant that got worse in the profile that was `created` then, and why."""

    machine: str
    variant: str
    created: str
    results: list[str] = Field(min_length=1)
    reason: str = Field(min_length=1)


class Acknowledged(Record):
    """`acknowledged.json`."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    entries: list[Acknowledgement] = Field(default_factory=list)

    def reason_for(self, machine: str, variant: str, created: str, result: str) -> str | None:
        """Returns why this was accepted, or None where it was not."""
        for entry in self.entries:
            where = (entry.machine, entry.variant, entry.created)
            if where == (machine, variant, created) and result in entry.results:
                return entry.reason
        return None


class Finding(Record):
    """A result of a variant that changed from one profile of a machine to the next, and whether that was accepted.

    `result` is `time`, a field of the variant, or a name of `COUNTS`; `text` says by how much.
    """

    machine: str
    variant: str
    before: str
    created: str
    result: str
    is_: Literal["worse", "better"] = Field(alias="is")
    text: str
    is_newest: bool
    acknowledged: str | None = None

    @property
    def is_count(self) -> bool:
        """True where it does not depend on load."""
        return self.result in COUNTS


class MachineHistory(Record):
    """The profiles of one machine in time, `steps` from each to the next."""

    name: str
    created: list[str] = Field(min_length=1)
    folders: list[str]
    steps: list[Regression]


class History(Record):
    """`history.json`."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    command: str
    model: str
    machines: list[MachineHistory] = Field(min_length=1)
    findings: list[Finding]

    def failures(self, gate: Gate) -> list[Finding]:
        """Returns what got worse at a machine's newest step and was not acknowledged, of counts alone or of all."""
        return [
            found
            for found in self.findings
            if found.is_newest
            and found.is_ == WORSE
            and found.acknowledged is None
            and (found.is_count or gate == "all")
        ]

    def nothing_compared(self, gate: Gate) -> str | None:
        """Why a gate could not judge the newest profile of all; None where it could."""
        newest = max(self.machines, key=lambda machine: instant(machine.created[-1]))
        if not newest.steps:
            return f"the newest profile is the first of {newest.name}"
        if gate == "all":
            return newest.steps[-1].nothing_compared
        return None if newest.steps[-1].changes else "the newest profile has no variant of the one before it"


@dataclass(frozen=True)
class Timeline:
    """A machine's profiles in time."""

    name: str
    sources: tuple[Source, ...]

    @property
    def variants(self) -> list[str]:
        """Ids of all variants that any of the profiles has, those of the newest first."""
        return list(
            dict.fromkeys(row.id for source in reversed(self.sources) for row in source.profile.variants)
        )

    def row(self, source: Source, variant: str) -> Measured | None:
        """Returns what a profile holds of a variant."""
        return next((row for row in source.profile.variants if row.id == variant), None)


def profile_folders(places: Sequence[Path]) -> list[Path]:
    """Returns the folders of profiles: each place that is one, and of any other place those in it.

    Raises:
        InputError: a place is no folder, or there is no profile in it.
    """
    folders: list[Path] = []
    for place in places:
        found = (
            [place]
            if (place / PROFILE).is_file()
            else sorted(file.parent for file in place.glob(f"*/{PROFILE}"))
        )
        if not found:
            raise InputError(f"{place} holds no {PROFILE}, and none of the folders in it does")
        folders += found
    return folders


def timelines(sources: Sequence[Source]) -> list[Timeline]:
    """Sorts profiles by machine and time: the processor, the GPUs, the threads and the baseline have to be the same.

    Raises:
        InputError: a time that is none, or two profiles of one machine of the same second.
    """
    groups: dict[tuple[str, str], list[Source]] = {}
    for source in sources:
        groups.setdefault((_machine(source.profile), source.profile.baseline), []).append(source)
    machines = [machine for machine, _ in groups]
    lines = []
    for (machine, baseline), members in groups.items():
        ordered = sorted(members, key=lambda source: _instant(source))
        for one, other in itertools.pairwise(ordered):
            if _instant(one) == _instant(other):
                raise InputError(
                    f"{one.folder} and {other.folder} were both created {one.profile.created} on {machine}: give one of them"
                )
        name = machine if machines.count(machine) == 1 else f"{machine}, against {baseline}"
        lines.append(Timeline(name, tuple(ordered)))
    return sorted(lines, key=lambda line: line.name)


def _machine(profile: Profile) -> str:
    cpu = profile.environment.get("cpu") or {}
    names = [str(cpu.get("model") or "a processor without a name")]
    names += [
        str(gpu.get("name", gpu)) if isinstance(gpu, dict) else str(gpu)
        for gpu in profile.environment.get("gpus") or []
    ]
    threads = profile.method.get("threads", 1)
    return f"{' and '.join(names)}, {threads} thread{'s' if threads != 1 else ''}"


def instant(created: str) -> datetime:
    """Reads the time of a profile; one without a zone is UTC.

    Raises:
        ValueError: it is no time.
    """
    found = datetime.fromisoformat(created.replace("Z", "+00:00"))  # Python 3.10 knows no Z
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


def _instant(source: Source) -> datetime:
    try:
        return instant(source.profile.created)
    except ValueError:
        raise InputError(
            f"{source.folder / PROFILE}: created must be a time such as 2026-01-31T12:00:00+00:00, "
            f"got {source.profile.created!r}"
        ) from None


def history_of(lines: Sequence[Timeline], acknowledged: Acknowledged, command: str) -> History:
    """Compares neighbours in time.

    Raises:
        InputError: two neighbours cannot be compared.
    """
    machines, findings = [], []
    for line in lines:
        steps = [compare_profiles(one.profile, two.profile) for one, two in itertools.pairwise(line.sources)]
        for number, step in enumerate(steps, start=1):
            findings += [
                Finding(
                    machine=line.name, variant=variant, before=step.old_created, created=step.new_created,
                    result=result, text=text, is_newest=number == len(steps), **{"is": is_},
                    acknowledged=acknowledged.reason_for(line.name, variant, step.new_created, result),
                )
                for variant, result, is_, text in _found(step)
            ]  # fmt: skip
        machines.append(
            MachineHistory(
                name=line.name,
                created=[source.profile.created for source in line.sources],
                folders=[source.folder.as_posix() for source in line.sources],
                steps=steps,
            )
        )
    return History(
        command=command, model=lines[0].sources[0].profile.model, machines=machines, findings=findings
    )


def _found(step: Regression) -> Iterator[tuple[str, str, str, str]]:
    """Yields variant, result, worse or better, and by how much."""
    for change in step.changes:
        if change.time in ("slower", "faster"):
            is_ = WORSE if change.time == "slower" else BETTER
            yield (
                change.id,
                "time",
                is_,
                f"{change.times_as_long:.3f} times as long [{change.low:.3f}, {change.high:.3f}]",
            )
        for score in change.scores:
            if score.name not in COUNTS:  # counts have no margin here
                text = f"{score.old:.3f} -> {score.new:.3f}" if score.name == "uar" else count_text(score)
                yield change.id, score.name, score.is_, text
        for score in change.counts:
            yield change.id, score.name, score.is_, count_text(score)


def acknowledge(
    history: History, acknowledged: Acknowledged, named: Sequence[str], reason: str
) -> Acknowledged:
    """Returns the record with an entry for all that got worse of each `VARIANT@CREATED`, whose earlier entries it replaces.

    Raises:
        InputError: nothing got worse there, or the reason is empty.
    """
    if not reason.strip():
        raise InputError("--reason is empty: say why the change is acceptable")
    entries = list(acknowledged.entries)
    worse = [found for found in history.findings if found.is_ == WORSE]
    for name in named:
        meant = [found for found in worse if f"{found.variant}@{found.created}" == name]
        if not meant:
            known = dict.fromkeys(f"{found.variant}@{found.created}" for found in reversed(worse))
            listed = ", ".join(list(known)[:5]) or "nothing got worse in this history"
            raise InputError(f"--acknowledge {name}: nothing got worse there; what did: {listed}")
        for machine in dict.fromkeys(found.machine for found in meant):
            new = Acknowledgement(
                machine=machine, variant=meant[0].variant, created=meant[0].created, reason=reason.strip(),
                results=[found.result for found in meant if found.machine == machine],
            )  # fmt: skip
            place = (new.machine, new.variant, new.created)
            entries = [old for old in entries if (old.machine, old.variant, old.created) != place] + [new]
    return Acknowledged(entries=entries)


RESULTS = {"time": "time", "uar": "UAR", "peak_rss_bytes": "peak memory, bytes"}
"""Results that are no counts, in words."""


def result_text(result: str) -> str:
    """Names a result of a finding in words."""
    return COUNTS[result][0] if result in COUNTS else RESULTS.get(result, result)


def headline(history: History) -> str:
    """Says what got worse at the newest step of any machine and was not acknowledged, and what is left open from before."""
    failures = history.failures("all")
    if failures:
        variants = list(dict.fromkeys(found.variant for found in failures))
        results = list(dict.fromkeys(result_text(found.result) for found in failures))
        some = f"{len(variants)} variants" if len(variants) > 2 else " and ".join(variants)
        told = f"Worse at the newest step: {', '.join(results)} of {some}."
    elif why := history.nothing_compared("all"):
        counted = history.nothing_compared("counts") is None
        grew = any(found.is_newest and found.is_count and found.is_ == WORSE for found in history.findings)
        counts = "What grew of the counts is acknowledged." if grew else "No count grew."
        told = (
            f"No time can be told to have changed or not at the newest step. {counts}"
            if counted
            else f"Nothing is compared yet: {why}."
        )
    else:
        told = "Nothing got worse at the newest step."
    earlier = {
        (found.machine, found.created)
        for found in history.findings
        if found.is_ == WORSE and not found.is_newest and found.acknowledged is None
    }
    steps = f"{len(earlier)} earlier steps" if len(earlier) > 1 else "an earlier step"
    return f"{told} Not acknowledged: what got worse at {steps}." if earlier else told


@dataclass(frozen=True)
class ChangedVariant:
    """All that changed of a variant at one step: each result in words with "worse" or "better"."""

    variant: str
    created: str
    texts: tuple[tuple[str, str], ...]
    acknowledged: str

    @property
    def name(self) -> str:
        """What `--acknowledge` takes."""
        return f"{self.variant}@{self.created}"


def changed_variants(history: History, machine: str) -> list[ChangedVariant]:
    """Returns what changed on a machine, by variant and step, the newest step first."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for found in history.findings:
        if found.machine == machine:
            groups.setdefault((found.created, found.variant), []).append(found)
    rows = []
    for (created, variant), findings in groups.items():
        worse = [found.acknowledged for found in findings if found.is_ == WORSE]
        # A result that got worse and is not in the entry keeps the whole row open.
        said = "" if not worse else "no" if None in worse else "; ".join(dict.fromkeys(filter(None, worse)))
        texts = tuple(
            (f"{result_text(found.result)} {found.is_}: {found.text}", found.is_) for found in findings
        )
        rows.append(ChangedVariant(variant, created, texts, said))
    order = {step.new_created: place for line in history.machines if line.name == machine
             for place, step in enumerate(line.steps)}  # fmt: skip
    return sorted(rows, key=lambda row: (-order[row.created], row.acknowledged == ""))


def history_lines(history: History) -> list[str]:
    """Returns the terminal's lines: what changed, step by step, what the newest step leaves open, and the headline."""
    lines = []
    for machine in history.machines:
        lines.append(
            f"{machine.name}: {len(machine.created)} profile{'s' if len(machine.created) > 1 else ''}"
        )
        for row in reversed(changed_variants(history, machine.name)):
            said = f" (acknowledged: {row.acknowledged})" if row.acknowledged not in ("", "no") else ""
            lines.append(f"  {row.name}  {'; '.join(text for text, _ in row.texts)}{said}")
        if machine.steps:
            newest = machine.steps[-1]
            lines += [f"  left open at the newest step: {text}" for text in newest.left_open]
            lines += [f"  not the same at the newest step: {text}" for text in newest.conditions]
    return [*lines, headline(history)]


def run_text(profile: Profile) -> str:
    """Says of a run what a reader of its history has to know."""
    words = ["quick" if profile.method.get("quick") else "full"]
    if profile.attempts and (fault := profile.attempts[-1].unstable):
        words.append(f"unstable: {fault}")
    if {row.ratio.clock for row in profile.variants if row.ratio} == {"cpu"}:
        words.append("timed by CPU time")
    return "; ".join(words)


NOT_COUNTED = "not counted"


@dataclass(frozen=True)
class CountRow:
    """Profiles in a row, `since` the first of them, in which all counts of a variant are the same."""

    variant: str
    since: str
    profiles: int
    cells: tuple[tuple[str, str], ...]
    """Of each count its text and "worse", "better" or nothing."""


def count_rows(line: Timeline) -> list[CountRow]:
    """Returns the counts of each variant over time, a row for each time that any of them changed."""
    rows: list[CountRow] = []
    for variant in line.variants:
        before: list[int | None] | None = None
        for source in line.sources:
            measured = line.row(source, variant)
            if measured is None:
                continue
            counts = [read(measured) for _, read in COUNTS.values()]
            if before is not None and not _differ(before, counts):
                rows[-1] = replace(rows[-1], profiles=rows[-1].profiles + 1)
                continue
            cells = tuple(_count_cell(old, new) for old, new in zip(before or counts, counts, strict=True))
            rows.append(CountRow(variant, source.profile.created, 1, cells))
            before = counts
    return rows


def _differ(old: Sequence[int | None], new: Sequence[int | None]) -> bool:
    """Tells whether a count changed, instructions by more than their margin."""
    margins = [INSTRUCTIONS_MARGIN if name == "instructions" else 0.0 for name in COUNTS]
    return any(
        (one is None) != (two is None)
        or (one is not None and two is not None and abs(two - one) > margin * one)
        for one, two, margin in zip(old, new, margins, strict=True)
    )


def _count_cell(old: int | None, new: int | None) -> tuple[str, str]:
    if new is None:
        return NOT_COUNTED, ""
    if old is None or old == new:
        return f"{new:,}", ""
    return f"{new:,} ({new - old:+,})", WORSE if new > old else BETTER


# ---------------------------------------------------------------------------------------------
# Drawings of a history

STRIP, STRIP_TOP, STRIP_BOTTOM, DATES = 120.0, 30.0, 16.0, 32.0
"""Height of a variant's strip, of its head and of the gap below it, and the room of the dates below the last one, in pixels."""

Series = list[tuple[int, float, float, float]]
"""Place of the profile, value, and the ends of its interval."""


def speed_chart(line: Timeline, findings: Sequence[Finding]) -> Drawing | NotDrawn:
    """Draws how many times as fast as the baseline, and as the ViT of its own target and precision, each variant was."""

    def of(name: str, field: str) -> Series:
        found: Series = []
        for place, source in enumerate(line.sources):
            row = line.row(source, name)
            ratio: Ratio | None = getattr(row, field) if row is not None else None
            if ratio is not None:
                found.append((place, ratio.median, ratio.low, ratio.high))
        return found

    strips = [
        _Strip(
            name,
            of(name, "ratio"),
            fair if (fair := of(name, "ratio_same_precision")) != of(name, "ratio") else [],
            "x",
        )
        for name in line.variants
    ]
    return _drawing(
        line, strips, [found for found in findings if found.result == "time"],
        "Times as fast as the baseline",
        "Discs: against the baseline of the run; rings: against the full-token ViT in the variant's own runtime and precision, "
        "where that is another number. ",
    )  # fmt: skip


def accuracy_chart(line: Timeline, findings: Sequence[Finding]) -> Drawing | NotDrawn:
    """Draws the UAR of each variant."""

    def of(name: str) -> Series:
        found: Series = []
        for place, source in enumerate(line.sources):
            row = line.row(source, name)
            if row is not None and row.accuracy is not None:
                uar = row.accuracy.uar
                low, high = uar_bounds(ComparedVariant(name, source, row, is_baseline=False)) or (uar, uar)
                found.append((place, uar, low, high))
        return found

    strips = [_Strip(name, of(name), [], "") for name in line.variants]
    return _drawing(line, strips, [found for found in findings if found.result == "uar"], "UAR", "")


@dataclass(frozen=True)
class _Strip:
    """A variant's part of a chart: its main series, a second one, and the unit behind its numbers."""

    name: str
    main: Series
    second: Series
    unit: str

    def newest(self) -> str:
        """Writes the last value of the main series with its interval."""
        return self.written(*self.main[-1][1:])

    def written(self, value: float, low: float, high: float) -> str:
        """Writes a value with its interval: ratios with two digits behind the point, shares with three."""
        digits = 2 if self.unit else 3
        return f"{value:.{digits}f}{self.unit} [{low:.{digits}f}, {high:.{digits}f}]"


def _drawing(
    line: Timeline, strips: Sequence[_Strip], findings: Sequence[Finding], title: str, caption: str
) -> Drawing | NotDrawn:
    shown = [strip for strip in strips if strip.main]
    if not shown:
        return NotDrawn(f"no profile of {line.name} has it")
    dates = _dates([source.profile.created for source in line.sources])
    height = STRIP * len(shown) + DATES

    def paint(canvas: Canvas) -> None:
        for number, strip in enumerate(shown):
            marks = {
                place: found
                for found in findings
                for place, source in enumerate(line.sources)
                if found.variant == strip.name and found.created == source.profile.created
            }
            _paint_strip(canvas, number, strip, dates, marks, is_last=number == len(shown) - 1)

    caption += (
        "Bars are 95 % intervals. A triangle that points down marks a profile that is worse than the one before it beyond "
        "noise, one that points up a better one; hollow: acknowledged. Profiles stand at equal distances."
    )
    words = "; ".join(f"{strip.name} {strip.newest()} in the newest profile" for strip in shown)
    return Drawing(paint, (height, height), caption, words, title)


def _dates(created: Sequence[str]) -> list[str]:
    """Writes times as short as tells them apart: the hour within one day, the day within one year."""
    days = [text[:10] for text in created]
    if len(set(days)) == 1:
        return [
            text[11:16] if len({other[11:16] for other in created}) == len(created) else text[11:19]
            for text in created
        ]
    if len(set(days)) < len(days):
        return [f"{text[5:10]} {text[11:16]}" for text in created]
    return days if len({day[:4] for day in days}) > 1 else [day[5:] for day in days]


def _paint_strip(
    canvas: Canvas,
    number: int,
    strip: _Strip,
    dates: Sequence[str],
    marks: Mapping[int, Finding],
    *,
    is_last: bool,
) -> None:
    top = STRIP * number
    below = canvas.height - top - STRIP
    axes = canvas.axes(48, 16, top + STRIP_TOP, below + STRIP_BOTTOM)
    values = [bound for entry in (*strip.main, *strip.second) for bound in entry[1:]]
    low, high = min(values), max(values)
    room = max(0.1 * (high - low), 0.05 * high - 0.5 * (high - low), 1e-9)
    axes.set_ylim(low - room, high + room)
    axes.set_xlim(-0.5, max(len(dates) - 0.5, 0.5))
    axes.yaxis.get_major_locator().set_params(nbins=3)
    axes.grid(visible=True, axis="y")
    axes.set_xticks([])
    if is_last:
        every = math.ceil(len(dates) * (16 + max(map(text_width, dates))) / (canvas.width - 64))
        places = list(range(len(dates) - 1, -1, -every))
        axes.set_xticks(places, [dates[place] for place in places])
    # Beside one another where there are two, by 4 pixels each.
    aside = 4 * len(dates) / (canvas.width - 64) if strip.second else 0.0
    for series, role, is_hollow in ((strip.second, "muted", True), (strip.main, "s1", False)):
        if not series:
            continue
        shift = aside if is_hollow else -aside
        places_x = [place + shift for place, *_ in series]
        middles = [entry[1] for entry in series]
        axes.plot(places_x, middles, color=colour(role), linewidth=1.5, alpha=0.6)
        axes.vlines(places_x, [e[2] for e in series], [e[3] for e in series], color=colour(role), linewidth=2)
        for (place, value, least, most), x in zip(series, places_x, strict=True):
            (mark,) = axes.plot(
                [x], [value], "o", markersize=7, color=colour(role), markeredgewidth=1.5,
                markerfacecolor=colour("paper" if is_hollow else role),
            )  # fmt: skip
            kind = "fairly " if is_hollow else ""
            canvas.tip(mark, f"{strip.name}, {dates[place]}: {kind}{strip.written(value, least, most)}")
    for place, found in marks.items():
        found_at = [entry[1] for entry in strip.main if entry[0] == place]
        if not found_at:
            continue
        role = "s2" if found.is_ == WORSE else "s3"
        (mark,) = axes.plot(
            [place - aside], found_at, "v" if found.is_ == WORSE else "^", markersize=13, color=colour(role), markeredgewidth=2,
            markerfacecolor=colour("paper" if found.acknowledged else role),
        )  # fmt: skip
        said = f"; acknowledged: {found.acknowledged}" if found.acknowledged else ""
        canvas.tip(mark, f"{strip.name}, {dates[place]}: {found.is_}, {found.text}{said}")
    told = strip.newest()
    canvas.write(
        0, top + 18, shortened(strip.name, canvas.width - text_width(told) - 16), "ink", weight="bold"
    )
    canvas.write(canvas.width, top + 18, told, "ink", ha="right")
