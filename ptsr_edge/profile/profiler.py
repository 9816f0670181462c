"""The whole measurement: from bundles to `profile.json` and its raw samples."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ptsr_edge.bundle import Bundle
from ptsr_edge.core.console import say
from ptsr_edge.core.errors import InputError
from ptsr_edge.core.files import check_place, sha256_of, staged_folder, write_whole
from ptsr_edge.core.system import describe_environment
from ptsr_edge.data.datasets import FlowDataset
from ptsr_edge.evaluate.evaluation import is_random, judged_data
from ptsr_edge.profile.accuracy import evaluate_variants
from ptsr_edge.profile.results import command_of, measured, method_of, samples_file, write_samples
from ptsr_edge.profile.schema import NEW_CLIPS, PROFILE, Attempt, Profile
from ptsr_edge.profile.timing import TimingConfig, fill_in_instructions, time_until_stable
from ptsr_edge.profile.variants import (
    ALIKE,
    baseline_training,
    baselines_for,
    check_same_model,
    read_bundles,
    variants_of,
)

BUSY_LOAD = 0.5
"""Load average per core above which others are at work."""


def profile_bundles(
    folders: Sequence[Path],
    *,
    out: Path,
    baseline: Path | None = None,
    data: str | None = None,
    root: Path | None = None,
    subjects: int | None = None,
    timing: TimingConfig | None = None,
    checkpoint: Path | None = None,
    control_seeds: int = 0,
) -> Profile:
    """Profiles every variant of the bundles, interleaved with the full-token ViT, and writes the record.

    Args:
        folders: bundles of one model with one set of weights.
        out: folder for `profile.json` and the raw samples; one that `profile` wrote before is replaced.
        baseline: a bundle of the full-token ViT; by default what `export --with-baseline` put beside the bundles,
            else one is exported for this run, in every target and precision of the bundles.
        data: name of the data to judge accuracy on; None: accuracy is not measured.
        root: folder of the data.
        subjects: of data synthetic: judge that many people who are rendered for nothing else, `NEW_CLIPS` clips of
            each; by default those whom training left out.
        timing: its options; by default those of `TimingConfig`.
        checkpoint: that the bundles were exported from, for what only the eager model can tell: DTSM against
            other selections; by default the embedded weights, where the bundles hold these.
        control_seeds: draws of random selection beside DTSM; 0: DTSM is not compared with other selections.

    Raises:
        InputError: something in the call is not acceptable; nothing was started.
        JobError: the baseline cannot be run, or a measuring process died; nothing was written.
    """
    config = timing or TimingConfig()
    check_out(out)
    if control_seeds < 0:
        raise InputError(
            f"--control-seeds is a number of draws, 0 for no comparison of selections, got {control_seeds}"
        )
    check_subjects(subjects, data)
    bundles = read_bundles(folders)
    first = check_same_model(bundles)
    with tempfile.TemporaryDirectory() as scratch:
        references = baselines_for(bundles, baseline, Path(scratch))
        variants = variants_of(bundles, references[0])
        samples = _samples(first, references[0].bundle, data, root, subjects)
        trained = baseline_training(first, references[0].bundle)
        if samples is not None and trained != ALIKE:
            say(f"the baseline was trained {trained}: their accuracies are no fair comparison")
        environment = describe_environment()
        warn_of_load(environment)
        tries, refusals = time_until_stable([*references, *variants], config)
        timings = tries[-1].timings
        fill_in_instructions([*references, *variants], timings, config)
        found = evaluate_variants(
            references, variants, samples, refusals, config.threads,
            checkpoint=checkpoint, control_seeds=control_seeds,
        )  # fmt: skip
        profile = Profile(
            schema=2,
            command=command_of(
                folders, out, config,
                baseline=baseline, data=data, root=root, subjects=subjects, checkpoint=checkpoint, control_seeds=control_seeds,
            ),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            model=first.name,
            model_card=str(first.provenance.get("card", "its provenance says nothing about these weights")),
            labels=first.labels,
            environment=environment,
            method=method_of(config, timings)
            | {"baseline_trained": trained, "baseline_trained_alike": trained == ALIKE},
            baseline=references[0].id,
            variants=[
                measured(one, references, timings, refusals, found.accuracies.get(one.id), data, config)
                for one in (*references, *variants)
            ],
            kept_patches=found.kept_patches,
            data_is_rendered=None if samples is None else _is_rendered(samples[0]),
            judged=found.judged,
            controls=found.controls,
            dynamic_counts=found.dynamic_counts,
            attempts=[Attempt(unstable="; ".join(one.faults.values()) or None, faults=list(one.faults)) for one in tries],
            weights_are_named=_are_named(first),
        )  # fmt: skip
        with staged_folder(out) as stage:
            for number, one in enumerate(tries, start=1):
                # The attempts before the last one lie under their numbers.
                place = stage if number == len(tries) else stage / f"attempt-{number}"
                for name, raw in one.timings.items():
                    write_samples(place / samples_file(name), raw)
            write_whole(stage / PROFILE, record_text(profile))
    return profile


def warn_of_load(environment: Mapping[str, Any]) -> None:
    """Says so where the machine is busy before anything was timed."""
    load, cores = environment["load_average"], environment["cpu"]["cores_visible"]
    if load is not None and load[0] > BUSY_LOAD * cores:
        say(
            f"the machine is busy (load {load[0]:g} on {cores} cores): timings will vary, and the notes say it"
        )


def record_text(profile: Profile) -> str:
    """Writes the record as JSON, each list of numbers on one line."""
    text = json.dumps(
        profile.model_dump(mode="json", by_alias=True), indent=2, ensure_ascii=False, allow_nan=False
    )
    # A line break stands between the brackets, so no string can match: JSON writes theirs as \\n.
    return re.sub(r"\[\n[-+.,\deE\s]*\]", lambda found: "".join(found[0].split()), text) + "\n"


def check_subjects(subjects: int | None, data: str | None) -> None:
    """Makes sure that a number of people to render is one, and goes with data.

    Raises:
        InputError: it does not.
    """
    if subjects is not None and (data is None or subjects < 1):
        raise InputError(
            f"--subjects is a number of people to judge, at least 1, and goes with --data synthetic, got {subjects}"
            + (" without --data" if data is None else "")
        )


def check_out(out: Path) -> None:
    """Makes sure that a folder may be replaced as a whole: it is new, empty or an earlier profile.

    Raises:
        InputError: it is a file, holds anything else, or may not be written.
    """
    check_place(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; --out names a folder")
    if out.is_dir() and not (out / PROFILE).is_file() and any(out.iterdir()):
        raise InputError(f"{out} holds other files and would be replaced; name a new folder")


def _are_named(bundle: Bundle) -> bool | None:
    """Tells whether the weights are those that the model's name stands for; None without torch, which reads them."""
    if find_spec("torch") is None:
        return None
    from ptsr_edge.models.checkpoint import embedded_checkpoint

    path, digest = embedded_checkpoint(bundle.name), bundle.provenance.get("checkpoint_sha256")
    return digest == (f"random-{bundle.name}-seed0" if path is None else sha256_of(path))


def _is_rendered(samples: FlowDataset) -> bool:
    from ptsr_edge.data.datasets import known_dataset

    entry = known_dataset(samples.source)
    return entry is not None and entry.is_rendered


def _samples(
    first: Bundle, reference: Bundle, data: str | None, root: Path | None, subjects: int | None
) -> tuple[FlowDataset, str] | None:
    """Loads the samples to judge on and names that choice; None where there is nothing to judge."""
    if data is None:
        return None
    from ptsr_edge.data.datasets import find_dataset

    find_dataset(data)
    if is_random(first):
        say(f"accuracy is not measured: the weights of {first.name} are random")
        return None
    new = None if subjects is None else (subjects, NEW_CLIPS)
    return judged_data(data, root, [first] if is_random(reference) else [first, reference], new)
