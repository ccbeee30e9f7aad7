"""Whether this machine has room for a candidate beside what serves, which keeps its full capacity meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shipctl.spec.units import Size
from shipctl_plugins._triton.server import TritonServer

REPLICA_BYTES = Size("192MiB")
"""What a server with a small model needs; taken where nobody has said and none runs."""
SPARE_BYTES = Size("64MiB")
"""Disk for logs, on top of the repository."""
_PAGE = 4096
_UNLIMITED = 1 << 60
_CGROUPS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)
"""Limit, usage, and what of that usage the kernel would give back at once: of cgroup v2 and v1."""


@dataclass(frozen=True)
class Room:
    """What a surge needs, and what there is, in bytes."""

    servers: int
    """Servers that are started beside what runs, the one for the preflight included."""
    each: int
    """Memory that one of them takes."""
    memory: int
    """Memory that is available."""
    files: int
    """What is copied."""
    disk: int
    """Disk that is free."""

    @property
    def problem(self) -> str | None:
        """What there is too little of, with the numbers; None if there is enough."""
        needed = self.servers * self.each
        if needed > self.memory:
            return (
                f"the candidate needs {self.servers} × {shown(self.each)} = {shown(needed)} of memory beside what "
                f"serves ({self.servers - 1} replicas and a preflight), and {shown(self.memory)} are available; free "
                "some, lower `replicas`, or say with `memory` what one needs"
            )
        if self.files + SPARE_BYTES > self.disk:
            return (
                f"the candidate needs {shown(self.files + SPARE_BYTES)} of disk, and {shown(self.disk)} are free; "
                "free some"
            )
        return None


def room(
    folder: Path, *, servers: int, each: int | None, running: Sequence[TritonServer], files: int
) -> Room:
    """Return whether there is room for ``servers`` more; ``each`` is measured on those ``running`` if it is None."""
    measured = [memory_of(server.record.pid) for server in running]
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return Room(
        servers=servers,
        each=each or max([size for size in measured if size], default=int(REPLICA_BYTES)),
        memory=available_memory(),
        files=files,
        disk=shutil.disk_usage(there).free,
    )


def available_memory() -> int:
    """Return how many bytes processes can still have: the machine's, or what the control group leaves."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    left = int(lines["MemAvailable"].split()[0]) * 1024
    for limit_file, usage_file, reclaimable in _CGROUPS:
        with suppress(OSError, ValueError, KeyError):
            root = Path("/sys/fs/cgroup")
            limit = int((root / limit_file).read_text())
            statistics = (root / limit_file).with_name("memory.stat").read_text()
            cached = int(dict(line.split() for line in statistics.splitlines())[reclaimable])
            if limit < _UNLIMITED:
                left = min(left, max(0, limit - int((root / usage_file).read_text()) + cached))
    return left


def memory_of(session: int) -> int:
    """Return how many bytes the processes of a session keep resident; a server and its stubs are one."""
    pages = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError, ValueError):
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == session:
                pages += int(fields[21])
    return pages * _PAGE


def shown(size: int) -> str:
    """Return a size for a person."""
    return f"{size / 2**20:,.0f} MiB"
