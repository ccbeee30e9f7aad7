"""The drift reference: how the inputs and outputs of a model were distributed when it was accepted.

Per tensor, and per element of a sample where there are few, the deciles of the reference are the edges of a
histogram, so that a population stability index can be taken of new data:
``PSI = Σ (share_new - share) · ln(share_new / share)``. Twenty-one quantiles are a cumulative distribution for a
Kolmogorov-Smirnov distance. A value v is in bin i where ``edges[i-1] < v <= edges[i]``; the outer bins are open.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from shipctl.stages.artifacts import Dataset, OnnxModel
from shipctl_plugins._onnx import arrays
from shipctl_plugins._onnx.session import open_session, run_session

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

FORMAT = "shipctl.dev/drift-reference-v1"
MAX_SAMPLES = 10_000
MAX_ELEMENTS = 256
"""Elements of a sample that get a distribution each; a tensor with more is described as a whole only."""
MAX_VALUES = 4_000_000
"""Values that one distribution is taken from; of more, every n-th."""
MAX_CATEGORIES = 50
MAX_CLASSES = 1000
BATCH = 64
PROBABILITIES = tuple(step / 20 for step in range(21))
_DECILES = tuple(step / 10 for step in range(1, 10))


def drift_reference(model: OnnxModel, evaluation: Dataset, *, threads: int = 1) -> dict[str, Any]:
    """Return the reference as JSON: of the inputs always, of the outputs where ONNX Runtime is there to ask.

    :raises StageError: if the data does not fit the model, or the model does not run
    """
    data = arrays.model_inputs(arrays.load_arrays(evaluation, model.signature), model.signature, "evaluation")
    data = {name: array[:MAX_SAMPLES] for name, array in data.items()}
    found: dict[str, Any] = {
        "format": FORMAT, "model": model.digest, "data": evaluation.digest,
        "samples": len(next(iter(data.values()))), "probabilities": list(PROBABILITIES),
        "inputs": {name: _tensor(array) for name, array in data.items()}, "outputs": {},
    }  # fmt: skip
    if find_spec("onnxruntime") is None:
        return {**found, "note": "outputs are left out: ONNX Runtime was not installed"}
    if found["samples"]:
        found["outputs"] = {
            name: _tensor(array, classes=True) for name, array in _answers(model, data, threads).items()
        }
    return found


def _answers(model: OnnxModel, data: Mapping[str, Array], threads: int) -> dict[str, Array]:
    import numpy as np

    session = open_session(model.path, threads=threads)
    parts: dict[str, list[Array]] = {}
    for feed, count in arrays.batches(data, BATCH, model.signature):
        for name, array in run_session(session, feed).items():
            parts.setdefault(name, []).append(np.asarray(array)[:count] if np.ndim(array) else array[None])
    return {name: np.concatenate(found) for name, found in parts.items()}


def _tensor(array: Array, *, classes: bool = False) -> dict[str, Any]:
    """Describe an array with the samples in its first dimension."""
    found: dict[str, Any] = {"dtype": array.dtype.name if array.dtype.kind not in "USO" else "string"}
    found["shape"] = list(array.shape[1:])
    rows = array.reshape(len(array), -1)
    if found["dtype"] == "string":
        return found | {"all": _categories(rows.reshape(-1))}
    found["all"] = _distribution(rows.reshape(-1))
    if 1 < rows.shape[1] <= MAX_ELEMENTS:
        found["elements"] = [_distribution(column) for column in rows.T]
    if classes and array.dtype.kind == "f" and array.ndim > 1 and 1 < array.shape[-1] <= MAX_CLASSES:
        found["classes"] = _class_shares(array)
    return found


def _distribution(values: Array) -> dict[str, Any]:
    import numpy as np

    values = values[:: -(-len(values) // MAX_VALUES) or 1].astype(np.float64)
    known = values[np.isfinite(values)]
    found: dict[str, Any] = {
        "n": len(values), "missing": _tidy(1 - len(known) / len(values)) if len(values) else 0.0,
    }  # fmt: skip
    if not len(known):
        return found | {"edges": [], "shares": [], "quantiles": []}
    edges = np.unique([_tidy(edge) for edge in np.quantile(known, _DECILES)])
    counts = np.bincount(np.searchsorted(edges, known, side="left"), minlength=len(edges) + 1)
    return found | {
        "mean": _tidy(known.mean()), "std": _tidy(known.std()), "min": _tidy(known.min()), "max": _tidy(known.max()),
        "edges": edges.tolist(), "shares": [_tidy(count / len(known)) for count in counts],
        "quantiles": [_tidy(value) for value in np.quantile(known, PROBABILITIES)],
    }  # fmt: skip


def _categories(values: Array) -> dict[str, Any]:
    import numpy as np

    names, counts = np.unique(values.astype(str), return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MAX_CATEGORIES]
    shares = {str(names[index]): _tidy(counts[index] / len(values)) for index in order}
    return {"n": len(values), "missing": 0.0, "categories": shares, "distinct": len(names)}


def _class_shares(array: Array) -> list[float]:
    """Return how often each element of the last dimension is the largest."""
    import numpy as np

    chosen = array.reshape(-1, array.shape[-1]).argmax(axis=-1)
    return [_tidy(count / len(chosen)) for count in np.bincount(chosen, minlength=array.shape[-1])]


def _tidy(value: Any) -> float:
    """Round to seven digits, what float32 holds: the last bits of a sum say nothing and differ between machines."""
    return float(f"{float(value):.7g}")
