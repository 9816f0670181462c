"""The index of committed profiles is what the records say."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from profile_index import END, PAGE, START, index_lines, indexed, main
from report_data import make_profile

from ptsr_edge.core.errors import InputError

PROFILES = Path(__file__).parents[2] / "profiles"


def test_the_committed_index_is_true() -> None:
    page = PROFILES / PAGE
    text = page.read_text(encoding="utf-8")
    assert text == indexed(text, index_lines(PROFILES), page), (
        "run: python benchmarks/profile_index.py profiles"
    )


def test_a_line_says_device_model_date_and_command(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "board" / "tiny", samples=20, raw="none")
    (tmp_path / "board" / "tiny-report").mkdir()
    (tmp_path / "board" / "tiny-report" / "report.md").write_text("x")
    line = index_lines(tmp_path)[2]
    assert line == (
        "| board (Test CPU 3000) | [tiny](board/tiny-report/report.md) | `ptsr-tiny` | 2026-01-15 | "
        f"`{profile.command}` |"
    )


def test_the_command_replaces_the_table_only(tmp_path: Path) -> None:
    make_profile(tmp_path / "board" / "tiny", samples=20, raw="none")
    page = tmp_path / PAGE
    page.write_text(f"# Before\n\n{START}\nold\n{END}\n\nafter\n")
    for _ in range(2):
        result = CliRunner().invoke(main, [str(tmp_path)])
        assert result.exit_code == 0, result.output
        text = page.read_text()
        assert "old" not in text
        assert text.startswith("# Before\n")
        assert text.endswith(f"{END}\n\nafter\n")
        assert text.count("| board (") == 1


def test_what_is_no_such_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no profile"):
        index_lines(tmp_path)
    make_profile(tmp_path / "board" / "tiny", samples=20, raw="none")
    result = CliRunner().invoke(main, [str(tmp_path)])
    assert result.exit_code == 2
    assert "README.md does not exist" in result.stderr
    (tmp_path / PAGE).write_text("no marks")
    result = CliRunner().invoke(main, [str(tmp_path)])
    assert result.exit_code == 2
    assert "has no place for the table" in result.stderr
    assert (tmp_path / PAGE).read_text() == "no marks"
