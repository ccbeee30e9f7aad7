"""Stage `select`: the best of several models, and why the others are not it."""

from __future__ import annotations

from collections.abc import Mapping

from shipctl.errors import StageError
from shipctl.stages.artifacts import OnnxModel, Report, TensorrtEngine
from shipctl.stages.base import Stage, StageInputs, StageOutputs
from shipctl.stages.context import CheckContext, StageContext
from shipctl_plugins._onnx.reports import write_report
from shipctl_plugins.qualify._candidates import look_up
from shipctl_plugins.qualify._choice import Choice, ChoiceOptions, check_choice


class Options(ChoiceOptions):
    """What stands below ``with:``."""


class Inputs(StageInputs):
    """What the stage takes."""

    models: list[OnnxModel | TensorrtEngine]
    reports: list[Report]


class Outputs(StageOutputs):
    """What the stage gives."""

    model: OnnxModel
    report: Report


class Select(Stage[Options, Inputs, Outputs]):
    """Choose the best model under an objective and constraints; a variant has to be worth it.

    A candidate without a finite value for the objective or a constraint is out. What is left has to improve on
    the nearest model it derives from by `min_improvement`, and beyond the confidence intervals where the
    reports have them. Of those that are then within `min_improvement` of the best one, the simplest is taken: fewer
    steps from the source, then more bits (fp32, fp16 or bf16, fp8, int8, int4), then the declared order.

    `size` is always known; other metrics come from reports about the candidate: `latency.p95` from `benchmark`,
    `accuracy_drop` from `evaluate`, `parity.cosine` from the stage that made it. `search` measures by itself, and only
    as much as it takes.
    """

    api_version = 1
    isolation = "inline"
    reads = ("slo", "budget")
    metrics = ("candidates", "survivors", "selected.*")

    def check(self, ctx: CheckContext) -> None:
        """Make sure that something before this stage measures what it needs, and that the bounds exist."""
        check_choice(Choice(self.options, ctx.objectives), ctx)

    def limits(self) -> Mapping[str, int]:
        """Say how many models are tried."""
        return {} if self.options.max_trials is None else {"models": self.options.max_trials}

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Look up, drop, compare, choose."""
        choice = Choice(self.options, ctx.objectives)
        if not inputs.models:
            message = "there is no model to choose from; wire at least one stage that makes one into `models`"
            raise StageError(message)
        candidates = look_up(inputs.models, inputs.reports, choice.wanted, choice.extra)
        for candidate in candidates[self.options.max_trials :] if self.options.max_trials else ():
            candidate.reason = f"not tried: max_trials is {self.options.max_trials}"
        best, kept = choice.decide(candidates)
        objective = choice.objective
        details = choice.details(candidates, best)
        report = write_report(
            ctx.workdir, subject=best.model.digest, title=f"Selection: {objective.direction} {objective.metric}",
            metrics={"candidates": float(len(candidates)), "survivors": float(len(kept)),
                     f"selected.{objective.metric}": best.metrics[objective.metric]},
            details=details,
        )  # fmt: skip
        for row in details["candidates"]:
            ctx.log(f"{row['name']}: {'chosen' if row['chosen'] else 'dropped'}: {row['reason']}")
        return Outputs(model=best.onnx, report=report)
