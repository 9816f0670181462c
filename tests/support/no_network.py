"""Processes that cannot reach the network, and tell when they, or one that they start, try. Test material."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

KILL, TRAP = 0x80000000, 0x00030000
"""What the kernel does to a process that asks for a socket of the internet: end it, or send it SIGSYS."""

SOCKET = {"x86_64": 41, "aarch64": 198}
"""Number of the system call, by machine."""

FILTERED = sys.platform == "linux" and platform.machine() in SOCKET
NO_FILTER = "the kernel's filter is written for Linux on x86-64 and aarch64"

CI = ("CI", "TF_BUILD", "JENKINS_URL", "GITHUB_ACTIONS", "GITLAB_CI", "CIRCLECI", "BUILDKITE",
      "CODEBUILD_BUILD_ID", "BITBUCKET_BUILD_NUMBER", "ORT_RUNNING_UNIT_TESTS", "ORT_DISABLE_TELEMETRY")  # fmt: skip
"""Variables under which tools keep quiet by themselves: they would hide what a user's machine does."""

# Every Python that is started reads this first. The hook sees what Python does; SIGSYS what anything else does.
WATCH = """
import faulthandler, os, signal, sys

log = open(os.environ["NETWORK_LOG"], "a", buffering=1)

def watch(event, arguments):
    # Of the internet only: AF_UNIX stays on this machine. `fork` is how one sender hides.
    inet = event == "socket.__new__" and arguments[1] in (2, 10)
    if inet or event in ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
        print("CALLS HOME", event, arguments, file=log)
        raise RuntimeError("refused by the test")

sys.addaudithook(watch)
if hasattr(signal, "SIGSYS"):
    faulthandler.register(signal.SIGSYS, file=log, all_threads=True)
"""


def confine(action: int) -> Callable[[], None]:
    """What to call in a new process, before its program: from then on socket(AF_INET or AF_INET6) has that end.

    Processes that it starts inherit it (seccomp, `SECCOMP_MODE_FILTER`). AF_UNIX may be had: it stays here.
    """
    load, equal, give = 0x20, 0x15, 0x06
    program = [
        (load, 0, 0, 0),  # the number of the system call
        (equal, 0, 4, SOCKET[platform.machine()]),  # any other: to the last line
        (load, 0, 0, 16),  # its first argument
        (equal, 1, 0, 2),  # AF_INET
        (equal, 0, 1, 10),  # AF_INET6
        (give, 0, 0, action),
        (give, 0, 0, 0x7FFF0000),  # allow
    ]
    filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(filters)))
    libc = ctypes.CDLL(None, use_errno=True)

    def apply() -> None:
        libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        if libc.prctl(22, 2, header, 0, 0):  # PR_SET_SECCOMP
            raise OSError(ctypes.get_errno(), "the filter was refused")
        _ = filters  # which `header` points into

    return apply


def run_watched(
    call: Sequence[str], folder: Path, place: Path | None = None
) -> tuple[subprocess.CompletedProcess[str], str, list[str]]:
    """Runs a command as a user who consented to telemetry, with a home of its own in `folder`; from `place`, if one is named.

    Returns:
        How it ended; what it, or a process that it started, tried to reach (empty: nothing); and the files that
        it left in the home and in the folder of temporary files, the consent aside.
    """
    home, site, scratch = (folder / name for name in ("home", "site", "tmp"))
    for path in (home / "intel", site, scratch):
        path.mkdir(parents=True)
    (home / "intel" / "openvino_telemetry").write_text("1")
    (site / "sitecustomize.py").write_text(WATCH)
    log = folder / "network.log"
    log.touch()
    environment = {key: value for key, value in os.environ.items() if key not in CI and "XDG" not in key}
    paths = [str(site), *filter(None, [environment.get("PYTHONPATH")])]
    environment |= {"HOME": str(home), "TMPDIR": str(scratch), "NETWORK_LOG": str(log),
                    "PYTHONPATH": os.pathsep.join(paths)}  # fmt: skip
    done = subprocess.run(
        list(call), capture_output=True, text=True, check=False, env=environment, cwd=place,
        preexec_fn=confine(TRAP) if FILTERED else None,
    )  # fmt: skip
    left = [
        path.relative_to(folder).as_posix()
        for place in (home, scratch)
        for path in sorted(place.rglob("*"))
        if path.is_file() and path != home / "intel" / "openvino_telemetry"
    ]
    return done, log.read_text(), left
