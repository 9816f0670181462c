"""What a bundle is: its variants with their proofs and sizes, what can run here, what is taken by default, its origin.

ptsr-edge info out/ptsr-tiny-cpu
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import click

from ptsr_edge.bundle import Bundle, Variant, bundle_card, check_files, read_bundle, read_manifest
from ptsr_edge.core.console import Verb, finish, run
from ptsr_edge.core.errors import InputError, JobError, MissingExtraError, PtsrError
from ptsr_edge.session import choose_variant, why_not_here, why_not_tuned
from ptsr_edge.sign import check_signature, demanded, read_signature
from ptsr_edge.tune import verdict


def describe(folder: Path) -> dict[str, Any]:
    """Returns everything that `info` reports, ready for JSON. Nothing is run; runtimes are imported to see if they are.

    Raises:
        InputError: there is no bundle at `folder`.
    """
    bundle = read_bundle(folder)
    provenance = bundle.provenance
    recipe, subjects = provenance.get("recipe"), provenance.get("train_subjects")
    return {
        "bundle": str(folder),
        "name": bundle.name,
        "labels": bundle.labels,
        "signature": _signature(folder),
        "preprocess": bundle.preprocess.model_dump(mode="json"),
        "variants": [_variant(bundle, variant, folder) for variant in bundle.variants],
        "size_bytes": size_on_disk(folder, bundle),
        "recommended": bundle.recommended and bundle.recommended.model_dump(mode="json"),
        "default": _default(bundle, folder),
        "cascades": [
            cascade.model_dump(mode="json") | {"useless": cascade.escalated == 0}
            for cascade in bundle.cascades
        ],
        "trained": {
            "kind": provenance.get("kind"),
            "data": provenance.get("data"),
            "subjects": len(subjects) if isinstance(subjects, list) else None,
            "epochs": recipe.get("epochs") if isinstance(recipe, dict) else None,
            "checkpoint_sha256": provenance.get("checkpoint_sha256"),
            "card": provenance.get("card"),
        },
        "model_card": str(provenance.get("model_card") or bundle_card(provenance.get("card"))),
    }


SignatureState = Literal["unsigned", "unchecked", "right", "refused"]
"""Of a bundle: unchecked where it is signed and no signature is asked for here."""


def _signature(folder: Path) -> dict[str, Any]:
    """Returns who says to have signed the bundle, and whether a session here takes that."""
    state: SignatureState
    record, why = None, None
    try:
        record = read_signature(folder)
        demand = demanded()
        if demand is not None:
            check_signature(folder, read_manifest(folder), demand)
            state = "right"
        else:
            state = "unsigned" if record is None else "unchecked"
    except (InputError, MissingExtraError) as error:
        state, why = "refused", str(error)
    kept = {"key": None, "serial": None} if record is None else {"key": record.key, "serial": record.serial}
    return {"state": state, **kept, "why_refused": why}


def _signed(signature: Mapping[str, Any]) -> str:
    by = f"by key {signature['key'][:16]}, serial {signature['serial']}" if signature["key"] else ""
    told = {
        "unsigned": "no",
        "unchecked": f"{by}; not checked, as $PTSR_EDGE_VERIFY names no key",
        "right": f"{by}; checked by the key of $PTSR_EDGE_VERIFY",
        "refused": f"refused here: {signature['why_refused']}",
    }
    return told[signature["state"]]


def _variant(bundle: Bundle, variant: Variant, folder: Path) -> dict[str, Any]:
    try:
        hindrance = why_not_here(variant, folder)
    except PtsrError as error:
        hindrance = str(error)
    try:
        check_files(folder, variant)
        fault = None
    except InputError as error:
        fault = str(error)
    kept = variant.model_dump(
        mode="json",
        include={"id", "target", "precision", "keep_rate", "tokens", "macs", "parameters", "artifact", "parity", "verified_on", "tuned"},
    )  # fmt: skip
    return kept | {
        "size_bytes": sum(entry.bytes for entry in variant.files),
        "files": [entry.path for entry in variant.files],
        "accuracy": _judged(variant),
        "files_fault": fault,
        "runs_here": not hindrance and fault is None,
        "tuned_told": None if variant.tuned is None else verdict(variant.tuned),
        "why_not_tuned": None
        if hindrance or variant.tuned is None
        else why_not_tuned(variant, variant.tuned.threads) or None,
        "why_not_here": hindrance or None,
        "recommended": bundle.recommended is not None and bundle.recommended.variant == variant.id,
    }


def _judged(variant: Variant) -> dict[str, Any] | None:
    """Returns what `--max-uar-drop` measured of an int8 variant at the export; None where it was not judged."""
    record = variant.built_with.get("accuracy")
    tokens = str(variant.tokens)
    if not isinstance(record, Mapping) or tokens not in record.get("uar", {}):
        return None
    return {
        "uar": record["uar"][tokens],
        "uar_fp32": record["uar_fp32"][tokens],
        "limit": record["limit"],
        "samples": record["samples"],
    }


def size_on_disk(folder: Path, bundle: Bundle) -> int:
    """Returns the bytes that a bundle's files take, one that several variants share or that is linked once."""
    sizes = {}
    for variant in bundle.variants:
        for entry in variant.files:
            path = folder / entry.path
            if path.is_file():
                facts = path.stat()
                sizes[facts.st_dev, facts.st_ino] = facts.st_size
    return sum(sizes.values())


def _default(bundle: Bundle, folder: Path) -> dict[str, Any]:
    """Returns what `Session.open` takes here where nothing is asked for: the variant, or why there is none."""
    try:
        return {"variant": choose_variant(bundle, folder, None, None, None).id, "why_not": None}
    except PtsrError as error:
        return {"variant": None, "why_not": str(error)}


def lines_of(record: Mapping[str, Any]) -> list[str]:
    """Writes the record for a terminal; the last line is the bundle's path."""
    lines = [
        f"{record['name']}: {', '.join(record['labels'])}; {_megabytes(record['size_bytes'])} on disk",
        f"trained   {_trained(record['trained'])}",
        f"signed    {_signed(record['signature'])}",
        "",
        f"{'variant':30} {'budget':>7} {'tokens':>6} {'MMACs':>8} {'MB':>7}  {'here':4} proof",
    ]
    for variant in record["variants"]:
        mark = "*" if variant["recommended"] else " "
        lines.append(
            f"{mark}{variant['id']:29} {variant['keep_rate']:7.1%} {variant['tokens']:6d} {variant['macs'] / 1e6:8.1f} "
            f"{variant['size_bytes'] / 1e6:7.2f}  {'yes' if variant['runs_here'] else 'no':4} {_proof(variant)}"
        )
    reasons: dict[str, list[str]] = {}
    for variant in record["variants"]:
        if why := variant["files_fault"] or variant["why_not_here"]:
            reasons.setdefault(why, []).append(variant["id"])
    lines += [f"not here  {', '.join(names)}: {why}" for why, names in reasons.items()]
    lines += [_tuning(variant) for variant in record["variants"] if variant["tuned"] is not None]
    lines.append("")
    choice, default = record["recommended"], record["default"]
    if choice is None:
        lines.append("recommended: none; this bundle was exported before there was any")
    else:
        lines.append(f"recommended: {choice['variant']} ({choice['kind']}): {choice['reason']}")
    if default["variant"] is None:
        lines.append(f"taken here by default: none: {default['why_not']}")
    elif choice is None or choice["variant"] != default["variant"]:
        lines.append(f"taken here by default: {default['variant']}")
    lines += [_cascade(cascade) for cascade in record["cascades"]]
    return [*lines, f"model card: {record['model_card']}", record["bundle"]]


def _proof(variant: Mapping[str, Any]) -> str:
    parity, judged = variant["parity"], variant["accuracy"]
    if parity is None:
        text = "built, not run where it was exported"
    else:
        text = f"same class {parity['top1_agreement']:.0%} of {parity['samples']}, logits within {parity['max_abs']:.1e}"
        text += "" if parity["through"] == "artifact" else " (its graph)"
    if judged is not None:
        text += f"; UAR {judged['uar']:.3f}, fp32 {judged['uar_fp32']:.3f} on {judged['samples']}"
    machines = [entry["machine"] for entry in variant["verified_on"]]
    return f"{text}; verified on {', '.join(machines)}" if machines else text


def _tuning(variant: Mapping[str, Any]) -> str:
    record = variant["tuned"]
    threads = f", --threads {record['threads']}" if record["threads"] else ""
    device = f"{record['cpu']}, {record['runtime']}{threads}, {record['date']}"
    found = f"{variant['id']}: {variant['tuned_told']} ({device})"
    return f"{found}; not used here: {variant['why_not_tuned']}" if variant["why_not_tuned"] else found


def _trained(trained: Mapping[str, Any]) -> str:
    facts = [
        f"on {trained['data']}" if trained["data"] else "",
        f"{trained['subjects']} people" if trained["subjects"] else "",
        f"{trained['epochs']} epochs" if trained["epochs"] else "",
    ]
    told = ", ".join(fact for fact in facts if fact)
    card = trained["card"] or "its provenance says nothing about these weights"
    return told or card


def _cascade(cascade: Mapping[str, Any]) -> str:
    if cascade["useless"]:
        told = f"never asks the full budget: take the budget {cascade['small']:g} alone"
    else:
        told = f"asks the full budget for {cascade['escalated']:.0%} of the samples"
    return (
        f"cascade   {cascade['target']}/{cascade['precision']} {cascade['small']:g} -> {cascade['full']:g}: {told}; "
        f"loses at most {cascade['upper']:.3f} of UAR with {cascade['confidence']:.0%} confidence ({cascade['units']} "
        f"{cascade['unit']}s)"
    )


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.2f} MB"


@click.command(cls=Verb, epilog="Example: ptsr-edge info out/ptsr-tiny-cpu")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the record.")
def main(bundle: Path, as_json: bool) -> None:
    """Say what a bundle holds, what of it runs here and is taken by default, and what it was trained on."""
    record = describe(bundle)
    finish(record, lines_of(record), as_json)
    faults = [variant["id"] for variant in record["variants"] if variant["files_fault"]]
    if faults:
        raise JobError(f"files of {', '.join(faults)} are missing or have changed: export the bundle again")
    if why := record["signature"]["why_refused"]:
        raise JobError(f"nothing of it is opened here: {why}")


if __name__ == "__main__":
    run(main, "python -m ptsr_edge.info")
