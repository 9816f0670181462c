"""Damages what the package reads, in so many ways as are asked for, and counts how its readers end.

    make fuzz FUZZ_ARGS="--inputs 1000"

Each case is a number: it damages the same file in the same way whenever it is run. Cases run in processes of their own, so
that one that hangs or crashes ends itself alone. With --resume a run goes on where an earlier one stood.
"""

from __future__ import annotations

import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from fuzz.mutation import damage
from fuzz.readers import READERS, can_be_made, prepare, rehash, targets
from ptsr_edge.core.console import Verb, finish, run, say
from ptsr_edge.core.errors import InputError, PtsrError
from ptsr_edge.core.files import write_json

LIMIT_S = 80.0
"""Of one case and the start of its process; more is a hang."""

LIMIT_BYTES = 12_000_000_000
"""Of address space that a case may take; the runtimes alone map some of it."""

GOOD = ("refused", "right")
"""Ends that are as they should be: the project's own error, or a right answer."""

BATCH = 200
"""Cases of one process, which then is started anew: what one leaks does not add up."""


def work(name: str, seeds: Path, first: int, last: int) -> None:
    """Runs cases in this process; a line of JSON before and after each."""
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)  # runtimes say what they think of a file
    for number in range(first, last):
        print(json.dumps({"case": number}), file=answers, flush=True)
        with tempfile.TemporaryDirectory(prefix="ptsr-edge-fuzz-") as scratch:
            found = case(name, seeds, number, Path(scratch) / "copy")
        print(json.dumps({"case": number, **found}), file=answers, flush=True)


def case(name: str, seeds: Path, number: int, folder: Path) -> dict[str, str]:
    """Runs one case; returns how it ended, and what was said where that is not as it should be."""
    reader = READERS[name]
    draw = np.random.default_rng([*name.encode(), number])
    prepare(folder, reader, seeds)
    files = targets(folder, reader)
    path = files[int(draw.integers(len(files)))]
    content = damage(path.read_bytes(), reader.kind, draw)
    path.unlink()  # it may be a further name of another file
    path.write_bytes(content)
    if reader.rehash:
        rehash(folder)
    try:
        reader.call(folder)
    except PtsrError:
        return {"end": "refused"}
    except BaseException as error:  # noqa: BLE001 what ends here is what is looked for
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {error} at {Path(place.filename).name}:{place.lineno}"
        return {"end": "raw", "said": " ".join(said.split())[:300], "file": path.name}
    return {"end": "right"}


def cases(name: str, seeds: Path, first: int, last: int) -> Iterator[dict[str, Any]]:
    """Yields how each case ended, over as many processes as it takes."""
    at = first
    while at < last:
        until = min(last, at + BATCH)
        call = [sys.executable, "-m", "fuzz", "--worker", name, str(at), str(until), "--seeds", str(seeds)]
        # Unbuffered: a line that was read ahead would not wake `select`.
        alone = os.environ | {
            "OPENBLAS_NUM_THREADS": "1"
        }  # as verbs have it: threads that spin look like a hang
        with subprocess.Popen(call, stdout=subprocess.PIPE, bufsize=0, env=alone) as process:
            assert process.stdout is not None
            while at < until:
                line = _line(process.stdout)
                if line is None or not line:
                    process.kill()
                    code = process.wait()
                    yield {
                        "case": at,
                        "end": "hang" if line is None else "crash",
                        "said": f"exit code {code}",
                    }
                    at += 1
                    break
                record = json.loads(line)
                if "end" in record:
                    yield record
                    at = record["case"] + 1


def _line(stream: Any) -> bytes | None:
    """Returns the next line, empty where the process has ended, None where none came in time."""
    ready, _, _ = select.select([stream], [], [], LIMIT_S)
    return stream.readline() if ready else None


@click.command(cls=Verb, epilog='Example: make fuzz FUZZ_ARGS="--inputs 1000 checkpoint"')
@click.argument("chosen", nargs=-1)
@click.option(
    "--seeds",
    type=click.Path(path_type=Path),
    required=True,
    help="Sound files; made where they are not there.",
)
@click.option("--inputs", type=click.IntRange(min=1), default=200, show_default=True, help="Of each reader.")
@click.option(
    "--first", type=click.IntRange(min=0), default=0, show_default=True, help="Number of the first case."
)
@click.option("--out", type=click.Path(path_type=Path), help="Where the counts are kept.")
@click.option("--resume", is_flag=True, help="Go on where --out stands.")
@click.option("--worker", nargs=3, hidden=True)
@click.option("--json", "as_json", is_flag=True)
def main(
    chosen: tuple[str, ...], seeds: Path, inputs: int, first: int, out: Path | None, resume: bool,
    worker: tuple[str, str, str] | None, as_json: bool,
) -> None:  # fmt: skip
    """Damage files and count how their readers end."""
    if worker:
        work(worker[0], seeds, int(worker[1]), int(worker[2]))
        return
    unknown = [name for name in chosen if name not in READERS]
    if unknown:
        raise InputError(f"unknown reader {unknown[0]!r}; known: {', '.join(READERS)}")
    from fuzz.seeds import make

    make(seeds)
    record: dict[str, Any] = {"readers": {}}
    if resume and out is not None and out.is_file():
        record = json.loads(out.read_text(encoding="utf-8"))
    for name in chosen or READERS:
        if not can_be_made(READERS[name]):
            say(f"{name}: not tried, it needs {READERS[name].needs}")
            continue
        known = record["readers"].setdefault(name, {"next": first, "ends": {}, "wrong": []})
        ends, started = Counter(known["ends"]), time.monotonic()
        for found in cases(name, seeds.resolve(), known["next"], first + inputs):
            ends[found["end"]] += 1
            if found["end"] not in GOOD:
                known["wrong"].append(found)
                say(f"{name} {found['case']}: {found['end']}: {found.get('said', '')}")
            known |= {"next": found["case"] + 1, "ends": dict(ends)}
            if out is not None and found["case"] % 100 == 99:
                write_json(out, record)
        if out is not None:
            write_json(out, record)
        say(f"{name}: {dict(ends)} in {time.monotonic() - started:.0f} s")
    wrong = sum(len(one["wrong"]) for one in record["readers"].values())
    finish(record, lines(record), as_json)
    if wrong:
        sys.exit(1)


def lines(record: dict[str, Any]) -> list[str]:
    """Returns the counts as a table in Markdown."""
    found = ["| reader | tried | refused | right | wrong ends |", "|---|---:|---:|---:|---:|"]
    for name, one in record["readers"].items():
        ends = one["ends"]
        found.append(
            f"| {name} | {sum(ends.values()):,} | {ends.get('refused', 0):,} | {ends.get('right', 0):,} | "
            f"{len(one['wrong']):,} |"
        )
    return found


if __name__ == "__main__":
    run(main, "python -m fuzz")
