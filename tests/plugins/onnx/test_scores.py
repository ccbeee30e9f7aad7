"""Scores, against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest

from shipctl.errors import StageError
from shipctl_plugins._onnx.scores import (
    classification,
    correlation,
    loss,
    pair_similarities,
    predicted_classes,
    regression,
)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_classification_agrees_with_scikit_learn(seed: int) -> None:
    from sklearn import metrics

    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(0, 4, 50), rng.integers(0, 5, 50)
    found, rows, confusion = classification(predicted, labels)
    present = sorted(set(labels))
    scored = {"average": "macro", "labels": present, "zero_division": 0}
    assert found == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(labels, predicted),
            "f1.macro": metrics.f1_score(labels, predicted, **scored),
            "precision.macro": metrics.precision_score(labels, predicted, **scored),
            "recall.macro": metrics.recall_score(labels, predicted, **scored),
        }
    )
    assert confusion == metrics.confusion_matrix(labels, predicted).tolist()
    assert [row["samples"] for row in rows] == [int((labels == row["class"]).sum()) for row in rows]


@pytest.mark.slow
def test_regression_agrees_with_scikit_learn() -> None:
    from sklearn import metrics

    rng = np.random.default_rng(0)
    labels, answers = rng.random(20), rng.random((20, 1))
    assert regression(answers, labels) == pytest.approx(
        {
            "rmse": metrics.root_mean_squared_error(labels, answers),
            "mae": metrics.mean_absolute_error(labels, answers),
        }
    )


def test_answers_may_be_scores_classes_or_per_token() -> None:
    labels = np.array([0, 2])
    np.testing.assert_array_equal(predicted_classes(np.eye(3)[labels], labels, 0.5), labels)
    np.testing.assert_array_equal(predicted_classes(np.array([0, 2]), labels, 0.5), labels)
    tokens = np.array([[0, 1], [2, 0]])
    np.testing.assert_array_equal(predicted_classes(np.eye(3)[tokens], tokens, 0.5), tokens)


@pytest.mark.parametrize("seed", range(3))
def test_correlation_agrees_with_scipy(seed: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="SciPy is not installed")
    rng = np.random.default_rng(seed)
    similarities, grades = rng.random(40).astype(np.float32), rng.integers(0, 6, 40)
    assert correlation(similarities, grades) == pytest.approx(
        {
            "spearman": stats.spearmanr(similarities, grades).statistic,
            "pearson": stats.pearsonr(similarities, grades).statistic,
        }
    )


def test_correlation_with_what_is_constant_says_nothing() -> None:
    found = correlation(np.array([0.1, 0.2, 0.3]), np.array([1.0, 1.0, 1.0]))
    assert np.isnan([found["spearman"], found["pearson"]]).all()


def test_pairs_are_rows_beside_each_other() -> None:
    answers = np.array([[1, 0], [2, 0], [1, 0], [0, 3], [1, 1], [-1, -1], [0, 0], [1, 0]], np.float32)
    np.testing.assert_allclose(pair_similarities(answers), [1, 0, -1, 0], atol=1e-12)
    with pytest.raises(StageError) as caught:
        pair_similarities(answers[:3])
    assert str(caught.value) == "outputs of shape [3, 2] are no pairs: rows 2i and 2i + 1 belong together"


@pytest.mark.parametrize(
    ("metric", "source", "this", "lost"),
    [
        ("accuracy", 0.9, 0.8, 0.1),
        ("spearman", 0.8, 0.9, -0.1),
        ("rmse", 2.0, 2.1, 0.05),
        ("rmse", 2.0, 1.0, -0.5),
        ("mae", 0.0, 0.0, 0.0),
        ("mae", 0.0, 0.1, np.inf),
    ],
)
def test_loss_is_a_difference_of_scores_and_a_fraction_of_errors(
    metric: str, source: float, this: float, lost: float
) -> None:
    assert loss(metric, source, this) == pytest.approx(lost)
