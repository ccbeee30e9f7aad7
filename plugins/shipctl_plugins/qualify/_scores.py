"""Scores of predictions against labels, by their textbook definitions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shipctl.errors import StageError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]


def predicted_classes(answers: Array, labels: Array, threshold: float) -> Array:
    """Return the class per label that ``answers`` stand for.

    ``answers`` are scores with one more dimension than ``labels`` ``[..., classes]`` (the largest wins), class
    numbers in the shape of ``labels``, or one score per label, where class 1 begins above ``threshold``.

    :raises StageError: if they are none of these
    """
    if answers.ndim == labels.ndim + 1 and answers.shape[:-1] == labels.shape and answers.shape[-1] > 1:
        best: Array = answers.argmax(-1)
        return best
    if answers.size == labels.size:
        flat = answers.reshape(labels.shape)
        return (flat > threshold).astype("int64") if answers.dtype.kind == "f" else flat
    message = f"outputs of shape {list(answers.shape)} are no answers to labels of shape {list(labels.shape)}"
    raise StageError(message)


def classification(
    predicted: Array, labels: Array
) -> tuple[dict[str, float], list[dict[str, Any]], list[list[int]]]:
    """Return accuracy and macro averages, a row per class, and the confusion matrix (rows are true classes).

    Classes are those that occur as label or prediction. Precision, recall and F1 of a class are 0 where their
    denominator is; the macro averages are over the classes that occur as labels.
    """
    import numpy as np

    predicted, labels = predicted.reshape(-1), labels.reshape(-1)
    classes, flat = np.unique(np.concatenate([labels, predicted]), return_inverse=True)
    truth, answer = flat[: len(labels)], flat[len(labels) :]
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (truth, answer), 1)
    hits, support, chosen = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    precision = hits / np.maximum(chosen, 1)
    recall = hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(chosen + support, 1)
    real = support > 0
    metrics = {
        "accuracy": float(hits.sum() / len(labels)),
        "f1.macro": float(f1[real].mean()),
        "precision.macro": float(precision[real].mean()),
        "recall.macro": float(recall[real].mean()),
    }
    rows = [
        {
            "class": classes[index].item(), "samples": int(support[index]), "precision": float(precision[index]),
            "recall": float(recall[index]), "f1": float(f1[index]),
        }
        for index in range(len(classes))
    ]  # fmt: skip
    return metrics, rows, confusion.tolist()


def regression(answers: Array, labels: Array) -> dict[str, float]:
    """Return root mean square error and mean absolute error, in the labels' unit.

    :raises StageError: if there is not one answer per label
    """
    import numpy as np

    if answers.size != labels.size:
        message = (
            f"outputs of shape {list(answers.shape)} are no answers to labels of shape {list(labels.shape)}"
        )
        raise StageError(message)
    error = answers.astype(np.float64).reshape(-1) - labels.astype(np.float64).reshape(-1)
    return {"rmse": float(np.sqrt((error**2).mean())), "mae": float(np.abs(error).mean())}
