"""The index of committed profiles is what the records say."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from profile_index import END, PAGE, START, index_lines, indexed, main, with_tables
from report_data import make_profile

from ptsr_edge.core.errors import InputError
from ptsr_edge.report.comparison import ratio_text

PROFILES = Path(__file__).parents[2] / "profiles"


def test_the_committed_index_is_true() -> None:
    page = PROFILES / PAGE
    text = page.read_text(encoding="utf-8")
    assert text == indexed(text, index_lines(PROFILES), page), (
        "run: python benchmarks/profile_index.py profiles README.md"
    )


def test_the_committed_table_is_true() -> None:
    page = PROFILES.parent / PAGE
    text = page.read_text(encoding="utf-8")
    assert text == with_tables(text, page), "run: python benchmarks/profile_index.py profiles README.md"


def test_a_table_says_what_the_record_says(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "board" / "tiny", samples=20, raw="none")
    base, fast = profile.variants[0], profile.variants[-1]
    page = tmp_path / "page.md"
    text = f"before\n<!-- measured: board/tiny {base.id} {fast.id} -->\nold\n<!-- end of measured -->\nafter"
    lines = with_tables(text, page).splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "old" not in lines
    assert lines[3].startswith("Measured on 2026-01-15: Test CPU 3000, ")
    assert lines[7].startswith("| full-token ViT, fp32, cpu | ")
    assert lines[7].count(" baseline ") == 2
    assert fast.ratio is not None
    assert f" {ratio_text(fast.ratio)} " in lines[8]
    with pytest.raises(InputError, match="has not measured none-such; it has"):
        with_tables(text.replace(fast.id, "none-such"), page)
    with pytest.raises(InputError, match="has no table"):
        with_tables("nothing", page)


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
