"""The stage `canary` on a target in memory; on real servers it is in tests/e2e."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from shipctl.errors import SpecError
from shipctl.release.references import validated
from shipctl.release.target import StaleEpochError
from shipctl.stages.base import Phase
from shipctl.stages.context import CheckContext
from shipctl.stages.verdicts import Outcome
from shipctl_plugins.deploy.canary import Canary, CanaryOptions
from support_strategy import Serve, StartRelease

STEPS = [{"setWeight": 5}, {"pause": {"duration": "60s"}}, {"setWeight": 50}, {"pause": {"duration": "60s"}}]


def test_a_good_version_goes_up_step_by_step(serving: Serve, start_release: StartRelease) -> None:
    serving()
    release = start_release(Canary, "2.0.0", steps=STEPS, scaleDownDelay="10s")
    assert release.run().phase is Phase.DONE, release.steps[-3:]
    assert release.world.acts == [
        "prepare", "preflight", "shift 1.0.0:95 2.0.0:5", "shift 1.0.0:50 2.0.0:50", "shift 2.0.0:100",
        "commit 2.0.0", "shift 2.0.0:100", "scale-down 1.0.0",
    ]  # fmt: skip
    assert release.phases == [
        "preparing",
        "preflight",
        "shifting",
        "analysing",
        "promoting",
        "watching",
        "done",
    ]


def test_the_first_version_needs_no_steps(start_release: StartRelease) -> None:
    release = start_release(Canary, "1.0.0")
    assert release.run().phase is Phase.DONE, release.steps[-3:]
    assert "shift 1.0.0:100" in release.world.acts


@pytest.mark.parametrize("bad", ["errors", "slow"])
def test_a_version_that_does_worse_goes_back(serving: Serve, start_release: StartRelease, bad: str) -> None:
    serving()
    release = start_release(Canary, "2.0.0", steps=STEPS)
    getattr(release.world, bad)[release.context.revision] = {"errors": 0.25, "slow": 3.0}[bad]
    assert release.run().phase is Phase.ROLLED_BACK, release.steps[-3:]
    assert release.world.seen.traffic.weights == {"100" * 20: 100}
    assert release.world.acts[-2:] == ["shift 1.0.0:100", "scale-down 2.0.0"]
    verdicts = [verdict for step in release.steps for verdict in step.verdicts]
    assert any(verdict.outcome is Outcome.FAIL for verdict in verdicts)


def test_a_version_that_fails_its_preflight_never_gets_a_request(
    serving: Serve, start_release: StartRelease
) -> None:
    serving()
    release = start_release(Canary, "2.0.0", steps=STEPS)
    release.world.preflight = Outcome.FAIL
    assert release.run().phase is Phase.REJECTED
    assert not [act for act in release.world.acts if act.startswith("shift")]


def test_a_source_of_numbers_that_is_gone_never_promotes(serving: Serve, start_release: StartRelease) -> None:
    serving()
    release = start_release(Canary, "2.0.0", steps=STEPS)
    release.world.provider_down = True
    assert release.run().phase is Phase.ROLLED_BACK
    assert any("the source of numbers is gone" in step.message for step in release.steps)


def test_no_traffic_is_not_a_pass(serving: Serve, start_release: StartRelease) -> None:
    serving()
    release = start_release(Canary, "2.0.0", steps=STEPS, progressDeadline="5m")
    release.world.rate = 0
    assert release.run().phase is Phase.ROLLED_BACK
    assert "paused" in release.phases


def test_replayed_samples_are_asked_for_while_it_is_measured(
    serving: Serve, start_release: StartRelease
) -> None:
    serving()
    release = start_release(Canary, "2.0.0", steps=STEPS, replay={"rate": "20/s"})
    release.run(until=lambda step: bool(step.verdicts) and step.phase is Phase.ANALYSING)
    assert release.world.replaying == 20
    release.run()
    assert release.world.replaying is None


def test_a_pause_without_an_end_waits_with_the_stable_version_serving(
    serving: Serve, start_release: StartRelease
) -> None:
    serving()
    release = start_release(Canary, "2.0.0", steps=[{"setWeight": 5}, {"pause": {}}])
    assert release.run().phase is Phase.PAUSED
    assert release.steps[-1].asks == "step 1"
    assert release.world.seen.traffic.weights == {"100" * 20: 100}
    release.approved.add("step 1")
    assert release.run().phase is Phase.DONE, release.steps[-3:]


def test_after_the_watchdog_another_process_goes_on_and_this_one_does_not(
    serving: Serve, start_release: StartRelease
) -> None:
    serving()
    release = start_release(Canary, "2.0.0", steps=STEPS)
    release.run(until=lambda step: step.phase is Phase.ANALYSING)
    release.world.take_over()
    acts, options = list(release.world.acts), release.stage.options
    with pytest.raises(
        StaleEpochError, match="does not hold the target any more: its lease was removed, or was"
    ):
        release.stage.step(release.state, release.inputs, release.context)
    assert release.world.acts == acts
    release.stage = Canary(options)
    assert release.run().phase is Phase.DONE, release.steps[-3:]
    assert release.world.acts.count("shift 1.0.0:95 2.0.0:5") == 2
    assert any(
        step.message
        == "the watchdog put all requests back on 1.0.0 (100100100100), because nobody held the lease any more; "
        "shifting again"
        for step in release.steps
    ), release.steps


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ([{"setWeight": 50}, {"setWeight": 5}], "5"),
        ([{"setWeight": 101}], "100"),
        ([{"setWait": 5}], "setWait"),
    ],
)
def test_steps_that_make_no_sense_are_refused(steps: list[object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        CanaryOptions.model_validate({"steps": steps})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"steps": [{"setWeight": -5}]},
            "canary: with.steps[0].setWeight must be greater than or equal to 0, not -5; correct it",
        ),
        (
            {"steps": [{"setWeight": 5}, {"pause": {"duration": "-1s"}}]},
            "canary: '-1s' is not a duration; write a number with ns, us, ms, s, m, h or d, such as 30s",
        ),
        (
            {"steps": [{"setWeight": 5, "pause": {}}]},
            "canary: 'setWeight' is not known in with.steps[0]; it takes pause",
        ),
        (
            {"steps": [{"setWeight": 5}, "pause"]},
            "canary: with.steps[1] must be a mapping, not 'pause'; correct it",
        ),
        (
            {"analysis": {"interval": "0s"}},
            "canary: analysis.interval is 0s, in which there is nothing to measure; write one such as 15s",
        ),
        (
            {"analysis": {"confidence": "100%"}},
            "canary: a confidence of 100% cannot be had; write one from 50% to less than 100%, such as 95%",
        ),
        (
            {"analysis": {"errorTolerance": "5%"}},
            "canary: errorTolerance (5%) is above errorLimit (1%): what would fail could also pass; raise errorLimit",
        ),
        (
            {"analysis": {"metrics": [{"name": "x", "provider": "webhook", "min": 5, "max": 1}]}},
            "canary: metric x: min 5 is above max 1, so nothing passes",
        ),
        (
            {"analysis": {"metrics": [{"name": "x", "provider": "webhook", "max": 1}] * 2}},
            "canary: two metrics have the same name: x",
        ),
        (
            {"analysis": {"metrics": [{"name": "x", "provider": "webhook", "max": float("nan")}]}},
            "canary: with.analysis.metrics[0].max must be a finite number, not nan; correct it",
        ),
        (
            {"replay": {"rate": "0/s"}},
            "canary: a replay of 0/s sends nothing; leave `replay` out, or write a rate such as 20/s",
        ),
        (
            {"progressDeadline": "0s"},
            "canary: progressDeadline is 0s, in which no replica can be ready; write one such as 10m",
        ),
    ],
)
def test_options_that_cannot_be_meant_are_refused_with_one_sentence(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(SpecError) as error:
        validated(CanaryOptions, options, "canary")
    assert str(error.value) == message


def test_one_whose_lease_somebody_else_has_by_now_does_nothing(
    serving: Serve, start_release: StartRelease
) -> None:
    serving()
    release = start_release(Canary, "2.0.0", steps=STEPS)
    release.run(until=lambda step: step.phase is Phase.ANALYSING)
    release.world.take_over()
    release.world.holder = "another process"
    acts = list(release.world.acts)
    for act in (release.stage.step, release.stage.abort):
        with pytest.raises(StaleEpochError, match="the lease is held by another process"):
            act(release.state, release.inputs, release.context)
    assert release.world.acts == acts


def test_a_provider_that_may_outlast_the_lease_is_refused(world: object, tmp_path: Path) -> None:
    slow = {"uses": "webhook", "with": {"url": "http://127.0.0.1:1/", "timeout": "20s"}}
    metrics = [{"name": "errors", "max": 1, "provider": slow}]
    options = CanaryOptions.model_validate(
        {"target": "memory", "analysis": {"provider": "memory", "metrics": metrics}}
    )
    with pytest.raises(SpecError, match=r"webhook may take 20 s to answer.*set its timeout to 12s at most"):
        Canary(options).check(CheckContext(project=tmp_path, pipeline="m"))
