"""What is the case with a release at one look, put together from its state, the target and a measurement."""

from __future__ import annotations

from typing import Any

from shipctl.release.course import Leg, course, same, wanted
from shipctl.release.decision import (
    POLL,
    SOON,
    Decision,
    Facts,
    Measurement,
    RolloutState,
    label,
    on_time,
)
from shipctl.release.strategy import AnalysisOptions, Strategy
from shipctl.release.target import Action, Shift
from shipctl.release.traffic import WHOLE, Traffic
from shipctl.stages.base import Phase
from shipctl.stages.verdicts import Outcome, Verdict

GIVEN = frozenset({Phase.SHIFTING, Phase.ANALYSING, Phase.PROMOTING, Phase.PAUSED, Phase.WATCHING})
"""Phases in which the candidate may have traffic."""


class Situation:
    """One look at a release, and what is said about it; ``state`` is what is remembered from now on."""

    def __init__(self, strategy: Strategy, revision: str, state: RolloutState, facts: Facts) -> None:
        self.strategy = strategy
        self.revision = revision
        self.facts = facts
        self.seen = facts.observation
        self.now = facts.now
        self.state = on_time(state, facts.now)
        self.measurement = facts.measurement if strategy.analysis is not None else None
        self.verdicts: tuple[Verdict, ...] = self.measurement.verdicts if self.measurement is not None else ()
        self._look_at_stable()
        self.legs = self._course()
        self.index = min(state.index, len(self.legs) - 1)  # the steps may have been edited meanwhile
        self.outcome = self._counted(self.measurement) if self.measurement is not None else None

    # -- the two revisions ----------------------------------------------------------------------------------

    @property
    def previous(self) -> str | None:
        """What was stable when the release was begun."""
        return self.state.previous

    @property
    def again(self) -> bool:
        """Whether the candidate is what is stable already, and only has to be made whole."""
        return self.previous == self.revision

    @property
    def is_committed(self) -> bool:
        """Whether the candidate has become the stable revision."""
        return self.seen.stable == self.revision and not self.again

    @property
    def exposed(self) -> bool:
        """Whether requests, or copies of them, reach the candidate at this moment."""
        mirror = self.seen.traffic.mirror
        copied = mirror is not None and mirror.candidate == self.revision
        return copied or self.seen.traffic.weight(self.revision) > 0

    @property
    def serving(self) -> bool:
        """Whether the candidate does what it should: while replicas are replaced, some of it is always starting."""
        replicas = self.seen.replicas.get(self.revision)
        if self.strategy.surge is not None and self.state.phase is Phase.SHIFTING:
            return replicas is not None and replicas.ready > 0
        return self.seen.ready(self.revision)

    @property
    def gone(self) -> bool:
        """Whether there was a stable revision, and no replica of it is ready."""
        replicas = self.seen.replicas.get(self.previous) if self.previous is not None else None
        return self.previous is not None and (replicas is None or not replicas.ready)

    @property
    def limping(self) -> str | None:
        """What the stable revision has lost since this was begun; None if nothing."""
        free = self.again or self.state.alone or self.state.weak
        if self.previous is None or free or self.seen.ready(self.previous):
            return None
        return f"{self.stable}, which is stable, limps: {self.replicas(self.previous)}"

    @property
    def lost(self) -> Traffic | None:
        """The traffic of now if it reaches a stable revision that has lost all of its replicas: they were deleted.

        Asked for again, the target makes them again. Where replicas are replaced by others, that is none of it.
        """
        stable, now = self.seen.stable, self.seen.asked or self.seen.traffic
        if (
            stable is None
            or stable in {self.revision, *self.seen.replicas}
            or self.strategy.surge is not None
        ):
            return None
        known = self.moved or same(now, Traffic.only(stable))
        return now if known and stable in now.revisions else None

    @property
    def candidate(self) -> str:
        """The candidate's name for a person."""
        return label(self.seen, self.revision)

    @property
    def stable(self) -> str:
        """The name of what was stable."""
        return label(self.seen, self.previous)

    def replicas(self, revision: str) -> str:
        """Say how many replicas of a revision are ready."""
        replicas = self.seen.replicas.get(revision)
        if replicas is None:
            return "it has no replicas"
        why = f" ({replicas.problem})" if replicas.problem else ""
        return f"{replicas.ready} of {replicas.wanted} replicas are ready{why}"

    def _look_at_stable(self) -> None:
        state, seen = self.state, self.seen
        if state.phase is Phase.PENDING:
            weak = seen.stable not in {None, self.revision} and not seen.ready(seen.stable)
            self.keep(previous=seen.stable, begun=self.now, entered=self.now, weak=weak)
        elif state.weak and seen.ready(state.previous):
            self.keep(weak=False, alone=state.alone and state.touched)
        if seen.traffic.weight(self.revision):  # somebody else may have given it that
            self.keep(touched=True)

    # -- the way --------------------------------------------------------------------------------------------

    @property
    def leg(self) -> Leg:
        """Where on the way it is."""
        return self.legs[self.index]

    @property
    def want(self) -> Traffic:
        """The traffic of this leg."""
        nobody = self.state.alone or self.state.committed
        rival = None if nobody and self.leg.weight == WHOLE else self.previous
        return wanted(self.strategy, self.leg, self.revision, rival)

    @property
    def moved(self) -> bool:
        """Whether the traffic is what this leg wants, or as near to it as replicas allow."""
        return same(self.seen.traffic if self.seen.asked is None else self.seen.asked, self.want)

    @property
    def deadline(self) -> float:
        """Seconds that anything outside may take."""
        return float(self.strategy.progressDeadline)

    @property
    def elapsed(self) -> float:
        """Seconds since the phase was entered."""
        return self.now - (self.now if self.state.entered is None else self.state.entered)

    @property
    def shares(self) -> str:
        """What the candidate gets at this moment, for a person."""
        traffic = self.seen.traffic
        if traffic.mirror is not None:
            return f"{traffic.mirror.percent:g} % of the requests are copied to {self.candidate}"
        return f"{traffic.weight(self.revision)} % of the requests go to {self.candidate}"

    @property
    def goal(self) -> str:
        """What this leg wants, for a person."""
        leg = self.leg
        if leg.weight > 0:
            return f"shifting {leg.weight} % of the requests to {self.candidate}"
        if leg.mirror is not None:
            return f"copying {leg.mirror:g} % of the requests to {self.candidate}"
        if leg.preview:
            return f"opening the preview door to {self.candidate}"
        return f"leaving all requests to {self.stable}"

    def missing(self, index: int) -> list[str]:
        """Return the approvals that a leg lacks."""
        return [name for name in self.legs[index].approvals if name not in self.facts.approved]

    def _course(self) -> tuple[Leg, ...]:
        if self.again:
            return (Leg(weight=WHOLE),)
        return course(self.strategy, first=self.previous is None, alone=self.state.alone)

    # -- measurements ---------------------------------------------------------------------------------------

    def _counted(self, measurement: Measurement) -> Outcome:
        """Count a measurement. While the stable revision limps, looking good beside it proves nothing."""
        outcome, state = measurement.outcome, self.state
        if outcome is Outcome.PASS and self.leg.weight < WHOLE and self.limping is not None:
            outcome = Outcome.INCONCLUSIVE
        self.keep(
            measured=min(measurement.until, self.now),
            analysis=measurement.analysis,
            failures=state.failures + (outcome is Outcome.FAIL),
            errors=state.errors + 1 if outcome is Outcome.ERROR else 0,
            inconclusive=state.inconclusive + (outcome is Outcome.INCONCLUSIVE),
            passed=outcome is Outcome.PASS,
        )
        return outcome

    @property
    def judged(self) -> str | None:
        """Why the analysis wants to go back; None if it does not."""
        options, state = self.strategy.analysis, self.state
        if options is None:
            return None
        if state.failures > options.failureLimit:
            many = f"{state.failures} measurements failed" if options.failureLimit else "the analysis failed"
            return f"{many}: {self.summary}"
        if state.errors > options.consecutiveErrorLimit:
            return f"{state.errors} measurements in a row ended in an error: {self.summary}"
        return None

    @property
    def summary(self) -> str:
        """What the measurement of this look says."""
        if self.measurement is None:
            return "more than the analysis allows"
        worst = max(self.measurement.verdicts, key=lambda item: item.outcome.badness, default=None)
        return self.measurement.summary or (worst.message if worst is not None else self.measurement.outcome)

    @property
    def due(self) -> bool:
        """Whether it is time to measure: an interval after the last measurement, and after the delay of a shift."""
        options, state = self.strategy.analysis, self.state
        asking = state.phase is Phase.PAUSED and state.resume is Phase.SHIFTING
        if options is None or self.measurement is not None or not self.exposed or self.again or asking:
            return False
        return state.phase in GIVEN and self.now >= self.next_measurement(options)

    def next_measurement(self, options: AnalysisOptions) -> float:
        """Return when the next measurement is due."""
        shifted, entered = self.seen.shifted, self.state.entered
        if shifted is None or shifted > self.now:
            shifted = self.now if entered is None else entered
        begin = shifted + float(options.initialDelay)
        if self.state.measured is not None:
            begin = max(begin, self.state.measured)
        return begin + float(options.interval)

    # -- what is said ---------------------------------------------------------------------------------------

    def keep(self, **changes: Any) -> None:
        """Remember."""
        self.state = self.state.model_copy(update=changes)

    def say(
        self, message: str, action: Action | None = None, requeue: float = 0.0, *, measure: bool = False
    ) -> Decision:
        """Return a decision with what is remembered."""
        return Decision(
            state=self.state, action=action, message=message, requeue=requeue, measure=measure, verdicts=self.verdicts
        )  # fmt: skip

    def do(self, action: Action, message: str) -> Decision:
        """Do something, and look soon whether it has been done."""
        return self.say(message, action, requeue=SOON)

    def wait(self, message: str, *instants: float) -> Decision:
        """Do nothing until the first of these instants at the latest, but bring back what serves if it is gone."""
        soon = min((instant - self.now for instant in instants), default=POLL)
        again = Shift(traffic=self.lost, surge=self.strategy.surge) if self.lost is not None else None
        return self.say(message, again, requeue=max(SOON, min(POLL, soon)))

    def go(self, phase: Phase, message: str, action: Action | None = None, **changes: Any) -> Decision:
        """Enter a phase."""
        fresh = {"phase": phase, "entered": self.now, "paused": None, "resume": None, "reason": ""}
        self.keep(**{**fresh, **changes})
        return self.say(message, action)

    def abort(self, reason: str) -> Decision:
        """Give up."""
        return self.go(Phase.ABORTING, reason, reason=reason)
