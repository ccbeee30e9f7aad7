"""What the state machine of a release remembers, what it is told, and what it says."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from shipctl.records import Record
from shipctl.release.strategy import Strategy
from shipctl.release.target import LEASE_SECONDS, Action, Observation
from shipctl.stages.base import Phase, ReleaseState
from shipctl.stages.verdicts import Outcome, Verdict

POLL = 1.0
"""Seconds between two looks while something outside has to happen."""
SOON = 0.2
"""Seconds until the next look after an act."""


class RolloutState(ReleaseState):
    """What a release remembers between two steps."""

    phase: Phase = Field(default=Phase.PENDING, description="Where it stands.")
    index: int = Field(default=0, ge=0, description="Which of the strategy's steps.")
    entered: float | None = Field(
        default=None,
        description="When this phase (of this step) was entered, seconds since the epoch; moved on by the time in "
        "which nobody looked.",
    )
    looked: float | None = Field(default=None, description="When was last looked.")
    begun: float | None = Field(default=None, description="When the release was begun.")
    previous: str | None = Field(
        default=None, description="What was stable when it was begun; None for nothing."
    )
    preflighted: bool = Field(default=False, description="Whether the preflight passed.")
    weak: bool = Field(
        default=False,
        description="Whether what was stable was not whole when this was begun, nor at any look since.",
    )
    alone: bool = Field(
        default=False, description="Whether the steps are skipped because nothing else is left that serves."
    )
    disturbed: int = Field(
        default=0, ge=0, description="Times at this step that somebody else had changed the traffic."
    )
    touched: bool = Field(default=False, description="Whether a request may have reached the candidate.")
    committed: bool = Field(default=False, description="Whether it was made the stable revision.")
    failures: int = Field(default=0, ge=0, description="Measurements that failed.")
    inconclusive: int = Field(
        default=0, ge=0, description="Measurements at this step that were inconclusive."
    )
    errors: int = Field(default=0, ge=0, description="Measurements in a row that ended in an error.")
    passed: bool = Field(default=False, description="Whether the newest measurement at this step passed.")
    measured: float | None = Field(
        default=None, description="Until when was measured, seconds since the epoch."
    )
    paused: float | None = Field(default=None, description="Since when it pauses; moved on like `entered`.")
    resume: Phase | None = Field(
        default=None,
        description="Where it goes on after a pause: analysing, or shifting once somebody has approved.",
    )
    reason: str = Field(default="", description="Why it pauses or goes back.")
    analysis: dict[str, Any] = Field(
        default_factory=dict, description="What the analysis remembers; never restarted within a release."
    )


class Measurement(Record):
    """What one measurement came to."""

    outcome: Outcome = Field(description="The worst of its verdicts.")
    until: float = Field(description="Until when was measured, seconds since the epoch.")
    verdicts: tuple[Verdict, ...] = Field(default=(), description="All of them.")
    summary: str = Field(default="", description="One line for a person.")
    conclusive: bool = Field(
        default=False, description="For A/B and shadow: whether the test is over, by its stopping rule."
    )
    analysis: dict[str, Any] = Field(
        default_factory=dict, description="What the analysis remembers from now on."
    )


class Facts(Record):
    """What is the case, as :func:`advance` and :func:`retreat` are told."""

    now: float = Field(description="Seconds since the epoch.")
    observation: Observation
    preflight: tuple[Verdict, ...] | None = Field(
        default=None, description="What the preflight found, in the call after it was asked for."
    )
    measurement: Measurement | None = Field(default=None, description="A measurement that was just taken.")
    approved: frozenset[str] = Field(
        default=frozenset(),
        description="What people have approved: `promote`, or `step 2` for the pause of that index.",
    )
    abort: str | None = Field(default=None, description="Why somebody wants it aborted; None if nobody does.")


class Decision(Record):
    """What to do next."""

    state: RolloutState = Field(description="What to remember from now on.")
    action: Action | None = Field(default=None, description="The one thing to do now; None for nothing.")
    message: str = Field(description="One line for a person.")
    requeue: float = Field(default=0.0, ge=0, description="Seconds until the next look.")
    measure: bool = Field(default=False, description="Whether a measurement is due before the next call.")
    verdicts: tuple[Verdict, ...] = Field(default=(), description="What gates said in this step.")
    asks: str = Field(
        default="", description="What people have to approve before it goes on, with commas between."
    )

    @property
    def phase(self) -> Phase:
        """Where the release stands."""
        return self.state.phase


def on_time(state: RolloutState, now: float) -> RolloutState:
    """Return the state with its times set right for a look at ``now``.

    A look that comes later than a lease lasts was taken by somebody who went on, or who slept: what lies between
    counts neither against a deadline nor for a pause. A clock that was set back begins anew.
    """
    gap = 0.0 if state.looked is None else max(0.0, now - state.looked - LEASE_SECONDS)

    def moved(time: float | None, by: float = 0.0) -> float | None:
        return None if time is None else min(time + by, now)

    return state.model_copy(
        update={
            "looked": now,
            "entered": moved(state.entered, gap),
            "paused": moved(state.paused, gap),
            "measured": moved(state.measured),
            "begun": moved(state.begun),
        }
    )


def label(seen: Observation, revision: str | None) -> str:
    """Return how a person is told of a revision: by its version, if the target knows it, and its digest."""
    if revision is None:
        return "nothing"
    replicas = seen.replicas.get(revision)
    return f"{replicas.version} ({revision[:12]})" if replicas is not None else revision[:12]


def held(strategy: Strategy, seen: Observation, revision: str | None) -> bool:
    """Whether a revision is still kept: with replicas, or, where these are replaced by others, without any left."""
    return there(seen, revision) or (strategy.surge is not None and revision in seen.replicas)


def there(seen: Observation, revision: str | None) -> bool:
    """Whether a revision has replicas, or should have."""
    replicas = seen.replicas.get(revision) if revision is not None else None
    return replicas is not None and (replicas.wanted > 0 or replicas.ready > 0)
