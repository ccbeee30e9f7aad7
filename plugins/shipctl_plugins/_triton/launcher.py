"""Start one server process: detached (it outlives its starter) or bound (it ends when its starter does).

Run as a script with only the standard library: ``python -I -S launcher.py {detached|bound} SPEC.json [LOCK]``.
LOCK is the descriptor of the start's lock, where the starter has taken it already. The spec has ``command``,
``environ`` (variables that differ from ours; null removes one), ``log``, ``state`` (the file to write) and ``record``
(what to write beside pid, start time and boot id).

*Detached*: a grandchild in a session of its own writes the state file about itself and then becomes the
server by exec, which keeps pid and start time. So there is no moment in which the server runs and its state
is not on disk. All of that happens under a lock (``<state>.lock``) that exec gives back: whoever else wants to
start the same server meanwhile, the supervisor of a door for one, waits and then finds it running. What the last
process of that server left behind is removed first, and the start is noted in ``server.starts``.

*Bound*: this process stays as a supervisor. It kills the server's whole process group as soon as its
standard input closes or its parent changes, which is what happens when the starter dies in any way, SIGKILL
included. (A parent-death signal alone would not do: it fires when a *thread* ends, and it leaves the
processes that the server itself has started.)
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
MARK = "SHIPCTL_SERVER"
"""Environment variable that a server and everything it starts carry."""
STARTS_KEPT = 20
"""How many starts of a server are remembered."""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (where POSIX shared memory lives on Linux)
_POLL_S = 0.5
_GRACE_S = 3.0


def start_time(pid: int) -> int | None:
    """Return when ``pid`` was started, in clock ticks since boot; None when it does not run (or is a zombie).

    Field 22 of /proc/<pid>/stat, see proc(5); the command's name before it may hold spaces and brackets.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def boot_id() -> str:
    """Return the kernel's identity of this boot: a pid means nothing after the next one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def write_state(path: Path, record: dict[str, Any], pid: int) -> None:
    """Write who the server is, atomically."""
    state = {
        **record,
        "pid": pid,
        "start_time": start_time(pid),
        "boot_id": boot_id(),
        "started_at": time.time(),
    }
    new = path.with_name(f".{path.name}.{pid}")
    with new.open("w") as file:
        json.dump(state, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def environ_of(spec: dict[str, Any]) -> dict[str, str]:
    """Return the server's environment. The spec has only what differs, so that no secret of ours is on disk."""
    merged = {**os.environ, **spec["environ"]}
    return {name: value for name, value in merged.items() if value is not None}


def remove_shared_memory(prefix: str) -> None:
    """Remove the shared-memory files of a server that is gone; a killed one leaves them behind."""
    for leftover in SHARED_MEMORY.glob(f"{prefix}*") if prefix else ():
        leftover.unlink(missing_ok=True)


def kill_group(group: int) -> None:
    """Kill every process of a process group; none left is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def kill_process(pid: int) -> None:
    """Kill one process; gone already is fine."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def kill_left_over(prefix: str) -> None:
    """Kill processes that a server which died left behind; they carry its name in their environment."""
    needle = f"{MARK}={prefix}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or not prefix:
            continue
        try:
            ours = needle in (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if ours:
            kill_process(int(folder.name))


def take_lock(state: Path) -> int:
    """Wait for the lock of a server's start and return its descriptor; closing that gives it back."""
    descriptor = os.open(state.with_name(f"{state.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def is_running(state: Path) -> bool:
    """Whether the very process that a state file names runs."""
    try:
        record = json.loads(state.read_text())
        return bool(record["boot_id"] == boot_id() and record["start_time"] == start_time(record["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def starts(state: Path) -> list[float]:
    """Return when a server was started, seconds since the epoch, oldest first."""
    try:
        return [float(line) for line in state.with_suffix(".starts").read_text().split()]
    except (OSError, ValueError):
        return []


def detached(spec: dict[str, Any], lock: int | None = None) -> None:
    """Return in the starter once the server's state file is written; never return in the server."""
    state = Path(spec["state"])
    lock = take_lock(state) if lock is None else lock
    os.set_inheritable(lock, False)  # exec closes it
    if is_running(state):
        return
    kill_left_over(spec["record"].get("shm_prefix", ""))
    remove_shared_memory(spec["record"].get("shm_prefix", ""))
    history = [*starts(state)[1 - STARTS_KEPT :], time.time()]
    state.with_suffix(".starts").write_text("\n".join(map(str, history)))
    ready, told = os.pipe()
    child = os.fork()
    if child:
        os.close(told)
        with os.fdopen(ready, "rb") as pipe:
            pipe.read()
        return
    os.setsid()
    log = os.open(spec["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    write_state(state, spec["record"], os.getpid())
    # exec closes the pipe, and with that the starter's wait ends
    os.execve(spec["command"][0], spec["command"], environ_of(spec))  # noqa: S606


def bound(spec: dict[str, Any]) -> None:
    """Run the server until it ends or our starter does, then leave nothing of it."""
    starter = os.getppid()

    def die_with_supervisor() -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    with open(spec["log"], "ab") as log:  # noqa: PTH123
        server = subprocess.Popen(
            spec["command"],
            env=environ_of(spec),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_supervisor,  # noqa: PLW1509  (this process has one thread)
        )
    try:
        write_state(Path(spec["state"]), spec["record"], server.pid)
        while server.poll() is None and os.getppid() == starter:
            if select.select([0], [], [], _POLL_S)[0] and not os.read(0, 1):
                break
    finally:
        kill_group(server.pid)
        server.wait(_GRACE_S)
        remove_shared_memory(spec["record"].get("shm_prefix", ""))


if __name__ == "__main__":
    mode, spec_file, *lock_given = sys.argv[1:]
    asked = json.loads(Path(spec_file).read_text())
    if mode == "detached":
        detached(asked, *map(int, lock_given))
    else:
        bound(asked)
