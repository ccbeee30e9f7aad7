"""The way back of a release: traffic first, then the commit, then the replicas."""

from __future__ import annotations

from typing import Any

import pytest

from shipctl.release.decision import RolloutState
from shipctl.release.rollout import retreat
from shipctl.release.target import Commit, ScaleDown, Shift
from shipctl.release.traffic import Traffic
from shipctl.spec.units import Duration
from shipctl.stages.base import Phase
from support_rollout import NEW, NEW_NAME, OLD, OLD_NAME, Driven, replicas, strategy, weight


def at(phase: Phase, *, first: bool = False, **changes: Any) -> Driven:
    """A release that has come to a phase and is to go back."""
    run = Driven(strategy(steps=(weight(25),), **changes), first=first)
    if phase is not Phase.PENDING:
        run.run(phase)
    return run


def back(run: Driven) -> list[str]:
    """Call `retreat` until the end, as the engine does, and return the messages."""
    messages = []
    for _ in range(500):
        decision = retreat(run.plan, NEW, run.state, run.facts(abort="superseded"))
        if decision.action is not None:
            run.apply(decision.action)
        run.state = RolloutState.model_validate(decision.state.model_dump(mode="json"))
        run.now += decision.requeue
        messages.append(decision.message)
        if run.phase.is_final:
            return messages
    raise AssertionError(messages[-1])


def test_that_it_goes_back_is_known_before_the_first_act() -> None:
    run = at(Phase.ANALYSING)
    decision = retreat(run.plan, NEW, run.state, run.facts(abort="superseded"))
    assert (decision.phase, decision.action) == (Phase.ABORTING, None)
    assert (decision.message, decision.state.reason) == ("superseded", "superseded")
    nameless = retreat(run.plan, NEW, run.state, run.facts())
    assert nameless.message == "it was given up"


def test_traffic_goes_back_before_anything_is_stopped() -> None:
    run = at(Phase.ANALYSING)
    assert back(run) == [
        "superseded",
        f"all requests go to {OLD_NAME}",
        f"stopping {NEW_NAME}",
        f"{OLD_NAME} answers everything again",
    ]
    assert run.acts[-2:] == ["shift old 100", "scale-down new"]
    assert run.phase is Phase.ROLLED_BACK


def test_nothing_is_stopped_while_the_traffic_has_not_moved() -> None:
    run = at(Phase.ANALYSING)
    run.state = run.state.model_copy(update={"phase": Phase.ABORTING})
    for _ in range(5):
        decision = retreat(run.plan, NEW, run.state, run.facts())
        assert decision.action == Shift(traffic=Traffic.only(OLD))
        assert decision.requeue > 0
        run.now += 60


@pytest.mark.parametrize("phase", [Phase.PENDING, Phase.PREPARING, Phase.PREFLIGHT])
def test_what_never_got_traffic_is_rejected(phase: Phase) -> None:
    run = Driven(strategy(steps=(weight(25),)))
    run.starting = True
    if phase is not Phase.PENDING:
        run.run(phase)
    messages = back(run)
    assert run.phase is Phase.REJECTED
    assert run.traffic == Traffic.only(OLD)
    assert run.replicas == {OLD: replicas("1.0.0")}
    assert messages[-1] == f"{OLD_NAME} answers everything, as before"


def test_a_promotion_is_taken_back_after_the_traffic() -> None:
    run = at(Phase.WATCHING)
    messages = back(run)
    assert run.acts[-3:] == ["shift old 100", "commit old", "scale-down new"]
    assert f"{OLD_NAME} is the stable revision again" in messages
    assert (run.phase, run.stable) == (Phase.ROLLED_BACK, OLD)


def test_during_a_promotion_what_is_seen_counts_and_not_what_was_written() -> None:
    before, after = at(Phase.PROMOTING), at(Phase.PROMOTING)
    after.apply(Commit(expected=OLD, revision=NEW))  # and killed before that was saved
    assert not after.state.committed
    back(before)
    back(after)
    assert "commit old" not in before.acts
    assert after.acts[-3:] == ["shift old 100", "commit old", "scale-down new"]
    assert before.phase is after.phase is Phase.ROLLED_BACK


def test_killed_after_an_act_it_sees_that_it_is_done() -> None:
    run = at(Phase.WATCHING)
    run.state = run.state.model_copy(update={"phase": Phase.ABORTING})
    acts = []
    for _ in range(3):
        action = retreat(run.plan, NEW, run.state, run.facts()).action  # the act is done, its record is lost
        assert action is not None
        acts.append(action)
        run.apply(action)
    only = Shift(traffic=Traffic.only(OLD))
    assert acts == [only, Commit(expected=NEW, revision=OLD), ScaleDown(revision=NEW)]
    back(run)
    assert run.phase is Phase.ROLLED_BACK


def test_the_candidate_is_kept_for_a_while_to_look_at() -> None:
    run = at(Phase.ANALYSING, abortScaleDownDelay=Duration("40s"))
    begin = run.now
    messages = back(run)
    assert f"keeping {NEW_NAME} for another 40 s" in messages
    assert 40 <= run.now - begin < 43


def test_a_first_release_closes_the_door_again() -> None:
    run = at(Phase.ANALYSING, first=True)
    messages = back(run)
    assert run.acts[-2:] == ["shift closed", "scale-down new"]
    assert (run.phase, run.stable, run.traffic) == (Phase.REJECTED, None, Traffic())
    assert messages[-1] == "nothing serves, as before"


def test_a_first_release_that_was_promoted_is_taken_back() -> None:
    run = at(Phase.PROMOTING, first=True)
    run.apply(Commit(expected=None, revision=NEW))
    back(run)
    assert run.acts[-3:] == ["shift closed", "commit nothing", "scale-down new"]
    assert (run.phase, run.stable) == (Phase.REJECTED, None)


def test_a_stable_one_without_replicas_is_gone_back_to_all_the_same() -> None:
    run = at(Phase.ANALYSING)
    run.lose(OLD)
    back(run)
    assert (run.phase, run.traffic) == (Phase.ROLLED_BACK, Traffic.only(OLD))


def test_after_the_old_one_was_stopped_only_a_rollback_goes_back() -> None:
    run = at(Phase.WATCHING)
    run.step()
    run.apply(ScaleDown(revision=OLD))  # and killed before that was saved
    run.traffic = Traffic(weights={NEW: 100}, fallback=OLD)
    messages = back(run)
    assert (run.phase, run.stable, run.traffic) == (Phase.DONE, NEW, Traffic.only(NEW))
    assert messages[-1] == (
        f"{NEW_NAME} was promoted and {OLD[:12]} stopped before this could be aborted; `shipctl rollback` goes back"
    )


def test_what_is_stable_already_is_never_stopped() -> None:
    run = Driven(strategy(steps=(weight(25),)))
    run.stable, run.traffic, run.starting = NEW, Traffic.only(NEW), True
    run.replicas = {NEW: replicas("1.1.0", ready=1)}
    run.step()
    messages = back(run)
    assert (run.phase, run.acts) == (Phase.REJECTED, ["prepare"])
    assert messages[-1] == f"{NEW_NAME} serves as before"


def test_what_is_stable_already_is_left_alone_before_the_first_step() -> None:
    run = at(Phase.PENDING)
    run.stable, run.traffic, run.replicas = NEW, Traffic.only(NEW), {NEW: replicas("1.1.0")}
    back(run)
    assert (run.phase, run.acts, run.traffic) == (Phase.REJECTED, [], Traffic.only(NEW))


def test_traffic_that_somebody_else_gave_it_counts() -> None:
    run = at(Phase.PREPARING)
    run.traffic = Traffic(weights={OLD: 50, NEW: 50}, fallback=OLD)
    back(run)
    assert run.phase is Phase.ROLLED_BACK


def test_somebody_elses_promotion_is_left_alone() -> None:
    run = at(Phase.ANALYSING)
    other = "c" * 64
    run.stable, run.replicas[other] = other, replicas("2.0.0")
    back(run)
    assert run.traffic == Traffic.only(other)
    assert (run.stable, run.acts[-1]) == (other, "scale-down new")


def test_a_candidate_that_cannot_be_stopped_does_not_keep_it_open() -> None:
    run = at(Phase.ANALYSING)
    kept = run.replicas[NEW]
    decision = retreat(run.plan, NEW, run.state, run.facts())
    for _ in range(1000):
        decision = retreat(run.plan, NEW, run.state, run.facts())
        if decision.action is not None:
            run.apply(decision.action)
        run.replicas[NEW] = kept
        run.state = decision.state
        run.now += decision.requeue
        if run.phase.is_final:
            break
    assert run.phase is Phase.ROLLED_BACK
    assert decision.message == f"{OLD_NAME} answers everything again; {NEW_NAME} could not be stopped"


def test_an_abort_of_an_abort_changes_nothing() -> None:
    run = at(Phase.ANALYSING)
    state = retreat(run.plan, NEW, run.state, run.facts(abort="first")).state
    again = retreat(run.plan, NEW, state, run.facts(abort="second"))
    assert (again.phase, again.state.reason) == (Phase.ABORTING, "first")
    assert again.action == Shift(traffic=Traffic.only(OLD))


@pytest.mark.parametrize("phase", [Phase.DONE, Phase.ROLLED_BACK, Phase.REJECTED])
def test_what_has_ended_is_left_alone(phase: Phase) -> None:
    run = at(Phase.ANALYSING)
    decision = retreat(run.plan, NEW, RolloutState(phase=phase), run.facts(abort="late"))
    assert (decision.phase, decision.action, decision.message) == (phase, None, f"it is {phase}")
