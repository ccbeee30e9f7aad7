"""Measures one candidate of a search: its answers and its speed, with all samples and time, or with a part of them."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shipctl.stages.artifacts import Dataset, OnnxModel
from shipctl_plugins._onnx import scores
from shipctl_plugins._onnx.scoring import Scorer, ScoringOptions
from shipctl_plugins._onnx.session import open_session, run_session
from shipctl_plugins._sources.opening import AnySource, open_source
from shipctl_plugins.qualify._candidates import family
from shipctl_plugins.qualify._quality import drops
from shipctl_plugins.qualify._racing import Race, Rounds, Rows
from shipctl_plugins.qualify._speed import SpeedOptions

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

FEWEST_SAMPLES = 64
"""Evaluation samples that even the smallest part has, if there are as many."""
_NORMAL = 1.96
"""Two-sided 95 % of a normal distribution."""


class MeterOptions(SpeedOptions, ScoringOptions):
    """How candidates are measured."""


@dataclass(frozen=True)
class Answered:
    """How a model answered."""

    metrics: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    """Classes and confusion."""


class Meter:
    """Measures models of one search, all in the same way."""

    def __init__(
        self,
        options: MeterOptions,
        evaluation: Dataset | None,
        reference: AnySource | OnnxModel | None,
        wanted: Sequence[str],
        *,
        seed: int,
        threads: int,
    ) -> None:
        """Prepare to measure the metrics ``wanted``; the source model answers all samples here, once.

        :raises StageError: if the samples or the source model cannot be read
        """
        self._options, self._evaluation = options, evaluation
        self._seed, self._threads = seed, threads
        self._race = Race(options, evaluation, seed)
        several = any("@" in name or family(name) == "throughput" for name in wanted)
        self._asked = slice(None) if several else slice(1)
        self._source: Array | None = None
        if evaluation is not None and reference is not None:
            scorer = Scorer(options, evaluation, reference.signature)
            if scorer.samples:
                with open_source(reference, seed=seed, threads=threads) as opened:
                    self._source = scorer.answers(opened.run)

    def seconds(self, model: OnnxModel, share: float) -> float:
        """Return how long measuring that part of a model's speed takes at most."""
        return self._race.seconds(len(self._race.settings(model)[self._asked]), share)

    def seconds_of_rest(self, model: OnnxModel) -> float:
        """Return how long the configurations take at most that nobody asked for."""
        return self._race.seconds(len(self._race.settings(model)) - 1, 1.0) if self._asked.stop else 0.0

    def speed(self, models: Sequence[OnnxModel], share: float) -> list[tuple[Rows, Rounds]]:
        """Measure the speed of models in turn (see :meth:`Race.run`): the headline, all if others were asked for."""
        return self._race.run(models, share, self._asked)

    def rest(self, model: OnnxModel) -> Rows:
        """Measure the configurations that nobody asked for, for the report on the chosen model."""
        return self._race.run([model], 1.0, slice(1, None))[0][0] if self.seconds_of_rest(model) else []

    def answers(self, model: OnnxModel, share: float) -> Answered:
        """Score a model on that part of the samples, and run it once as it will be timed.

        A part gives the scores 95 % confidence intervals: Wilson's for the accuracy, the normal one of the paired
        difference for its drop. Only classes are scored in part: other scores of few samples say too little.

        :raises StageError: if the model does not load or run
        """
        self._race.probe(model)
        if self._evaluation is None:
            return Answered()
        scorer = Scorer(self._options, self._evaluation, model.signature)
        if not scorer.samples:
            return Answered({"samples": 0.0})
        everything = share == 1 or self._task(scorer) != "classification"
        chosen = _sample(scorer.samples, 1.0 if everything else share, self._seed)
        part = scorer if everything else _part(scorer, chosen)
        session = open_session(model.path, threads=self._threads)
        answers = part.answers(lambda feed: run_session(session, feed))
        found = part.score(answers)
        metrics = {"samples": float(part.samples), **found.metrics}
        before = None if self._source is None else self._source[chosen]
        if before is not None:
            metrics |= drops(part.score(before), found)
        if not everything:
            metrics |= self._intervals(metrics, part.labels, answers, before)
        return Answered(metrics, {"classes": found.classes, "confusion": found.confusion})

    def _task(self, scorer: Scorer) -> str:
        if self._options.task != "auto":
            return self._options.task
        return "regression" if scorer.labels.dtype.kind == "f" else "classification"

    def _intervals(
        self, metrics: Mapping[str, float], labels: Array, answers: Array, before: Array | None
    ) -> dict[str, float]:
        """Return the ends of the confidence intervals of accuracy and its drop."""
        if not math.isfinite(metrics.get("accuracy", math.nan)):
            return {}
        hits = _hits(answers, labels, self._options.threshold)
        low, high = wilson(int(hits.sum()), hits.size)
        found = {"accuracy.low": low, "accuracy.high": high}
        if before is not None and math.isfinite(metrics["accuracy_drop"]):
            lost = _hits(before, labels, self._options.threshold).astype(int) - hits
            error = _NORMAL * float(lost.std()) / math.sqrt(lost.size)
            drop = metrics["accuracy_drop"]
            found |= {"accuracy_drop.low": drop - error, "accuracy_drop.high": drop + error}
        return found


def wilson(hits: int, samples: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a proportion (Wilson 1927), which is sound for few samples and near 0 and 1."""
    share, square = hits / samples, _NORMAL**2
    middle = share + square / (2 * samples)
    error = _NORMAL * math.sqrt(share * (1 - share) / samples + square / (4 * samples**2))
    return (middle - error) / (1 + square / samples), (middle + error) / (1 + square / samples)


def _sample(samples: int, share: float, seed: int) -> Array:
    """Return the places of the samples of a part; a smaller part is contained in a larger one."""
    import numpy as np

    count = min(samples, max(FEWEST_SAMPLES, math.ceil(samples * share)))
    return np.sort(np.random.default_rng(seed).permutation(samples)[:count])


def _part(scorer: Scorer, chosen: Array) -> Scorer:
    part = copy.copy(scorer)
    part.labels = scorer.labels[chosen]
    part.features = {name: array[chosen] for name, array in scorer.features.items()}
    return part


def _hits(answers: Array, labels: Array, threshold: float) -> Array:
    """Return for each label whether it was answered."""
    hits: Array = (scores.predicted_classes(answers, labels, threshold) == labels).reshape(-1)
    return hits


class Clock:
    """How much of a search's time is gone."""

    def __init__(self, limit: float | None, now: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._now = now
        self._begun = now()

    @property
    def gone(self) -> float:
        """Seconds since the search began."""
        return self._now() - self._begun

    def has(self, seconds: float) -> bool:
        """Whether that much time is left."""
        return self.limit is None or self.gone + seconds <= self.limit
