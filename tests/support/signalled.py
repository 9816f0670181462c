"""A verb in a process of its own that is sent a real signal while it works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

LIMIT_S = 120.0


@dataclass(frozen=True)
class Ended:
    """How the process ended: `line` is the last one on stderr, `left` what remains in its folder of temporary files."""

    code: int
    stdout: str
    line: str
    left: list[str]


def signalled(
    *arguments: object, after: str, number: signal.Signals, folder: Path, appears: str | None = None
) -> Ended:
    """Runs a verb with `--verbose` in `folder` until a line that begins with `after`, and sends it a signal.

    `appears` is a pattern of files in `folder`, of which one is waited for as well.

    SIGINT goes to the whole group of processes, as a terminal's Ctrl-C does; SIGTERM to the verb alone.

    Raises:
        AssertionError: it ended before, or a process of its group is left when it has ended.
    """
    scratch = folder / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "ptsr_edge", *map(str, arguments), "--verbose"],
        cwd=folder, env=os.environ | {"TMPDIR": str(scratch)}, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # A suite in the background of a shell has SIGINT ignored, and would hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith(after):
            break
    else:
        raise AssertionError(f"it ended with {process.wait()} before {after!r}:\n{''.join(said)}")
    until = time.monotonic() + LIMIT_S
    while appears is not None and not list(folder.glob(appears)):
        assert time.monotonic() < until, f"no {appears} has appeared"
        time.sleep(0.05)
    if number is signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    stdout, rest = process.communicate(timeout=LIMIT_S)
    until = time.monotonic() + 10
    while _lives(process.pid):
        assert time.monotonic() < until, "a process that it started is left"
        time.sleep(0.05)
    lines = [line for line in rest.splitlines() if line.startswith("python -m ptsr_edge")]
    assert len(lines) == 1, f"one line should say how it ended:\n{rest}"
    assert "Traceback" not in rest
    return Ended(process.returncode, stdout, lines[0], sorted(path.name for path in scratch.iterdir()))


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
