"""What is asked of answers to labelled samples: enough of them, finite ones, the metric's bound, the budget."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from shipctl.errors import UnavailableError
from shipctl.stages.artifacts import Report
from shipctl.stages.context import CheckContext, Objectives
from shipctl.stages.verdicts import Verdict, compare
from shipctl_plugins._onnx import scores
from shipctl_plugins._onnx.scoring import METRICS as SCORES
from shipctl_plugins._onnx.scoring import Scored
from shipctl_plugins._sources.opening import needed_for

_SCORES = tuple(name for names in SCORES.values() for name in names)
METRICS = (
    *_SCORES, *(f"{name}_source" for name in _SCORES), *(f"{name}_drop" for name in _SCORES),
    "samples", "outputs.not_finite",
)  # fmt: skip


def drops(source: Scored, this: Scored) -> dict[str, float]:
    """Return what the source scores, and how much worse this model is: `accuracy_source`, `accuracy_drop`, ….

    `accuracy_drop` is in every one: the drop of the task's main metric. See :func:`scores.loss` for what a drop is.
    """
    names = [name for name in source.metrics if name in _SCORES]
    found = {f"{name}_source": source.metrics[name] for name in names}
    found |= {f"{name}_drop": scores.loss(name, source.metrics[name], this.metrics[name]) for name in names}
    return found | {"accuracy_drop": found[f"{this.main}_drop"]}


def check_reference(ctx: CheckContext) -> None:
    """Look for the framework of the source model, where it is to be compared.

    :raises UnavailableError: if it is not installed
    """
    for source in ctx.inputs.get("reference", ()):
        module, extra = needed_for(source.artifact)
        if module and find_spec(module) is None:
            message = (
                f"comparing with the source model needs {module}: pip install '{extra}', "
                "or leave this stage's `reference` input out"
            )
            raise UnavailableError(message)


def judge_quality(
    report: Report,
    objectives: Objectives,
    *,
    min_samples: int,
    metric: str | None = None,
    lower: float | None = None,
    upper: float | None = None,
) -> list[Verdict]:
    """Compare a report with its bounds; what is None is taken from `data.evaluation`.

    `budget.accuracy_drop` bounds the drop of the metric that is judged, whichever that is.
    """
    said = objectives.data.get("evaluation", {})
    values = report.metrics
    main = next((names[0] for names in SCORES.values() if names[0] in values), "accuracy")
    metric = metric or said.get("metric") or main
    lower = lower if lower is not None else said.get("min")
    upper = upper if upper is not None else said.get("max")

    def ask(name: str, how: Any, bound: float) -> Verdict:
        return compare(name, values.get(name), how, bound, subject=report.subject, source=report.digest)

    verdicts = [ask("samples", ">=", min_samples), ask("outputs.not_finite", "==", 0)]
    if lower is not None:
        verdicts.append(ask(metric, ">=", float(lower)))
    if upper is not None:
        verdicts.append(ask(metric, "<=", float(upper)))
    if "accuracy_drop" in objectives.budget:
        drop = "accuracy_drop" if metric == main else f"{metric}_drop"
        verdicts.append(ask(drop, "<=", objectives.budget["accuracy_drop"]))
    return verdicts
