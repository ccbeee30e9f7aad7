"""What holds a release back: replicas that die, a stable revision that limps, people who have to be asked."""

from __future__ import annotations

import pytest

from shipctl.release.strategy import AnalysisOptions
from shipctl.release.traffic import Traffic
from shipctl.spec.units import Duration
from shipctl.stages.base import Phase
from support_rollout import (
    NEW,
    NEW_NAME,
    OLD,
    OLD_NAME,
    Driven,
    pause,
    replicas,
    strategy,
    weight,
)

TWO_STEPS = (weight(5), pause("20s"), weight(50))


def analysis(**changes: int | str) -> AnalysisOptions:
    given = {name: Duration(item) if isinstance(item, str) else item for name, item in changes.items()}
    return AnalysisOptions(**{"interval": Duration("10s"), **given})


# -- replicas --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [Phase.SHIFTING, Phase.ANALYSING, Phase.PROMOTING, Phase.WATCHING])
def test_a_candidate_that_loses_a_replica_under_traffic_is_given_up_at_once(phase: Phase) -> None:
    run = Driven(strategy(steps=TWO_STEPS))
    run.run(phase, index=None if phase in {Phase.PROMOTING, Phase.WATCHING} else 2)
    run.lose(NEW, 1)
    decision = run.step()
    assert decision.phase is Phase.ABORTING
    assert decision.message == (
        f"{NEW_NAME} is not ready while it has traffic: 1 of 2 replicas are ready (it exited with code 1)"
    )
    run.run()
    assert run.phase is Phase.ROLLED_BACK
    assert (run.stable, run.traffic) == (OLD, Traffic.only(OLD))


def test_a_candidate_without_traffic_is_waited_for() -> None:
    run = Driven(strategy(steps=TWO_STEPS))
    run.run(Phase.SHIFTING)
    run.lose(NEW)
    decision = run.step()
    assert decision.phase is Phase.SHIFTING
    assert decision.message == f"waiting for {NEW_NAME}: 0 of 2 replicas are ready (it exited with code 1)"
    run.heal(NEW)
    run.run()
    assert run.phase is Phase.DONE


def test_while_stable_limps_weights_stay_and_a_pass_proves_nothing() -> None:
    run = Driven(strategy(steps=(weight(5), weight(50)), analysis=analysis(inconclusiveLimit=1)))
    run.run(Phase.ANALYSING)
    run.lose(OLD, 1)
    decision = run.run(Phase.PAUSED)
    assert decision.message == (
        f"paused at 5 %: {OLD_NAME}, which is stable, limps: 1 of 2 replicas are ready (it exited with code 1)"
    )
    run.heal(OLD)
    run.run()
    assert run.phase is Phase.DONE


def test_a_stable_one_that_does_not_recover_ends_the_canary() -> None:
    run = Driven(strategy(steps=(weight(5), weight(50)), analysis=None))
    run.run(Phase.ANALYSING)
    run.lose(OLD, 1)
    run.run()
    assert run.phase is Phase.ROLLED_BACK
    assert run.traffic == Traffic.only(OLD)


def test_a_candidate_takes_over_from_a_stable_one_that_is_gone_for_good() -> None:
    run = Driven(strategy(steps=(weight(5), weight(50))))
    run.run(Phase.ANALYSING)
    run.lose(OLD, 0)
    decision = run.run(Phase.SHIFTING)
    assert decision.message == (
        f"{OLD_NAME}, which is stable, limps: 0 of 2 replicas are ready (it exited with code 1); all requests go to "
        f"{NEW_NAME}"
    )
    assert run.now > 1100
    measured = len(run.measured)
    run.run()
    assert run.phase is Phase.DONE
    assert run.acts[2:] == ["shift old 95, new 5", "shift new 100", "commit new", "scale-down old"]
    assert len(run.measured) > measured, "it has to pass at 100 % by itself"


def test_while_stable_limps_a_pass_counts_as_inconclusive() -> None:
    run = Driven(strategy(steps=(weight(5), pause("90s")), analysis=analysis(inconclusiveLimit=1)))
    run.run(Phase.ANALYSING, index=1)
    run.lose(OLD, 1)
    run.run(Phase.PAUSED)
    assert (run.state.inconclusive, len(run.measured)) == (2, 2)


def test_nothing_is_shifted_to_the_candidate_while_stable_limps() -> None:
    run = Driven(strategy(steps=(weight(5), weight(50)), preflight=False))
    run.run(Phase.SHIFTING)
    run.lose(OLD, 1)
    decision = run.step()
    assert decision.message == (
        f"not shifting: {OLD_NAME}, which is stable, limps: 1 of 2 replicas are ready (it exited with code 1)"
    )
    run.run()
    assert (run.phase, run.acts) == (Phase.ROLLED_BACK, ["prepare", "scale-down new"])
    assert run.state.reason.endswith(f" for 100s: shifting 5 % of the requests to {NEW_NAME}")


def test_without_an_analysis_a_limping_stable_one_pauses_it_too() -> None:
    run = Driven(strategy(steps=(weight(5), pause("10s"), weight(50)), analysis=None))
    run.run(Phase.ANALYSING, index=1)
    run.lose(OLD, 1)
    run.run(Phase.PAUSED)
    assert run.state.index == 1
    run.heal(OLD)
    run.run()
    assert run.phase is Phase.DONE


def test_what_takes_over_from_a_stable_one_that_is_gone_still_needs_its_approvals() -> None:
    run = Driven(strategy(steps=(weight(5), weight(50)), autoPromotion=False))
    run.run(Phase.ANALYSING)
    run.lose(OLD, 0)
    run.run()
    assert (run.phase, run.traffic) == (Phase.ROLLED_BACK, Traffic.only(OLD))


def test_a_test_is_not_skipped_because_stable_was_down() -> None:
    run = Driven(strategy("ab-test", steps=(weight(50),), duration=Duration("60s")))
    run.lose(OLD, 0)
    run.run(Phase.ANALYSING)
    assert run.traffic.weight(NEW) == 50


def test_a_test_is_not_skipped_because_stable_is_gone() -> None:
    run = Driven(strategy("ab-test", steps=(weight(50),), duration=Duration("60s")))
    run.run(Phase.ANALYSING)
    run.lose(OLD, 0)
    run.conclusive = True
    run.run()
    assert run.phase is Phase.ROLLED_BACK


def test_what_mends_a_stable_one_that_is_down_gets_everything_at_once() -> None:
    run = Driven(strategy(steps=TWO_STEPS))
    run.lose(OLD, 0)
    run.run()
    assert run.phase is Phase.DONE
    assert run.acts == ["prepare", "preflight", "shift new 100", "commit new", "scale-down old"]


def test_if_stable_comes_back_before_that_the_steps_are_taken() -> None:
    run = Driven(strategy(steps=TWO_STEPS, preflight=False))
    run.lose(OLD, 0)
    run.step()
    run.heal(OLD)
    run.run(Phase.ANALYSING)
    assert run.traffic.weight(NEW) == 5


def test_a_stable_one_that_limped_before_does_not_stop_its_successor() -> None:
    run = Driven(strategy(steps=TWO_STEPS))
    run.lose(OLD, 1)
    run.run()
    assert run.phase is Phase.DONE
    assert run.acts[2] == "shift old 95, new 5"


def test_a_release_gives_way_when_somebody_else_has_promoted() -> None:
    run = Driven(strategy(steps=TWO_STEPS))
    run.run(Phase.ANALYSING)
    other = "c" * 64
    run.stable, run.traffic = other, Traffic.only(other)
    run.replicas[other] = replicas("2.0.0")
    run.run()
    assert run.state.reason == (
        f"the stable revision is 2.0.0 (cccccccccccc) and not {OLD_NAME}: somebody else has changed it"
    )
    assert run.traffic == Traffic.only(other)
    assert run.acts[-1] == "scale-down new"


# -- people ----------------------------------------------------------------------------------------------------


def test_a_pause_without_an_end_asks_with_the_traffic_back_on_stable() -> None:
    run = Driven(strategy(steps=(weight(20), pause(), weight(50))))
    decision = run.run()
    assert (run.phase, decision.requeue) == (Phase.PAUSED, 0.0)
    assert decision.message == (
        f"{NEW_NAME} waits for approval: step 1; {OLD_NAME} answers everything meanwhile; `shipctl approve`, then "
        "apply again"
    )
    assert run.acts[2:] == ["shift old 80, new 20", "shift old 100"]
    assert len(run.measured) == 1, "what is to be approved has been measured"
    assert run.step().message == decision.message, "asked again, it says the same"
    run.now += 90000
    run.approved = frozenset({"step 1"})
    run.run()
    assert run.phase is Phase.DONE
    assert run.acts[4:6] == ["shift old 80, new 20", "shift old 50, new 50"]


def test_the_run_does_not_end_before_the_traffic_is_back() -> None:
    run = Driven(strategy(steps=(weight(20), pause())))
    run.run(Phase.PAUSED)
    assert run.traffic.weight(NEW) == 20
    assert run.now > 0
    first, second = run.step(), run.step()
    assert first.message == f"all requests go to {OLD_NAME} until this is approved: step 1"
    assert (first.requeue > 0, second.requeue) == (True, 0.0)


def test_what_is_approved_before_is_not_asked_for() -> None:
    run = Driven(strategy(steps=(weight(20), pause(), weight(50))))
    run.approved = frozenset({"step 1"})
    run.run()
    assert run.acts[2:5] == ["shift old 80, new 20", "shift old 50, new 50", "shift new 100"]


def test_a_switch_can_wait_for_an_approval_behind_the_preview_door() -> None:
    run = Driven(strategy("bluegreen", preview=True, autoPromotion=False))
    decision = run.run()
    assert (run.phase, decision.requeue) == (Phase.PAUSED, 0.0)
    assert run.traffic == Traffic(weights={OLD: 100}, fallback=OLD, preview=NEW)
    assert "waits for approval: promote;" in decision.message
    run.lose(NEW)
    run.step()
    assert run.traffic == Traffic.only(OLD), "nobody stands behind the door"
    run.heal(NEW)
    run.approved = frozenset({"promote"})
    run.run()
    assert run.phase is Phase.DONE
    assert not run.state.reason


def test_the_approval_of_a_promotion_comes_before_everything_moves() -> None:
    run = Driven(strategy(steps=(weight(20),), autoPromotion=False))
    run.run()
    assert (run.phase, run.traffic) == (Phase.PAUSED, Traffic.only(OLD))
    first = Driven(strategy("bluegreen", autoPromotion=False), first=True)
    first.run()
    assert (first.phase, first.traffic) == (Phase.PAUSED, Traffic())


def test_what_is_down_is_not_mended_without_the_approvals_on_the_way() -> None:
    run = Driven(strategy(steps=(weight(20), pause(), weight(50))))
    run.lose(OLD, 0)
    run.run()
    assert (run.phase, run.acts) == (Phase.PAUSED, ["prepare", "preflight"])
    run.approved = frozenset({"step 1"})
    run.run()
    assert run.phase is Phase.DONE
    assert run.acts[2] == "shift new 100"


def test_if_stable_comes_back_before_the_approval_the_steps_are_taken() -> None:
    run = Driven(strategy(steps=(weight(20), pause(), weight(50))))
    run.lose(OLD, 0)
    run.run()
    run.heal(OLD)
    run.approved = frozenset({"step 1"})
    run.run()
    assert run.acts[2:] == [
        "shift old 80, new 20", "shift old 50, new 50", "shift new 100", "commit new", "shift new 100",
        "scale-down old",
    ]  # fmt: skip


@pytest.mark.parametrize(("why", "said"), [("too risky", "aborted: too risky"), ("", "aborted")])
def test_a_person_can_abort_it(why: str, said: str) -> None:
    run = Driven(strategy(steps=TWO_STEPS))
    run.run(Phase.ANALYSING)
    run.abort = why
    assert (run.step().message, run.phase) == (said, Phase.ABORTING)
