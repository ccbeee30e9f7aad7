"""The course of a search: which candidate is measured when, and how much, within its time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Protocol

from shipctl.errors import StageError
from shipctl.spec.units import Duration
from shipctl.stages.artifacts import OnnxModel
from shipctl_plugins.qualify._candidates import Candidate
from shipctl_plugins.qualify._choice import Choice
from shipctl_plugins.qualify._comparisons import show
from shipctl_plugins.qualify._meter import Answered, Clock
from shipctl_plugins.qualify._racing import Rounds, Rows
from shipctl_plugins.qualify._rungs import cut, ranked, shares
from shipctl_plugins.qualify._speed import speed_metrics

_SHOWN = (
    "accuracy", "accuracy_drop", "rmse", "spearman", "latency.p50", "latency.p95", "latency.p99", "throughput", "size",
)  # fmt: skip


class Measures(Protocol):
    """What a course needs of a :class:`Meter`."""

    def seconds(self, model: OnnxModel, share: float) -> float:
        """Return how long measuring that part of a model's speed takes at most."""
        ...

    def answers(self, model: OnnxModel, share: float) -> Answered:
        """Score a model on that part of the samples."""
        ...

    def seconds_of_rest(self, model: OnnxModel) -> float:
        """Return how long the configurations take at most that nobody asked for."""
        ...

    def speed(self, models: Sequence[OnnxModel], share: float) -> list[tuple[Rows, Rounds]]:
        """Measure the speed of models in turn, for that part of the time."""
        ...

    def rest(self, model: OnnxModel) -> Rows:
        """Measure the configurations that nobody asked for."""
        ...


class Course:
    """One search. Afterwards every candidate was measured in full, or has a reason."""

    def __init__(
        self,
        choice: Choice,
        meter: Measures,
        clock: Clock,
        log: Callable[[str], None],
        factor: int | None,
    ) -> None:
        """Search by successive halving with that ``factor``; None measures all in full."""
        self._choice, self._meter, self._clock, self._log = choice, meter, clock, log
        self._factor = factor
        self._known: dict[str, dict[str, float]] = {}
        self._levels: list[dict[str, float]] = []
        """For each rung, the median of the rounds by the model's digest."""
        self._answering = 0.0
        """Seconds that scoring on all samples took, or would have, at most so far."""
        self.trials: list[dict[str, Any]] = []
        """A row per measurement."""
        self.rungs: list[dict[str, Any]] = []
        """A row per rung."""
        self._full: dict[str, tuple[Rows, Answered]] = {}
        """What was measured in full, by the model's digest."""

    def run(self, candidates: Sequence[Candidate]) -> None:
        """Measure those that have no reason yet to be left alone."""
        for candidate in candidates:
            candidate.share = 0.0
        alive = [candidate for candidate in candidates if not candidate.reason]
        self._known = {item.model.digest: dict(item.metrics) for item in alive}
        ladder = shares(len(alive), self._factor) if self._factor is not None and alive else [1.0]
        for rung, share in enumerate(ladder[:-1], start=1):
            if len(alive) <= 1:
                break
            alive, in_time = self._rung(rung, len(ladder), share, alive)
            if not in_time:
                break
        self._finals(alive, len(ladder))

    def _rung(
        self, rung: int, rungs: int, share: float, alive: Sequence[Candidate]
    ) -> tuple[list[Candidate], bool]:
        """Measure a part of each; return who goes on, best first, and whether the time lasted."""
        begun = self._clock.gone
        first = alive[0].onnx
        reserve = self._meter.seconds(first, 1.0) + self._meter.seconds_of_rest(first)
        tried, rest = self._measure(alive, rung, share, lambda: reserve + self._answering, least=0)
        row: dict[str, Any] = {
            "rung": rung,
            "share": share,
            "candidates": len(alive),
            "tried": len(alive) - len(rest),
        }
        if rest:
            goes_on = [*ranked(tried, self._choice), *rest]
            row["note"] = f"{self._limit} was nearly over: straight to the full measurement"
        elif tried:
            decided = cut(tried, self._choice, self._factor or 1)
            for candidate, why in decided.dropped:
                candidate.reason = (
                    f"dropped in rung {rung} of {rungs}, after {_part(share)} of the measurement: {why}"
                )
                self._log(f"{candidate.name}: {candidate.reason}")
            goes_on = decided.kept
            row["note"] = f"compared by {decided.compared_by}"
        else:
            goes_on = []
            row["note"] = "none could be measured"
        self.rungs.append({**row, "kept": len(goes_on), "seconds": self._clock.gone - begun})
        return goes_on, not rest

    def _finals(self, finalists: Sequence[Candidate], rung: int) -> None:
        """Measure in full: the first in any case, the others as long as there is time."""
        begun = self._clock.gone
        reserve = self._meter.seconds_of_rest(finalists[0].onnx) if finalists else 0.0
        tried, late = self._measure(finalists, rung, 1.0, lambda: reserve + self._answering, least=1)
        for candidate in late:
            what = "not measured in full" if candidate.share else "not tried"
            candidate.reason = f"{what}: {self._limit} was over"
            candidate.late = True
        self.rungs.append(
            {"rung": rung, "share": 1.0, "candidates": len(finalists), "tried": len(finalists) - len(late),
             "note": f"{self._limit} was over" if late else "in full", "kept": len(tried),
             "seconds": self._clock.gone - begun}
        )  # fmt: skip

    def _measure(
        self,
        candidates: Sequence[Candidate],
        rung: int,
        share: float,
        reserve: Callable[[], float],
        least: int,
    ) -> tuple[list[Candidate], list[Candidate]]:
        """Measure as many as there is time for, at least ``least``; return those that ran, and those not begun."""
        ready: list[tuple[Candidate, Answered]] = []
        rest = list(candidates)
        ahead = 0.0
        while rest:
            ahead += self._meter.seconds(rest[0].onnx, share)
            if len(ready) >= least and not self._clock.has(ahead + reserve()):
                break
            candidate = rest.pop(0)
            answered = self._answers(candidate, share)
            if answered is not None:
                ready.append((candidate, answered))
        if ready:
            begun = self._clock.gone
            raced = self._meter.speed([candidate.onnx for candidate, _ in ready], share)
            each = (self._clock.gone - begun) / len(ready)
            self._levels.append({})
            for (candidate, answered), (rows, rounds) in zip(ready, raced, strict=True):
                self._note(candidate, rung, share, answered, rows, rounds)
                self.trials[-1]["seconds of timing"] = each
        return [candidate for candidate, _ in ready], rest

    def _answers(self, candidate: Candidate, share: float) -> Answered | None:
        begun = self._clock.gone
        try:
            answered = self._meter.answers(candidate.onnx, share)
        except StageError as exc:
            candidate.reason = f"it cannot be measured: {exc}"
            self._log(f"{candidate.name}: {candidate.reason}")
            return None
        self._answering = max(self._answering, (self._clock.gone - begun) / share)
        return answered

    def _note(
        self,
        candidate: Candidate,
        rung: int,
        share: float,
        answered: Answered,
        rows: Rows,
        rounds: Rounds,
    ) -> None:
        levels = self._levels[-1]
        digest, metric = candidate.model.digest, self._choice.objective.metric
        measured = answered.metrics | speed_metrics(candidate.onnx, rows)
        candidate.metrics = self._known[digest] | measured
        candidate.share, candidate.rounds = share, rounds
        if share == 1:
            self._full[digest] = (rows, answered)
        value = candidate.metrics.get(metric)
        if metric in rounds:
            levels[digest] = median(rounds[metric])
        self.trials.append(
            {"candidate": candidate.name, "rung": rung, "share": share, "samples": measured.get("samples", 0.0),
             "runs": measured.get("latency.runs", 0.0), metric: value}
        )  # fmt: skip
        said = "missing" if value is None else show(metric, value)
        self._log(f"rung {rung}, {_part(share)} of the measurement: {candidate.name}: {metric} {said}")

    def complete(self, best: Candidate) -> tuple[Rows, Answered]:
        """Measure what nobody asked for of the chosen one; return its rows, and what is known of its answers."""
        rows, answered = self._full[best.model.digest]
        return [*rows, *self._meter.rest(best.onnx)], answered

    def variants(self, candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
        """Return a row per candidate that was measured, as it was measured last."""
        return [
            {"name": item.name, "digest": item.model.digest, "share": item.share}
            | {name: item.metrics[name] for name in _SHOWN if name in item.metrics}
            for item in candidates
            if item.share
        ]

    def level(self, candidates: Sequence[Candidate], best: Candidate) -> None:
        """Put what was measured in different rungs on one scale, that of the chosen one's full measurement.

        A machine is not equally fast in every second, so speeds are multiplied by what the chosen one came to in full,
        divided by what it came to in the same rung; both are medians of rounds. Where those of the full measurement
        have too few runs for the percentile (see :func:`rounds_of`), numbers stay as they were measured.
        """
        metric, chosen = self._choice.objective.metric, best.model.digest
        full = self._levels[-1].get(chosen)
        if full is None:
            return
        for levels in self._levels:
            for candidate in candidates:
                digest = candidate.model.digest
                if digest in levels and chosen in levels:
                    candidate.level = levels[digest] / levels[chosen] * full
        for candidate in candidates:
            if 0 < candidate.share < 1 and candidate.level is not None:
                candidate.metrics[metric] = candidate.level

    @property
    def _limit(self) -> str:
        return f"max_time {Duration(self._clock.limit or 0.0)}"


def _part(share: float) -> str:
    return "all" if share == 1 else f"1/{1 / share:g}"
