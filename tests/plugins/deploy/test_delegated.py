"""Release stages on a target with an engine, which is in memory; the state machine is in tests/core/release."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import support_delegated
from shipctl.errors import SpecError, StageError
from shipctl.release.delegated import DelegatedTarget
from shipctl.release.stage import StrategyStage
from shipctl.release.strategy import Strategy, canary_steps
from shipctl.release.target import Candidate, StaleEpochError
from shipctl.stages.base import Phase
from shipctl.stages.context import CheckContext, Objectives, ReleaseContext
from shipctl.stages.verdicts import Outcome
from shipctl.testing import DelegatedConformance
from shipctl_plugins.deploy.bluegreen import Bluegreen
from shipctl_plugins.deploy.canary import Canary
from shipctl_plugins.deploy.shadow import Shadow
from support_delegated import Engine, MemoryEngine
from support_strategy import Release, StartRelease

STEPS = [{"setWeight": 5}, {"pause": {"duration": "60s"}}, {"setWeight": 50}, {"pause": {"duration": "60s"}}]
ASKING = [{"setWeight": 5}, {"pause": {}}]
OLD, NEW, OTHER = "100" * 20, "200" * 20, "300" * 20


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, start_release: StartRelease, world: Any) -> Engine:
    """The engine, which already serves 1.0.0; measurements see what is true of it."""
    engine = support_delegated.install(monkeypatch)
    engine.current = engine.stable = OLD
    engine.weight = 100
    return engine


@pytest.fixture
def start(engine: Engine, start_release: StartRelease, monkeypatch: pytest.MonkeyPatch) -> StartRelease:
    """Return a function that begins a release on the target `engine`."""

    def begin(cls: type[StrategyStage[Any]], version: str = "2.0.0", **options: Any) -> Release:
        release = start_release(cls, version, **{"target": "engine", **options})
        engine.now = release.clock
        follow = MemoryEngine.follow

        def measured(self: MemoryEngine, revision: str) -> Any:
            seen = follow(self, revision)
            traffic = release.world.seen.traffic
            weights = {revision: 100} if seen.weight == 100 else {}
            changed = traffic.model_copy(update={"weights": weights})
            release.world.seen = release.world.seen.model_copy(update={"traffic": changed})
            return seen

        monkeypatch.setattr(MemoryEngine, "follow", measured)
        return release

    return begin


def test_the_engine_goes_up_step_by_step_and_is_watched_then(engine: Engine, start: StartRelease) -> None:
    release = start(Canary, steps=STEPS, scaleDownDelay="40s")
    assert release.run().phase is Phase.DONE, release.steps[-3:]
    assert release.phases == ["preflight", "shifting", "analysing", "watching", "done"]
    assert engine.acts == ["preflight", "submit 2.0.0"]
    assert any(step.verdicts and step.phase is Phase.WATCHING for step in release.steps)
    messages = [step.message for step in release.steps]
    assert "handed 2.0.0 over" in messages
    assert f"5 % of the requests go to {NEW[:12]}, for another 60 s" in messages


def test_it_goes_on_where_it_was_killed(engine: Engine, start: StartRelease) -> None:
    release = start(Canary, steps=STEPS)
    for _ in range(400):
        other = type(release.stage)(release.stage.options)  # another process each time
        release.stage = other
        if release.step().phase.is_final:
            break
        release.clock.advance(release.steps[-1].requeue)
    assert release.steps[-1].phase is Phase.DONE, release.steps[-3:]
    assert engine.acts == ["preflight", "submit 2.0.0"]


def test_an_act_whose_record_was_lost_is_said_again_and_changes_nothing(
    engine: Engine, start: StartRelease
) -> None:
    release = start(Canary, steps=STEPS)
    release.run(until=lambda step: step.phase is Phase.PREFLIGHT)
    before = release.state
    release.step()
    release.clock.advance(30)
    entered = engine.entered
    release.state = before
    assert release.run().phase is Phase.DONE
    assert engine.acts == ["preflight", "submit 2.0.0", "submit 2.0.0"]
    assert entered < engine.entered


def test_a_pause_waits_for_people_and_the_engine_holds_the_traffic(
    engine: Engine, start: StartRelease
) -> None:
    release = start(Canary, steps=ASKING)
    step = release.run()
    assert (step.phase, step.requeue, step.asks) == (Phase.PAUSED, 0, "step 1")
    assert step.message == (
        f"{NEW[:12]} waits for approval at 5 %: step 1: it pauses; `shipctl approve`, then apply again"
    )
    assert engine.weight == 5
    release.clock.advance(24 * 3600)
    release.approved.add("step 1")
    release.stage = type(release.stage)(release.stage.options)
    assert release.run().phase is Phase.DONE, release.steps[-3:]
    assert engine.acts.count("resume") == 1


def test_what_the_engine_gives_up_goes_back_in_its_words(engine: Engine, start: StartRelease) -> None:
    release = start(Canary, steps=STEPS)
    release.run(until=lambda step: step.phase is Phase.ANALYSING)
    engine.trouble = "error_rate was 0.25"
    assert release.run().phase is Phase.ROLLED_BACK
    assert engine.acts[-1] == "abort"
    assert (engine.stable, engine.current) == (OLD, OLD)
    assert any(step.message.endswith("given up by the engine: error_rate was 0.25") for step in release.steps)


def test_one_that_is_bad_with_all_requests_is_taken_back(engine: Engine, start: StartRelease) -> None:
    release = start(Canary, steps=STEPS, slo={"error_rate": 0.01})
    release.world.errors[NEW] = 0.5
    assert release.run().phase is Phase.ROLLED_BACK, release.steps[-3:]
    assert (engine.stable, engine.current) == (OLD, OLD)


def test_a_preflight_that_fails_hands_nothing_over(engine: Engine, start: StartRelease) -> None:
    release = start(Canary, steps=STEPS)
    engine.preflight = Outcome.FAIL
    assert release.run().phase is Phase.REJECTED
    assert engine.acts == ["preflight"]


def test_a_person_can_abort_at_every_moment(engine: Engine, start: StartRelease) -> None:
    for after in range(1, 10):
        engine.current = engine.stable = OLD
        engine.weight, engine.trouble = 100, ""
        release = start(Canary, f"2.0.{after}", steps=STEPS)
        for _ in range(after):
            release.step()
            release.clock.advance(20)
        wish = {**vars(release.context), "aborted": lambda: "enough"}
        release.context = ReleaseContext(**wish)
        step = release.run()
        assert step.phase in {Phase.ROLLED_BACK, Phase.REJECTED}, (after, release.steps[-3:])
        assert (engine.stable, engine.current) == (OLD, OLD)


def test_what_somebody_else_applies_meanwhile_is_left_alone(engine: Engine, start: StartRelease) -> None:
    release = start(Canary, steps=STEPS)
    release.run(until=lambda step: step.phase is Phase.ANALYSING)
    engine.current = OTHER
    acts = list(engine.acts)
    with pytest.raises(StaleEpochError, match=f"somebody else has applied {OTHER[:12]} while {NEW[:12]} was"):
        release.stage.step(release.state, release.inputs, release.context)
    assert engine.acts == acts


def test_an_engine_that_does_not_run_is_given_up_and_said_to_be_stuck(
    engine: Engine, start: StartRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = start(Canary, steps=STEPS, progressDeadline="30s")
    engine.stopped = True
    monkeypatch.setattr(MemoryEngine, "abort", lambda self, revision, stable: engine_told())

    def engine_told() -> Any:
        from shipctl.release.target import Applied

        return Applied(message="it was told")

    release.run(until=lambda step: step.phase is Phase.ABORTING)
    assert "came no further" in release.steps[-1].message
    for _ in range(30):
        assert release.step().message == "it was told"
        release.clock.advance(1)
    release.clock.advance(2)
    with pytest.raises(StageError, match="takes longer than 30 s"):
        release.stage.abort(release.state, release.inputs, release.context)


def test_a_rollback_is_quick_and_keeps_to_the_kind_of_strategy(
    engine: Engine, start: StartRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Strategy] = []
    submit = MemoryEngine.submit

    def seen(self: MemoryEngine, candidate: Candidate, strategy: Strategy) -> Any:
        given.append(strategy)
        return submit(self, candidate, strategy)

    monkeypatch.setattr(MemoryEngine, "submit", seen)
    release = start(Canary, steps=ASKING)
    release.context = ReleaseContext(**{**vars(release.context), "intent": "rollback"})
    assert release.run().phase is Phase.DONE
    assert (given[0].name, given[0].steps, given[0].analysis) == ("canary", (), None)
    assert engine.acts == ["submit 2.0.0"]


def test_the_plan_names_what_the_engine_does_not_keep(engine: Engine, start: StartRelease) -> None:
    release = start(Canary, steps=STEPS)
    lines = release.stage.preview(release.context)
    assert "not enforced by engine: whoever drives has no lease" in lines
    assert "shipctl measures by memory once it is promoted, for 30s, by absolute bounds" in lines
    assert any(line.startswith("once promoted, engine is told to go back within ") for line in lines)


def test_in_place_is_what_is_promoted_and_nothing_else(engine: Engine, start: StartRelease) -> None:
    release = start(Canary, steps=STEPS)
    stage, inputs = release.stage, release.inputs
    assert not stage.in_place(inputs, release.context)
    release.run()
    assert stage.in_place(inputs, release.context)
    engine.current = OTHER
    assert not stage.in_place(inputs, release.context)


CHECKS: list[tuple[type[StrategyStage[Any]], dict[str, Any], str]] = [
    (Shadow, {}, "engine cannot copy requests; use canary"),
    (
        Canary,
        {"analysis": {}},
        (
            "the target engine has no access log on this machine, from which analysis.provider access-log reads; set "
            "analysis.provider to another one, such as prometheus"
        ),
    ),
    (
        Bluegreen,
        {"replay": {"rate": "5/s"}},
        "the target engine cannot replay golden samples; leave `replay` out",
    ),
]


@pytest.mark.parametrize(("cls", "options", "message"), CHECKS)
def test_what_the_engine_cannot_do_is_said_when_planning(
    engine: Engine, tmp_path: Path, cls: type[StrategyStage[Any]], options: dict[str, Any], message: str
) -> None:
    given = {"target": "engine", "analysis": {"provider": "memory"}, **options}
    stage = cls(cls.options_model.model_validate(given))
    with pytest.raises(SpecError) as error:
        stage.check(CheckContext(project=tmp_path, pipeline="m"))
    assert str(error.value) == message


def test_a_budget_that_cannot_be_kept_is_refused(engine: Engine, tmp_path: Path) -> None:
    options = {"target": "engine", "analysis": {"provider": "memory", "interval": "5m"}}
    context = CheckContext(project=tmp_path, pipeline="m", objectives=Objectives(budget={"rollback": 60.0}))
    with pytest.raises(
        SpecError, match=r"telling the engine to go back can take \d+ s .* budget.rollback is 60 s"
    ):
        Canary(Canary.options_model.model_validate(options)).check(context)


class TestEngine(DelegatedConformance):
    """The kit itself, on the engine in memory."""

    name, plugin = "engine", MemoryEngine
    strategy = Strategy(name="canary", steps=canary_steps("1h"))

    @pytest.fixture
    def target(self, monkeypatch: pytest.MonkeyPatch, start_release: StartRelease) -> DelegatedTarget:
        support_delegated.install(monkeypatch)
        release = start_release(Canary, "1.0.0")
        return MemoryEngine(MemoryEngine.options_model(), release.context)

    @pytest.fixture
    def candidates(self, start_release: StartRelease) -> tuple[Candidate, Candidate]:
        return _candidate(start_release, "1.0.0"), _candidate(start_release, "2.0.0")

    def test_entry_point_names_this_class(self) -> None:
        """It is installed for each test by itself."""

    def finish(self, target: DelegatedTarget) -> None:
        assert isinstance(target, MemoryEngine)
        target.engine.steps = []
        target.follow("")

    def give_up(self, target: DelegatedTarget) -> None:
        assert isinstance(target, MemoryEngine)
        target.engine.trouble, target.engine.weight = "it is bad", 0

    def go_back(self, target: DelegatedTarget) -> None:
        target.follow("")


def _candidate(start_release: Callable[..., Release], version: str) -> Candidate:
    release = start_release(Canary, version)
    inputs = release.inputs
    return Candidate(
        revision=release.context.revision, version=version, repository=inputs.repository, golden=inputs.golden
    )
