"""How well an answer agrees with what was expected: four numbers per output, and no benefit of the doubt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Agreement:
    """One output, all samples together. A number is None where it has no meaning for this output."""

    problem: str | None = None
    """Why nothing can be compared: another shape, another kind of type, NaN, infinity. Never a pass."""
    max_abs_error: float | None = None
    """Largest absolute difference of any element."""
    max_rel_error: float | None = None
    """The same, divided by the largest expected magnitude."""
    cosine: float | None = None
    """Smallest cosine similarity of any sample (of the whole column where a sample is a single number)."""
    top1: float | None = None
    """Share of samples with the same largest element; for integers, booleans and strings, of equal elements."""
    is_column: bool = False
    """A single number per sample: no ranking, and a cosine that says little."""


def agreement(expected: NDArray[Any], actual: NDArray[Any]) -> Agreement:
    """Compare two arrays of shape ``(samples, …)``."""
    import numpy as np

    if expected.shape != actual.shape:
        return Agreement(problem=f"shape {_shape(actual)} instead of {_shape(expected)}")
    if expected.size == 0:
        return Agreement(problem="no samples")
    if expected.dtype.kind in "fiub" and actual.dtype.kind in "fiub":
        if "f" not in expected.dtype.kind + actual.dtype.kind:
            return Agreement(top1=float(np.mean(expected == actual)))
        return _of_numbers(np.asarray(expected, np.float64), np.asarray(actual, np.float64))
    if _is_text(expected) and _is_text(actual):
        pairs = zip(expected.ravel(), actual.ravel(), strict=True)
        return Agreement(top1=sum(_text(a) == _text(b) for a, b in pairs) / expected.size)
    return Agreement(problem=f"type {actual.dtype} instead of {expected.dtype}")


def _of_numbers(expected: NDArray[np.float64], actual: NDArray[np.float64]) -> Agreement:
    import numpy as np

    if not np.isfinite(expected).all():
        return Agreement(problem="the expected values contain NaN or infinity")
    if bad := int(np.count_nonzero(~np.isfinite(actual))):
        return Agreement(problem=f"{bad} of {actual.size} values are NaN or infinite")
    error = float(np.max(np.abs(expected - actual)))
    scale = float(np.max(np.abs(expected)))
    rows = [array.reshape(len(array) if array.ndim else 1, -1) for array in (expected, actual)]
    is_column = rows[0].shape[1] == 1
    if is_column:
        rows = [row.T for row in rows]
    top1 = None
    if not is_column and expected.ndim > 1 and expected.shape[-1] > 1:
        top1 = float(np.mean(np.argmax(expected, axis=-1) == np.argmax(actual, axis=-1)))
    return Agreement(
        max_abs_error=error,
        max_rel_error=error / scale if scale else (0.0 if error == 0 else None),
        cosine=_smallest_cosine(*rows),
        top1=top1,
        is_column=is_column,
    )


def _smallest_cosine(expected: NDArray[np.float64], actual: NDArray[np.float64]) -> float:
    """Return the smallest cosine similarity of corresponding rows; two zero rows agree, one does not."""
    import numpy as np

    left, right = np.linalg.norm(expected, axis=1), np.linalg.norm(actual, axis=1)
    both_zero = (left == 0) & (right == 0)
    product = np.where(left * right > 0, left * right, 1.0)
    cosines = np.einsum("ij,ij->i", expected, actual) / product
    # Rounded, so that equal vectors have exactly 1.
    return float(np.round(np.min(np.where(both_zero, 1.0, cosines)), 12))


def _is_text(array: NDArray[Any]) -> bool:
    return array.dtype.kind in "OSU"


def _text(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _shape(array: NDArray[Any]) -> str:
    return "×".join(map(str, array.shape)) or "of a scalar"
