"""The event log: every event of a run as one line of JSON, for machines that watch."""

from __future__ import annotations

from typing import TextIO

from shipctl.stages import events
from shipctl.stages.hookspecs import hookimpl


class EventLog:
    """Writes each event as it is defined in :mod:`shipctl.stages.events`, one line each, flushed at once."""

    def __init__(self, stream: TextIO, *, verbosity: int = 0, color: bool = False) -> None:
        """The log is complete whatever ``verbosity`` says."""
        self._stream = stream

    def close(self) -> None:
        """The stream belongs to the caller."""

    def _write(self, event: events.Event) -> None:
        self._stream.write(event.model_dump_json() + "\n")
        self._stream.flush()

    @hookimpl
    def shipctl_plan_ready(self, event: events.PlanReady) -> None:
        self._write(event)

    @hookimpl
    def shipctl_stage_started(self, event: events.StageStarted) -> None:
        self._write(event)

    @hookimpl
    def shipctl_stage_logged(self, event: events.StageLogged) -> None:
        self._write(event)

    @hookimpl
    def shipctl_stage_finished(self, event: events.StageFinished) -> None:
        self._write(event)

    @hookimpl
    def shipctl_gate_decided(self, event: events.GateDecided) -> None:
        self._write(event)

    @hookimpl
    def shipctl_release_stepped(self, event: events.ReleaseStepped) -> None:
        self._write(event)

    @hookimpl
    def shipctl_run_finished(self, event: events.RunFinished) -> None:
        self._write(event)
