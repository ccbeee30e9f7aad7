"""What really ran, in a file that outlives the process, and SIGKILL at a chosen point.

``SHIPCTL_TEST_TRACE`` names the file. ``SHIPCTL_TEST_KILL`` names one point, such as ``inside a`` or
``hook stage_finished a``, or ``*`` for the first at which nobody was killed yet; shipctl's main process is
killed when it is reached.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from shipctl import events, hookimpl
from shipctl.engine.processes import command_line


def trace(line: str) -> None:
    """Append a line, in one write."""
    if place := os.environ.get("SHIPCTL_TEST_TRACE"):
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(descriptor, f"{line}\n".encode())
        os.close(descriptor)


def kill_point(name: str) -> None:
    """Kill shipctl's main process if this is the chosen point."""
    chosen = os.environ.get("SHIPCTL_TEST_KILL")
    if chosen == name or (chosen == "*" and f"KILL {name}" not in _traced()):
        trace(f"KILL {name}")
        os.kill(_main_process(), signal.SIGKILL)
        time.sleep(60)  # in a worker, until its supervisor notices


def _traced() -> list[str]:
    place = Path(os.environ["SHIPCTL_TEST_TRACE"])
    return place.read_text().splitlines() if place.exists() else []


def _main_process() -> int:
    pid = os.getpid()
    if "shipctl.engine.worker" not in command_line(pid):
        return pid
    supervisor = Path(f"/proc/{os.getppid()}/stat").read_bytes()
    return int(supervisor.rpartition(b")")[2].split()[1])


class TraceHook:
    """Traces stages that begin and end, and steps of releases."""

    @hookimpl
    def shipctl_stage_started(self, event: events.StageStarted) -> None:
        kill_point(f"hook stage_started {event.node}")

    @hookimpl
    def shipctl_stage_finished(self, event: events.StageFinished) -> None:
        if event.status in {"done", "cached", "in-place"}:
            trace(f"finished {event.node}")
        kill_point(f"hook stage_finished {event.node}")

    @hookimpl
    def shipctl_release_stepped(self, event: events.ReleaseStepped) -> None:
        trace(f"stepped {event.phase}")
        kill_point(f"hook release_stepped {event.phase}")
