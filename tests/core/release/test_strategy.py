"""Strategies as data: steps, and the line of the plan that says them."""

from __future__ import annotations

import pytest

from shipctl.release.strategy import PauseStep, RolloutStep, SetWeight, canary_steps, checked_steps
from shipctl.spec.units import Duration
from support_rollout import pause, strategy, weight


def test_a_canary_has_four_weights_with_a_pause_after_each() -> None:
    steps = canary_steps()
    assert [step.setWeight for step in steps if isinstance(step, SetWeight)] == [5, 10, 25, 50]
    assert [step.pause.duration for step in steps if isinstance(step, PauseStep)] == [Duration("1m")] * 4
    assert checked_steps(steps) == steps


def test_the_pauses_of_a_canary_can_be_chosen() -> None:
    assert canary_steps("10s", (20,)) == (weight(20), pause("10s"))


@pytest.mark.parametrize(
    "steps",
    [
        (pause("5s"), weight(5)),
        (pause(), weight(5)),
        (weight(5), weight(5), pause(), weight(100), pause("1m")),
        (weight(0), weight(99)),
    ],
)
def test_pauses_may_stand_anywhere(steps: tuple[RolloutStep, ...]) -> None:
    assert checked_steps(steps) is steps


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            (weight(25), pause("5s"), weight(10)),
            "step 2 goes back from 25 % to 10 %; weights can only grow",
        ),
        (
            (pause("5s"),),
            "no step has a weight between 0 and 100, so there is no canary; add {setWeight: 5}, or use bluegreen",
        ),
        (
            (weight(100),),
            "no step has a weight between 0 and 100, so there is no canary; add {setWeight: 5}, or use bluegreen",
        ),
    ],
)
def test_steps_that_make_no_canary_are_refused(steps: tuple[RolloutStep, ...], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the text is compared below)
        checked_steps(steps)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("plan", "line"),
    [
        (
            strategy(steps=(weight(5), pause("1m"), pause(), weight(50))),
            "canary: preflight, 5 %, wait 1m, approval of step 2, 50 %, 100 %, watched for 30s",
        ),
        (
            strategy("bluegreen", preview=True, autoPromotion=False),
            "bluegreen: preflight, preview door, approval of promote, 100 %, watched for 30s",
        ),
        (
            strategy("shadow", mirror=12.5, duration=Duration("5m"), promote=False),
            "shadow: preflight, copies of 12.5 %, verdict within 5m, what serves stays",
        ),
    ],
)
def test_a_plan_says_what_comes_after_what(plan: object, line: str) -> None:
    assert plan.summary() == line  # type: ignore[attr-defined]
