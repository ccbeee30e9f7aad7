"""Takes the measurements of a release: asks the providers for windows of time and has them judged."""

from __future__ import annotations

from typing import Any

from shipctl.records import Record
from shipctl.release.analysis import AbState, AnalysisState, Values, judge, judge_ab
from shipctl.release.analysis import plan_lines as lines_of_analysis
from shipctl.release.analysis.ab import OVERALL
from shipctl.release.metrics import MetricContext, MetricProvider, Samples
from shipctl.release.providers import check_provider, open_provider, provider_class
from shipctl.release.references import Reference
from shipctl.release.rollout import Measurement, RolloutState
from shipctl.release.strategy import AbOptions, AnalysisOptions, SetWeight, Strategy
from shipctl.release.target import Candidate, Observation, Target
from shipctl.stages.context import CheckContext, ReleaseContext

LAG = 1.0
"""Seconds after which a source knows of everything that has happened: a proxy writes its log in pieces."""


def check(strategy: Strategy, ctx: CheckContext) -> None:
    """Prove that every number which is to decide can be had.

    :raises ShipctlError: if one cannot
    """
    options = strategy.analysis
    if options is None:
        return
    check_provider(options.provider, ctx)
    for metric in options.metrics:
        check_provider(metric.provider, ctx)


def plan_lines(strategy: Strategy, ctx: ReleaseContext, traffic: float | None) -> list[str]:
    """Say, a line each, what can be noticed with the traffic that is expected."""
    options = strategy.analysis
    if options is None:
        return ["nothing is measured on the way: `analysis` is null"]
    weights = [step.setWeight for step in strategy.steps if isinstance(step, SetWeight)]
    return lines_of_analysis(options, ctx.objectives.slo, rate=traffic, weights=weights)


class Measuring:
    """The providers of one release, kept open while it is driven: some remember what they have read."""

    def __init__(self, strategy: Strategy, target: Target, candidate: Candidate, ctx: ReleaseContext) -> None:
        self.strategy = strategy
        self.options = strategy.analysis or AnalysisOptions()
        self.revision = candidate.revision
        self.slo = ctx.objectives.slo
        self._context = MetricContext(
            pipeline=ctx.pipeline,
            model=candidate.repository.model,
            versions=target.versions(),
            endpoints=target.endpoints(),
            logs=target.logs,
            project=ctx.base,
        )
        self._open: dict[str, MetricProvider] = {}

    def measure(self, state: RolloutState, seen: Observation, now: float) -> Measurement:
        """Measure from where the last one ended, or from when the traffic was shifted, until now.

        :raises StageError: if a source cannot be asked
        """
        until = now - LAG  # what `measured` remembers is when that was asked, or measurements would be LAG too early
        begin = (seen.shifted if seen.shifted is not None else until) + float(self.options.initialDelay)
        last = state.measured - LAG if state.measured is not None else begin
        window = min(max(last, begin), until), until
        rival = seen.stable if seen.stable != self.revision else None
        judged, measurement = self.judged(state.analysis, rival, seen, window)
        return measurement.model_copy(update={"until": now, "analysis": judged.model_dump(mode="json")})

    def judged(
        self, known: dict[str, Any], rival: str | None, seen: Observation, window: tuple[float, float]
    ) -> tuple[Record, Measurement]:
        """Return what to remember and what came of one window; ``rival`` is the stable revision, if it is another."""
        beside = rival if rival is not None and seen.traffic.weight(rival) else None
        compared = beside is not None and self.options.compare
        return judge(
            self.options,
            self.slo,
            AnalysisState.model_validate(known),
            stable=self.query(self.options.provider, beside, window) if beside and compared else None,
            candidate=self.query(self.options.provider, self.revision, window),
            extra=[(item, self.query(item.provider, self.revision, window)) for item in self.options.metrics],
            at_full=beside is None,
        )

    def query(self, reference: Reference, revision: str, window: tuple[float, float]) -> Samples:
        """Ask a provider, which stays open."""
        key = reference.model_dump_json()
        if key not in self._open:
            self._open[key] = open_provider(reference, self._context)
        return self._open[key].query(revision, *window)


class AbMeasuring(Measuring):
    """Of an A/B test: each segment by itself, where the provider can tell them."""

    def judged(
        self, known: dict[str, Any], rival: str | None, seen: Observation, window: tuple[float, float]
    ) -> tuple[Record, Measurement]:
        """Return what to remember and what came of one window."""
        if rival is None or not seen.traffic.weight(rival):
            return super().judged({}, rival, seen, window)
        sources = {OVERALL: self.options.provider, **self._segments()}
        arms = {
            revision: {name: self.query(source, revision, window) for name, source in sources.items()}
            for revision in (rival, self.revision)
        }
        test = self.strategy.ab or AbOptions()
        return judge_ab(
            test,
            AbState.model_validate(known),
            stable=arms[rival],
            candidate=arms[self.revision],
            values={
                metric.name: Values(
                    metric,
                    {OVERALL: self.query(metric.provider, rival, window)},
                    {OVERALL: self.query(metric.provider, self.revision, window)},
                )
                for metric in self.options.metrics
                if metric.guardrail or metric.name == test.goal
            },
            analysis=self.options,
        )

    def _segments(self) -> dict[str, Reference]:
        """Return, by segment, the provider with its option `segment` set, if it has one."""
        provider = self.options.provider
        cls, _ = provider_class(provider)
        if "segment" not in cls.options_model.model_fields:
            return {}
        return {
            segment.name: Reference.model_validate(
                {"uses": provider.uses, "with": {**provider.options, "segment": segment.name}}
            )
            for segment in self.strategy.segments
            if segment.revision is None
        }


def measuring(strategy: Strategy, target: Target, candidate: Candidate, ctx: ReleaseContext) -> Measuring:
    """Return what takes the measurements of a release."""
    kinds: dict[str, type[Measuring]] = {"ab-test": AbMeasuring}
    return kinds.get(strategy.name, Measuring)(strategy, target, candidate, ctx)
