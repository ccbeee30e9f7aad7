"""The two processes of a door: Envoy and the supervisor. Both outlive whoever starts them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipctl.errors import StageError
from shipctl_plugins._envoy import supervisor
from shipctl_plugins._envoy.access_log import FLUSH_MS
from shipctl_plugins._envoy.bootstrap import Listening
from shipctl_plugins._envoy.config import LOOPBACK
from shipctl_plugins._triton import launcher
from shipctl_plugins._triton.processes import SERVER_PORTS

if TYPE_CHECKING:
    from shipctl_plugins._envoy.proxy import DoorPorts

STOP_SECONDS = 5.0
_POLL_S = 0.02
_LINES_SHOWN = 6
_LINE_SHOWN = 500
_LOG_BYTES_KEPT = 10_000_000
_PORTS_FROM, _PORTS_ENOUGH = 15000, 500
_GOING_S = 1.0
"""How long a process that was killed may still hold its port."""


class Detached:
    """A process that is known by its state file, which the launcher writes."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def read(self) -> dict[str, Any] | None:
        """Return the state; None where there is none."""
        try:
            found = json.loads(self.state.read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    @property
    def pid(self) -> int | None:
        """Its process id, alive or not."""
        found = self.read()
        return None if found is None else int(found["pid"])

    @property
    def alive(self) -> bool:
        """Whether that very process runs: a reused pid differs in start time, another boot in its id."""
        found = self.read()
        if found is None or found.get("boot_id") != launcher.boot_id():
            return False
        return found.get("start_time") == launcher.start_time(int(found["pid"]))

    def start(self, order: Path, command: list[str], log: Path, **record: Any) -> None:
        """Start ``command``, detached, with its output in ``log``; ``order`` is kept, to start it again."""
        spec = {
            "command": command,
            "environ": {},
            "log": str(log),
            "state": str(self.state),
            "record": {"log": str(log), **record},
        }
        if log.exists() and log.stat().st_size > _LOG_BYTES_KEPT:
            log.replace(log.with_name(f"{log.name}.1"))
        self.state.unlink(missing_ok=True)
        order.write_text(json.dumps(spec))
        start = [sys.executable, "-I", "-S", launcher.__file__, "detached", str(order)]
        done = subprocess.run(
            start,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            start_new_session=True,
        )
        if not self.state.exists():
            message = f"{command[0]} could not be launched: {done.stderr.strip() or 'no reason was given'}"
            raise StageError(message)

    def stop(self) -> bool:
        """End the process, politely first, and say whether it ran."""
        ran, pid = self.alive, self.pid
        if ran and pid is not None:
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            while self.alive and time.monotonic() < deadline:
                time.sleep(_POLL_S)
            while self.alive:
                launcher.kill_process(pid)
                time.sleep(_POLL_S)
        self.state.unlink(missing_ok=True)
        return ran


class Processes:
    """What runs for one door."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.envoy = Detached(folder / "envoy.json")
        self.supervisor = Detached(folder / "supervisor.json")

    def start_envoy(self, binary: Path, *, ready: Callable[[], bool], within: float) -> None:
        """Start Envoy over the folder's bootstrap and return once it is ``ready``.

        :raises StageError: when it ends, or is not ready in time, with the end of its log
        """
        log = self.folder / "envoy.log"
        since = log.stat().st_size if log.exists() else 0
        command = [
            str(binary),
            *("--config-path", str(self.folder / "bootstrap.json")),
            *("--concurrency", str(workers())),
            *("--file-flush-interval-msec", str(FLUSH_MS)),
            *("--log-level", "warning"),
            "--log-format-escaped",  # what it says of a bad file is many lines long
            "--disable-hot-restart",
        ]
        self.envoy.start(self.folder / "envoy-start.json", command, log)
        supervisor.allow_files(self.envoy.pid or 0)
        deadline = time.monotonic() + within
        while not ready():
            alive = self.envoy.alive
            if not alive or time.monotonic() > deadline:
                self.envoy.stop()
                tail = "\n    ".join(self.envoy_said(since))
                what = "is not ready in time" if alive else "ended while starting"
                message = (
                    f"Envoy of the door {self.folder.name} {what}; its log ({log}) ends with\n    {tail}"
                )
                raise StageError(message)
            time.sleep(_POLL_S)

    def start_supervisor(self) -> bool:
        """Have a supervisor of this very version run, and say whether it had to be started."""
        source = hashlib.sha256(Path(supervisor.__file__).read_bytes()).hexdigest()
        running = self.supervisor.read() if self.supervisor.alive else None
        if running is not None and running.get("source") == source:
            return False
        self.supervisor.stop()
        settings = self.folder / "supervisor-config.json"
        settings.write_text(json.dumps({"folder": str(self.folder), "launcher": launcher.__file__}))
        command = [sys.executable, "-I", "-S", supervisor.__file__, str(settings)]
        order, log = self.folder / "supervisor-start.json", self.folder / "supervisor.log"
        self.supervisor.start(order, command, log, source=source)
        return True

    def envoy_said(self, since: int = 0, *, rejected: bool = False) -> list[str]:
        """Return the last lines of Envoy's log after byte ``since``; with ``rejected``, what it said of bad files."""
        try:
            with (self.folder / "envoy.log").open("rb") as log:
                log.seek(since)
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            lines = []
        if rejected:
            lines = [line for line in lines if "update" in line and ("reject" in line or "fail" in line)][-1:]
        return [line.strip()[-_LINE_SHOWN:] for line in lines if line.strip()][-_LINES_SHOWN:] or [
            "(nothing)"
        ]


def workers() -> int:
    """Return how many threads route: one does thousands of requests per second, and the servers need the cores."""
    return max(1, min(4, (os.cpu_count() or 1) // 4))


def choose_ports(demanded: DoorPorts, last: Listening | None, door: str) -> Listening:
    """Return where to listen: as demanded, else as last time, else on ports that are free now.

    :raises StageError: if a port is taken that was demanded, or that clients know from last time
    """
    chosen: dict[str, int] = {}
    for name, wanted in demanded.__dict__.items():
        port = wanted or (getattr(last, name) if last is not None else 0) or _free_port(chosen.values())
        deadline = time.monotonic() + _GOING_S
        while (taken := _taken(port)) is not None:
            if time.monotonic() > deadline:
                message = (
                    f"the door {door} cannot listen on {name} port {port}: {taken}; stop what does, or give the "
                    "door other ports in the spec"
                )
                raise StageError(message)
            time.sleep(_POLL_S)
        chosen[name] = port
    return Listening(**chosen)


def _free_port(but: Iterable[int]) -> int:
    """Return a port that nobody listens on, and that no outgoing connection is given while the door is down."""
    try:
        low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    except (OSError, ValueError):
        low, high = 32768, 60999
    ranges = (_PORTS_FROM, low - SERVER_PORTS), (_PORTS_FROM, low)
    start, end = next((each for each in ranges if each[1] - each[0] > _PORTS_ENOUGH), (high + 1, 65536))
    candidates = [port for port in range(start, end) if port not in set(but)]
    random.shuffle(candidates)
    for port in candidates:
        if _taken(port) is None:
            return port
    message = f"no port from {start} to {end - 1} is free for the door"
    raise StageError(message)


def _taken(port: int) -> str | None:
    """Say why a port cannot be listened on; None if it can. Connections that linger do not matter."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen()
        except OSError as error:
            return error.strerror or str(error)
    return None
