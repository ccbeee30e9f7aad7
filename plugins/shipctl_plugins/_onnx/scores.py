"""Scores of predictions against labels, by their textbook definitions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from shipctl.errors import StageError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

ERRORS = ("rmse", "mae")
"""Scores of which less is better; they have the labels' unit."""
TEXTS = "OUS"
"""What numpy calls the kinds of texts."""
_ONE_HOT_RANK = 2


def predicted_classes(answers: Array, labels: Array, threshold: float) -> Array:
    """Return the class per label that ``answers`` stand for.

    ``answers`` are scores with one more dimension than ``labels`` ``[..., classes]`` (the largest wins), class
    numbers in the shape of ``labels`` (or texts, as the labels are), or one score per label, where class 1 begins above
    ``threshold``.

    :raises StageError: if they are none of these, or the labels are no classes of them
    """
    if (answers.dtype.kind in TEXTS) != (labels.dtype.kind in TEXTS):
        kinds = ["texts" if array.dtype.kind in TEXTS else "numbers" for array in (labels, answers)]
        message = f"the labels are {kinds[0]} and the answers {kinds[1]}; label by {kinds[1]} or score another output"
        raise StageError(message)
    if answers.ndim == labels.ndim + 1 and answers.shape[:-1] == labels.shape and answers.shape[-1] > 1:
        _require_classes(labels, answers.shape[-1])
        best: Array = answers.argmax(-1)
        return best
    if _is_one_hot(labels) and answers.shape == labels.shape:
        message = f"the labels of shape {list(labels.shape)} are one-hot; give class numbers (their argmax)"
        raise StageError(message)
    if answers.size == labels.size:
        flat = answers.reshape(labels.shape)
        return (flat > threshold).astype("int64") if answers.dtype.kind == "f" else flat.astype(labels.dtype)
    message = f"outputs of shape {list(answers.shape)} are no answers to labels of shape {list(labels.shape)}"
    raise StageError(message)


def _require_classes(labels: Array, classes: int) -> None:
    """See that labels are numbers of classes, without which nothing can be right and no drop be seen."""
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        message = (
            f"the labels go from {labels.min()} to {labels.max()}, and the output has {classes} classes (0 to "
            f"{classes - 1}); number the labels like those"
        )
        raise StageError(message)


def _is_one_hot(labels: Array) -> bool:
    import numpy as np

    if labels.ndim < _ONE_HOT_RANK or labels.shape[-1] == 1 or labels.dtype.kind in TEXTS:
        return False
    return bool(np.isin(labels, (0, 1)).all() and (labels.sum(axis=-1) == 1).all() and labels.size)


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
            f"outputs of shape {list(answers.shape)} are no answers to labels of shape {list(labels.shape)}, which as "
            f"{labels.dtype} are values; say `task: classification` if they are classes"
        )
        raise StageError(message)
    error = answers.astype(np.float64).reshape(-1) - labels.astype(np.float64).reshape(-1)
    return {"rmse": float(np.sqrt((error**2).mean())), "mae": float(np.abs(error).mean())}


def pair_similarities(answers: Array) -> Array:
    """Return the cosine similarity of each pair: float64 ``[pairs]`` of ``answers`` ``[2 * pairs, …]``.

    Rows 2i and 2i + 1 are a pair. With a vector of zeros, the similarity is 0.

    :raises StageError: if there is an odd number of rows
    """
    import numpy as np

    if len(answers) % 2:
        message = f"outputs of shape {list(answers.shape)} are no pairs: rows 2i and 2i + 1 belong together"
        raise StageError(message)
    rows = answers.astype(np.float64).reshape(len(answers), -1)
    a, b = rows[0::2], rows[1::2]
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    found: Array = (a * b).sum(axis=1) / np.where(lengths > 0, lengths, 1.0)
    return found


def correlation(similarities: Array, grades: Array) -> dict[str, float]:
    """Return Spearman's rank correlation and Pearson's correlation of two arrays ``[pairs]``.

    Spearman's is Pearson's of the ranks, equal values sharing their mean rank: the measure of the STS benchmark
    (Cer et al. 2017; Reimers and Gurevych 2019 take the ranks). NaN where one side is constant.
    """
    return {
        "spearman": _pearson(_ranks(similarities), _ranks(grades)),
        "pearson": _pearson(similarities, grades),
    }


def _ranks(values: Array) -> Array:
    import numpy as np

    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    mean: Array = (ends - (counts - 1) / 2)[where.reshape(-1)]
    return mean


def _pearson(a: Array, b: Array) -> float:
    import numpy as np

    a, b = a.astype(np.float64) - a.mean(), b.astype(np.float64) - b.mean()
    scale = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / scale) if scale else float("nan")


def loss(metric: str, source: float, this: float) -> float:
    """Return how much worse ``this`` is than ``source`` in ``metric``: above 0 is worse.

    For scores of which more is better, the difference. For errors (`rmse`, `mae`), which have a unit, the increase
    as a fraction of the source's error: 0 for none, infinite where the source made no error at all.
    """
    if metric not in ERRORS:
        return source - this
    if source:
        return (this - source) / source
    return 0.0 if this == source else math.copysign(math.inf, this - source)
