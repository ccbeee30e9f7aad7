"""Stage `evaluate`: how good the answers of a model are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from shipctl.errors import StageError, UnavailableError
from shipctl.stages.artifacts import Dataset, OnnxModel, Report, TorchModel
from shipctl.stages.base import Bound, Stage, StageInputs, StageOptions, StageOutputs
from shipctl.stages.context import CheckContext, JudgeContext, StageContext
from shipctl.stages.verdicts import Verdict, compare
from shipctl_plugins._onnx import arrays
from shipctl_plugins._onnx.reports import write_report
from shipctl_plugins._onnx.session import open_session, run_session
from shipctl_plugins.qualify import _scores as scores

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

LABELS = ("label", "target")
"""Names under which labels are looked for when the options name none."""


class Options(StageOptions):
    """What stands below ``with:``."""

    label: str | None = Field(
        default=None, description="The array with the labels; left out, `label` or `target`."
    )
    output: str | None = Field(
        default=None, description="The output that answers; left out, the model's first."
    )
    task: Literal["auto", "classification", "regression"] = Field(
        default="auto",
        description="What the labels are; auto takes integers for classes and floats for values.",
    )
    threshold: float = Field(
        default=0.5,
        description="Where a single output per sample begins to mean class 1, in the output's own scale.",
    )
    batch: int = Field(default=64, ge=1, description="Samples per run, if the model's batch varies.")
    metric: str | None = Bound(
        None,
        description="The metric that is judged; left out, the one of `data.evaluation`, else accuracy or rmse.",
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
    reference: TorchModel | None = None


class Outputs(StageOutputs):
    """What the stage gives."""

    report: Report


class Evaluate(Stage[Options, Inputs, Outputs]):
    """Measure accuracy, F1, precision and recall (or RMSE and MAE) on the evaluation data.

    Where the source model is given, it answers the same samples in the same run, which gives
    `accuracy_source` and `accuracy_drop` (source minus this model).
    """

    api_version = 1
    subject = "model"
    requires: ClassVar[Mapping[str, str]] = {"onnxruntime": "shipctl[cpu]"}
    metrics = (
        "accuracy", "accuracy_source", "accuracy_drop", "f1.macro", "precision.macro", "recall.macro",
        "rmse", "mae", "rmse_source", "mae_source", "samples", "outputs.not_finite",
    )  # fmt: skip
    tools = ("onnxruntime", "numpy", "torch")

    def check(self, ctx: CheckContext) -> None:
        """Look for torch where a source model is to be compared."""
        from importlib.util import find_spec

        missing = [name for name in ("torch", "safetensors") if find_spec(name) is None]
        if ctx.inputs.get("reference") and missing:
            message = (
                f"comparing with the source model needs {missing[0]}: pip install 'shipctl[torch]', "
                "or leave this stage's `reference` input out"
            )
            raise UnavailableError(message)

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Answer every sample and score the answers."""
        signature, options = inputs.model.signature, self.options
        data = arrays.load_arrays(inputs.evaluation)
        labels = self._labels(data)
        features = arrays.model_inputs(data, signature, "evaluation")
        output = options.output or signature.outputs[0].name
        if output not in {spec.name for spec in signature.outputs}:
            there = ", ".join(spec.name for spec in signature.outputs)
            message = f"the model has no output {output!r}, only {there}; correct `output`"
            raise StageError(message)
        if len(labels) != len(next(iter(features.values()))):
            message = (
                f"evaluation data has {len(labels)} labels for {len(next(iter(features.values())))} samples"
            )
            raise StageError(message)
        metrics: dict[str, float] = {"samples": float(len(labels))}
        details: dict[str, Any] = {"output": output}
        if len(labels):
            session = open_session(inputs.model.path, threads=ctx.threads)
            answers = self._answers(features, inputs.model, output, lambda feed: run_session(session, feed))
            found, details["classes"], details["confusion"] = self._score(answers, labels)
            metrics |= found
            if inputs.reference is not None:
                source, _, _ = self._score(self._reference(inputs.reference, features, output, ctx), labels)
                metrics |= {
                    f"{name}_source": source[name] for name in ("accuracy", "rmse", "mae") if name in source
                }
                if "accuracy" in found and "accuracy" in source:
                    metrics["accuracy_drop"] = source["accuracy"] - found["accuracy"]
        report = write_report(
            ctx.workdir, subject=inputs.model.digest, title="Evaluation", metrics=metrics, details=details
        )
        return Outputs(report=report)

    def judge(self, outputs: Outputs, ctx: JudgeContext) -> Sequence[Verdict]:
        """Ask for samples, finite outputs, the metric's bound and the budget."""
        report, options = outputs.report, self.options
        said = ctx.objectives.data.get("evaluation", {})
        values = report.metrics
        metric = options.metric or said.get("metric") or ("accuracy" if "accuracy" in values else "rmse")
        lower = options.min if options.min is not None else said.get("min")
        upper = options.max if options.max is not None else said.get("max")

        def ask(name: str, how: Any, bound: float) -> Verdict:
            return compare(name, values.get(name), how, bound, subject=report.subject, source=report.digest)

        verdicts = [ask("samples", ">=", options.min_samples), ask("outputs.not_finite", "==", 0)]
        if lower is not None:
            verdicts.append(ask(metric, ">=", float(lower)))
        if upper is not None:
            verdicts.append(ask(metric, "<=", float(upper)))
        if "accuracy_drop" in ctx.objectives.budget:
            verdicts.append(ask("accuracy_drop", "<=", ctx.objectives.budget["accuracy_drop"]))
        return verdicts

    def _labels(self, data: Mapping[str, Array]) -> Array:
        names = (self.options.label,) if self.options.label else LABELS
        for name in names:
            if name in data:
                return _finite(data[name], name)
        asked = " or ".join(map(repr, names))
        message = f"evaluation data has no array {asked}, only {', '.join(sorted(data))}; name the labels with `label`"
        raise StageError(message)

    def _answers(
        self, features: Mapping[str, Array], model: OnnxModel | TorchModel, output: str,
        run: Callable[[dict[str, Array]], Mapping[str, Array]],
    ) -> Array:  # fmt: skip
        import numpy as np

        feeds = arrays.batches(features, self.options.batch, model.signature)
        return np.concatenate([run(feed)[output][:count] for feed, count in feeds])

    def _reference(
        self, model: TorchModel, features: Mapping[str, Array], output: str, ctx: StageContext
    ) -> Array:
        import torch

        from shipctl_plugins._onnx.torch_source import torch_source

        torch.set_num_threads(ctx.threads)
        with torch_source(model, seed=ctx.seed) as source:
            return self._answers(features, model, output, source.run)

    def _score(
        self, answers: Array, labels: Array
    ) -> tuple[dict[str, float], list[dict[str, Any]], list[list[int]]]:
        """Return metrics, a row per class, and the confusion matrix (rows are true classes)."""
        import numpy as np

        wanted = self.options.task
        task = (
            wanted if wanted != "auto" else ("regression" if labels.dtype.kind == "f" else "classification")
        )
        not_finite = int(np.size(answers) - np.isfinite(answers.astype(np.float64)).sum())
        base = {"outputs.not_finite": float(not_finite)}
        if not_finite:
            names = ("rmse", "mae") if task == "regression" else ("accuracy", "f1.macro")
            return base | dict.fromkeys(names, math.nan), [], []
        if task == "regression":
            return base | scores.regression(answers, labels), [], []
        predicted = scores.predicted_classes(answers, labels, self.options.threshold)
        found, rows, confusion = scores.classification(predicted, labels)
        return base | found, rows, confusion


def _finite(labels: Array, name: str) -> Array:
    import numpy as np

    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        message = f"evaluation data: array {name!r} has labels that are NaN or infinite; remove those samples"
        raise StageError(message)
    return labels
