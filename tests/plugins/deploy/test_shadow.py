"""The stage `shadow` on a target in memory; real answers are compared in tests/plugins/targets/test_local_real.py."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from shipctl.release.target import Capability
from shipctl.stages.base import Phase
from shipctl_plugins.deploy.shadow import Shadow, ShadowStageOptions
from support_strategy import Serve, StartRelease


def test_users_get_the_answers_of_what_serves_whatever_comes_of_it(
    serving: Serve, start_release: StartRelease
) -> None:
    serving()
    release = start_release(Shadow, "2.0.0", percent="12.5%", duration="60s")
    release.run(until=lambda step: step.phase is Phase.ANALYSING)
    traffic = release.world.seen.traffic
    assert traffic.weights == {"100" * 20: 100}
    assert traffic.mirror is not None
    assert (traffic.mirror.percent, traffic.mirror.candidate) == (12.5, "200" * 20)
    assert release.run().phase.is_final
    assert not [act for act in release.world.acts if act.startswith("shift") and "2.0.0" in act]
    assert release.world.seen.traffic.mirror is None
    assert (release.world.seen.stable, set(release.world.seen.replicas)) == ("100" * 20, {"100" * 20})


def test_a_first_version_has_nothing_to_be_compared_with(start_release: StartRelease) -> None:
    release = start_release(Shadow, "1.0.0")
    end = release.run()
    assert end.phase is Phase.REJECTED
    assert end.message.endswith("release a first one with canary or bluegreen")
    assert release.world.acts == []


def test_it_needs_a_target_that_can_copy_requests() -> None:
    assert Capability.MIRROR in Shadow.needs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"percent": "0%"}, "percent is 0%, so nothing would be compared; leave it out, or use bluegreen"),
        ({"duration": "0s"}, "duration is 0s, so nothing would be compared; leave it out, or use bluegreen"),
    ],
)
def test_a_shadow_of_nothing_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ShadowStageOptions.model_validate(options)
