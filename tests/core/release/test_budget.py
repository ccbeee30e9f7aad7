"""The worst-case time until stable has all traffic again, with its arithmetic."""

from __future__ import annotations

import pytest

from shipctl.release.budget import worst_case
from shipctl.release.strategy import AnalysisOptions, Strategy
from shipctl.spec.units import Duration
from support_rollout import strategy, weight


def plan(**changes: object) -> Strategy:
    given = {name: Duration(item) if isinstance(item, str) else item for name, item in changes.items()}
    options = AnalysisOptions.model_validate({"consecutiveErrorLimit": 0, **given})
    return strategy(steps=(weight(5),), analysis=options)


def test_without_an_analysis_it_is_a_look_a_takeover_and_a_shift() -> None:
    way = worst_case(strategy(analysis=None), target_shift_seconds=2.0, lease_seconds=15.0)
    assert way.terms == (
        ("until the next look", 3.0),
        ("for a takeover by the watchdog", 17.0),
        ("for the shift", 2.0),
    )
    assert way.seconds == 22.0
    assert way.arithmetic == (
        "3 s until the next look + 17 s for a takeover by the watchdog + 2 s for the shift = 22 s"
    )


def test_where_no_watchdog_looks_none_is_promised() -> None:
    way = worst_case(strategy(analysis=None), target_shift_seconds=5.0, lease_seconds=None)
    assert way.seconds == 8.0
    assert way.arithmetic == "3 s until the next look + 5 s for the shift = 8 s"


def test_a_fault_is_noticed_by_the_first_whole_window_after_it() -> None:
    way = worst_case(plan(interval="15s"), 1.0, 15.0, 2.0)
    assert way.arithmetic == (
        "16 s until the window in which it goes bad is over + 16 s for the window that fails + 4 s for the last answer "
        "+ 3 s until the next look + 17 s for a takeover by the watchdog + 1 s for the shift = 57 s"
    )


def test_each_failure_that_is_allowed_costs_a_window() -> None:
    way = worst_case(plan(interval="15s", failureLimit=2), 1.0, 15.0, 2.0)
    assert ("for windows that fail (3 × 16 s)", 48.0) in way.terms
    assert way.seconds == 57.0 + 32.0


def test_a_source_that_goes_away_can_cost_more_than_a_fault() -> None:
    way = worst_case(plan(interval="15s", consecutiveErrorLimit=4), 1.0, 15.0, 2.0)
    assert way.arithmetic == (
        "80 s for windows without an answer (5 × 16 s) + 4 s for the last answer + 3 s until the next look + 17 s for "
        "a takeover by the watchdog + 1 s for the shift = 105 s"
    )


@pytest.mark.parametrize(
    ("change", "more"),
    [
        ({"interval": "30s"}, 30.0),
        ({"initialDelay": "40s"}, 24.0),
        ({"initialDelay": "10s"}, 0.0),
        ({"failureLimit": 1}, 16.0),
        ({"compare": False}, -2.0),
    ],
)
def test_what_the_options_add(change: dict[str, object], more: float) -> None:
    base = worst_case(plan(interval="15s"), 1.0, 15.0, 2.0).seconds
    assert worst_case(plan(**{"interval": "15s", **change}), 1.0, 15.0, 2.0).seconds == base + more


def test_queries_that_are_slower_than_the_interval_set_the_pace() -> None:
    way = worst_case(plan(interval="5s"), 1.0, 15.0, query_timeout=10.0)
    assert ("for the window that fails", 21.0) in way.terms
