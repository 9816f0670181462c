"""Deployment recipes: every one in `export/` is read, and what is wrong in one is said in one line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from ptsr_edge.bundle import read_bundle
from ptsr_edge.core.config import LABELS, Preprocess
from ptsr_edge.core.errors import InputError
from ptsr_edge.data.recorded import MEGC_FOLDER, MEGC_TABLE
from ptsr_edge.export.cli import main
from ptsr_edge.export.config import DeploymentRecipe, read_recipe
from ptsr_edge.export.exporter import TARGETS
from ptsr_edge.models.checkpoint import CheckpointInfo, save_checkpoint

FOLDER = Path(__file__).parents[2] / "export"
RECIPES = sorted(FOLDER.glob("*.toml"))

PRECISIONS = {
    "cpu": {"fp32", "int8"},
    "openvino": {"fp32", "fp16", "bf16", "int8"},
    "trt": {"fp32", "fp16", "int8"},
}
"""Of the requirements: what each target has."""

TOOLS = {"cpu": ["onnxruntime"], "openvino": ["openvino", "nncf"], "trt": ["onnxruntime", "tensorrt_rtx"]}
"""What exporting for each target needs."""

MINIMAL = 'description = "x"\ntarget = "cpu"\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "own.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_there_is_a_recipe_for_every_target_and_for_devices_that_people_have() -> None:
    devices = {"raspberry-pi-5", "intel-n100", "jetson-orin-nano", "rtx-laptop"}
    assert {path.stem for path in RECIPES} >= PRECISIONS.keys() | devices
    for target in PRECISIONS:
        assert read_recipe(FOLDER / f"{target}.toml").target == target


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_recipe_asks_for_what_its_target_has(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.description
    assert set(recipe.precisions or ()) <= PRECISIONS[recipe.target]
    assert recipe.budgets == "auto" or list(recipe.budgets) == sorted(set(recipe.budgets), reverse=True)
    if recipe.target != "trt":
        assert (recipe.compute_capabilities, recipe.flavour, recipe.onnx_only) == (None, None, False)


@pytest.fixture(scope="module")
def checkpoint(ptsr_config: Any, randomised: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PTSR of 16 patches and one block, which says that it was trained on all of `clips`."""
    config = ptsr_config(depth=1, score="strain")
    info = CheckpointInfo(
        model=config,
        preprocess=Preprocess(image_size=config.image_size, flow="published", global_motion="none"),
        labels=list(LABELS),
        provenance={"kind": "trained", "data": "megc-flow", "train_subjects": ["casme2/sub00"]},
    )
    path = tmp_path_factory.mktemp("recipes") / "pocket.safetensors"
    save_checkpoint(path, randomised(config), info)
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So many clips of one subject that some are left to judge int8 on when 64 have calibrated it."""
    cv2 = pytest.importorskip("cv2")
    root = tmp_path_factory.mktemp("clips")
    (root / MEGC_FOLDER).mkdir()
    rows, generator = ["dataset,sub,filename_o,label"], np.random.default_rng(0)
    for clip in range(90):
        rows.append(f"casme2,sub00,clip{clip},{clip % 3}")
        pixels = generator.integers(0, 256, (28, 28, 3), dtype=np.uint8)
        cv2.imwrite(str(root / MEGC_FOLDER / f"sub00_clip{clip} .png"), pixels)
    (root / MEGC_TABLE).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_recipe_is_exported(path: Path, checkpoint: Path, clips: Path, tmp_path: Path) -> None:
    """Each with the tools of its target, to the end: every variant that it asks for, proven."""
    recipe = read_recipe(path)
    for package in TOOLS[recipe.target]:
        if not (recipe.onnx_only and package == "tensorrt_rtx"):
            pytest.importorskip(package, reason=f"{package} is missing: pip install 'ptsr-edge[all]'")
    call = [
        "--recipe",
        path,
        "--checkpoint",
        checkpoint,
        "--calibration",
        clips,
        "--out",
        tmp_path / "bundle",
    ]
    result = CliRunner().invoke(main, [*map(str, call), "--no-cache"])
    assert result.exit_code == 0, result.stderr
    variants = read_bundle(tmp_path / "bundle").variants
    wanted = recipe.precisions or TARGETS[recipe.target].precisions
    assert [v.precision for v in variants] == [p for p in wanted for _ in recipe.budgets]
    assert [v.keep_rate for v in variants] == list(recipe.budgets) * len(wanted)
    for variant in variants:
        assert variant.target == recipe.target
        assert variant.parity is not None
        assert variant.runs_on.get("threads") == recipe.threads
        assert variant.artifact.endswith(".onnx") or not recipe.onnx_only
        if variant.precision == "int8" and recipe.max_uar_drop is not None:
            found = variant.built_with["accuracy"]
            drop = found["uar_fp32"][str(variant.tokens)] - found["uar"][str(variant.tokens)]
            assert drop <= recipe.max_uar_drop == found["limit"]


def test_a_recipe_can_be_copied_and_read_anywhere(tmp_path: Path) -> None:
    for path in RECIPES:
        assert read_recipe(Path(shutil.copy(path, tmp_path))) == read_recipe(path)


def test_what_a_recipe_leaves_open_has_defaults(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, MINIMAL))
    assert recipe.budgets == (1.0, 0.5, 0.25)
    assert recipe.precisions is None
    assert recipe.threads is None
    assert recipe.max_uar_drop is None
    with pytest.raises(ValidationError, match="frozen"):
        recipe.threads = 2


def test_what_is_for_the_target_alone_goes_to_that_target(tmp_path: Path) -> None:
    assert read_recipe(written(tmp_path, MINIMAL)).target_options() == {}
    static = read_recipe(written(tmp_path, MINIMAL + 'int8_scheme = "static"\n'))
    assert static.target_options() == {"int8_scheme": "static"}
    trt = 'description = "x"\ntarget = "trt"\ncompute_capabilities = [86, 120]\nflavour = "tensorrt-rtx"\n'
    options = read_recipe(written(tmp_path, trt)).target_options()
    assert options == {"compute_capabilities": (86, 120), "flavour": "tensorrt-rtx"}
    device = read_recipe(FOLDER / "jetson-orin-nano.toml").target_options()
    assert device["onnx_only"] is True
    assert read_recipe(FOLDER / "openvino.toml").target_options() == {}


@pytest.mark.parametrize(
    ("target", "line"),
    [("trt", "threads = 2"), ("trt", 'int8_scheme = "static"'), ("openvino", 'int8_scheme = "auto"')],
)
def test_what_its_target_does_not_read_is_not_said_in_vain(tmp_path: Path, target: str, line: str) -> None:
    key = line.partition(" ")[0]
    with pytest.raises(InputError, match=f"target {target} has no use for {key}"):
        read_recipe(written(tmp_path, f'description = "x"\ntarget = "{target}"\n{line}\n'))


def test_budgets_may_come_from_the_data(tmp_path: Path) -> None:
    assert read_recipe(written(tmp_path, MINIMAL + 'budgets = "auto"\n')).budgets == "auto"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("budgets = [0.0]", r"budgets: a budget is a keep rate in \(0, 1\], got 0"),
        ("budgets = [1.0, 1.5]", r"budgets: a budget is a keep rate in \(0, 1\], got 1\.5"),
        ("budgets = [-0.5]", r"a budget is a keep rate in \(0, 1\], got -0\.5"),
        ("budgets = [nan]", r"a budget is a keep rate in \(0, 1\], got nan"),
        ("budgets = []", r'budgets: must be "auto" or a list of keep rates in \(0, 1\] \(found \[\]\)'),
        ('budgets = "automatic"', r"budgets: must be .* \(found 'automatic'\)"),
        ("budgets = 0.5", r"budgets: must be .* \(found 0\.5\)"),
        ('budgets = ["half"]', "budgets"),
        ("precisions = []", "precisions: .*at least 1 item"),
        ("threads = 0", "threads: .*greater than or equal to 1"),
        ("calibration_samples = 0", "calibration_samples: .*greater than or equal to 1"),
        ('int8_scheme = "statik"', "int8_scheme: .*'static'"),
        ("max_uar_drop = 1.5", "max_uar_drop: .*less than or equal to 1"),
        ('flavour = "rtx"', "flavour: .*'tensorrt-rtx'"),
        ('compute_capabilities = ["ada"]', r"compute_capabilities\.0: "),
        ("compute_capabilities = [86]", "target cpu has no use for compute_capabilities"),
        ('flavour = "tensorrt"', "target cpu has no use for flavour"),
        ("onnx_only = true", "target cpu has no use for onnx_only"),
    ],
)
def test_a_value_out_of_range_is_refused(tmp_path: Path, line: str, said: str) -> None:
    path = written(tmp_path, f"{MINIMAL}{line}\n")
    with pytest.raises(InputError, match=said) as caught:
        read_recipe(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("budget", "budgets"), ("precision", "precisions"), ("thread", "threads"), ("max_uar", "max_uar_drop")],
)
def test_an_unknown_key_is_answered_with_the_nearest(tmp_path: Path, key: str, nearest: str) -> None:
    with pytest.raises(InputError, match=rf"unknown key '{key}'; the nearest known key is '{nearest}'"):
        read_recipe(written(tmp_path, f"{MINIMAL}{key} = 1\n"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('target = "cpu"\n', "description: Field required"),
        ('description = "x"\n', "target: Field required"),
        ('description = "x"\ntarget = "tensorrt"\n', "target: Input should be 'cpu', 'openvino' or 'trt'"),
        ("", "Field required"),
    ],
)
def test_a_recipe_says_what_it_is_and_for_what(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_recipe(written(tmp_path, text))


@pytest.mark.parametrize("content", [b"budgets = [1.0\n", b"\xff\xfe", b"description: x\n"])
def test_what_is_no_toml_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "own.toml").write_bytes(content)
    with pytest.raises(InputError, match=r"own\.toml is not a readable TOML file: ") as caught:
        read_recipe(tmp_path / "own.toml")
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no recipe at "):
        read_recipe(tmp_path / "own.toml")
    with pytest.raises(InputError, match="is not a readable TOML file"):
        read_recipe(tmp_path)


def test_a_recipe_is_data_only() -> None:
    """No field holds a path or a command: a recipe from elsewhere can be read without trust."""
    kinds = {str(field.annotation) for field in DeploymentRecipe.model_fields.values()}
    assert not any("Path" in kind or "Callable" in kind for kind in kinds)
