"""Verbs that may reach for no network, nor may what they start: the kernel and Python tell of each try."""

from __future__ import annotations

from collections.abc import Iterator

from no_network import FILTERED, NO_FILTER, run_watched

from damage.trial import Outcome, Scene, command
from damage.work import WORKS


def run(scene: Scene) -> Iterator[Outcome]:
    """Runs one verb, by the case's number, as a user who consented to telemetry."""
    calls = {name: WORKS[name].call(scene.material, 1) for name in ("camera", "export", "profile")} | {
        "doctor": ["doctor"]
    }
    name = list(calls)[scene.number % len(calls)]
    yield watched(scene, name, calls[name])


def watched(scene: Scene, name: str, call: list[str]) -> Outcome:
    """Returns what a call tried to reach. Sockets of this machine's own network are tries, too: none of these verbs needs one."""
    home = scene.scratch / "home"
    home.mkdir()
    done, tried, _ = run_watched(command(call), home, scene.scratch)
    wrong = [f"{call[0]}: {line}" for line in tried.splitlines() if line.startswith("CALLS HOME")][:3]
    if tried and not wrong:
        wrong = [f"{call[0]}: {tried[:300]}"]
    if done.returncode:
        wrong.append(f"{call[0]}: exit code {done.returncode}: {done.stderr.strip()[-300:]}")
    return Outcome(name, "silent" if FILTERED else f"silent as far as Python tells: {NO_FILTER}", wrong)
