"""What one measurement comes to: directed cases with their exact outcomes."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from shipctl.release.analysis import AnalysisState, judge
from shipctl.release.metrics import Samples
from shipctl.release.rollout import Measurement
from shipctl.release.strategy import AnalysisOptions, Metric
from shipctl.stages.verdicts import Outcome
from support_analysis import WINDOW, outcomes, samples, steady, usual, verdict

FAIL, ERROR, INCONCLUSIVE, PASS = Outcome.FAIL, Outcome.ERROR, Outcome.INCONCLUSIVE, Outcome.PASS
OPTIONS = AnalysisOptions()
ERRORS, SLOW = "errors against stable", "slow requests against stable"
SLO = {"error_rate": 0.01, "latency.p95": 0.060}


def once(
    candidate: Samples,
    stable: Samples | None = None,
    slo: dict[str, float] = SLO,
    *,
    options: AnalysisOptions = OPTIONS,
    **more: Any,
) -> Measurement:
    return judge(options, slo, AnalysisState(), stable=stable, candidate=candidate, **more)[1]


def after(
    windows: int,
    *,
    slo: dict[str, float] | None = None,
    options: AnalysisOptions = OPTIONS,
    own: dict[str, Any] | None = None,
    other: dict[str, Any] | None = None,
) -> Measurement:
    """Judge some windows that are all alike; stable has 1,900 requests in each, the candidate 100."""
    state, measurement = AnalysisState(), None
    for place in range(windows):
        when: dict[str, Any] = {"since": place * WINDOW, "until": (place + 1) * WINDOW}
        candidate = samples(**({"durations": usual(100)} | (own or {}) | when))
        stable = samples("stable", **({"durations": usual(1900)} | (other or {}) | when))
        state, measurement = judge(options, slo or {}, state, stable=stable, candidate=candidate)
    assert measurement is not None
    return measurement


def test_a_first_release_within_its_bounds_passes() -> None:
    measurement = once(samples(durations=steady(400)))
    assert outcomes(measurement) == {"samples": PASS, "error_rate": PASS, "latency.p95": PASS}
    assert measurement.summary == "400 requests to the candidate; passed: error_rate, latency.p95"
    assert verdict(measurement, "error_rate").message == "0 % of 400 requests failed, 1 % may"
    assert (
        verdict(measurement, "latency.p95").message == "0 % of 400 requests took longer than 60 ms, 5 % may"
    )


def test_a_first_release_beyond_its_bounds_fails() -> None:
    measurement = once(samples(durations=steady(300, slow=0.5, long=0.2), errors=100))
    assert outcomes(measurement) == {"samples": PASS, "error_rate": FAIL, "latency.p95": FAIL}
    assert verdict(measurement, "error_rate").message == "25 % of 400 requests failed, 1 % may"
    assert verdict(measurement, "latency.p95").value == 0.2


def test_a_few_slow_requests_of_few_abort_nothing() -> None:
    """Two of twenty are 10 %, and no proof that it is more than 5 %."""
    measurement = once(samples(durations=steady(20, slow=0.1, long=0.2)))
    assert outcomes(measurement)["latency.p95"] is INCONCLUSIVE
    measurement = once(samples(durations=steady(60, slow=0.1, long=0.2)))
    assert outcomes(measurement)["latency.p95"] is INCONCLUSIVE
    assert verdict(measurement, "latency.p95").message == (
        "10 % of 60 requests took longer than 60 ms, 5 % may; that can still be chance"
    )


def test_a_percentile_needs_as_many_requests_as_it_can_tell_apart() -> None:
    measurement = once(samples(durations=steady(60, slow=0)), slo={"latency.p99": 0.06})
    assert verdict(measurement, "latency.p99").message == (
        "0 % of 60 requests took longer than 60 ms, 1 % may; 100 requests are needed"
    )
    assert measurement.outcome is INCONCLUSIVE


def test_a_bad_window_after_many_good_ones_does_not_pass() -> None:
    state, measurement = AnalysisState(), once(samples())
    for place in range(20):
        own = samples(since=place * WINDOW, until=(place + 1) * WINDOW, durations=steady(400, slow=0))
        state, measurement = judge(OPTIONS, {"latency.p95": 0.03}, state, stable=None, candidate=own)
    assert measurement.outcome is PASS
    own = samples(since=300, until=315, durations=steady(400, slow=0.1))
    state, measurement = judge(OPTIONS, {"latency.p95": 0.03}, state, stable=None, candidate=own)
    assert verdict(measurement, "latency.p95").message == (
        "0.48 % of 8,400 requests took longer than 30 ms, 5 % may; but 10 % in this window"
    )
    assert measurement.outcome is INCONCLUSIVE


def test_bounds_are_judged_anew_once_the_candidate_has_all_the_traffic() -> None:
    own = samples(durations=steady(4000, slow=0))
    state, _ = judge(OPTIONS, SLO, AnalysisState(), stable=None, candidate=own)
    own = samples(since=15, until=30, durations=steady(400, slow=0.25, long=0.2))
    _, measurement = judge(OPTIONS, SLO, state, stable=None, candidate=own, at_full=True)
    assert outcomes(measurement) == {"samples": PASS, "error_rate": PASS, "latency.p95": FAIL}
    assert verdict(measurement, "samples").message == "400 requests to the candidate"


def test_no_traffic_is_inconclusive() -> None:
    measurement = once(samples(durations=()))
    assert measurement.outcome is INCONCLUSIVE
    assert verdict(measurement, "samples").message == (
        "no request reached the candidate; send some, or let `replay` do it"
    )


def test_no_traffic_is_inconclusive_after_good_windows_too() -> None:
    state, measurement = judge(
        OPTIONS, SLO, AnalysisState(), stable=None, candidate=samples(durations=steady(4000))
    )
    assert measurement.outcome is PASS
    _, measurement = judge(OPTIONS, SLO, state, stable=None, candidate=samples(since=15, until=30))
    assert measurement.outcome is INCONCLUSIVE


def test_too_few_samples_are_inconclusive() -> None:
    measurement = once(samples(durations=steady(49)), slo={"error_rate": 0.5})
    assert measurement.outcome is INCONCLUSIVE
    assert verdict(measurement, "samples").message == "49 requests to the candidate so far, minSamples is 50"


@pytest.mark.parametrize("whose", ["candidate", "stable"])
def test_a_window_that_is_not_wholly_covered_is_inconclusive(whose: str) -> None:
    partly = {"own" if whose == "candidate" else "other": {"coverage": 0.6}}
    measurement = after(8, **partly)  # type: ignore[arg-type]
    assert outcomes(measurement) == {"samples": INCONCLUSIVE, ERRORS: PASS, SLOW: PASS}
    assert verdict(measurement, "samples").message == "the provider vouches for 60 % of the window only"


def test_inconclusive_hides_no_failure() -> None:
    measurement = after(2, own={"coverage": 0.6, "durations": usual(50), "errors": 50})
    assert outcomes(measurement)["samples"] is INCONCLUSIVE
    assert measurement.outcome is FAIL


def test_stable_without_traffic_is_inconclusive() -> None:
    measurement = once(samples(durations=steady(400)), samples("stable"), slo={})
    assert measurement.outcome is INCONCLUSIVE
    assert "no request reached the stable revision" in verdict(measurement, "samples").message


def test_an_idle_replica_is_inconclusive() -> None:
    measurement = once(samples(durations=steady(400), replicas={"a": 380, "b": 20}))
    assert verdict(measurement, "samples").message == (
        "replica b got 20 requests where 200 were its part: latencies say nothing"
    )
    assert measurement.outcome is INCONCLUSIVE
    assert once(samples(durations=steady(400), replicas={"a": 220, "b": 180})).outcome is PASS


def test_a_candidate_of_which_every_request_fails_is_never_passed() -> None:
    measurement = once(samples(errors=60), slo={})
    assert verdict(measurement, "samples").message == "all 60 requests to the candidate failed"
    assert measurement.outcome is FAIL


def test_a_candidate_that_refuses_what_stable_answers_fails() -> None:
    """Refusals are no errors of a server, but here they are no nonsense of clients either."""
    refused = samples(requests=60)
    measurement = once(refused, samples("stable", durations=steady(58), requests=60), slo={})
    assert verdict(measurement, "samples").message == (
        "the candidate answered none of 60 requests, and the stable revision 58 of 60 at the same time: it refuses "
        "what clients send; see whether its inputs have changed"
    )
    assert measurement.outcome is FAIL
    for stable in (samples("stable", requests=60), None):  # nobody is answered, or nobody to compare with
        assert once(refused, stable, slo={}).outcome is not FAIL
    assert once(samples(requests=20), samples("stable", durations=steady(20)), slo={}).outcome is not FAIL


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ({"durations": (0.1, math.nan) * 50}, "a latency is negative or no number"),
        ({"durations": (0.1, math.inf) * 50}, "a latency is negative or no number"),
        ({"durations": (0.1, -0.1) * 50}, "a latency is negative or no number"),
        ({"errors": 101}, "101 errors of 100 requests"),
        ({"requests": 99}, "100 latencies of 99 requests"),
        ({"times": (1.0,)}, "latencies and their times do not match"),
        ({"times": (math.nan,) * 100}, "a time is no number"),
        ({"failed": (1.0,)}, "errors and their times do not match"),
        ({"until": -1.0}, "the window ends before it begins"),
    ],
)
def test_numbers_that_make_no_sense_are_an_error_and_are_forgotten(wrong: dict[str, Any], fault: str) -> None:
    fields: dict[str, Any] = {
        "durations": tuple(steady(100)),
        "requests": 100,
        "times": None,
        "failed": None,
    } | wrong
    own = samples(**fields)
    state, measurement = judge(OPTIONS, SLO, AnalysisState(), stable=None, candidate=own)
    assert measurement.outcome is ERROR
    assert verdict(measurement, "samples").message == f"numbers of the candidate make no sense: {fault}"
    assert state == AnalysisState()


def test_overlapping_windows_are_an_error() -> None:
    state, _ = judge(OPTIONS, SLO, AnalysisState(), stable=None, candidate=samples(durations=steady(100)))
    again = samples(since=10, until=25, durations=steady(100))
    _, measurement = judge(OPTIONS, SLO, state, stable=None, candidate=again)
    assert measurement.outcome is ERROR
    assert "the window begins before the end of the last one" in measurement.summary


def test_the_same_window_counts_once() -> None:
    own = samples(durations=steady(100))
    state, first = judge(OPTIONS, SLO, AnalysisState(), stable=None, candidate=own)
    again, second = judge(OPTIONS, SLO, state, stable=None, candidate=own)
    assert (again, second) == (state, first)


def test_a_latency_bound_without_latencies_is_an_error() -> None:
    measurement = once(samples(durations=None, requests=400), slo={"latency.p95": 0.1})
    assert verdict(measurement, "latency.p95").message == (
        "latency.p95 is missing: the provider does not tell latencies one by one"
    )
    assert measurement.outcome is ERROR


@pytest.mark.parametrize("bound", [math.nan, math.inf])
def test_a_bound_that_is_no_number_is_an_error(bound: float) -> None:
    assert once(samples(durations=steady(400)), slo={"error_rate": bound}).outcome is ERROR


def test_an_objective_that_nobody_knows_is_an_error() -> None:
    measurement = once(samples(durations=steady(400)), slo={"latency.mean": 0.1})
    assert measurement.summary == "latency.mean cannot be judged by requests; take it out of the slo"
    assert measurement.outcome is ERROR


def test_throughput_depends_on_who_asks_and_is_left_out() -> None:
    assert outcomes(once(samples(durations=steady(400)), slo={"throughput": 1e9})) == {"samples": PASS}


def test_equal_revisions_pass_once_limits_are_ruled_out() -> None:
    assert outcomes(after(1)) == {"samples": PASS, ERRORS: INCONCLUSIVE, SLOW: INCONCLUSIVE}
    measurement = after(8)
    assert outcomes(measurement) == {"samples": PASS, ERRORS: PASS, SLOW: PASS}
    assert verdict(measurement, ERRORS).message == (
        "errors +0 points (0 % against 0 %), between -0.6 points and +0.49 points; "
        "+0.2 points is tolerated, +1 point has to be ruled out"
    )


def test_more_errors_than_stable_fail() -> None:
    measurement = after(2, own={"durations": usual(75), "errors": 25})
    assert outcomes(measurement)[ERRORS] is FAIL
    assert verdict(measurement, ERRORS).value == pytest.approx(0.25, abs=1e-3)
    assert verdict(measurement, ERRORS).bound == 0.002


def test_a_slower_candidate_fails() -> None:
    measurement = after(2, own={"durations": usual(100, slower=2)})
    assert outcomes(measurement) == {"samples": PASS, ERRORS: INCONCLUSIVE, SLOW: FAIL}
    assert verdict(measurement, SLOW).message == (
        "requests above 22.5 ms, the stable revision's p95, +36.4 points (41.7 % against 5.29 %), "
        "between +19.8 points and +47 points; +1.08 points is tolerated, +5.15 points has to be ruled out"
    )


@pytest.mark.parametrize(("block", "outcome"), [(1.0, FAIL), (5.0, INCONCLUSIVE)])
def test_few_blocks_decide_nothing(block: float, outcome: Outcome) -> None:
    own = samples(durations=usual(100, slower=20))
    other = samples("stable", durations=usual(1900))
    _, measurement = judge(OPTIONS, {}, AnalysisState(), stable=other, candidate=own, block=block)
    assert outcomes(measurement)[SLOW] is outcome


def test_shares_are_said_to_differ_by_no_more_than_shares_can() -> None:
    few = AnalysisOptions(minSamples=1)
    words = [
        item.message
        for count in (3, 20, 100, 400)
        for item in once(
            samples(durations=steady(count)),
            samples("stable", durations=steady(count)),
            slo={},
            options=few,
            block=0.25,
        ).verdicts
    ]
    bounds = [
        float(number)
        for text in words
        for number in re.findall(r"(?:between|and) ([+-][\d.]+) points?", text)
    ]
    assert bounds
    assert all(-100 <= bound <= 100 for bound in bounds), words


def test_few_requests_decide_nothing() -> None:
    """Thirty failures of thirty one are clear, but fewer than minSamples."""
    own = {"durations": usual(1), "errors": 30}
    assert outcomes(after(1, own=own))[ERRORS] is INCONCLUSIVE
    assert outcomes(after(2, own=own))[ERRORS] is FAIL


def test_errors_whose_times_are_unknown_count_window_by_window() -> None:
    """A burst cannot be told from a steady share in one window, so one window decides nothing."""
    own = {"durations": usual(50), "errors": 50, "failed": None}
    assert outcomes(after(1, own=own))[ERRORS] is INCONCLUSIVE
    assert outcomes(after(4, own=own))[ERRORS] is FAIL


def test_one_burst_of_errors_is_not_taken_for_a_steady_share() -> None:
    """Ten failures within half a second of 15 are one event, not ten."""
    burst = {"durations": usual(90), "errors": 10}
    together = burst | {"failed": tuple(3 + at / 20 for at in range(10))}
    assert outcomes(after(1, own=together))[ERRORS] is INCONCLUSIVE


def test_what_only_just_began_fails_soon() -> None:
    """After ten minutes without an error, one window that is full of them is enough."""
    state = AnalysisState()
    for place in range(41):
        when: dict[str, Any] = {"since": place * WINDOW, "until": (place + 1) * WINDOW}
        bad = place == 40
        own = samples(durations=usual(150 if bad else 200), errors=50 if bad else 0, **when)
        other = samples("stable", durations=usual(800), **when)
        state, measurement = judge(OPTIONS, {}, state, stable=other, candidate=own)
        assert outcomes(measurement)[ERRORS] is (FAIL if bad else PASS) or place < 4


def test_a_burst_that_meets_both_revisions_is_no_difference() -> None:
    slow = usual(100, slower=10)
    state, measurement = AnalysisState(), None
    for place in range(12):
        when: dict[str, Any] = {"since": place * WINDOW, "until": (place + 1) * WINDOW}
        burst = place in {5, 6}
        own = samples(durations=slow if burst else usual(100), **when)
        other = samples("stable", durations=slow * 19 if burst else usual(1900), **when)
        state, measurement = judge(OPTIONS, {}, state, stable=other, candidate=own)
        assert measurement.outcome is not FAIL
    assert measurement is not None
    assert outcomes(measurement)[SLOW] is PASS


def test_the_threshold_stays_as_stable_was_in_the_beginning() -> None:
    state, _ = judge(
        OPTIONS, {}, AnalysisState(), stable=samples("stable", durations=usual(1900)), candidate=samples()
    )
    threshold = state.slow.threshold
    other = samples("stable", since=15, until=30, durations=[value * 3 for value in usual(1900)])
    state, _ = judge(OPTIONS, {}, state, stable=other, candidate=samples(since=15, until=30))
    assert threshold is not None
    assert state.slow.threshold == threshold


def test_latencies_of_one_revision_alone_are_an_error() -> None:
    measurement = after(2, other={"durations": None, "requests": 1900})
    assert outcomes(measurement)[SLOW] is ERROR


def test_a_source_of_counts_compares_errors_alone() -> None:
    counts: dict[str, Any] = {"durations": None, "requests": 1900}
    measurement = after(2, own=counts, other=counts)
    assert outcomes(measurement) == {"samples": PASS, ERRORS: PASS}


def test_latencies_that_stop_coming_are_an_error() -> None:
    state, _ = judge(
        OPTIONS,
        {},
        AnalysisState(),
        stable=samples("stable", durations=usual(1900)),
        candidate=samples(durations=usual(100)),
    )
    counts: dict[str, Any] = {"since": 15.0, "until": 30.0, "durations": None, "requests": 100}
    _, measurement = judge(
        OPTIONS, {}, state, stable=samples("stable", **counts), candidate=samples(**counts)
    )
    assert outcomes(measurement)[SLOW] is ERROR


def test_without_compare_only_bounds_decide() -> None:
    options = OPTIONS.model_copy(update={"compare": False})
    measurement = after(2, slo=SLO, options=options, own={"durations": usual(100, slower=2)})
    assert outcomes(measurement) == {"samples": PASS, "error_rate": PASS, "latency.p95": PASS}


@pytest.mark.parametrize(
    ("answer", "outcome", "message"),
    [
        (None, ERROR, "drift is missing: its provider could not be asked"),
        ({"value": None}, INCONCLUSIVE, "drift has no value for this window"),
        ({"value": math.nan}, ERROR, "drift is nan, <= 0.2 cannot be decided"),
        ({"value": 0.3}, FAIL, "drift 0.3 is not <= 0.2"),
        ({"value": 0.1}, PASS, "drift 0.1 <= 0.2"),
        ({"value": 0.3, "coverage": 0.5}, FAIL, "drift 0.3 is not <= 0.2"),
        (
            {"value": 0.1, "coverage": 0.5},
            INCONCLUSIVE,
            "the provider vouches for 50 % of the window only",
        ),
    ],
)
def test_a_further_metric_decides_too(answer: dict[str, Any] | None, outcome: Outcome, message: str) -> None:
    metric = Metric(name="drift", provider="function", max=0.2)
    found = None if answer is None else samples(**answer)
    measurement = once(samples(durations=steady(400)), extra=[(metric, found)])
    assert measurement.outcome is outcome
    assert message in [item.message for item in measurement.verdicts if item.gate == "drift"]


def test_the_state_survives_json() -> None:
    import json

    state, measurement = judge(
        OPTIONS,
        SLO,
        AnalysisState(),
        stable=samples("stable", durations=usual(1900)),
        candidate=samples(durations=usual(100), errors=1),
    )
    assert AnalysisState.model_validate(json.loads(json.dumps(measurement.analysis))) == state
