"""The search for the fewest layers that have to be kept."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shipctl_plugins._onnx.fewest import OutOfEvaluationsError, fewest


class Oracle:
    """Loses 0.1 for each of ``needed`` that is not kept, and counts how often it is asked."""

    def __init__(self, needed: str, most: int = 1000) -> None:
        self.needed, self.most, self.asked = frozenset(needed), most, 0

    def __call__(self, kept: frozenset[str]) -> float:
        if self.asked == self.most:
            raise OutOfEvaluationsError
        self.asked += 1
        return 0.1 * len(self.needed - kept)


LAYERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize(
    ("needed", "asked"),
    [("a", 1), ("b", 3), ("ab", 3), ("c", 6), ("ac", 6), ("abcd", 8), ("z", 20), ("az", 27)],
)
def test_exactly_the_needed_layers_are_found(needed: str, asked: int) -> None:
    oracle = Oracle(needed)
    assert fewest(LAYERS, 26, oracle, 0.05) == frozenset(needed)
    assert oracle.asked == asked


def test_layer_that_seems_harmless_is_found_by_what_it_costs() -> None:
    oracle = Oracle("z")
    assert fewest(LAYERS, 25, oracle, 0.05) == frozenset("z")
    assert oracle.asked == 6 + 25 + 1  # 1, 2, 4, 8, 16, 25 layers; each alone but z, known by then; z


def test_not_even_the_most_do() -> None:
    oracle = Oracle("xyz")
    assert fewest(LAYERS, 2, oracle, 0.05) is None
    assert oracle.asked == 2 + 26 + 2


def test_none_may_be_kept() -> None:
    oracle = Oracle("a")
    assert fewest(LAYERS, 0, oracle, 0.05) is None
    assert oracle.asked == 0


def test_what_was_found_counts_when_evaluations_run_out() -> None:
    assert fewest(LAYERS, 26, Oracle("e", most=3), 0.05) is None
    assert fewest(LAYERS, 26, Oracle("e", most=4), 0.05) == frozenset("abcdefgh")
    assert fewest(LAYERS, 26, Oracle("e", most=100), 0.05) == frozenset("e")


@given(st.sets(st.sampled_from(LAYERS), min_size=1))
@settings(max_examples=200)
def test_no_layer_of_the_result_can_be_left_out(needed: set[str]) -> None:
    oracle = Oracle("".join(needed))
    assert fewest(LAYERS, 26, oracle, 0.05) == frozenset(needed)
    assert oracle.asked < 5 + 5 + 3 * 26
