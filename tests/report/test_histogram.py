"""The histogram of DTSM's dynamic counts."""

from __future__ import annotations

from pathlib import Path

from judged_data import judged_profile
from report_data import make_profile

from ptsr_edge.report.comparison import compare, read_sources
from ptsr_edge.report.cost_charts import dynamic
from ptsr_edge.report.recommendation import decide


def test_bars_hold_every_sample_and_lines_their_shares(tmp_path: Path) -> None:
    judged_profile(tmp_path, worse={1.0: 0.0, 0.5: 0.0, 0.25: 0.0})
    comparison = compare(read_sources([tmp_path]))
    picture = dynamic(comparison, decide(comparison))
    assert picture.wide is not None
    assert picture.narrow is not None
    # 196 tokens over at most 40 bars: 5 tokens a bar, from 1.
    for tip in ("36 to 40 tokens: 5 samples", "56 to 60 tokens: 10 samples", "96 to 100 tokens: 4 samples"):
        assert f"<title>{tip}</title>" in picture.wide
    assert "25 % (49 tokens) truncates 75 %" in picture.wide
    assert "25 % truncates 75 %; 50 % truncates 5 %; 100 % truncates 0 %" in picture.words
    assert "20 calibration samples" in picture.caption


def test_without_counts_it_says_so(tmp_path: Path) -> None:
    make_profile(tmp_path, kept=False)
    comparison = compare(read_sources([tmp_path]))
    picture = dynamic(comparison, decide(comparison))
    assert picture.wide is None
    assert picture.note.startswith("Not drawn:")
