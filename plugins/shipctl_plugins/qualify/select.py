"""Stage `select`: the best of several models, and why the others are not it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from pydantic import Field, field_validator

from shipctl.errors import GateError, SpecError, StageError
from shipctl.spec.units import Percentage
from shipctl.stages.artifacts import OnnxModel, Report
from shipctl.stages.base import Stage, StageInputs, StageOptions, StageOutputs
from shipctl.stages.context import CheckContext, Objectives, StageContext
from shipctl.stages.verdicts import Outcome, compare
from shipctl_plugins._onnx.reports import write_report
from shipctl_plugins.qualify._comparisons import Constraint, parse_constraint, parse_objective, show

MEASURED = ("latency", "throughput", "memory")
"""Families of metrics that can be compared on one host only."""
_PROVIDERS = {
    "latency": "benchmark", "throughput": "benchmark", "accuracy": "evaluate", "accuracy_drop": "evaluate",
    "f1": "evaluate", "precision": "evaluate", "recall": "evaluate", "rmse": "evaluate", "mae": "evaluate",
    "weights": "validate-weights",
}  # fmt: skip


class Options(StageOptions):
    """What stands below ``with:``."""

    objective: str = Field(
        description="The metric that decides, such as latency.p95; minimize: or maximize: before it says which way."
    )
    subject_to: tuple[str, ...] = Field(
        default=(),
        description="Comparisons that a candidate has to fulfil, such as 'accuracy_drop <= budget.accuracy_drop'.",
    )
    min_improvement: Percentage = Field(
        default=Percentage("2%"),
        description="By how much a variant has to be better than the model it derives from to replace it.",
    )
    baseline: str | None = Field(
        default=None,
        description="Precision (fp32) of the candidate that all others have to improve on; left out, each variant "
        "has to improve on the model it derives from.",
    )

    @field_validator("objective")
    @classmethod
    def _objective(cls, value: str) -> str:
        parse_objective(value)
        return value

    @field_validator("subject_to")
    @classmethod
    def _subject_to(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            parse_constraint(text)
        return value


class Inputs(StageInputs):
    """What the stage takes."""

    models: list[OnnxModel]
    reports: list[Report]


class Outputs(StageOutputs):
    """What the stage gives."""

    model: OnnxModel
    report: Report


@dataclass
class _Candidate:
    model: OnnxModel
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    """Why it is out; empty as long as it is not."""

    @property
    def name(self) -> str:
        return f"{self.model.precision} {self.model.digest[:12]}"


class Select(Stage[Options, Inputs, Outputs]):
    """Choose the best model under an objective and constraints; a variant has to be worth it.

    A candidate without a finite value for the objective or a constraint is out. What is left has to improve on
    the nearest model it derives from by `min_improvement`, and beyond the confidence intervals where the
    reports have them. `size` is always known; other metrics come from reports about the candidate.
    """

    api_version = 1
    isolation = "inline"
    reads = ("slo", "budget")
    metrics = ("candidates", "survivors", "selected.*")

    def check(self, ctx: CheckContext) -> None:
        """Make sure that something before this stage measures what it needs, and that the bounds exist."""
        constraints = [parse_constraint(text) for text in self.options.subject_to]
        for constraint in constraints:
            try:
                constraint.bound(ctx.objectives)
            except StageError as exc:
                raise SpecError(f"subject_to: {exc}") from exc
        patterns = [pattern for source in ctx.inputs.get("reports", ()) for pattern in source.metrics]
        wanted = [
            parse_objective(self.options.objective).metric,
            *(constraint.metric for constraint in constraints),
        ]
        for metric in dict.fromkeys(wanted):
            if metric != "size" and not any(fnmatchcase(metric, pattern) for pattern in patterns):
                raise SpecError(_advice(metric, ctx))

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Look up, drop, compare, choose."""
        objective = parse_objective(self.options.objective)
        constraints = [parse_constraint(text) for text in self.options.subject_to]
        if not inputs.models:
            message = "there is no model to choose from; wire at least one stage that makes one into `models`"
            raise StageError(message)
        wanted = list(dict.fromkeys([objective.metric, *(constraint.metric for constraint in constraints)]))
        extra = [f"{objective.metric}.low", f"{objective.metric}.high"]
        candidates = _candidates(inputs, wanted, extra)
        for candidate in candidates:
            candidate.reason = _broken(candidate, wanted, constraints, ctx.objectives)
        self._keep_if_better(candidates)
        kept = [candidate for candidate in candidates if not candidate.reason]
        if not kept:
            losers = "\n".join(f"  {candidate.name}: {candidate.reason}" for candidate in candidates)
            message = f"no candidate is left under {objective.direction} {objective.metric}:\n{losers}"
            raise GateError(message)
        values = [candidate.metrics[objective.metric] for candidate in kept]
        record = min(values) if objective.direction == "minimize" else max(values)
        least = self.options.min_improvement
        # the first of those that are about as good, so that noise between equals does not change what is released
        best = next(
            c for c, value in zip(kept, values, strict=True) if objective.improvement(record, value) < least
        )
        value = best.metrics[objective.metric]
        best.reason = f"{objective.metric} {show(objective.metric, value)}"
        for candidate in kept:
            if candidate is not best:
                other = show(objective.metric, candidate.metrics[objective.metric])
                shown = show(objective.metric, value)
                candidate.reason = f"{objective.metric} {other}, the chosen {best.name} has {shown}"
        rows = [_row(candidate, chosen=candidate is best) for candidate in candidates]
        report = write_report(
            ctx.workdir, subject=best.model.digest, title=f"Selection: {objective.direction} {objective.metric}",
            metrics={"candidates": float(len(candidates)), "survivors": float(len(kept)),
                     f"selected.{objective.metric}": value},
            details={"objective": objective.metric, "direction": objective.direction,
                     "subject_to": list(self.options.subject_to), "candidates": rows},
        )  # fmt: skip
        for row in rows:
            ctx.log(f"{row['name']}: {'chosen' if row['chosen'] else 'dropped'}: {row['reason']}")
        return Outputs(model=best.model, report=report)

    def _keep_if_better(self, candidates: Sequence[_Candidate]) -> None:
        """Drop what does not improve on what it derives from, ancestors first."""
        by_digest = {candidate.model.digest: candidate for candidate in candidates}
        baseline = self._baseline(candidates)
        for candidate in sorted(candidates, key=lambda item: len(_ancestors(item, by_digest))):
            if candidate.reason:
                continue
            before = [other for other in _ancestors(candidate, by_digest) if not other.reason]
            bar = baseline if baseline is not None else next(iter(before), None)
            if bar is not None and bar is not candidate and not bar.reason:
                candidate.reason = self._not_better(candidate, bar)

    def _baseline(self, candidates: Sequence[_Candidate]) -> _Candidate | None:
        if self.options.baseline is None:
            return None
        found = [candidate for candidate in candidates if candidate.model.precision == self.options.baseline]
        if len(found) != 1:
            there = ", ".join(candidate.model.precision for candidate in candidates)
            message = (
                f"baseline {self.options.baseline!r} fits {len(found)} of the candidates ({there}), not one"
            )
            raise StageError(message)
        return found[0]

    def _not_better(self, candidate: _Candidate, bar: _Candidate) -> str:
        """Say why ``candidate`` is no real improvement on ``bar``, or nothing."""
        objective = parse_objective(self.options.objective)
        value, over = candidate.metrics[objective.metric], bar.metrics[objective.metric]
        least = self.options.min_improvement
        say = partial(show, objective.metric)
        shown = f"{objective.metric} {say(value)} against {say(over)} of {bar.name}"
        if not objective.better(value, over) or objective.improvement(value, over) < least:
            return f"{shown} is no improvement by {least}"
        ends = ("high", "low") if objective.direction == "minimize" else ("low", "high")
        worst = candidate.metrics.get(f"{objective.metric}.{ends[0]}")
        best = bar.metrics.get(f"{objective.metric}.{ends[1]}")
        if worst is not None and best is not None and not objective.better(worst, best):
            return f"{shown} is within the confidence intervals ({say(worst)} and {say(best)})"
        return ""


def _advice(metric: str, ctx: CheckContext) -> str:
    family = metric.partition("@")[0].partition(".")[0]
    stage = _PROVIDERS.get(family)
    if stage is None:
        return f"no stage before this one reports {metric!r}; add the stage that does to its `needs`"
    # a node is called like its stage, with the matrix variant in brackets
    stages = list(
        dict.fromkeys(source.node.partition("[")[0].strip() for source in ctx.inputs.get("models", ()))
    )
    names = ", ".join(stages)
    return (
        f"no stage before this one reports {metric!r}; add one for every candidate and put `{stage}` into `needs`:\n"
        f"  - id: {stage}\n    uses: {stage}\n    needs: [{names}]\n    matrix: {{candidate: [{names}]}}\n"
        '    inputs: {model: "${{ matrix.candidate }}"}'
    )


def _candidates(inputs: Inputs, wanted: Sequence[str], extra: Sequence[str]) -> list[_Candidate]:
    """Return the distinct models with those of the metrics that reports have about them.

    :raises StageError: if reports contradict each other, or are from more than one host
    """
    hosts: dict[str, list[str]] = {}
    candidates: list[_Candidate] = []
    for model in {model.digest: model for model in inputs.models}.values():
        candidate = _Candidate(model)
        about = [report for report in inputs.reports if report.subject == model.digest]
        for metric in (*wanted, *extra):
            found = {report.digest: report for report in about if metric in report.metrics}
            values = {
                report.metrics[metric] for report in found.values() if not math.isnan(report.metrics[metric])
            }
            if metric == "size":
                candidate.metrics[metric] = float(model.size)
            elif len(values) > 1:
                titles = ", ".join(f"{report.title} {report.digest[:12]}" for report in found.values())
                message = f"{metric} of {candidate.name} differs between reports ({titles}); wire one of them"
                raise StageError(message)
            elif found:
                candidate.metrics[metric] = values.pop() if values else math.nan
            if metric.partition(".")[0].partition("@")[0] in MEASURED:
                for report in found.values():
                    hosts.setdefault(str(report.details.get("host", "unknown")), []).append(candidate.name)
        candidates.append(candidate)
    if len(hosts) > 1:
        groups = "; ".join(
            f"host {host[:12]}: {', '.join(dict.fromkeys(names))}" for host, names in hosts.items()
        )
        message = f"measurements from different machines cannot be compared ({groups}); run the benchmarks again on one"
        raise StageError(message)
    return candidates


def _broken(
    candidate: _Candidate, wanted: Sequence[str], constraints: Sequence[Constraint], objectives: Objectives
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
    return "; ".join(verdict.message for verdict in verdicts if verdict.outcome is not Outcome.PASS)


def _ancestors(candidate: _Candidate, by_digest: Mapping[str, _Candidate]) -> list[_Candidate]:
    """Return the candidates that ``candidate`` derives from, nearest first."""
    found: list[_Candidate] = []
    parent = by_digest.get(candidate.model.derived_from or "")
    while parent is not None and parent not in found:
        found.append(parent)
        parent = by_digest.get(parent.model.derived_from or "")
    return found


def _row(candidate: _Candidate, *, chosen: bool) -> dict[str, Any]:
    return {
        "name": candidate.name, "digest": candidate.model.digest, "precision": candidate.model.precision,
        "derived_from": candidate.model.derived_from, "values": candidate.metrics, "chosen": chosen,
        "reason": candidate.reason,
    }  # fmt: skip
