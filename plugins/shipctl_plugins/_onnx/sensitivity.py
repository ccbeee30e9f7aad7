"""Keeping the layers that hurt most in higher precision, as few as the budget of accuracy asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from shipctl.errors import StageError
from shipctl.stages.artifacts import Dataset, OnnxModel, Report
from shipctl.stages.base import StageOptions
from shipctl.stages.context import JudgeContext, StageContext
from shipctl.stages.verdicts import Outcome, Verdict, compare
from shipctl_plugins._onnx import arrays, graph, scores
from shipctl_plugins._onnx.fewest import OutOfEvaluationsError, fewest
from shipctl_plugins._onnx.layers import Layer, own_noise
from shipctl_plugins._onnx.scoring import Scorer, ScoringOptions
from shipctl_plugins._onnx.session import open_session, run_session

if TYPE_CHECKING:
    from onnx import ModelProto

READS: tuple[Literal["budget", "data"], ...] = ("budget", "data")
"""What a stage with :class:`SensitivityOptions` has to declare in its ``reads``."""
METRICS = ("quantized.*", "sensitivity.*")
DROP = "sensitivity.accuracy_drop"
"""Not `accuracy_drop`, which `evaluate` measures against the source model: this one is against the stage's input."""
_NOISE_SAMPLES = 256
_SHOWN = 3


class SensitivityOptions(StageOptions):
    """How layers are kept in higher precision where the budget would not hold."""

    keep_in_budget: bool = Field(
        default=True,
        description="Keep layers in higher precision, as few as it takes, when the metric of `data.evaluation` drops "
        "by more than `budget.accuracy_drop`. Without such a budget, or evaluation data, nothing is kept.",
    )
    max_evaluations: int = Field(
        default=32,
        ge=3,
        description="How often a model may be evaluated in the search, that before included.",
    )
    max_layers: int | None = Field(
        default=None, ge=0, description="How many layers may be kept; left out, all but one."
    )
    scoring: ScoringOptions = Field(
        default_factory=ScoringOptions,
        description="How answers to the evaluation data are scored, as in `evaluate`.",
    )


@dataclass(frozen=True)
class Lowered:
    """A model, and a way to compute all or some of its layers in lower precision."""

    before: ModelProto
    """A plain graph, whose nodes have names."""
    layers: Sequence[Layer]
    """Its layers that are in lower precision when none is kept."""
    build: Callable[[frozenset[str]], ModelProto]
    """Makes the model with the layers of these names kept; it has the tensors' names of ``before``."""


@dataclass(frozen=True)
class Settled:
    """Which layers are kept, and what that is known from."""

    model: ModelProto
    kept: frozenset[str] = frozenset()
    metrics: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def settle(
    lowered: Lowered,
    source: OnnxModel,
    evaluation: Dataset | None,
    options: SensitivityOptions,
    ctx: StageContext,
) -> Settled:
    """Return the model with as few layers kept as the budget asks for.

    Where it cannot be held it is the model that drops least, and :func:`judge_budget` says no.

    :raises StageError: if the evaluation data does not fit, or ``source`` has no score on it
    """
    budget = ctx.objectives.budget.get("accuracy_drop")
    counted = {"quantized.nodes": float(len(lowered.layers)), "quantized.kept": 0.0}
    if not options.keep_in_budget or budget is None or evaluation is None:
        return Settled(lowered.build(frozenset()), metrics=counted)
    trials = _Trials(lowered, source, evaluation, options, ctx, float(budget))
    noise: dict[str, float] = {}
    kept: frozenset[str] = frozenset()
    if trials.drop(kept) > budget:
        ctx.log(
            f"{trials.metric} drops by {trials.drops[kept]:.4g}, the budget is {budget:.4g}: looking for the layers"
        )
        noise = trials.noise()
        ranking = sorted(noise, key=lambda name: -noise[name])
        most = min(len(ranking) - 1 if options.max_layers is None else options.max_layers, len(ranking) - 1)
        found = fewest(ranking, most, trials.drop, float(budget))
        kept = trials.least(most) if found is None else found
    left = len(lowered.layers) - len(kept)
    numbers = {
        "quantized.nodes": float(left), "quantized.kept": float(len(kept)),
        DROP: trials.drops[kept], "sensitivity.evaluations": float(trials.evaluations),
    }  # fmt: skip
    if kept:
        ctx.log(f"{len(kept)} of {len(lowered.layers)} layers kept: {', '.join(sorted(kept))}")
    return Settled(lowered.build(kept), kept, numbers, trials.details(noise, kept))


class _Trials:
    """Evaluations of variants, counted, against the model before."""

    def __init__(
        self,
        lowered: Lowered,
        source: OnnxModel,
        evaluation: Dataset,
        options: SensitivityOptions,
        ctx: StageContext,
        budget: float,
    ) -> None:
        self.lowered, self.options, self.ctx, self.budget = lowered, options, ctx, budget
        self.scorer = Scorer(options.scoring, evaluation, source.signature)
        if not self.scorer.samples:
            message = (
                f"{evaluation.role} data is empty; give labelled samples, or set `keep_in_budget: false`"
            )
            raise StageError(message)
        session = open_session(source.path, threads=ctx.threads)
        scored = self.scorer.score(self.scorer.answers(lambda feed: run_session(session, feed)))
        found = scored.metrics
        self.metric = str(ctx.objectives.data.get("evaluation", {}).get("metric") or scored.main)
        if not math.isfinite(found.get(self.metric, math.nan)):
            there = ", ".join(sorted(name for name, value in found.items() if math.isfinite(value)))
            message = (
                f"the model that comes in has no {self.metric} on the {evaluation.role} data, only {there}"
            )
            raise StageError(message)
        self.reference = found[self.metric]
        self.evaluations = 1
        self.drops: dict[frozenset[str], float] = {}
        self._scores: dict[frozenset[str], float] = {}

    def drop(self, kept: frozenset[str]) -> float:
        """Return by how much the metric is worse with ``kept``; infinity where it is no number."""
        if kept not in self.drops:
            if self.evaluations >= self.options.max_evaluations:
                raise OutOfEvaluationsError
            self.evaluations += 1
            score = self._score(self.lowered.build(kept))
            change = scores.loss(self.metric, self.reference, score)
            self._scores[kept], self.drops[kept] = score, math.inf if math.isnan(change) else change
        return self.drops[kept]

    def _score(self, model: ModelProto) -> float:
        folder = self.ctx.workdir / "tmp" / "trial"
        session = open_session(graph.save_model(model, folder) / graph.MODEL_FILE, threads=self.ctx.threads)
        answers = self.scorer.answers(lambda feed: run_session(session, feed))
        return self.scorer.score(answers).metrics[self.metric]

    def noise(self) -> dict[str, float]:
        """Return how much of each layer's output is its own noise, on the first samples of the evaluation."""
        batch = self.options.scoring.batch
        features = {name: array[:_NOISE_SAMPLES] for name, array in self.scorer.features.items()}
        feeds = (feed for feed, _ in arrays.batches(features, batch, self.scorer.signature))
        return own_noise(
            self.lowered.before, self.lowered.build(frozenset()), self.lowered.layers, feeds,
            self.ctx.workdir / "tmp" / "noise", threads=self.ctx.threads,
        )  # fmt: skip

    def least(self, most: int) -> frozenset[str]:
        """Return the layers of the variant that drops least with at most so many kept, the fewest of such."""
        allowed = [kept for kept in self.drops if len(kept) <= most]
        return min(allowed, key=lambda kept: (self.drops[kept], len(kept)))

    def details(self, noise: Mapping[str, float], kept: frozenset[str]) -> dict[str, Any]:
        """Return tables: a row per layer, the most harmful first, and the metric by number of quantised layers."""
        total = len(self.lowered.layers)
        rows = [
            {"layer": layer.name, "op_type": layer.op_type, "snr_db": _decibels(noise[layer.name]),
             "kept": layer.name in kept}
            for layer in sorted(self.lowered.layers, key=lambda layer: -noise.get(layer.name, 0.0))
            if layer.name in noise
        ]  # fmt: skip
        points = [{"quantized": 0, "accuracy": self.reference, "drop": 0.0}]
        points += [
            {"quantized": total - len(tried), "accuracy": self._scores[tried], "drop": drop}
            for tried, drop in self.drops.items()
        ]
        search = {
            "metric": self.metric, "before": self.reference, "after": self._scores[kept], "layers": total,
            "budget": self.budget, "evaluations": self.evaluations, "max_evaluations": self.options.max_evaluations,
            "max_layers": self.options.max_layers,
        }  # fmt: skip
        return {
            "sensitivity": rows,
            "curve": sorted(points, key=lambda row: (row["quantized"], row["drop"])),
            "search": search,
        }


def _decibels(noise: float) -> float | None:
    """Return the signal-to-noise ratio in dB; None where there is no noise."""
    if not noise:
        return None
    return -10 * math.log10(noise) if math.isfinite(noise) else -math.inf


def judge_budget(report: Report, ctx: JudgeContext) -> Sequence[Verdict]:
    """Compare the drop with the budget, where it was measured; a no names the most harmful layers."""
    search = report.details.get("search")
    if search is None:
        return []
    budget = float(ctx.objectives.budget.get("accuracy_drop", search["budget"]))
    verdict = compare(
        DROP, report.metrics.get(DROP), "<=", budget, subject=report.subject, source=report.digest
    )
    if verdict.outcome is not Outcome.FAIL:
        return [verdict]
    return [verdict.model_copy(update={"message": _missed(report, search, budget)})]


def _missed(report: Report, search: Mapping[str, Any], budget: float) -> str:
    rows = report.details.get("sensitivity", [])
    kept, drop = int(report.metrics.get("quantized.kept", 0)), report.metrics[DROP]
    worst = ", ".join(map(_harm, islice(rows, _SHOWN)))
    if search["evaluations"] >= search["max_evaluations"]:
        way = f"raise `max_evaluations` ({search['max_evaluations']})"
    elif search["max_layers"] is not None:
        way = f"raise `max_layers` ({search['max_layers']})"
    else:
        way = "choose a gentler way to quantise"
    return (
        f"{search['metric']} drops by {drop:.4g} with {kept} of {search['layers']} layers kept, "
        f"{drop - budget:.4g} more than the budget of {budget:.4g}; most harmful: {worst}; {way} or leave the stage out"
    )


def _harm(row: Mapping[str, Any]) -> str:
    ratio = "no noise" if row["snr_db"] is None else f"{float(row['snr_db']):.3g} dB signal to noise"
    return f"{row['layer']} ({ratio}{', kept' if row['kept'] else ''})"
