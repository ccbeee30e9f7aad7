"""Targets with an engine of their own, such as Argo Rollouts: shipctl hands over, follows, and can abort.

The engine moves the traffic and judges it by its own rules. What shipctl promises elsewhere and such an engine does
not keep (whose lease it is, the watchdog, failover to stable only, the comparison by a confidence sequence, …) a
target names in :meth:`DelegatedTarget.not_enforced`, and the plan lists it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from enum import StrEnum
from typing import ClassVar

from pydantic import Field

from shipctl.records import Record
from shipctl.release.strategy import Strategy
from shipctl.release.target import Applied, Candidate, ReleaseTarget, Replicas


class Standing(StrEnum):
    """How a revision stands with the engine, in Argo Rollouts' terms."""

    ABSENT = "absent"
    """The engine does not know of it."""
    PROGRESSING = "progressing"
    PAUSED = "paused"
    """It waits, for a person or for a metric that was inconclusive."""
    HEALTHY = "healthy"
    """It answers everything, and all its replicas are ready."""
    DEGRADED = "degraded"
    """The engine has given it up."""


class Followed(Record):
    """What the engine says of one revision at one moment."""

    standing: Standing = Field(description="How it stands.")
    stable: str | None = Field(
        default=None, description="The revision that the engine holds for stable; None before the first."
    )
    current: str | None = Field(
        default=None,
        description="The revision that the engine was told of last, by whomever; None for nothing. What nobody of ours "
        "has told it is any other text.",
    )
    step: int = Field(
        default=0,
        ge=0,
        description="How far the engine is: which step, counted as it counts them. It only grows.",
    )
    until: float | None = Field(
        default=None,
        description="Of a pause that ends by itself: when, seconds since the epoch; None where somebody has to end it.",
    )
    weight: int = Field(
        default=0, ge=0, le=100, description="Percent of the requests that it gets, as the engine says."
    )
    replicas: Replicas | None = Field(default=None, description="Its replicas, where the engine tells.")
    message: str = Field(
        default="", description="One line for a person, in the engine's own words where it has any."
    )
    asks: str = Field(
        default="",
        description="What a person has to approve before it goes on: `promote`, or `step 2` for the pause of that "
        "index; with commas between. Only while it is paused for that.",
    )


class DelegatedTarget(ReleaseTarget):
    """One target that drives itself. Every act can be said again and does what is missing of it."""

    steps_itself: ClassVar[bool] = True
    """Whether the engine goes from step to step and judges by itself. Where it does not, shipctl measures while the
    candidate has weight, and calls :meth:`resume` at the end of each pause."""

    @classmethod
    @abstractmethod
    def not_enforced(cls, strategy: Strategy, options: object) -> Sequence[str]:
        """Return, a line each, which promises of a release with this strategy the engine does not keep."""

    @classmethod
    @abstractmethod
    def supports(cls, strategy: Strategy, options: object) -> str | None:
        """Say in one line what of the strategy the engine cannot do, and what to write instead; None if it can."""

    def diff(self, candidate: Candidate, strategy: Strategy | None = None) -> Sequence[str]:
        """Return a unified diff as :meth:`ReleaseTarget.diff` does, for a release with ``strategy``."""
        return ()

    def manifests(self, candidate: Candidate, strategy: Strategy | None = None) -> dict[str, str]:
        """Return relative path to text of what a release with ``strategy`` hands over; nothing is asked."""
        return {}

    def acquire(self, holder: str) -> int:
        """Take or renew the lease of who hands over, follows and aborts, and return its epoch, as a target does.

        It keeps no engine from going on. Without one, as here, several may drive at once, and the epoch is 0.

        :raises LockedError: if another one holds it
        """
        return 0

    def release(self, epoch: int) -> None:
        """Give the lease back; one that is somebody else's by now is left alone."""
        return

    @abstractmethod
    def preflight(self, candidate: Candidate) -> Applied:
        """Ask the candidate golden samples before it is handed over.

        :raises StageError: if it cannot be asked
        """

    @abstractmethod
    def submit(self, candidate: Candidate, strategy: Strategy) -> Applied:
        """Hand the candidate over to the engine, which begins at once. What is there already is left alone.

        From then on :meth:`follow` says that it is the current one; what the engine had given up, it begins anew.

        :raises StageError: if the engine does not take it
        """

    @abstractmethod
    def follow(self, revision: str) -> Followed:
        """Look. Reads only.

        :raises StageError: if the engine cannot be asked
        """

    @abstractmethod
    def resume(self, revision: str) -> Applied:
        """Tell the engine to go on: a person has approved what it waits for, or the pause is over.

        Where it does not wait, nothing is done.

        :raises StageError: if it cannot be told
        """

    @abstractmethod
    def abort(self, revision: str, stable: str | None) -> Applied:
        """Have the engine go back to ``stable`` (None: to nothing), and keep it there whoever applies next.

        The way back is over once :meth:`follow` says that ``stable`` is the current one and healthy, and that
        ``revision`` has no weight; until then this is said again and does what is missing.

        :raises StageError: if the engine cannot be told
        """
