"""Runs exported bundles as aarch64 processors would, compares the answers and records what was found.

PYTHONPATH=tests python -m arm
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from arm import run_on_arm
from arm.compare import check_same_question, compare, faults, strain_scores, verification
from arm.machine import REPOSITORY, Machine, prepare
from arm.page import Figure, as_table, page
from ptsr_edge.bundle import MANIFEST, Bundle, add_verification, read_bundle
from ptsr_edge.core.config import DEFAULT_MODEL
from ptsr_edge.core.console import Verb, finish, run, say
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.core.files import write_whole
from ptsr_edge.core.system import describe_cpu, visible_cpus
from ptsr_edge.data import datasets as data
from ptsr_edge.data import synthetic_clips as synthetic
from ptsr_edge.export.exporter import export_bundle
from ptsr_edge.vision.flow import to_input

PROCESSORS = ("cortex-a76", "cortex-a72")
"""Raspberry Pi 5, and near what a Jetson Orin has (A78AE); Raspberry Pi 4, which lacks the dot products of
8-bit integers that ONNX Runtime takes where it finds them."""

BUDGETS = (0.25, 0.12)
"""What such boards are for; an emulated multiply-add takes about 6 ns, so all budgets would take long."""

CLIPS_PER_SUBJECT = 8


@dataclass(frozen=True)
class Samples:
    """What is asked of every variant: a file of flows, and the scores that tokens are selected by.

    `scores` is (n, N), or None where the model selects by something that its input does not show.
    """

    file: Path
    flows: NDArray[np.float32]
    scores: NDArray[np.float64] | None


def export_default(work: Path) -> list[Path]:
    """Bundles of the embedded default in every precision of target cpu, int8 in both of its schemes."""
    bundles = []
    for scheme, precisions in (("static", ["fp32", "int8"]), ("dynamic", ["int8"])):
        out = work / "bundles" / f"{DEFAULT_MODEL}-{scheme}"
        say(f"exporting {out.name}: {', '.join(precisions)}")
        export_bundle(out=out, model=DEFAULT_MODEL, target="cpu", precisions=precisions, budgets=BUDGETS,
                      options={"int8_scheme": scheme}, cache=True)  # fmt: skip
        bundles.append(out)
    return bundles


def render_samples(bundle: Bundle, count: int, work: Path) -> Samples:
    """Synthetic clips of people that the model was not trained on, as far as its bundle tells."""
    held = bundle.provenance.get("held_out_subjects", ())
    subjects = [name for name in held if name.startswith("synthetic/")]
    subjects = (subjects or synthetic.subject_names())[: -(-count // CLIPS_PER_SUBJECT)]
    size = bundle.preprocess.image_size
    flows = data.load("synthetic", image_size=size, subjects=subjects, limit=CLIPS_PER_SUBJECT).flows[:count]
    config = bundle.model
    by_strain = config.kind == "ptsr" and config.score == "strain"
    scores = strain_scores(to_input(flows), config.patch_size) if by_strain else None
    file = work / f"samples-{size}.npz"
    work.mkdir(parents=True, exist_ok=True)
    np.savez(file, flows=flows)
    return Samples(file, flows, scores)


def ask(
    folder: Path, machine: Machine, processors: Sequence[str], samples: Samples
) -> tuple[Any, dict[str, Any]]:
    """The answers to the samples of this machine, and of emulated processors by their names.

    The same version of ONNX Runtime on both sides; the processors side by side, a core each.
    """
    script = Path(run_on_arm.__file__)

    def ask_one(processor: str | None) -> Any:
        out = samples.file.with_name(f"{folder.name}-{processor or 'here'}.json")
        paths = [path.resolve() for path in (folder, samples.file, out)]
        if processor is None:
            machine.run_here(script, *paths)
        else:
            machine.run(processor, script, *paths)
        return json.loads(out.read_text(encoding="utf-8"))

    say(f"{folder.name}: here")
    here = ask_one(None)
    say(f"{folder.name}: {', '.join(processors)}, emulated")
    with ThreadPoolExecutor(max_workers=len(visible_cpus())) as pool:
        answers = list(pool.map(ask_one, processors))
    emulator = machine.emulator_version()
    names = [f"aarch64 (qemu-user {emulator}, {processor})" for processor in processors]
    return here, dict(zip(names, answers, strict=True))


def examine(
    folder: Path, samples: Samples, here: Mapping[str, Any], answers: Mapping[str, Any]
) -> list[Figure]:
    """Compares answers of this machine to a bundle with those of others; writes them into its manifest.

    Raises:
        InputError: the other answers are of other samples or of another export.
    """
    for machine, there in answers.items():
        check_same_question(here, there, machine)
    figures = []
    for machine, there in answers.items():
        for variant in read_bundle(folder).variants:
            if variant.id not in here["variants"]:
                continue
            ours = here["variants"][variant.id]
            found = compare(ours, there["variants"][variant.id], samples.scores)
            wrong = faults(found, variant.precision)
            deviation = float(np.std(ours["logits"]))
            figures.append(Figure(folder.name, variant, machine, found, deviation, wrong, here, there))
            if not wrong:
                add_verification(folder, variant.id, verification(found, machine, there, here))
    return figures


def read_answers(path: Path) -> Any:
    """What `run_on_arm.py` wrote on a board.

    Raises:
        InputError: it is not such a file.
    """
    try:
        answers = json.loads(path.read_text(encoding="utf-8"))
        _ = answers["samples_sha256"], answers["variants"], answers["packages"]["onnxruntime"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not what run_on_arm.py writes: {error!r}") from None
    return answers


@click.command(cls=Verb, epilog="Example: PYTHONPATH=tests python -m arm --bundle out/ptsr-tiny-cpu")
@click.option("--bundle", "bundles", multiple=True, type=click.Path(path_type=Path),
              help="One to examine; again for more. Default: the embedded model, exported afresh.")  # fmt: skip
@click.option("--processor", "processors", multiple=True, default=PROCESSORS, show_default=True,
              help="As QEMU names it; again for more.")  # fmt: skip
@click.option("--samples", "count", type=click.IntRange(min=1), default=24, show_default=True)
@click.option("--answers", type=click.Path(path_type=Path),
              help="Emulate nothing: what run_on_arm.py wrote on a board, for one --bundle.")  # fmt: skip
@click.option("--machine", "board", help="Which board that was, such as 'aarch64 (Raspberry Pi 5)'.")
@click.option("--work", type=click.Path(path_type=Path), default=REPOSITORY / "out" / "arm",
              help="Where the machine and the bundles are kept; default out/arm.")  # fmt: skip
@click.option("--write", type=click.Path(path_type=Path), help="Write the figures as a page into a folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the records instead of a table.")
def main(
    bundles: tuple[Path, ...], processors: tuple[str, ...], count: int, answers: Path | None,
    board: str | None, work: Path, write: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Run bundles of target cpu on emulated aarch64 processors and compare the answers with those here."""
    for folder in bundles:
        if not any(variant.target == "cpu" for variant in read_bundle(folder).variants):
            raise InputError(f"{folder} has no variant of target cpu, which is what runs on aarch64")
    if answers is not None or board is not None:
        if answers is None or board is None or len(bundles) != 1 or write is not None:
            raise InputError("--answers goes with --machine and one --bundle, and without --write")
        told = read_answers(answers)
        folders = list(bundles)
        samples = render_samples(read_bundle(folders[0]), count, work)
        here = run_on_arm.answers(folders[0], samples.flows)
        figures = examine(folders[0], samples, here, {board: told})
    else:
        machine = prepare(work)
        started = time.monotonic()
        folders = list(bundles) or export_default(work)
        figures = []
        for folder in folders:
            samples = render_samples(read_bundle(folder), count, work)
            figures += examine(folder, samples, *ask(folder, machine, processors, samples))
        say(f"done in {time.monotonic() - started:.0f} s")
    lines = as_table(figures)
    wrong = [f"{one.variant.id} on {one.machine}: {fault}" for one in figures for fault in one.faults]
    if wrong:
        say("\n".join(lines))
        raise JobError("; ".join(wrong))
    if write is not None:
        cpu = describe_cpu()["model"] or "a processor of unknown name"
        write_whole(write / "README.md", page(figures, cpu, write))
        lines.append(str(write / "README.md"))
    else:
        lines += [str(folder / MANIFEST) for folder in folders]
    finish({"figures": [one.record() for one in figures]}, lines, as_json)


if __name__ == "__main__":
    run(main, "python -m arm")
