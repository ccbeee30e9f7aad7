"""The small language of `select`: objectives such as `latency.p95`, constraints such as `size <= 500KB`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from shipctl.errors import StageError
from shipctl.spec.units import Duration, Percentage, Rate, Size
from shipctl.stages.context import Objectives
from shipctl.stages.verdicts import Comparison

Direction = Literal["minimize", "maximize"]

_METRIC = r"[A-Za-z_][A-Za-z0-9_.]*(?:@\w+=\w+(?:,\w+=\w+)*)?"
_OBJECTIVE = re.compile(rf"\s*(?:(minimize|maximize)\s*:\s*)?({_METRIC})\s*")
_COMPARISON = re.compile(rf"\s*({_METRIC})\s*(<=|>=|==|<|>)\s*([^\s<>=]+)\s*")
_REFERENCE = re.compile(r"(slo|budget)\.([A-Za-z0-9_.]+)")
_NUMBER = re.compile(r"[-+]?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,3})?")

# both by the part before the first dot
_BYTES = {"GiB": 2.0**30, "MiB": 2.0**20, "KiB": 2.0**10, "B": 1.0}
_UNITS = {"latency": {"s": 1.0, "ms": 1e-3, "us": 1e-6}, "size": _BYTES, "memory": _BYTES}
_FAMILIES: dict[str, Direction] = {
    "latency": "minimize", "size": "minimize", "rmse": "minimize", "mae": "minimize", "memory": "minimize",
    "accuracy_drop": "minimize", "throughput": "maximize", "accuracy": "maximize", "f1": "maximize",
    "precision": "maximize", "recall": "maximize", "spearman": "maximize", "pearson": "maximize",
}  # fmt: skip
_NAMES: dict[str, Direction] = {
    "parity.cosine": "maximize", "parity.top1": "maximize",
    "parity.max_abs_error": "minimize", "parity.max_rel_error": "minimize",
}  # fmt: skip


@dataclass(frozen=True)
class Objective:
    """What is to be small or large."""

    metric: str
    direction: Direction

    def improvement(self, value: float, over: float) -> float:
        """Return by which fraction of ``over`` ``value`` is better (negative: worse)."""
        gain = over - value if self.direction == "minimize" else value - over
        return gain / abs(over) if over else 0.0

    def better(self, value: float, other: float) -> bool:
        """Whether ``value`` is better than ``other``."""
        return value < other if self.direction == "minimize" else value > other


@dataclass(frozen=True)
class Constraint:
    """One comparison of a metric with a number or with an entry of the spec."""

    text: str
    metric: str
    comparison: Comparison
    number: float | None
    reference: tuple[str, str] | None
    """`slo` or `budget`, and the name in it."""

    def bound(self, objectives: Objectives) -> float:
        """Return the number to compare with, in base units.

        :raises StageError: if the spec does not have what the constraint refers to
        """
        if self.reference is None:
            return cast("float", self.number)
        block, name = self.reference
        values: Mapping[str, float] = objectives.slo if block == "slo" else objectives.budget
        if name not in values:
            there = ", ".join(sorted(values)) or "nothing"
            message = f"{self.text!r}: the spec's {block} has no {name!r}, only {there}"
            raise StageError(message)
        return values[name]


def parse_objective(text: str) -> Objective:
    """Read ``latency.p95`` or ``maximize:accuracy``.

    :raises ValueError: if it is neither, or nobody knows whether the metric should be small or large
    """
    match = _OBJECTIVE.fullmatch(text)
    if not match:
        message = (
            f"{text!r} is no objective; write the name of a metric, such as latency.p95 or maximize:accuracy"
        )
        raise ValueError(message)
    direction, metric = match.groups()
    known = direction or direction_of(metric)
    if known is None:
        message = f"{metric!r} may be good small or large; write minimize:{metric} or maximize:{metric}"
        raise ValueError(message)
    return Objective(metric, cast("Direction", known))


def direction_of(metric: str) -> Direction | None:
    """Return whether a metric is good small or large, None where nobody knows."""
    if metric.endswith("_drop"):
        return "minimize"
    return _NAMES.get(metric) or _FAMILIES.get(re.split(r"[.@]", metric, maxsplit=1)[0])


def parse_constraint(text: str) -> Constraint:
    """Read ``metric <= bound``, where the bound is a quantity, ``slo.<name>`` or ``budget.<name>``.

    :raises ValueError: if it is not that
    """
    match = _COMPARISON.fullmatch(text)
    if not match:
        message = (
            f"{text!r} is no comparison; write a metric, one of <= < >= > ==, and a bound, "
            "such as 'size <= 500KB' or 'accuracy_drop <= budget.accuracy_drop'"
        )
        raise ValueError(message)
    metric, comparison, bound = match.groups()
    reference = _REFERENCE.fullmatch(bound)
    if reference:
        return Constraint(text, metric, cast("Comparison", comparison), None, (reference[1], reference[2]))
    return Constraint(text, metric, cast("Comparison", comparison), _quantity(bound, text), None)


def _quantity(bound: str, text: str) -> float:
    if _NUMBER.fullmatch(bound):
        return float(bound)
    for kind in (Percentage, Rate, Size, Duration):
        try:
            return float(kind(bound))
        except ValueError:
            continue
    message = (
        f"{text!r}: {bound!r} is no bound; write a number, a quantity such as 100ms, 500KB, 1% or 200/s, "
        "slo.<name> or budget.<name>"
    )
    raise ValueError(message)


def show(metric: str, value: float) -> str:
    """Return ``value`` for a person, precise enough to be told from a bound: latency and size with their units."""
    for unit, scale in _UNITS.get(metric.partition(".")[0], {}).items():
        if abs(value) >= scale:
            return f"{value / scale:.4g} {unit}"
    return f"{value:.6g}"
