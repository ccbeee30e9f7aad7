"""Candidates of a choice: what is known about each model, and which of two is the simpler one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from shipctl.errors import StageError
from shipctl.stages.artifacts import OnnxModel, Report, TensorrtEngine
from shipctl.stages.context import Objectives
from shipctl.stages.verdicts import Outcome, compare
from shipctl_plugins.qualify._comparisons import Constraint, Objective, show

MEASURED = ("latency", "throughput", "memory")
"""Families of metrics that can be compared on one host only."""
ITSELF = {"parity.max_abs_error": 0.0, "parity.max_rel_error": 0.0, "parity.cosine": 1.0, "parity.top1": 1.0}
"""Parity of a model that was made from nothing else: it is what others are compared with."""
SIGNIFICANCE = 0.05
"""One-sided level of the sign test."""
_FULL_BITS = 32


@dataclass
class Candidate:
    """A model and what is known about it."""

    model: OnnxModel | TensorrtEngine
    order: int = 0
    """Its place in the declared order."""
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    """Why it is out; empty as long as it is not."""
    share: float = 1.0
    """The part of the full measurement that its numbers are from; 0 if it was not tried."""
    late: bool = False
    """Whether it is out only because time was: others still have to be better."""
    level: float | None = None
    """Where it stands by the objective among candidates that were measured at different times; None for its metric."""
    rounds: dict[str, list[float]] = field(default_factory=dict)
    """Metrics round by round, where several candidates were measured in turn."""

    @property
    def name(self) -> str:
        """Precision and the beginning of the digest."""
        return f"{self.model.precision} {self.model.digest[:12]}"

    @property
    def onnx(self) -> OnnxModel:
        """The model, which is no engine: :func:`broken` lets none through.

        :raises TypeError: if it is one
        """
        if not isinstance(self.model, OnnxModel):
            raise TypeError(self.model.kind)
        return self.model


def look_up(
    models: Sequence[OnnxModel | TensorrtEngine],
    reports: Sequence[Report],
    wanted: Sequence[str],
    extra: Sequence[str] = (),
) -> list[Candidate]:
    """Return the distinct models with those of the metrics that reports have about them.

    ``extra`` are metrics that decide nothing: one on which reports differ is left out.

    :raises StageError: if reports contradict each other, or are from more than one host
    """
    hosts: dict[str, list[str]] = {}
    candidates: list[Candidate] = []
    for model in {model.digest: model for model in models}.values():
        candidate = Candidate(model, order=len(candidates), metrics={"size": float(model.size)})
        if model.derived_from is None:
            candidate.metrics |= {name: ITSELF[name] for name in (*wanted, *extra) if name in ITSELF}
        about = [report for report in reports if report.subject == model.digest]
        for metric in (*wanted, *extra):
            found = {report.digest: report for report in about if metric in report.metrics}
            values = {
                report.metrics[metric] for report in found.values() if not math.isnan(report.metrics[metric])
            }
            if metric == "size" or not found or (len(values) > 1 and metric not in wanted):
                continue
            if len(values) > 1:
                titles = ", ".join(f"{report.title} {report.digest[:12]}" for report in found.values())
                message = f"{metric} of {candidate.name} differs between reports ({titles}); wire one of them"
                raise StageError(message)
            candidate.metrics[metric] = values.pop() if values else math.nan
            if family(metric) in MEASURED:
                for report in found.values():
                    hosts.setdefault(str(report.details.get("host", "unknown")), []).append(candidate.name)
        candidates.append(candidate)
    _one_host(hosts)
    return candidates


def _one_host(hosts: Mapping[str, Sequence[str]]) -> None:
    if len(hosts) > 1:
        groups = "; ".join(
            f"host {host[:12]}: {', '.join(dict.fromkeys(names))}" for host, names in hosts.items()
        )
        message = f"measurements from different machines cannot be compared ({groups}); run the benchmarks again on one"
        raise StageError(message)


def family(metric: str) -> str:
    """Return the part of a metric's name before the first dot or configuration."""
    return metric.partition("@")[0].partition(".")[0]


def broken(
    candidate: Candidate, wanted: Sequence[str], constraints: Sequence[Constraint], objectives: Objectives
) -> str:
    """Say which metric is missing or which constraints a candidate breaks, or nothing."""
    for metric in wanted:
        if metric not in candidate.metrics:
            return f"no report about it has {metric}"
        if not math.isfinite(candidate.metrics[metric]):
            return f"{metric} is {candidate.metrics[metric]}"
    verdicts = [
        compare(
            constraint.metric,
            candidate.metrics[constraint.metric],
            constraint.comparison,
            constraint.bound(objectives),
            show=partial(show, constraint.metric),
        )
        for constraint in constraints
    ]
    failed = "; ".join(verdict.message for verdict in verdicts if verdict.outcome is not Outcome.PASS)
    if not failed and isinstance(candidate.model, TensorrtEngine):
        return "it is a TensorRT engine, and what is handed on here is an ONNX model; wire the engine to the next stage"
    return failed


def ancestors(candidate: Candidate, by_digest: Mapping[str, Candidate]) -> list[Candidate]:
    """Return the candidates that ``candidate`` derives from, nearest first."""
    found: list[Candidate] = []
    parent = by_digest.get(candidate.model.derived_from or "")
    while parent is not None and parent not in found:
        found.append(parent)
        parent = by_digest.get(parent.model.derived_from or "")
    return found


def simplicity(candidate: Candidate, candidates: Sequence[Candidate]) -> tuple[int, int, bool, int]:
    """Return a key by which the simplest candidate comes first.

    Fewer steps from the first candidate that it derives from; then more bits per number, a float before an integer
    of the same size (fp32, fp16 or bf16, fp8, int8, int4; what says no bits comes last); then the declared order.
    """
    by_digest = {other.model.digest: other for other in candidates}
    bits = [int(number) for number in re.findall(r"(?:fp|bf|int|tf|nf)(\d+)", candidate.model.precision)]
    least = min(bits) if bits else 0
    integer = bool(re.search(rf"int{least}(?!\d)", candidate.model.precision))
    return (
        len(ancestors(candidate, by_digest)),
        _FULL_BITS - min(least, _FULL_BITS),
        integer,
        candidate.order,
    )


def rounds_lost(
    one: Candidate, other: Candidate, objective: Objective, metric: str
) -> tuple[int, int] | None:
    """Return in how many rounds ``one`` was worse than ``other``, and of how many; None if they had none together."""
    if metric not in one.rounds or metric not in other.rounds or one.share != other.share:
        return None
    pairs = list(zip(one.rounds[metric], other.rounds[metric], strict=True))
    return sum(objective.better(theirs, ours) for ours, theirs in pairs), len(pairs)


def lost(one: Candidate, other: Candidate, objective: Objective, metric: str | None = None) -> bool | None:
    """Whether ``one`` was worse than ``other`` in too many rounds for chance (sign test); None without rounds."""
    counted = rounds_lost(one, other, objective, metric or objective.metric)
    return None if counted is None else counted[0] >= needed(counted[1])


def needed(rounds: int) -> int:
    """Return in how many of so many rounds one has to be worse before that is no chance; more than all for too few."""
    tail = 0.0
    for worse in range(rounds, -1, -1):
        tail += math.comb(rounds, worse) / 2.0**rounds
        if tail > SIGNIFICANCE:
            return worse + 1
    return 0


def row(candidate: Candidate, shown: Sequence[str], *, chosen: bool) -> dict[str, Any]:
    """Return what a report says about a candidate, with those of the metrics ``shown`` that it has."""
    return {
        "name": candidate.name, "digest": candidate.model.digest, "precision": candidate.model.precision,
        "derived_from": candidate.model.derived_from,
        "values": {name: candidate.metrics[name] for name in shown if name in candidate.metrics},
        "chosen": chosen, "reason": candidate.reason, "share": candidate.share,
    }  # fmt: skip
