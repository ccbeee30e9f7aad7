"""Parity between two models' outputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from shipctl.stages.artifacts import Report
from shipctl.stages.verdicts import Outcome
from shipctl_plugins._onnx.parity import ExactParityOptions, Parity, ParityOptions, judge_parity


def compare(before: Any, after: Any) -> dict[str, float]:
    measured = Parity()
    measured.add("test", {"y": np.asarray(before)}, {"y": np.asarray(after)})
    return measured.metrics()


def judge(metrics: dict[str, float], bounds: ParityOptions, **details: Any) -> dict[str, Outcome]:
    report = Report(subject="0" * 64, title="Parity", metrics=metrics, details=details)
    return {verdict.gate: verdict.outcome for verdict in judge_parity(report, bounds)}


def test_numbers_are_those_of_the_definitions() -> None:
    found = compare([[3.0, 4.0], [0.0, 10.0]], [[3.0, 4.5], [0.0, 10.0]])
    assert found["parity.max_abs_error"] == 0.5
    assert found["parity.max_rel_error"] == 0.05
    assert found["parity.cosine"] == pytest.approx((9 + 18) / (5 * math.hypot(3, 4.5)))
    assert found["parity.top1"] == 1


def test_top1_is_the_share_of_samples_over_all_runs() -> None:
    measured = Parity()
    measured.add("one", {"y": np.array([[1.0, 2.0]])}, {"y": np.array([[2.0, 1.0]])})
    measured.add("three", {"y": np.array([[1.0, 2.0]] * 3)}, {"y": np.array([[1.0, 2.0]] * 3)})
    assert measured.metrics()["parity.top1"] == 0.75


def test_worst_output_counts() -> None:
    measured = Parity()
    good, bad = np.ones((2, 3)), np.full((2, 3), 2.0)
    measured.add("test", {"a": good, "b": good}, {"a": good, "b": bad})
    assert measured.metrics()["parity.max_abs_error"] == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([[np.nan, 1.0]], [[1.0, 1.0]]),
        ([[1.0, 1.0]], [[np.nan, 1.0]]),
        ([[np.nan]], [[np.nan]]),
        ([[1.0, 2.0]], [[1.0]]),
        ([[1.0, 2.0]] * 3, [[1.0, 2.0]] * 2),
    ],
)
def test_nan_or_another_shape_never_passes(before: Any, after: Any) -> None:
    assert set(judge(compare(before, after), ExactParityOptions()).values()) == {Outcome.ERROR}


def test_equal_infinities_are_equal_and_others_are_not() -> None:
    assert compare([[np.inf, 1.0]], [[np.inf, 1.0]])["parity.max_abs_error"] == 0
    assert compare([[np.inf, 1.0]], [[5.0, 1.0]])["parity.max_abs_error"] == math.inf


def test_zero_outputs_are_alike() -> None:
    found = compare([[0.0, 0.0]], [[0.0, 0.0]])
    assert (found["parity.max_rel_error"], found["parity.cosine"]) == (0, 1)
    assert compare([[0.0, 0.0]], [[0.0, 1.0]])["parity.cosine"] == 0


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 1, 1)])
def test_numbers_that_are_off_are_not_alike_because_their_sign_is_the_same(shape: tuple[int, ...]) -> None:
    before, after = np.array([1.0, 2.0, 4.0]).reshape(shape), np.array([2.0, 3.0, 1.0]).reshape(shape)
    assert compare(before, after)["parity.cosine"] == pytest.approx(1 - 11 / (2 * 21))
    assert compare(before, -before)["parity.cosine"] == -1
    assert compare(before, before)["parity.cosine"] == 1


def test_numbers_are_alike_over_all_runs_together() -> None:
    measured = Parity()
    measured.add("one near zero", {"y": np.array([[0.001]])}, {"y": np.array([[0.011]])})
    measured.add("others", {"y": np.array([[3.0], [4.0]])}, {"y": np.array([[3.0], [4.0]])})
    assert measured.metrics()["parity.cosine"] == pytest.approx(1, abs=1e-5)
    assert compare([[0.0], [0.0]], [[0.0], [0.0]])["parity.cosine"] == 1
    assert compare([[0.0], [0.0]], [[0.0], [1.0]])["parity.cosine"] == 0


@pytest.mark.parametrize(
    ("before", "after"),
    [([0, 1, 2, 3], [0, 1, 2, 9]), ([[0], [1], [2], [3]], [[0], [1], [2], [9]]),
     (["a", "b", "c", "d"], ["a", "b", "c", "x"]), ([True, False, True, True], [True, False, True, False])],
)  # fmt: skip
def test_classes_are_the_same_or_not(before: Any, after: Any) -> None:
    found = compare(before, after)
    assert (found["parity.top1"], found["parity.cosine"], found["parity.max_rel_error"]) == (0.75, 1, 0)
    assert found["parity.max_abs_error"] >= 1
    assert judge(found, ParityOptions(min_cosine=0.9, min_top1=0.9))["parity.top1"] is Outcome.FAIL
    assert compare(before, before)["parity.max_abs_error"] == 0


def test_texts_of_another_shape_never_pass() -> None:
    assert set(judge(compare(["a", "b"], ["a"]), ExactParityOptions()).values()) == {Outcome.ERROR}


def test_model_without_classes_is_not_judged_by_top1_unless_asked() -> None:
    metrics = compare([[1.0], [2.0]], [[1.0], [2.0]])
    assert "parity.top1" not in metrics
    assert "parity.top1" not in judge(metrics, ExactParityOptions(), has_classes=False)
    assert judge(metrics, ExactParityOptions(min_top1=0.9), has_classes=False)["parity.top1"] is Outcome.ERROR


def test_report_without_metrics_never_passes() -> None:
    assert set(judge({}, ExactParityOptions()).values()) == {Outcome.ERROR}
