"""What campaigns share: the scene of a case, what came of it, and verbs that are run in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

LIMIT_S = 300.0
"""Of one run of a verb; more is a hang."""


@dataclass(frozen=True)
class Effort:
    """How much one case of the longer campaigns does.

    Attributes:
        duration_s: of a soak.
        cycles: times that sessions are opened and let go.
        steps: of a search for inputs, and switches of a budget.
        judges: whether times and growth are judged; a short run only notes them, as a busy machine would decide them.
    """

    duration_s: float
    cycles: int
    steps: int
    judges: bool


SHORT = Effort(duration_s=6, cycles=20, steps=60, judges=False)
LONG = Effort(duration_s=3600, cycles=10_000, steps=1000, judges=True)


@dataclass(frozen=True)
class Scene:
    """What a case has to itself.

    Attributes:
        material: sound files that all cases share; what a campaign adds there is kept for the next case.
        scratch: an empty folder that goes with the case.
        number: of the case.
        draw: the case's own source of randomness.
        effort: how much it is to do.
    """

    material: Path
    scratch: Path
    number: int
    draw: np.random.Generator
    effort: Effort


@dataclass(frozen=True)
class Outcome:
    """What came of one fault, or of several of a kind.

    Attributes:
        fault: what was done.
        end: how it ended, in few words: equal ends are counted together.
        wrong: what should not have happened.
        tried: how often the fault was made.
        figures: by name with its unit; of several cases the largest is kept.
    """

    fault: str
    end: str
    wrong: Sequence[str] = ()
    tried: int = 1
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Campaign:
    """One kind of damage.

    Attributes:
        does: what, in a line.
        run: makes one case.
        short, long: how many cases.
    """

    does: str
    run: Callable[[Scene], Iterable[Outcome]]
    short: int
    long: int


@dataclass(frozen=True)
class Done:
    """How a process ended, and what it said on stderr."""

    code: int
    said: str

    def faults(self, program: str) -> list[str]:
        """Returns what is wrong with a failure: it has to be told in one line that names the program."""
        lines = [line for line in self.said.splitlines() if line.startswith(f"{program}: ")]
        if self.code in (1, 2) and len(lines) == 1 and "Traceback" not in self.said:
            return []
        return [f"exit code {self.code}, told in {len(lines)} lines: {self.said.strip()[-300:]}"]


def program(arguments: Sequence[str]) -> str:
    """Returns how a verb calls itself in its messages."""
    return f"python -m ptsr_edge {arguments[0]}"


def command(arguments: Sequence[str]) -> list[str]:
    """Returns the call of a verb; what is no verb is a program of Python, for tests."""
    return [sys.executable, *(["-c"] if " " in arguments[0] else ["-m", "ptsr_edge"]), *arguments]


def start(arguments: Sequence[str], place: Path, cache: Path | None = None) -> subprocess.Popen[str]:
    """Starts a verb in a folder, with a cache and a folder of temporary files of its own, in a group of processes."""
    scratch = place / "tmp"
    scratch.mkdir(exist_ok=True)
    own = {"PTSR_EDGE_CACHE": str(cache or place / "cache"), "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(arguments), cwd=place, env=os.environ | own, text=True, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> Done:
    """Waits for a process that `start` started."""
    try:
        _, said = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        _, said = process.communicate()
        said += f"\nhangs: ended after {LIMIT_S:g} s"
    return Done(process.returncode, said)


def alive(group: int) -> list[int]:
    """Returns the processes of a group that have not ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, own_group = entry.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has just ended
            continue
        if int(own_group) == group and state not in "ZX":
            found.append(int(entry.parent.name))
    return found


def left_alive(group: int, patience_s: float = 10) -> list[int]:
    """Returns the processes of a group that are there still after some time."""
    until = time.monotonic() + patience_s
    while (found := alive(group)) and time.monotonic() < until:
        time.sleep(0.02)
    return found


def growth_per_hour(times_s: Sequence[float], values: Sequence[float]) -> float:
    """Returns the slope of a straight line through values over time, by the hour, the first fifth left out."""
    first = len(times_s) // 5
    slope, _ = np.polyfit(np.asarray(times_s[first:]), np.asarray(values[first:]), 1)
    return float(slope) * 3600


def resident_bytes() -> int:
    """Returns what this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
