"""Records as pairs of a name and a text."""

from __future__ import annotations

from ptsr_edge.report.tables import facts


def test_facts_are_flat_and_readable() -> None:
    record = {
        "cpu": {"cores_visible": 2, "virtual": True, "flags": ["avx2", "fma"], "governor": None},
        "gpus": [{"name": "A"}, {"name": "B"}],
        "memory_bytes": 8_000_000_000,
        "least_duration_s": 1.5,
        "packages": {"numpy": "2.4.6", "torch": "2.13.0+cpu"},
        "none": [],
    }
    assert facts(record) == [
        ("cpu, cores visible", "2"),
        ("cpu, virtual", "yes"),
        ("cpu, flags", "avx2, fma"),
        ("cpu, governor", "not known"),
        ("gpus 1, name", "A"),
        ("gpus 2, name", "B"),
        ("memory", "8 GB"),
        ("least duration, s", "1.5"),
        ("packages", "numpy 2.4.6, torch 2.13.0+cpu"),
        ("none", "none"),
    ]
