"""Stands between shipctl and a worker so that nothing the worker starts outlives either of them.

Run as a script without site packages, to start in milliseconds::

    python -I -S supervisor.py LIFELINE_FD REPORT_FD -- COMMAND…

It becomes the reaper of all descendants (prctl PR_SET_CHILD_SUBREAPER, Linux), starts the worker in a
session of its own, and waits for the first of: the lifeline pipe closing (shipctl is gone, or wants it
over) and the worker's end. Then it kills every descendant, writes the worker's wait status to the report
pipe and exits.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def prctl(option: int, value: int) -> None:
    """Set a property of this process, on Linux (see the manual page of the system call); elsewhere, do nothing."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def children(pid: int) -> list[int]:
    """Return the direct children of a process (from /proc; none where there is no /proc)."""
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):  # noqa: PTH208  (pathlib would double the time to start)
            if name.isdigit():
                with (
                    contextlib.suppress(OSError, IndexError, ValueError),
                    open(f"/proc/{name}/stat", "rb") as stream,  # noqa: PTH123
                ):
                    if int(stream.read().rpartition(b")")[2].split()[1]) == pid:
                        found.append(int(name))
    return found


def kill_everything() -> None:
    """Kill all descendants, again and again until none is left: orphans become our children."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        left = children(os.getpid())
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                if not left:
                    return
                break
            if not pid:
                break
        time.sleep(0.002)


def start(command: list[str], ours: list[int]) -> int:
    """Fork and run the worker in a session of its own, without the file descriptors ``ours``; return its pid."""
    mother = os.getpid()
    worker = os.fork()
    if worker:
        return worker
    os.setsid()
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != mother:
        os._exit(1)
    signal.set_wakeup_fd(-1)
    for restored in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(restored, signal.SIG_DFL)
    for descriptor in ours:
        os.close(descriptor)
    try:
        os.execv(command[0], command)  # noqa: S606  (no shell is wanted)
    except OSError as exc:
        os.write(2, f"cannot start {command[0]}: {exc}\n".encode())
        os._exit(127)


def let_go(ours: list[int]) -> None:
    """Close the worker's pipes on this side, so that its end is seen on the other."""
    for descriptor in range(3, 64):
        if descriptor not in ours:
            with contextlib.suppress(OSError):
                os.close(descriptor)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)


def reap(worker: int) -> int | None:
    """Take the status of every child that has ended; return the worker's if it is among them."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        if pid == worker:
            return status
        if not pid:
            return None


def main() -> int:
    """Start the command behind ``--`` and see it through."""
    lifeline, report = int(sys.argv[1]), int(sys.argv[2])
    command = sys.argv[sys.argv.index("--") + 1 :]
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    wake, notify = os.pipe()
    for descriptor in (wake, notify):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(notify, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    ours = [lifeline, report, wake, notify]
    worker = start(command, ours)
    let_go(ours)
    status = None
    while status is None:
        ready, _, _ = select.select([lifeline, wake], [], [])
        if lifeline in ready:
            break
        with contextlib.suppress(BlockingIOError):
            os.read(wake, 512)
        status = reap(worker)
    kill_everything()
    with contextlib.suppress(OSError):
        os.write(report, f"{'' if status is None else status}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
