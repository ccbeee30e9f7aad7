"""The processes below another one."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

from shipctl.engine.supervisor import children


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
    """Return a process's command, or "" if it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""
