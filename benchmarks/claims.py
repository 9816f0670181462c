"""The README's timed and counted claims, measured: one line each, exit code 1 if one is missed.

    python benchmarks/claims.py [--only int8,accuracy] [--duration-s 10] [--megc-root DIR]

Parts: ladder (disk), speed, int8 (its speed), accuracy (what int8 loses, and the same class as eager, on synthetic
held-out people; for target trt through the typed graphs where there is no GPU), megc (the same on `megc-flow` below
DIR, by a ptsr-nano that is trained for it and thrown away).

Latency by `ptsr_edge.profile`: variants interleaved in one run, one thread, ratio with its interval. The
quoted figure is the ratio's median; the machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ptsr_edge.bundle import read_bundle
from ptsr_edge.core.system import describe_cpu
from ptsr_edge.data.datasets import FlowDataset, load
from ptsr_edge.doctor import INT8_FLAGS
from ptsr_edge.evaluate.evaluation import evaluate_bundle, judged_samples
from ptsr_edge.export.exporter import export_bundle
from ptsr_edge.export.parity import eager_reference, measure_parity
from ptsr_edge.export.targets.base import variant_id
from ptsr_edge.export.targets.typed_graph import TypedGraphRunner
from ptsr_edge.models.checkpoint import resolve
from ptsr_edge.models.ptsr import Model
from ptsr_edge.profile.profiler import profile_bundles
from ptsr_edge.profile.timing import TimingConfig, measure_interleaved
from ptsr_edge.profile.worker import ProfiledVariant
from ptsr_edge.runtimes.build_on_device import cuda_devices
from ptsr_edge.session import open_artifact, why_not_here
from ptsr_edge.stats.latency import Ratio, ratio_interval

LADDER = (1.0, 0.7, 0.5, 0.35, 0.25, 0.12)
BUDGETS = (1.0, 0.5, 0.25, 0.12)
TARGETS = ("cpu", "openvino", "trt")


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


def disk_bytes(folder: Path) -> int:
    """Bytes that the artifacts of a bundle take on the disk: a file under several names counts once."""
    files = [entry.path for variant in read_bundle(folder).variants for entry in variant.files]
    facts = [(folder / path).stat() for path in files]
    return sum({(one.st_dev, one.st_ino): one.st_size for one in facts}.values())


def ladder_claim(folder: Path, target: str) -> Claim:
    six, one = folder / f"six-{target}", folder / f"one-{target}"
    for place, budgets in ((six, LADDER), (one, LADDER[:1])):
        export_bundle(out=place, model="ptsr-small", target=target, budgets=budgets, precisions=["fp32"])
    ratio = disk_bytes(six) / disk_bytes(one)
    return Claim(
        f"disk of six budgets over one, ptsr-small, {target}", ratio, 1.06, False,
        f"{disk_bytes(six) / 1e6:.1f} MB",
    )  # fmt: skip


def speed_claim(quarter: Path, folder: Path, duration_s: float) -> Claim:
    profile = profile_bundles(
        [quarter], out=folder / "profile", timing=TimingConfig(duration_s=duration_s, threads=1)
    )
    row = next(row for row in profile.variants if (row.target, row.precision) == ("cpu", "fp32")
               and row.id != profile.baseline)  # fmt: skip
    assert row.ratio is not None
    return Claim(
        "ptsr-small at 25 % over vit-small, ONNX Runtime fp32, one thread",
        row.ratio.median, 3.5, True, interval(row.ratio),
    )  # fmt: skip


def int8_claims(quarter: Path, duration_s: float) -> list[Claim]:
    """int8 over fp32 in the same runtime; the limits are for a CPU with VNNI."""
    bundle = read_bundle(quarter)
    variants = [ProfiledVariant(variant.id, quarter, bundle, variant) for variant in bundle.variants]
    timings = measure_interleaved(variants, TimingConfig(duration_s=duration_s, threads=1))
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


def accuracy_claims(
    folder: Path,
    data: str,
    *,
    root: Path | None = None,
    checkpoint: Path | None = None,
    clips: int | None = None,
) -> list[Claim]:
    """A trained model through its artifacts for every target, on people it has not seen.

    Args:
        folder: where the bundle goes.
        data: what it was trained on, is calibrated with and judged on; `root` is its folder.
        checkpoint: by default the embedded model.
        clips: at most so many of each person; None: all.
    """
    export_bundle(
        out=folder, checkpoint=checkpoint, target=TARGETS, precisions=("fp32", "int8"), budgets=BUDGETS,
        calibration=root, calibration_data=data, options={} if cuda_devices() else {"onnx_only": True},
    )  # fmt: skip
    model, info, _ = resolve(checkpoint, None if checkpoint else "ptsr-tiny")
    held = info.provenance["held_out_subjects"]
    how = info.preprocess
    samples = load(data, root, image_size=how.image_size, flow=how.flow, subjects=held, limit=clips)
    samples, _ = judged_samples(samples, info.provenance, everyone=False)
    found = {record["id"]: record for record in evaluate_bundle(folder, samples, model)}
    claims = []
    for target in TARGETS:
        exact = {name: record for name, record in found.items() if f"-{target}-fp32-" in name}
        small = {name: found[name.replace("-fp32-", "-int8-")] for name in exact}
        same = min(
            1.0 if record["agrees_with_eager"] == record["n"]
            else same_class_up_to_ties(folder, name, samples, model)
            for name, record in exact.items()
        )  # fmt: skip
        tied = [
            f"{record['keep_rate']:.0%}: {record['n'] - record['agrees_with_eager']} of {record['n']} not the same "
            "before ties in the selection are allowed for"
            for record in exact.values() if record["agrees_with_eager"] < record["n"]
        ]  # fmt: skip
        lost = {record["keep_rate"]: record["uar"] - small[name]["uar"] for name, record in exact.items()}
        through = next(iter(exact.values()))["through"]
        n = f"n = {len(samples)}, {len(held)} people, through the {through}"
        told = ", ".join(f"{rate:.0%}: {loss:+.4f}" for rate, loss in lost.items())
        what = f"{info.model.name}, {data}, target {target}"
        claims += [
            Claim(
                f"same class as eager, {what} fp32, worst of {len(exact)} budgets",
                same,
                1.0,
                True,
                "; ".join([n, *tied]),
            ),
            Claim(
                f"UAR that int8 loses against fp32, {what}", max(lost.values()), 0.01, False, f"{n}; {told}"
            ),
        ]
    return claims


def same_class_up_to_ties(folder: Path, name: str, samples: FlowDataset, model: Model) -> float:
    """The share of samples with eager's class, where tokens of equal scores may stand for each other, as the gate has it.

    Published flow is of 8 bits, so that two patches may have the very same sum of strain. Which of them is kept is
    decided by the order in which a mean is summed up, in eager PyTorch as well, and near a border between classes
    that decides the class. A selection that differs by more than a tie excuses nothing.
    """
    variant = next(variant for variant in read_bundle(folder).variants if variant.id == name)
    by_graph = variant.target == "trt" and bool(why_not_here(variant, folder))
    path = (folder / variant.artifact).with_suffix(".onnx")
    runner = TypedGraphRunner(path) if by_graph else open_artifact(variant, folder, threads=1)
    reference = eager_reference(model, variant.tokens, samples.flows)
    return measure_parity(reference, runner.run, variant.precision).top1_agreement


def megc_claims(folder: Path, root: Path) -> list[Claim]:
    """The same of a model trained on recorded flow, by the command that the README names."""
    checkpoint = folder / "megc.safetensors"
    call = ["--data", "megc-flow", "--root", str(root), "--model", "ptsr-nano", "--threads", "1"]
    subprocess.run(
        [sys.executable, "-m", "ptsr_edge.train", *call, "--out", str(checkpoint)],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return accuracy_claims(folder / "megc", "megc-flow", root=root, checkpoint=checkpoint)


def quarter_bundle(folder: Path) -> Path:
    """ptsr-small at 25 % for both runtimes of processors; made once."""
    out = folder / "quarter"
    if not out.is_dir():
        export_bundle(
            out=out,
            model="ptsr-small",
            target=("cpu", "openvino"),
            budgets=[0.25],
            precisions=["fp32", "int8"],
        )
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="some of ladder, speed, int8, accuracy, megc, with commas between")
    parser.add_argument("--duration-s", type=float, default=10.0)
    parser.add_argument(
        "--clips", type=int, help="judge accuracy on so many clips of each person; default all"
    )
    parser.add_argument("--megc-root", type=Path, help="folder of the data set megc-flow")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, Callable[[], list[Claim]]] = {
            "ladder": lambda: [ladder_claim(folder, target) for target in ("cpu", "openvino")],
            "speed": lambda: [speed_claim(quarter_bundle(folder), folder, arguments.duration_s)],
            "int8": lambda: int8_claims(quarter_bundle(folder), arguments.duration_s),
            "accuracy": lambda: accuracy_claims(folder / "tiny", "synthetic", clips=arguments.clips),
        }
        if arguments.megc_root is not None:
            parts["megc"] = lambda: megc_claims(folder, arguments.megc_root)
        chosen = arguments.only.split(",") if arguments.only else list(parts)
        for part in chosen:
            if part not in parts:
                parser.error(f"unknown part {part!r}; known: {', '.join(parts)} (megc with --megc-root)")
        cpu = describe_cpu()
        print(f"{cpu['model']}: {', '.join(flag for flag in INT8_FLAGS if flag in cpu['flags'])}", flush=True)
        claims = []
        for part in chosen:
            for claim in parts[part]():
                print(claim.line(), flush=True)
                claims.append(claim)
    return 0 if all(claim.holds for claim in claims) else 1


if __name__ == "__main__":
    sys.exit(main())
