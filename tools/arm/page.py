"""The figures of a run: records, a table for the terminal, a page for the repository."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arm.compare import AGREEMENT, Difference
from ptsr_edge.bundle import Variant
from ptsr_edge.export.parity import LIMITS

HEADINGS = ("variant", "int8 scheme", "machine", "samples", "max logit difference", "logits' deviation",
            "same class", "same tokens")  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """One variant on one machine.

    Attributes:
        bundle: the folder's name.
        machine: what it ran on.
        difference: from the answers here.
        deviation: standard deviation of the logits here, to see how large a difference is.
        faults: what may not be; empty where all is well.
        here: packages and architecture here, as `run_on_arm` tells them.
        there: the same of the emulated machine.
    """

    bundle: str
    variant: Variant
    machine: str
    difference: Difference
    deviation: float
    faults: Sequence[str]
    here: Mapping[str, Any]
    there: Mapping[str, Any]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "bundle": self.bundle,
            "variant": self.variant.id,
            "machine": self.machine,
            **dataclasses.asdict(self.difference),
            "deviation": self.deviation,
            "faults": list(self.faults),
        }

    def row(self) -> tuple[str, ...]:
        """The cells below `HEADINGS`."""
        found = self.difference
        return (
            self.variant.id,
            str(self.variant.built_with.get("int8_scheme", "-")),
            self.machine,
            str(found.samples),
            f"{found.max_abs:.1e}",
            f"{self.deviation:.2f}",
            f"{found.top1_agreement:.1%}",
            f"{found.kept_agreement:.1%}" + (f" ({found.tied} by ties)" if found.tied else ""),
        )


def as_table(figures: Sequence[Figure]) -> list[str]:
    """A line a figure, in columns."""
    rows = [HEADINGS, *(figure.row() for figure in figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in rows]


def page(figures: Sequence[Figure], cpu: str, folder: Path) -> str:
    """The page in Markdown, of a run under emulation on the processor `cpu`, that goes into `folder`."""
    here, there = figures[0].here, figures[0].there
    today = datetime.datetime.now(datetime.timezone.utc).date()
    cells = [HEADINGS, tuple("---" for _ in HEADINGS), *(figure.row() for figure in figures)]
    packages = ", ".join(f"{name} {version}" for name, version in there["packages"].items())
    return f"""# The device side on emulated ARM processors

What a processor of a Raspberry Pi or a Jetson answers, compared with what this one answers. Nothing here says
how fast: an emulator's time is not a board's.

Made by `make test-arm ARM_ARGS="--write {folder.as_posix()}"` on {today}; not edited by hand.

{chr(10).join(f"| {' | '.join(row)} |" for row in cells)}

- **Samples**: synthetic clips of people that the model was not trained on, the same for every variant.
- **Compared**: the same files on both sides, through `Session.open(...).predict`, one thread, with the same
  version of ONNX Runtime. A difference of a logit is absolute; the logits' standard deviation beside it tells
  whether it is large.
- **Required**: fp32 differs by at most {LIMITS["fp32"]:g}, every class and every token is the same (ties between
  scores aside). int8 is measured; at least {AGREEMENT["int8"]:.0%} of the classes must be the same.
- **Why int8 differs**: it rounds to steps. Two kinds of processor add in another order, so that a value near the
  border between two steps falls to the other side, and later layers see that.
- **Here**: {here["machine"]} ({cpu}), Python {here["python"]}, {versions(here)}.
- **There**: {there["machine"]}, Python {there["python"]}, {versions(there)}.
- **Installed there**, and nothing else: {packages}.
"""


def versions(side: Mapping[str, Any]) -> str:
    """Of what calculates."""
    return f"ONNX Runtime {side['packages']['onnxruntime']}, NumPy {side['packages']['numpy']}"
