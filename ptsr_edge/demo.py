"""The whole path once: export, prove, profile beside the full-token ViT, judge, report.

python -m ptsr_edge.demo --out out/demo
"""

from __future__ import annotations

import time
from pathlib import Path

import click

from ptsr_edge.core.config import DEFAULT_MODEL
from ptsr_edge.core.console import Verb, explained_imports, finish, if_interrupted, run_verb, say

BUDGETS = (1.0, 0.5, 0.25)


@click.command(cls=Verb, epilog="Example: python -m ptsr_edge.demo --out out/demo")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/demo"), show_default=True)
@click.option("--duration-s", type=click.FloatRange(min=0, min_open=True), default=4.0, show_default=True,
              help="Least timed duration of each variant.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result record.")
def main(out: Path, duration_s: float, as_json: bool) -> None:
    """Export the embedded default for the CPU, profile it against its full-token ViT, and report."""
    with explained_imports("the demo"):  # here and not above: only a call can answer in one line
        from ptsr_edge.export.cli import summary
        from ptsr_edge.export.exporter import export_bundle
        from ptsr_edge.profile.cli import table
        from ptsr_edge.profile.profiler import profile_bundles
        from ptsr_edge.profile.timing import TimingConfig
        from ptsr_edge.report.cli import write_report

    started = time.monotonic()
    say(f"1/3  exporting {DEFAULT_MODEL} at budgets {', '.join(f'{rate:.0%}' for rate in BUDGETS)}")
    bundle = export_bundle(out=out / "bundle", model=DEFAULT_MODEL, target="cpu", budgets=BUDGETS, cache=True)
    for line in summary(bundle):
        say(f"     {line}")
    say("2/3  profiling it, interleaved with the full-token ViT, and judging held-out subjects")
    with if_interrupted(lambda: f"{out / 'bundle'} is written, nothing else; the same command starts anew"):
        profile = profile_bundles(
            [out / "bundle"],
            out=out / "profile",
            data="synthetic",
            timing=TimingConfig(duration_s=duration_s),
        )
    say("3/3  writing the report")
    report = write_report([out / "profile"], out).page
    say(f"     done in {time.monotonic() - started:.0f} s")
    record = {"report": str(report), "profile": profile.model_dump(mode="json", by_alias=True)}
    finish(record, [*table(profile), str(report)], as_json)


if __name__ == "__main__":
    run_verb("demo")
