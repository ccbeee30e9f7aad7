"""The way forward: what comes next while nothing has gone wrong, and what counts as having gone wrong."""

from __future__ import annotations

from collections.abc import Callable

from shipctl.release.course import course, resting, same, wanted
from shipctl.release.decision import Decision, Facts, RolloutState, held, label, there
from shipctl.release.situation import GIVEN, Situation
from shipctl.release.strategy import Strategy
from shipctl.release.target import Commit, Preflight, Prepare, ScaleDown, Shift
from shipctl.release.traffic import WHOLE, Traffic
from shipctl.stages.base import Phase
from shipctl.stages.verdicts import Outcome

DISTURBED_LIMIT = 3
"""Times per step that somebody else may have changed the traffic before the release gives way."""


def advance(strategy: Strategy, revision: str, state: RolloutState, facts: Facts) -> Decision:
    """Say the next act towards ``revision``. Phase ABORTING means: persist that, then call :func:`retreat`.

    Where several things could be said, the safe one is: a person's wish to abort, a candidate that is not ready and a
    failed measurement go before everything else, then a measurement that is due, then the way forward.

    When the stable revision loses replicas meanwhile, weights stay: the candidate looking better than a limping rival
    is no merit of it, and going back would put everything on what limps. A pass counts as inconclusive then, so the
    release pauses and, after `progressDeadline`, is given up. Only if no replica of the stable one has come back by
    then, and the candidate is whole, is going back worse than going on: it would take away the last that answers. The
    candidate then gets everything and has to hold the absolute bounds like a first release. The same goes, at once,
    where the stable one had no ready replica when the release was begun: that is likely what the release is to mend.
    What was to be shown by a test, or to be approved, is not skipped for that.
    """
    return Forward(strategy, revision, state, facts).decide()


class Forward(Situation):
    """One call of :func:`advance`: a method per phase."""

    def decide(self) -> Decision:
        """Say what comes next."""
        state = self.state
        if state.phase.is_final or state.phase is Phase.ABORTING:
            return self.say(state.reason or f"it is {state.phase}")
        trouble = self.trouble()
        if trouble is not None:
            return self.abort(trouble)
        if state.phase in GIVEN and not state.committed and self.is_committed:
            return self.committed()
        if self.due:
            return self.say(f"measuring: {self.shares}", measure=True)
        handlers: dict[Phase, Callable[[], Decision]] = {
            Phase.PENDING: self.pending,
            Phase.PREPARING: self.preparing,
            Phase.PREFLIGHT: self.preflight,
            Phase.SHIFTING: self.shifting,
            Phase.ANALYSING: self.analysing,
            Phase.PAUSED: self.asking if state.resume is Phase.SHIFTING else self.paused,
            Phase.PROMOTING: self.promoting,
            Phase.WATCHING: self.watching,
        }
        return handlers[state.phase]()

    def trouble(self) -> str | None:
        """Say why to go back at once; None if there is no reason."""
        state, seen = self.state, self.seen
        if self.facts.abort is not None:
            return f"aborted: {self.facts.abort}" if self.facts.abort else "aborted"
        expected = {self.revision} if state.committed else {self.previous}
        if self.strategy.promote:
            expected.add(self.revision)
        if seen.stable not in expected:
            mine = self.candidate if state.committed else self.stable
            return f"the stable revision is {label(seen, seen.stable)} and not {mine}: somebody else has changed it"
        if state.phase in GIVEN and self.exposed and not self.again and not self.serving:
            return f"{self.candidate} is not ready while it has traffic: {self.replicas(self.revision)}"
        return self.judged

    # -- before any traffic ---------------------------------------------------------------------------------

    def pending(self) -> Decision:
        """Begin."""
        if self.previous is None and not self.strategy.promote:
            message = f"nothing is stable yet that {self.strategy.name} could compare {self.candidate} with"
            return self.go(Phase.REJECTED, f"{message}; release a first one with canary or bluegreen")
        return self.go(Phase.PREPARING, f"starting the replicas of {self.candidate}", self.begun())

    def begun(self) -> Prepare:
        """Return the act that starts the replicas."""
        return Prepare(surge=self.strategy.surge)

    def preparing(self) -> Decision:
        """Ask golden samples while the replicas start."""
        if self.strategy.preflight and not self.again:
            return self.go(Phase.PREFLIGHT, f"asking {self.candidate} golden samples", Preflight())
        return self.await_ready(self.begin)

    def preflight(self) -> Decision:
        """Go on if the preflight passed, and all replicas are ready."""
        if not self.state.preflighted:
            found = self.facts.preflight
            if found is None:
                if self.elapsed > self.deadline:
                    return self.abort(f"the preflight was not over within {self.strategy.progressDeadline}")
                return self.do(Preflight(), f"asking {self.candidate} golden samples")
            self.verdicts = found
            worst = max(found, key=lambda item: item.outcome.badness, default=None)
            if worst is None or worst.outcome is not Outcome.PASS:
                why = f"{worst.gate}: {worst.message}" if worst is not None else "it asked nothing"
                return self.abort(f"the preflight did not pass: {why}")
            self.keep(preflighted=True)
        return self.await_ready(self.begin)

    def await_ready(self, then: Callable[[], Decision]) -> Decision:
        """Wait for all replicas of a candidate that has no traffic."""
        if self.seen.ready(self.revision):
            return then()
        state = self.replicas(self.revision)
        if self.elapsed > self.deadline:
            return self.abort(
                f"{self.candidate} was not ready within {self.strategy.progressDeadline}: {state}"
            )
        if not there(self.seen, self.revision):
            return self.do(self.begun(), f"starting the replicas of {self.candidate}")
        return self.wait(f"waiting for {self.candidate}: {state}")

    def begin(self) -> Decision:
        """Begin the first leg."""
        if self.state.weak and self.gone and self.strategy.duration is None:
            self.keep(alone=True)
            self.legs = course(self.strategy, alone=True)
        return self.enter(0)

    def enter(self, index: int) -> Decision:
        """Begin a leg: nothing moves before people have approved what they have to."""
        before, leg = self.leg, self.legs[index]
        missing = ", ".join(self.missing(index))
        if missing:
            message = f"{self.candidate} needs approval: {missing}"
            self.go(Phase.PAUSED, message, index=index, resume=Phase.SHIFTING, reason=message)
            # not 0: the run may end only when the traffic has been seen on the stable revision
            return self.wait(message, self.now)
        alike = (leg.weight, leg.exposed) == (before.weight, before.exposed)
        going_on = self.state.phase is Phase.ANALYSING and alike
        self.index = index
        if going_on and self.moved:
            return self.go(Phase.ANALYSING, f"staying: {self.shares}", index=index, disturbed=0)
        touched = self.state.touched or leg.weight > 0
        return self.go(Phase.SHIFTING, self.goal, index=index, disturbed=0, touched=touched)

    # -- traffic --------------------------------------------------------------------------------------------

    def shifting(self) -> Decision:
        """Move the traffic until it is seen where it should be."""
        leg = self.leg
        if self.moved:
            if self.again:
                return self.go(Phase.DONE, f"{self.candidate} is whole and answers everything")
            since = self.now - self.elapsed
            if self.state.committed:
                return self.go(Phase.WATCHING, f"{self.candidate} answers everything again")
            entered = min(self.now, max(self.seen.shifted or since, since))
            return self.go(Phase.ANALYSING, self.shares, entered=entered, passed=False, inconclusive=0)
        return self.await_ready(self.shift) if leg.exposed or leg.preview else self.shift()

    def shift(self) -> Decision:
        """Move the traffic, but no more of it to the candidate while the stable revision limps."""
        want = self.want
        more = want.weight(self.revision) > self.seen.traffic.weight(self.revision)
        limping = self.limping if more else None
        if self.elapsed > self.deadline:
            late = (
                f"{limping or 'the traffic did not move'} for {self.strategy.progressDeadline}: {self.goal}"
            )
            return self.rescue() or self.abort(late)
        if limping is not None:
            return self.wait(f"not shifting: {limping}")
        return self.do(Shift(traffic=want, surge=self.strategy.surge), self.goal)

    def rescue(self) -> Decision | None:
        """Give the candidate everything if nothing else is left that serves, and nobody has to be asked for that."""
        limping = self.limping
        tested = self.strategy.duration is not None or not self.strategy.promote
        if limping is None or tested or not self.gone or not self.seen.ready(self.revision):
            return None
        legs = course(self.strategy, alone=True)
        if set(legs[0].approvals) - self.facts.approved:
            return None
        self.keep(alone=True)
        self.legs, self.index = legs, 0
        message = f"{limping}; all requests go to {self.candidate}"
        return self.go(Phase.SHIFTING, message, index=0, disturbed=0, touched=True)

    def disturbed(self) -> Decision:
        """Move the traffic again that somebody else has moved: the watchdog, or a person."""
        count, want = self.state.disturbed + 1, self.want
        what = f"the traffic is {_shares(self.seen.traffic)} and not {_shares(want)}: somebody else has changed it"
        if self.seen.rescued:
            what = (
                f"the watchdog put all requests back on {self.stable}, because nobody held the lease any more"
            )
        if count > DISTURBED_LIMIT:
            return self.abort(f"{what}, the {count}th time at this step")
        return self.go(Phase.SHIFTING, f"{what}; shifting again", disturbed=count)

    # -- measuring ------------------------------------------------------------------------------------------

    def analysing(self) -> Decision:
        """Stay until the time is over and the newest measurement passed."""
        leg, options, state = self.leg, self.strategy.analysis, self.state
        if not self.moved:
            return self.disturbed()
        if leg.test:
            return self.testing()
        if options is not None and state.inconclusive > options.inconclusiveLimit:
            many = f"{state.inconclusive} measurements were inconclusive: {self.summary}"
            return self.pause(self.limping or many)
        gated = options is not None and leg.exposed and leg.passing
        if self.elapsed < leg.pause or (gated and not state.passed):
            return self.stay()
        limping = self.limping if leg.exposed and leg.weight < WHOLE else None
        return self.pause(limping) if limping is not None else self.onward()

    def onward(self) -> Decision:
        """Leave a leg behind."""
        if self.index + 1 < len(self.legs):
            return self.enter(self.index + 1)
        if self.leg.weight == WHOLE:
            return self.go(Phase.PROMOTING, f"making {self.candidate} the stable revision")
        return self.go(Phase.WATCHING, f"{self.stable} keeps serving")

    def stay(self) -> Decision:
        """Say what is waited for."""
        left = self.leg.pause - self.elapsed
        instants = [self.now + left] if left > 0 else []
        if self.strategy.analysis is not None and self.exposed:
            instants.append(self.next_measurement(self.strategy.analysis))
        if self.measurement is not None:
            return self.wait(f"{self.shares}: {self.summary}", *instants)
        rest = f"for another {left:.0f} s" if left > 0 else "until a measurement passes"
        return self.wait(f"{self.shares}, {rest}", *instants)

    def testing(self) -> Decision:
        """Wait for the verdict of a test: what is not shown by its end has not been shown."""
        measurement, name = self.measurement, self.strategy.name
        if measurement is not None and measurement.conclusive and self.limping is None:
            if self.outcome is Outcome.PASS:
                decision = self.onward()
                return decision.model_copy(
                    update={"message": f"{name} passed: {self.summary}; {decision.message}"}
                )
            if self.outcome is not Outcome.ERROR:
                return self.abort(f"{name} did not pass: {self.summary}")
        if self.elapsed < self.leg.pause:
            return self.stay()
        if measurement is None and self.strategy.analysis is not None:
            return self.say(f"the time is over, measuring once more: {self.shares}", measure=True)
        why = f": {self.summary}" if measurement is not None else ""
        return self.abort(f"{name} came to no verdict within {self.strategy.duration}{why}")

    def pause(self, reason: str) -> Decision:
        """Stay where the traffic is until something can be concluded; the time of the leg goes on."""
        self.keep(phase=Phase.PAUSED, paused=self.now, resume=Phase.ANALYSING, reason=reason)
        return self.wait(f"paused at {self.leg.weight} %: {reason}")

    def paused(self) -> Decision:
        """Go on once a measurement passes, and the stable revision is whole."""
        if not self.moved:
            return self.disturbed()
        gated = self.strategy.analysis is not None and self.leg.exposed
        if self.limping is None and (self.state.passed or not gated):
            self.keep(phase=Phase.ANALYSING, paused=None, resume=None, reason="", inconclusive=0)
            return self.say(f"going on: {self.shares}")
        since = self.now if self.state.paused is None else self.state.paused
        if self.now - since > self.deadline:
            reason = f"{self.state.reason}; it paused for {self.strategy.progressDeadline}"
            return self.rescue() or self.abort(reason)
        return self.wait(f"paused at {self.leg.weight} %: {self.state.reason}")

    def asking(self) -> Decision:
        """Wait for people, with nothing at stake: nobody drives, so there is no deadline that somebody could keep."""
        asked = ", ".join(self.missing(self.index))
        if not asked:
            return self.enter(self.index)
        ready = self.seen.ready(self.revision)
        rest = resting(self.strategy, self.revision, self.previous, ready=ready)
        if not same(self.seen.traffic, rest):
            if self.elapsed > self.deadline:
                return self.abort(f"the traffic did not go back to {self.stable} for the approval of {asked}")
            return self.do(
                Shift(traffic=rest, surge=self.strategy.surge),
                f"all requests go to {self.stable} until this is approved: {asked}",
            )
        message = f"{self.candidate} waits for approval: {asked}; {self.stable} answers everything meanwhile"
        said = self.say(f"{message}; `shipctl approve`, then apply again")
        return said.model_copy(update={"asks": asked})

    # -- promotion ------------------------------------------------------------------------------------------

    def promoting(self) -> Decision:
        """Make the candidate the stable revision."""
        if not self.moved:
            return self.disturbed()
        if self.elapsed > self.deadline:
            within = self.strategy.progressDeadline
            return self.abort(f"{self.candidate} did not become the stable revision within {within}")
        action = Commit(expected=self.previous, revision=self.revision)
        return self.do(action, f"making {self.candidate} the stable revision")

    def committed(self) -> Decision:
        """Watch what was promoted; after a first release there is nothing to go back to."""
        if self.previous is None:
            return self.go(Phase.DONE, f"{self.candidate} answers everything", committed=True)
        message = f"{self.candidate} is the stable revision; {self.stable} {self.warm(self.previous)}"
        index = len(self.legs) - 1
        return self.go(Phase.WATCHING, message, committed=True, touched=True, index=index, disturbed=0)

    def warm(self, revision: str | None) -> str:
        """Say how a revision is kept that may have to come back."""
        return "stays warm" if there(self.seen, revision) else "can be brought back"

    def watching(self) -> Decision:
        """Keep the one that lost for a while, then stop it: after a promotion the old one, else the candidate."""
        winner, loser, delay = self.revision, self.previous, float(self.strategy.scaleDownDelay)
        if not self.state.committed:
            winner, loser = self.previous or self.revision, self.revision
            delay = float(self.strategy.abortScaleDownDelay)
        first, second = label(self.seen, winner), label(self.seen, loser)
        before = wanted(self.strategy, self.leg, self.revision, self.previous)
        late = self.elapsed > delay + self.deadline
        if not self.moved and same(self.seen.traffic, before):
            if late:
                return self.abort(
                    f"requests could still fall back on {second}, for {self.strategy.progressDeadline}"
                )
            return self.do(
                Shift(traffic=self.want, surge=self.strategy.surge),
                f"requests fall back on {first} from now on",
            )
        if not self.moved:
            return self.disturbed()
        kept, left = held(self.strategy, self.seen, loser), delay - self.elapsed
        if left > 0 and kept:
            rest = self.warm(loser)
            return self.wait(f"watching {first} for another {left:.0f} s; {second} {rest}", self.now + left)
        if kept and loser is not None and not late:
            return self.do(ScaleDown(revision=loser), f"stopping {second}")
        how = "answers everything" if self.state.committed else f"keeps serving; {self.strategy.name} passed"
        rest = f"; {second} could not be stopped" if kept else ""
        return self.go(Phase.DONE, f"{first} {how}{rest}")


def _shares(traffic: Traffic) -> str:
    shares = [f"{weight} % {name[:12]}" for name, weight in sorted(traffic.weights.items()) if weight]
    return " and ".join(shares) or "none"
