"""Which process is which: a pid alone may long belong to another program."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path


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


def own_name() -> str:
    """Return a name that this process has to itself, which tells others on this machine whether it still runs."""
    pid = os.getpid()
    return f"{platform.node()}:{pid}:{start_time(pid) or '?'}:{boot_id()}"


def has_ended(name: str) -> bool:
    """Whether a name is of a process of this machine (:func:`own_name`) that does not run any more."""
    node, _, rest = name.partition(":")
    pid, _, started = rest.partition(":")
    started, _, boot = started.partition(":")
    if node != platform.node() or not pid.isdigit() or not started.isdigit() or not boot:
        return False  # not of this machine, or of a machine that cannot tell: it may well be there
    return not is_alive(int(pid), started, boot)
