"""The state machine of releases where anything may go wrong at any moment; and whether that would be noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import Phase as Stage
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule, run_state_machine_as_test

from shipctl.release import backward, course, forward, situation
from shipctl.release.decision import Decision
from shipctl.release.strategy import Strategy
from shipctl.release.target import Commit, ScaleDown
from shipctl.release.traffic import Traffic
from shipctl.stages.base import Phase
from shipctl.stages.verdicts import Outcome
from support_rollout_random import QUICK, Releasing


def test_whatever_happens_the_invariants_hold() -> None:
    run_state_machine_as_test(Releasing, settings=QUICK)


@pytest.mark.slow
def test_whatever_happens_for_long_the_invariants_hold() -> None:
    thorough = settings(
        QUICK,
        max_examples=200,
        stateful_step_count=60,
        derandomize=True,
        phases=[Stage.generate, Stage.shrink],
    )
    run_state_machine_as_test(Releasing, settings=thorough)


# -- the invariants would notice: the machine is broken on purpose, and has to be found out ------------------


def blind(patch: pytest.MonkeyPatch) -> None:
    """It does not look whether the candidate has lost its replicas."""
    patch.setattr(forward.Forward, "trouble", lambda self: self.facts.abort)


def impatient(patch: pytest.MonkeyPatch) -> None:
    """It does not wait for replicas."""
    patch.setattr(forward.Forward, "await_ready", lambda self, then: then())


def hasty(patch: pytest.MonkeyPatch) -> None:
    """It leaves a step out."""

    def onward(self: forward.Forward) -> Decision:
        if self.index + 1 < len(self.legs):
            return self.enter(min(self.index + 3, len(self.legs) - 1))
        return self.go(Phase.PROMOTING, "promoting")

    patch.setattr(forward.Forward, "onward", onward)


def trusting(patch: pytest.MonkeyPatch) -> None:
    """It takes what it has said for what is the case."""
    patch.setattr(situation.Situation, "moved", True)


def unasked(patch: pytest.MonkeyPatch) -> None:
    """It does not ask people."""
    patch.setattr(situation.Situation, "missing", lambda self, index: [])


def leaving(patch: pytest.MonkeyPatch) -> None:
    """It ends the run before the traffic is back on the stable revision."""
    patch.setattr(forward, "same", lambda one, other: True)


def careless(patch: pytest.MonkeyPatch) -> None:
    """On the way back it stops replicas before it moves the traffic."""
    patch.setattr(backward, "same", lambda one, other: True)


def upside_down(patch: pytest.MonkeyPatch) -> None:
    """On the way back it takes the candidate for what was stable."""
    init = backward.Backward.__init__

    def wrong(self: backward.Backward, *args: Any) -> None:
        init(self, *args)
        self.home = self.revision

    patch.setattr(backward.Backward, "__init__", wrong)


def greedy(patch: pytest.MonkeyPatch) -> None:
    """It gives twice the share that a step has."""
    wanted = course.wanted

    def more(plan: Strategy, leg: course.Leg, revision: str, previous: str | None) -> Traffic:
        share = min(100, 2 * leg.weight)
        return wanted(plan, replace(leg, weight=share), revision, previous)

    patch.setattr(situation, "wanted", more)
    patch.setattr(forward, "wanted", more)


def forgetful(patch: pytest.MonkeyPatch) -> None:
    """It does not write down that requests may reach the candidate before they can."""
    keep = situation.Situation.keep

    def forgets(self: situation.Situation, **changes: Any) -> None:
        changes.pop("touched", None)
        keep(self, **changes)

    patch.setattr(situation.Situation, "keep", forgets)


def endless(patch: pytest.MonkeyPatch) -> None:
    """It knows no deadlines."""
    patch.setattr(situation.Situation, "deadline", float("inf"))


def indecisive(patch: pytest.MonkeyPatch) -> None:
    """It waits for a measurement that passes, however many decide nothing."""
    patch.setattr(forward.Forward, "pause", lambda self, reason: self.wait(reason))


def early(patch: pytest.MonkeyPatch) -> None:
    """It commits first and shifts the traffic then."""
    patch.setattr(
        forward.Forward,
        "shift",
        lambda self: self.do(Commit(expected=self.previous, revision=self.revision), "early"),
    )


def wasteful(patch: pytest.MonkeyPatch) -> None:
    """After a promotion it stops what was promoted."""
    patch.setattr(
        forward.Forward,
        "watching",
        lambda self: self.do(ScaleDown(revision=self.revision), "the wrong one"),
    )


SOON_FOUND = (hasty, trusting, upside_down, greedy, endless, early, wasteful)
LATE_FOUND = {
    blind: "rolling", impatient: "unmeasured", careless: "rolling", unasked: "bluegreen", leaving: "asking",
    forgetful: "unmeasured",
}  # fmt: skip
"""By the plan under which it shows soonest; others need ten times as many releases."""


def under(plan: str) -> type[Releasing]:
    """Return the machine with one plan."""

    class Under(Releasing):
        @initialize(first=st.sampled_from([False, False, False, True]))
        def begin(self, first: bool) -> None:
            self.start(plan, first=first)

    return Under


class Undecided(under("rolling")):  # type: ignore[misc]
    """Once it goes on, no measurement decides anything."""

    @precondition(Releasing.going)
    @rule(looks=st.sampled_from([3, 30, 200]))
    def go_on(self, looks: int) -> None:
        for _ in range(looks):
            if self.going():
                self.look("none", Outcome.INCONCLUSIVE, conclusive=True, preflight=Outcome.PASS)


@pytest.mark.parametrize(
    ("broken", "machine"),
    [
        *((broken, Releasing) for broken in SOON_FOUND),
        *((broken, under(plan)) for broken, plan in LATE_FOUND.items()),
        (indecisive, Undecided),
    ],
)
def test_a_machine_that_is_broken_is_found_out(
    broken: Callable[[pytest.MonkeyPatch], None], machine: type[Releasing], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=settings(QUICK, max_examples=1500))
