"""What targets have in common: names of variants, options, and the interface that each of them keeps."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest

from ptsr_edge.core.config import LABELS, MODELS, Preprocess
from ptsr_edge.core.errors import InputError
from ptsr_edge.export.targets.base import (
    BuildRequest,
    Offer,
    Target,
    find_offer,
    find_target,
    read_options,
    variant_id,
)
from ptsr_edge.runtimes.base import RUNTIMES, Runner, find_parameters, find_runner, find_runtime

pytestmark = pytest.mark.slow


def test_no_two_variants_have_one_name() -> None:
    assert variant_id("ptsr-tiny", "cpu", "int8", 49) == "ptsr-tiny-cpu-int8-k49"
    names = [
        variant_id(model, name, precision, tokens)
        for model in MODELS
        for name in RUNTIMES
        for precision in find_target(name).precisions
        for tokens in (1, 11, 49, 196)
    ]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_target_is_known_by_its_name_and_keeps_the_interface(name: str) -> None:
    target, runner = find_target(name), find_runner(name)
    assert target.name == name
    assert target.precisions[0] == "fp32", "what the others are compared with comes first"
    assert len(set(target.precisions)) == len(target.precisions)
    # The registry, which a wrong call is refused by, and the builder say the same.
    assert find_offer(name) == Offer(name, target.precisions, target.options)
    for method in ("build", "runner"):
        expected = list(inspect.signature(getattr(Target, method)).parameters)
        assert ["self", *inspect.signature(getattr(target, method)).parameters] == expected
    loading = inspect.signature(runner).parameters
    assert list(loading)[:2] == ["artifact", "threads"]
    more = set(list(loading)[2:])
    assert all(loading[one].kind is inspect.Parameter.KEYWORD_ONLY for one in more)
    assert ("digest" in more) == find_runtime(name).keeps_compiled
    assert ("settings" in more) == bool(find_parameters(name))
    assert inspect.signature(runner.run) == inspect.signature(Runner.run)  # type: ignore[attr-defined]
    assert len(inspect.signature(runner.why_not_here).parameters) == 2


def test_a_request_is_read_by_its_target(tmp_path: Path) -> None:
    target = find_target("trt")

    def read(precision: str, **options: object) -> object:
        request = BuildRequest(
            name="ptsr-test", graphs={}, precision=precision, folder=tmp_path, labels=list(LABELS),
            preprocess=Preprocess(image_size=32), calibration=np.zeros((0, 3, 32, 32), np.float32), options=options,
        )  # fmt: skip
        return read_options(target, target.options, request)

    assert read("fp16", compute_capabilities=[86]) == target.options(compute_capabilities=("86",))  # type: ignore[call-arg]
    with pytest.raises(InputError, match="target trt has no precision 'bf16'; it has: fp32, fp16, int8"):
        read("bf16")
    with pytest.raises(
        InputError, match="options of target trt: unknown key 'flavor'; the nearest known key is 'flavour'"
    ):
        read("fp16", flavor="tensorrt")
