"""Watch over one door: run as a script with only the standard library, ``python -I -S supervisor.py CONFIG.json``.

It starts Envoy and the servers behind it again when they die, rotates the access log, and is the watchdog: when the
lease has run out while a candidate (or a copy of requests) still gets traffic, it takes the lease's epoch and puts
the stable-only route table in place that lies ready inside the present one.

Nothing that it watches is its child: what it starts is detached, and found again by pid, start time and boot. So it
can be killed, and another one takes its place, without anybody noticing. It ends on SIGTERM and leaves all running.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

LOOK_S = 0.2
"""Between two looks."""
STUCK_S = 0.8
"""How long the watchdog waits for the lease's lock: an owner that was stopped may hold it for ever."""
LOG_BYTES = 64 * 1024 * 1024
LOGS_KEPT = 2
FIRST_DELAY_S, LAST_DELAY_S = 0.5, 20.0
"""Between two starts of what dies again and again."""
STEADY_S = 60.0
"""What has run this long is started at once when it dies."""
WATCHDOG = "watchdog"

_asked_to_end = False


def load_launcher(path: str) -> ModuleType:
    """Return the module of the launcher script, which knows how to start and recognise processes."""
    spec = importlib.util.spec_from_file_location("launcher", path)
    assert spec is not None and spec.loader is not None  # noqa: S101, PT018  (a file of ours)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def say(message: str) -> None:
    """Write one line with the time to our log."""
    print(time.strftime("%Y-%m-%d %H:%M:%S"), message, flush=True)  # noqa: T201


def read_json(path: Path) -> Any:
    """Return what ``path`` holds; None if it is not there or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` atomically."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    with new.open("w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def allow_files(pid: int) -> None:
    """Let a process (0: ourselves and all we start) open as many files as it may; a request takes two."""
    with contextlib.suppress(OSError):
        most = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))


class Kept:
    """One process that is to run: the folder-wide names of its start order and of its state."""

    def __init__(self, launcher: ModuleType, order: Path, state: Path) -> None:
        self.launcher = launcher
        self.order = order
        self.state = state
        self.delay = 0.0
        self.not_before = 0.0
        self.started = 0.0
        self.starting: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool | None:
        """Whether the process of the state file runs; None if there is no state, so that somebody else is at it."""
        state = read_json(self.state)
        if not isinstance(state, dict):
            return None
        try:
            same_boot = state["boot_id"] == self.launcher.boot_id()
            return bool(same_boot and state["start_time"] == self.launcher.start_time(int(state["pid"])))
        except (KeyError, ValueError, TypeError):
            return None

    def look(self, now: float) -> None:
        """Start the process again if it has died, and not sooner than its last deaths allow."""
        if self.starting is not None and self.starting.poll() is None:
            return
        self.starting = None
        if self.alive is not False or now < self.not_before:
            return
        self.delay = (
            0.0 if now - self.started > STEADY_S else max(FIRST_DELAY_S, min(self.delay * 2, LAST_DELAY_S))
        )
        self.started, self.not_before = now, now + self.delay
        # Not waited for: the launcher itself waits while somebody else is at this server, and the watchdog must look.
        self.starting = subprocess.Popen(
            [sys.executable, "-I", "-S", str(self.launcher.__file__), "detached", str(self.order)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        say(f"{self.state.parent.name}/{self.state.name} has died; starting it again")


class Watchdog:
    """Puts traffic back on the stable revision when nobody holds the lease any more."""

    def __init__(self, folder: Path) -> None:
        self.routes = folder / "routes.json"
        self.lease = folder / "lease.json"
        self.lock = folder / "lease.lock"
        self._seen: tuple[int, int] | None = None
        self._stable: str | None = None

    def look(self) -> None:
        """Act if traffic is away from stable, and the lease has run out or was given back."""
        if self.unwatched() and self.expired():
            self.take()

    def unwatched(self) -> bool:
        """Whether anything but the stable revision gets traffic."""
        try:
            status = self.routes.stat()
        except OSError:
            return False
        if (identity := (status.st_ino, status.st_mtime_ns)) != self._seen:
            self._stable = None
            document = read_json(self.routes)
            try:
                memo = document["resources"][0]["metadata"]["filter_metadata"]["shipctl"]
                self._stable = None if memo["settled"] else memo["stable"]
            except (KeyError, IndexError, TypeError):
                say("the route table is damaged; it is left as it is")
            self._seen = identity
        return self._stable is not None

    def expired(self) -> bool:
        """Whether nobody holds the lease; one that cannot be read is held by nobody."""
        lease = read_json(self.lease)
        try:
            return not lease["holder"] or time.time() >= float(lease["expires"])
        except (KeyError, TypeError, ValueError):
            return True

    def take(self) -> None:
        """Take the epoch, then replace the routes. After that whoever held it is refused."""
        descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if not acquire(descriptor, STUCK_S):
                say("the holder of the lease does not let go of its lock; going on without it")
            self._seen = None
            if not (self.unwatched() and self.expired()):
                return
            lease = read_json(self.lease)
            last = int(lease.get("epoch", 0)) if isinstance(lease, dict) else 0
            holder = lease.get("holder", "") if isinstance(lease, dict) else ""
            write_json(self.lease, {"epoch": last + 1, "holder": WATCHDOG, "expires": 0.0})
            write_json(self.routes, json.loads(str(self._stable)))
            say(f"{holder or 'nobody'} holds the lease any more: all traffic is back on the stable revision")
        finally:
            os.close(descriptor)


def acquire(descriptor: int, seconds: float) -> bool:
    """Take a flock within ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        else:
            return True


def rotate(log: Path, limit: int, envoy: Kept) -> None:
    """Put a large access log aside and have Envoy open a new one (it does so on SIGUSR1)."""
    try:
        if log.stat().st_size < limit or not envoy.alive:
            return
    except OSError:
        return
    for number in range(LOGS_KEPT, 1, -1):
        older = log.with_name(f"{log.name}.{number - 1}")
        if older.exists():
            older.replace(log.with_name(f"{log.name}.{number}"))
    log.replace(log.with_name(f"{log.name}.1"))
    state = read_json(envoy.state)
    os.kill(int(state["pid"]), signal.SIGUSR1)


def main(config_file: str) -> None:
    """Look after everything until we are asked to end."""
    config = read_json(Path(config_file))
    folder = Path(config["folder"])
    launcher = load_launcher(config["launcher"])
    alone = os.open(folder / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    if not acquire(alone, 5.0):
        say("another supervisor watches over this door")
        return
    signal.signal(signal.SIGTERM, ask_to_end)
    allow_files(0)
    envoy = Kept(launcher, folder / "envoy-start.json", folder / "envoy.json")
    watchdog = Watchdog(folder)
    servers: dict[str, Kept] = {}
    say(f"watching over {folder}")
    while not _asked_to_end:
        try:
            watchdog.look()
            now = time.monotonic()
            envoy.look(now)
            wanted = read_json(folder / "keep.json") or []
            servers = {
                name: servers.get(name)
                or Kept(launcher, Path(name, "server-start.json"), Path(name, "server.json"))
                for name in wanted
            }
            for server in servers.values():
                server.look(now)
            rotate(folder / "access.jsonl", config.get("log_bytes", LOG_BYTES), envoy)
        except Exception as error:  # noqa: BLE001  (whatever it is, the next look may work, and nobody else looks)
            say(f"a look failed: {error!r}")
        time.sleep(LOOK_S)


def ask_to_end(_number: int, _frame: object) -> None:
    """End after this look."""
    global _asked_to_end  # noqa: PLW0603  (set by a signal)
    _asked_to_end = True


if __name__ == "__main__":
    main(sys.argv[1])
