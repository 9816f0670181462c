"""The command of `benchmarks/speed`; see `--help`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from ptsr_edge.core.config import MODELS
from ptsr_edge.core.console import Verb, comma_separated, finish, is_given, run, say
from ptsr_edge.core.errors import InputError
from ptsr_edge.core.files import check_place, json_text, write_whole
from ptsr_edge.core.system import describe_environment, installed, visible_cpus

from .contenders import BASELINE, Contender, full_vits, own_variants, prepare, reduced_vits
from .environments import ENVIRONMENTS, FOLDER, versions_of
from .measure import BLOCK_RUNS, BLOCK_S, Plan, comparisons_of, measure, rows_of
from .record import SPEED, Comparison, Row, Speed
from .show import as_markdown, as_picture, comparison_line

SIZES = tuple(name.removeprefix("vit-") for name in MODELS if name.startswith("vit-"))

BUDGETS = (1.0, 0.5, 0.25, 0.12)

SHORT_BUDGETS = (0.25,)

SHORT: dict[str, Any] = {"sizes": ["tiny"], "threads": [1], "rounds": 12, "processes": 1}


def size_of(text: str) -> str:
    """Reads a size.

    Raises:
        InputError: there is no ViT of it.
    """
    if text not in SIZES:
        raise InputError(f"--sizes: unknown size {text!r}; accepted: {', '.join(SIZES)}")
    return text


def contend(size: str, work: Path, budgets: Sequence[float]) -> list[Contender]:
    """Makes all contenders of a size."""
    prepared = prepare(size, work)
    return [*full_vits(prepared), *reduced_vits(prepared), *own_variants(prepared, budgets)]


@click.command(cls=Verb, epilog="Example: python -m benchmarks.speed --out profiles/my-board")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("out/speed/result"),
    show_default=True,
    help="Folder of speed.json, speed.svg and speed.md.",
)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path("out/speed"),
    show_default=True,
    help="Folder that keeps what was converted.",
)
@click.option(
    "--sizes",
    default="tiny,small,nano",
    show_default=True,
    callback=comma_separated(size_of, "--sizes"),
    help="Geometries, of vit-SIZE.",
)
@click.option(
    "--threads",
    default="1,2",
    show_default=True,
    callback=comma_separated(int, "--threads"),
    help="Of one inference.",
)
@click.option("--rounds", default=40, show_default=True, help="In all, shared out among the processes.")
@click.option(
    "--processes",
    default=3,
    show_default=True,
    help="Starts of each contender; of fewer than 3 an interval says little.",
)
@click.option(
    "--short",
    is_flag=True,
    help="tiny, one thread, 12 rounds in one process: whether everything runs, not how fast.",
)
@click.option("--json", "as_json", is_flag=True, help="One line of JSON on stdout.")
def main(
    out: Path,
    work: Path,
    sizes: list[str],
    threads: list[int],
    rounds: int,
    processes: int,
    short: bool,
    as_json: bool,
) -> None:
    """Time the full ViT through other tools, EViT and ToMe, and ptsr-edge's own variants, side by side."""
    given: dict[str, Any] = {"sizes": sizes, "threads": threads, "rounds": rounds, "processes": processes}
    if short:
        given = {name: given[name] if is_given(name) else value for name, value in SHORT.items()}
    plans = [Plan(count, given["rounds"], given["processes"]) for count in given["threads"]]
    for plan in plans:
        if plan.threads > len(visible_cpus()):
            raise InputError(
                f"--threads: {plan.threads} threads on {len(visible_cpus())} cores would wait for each other"
            )
    check_place(out)
    machine = describe_environment()
    rows: list[Row] = []
    comparisons: list[Comparison] = []
    for size in given["sizes"]:
        contenders = contend(size, work, SHORT_BUDGETS if short else BUDGETS)
        for plan in plans:
            timings, missing = measure(
                contenders,
                plan,
                f"{size}, {plan.threads} threads" if plan.threads > 1 else f"{size}, 1 thread",
            )
            found = rows_of(contenders, timings, missing, plan, size)
            rows += found
            comparisons += comparisons_of(found, timings, plan)
    speed = Speed(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", "benchmarks.speed", *sys.argv[1:]]),
        machine=machine,
        tools={"": machine["packages"] | installed(["transformers"])}
        | {name: versions_of(name) for name in ENVIRONMENTS if (FOLDER / name).is_dir()},
        method={
            "rounds": given["rounds"],
            "processes": given["processes"],
            "block_s": BLOCK_S,
            "block_runs": BLOCK_RUNS,
            "seed": 0,
        },
        baseline={size: f"{BASELINE}-{size}" for size in given["sizes"]},
        rows=rows,
        comparisons=comparisons,
    )
    files = {
        SPEED: json_text(speed.model_dump(mode="json")),
        "speed.md": as_markdown(speed),
        "speed.svg": as_picture(speed),
    }
    for name, content in files.items():
        write_whole(out / name, content)
    for line in map(comparison_line, comparisons):
        say(line.replace("**", ""))
    shown = [(out / name).as_posix() for name in files]
    finish(
        {"files": shown, "rows": len(rows), "timed": sum(row.latency_ms is not None for row in rows)},
        shown,
        as_json=as_json,
    )


if __name__ == "__main__":
    run(main, "python -m benchmarks.speed")
