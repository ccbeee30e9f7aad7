"""The hooks that a plugin may implement to watch a run (pluggy; entry-point group ``shipctl.hooks``).

Hooks observe: what they return is ignored and what they raise is reported and changes nothing. Name the
entry point's object a class (made once per run, without arguments) or a module with functions marked
``@shipctl.hookimpl``.
"""

from __future__ import annotations

import pluggy

from shipctl.stages import events

hookspec = pluggy.HookspecMarker("shipctl")
hookimpl = pluggy.HookimplMarker("shipctl")


@hookspec
def shipctl_plan_ready(event: events.PlanReady) -> None:
    """Look at a plan before any of it runs."""


@hookspec
def shipctl_stage_started(event: events.StageStarted) -> None:
    """Hear that a stage begins to run."""


@hookspec
def shipctl_stage_logged(event: events.StageLogged) -> None:
    """Hear a line that a stage logged or printed."""


@hookspec
def shipctl_stage_finished(event: events.StageFinished) -> None:
    """Hear how a stage ended: done, cached, skipped, blocked, rejected by a gate, or failed."""


@hookspec
def shipctl_gate_decided(event: events.GateDecided) -> None:
    """Hear the verdict of a gate."""


@hookspec
def shipctl_release_stepped(event: events.ReleaseStepped) -> None:
    """Hear where a release stands after a step."""


@hookspec
def shipctl_run_finished(event: events.RunFinished) -> None:
    """Hear how the run ended."""
