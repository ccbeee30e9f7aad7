"""The state machine of a release that an engine drives: pure, like that in :mod:`shipctl.release.rollout`.

    pending → preflight → preparing → shifting ⇄ analysing ⇄ paused → watching → done
    aborting → rolled-back from anywhere; rejected for a first release, or where nothing was handed over.

`preparing` hands the candidate over. From `shifting` on the engine has it, and nothing is done to it but what people
have approved. `watching` is ours again: whatever the engine judged by, the bounds of the spec are asked about once the
candidate has all requests. What was said counts only once it is seen; that the candidate is handed over, or given up,
is in the state one call before the act.
"""

from __future__ import annotations

from shipctl.release.decision import POLL, SOON, Measurement, RolloutState
from shipctl.release.delegated import Standing
from shipctl.release.sight import Act, Look, Say, Sight
from shipctl.release.strategy import PauseStep, Strategy
from shipctl.release.traffic import WHOLE
from shipctl.stages.base import Phase
from shipctl.stages.verdicts import Outcome

__all__ = ["Act", "Say", "Sight", "advance", "retreat"]

HANDED = frozenset({Phase.SHIFTING, Phase.ANALYSING, Phase.PAUSED, Phase.WATCHING})
"""Phases in which the engine has the candidate."""
GIVEN_UP = "it was given up"


def advance(
    strategy: Strategy, revision: str, state: RolloutState, seen: Sight, *, steps_itself: bool = True
) -> Say:
    """Say the next act towards ``revision``. Phase ABORTING means: persist that, then call :func:`retreat`.

    What somebody else has told the engine goes before everything, then a person's wish to abort, then what the engine
    and the measurements say. ``steps_itself`` is the target's.
    """
    return Forward(strategy, revision, state, seen, steps_itself=steps_itself).decide()


def retreat(strategy: Strategy, revision: str, state: RolloutState, seen: Sight) -> Say:
    """Say the next act back, until the engine says that what was stable has everything, and keeps it.

    The first call of a state that is not ABORTING only says that it is. Where somebody else has told the engine
    something meanwhile, the release is over and the engine is left alone.
    """
    return Backward(strategy, revision, state, seen).decide()


class Forward(Look):
    """One call of :func:`advance`."""

    def __init__(
        self, strategy: Strategy, revision: str, state: RolloutState, seen: Sight, *, steps_itself: bool
    ) -> None:
        super().__init__(strategy, revision, state, seen)
        self.steps_itself = steps_itself
        self.measurement = seen.measurement if strategy.analysis is not None else None
        if self.state.phase is Phase.PENDING:
            self.keep(previous=self.seen.stable, begun=self.now, entered=self.now)
        if self.state.phase in HANDED and self.seen.step > self.state.index:
            self.keep(index=self.seen.step, entered=self.now, passed=False)
        if self.measurement is not None:
            self._count(self.measurement)

    def decide(self) -> Say:
        """Say what comes next."""
        state = self.state
        if state.phase.is_final or state.phase is Phase.ABORTING:
            return self.say(state.reason or f"it is {state.phase}")
        if state.phase in HANDED and self.elsewhere:
            rest = "it is left alone; see `shipctl status`, and end this release with `shipctl abort`"
            return self.say(f"{self.others} while {self.candidate} was released: {rest}", taken=True)
        trouble = self.trouble()
        if trouble is not None:
            return self.abort(trouble)
        if self.due:
            return self.say(f"measuring: {self.shares}", measure=True)
        if state.phase is Phase.PENDING:
            return self.pending()
        if state.phase is Phase.PREFLIGHT:
            return self.preflight()
        if state.phase is Phase.PREPARING:
            return self.go(Phase.SHIFTING, f"handing {self.candidate} over", Act.SUBMIT, SOON, index=0)
        return self.watching() if state.phase is Phase.WATCHING else self.following()

    def abort(self, reason: str) -> Say:
        """Give up."""
        return self.go(Phase.ABORTING, reason, reason=reason)

    @property
    def again(self) -> bool:
        """Whether the candidate is what is stable already."""
        return self.previous == self.revision

    @property
    def promoted(self) -> bool:
        """Whether the candidate answers everything, by the engine's word."""
        seen = self.seen
        return seen.standing is Standing.HEALTHY and seen.stable == self.revision and seen.weight == WHOLE

    @property
    def shares(self) -> str:
        """What the candidate gets, for a person."""
        return f"{self.seen.weight} % of the requests go to {self.candidate}"

    def trouble(self) -> str | None:
        """Say why to go back at once; None if there is no reason."""
        state, abort = self.state, self.sight.abort
        if abort is not None:
            return f"aborted: {abort}" if abort else "aborted"
        if state.phase not in HANDED:
            return None
        if self.seen.current != self.revision:
            back = self.others if self.seen.current is None else f"somebody else has put {self.stable} back"
            return self.worded(back)
        if state.phase is Phase.WATCHING and not self.again and self.seen.stable == self.previous:
            return self.worded(f"{self.stable} is the stable revision again, and not {self.candidate}")
        if self.seen.standing is Standing.DEGRADED:
            return self.worded(f"{self.candidate} was given up by the engine")
        return self.judged

    # -- before the engine has it ---------------------------------------------------------------------------

    def pending(self) -> Say:
        """Begin."""
        if self.strategy.preflight and not self.again:
            return self.go(Phase.PREFLIGHT, f"asking {self.candidate} golden samples", Act.PREFLIGHT)
        return self.hand_over()

    def preflight(self) -> Say:
        """Go on if the preflight passed."""
        found = self.sight.preflight
        if self.state.preflighted:
            return self.hand_over()
        if found is None:
            if self.elapsed > self.deadline:
                return self.abort(f"the preflight was not over within {self.strategy.progressDeadline}")
            return self.say(f"asking {self.candidate} golden samples", Act.PREFLIGHT, SOON)
        self.verdicts = found
        worst = max(found, key=lambda item: item.outcome.badness, default=None)
        if worst is None or worst.outcome is not Outcome.PASS:
            why = f"{worst.gate}: {worst.message}" if worst is not None else "it asked nothing"
            return self.abort(f"the preflight did not pass: {why}")
        self.keep(preflighted=True)
        return self.hand_over()

    def hand_over(self) -> Say:
        """Have it remembered that the engine may have it, before it gets it."""
        return self.go(Phase.PREPARING, f"handing {self.candidate} over", touched=True)

    # -- while the engine has it ----------------------------------------------------------------------------

    def following(self) -> Say:
        """Say what the engine does, and tell it to go on where a person has approved that."""
        if self.promoted:
            return self.promotion()
        asked = [name for name in self._asked if name not in self.sight.approved]
        if self.seen.standing is Standing.PAUSED and asked:
            return self.asking(", ".join(asked))
        if self.elapsed > self.deadline + self.longest_pause:
            within = f"{self.deadline + self.longest_pause:g} s"
            return self.abort(
                self.worded(f"the engine came no further with {self.candidate} within {within}")
            )
        if self.seen.standing is Standing.PAUSED:
            return self.pausing()
        return self.stay(Phase.SHIFTING, self.worded(self.shares))

    def pausing(self) -> Say:
        """Wait for the end of a pause, and end it where the engine does not."""
        approved, until = bool(self._asked), self.seen.until
        over = approved or (until is not None and self.now >= until and not self.steps_itself)
        if over and self.gate:
            return self.stay(Phase.ANALYSING, f"{self.shares}, until a measurement passes")
        if over:
            if self.state.resume is not None:  # somebody was waited for, and the time begins anew
                self.keep(entered=self.now, resume=None)
            self.keep(phase=Phase.SHIFTING, paused=None)
            return self.say(f"going on with {self.candidate}", Act.RESUME, SOON)
        if until is not None:
            left = f"for another {until - self.now:.0f} s" if until > self.now else "until the engine goes on"
            return self.stay(Phase.ANALYSING, self.worded(f"{self.shares}, {left}"), until)
        since = self.now if self.state.paused is None else self.state.paused
        if self.now - since > self.deadline:
            within = self.strategy.progressDeadline
            return self.abort(self.worded(f"it paused for {within} at {self.seen.weight} %"))
        self.keep(paused=since)
        return self.stay(Phase.PAUSED, self.worded(f"paused at {self.seen.weight} %"))

    def asking(self, asked: str) -> Say:
        """Wait for people. The engine holds the traffic where it is."""
        now = self.now
        self.keep(phase=Phase.PAUSED, paused=now, entered=now, resume=Phase.SHIFTING, measured=None)
        message = self.worded(f"{self.candidate} waits for approval at {self.seen.weight} %: {asked}")
        return self.say(f"{message}; `shipctl approve`, then apply again", asks=asked)

    def promotion(self) -> Say:
        """Watch what the engine has promoted."""
        if self.again:
            return self.go(Phase.DONE, f"{self.candidate} is whole and answers everything")
        message = self.worded(f"{self.candidate} answers everything")
        return self.go(Phase.WATCHING, message, committed=True, passed=False)

    def watching(self) -> Say:
        """Look at what was promoted for a while: it is done once it has stayed healthy and within its bounds."""
        left = float(self.strategy.scaleDownDelay) - self.elapsed
        held = not self.promoted or self.gate
        if left <= 0 and not held:
            return self.go(Phase.DONE, f"{self.candidate} answers everything")
        if left + self.deadline < 0:
            why = "no measurement passed" if self.promoted else "it was not healthy"
            within = f"{float(self.strategy.scaleDownDelay) + self.deadline:g} s"
            return self.abort(self.worded(f"{self.candidate} answers everything, and {why} within {within}"))
        if left <= 0:
            what = "until a measurement passes" if self.promoted else "until it is healthy again"
            return self.stay(Phase.WATCHING, self.worded(f"watching {self.candidate} {what}"))
        return self.stay(
            Phase.WATCHING, f"watching {self.candidate} for another {left:.0f} s", self.now + left
        )

    def stay(self, phase: Phase, message: str, *instants: float) -> Say:
        """Look again after a while."""
        self.keep(phase=phase, paused=self.state.paused if phase is Phase.PAUSED else None)
        soon = min((instant - self.now for instant in instants if instant > self.now), default=POLL)
        return self.say(message, requeue=max(SOON, min(POLL, soon)))

    @property
    def _asked(self) -> list[str]:
        return [name.strip() for name in self.seen.asks.split(",") if name.strip()]

    @property
    def longest_pause(self) -> float:
        """Seconds that the longest pause of the strategy lasts."""
        pauses = [step.pause.duration for step in self.strategy.steps if isinstance(step, PauseStep)]
        return max((float(pause) for pause in pauses if pause is not None), default=0.0)

    # -- measurements ---------------------------------------------------------------------------------------

    @property
    def measures(self) -> bool:
        """Whether it is ours to measure now: once promoted, or all the way where the engine judges nothing."""
        if self.strategy.analysis is None or self.again or not self.seen.weight:
            return False
        return self.state.phase is Phase.WATCHING or (self.state.phase in HANDED and not self.steps_itself)

    @property
    def gate(self) -> bool:
        """Whether it may not go on before a measurement has passed."""
        return self.measures and not self.state.passed

    @property
    def due(self) -> bool:
        """Whether it is time to measure: an interval after the last one, and after the delay of a shift."""
        options, state = self.strategy.analysis, self.state
        if options is None or self.measurement is not None or not self.measures:
            return False
        begin = (self.now if state.entered is None else state.entered) + float(options.initialDelay)
        last = begin if state.measured is None else max(begin, state.measured)
        return self.now >= last + float(options.interval)

    def _count(self, measurement: Measurement) -> None:
        outcome, state = measurement.outcome, self.state
        self.verdicts = measurement.verdicts
        self.keep(
            measured=min(measurement.until, self.now),
            analysis=measurement.analysis,
            failures=state.failures + (outcome is Outcome.FAIL),
            errors=state.errors + 1 if outcome is Outcome.ERROR else 0,
            inconclusive=state.inconclusive + (outcome is Outcome.INCONCLUSIVE),
            passed=outcome is Outcome.PASS,
        )

    @property
    def judged(self) -> str | None:
        """Why the measurements want to go back; None if they do not."""
        options, state, measurement = self.strategy.analysis, self.state, self.measurement
        if options is None:
            return None
        summary = measurement.summary if measurement is not None else "more than the analysis allows"
        if state.failures > options.failureLimit:
            many = f"{state.failures} measurements failed" if options.failureLimit else "the analysis failed"
            return f"{many}: {summary}"
        if state.errors > options.consecutiveErrorLimit:
            return f"{state.errors} measurements in a row ended in an error: {summary}"
        return None


class Backward(Look):
    """One call of :func:`retreat`."""

    def decide(self) -> Say:
        """Say what comes next."""
        state = self.state
        if state.phase.is_final:
            return self.say(f"it is {state.phase}")
        if state.phase is not Phase.ABORTING:
            if state.begun is None:
                self.keep(begun=self.now, previous=self.seen.stable)
            reason = self.sight.abort or state.reason or GIVEN_UP
            return self.go(Phase.ABORTING, reason, reason=reason)
        if not state.touched or self.previous == self.revision:
            as_before = f"{self.stable} answers everything" if self.previous is not None else "nothing serves"
            return self.go(Phase.REJECTED, f"{as_before}, as before")
        if self.elsewhere:
            return self.go(Phase.ROLLED_BACK, f"{self.others} meanwhile, and is left alone with it")
        if self._is_back:
            rest = (
                "nothing serves, as before"
                if self.previous is None
                else f"{self.stable} answers everything again"
            )
            return self.go(Phase.REJECTED if self.previous is None else Phase.ROLLED_BACK, rest)
        late = self.elapsed > self.deadline
        way = f"going back to {self.stable}" + (f" takes longer than {self.deadline:g} s" if late else "")
        return self.say(self.worded(way), Act.ABORT, POLL, stuck=late)

    @property
    def elsewhere(self) -> bool:
        """Whether somebody else has told the engine of something; that it has nothing any more is fine."""
        return self.strange is not None

    @property
    def _is_back(self) -> bool:
        if self.previous is None:
            return self.seen.standing is Standing.ABSENT and not self.seen.weight
        home = self.sight.home
        return (
            home is not None
            and home.standing is Standing.HEALTHY
            and home.stable == self.previous
            and home.current == self.previous
            and not self.seen.weight
        )
