"""A/B tests: effect, interval, stopping rule, guardrails, segments."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from typing import Any

import pytest

from shipctl.release.analysis import AbState, Values, judge_ab
from shipctl.release.metrics import Samples
from shipctl.release.rollout import Measurement
from shipctl.release.strategy import AbOptions, Metric
from shipctl.stages.verdicts import Outcome
from support_analysis import WINDOW, outcomes, samples, usual, verdict

FAIL, ERROR, INCONCLUSIVE, PASS = Outcome.FAIL, Outcome.ERROR, Outcome.INCONCLUSIVE, Outcome.PASS
ALL = "goal latency"


def run(
    options: AbOptions,
    *,
    windows: int = 40,
    slower: float = 1.0,
    errors: int = 0,
    score: float | None = None,
    metric: Metric | None = None,
    segments: Mapping[str, float] | None = None,
) -> list[Measurement]:
    """Run a test until it is over: 300 requests to each revision in a window, one metric of our own."""
    state, found, rng = AbState(), list[Measurement](), random.Random(3)
    for place in range(windows):
        when: dict[str, Any] = {"since": place * WINDOW, "until": (place + 1) * WINDOW}
        parts = segments or {"all": slower}
        own = {
            name: samples(durations=usual(300, slower=factor), errors=errors, **when)
            for name, factor in parts.items()
        }
        other = {name: samples("stable", durations=usual(300), **when) for name in parts}
        values = {}
        if metric is not None:
            better = [5 + (score or 0) + rng.gauss(0, 1) for _ in range(300)]
            usually = [5 + rng.gauss(0, 1) for _ in range(300)]
            values[metric.name] = Values(
                metric,
                {"all": samples("stable", durations=usually, **when)},
                {"all": samples(durations=better, **when)},
            )
        state, measurement = judge_ab(options, state, stable=other, candidate=own, values=values)
        state = AbState.model_validate(json.loads(json.dumps(measurement.analysis)))
        found.append(measurement)
        if measurement.conclusive:
            break
    return found


def test_a_faster_candidate_wins() -> None:
    looks = run(AbOptions(goal="latency"), slower=0.8)
    assert looks[-1].conclusive
    assert outcomes(looks[-1]) == {"samples": PASS, ALL: PASS, "guardrail error_rate": PASS}
    assert verdict(looks[-1], ALL).message.startswith(
        "latency: the candidate is better, -3 points (between -"
    )
    assert [look.outcome for look in looks[:-1]] == [INCONCLUSIVE] * (len(looks) - 1)


def test_a_slower_candidate_loses() -> None:
    looks = run(AbOptions(goal="latency"), slower=1.3)
    assert looks[-1].conclusive
    assert looks[-1].outcome is FAIL
    assert verdict(looks[-1], ALL).message.startswith("latency: the candidate is worse, +")


def test_no_difference_that_matters_ends_the_test_too() -> None:
    looks = run(AbOptions(goal="latency", minimumEffect="3%"))
    assert looks[-1].conclusive
    assert looks[-1].outcome is PASS
    assert verdict(looks[-1], ALL).message.startswith(
        "latency: no difference that matters, +0 points (between -"
    )


def test_a_difference_too_small_to_tell_goes_on() -> None:
    looks = run(AbOptions(goal="latency", minimumEffect="0.1%"), windows=10)
    assert not any(look.conclusive for look in looks)
    assert verdict(looks[-1], ALL).message.startswith("latency: not decided yet, +0 points (between -")


def test_a_difference_that_may_be_chance_goes_on() -> None:
    looks = run(AbOptions(goal="latency", minimumEffect="0.1%"), slower=1.02, windows=10)
    assert verdict(looks[-1], ALL).message.startswith("latency: not decided yet, +0.")


def test_many_segments_make_each_of_them_less_sure() -> None:
    options = AbOptions(goal="latency", minimumEffect="0.1%")
    single = run(options, windows=6, segments={"web": 1.0})[-1]
    several = run(options, windows=6, segments={"web": 1.0, "mobile": 1.0, "api": 1.0})[-1]
    gate = "goal latency, segment web"
    assert verdict(single, gate).message == "segment web: +0 points (between -2.78 points and +2.78 points)"
    assert verdict(several, gate).message == "segment web: +0 points (between -3.11 points and +3.11 points)"


def test_errors_can_be_the_goal_and_latency_is_a_guardrail_then() -> None:
    looks = run(AbOptions(goal="error_rate"), errors=30)
    assert looks[-1].outcome is FAIL
    assert outcomes(looks[-1]).keys() == {"samples", "goal error_rate", "guardrail latency"}


def test_a_guardrail_stops_a_winner() -> None:
    looks = run(AbOptions(goal="latency"), slower=0.5, errors=30)
    assert looks[-1].outcome is FAIL
    assert outcomes(looks[-1])["guardrail error_rate"] is FAIL
    assert outcomes(looks[-1])[ALL] is PASS


@pytest.mark.parametrize(
    ("bound", "score", "outcome"),
    [({"min": 0}, 0.3, PASS), ({"min": 0}, -0.3, FAIL), ({"max": 9}, 0.3, FAIL), ({"max": 9}, -0.3, PASS)],
)
def test_a_metric_of_ones_own_can_be_the_goal(
    bound: dict[str, float], score: float, outcome: Outcome
) -> None:
    """With a least value more is better, with a largest one less."""
    metric = Metric(name="score", provider="function", **bound)
    looks = run(AbOptions(goal="score"), metric=metric, score=score)
    assert looks[-1].conclusive
    assert outcomes(looks[-1])["goal score"] is outcome
    better = score > 0 if "min" in bound else score < 0
    assert (verdict(looks[-1], "goal score").value or 0) * (1 if better else -1) == pytest.approx(
        -0.06, abs=0.02
    )


def test_a_metric_can_be_a_guardrail() -> None:
    metric = Metric(name="score", provider="function", min=0, guardrail=True)
    looks = run(AbOptions(goal="latency"), slower=0.5, metric=metric, score=-1)
    assert outcomes(looks[-1])["guardrail score"] is FAIL
    assert looks[-1].outcome is FAIL


@pytest.mark.parametrize(("value", "outcome"), [(0.04, PASS), (0.06, FAIL), (None, INCONCLUSIVE)])
def test_a_metric_that_is_neither_goal_nor_guardrail_has_to_be_within_its_bounds(
    value: float | None, outcome: Outcome
) -> None:
    metric = Metric(name="latency_mean", provider="prometheus", max=0.05)
    _, look = judge_ab(
        AbOptions(goal="latency"),
        AbState(),
        stable={"all": samples("stable", durations=usual(300))},
        candidate={"all": samples(durations=usual(300))},
        extra=[(metric, samples(value=value))],
    )
    assert outcomes(look)["latency_mean"] is outcome
    assert (look.outcome is FAIL) is (outcome is FAIL)


def test_a_segment_for_which_it_is_worse_does_not_disappear_in_the_whole() -> None:
    looks = run(AbOptions(goal="latency"), segments={"mobile": 1.25, "web": 0.4, "api": 0.4}, windows=30)
    assert outcomes(looks[-1])["goal latency, segment mobile"] is INCONCLUSIVE
    assert outcomes(looks[-1])["goal latency, segment web"] is PASS
    assert verdict(looks[-1], "goal latency, segment mobile").message.startswith(
        "segment mobile: the candidate is worse, +"
    )
    assert outcomes(looks[-1])[ALL] is PASS
    assert not any(look.conclusive for look in looks)


def test_a_goal_that_nobody_measures_is_an_error() -> None:
    (look,) = run(AbOptions(goal="score"), windows=1)
    assert verdict(look, "goal score").message == "score is missing: no provider told it request by request"
    assert look.outcome is ERROR


def test_no_traffic_is_inconclusive() -> None:
    empty = {"all": samples()}
    _, look = judge_ab(AbOptions(), AbState(), stable={"all": samples("stable")}, candidate=empty)
    assert look.outcome is INCONCLUSIVE
    assert not look.conclusive


def test_guardrails_without_enough_requests_are_inconclusive() -> None:
    _, look = judge_ab(
        AbOptions(goal="latency"),
        AbState(),
        stable={"all": samples("stable", durations=usual(300))},
        candidate={"all": samples(durations=usual(30))},
    )
    assert verdict(look, "guardrail error_rate").message == "error_rate: too few requests to say anything"
    assert outcomes(look) == {"samples": PASS, ALL: INCONCLUSIVE, "guardrail error_rate": INCONCLUSIVE}


@pytest.mark.parametrize("broken", [{"coverage": 0.5}, {"durations": (math.nan,), "times": None}])
def test_a_broken_window_ends_no_test(broken: dict[str, Any]) -> None:
    looks = run(AbOptions(goal="latency"), slower=0.5)
    state = AbState.model_validate(looks[-1].analysis)
    when: dict[str, Any] = {"since": 1e6, "until": 1e6 + 15}
    own: dict[str, Samples] = {"all": samples(**({"durations": usual(300)} | when | broken))}
    _, look = judge_ab(
        AbOptions(goal="latency"),
        state,
        stable={"all": samples("stable", durations=usual(300), **when)},
        candidate=own,
    )
    assert look.outcome in {INCONCLUSIVE, ERROR}
    assert not look.conclusive


def test_values_that_are_no_numbers_are_an_error() -> None:
    metric = Metric(name="score", provider="function", min=0)
    bad = {"all": samples(durations=(math.nan,))}
    _, look = judge_ab(
        AbOptions(goal="score"),
        AbState(),
        stable={"all": samples("stable", durations=usual(300))},
        candidate={"all": samples(durations=usual(300))},
        values={"score": Values(metric, bad, bad)},
    )
    assert verdict(look, "samples").message == "a value of score is no number"
    assert look.outcome is ERROR


def test_samples_of_no_segment_at_all_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="an A/B test needs samples of each revision"):
        judge_ab(AbOptions(), AbState(), stable={}, candidate={})
