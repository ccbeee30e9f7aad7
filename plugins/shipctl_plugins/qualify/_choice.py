"""The choice among candidates: bounds, keep-if-better, the objective, and the simpler one of equals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NamedTuple

from pydantic import Field, field_validator

from shipctl.errors import GateError, SpecError, StageError
from shipctl.spec.units import Percentage
from shipctl.stages.base import StageOptions
from shipctl.stages.context import CheckContext, Objectives
from shipctl_plugins.qualify._candidates import Candidate, ancestors, broken, family, lost, row, simplicity
from shipctl_plugins.qualify._comparisons import (
    Constraint,
    Objective,
    parse_constraint,
    parse_objective,
    show,
)
from shipctl_plugins.qualify._pareto import metrics_for, pareto

_PROVIDERS = {
    "latency": "benchmark", "throughput": "benchmark", "accuracy": "evaluate", "accuracy_drop": "evaluate",
    "f1": "evaluate", "precision": "evaluate", "recall": "evaluate", "rmse": "evaluate", "mae": "evaluate",
    "spearman": "evaluate", "pearson": "evaluate", "weights": "validate-weights",
}  # fmt: skip


class ChoiceOptions(StageOptions):
    """What decides."""

    objective: str = Field(
        description="The metric that decides, such as latency.p95; minimize: or maximize: before it says which way."
    )
    subject_to: tuple[str, ...] = Field(
        default=(),
        description="Comparisons that a candidate has to fulfil, such as 'accuracy_drop <= budget.accuracy_drop'.",
    )
    min_improvement: Percentage = Field(
        default=Percentage("2%"),
        description="By how much a variant has to be better than the model it derives from to replace it; "
        "candidates closer together than that are equals, of which the simplest is taken.",
    )
    baseline: str | None = Field(
        default=None,
        description="Precision (fp32) of the candidate that all others have to improve on; left out, each variant "
        "has to improve on the model it derives from.",
    )
    max_trials: int | None = Field(
        default=None,
        ge=1,
        description="How many candidates are tried at most, in declared order; the others are not even made, and the "
        "report names them. Left out, all are.",
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


class Decision(NamedTuple):
    """What was chosen, and among what."""

    best: Candidate
    kept: tuple[Candidate, ...]
    """All that was not out, the best included."""


class Choice:
    """Objective and constraints, read, with the numbers that they are compared with."""

    def __init__(self, options: ChoiceOptions, objectives: Objectives) -> None:
        self.options, self.objectives = options, objectives
        self.objective: Objective = parse_objective(options.objective)
        self.constraints: list[Constraint] = [parse_constraint(text) for text in options.subject_to]

    @property
    def wanted(self) -> list[str]:
        """The metrics that a candidate has to have."""
        return list(
            dict.fromkeys([self.objective.metric, *(constraint.metric for constraint in self.constraints)])
        )

    @property
    def extra(self) -> list[str]:
        """Metrics that are looked up where they are: ends of confidence intervals, the other axis of the front."""
        metric = self.objective.metric
        return [f"{metric}.low", f"{metric}.high", *metrics_for(self.objective, self.constraints)]

    def decide(self, candidates: Sequence[Candidate]) -> Decision:
        """Give every candidate its reason and return the chosen one.

        :raises GateError: if none is left
        """
        for candidate in candidates:
            if not candidate.reason:
                candidate.reason = broken(candidate, self.wanted, self.constraints, self.objectives)
        self._keep_if_better(candidates)
        kept = [candidate for candidate in candidates if not candidate.reason]
        objective = self.objective
        if not kept:
            losers = "\n".join(f"  {candidate.name}: {candidate.reason}" for candidate in candidates)
            message = f"no candidate is left under {objective.direction} {objective.metric}:\n{losers}"
            raise GateError(message)
        values = [candidate.metrics[objective.metric] for candidate in kept]
        record = min(values) if objective.direction == "minimize" else max(values)
        first = kept[values.index(record)]
        # of those that are about as good the simplest, so that noise between equals does not change what is released
        equals = [
            candidate
            for candidate, value in zip(kept, values, strict=True)
            if objective.improvement(record, value) < self.options.min_improvement
            or lost(candidate, first, objective) is False
        ]
        chosen = min(equals, key=lambda candidate: simplicity(candidate, candidates))
        self._explain(kept, chosen)
        return Decision(chosen, tuple(kept))

    def _explain(self, kept: Sequence[Candidate], chosen: Candidate) -> None:
        objective, least = self.objective, self.options.min_improvement
        value = chosen.metrics[objective.metric]
        shown = show(objective.metric, value)
        chosen.reason = f"{objective.metric} {shown}"
        for candidate in kept:
            if candidate is chosen:
                continue
            other = candidate.metrics[objective.metric]
            said = f"{objective.metric} {show(objective.metric, other)}"
            if objective.better(value, other):
                candidate.reason = f"{said}, the chosen {chosen.name} has {shown}"
            else:
                beyond = objective.improvement(other, value) >= least
                candidate.reason = (
                    f"{said} is no improvement {'in nearly all rounds' if beyond else f'by {least}'} on {shown} of "
                    f"{chosen.name}, which is simpler"
                )

    def _keep_if_better(self, candidates: Sequence[Candidate]) -> None:
        """Drop what does not improve on what it derives from, ancestors first."""
        by_digest = {candidate.model.digest: candidate for candidate in candidates}
        baseline = self._baseline(candidates)
        for candidate in sorted(candidates, key=lambda item: len(ancestors(item, by_digest))):
            if candidate.reason:
                continue
            before = [other for other in ancestors(candidate, by_digest) if self._stands(other)]
            bar = baseline if baseline is not None else next(iter(before), None)
            if bar is not None and bar is not candidate and self._stands(bar):
                candidate.reason = self._not_better(candidate, bar)

    def _stands(self, candidate: Candidate) -> bool:
        """Whether others have to be better: it is not out, or only for lack of time."""
        return (not candidate.reason or candidate.late) and candidate.metrics.keys() >= {
            self.objective.metric
        }

    def _baseline(self, candidates: Sequence[Candidate]) -> Candidate | None:
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

    def _not_better(self, candidate: Candidate, bar: Candidate) -> str:
        """Say why ``candidate`` is no real improvement on ``bar``, or nothing."""
        objective, least = self.objective, self.options.min_improvement
        value, over = candidate.metrics[objective.metric], bar.metrics[objective.metric]
        say = partial(show, objective.metric)
        shown = f"{objective.metric} {say(value)} against {say(over)} of {bar.name}"
        if not objective.better(value, over) or objective.improvement(value, over) < least:
            return f"{shown} is no improvement by {least}"
        behind = lost(bar, candidate, objective)
        if behind is not None:
            return (
                ""
                if behind
                else f"{shown} is an improvement in too few of the rounds in which both were measured"
            )
        ends = ("high", "low") if objective.direction == "minimize" else ("low", "high")
        worst = candidate.metrics.get(f"{objective.metric}.{ends[0]}")
        best = bar.metrics.get(f"{objective.metric}.{ends[1]}")
        if worst is not None and best is not None and not objective.better(worst, best):
            return f"{shown} is within the confidence intervals ({say(worst)} and {say(best)})"
        return ""

    def details(self, candidates: Sequence[Candidate], best: Candidate) -> dict[str, Any]:
        """Return what the report page shows of a choice."""
        front = pareto(candidates, self.objective, self.constraints, self.objectives, best)
        across = [front["pareto_axes"]["y"]["metric"]] if front else []
        metric = self.objective.metric
        shown = list(dict.fromkeys([*self.wanted, *across, f"{metric}.low", f"{metric}.high"]))
        return {
            "objective": self.objective.metric,
            "direction": self.objective.direction,
            "subject_to": list(self.options.subject_to),
            "candidates": [row(candidate, shown, chosen=candidate is best) for candidate in candidates],
            **front,
        }


def check_choice(choice: Choice, ctx: CheckContext, own: Sequence[str] = ("size",)) -> None:
    """Make sure that the bounds exist and somebody measures what is needed; ``own`` is what the stage measures itself.

    :raises SpecError: if not
    """
    for constraint in choice.constraints:
        try:
            constraint.bound(ctx.objectives)
        except StageError as exc:
            raise SpecError(f"subject_to: {exc}") from exc
    patterns = [*own, *(pattern for source in ctx.inputs.get("reports", ()) for pattern in source.metrics)]
    for metric in choice.wanted:
        if not any(fnmatchcase(metric, pattern) for pattern in patterns):
            raise SpecError(_advice(metric, ctx))


def _advice(metric: str, ctx: CheckContext) -> str:
    # a node is called like its stage, with the matrix variant in brackets
    stages = list(
        dict.fromkeys(source.node.partition("[")[0].strip() for source in ctx.inputs.get("models", ()))
    )
    names = ", ".join(stages)
    stage = _PROVIDERS.get(family(metric).removesuffix("_drop").removesuffix("_source"))
    if stage is not None:
        return (
            f"no stage before this one reports {metric!r}; "
            f"add one for every candidate and put `{stage}` into `needs`:\n"
            f"  - id: {stage}\n    uses: {stage}\n    needs: [{names}]\n    matrix: {{candidate: [{names}]}}\n"
            '    inputs: {model: "${{ matrix.candidate }}"}'
        )
    if family(metric) == "parity":
        return (
            f"no stage before this one reports {metric!r}; stages that convert or optimise a model do: put those that "
            f"make the candidates ({names}) into `needs`"
        )
    return (
        f"no stage before this one reports {metric!r}; add the stage that does to its `needs`. "
        f"Reported are: {_reported(ctx.inputs) or 'none'}"
    )


def _reported(inputs: Mapping[str, Sequence[Any]]) -> str:
    """List which stage reports what."""
    by_stage: dict[str, tuple[str, ...]] = {}
    for source in inputs.get("reports", ()):
        by_stage.setdefault(source.node.partition("[")[0].strip(), source.metrics)
    return "; ".join(f"{stage}: {', '.join(metrics) or 'nothing'}" for stage, metrics in by_stage.items())
