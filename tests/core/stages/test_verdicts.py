"""Verdicts: nothing that is not a clear yes passes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shipctl import Outcome, compare
from shipctl.stages.verdicts import worst


@given(value=st.none() | st.floats(), bound=st.floats(), how=st.sampled_from(["<=", "<", ">=", ">", "=="]))
def test_only_a_finite_number_within_a_finite_bound_passes(
    value: float | None, bound: float, how: str
) -> None:
    verdict = compare("gate", value, how, bound)  # type: ignore[arg-type]
    finite = value is not None and math.isfinite(value) and math.isfinite(bound)
    assert (verdict.outcome in {Outcome.PASS, Outcome.FAIL}) is finite
    if verdict.outcome is Outcome.PASS:
        assert value is not None
        assert {
            "<=": value <= bound,
            "<": value < bound,
            ">=": value >= bound,
            ">": value > bound,
            "==": value == bound,
        }[how]


@given(st.lists(st.sampled_from(list(Outcome)), min_size=1))
def test_combining_takes_the_worst(outcomes: list[Outcome]) -> None:
    order = [Outcome.FAIL, Outcome.ERROR, Outcome.INCONCLUSIVE, Outcome.PASS]
    assert worst(outcomes) is next(item for item in order if item in outcomes)


@pytest.mark.parametrize(("value", "message"), [
    (1.0, "p95 1 <= 2"), (3.0, "p95 3 is not <= 2"), (None, "p95 is missing, <= 2 was asked for"),
    (math.nan, "p95 is nan, <= 2.0 cannot be decided"),
])  # fmt: skip
def test_the_message_names_value_and_bound(value: float | None, message: str) -> None:
    assert compare("latency", value, "<=", 2.0, metric="p95").message == message
