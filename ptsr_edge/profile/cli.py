"""The verb `profile`: measures what each variant of one or more bundles costs beside the full-token ViT.

python -m ptsr_edge.profile --bundle out/ptsr-tiny-cpu --data synthetic --out out/profile
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from ptsr_edge.core.console import Verb, finish, if_interrupted, is_given
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.data.datasets import find_dataset
from ptsr_edge.profile.fleet import measure_fleet
from ptsr_edge.profile.profiler import profile_bundles
from ptsr_edge.profile.results import command_of
from ptsr_edge.profile.schema import FLEET, NOT_RUN, PROFILE, Fleet, Profile, slowest_first
from ptsr_edge.profile.timing import TimingConfig, quick_timing


def table(profile: Profile) -> list[str]:
    """Writes a line per variant, the baseline first, and one about a quick run."""
    head = (
        f"{'variant':32} {'tokens':>6} {'MMACs':>8} {'MB':>7} {'p50 ms':>8}  {'times as fast':22} {'UAR':>5}"
    )
    lines = [head]
    for row in profile.variants:
        p50 = f"{row.latency_ms.p50:.3f}" if row.latency_ms else "-"
        ratio = f"{row.ratio.median:.2f} [{row.ratio.low:.2f}, {row.ratio.high:.2f}]" if row.ratio else "-"
        ratio = "baseline" if row.id == profile.baseline else ratio
        if "latency_ms" in row.missing and row.missing["latency_ms"].kind == "no_device":
            ratio = NOT_RUN
        uar = f"{row.accuracy.uar:.3f}" if row.accuracy else "-"
        lines.append(
            f"{row.id:32} {row.tokens:6d} {row.macs / 1e6:8.1f} {row.size_bytes / 1e6:7.2f} {p50:>8}  "
            f"{ratio:22} {uar:>5}"
        )
    if profile.method.get("quick"):
        lines.append(
            f"a quick run, for a first look: {profile.method['interleaving'].partition(';')[0]}; "
            f"left out: {profile.method['left_out']}"
        )
    return lines


def fleet_lines(fleet: Fleet, out: Path) -> list[str]:
    """Writes a line per device, the slowest first, the call that makes the page, and the path of the record."""
    lines = [f"{'device':24} {'machine':32} {'ViT p95 ms':>10} {'best p95 ms':>11}  best variant"]
    for device in slowest_first(fleet.devices):
        machine = device.machine
        about = "-" if machine is None else machine.board or machine.cpu or machine.architecture
        if device.missing:
            lines.append(f"{device.name:24.24} {about:32.32} {device.missing.kind}: {device.missing.reason}")
            continue
        cells = [
            f"{row.latency_ms.p95:.3f}" if row and row.latency_ms else "-"
            for row in (device.vit, device.fastest)
        ]
        best = device.fastest.id if device.fastest else "-"
        lines.append(f"{device.name:24.24} {about:32.32} {cells[0]:>10} {cells[1]:>11}  {best}")
    folder = shlex.quote(out.as_posix())
    lines += [f"the page over all devices: python -m ptsr_edge.report --fleet {folder}", str(out / FLEET)]
    return lines


def check_fleet_call(
    data: str | None, root: Path | None, checkpoint: Path | None, control_seeds: int
) -> None:
    """Makes sure that a call over a fleet asks for nothing that is on this machine alone.

    Raises:
        InputError: it does; the message says which option.
    """
    if root is not None or (data is not None and not find_dataset(data).is_rendered):
        raise InputError(
            "data in folders stay here: with --fleet, --data can only be synthetic, which devices make themselves"
        )
    if checkpoint is not None or control_seeds:
        option = "--checkpoint" if checkpoint is not None else "--control-seeds"
        raise InputError(
            f"{option} compares selections with torch and the weights, which no device is sent: leave it out with --fleet"
        )


@click.command(
    cls=Verb,
    epilog="Example: python -m ptsr_edge.profile --bundle out/ptsr-tiny-cpu --data synthetic "
    "--out out/profile",
)
@click.option("--bundle", "bundles", type=click.Path(path_type=Path), multiple=True, help="May be repeated.")
@click.option("--baseline", type=click.Path(path_type=Path),
              help="A bundle of the full-token ViT; default: BUNDLE-baseline, else one is exported.")  # fmt: skip
@click.option("--data", help="Judge accuracy on this data; default: not measured.")
@click.option("--root", type=click.Path(path_type=Path), help="Folder of the data; synthetic needs none.")
@click.option("--subjects", type=int,
              help="With --data synthetic: judge this many people who are rendered for nothing else.")  # fmt: skip
@click.option("--checkpoint", type=click.Path(path_type=Path),
              help="What the bundles were exported from, to compare selections; default: the embedded weights.")  # fmt: skip
@click.option("--control-seeds", type=click.IntRange(max=1000), default=3, show_default=True,
              help="With --data: draws of random selection beside DTSM; 0 for none.")  # fmt: skip
@click.option("--quick", is_flag=True,
              help="A first look: fewer starts and rounds; no stages, ceiling, energy, throughput "
              "or other selections.")  # fmt: skip
@click.option("--count-instructions", is_flag=True,
              help="Count each variant's instructions with valgrind where the processor does not tell them; a minute "
              "or two each.")  # fmt: skip
@click.option("--duration-s", type=float, default=5.0, show_default=True,
              help="Least timed duration of each variant.")  # fmt: skip
@click.option("--min-runs", type=int, default=100, show_default=True, help="Least samples of each variant.")
@click.option("--threads", type=int, default=1, show_default=True, help="CPU threads of an artifact.")
@click.option("--processes", type=int, default=5, show_default=True,
              help="How often the process of each variant is started.")  # fmt: skip
@click.option("--attempts", type=int, default=2, show_default=True,
              help="How often an unstable run is measured at most.")  # fmt: skip
@click.option("--streams", type=int, default=2, show_default=True,
              help="Sessions at once for the throughput; 0: not measured.")  # fmt: skip
@click.option("--pin", is_flag=True, help="Bind all variants to the same cores.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the order and the bootstrap."
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/profile"), show_default=True)
@click.option("--fleet", metavar="ADDRESS",
              help="Profile on every worker of this Dask cluster (tcp://HOST:PORT) instead of here.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the record.")
def main(
    bundles: tuple[Path, ...], baseline: Path | None, data: str | None, root: Path | None, subjects: int | None,
    checkpoint: Path | None, control_seeds: int, quick: bool, count_instructions: bool, duration_s: float,
    min_runs: int, threads: int, processes: int, attempts: int, streams: int, pin: bool, seed: int, out: Path,
    fleet: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure MACs, latency, memory, size and accuracy of every variant beside the full-token ViT."""
    if root is not None and data is None:
        raise InputError("--root is the folder of the data: it goes with --data")
    asked: dict[str, Any] = dict(
        duration_s=duration_s, min_runs=min_runs, threads=threads, pin=pin and fleet is None, seed=seed,
        processes=processes, attempts=attempts, streams=streams, count_instructions=count_instructions,
    )  # fmt: skip
    if quick:
        given = {name: value for name, value in asked.items() if is_given(name)}
        for name, value in (("streams", streams), ("control_seeds", control_seeds)):
            if value and is_given(name):
                option = f"--{name.replace('_', '-')}"
                raise InputError(f"--quick leaves out what {option} {value} asks for: give one of the two")
        timing, control_seeds = quick_timing(**given), 0
    else:
        timing = TimingConfig(**asked, extras=True)
    if fleet is not None:
        check_fleet_call(data, root, checkpoint, control_seeds if is_given("control_seeds") else 0)
        command = command_of(bundles, out, timing, baseline=baseline, data=data, subjects=subjects)
        with if_interrupted(
            lambda: (
                f"{out / FLEET} has the devices that had answered; the same command starts anew"
                if (out / FLEET).is_file()
                else ""
            )
        ):
            found = measure_fleet(
                fleet, bundles, out=out, baseline=baseline, data=data, subjects=subjects, timing=timing, pin=pin,
                command=f"{command}{' --pin' if pin else ''} --fleet {shlex.quote(fleet)}",
            )  # fmt: skip
        finish(found.model_dump(mode="json", by_alias=True), fleet_lines(found, out), as_json)
        if gone := [device for device in found.devices if device.missing]:
            names = ", ".join(f"{one.name} ({one.missing.kind})" for one in gone if one.missing)
            raise JobError(f"{len(gone)} of {len(found.devices)} devices have no results: {names}")
        return
    earlier = (out / PROFILE).is_file()
    with if_interrupted(
        lambda: f"{out} is {'as it was' if earlier else 'not written'}; the same command starts anew"
    ):
        profile = profile_bundles(
            bundles, out=out, baseline=baseline, data=data, root=root, subjects=subjects,
            timing=timing, checkpoint=checkpoint, control_seeds=control_seeds,
        )  # fmt: skip
    finish(profile.model_dump(mode="json", by_alias=True), [*table(profile), str(out / PROFILE)], as_json)
