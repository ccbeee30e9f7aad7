"""AnalysisTemplates of Argo Rollouts, from the bounds of the spec and the queries of the provider `prometheus`.

Fields: argo-rollouts.readthedocs.io/en/stable/features/analysis. A query's answer is a vector there; an empty one and
NaN meet neither condition, and are inconclusive, which pauses the rollout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shipctl.release.metrics import MetricContext
from shipctl.release.providers import provider_class
from shipctl.release.references import Reference
from shipctl.release.strategy import AnalysisOptions, Strategy
from shipctl_plugins._engines.cluster import SERIES_LABEL, manifest
from shipctl_plugins._engines.notes import Object
from shipctl_plugins._kubernetes.app import App, short
from shipctl_plugins._kubernetes.objects import Kind
from shipctl_plugins._kubernetes.state import Entry
from shipctl_plugins._metrics.promql import placeholders

ANALYSIS_TEMPLATE = Kind("argoproj.io/v1alpha1", "AnalysisTemplate")
ERRORS = "error_rate"
PROMETHEUS = "prometheus"
_QUERIES = ("query", "requests", "errors")


@dataclass(frozen=True)
class Question:
    """One number that decides."""

    name: str
    query: str
    low: float | None
    high: float | None

    def conditions(self) -> dict[str, str]:
        """Return when a measurement succeeds and when it fails; what is neither is inconclusive."""
        inside = [f"result[0] >= {self.low!r}" if self.low is not None else ""]
        inside += [f"result[0] <= {self.high!r}" if self.high is not None else ""]
        outside = [f"result[0] < {self.low!r}" if self.low is not None else ""]
        outside += [f"result[0] > {self.high!r}" if self.high is not None else ""]
        passing, failing = " && ".join(filter(None, inside)), " || ".join(filter(None, outside))
        return {
            "successCondition": f"len(result) > 0 && {passing}",
            "failureCondition": f"len(result) > 0 && ({failing})",
        }


@dataclass(frozen=True)
class Analysis:
    """What Argo Rollouts asks about one revision."""

    app: App
    strategy: Strategy
    slo: Mapping[str, float]
    entry: Entry
    address: str | None
    """Prometheus as Argo's controller reaches it; None for the address that the provider has."""

    @property
    def background(self) -> str:
        """Name of the template that is asked all the way."""
        return f"{self.app.name}-slo"

    @property
    def gate(self) -> str:
        """Name of the template that is asked once before each step is left."""
        return f"{self.app.name}-gate"

    def templates(self) -> list[Object]:
        """Return both templates; none where nothing is asked."""
        options = self.strategy.analysis
        if options is None or not self.questions(60.0):
            return []
        interval = float(options.interval)
        limits = {
            "interval": seconds(interval),
            "initialDelay": seconds(max(interval, float(options.initialDelay))),
            "failureLimit": options.failureLimit,
            "inconclusiveLimit": options.inconclusiveLimit,
        }
        once = {"count": 1, "failureLimit": 0, "inconclusiveLimit": 0}
        window = max(interval, self.shortest_pause)
        return [
            self._template(self.background, options, interval, limits),
            self._template(self.gate, options, window, once),
        ]

    @property
    def shortest_pause(self) -> float:
        """Seconds of the shortest pause of a known length: what is asked before it is over looks back so far."""
        pauses = [getattr(step, "pause", None) for step in self.strategy.steps]
        return min(
            (float(each.duration) for each in pauses if each is not None and each.duration), default=0.0
        )

    def questions(self, window: float) -> list[Question]:
        """Return what is asked about a window of so many seconds."""
        options = self.strategy.analysis
        if options is None:
            return []
        found = []
        if ERRORS in self.slo and options.provider.uses == PROMETHEUS:
            queries = self._queries(options.provider, window)
            if {"requests", "errors"} <= queries.keys():
                share = f"({queries['errors']}) / ({queries['requests']})"
                found.append(Question(ERRORS, self._enough(share, queries, options), None, self.slo[ERRORS]))
        for metric in options.metrics:
            queries = self._queries(metric.provider, window)
            query = self._enough(queries["value"], queries, options)
            found.append(Question(metric.name, query, metric.min, metric.max))
        return found

    def _enough(self, query: str, queries: Mapping[str, str], options: AnalysisOptions) -> str:
        """Return a query that answers nothing while there are fewer requests than `minSamples`."""
        if "requests" not in queries:
            return query
        return f"({query}) and on() (({queries['requests']}) >= {options.minSamples})"

    def _queries(self, reference: Reference, window: float) -> dict[str, str]:
        cls, options = provider_class(reference)
        context = MetricContext(
            pipeline=self.app.pipeline,
            model=self.entry.model,
            versions={self.entry.revision: str(self.entry.number)},
            labels={self.entry.revision: {SERIES_LABEL: short(self.entry.revision)}},
        )
        provider: Any = cls(options, context)
        return dict(provider.queries(self.entry.revision, 0.0, window))

    def _template(self, name: str, options: AnalysisOptions, window: float, limits: dict[str, Any]) -> Object:
        address = {metric.name: _address(metric.provider) for metric in options.metrics}
        metrics = [
            {
                "name": question.name,
                **limits,
                "consecutiveErrorLimit": options.consecutiveErrorLimit,
                **question.conditions(),
                "provider": {
                    "prometheus": {
                        "address": self.address or address.get(question.name) or _address(options.provider),
                        "query": question.query,
                    }
                },
            }
            for question in self.questions(window)
        ]
        return manifest(self.app, ANALYSIS_TEMPLATE, name, spec={"metrics": metrics})


def unable(strategy: Strategy) -> str | None:
    """Say which of a strategy's metrics Argo Rollouts cannot ask for, and what to do instead; None if it can all."""
    options = strategy.analysis
    if options is None or strategy.surge is not None:  # while pods are replaced, nothing is asked
        return None
    named = [("analysis.provider", options.provider)]
    named += [(f"the metric {metric.name}", metric.provider) for metric in options.metrics]
    for what, reference in named:
        if reference.uses != PROMETHEUS:
            return (
                f"argo-rollouts asks Prometheus alone, and {what} is {reference.uses}; write "
                "`{uses: prometheus, with: …}`"
            )
        _, given = provider_class(reference)
        if given.token_env or given.ca:
            return (
                f"argo-rollouts cannot pass on the token or the authorities of {what}, since they would stand in an "
                "AnalysisTemplate; let Argo's controller reach Prometheus by `prometheus` of the target without them, "
                "and leave them out"
            )
        names = {name for query in _QUERIES for name in placeholders(getattr(given, query) or "")}
        if names & {"since", "until"}:
            return (
                f"argo-rollouts does not know when a window begins, which the query of {what} names; use "
                "{{ window }} in it"
            )
    return None


def seconds(value: float) -> str:
    """Return a time as Argo Rollouts takes it, rounded up to seconds."""
    return f"{math.ceil(value)}s"


def _address(reference: Reference) -> str:
    return str(provider_class(reference)[1].url)
