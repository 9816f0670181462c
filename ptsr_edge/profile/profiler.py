"""The whole measurement: from bundles, and the full-token ViT that they are measured against, to `profile.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ptsr_edge.bundle import MANIFEST, Bundle, baseline_place
from ptsr_edge.core.config import baseline_of
from ptsr_edge.core.console import say
from ptsr_edge.core.errors import InputError, JobError, PtsrError, require
from ptsr_edge.core.files import check_place, scratch_folder, sha256_of, staged_folder, write_whole
from ptsr_edge.core.system import describe_environment
from ptsr_edge.data.datasets import FlowDataset
from ptsr_edge.evaluate.evaluation import is_random, judged_data
from ptsr_edge.profile.accuracy import evaluate_variants
from ptsr_edge.profile.results import command_of, measured, method_of, samples_file, write_samples
from ptsr_edge.profile.schema import NEW_CLIPS, PROFILE, Attempt, Profile, needs_gpu
from ptsr_edge.profile.timing import TimingConfig, fill_in_instructions, time_until_stable
from ptsr_edge.profile.worker import ProfiledVariant, shown_path
from ptsr_edge.runtimes.base import RUNTIMES, find_runtime
from ptsr_edge.runtimes.build_on_device import cuda_devices
from ptsr_edge.sign import KEY_VARIABLE, demanded, read_verified

BUSY_LOAD = 0.5
"""Load average per core above which others are at work."""

GEOMETRY = ("image_size", "patch_size", "channels", "dim", "depth", "heads", "mlp_ratio", "classes")
"""Fields of the configuration that a baseline has in common with its model."""

ALIKE = "as the model: same data, subjects, seed and recipe"
"""How a baseline was trained whose accuracy is a fair comparison."""


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
    with scratch_folder() as scratch:
        references = baselines_for(bundles, baseline, scratch)
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


def read_bundles(folders: Sequence[Path]) -> dict[Path, Bundle]:
    """Reads bundles, in their order.

    Raises:
        InputError: none was given, one was given twice, or one is no bundle.
    """
    if not folders:
        raise InputError("no bundle given: --bundle DIR names a folder that `ptsr-edge export` made")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError(f"a bundle was given twice: {', '.join(map(str, folders))}")
    return {folder: read_verified(folder) for folder in folders}


def check_same_model(bundles: Mapping[Path, Bundle]) -> Bundle:
    """Returns the first bundle when all are of one model: geometry, classes, input and weights.

    Raises:
        InputError: one differs; the message names the difference.
    """
    (first_folder, first), *others = bundles.items()
    for folder, bundle in others:
        for what, mine, its in (
            ("model", first.name, bundle.name),
            ("geometry", first.model, bundle.model),
            ("labels", first.labels, bundle.labels),
            ("preprocessing", first.preprocess, bundle.preprocess),
            ("weights", *(b.provenance.get("checkpoint_sha256") for b in (first, bundle))),
        ):
            if mine != its:
                told = f": {mine} and {its}" if what in ("model", "labels", "weights") else ""
                raise InputError(
                    f"{first_folder} and {folder} differ in their {what}{told}; one profile is about one "
                    "model"
                )
    return first


def variants_of(bundles: Mapping[Path, Bundle], reference: ProfiledVariant) -> list[ProfiledVariant]:
    """Lists all variants of the bundles, under ids that differ from each other and from the baseline's.

    Raises:
        InputError: two bundles lie in folders of one name and have the same variants.
    """
    found = [(folder, bundle, variant) for folder, bundle in bundles.items() for variant in bundle.variants]
    names = [reference.id, *(variant.id for _, _, variant in found)]
    listed = []
    for folder, bundle, variant in found:
        name = variant.id if names.count(variant.id) == 1 else f"{folder.resolve().name}/{variant.id}"
        listed.append(ProfiledVariant(name, folder, bundle, variant, shown_path(folder)))
    if len({profiled.id for profiled in listed}) < len(listed):
        raise InputError(
            f"two bundles of one folder name have the same variants: {', '.join(map(str, bundles))}"
        )
    return listed


def baselines_for(bundles: Mapping[Path, Bundle], given: Path | None, scratch: Path) -> list[ProfiledVariant]:
    """Lists the full-token ViT's variants to measure against, one of each target and precision.

    They are taken from the bundle that is given, else from those that `export --with-baseline` put beside the bundles,
    else they are exported into `scratch`. The first is the baseline that every ratio is against: fp32 on the target of
    the first bundle where there is that. The others are the fair reference, each of what the bundles have in its own
    target and precision. Ids differ from those of the bundles, since the models' names do.

    Raises:
        InputError: what was found is not the ViT that the model is measured against; or none was found, and only signed
            bundles are opened here.
        JobError: none was found and none can be exported.
    """
    first = next(iter(bundles.values()))
    beside = [baseline_place(folder) for folder in bundles]
    found = [given] if given is not None else [place for place in beside if (place / MANIFEST).is_file()]
    if found:
        pool = [one for folder in found for one in given_baseline(folder, first)]
        check_same_model({one.folder: one.bundle for one in pool})
        if given is None:
            say(f"the baseline is {', '.join(map(str, found))}, made by the export")
    elif demanded() is not None:
        raise InputError(
            f"there is no {beside[0]} to measure against, and one that is exported now is not signed as ${KEY_VARIABLE} "
            "asks: export the bundle with --with-baseline --sign KEY"
        )
    else:
        pool = exported_baseline(bundles.values(), scratch)
    return choose_baselines(pool, bundles.values())


def choose_baselines(pool: Sequence[ProfiledVariant], bundles: Iterable[Bundle]) -> list[ProfiledVariant]:
    """Returns of the ViT's variants the one that all ratios are against, then those of a kind that the bundles have."""
    bundles = list(bundles)

    def rank(one: ProfiledVariant) -> tuple[bool, bool, bool]:
        target, precision = one.kind
        # A baseline has to run.
        return not runs_here(target), target != bundles[0].target, precision != "fp32"

    reference = min(pool, key=rank)
    kinds = {(variant.target, variant.precision) for bundle in bundles for variant in bundle.variants}
    fair: dict[tuple[str, str], ProfiledVariant] = {}
    for one in pool:
        if one.kind in kinds and one.kind != reference.kind:
            fair.setdefault(one.kind, one)
    return [reference, *fair.values()]


def runs_here(target: str) -> bool:
    """Says whether this machine has what artifacts of a target run with: a runtime's package, and a GPU if they need one."""
    try:
        packages = find_runtime(target).packages
    except PtsrError:  # the package that brings the target is not installed
        return False
    return any(find_spec(name) for name in packages) and (not needs_gpu(target) or bool(cuda_devices()))


def given_baseline(folder: Path, first: Bundle) -> list[ProfiledVariant]:
    """Lists the variants of the full-token ViT in a bundle.

    Raises:
        InputError: it is no bundle, or not one of the ViT that the model is measured against.
    """
    bundle = read_verified(folder)
    wanted = baseline_of(first.model)
    alike = all(getattr(bundle.model, field) == getattr(wanted, field) for field in GEOMETRY)
    if bundle.model.kind != "vit" or not alike:
        raise InputError(
            f"{folder} holds {bundle.name}; the baseline of {first.name} is {wanted.name}, the full-token "
            "ViT of the same geometry"
        )
    if bundle.labels != first.labels:
        raise InputError(
            f"{folder} answers {', '.join(bundle.labels)}; {first.name} answers {', '.join(first.labels)}"
        )
    return [ProfiledVariant(one.id, folder, bundle, one, shown_path(folder)) for one in bundle.variants]


NOT_OF_A_VIT = ("budgets", "local_lr")
"""What of a recipe (`train.trainer.TrainConfig`) a ViT does not read: it has one budget, and no local read-out."""


def baseline_training(model: Bundle, baseline: Bundle) -> str:
    """Says how the baseline was trained beside the model: `ALIKE`, or the differences in what both read."""
    ours, its = model.provenance, baseline.provenance
    if "random" in (ours.get("kind"), its.get("kind")):
        return (
            "not at all: random weights" if its.get("kind") == "random" else "the model's weights are random"
        )
    gaps = [
        name.replace("_", " ")
        for name in ("data", "data_sha256", "train_subjects", "seed")
        if ours.get(name) != its.get(name) or ours.get(name) is None
    ]
    recipes = [dict(provenance.get("recipe") or {}) for provenance in (ours, its)]
    gaps += [
        f"{name} ({recipes[0].get(name)} for the model, {recipes[1].get(name)} for the baseline)"
        for name in dict.fromkeys([*recipes[0], *recipes[1]])
        if name not in NOT_OF_A_VIT and recipes[0].get(name) != recipes[1].get(name)
    ]
    return f"otherwise than the model, in {', '.join(gaps)}" if gaps else ALIKE


def exported_baseline(bundles: Iterable[Bundle], folder: Path) -> list[ProfiledVariant]:
    """Exports the full-token ViT into `folder` in every target and precision of the bundles; a second time, from the cache.

    A target that needs a GPU is left out where there is none; where no other is left, a processor's stands in for it:
    a baseline has to run. Where not every precision can be made here, fp32 on the first target alone is.

    Raises:
        JobError: torch is not installed, or not even fp32 can be exported.
    """
    require(
        "torch", "train",
        "exporting the baseline (or make one with the bundle: export --with-baseline, or name one: --baseline DIR)",
    )  # fmt: skip
    from ptsr_edge.export.exporter import export_baseline

    bundles = list(bundles)
    first = bundles[0]
    variants = [variant for bundle in bundles for variant in bundle.variants]
    wanted = dict.fromkeys([first.target, *(variant.target for variant in variants)])
    targets = [name for name in wanted if not needs_gpu(name) or cuda_devices()]
    targets = targets or [next(known for known in RUNTIMES if not needs_gpu(known))]
    precisions = list(
        dict.fromkeys(["fp32", *(variant.precision for variant in variants if variant.target in targets)])
    )
    name = baseline_of(first.model).name
    out = folder / name
    say(f"exporting the baseline {name} for {', '.join(targets)} in {', '.join(precisions)}")
    try:
        bundle = export_baseline(first, out, target=targets, precisions=precisions)
    except JobError as error:
        if (targets[1:], precisions) == ([], ["fp32"]):
            raise
        say(f"the baseline is made in fp32 for {targets[0]} alone: {error}")
        bundle = export_baseline(first, out, target=targets[0], precisions=["fp32"])
    return [ProfiledVariant(variant.id, out, bundle, variant) for variant in bundle.variants]
