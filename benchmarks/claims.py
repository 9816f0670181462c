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

from ptsr_edge.export import export_bundle
from ptsr_edge.manifest import Bundle
from ptsr_edge.profile import profile_bundles
from ptsr_edge.profile_method import Setting

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


def speed_claim(folder: Path, duration_s: float) -> Claim:
    export_bundle(out=folder / "quarter", model="ptsr-small", budgets=[0.25], precisions=["fp32"])
    profile = profile_bundles(
        [folder / "quarter"], out=folder / "profile", setting=Setting(duration_s=duration_s, threads=1)
    )
    row = next(row for row in profile.variants if row.id != profile.baseline)
    assert row.ratio is not None
    interval = f"[{row.ratio.low:.2f}, {row.ratio.high:.2f}]"
    return Claim(
        "ptsr-small at 25 % over vit-small, ONNX Runtime fp32, one thread",
        row.ratio.median, 2.4, True, interval,
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--duration-s", type=float, default=10.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        claims = [ladder_claim(Path(name)), speed_claim(Path(name), arguments.duration_s)]
    for claim in claims:
        print(claim.line())
    return 0 if all(claim.holds for claim in claims) else 1


if __name__ == "__main__":
    sys.exit(main())
