"""The way back: traffic first, then the commit if there was one, then the replicas."""

from __future__ import annotations

from shipctl.release.course import same
from shipctl.release.decision import POLL, SOON, Decision, Facts, RolloutState, held, label, on_time
from shipctl.release.strategy import Strategy
from shipctl.release.target import Action, Commit, Observation, ScaleDown, Shift
from shipctl.release.traffic import Traffic
from shipctl.stages.base import Phase

GIVEN_UP = "it was given up"


def retreat(strategy: Strategy, revision: str, state: RolloutState, facts: Facts) -> Decision:
    """Say the next act back: traffic first, then the commit if there was one, then the replicas.

    The first call of a state that is not ABORTING only says that it is, so that this is persisted before the first
    act. Traffic goes to what is stable; if the candidate is that by now, to what was stable before it, also when that
    has no ready replica: the candidate has been given up, an error is better than a wrong answer, and the target
    restarts replicas that it is to keep. Only where they have been stopped for good, after a promotion, is there no
    way back any more: the release is done then, and a rollback is what takes it back.
    """
    return Backward(strategy, revision, on_time(state, facts.now), facts).decide()


class Backward:
    """One call of :func:`retreat`."""

    def __init__(self, strategy: Strategy, revision: str, state: RolloutState, facts: Facts) -> None:
        self.strategy = strategy
        self.revision = revision
        self.seen: Observation = facts.observation
        self.facts = facts
        if state.begun is None:
            state = state.model_copy(update={"begun": facts.now, "previous": self.seen.stable})
        if self.seen.traffic.weight(revision):  # somebody else may have given it that
            state = state.model_copy(update={"touched": True})
        self.state = state
        stable = self.seen.stable
        # a target that has forgotten what is stable does not close the door
        self.home = state.previous if stable in {revision, None} else stable
        """What all traffic goes to."""

    def decide(self) -> Decision:
        """Say what comes next."""
        state, seen, revision, home = self.state, self.seen, self.revision, self.home
        if state.phase.is_final:
            return self._say(f"it is {state.phase}")
        if state.phase is not Phase.ABORTING:
            reason = self.facts.abort or state.reason or GIVEN_UP
            self.state = state.model_copy(
                update={"phase": Phase.ABORTING, "entered": self.facts.now, "reason": reason, "paused": None}
            )
            return self._say(reason)
        committed = seen.stable == revision and home != revision
        if committed and home is not None and not held(self.strategy, seen, home):
            return self._too_late()
        if not same(seen.traffic, Traffic.only(home)):
            shift = Shift(traffic=Traffic.only(home), surge=self.strategy.surge)
            return self._do(f"all requests go to {label(seen, home)}", shift)
        if committed:
            action = Commit(expected=revision, revision=home)
            return self._do(f"{label(seen, home)} is the stable revision again", action)
        return self._stop() if home != revision else self._end()

    def _stop(self) -> Decision:
        """Stop the candidate, which nothing reaches any more."""
        seen, now = self.seen, self.facts.now
        entered = now if self.state.entered is None else self.state.entered
        begin = entered if seen.shifted is None or seen.shifted > now else max(entered, seen.shifted)
        left = begin + float(self.strategy.abortScaleDownDelay) - now
        name = label(seen, self.revision)
        if not held(self.strategy, seen, self.revision):
            return self._end()
        if left > 0:
            # home's replicas may have been deleted meanwhile: asked for again, the target makes them again
            lost = self.home is not None and self.home not in seen.replicas
            again = Shift(traffic=Traffic.only(self.home), surge=self.strategy.surge) if lost else None
            return self._say(f"keeping {name} for another {left:.0f} s", again, min(POLL, left))
        if -left > float(self.strategy.progressDeadline):
            return self._end(f"; {name} could not be stopped")
        return self._do(f"stopping {name}", ScaleDown(revision=self.revision))

    def _end(self, rest: str = "") -> Decision:
        home = label(self.seen, self.home)
        if self.home is None:
            return self._final(Phase.REJECTED, f"nothing serves, as before{rest}")
        if self.home == self.revision:
            return self._final(Phase.REJECTED, f"{home} serves as before")
        if self.state.touched:
            return self._final(Phase.ROLLED_BACK, f"{home} answers everything again{rest}")
        return self._final(Phase.REJECTED, f"{home} answers everything, as before{rest}")

    def _too_late(self) -> Decision:
        only = Traffic.only(self.revision)
        if not same(self.seen.traffic, only):
            return self._do(
                f"{label(self.seen, self.revision)} answers everything",
                Shift(traffic=only, surge=self.strategy.surge),
            )
        message = (
            f"{label(self.seen, self.revision)} was promoted and {label(self.seen, self.home)} stopped before this "
            "could be aborted; `shipctl rollback` goes back"
        )
        return self._final(Phase.DONE, message)

    def _final(self, phase: Phase, message: str) -> Decision:
        self.state = self.state.model_copy(update={"phase": phase, "entered": self.facts.now})
        return self._say(message)

    def _do(self, message: str, action: Action) -> Decision:
        return self._say(message, action, requeue=SOON)

    def _say(self, message: str, action: Action | None = None, requeue: float = 0.0) -> Decision:
        return Decision(state=self.state, action=action, message=message, requeue=requeue)
