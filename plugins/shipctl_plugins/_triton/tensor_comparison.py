"""How two servers' answers to one request differ, tensor by tensor. Numbers, no judgement."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_DISTRIBUTIONS = 8
"""Outputs whose distributions are told."""
_CLASS = re.compile(rb"[^:]*:(\d+)(:|$)")


@dataclass(frozen=True)
class Distribution:
    """Mean and standard deviation of the finite values of an output, on both sides."""

    mean_stable: float
    std_stable: float
    mean_candidate: float
    std_candidate: float


@dataclass
class Difference:
    """All outputs of one request together."""

    problem: str | None = None
    """Why the answers differ whatever bounds are set: another name, type or shape, NaN or infinity on one side."""
    max_abs: float | None = None
    """Largest absolute difference of a floating-point value; None if there is none."""
    max_rel: float | None = None
    """The largest one of an output, as a share of its largest magnitude (that of the stable one, unless it is 0)."""
    samples: int = 0
    """Samples that have a class: rows of an output of floating-point numbers whose last dimension is above 1, and
    first dimensions of one of integers, booleans or strings."""
    agree: int = 0
    """Of these, how many have the same largest element, or equal elements."""
    unequal: int = 0
    """Of those of integers, booleans and strings, how many have not."""
    distributions: dict[str, Distribution] = field(default_factory=dict)


def compare(
    stable: Mapping[str, NDArray[Any]],
    candidate: Mapping[str, NDArray[Any]],
    classified: frozenset[str] = frozenset(),
) -> Difference:
    """Compare two answers. ``classified`` are outputs for which Triton gives `value:index:label`, by its extension."""
    found = Difference()
    for name in sorted(stable.keys() | candidate.keys()):
        if name not in candidate or name not in stable:
            side = "the candidate does not give" if name in stable else "only the candidate gives"
            return Difference(problem=f"{side} {name}")
        pair = stable[name], candidate[name]
        if pair[0].shape != pair[1].shape:
            return Difference(problem=f"{name}: shape {_shape(pair[1])} instead of {_shape(pair[0])}")
        if name in classified:
            pair = _indices(pair[0]), _indices(pair[1])
        if pair[0].dtype != pair[1].dtype and not (_is_text(pair[0]) and _is_text(pair[1])):
            return Difference(problem=f"{name}: type {pair[1].dtype} instead of {pair[0].dtype}")
        if pair[0].dtype.kind == "f":
            _numbers(found, name, *pair)
        elif pair[0].size:
            _discrete(found, *pair)
    return found


def _numbers(found: Difference, name: str, stable: NDArray[Any], candidate: NDArray[Any]) -> None:
    import numpy as np

    left, right = np.asarray(stable, np.float64), np.asarray(candidate, np.float64)
    finite = np.isfinite(left)
    odd = ~finite | ~np.isfinite(right)
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    if bad := int(np.count_nonzero(odd & ~same)):
        found.problem = (
            found.problem or f"{name}: {bad} of {left.size} values are NaN or infinite on one side only"
        )
    if len(found.distributions) < MOST_DISTRIBUTIONS and (~odd).any():
        values = (left[~odd], right[~odd])
        with np.errstate(over="ignore", invalid="ignore"):
            told = [float(number) for side in values for number in (side.mean(), side.std())]
        if np.isfinite(told).all():
            found.distributions[name] = Distribution(*told)
    if not left.size or odd.all():
        return
    with np.errstate(over="ignore"):
        error = float(np.max(np.abs(left[~odd] - right[~odd])))
    scale = float(np.max(np.abs(left[~odd]))) or float(np.max(np.abs(right[~odd]))) or 1.0
    if not np.isfinite(error) or not np.isfinite(error / scale):
        found.problem = found.problem or f"{name}: the difference is too large for a number"
        return
    found.max_abs = max(found.max_abs or 0.0, error)
    found.max_rel = max(found.max_rel or 0.0, error / scale)
    if left.ndim > 1 and left.shape[-1] > 1:
        agree = np.argmax(left, axis=-1) == np.argmax(right, axis=-1)
        found.samples += int(agree.size)
        found.agree += int(np.count_nonzero(agree))


def _discrete(found: Difference, stable: NDArray[Any], candidate: NDArray[Any]) -> None:
    rows = len(stable) if stable.ndim else 1
    if _is_text(stable):
        same = _texts(stable.reshape(rows, -1)) == _texts(candidate.reshape(rows, -1))
    else:
        same = stable.reshape(rows, -1) == candidate.reshape(rows, -1)
    agree = int(same.all(axis=-1).sum())
    found.samples += rows
    found.agree += agree
    found.unequal += rows - agree


def _indices(array: NDArray[Any]) -> NDArray[np.int64]:
    """Return the index of the first class of each row; -1 for what is none."""
    import numpy as np

    rows = array.reshape(len(array) if array.ndim > 1 else 1, -1)[:, :1]
    found = [_CLASS.match(bytes(value)) for value in rows.ravel()]
    return np.array([int(match[1]) if match else -1 for match in found], np.int64)


def _texts(array: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    said = [value if isinstance(value, bytes) else str(value).encode() for value in array.ravel()]
    made = np.empty(len(said), object)
    made[:] = said
    return made.reshape(array.shape)


def _is_text(array: NDArray[Any]) -> bool:
    return array.dtype.kind in "OSU"


def _shape(array: NDArray[Any]) -> str:
    return "×".join(map(str, array.shape)) or "of a scalar"
