"""Records of a fleet's devices whose figures follow from one number each."""

from __future__ import annotations

from ptsr_edge.profile.schema import (
    DeviceMissing,
    Fleet,
    FleetBundle,
    FleetDevice,
    FleetVariant,
    Latency,
    Machine,
    Missing,
    Ratio,
)


def variant(budget: float, precision: str, p95: float | None, *, vit: bool = False) -> FleetVariant:
    """A variant whose other figures follow from its p95; None: it could not be run."""
    ratio = None if vit or p95 is None else Ratio(against="vit", median=2.0, low=1.9, high=2.1)
    timed = (
        None
        if p95 is None
        else Latency(p50=0.9 * p95, p90=p95, p95=p95, p99=p95, min=0.8 * p95, mean=p95, cv=0.01, n=100)
    )
    why = Missing(kind="not_installed", reason="could not be run here: openvino is not installed")
    gone = ("latency_ms", "ratio", "ratio_same_precision")
    return FleetVariant(
        id=f"{'vit' if vit else 'ptsr'}-{precision}-{budget:g}", target="cpu", precision=precision,
        keep_rate=budget, tokens=round(196 * budget), is_baseline=vit, latency_ms=timed, ratio=ratio,
        ratio_same_precision=ratio, missing=dict.fromkeys(gone, why) if p95 is None else {},
    )  # fmt: skip


def device(name: str, scale: float, *, without: str = "") -> FleetDevice:
    """A device whose ViT takes 10 ms times `scale`; precision `without` could not be run on it."""
    rows = [variant(1.0, "fp32", 10 * scale, vit=True)]
    for precision, faster in (("fp32", 1.0), ("int8", 0.5)):
        for budget in (1.0, 0.5, 0.25):
            p95 = None if precision == without else 10 * scale * budget * faster
            rows.append(variant(budget, precision, p95))
    machine = Machine(
        cpu="ARM implementer 0x41 part 0xd0b", board=f"Board <{name}>", architecture="aarch64", cores=4, gpus=[],
        memory_bytes=8_000_000_000, os="Linux", python="CPython 3.11.2", packages={"onnxruntime": "1.22.0"},
    )  # fmt: skip
    address = f"tcp://10.0.0.{len(name)}:4000"
    return FleetDevice(
        name=name, worker=name, address=address, machine=machine, sent_files=5, sent_bytes=12_000_000,
        created="2026-01-01T00:00:00+00:00", variants=rows,
    )  # fmt: skip


LOST = FleetDevice(
    name="attic", worker="attic", address="tcp://10.0.0.9:4000",
    missing=DeviceMissing(kind="lost", reason="the worker at tcp://10.0.0.9:4000 was lost"),
)  # fmt: skip


def fleet(*devices: FleetDevice) -> Fleet:
    return Fleet(
        schema=1, command="python -m ptsr_edge.profile --fleet tcp://10.0.0.1:8786 --out f", created="2026-01-01T00:00:00+00:00",
        model="ptsr-tiny", model_card="trained on rendered faces", is_quick=False,
        bundles=[FleetBundle(name="pi", sha256="0" * 64, files=5, bytes=12_000_000, is_baseline=False)],
        devices=list(devices),
    )  # fmt: skip
