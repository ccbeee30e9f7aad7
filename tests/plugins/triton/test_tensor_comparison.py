"""Answers of two servers, tensor by tensor: NaN on one side is a difference, and no kind of output is overlooked."""

from __future__ import annotations

import numpy as np
import pytest

from shipctl_plugins._triton.tensor_comparison import compare

F = np.float32
LOGITS = np.array([[0.0, 2.0, 1.0], [4.0, 2.0, 1.0]], F)


def test_equal_answers_agree() -> None:
    found = compare({"y": LOGITS, "id": np.array([1, 2])}, {"y": LOGITS.copy(), "id": np.array([1, 2])})
    assert found.problem is None
    assert (found.max_abs, found.max_rel) == (0.0, 0.0)
    assert (found.samples, found.agree, found.unequal) == (4, 4, 0)
    told = found.distributions["y"]
    assert told.mean_stable == told.mean_candidate == pytest.approx(10 / 6)


def test_errors_are_those_of_the_worst_value_and_the_worst_output() -> None:
    small = np.array([0.1, 0.2], F)
    found = compare({"y": LOGITS, "z": small}, {"y": LOGITS + F(0.5), "z": small + F(0.1)})
    assert found.max_abs == pytest.approx(0.5)
    assert found.max_rel == pytest.approx(0.5)  # 0.1 of 0.2, more than 0.5 of 4
    assert found.problem is None


def test_another_largest_element_is_another_class() -> None:
    other = LOGITS.copy()
    other[1] = [1, 2, 4]
    found = compare({"y": LOGITS}, {"y": other})
    assert (found.samples, found.agree) == (2, 1)


def test_one_number_per_sample_has_no_class() -> None:
    found = compare({"y": np.ones((4, 1), F)}, {"y": np.ones((4, 1), F)})
    assert (found.samples, found.max_abs) == (0, 0.0)


@pytest.mark.parametrize(
    ("stable", "candidate", "problem"),
    [
        ({"y": [1.0]}, {"y": [np.nan]}, "y: 1 of 1 values are NaN or infinite on one side only"),
        ({"y": [np.nan, 1.0]}, {"y": [1.0, 1.0]}, "y: 1 of 2 values are NaN or infinite on one side only"),
        ({"y": [np.inf]}, {"y": [-np.inf]}, "y: 1 of 1 values are NaN or infinite on one side only"),
        ({"y": [np.inf]}, {"y": [np.nan]}, "y: 1 of 1 values are NaN or infinite on one side only"),
        ({"y": [np.nan, np.inf]}, {"y": [np.nan, np.inf]}, None),
        ({"y": [1.0]}, {"y": [1.0, 2.0]}, "y: shape 2 instead of 1"),
        ({"y": [1.0]}, {"z": [1.0]}, "the candidate does not give y"),
        ({"y": [1.0]}, {"y": [1.0], "z": [1.0]}, "only the candidate gives z"),
        ({"y": [1.0]}, {"y": [1]}, "y: type int64 instead of float64"),
        ({"y": [1e308]}, {"y": [-1e308]}, "y: the difference is too large for a number"),
    ],
)
def test_what_no_bound_can_allow(
    stable: dict[str, list[float]], candidate: dict[str, list[float]], problem: str | None
) -> None:
    left, right = ({name: np.array(values) for name, values in side.items()} for side in (stable, candidate))
    assert compare(left, right).problem == problem


def test_other_bits_of_precision_are_another_type() -> None:
    found = compare({"y": LOGITS}, {"y": LOGITS.astype(np.float16)})
    assert found.problem == "y: type float16 instead of float32"


@pytest.mark.parametrize(
    "values",
    [
        (np.array([1, 2, 3]), np.array([1, 2, 4])),
        (np.array([True, False, True]), np.array([True, False, False])),
        (np.array([b"a", b"b", b"c"], object), np.array([b"a", b"b", b"\xff"], object)),
        (np.array([[1, 1], [2, 2], [3, 3]]), np.array([[1, 1], [2, 2], [3, 4]])),
    ],
)
def test_integers_booleans_and_strings_are_equal_or_not(values: tuple[np.ndarray, np.ndarray]) -> None:
    found = compare({"y": values[0]}, {"y": values[1]})
    assert (found.problem, found.samples, found.agree, found.unequal) == (None, 3, 2, 1)


def test_where_stable_is_all_zeros_a_difference_is_the_whole() -> None:
    found = compare({"y": np.zeros(3, F)}, {"y": np.array([0, 0, 7], F)})
    assert (found.max_abs, found.max_rel) == (7.0, 1.0)


def test_no_values_are_no_difference() -> None:
    found = compare({"y": np.zeros((0, 3), F)}, {"y": np.zeros((0, 3), F)})
    assert (found.problem, found.max_abs, found.samples) == (None, None, 0)


def test_classes_that_triton_names_are_compared_without_their_scores() -> None:
    stable = np.array([[b"0.91:3:cat", b"0.02:1"], [b"0.8:2", b"0.1:1"]], object)
    candidate = np.array([[b"0.90:3:cat", b"0.03:0"], [b"0.8:1", b"0.1:2"]], object)
    found = compare({"y": stable}, {"y": candidate}, frozenset({"y"}))
    assert (found.problem, found.samples, found.agree) == (None, 2, 1)
