from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import ptsr_edge
from ptsr_edge.core import disk_cache


def test_a_digest_of_a_module_sees_what_it_imports_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a copy of the package: `data.extraction` imports `vision.flow` and, inside of functions, no torch code."""
    package = tmp_path / "ptsr_edge"
    shutil.copytree(
        Path(ptsr_edge.__file__).parent, package, ignore=shutil.ignore_patterns("weights", "*.pyc")
    )
    monkeypatch.setattr(disk_cache, "__file__", str(package / "core" / "disk_cache.py"))
    module = "ptsr_edge.data.extraction"
    before = disk_cache.closure_digest(module)

    def changed(name: str) -> bool:
        path = package / name
        content = path.read_bytes()
        path.write_bytes(content + b"\n# another line\n")
        after = disk_cache.closure_digest(module)
        path.write_bytes(content)
        return after != before

    assert changed("data/extraction.py")
    assert changed("vision/flow.py")
    assert changed("vision/face_tracking.py")
    assert not changed("models/ptsr.py")
    assert not changed("report/cli.py")
    assert disk_cache.closure_digest(module) == before
