"""A report's words as text: HTML and Markdown from templates, and JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ptsr_edge.core.errors import require
from ptsr_edge.report.tables_ import markdown, pipe_table

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, words: dict[str, Any]) -> str:
    """A template filled in; in HTML all that is filled in is escaped.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    jinja2 = require("jinja2", "report", "writing a report")
    page = template.endswith(".html.jinja")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=page,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "markdown": markdown,
        "unbroken": _unbroken,
        "sentence": _sentence,
        "exact": _exact,
    }
    environment.globals["table_lines"] = pipe_table
    return str(environment.get_template(template).render(words))


def _sentence(text: str) -> str:
    first = text[:1].upper() if text[1:2].islower() else text[:1]
    return f"{first}{text[1:].removesuffix('.')}."


def _exact(number: float) -> str:
    """The number behind a cell, as it is recorded."""
    return f"{number:,}" if isinstance(number, int) else f"{number:.6g}"


def _unbroken(text: str) -> str:
    """Keeps numbers with their units and intervals on one line."""
    text = re.sub(r"(?<=\d) (?=(ms|%)(\W|$))", "\u00a0", text)
    text = re.sub(r"(?<=x) (?=\[)|(?<=\[\d\.\d,) ", "\u00a0", text)
    text = re.sub(r"(?<=n) = (?=\d)", "\u00a0=\u00a0", text)
    return text.replace("full-token", "full\u2011token")


def json_text(record: dict[str, Any]) -> str:
    """Indented JSON, with each innermost list of numbers on one line."""
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    return (
        re.sub(r"\[\n\s*((?:[\d.e+-]+,\s+)*[\d.e+-]+)\n\s*\]", lambda m: f"[{' '.join(m[1].split())}]", text)
        + "\n"
    )
