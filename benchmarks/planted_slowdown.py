"""A real artifact slowed by a wrapper around the session: 10 % must be found by `--compare`, 1 % not called; and
the same variant profiled twice must have ratios whose intervals overlap.

    python benchmarks/planted_slowdown.py --bundle DIR --baseline DIR [--processes 5] [--duration-s 2] [--load 1]

The wrapper stands in the measuring process, around each inference of the variants (not of the baseline): it
burns a share of the CPU time that the inference took. Each case is a whole run of `profile`; exit code 1 where one
of them is judged wrongly. A run that stays unstable leaves everything open, which is wrong for 10 % too. With `--load`,
all of it beside so many planted busy processes a core; that two runs of nothing are `unclear` is right then.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from planted_load import busy

from ptsr_edge.bundle import read_bundle
from ptsr_edge.profile.profiler import profile_bundles
from ptsr_edge.profile.schema import Profile
from ptsr_edge.profile.timing import TimingConfig
from ptsr_edge.report.changes import compare_profiles, sentence

WRAPPER = """
import os, time
share = float(os.environ.get("PTSR_EDGE_PLANTED_SLOWDOWN", "0"))
if share:
    from ptsr_edge.session import Session
    plain = Session.infer

    def slowed(self, flow):
        start = time.process_time_ns()
        answer = plain(self, flow)
        if self.bundle.model.kind == "ptsr":
            end = time.process_time_ns()
            until = end + share * (end - start)
            while time.process_time_ns() < until:
                pass
        return answer

    Session.infer = slowed
"""
"""Loaded as `sitecustomize` by each measuring process."""

CASES = ((0.0, ("no change",)), (0.01, ("no change", "unclear")), (0.10, ("slower",)))


def apart(old: Profile, new: Profile) -> int:
    """How many ratios of two runs of the same have intervals that do not overlap; each pair is printed."""
    ratios = {row.id: row.ratio for row in old.variants if row.ratio is not None}
    count = 0
    for row in new.variants:
        before = ratios.get(row.id)
        if before is None or row.ratio is None:
            continue
        overlap = before.low <= row.ratio.high and row.ratio.low <= before.high
        count += not overlap
        print(
            f"{'right' if overlap else 'WRONG'}  twice  {row.id}  {before.median:.3f} [{before.low:.3f}, "
            f"{before.high:.3f}] and {row.ratio.median:.3f} [{row.ratio.low:.3f}, {row.ratio.high:.3f}]",
            flush=True,
        )
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--baseline", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--duration-s", type=float, default=2.0)
    parser.add_argument("--attempts", type=int, default=3)
    parser.add_argument("--load", type=float, default=0.0, help="Busy processes a core.")
    arguments = parser.parse_args()
    timing = TimingConfig(
        duration_s=arguments.duration_s, processes=arguments.processes, attempts=arguments.attempts
    )
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sitecustomize.py").write_text(WRAPPER, encoding="utf-8")
        paths = [str(folder), str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)

        def profile(share: float, out: str) -> Profile:
            os.environ["PTSR_EDGE_PLANTED_SLOWDOWN"] = str(share)
            with busy(arguments.load):
                return profile_bundles(
                    [arguments.bundle], out=folder / out, baseline=arguments.baseline, timing=timing
                )

        old = profile(0.0, "old")
        for share, expected in CASES:
            new = profile(share, f"new-{share:g}")
            found = compare_profiles(old, new)
            if share == 0:
                wrong += apart(old, new)
            for change in found.changes:
                if change.times_as_long is None:
                    continue
                slowed = change.id.startswith(read_bundle(arguments.bundle).model.name)
                nothing = ("no change", "unclear") if arguments.load else ("no change",)
                right = change.time in (expected if slowed and share else nothing)
                wrong += not right
                print(
                    f"{'right' if right else 'WRONG'}  +{share:.0%}  {change.id}  {sentence(change)}",
                    flush=True,
                )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
