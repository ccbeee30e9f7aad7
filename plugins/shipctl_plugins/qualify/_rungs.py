"""Successive halving: how much each rung measures, and who goes on to the next.

After Karnin, Koren and Somekh (2013), Almost optimal exploration in multi-armed bandits, and Jamieson and Talwalkar
(2016), Non-stochastic best arm identification and hyperparameter optimization; with one difference: what cannot be
told from the last one that goes on, goes on as well.

Speeds are compared round by round: candidates were measured in turn, so what else the machine did hit all of them,
and one is worse that was worse in nearly all rounds (sign test). Confidence intervals from the samples of a run would
know nothing of a machine that is slower a second later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from shipctl_plugins.qualify._candidates import Candidate, family, lost, rounds_lost
from shipctl_plugins.qualify._choice import Choice
from shipctl_plugins.qualify._comparisons import Constraint, show

MEDIAN = "latency.p50"
"""What candidates are compared by where rounds have too few runs for the objective's percentile."""


class Cut(NamedTuple):
    """Who goes on after a rung, best first, and who does not."""

    kept: list[Candidate]
    dropped: list[tuple[Candidate, str]]
    """With the reason."""
    compared_by: str
    """The metric that decided."""


def shares(candidates: int, factor: int) -> list[float]:
    """Return the part of the full measurement that each rung takes; the last one is 1.

    With n candidates there are ``ceil(log_factor n) + 1`` rungs, so that, if each leaves one in ``factor``, about one
    is left to be measured in full.
    """
    rungs = 0
    while factor**rungs < candidates:
        rungs += 1
    return [float(factor) ** (rung - rungs) for rung in range(rungs + 1)]


def cut(candidates: Sequence[Candidate], choice: Choice, factor: int) -> Cut:
    """Decide who goes on: one in ``factor``, and what cannot be told from the last of these.

    What surely breaks a constraint (the better end of its confidence interval does) goes first, the worst by far at
    the front; then what is surely worse by the objective.
    """
    metric = _comparable(candidates, choice.objective.metric)
    order = ranked(candidates, choice)
    count = max(1, math.ceil(len(order) / factor))
    kept, last = order[:count], order[count - 1]
    limit = violation(last, choice)
    dropped: list[tuple[Candidate, str]] = []
    for item in order[count:]:
        why = (
            _violations(item, choice)
            if violation(item, choice) > limit
            else _worse(item, last, metric, choice)
        )
        if why:
            dropped.append((item, why))
        else:
            kept.append(item)
    return Cut(kept, dropped, metric)


def ranked(candidates: Sequence[Candidate], choice: Choice) -> list[Candidate]:
    """Return the candidates, best first: by what they surely break, then by the objective, then as declared."""
    metric = _comparable(candidates, choice.objective.metric)
    sign = 1.0 if choice.objective.direction == "minimize" else -1.0

    return sorted(
        candidates, key=lambda item: (violation(item, choice), sign * _level(item, metric, sign), item.order)
    )


def violation(candidate: Candidate, choice: Choice) -> float:
    """Return by how much, in parts of the bounds, a candidate surely breaks constraints; infinity without a number."""
    if not math.isfinite(candidate.metrics.get(choice.objective.metric, math.nan)):
        return math.inf
    return math.fsum(
        _excess(candidate.metrics, item, item.bound(choice.objectives)) for item in choice.constraints
    )


def _excess(metrics: Mapping[str, float], constraint: Constraint, bound: float) -> float:
    value = metrics.get(constraint.metric, math.nan)
    if not math.isfinite(value):
        return math.inf
    if constraint.comparison == "==":
        return 0.0  # whether two numbers are equal shows in the full measurement
    upper = constraint.comparison in {"<=", "<"}
    best = metrics.get(f"{constraint.metric}.{'low' if upper else 'high'}", value)
    over = best - bound if upper else bound - best
    return max(0.0, over) / (abs(bound) or 1.0)


def _violations(candidate: Candidate, choice: Choice) -> str:
    said = []
    for item in choice.constraints:
        bound = item.bound(choice.objectives)
        if _excess(candidate.metrics, item, bound) > 0:
            value = candidate.metrics.get(item.metric, math.nan)
            said.append(
                f"{item.metric} {show(item.metric, value)} is not {item.comparison} {show(item.metric, bound)}"
            )
    return "; ".join(said) or f"{choice.objective.metric} is missing"


def _comparable(candidates: Sequence[Candidate], metric: str) -> str:
    """Return the objective's metric, or the median where some rounds have too few runs for it."""
    if family(metric) != "latency" or "@" in metric:
        return metric
    by_rounds = [name for name in (metric, MEDIAN) if all(name in item.rounds for item in candidates)]
    return by_rounds[0] if by_rounds else metric


def _level(candidate: Candidate, metric: str, sign: float) -> float:
    """Return what a candidate is ranked by: the median of its rounds, else its metric."""
    if metric in candidate.rounds:
        return median(candidate.rounds[metric])
    return candidate.metrics.get(metric, sign * math.inf)


def _worse(one: Candidate, other: Candidate, metric: str, choice: Choice) -> str:
    """Say by what ``one`` is surely worse than ``other``, or nothing."""
    better = choice.objective.better
    counted = rounds_lost(one, other, choice.objective, metric)
    if counted is not None:
        if not lost(one, other, choice.objective, metric):
            return ""
        values = [show(metric, median(item.rounds[metric])) for item in (one, other)]
        return f"{metric} {values[0]} against {values[1]} of {other.name}, worse in {counted[0]} of {counted[1]} rounds"
    minimize = choice.objective.direction == "minimize"
    value, bar = (item.metrics.get(metric, math.inf if minimize else -math.inf) for item in (one, other))
    best = one.metrics.get(f"{metric}.{'low' if minimize else 'high'}", value)
    worst = other.metrics.get(f"{metric}.{'high' if minimize else 'low'}", bar)
    return (
        f"{metric} {show(metric, value)} against {show(metric, bar)} of {other.name}"
        if better(worst, best)
        else ""
    )
