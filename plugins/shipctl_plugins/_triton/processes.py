"""Which server process is which: its record on disk, its ports, and what it leaves behind when it is killed."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from shipctl_plugins._triton import launcher
from shipctl_plugins._triton.api import LOOPBACK

MARK = launcher.MARK
kill_left_over = launcher.kill_left_over
_POLL_S = 0.02
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_EPHEMERAL_DEFAULT = 32768
SERVER_PORTS = 12000
"""So many ports below those of outgoing connections are for servers; doors, which come back to theirs, take others."""
_FIRST_PORT = 10000


def is_free(port: int) -> bool:
    """Whether a server could listen on a port of loopback just now."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        try:
            trial.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_ports(count: int, avoid: Collection[int] = ()) -> list[int]:
    """Return ports of loopback that are free just now, none of them in ``avoid``.

    They lie below those that the kernel gives to connections: a server binds them only seconds later, when its
    models are loaded, and under load one of the many connections of a client would have taken it meanwhile.
    """
    start = _EPHEMERAL_DEFAULT
    with contextlib.suppress(OSError, ValueError):
        start = int(_EPHEMERAL.read_text().split()[0])
    lowest = max(start - SERVER_PORTS, _FIRST_PORT)
    numbers: list[int] = []
    choices = iter(random.sample(range(lowest, start), k=start - lowest) if start > lowest else ())
    while len(numbers) < count:
        port = next(choices, None) or _any_port()
        if port not in avoid and port not in numbers and is_free(port):
            numbers.append(port)
    return numbers


def _any_port() -> int:
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        return int(free.getsockname()[1])


@dataclass(frozen=True)
class Ports:
    """The three ports of a server; 0 means that a free one is chosen."""

    http: int = 0
    grpc: int = 0
    metrics: int = 0

    def chosen(self) -> Ports:
        """Return these with every 0 replaced by a port that is free just now."""
        free = iter(free_ports(3, {self.http, self.grpc, self.metrics}))
        return Ports(*(wanted or next(free) for wanted in (self.http, self.grpc, self.metrics)))


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
