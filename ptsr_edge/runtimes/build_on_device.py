#!/usr/bin/env python3
"""Builds TensorRT engines from the typed ONNX graphs of a bundle, on the machine that is to run them.

    python3 build_on_device.py                     # every graph in this file's folder
    python3 build_on_device.py model.onnx --json   # one graph; the record of what was built on stdout

It needs TensorRT and nothing else: the Python module `tensorrt` (10.x, as on a Jetson, or 11.x) or
`tensorrt_rtx`, else the program `trtexec`. Beside each `NAME.onnx` stands `NAME.build.json` with what is to
be built; this writes `NAME.plan` and the record of the build. A `bundle.json` in the folder is brought up to
date. `ptsr-edge export --target trt` runs this same file, so what is tested there is what a device runs.

Exit codes: 0 done, 1 TensorRT refused or built another precision than was asked for, 2 the call was wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ptsr_edge.runtimes.trt_engine import (
    ALLOWED,
    MODULES,
    BuildError,
    build_plan,
    describe_gpus,
    judge_layers,
    load_tensorrt,
)

TRTEXEC = "/usr/src/tensorrt/bin/trtexec"
"""Where JetPack puts the program."""

_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a JSON record of another shape raises."""


def build_with_trtexec(onnx_path: Path, plan_path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Builds with the program where there is no Python module; the same checks as far as it tells.

    Raises:
        BuildError: there is no such program, or it fails.
    """
    program = shutil.which("trtexec") or (TRTEXEC if Path(TRTEXEC).is_file() else None)
    if program is None:
        raise BuildError("neither a TensorRT module nor the program trtexec is installed")
    with tempfile.TemporaryDirectory() as folder:
        layers = Path(folder) / "layers.json"
        call = [
            program, f"--onnx={onnx_path}", f"--saveEngine={plan_path}", "--stronglyTyped", "--skipInference",
            "--profilingVerbosity=detailed", f"--exportLayerInfo={layers}",
        ]  # fmt: skip
        started = time.perf_counter()
        done = subprocess.run(
            [*call, *([] if settings.get("tf32") else ["--noTF32"])], capture_output=True, text=True
        )
        if done.returncode or not plan_path.is_file():
            errors = [line for line in (done.stdout + done.stderr).splitlines() if "[E]" in line]
            raise BuildError(f"trtexec fails on {onnx_path.name}: {(errors or ['no reason given'])[-1]}")
        told = judge_layers(layers.read_text() if layers.is_file() else "", settings, onnx_path.name)
    version = ".".join(str(part) for part in plan_path.read_bytes()[24:28])
    return {
        "flavour": "tensorrt", "version": version, "capabilities": [],
        "gpu": next(iter(describe_gpus()), None), "build_s": round(time.perf_counter() - started, 3),
        "build_cpu_s": None, "products": None, "read_back_from": "nothing", **told,
    }  # fmt: skip


def build(onnx_path: Path, flavour: str | None, capabilities: list[str]) -> dict[str, Any]:
    """Builds one graph by the settings beside it; writes plan and record; returns the record.

    Raises:
        BuildError: the graph or its settings are missing or damaged, or it cannot be built.
    """
    side = onnx_path.with_suffix(".build.json")
    try:
        record: dict[str, Any] = json.loads(side.read_text(encoding="utf-8"))
        settings, graph = dict(record["settings"]), dict(record["graph"])
        if settings["precision"] not in ALLOWED or onnx_path.name not in graph:
            raise ValueError(f"it is of no graph {onnx_path.name} in {', '.join(ALLOWED)}")
    except _DAMAGED as error:
        raise BuildError(
            f"{side} is missing or damaged ({error!r}); it says how to build the graph"
        ) from error
    for name, digest in graph.items():
        path = onnx_path.parent / name
        if not path.is_file() or sha256(path) != digest:
            raise BuildError(f"{path} is missing or has changed since it was exported: export again")
    plan_path = onnx_path.with_suffix(".plan")
    try:
        name, trt = load_tensorrt(flavour)
    except BuildError:
        if flavour or capabilities:
            raise
        partial = plan_path.with_suffix(".partial")
        try:
            engine = build_with_trtexec(onnx_path, partial, settings)
            partial.replace(plan_path)
        finally:
            partial.unlink(missing_ok=True)
    else:
        plan, engine = build_plan(name, trt, onnx_path, settings, capabilities)
        write(plan_path, plan)
    engine.update(plan=plan_path.name, bytes=plan_path.stat().st_size, sha256=sha256(plan_path))
    record["engine"] = engine
    write(side, (json.dumps(record, indent=2) + "\n").encode())
    return record


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The folder's `bundle.json`, None where there is none.

    Raises:
        BuildError: it is there and no manifest.
    """
    manifest = folder / "bundle.json"
    if not manifest.is_file():
        return None
    try:
        bundle: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
        _ = [entry["path"] for variant in bundle["variants"] for entry in variant["files"]]
    except _DAMAGED as error:
        raise BuildError(f"{manifest} is damaged ({error!r}): export again") from error
    return bundle


def adopt(folder: Path, onnx_path: Path, record: dict[str, Any]) -> None:
    """Enters a plan that was built here into the folder's `bundle.json`, where there is one."""
    bundle = read_manifest(folder)
    if bundle is None:
        return
    names = [onnx_path.with_suffix(".plan").name, onnx_path.with_suffix(".build.json").name]
    for variant in bundle["variants"]:
        if onnx_path.name not in [entry["path"] for entry in variant["files"]]:
            continue
        variant["files"] = [entry for entry in variant["files"] if entry["path"] not in names]
        for name in names:
            path = folder / name
            variant["files"].append({"path": name, "bytes": path.stat().st_size, "sha256": sha256(path)})
        variant["artifact"] = names[0]
        variant["built_with"].update(built_with(record))
        variant["runs_on"] = runs_on(record)
    write(folder / "bundle.json", (json.dumps(bundle, indent=2, ensure_ascii=False) + "\n").encode())


def built_with(record: dict[str, Any]) -> dict[str, Any]:
    """A manifest's `built_with` for a record."""
    engine = record["engine"] or {}
    shown = ("flavour", "version", "build_s", "build_cpu_s", "products", "tensor_types", "read_back_from")
    return {**record["settings"], **{key: engine[key] for key in shown if key in engine}}


def runs_on(record: dict[str, Any]) -> dict[str, Any]:
    """A manifest's `runs_on` for a record."""
    engine = record["engine"]
    if engine is None:
        return {"runtime": "TensorRT 10 or later", "device": "none yet: run build_on_device.py on the device"}
    capabilities = engine["capabilities"] or ([engine["gpu"]["capability"]] if engine["gpu"] else [])
    device = f"NVIDIA GPU of compute capability {', '.join(capabilities) or 'unknown'}"
    return {
        "runtime": engine["flavour"], "version": engine["version"], "device": device,
        "compute_capabilities": capabilities,
    }  # fmt: skip


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write(path: Path, content: bytes) -> None:
    """Writes a file through a temporary one beside it and a rename.

    Raises:
        BuildError: it cannot be written; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise BuildError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Build TensorRT engines from a bundle's typed ONNX graphs.")
    parser.add_argument("graphs", nargs="*", type=Path, help="ONNX files; default: all in this file's folder")
    parser.add_argument("--flavour", choices=list(MODULES), help="default: the first that is installed")
    parser.add_argument(
        "--compute-capability", action="append", default=[], metavar="SM86", dest="capabilities",
        help="tensorrt-rtx only, may be repeated; default: the GPU in this machine",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the records instead of the paths")
    chosen = parser.parse_args(arguments)
    folder = Path(__file__).resolve().parent
    graphs = chosen.graphs or [
        side.with_name(side.name.replace(".build.json", ".onnx"))
        for side in sorted(folder.glob("*.build.json"))
    ]
    if not graphs:
        parser.error(f"no graph given and none with its .build.json in {folder}")
    records = []
    for graph in graphs:
        if not graph.is_file():
            print(f"build_on_device: there is no graph at {graph}", file=sys.stderr)
            return 2
        try:
            read_manifest(graph.resolve().parent)  # before minutes of building, not after
            record = build(graph.resolve(), chosen.flavour, chosen.capabilities)
            adopt(graph.resolve().parent, graph, record)
        except (BuildError, OSError) as error:
            print(f"build_on_device: {error}", file=sys.stderr)
            return 1
        records.append(record)
        if not chosen.json:
            print(graph.with_suffix(".plan"))
    if chosen.json:
        print(json.dumps(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
