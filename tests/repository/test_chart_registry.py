"""A chart is one function and one entry: a toy one, added from outside, stands in all that a report writes."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from report_data import make_profile

from ptsr_edge.report.cli import write_report
from ptsr_edge.report.comparison import Comparison
from ptsr_edge.report.plotting import Canvas, Drawing, colour
from ptsr_edge.report.recommendation import Recommendation
from ptsr_edge.report.sections import CHARTS, Chart

pytestmark = pytest.mark.slow


def toy(comparison: Comparison, _: Recommendation) -> Drawing:
    """Draws the size of each variant."""
    sizes = [row.measured.size_bytes for row in comparison.rows]

    def paint(canvas: Canvas) -> None:
        axes = canvas.axes(40, 10, 10, 40)
        canvas.tip(axes.bar(range(len(sizes)), sizes, color=colour("s1"))[0], "the first size")

    return Drawing(paint, (200, 200), "Toy caption.", "Toy words.")


@pytest.mark.parametrize("title", ["Cost", "Toys"], ids=["old section", "new section"])
def test_a_toy_chart_is_seen_in_page_markdown_and_files(
    tmp_path: Path, title: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_profile(tmp_path / "profile", samples=50)
    entry = Chart("toy", "A toy chart", toy)
    if title == "Cost":
        monkeypatch.setattr(
            "ptsr_edge.report.sections.CHARTS", [(CHARTS[0][0], [*CHARTS[0][1], entry]), *CHARTS[1:]]
        )
    else:
        monkeypatch.setattr("ptsr_edge.report.sections.CHARTS", [*CHARTS, (title, [entry])])
    out = tmp_path / "out"
    page = write_report([tmp_path / "profile"], out).page.read_text(encoding="utf-8")
    section = page[page.index(f"<h2>{title}</h2>") :]
    assert re.search(r"<h3>A toy chart</h3>\s*<figure>", section)
    assert "the first size" in section
    assert "Toy caption." in section
    markdown = (out / "report.md").read_text(encoding="utf-8")
    assert "- [A toy chart](figures/toy.svg)\n" in markdown
    ElementTree.parse(out / "figures" / "toy.svg")
    charts = {
        chart["name"]: chart["file"] for chart in json.loads((out / "report.json").read_text())["figures"]
    }
    assert charts["toy"] == "figures/toy.svg"
