"""maxSurge and maxUnavailable: what they come to, and what they must not be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shipctl.release.surge import Surge
from shipctl.spec.units import Percentage


@pytest.mark.parametrize(
    ("given", "replicas", "expected"),
    [
        ({}, 4, (1, 0)),
        ({}, 3, (1, 0)),
        ({"maxSurge": 2, "maxUnavailable": 1}, 4, (2, 1)),
        ({"maxSurge": "50%", "maxUnavailable": "50%"}, 3, (2, 1)),
        ({"maxSurge": 0, "maxUnavailable": "25%"}, 8, (0, 2)),
        ({"maxSurge": 1}, 10, (1, 0)),
        ({"maxSurge": "100%"}, 3, (3, 0)),
        ({"maxSurge": 0, "maxUnavailable": 9}, 3, (0, 3)),
        ({"maxSurge": "10%"}, 30, (3, 0)),
    ],
)
def test_percentages_are_rounded_as_in_a_deployment(
    given: dict[str, Any], replicas: int, expected: tuple[int, int]
) -> None:
    assert Surge.model_validate(given).of(replicas) == expected


def test_rounding_never_ends_in_nothing_that_could_move() -> None:
    assert Surge(maxSurge=0, maxUnavailable=Percentage("10%")).of(3) == (0, 1)


@given(
    st.integers(0, 5) | st.floats(0.01, 1).map(Percentage),
    st.integers(0, 5) | st.floats(0.01, 1).map(Percentage),
    st.integers(1, 50),
)
def test_something_can_always_move_and_never_more_than_all(more: Any, fewer: Any, replicas: int) -> None:
    if not more and not fewer:
        return
    surge, missing = Surge(maxSurge=more, maxUnavailable=fewer).of(replicas)
    assert surge or missing
    assert 0 <= missing <= replicas


def test_both_zero_is_refused_with_what_to_write() -> None:
    with pytest.raises(ValidationError, match="no replica could be replaced; write maxSurge: 1"):
        Surge(maxSurge=0, maxUnavailable=0)


@pytest.mark.parametrize("wrong", [-1, "125%", "two", 1.5])
def test_nonsense_is_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        Surge.model_validate({"maxSurge": wrong})
