"""Takes the measurements of a release: asks the providers for windows of time and has them judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from shipctl.errors import SpecError, StageError
from shipctl.records import Record
from shipctl.release.analysis import AbState, AnalysisState, Values, judge, judge_ab
from shipctl.release.analysis import plan_lines as lines_of_analysis
from shipctl.release.analysis.ab import OVERALL
from shipctl.release.analysis.blocks import BLOCK_SECONDS
from shipctl.release.analysis.shadow import Comparisons, ShadowState, judge_shadow
from shipctl.release.metrics import MetricContext, MetricProvider, Samples
from shipctl.release.providers import check_provider, open_provider, provider_class
from shipctl.release.references import Reference
from shipctl.release.rollout import Measurement, RolloutState
from shipctl.release.strategy import AbOptions, AnalysisOptions, SetWeight, ShadowOptions, Strategy
from shipctl.release.target import LEASE_SECONDS, Candidate, Observation, ReleaseTarget
from shipctl.stages.context import CheckContext, ReleaseContext
from shipctl.stages.verdicts import Outcome, Verdict

LAG = 1.0
"""Seconds after which a source knows of everything that has happened: a proxy writes its log in pieces."""


QUICK = 1.0
"""Seconds that a provider without a time limit takes at most: it reads what is on this machine."""


LONGEST = LEASE_SECONDS - 3.0
"""Seconds that one query may take: the lease is renewed before each."""


def check(strategy: Strategy, ctx: CheckContext) -> None:
    """Prove that every number which is to decide can be had.

    :raises ShipctlError: if one cannot
    """
    options = strategy.analysis
    if options is None:
        return
    for provider in (options.provider, *(metric.provider for metric in options.metrics)):
        limit = getattr(provider_class(provider)[1], "timeout", None)
        if limit is not None and float(limit) > LONGEST:
            message = (
                f"the metric provider {provider.uses} may take {float(limit):g} s to answer, and who drives a release "
                f"has to be heard of every {LEASE_SECONDS:g} s; set its timeout to {LONGEST:g}s at most"
            )
            raise SpecError(message)
        check_provider(provider, ctx)


def query_seconds(strategy: Strategy) -> float:
    """Return how long one query may take to be answered, in the mean of those of a measurement, by their limits."""
    options = strategy.analysis
    if options is None:
        return 0.0
    compared = [options.provider] if options.compare else []
    asked = [options.provider, *compared, *(metric.provider for metric in options.metrics)]
    limits = [getattr(provider_class(provider)[1], "timeout", None) for provider in asked]
    return sum(QUICK if limit is None else float(limit) for limit in limits) / len(limits)


def _load(strategy: Strategy, percent: float, traffic: float | None) -> str:
    """Say how much a shadow asks both revisions beside what users do, and for how long at least."""
    options = strategy.shadow or ShadowOptions()
    asked = f"{percent:g} % of the requests are asked of both revisions once more"
    if not traffic:
        return f"{asked}; {options.comparisons:,} answers are compared before there is a verdict"
    rate = traffic * percent / 100
    seconds = options.comparisons / rate
    return f"{asked}: {rate:g}/s each at {traffic:g}/s; {options.comparisons:,} answers take {seconds:.0f} s"


def plan_lines(strategy: Strategy, ctx: ReleaseContext, traffic: float | None) -> list[str]:
    """Say, a line each, what can be noticed with the traffic that is expected."""
    options = strategy.analysis
    if options is None:
        return ["nothing is measured on the way: `analysis` is null"]
    if strategy.mirror is not None:
        return [_load(strategy, strategy.mirror, traffic)]
    weights: list[int] = []
    pauses: list[float] = []
    for step in strategy.steps:
        if isinstance(step, SetWeight):
            weights.append(step.setWeight)
            pauses.append(0.0)
        elif pauses and step.pause.duration is not None:
            pauses[-1] += float(step.pause.duration)
    return lines_of_analysis(options, ctx.objectives.slo, rate=traffic, weights=weights, pauses=pauses)


class Judged(NamedTuple):
    """What came of one window."""

    kind: str
    """Names what is remembered: a shadow that is promoted is judged in another way from then on."""
    state: Record
    measurement: Measurement


class Measuring:
    """The providers of one release, kept open while it is driven: some remember what they have read."""

    def __init__(
        self, strategy: Strategy, target: ReleaseTarget, candidate: Candidate, ctx: ReleaseContext
    ) -> None:
        self.strategy = strategy
        self.options = strategy.analysis or AnalysisOptions()
        self.revision = candidate.revision
        self.slo = ctx.objectives.slo
        self._context = MetricContext(
            pipeline=ctx.pipeline,
            model=candidate.repository.model,
            versions=target.versions(),
            labels=target.metric_labels(),
            endpoints=target.endpoints(),
            logs=target.logs,
            project=ctx.base,
        )
        self._open: dict[str, MetricProvider] = {}
        self.renew: Callable[[], object] = lambda: None
        """Called before each query, which may take as long as a good part of the lease."""

    @property
    def block(self) -> float:
        """Seconds of a block of the comparison: a second, or less where measurements follow each other quickly."""
        return min(BLOCK_SECONDS, max(0.25, float(self.options.interval) / 10))

    def take(self, state: RolloutState, seen: Observation, now: float) -> Measurement:
        """Measure. What cannot be asked, whatever a provider raises, is an error and never a pass."""
        try:
            return self.measure(state, seen, now)
        except Exception as exc:  # noqa: BLE001  (whatever a provider raises, it said nothing)
            text = str(exc) if isinstance(exc, StageError) else f"{type(exc).__name__}: {exc}"
            verdict = Verdict(gate="analysis", outcome=Outcome.ERROR, message=text)
            return Measurement(
                outcome=Outcome.ERROR, until=now, verdicts=(verdict,), summary=text, analysis=state.analysis
            )

    def measure(self, state: RolloutState, seen: Observation, now: float) -> Measurement:
        """Measure from where the last one ended, or from when the traffic was shifted, until now.

        :raises StageError: if a source cannot be asked
        """
        until = (
            now - LAG
        )  # what `measured` remembers is when that was asked, or measurements would be LAG too early
        begin = (seen.shifted if seen.shifted is not None else until) + float(self.options.initialDelay)
        last = state.measured - LAG if state.measured is not None else begin
        window = min(max(last, begin), until), until
        rival = seen.stable if seen.stable != self.revision else None
        kind, judged, measurement = self.judged(state.analysis, rival, seen, window)
        known = {**state.analysis, kind: judged.model_dump(mode="json")}
        return measurement.model_copy(update={"until": now, "analysis": known})

    def judged(
        self, known: dict[str, Any], rival: str | None, seen: Observation, window: tuple[float, float]
    ) -> Judged:
        """Return what came of one window, and what to remember of it under which name.

        ``rival`` is the stable revision, if it is another one.
        """
        beside = rival if rival is not None and seen.traffic.weight(rival) else None
        compared = beside is not None and self.options.compare
        state, measurement = judge(
            self.options,
            self.slo,
            AnalysisState.model_validate(known.get("analysis", {})),
            stable=self.query(self.options.provider, beside, window) if beside and compared else None,
            candidate=self.query(self.options.provider, self.revision, window),
            extra=[(item, self.query(item.provider, self.revision, window)) for item in self.options.metrics],
            at_full=beside is None,
            block=self.block,
        )
        return Judged("analysis", state, measurement)

    def query(self, reference: Reference, revision: str, window: tuple[float, float]) -> Samples:
        """Ask a provider, which stays open."""
        key = reference.model_dump_json()
        if key not in self._open:
            self._open[key] = open_provider(reference, self._context)
        self.renew()
        return self._open[key].query(revision, *window)


class AbMeasuring(Measuring):
    """Of an A/B test: each segment by itself, where the provider can tell them."""

    def judged(
        self, known: dict[str, Any], rival: str | None, seen: Observation, window: tuple[float, float]
    ) -> Judged:
        """Return what came of one window."""
        if rival is None or not seen.traffic.weight(rival):  # promoted: judged like any other
            return super().judged(known, rival, seen, window)
        sources = {OVERALL: self.options.provider, **self._segments()}
        arms = {
            revision: {name: self.query(source, revision, window) for name, source in sources.items()}
            for revision in (rival, self.revision)
        }
        test = self.strategy.ab or AbOptions()
        tested = [item for item in self.options.metrics if item.guardrail or item.name == test.goal]
        state, measurement = judge_ab(
            test,
            AbState.model_validate(known.get("ab", {})),
            stable=arms[rival],
            candidate=arms[self.revision],
            values={
                metric.name: Values(
                    metric,
                    {OVERALL: self.query(metric.provider, rival, window)},
                    {OVERALL: self.query(metric.provider, self.revision, window)},
                )
                for metric in tested
            },
            extra=[
                (item, self.query(item.provider, self.revision, window))
                for item in self.options.metrics
                if item not in tested
            ],
            analysis=self.options,
            block=self.block,
        )
        return Judged("ab", state, measurement)

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


class ShadowMeasuring(Measuring):
    """Of a shadow: how far the answers to the same requests are apart, as the target's comparator has found."""

    def judged(
        self, known: dict[str, Any], rival: str | None, seen: Observation, window: tuple[float, float]
    ) -> Judged:
        """Return what came of one window."""
        if seen.traffic.mirror is None:  # promoted: judged like any other
            return super().judged(known, rival, seen, window)
        options = self.strategy.shadow or ShadowOptions()
        bounds = options.model_dump(mode="json", include={"maxAbsError", "maxRelError", "top1Agreement"})
        source = Reference.model_validate({"uses": "comparison", "with": bounds})
        samples = self.query(source, self.revision, window)
        found = Comparisons.model_validate_json(samples.raw)
        state, measurement = judge_shadow(options, ShadowState.model_validate(known.get("shadow", {})), found)
        return Judged("shadow", state, measurement)


def measuring(
    strategy: Strategy, target: ReleaseTarget, candidate: Candidate, ctx: ReleaseContext
) -> Measuring:
    """Return what takes the measurements of a release."""
    kinds: dict[str, type[Measuring]] = {"ab-test": AbMeasuring, "shadow": ShadowMeasuring}
    return kinds.get(strategy.name, Measuring)(strategy, target, candidate, ctx)
