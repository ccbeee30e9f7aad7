"""The Pareto front of a choice: its objective against accuracy, or against size where there is no accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from shipctl.stages.context import Objectives
from shipctl_plugins.qualify._candidates import Candidate, family
from shipctl_plugins.qualify._comparisons import Constraint, Objective, direction_of

QUALITY = (
    "accuracy_drop", "accuracy", "f1.macro", "spearman", "pearson", "rmse", "mae", "parity.top1", "parity.cosine",
)  # fmt: skip
"""Metrics that the objective is drawn against, the first that is known; `size` if none is."""
_BOUNDED = frozenset(family(name) for name in QUALITY)
_DROP = "_drop"


def metrics_for(objective: Objective, constraints: Sequence[Constraint]) -> list[str]:
    """Return the metrics that the second axis may have, the best one first: bounded ones, then quality, then size."""
    bounded = [item.metric for item in constraints if family(item.metric).removesuffix(_DROP) in _BOUNDED]
    names = dict.fromkeys([*bounded, *QUALITY, "size"])
    return [name for name in names if name != objective.metric]


def pareto(
    candidates: Sequence[Candidate],
    objective: Objective,
    constraints: Sequence[Constraint],
    objectives: Objectives,
    best: Candidate,
) -> dict[str, Any]:
    """Return `pareto`, a row per candidate that has both numbers, and `pareto_axes`, which says what they are.

    On the front is what no other candidate beats in one number without losing in the other. Bounds do not count:
    they are drawn.
    """
    other = next(
        (
            name
            for name in metrics_for(objective, constraints)
            if _finite(best, name) and direction_of(name) is not None
        ),
        None,
    )
    if other is None:
        return {}
    across = Objective(other, direction_of(other) or "minimize")
    placed = [item for item in candidates if _finite(item, objective.metric) and _finite(item, other)]
    points = [
        (item.metrics[objective.metric] if item.level is None else item.level, item.metrics[other])
        for item in placed
    ]
    rows = [
        {
            "name": item.name,
            "digest": item.model.digest,
            "x": x,
            "y": y,
            "on_front": not any(_beats(rival, (x, y), objective, across) for rival in points),
            "chosen": item is best,
            "share": item.share,
        }
        for item, (x, y) in zip(placed, points, strict=True)
    ]
    axes = {
        name: {
            "metric": axis.metric,
            "direction": axis.direction,
            "bounds": [
                {"text": item.text, "value": item.bound(objectives)}
                for item in constraints
                if item.metric == axis.metric
            ],
        }
        for name, axis in (("x", objective), ("y", across))
    }
    return {"pareto": rows, "pareto_axes": axes}


def _finite(candidate: Candidate, metric: str) -> bool:
    return math.isfinite(candidate.metrics.get(metric, math.nan))


def _beats(one: tuple[float, float], other: tuple[float, float], x: Objective, y: Objective) -> bool:
    """Whether ``one`` is nowhere worse than ``other`` and somewhere better."""
    axes = list(zip((x, y), one, other, strict=True))
    return not any(axis.better(theirs, ours) for axis, ours, theirs in axes) and any(
        axis.better(ours, theirs) for axis, ours, theirs in axes
    )
