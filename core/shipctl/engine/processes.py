"""The processes below another one."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from shipctl.engine.supervisor import children
from shipctl.processes import start_time

_REPLACED_S = 1.0
_POLL_S = 0.005


def descendants(pid: int) -> list[int]:
    """Return the pids of all processes below one, the nearest first."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        for child in children(waiting.pop(0)):
            found.append(child)
            waiting.append(child)
    return found


def kill_tree(pid: int) -> None:
    """Kill a process and everything below it."""
    for victim in [*reversed(descendants(pid)), pid]:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(victim, signal.SIGKILL)


def command_line(pid: int) -> str:
    """Return a process's command, "" if it is gone, "no command" if it keeps none.

    While it is being replaced (execve(2)) a process has none, so that is waited for, up to a second.
    """
    until = time.monotonic() + _REPLACED_S
    while start_time(pid) is not None:
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
            if words.strip() or time.monotonic() >= until:
                return words.decode(errors="replace").strip() or "no command"
        time.sleep(_POLL_S)
    return ""
