"""One interleaved run: every contender in a process of its own, asked in turn for a block of runs, in an order drawn anew each round.

The processes of a launch stay open until its last round; each launch starts fresh ones, in the order of
`profile.timing.start_order`. Ratios, their intervals and the clock that they are taken by are `profile.timing.ratio_between`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.console import progress, say
from ptsr_edge.core.errors import InputError, JobError, MissingExtraError, PtsrError
from ptsr_edge.profile.roofline import OPERATOR_TIMES
from ptsr_edge.profile.schema import Missing, MissingKind
from ptsr_edge.profile.timing import ratio_between, start_order
from ptsr_edge.profile.worker import MeasuringProcess, Worker, all_runs
from ptsr_edge.profile.worker_process import make_input
from ptsr_edge.stats.latency import MIN_ROUNDS, Block, Ratio, latency_summary

from .contenders import AS_IT_COMES, BASELINE, HERE, LIMITS, Contender
from .environments import python_of
from .record import Agreement, Comparison, Products, Row

BLOCK_S, BLOCK_RUNS = 0.01, 3
"""A block lasts at least so long and has at least so many runs."""

WARM_UP_S = 0.2

PROFILED_RUNS = 20

PRODUCTS = " products"
"""Behind the name of a contender: its products alone."""

NAMED_AS = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}


@dataclass(frozen=True)
class Plan:
    """How much is measured; `rounds` in all, shared out among the `processes` that each contender is started in."""

    threads: int
    rounds: int
    processes: int
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses what carries no interval."""
        for name in ("threads", "processes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.rounds < MIN_ROUNDS:
            raise InputError(f"an interval needs at least {MIN_ROUNDS} rounds, got {self.rounds}")


class ToolProcess(MeasuringProcess):
    """The process of a contender that is no variant of a bundle."""

    def __init__(self, name: str, contender: Contender, threads: int, kind: str, path: Path) -> None:
        python = python_of(contender.environment)
        if isinstance(python, Missing):
            raise MissingExtraError(f"{name}: {python.reason}")
        super().__init__(name, [str(python), str(HERE / "worker.py")], threads)
        self._load = {
            "op": "load", "kind": kind, "path": str(path), "inputs": str(contender.inputs), "threads": threads,
            "options": contender.options,
        }  # fmt: skip

    def load(self) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Opens the artifact; returns the logits of the checked inputs, and what the tool told."""
        answer = self._ask(self._load)
        return np.array(answer["logits"], dtype=np.float64), answer["told"]


@dataclass
class Timing:
    """What was measured of one process's name: blocks by round, and what was found at its first start."""

    blocks: list[Block]
    agreement: Agreement | None = None
    precision: str | None = None


def measure(
    contenders: Sequence[Contender], plan: Plan, label: str
) -> tuple[dict[str, Timing], dict[str, Missing]]:
    """Times contenders and their products.

    Args:
        contenders: with names that differ.
        plan: how much.
        label: of the progress.

    Returns:
        Timings by name, those of products with `PRODUCTS` behind it, all of the same rounds; and why others have none.
    """
    missing = {one.name: one.missing for one in contenders if one.missing is not None}
    left = {one.name: one for one in contenders if one.missing is None}
    left |= {f"{name}{PRODUCTS}": one for name, one in left.items() if isinstance(one.products, tuple)}
    timings = {name: Timing([]) for name in left}

    def refuse(name: str, error: PtsrError) -> None:
        """Leaves one out for good; what it was timed before would belong to other rounds than the rest."""
        said = str(error).removeprefix(f"{name}: ")
        say(f"left out: {name}: {said}")
        kind: MissingKind = "not_installed" if isinstance(error, MissingExtraError) else "failed"
        missing[name] = Missing(kind=kind, reason=said)
        del left[name], timings[name]

    for launch in range(plan.processes):
        with ExitStack() as stack:
            processes: dict[str, MeasuringProcess] = {}
            for name in progress(
                start_order(list(left), launch, plan.seed), f"{label}: starting {launch + 1}/{plan.processes}"
            ):
                try:
                    processes[name] = stack.enter_context(_process(name, left[name], plan.threads))
                    found = _open(processes[name], left[name])
                    timings[name].agreement, timings[name].precision = found.agreement, found.precision
                    processes[name].block(duration_s=WARM_UP_S, runs=BLOCK_RUNS)
                except PtsrError as error:
                    processes.pop(name, None)
                    refuse(name, error)
            order = np.random.default_rng(plan.seed + launch)
            for _ in progress(
                range(math.ceil(plan.rounds / plan.processes)),
                f"{label}: timing {launch + 1}/{plan.processes}",
            ):
                names = list(processes)
                for place in order.permutation(len(names)):
                    name = names[place]
                    try:
                        block = processes[name].block(duration_s=BLOCK_S, runs=BLOCK_RUNS)
                        timings[name].blocks.append(replace(block, launch=launch))
                    except PtsrError as error:
                        del processes[name]
                        refuse(name, error)
    return timings, missing


def _process(name: str, contender: Contender, threads: int) -> MeasuringProcess:
    if name.endswith(PRODUCTS):
        assert contender.variant is not None
        assert isinstance(contender.products, tuple)
        target, precision = contender.variant.kind
        kind = "onnxruntime-products" if target == "cpu" else "openvino-products"
        hint = (
            {} if target == "cpu" else {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
        )
        return ToolProcess(name, replace(contender, options=hint), threads, kind, contender.products[0])
    if contender.variant is not None:
        return Worker(contender.variant, threads=threads)
    assert contender.path is not None
    return ToolProcess(name, contender, threads, contender.kind, contender.path)


def _open(process: MeasuringProcess, contender: Contender) -> Timing:
    """Loads an artifact and holds its answers against the eager model's.

    Raises:
        JobError: they do not agree.
    """
    if isinstance(process, Worker):
        process.load()
        variant = process.variant.variant
        parity = variant.parity
        found = None
        if parity is not None:
            found = Agreement(
                max_abs=parity.max_abs, relative=None, limit=parity.limit, samples=parity.samples
            )
        return Timing([], found)
    assert isinstance(process, ToolProcess)
    logits, told = process.load()
    if contender.eager is None:  # products have no logits
        return Timing([])
    precision = NAMED_AS.get(told.get("precision", ""), contender.precision)
    precision = precision if contender.precision == AS_IT_COMES else contender.precision
    return Timing([], agreement_of(logits, contender.eager, precision), precision)


def agreement_of(logits: NDArray[np.float64], eager: NDArray[np.float64], precision: str) -> Agreement:
    """Holds logits (n, k) against those of the eager model.

    Raises:
        JobError: they are of another shape, not finite, or further apart than the precision excuses.
    """
    if logits.shape != eager.shape or not np.isfinite(logits).all():
        raise JobError(
            f"it does not agree with the eager model: logits {logits.shape} are no finite {eager.shape}"
        )
    apart = np.abs(logits - eager)
    relative = float(np.sqrt((apart**2).mean() / (eager**2).mean()))
    limit = LIMITS[precision]
    if relative > limit:
        raise JobError(
            f"it does not agree with the eager model: logits are up to {apart.max():.2g} apart, {relative:.2g} of them "
            f"(limit in {precision}: {limit:g})"
        )
    return Agreement(max_abs=float(apart.max()), relative=relative, limit=limit, samples=len(eager))


def rows_of(
    contenders: Sequence[Contender],
    timings: Mapping[str, Timing],
    missing: Mapping[str, Missing],
    plan: Plan,
    size: str,
) -> list[Row]:
    """Returns a row for each contender, with its ratio over the plain export."""
    base = timings.get(f"{BASELINE}-{size}")
    rows = []
    for one in contenders:
        timing = timings.get(one.name)
        row = Row(
            id=f"{one.name}@{plan.threads}", name=one.name, group=one.group, size=size, threads=plan.threads, label=one.label,
            runtime=one.runtime, precision=one.precision, tokens=one.tokens, keep_rate=one.keep_rate, macs=one.macs,
        )  # fmt: skip
        if timing is None:
            rows.append(row.model_copy(update={"missing": {"latency_ms": missing[one.name]}}))
            continue
        why: dict[str, Missing] = {}
        found: dict[str, Any] = {
            "agreement": timing.agreement,
            "precision": timing.precision or one.precision,
        }
        found |= _times(timing.blocks, one.macs)
        ratio = None if base is None else _ratio(base, timing, f"{BASELINE}-{size}", plan)
        if one.name == f"{BASELINE}-{size}":
            why["ratio"] = Missing(kind="not_applicable", reason="it is the baseline itself")
        elif isinstance(ratio, Ratio):
            found["ratio"] = ratio
        else:
            why["ratio"] = ratio or Missing(
                kind="no_counterpart", reason="the plain export could not be timed"
            )
        if one.variant is not None:
            found["operators"] = operators_of(one, plan.threads)
            name = f"{one.name}{PRODUCTS}"
            if name in timings:
                found["products"], unknown = _products(one, timing, timings[name], plan)
                why |= {} if unknown is None else {"products.share": unknown}
            else:
                why["products"] = one.products if isinstance(one.products, Missing) else missing[name]
        rows.append(row.model_copy(update={**found, "missing": why}))
    return rows


def _ratio(base: Timing, other: Timing, against: str, plan: Plan) -> Ratio | Missing:
    return ratio_between(base.blocks, other.blocks, against, threads=plan.threads, seed=plan.seed)


def _times(blocks: Sequence[Block], macs: int | None) -> dict[str, Any]:
    runs = all_runs(blocks)
    latency = latency_summary(runs.wall_ns)
    speed = None if macs is None else macs / latency.p50 / 1e6
    return {"latency_ms": latency, "cpu_ms": float(np.median(runs.cpu_ns)) / 1e6, "gmacs_per_s": speed}


def _products(one: Contender, whole: Timing, alone: Timing, plan: Plan) -> tuple[Products, Missing | None]:
    assert isinstance(one.products, tuple)
    times = _times(alone.blocks, one.macs)
    found = Products(count=one.products[1], latency_ms=times["latency_ms"], gmacs_per_s=times["gmacs_per_s"])
    ratio = _ratio(whole, alone, one.name, plan)  # how many times as fast the products alone are
    if isinstance(ratio, Missing):
        return found, ratio
    share = {"share": 1 / ratio.median, "share_low": 1 / ratio.high, "share_high": 1 / ratio.low}
    return found.model_copy(update=share), None


def operators_of(one: Contender, threads: int) -> dict[str, float]:
    """Returns the shares of a variant's time by the names of operators, the largest first."""
    assert one.variant is not None
    variant = one.variant.variant
    _, flow = make_input(one.variant.bundle, seed=0)
    times: dict[str, float] = {}
    for name, spent in OPERATOR_TIMES[variant.target](
        one.variant.folder / variant.artifact, threads, flow, PROFILED_RUNS
    ):
        times[name] = times.get(name, 0.0) + spent
    total = sum(times.values())
    return {
        name: spent / total for name, spent in sorted(times.items(), key=lambda pair: -pair[1]) if spent > 0
    }


# ---------------------------------------------------------------------------------------------
# The ratios that matter

QUARTER = 0.25


def comparisons_of(rows: Sequence[Row], timings: Mapping[str, Timing], plan: Plan) -> list[Comparison]:
    """Returns what a reader asks first, of one size: ours at 25 % against the full ViT, and against what else reduces tokens."""
    timed = [row for row in rows if row.latency_ms is not None]
    ours = [row for row in timed if row.group == "ours" and row.keep_rate == QUARTER]
    others = [row for row in timed if row.group == "full ViT by others"]
    full = [row for row in timed if row.keep_rate == 1 and (row in others or row.name.startswith("vit-"))]
    reduced = [row for row in timed if row.group == "token reduction by others" and row.keep_rate == QUARTER]
    found = []

    def compare(what: str, row: Row | None, against: Row | None) -> None:
        if row is None or against is None or row.name not in timings or against.name not in timings:
            return
        ratio = _ratio(timings[against.name], timings[row.name], against.id, plan)
        known = isinstance(ratio, Ratio)
        found.append(Comparison(what=what, row=row.id, against=against.id, ratio=ratio if known else None,
                                missing=None if known else ratio))  # fmt: skip

    best = fastest(ours)
    compare(
        "25 % against the plain export",
        best,
        next((row for row in others if row.name.startswith(f"{BASELINE}-")), None),
    )
    compare("25 % against the fastest full ViT by others", best, fastest(others))
    compare("25 % against the fastest full ViT of all, ours among them", best, fastest(full))
    for own in ours:
        kind = (own.runtime, own.precision)
        where = f"{own.runtime}, {own.precision}"
        alike = [row for row in reduced if (row.runtime, row.precision) == kind]
        compare(f"25 % against the fastest EViT or ToMe at 25 %: {where}", own, fastest(alike))
        same = [row for row in full if row.group == "ours" and (row.runtime, row.precision) == kind]
        compare(f"25 % against the same full ViT: {where}", own, fastest(same))
    return found


def fastest(rows: Iterable[Row]) -> Row | None:
    """Returns the row of the least CPU time, which depends less on what others do; of several threads, of the least latency."""

    def time_of(row: Row) -> float:
        assert row.latency_ms is not None
        assert row.cpu_ms is not None
        return row.cpu_ms if row.threads == 1 else row.latency_ms.p50

    return min(rows, key=time_of, default=None)
