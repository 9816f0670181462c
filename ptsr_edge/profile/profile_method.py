"""How a profile was made: its setting, the method in words, and the command that repeats it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ptsr_edge.profile.stability import DRIFT_LIMIT, INTERVAL_LIMIT
from ptsr_edge.profile.timing import WARM_UP_RUNS, WARM_UP_S, Setting
from ptsr_edge.profile.variants import shown_path
from ptsr_edge.profile.worker import SETTLE_RUNS, RawTiming


def method_of(setting: Setting, timings: Mapping[str, RawTiming]) -> dict[str, Any]:
    """How the figures were made, for the record."""
    some = next(iter(timings.values()))
    return {
        "timed": "Session.infer, synchronous, batch 1: the network alone on a normalised input",
        "clock": "time.perf_counter_ns around each call",
        "processes": "one for each variant, all loaded, one running at a time; all ended and started again "
        f"until there were {some.processes} of each",
        "interleaving": f"{len(some.blocks_ns)} rounds; in each, every variant runs one block, in an order "
        f"drawn anew; a block has at least {setting.block} runs and takes the same time for all",
        "warm_up": f"at least {WARM_UP_S:g} s and {WARM_UP_RUNS} runs, and "
        f"{SETTLE_RUNS} untimed runs at the start of each block",
        "least_duration_s": setting.duration_s,
        "least_runs": setting.min_runs,
        "threads": setting.threads,
        "pinned": setting.pin,
        "seed": setting.seed,
        "outliers": "none removed; all samples lie beside this file",
        "ratio": ratio_text(some.processes),
        "unstable": f"measured again, up to {setting.attempts} times in all, where a ratio was known to less than "
        f"{INTERVAL_LIMIT:.0%}, the baseline drifted by more than {DRIFT_LIMIT:.0%} or a core was shared",
        "throughput": f"{setting.streams} sessions in threads of one process"
        if setting.streams
        else "not measured",
        "energy": some.energy_why or "not measured",
        "load": "Session.open: manifest, SHA-256 of all files, loading or compiling; the import comes before",
        "memory": "VmHWM of the process that runs one variant, Python and runtime included",
        "macs": "one multiply-add counts as one; matrix products and convolutions only",
        "accuracy": "through the same artifacts, one sample at a time",
    }


def ratio_text(processes: int) -> str:
    """How a ratio came about."""
    inside = "median over rounds of (block median of the baseline / block median of the variant)"
    if processes == 1:
        return f"{inside}, 95 % percentile bootstrap over rounds: how processes differ is not in it"
    return f"geometric mean over processes of the {inside}, 95 % bootstrap over processes, widened for few"


def command_of(
    folders: Sequence[Path],
    out: Path,
    baseline: Path | None,
    data: str | None,
    root: Path | None,
    setting: Setting,
) -> str:
    """What reproduces the run; folders as `shown_path` names them."""
    words = [word for folder in folders for word in ("--bundle", shown_path(folder))]
    if baseline is not None:
        words += ["--baseline", shown_path(baseline)]
    if data is not None:
        words += ["--data", data]
    if root is not None:
        words += ["--root", shown_path(root)]
    for name, value in (
        ("--duration-s", setting.duration_s),
        ("--min-runs", setting.min_runs),
        ("--threads", setting.threads),
        ("--seed", setting.seed),
    ):
        words += [name, f"{value:g}"]
    for name, number in (
        ("--processes", setting.processes), ("--attempts", setting.attempts), ("--streams", setting.streams),
    ):  # fmt: skip
        words += [name, str(number)]
    words += ["--pin"] if setting.pin else []
    return shlex.join(["python", "-m", "ptsr_edge.profile", *words, "--out", shown_path(out)])
