"""Scores, against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest

from shipctl_plugins.qualify._scores import classification, predicted_classes, regression


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
