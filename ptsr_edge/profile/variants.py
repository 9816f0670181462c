"""The variants of a profile: their ids in the run, and the full-token ViT that they are measured against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ptsr_edge.bundle import Bundle, Variant, read_bundle
from ptsr_edge.core.config import LABELS, baseline_of
from ptsr_edge.core.console import say
from ptsr_edge.core.errors import InputError, require
from ptsr_edge.profile.schema import needs_gpu
from ptsr_edge.runtimes.base import RUNTIMES
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


def given_baseline(folder: Path, first: Bundle) -> ProfiledVariant:
    """Finds the full-token ViT in a bundle: in fp32 on the target of `first` where it has that.

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
    variant = min(bundle.variants, key=lambda v: (v.target != first.target, v.precision != "fp32"))
    return ProfiledVariant(variant.id, folder, bundle, variant, shown_path(folder))


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


def same_precision_baselines(
    folder: Path, reference: ProfiledVariant, bundles: Iterable[Bundle]
) -> list[ProfiledVariant]:
    """Lists the ViT's other variants in the targets and precisions of the bundles: a fair reference for each.

    A variant in int8 is then also shown against the ViT in int8. Ids differ from those of the bundles, since the
    models' names do.
    """
    kinds = {(variant.target, variant.precision) for bundle in bundles for variant in bundle.variants}
    kinds.discard(reference.kind)
    return [
        ProfiledVariant(variant.id, folder, reference.bundle, variant, shown_path(folder))
        for variant in reference.bundle.variants
        if (variant.target, variant.precision) in kinds
    ]


def exported_baseline(first: Bundle, folder: Path) -> ProfiledVariant:
    """Exports the full-token ViT in fp32 on the bundle's target into `folder`.

    Where that target needs a GPU and there is none, it is exported for the processor: a baseline has to run.
    """
    require("torch", "train", "exporting the baseline (or give one: --baseline DIR)")
    from ptsr_edge.export.exporter import export_bundle

    name = baseline_of(first.model).name
    target = first.target
    if needs_gpu(target) and not cuda_devices():
        target = next(known for known in RUNTIMES if not needs_gpu(known))
    say(f"exporting the baseline {name} for {target}")
    own_classes = first.labels != list(LABELS)
    weights = _random_baseline(first, folder) if own_classes else None
    bundle = export_bundle(
        out=folder / name, model=name, checkpoint=weights, target=target, budgets=[1.0], precisions=["fp32"]
    )
    return ProfiledVariant(bundle.variants[0].id, folder / name, bundle, bundle.variants[0])


def _random_baseline(first: Bundle, folder: Path) -> Path:
    """Writes a checkpoint of the baseline with the classes of a bundle, which no named model has."""
    from ptsr_edge.models.checkpoint import random_info, save_checkpoint
    from ptsr_edge.models.ptsr import build_model

    config = baseline_of(first.model)
    path = folder / f"{config.name}.safetensors"
    save_checkpoint(path, build_model(config, seed=0), random_info(config, first.labels))
    return path


def shown_path(folder: Path) -> str:
    """Names a folder for the record: relative to here, or by its name alone; never by a whole path."""
    place, here = folder.resolve(), Path.cwd()
    return place.relative_to(here).as_posix() if place.is_relative_to(here) else place.name
