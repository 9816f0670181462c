"""Profiles in time: what changed from each to the next on its machine, what of it was acknowledged, and what a CI may fail on.

Counts depend on no load, and any that grew is a change; time and accuracy are compared as between two profiles.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from pydantic import Field

from ptsr_edge.core.config import Record
from ptsr_edge.core.errors import InputError
from ptsr_edge.profile.schema import PROFILE, Measured, Profile
from ptsr_edge.report.changes import (
    BETTER,
    COUNTS,
    INSTRUCTIONS_MARGIN,
    WORSE,
    Regression,
    compare_profiles,
    count_text,
)
from ptsr_edge.report.comparison import ComparedVariant, Source, uar_bounds
from ptsr_edge.report.plotting import Canvas, Drawing, NotDrawn, colour, shortened, text_width
from ptsr_edge.stats.latency import Ratio

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
