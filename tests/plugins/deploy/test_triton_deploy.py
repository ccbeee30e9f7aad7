"""The stage `triton-deploy` on a target in memory; on real servers it is in tests/e2e/test_digits.py."""

from __future__ import annotations

from shipctl.stages.base import Phase
from shipctl.stages.verdicts import Outcome
from shipctl_plugins.deploy.triton_deploy import TritonDeploy
from support_strategy import Serve, StartRelease


def test_the_first_version_opens_the_door(start_release: StartRelease) -> None:
    release = start_release(TritonDeploy, "1.0.0", analysis=None)
    assert release.run().phase is Phase.DONE
    assert release.world.seen.stable == release.context.revision
    assert release.stage.in_place(release.inputs, release.context)


def test_a_first_version_that_answers_wrongly_leaves_the_door_closed(start_release: StartRelease) -> None:
    release = start_release(TritonDeploy, "1.0.0", analysis=None)
    release.world.preflight = Outcome.FAIL
    assert release.run().phase is Phase.REJECTED
    assert release.world.seen.traffic.weights == {}
    assert release.world.seen.replicas == {}


def test_an_act_that_fails_goes_back(serving: Serve, start_release: StartRelease) -> None:
    serving()
    release = start_release(TritonDeploy, "2.0.0", analysis=None)
    release.world.broken.add("commit")
    release.run(until=lambda step: step.phase is Phase.ABORTING)
    assert release.run().phase is Phase.ROLLED_BACK
    assert release.world.seen.stable == "100" * 20
    assert "commit does not work" in " ".join(step.message for step in release.steps)


def test_a_second_controller_waits_for_the_lease(serving: Serve, start_release: StartRelease) -> None:
    serving()
    release = start_release(TritonDeploy, "2.0.0", analysis=None)
    release.world.holder = "somebody else"
    step = release.step()
    assert "the lease is held by somebody else" in step.message
    assert release.world.acts == []
    release.world.holder = ""
    assert release.run().phase is Phase.DONE
