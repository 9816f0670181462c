"""What each variant of one or more bundles costs and is worth, beside the full-token ViT."""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptsr_edge.bundle import Bundle
from ptsr_edge.core.console import say
from ptsr_edge.core.errors import InputError
from ptsr_edge.core.files import check_place, staged_folder, write_whole
from ptsr_edge.core.system import describe_environment
from ptsr_edge.evaluate.evaluation import is_random, judged_data
from ptsr_edge.profile.accuracy import check_control_seeds, judge_entries
from ptsr_edge.profile.results import command_of, measured, method_of, samples_file, write_samples
from ptsr_edge.profile.schema import PROFILE, Attempt, Profile
from ptsr_edge.profile.timing import DEFAULT, TimingConfig, Try, check_timing, time_until_stable
from ptsr_edge.profile.variants import (
    ALIKE,
    Entry,
    baseline_training,
    check_same_model,
    entries_of,
    exported_baseline,
    given_baseline,
    read_bundles,
    same_precision_baselines,
    shown_path,
)

if TYPE_CHECKING:
    from ptsr_edge.data.datasets import FlowDataset


BUSY_LOAD = 0.5
"""Load average per core above which others are at work."""


def profile_bundles(
    folders: Sequence[Path],
    *,
    out: Path,
    baseline: Path | None = None,
    data: str | None = None,
    root: Path | None = None,
    setting: TimingConfig = DEFAULT,
    checkpoint: Path | None = None,
    control_seeds: int = 0,
) -> Profile:
    """Profiles every variant of the bundles, interleaved with the full-token ViT, and writes the record.

    Args:
        folders: bundles of one model with one set of weights.
        out: folder for `profile.json` and the raw samples; one that `profile` wrote before is replaced.
        baseline: a bundle of the full-token ViT; by default one is exported for this run alone.
        data: name of the data to judge accuracy on; None: accuracy is not measured.
        root: folder of the data.
        setting: of the timing.
        checkpoint: that the bundles were exported from, for what only the eager model can tell: DTSM against
            its controls; by default the embedded weights, where the bundles hold these.
        control_seeds: draws of random selection as a control of DTSM; 0: no controls.

    Raises:
        InputError: something in the call is not acceptable; nothing was started.
        JobError: the baseline cannot be run, or a measuring process died; nothing was written.
    """
    check_timing(setting)
    check_out(out)
    check_control_seeds(control_seeds)
    bundles = read_bundles(folders)
    first = check_same_model(bundles)
    with tempfile.TemporaryDirectory() as scratch:
        references = _references(bundles, first, baseline, Path(scratch))
        entries = [*references, *entries_of(bundles, references[0])]
        samples = _samples(first, references[0].bundle, data, root)
        environment = describe_environment()
        warn_of_load(environment)
        tries, refusals = time_until_stable(entries, setting)
        timings = tries[-1][0]
        judgement = judge_entries(
            entries, len(references), samples, refusals, setting.threads,
            checkpoint=checkpoint, control_seeds=control_seeds,
        )  # fmt: skip
        profile = Profile(
            schema=2,
            command=command_of(folders, out, baseline, data, root, setting)
            + accuracy_options(checkpoint, control_seeds if data is not None else 0),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            model=first.name,
            model_card=str(first.provenance.get("card", "its provenance says nothing about these weights")),
            labels=first.labels,
            environment=environment,
            method=method_of(setting, timings) | _trained(first, references[0].bundle, samples),
            baseline=references[0].id,
            variants=[
                measured(
                    entry, references, timings, refusals, judgement.accuracies.get(entry.id), data, setting
                )
                for entry in entries
            ],
            kept_patches=judgement.kept,
            data_is_rendered=None if samples is None else _is_rendered(samples[0]),
            judged=judgement.judged,
            controls=judgement.controls,
            dynamic_counts=judgement.dynamic_counts,
            attempts=[Attempt(unstable=unstable) for _, unstable in tries],
        )
        _write(out, profile, tries)
    return profile


def _references(
    bundles: Mapping[Path, Bundle], first: Bundle, given: Path | None, scratch: Path
) -> list[Entry]:
    """The full-token ViT that ratios are against, and after it its variants in other targets and precisions."""
    if given is None:
        return [exported_baseline(first, scratch)]
    reference = given_baseline(given, first)
    return [reference, *same_precision_baselines(given, reference, bundles.values())]


def _trained(first: Bundle, reference: Bundle, samples: object) -> dict[str, Any]:
    """How the baseline was trained beside the model; said where accuracies are compared that are not alike in it."""
    trained = baseline_training(first, reference)
    if samples is not None and trained != ALIKE:
        say(f"the baseline was trained {trained}: their accuracies are no fair comparison")
    return {"baseline_trained": trained, "baseline_trained_alike": trained == ALIKE}


def _write(out: Path, profile: Profile, tries: Sequence[Try]) -> None:
    """The record and the samples of all attempts: what came before the last one under its number."""
    with staged_folder(out) as stage:
        for number, (found, _) in enumerate(tries, start=1):
            place = stage if number == len(tries) else stage / f"attempt-{number}"
            for name, timing in found.items():
                write_samples(place / samples_file(name), timing)
        write_whole(stage / PROFILE, record_text(profile))


def accuracy_options(checkpoint: Path | None, control_seeds: int) -> str:
    """What the command of a profile says of the eager model: nothing where nothing was asked of it."""
    words = ["--checkpoint", shown_path(checkpoint)] if checkpoint is not None else []
    words += ["--control-seeds", str(control_seeds)] if control_seeds else []
    return f" {shlex.join(words)}" if words else ""


def warn_of_load(environment: Mapping[str, Any]) -> None:
    """Says so where the machine is busy before anything was timed."""
    load, cores = environment["load_average"], environment["cpu"]["cores_visible"]
    if load is not None and load[0] > BUSY_LOAD * cores:
        say(
            f"the machine is busy (load {load[0]:g} on {cores} cores): timings will vary, and the notes say it"
        )


def record_text(profile: Profile) -> str:
    """The record as JSON, a list of numbers on one line."""
    text = json.dumps(
        profile.model_dump(mode="json", by_alias=True), indent=2, ensure_ascii=False, allow_nan=False
    )
    # A line break stands between the brackets, so no string can match: JSON writes theirs as \\n.
    return re.sub(r"\[\n[-+.,\deE\s]*\]", lambda found: "".join(found[0].split()), text) + "\n"


def check_out(out: Path) -> None:
    """The folder is replaced as a whole: it must be new, empty or an earlier profile.

    Raises:
        InputError: it is a file, holds anything else, or may not be written.
    """
    check_place(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; --out names a folder")
    if out.is_dir() and not (out / PROFILE).is_file() and any(out.iterdir()):
        raise InputError(f"{out} holds other files and would be replaced; name a new folder")


def _is_rendered(samples: FlowDataset) -> bool:
    from ptsr_edge.data.datasets import known_dataset

    entry = known_dataset(samples.source)
    return entry is not None and entry.is_rendered


def _samples(
    first: Bundle, reference: Bundle, data: str | None, root: Path | None
) -> tuple[FlowDataset, str] | None:
    """What to judge on and how that choice is named; None where there is nothing to judge."""
    if data is None:
        return None
    from ptsr_edge.data.datasets import find_dataset

    find_dataset(data)
    if is_random(first):
        say(f"accuracy is not measured: the weights of {first.name} are random")
        return None
    return judged_data(data, root, [first] if is_random(reference) else [first, reference])
