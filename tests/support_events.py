"""Events of a run, as the displays get them."""

from __future__ import annotations

from shipctl.engine.hooks import Hooks
from shipctl.stages import events
from shipctl.stages.base import Phase
from shipctl.stages.verdicts import Outcome, Verdict, compare

RUN = "20260301-120102-abcdef"
NOON = 1_772_366_462.0
"""A time; tests set TZ to UTC, where it is 12:01:02."""


def planned(*names: str) -> events.PlanReady:
    nodes = tuple(
        events.PlannedNode(node=name, stage=name, uses="light", kind="transform", action="run")
        for name in names
    )
    return events.PlanReady(run=RUN, pipeline="light", version="1.0.0", digest="0" * 64, nodes=nodes)


def started(node: str, attempt: int = 1) -> events.StageStarted:
    return events.StageStarted(run=RUN, node=node, uses="light", attempt=attempt, time=NOON)


def logged(node: str, line: str) -> events.StageLogged:
    return events.StageLogged(run=RUN, node=node, line=line)


def finished(
    node: str, status: events.Status = "done", message: str = "", metrics: dict[str, float] | None = None
) -> events.StageFinished:
    return events.StageFinished(
        run=RUN, node=node, uses="light", status=status, message=message,
        seconds=0.0 if status in {"cached", "skipped", "blocked"} else 3.2, metrics=metrics or {}, time=NOON + 3,
    )  # fmt: skip


def decided(node: str, value: float | None, bound: float = 0.97) -> events.GateDecided:
    return events.GateDecided(run=RUN, node=node, verdict=compare("accuracy", value, ">=", bound))


def inconclusive(node: str) -> events.GateDecided:
    verdict = Verdict(gate="stability", outcome=Outcome.INCONCLUSIVE, message="it did not settle")
    return events.GateDecided(run=RUN, node=node, verdict=verdict)


def stepped(node: str, phase: Phase, message: str) -> events.ReleaseStepped:
    return events.ReleaseStepped(
        run=RUN,
        node=node,
        target="local",
        revision="1" * 64,
        phase=phase,
        message=message,
        requeue=0.0,
        time=NOON + 4,
    )


def ended(exit_code: int = 0, **counts: int) -> events.RunFinished:
    return events.RunFinished(
        run=RUN,
        pipeline="light",
        exit_code=exit_code,
        message="over",
        seconds=22.1,
        counts=counts,
        time=NOON + 22,
    )


def play(display: object, *happened: events.Event) -> None:
    """Fire events at a display as the engine does, and insist that it took them all."""
    hooks = Hooks([display], installed=False)
    for event in happened:
        hooks.fire(event)
    assert hooks.problems == []
