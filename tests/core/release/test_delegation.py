"""The state machine of releases that an engine drives: each path by example, then whatever an engine may say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import Phase as Stage
from hypothesis import strategies as st
from hypothesis.errors import FlakyStrategyDefinition

from shipctl.release import delegation, sight
from shipctl.release.decision import RolloutState
from shipctl.release.delegated import Followed, Standing
from shipctl.release.delegation import Act, Say, Sight, advance, retreat
from shipctl.release.strategy import AnalysisOptions, Strategy
from shipctl.release.target import LEASE_SECONDS
from shipctl.spec.units import Duration
from shipctl.stages.base import Phase
from shipctl.stages.verdicts import Outcome
from support_rollout import NEW, OLD, measurement, pause, strategy, verdict, weight

OTHER = "c" * 64
DEADLINE, DELAY, LONGEST_PAUSE = 100.0, 30.0, 20.0
CANARY = strategy(steps=(weight(5), pause("20s"), weight(50), pause()))
NOTHING = Followed(standing=Standing.ABSENT)
SERVING = Followed(standing=Standing.ABSENT, stable=OLD, current=OLD)


def told(standing: Standing = Standing.PROGRESSING, **more: Any) -> Followed:
    """What an engine says of NEW beside OLD."""
    return Followed(**{"standing": standing, "stable": OLD, "current": NEW, **more})


PROMOTED = told(Standing.HEALTHY, stable=NEW, weight=100, step=4)
HOME = Followed(standing=Standing.HEALTHY, stable=OLD, current=OLD, weight=100)


class Release:
    """Calls the machine as the stage does: it measures and asks golden samples when that is wanted."""

    def __init__(
        self, plan: Strategy = CANARY, *, steps_itself: bool = True, seen: Followed = SERVING
    ) -> None:
        self.plan, self.steps_itself, self.seen = plan, steps_itself, seen
        self.home: Followed | None = None
        self.now = 1000.0
        self.state = RolloutState()
        self.approved: frozenset[str] = frozenset()
        self.abort: str | None = None
        self.preflight = Outcome.PASS
        self.outcome = Outcome.PASS
        self.acts: list[str] = []
        self.said: list[Say] = []

    def look(self, **more: Any) -> Sight:
        return Sight(
            now=self.now, candidate=self.seen, home=self.home, approved=self.approved, abort=self.abort, **more
        )  # fmt: skip

    def step(self) -> Say:
        if self.state.phase is Phase.ABORTING:
            return self._taken(retreat(self.plan, NEW, self.state, self.look()))
        said = self._advance(self.state)
        if said.measure:
            said = self._advance(said.state, measurement=measurement(self.outcome, until=self.now))
        if said.act is Act.PREFLIGHT:
            said = self._advance(said.state, preflight=(verdict(self.preflight),))
        return self._taken(said)

    def _advance(self, state: RolloutState, **more: Any) -> Say:
        return advance(self.plan, NEW, state, self.look(**more), steps_itself=self.steps_itself)

    def _taken(self, said: Say) -> Say:
        self.state = RolloutState.model_validate_json(said.state.model_dump_json())
        self.acts += [said.act] if said.act is not None else []
        self.said.append(said)
        return said

    def until(self, *phases: Phase, seen: Followed | None = None, steps: int = 2000) -> Say:
        """Take steps until a phase is there; ``seen`` is what the engine says from now on."""
        self.seen = seen or self.seen
        for _ in range(steps):
            said = self.step()
            if self.state.phase in phases or said.taken:
                return said
            self.now += max(said.requeue, 0.1)
        message = f"never {phases}: {[item.message for item in self.said[-3:]]}"
        raise AssertionError(message)

    def handed(self, **more: Any) -> Release:
        """Go on until the engine has it."""
        self.until(Phase.SHIFTING)
        self.seen = told(**more)
        return self


def test_one_that_goes_through() -> None:
    release = Release()
    assert release.until(Phase.SHIFTING).act is Act.SUBMIT
    release.seen = told(weight=5, step=1, message="3 of 4 pods")
    assert release.step().message == f"5 % of the requests go to {NEW[:12]}: 3 of 4 pods"
    release.until(Phase.WATCHING, seen=PROMOTED)
    began = release.now
    assert release.until(Phase.DONE).message == f"{NEW[:12]} answers everything"
    assert release.now - began >= DELAY
    assert release.acts == [Act.SUBMIT]
    assert release.state.committed
    assert release.state.passed, "it was not measured at 100 %"


def test_nothing_is_handed_over_before_it_is_remembered() -> None:
    release = Release()
    while not release.state.touched:
        assert release.step().act is None
    assert release.step().act is Act.SUBMIT


def test_a_preflight_that_fails_touches_nothing() -> None:
    release = Release()
    release.preflight = Outcome.FAIL
    assert release.until(Phase.ABORTING).message.startswith("the preflight did not pass: golden samples")
    assert release.until(Phase.REJECTED).message == f"{OLD[:12]} answers everything, as before"
    assert release.acts == []


def test_a_pause_for_a_person_ends_the_run_and_an_approval_resumes() -> None:
    release = Release().handed()
    said = release.until(Phase.PAUSED, seen=told(Standing.PAUSED, weight=50, step=3, asks="step 3"))
    assert (said.requeue, said.asks) == (0, "step 3")
    release.now += 7 * 24 * 3600  # nobody drives meanwhile
    assert release.step().asks == "step 3"
    release.approved = frozenset({"step 3"})
    assert release.step().act is Act.RESUME
    release.until(Phase.DONE, seen=PROMOTED)


def test_a_pause_that_nobody_explains_is_given_up_at_its_deadline() -> None:
    release = Release().handed()
    release.until(Phase.PAUSED, seen=told(Standing.PAUSED, weight=5, message="InconclusiveAnalysisRun"))
    began = release.now
    said = release.until(Phase.ABORTING)
    assert said.message == "it paused for 100s at 5 %: InconclusiveAnalysisRun"
    assert DEADLINE < release.now - began <= DEADLINE + LONGEST_PAUSE + 2


def test_a_pause_of_a_known_end_is_waited_for() -> None:
    release = Release().handed()
    paused = told(Standing.PAUSED, weight=5, until=release.now + 15, message="paused")
    assert release.until(Phase.ANALYSING, seen=paused).message == (
        f"5 % of the requests go to {NEW[:12]}, for another 15 s: paused"
    )
    assert Act.RESUME not in release.acts


def test_what_the_engine_gives_up_goes_back() -> None:
    release = Release().handed()
    release.seen = told(Standing.DEGRADED, message="RolloutAborted: metric error_rate")
    assert release.until(Phase.ABORTING).message == (
        f"{NEW[:12]} was given up by the engine: RolloutAborted: metric error_rate"
    )
    assert release.step().act is Act.ABORT
    release.seen, release.home = SERVING, HOME
    assert release.until(Phase.ROLLED_BACK).message == f"{OLD[:12]} answers everything again"


def test_a_person_can_abort() -> None:
    release = Release().handed(weight=50)
    release.abort = "too slow"
    assert release.step().message == "aborted: too slow"
    assert release.acts == [Act.SUBMIT], "it was persisted first"
    assert release.step().act is Act.ABORT


def test_it_is_not_back_before_the_candidate_has_no_weight() -> None:
    release = Release().handed(weight=50)
    release.abort = ""
    release.step()
    release.home = HOME
    assert release.step().act is Act.ABORT
    release.seen = told(Standing.DEGRADED, weight=0)
    release.home = HOME.model_copy(update={"current": NEW})  # a next apply would bring it back
    assert release.step().act is Act.ABORT
    release.home = HOME
    assert release.step().state.phase is Phase.ROLLED_BACK


def test_an_engine_that_does_not_go_back_is_an_error_and_no_end() -> None:
    release = Release().handed(weight=50)
    release.abort = ""
    release.step()
    said = release.step()
    while not said.stuck:
        assert release.now <= 1000 + LEASE_SECONDS + DEADLINE
        release.now += said.requeue
        said = release.step()
    assert (said.act, said.stuck, said.state.phase) == (Act.ABORT, True, Phase.ABORTING)
    assert said.message == f"going back to {OLD[:12]} takes longer than 100 s"
    release.seen, release.home = SERVING, HOME
    assert release.step().state.phase is Phase.ROLLED_BACK, "it goes on where it was"


def test_a_first_release_is_watched_too_and_goes_back_to_nothing() -> None:
    release = Release(seen=NOTHING)
    release.until(Phase.SHIFTING)
    release.until(Phase.WATCHING, seen=PROMOTED)
    release.outcome = Outcome.FAIL
    release.until(Phase.ABORTING)
    assert release.step().act is Act.ABORT
    release.seen = NOTHING
    assert release.until(Phase.REJECTED).message == "nothing serves, as before"


@pytest.mark.parametrize("outcome", [Outcome.FAIL, Outcome.ERROR, Outcome.INCONCLUSIVE])
def test_what_does_not_hold_its_bounds_with_all_requests_goes_back(outcome: Outcome) -> None:
    release = Release().handed()
    release.outcome = outcome
    release.until(Phase.WATCHING, seen=PROMOTED)
    began = release.now
    release.until(Phase.ABORTING)
    assert release.now - began <= DELAY + DEADLINE + 2


def test_what_somebody_else_made_stable_is_left_alone_on_the_way_back() -> None:
    release = Release(seen=NOTHING).handed(stable=None)
    release.abort = "enough"
    release.until(Phase.ABORTING)
    acts = list(release.acts)
    said = release.until(
        Phase.ROLLED_BACK, seen=Followed(standing=Standing.PROGRESSING, stable=OTHER, current=None)
    )
    assert said.message == (f"somebody else has applied {OTHER[:12]} meanwhile, and is left alone with it")
    assert release.acts == acts


def test_what_somebody_else_applied_is_left_alone() -> None:
    release = Release().handed()
    release.seen = Followed(standing=Standing.ABSENT, stable=OLD, current=OTHER)
    said = release.step()
    assert said.taken
    assert said.act is None
    assert said.message == (
        f"somebody else has applied {OTHER[:12]} while {NEW[:12]} was released: it is left alone; see "
        "`shipctl status`, and end this release with `shipctl abort`"
    )
    release.state = release.state.model_copy(update={"phase": Phase.ABORTING})
    assert release.until(Phase.ROLLED_BACK).message == (
        f"somebody else has applied {OTHER[:12]} meanwhile, and is left alone with it"
    )
    assert release.acts == [Act.SUBMIT]


def test_what_somebody_else_has_put_back_is_an_abort() -> None:
    release = Release().handed()
    release.until(Phase.ABORTING, seen=SERVING)
    assert release.state.reason == f"somebody else has put {OLD[:12]} back"
    release.home = HOME
    release.until(Phase.ROLLED_BACK)
    assert release.acts == [Act.SUBMIT]


def test_a_first_one_that_somebody_else_removes_is_over() -> None:
    release = Release(seen=NOTHING)
    release.until(Phase.SHIFTING)
    release.seen = told(stable=None)
    release.step()
    assert release.until(Phase.ABORTING, seen=NOTHING).message == "somebody else has removed it"
    release.until(Phase.REJECTED)
    assert release.acts == [Act.SUBMIT]


def test_what_is_stable_already_is_done_at_once() -> None:
    again = Followed(standing=Standing.HEALTHY, stable=NEW, current=NEW, weight=100)
    release = Release(seen=again)
    assert release.until(Phase.DONE).message == f"{NEW[:12]} is whole and answers everything"
    assert release.acts == [Act.SUBMIT]


def test_steps_of_an_engine_without_any_are_told_to_it_after_a_measurement_that_passed() -> None:
    release = Release(steps_itself=False).handed(weight=5)
    over = told(Standing.PAUSED, weight=5, step=1, until=release.now)
    release.outcome = Outcome.INCONCLUSIVE
    release.seen = over
    for _ in range(30):
        assert release.step().act is None
        release.now += 1
    release.outcome = Outcome.PASS
    release.now += 10
    assert release.step().act is Act.RESUME


def test_an_engine_that_judges_nothing_is_judged_on_the_way() -> None:
    release = Release(steps_itself=False).handed(weight=5, step=1)
    release.outcome = Outcome.FAIL
    assert release.until(Phase.ABORTING).message == "the analysis failed: it is fail"


# -- whatever an engine may say -------------------------------------------------------------------------------

QUICK = settings(
    report_multiple_bugs=False,
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
PLANS = {
    "canary": CANARY,
    "unmeasured": strategy(steps=(weight(10),), analysis=None, preflight=False),
    "bluegreen": strategy(
        "bluegreen", autoPromotion=False, analysis=AnalysisOptions(interval=Duration("10s"))
    ),
}
REVISIONS = st.sampled_from([OLD, OLD, NEW, NEW, NEW, None])
ANYTHING = st.builds(
    Followed,
    standing=st.sampled_from(
        [Standing.PROGRESSING] * 5 + [Standing.PAUSED] * 4 + [Standing.HEALTHY] * 6 + [Standing.DEGRADED]
    ),
    stable=REVISIONS,
    current=st.sampled_from([NEW] * 16 + [OLD, OTHER, None]),
    step=st.integers(0, 4),
    until=st.one_of(st.none(), st.floats(900, 1500)),
    weight=st.sampled_from([0, 5, 50, 100, 100]),
    asks=st.sampled_from(["", "", "", "promote", "step 3"]),
)
FOLLOWED = st.one_of(st.just(PROMOTED), ANYTHING)
HOMES = st.builds(
    Followed,
    standing=st.sampled_from([Standing.HEALTHY, Standing.HEALTHY, Standing.PROGRESSING, Standing.DEGRADED]),
    stable=REVISIONS,
    current=REVISIONS,
    weight=st.just(100),
)
LOOKS = st.tuples(
    FOLLOWED, HOMES, st.sampled_from([Outcome.PASS] * 6 + list(Outcome)), st.sampled_from([0.2, 1, 5, 14])
)
COURSES = st.tuples(
    st.sampled_from(sorted(PLANS)), st.booleans(), st.booleans(), st.lists(LOOKS, max_size=20)
)
BOUND = 5 * (DEADLINE + LONGEST_PAUSE) + 2 * DEADLINE + DELAY
"""Seconds: each of four steps and the first, a pause that nobody explains, then the watch."""


def whatever(course: Any) -> None:
    """Drive one release through what an engine says; the last of it is said for ever."""
    name, steps_itself, first, looks = course
    release = Release(PLANS[name], steps_itself=steps_itself, seen=NOTHING if first else SERVING)
    release.approved = frozenset({"promote"}) if first else frozenset()
    checked(release, release.state, release.step())
    held = 0.0
    for index in range(300):
        followed, home, outcome, wait = (
            looks[index]
            if index < len(looks)
            else (*looks[-1][:3], 14.0)
            if looks
            else (SERVING, HOME, Outcome.PASS, 5.0)
        )
        if release.state.phase in delegation.HANDED or release.state.phase is Phase.ABORTING:
            release.seen, release.home = followed, None if first else home
        release.outcome = outcome
        before = release.state
        said = release.step()
        checked(release, before, said)
        if said.taken or said.stuck or release.state.phase.is_final or said.asks:
            return
        if release.state.phase is not Phase.ABORTING:
            held += wait
        assert held <= BOUND, f"{held:g} s in {release.state.phase} and before: {said.message}"
        release.now += wait
    raise AssertionError(f"no end: {release.state.phase}, {release.said[-1].message}")


def checked(release: Release, before: RolloutState, said: Say) -> None:
    """Look at one thing that was said, by what was persisted before it and what the engine said."""
    seen, plan, now = release.seen, release.plan, release.state
    ours = {NEW, before.previous}
    strange = (seen.current is not None and seen.current not in ours) or (
        seen.stable is not None and seen.stable not in ours
    )
    if before.phase in delegation.HANDED and strange:
        assert said.taken
        assert said.act is None
    if said.act in {Act.SUBMIT, Act.RESUME}:
        assert before.touched, "handed over before it was remembered"
        assert before.phase is not Phase.ABORTING
    if said.act is Act.ABORT:
        assert before.phase is Phase.ABORTING, "aborted before it was remembered"
        assert not strange
    if said.act is Act.RESUME:
        asked = {name for name in seen.asks.split(",") if name}
        assert asked <= release.approved
        assert asked or (not release.steps_itself and seen.until is not None and seen.until <= release.now)
    if said.asks:
        assert not set(said.asks.split(", ")) <= release.approved
    if now.phase is Phase.DONE and before.phase is not Phase.DONE:
        whole = (seen.standing, seen.stable, seen.current, seen.weight)
        assert whole == (Standing.HEALTHY, NEW, NEW, 100), "done, and not healthy"
        assert before.phase is Phase.WATCHING
        assert plan.analysis is None or now.passed, "done, and never measured"
    if now.phase in {Phase.ROLLED_BACK, Phase.REJECTED} and before.touched and not strange:
        home = release.home
        assert not seen.weight, "back, and the candidate has requests"
        if before.previous is None:
            assert seen.standing is Standing.ABSENT
        else:
            assert home is not None
            assert (home.standing, home.stable) == (Standing.HEALTHY, OLD), "back, and stable is not"
            assert home.current != NEW, "back, and whoever applies next brings it again"


@QUICK
@given(COURSES)
def test_whatever_an_engine_says_the_invariants_hold(course: Any) -> None:
    whatever(course)


# -- the invariants would notice ------------------------------------------------------------------------------


def trusting(patch: pytest.MonkeyPatch) -> None:
    """It takes the engine's word `healthy` for the end."""
    patch.setattr(
        delegation.Forward, "promoted", property(lambda self: self.seen.standing is Standing.HEALTHY)
    )


def unmeasured(patch: pytest.MonkeyPatch) -> None:
    """It does not wait for a measurement."""
    patch.setattr(delegation.Forward, "gate", False)


def endless(patch: pytest.MonkeyPatch) -> None:
    """It knows no deadline."""
    patch.setattr(sight.Look, "deadline", float("inf"))


def unasked(patch: pytest.MonkeyPatch) -> None:
    """It takes what is asked for as approved."""
    advances = delegation.Forward.following

    def following(self: delegation.Forward) -> Say:
        self.sight = self.sight.model_copy(update={"approved": frozenset({"promote", "step 3"})})
        return advances(self)

    patch.setattr(delegation.Forward, "following", following)


def intruding(patch: pytest.MonkeyPatch) -> None:
    """It does not see what somebody else does."""
    patch.setattr(sight.Look, "elsewhere", False)
    patch.setattr(delegation.Backward, "elsewhere", False)


def content(patch: pytest.MonkeyPatch) -> None:
    """It takes itself for back at once."""
    patch.setattr(delegation.Backward, "_is_back", True)


def forgetful(patch: pytest.MonkeyPatch) -> None:
    """It hands over and remembers that afterwards."""
    patch.setattr(
        delegation.Forward,
        "hand_over",
        lambda self: self.go(Phase.SHIFTING, "handing over", Act.SUBMIT, touched=True),
    )


@pytest.mark.parametrize("broken", [trusting, unmeasured, endless, unasked, intruding, content, forgetful])
def test_a_machine_that_is_broken_is_found_out(
    broken: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    quick = settings(QUICK, max_examples=1500, database=None, phases=[Stage.generate])
    with pytest.raises((AssertionError, FlakyStrategyDefinition)):
        quick(given(COURSES)(whatever))()
