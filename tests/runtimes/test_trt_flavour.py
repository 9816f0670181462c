from __future__ import annotations

import importlib.util

import pytest

from ptsr_edge.core.errors import InputError, JobError, MissingExtraError
from ptsr_edge.runtimes.tensorrt import (
    CAPABILITIES,
    TensorRtVersion,
    choose_capabilities,
    choose_flavour,
    find_flavour,
    find_flavours,
    read_capability,
)

RTX = TensorRtVersion("tensorrt-rtx", "1.7.1.116", "", cross=True)
ORIN = TensorRtVersion("tensorrt", "10.3.0", "", cross=False)
has_rtx = importlib.util.find_spec("tensorrt_rtx") is not None
has_trt = importlib.util.find_spec("tensorrt") is not None


@pytest.mark.parametrize("text", ["8.6", "86", "SM86", "sm_86", " sm86 "])
def test_a_capability_is_read_however_it_is_written(text: str) -> None:
    assert read_capability(text) == "SM86"


def test_capabilities_of_three_digits() -> None:
    assert read_capability("12.0") == read_capability("sm_120") == "SM120"


@pytest.mark.parametrize("text", ["9.0", "SM90", "banana", "", "8"])
def test_an_unknown_capability_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"builds for 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"):
        read_capability(text)


def test_by_default_all_that_the_precision_allows() -> None:
    assert choose_capabilities(RTX, "fp16", None) == list(CAPABILITIES)
    assert choose_capabilities(RTX, "int8", None) == list(CAPABILITIES)
    assert choose_capabilities(RTX, "fp32", None) == [c for c in CAPABILITIES if c != "SM75"]
    assert choose_capabilities(RTX, "fp16", ["8.6", "sm_86", "12.0"]) == ["SM86", "SM120"]


def test_turing_has_no_fp32_products() -> None:
    with pytest.raises(InputError, match="no fp32 matrix products for SM75"):
        choose_capabilities(RTX, "fp32", ["7.5"])


def test_no_capability_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="no compute capability given"):
        choose_capabilities(RTX, "fp16", [])


def test_tensorrt_proper_builds_for_its_own_gpu() -> None:
    assert choose_capabilities(ORIN, "fp16", None) == []
    with pytest.raises(InputError, match=r"the GPU in the machine only, got 8.7"):
        choose_capabilities(ORIN, "fp16", ["8.7"])


def test_an_unknown_flavour_is_refused() -> None:
    with pytest.raises(InputError, match="unknown TensorRT flavour 'trt9'; accepted: tensorrt, tensorrt-rtx"):
        find_flavour("trt9")


@pytest.mark.skipif(has_trt, reason="tensorrt is installed here")
def test_a_flavour_that_is_missing_says_where_it_comes_from() -> None:
    with pytest.raises(
        MissingExtraError, match=r"no TensorRT can build here: tensorrt: not installed .*JetPack"
    ):
        choose_flavour("tensorrt")


@pytest.mark.skipif(not has_rtx, reason="tensorrt-rtx is not installed: pip install 'ptsr-edge[trt]'")
def test_tensorrt_rtx_builds_without_a_gpu() -> None:
    flavour = choose_flavour("tensorrt-rtx")
    assert not flavour.hindrance
    assert flavour.cross
    assert flavour.version


def test_flavours_come_in_the_order_of_preference() -> None:
    assert [flavour.name for flavour in find_flavours()] == ["tensorrt", "tensorrt-rtx"]


def test_one_that_is_there_and_cannot_build_is_a_failed_job(monkeypatch: pytest.MonkeyPatch) -> None:
    old = TensorRtVersion(
        "tensorrt", "8.6.1", "version 8.6.1 is installed, 10.x or 11.x is needed", cross=False
    )
    monkeypatch.setattr("ptsr_edge.runtimes.tensorrt.find_flavour", lambda _name: old)
    with pytest.raises(JobError, match=r"10.x or 11.x is needed"):
        choose_flavour("tensorrt")
