"""How two arrays are compared: exact numbers, and nothing unclear passes."""

from __future__ import annotations

import numpy as np
import pytest

from shipctl_plugins._triton.agreement import Agreement, agreement

LOGITS = np.array([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]], np.float32)


def test_equal_arrays_agree_exactly() -> None:
    assert agreement(LOGITS, LOGITS) == Agreement(max_abs_error=0.0, max_rel_error=0.0, cosine=1.0, top1=1.0)


def test_worst_sample_counts() -> None:
    actual = np.array([[3.0, 0.0, 0.0], [3.0, 4.0, 0.0]], np.float32)
    found = agreement(LOGITS, actual)
    assert (found.max_abs_error, found.max_rel_error, found.top1) == (3.0, 0.75, 1.0)
    assert found.cosine == pytest.approx(0.8)  # 4·4 / (4·5)


def test_top1_is_the_share_of_samples() -> None:
    assert agreement(LOGITS, LOGITS[::-1]).top1 == 0.0
    assert agreement(LOGITS, np.stack([LOGITS[0], LOGITS[0]])).top1 == 0.5


def test_labels_are_compared_for_equality() -> None:
    assert agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])) == Agreement(top1=0.75)
    assert agreement(np.array([True, False]), np.array([True, True])) == Agreement(top1=0.5)


def test_texts_are_compared_as_utf8() -> None:
    assert agreement(np.array(["ja", "né"]), np.array([b"ja", "nö".encode()], object)) == Agreement(top1=0.5)


def test_single_number_per_sample_has_no_ranking() -> None:
    found = agreement(np.array([[1.0], [2.0]]), np.array([[1.0], [2.2]]))
    assert found.is_column
    assert found.top1 is None
    assert found.max_rel_error == pytest.approx(0.1)


def test_all_zero_samples_agree_only_with_zero() -> None:
    zero = np.zeros((1, 2))
    assert agreement(zero, zero).cosine == 1.0
    off = agreement(zero, np.ones((1, 2)))
    assert (off.cosine, off.max_abs_error, off.max_rel_error) == (0.0, 1.0, None)


@pytest.mark.parametrize(
    ("expected", "actual", "problem"),
    [
        (LOGITS, LOGITS[:1], "shape 1×3 instead of 2×3"),
        (LOGITS, np.full_like(LOGITS, np.nan), "6 of 6 values are NaN or infinite"),
        (LOGITS, np.where(LOGITS == 4, np.inf, LOGITS), "1 of 6 values are NaN or infinite"),
        (np.full_like(LOGITS, np.nan), LOGITS, "the expected values contain NaN or infinity"),
        (LOGITS[:0], LOGITS[:0], "no samples"),
        (LOGITS, LOGITS.astype(str), "type <U32 instead of float32"),
    ],
)
def test_what_cannot_be_compared_is_a_problem(expected: np.ndarray, actual: np.ndarray, problem: str) -> None:
    assert agreement(expected, actual) == Agreement(problem=problem)
