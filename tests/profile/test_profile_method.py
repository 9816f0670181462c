"""What a record says about how it was made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ptsr_edge.profile.cli import main
from ptsr_edge.profile.results import command_of, method_of
from ptsr_edge.profile.timing import TimingConfig
from ptsr_edge.profile.worker import RawTiming


def test_the_command_repeats_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    setting = TimingConfig(
        duration_s=2.5, min_runs=7, threads=2, pin=True, seed=9, processes=5, attempts=2, streams=3
    )
    words = command_of(
        [Path("a b"), tmp_path / "c"], tmp_path / "out" / "p", tmp_path / "vit", "megc-flow",
        tmp_path.parent / "data", setting,
    )  # fmt: skip
    assert words == (
        "python -m ptsr_edge.profile --bundle 'a b' --bundle c --baseline vit --data megc-flow --root data "
        "--duration-s 2.5 --min-runs 7 --threads 2 --seed 9 --processes 5 --attempts 2 --streams 3 --pin --out out/p"
    )
    # Every option that it names is one that the command has.
    known = {name for option in main.params for name in option.opts}
    assert {word for word in words.split() if word.startswith("--")} <= known


def test_the_method_counts_its_rounds() -> None:
    timing = RawTiming(1.0, 1.0, 1.0, None, blocks_ns=[np.array([5])] * 23, cpu_ns=[5] * 23)
    method = method_of(TimingConfig(duration_s=3.0, threads=2), {"a": timing})
    assert method["interleaving"].startswith("23 rounds;")
    assert (method["least_duration_s"], method["threads"], method["pinned"]) == (3.0, 2, False)
    assert "one multiply-add counts as one" in method["macs"]
