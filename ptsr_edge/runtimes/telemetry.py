"""OpenVINO and NNCF never call home from here, whatever the user's consent file says.

Both hand their events to the package `openvino_telemetry`, and both work where it is not installed: OpenVINO
with a stub of its own, NNCF with a mock. So before either is imported, that package is made to look absent.
Importing OpenVINO alone sends an event otherwise; NNCF sends some without ever asking for consent.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, cast

from ptsr_edge.core.errors import require

SENDER = "openvino_telemetry"

_SENDING = (
    "send_event",
    "send_error",
    "send_stack_trace",
    "send_opt_in_event",
    "start_session",
    "end_session",
)


def silence() -> None:
    """Turns the telemetry off for this process.

    Where the application imported OpenVINO by itself before, what that import sent is gone; everything
    after this call is dropped.
    """
    loaded: Any = sys.modules.get(SENDER)
    if loaded is None:
        # None makes the import system raise ModuleNotFoundError for that name.
        cast(dict[str, Any], sys.modules)[SENDER] = None
        return
    for method in _SENDING:
        setattr(loaded.Telemetry, method, _drop)
    queue: Any = sys.modules.get(f"{SENDER}.utils.sender")
    if queue is not None:
        queue.TelemetrySender.send = _drop


def require_silenced(module: str, extra: str, purpose: str) -> ModuleType:
    """Imports `openvino` or `nncf` with their telemetry off; the only way in which this package does.

    Raises:
        MissingExtraError: the module is not installed; the message holds the `pip install` line.
    """
    silence()
    return require(module, extra, purpose)


def _drop(*_args: Any, **_kwargs: Any) -> None:
    """Takes an event and sends nothing."""
