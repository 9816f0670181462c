"""How cost grows: with tokens, input size, threads, streams and loaded budgets; and what an export takes its time for.

    python benchmarks/growth.py --out profiles/my-board [--short]

Writes growth.json, growth.svg and growth.md into `--out`. All of it is `ptsr-tiny`'s geometry on one thread in every target
and precision that runs on a processor, where nothing else is said. Each variant has a measuring process of its own, and all of a
curve are asked in turn in an order drawn anew; times are CPU time, which other processes cannot lengthen much, but for the curve
over threads. An exponent is the slope of a straight line through the logarithms of both axes (2: twice as much costs four
times), its interval the bootstrap over rounds.
"""

from __future__ import annotations

import argparse
import pstats
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shared_weights import megabytes

from ptsr_edge.bundle import Bundle, Variant, read_bundle
from ptsr_edge.camera.stages import SharedSession
from ptsr_edge.core.config import ModelConfig, Record, named_model
from ptsr_edge.core.console import say
from ptsr_edge.core.files import write_json, write_whole
from ptsr_edge.core.system import describe_environment
from ptsr_edge.export.exporter import export_bundle
from ptsr_edge.models.checkpoint import random_info, save_checkpoint
from ptsr_edge.models.ptsr import build_model
from ptsr_edge.profile.worker import ProfiledVariant, Worker
from ptsr_edge.report.comparison import three_digits
from ptsr_edge.report.plotting import WIDE, Canvas, Drawing, colour, render, standalone

TARGETS = ("cpu", "openvino")
PRECISIONS = ("fp32", "int8")
TOKENS = (8, 16, 24, 32, 49, 64, 80, 98, 128, 160, 196)
SIZES = (56, 80, 112, 144, 168, 224)
"""Pixels along one side; patches stay as large as they are."""

KEEP_RATE = 0.25
STREAMS = (1, 2, 4, 8)
LADDER = (1.0, 0.5, 0.25, 0.12)
ROLES = {("cpu", "fp32"): "s1", ("cpu", "int8"): "s3", ("openvino", "fp32"): "s2", ("openvino", "int8"): "s4"}
NAMES = {"cpu": "ONNX Runtime", "openvino": "OpenVINO"}
RESAMPLES = 2000


class Curve(Record):
    """Cost over one quantity, of one kind of artifact.

    Attributes:
        over: what grows.
        what: the cost, with its unit.
        kind: runtime and precision.
        at: the quantity, growing.
        cost: median over rounds at each.
        low, high: 95 % interval of each, by the bootstrap over rounds.
        exponent, exponent_low, exponent_high: of the whole curve.
        macs_exponent: of the multiply-adds, which the cost is to grow no faster than; None where they do not change.
    """

    over: str
    what: str
    kind: str
    at: list[float]
    cost: list[float]
    low: list[float]
    high: list[float]
    exponent: float
    exponent_low: float
    exponent_high: float
    macs_exponent: float | None = None


class Growth(Record):
    """The whole record; `export_s` is a table by name."""

    command: str
    environment: dict[str, Any]
    curves: list[Curve]
    export_s: dict[str, dict[str, float]]


def exponent(at: Sequence[float], cost: Sequence[float] | NDArray[np.float64]) -> float:
    """Returns the slope of the logarithm of the cost over that of the quantity, by least squares."""
    return float(np.polyfit(np.log(at), np.log(cost), 1)[0])


def curve(
    over: str,
    what: str,
    kind: str,
    at: Sequence[float],
    rounds: NDArray[np.float64],
    macs: Sequence[int] | None = None,
) -> Curve:
    """Makes a curve of (rounds, points) costs that were measured round by round."""
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(rounds), (RESAMPLES, len(rounds)))
    resampled = np.median(rounds[draws], axis=1)
    slopes = [exponent(at, one) for one in resampled]
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    cost = np.median(rounds, axis=0)
    return Curve(
        over=over,
        what=what,
        kind=kind,
        at=list(map(float, at)),
        cost=cost.tolist(),
        low=low.tolist(),
        high=high.tolist(),
        exponent=exponent(at, cost),
        exponent_low=float(np.quantile(slopes, 0.025)),
        exponent_high=float(np.quantile(slopes, 0.975)),
        macs_exponent=None if macs is None else exponent(at, macs),
    )


def timed(
    variants: Sequence[ProfiledVariant], how: Mapping[str, Any], threads: Sequence[int], call: str = "infer"
) -> NDArray[np.float64]:
    """(rounds, variants) milliseconds of CPU time an inference, or of wall time where a variant has several threads."""
    order = random.Random(0)
    wall = any(count > 1 for count in threads)
    rows = []
    for _ in range(how["launches"]):
        with ExitStack() as stack:
            workers = [
                stack.enter_context(Worker(one, threads=count))
                for one, count in zip(variants, threads, strict=True)
            ]
            for worker in workers:
                worker.load()
            for _ in range(how["rounds"]):
                row = np.zeros(len(workers))
                for place in order.sample(range(len(workers)), k=len(workers)):
                    block = workers[place].block(duration_s=how["block_s"], runs=5, call=call)
                    row[place] = np.median(block.wall_ns if wall else block.cpu_ns) / 1e6
                rows.append(row)
    return np.array(rows)


def of_kind(bundle: Bundle, target: str, precision: str) -> list[Variant]:
    """Returns the variants of a target and precision, by growing budget."""
    found = [one for one in bundle.variants if (one.target, one.precision) == (target, precision)]
    return sorted(found, key=lambda variant: variant.tokens)


def random_checkpoint(config: ModelConfig, path: Path) -> Path:
    """Writes a checkpoint with seeded random weights."""
    info = random_info(config, ["negative", "positive", "surprise"])
    save_checkpoint(path, build_model(config, seed=0), info)
    return path


def over_tokens(folder: Path, how: Mapping[str, Any]) -> list[Curve]:
    """Latency against tokens, and against threads at two budgets."""
    patches = named_model("ptsr-tiny").patches
    rates = [count / patches for count in how["tokens"]]
    bundle = export_bundle(
        out=folder, model="ptsr-tiny", target=TARGETS, budgets=rates, precisions=PRECISIONS, cache=True
    )
    curves = []
    for target, precision in ROLES:
        say(f"tokens: {target} {precision}")
        some = [ProfiledVariant(one.id, folder, bundle, one) for one in of_kind(bundle, target, precision)]
        rounds = timed(some, how, [1] * len(some))
        kind = f"{NAMES[target]} {precision}"
        tokens = [float(one.variant.tokens) for one in some]
        macs = [one.variant.macs for one in some]
        curves.append(curve("tokens", "CPU ms an inference", kind, tokens, rounds, macs))
        for place in (tokens.index(49.0), len(tokens) - 1):
            counts = how["threads"]
            rounds = timed([some[place]] * len(counts), how, counts)
            name = f"{kind}, {tokens[place]:.0f} tokens"
            curves.append(curve("threads", "ms an inference", name, counts, rounds))
    return curves


def over_size(folder: Path, how: Mapping[str, Any]) -> list[Curve]:
    """Latency of the network, and of the whole sample, against the side of the input, at a quarter of the tokens."""
    base = named_model("ptsr-tiny")
    curves = []
    made = []
    for side in how["sizes"]:
        config = base.model_copy(update={"name": f"ptsr-{side}", "image_size": side})
        out = folder / str(side)
        checkpoint = random_checkpoint(config, folder / f"{side}.safetensors")
        bundle = export_bundle(
            out=out, checkpoint=checkpoint, target=TARGETS, budgets=[KEEP_RATE], precisions=PRECISIONS
        )
        made.append((side, out, bundle))
    for target, precision in ROLES:
        say(f"input size: {target} {precision}")
        some = [
            ProfiledVariant(f"{side}", out, bundle, of_kind(bundle, target, precision)[0])
            for side, out, bundle in made
        ]
        sides = [side for side, _, _ in made]
        macs = [one.variant.macs for one in some]
        kind = f"{NAMES[target]} {precision}"
        for call, word in (
            ("infer", "CPU ms an inference"),
            ("sample", "CPU ms from two crops to an answer"),
        ):
            rounds = timed(some, how, [1] * len(some), call)
            over = "pixels a side" if call == "infer" else "pixels a side, whole sample"
            curves.append(curve(over, word, kind, sides, rounds, macs if call == "infer" else None))
    return curves


def answers(
    shared: SharedSession, flows: NDArray[np.float32], budget: float, times: int, streams: int
) -> float:
    """Milliseconds of CPU time that one answer to each of some streams takes, all of them asking at once."""

    def ask(flow: NDArray[np.float32]) -> None:
        for _ in range(times):
            shared.predict(flow, budget)

    threads = [threading.Thread(target=ask, args=(flow,)) for flow in flows[:streams]]
    started = time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.process_time() - started) * 1e3 / times


def over_streams(folder: Path, how: Mapping[str, Any]) -> list[Curve]:
    """CPU time of one answer to each of several streams, which share a session as the camera's do."""
    curves = []
    for target, precision in ROLES:
        say(f"streams: {target} {precision}")
        shared = SharedSession(folder, target=target, precision=precision)
        size = shared.bundle.preprocess.image_size
        flows = np.random.default_rng(0).normal(size=(8, size, size, 3)).astype(np.float32)
        budget = min(shared.budgets, key=lambda rate: abs(rate - KEEP_RATE))

        spent = partial(answers, shared, flows, budget, how["answers"])
        spent(2)
        rounds = np.array([[spent(count) for count in STREAMS] for _ in range(how["rounds"])])
        kind = f"{NAMES[target]} {precision}"
        curves.append(curve("streams", "CPU ms for an answer to each", kind, STREAMS, rounds))
    return curves


def over_budgets(folder: Path) -> list[Curve]:
    """Memory of a process against the budgets that it has loaded; what sharing saves is told by `shared_weights.py`."""
    curves = []
    bundle = read_bundle(folder)
    for target, precision in ROLES:
        say(f"budgets loaded: {target} {precision}")
        found = {one.tokens: one.keep_rate for one in of_kind(bundle, target, precision)}
        rates = [found[bundle.model.tokens_at(rate)] for rate in LADDER]
        # Twice, since a process is not the same twice.
        rounds = [
            [megabytes(folder, target, precision, rates[:count], share=False)[1] for count in (1, 2, 4)]
            for _ in range(2)
        ]
        kind = f"{NAMES[target]} {precision}"
        curves.append(curve("budgets loaded", "MB of the process", kind, (1, 2, 4), np.array(rounds)))
    return curves


PHASES = {
    "_prepare": "calibration samples",
    "trace_budgets": "tracing",
    "build": "quantizing and compiling",
    "prove_all": "proving",
    "recommend": "judging",
}
"""Functions of the exporter, and what each of them does."""

EXPORT = """
import sys
from pathlib import Path
import cProfile
from ptsr_edge.export.exporter import export_bundle

folder, model, targets, budgets, record = sys.argv[1:]
profiler = cProfile.Profile()
rates = [float(rate) for rate in budgets.split(",")]
profiler.runcall(export_bundle, out=Path(folder), model=model, target=targets.split(","), budgets=rates)
profiler.dump_stats(record)
"""


def of_export(folder: Path, how: Mapping[str, Any]) -> tuple[list[Curve], dict[str, dict[str, float]]]:
    """Seconds of an export, whole and by phase, against its budgets; nothing out of a cache."""
    table = {}
    curves = []
    for model in how["exported"]:
        totals = []
        for count in (1, 2, 4):
            say(f"export: {model} with {count} budgets")
            record = folder / f"{model}-{count}.stats"
            budgets = ",".join(map(str, LADDER[:count]))
            call = [sys.executable, "-c", EXPORT, str(folder / f"{model}-{count}"), model, ",".join(TARGETS)]
            subprocess.run([*call, budgets, str(record)], check=True, capture_output=True)
            stats = pstats.Stats(str(record))
            spent = {
                PHASES[name]: round(entry[3], 2)
                for (file, _, name), entry in stats.stats.items()  # type: ignore[attr-defined]
                if name in PHASES and file.endswith("exporter.py")
            }
            whole = next(
                entry[3]
                for (_, _, name), entry in stats.stats.items()  # type: ignore[attr-defined]
                if name == "export_bundle"
            )
            spent = dict(sorted(spent.items(), key=lambda item: -item[1]))
            table[f"{model}, {count} budget{'s' * (count > 1)}"] = {"whole": round(whole, 2), **spent}
            totals.append(whole)
        curves.append(curve("budgets exported", "s", model, (1, 2, 4), np.array([totals])))
    return curves, table


def as_markdown(growth: Growth) -> str:
    """Returns the page."""
    lines = [
        "# How cost grows",
        "",
        f"`{growth.command}` on {growth.environment['cpu']['model']}, {growth.environment['cpu']['cores_visible']} cores. Exponents with the 95 % interval over rounds; 1 is proportional.",
        "",
        "| over | of | from | to | cost, from | to | exponent | of the multiply-adds |",
        "|---|---|---:|---:|---:|---:|---|---|",
    ]
    for one in growth.curves:
        lines.append(
            f"| {one.over} | {one.kind} ({one.what}) | {one.at[0]:g} | {one.at[-1]:g} | {three_digits(one.cost[0])} "
            f"| {three_digits(one.cost[-1])} | {one.exponent:.2f} [{one.exponent_low:.2f}, {one.exponent_high:.2f}] "
            f"| {'-' if one.macs_exponent is None else f'{one.macs_exponent:.2f}'} |"
        )
    lines += ["", f"## Seconds of an export for {' and '.join(TARGETS)}, all precisions, nothing cached", ""]
    for name, spent in growth.export_s.items():
        parts = ", ".join(f"{phase} {took:.1f}" for phase, took in spent.items() if phase != "whole")
        lines.append(f"- {name}: {spent['whole']:.1f} s, of which {parts}")
    return "\n".join([*lines, ""])


PANELS = (
    ("tokens", "CPU ms over tokens"),
    ("pixels a side", "CPU ms over pixels a side"),
    ("streams", "CPU ms over streams, an answer to each"),
)
PANEL_HEIGHT = 300


def as_picture(growth: Growth) -> str:
    """Returns an SVG: one panel for each quantity, both axes logarithmic, dashed lines proportional to the quantity."""
    panels = [(over, title) for over, title in PANELS if any(one.over == over for one in growth.curves)]

    def paint(canvas: Canvas) -> None:
        height = PANEL_HEIGHT
        for place, (over, title) in enumerate(panels):
            top = 40 + place * height
            canvas.write(4, top - 14, title, "ink", weight="bold")
            axes = canvas.axes(60, 330, top, (len(panels) - place - 1) * height + 50)
            some = [one for one in growth.curves if one.over == over]
            axes.set_xscale("log")
            axes.set_yscale("log")
            ends = np.array([some[0].at[0], some[0].at[-1]])
            for one in some:
                target = next(key for key, name in NAMES.items() if one.kind.startswith(name))
                role = ROLES[target, one.kind.rsplit(" ", 1)[-1]]
                axes.plot(ends, one.cost[-1] * ends / ends[-1], color=colour(role), lw=1, ls=":")
                (line,) = axes.plot(one.at, one.cost, color=colour(role), lw=2, marker="o", ms=4)
                canvas.tip(line, f"{one.kind}: exponent {one.exponent:.2f}")
            axes.set_xticks(some[0].at, [f"{at:g}" for at in some[0].at])
            axes.minorticks_off()
            low, high = min(min(one.cost) for one in some), max(max(one.cost) for one in some)
            marks = [
                mark * 10**power
                for power in range(-3, 5)
                for mark in (1, 2, 5)
                if low <= mark * 10**power <= high
            ]
            axes.set_yticks(marks, [f"{mark:g}" for mark in marks])
            axes.xaxis.grid(visible=True)
            axes.yaxis.grid(visible=True)
            for number, one in enumerate(sorted(some, key=lambda one: -one.cost[-1])):
                target = next(key for key, name in NAMES.items() if one.kind.startswith(name))
                role = ROLES[target, one.kind.rsplit(" ", 1)[-1]]
                canvas.write(
                    570,
                    top + 14 + 20 * number,
                    f"{one.kind}: {one.exponent:.2f} [{one.exponent_low:.2f}, {one.exponent_high:.2f}]",
                    role,
                )
        canvas.write(
            4,
            40 + len(panels) * height - 8,
            "Beside the panels: exponents. Dotted: proportional to the quantity.",
        )

    words = "; ".join(
        f"{one.kind} over {one.over}: exponent {one.exponent:.2f}"
        for one in growth.curves
        if one.over in dict(panels)
    )
    drawing = Drawing(paint, (44 + PANEL_HEIGHT * len(panels), 0), "", words)
    return standalone(render("growth", drawing, (WIDE,))[0], f"How cost grows. {words}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--short", action="store_true", help="Few points and rounds: whether everything runs."
    )
    arguments = parser.parse_args()
    environment = describe_environment()
    cores = int(environment["cpu"]["cores_visible"])
    how: dict[str, Any] = {
        "launches": 2, "rounds": 10, "block_s": 0.05, "tokens": TOKENS, "sizes": SIZES, "threads": sorted({1, min(2, cores), min(4, cores), cores}),
        "answers": 20, "exported": ["ptsr-tiny", "ptsr-small"],
    }  # fmt: skip
    if arguments.short:
        how |= {"launches": 1, "rounds": 4, "block_s": 0.02, "tokens": (24, 49, 98, 196), "sizes": (56, 112),
                "answers": 5, "exported": ["ptsr-tiny"]}  # fmt: skip
    curves: list[Curve] = []
    with tempfile.TemporaryDirectory(prefix="growth-") as scratch:
        folder = Path(scratch)
        (folder / "sizes").mkdir()
        curves += over_tokens(folder / "tokens", how)
        curves += over_size(folder / "sizes", how)
        curves += over_streams(folder / "tokens", how)
        curves += over_budgets(folder / "tokens")
        exported, export_s = of_export(folder, how)
    command = f"python benchmarks/growth.py --out {arguments.out}{' --short' * arguments.short}"
    growth = Growth(
        command=command,
        environment=environment,
        curves=[*curves, *exported],
        export_s=export_s,
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "growth.json", growth.model_dump(mode="json"))
    write_whole(arguments.out / "growth.svg", as_picture(growth))
    page = as_markdown(growth)
    write_whole(arguments.out / "growth.md", page)
    print(page)


if __name__ == "__main__":
    main()
