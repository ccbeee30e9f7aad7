"""Stage `evaluate`: how good the answers of a model are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from shipctl.stages.artifacts import Dataset, OnnxModel, Report
from shipctl.stages.base import Bound, FromSpec, Stage, StageInputs, StageOutputs
from shipctl.stages.context import CheckContext, JudgeContext, StageContext
from shipctl.stages.verdicts import Verdict
from shipctl_plugins._onnx.datasets import check_readable
from shipctl_plugins._onnx.reports import write_report
from shipctl_plugins._onnx.scoring import Scorer, ScoringOptions
from shipctl_plugins._onnx.session import open_session, run_session
from shipctl_plugins._sources.opening import AnySource, open_source
from shipctl_plugins.qualify._quality import METRICS, check_reference, drops, judge_quality


class Options(ScoringOptions):
    """What stands below ``with:``."""

    metric: str | None = Bound(
        None,
        description="The metric that is judged; left out, the one of `data.evaluation`, else accuracy, rmse or "
        "spearman.",
    )
    min: float | None = Bound(None, description="Least value of the metric; left out, `data.evaluation.min`.")
    max: float | None = Bound(
        None, description="Largest value of the metric; left out, `data.evaluation.max`."
    )
    min_samples: int = Bound(1, ge=1, description="How many samples it takes for a judgement.")


class Inputs(StageInputs):
    """What the stage takes."""

    model: OnnxModel
    evaluation: Dataset
    reference: AnySource | OnnxModel | None = FromSpec()


class Outputs(StageOutputs):
    """What the stage gives."""

    report: Report


class Evaluate(Stage[Options, Inputs, Outputs]):
    """Measure accuracy, F1, precision and recall on the evaluation data, or RMSE and MAE, or rank correlation.

    With `task: pairs`, two samples each are a pair, such as the embeddings of two sentences: Spearman's and Pearson's
    correlation of their cosine similarities with the labels.

    Where the source model is given, it answers the same samples in the same run: `accuracy_source`, and so on for
    each score. `accuracy_drop` is source minus this model; in other tasks it is the same of the task's main metric:
    of `spearman` also the difference, of `rmse` the increase as a fraction of the source's. Each score has its own
    besides, such as `f1.macro_drop`. `budget.accuracy_drop` bounds the drop of the metric that is judged.
    """

    api_version = 1
    subject = "model"
    requires: ClassVar[Mapping[str, str]] = {"onnxruntime": "shipctl[cpu]"}
    metrics = METRICS
    tools = (
        "onnxruntime",
        "numpy",
        "torch",
        "tensorflow-cpu",
        "tensorflow",
        "keras",
        "scikit-learn",
        "transformers",
    )

    def check(self, ctx: CheckContext) -> None:
        """Look for the framework of the source model, where it is to be compared, and for what reads the data."""
        check_readable(ctx)
        check_reference(ctx)

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Answer every sample and score the answers."""
        scorer = Scorer(self.options, inputs.evaluation, inputs.model.signature)
        metrics: dict[str, float] = {"samples": float(scorer.samples)}
        details: dict[str, Any] = {"output": scorer.output}
        if scorer.samples:
            session = open_session(inputs.model.path, threads=ctx.threads)
            found = scorer.score(scorer.answers(lambda feed: run_session(session, feed)))
            details |= {"classes": found.classes, "confusion": found.confusion}
            metrics |= found.metrics
            if inputs.reference is not None:
                with open_source(inputs.reference, seed=ctx.seed, threads=ctx.threads) as opened:
                    metrics |= drops(scorer.score(scorer.answers(opened.run)), found)
        report = write_report(
            ctx.workdir, subject=inputs.model.digest, title="Evaluation", metrics=metrics, details=details
        )
        return Outputs(report=report)

    def judge(self, outputs: Outputs, ctx: JudgeContext) -> Sequence[Verdict]:
        """Ask for samples, finite outputs, the metric's bound and the budget."""
        options = self.options
        return judge_quality(
            outputs.report, ctx.objectives,
            min_samples=options.min_samples, metric=options.metric, lower=options.min, upper=options.max,
        )  # fmt: skip
