"""The stage `rolling` on a target in memory."""

from __future__ import annotations

from shipctl.stages.base import Phase
from shipctl_plugins.deploy.rolling import Rolling
from support_strategy import Serve, StartRelease


def test_the_new_one_replaces_the_old_one(serving: Serve, start_release: StartRelease) -> None:
    serving()
    release = start_release(Rolling, "2.0.0")
    assert release.run().phase is Phase.DONE
    assert set(release.world.seen.replicas) == {release.context.revision}
    assert release.world.acts[-1] == "scale-down 1.0.0"


def test_one_that_never_gets_ready_is_given_up_in_time(serving: Serve, start_release: StartRelease) -> None:
    serving()
    release = start_release(Rolling, "2.0.0", progressDeadline="1m")
    release.world.unready.add(release.context.revision)
    began = release.clock()
    assert release.run().phase is Phase.REJECTED
    assert release.clock() - began < 90
    assert "it crashed" in " ".join(step.message for step in release.steps)
    assert release.world.seen.traffic.weights == {"100" * 20: 100}
