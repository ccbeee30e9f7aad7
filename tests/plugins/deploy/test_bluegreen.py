"""The stage `bluegreen` on a target in memory."""

from __future__ import annotations

from shipctl.stages.base import Phase
from shipctl_plugins.deploy.bluegreen import Bluegreen
from support_strategy import Serve, StartRelease

OLD = "100" * 20


def test_it_takes_over_in_one_step_and_the_old_one_stays_warm(
    serving: Serve, start_release: StartRelease
) -> None:
    serving()
    release = start_release(Bluegreen, "2.0.0", scaleDownDelay="20s")
    release.run(until=lambda step: step.phase is Phase.WATCHING)
    began = release.clock()
    assert OLD in release.world.seen.replicas
    assert release.run().phase is Phase.DONE
    assert release.clock() - began >= 20
    assert [act for act in release.world.acts if act.startswith(("shift", "commit", "scale"))][1:] == [
        "shift 2.0.0:100", "commit 2.0.0", "shift 2.0.0:100", "scale-down 1.0.0",
    ]  # fmt: skip


def test_it_stands_behind_the_preview_door_first(serving: Serve, start_release: StartRelease) -> None:
    serving()
    release = start_release(Bluegreen, "2.0.0", autoPromotion=False)
    assert release.run().phase is Phase.PAUSED
    assert release.steps[-1].asks == "promote"
    assert release.world.seen.traffic.preview == release.context.revision
    assert release.world.seen.traffic.weights == {OLD: 100}
    release.approved.add("promote")
    assert release.run().phase is Phase.DONE


def test_one_that_degrades_after_the_promotion_goes_back(serving: Serve, start_release: StartRelease) -> None:
    serving()
    release = start_release(
        Bluegreen, "2.0.0", slo={"error_rate": 0.01}, scaleDownDelay="5m", analysis={"provider": "memory"}
    )
    release.run(until=lambda step: step.phase is Phase.WATCHING)
    release.world.errors[release.context.revision] = 0.3
    assert release.run().phase is Phase.ROLLED_BACK
    assert release.world.seen.stable == OLD
    assert release.world.seen.traffic.weights == {OLD: 100}


def test_an_abort_is_heard_between_two_looks(serving: Serve, start_release: StartRelease) -> None:
    serving()
    release = start_release(Bluegreen, "2.0.0", scaleDownDelay="5m")
    asked: list[str] = []
    object.__setattr__(release.context, "aborted", lambda: asked[0] if asked else None)
    release.run(until=lambda step: step.phase is Phase.WATCHING)
    asked.append("alice wants it off")
    end = release.run()
    assert end.phase is Phase.ROLLED_BACK
    assert any("alice wants it off" in step.message for step in release.steps)
