"""Shared by the tests of `profile`: a pair of real bundles, and runs that are short."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bundle_data import write_pair

from ptsr_edge.profile import timing


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A PTSR bundle of two budgets and its baseline's; read only."""
    return write_pair(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def short_runs() -> Iterator[None]:
    """No warm-up and blocks of a millisecond."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "WARM_UP_S", 0.0)
        patch.setattr(timing, "MIN_BLOCK_S", 0.001)
        yield
