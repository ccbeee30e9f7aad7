"""Releases on a target where anything may go wrong at any moment, and what must hold all the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import Phase as Stage
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
)

from shipctl.release import course
from shipctl.release.decision import Decision, RolloutState
from shipctl.release.rollout import advance, retreat
from shipctl.release.strategy import AnalysisOptions, Strategy
from shipctl.release.target import (
    LEASE_SECONDS,
    Commit,
    Observation,
    Preflight,
    Prepare,
    ScaleDown,
    Shift,
)
from shipctl.release.traffic import Traffic
from shipctl.spec.units import Duration
from shipctl.stages.base import Phase
from shipctl.stages.verdicts import Outcome
from support_rollout import NEW, OLD, Driven, measurement, pause, strategy, verdict, weight

ANALYSIS = AnalysisOptions(
    interval=Duration("10s"), failureLimit=1, inconclusiveLimit=1, consecutiveErrorLimit=1
)
STEPS = (pause("5s"), weight(5), pause("20s"), weight(25), weight(25), weight(60), pause(), pause("5s"))
PLANS: dict[str, Strategy] = {
    "canary": strategy(steps=STEPS, analysis=ANALYSIS),
    "unmeasured": strategy(steps=(weight(10), pause("15s")), analysis=None, preflight=False),
    "asking": strategy(steps=(weight(20), pause()), analysis=None, preflight=False),
    "bluegreen": strategy("bluegreen", preview=True, autoPromotion=False, analysis=ANALYSIS),
    "rolling": strategy("rolling", analysis=ANALYSIS, abortScaleDownDelay=Duration("20s")),
    "ab-test": strategy("ab-test", steps=(weight(50),), duration=Duration("60s"), analysis=ANALYSIS),
    "kept": strategy("shadow", mirror=20.0, duration=Duration("60s"), analysis=ANALYSIS, promote=False),
    "shadow": strategy("shadow", mirror=20.0, duration=Duration("60s"), analysis=ANALYSIS),
}
APPROVALS = frozenset({"promote", "step 1", "step 6"})
DEADLINE = 100.0
SLACK = 2 * LEASE_SECONDS + 1
LONGEST = {
    Phase.PREPARING: DEADLINE,
    Phase.PREFLIGHT: DEADLINE,
    Phase.SHIFTING: DEADLINE,
    Phase.PROMOTING: DEADLINE,
    Phase.PAUSED: DEADLINE,
    # the longest leg, and then no more measurements that decide nothing than the limits allow
    Phase.ANALYSING: 60.0 + 10 * (2 + 2) * (1 + 2),
    Phase.WATCHING: 30.0 + DEADLINE,
}
FAULTS = st.sampled_from(["none"] * 12 + ["before", "after", "killed before", "killed after"])
OUTCOMES = st.sampled_from([Outcome.PASS] * 6 + [Outcome.INCONCLUSIVE] * 2 + [Outcome.ERROR, Outcome.FAIL])


@dataclass
class Meant:
    """What a controller has decided and not done yet."""

    decision: Decision
    seen: Observation
    epoch: int
    aborting: bool


class World(Driven):
    """The target, which checks every act by what was seen when it was decided, and by what is the case."""

    def __init__(self, plan: Strategy, *, first: bool) -> None:
        super().__init__(plan, first=first)
        self.first = first
        self.epoch = 1
        self.stuck = False
        """Whether the router says that it has shifted, and has not."""
        self.reached = 0
        self.commits = {NEW: 0, OLD: 0, None: 0}
        self.served = False
        self.meddled = False
        """Whether somebody else has moved traffic."""
        self.way = sorted({0} | {leg.weight for leg in course.course(plan, first=first)})

    @property
    def home(self) -> str | None:
        return None if self.first else OLD

    def watchdog(self) -> None:
        self.epoch += 1
        if self.traffic.fallback is not None and self.traffic != Traffic.only(self.traffic.fallback):
            self.traffic, self.shifted = Traffic.only(self.traffic.fallback), self.now

    def carry_out(self, meant: Meant) -> None:
        action, seen = meant.decision.action, meant.seen
        if action is None or meant.epoch != self.epoch:
            return
        match action:
            case Shift(traffic=traffic):
                self._check_shift(traffic, seen, meant)
                self.served = self.served or traffic.weight(NEW) > 0
                if self.stuck:
                    return
            case Commit(revision=revision):
                self._check_commit(revision, seen, meant)
                if self.stable == revision:
                    return
                self.commits[revision] += 1
                assert self.commits[revision] == 1, f"a second commit of {revision}"
            case ScaleDown(revision=revision):
                assert revision != self.stable, "what is stable is stopped"
                assert revision not in seen.traffic.revisions, "what gets requests is stopped"
                other = self.home if revision == NEW else NEW
                assert seen.stable == other
                assert seen.traffic == Traffic.only(other), "replicas before traffic"
            case Prepare() | Preflight():
                assert not meant.aborting
        self.apply(action)

    def _check_shift(self, traffic: Traffic, seen: Observation, meant: Meant) -> None:
        state, share = meant.decision.state, traffic.weight(NEW)
        assert sum(traffic.weights.values()) in {100, 0}
        assert traffic.revisions <= {OLD, NEW}
        late = seen.stable == NEW and OLD not in seen.replicas  # stopped after the promotion: no way back
        if meant.aborting and not late:
            assert traffic == Traffic.only(self.home), "an abort moves traffic to stable"
            return
        if NEW in traffic.revisions and not late:
            assert seen.ready(NEW), "traffic for a version that is not ready"
        if traffic.weights:
            expected = NEW if (state.alone and share) or state.committed or self.first else OLD
            assert traffic.fallback == expected
        if share and not state.alone and seen.stable != NEW:
            assert share in self.way, "a weight that is no step"
            place = self.way.index(share)
            assert place <= self.reached + 1, f"{share} % skips a step"
            self.reached = max(self.reached, place)
            legs = course.course(self.plan, first=self.first)
            needed = {name for leg in legs[: state.index + 1] for name in leg.approvals}
            assert needed <= self.approved, "traffic without an approval"
        if share and state.alone:
            assert not self.plan.duration, "a test is not skipped"
            names = {name for leg in course.course(self.plan) for name in leg.approvals}
            assert names <= self.approved, "traffic without an approval"

    def _check_commit(self, revision: str | None, seen: Observation, meant: Meant) -> None:
        if revision == NEW:
            assert not meant.aborting
            assert self.plan.promote
            assert seen.traffic.weight(NEW) == 100, "a commit before the traffic"
            assert seen.ready(NEW)
        else:
            assert meant.aborting
            assert revision == self.home
            assert seen.traffic == Traffic.only(self.home), "a commit back before the traffic"

    def check_end(self, end: Phase, seen: Observation, *, begun: bool) -> None:
        if not begun:
            assert end is Phase.REJECTED, end
            return
        if end is Phase.DONE:
            winner = NEW if self.plan.promote else OLD
            assert seen.stable == winner
            assert seen.traffic == Traffic.only(winner)
            return
        assert seen.stable == self.home
        assert seen.traffic == Traffic.only(self.home)
        if self.first:
            assert end is Phase.REJECTED
        elif self.served:
            assert end is Phase.ROLLED_BACK, "requests may have reached it"
        elif not self.meddled:
            assert end in {Phase.REJECTED, Phase.ROLLED_BACK}


class Releasing(RuleBasedStateMachine):
    """One release, driven by whoever comes along."""

    @initialize(name=st.sampled_from(sorted(PLANS)), first=st.sampled_from([False, False, False, True]))
    def begin(self, name: str, first: bool) -> None:
        self.start(name, first=first)

    def start(self, name: str, *, first: bool) -> None:
        self.world = World(PLANS[name], first=first)
        self.saved = RolloutState()
        self.aborting = False
        """What the engine has persisted beside the state."""
        self.version = 0
        self.suspended: tuple[Meant, int] | None = None
        self.over: Phase | None = None
        self.last_look: float | None = None
        self.place: tuple[Any, ...] = ()
        self.spent = 0.0

    # -- driving --------------------------------------------------------------------------------------------

    def think(
        self, outcome: Outcome, *, conclusive: bool = False, preflight: Outcome = Outcome.PASS
    ) -> Meant:
        world, seen = self.world, self.world.observe()
        facts = world.facts()
        if self.aborting:
            decided = retreat(world.plan, NEW, self.saved, facts)
        else:
            decided = advance(world.plan, NEW, self.saved, facts)
            if decided.measure:
                assert decided.action is None
                taken = measurement(outcome, world.now, conclusive=conclusive)
                changed = facts.model_copy(update={"measurement": taken})
                decided = advance(world.plan, NEW, decided.state, changed)
                assert not decided.measure
            if isinstance(decided.action, Preflight):
                changed = facts.model_copy(update={"preflight": (verdict(preflight),)})
                decided = advance(world.plan, NEW, decided.state, changed).model_copy(update={"action": None})
        self.check_decision(decided, seen)
        return Meant(decided, seen, world.epoch, self.aborting)

    def check_decision(self, decided: Decision, seen: Observation) -> None:
        state = decided.state
        if self.aborting:
            assert state.phase in {Phase.ABORTING, Phase.ROLLED_BACK, Phase.REJECTED, Phase.DONE}
        given = {Phase.SHIFTING, Phase.ANALYSING, Phase.PROMOTING, Phase.PAUSED, Phase.WATCHING}
        if self.saved.phase in given and seen.traffic.weight(NEW) and not seen.ready(NEW):
            assert state.phase in {Phase.ABORTING, Phase.DONE} or self.aborting, (
                "an unready candidate is kept"
            )
        if state.phase is Phase.PAUSED and state.resume is Phase.SHIFTING and decided.requeue == 0:
            assert seen.traffic.weight(NEW) == 0, "nobody drives while requests reach the candidate"
        if (
            state.phase is not Phase.PAUSED
            and not state.phase.is_final
            and decided.action is None
            and state == self.saved
        ):
            assert decided.requeue > 0, "a busy loop"
        if state.phase.is_final:
            self.world.check_end(
                state.phase, seen, begun=self.saved.phase is not Phase.PENDING or self.aborting
            )

    def save(self, meant: Meant) -> None:
        state = RolloutState.model_validate(meant.decision.state.model_dump(mode="json"))
        self.saved = state
        self.version += 1
        self.aborting = self.aborting or state.phase is Phase.ABORTING
        if state.phase.is_final:
            self.over = state.phase
        self.check_time(state)

    def check_time(self, state: RolloutState) -> None:
        """Nobody stays anywhere for longer than the deadlines say, counted while somebody looks."""
        place = (state.phase, state.index, state.disturbed, state.committed, state.alone, state.resume)
        gap = 0.0 if self.last_look is None else self.world.now - self.last_look
        self.last_look = self.world.now
        if place != self.place or gap < 0:
            self.place, self.spent = place, 0.0
            return
        self.spent += min(gap, LEASE_SECONDS)
        waits = state.phase is Phase.PAUSED and state.resume is Phase.SHIFTING
        if state.phase in LONGEST and not waits:
            assert self.spent <= LONGEST[state.phase] + SLACK, f"{self.spent:g} s at {place}"

    def going(self) -> bool:
        return getattr(self, "over", Phase.DONE) is None

    @precondition(going)
    @rule(
        fault=FAULTS,
        outcome=OUTCOMES,
        conclusive=st.booleans(),
        preflight=st.sampled_from([Outcome.PASS] * 9 + [Outcome.FAIL]),
    )
    def look(self, fault: str, outcome: Outcome, conclusive: bool, preflight: Outcome) -> None:
        meant = self.think(outcome, conclusive=conclusive, preflight=preflight)
        if fault in {"none", "after", "killed after"}:
            self.world.carry_out(meant)
        if fault == "none":
            self.save(meant)
            self.world.now += meant.decision.requeue
        elif fault in {"before", "after"} and meant.decision.action is not None:
            self.aborting = True  # the act raised: the engine goes back, with the state of before
            self.version += 1

    @precondition(going)
    @rule(looks=st.sampled_from([3, 30, 200]), outcome=st.sampled_from([*Outcome, Outcome.PASS]))
    def go_on(self, looks: int, outcome: Outcome) -> None:
        for _ in range(looks):
            if self.going():
                self.look("none", outcome, conclusive=True, preflight=Outcome.PASS)

    @precondition(going)
    @rule(outcome=OUTCOMES)
    def suspend(self, outcome: Outcome) -> None:
        """A controller falls asleep between deciding and acting."""
        self.suspended = (self.think(outcome), self.version)

    @precondition(lambda self: self.going() and self.suspended is not None)
    @rule()
    def wake(self) -> None:
        """It acts if nobody has taken over, on what it saw then; else it is refused, and so is its record."""
        assert self.suspended is not None
        meant, version = self.suspended
        self.suspended = None
        if meant.epoch != self.world.epoch or version != self.version:
            before = (self.world.traffic, self.world.stable, self.world.replicas)
            stale = Meant(meant.decision, meant.seen, self.world.epoch - 1, meant.aborting)
            self.world.carry_out(stale)
            assert (self.world.traffic, self.world.stable, self.world.replicas) == before
            return
        fresh = self.world.observe()
        if (fresh.traffic, fresh.stable, fresh.replicas) == (
            meant.seen.traffic,
            meant.seen.stable,
            meant.seen.replicas,
        ):
            self.world.carry_out(meant)
            self.save(meant)

    # -- what may happen ------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.5, 3.0, 10.0, 14.0, 40.0, 120.0, 90000.0, -5.0, -3600.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds

    @precondition(lambda self: NEW in self.world.replicas)
    @rule(ready=st.sampled_from([0, 1]))
    def candidate_dies(self, ready: int) -> None:
        self.world.lose(NEW, ready)

    @precondition(lambda self: OLD in self.world.replicas)
    @rule(ready=st.sampled_from([0, 1]))
    def stable_dies(self, ready: int) -> None:
        self.world.lose(OLD, ready)

    @rule(which=st.sampled_from([OLD, NEW]))
    def heals(self, which: str) -> None:
        if which in self.world.replicas:
            self.world.heal(which)

    @rule()
    def slow_start(self) -> None:
        self.world.starting = not self.world.starting

    @rule()
    def watchdog(self) -> None:
        self.world.watchdog()

    @rule()
    def router_hangs(self) -> None:
        self.world.stuck = not self.world.stuck

    @precondition(lambda self: not self.world.first and OLD in self.world.replicas)
    @rule(share=st.sampled_from([0, 30]))
    def admin(self, share: int) -> None:
        weights = {OLD: 100 - share, NEW: share} if share and NEW in self.world.replicas else {OLD: 100}
        self.world.traffic = Traffic(weights=weights, fallback=OLD)
        self.world.shifted = self.world.now
        self.world.meddled = True

    @precondition(going)
    @rule(name=st.sampled_from(sorted(APPROVALS)))
    def approve(self, name: str) -> None:
        self.world.approved |= {name}

    @precondition(going)
    @rule(rare=st.integers(0, 5))
    def abort(self, rare: int) -> None:
        if rare == 0:
            self.world.abort = "the owner is unhappy"

    @precondition(going)
    @rule(rare=st.integers(0, 5))
    def supersede(self, rare: int) -> None:
        if rare == 0:
            self.aborting = True
            self.version += 1

    def teardown(self) -> None:
        """Whatever has happened: with everybody well again, it comes to an end."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.stuck, world.starting, world.approved = False, False, APPROVALS
        for _ in range(2000):
            if self.over is not None:
                break
            for revision in world.replicas:
                world.heal(revision)
            self.look("none", Outcome.PASS, conclusive=True, preflight=Outcome.PASS)
        assert self.over is not None, f"{self.saved}"
        again = advance(world.plan, NEW, self.saved, world.facts())
        assert (again.action, again.phase) == (None, self.over)
        back = retreat(world.plan, NEW, self.saved, world.facts())
        assert (back.action, back.phase) == (None, self.over)


QUICK = settings(
    max_examples=80,
    stateful_step_count=40,
    phases=[Stage.generate],
    report_multiple_bugs=False,
    database=None,
    derandomize=True,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)
