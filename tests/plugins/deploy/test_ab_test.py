"""The stage `ab-test` on a target in memory; its verdicts are in tests/core/release/analysis/test_ab.py."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from shipctl.release.target import Capability
from shipctl.stages.base import Phase
from shipctl_plugins.deploy.ab_test import AbTest, AbTestOptions
from support_strategy import Serve, StartRelease

STABLE, NEW = "100" * 20, "200" * 20


def test_a_version_that_is_better_takes_over(serving: Serve, start_release: StartRelease) -> None:
    serving()
    release = start_release(AbTest, "2.0.0", test={"goal": "error_rate"}, scaleDownDelay="0s")
    release.world.errors[STABLE] = 0.2
    assert release.run().phase is Phase.DONE, release.steps[-3:]
    shifts = [act for act in release.world.acts if act.startswith("shift")]
    assert shifts[:2] == ["shift 1.0.0:50 2.0.0:50", "shift 2.0.0:100"]
    assert release.world.seen.stable == NEW


def test_a_version_that_is_worse_goes(serving: Serve, start_release: StartRelease) -> None:
    serving()
    release = start_release(AbTest, "2.0.0", test={"goal": "error_rate"}, weight=20)
    release.world.errors[NEW] = 0.2
    assert release.run().phase is Phase.ROLLED_BACK, release.steps[-3:]
    assert "shift 1.0.0:80 2.0.0:20" in release.world.acts
    assert release.world.seen.traffic.weights == {STABLE: 100}
    assert set(release.world.seen.replicas) == {STABLE}


def test_users_stay_with_their_version_only_while_there_are_two(
    serving: Serve, start_release: StartRelease
) -> None:
    serving()
    segment = {"name": "staff", "header": "x-team", "values": ["ml"], "revision": "candidate"}
    release = start_release(AbTest, "2.0.0", segments=[segment])
    release.run(until=lambda step: step.phase is Phase.ANALYSING)
    traffic = release.world.seen.traffic
    assert traffic.sticky is not None
    assert (traffic.sticky.kind, traffic.sticky.name) == ("header", "x-user-id")
    assert [(item.name, item.revision) for item in traffic.segments] == [("staff", NEW)]
    release.run()
    assert release.world.seen.traffic.sticky is None
    assert release.world.seen.traffic.segments == ()


def test_a_metric_with_a_bound_counts_during_the_test(serving: Serve, start_release: StartRelease) -> None:
    """What is neither the goal nor a guardrail has to be within its bounds, as in every strategy."""
    serving()
    bounded = {"name": "latency_mean", "provider": "memory", "max": 0.001}
    release = start_release(
        AbTest, "2.0.0", test={"goal": "error_rate"}, analysis={"provider": "memory", "metrics": [bounded]}
    )
    release.world.errors[STABLE] = 0.2
    assert release.run().phase is Phase.ROLLED_BACK, release.steps[-3:]
    assert any("latency_mean" in step.message for step in release.steps), [s.message for s in release.steps]


def test_users_can_be_told_by_segments_alone(serving: Serve, start_release: StartRelease) -> None:
    """For routers that cannot keep users with one version."""
    serving()
    segments = [{"name": "staff", "header": "x-team", "values": ["ml"], "revision": "candidate"}]
    release = start_release(AbTest, "2.0.0", segments=segments, sticky=None)
    release.run(until=lambda step: step.phase is Phase.ANALYSING)
    assert release.world.seen.traffic.sticky is None
    assert [item.revision for item in release.world.seen.traffic.segments] == [NEW]


def test_it_needs_a_target_that_can_tell_users_from_each_other() -> None:
    assert Capability.HEADERS in AbTest.needs


def test_two_segments_of_one_name_are_refused() -> None:
    segment = {"name": "staff", "header": "x-team", "values": ["ml"]}
    with pytest.raises(ValidationError, match="two segments have the same name: staff, staff"):
        AbTestOptions.model_validate({"segments": [segment, segment]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"duration": "0s"}, "duration is 0s, so the test would be over at once; write one such as 1h"),
        (
            {"test": {"goal": "latencyy"}},
            "test.goal 'latencyy' is not measured; there are latency, error_rate",
        ),
        (
            {"test": {"minimumEffect": "0%"}},
            "a minimumEffect of 0% is never excluded, so the test would not end",
        ),
        ({"sticky": {"kind": "header", "name": "x y:\r\nz"}}, "is not the name of a header or a cookie"),
        (
            {"segments": [{"name": "a", "header": ":path", "values": ["y"]}]},
            "':path' is not the name of a header or a cookie; write one such as x-user-id",
        ),
    ],
)
def test_a_test_that_could_not_be_run_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AbTestOptions.model_validate(options)
