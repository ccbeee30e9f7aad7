"""What becomes of a release whose driver stops before its end, on a target in memory."""

from __future__ import annotations

import pytest

from shipctl.release.leaving import let_go, may_be_left, patience, unwatched
from shipctl.release.target import Capability
from shipctl.stages.base import Phase, Step
from shipctl_plugins.deploy.canary import Canary
from shipctl_plugins.deploy.shadow import Shadow
from support_strategy import Release, Serve, StartRelease
from support_target import MemoryTarget

STEPS = [{"setWeight": 10}, {"pause": {"duration": "60s"}}]


def begun(serving: Serve, start_release: StartRelease) -> Release:
    serving()
    return start_release(Canary, "2.0.0", steps=STEPS, scaleDownDelay="1h")


def test_with_the_lease_given_back_the_watchdog_acts_at_once(
    serving: Serve, start_release: StartRelease
) -> None:
    release = begun(serving, start_release)
    release.run(until=lambda step: step.phase is Phase.ANALYSING)
    assert release.world.holder
    assert let_go(release.stage, release.context) == (
        "the lease was given back, so the watchdog puts all requests back on 1.0.0 (100100100100) within 2 s"
    )
    assert release.world.holder == ""


def test_copies_of_requests_count_as_well(serving: Serve, start_release: StartRelease) -> None:
    serving()
    release = start_release(Shadow, "2.0.0", analysis={"provider": "memory"})
    release.run(until=lambda step: step.phase is Phase.ANALYSING)
    assert "the watchdog puts all requests back on 1.0.0" in let_go(release.stage, release.context)


def test_where_there_is_no_watchdog_it_is_said_that_traffic_stays(
    serving: Serve, start_release: StartRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = begun(serving, start_release)
    release.run(until=lambda step: step.phase is Phase.ANALYSING)
    monkeypatch.setattr(MemoryTarget, "capabilities", frozenset(Capability) - {Capability.WATCHDOG})
    assert let_go(release.stage, release.context) == (
        "this target has no watchdog, so 2.0.0 (200200200200) keeps 10 % of the requests until somebody goes on"
    )


@pytest.mark.parametrize("at", [Phase.PREFLIGHT, Phase.WATCHING])
def test_nothing_is_said_where_all_requests_are_on_what_is_stable(
    serving: Serve, start_release: StartRelease, at: Phase
) -> None:
    release = begun(serving, start_release)
    release.run(until=lambda step: step.phase is at)
    assert let_go(release.stage, release.context) == ""
    assert release.world.holder == ""


def test_the_lease_of_somebody_else_is_left_alone(serving: Serve, start_release: StartRelease) -> None:
    release = begun(serving, start_release)
    release.run(until=lambda step: step.phase is Phase.ANALYSING)
    release.world.holder = "another process"
    assert let_go(release.stage, release.context) == ""
    assert release.world.holder == "another process"


def test_it_may_be_left_once_requests_fall_back_on_what_is_promoted(
    serving: Serve, start_release: StartRelease
) -> None:
    """Before that, a watchdog would put them back on what was stable."""
    release = begun(serving, start_release)
    left: list[bool] = []

    def seen(step: Step) -> bool:
        if step.phase is Phase.WATCHING:
            left.append(may_be_left(release.stage, release.context))
        return left[-1:] == [True]

    release.run(until=seen)
    assert left == [False, True]
    assert release.world.acts[-2:] == ["commit 2.0.0", "shift 2.0.0:100"]


def test_a_watch_that_is_to_end_ends_at_once(serving: Serve, start_release: StartRelease) -> None:
    release = begun(serving, start_release)
    release.run(until=lambda step: step.phase is Phase.WATCHING)
    stage = unwatched(release.stage)
    assert isinstance(stage, Canary)
    release.stage, steps = stage, len(release.steps)
    assert release.run().phase is Phase.DONE
    assert len(release.steps) - steps < 6
    assert release.world.acts[-1] == "scale-down 1.0.0"


def test_before_any_traffic_an_abort_may_take_as_long_as_a_preflight(
    serving: Serve, start_release: StartRelease
) -> None:
    release = begun(serving, start_release)
    assert patience(release.stage, Phase.PREFLIGHT) - patience(release.stage, Phase.ANALYSING) == 600.0
    assert 30.0 < patience(release.stage, Phase.ANALYSING) < 120.0
