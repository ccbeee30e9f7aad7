"""The way forward of a release, path by path, with what a person is told."""

from __future__ import annotations

import pytest

from shipctl.release.decision import RolloutState
from shipctl.release.rollout import advance
from shipctl.release.strategy import canary_steps
from shipctl.release.target import LEASE_SECONDS, Preflight, Prepare, Shift
from shipctl.release.traffic import Traffic
from shipctl.spec.units import Duration
from shipctl.stages.base import Phase
from shipctl.stages.verdicts import Outcome
from support_rollout import (
    NEW,
    NEW_NAME,
    OLD,
    OLD_NAME,
    Driven,
    pause,
    replicas,
    strategy,
    verdict,
    weight,
)

TWO_STEPS = (weight(5), pause("20s"), weight(50))


# -- whole ways ------------------------------------------------------------------------------------------------


def test_a_canary_goes_up_its_steps_and_takes_over() -> None:
    run = Driven(strategy(steps=canary_steps("20s")))
    run.run()
    assert run.phase is Phase.DONE
    assert run.acts == [
        "prepare", "preflight", "shift old 95, new 5", "shift old 90, new 10", "shift old 75, new 25",
        "shift old 50, new 50", "shift new 100", "commit new", "shift new 100", "scale-down old",
    ]  # fmt: skip
    assert run.messages[-1] == f"{NEW_NAME} answers everything"
    assert (run.stable, run.traffic) == (NEW, Traffic.only(NEW))


def test_each_weight_is_kept_for_its_pause_and_measured_meanwhile() -> None:
    run = Driven(strategy(steps=(weight(5), pause("25s"))))
    run.run(Phase.ANALYSING)
    shifted = run.shifted or 0.0
    run.run(Phase.SHIFTING, index=2)
    assert 25 <= run.now - shifted < 27
    assert [round(at - shifted) for at in run.measured] == [10, 20]


def test_the_traffic_of_a_step_falls_back_on_what_is_stable() -> None:
    run = Driven(strategy(steps=TWO_STEPS))
    run.run(Phase.ANALYSING)
    assert run.traffic == Traffic(weights={OLD: 95, NEW: 5}, fallback=OLD)
    run.run(Phase.PROMOTING)
    assert run.traffic == Traffic(weights={NEW: 100}, fallback=OLD)
    run.run(Phase.WATCHING)
    run.step()
    assert run.traffic == Traffic.only(NEW)


def test_a_blue_green_opens_the_preview_door_and_switches_once() -> None:
    run = Driven(strategy("bluegreen", preview=True))
    run.run()
    assert run.phase is Phase.DONE
    assert run.acts == [
        "prepare", "preflight", "shift old 100, preview new", "shift new 100", "commit new", "shift new 100",
        "scale-down old",
    ]  # fmt: skip


def test_a_rolling_release_switches_once() -> None:
    run = Driven(strategy("rolling", preflight=False))
    run.run()
    assert run.acts == ["prepare", "shift new 100", "commit new", "shift new 100", "scale-down old"]


def test_a_first_release_gets_everything_and_is_measured_before_it_counts() -> None:
    run = Driven(strategy(steps=TWO_STEPS), first=True)
    run.run()
    assert run.phase is Phase.DONE
    assert run.acts == ["prepare", "preflight", "shift new 100", "commit new"]
    assert len(run.measured) == 1
    assert run.traffic == Traffic.only(NEW)


def test_what_is_stable_already_is_only_made_whole() -> None:
    run = Driven(strategy(steps=TWO_STEPS, preview=True, autoPromotion=False))
    run.stable, run.traffic, run.starting = NEW, Traffic.only(NEW), True
    run.replicas = {NEW: replicas("1.1.0", ready=1)}
    run.step()
    assert run.step().message == f"waiting for {NEW_NAME}: 1 of 2 replicas are ready"
    run.heal(NEW)
    run.run()
    assert (run.phase, run.acts) == (Phase.DONE, ["prepare"])
    assert run.messages[-1] == f"{NEW_NAME} is whole and answers everything"


# -- before any traffic ----------------------------------------------------------------------------------------


def test_it_begins_by_starting_replicas() -> None:
    run = Driven(strategy(steps=TWO_STEPS))
    decision = advance(run.plan, NEW, run.state, run.facts())
    assert decision.action == Prepare()
    assert decision.phase is Phase.PREPARING
    assert decision.message == f"starting the replicas of {NEW[:12]}"
    assert (decision.state.previous, decision.state.begun) == (OLD, 1000.0)


def test_golden_samples_are_asked_while_replicas_start() -> None:
    run = Driven(strategy(steps=TWO_STEPS))
    run.starting = True
    run.step()
    decision = advance(run.plan, NEW, run.state, run.facts())
    assert decision.action == Preflight()
    assert decision.phase is Phase.PREFLIGHT
    passed = advance(run.plan, NEW, decision.state, run.facts(preflight=(verdict(),)))
    assert passed.message == f"waiting for {NEW_NAME}: 0 of 2 replicas are ready"
    assert passed.verdicts == (verdict(),)
    again = advance(run.plan, NEW, passed.state, run.facts())
    assert again.action is None, "the preflight is not repeated"


@pytest.mark.parametrize("outcome", [Outcome.FAIL, Outcome.ERROR, Outcome.INCONCLUSIVE])
def test_a_preflight_that_does_not_pass_ends_it_before_any_traffic(outcome: Outcome) -> None:
    run = Driven(strategy(steps=TWO_STEPS))
    run.preflight = outcome
    run.run()
    assert run.phase is Phase.REJECTED
    assert run.acts == ["prepare", "preflight", "scale-down new"]
    assert f"the preflight did not pass: golden samples: 3 of 4 {outcome}" in run.messages


def test_a_preflight_that_asked_nothing_did_not_pass() -> None:
    run = Driven(strategy(steps=TWO_STEPS))
    run.step()
    state = advance(run.plan, NEW, run.state, run.facts()).state
    decision = advance(run.plan, NEW, state, run.facts(preflight=()))
    assert (decision.phase, decision.message) == (
        Phase.ABORTING, "the preflight did not pass: it asked nothing",
    )  # fmt: skip


def test_a_preflight_without_an_end_is_given_up() -> None:
    run = Driven(strategy(steps=TWO_STEPS))
    run.step()
    state = advance(run.plan, NEW, run.state, run.facts()).state
    decision = None
    for _ in range(20):
        run.now += 10
        decision = advance(run.plan, NEW, state, run.facts())
        state = decision.state
    assert decision is not None
    assert (decision.phase, state.reason) == (Phase.ABORTING, "the preflight was not over within 100s")


def test_replicas_that_do_not_come_are_given_up_with_their_problem() -> None:
    run = Driven(strategy(steps=TWO_STEPS, preflight=False))
    run.starting = True
    run.step()
    run.lose(NEW, 1, "no memory left")
    run.run()
    assert run.phase is Phase.REJECTED
    assert run.acts == ["prepare", "scale-down new"]
    reason = f"{NEW_NAME} was not ready within 100s: 1 of 2 replicas are ready (no memory left)"
    assert run.state.reason == reason
    assert 1100 < run.now < 1105


def test_replicas_that_have_vanished_are_started_again() -> None:
    run = Driven(strategy(steps=TWO_STEPS, preflight=False))
    run.starting = True
    run.step()
    run.replicas.pop(NEW)
    run.step()
    assert run.acts == ["prepare", "prepare"]


def test_without_a_stable_one_there_is_nothing_to_compare_with() -> None:
    run = Driven(strategy("shadow", mirror=10.0, duration=Duration("1m"), promote=False), first=True)
    run.run()
    assert (run.phase, run.acts) == (Phase.REJECTED, [])
    assert run.messages == [
        f"nothing is stable yet that shadow could compare {NEW[:12]} with; release a first one with canary or bluegreen"
    ]


def test_time_in_which_nobody_looked_does_not_count() -> None:
    run = Driven(strategy(steps=TWO_STEPS, preflight=False))
    run.starting = True
    run.run(Phase.PREPARING)
    run.now += 36000
    decision = run.step()
    assert decision.phase is Phase.PREPARING
    assert decision.state.entered == pytest.approx(run.now - LEASE_SECONDS, abs=3)


def test_a_clock_that_is_set_back_begins_anew() -> None:
    run = Driven(strategy(steps=TWO_STEPS, preflight=False))
    run.starting = True
    run.run(Phase.PREPARING)
    run.now -= 36000
    run.run()
    assert run.phase is Phase.REJECTED
    assert run.now < 1000 - 36000 + 110


# -- traffic ---------------------------------------------------------------------------------------------------


def test_that_requests_may_reach_it_is_known_before_they_do() -> None:
    run = Driven(strategy(steps=TWO_STEPS, preflight=False))
    decision = run.run(Phase.SHIFTING)
    assert decision.action is None
    assert run.state.touched
    assert run.traffic == Traffic.only(OLD)
    assert isinstance(run.step().action, Shift)


def test_a_shift_is_said_again_until_it_is_seen_and_then_given_up() -> None:
    run = Driven(strategy(steps=TWO_STEPS, preflight=False))
    run.run(Phase.SHIFTING)
    acts = 0
    while run.phase is Phase.SHIFTING:
        decision = run.decide()
        acts += decision.action is not None
        run.state = decision.state
        run.now += 5
    assert acts == 21
    reason = f"the traffic did not move for 100s: shifting 5 % of the requests to {NEW_NAME}"
    assert run.state.reason == reason


@pytest.mark.parametrize("which", range(9))
def test_killed_after_an_act_it_goes_on_as_if_it_had_not_been(which: int) -> None:
    whole = Driven(strategy(steps=TWO_STEPS))
    whole.run()
    run = Driven(strategy(steps=TWO_STEPS))
    state = run.state
    while len(run.acts) <= which and not run.phase.is_final:
        state = run.state
        run.step()
    run.state = state  # the act is done, what was decided with it is lost
    run.run()
    assert run.phase is Phase.DONE
    once = [act for index, act in enumerate(run.acts) if index == 0 or act != run.acts[index - 1]]
    assert [act for act in once if act != "preflight"] == [act for act in whole.acts if act != "preflight"]


def test_traffic_that_somebody_else_changed_is_shifted_again() -> None:
    run = Driven(strategy(steps=(weight(5), pause("60s"))))
    run.run(Phase.ANALYSING, index=1)
    run.traffic, run.shifted = Traffic.only(OLD), run.now
    decision = run.step()
    assert decision.phase is Phase.SHIFTING
    assert decision.message == (
        "the traffic is 100 % aaaaaaaaaaaa and not 95 % aaaaaaaaaaaa and 5 % bbbbbbbbbbbb: somebody else has changed "
        "it; shifting again"
    )
    run.run(Phase.ANALYSING)
    assert run.traffic.weight(NEW) == 5
    assert not run.state.passed


def test_traffic_that_is_changed_over_and_over_is_given_up() -> None:
    run = Driven(strategy(steps=(weight(5), pause("60s"))))
    for _ in range(4):
        run.run(Phase.ANALYSING, index=1 if not run.state.disturbed else None)
        run.traffic = Traffic.only(OLD)
        run.step()
    assert run.phase is Phase.ABORTING
    assert run.state.reason == (
        "the traffic is 100 % aaaaaaaaaaaa and not 95 % aaaaaaaaaaaa and 5 % bbbbbbbbbbbb: somebody else has changed "
        "it, the 4th time at this step"
    )


def test_a_pause_begins_when_the_shift_took_effect() -> None:
    run = Driven(strategy(steps=(weight(5), pause("20s")), preflight=False))
    run.run(Phase.SHIFTING)
    run.step()
    run.now += 7
    run.step()
    assert run.phase is Phase.ANALYSING
    assert run.state.entered == run.shifted


def test_nothing_but_the_weight_is_left_at_all_of_the_traffic() -> None:
    run = Driven(strategy(steps=(weight(50), weight(100), pause("10s")), preview=True))
    run.run(Phase.PROMOTING)
    assert run.acts[2:] == [
        "shift old 100, preview new",
        "shift old 50, new 50, preview new",
        "shift new 100",
    ]


def test_traffic_that_somebody_else_gave_it_counts() -> None:
    run = Driven(strategy(steps=(pause("60s"), weight(5))))
    run.run(Phase.ANALYSING)
    run.traffic = Traffic(weights={OLD: 50, NEW: 50}, fallback=OLD)
    run.step()
    run.traffic = Traffic.only(OLD)
    run.abort = "that was not meant"
    run.run()
    assert run.phase is Phase.ROLLED_BACK


def test_a_pause_before_the_first_weight_waits_without_traffic() -> None:
    run = Driven(strategy(steps=(pause("30s"), weight(5))))
    run.run(Phase.SHIFTING, index=1)
    assert 1030 <= run.now < 1033
    assert run.acts == ["prepare", "preflight"]
    assert run.measured == []


# -- promotion -------------------------------------------------------------------------------------------------


def test_the_old_one_stays_warm_and_the_new_one_is_watched() -> None:
    run = Driven(strategy("bluegreen"))
    decision = run.run(Phase.WATCHING)
    assert decision.message == f"{NEW_NAME} is the stable revision; {OLD_NAME} stays warm"
    begin, measured = run.now, len(run.measured)
    assert run.step().message == f"requests fall back on {NEW_NAME} from now on"
    assert run.step().message == f"watching {NEW_NAME} for another 30 s; {OLD_NAME} stays warm"
    run.run()
    assert 30 <= run.now - begin < 32
    assert len(run.measured) > measured


def test_what_fails_while_it_is_watched_is_taken_back() -> None:
    run = Driven(strategy("bluegreen"))
    run.run(Phase.WATCHING)
    run.outcome = Outcome.FAIL
    run.run()
    assert run.phase is Phase.ROLLED_BACK
    assert run.acts[-3:] == ["shift old 100", "commit old", "scale-down new"]


def test_a_watchdog_during_the_watch_is_answered_by_shifting_again() -> None:
    run = Driven(strategy("bluegreen"))
    run.run(Phase.WATCHING)
    run.step()
    run.traffic = Traffic.only(OLD)
    run.run(Phase.SHIFTING)
    decision = run.run(Phase.WATCHING)
    assert decision.message == f"{NEW_NAME} answers everything again"
    run.run()
    assert (run.phase, run.traffic) == (Phase.DONE, Traffic.only(NEW))
    assert run.acts.count("commit new") == 1


def test_a_commit_that_is_not_seen_is_given_up() -> None:
    run = Driven(strategy("bluegreen"))
    run.run(Phase.PROMOTING)
    while run.phase is Phase.PROMOTING:
        run.state = run.decide().state
        run.now += 5
    assert run.state.reason == f"{NEW_NAME} did not become the stable revision within 100s"


def test_an_old_one_that_cannot_be_stopped_does_not_keep_the_release_open() -> None:
    run = Driven(strategy("bluegreen", analysis=None))
    run.run(Phase.WATCHING)
    while not run.phase.is_final:
        before = dict(run.replicas)
        run.step()
        run.replicas = before
    assert (run.phase, run.messages[-1]) == (
        Phase.DONE, f"{NEW_NAME} answers everything; {OLD_NAME} could not be stopped",
    )  # fmt: skip


# -- what does not move ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [Phase.DONE, Phase.ROLLED_BACK, Phase.REJECTED, Phase.ABORTING])
def test_nothing_is_done_any_more_at_the_end(phase: Phase) -> None:
    run = Driven(strategy(steps=TWO_STEPS))
    state = RolloutState(phase=phase, reason="it was too slow")
    decision = advance(run.plan, NEW, state, run.facts())
    assert (decision.phase, decision.action, decision.message) == (phase, None, "it was too slow")


def test_steps_that_were_taken_out_meanwhile_do_not_confuse_it() -> None:
    run = Driven(strategy(steps=canary_steps("10s")))
    run.run(Phase.ANALYSING, index=7)
    run.plan = strategy(steps=(weight(5),))
    run.run()
    assert run.phase is Phase.DONE
