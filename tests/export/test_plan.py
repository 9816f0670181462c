"""A wrong call of `export` is refused before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptsr_edge.bundle import MANIFEST
from ptsr_edge.core.config import LABELS, Preprocess, named_model, parse_keep_rate
from ptsr_edge.core.errors import InputError
from ptsr_edge.export.config import check_budgets, check_options, check_out, check_targets, rates_of
from ptsr_edge.export.targets.onnxruntime import CpuTarget
from ptsr_edge.export.targets.tensorrt import TrtTarget
from ptsr_edge.models.checkpoint import CheckpointInfo


class Fp16Target(CpuTarget):
    """Another target, which shares fp32 with `cpu` and has no int8."""

    name = "half"
    precisions = ("fp32", "fp16")


KNOWN = {"cpu": CpuTarget(), "half": Fp16Target()}


def info_of(name: str) -> CheckpointInfo:
    config = named_model(name)
    return CheckpointInfo(
        model=config, preprocess=Preprocess(image_size=config.image_size), labels=list(LABELS), provenance={}
    )


@pytest.mark.parametrize(
    ("names", "precisions", "expected"),
    [
        pytest.param(["cpu"], None, [("cpu", ["fp32", "int8"])], id="all that it has"),
        pytest.param(["cpu"], ["int8"], [("cpu", ["int8"])], id="one"),
        pytest.param(["cpu"], ["int8", "fp32", "int8"], [("cpu", ["int8", "fp32"])], id="asked twice"),
        pytest.param(["half", "cpu", "half"], ["fp32"], [("half", ["fp32"]), ("cpu", ["fp32"])], id="order"),
        pytest.param(
            ["cpu", "half"], ["fp16", "int8"], [("cpu", ["int8"]), ("half", ["fp16"])], id="each what it has"
        ),
    ],
)
def test_each_target_gets_the_precisions_that_it_has(
    names: list[str], precisions: list[str] | None, expected: list[tuple[str, list[str]]]
) -> None:
    plan = check_targets(names, precisions, KNOWN)
    assert [(target.name, wanted) for target, wanted in plan] == expected
    assert all(target is KNOWN[target.name] for target, _ in plan)


@pytest.mark.parametrize(
    ("names", "precisions", "said"),
    [
        (["gpu"], None, "unknown target 'gpu'; accepted: cpu, half"),
        ([], None, "no target given; accepted: cpu, half"),
        (["cpu"], ["fp16"], "no such precision: 'fp16'; target cpu has fp32, int8"),
        (
            ["cpu", "half"],
            ["fp32", "int4"],
            "no such precision: 'int4'; target cpu has fp32, int8; target half has fp32, fp16",
        ),
        (["cpu", "half"], ["int8"], "no precision for target half among int8; target cpu has fp32, int8"),
    ],
)
def test_a_target_or_precision_that_is_not_there(
    names: list[str], precisions: list[str] | None, said: str
) -> None:
    with pytest.raises(InputError) as caught:
        check_targets(names, precisions, KNOWN)
    assert str(caught.value).startswith(said)


def test_budgets_run_from_the_largest_down_and_each_once() -> None:
    # 49 patches: .5 and .505 are both 25 tokens; the larger rate names the variant.
    assert check_budgets(info_of("ptsr-nano"), [0.25, 0.5, 0.505, 1.0]) == [1.0, 0.505, 0.25]
    assert check_budgets(info_of("ptsr-nano"), (1e-6,)) == [1e-6]  # one token, the fewest there can be
    assert check_budgets(info_of("ptsr-nano"), "auto") == "auto"


def test_budgets_that_nobody_gave() -> None:
    assert check_budgets(info_of("ptsr-tiny"), None) == [1.0, 0.5, 0.25]
    assert check_budgets(info_of("vit-tiny"), None) == [1.0]


@pytest.mark.parametrize("rate", [0.0, -0.5, 1.0001, float("nan"), float("inf")])
def test_a_rate_outside_of_its_range(rate: float) -> None:
    with pytest.raises(InputError, match=r"a budget is a keep rate in \(0, 1\], got"):
        check_budgets(info_of("ptsr-nano"), [1.0, rate])
    with pytest.raises(InputError, match=r"a budget is a keep rate in \(0, 1\], got"):
        parse_keep_rate(str(rate))


def test_the_baseline_keeps_all() -> None:
    # .999 of 49 patches is 49 tokens, which is all of them.
    assert check_budgets(info_of("vit-nano"), [0.999, 1.0]) == [1.0]
    with pytest.raises(InputError, match="`--budgets auto` needs a PTSR"):
        check_budgets(info_of("vit-nano"), "auto")
    with pytest.raises(InputError, match=r"its only budget is 1, got \[1\.0, 0\.5\]"):
        check_budgets(info_of("vit-nano"), [1.0, 0.5])


def test_no_budget_at_all() -> None:
    with pytest.raises(InputError, match="no budget given"):
        check_budgets(info_of("ptsr-nano"), [])


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


@pytest.mark.parametrize(
    ("options", "precisions", "says"),
    [
        pytest.param({"keep_flaot": []}, ["fp16"], "target trt has no option 'keep_flaot'; it has: ", id="name"),
        pytest.param({"compute_capabilities": ["9.9"]}, ["fp16"], "unknown compute capability '9.9'", id="none"),
        pytest.param({"compute_capabilities": ["abc"]}, ["fp16"], "unknown compute capability 'abc'", id="text"),
        pytest.param({"compute_capabilities": []}, ["fp16"], "no compute capability given", id="empty"),
        pytest.param({"compute_capabilities": (75,)}, ["fp16", "fp32"], "no fp32 .* for SM75", id="precision"),
        pytest.param({"compute_capabilities": (86,), "flavour": "tensorrt"}, ["fp16"],
                     "tensorrt builds for the GPU in the machine only, got 86", id="flavour"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_had(options: dict[str, object], precisions: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_options(options, [(TrtTarget(), precisions)])


def test_options_that_can_be_had() -> None:
    check_options({"int8_scheme": "auto"}, [(TrtTarget(), ["fp16"]), (CpuTarget(), ["fp32"])])
    check_options({"compute_capabilities": (75, 86)}, [(TrtTarget(), ["fp16"]), (CpuTarget(), ["fp32"])])
    check_options({}, [(CpuTarget(), ["fp32"])])


def test_a_budget_is_read_as_it_is_written() -> None:
    assert [parse_keep_rate(text) for text in ("1", ".25", "0.5", "1e-2")] == [1.0, 0.25, 0.5, 0.01]
    with pytest.raises(ValueError, match="half"):  # `console.comma_separated` makes one line of it
        parse_keep_rate("half")
