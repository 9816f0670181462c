"""The README's timed and counted claims, measured: one line each, exit code 1 if one is missed.

    python benchmarks/claims.py [--duration-s 10]

Latency by `ptsr_edge.profile`: variants interleaved in one run, one thread, ratio with its interval. The
quoted figure is the ratio's median; the machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ptsr_edge.checkpoint import resolve
from ptsr_edge.data import load
from ptsr_edge.evaluate import evaluate_bundle, judged_samples
from ptsr_edge.export import export_bundle
from ptsr_edge.manifest import Bundle, read_bundle
from ptsr_edge.measure import measure_interleaved
from ptsr_edge.profile import profile_bundles
from ptsr_edge.profile_method import Setting
from ptsr_edge.profile_record import Ratio
from ptsr_edge.statistics import ratio_interval
from ptsr_edge.target import variant_id
from ptsr_edge.worker import Job

LADDER = (1.0, 0.7, 0.5, 0.35, 0.25, 0.12)


@dataclass(frozen=True)
class Claim:
    """What is said, the limit, and what was found."""

    text: str
    measured: float
    limit: float
    at_least: bool
    detail: str = ""

    @property
    def holds(self) -> bool:
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def line(self) -> str:
        sign = ">=" if self.at_least else "<="
        verdict = "holds" if self.holds else "MISSED"
        return f"{verdict:7} {self.text}: {self.measured:.3f} (limit {sign} {self.limit:g}) {self.detail}"


def disk_bytes(bundle: Bundle) -> int:
    """Bytes of all artifacts, each shared file once."""
    return sum({entry.path: entry.bytes for variant in bundle.variants for entry in variant.files}.values())


def ladder_claim(folder: Path) -> Claim:
    six = export_bundle(out=folder / "six", model="ptsr-small", budgets=LADDER, precisions=["fp32"])
    one = export_bundle(out=folder / "one", model="ptsr-small", budgets=LADDER[:1], precisions=["fp32"])
    ratio = disk_bytes(six) / disk_bytes(one)
    return Claim(
        "disk of six budgets over one, ptsr-small", ratio, 1.06, False, f"{disk_bytes(six) / 1e6:.1f} MB"
    )


def speed_claim(quarter: Path, folder: Path, duration_s: float) -> Claim:
    profile = profile_bundles(
        [quarter], out=folder / "profile", setting=Setting(duration_s=duration_s, threads=1)
    )
    row = next(row for row in profile.variants if (row.target, row.precision) == ("cpu", "fp32")
               and row.id != profile.baseline)  # fmt: skip
    assert row.ratio is not None
    return Claim(
        "ptsr-small at 25 % over vit-small, ONNX Runtime fp32, one thread",
        row.ratio.median, 2.4, True, interval(row.ratio),
    )  # fmt: skip


def int8_claims(quarter: Path, duration_s: float) -> list[Claim]:
    """int8 over fp32 in the same runtime; the limits are for a CPU with VNNI."""
    jobs = [Job(variant.id, quarter, variant.id) for variant in read_bundle(quarter).variants]
    timings = measure_interleaved(jobs, duration_s=duration_s, threads=1)
    claims = []
    for target, limit in (("cpu", 2.3), ("openvino", 2.5)):
        exact, small = (
            timings[variant_id("ptsr-small", target, precision, 49)] for precision in ("fp32", "int8")
        )
        ratio = ratio_interval(exact.blocks_ns, small.blocks_ns, against=target)
        text = f"int8 over fp32, ptsr-small at 25 %, target {target}, one thread"
        claims.append(Claim(text, ratio.median, limit, True, interval(ratio)))
    return claims


def interval(ratio: Ratio) -> str:
    return f"[{ratio.low:.2f}, {ratio.high:.2f}]"


def accuracy_claims(folder: Path) -> list[Claim]:
    """The embedded model through its artifacts, on people it has not seen."""
    export_bundle(
        out=folder, target=("cpu", "openvino"), precisions=("fp32", "int8"), budgets=(1.0, 0.5, 0.25, 0.12)
    )
    model = resolve(None, "ptsr-tiny")[0]
    bundle = read_bundle(folder)
    data, _ = judged_samples(load("synthetic", None, image_size=112), bundle.provenance, everyone=False)
    found = {record["id"]: record for record in evaluate_bundle(folder, data, model)}
    exact = [record for name, record in found.items() if "fp32" in name]
    same = min(record["agrees_with_eager"] / record["n"] for record in exact)
    lost = max(
        found[name.replace("int8", "fp32")]["uar"] - record["uar"]
        for name, record in found.items()
        if "int8" in name
    )
    n = f"n = {len(data)}, worst of {len(exact)} artifacts"
    return [
        Claim("same class as eager, ptsr-tiny fp32, both runtimes, four budgets", same, 1.0, True, n),
        Claim("UAR that int8 loses against fp32, ptsr-tiny, same runtime and budget", lost, 0.01, False, n),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--duration-s", type=float, default=10.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        quarter = folder / "quarter"
        export_bundle(
            out=quarter,
            model="ptsr-small",
            target=("cpu", "openvino"),
            budgets=[0.25],
            precisions=["fp32", "int8"],
        )
        claims = [
            ladder_claim(folder),
            speed_claim(quarter, folder, arguments.duration_s),
            *int8_claims(quarter, arguments.duration_s),
            *accuracy_claims(folder / "tiny"),
        ]
    for claim in claims:
        print(claim.line())
    return 0 if all(claim.holds for claim in claims) else 1


if __name__ == "__main__":
    sys.exit(main())
