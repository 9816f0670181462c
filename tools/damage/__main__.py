"""Does damage to whole commands, pipelines and sessions, so often as is asked for, and counts how it ends.

    make damage DAMAGE_ARGS="--cases 50 kills"

Each case of a campaign is a number: it does the same damage whenever it is run, as far as a moment in time can be the same. With
--resume a run goes on where an earlier one stood.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np

from damage import disks, kills, numbers, sessions, silence, soak
from damage.trial import LONG, SHORT, Campaign, Outcome, Scene
from damage.work import make
from ptsr_edge.core.console import Verb, finish, run, say
from ptsr_edge.core.errors import InputError
from ptsr_edge.core.files import write_json

CAMPAIGNS: dict[str, Campaign] = {
    "kills": Campaign("SIGKILL at any moment of a verb", kills.run, short=8, long=1600),
    "disks": Campaign("full, read-only and vanishing places, two writers", disks.run, short=12, long=960),
    "soak": Campaign("four streams with planted faults", soak.run, short=1, long=1),
    "sessions": Campaign("one session for many threads; sessions opened and let go", sessions.run, short=4, long=6),
    "numbers": Campaign("the same answers everywhere; inputs sought that break them", numbers.run, short=6, long=60),
    "silence": Campaign("verbs that may reach for no network", silence.run, short=2, long=4),
}  # fmt: skip
"""Every campaign. A new one is its entry here."""


def record_of(known: dict[str, Any], found: Outcome, number: int) -> None:
    """Adds what came of a case to the record of its campaign."""
    one = known["faults"].setdefault(found.fault, {"tried": 0, "ends": {}, "wrong": [], "figures": {}})
    one["tried"] += found.tried
    one["ends"] = dict(Counter(one["ends"]) + Counter({found.end: found.tried}))
    one["wrong"] += [{"case": number, "said": said} for said in found.wrong]
    for name, value in found.figures.items():
        one["figures"][name] = max(value, one["figures"].get(name, value))


@click.command(cls=Verb, epilog='Example: make damage DAMAGE_ARGS="--cases 50 kills"')
@click.argument("chosen", nargs=-1)
@click.option(
    "--material",
    type=click.Path(path_type=Path),
    required=True,
    help="Sound files and undisturbed results; made where they are not there.",
)
@click.option("--short", is_flag=True, help="Few cases, each with little to do; times are noted, not judged.")
@click.option("--cases", type=click.IntRange(min=1), help="Of each campaign; by default its own number.")
@click.option(
    "--first", type=click.IntRange(min=0), default=0, show_default=True, help="Number of the first case."
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of what the cases draw."
)
@click.option("--duration-s", type=click.FloatRange(min=1), help="Of a soak.")
@click.option("--cycles", type=click.IntRange(min=1), help="Times that sessions are opened and let go.")
@click.option("--steps", type=click.IntRange(min=1), help="Of each search for inputs; switches of a budget.")
@click.option("--out", type=click.Path(path_type=Path), help="Where counts and figures are kept.")
@click.option("--resume", is_flag=True, help="Go on where --out stands.")
@click.option("--json", "as_json", is_flag=True)
def main(
    chosen: tuple[str, ...], material: Path, short: bool, cases: int | None, first: int, seed: int, out: Path | None,
    resume: bool, as_json: bool, **asked: float | None,
) -> None:  # fmt: skip
    """Do damage and count how it ends."""
    unknown = [name for name in chosen if name not in CAMPAIGNS]
    if unknown:
        raise InputError(f"unknown campaign {unknown[0]!r}; known: {', '.join(CAMPAIGNS)}")
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    effort = dataclasses.replace(SHORT if short else LONG, **given)
    record: dict[str, Any] = {"seed": seed, "campaigns": {}}
    if resume and out is not None and out.is_file():
        record = json.loads(out.read_text(encoding="utf-8"))
        if record["seed"] != seed:
            raise InputError(f"{out} was drawn with --seed {record['seed']}; go on with that")
    make(material.resolve())
    for name in chosen or CAMPAIGNS:
        campaign = CAMPAIGNS[name]
        known = record["campaigns"].setdefault(name, {"next": first, "faults": {}})
        for number in range(known["next"], first + (cases or (campaign.short if short else campaign.long))):
            scratch = Path(tempfile.mkdtemp(prefix="ptsr-edge-damage-"))
            draw = np.random.default_rng([seed, sorted(CAMPAIGNS).index(name), number])
            try:
                for found in campaign.run(Scene(material.resolve(), scratch, number, draw, effort)):
                    record_of(known, found, number)
                    for said in found.wrong:
                        say(f"{name} {number}: {found.fault}: {said}")
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            known["next"] = number + 1
            if out is not None:
                write_json(out, record)
        say("\n".join(lines({"campaigns": {name: known}})[2:]))
    finish(record, lines(record), as_json)
    if any(one["wrong"] for known in record["campaigns"].values() for one in known["faults"].values()):
        sys.exit(1)


def lines(record: dict[str, Any]) -> list[str]:
    """Returns a line a fault, as a table in Markdown: what was tried, what happened, how often that was wrong."""
    found = ["| fault | how often | what happened | wrong ends |", "|---|---:|---|---:|"]
    for name, known in record["campaigns"].items():
        for fault, one in known["faults"].items():
            happened = ", ".join(f"{end} {count:,}" for end, count in one["ends"].items())
            figures = "".join(f"; {key} at most {value:.4g}" for key, value in one["figures"].items())
            found.append(
                f"| {name}: {fault} | {one['tried']:,} | {happened}{figures} | {len(one['wrong']):,} |"
            )
    return found


if __name__ == "__main__":
    run(main, "python -m damage")
