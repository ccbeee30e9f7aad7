"""What the state machine of a release that an engine drives is told and says, and one look put together from it."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any

from pydantic import Field

from shipctl.records import Record
from shipctl.release.decision import Measurement, RolloutState, on_time
from shipctl.release.delegated import Followed
from shipctl.release.strategy import Strategy
from shipctl.stages.base import Phase
from shipctl.stages.verdicts import Verdict

_HEXADECIMAL = re.compile("[0-9a-f]{12,}")
"""A revision; other texts stand for what is none of ours."""


class Act(StrEnum):
    """What can be done with an engine; see :class:`shipctl.release.delegated.DelegatedTarget`."""

    PREFLIGHT = "preflight"
    SUBMIT = "submit"
    RESUME = "resume"
    ABORT = "abort"


class Sight(Record):
    """What is the case, as :mod:`shipctl.release.delegation` is told."""

    now: float = Field(description="Seconds since the epoch.")
    candidate: Followed = Field(description="What the engine says of the candidate.")
    home: Followed | None = Field(
        default=None, description="And of what was stable, on the way back; None where there was nothing."
    )
    preflight: tuple[Verdict, ...] | None = Field(
        default=None, description="What the preflight found, in the call after it was asked for."
    )
    measurement: Measurement | None = Field(default=None, description="A measurement that was just taken.")
    approved: frozenset[str] = Field(default=frozenset(), description="What people have approved.")
    abort: str | None = Field(default=None, description="Why somebody wants it aborted; None if nobody does.")


class Say(Record):
    """What to do next."""

    state: RolloutState = Field(description="What to remember from now on.")
    act: Act | None = Field(default=None, description="The single thing to do now.")
    message: str = Field(description="One line for a person.")
    requeue: float = Field(default=0.0, ge=0, description="Seconds until it is worth looking again.")
    measure: bool = Field(default=False, description="Whether to measure now and to ask again with that.")
    verdicts: tuple[Verdict, ...] = Field(default=(), description="What gates said.")
    asks: str = Field(default="", description="What people have to approve before it goes on.")
    taken: bool = Field(
        default=False,
        description="Whether somebody else has the engine now, and nothing may be done any more.",
    )
    stuck: bool = Field(
        default=False, description="Whether the way back takes too long, which is an error after the act."
    )


class Look:
    """One look at a release, and what is said about it."""

    def __init__(self, strategy: Strategy, revision: str, state: RolloutState, seen: Sight) -> None:
        self.strategy = strategy
        self.revision = revision
        self.sight = seen
        self.seen = seen.candidate
        self.now = seen.now
        self.state = on_time(state, seen.now)
        self.verdicts: tuple[Verdict, ...] = ()

    @property
    def previous(self) -> str | None:
        """What was stable when the release was begun."""
        return self.state.previous

    @property
    def candidate(self) -> str:
        """The candidate's name for a person."""
        replicas = self.seen.replicas
        return f"{replicas.version} ({self.revision[:12]})" if replicas is not None else self.revision[:12]

    @property
    def stable(self) -> str:
        """The name of what was stable."""
        return self.previous[:12] if self.previous is not None else "nothing"

    @property
    def elsewhere(self) -> bool:
        """Whether the engine was told of, or holds for stable, what is neither the candidate nor what was stable."""
        return self.strange is not None or self.seen.current not in {self.revision, self.previous}

    @property
    def strange(self) -> str | None:
        """A revision that the engine has, and that is neither the candidate nor what was stable."""
        seen = (self.seen.current, self.seen.stable)
        return next((name for name in seen if name not in {None, self.revision, self.previous}), None)

    @property
    def elapsed(self) -> float:
        """Seconds since the phase was entered, or since the engine last made a step."""
        return self.now - (self.now if self.state.entered is None else self.state.entered)

    @property
    def deadline(self) -> float:
        """Seconds that the engine may take for anything."""
        return float(self.strategy.progressDeadline)

    @property
    def others(self) -> str:
        """What the engine has been told by somebody else, for a person."""
        name = self.strange
        if name is None:
            return "somebody else has removed it"
        return f"somebody else has applied {name[:12] if _HEXADECIMAL.fullmatch(name) else name}"

    def keep(self, **changes: Any) -> None:
        """Remember."""
        self.state = self.state.model_copy(update=changes)

    def say(self, message: str, act: Act | None = None, requeue: float = 0.0, **more: Any) -> Say:
        """Return what is said, with what is remembered."""
        return Say(
            state=self.state, act=act, message=message, requeue=requeue, verdicts=self.verdicts, **more
        )

    def go(
        self, phase: Phase, message: str, act: Act | None = None, requeue: float = 0.0, **changes: Any
    ) -> Say:
        """Enter a phase."""
        fresh = {"phase": phase, "entered": self.now, "paused": None, "resume": None, "reason": ""}
        self.keep(**{**fresh, **changes})
        return self.say(message, act, requeue)

    def worded(self, message: str) -> str:
        """Return a message with the engine's own words behind it."""
        return f"{message}: {self.seen.message}" if self.seen.message else message
