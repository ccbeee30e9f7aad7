"""Metric provider `prometheus`: the answer of a PromQL query, at the end of the window by the server's own clock.

A preset knows the query, how many requests it stands on, and which series has to be scraped for it, so that the share
of the window that the scrapes cover is known. A query of your own gives `value`; it is taken as covered when it gives
one, unless `series` names what to look at. NaN, infinity and an empty answer are no value.

`increase` extrapolates to the borders of the window and needs two scrapes in it: an `interval` of less than four scrape
intervals sees little.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlencode

from pydantic import AfterValidator, Field, model_validator

from shipctl.errors import ShipctlError, SpecError, StageError, UnavailableError
from shipctl.release.metrics import MetricContext, MetricOptions, MetricProvider, Samples
from shipctl.spec.fields import Named, fault
from shipctl.spec.problems import listed
from shipctl.stages.context import CheckContext
from shipctl_plugins._metrics.answers import RAW_KEPT
from shipctl_plugins._metrics.options import WebOptions
from shipctl_plugins._metrics.promql import NAMES, PRESETS, duration, known, quoted, render
from shipctl_plugins._metrics.web import Caller, excerpt, shown

Query = Annotated[str, Field(min_length=1, max_length=10_000), AfterValidator(known)]
Label = Annotated[str, Named(r"[a-zA-Z_][a-zA-Z0-9_]*", "the name of a label, such as namespace")]
Cluster = Annotated[str, AfterValidator(lambda value: known(value, set(NAMES) - {"labels"}))]
TRITON = "2.51"


class PrometheusOptions(WebOptions):
    """Which server, and what to ask it."""

    preset: Literal["error_rate", "latency_mean", "queue_time", "first_response", "envoy_latency"] | None = (
        Field(default=None, description="A query that is known: give this or `query`.")
    )
    query: Query | None = Field(
        default=None,
        description=(
            "PromQL that gives one number in base units, with {{ model }}, {{ version }}, {{ revision }}, "
            "{{ pipeline }}, {{ window }}, {{ since }}, {{ until }} filled in."
        ),
    )
    requests: Query | None = Field(
        default=None, description="PromQL that gives the number of requests in the window."
    )
    errors: Query | None = Field(
        default=None, description="PromQL that gives the number of those that failed."
    )
    series: Query | None = Field(
        default=None, description="A selector, without a window, whose scrapes tell how much is covered."
    )
    quantile: float = Field(default=0.95, gt=0, lt=1, description="Which quantile a histogram is asked for.")
    labels: dict[Label, str] = Field(
        default_factory=dict,
        description="Further labels that a preset's series must have, such as namespace.",
    )
    triton: Annotated[str, Named(r"\d+\.\d+(\.\d+)?", "a version such as 2.51")] = Field(
        default=TRITON, description="Version of Triton's server, which decides what presets there are."
    )
    cluster: Cluster = Field(
        default="{{ revision }}", description="What Envoy calls the cluster of a revision, for envoy_latency."
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.preset is None) == (self.query is None):
            raise fault("give either `preset` or `query`")
        if self.preset is not None:
            if self.requests or self.errors or self.series:
                raise fault("`requests`, `errors` and `series` belong to a `query`; a preset has its own")
            self._available(self.preset)
        if self.errors is not None and self.requests is None:
            raise fault("`errors` says little without `requests`; give both")
        return self

    def _available(self, name: str) -> None:
        major, minor = (int(part) for part in self.triton.split(".")[:2])
        wanted = PRESETS[name].since
        if (major, minor) < wanted:
            there = listed(other for other, each in PRESETS.items() if each.since <= (major, minor))
            first = ".".join(map(str, wanted))
            message = (
                f"Triton {self.triton} does not export {name}, which came with {first}; there are {there}"
            )
            raise fault(message)


@dataclass(frozen=True)
class Result:
    """What one query gave."""

    value: float | None
    raw: str


class Prometheus(MetricProvider):
    """Ask a Prometheus server, or what speaks its API (Thanos, Mimir, VictoriaMetrics)."""

    api_version: ClassVar[int] = 1
    options_model: ClassVar[type[MetricOptions]] = PrometheusOptions
    options: PrometheusOptions

    def __init__(self, options: PrometheusOptions, ctx: MetricContext) -> None:
        super().__init__(options, ctx)
        self._server = Server(options.url, options.caller(ctx.project))

    @classmethod
    def check(cls, options: PrometheusOptions, ctx: CheckContext) -> None:
        """Have the server run the queries on names that stand for those to come.

        :raises UnavailableError: if it cannot be asked
        :raises SpecError: if it does not understand a query
        """
        server = Server(options.url, options.check(ctx.base))
        context = MetricContext(pipeline=ctx.pipeline, model=ctx.pipeline, versions={"0" * 64: "1"})
        try:
            now = server.now()
            for query in cls(options, context).queries("0" * 64, now - 60, now).values():
                server.vector(query, now)
        except RefusedError as exc:
            raise SpecError(str(exc)) from exc
        except StageError as exc:
            raise UnavailableError(str(exc)) from exc

    def query(self, revision: str, since: float, until: float) -> Samples:
        """Ask for one window.

        :raises StageError: if the server cannot be asked, or a query gives more than one number
        """
        if not self.ctx.versions.get(revision):
            raise StageError(f"revision {revision[:12]} has no version in Triton; it is not on the target")
        # One clock decides what lies in the window: the server's, which stamped what it scraped.
        before = time.time()
        offset = self._server.now() - (before + time.time()) / 2
        queries = self.queries(revision, since + offset, until + offset)
        at = until + offset
        results = {
            name: self._server.number(query, at) for name, query in queries.items() if name != "series"
        }
        value = results["value"].value
        requests, errors = (_counted(results.get(name)) for name in ("requests", "errors"))
        if "series" in queries:
            coverage = self._server.coverage(queries["series"], at, until - since)
        else:
            coverage = 0.0 if value is None else 1.0
        return Samples(
            revision=revision,
            since=since,
            until=until,
            requests=requests,
            errors=min(errors, requests),
            value=value,
            coverage=coverage,
            query="; ".join(queries.values()),
            raw=excerpt("; ".join(result.raw for result in results.values()), RAW_KEPT),
        )

    def queries(self, revision: str, since: float, until: float) -> dict[str, str]:
        """Return what is asked for one window, by what it is."""
        options = self.options
        if options.preset is not None:
            preset = PRESETS[options.preset]
            templates = {
                "value": preset.value,
                "requests": preset.requests,
                "errors": preset.errors,
                "series": preset.series,
            }
        else:
            templates = {
                "value": options.query,
                "requests": options.requests,
                "errors": options.errors,
                "series": options.series,
            }
        values = self._values(revision, since, until)
        return {name: render(template, values) for name, template in templates.items() if template}

    def _values(self, revision: str, since: float, until: float) -> Mapping[str, str]:
        told = {**self.ctx.labels.get(revision, {}), **self.options.labels}
        labels = "".join(f',{name}="{quoted(value)}"' for name, value in told.items())
        values = {
            "model": quoted(self.ctx.model),
            "version": quoted(self.ctx.versions[revision]),
            "revision": quoted(revision),
            "pipeline": quoted(self.ctx.pipeline),
            "window": duration(until - since),
            "since": f"{since:.3f}",
            "until": f"{until:.3f}",
            "quantile": f"{self.options.quantile:g}",
            "labels": labels,
        }
        return {**values, "cluster": render(self.options.cluster, values)}


class RefusedError(StageError):
    """The server understood that it was asked, and not what."""


@dataclass(frozen=True)
class Server:
    """The part of Prometheus' HTTP API that gives the answer of a query at one moment."""

    url: str
    caller: Caller

    def now(self) -> float:
        """Return what time the server has, in seconds since the epoch."""
        body = self._ask("time()", None)
        try:
            return float(body["result"][1])
        except (LookupError, TypeError, ValueError) as exc:
            raise StageError(f"{shown(self.url)} did not say what time it is: {excerpt(str(body))}") from exc

    def number(self, query: str, at: float) -> Result:
        """Return the one number that a query gives, None where it gives none.

        :raises StageError: if it gives several
        """
        found = self.vector(query, at)
        raw = excerpt(json.dumps(found), RAW_KEPT)
        if len(found) > 1:
            message = f"the query {excerpt(query)} gives {len(found)} numbers, not one"
            message += f"; put sum() around it: {excerpt(raw)}"
            raise StageError(message)
        value = found[0][1] if found else None
        return Result(value if value is not None and math.isfinite(value) else None, raw)

    def vector(self, query: str, at: float) -> list[tuple[dict[str, str], float]]:
        """Return the labels and the number of everything that a query gives at one moment."""
        body = self._ask(query, at)
        try:
            kind, result = body["resultType"], body["result"]
            if kind == "scalar":
                return [({}, float(result[1]))]
            if kind == "vector":
                return [(dict(each["metric"]), float(each["value"][1])) for each in result]
        except (LookupError, TypeError, ValueError) as exc:
            raise StageError(
                f"{shown(self.url)} answered with what is no vector: {excerpt(str(body))}"
            ) from exc
        raise RefusedError(f"the query {excerpt(query)} gives a {kind}, not a number")

    def coverage(self, series: str, at: float, window: float) -> float:
        """Return the share of a window that lies between scrapes, for the series of which least is known.

        The window's borders count as scraped where the next scrape was due only beyond them.
        """
        if window <= 0:
            return 0.0
        body = self._ask(f"{series}[{duration(window)}]", at)
        try:
            scrapes = [[float(pair[0]) for pair in each["values"]] for each in body["result"]]
        except (LookupError, TypeError, ValueError) as exc:
            raise StageError(
                f"{shown(self.url)} answered with what is no matrix: {excerpt(str(body))}"
            ) from exc
        return min((_between(times, at - window, at) for times in scrapes), default=0.0)

    def _ask(self, query: str, at: float | None) -> dict[str, Any]:
        fields = {"query": query, "timeout": duration(self.caller.timeout)}
        if at is not None:
            fields["time"] = f"{at:.3f}"
        status, text = self.caller.ask(
            f"{self.url.rstrip('/')}/api/v1/query",
            urlencode(fields).encode(),
            {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"},
        )
        try:
            said = json.loads(text)
            succeeded = said["status"] == "success"
            body = said["data"] if succeeded else said["error"]
        except (ValueError, LookupError, TypeError, RecursionError):
            message = (
                f"{shown(self.url)} answered with status {status} and {excerpt(text) or 'no text'}, "
                "not as Prometheus does"
            )
            raise StageError(message) from None
        if not succeeded or status != HTTPStatus.OK:
            refused = status in {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}
            kind: type[ShipctlError] = RefusedError if refused else StageError
            message = f"{shown(self.url)} refused the query {excerpt(query)}: {excerpt(str(body))}"
            raise kind(message)
        if not isinstance(body, dict):
            raise StageError(f"{shown(self.url)} answered with no data: {excerpt(text)}")
        return body


def _between(times: list[float], begin: float, end: float) -> float:
    if len(times) < 2:  # noqa: PLR2004
        return 0.0
    gaps = sorted(after - before for before, after in pairwise(times))
    usual = gaps[len(gaps) // 2]
    missed = sum(max(0.0, gap - 2 * usual) for gap in gaps)
    missed += max(0.0, times[0] - begin - usual) + max(0.0, end - times[-1] - usual)
    return min(1.0, max(0.0, 1 - missed / (end - begin)))


def _counted(result: Result | None) -> int:
    return round(max(0.0, result.value)) if result is not None and result.value is not None else 0
