"""Stage `search`: the best of many models, measured only as much as it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from shipctl.errors import SpecError, StageError
from shipctl.spec.units import Duration
from shipctl.stages.artifacts import Dataset, OnnxModel, Report, TensorrtEngine
from shipctl.stages.base import Bound, FromSpec, Stage, StageInputs, StageOutputs
from shipctl.stages.context import CheckContext, JudgeContext, StageContext
from shipctl.stages.verdicts import Verdict
from shipctl_plugins._onnx.datasets import check_readable
from shipctl_plugins._onnx.reports import write_report
from shipctl_plugins._sources.opening import AnySource
from shipctl_plugins.qualify import _quality as quality
from shipctl_plugins.qualify import _speed as speed
from shipctl_plugins.qualify._candidates import Candidate, look_up
from shipctl_plugins.qualify._choice import Choice, ChoiceOptions, check_choice
from shipctl_plugins.qualify._course import Course
from shipctl_plugins.qualify._meter import Clock, Meter, MeterOptions

_HALF = 2


class Options(ChoiceOptions, MeterOptions):
    """What stands below ``with:``."""

    strategy: Literal["successive-halving", "exhaustive"] = Field(
        default="successive-halving",
        description="exhaustive measures every candidate in full; successive-halving measures all of them a little, "
        "the better half more, and only the last ones in full.",
    )
    factor: int | None = Field(
        default=None,
        ge=2,
        description="With successive-halving: one candidate in so many goes on to the next rung, which measures so "
        "many times as much; 2 if left out.",
    )
    max_time: Duration | None = Field(
        default=None,
        description="How long to measure at most. What is not measured by then is out, and the report names it; one "
        "candidate is measured in full in any case. Making the candidates is not in it: `max_trials` bounds that.",
    )
    min_samples: int = Bound(
        1,
        ge=1,
        description="How many evaluation samples it takes for a judgement, if there are evaluation data.",
    )

    @model_validator(mode="after")
    def _factor_of_halving(self) -> Self:
        if self.factor is not None and self.strategy == "exhaustive":
            raise ValueError(
                "factor belongs to strategy: successive-halving; take it out, or change the strategy"
            )
        return self


class Inputs(StageInputs):
    """What the stage takes."""

    models: list[OnnxModel | TensorrtEngine]
    reports: list[Report]
    evaluation: Dataset | None = None
    reference: AnySource | OnnxModel | None = FromSpec()


class Outputs(StageOutputs):
    """What the stage gives."""

    model: OnnxModel
    report: Report


class Search(Stage[Options, Inputs, Outputs]):
    """Measure candidates and choose the best one, as `evaluate`, `benchmark` and `select` do, within a budget.

    By successive halving every candidate is first measured with a small part of the evaluation samples and of the time.
    The better half goes on to a rung with twice as much, and so on, until the last ones have the full measurement, on
    which the choice and the gates stand. What surely breaks a constraint is dropped first, then what is worse by the
    objective; what cannot be told apart (confidence intervals that meet) goes on. Metrics that it does not measure,
    such as `parity.cosine`, come from reports about the candidates.

    The report has a row for every candidate: chosen, dropped and why, or not tried and why.
    """

    api_version = 1
    measurement = True
    max_age = 7 * 86400.0
    requires: ClassVar[Mapping[str, str]] = {"onnxruntime": "shipctl[cpu]"}
    reads = ("slo", "budget")
    metrics = (*speed.METRICS, *quality.METRICS, "candidates", "survivors", "trials", "selected.*")
    tools = ("onnxruntime", "numpy", "torch")

    def check(self, ctx: CheckContext) -> None:
        """Make sure that what is asked for gets measured, and that there is time for one measurement."""
        own = ["size", *speed.METRICS]
        if ctx.inputs.get("evaluation"):
            compared = () if ctx.inputs.get("reference") else ("_source", "_drop")
            own += [name for name in quality.METRICS if not name.endswith(compared)]
        check_choice(Choice(self.options, ctx.objectives), ctx, own)
        check_readable(ctx)
        quality.check_reference(ctx)
        limit, options = self.options.max_time, self.options
        least = (options.warmup + options.min_duration) * len(options.batch_sizes) * len(options.threads)
        if limit is not None and limit < least:
            message = (
                f"max_time {limit} is less than one candidate takes ({Duration(round(least, 3))}); give it more, "
                "or shorten `min_duration`, `batch_sizes` or `threads`"
            )
            raise SpecError(message)

    def limits(self) -> Mapping[str, int]:
        """Say how many models are tried."""
        return {} if self.options.max_trials is None else {"models": self.options.max_trials}

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Measure rung by rung, then choose."""
        options = self.options
        clock = Clock(options.max_time)
        choice = Choice(options, ctx.objectives)
        if not inputs.models:
            message = "there is no model to choose from; wire at least one stage that makes one into `models`"
            raise StageError(message)
        candidates = look_up(inputs.models, inputs.reports, choice.wanted, choice.extra)
        _leave_alone(candidates, options.max_trials)
        meter = Meter(
            options, inputs.evaluation, inputs.reference, choice.wanted, seed=ctx.seed, threads=ctx.threads
        )
        factor = (options.factor or _HALF) if options.strategy == "successive-halving" else None
        course = Course(choice, meter, clock, ctx.log, factor)
        course.run(candidates)
        best, kept = choice.decide(candidates)
        for candidate in candidates:
            ctx.log(f"{candidate.name}: {'chosen' if candidate is best else 'dropped'}: {candidate.reason}")
        variants = course.variants(candidates)
        course.level(candidates, best)
        rows, answered = course.complete(best)
        details: dict[str, Any] = {
            "strategy": options.strategy, "seconds": clock.gone,
            **choice.details(candidates, best), "rungs": course.rungs, "trials": course.trials, "variants": variants,
            **answered.details, **speed.speed_details(rows, inputs.evaluation),
        }  # fmt: skip
        objective = choice.objective
        report = write_report(
            ctx.workdir, subject=best.model.digest,
            title=f"Search ({options.strategy}): {objective.direction} {objective.metric}",
            metrics=answered.metrics | speed.speed_metrics(best.onnx, rows) | {
                "candidates": float(len(candidates)), "survivors": float(len(kept)),
                "trials": float(len(course.trials)), f"selected.{objective.metric}": best.metrics[objective.metric],
            },
            details=details,
        )  # fmt: skip
        return Outputs(model=best.onnx, report=report)

    def judge(self, outputs: Outputs, ctx: JudgeContext) -> Sequence[Verdict]:
        """Ask of the chosen model what `benchmark` and `evaluate` ask."""
        report = outputs.report
        verdicts = speed.judge_speed(
            report.metrics, self.options, ctx.objectives, report.subject, report.digest
        )
        if "evaluation" in ctx.objectives.data or "accuracy_drop" in ctx.objectives.budget:
            verdicts += quality.judge_quality(report, ctx.objectives, min_samples=self.options.min_samples)
        return verdicts


def _leave_alone(candidates: Sequence[Candidate], most: int | None) -> None:
    """Give those a reason that are not to be measured."""
    for candidate in candidates:
        if isinstance(candidate.model, TensorrtEngine):
            candidate.reason = "it is a TensorRT engine, which ONNX Runtime cannot measure"
    if most is not None:
        for candidate in [item for item in candidates if not item.reason][most:]:
            candidate.reason = f"not tried: max_trials is {most}"
