"""The commands of a Markdown page, found and run as a reader would run them.

A block of shell commands is fenced as `sh` (every line is a command) or as `console` or `bash` (lines that
start with `$ ` are commands, the others are what they print). A block of `python` is run whole and by
itself: what it needs stands in it. A block right after `<!-- not run: why -->` is not run.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

_FENCE = re.compile(
    r"^(?:<!--[ ]*not[ ]run:[ ]*(?P<reason>.*?)[ ]*-->\n\n?)?"
    r"^```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^```[ ]*$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A runnable block: `line` is where its fence opens, `not_run` why it is left out (None: it is run)."""

    line: int
    language: str
    program: str
    not_run: str | None


def runnable_blocks(text: str) -> list[Block]:
    """The blocks of shell commands and of Python in a page, in order."""
    blocks = []
    for found in _FENCE.finditer(text):
        language, inside = found["language"], found["text"]
        if language in ("console", "bash"):
            inside = _typed(inside)
        elif language not in ("sh", "python"):
            continue
        if inside.strip():
            line = text.count("\n", 0, found.start("language")) + 1
            blocks.append(Block(line, language, inside, found["reason"]))
    return blocks


def _typed(text: str) -> str:
    """The commands behind `$ `, each with the lines that its backslashes continue."""
    commands = re.findall(r"^\$ ((?:.*\\\n)*.*\n)", text, re.MULTILINE)
    return "".join(commands)


def run_block(block: Block, folder: Path, environment: dict[str, str], limit_s: float) -> None:
    """Runs a block in a folder; the first command that fails ends it.

    Raises:
        AssertionError: it failed; the message has the command's output.
    """
    if block.language == "python":
        call = [sys.executable, "-c", block.program]
    else:
        call = ["bash", "-euo", "pipefail", "-c", block.program]
    # The commands of this Python's environment come first, and `python` is this Python.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    started = subprocess.Popen(
        call, cwd=folder, env=os.environ | {"PATH": path} | environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    where = f"line {block.line}"
    try:
        output, _ = started.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        # The shell's children too: they would go on, and hold the pipe open.
        os.killpg(started.pid, signal.SIGKILL)
        output, _ = started.communicate()
        where += f", stopped after {limit_s:g} s"
    code = started.returncode
    assert code == 0, f"{where}, exit code {code}:\n{block.program}\n{output}"
