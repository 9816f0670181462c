"""Words to HTML, Markdown and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2
import pytest

from ptsr_edge.report import cli as module
from ptsr_edge.report.cli import json_text, render


@pytest.fixture
def templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "page.html.jinja").write_text("<p>{{ words }}</p>")
    (tmp_path / "page.md.jinja").write_text("{{ words | sentence }}")
    monkeypatch.setattr(module, "TEMPLATES", tmp_path)


@pytest.mark.usefixtures("templates")
def test_only_html_is_escaped_and_an_unknown_word_is_an_error() -> None:
    assert render("page.html.jinja", {"words": "a < b"}) == "<p>a &lt; b</p>"
    assert render("page.md.jinja", {"words": "a < b."}) == "a < b."
    with pytest.raises(jinja2.UndefinedError):
        render("page.md.jinja", {})


def test_lists_of_numbers_stand_on_one_line() -> None:
    text = json_text({"confusion": [[1, 2], [3, 4]], "name": "x"})
    assert "[1, 2]" in text
    assert json.loads(text) == {"confusion": [[1, 2], [3, 4]], "name": "x"}
