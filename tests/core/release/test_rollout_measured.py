"""What measurements do to a release: limits, pauses, and the verdicts of A/B and shadow."""

from __future__ import annotations

from shipctl.release.rollout import advance
from shipctl.release.strategy import AnalysisOptions
from shipctl.release.traffic import Mirror, Segment, Sticky, Traffic
from shipctl.spec.units import Duration
from shipctl.stages.base import Phase
from shipctl.stages.verdicts import Outcome
from support_rollout import (
    NEW,
    NEW_NAME,
    OLD,
    OLD_NAME,
    Driven,
    measurement,
    pause,
    strategy,
    weight,
)

TWO_STEPS = (weight(5), pause("20s"), weight(50))


def analysis(**changes: int | str) -> AnalysisOptions:
    given = {name: Duration(item) if isinstance(item, str) else item for name, item in changes.items()}
    return AnalysisOptions(**{"interval": Duration("10s"), **given})


# -- measuring -------------------------------------------------------------------------------------------------


def test_the_first_measurement_waits_for_the_initial_delay() -> None:
    run = Driven(strategy(steps=(weight(5), pause("40s")), analysis=analysis(initialDelay="7s")))
    run.run(Phase.SHIFTING, index=2)
    shifted = 1000.2
    assert [round(at - shifted) for at in run.measured][:2] == [17, 27]


def test_a_step_without_a_pause_ends_with_a_measurement_that_passes() -> None:
    run = Driven(strategy(steps=(weight(5), weight(50))))
    run.outcomes = [Outcome.INCONCLUSIVE, Outcome.PASS]
    run.run(Phase.SHIFTING, index=1)
    assert len(run.measured) == 2


def test_a_failed_measurement_ends_it() -> None:
    run = Driven(strategy(steps=TWO_STEPS))
    run.outcome = Outcome.FAIL
    run.run()
    assert run.phase is Phase.ROLLED_BACK
    assert run.acts[-2:] == ["shift old 100", "scale-down new"]
    assert run.state.reason == "the analysis failed: it is fail"
    assert run.messages[-1] == f"{OLD_NAME} answers everything again"


def test_as_many_may_fail_as_the_limit_says_over_the_whole_release() -> None:
    run = Driven(strategy(steps=TWO_STEPS, analysis=analysis(failureLimit=1)))
    run.outcomes = [Outcome.FAIL, Outcome.PASS, Outcome.PASS, Outcome.FAIL]
    run.run()
    assert run.phase is Phase.ROLLED_BACK
    assert run.state.reason == "2 measurements failed: it is fail"
    assert len(run.measured) == 4


def test_errors_in_a_row_end_it() -> None:
    run = Driven(strategy(steps=TWO_STEPS, analysis=analysis(consecutiveErrorLimit=2)))
    run.outcomes = [Outcome.ERROR, Outcome.ERROR, Outcome.PASS]
    run.outcome = Outcome.ERROR
    run.run()
    assert run.phase is Phase.ROLLED_BACK
    assert run.state.reason == "3 measurements in a row ended in an error: it is error"
    assert len(run.measured) == 6


def test_what_a_measurement_remembers_is_kept_over_the_steps() -> None:
    run = Driven(strategy(steps=TWO_STEPS))
    run.run(Phase.ANALYSING, index=1)
    run.now += 12
    taken = measurement(until=run.now, analysis={"blocks": 3})
    decision = advance(run.plan, NEW, run.state, run.facts(measurement=taken))
    run.state = decision.state
    assert (run.state.analysis, run.state.measured) == ({"blocks": 3}, run.now)


def test_measurements_that_decide_nothing_pause_it_with_the_traffic_where_it_is() -> None:
    run = Driven(strategy(steps=(weight(5), pause("100s")), analysis=analysis(inconclusiveLimit=1)))
    run.outcomes = [Outcome.INCONCLUSIVE] * 2
    decision = run.run(Phase.PAUSED)
    assert decision.message == "paused at 5 %: 2 measurements were inconclusive: it is inconclusive"
    assert decision.requeue > 0
    assert run.traffic.weight(NEW) == 5
    decision = run.run(Phase.ANALYSING)
    assert decision.message == f"going on: 5 % of the requests go to {NEW_NAME}"
    assert len(run.measured) == 3


def test_after_a_pause_the_count_of_what_decides_nothing_begins_anew() -> None:
    run = Driven(strategy(steps=(weight(5), pause("90s")), analysis=analysis(inconclusiveLimit=1)))
    run.outcomes = [Outcome.INCONCLUSIVE] * 2 + [Outcome.PASS, Outcome.INCONCLUSIVE]
    run.run(Phase.PAUSED)
    run.run(Phase.ANALYSING)
    while len(run.measured) < 4:
        run.step()
    assert (run.phase, run.state.inconclusive) == (Phase.ANALYSING, 1)


def test_a_clock_that_is_set_back_does_not_stop_the_measurements() -> None:
    run = Driven(strategy(steps=(weight(5), pause("20s"))))
    run.run(Phase.ANALYSING, index=1)
    run.now -= 36000
    run.run(Phase.SHIFTING, index=2)
    assert run.measured
    assert run.now < 1000 - 36000 + 25


def test_a_pause_in_which_nothing_gets_clearer_is_given_up() -> None:
    run = Driven(strategy(steps=(weight(5),), analysis=analysis(inconclusiveLimit=1)))
    run.outcome = Outcome.INCONCLUSIVE
    run.run(Phase.PAUSED)
    paused = run.now
    run.run()
    assert run.phase is Phase.ROLLED_BACK
    assert run.state.reason == "2 measurements were inconclusive: it is inconclusive; it paused for 100s"
    assert 100 < run.now - paused < 103


def test_a_pause_does_not_hide_a_failure() -> None:
    run = Driven(strategy(steps=(weight(5),), analysis=analysis(inconclusiveLimit=0)))
    run.outcomes = [Outcome.INCONCLUSIVE, Outcome.FAIL]
    run.run(Phase.PAUSED)
    run.run(Phase.ABORTING)
    assert run.state.reason == "the analysis failed: it is fail"


def test_everything_is_measured_once_more_before_it_counts() -> None:
    run = Driven(strategy("bluegreen"))
    run.outcome = Outcome.FAIL
    run.run()
    assert run.phase is Phase.ROLLED_BACK
    assert run.acts == ["prepare", "preflight", "shift new 100", "shift old 100", "scale-down new"]


def test_without_an_analysis_only_time_and_replicas_decide() -> None:
    run = Driven(strategy(steps=TWO_STEPS, analysis=None))
    run.run()
    assert (run.phase, run.measured) == (Phase.DONE, [])


# -- tests: A/B and shadow -------------------------------------------------------------------------------------

SEGMENTS = (
    Segment(name="staff", header="x-team", values=("ml",), revision="candidate"),
    Segment(name="banks", header="x-kind", values=("bank",), revision="stable"),
    Segment(name="mobile", header="x-app", values=("ios",)),
)


def ab(**changes: object) -> Driven:
    sticky = Sticky(kind="header", name="x-user-id")
    given = {"steps": (weight(40),), "duration": Duration("60s"), "sticky": sticky, "segments": SEGMENTS}
    return Driven(strategy("ab-test", **{**given, **changes}))


def test_an_ab_test_splits_by_user_and_segment_and_promotes_what_is_better() -> None:
    run = ab()
    run.outcome = Outcome.INCONCLUSIVE
    run.run(Phase.ANALYSING)
    assert run.traffic.weights == {OLD: 60, NEW: 40}
    assert [segment.revision for segment in run.traffic.segments] == [NEW, OLD, None]
    assert run.traffic.sticky == Sticky(kind="header", name="x-user-id")
    assert {run.step().phase for _ in range(25)} == {Phase.ANALYSING}
    run.outcome, run.conclusive = Outcome.PASS, True
    decision = run.run(Phase.SHIFTING)
    assert decision.message == (f"ab-test passed: it is pass; shifting 100 % of the requests to {NEW_NAME}")
    run.run(Phase.PROMOTING)
    assert run.traffic == Traffic(weights={NEW: 100}, fallback=OLD), "no segment is left behind"
    run.run()
    assert run.phase is Phase.DONE


def test_an_ab_test_that_shows_no_gain_goes_back_with_the_verdict() -> None:
    run = ab()
    run.outcome, run.conclusive = Outcome.INCONCLUSIVE, True
    run.run()
    assert (run.phase, run.state.reason) == (Phase.ROLLED_BACK, "ab-test did not pass: it is inconclusive")


def test_an_ab_test_without_a_verdict_ends_with_its_time_and_a_last_measurement() -> None:
    run = ab()
    run.outcome = Outcome.PASS
    run.run()
    assert run.phase is Phase.ROLLED_BACK
    assert run.state.reason == "ab-test came to no verdict within 1m: it is pass"
    assert 1060 <= run.measured[-1] < 1062


def test_a_last_measurement_can_still_bring_the_verdict() -> None:
    run = ab(analysis=analysis(interval="45s"))
    run.run(Phase.ANALYSING)
    while run.now < 1059:
        run.step()
    run.conclusive = True
    run.run()
    assert run.phase is Phase.DONE


def test_an_ab_test_stops_when_it_does_harm() -> None:
    run = ab()
    run.outcome = Outcome.FAIL
    run.run()
    assert (run.phase, run.state.reason) == (Phase.ROLLED_BACK, "the analysis failed: it is fail")


def shadow(**changes: object) -> Driven:
    return Driven(strategy("shadow", **{"mirror": 12.5, "duration": Duration("60s"), **changes}))


def test_a_shadow_only_copies_and_what_agrees_takes_over() -> None:
    run = shadow()
    run.run(Phase.ANALYSING)
    mirror = Mirror(percent=12.5, candidate=NEW)
    assert run.traffic == Traffic(weights={OLD: 100}, fallback=OLD, mirror=mirror)
    assert run.messages[-1] == f"12.5 % of the requests are copied to {NEW_NAME}"
    assert not run.state.touched
    run.conclusive = True
    run.run()
    assert run.phase is Phase.DONE
    assert run.acts[2:5] == ["shift old 100, mirror 12.5", "shift new 100", "commit new"]


def test_a_shadow_that_disagrees_was_never_released() -> None:
    run = shadow()
    run.outcome, run.conclusive = Outcome.FAIL, True
    run.run()
    assert run.phase is Phase.REJECTED
    assert run.acts[2:] == ["shift old 100, mirror 12.5", "shift old 100", "scale-down new"]
    assert run.messages[-1] == f"{OLD_NAME} answers everything, as before"


def test_a_shadow_that_is_not_to_be_promoted_is_stopped_and_stable_keeps_serving() -> None:
    run = shadow(promote=False)
    run.conclusive = True
    run.run()
    assert run.phase is Phase.DONE
    assert not run.state.committed
    assert run.acts[2:] == ["shift old 100, mirror 12.5", "shift old 100", "scale-down new"]
    assert run.messages[-1] == f"{OLD_NAME} keeps serving; shadow passed"
    assert (run.stable, run.traffic) == (OLD, Traffic.only(OLD))


def test_a_candidate_that_dies_under_copies_is_given_up() -> None:
    run = shadow()
    run.run(Phase.ANALYSING)
    run.lose(NEW)
    assert run.step().phase is Phase.ABORTING
    run.run()
    assert run.phase is Phase.REJECTED
