"""Whole releases with drawn traffic: equal candidates go through, worse ones are seen."""

from __future__ import annotations

from collections import Counter

import pytest

from shipctl.release.analysis import plan_lines
from shipctl.release.analysis.power import equal, worse
from shipctl.release.strategy import AnalysisOptions
from shipctl.stages.verdicts import Outcome
from support_analysis import outcomes, release

OPTIONS = AnalysisOptions()
WEIGHTS = (5, 10, 25, 50, 100)


def test_equal_candidates_are_not_aborted_and_pass() -> None:
    ends = Counter(release(seed, rate=100, windows=3)[-1].outcome for seed in range(20))
    assert ends[Outcome.FAIL] == 0
    assert ends[Outcome.PASS] >= 18


def test_drifts_of_one_revision_alone_are_not_taken_for_a_difference() -> None:
    aborted = sum(release(seed, rate=100, drift=3.0)[-1].outcome is Outcome.FAIL for seed in range(15))
    assert aborted <= 1


@pytest.mark.slow
def test_drifts_are_not_taken_for_a_difference_in_long_releases_either() -> None:
    """With forty looks at the newest blocks by themselves."""
    ends = [release(seed, rate=60, weights=(0.25, 0.5), windows=20, drift=4.0)[-1] for seed in range(15)]
    assert sum(end.outcome is Outcome.FAIL for end in ends) <= 1


def test_a_candidate_that_is_20_percent_slower_is_seen() -> None:
    ends = [release(seed, slower=1.2) for seed in range(6)]
    assert all(outcomes(looks[-1])["slow requests against stable"] is Outcome.FAIL for looks in ends)
    assert sorted(map(len, ends))[3] <= 10


def test_a_candidate_three_times_as_slow_is_seen_at_the_first_look() -> None:
    assert [len(release(seed, slower=3)) for seed in range(4)] == [1, 1, 1, 1]


def test_one_point_more_errors_are_seen() -> None:
    ends = [release(seed, errors=0.02) for seed in range(6)]
    assert all(outcomes(looks[-1])["errors against stable"] is Outcome.FAIL for looks in ends)


def test_a_quarter_of_errors_is_seen_at_once() -> None:
    assert all(len(release(seed, errors=0.25)) <= 2 for seed in range(6))


def test_what_is_tolerated_is_not_aborted() -> None:
    assert all(release(seed, rate=100, slower=1.04)[-1].outcome is not Outcome.FAIL for seed in range(8))


def test_the_plan_says_what_it_takes() -> None:
    hasty = OPTIONS.model_copy(update={"inconclusiveLimit": 3})
    assert plan_lines(hasty, {}, rate=200, weights=WEIGHTS) == [
        "a p95 that is 20 % higher shows after about 1,600 requests to the candidate: 2.7 min at 200/s × 5 %",
        "+1 point of errors shows after about 4,600 requests to the candidate: 7.7 min at 200/s × 5 %",
        (
            "an equal candidate passes after about 620 requests to it: 62 s at 200/s × 5 %, 5 measurements; it pauses "
            "meanwhile, for inconclusiveLimit is 3: allow 4, begin with a larger weight, or let `replay` send more"
        ),
    ]


def test_the_plan_says_what_cannot_be_seen_in_time() -> None:
    lines = plan_lines(OPTIONS, {}, rate=20, weights=[5, 100], pauses=[900])
    assert lines[0] == (
        "a p95 that is 20 % higher shows after about 1,500 requests to the candidate: 24 min at 20/s × 5 %; "
        "in all steps together (15 min) it shows with 59 %"
    )
    lines = plan_lines(OPTIONS, {}, rate=1000, weights=[5, 100], pauses=[900])
    assert lines[0].endswith(", well before 100 %")


def test_the_plan_without_traffic_asks_for_it() -> None:
    lines = plan_lines(OPTIONS, {}, rate=None, weights=WEIGHTS)
    assert len(lines) == 3
    assert (
        lines[-1]
        == "how long that takes depends on the traffic: say what is expected with `traffic`, such as 200/s"
    )


@pytest.mark.parametrize("weights", [(), (100,)])
def test_the_plan_of_a_single_step_has_no_comparison(weights: tuple[int, ...]) -> None:
    assert plan_lines(OPTIONS, {}, rate=200, weights=weights) == [
        "the candidate is not compared with the stable revision: absolute bounds decide alone"
    ]


def test_more_tolerance_and_more_questions_take_more_requests() -> None:
    needed = [question.needed(0.05) for question in worse(OPTIONS, {})]
    strict = OPTIONS.model_copy(update={"slowTolerance": 0.0, "errorTolerance": 0.0})
    assert all(
        one < other for one, other in zip([q.needed(0.05) for q in worse(strict, {})], needed, strict=True)
    )
    asked = [question.needed(0.05) for question in worse(OPTIONS, {"error_rate": 0.01})]
    assert all(one > other for one, other in zip(asked, needed, strict=True))
    narrow = OPTIONS.model_copy(update={"slowLimit": 0.1, "errorLimit": 0.005})
    passing = zip(equal(OPTIONS, {}), equal(narrow, {}), strict=True)
    assert all(wide.needed(0.05) < tight.needed(0.05) for wide, tight in passing)


def test_what_is_tolerated_never_shows() -> None:
    options = OPTIONS.model_copy(update={"slowTolerance": 0.2})
    assert "endlessly many" in plan_lines(options, {}, rate=200, weights=WEIGHTS)[0]
