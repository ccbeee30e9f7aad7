"""Which server process is which: its record on disk, its ports, and what it leaves behind when it is killed."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from shipctl_plugins._triton import launcher
from shipctl_plugins._triton.api import LOOPBACK

MARK = "SHIPCTL_SERVER"
"""Environment variable that a server and everything it starts carry."""
_POLL_S = 0.02


@dataclass(frozen=True)
class Ports:
    """The three ports of a server; 0 means that a free one is chosen."""

    http: int = 0
    grpc: int = 0
    metrics: int = 0

    def chosen(self) -> Ports:
        """Return these with every 0 replaced by a port that is free just now."""
        sockets = []
        try:
            numbers = []
            for wanted in (self.http, self.grpc, self.metrics):
                if wanted:
                    numbers.append(wanted)
                    continue
                free = socket.socket()
                sockets.append(free)
                free.bind((LOOPBACK, 0))
                numbers.append(int(free.getsockname()[1]))
            return Ports(*numbers)
        finally:
            for free in sockets:
                free.close()


@dataclass(frozen=True)
class ServerRecord:
    """What the state file says about a process."""

    pid: int
    start_time: int
    boot_id: str
    started_at: float
    ports: Ports
    shm_prefix: str
    log: Path

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return the record in ``path``, or None where there is none that can be read."""
        try:
            raw = json.loads(path.read_text())
            return cls(
                pid=int(raw["pid"]),
                start_time=int(raw["start_time"]),
                boot_id=str(raw["boot_id"]),
                started_at=float(raw["started_at"]),
                ports=Ports(**raw["ports"]),
                shm_prefix=str(raw["shm_prefix"]),
                log=Path(raw["log"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def alive(self) -> bool:
        """Whether that very process still runs: a reused pid differs in start time, another boot in its id."""
        return self.boot_id == launcher.boot_id() and self.start_time == launcher.start_time(self.pid)

    def ended_within(self, seconds: float) -> bool:
        """Wait up to ``seconds`` for the process to end, and say whether it has."""
        deadline = time.monotonic() + seconds
        while self.alive:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True


def kill_left_over(prefix: str) -> None:
    """Kill processes that a server which died left behind; they carry its name in their environment."""
    needle = f"{MARK}={prefix}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            ours = needle in (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if ours:
            launcher.kill_process(int(folder.name))
