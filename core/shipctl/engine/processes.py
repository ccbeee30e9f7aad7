"""Which process is which: a pid alone may long belong to another program."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from functools import cache
from pathlib import Path

from shipctl.engine.supervisor import children


@cache
def boot_id() -> str:
    """Return the id of this boot of the machine, or "" where there is none."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def start_time(pid: int) -> str | None:
    """Return when a process started, in ticks since boot as text; None if there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] == b"Z" else fields[19].decode()


def is_alive(pid: int, started: str, boot: str) -> bool:
    """Whether the very process that was recorded still runs."""
    return boot == boot_id() and start_time(pid) == started


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
