"""Parity: how far the outputs of a converted model are from those of the model it was made from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from shipctl.stages.artifacts import Report
from shipctl.stages.base import Bound, StageOptions
from shipctl.stages.verdicts import Comparison, Verdict, compare

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

METRICS = ("parity.max_abs_error", "parity.max_rel_error", "parity.cosine", "parity.top1")
"""What every parity report has; `parity.top1` only where an output has classes in its last dimension, or is one."""

_TEXTS = "OUS"
"""What numpy calls the kinds of texts."""
Size = Annotated[int, Field(ge=1)]
"""Of a dimension."""


class ParityOptions(StageOptions):
    """Bounds of parity; None does not judge. Stages override the defaults."""

    max_abs_error: float | None = Bound(
        None, ge=0, description="Largest absolute error of any output element."
    )
    max_rel_error: float | None = Bound(
        None, ge=0, description="Largest absolute error of an output, divided by its largest magnitude."
    )
    min_cosine: float | None = Bound(
        None, ge=-1, le=1, description="Smallest cosine similarity of a sample's outputs before and after."
    )
    min_top1: float | None = Bound(
        None, ge=0, le=1, description="Smallest fraction of samples whose largest output stays the same."
    )


class ExactParityOptions(ParityOptions):
    """Bounds for a conversion that only rounds differently, and what it is measured on."""

    max_abs_error: float | None = Bound(
        1e-3, ge=0, description="Largest absolute error of any output element."
    )
    max_rel_error: float | None = Bound(
        1e-4, ge=0, description="Largest absolute error of an output, divided by its largest magnitude."
    )
    min_cosine: float | None = Bound(
        0.9999, ge=-1, le=1, description="Smallest cosine similarity of a sample's outputs before and after."
    )
    min_top1: float | None = Bound(
        0.99, ge=0, le=1, description="Smallest fraction of samples whose largest output stays the same."
    )

    batches: tuple[Size, ...] = Field(
        default=(1, 3, 16),
        min_length=1,
        description="Batch sizes of the random inputs, if the model's batch varies.",
    )
    dimensions: dict[str, Size] = Field(
        default_factory=dict,
        description="Sizes in random inputs of the varying dimensions other than the batch; 8 if not named.",
    )
    samples: int = Field(default=256, ge=1, description="How many calibration samples are compared at most.")


class Parity:
    """Gathers errors over several runs of both models.

    - ``parity.max_abs_error``: max ``|a - b|``
    - ``parity.max_rel_error``: max over outputs and runs of ``max |a - b| / max |a|`` (normwise, because an
      element near zero says nothing by its own ratio)
    - ``parity.cosine``: min over samples of ``a·b / (‖a‖ ‖b‖)``; where a sample is one number, whose direction
      is only its sign, ``1 - ‖a - b‖² / 2‖a‖²`` over all samples, which for vectors of the same length is the same
    - ``parity.top1``: fraction of samples with the same argmax over the last dimension, of the worst output

    where a is the model before and b the one after. Equal infinities count as equal; a NaN on either side
    makes every metric NaN, which no bound lets pass.

    One integer or truth value a sample is a class, and texts are. They count for ``parity.top1`` and, where any
    error is too much, for ``parity.max_abs_error`` (0 or 1 for texts); there are no ratios and angles between them.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._top1: dict[str, list[int]] = {}
        self._singles: dict[str, list[float]] = {}

    def add(self, case: str, before: Mapping[str, Array], after: Mapping[str, Array]) -> None:
        """Compare the outputs (same names and shapes) of one run; ``case`` names it in the report."""
        import numpy as np

        for name, a in before.items():
            b = after[name]
            row = {"case": case, "output": name, "samples": len(a) if a.ndim else 1}
            same = _same_class(a, b)
            if a.dtype.kind in _TEXTS:
                row |= _text_errors(same)
            else:
                row |= self._number_errors(name, a.astype(np.float64), b.astype(np.float64), same)
            if same is not None and same.size:
                row["top1"] = float(same.mean())
                tally = self._top1.setdefault(name, [0, 0])
                tally[0] += int(same.sum())
                tally[1] += same.size
            self.rows.append(row)

    def _number_errors(self, name: str, a: Array, b: Array, same: Array | None) -> dict[str, float]:
        import numpy as np

        found = _errors(a, b)
        if not math.isfinite(found["max_abs_error"]) or not _is_single(a):
            return found
        if same is not None:
            return found | {"max_rel_error": 0.0, "cosine": 1.0}
        error = float((np.where(a == b, 0.0, a - b) ** 2).sum())
        power = float((np.where(np.isfinite(a), a, 0.0) ** 2).sum())
        sums = self._singles.setdefault(name, [0.0, 0.0])
        sums[0] += error
        sums[1] += power
        return found | {"cosine": _alike(error, power)}

    def metrics(self) -> dict[str, float]:
        """Return the worst over all runs, by name."""
        if not self.rows:
            return {}
        columns = {
            key: [row[key] for row in self.rows] for key in ("max_abs_error", "max_rel_error", "cosine")
        }
        if any(math.isnan(value) for column in columns.values() for value in column):
            return dict.fromkeys(METRICS, math.nan)
        found = {
            "parity.max_abs_error": max(columns["max_abs_error"]),
            "parity.max_rel_error": max(columns["max_rel_error"]),
            "parity.cosine": min(
                [row["cosine"] for row in self.rows if row["output"] not in self._singles]
                + [_alike(*sums) for sums in self._singles.values()]
            ),
        }
        if self._top1:
            found["parity.top1"] = min(same / total for same, total in self._top1.values())
        return found

    def details(self) -> dict[str, Any]:
        """Return a table with a row per run and output."""
        return {"parity": self.rows, "has_classes": bool(self._top1)}


def _same_class(a: Array, b: Array) -> Array | None:
    """Return which answers are the same class; None for outputs without classes, or of another shape.

    Classes are scores in the last dimension, texts, and single integers or truth values.
    """
    if a.shape != b.shape:
        return None
    if a.dtype.kind in _TEXTS or (a.dtype.kind in "iub" and _is_single(a)):
        equal: Array = a == b
        return equal
    if a.ndim > 1 and a.shape[-1] > 1 and a.dtype.kind == "f":
        chosen: Array = a.argmax(-1) == b.argmax(-1)
        return chosen
    return None


def _text_errors(same: Array | None) -> dict[str, float]:
    if same is None:
        return dict.fromkeys(("max_abs_error", "max_rel_error", "cosine"), math.nan)
    error = float(not same.all())
    return {"max_abs_error": error, "max_rel_error": 0.0, "cosine": 1.0}


def _is_single(a: Array) -> bool:
    """Whether a sample is one number."""
    return a.size == (len(a) if a.ndim else 1)


def _alike(error: float, power: float) -> float:
    """Return ``1 - ‖a - b‖² / 2‖a‖²`` (-1 at least) from the two sums of squares; nothing and nothing are alike."""
    return max(-1.0, 1.0 - error / (2 * power)) if power else float(not error)


def _errors(a: Array, b: Array) -> dict[str, float]:
    import numpy as np

    if a.shape != b.shape or np.isnan(a).any() or np.isnan(b).any():
        return dict.fromkeys(("max_abs_error", "max_rel_error", "cosine"), math.nan)
    if not a.size:
        return {"max_abs_error": 0.0, "max_rel_error": 0.0, "cosine": 1.0}
    equal_infinities = np.isinf(a) & (a == b)
    a, b = np.where(equal_infinities, 0.0, a), np.where(equal_infinities, 0.0, b)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return {"max_abs_error": math.inf, "max_rel_error": math.inf, "cosine": 0.0}
    error, scale = float(np.abs(a - b).max()), float(np.abs(a).max())
    relative = error / scale if scale else (math.inf if error else 0.0)
    return {"max_abs_error": error, "max_rel_error": relative, "cosine": _worst_cosine(a, b)}


def _worst_cosine(a: Array, b: Array) -> float:
    """Return the smallest cosine over the first dimension; two vectors of zeros are alike."""
    import numpy as np

    rows = len(a) if a.ndim else 1
    a, b = a.reshape(rows, -1), b.reshape(rows, -1)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    products = np.where(both_zero, 1.0, (a * b).sum(axis=1))
    return float(np.clip(products / np.where(lengths > 0, lengths, 1.0), -1.0, 1.0).min())


def judge_parity(report: Report, bounds: ParityOptions) -> Sequence[Verdict]:
    """Compare a parity report with its bounds.

    The default bound of top-1 does not apply to a model without classes; another one does, and then the
    metric is missing, which is no pass.
    """
    wanted: tuple[tuple[str, Comparison, float | None], ...] = (
        ("parity.max_abs_error", "<=", bounds.max_abs_error),
        ("parity.max_rel_error", "<=", bounds.max_rel_error),
        ("parity.cosine", ">=", bounds.min_cosine),
        ("parity.top1", ">=", bounds.min_top1),
    )
    usual = type(bounds).model_fields["min_top1"].default
    asked_top1 = bounds.min_top1 != usual or bool(report.details.get("has_classes", True))
    return [
        compare(name, report.metrics.get(name), how, bound, subject=report.subject, source=report.digest)
        for name, how, bound in wanted
        if bound is not None and (name != "parity.top1" or asked_top1)
    ]
