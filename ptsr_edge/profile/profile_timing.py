"""All variants are timed together, again where the run was unstable."""

from __future__ import annotations

from collections.abc import Sequence

from ptsr_edge.core.console import say
from ptsr_edge.core.errors import JobError
from ptsr_edge.profile.stability import why_unstable
from ptsr_edge.profile.timing import Extras, Setting, check_setting, measure_interleaved, ratios_to
from ptsr_edge.profile.variants import Entry
from ptsr_edge.profile.worker import Job, RawTiming

EXTRA_S = 1.0
"""Longest duration of a variant's throughput and energy, each."""

Try = tuple[dict[str, RawTiming], str | None]
"""Timings by id, and what makes them unstable, if anything does."""


def check_timing(setting: Setting) -> None:
    """Makes sure that a setting can be measured by.

    Raises:
        InputError: a duration or a count that is out of its range, or cores that cannot be pinned.
    """
    check_setting(
        duration_s=setting.duration_s, min_runs=setting.min_runs, block=setting.block,
        threads=setting.threads, pin=setting.pin, processes=setting.processes, attempts=setting.attempts,
        streams=setting.streams,
    )  # fmt: skip


def time_until_stable(entries: Sequence[Entry], setting: Setting) -> tuple[list[Try], dict[str, str]]:
    """Measures until a run is stable or the attempts are used up: all runs, the one that counts last."""
    tries: list[Try] = []
    reference = entries[0].id
    waiting = [entry.id for entry in entries if entry.variant.target == "trt"]
    while True:
        timings, refusals = _time(entries, setting)
        ratios = ratios_to(timings, reference, setting.seed)
        unstable = why_unstable(timings, ratios, reference, setting.threads, waiting)
        tries.append((timings, unstable))
        if unstable is None:
            return tries, refusals
        again = len(tries) < setting.attempts
        say(f"unstable: {unstable}{'; measuring again' if again else ''}")
        if not again:
            return tries, refusals


def _time(entries: Sequence[Entry], setting: Setting) -> tuple[dict[str, RawTiming], dict[str, str]]:
    """Timings by id, and why others could not be run here; the baseline must."""
    refusals: dict[str, str] = {}
    reference = entries[0].id

    def refused(job: Job, error: JobError) -> None:
        if job.id == reference:
            raise error
        say(f"left out: {error}")
        # Runtimes name whole paths, which have no place in a record.
        refusals[job.id] = str(error).removeprefix(f"{job.id}: ").replace(f"{job.bundle}/", "")

    jobs = [Job(entry.id, entry.folder, entry.variant.id) for entry in entries]
    timings = measure_interleaved(
        jobs, duration_s=setting.duration_s, min_runs=setting.min_runs, block=setting.block,
        threads=setting.threads, pin=setting.pin, seed=setting.seed, refused=refused,
        processes=setting.processes, extras=_extras(entries, setting),
    )  # fmt: skip
    return timings, refusals


def _extras(entries: Sequence[Entry], setting: Setting) -> Extras | None:
    if not setting.extras:
        return None
    kinds = {entry.id: (entry.variant.target, entry.variant.precision) for entry in entries}
    return Extras(kinds, setting.streams, min(EXTRA_S, setting.duration_s))
