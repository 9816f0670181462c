"""The variants of a profile: their ids in the run, and the full-token ViT that they are measured against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ptsr_edge.bundle import MANIFEST, Bundle, Variant, baseline_place, read_bundle
from ptsr_edge.core.config import baseline_of
from ptsr_edge.core.console import say
from ptsr_edge.core.errors import InputError, JobError, PtsrError, require
from ptsr_edge.profile.schema import needs_gpu
from ptsr_edge.runtimes.base import RUNTIMES, find_runtime
from ptsr_edge.runtimes.build_on_device import cuda_devices

GEOMETRY = ("image_size", "patch_size", "channels", "dim", "depth", "heads", "mlp_ratio", "classes")
"""Fields of the configuration that a baseline has in common with its model."""


@dataclass(frozen=True)
class ProfiledVariant:
    """A variant in the run.

    Attributes:
        id: unique in the run; `variant.id` is unique in its bundle only.
        folder: of its bundle.
        shown: the name of its bundle in the record; None for a bundle that was made for this run alone.
    """

    id: str
    folder: Path
    bundle: Bundle
    variant: Variant
    shown: str | None = None

    @property
    def kind(self) -> tuple[str, str]:
        """Target and precision."""
        return self.variant.target, self.variant.precision


def read_bundles(folders: Sequence[Path]) -> dict[Path, Bundle]:
    """Reads bundles, in their order.

    Raises:
        InputError: none was given, one was given twice, or one is no bundle.
    """
    if not folders:
        raise InputError("no bundle given: --bundle DIR names a folder that `ptsr-edge export` made")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError(f"a bundle was given twice: {', '.join(map(str, folders))}")
    return {folder: read_bundle(folder) for folder in folders}


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
        InputError: what was found is not the ViT that the model is measured against.
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
    bundle = read_bundle(folder)
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


ALIKE = "as the model: same data, subjects, seed and recipe"
"""How a baseline was trained whose accuracy is a fair comparison."""


def baseline_training(model: Bundle, baseline: Bundle) -> str:
    """Says how the baseline was trained beside the model: `ALIKE`, or the differences.

    Budgets are no difference: a ViT has only one.
    """
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
        if name != "budgets" and recipes[0].get(name) != recipes[1].get(name)
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


def shown_path(folder: Path) -> str:
    """Names a folder for the record: relative to here, or by its name alone; never by a whole path."""
    place, here = folder.resolve(), Path.cwd()
    return place.relative_to(here).as_posix() if place.is_relative_to(here) else place.name
