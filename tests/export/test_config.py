"""A call and a recipe of `export` are checked before anything is started, and what is wrong is said in one line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from ptsr_edge.bundle import MANIFEST, read_bundle
from ptsr_edge.core.config import LABELS, Preprocess, named_model, parse, parse_keep_rate
from ptsr_edge.core.errors import InputError
from ptsr_edge.data.recorded import MEGC_FOLDER, MEGC_TABLE
from ptsr_edge.export.cli import main
from ptsr_edge.export.config import ExportConfig, check_out, rates_of, read_recipe
from ptsr_edge.export.targets.base import find_target
from ptsr_edge.models.checkpoint import CheckpointInfo, save_checkpoint

pytestmark = pytest.mark.slow

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
        assert read_recipe(FOLDER / f"{target}.toml").target == (target,)


def test_a_recipe_for_a_device_leaves_nothing_to_the_machine_that_exports() -> None:
    for path in RECIPES:
        recipe = read_recipe(path)
        if path.stem in PRECISIONS or "int8" not in (recipe.precisions or ()):
            continue
        options = {name for target in recipe.target for name in find_target(target).options.model_fields}
        if "int8_scheme" in options:
            assert recipe.options.get("int8_scheme") in ("static", "dynamic"), path.name
        if "trt" in recipe.target:
            assert {"compute_capabilities", "onnx_only"} & recipe.options.keys(), path.name


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_recipe_asks_for_what_its_target_has(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.description
    (target,) = recipe.target
    assert set(recipe.precisions or ()) <= PRECISIONS[target]
    budgets = recipe.budgets
    assert isinstance(budgets, tuple)
    assert list(budgets) == sorted(set(budgets), reverse=True)


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
    (target,) = recipe.target
    graphs_only = recipe.options.get("onnx_only", False)
    for package in TOOLS[target]:
        if not (graphs_only and package == "tensorrt_rtx"):
            pytest.importorskip(package, reason=f"{package} is missing: the extra all brings it")
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
    result = CliRunner().invoke(main, [*map(str, call)])
    assert result.exit_code == 0, result.stderr
    variants = read_bundle(tmp_path / "bundle").variants
    wanted = recipe.precisions or find_target(target).precisions
    assert isinstance(recipe.budgets, tuple)
    assert [v.precision for v in variants] == [p for p in wanted for _ in recipe.budgets]
    assert [v.keep_rate for v in variants] == list(recipe.budgets) * len(wanted)
    for variant in variants:
        assert variant.target == target
        assert variant.parity is not None
        assert variant.runs_on.get("threads") == recipe.threads
        assert variant.artifact.endswith(".onnx") or not graphs_only
        if variant.precision == "int8" and recipe.max_uar_drop is not None:
            found = variant.built_with["accuracy"]
            drop = found["uar_fp32"][str(variant.tokens)] - found["uar"][str(variant.tokens)]
            assert drop <= recipe.max_uar_drop == found["limit"]


def test_a_recipe_can_be_copied_and_read_anywhere(tmp_path: Path) -> None:
    for path in RECIPES:
        assert read_recipe(Path(shutil.copy(path, tmp_path))) == read_recipe(path)


def test_what_a_recipe_leaves_open_is_left_to_the_export(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, MINIMAL))
    assert recipe == ExportConfig(description="x", target=("cpu",))
    with pytest.raises(ValidationError, match="frozen"):
        recipe.threads = 2


def test_what_is_for_the_target_alone_stands_beside_the_rest(tmp_path: Path) -> None:
    static = read_recipe(written(tmp_path, MINIMAL + 'int8_scheme = "static"\nkeep_float = ["head"]\n'))
    assert static.options == {"int8_scheme": "static", "keep_float": ["head"]}
    assert read_recipe(FOLDER / "rtx-laptop.toml").options == {
        "compute_capabilities": [86, 89, 120],
        "flavour": "tensorrt-rtx",
    }
    assert read_recipe(FOLDER / "openvino.toml").options == {}


@pytest.mark.parametrize(
    ("target", "line", "said"),
    [
        ("trt", "threads = 2", "target trt has no use for threads"),
        ("trt", 'int8_scheme = "static"', "target trt has no option 'int8_scheme'"),
        ("openvino", 'int8_scheme = "auto"', "target openvino has no option 'int8_scheme'; it has: keep_float, smooth_"),
    ],
)  # fmt: skip
def test_what_no_target_reads_is_not_said_in_vain(tmp_path: Path, target: str, line: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
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
        (
            "budgets = []",
            r'budgets: must be "auto", "steps", "auto,steps" or a list of keep rates in \(0, 1\] \(found \[\]\)',
        ),
        ('budgets = "automatic"', r"budgets: must be .* \(found 'automatic'\)"),
        ("budgets = 0.5", r"budgets: must be .* \(found 0\.5\)"),
        ('budgets = ["half"]', "budgets"),
        ("precisions = []", "precisions: .*at least 1 item"),
        ("threads = 0", "threads: .*greater than or equal to 1"),
        ("calibration_samples = 0", "calibration_samples: .*greater than or equal to 1"),
        ('int8_scheme = "statik"', "int8_scheme: .*'static'"),
        ("max_uar_drop = 1.5", "max_uar_drop: .*less than or equal to 1"),
        ('keep_float = "head"', "keep_float: .*tuple"),
        ("onnx_only = true", "target cpu has no option 'onnx_only'; it has: int8_scheme, keep_float"),
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
    says = (
        f"target cpu has no option '{key}'; the nearest known is '{nearest}'; it has: int8_scheme, keep_float"
    )
    with pytest.raises(InputError, match=says):
        read_recipe(written(tmp_path, f"{MINIMAL}{key} = 1\n"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('target = "cpu"\n', "description: Field required"),
        ('description = "x"\n', "target: Field required"),
        (
            'description = "x"\ntarget = "tensorrt"\n',
            "unknown target 'tensorrt'; accepted: cpu, openvino, trt",
        ),
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


def config_of(**fields: Any) -> ExportConfig:
    return parse(ExportConfig, {"target": "cpu", **fields})


@pytest.mark.parametrize(
    ("names", "precisions", "expected"),
    [
        pytest.param("cpu", None, [("cpu", ["fp32", "int8"])], id="all that it has"),
        pytest.param(["cpu"], ["int8", "fp32", "int8"], [("cpu", ["int8", "fp32"])], id="asked twice"),
        pytest.param(["trt", "cpu", "trt"], ["fp32"], [("trt", ["fp32"]), ("cpu", ["fp32"])], id="order"),
        pytest.param(
            ["cpu", "openvino"], ["bf16", "int8", "fp32"],
            [("cpu", ["int8", "fp32"]), ("openvino", ["bf16", "int8", "fp32"])], id="each what it has",
        ),
    ],
)  # fmt: skip
def test_each_target_gets_the_precisions_that_it_has(
    names: Any, precisions: list[str] | None, expected: list[tuple[str, list[str]]]
) -> None:
    plan = config_of(target=names, precisions=precisions).plan
    assert [(target.name, wanted) for target, wanted in plan] == expected


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"target": ["gpu"]}, "unknown target 'gpu'; accepted: cpu, openvino, trt"),
        ({"target": []}, "no target given; accepted: cpu, openvino, trt"),
        ({"precisions": ["fp16"]}, "no such precision: 'fp16'; target cpu has fp32, int8"),
        ({"target": ["cpu", "trt"], "precisions": ["fp32", "int4"]},
         "no such precision: 'int4'; target cpu has fp32, int8; target trt has fp32, fp16, int8"),
        ({"target": ["trt", "cpu"], "precisions": ["fp16"]},
         "no precision for target cpu among fp16; target trt has fp32, fp16, int8; target cpu has"),
        ({"budgets": [0.5, 0.25, 0.5]}, "budgets: a budget is there twice: 0.5, 0.25, 0.5"),
        ({"target": "trt", "budgets": "steps"}, "steps of latency are measured for fp32 and int8 of cpu and openvino, not for"),
        ({"budgets": []}, 'budgets: must be "auto", "steps", "auto,steps" or a list of keep rates'),
        ({"threads": 2, "target": "trt"}, "target trt has no use for threads"),
        ({"options": {"keep_flaot": []}}, "target cpu has no option 'keep_flaot'; the nearest known is 'keep_float'"),
        ({"target": "trt", "options": {"compute_capabilities": ["abc"]}}, "unknown compute capability 'abc'"),
        ({"target": "trt", "options": {"compute_capabilities": []}}, "no compute capability given"),
        ({"target": "trt", "options": {"compute_capabilities": (75,)}}, "tensorrt-rtx has no fp32 .* for SM75"),
        ({"target": "trt", "options": {"compute_capabilities": (86,), "flavour": "tensorrt"}},
         "tensorrt builds for the GPU in the machine only, got 86"),
        ({"target": "trt", "options": {"flavour": "rtx"}}, "flavour: .*'tensorrt-rtx'"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        config_of(**fields)


def test_an_option_is_for_those_targets_that_have_it() -> None:
    config_of(target=["trt", "cpu"], precisions=["fp32", "fp16"], options={"int8_scheme": "auto"}, threads=2)
    config_of(target="trt", precisions=["fp16"], options={"compute_capabilities": (75, 86)})


def test_budgets_run_from_the_largest_down_and_each_once() -> None:
    ptsr, vit = named_model("ptsr-nano"), named_model("vit-nano")
    assert config_of().rates_for(ptsr) == [1.0, 0.5, 0.25]
    assert config_of().rates_for(vit) == [1.0]
    # 49 patches: .5 and .505 are both 25 tokens; the larger rate names the variant.
    assert config_of(budgets=[0.25, 0.5, 0.505, 1.0]).rates_for(ptsr) == [1.0, 0.505, 0.25]
    assert config_of(budgets=[1e-6]).rates_for(ptsr) == [1e-6]  # one token, the fewest there can be
    for word in ("auto", "steps", "auto,steps"):
        assert config_of(budgets=word).rates_for(ptsr) == word


def test_the_baseline_keeps_all() -> None:
    vit = named_model("vit-nano")
    # .999 of 49 patches is 49 tokens, which is all of them.
    assert config_of(budgets=[0.999, 1.0]).rates_for(vit) == [1.0]
    with pytest.raises(InputError, match="`--budgets auto` needs a PTSR"):
        config_of(budgets="auto").rates_for(vit)
    with pytest.raises(
        InputError, match=r"vit-nano is the full-token baseline: its only budget is 1, got \[1\.0, 0\.5\]"
    ):
        config_of(budgets=[1.0, 0.5]).rates_for(vit)


def test_rates_of_token_counts_lead_back_to_them() -> None:
    for name in ("ptsr-nano", "ptsr-tiny"):
        config = named_model(name)
        every = list(range(1, config.patches + 1))
        rates = rates_of(config, every + every[:3])
        # Rates are rounded quotients: each must come back as the very count that it stands for.
        assert [config.tokens_at(rate) for rate in rates] == every[::-1]


def test_only_a_bundle_or_nothing_may_be_replaced(tmp_path: Path) -> None:
    check_out(tmp_path / "new")
    check_out(tmp_path / "deep" / "new")
    (tmp_path / "empty").mkdir()
    check_out(tmp_path / "empty")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / MANIFEST).write_text("{}", encoding="utf-8")
    (tmp_path / "bundle" / "weights.bin").write_bytes(b"w")
    check_out(tmp_path / "bundle")
    assert (tmp_path / "bundle" / "weights.bin").read_bytes() == b"w"
    with pytest.raises(InputError, match=r"is a folder that is no bundle; accepted: a new folder"):
        check_out(tmp_path)
    with pytest.raises(InputError, match="weights.bin is a file; accepted: a new folder"):
        check_out(tmp_path / "bundle" / "weights.bin")
    with pytest.raises(InputError, match=r"weights\.bin is no folder"):
        check_out(tmp_path / "bundle" / "weights.bin" / "new")


def test_the_folder_that_one_is_in_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is empty, and would be gone from under the shell."""
    (tmp_path / "deep" / "empty").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "empty")
    for out in (Path(), Path(".."), Path("../../deep"), tmp_path / "deep" / "empty", Path("/")):
        with pytest.raises(InputError, match="is the folder that you are in, or around it"):
            check_out(out)
    check_out(Path("new"))
    check_out(Path("../beside"))


def test_a_budget_is_read_as_it_is_written() -> None:
    assert [parse_keep_rate(text) for text in ("1", ".25", "0.5", "1e-2")] == [1.0, 0.25, 0.5, 0.01]
    with pytest.raises(ValueError, match="half"):  # `console.comma_separated` makes one line of it
        parse_keep_rate("half")
