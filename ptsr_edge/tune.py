"""The search for a runtime's parameters on the device: what is faster and answers the same is recorded in the bundle.

ptsr-edge tune out/ptsr-tiny-cpu --threads 1

One parameter at a time is tried against the best settings so far. Two sessions, opened anew several times, run in turn in one
process: what one opening differs from the next is part of the ratio's interval (see `stats.latency`).
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

from ptsr_edge.bundle import (
    Bundle,
    Outcome,
    Setting,
    Speedup,
    Trial,
    Tuned,
    Variant,
    baseline_place,
    check_files,
    write_tuned,
)
from ptsr_edge.core.console import THREADS, Verb, doing, finish, if_interrupted, is_given, progress, run, say
from ptsr_edge.core.errors import InputError, JobError, PtsrError
from ptsr_edge.core.system import disturbances, has_two_kinds_of_cores, timed_runs, visible_cpus
from ptsr_edge.runtimes.base import Parameter, Runner, find_parameters, find_runtime
from ptsr_edge.session import open_artifact, settings_text, tuning_facts, why_not_here
from ptsr_edge.sign import read_verified
from ptsr_edge.stats.latency import Block, Ratio, trusted_ratio
from ptsr_edge.vision.flow import to_input

WORTH = 1.02
"""A value is kept where its whole interval says that it is at least so many times as fast."""

STARTS = 5
"""How often both sessions of a trial are opened: the draws of the interval."""

ROUNDS = 3
"""Blocks of each session after an opening."""

DURATION_S = 1.0
"""Timed duration of each session of a trial, all openings together."""

BLOCK_RUNS = 5

SETTLE_RUNS = 3
"""Untimed runs at the start of each block: the other session has had the caches, and its threads may still spin."""

INPUTS = 8
"""Seeded inputs on which the answers are compared."""

Settings = Mapping[str, Setting]


class Answers(NamedTuple):
    """What a session makes of the inputs: logits (n, k), and the kept patches of each as a set, None where all are kept."""

    logits: NDArray[np.float32]
    kept: list[frozenset[int] | None]


@dataclass
class Search:
    """The search for the settings of one variant.

    Attributes:
        folder: of the bundle.
        bundle: its manifest.
        variant: that is tuned.
        threads: of one operator; None: they are searched as well.
        duration_s: timed duration of each session of a trial.
        seed: of inputs, orders and bootstrap.
    """

    folder: Path
    bundle: Bundle
    variant: Variant
    threads: int | None
    duration_s: float = DURATION_S
    seed: int = 0
    _inputs: list[NDArray[np.float32]] = field(init=False)
    _expected: Answers = field(init=False)

    def __post_init__(self) -> None:
        """Draws the inputs, and answers them with the settings that the variant was proven with."""
        rng = np.random.default_rng(self.seed)
        size = self.bundle.preprocess.image_size
        flows = rng.normal(size=(INPUTS, size, size, 3)).astype(np.float32)
        flows[..., 2] = np.abs(flows[..., 2])
        self._inputs = [to_input(flow) for flow in flows]
        self._expected = self._answers(self._open({}))

    def run(self) -> Tuned:
        """Tries every parameter and returns what there is to record.

        Raises:
            JobError: the variant cannot be run with the runtime's defaults.
        """
        best: dict[str, Setting] = {}
        trials: list[Trial] = []
        plan = [(one, value) for one in self._parameters() for value in one.values]
        for parameter, value in plan:
            if parameter.needs == "several threads" and self._threads(best) == 1:
                continue
            with doing(f"{self.variant.id}: {settings_text({parameter.name: value})}"):
                trial = self._try(best, parameter.name, value)
            trials.append(trial)
            if trial.outcome == "kept":
                best[parameter.name] = value
        speedup = None
        if best:
            # The trial that was kept is the luckiest of many: what is recorded was not chosen by its own measurement.
            with doing(f"{self.variant.id}: all settings against the defaults"):
                found = self._measure({}, best)
            speedup = None if isinstance(found, str) else _speedup(found)
            if speedup is None or speedup.low < WORTH:
                best = {}
        return Tuned(
            settings=best, speedup=speedup, trials=trials, threads=self.threads,
            **tuning_facts(self.variant.target)._asdict(),
            date=datetime.datetime.now(datetime.timezone.utc).date(),
        )  # fmt: skip

    def _parameters(self) -> list[Parameter]:
        """The parameters that may matter here, the threads first: others depend on them."""
        listed = list(find_parameters(self.variant.target))
        if not has_two_kinds_of_cores():
            listed = [one for one in listed if one.needs != "cores of two kinds"]
        if self.threads is None and find_runtime(self.variant.target).is_threaded:
            cores = len(visible_cpus())
            counts = sorted({cores, *(2**power for power in range(cores.bit_length()))})
            listed.insert(0, Parameter("threads", tuple(counts)))
        return listed

    def _threads(self, settings: Settings) -> int:
        """How many threads a session runs on: where the runtime decides, at most all cores."""
        return int(settings.get("threads", self.threads or len(visible_cpus())))

    def _try(self, best: Settings, name: str, value: Setting) -> Trial:
        def told(outcome: Outcome, detail: str = "", speedup: Speedup | None = None) -> Trial:
            return Trial(parameter=name, value=value, outcome=outcome, detail=detail, speedup=speedup)

        tried = {**best, name: value}
        try:
            answers = self._answers(self._open(tried))
        except JobError as error:
            return told("refused", str(error).replace(f"{self.folder}/", ""))
        if difference := self._difference(answers):
            return told("other answers", difference)
        ratio = self._measure(best, tried)
        if isinstance(ratio, str):
            return told("disturbed", ratio)
        return told("kept" if ratio.low >= WORTH else "not faster", speedup=_speedup(ratio))

    def _open(self, settings: Settings) -> Runner:
        return open_artifact(self.variant, self.folder, self.threads, settings)

    def _answers(self, runner: Runner) -> Answers:
        found = [runner.run(one) for one in self._inputs]
        kept = [None if places is None else frozenset(places.tolist()) for _, places in found]
        return Answers(np.stack([logits for logits, _ in found]), kept)

    def _difference(self, answers: Answers) -> str:
        """Says in which way answers are no longer those of the artifact as it was proven; empty where they are.

        Logits may move by what the proof lets them; where there is none, not at all.
        """
        parity = self.variant.parity
        limit = 0.0 if parity is None else parity.limit
        moved = float(np.abs(answers.logits - self._expected.logits).max())
        if not moved <= limit:
            return f"logits moved by {moved:.2g}, the proof allows {limit:.2g}"
        others = sum(mine != its for mine, its in zip(answers.kept, self._expected.kept, strict=True))
        return f"other patches are kept on {others} of {INPUTS} inputs" if others else ""

    def _measure(self, base: Settings, tried: Settings) -> Ratio | str:
        """Returns how many times as fast as with `base` the variant is with `tried`, or why that cannot be told."""
        order = np.random.default_rng(self.seed)
        blocks: tuple[list[Block], list[Block]] = ([], [])
        for start in range(STARTS):
            runners: dict[int, Runner] = {}
            for side in order.permutation(2).tolist():
                runners[side] = self._open((base, tried)[side])
                self._answers(runners[side])  # warm
            for _ in range(ROUNDS):
                for side in order.permutation(2).tolist():
                    blocks[side].append(self._block(runners[side], start))
        threads = max(self._threads(base), self._threads(tried))
        return trusted_ratio(*blocks, "the best so far", threads=threads, seed=self.seed)

    def _block(self, runner: Runner, start: int) -> Block:
        flow = self._inputs[0]
        for _ in range(SETTLE_RUNS):
            runner.run(flow)
        before = disturbances()
        wall, cpu = timed_runs(lambda: runner.run(flow), self.duration_s / (STARTS * ROUNDS), BLOCK_RUNS)
        met = {name: count - before[name] for name, count in disturbances().items() if name in before}
        return Block(np.array(wall), np.array(cpu), launch=start, cores=os.cpu_count() or 1, **met)


def _speedup(ratio: Ratio) -> Speedup:
    return Speedup(median=ratio.median, low=ratio.low, high=ratio.high, clock=ratio.clock)


def fitting(bundle: Bundle, budget: float | None, target: str | None, precision: str | None) -> list[Variant]:
    """Returns all variants of what was asked for.

    Raises:
        InputError: there is none, or the target cannot be tuned.
    """
    tokens = None if budget is None else bundle.model.tokens_at(budget)
    found = [
        one
        for one in bundle.variants
        if target in (None, one.target)
        and precision in (None, one.precision)
        and tokens in (None, one.tokens)
    ]
    if not found:
        have = ", ".join(f"{one.target}/{one.precision}/{one.keep_rate:g}" for one in bundle.variants)
        asked = f"target {target or 'any'}, precision {precision or 'any'}, budget {budget or 'any'}"
        raise InputError(f"the bundle has no variant with {asked}; it has {have}")
    return found


def why_not_tunable(variant: Variant, folder: Path) -> str:
    """Returns what keeps a variant from being tuned here; empty where nothing does."""
    try:
        if not find_parameters(variant.target):
            return f"the runtime of target {variant.target} has no parameters to search"
        return why_not_here(variant, folder)
    except PtsrError as error:
        return str(error)


def tune_bundle(
    folder: Path,
    *,
    budget: float | None = None,
    target: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    duration_s: float = DURATION_S,
) -> dict[str, Tuned]:
    """Searches the parameters of each variant that runs here and records what was found, variant by variant.

    Args:
        folder: a bundle.
        budget: keep rate; None: all.
        target: None: all.
        precision: None: all.
        threads: of one operator; None: those that the bundle names, else they are searched as well.
        duration_s: timed duration of each session of a trial.

    Returns:
        By id, what was recorded.

    Raises:
        InputError: there is no such bundle or variant, or a file has changed.
        JobError: none of them can be tuned here.
    """
    bundle = read_verified(folder)
    variants = fitting(bundle, budget, target, precision)
    reasons = {one.id: why_not_tunable(one, folder) for one in variants}
    left_out: dict[str, list[str]] = {}
    for name, why in reasons.items():
        if why:
            left_out.setdefault(why, []).append(name)
    todo = [one for one in variants if not reasons[one.id]]
    if not todo:
        raise JobError(f"nothing can be tuned here: {'; '.join(left_out)}")
    for why, names in left_out.items():
        say(f"not tuned: {', '.join(names)}: {why}")
    for one in todo:
        check_files(folder, one)
    done: dict[str, Tuned] = {}
    with if_interrupted(
        lambda: (
            f"{len(done)} of {len(todo)} variants are recorded, the others as they were; the same command starts anew"
        )
    ):
        for one in progress(todo, "tuning"):
            held = one.runs_on.get("threads") if threads is None else threads
            record = Search(folder, bundle, one, held, duration_s).run()
            write_tuned(folder, one.id, record)
            done[one.id] = record
    return done


def reset_bundle(
    folder: Path, *, budget: float | None = None, target: str | None = None, precision: str | None = None
) -> list[str]:
    """Takes out what earlier searches recorded; returns the ids of the variants that had a record.

    Raises:
        InputError: there is no such bundle or variant, or a file has changed.
    """
    gone = [
        one.id for one in fitting(read_verified(folder), budget, target, precision) if one.tuned is not None
    ]
    for name in gone:
        write_tuned(folder, name, None)
    return gone


def lines_of(found: Mapping[str, Tuned]) -> list[str]:
    """Writes what was tried of each variant, and what is kept."""
    lines = []
    for name, record in found.items():
        threads = (
            f"{record.threads} thread{'s' * (record.threads > 1)}" if record.threads else "threads searched"
        )
        lines.append(f"{name} ({record.runtime}, {threads})")
        lines += [
            f"  {settings_text({trial.parameter: trial.value}):52} {speedup_text(trial.speedup):24} {trial.outcome}"
            + (f": {trial.detail}" if trial.detail else "")
            for trial in record.trials
        ]
        lines.append(f"  {verdict(record)}")
    return lines


def verdict(record: Tuned) -> str:
    """Says in a line what a record comes to."""
    if record.settings:
        return (
            f"tuned: {settings_text(record.settings)}: {speedup_text(record.speedup)} as fast as the defaults"
        )
    if any(trial.outcome == "kept" for trial in record.trials):
        told = f"{speedup_text(record.speedup)} as fast" if record.speedup else "not to be told"
        return f"tuned: the defaults stay: measured anew, what was kept is {told}"
    untold = sum(trial.outcome == "disturbed" for trial in record.trials)
    beside = f"; of {untold} of {len(record.trials)} trials nothing can be told" if untold else ""
    return f"tuned: the defaults stay, nothing is shown to be faster{beside}"


def speedup_text(speedup: Speedup | None) -> str:
    """Writes how many times as fast, with the interval; a dash where that is not known."""
    if speedup is None:
        return "-"
    return f"{speedup.median:.2f}x [{speedup.low:.2f}, {speedup.high:.2f}]" + (
        " by CPU time" if speedup.clock == "cpu" else ""
    )


@click.command(cls=Verb, epilog="Example: ptsr-edge tune out/ptsr-tiny-cpu --threads 1")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--target", help="Only variants of this target.")
@click.option("--precision", help="Only variants in this precision.")
@click.option("--budget", type=click.FloatRange(0, 1, min_open=True), help="Only variants of this keep rate.")
@click.option("--threads", type=THREADS,
              help="Of one operator; default: those of the bundle, else they are searched as well.")  # fmt: skip
@click.option("--duration-s", type=click.FloatRange(0, min_open=True), default=DURATION_S, show_default=True,
              help="Timed duration of each of the two sessions of a trial.")  # fmt: skip
@click.option("--reset", is_flag=True, help="Take out what earlier searches recorded, and search nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the records.")
def main(
    bundle: Path, target: str | None, precision: str | None, budget: float | None, threads: int | None,
    duration_s: float, reset: bool, as_json: bool,
) -> None:  # fmt: skip
    """Search the runtime's parameters on this device and record in the bundle what is faster and answers the same."""
    which: dict[str, Any] = {"budget": budget, "target": target, "precision": precision}
    if reset:
        if threads is not None or is_given("duration_s"):
            raise InputError(
                "--reset searches nothing: it goes with --target, --precision and --budget alone"
            )
        gone = reset_bundle(bundle, **which)
        told = f"taken out: {', '.join(gone)}" if gone else "nothing was recorded"
        finish({"bundle": str(bundle), "reset": gone}, [told, str(bundle)], as_json)
        return
    found = tune_bundle(bundle, threads=threads, duration_s=duration_s, **which)
    tell_unfair_baseline(bundle)
    record = {
        "bundle": str(bundle),
        "tuned": {name: one.model_dump(mode="json") for name, one in found.items()},
    }
    finish(record, [*lines_of(found), str(bundle)], as_json)


def tell_unfair_baseline(folder: Path) -> None:
    """Says so where the bundle has tuned settings and the baseline beside it was never tuned."""
    beside = baseline_place(folder)
    try:
        baseline, own = read_verified(beside), read_verified(folder)
    except InputError:
        return
    tuned = any(one.tuned and one.tuned.settings for one in own.variants)
    if tuned and not any(one.tuned for one in baseline.variants):
        say(f"{beside} was never tuned, so ratios against it would be unfair: ptsr-edge tune {beside}")


if __name__ == "__main__":
    run(main, "python -m ptsr_edge.tune")
