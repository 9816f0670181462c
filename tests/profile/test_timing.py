"""Real worker processes on real graphs, and verdicts on timings that were made up.

Nothing here looks at how long anything took: a busy neighbour must not be able to fail a test. The run of a variant
against itself looks at a ratio and at its own interval, which is wide on a busy machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_data import ended, profiled, write_tiny_bundle

from ptsr_edge.core.errors import InputError, JobError, MissingExtraError
from ptsr_edge.profile import timing as module
from ptsr_edge.profile.schema import Missing
from ptsr_edge.profile.timing import (
    TimingConfig,
    measure_interleaved,
    pinned_cpus,
    quick_timing,
    time_until_stable,
    why_unstable,
)
from ptsr_edge.profile.variants import ProfiledVariant
from ptsr_edge.profile.worker import RawTiming, Worker
from ptsr_edge.stats.latency import Ratio, ratio_interval

pytestmark = pytest.mark.slow


def named(folder: Path, **tokens: int) -> list[ProfiledVariant]:
    """Variants of the PTSR bundle by their tokens, under ids of their own."""
    by_tokens = {one.variant.tokens: one for one in profiled(folder)}
    return [
        ProfiledVariant(name, folder, by_tokens[count].bundle, by_tokens[count].variant)
        for name, count in tokens.items()
    ]


def test_interleaved_rounds_runs_and_shapes(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WARM_UP_S", 0.01)
    variants = named(folders[0], full=16, again=16, half=8)
    shown: list[int] = []

    def progress(rounds: Iterable[int], _: str) -> Iterable[int]:
        for number in rounds:
            shown.append(number)
            yield number

    timings = measure_interleaved(
        variants, TimingConfig(duration_s=0.7, min_runs=130, block=6), progress=progress
    )
    assert list(timings) == ["full", "again", "half"]
    # 130 runs in blocks of 6 and more are 22 rounds; .7 s in blocks of .03 s are 24, fewer if a block of
    # 6 runs takes longer.
    rounds = len(shown)
    assert 22 <= rounds <= 24
    for timing in timings.values():
        samples = timing.samples_ns
        assert len(timing.blocks_ns) == len(timing.cpu_ns) == rounds
        assert min(len(block) for block in timing.blocks_ns) >= 6
        assert len(samples) >= 130
        assert len(samples) == sum(len(block) for block in timing.blocks_ns) == len(timing.rounds)
        assert samples.dtype == np.int64
        assert samples.min() > 0
        assert np.unique(timing.rounds).tolist() == list(range(rounds))
        assert timing.warm_up_runs >= 11
        assert min(timing.import_ms, timing.load_ms, timing.first_ms) > 0
        assert timing.predict_ms is not None
        assert timing.predict_ms > 0
        assert timing.cpu_share > 0


def test_a_dying_worker_takes_the_others_along(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Worker] = []
    begin = Worker.__enter__

    def remember(self: Worker) -> Worker:
        started.append(begin(self))
        pids.append(self.pid)
        return self

    pids: list[int] = []
    monkeypatch.setattr(Worker, "__enter__", remember)
    good, bad = named(folders[0], good=16, bad=8)
    gone = bad.variant.model_copy(update={"id": "no-such-variant"})
    bad = ProfiledVariant("bad", bad.folder, bad.bundle, gone)
    with pytest.raises(InputError, match=r"bad: ptsr-test has no variant 'no-such-variant'; it has ptsr-"):
        measure_interleaved([good, bad], TimingConfig(duration_s=0.1))
    assert len(pids) == 2
    assert all(ended(pid) for pid in pids)


def test_what_cannot_be_loaded_is_told_and_left_out(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path, broken=[0.5])
    variants, config = profiled(tmp_path), TimingConfig(duration_s=0.1)
    told: dict[str, str] = {}
    timings = measure_interleaved(
        variants, config, refused=lambda one, error: told.update({one.id: str(error)})
    )
    assert list(timings) == [variants[0].id]
    assert list(told) == [variants[1].id]
    assert "cannot load" in told[variants[1].id]
    with pytest.raises(JobError, match="cannot load"):
        measure_interleaved(variants, config)


def test_processes_are_started_again_and_their_rounds_told_apart(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WARM_UP_S", 0.0)
    monkeypatch.setattr(module, "MIN_BLOCK_S", 0.001)
    pids: list[int] = []
    load = Worker.load

    def remember(self: Worker) -> RawTiming:
        pids.append(self.pid)
        return load(self)

    monkeypatch.setattr(Worker, "load", remember)
    config = TimingConfig(duration_s=0.01, min_runs=1, processes=3)
    timings = measure_interleaved(named(folders[0], full=16, half=8), config)
    assert len(set(pids)) == 6
    for timing in timings.values():
        # 20 rounds at least, shared out among 3 starts: 7 each.
        assert timing.launches == [0] * 7 + [1] * 7 + [2] * 7
        assert len(timing.blocks_ns) == len(timing.cpu_ns) == 21
        assert timing.processes == 3
        assert timing.throughput_per_s is None
        assert timing.stages is None
        assert timing.operators_run
        assert (timing.instructions, timing.missing) == (None, {})


def test_a_quick_run_starts_less_and_asks_for_less(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WARM_UP_S", 0.0)
    monkeypatch.setattr(module, "MIN_BLOCK_S", 0.001)
    asked: list[tuple[str, str]] = []
    ask = Worker._ask

    def remember(self: Worker, request: Mapping[str, Any], limit_s: float = 60.0) -> dict[str, Any]:
        asked.append((request["op"], request.get("call", "")))
        return ask(self, request, limit_s)

    monkeypatch.setattr(Worker, "_ask", remember)
    timings = measure_interleaved(named(folders[0], full=16, half=8), quick_timing(duration_s=0.001))
    # Two variants: 3 starts of each, of which each warms up in one block and runs 4 rounds and one whole call;
    # operators are counted once.
    assert Counter(asked) == {
        ("load", ""): 6, ("block", "infer"): 2 * 3 * (1 + 4), ("block", "predict"): 6, ("memory", ""): 6,
        ("operators", ""): 2,
    }  # fmt: skip
    assert timings["half"].launches == [0] * 4 + [1] * 4 + [2] * 4


def test_more_threads_than_cores_cannot_be_pinned() -> None:
    with pytest.raises(InputError, match=r"cannot pin 4096 threads to the \d+ cores"):
        pinned_cpus(4096)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"duration_s": 0}, "a positive number of seconds, got 0"),
        ({"duration_s": -1.5}, "seconds, got -1.5"),
        ({"duration_s": float("nan")}, "seconds, got nan"),
        *(
            ({name: 0}, f"{name} must be at least 1, got 0")
            for name in ("min_runs", "block", "threads", "processes", "attempts")
        ),
        ({"streams": -1}, "streams must be at least 0"),
        ({"threads": 999, "pin": True}, "cannot pin 999 threads"),
    ],
    ids=str,
)
def test_configurations_that_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TimingConfig(**change)  # type: ignore[arg-type]


def test_two_variants_of_one_id_are_refused(folders: tuple[Path, Path]) -> None:
    (variant,) = named(folders[0], a=16)
    with pytest.raises(InputError, match="an id of its own, got a, a"):
        measure_interleaved([variant, variant], TimingConfig(duration_s=1))


def test_a_variant_against_itself_is_as_fast_as_itself(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quick form of `benchmarks/aa.py`: a bias of the method shows, an unlucky draw does not.

    Of 8 processes each, 1.0 lies in the 95 % interval in 19 of 20 tries; in one that is twice as wide (4.73 standard
    errors at 7 degrees of freedom) in 998 of 1,000. A variant that is timed first in each round, or with cold caches,
    is slower by more than that.
    """
    monkeypatch.setattr(module, "WARM_UP_S", 0.02)
    monkeypatch.setattr(module, "MIN_BLOCK_S", 0.005)
    config = TimingConfig(duration_s=0.4, min_runs=200, processes=8)
    timings = measure_interleaved(named(folders[0], a=16, b=16), config)
    a, b = timings["a"], timings["b"]
    found = ratio_interval(a.blocks_ns, b.blocks_ns, against="a", launches=a.launches)
    assert len(found.per_process) == 8
    low, high = (
        found.median * (found.low / found.median) ** 2,
        found.median * (found.high / found.median) ** 2,
    )
    assert low <= 1.0 <= high


@pytest.mark.usefixtures("short_runs")
def test_an_unstable_run_is_measured_again_until_the_attempts_are_used_up(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TimingConfig(duration_s=0.05, min_runs=20, block=2, attempts=2)
    verdicts = iter(["a neighbour woke up", "always"])
    monkeypatch.setattr(module, "why_unstable", lambda *_: next(verdicts))
    tries, _ = time_until_stable(named(folders[0], a=16), config)
    assert [one.unstable for one in tries] == ["a neighbour woke up", "always"]


@pytest.mark.parametrize(
    ("target", "error", "kind", "said"),
    [
        ("trt", JobError, "no_device", "built, not run here"),
        ("cpu", JobError, "failed", "could not be run here, so nothing was timed"),
        ("toy", MissingExtraError, "not_installed", "could not be run here, so nothing was timed"),
    ],
)
def test_a_refusal_has_a_kind_and_names_no_place(
    folders: tuple[Path, Path],
    target: str,
    error: type[JobError],
    kind: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, other = named(folders[0], base=16, other=8)
    elsewhere = other.variant.model_copy(update={"target": target})
    other = ProfiledVariant("other", other.folder, other.bundle, elsewhere)
    load = Worker.load

    def refuse(self: Worker) -> RawTiming:
        if self.variant is other:
            raise error(f"other: no way to run {other.folder}/a.plan")
        return load(self)

    monkeypatch.setattr(Worker, "load", refuse)
    monkeypatch.setattr(module, "MIN_BLOCK_S", 0.001)
    _, refusals = time_until_stable([base, other], TimingConfig(duration_s=0.01, min_runs=1))
    assert refusals == {"other": Missing(kind=kind, reason=f"{said}: no way to run a.plan")}  # type: ignore[arg-type]


def timing(medians: list[int], share: float = 1.0) -> RawTiming:
    """Two rounds in each process, of constant samples."""
    blocks = [np.full(4, median) for median in medians for _ in range(2)]
    launches = [launch for launch in range(len(medians)) for _ in range(2)]
    return RawTiming(
        1.0, 1.0, 1.0, None, blocks_ns=blocks, launches=launches,
        cpu_ns=[int(block.sum() * share) for block in blocks],
    )  # fmt: skip


def ratio(low: float, high: float) -> Ratio:
    return Ratio(against="vit", median=1.0, low=low, high=high)


QUIET = {"vit": timing([1000, 1010]), "a": timing([500, 505])}


def test_a_quiet_run() -> None:
    assert why_unstable(QUIET, {"a": ratio(0.98, 1.02)}, "vit", 1) is None


def test_a_ratio_that_is_hardly_known() -> None:
    # ln(1.2 / .9) / 2 = .144.
    said = why_unstable(QUIET, {"b": ratio(0.98, 1.02), "a": ratio(0.9, 1.2)}, "vit", 1)
    assert said == "the ratio of a is known to 14% only"


def test_a_baseline_that_drifts() -> None:
    drifting = QUIET | {"vit": timing([1000, 1200, 1100])}
    assert (
        why_unstable(drifting, {}, "vit", 1) == "the baseline's median differs by 20% between its processes"
    )


def test_a_core_that_was_shared() -> None:
    shared = QUIET | {"a": timing([500, 500], share=0.6)}
    assert why_unstable(shared, {}, "vit", 1) == "a had a core for 60% of the timed time"
    # Several threads, or waiting for a GPU: the share says nothing.
    assert why_unstable(shared, {}, "vit", 2) is None
    assert why_unstable(shared, {}, "vit", 1, waiting=["a"]) is None
