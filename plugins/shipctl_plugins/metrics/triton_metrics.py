"""Metric provider `triton`: Triton's own counters, read from each replica directly.

There is no history behind Triton's `/metrics`, so a window is known by two looks: one at its begin, one at its end.
Each query looks, and remembers; what was not looked at within :data:`SLACK` seconds of the window's begin is not
covered, and the first window of all is therefore empty (a query for an empty window is a look, too). A replica that was
started anew meanwhile has forgotten what it had counted, and is not vouched for in that window.

What Triton cannot tell: requests that it refused before they reached the model (status 400), answers that the backend
sent as errors of its own (they count as success), and those that never arrived. The proxy's log knows them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import pairwise
from typing import ClassVar, Literal

from pydantic import Field

from shipctl.errors import StageError
from shipctl.release.metrics import MetricContext, MetricOptions, MetricProvider, Samples
from shipctl.spec.units import Duration
from shipctl_plugins._metrics.exposition import Series, grown, read_counters
from shipctl_plugins._metrics.options import Timeout
from shipctl_plugins._metrics.web import Caller, excerpt

SLACK = 2.0
"""Seconds that a look may be away from the border of a window and still stand for it."""
KEPT = 256
"""Looks that are remembered per replica."""
SUCCESS, FAILURE = "nv_inference_request_success", "nv_inference_request_failure"
TOTALS = {"latency_mean": "nv_inference_request_duration_us", "queue_time": "nv_inference_queue_duration_us"}
"""Microseconds, added up over successful requests."""
SHORT = 12
"""Digits of a revision in the name of an endpoint."""


class TritonOptions(MetricOptions):
    """Which of Triton's numbers is the value."""

    value: Literal["latency_mean", "queue_time", "error_rate"] = Field(
        default="latency_mean", description="What `value` is: seconds per answered request, or a share."
    )
    timeout: Timeout = Field(default=Duration("5s"), description="How long a replica may take to answer.")


@dataclass(frozen=True)
class Look:
    """What one replica said at one moment."""

    at: float
    counters: Mapping[Series, float]


@dataclass
class Growth:
    """By how much counters grew between two looks."""

    begin: float
    end: float
    counts: dict[str, float]
    """By metric, over all labels."""
    whole: bool
    """Whether no counter began anew between them."""


@dataclass
class Looks:
    """What one replica has said, oldest first."""

    seen: deque[Look] = field(default_factory=lambda: deque(maxlen=KEPT))

    def between(self, since: float, until: float) -> Growth | None:
        """Return what happened from the first look at the window to the last; None without two of them.

        Looks between them count too: a replica may have been started anew between any two.
        """
        inside = [look for look in self.seen if since - SLACK <= look.at <= until + SLACK]
        if len(inside) < 2:  # noqa: PLR2004
            return None
        first = max(
            (look for look in inside if look.at <= since), default=inside[0], key=lambda look: look.at
        )
        inside = inside[inside.index(first) :]
        counts: dict[str, float] = {}
        whole = True
        for before, after in pairwise(inside):
            growth, anew = grown(before.counters, after.counters)
            whole = whole and not anew
            for (name, _), count in growth.items():
                counts[name] = counts.get(name, 0.0) + count
        return Growth(first.at, inside[-1].at, counts, whole)


class TritonMetrics(MetricProvider):
    """Read the counters of every replica."""

    api_version: ClassVar[int] = 1
    options_model: ClassVar[type[MetricOptions]] = TritonOptions
    options: TritonOptions

    def __init__(self, options: TritonOptions, ctx: MetricContext) -> None:
        super().__init__(options, ctx)
        self._caller = Caller(timeout=float(options.timeout))
        self._looks: dict[str, Looks] = {}

    def query(self, revision: str, since: float, until: float) -> Samples:
        """Look at every replica now, and return what happened between the looks that are nearest to the window.

        :raises StageError: if a replica cannot be asked: what the others say would be another number
        """
        addresses = self._replicas(revision)
        version = self.ctx.versions.get(revision)
        if version is None:
            raise StageError(f"revision {revision[:SHORT]} has no version in Triton; it is not on the target")
        growths = []
        for name, url in addresses.items():
            looks = self._looks.setdefault(f"{name} {url}", Looks())
            looks.seen.append(self._look(url, version))
            growths.append(looks.between(since, until))
        labels = f'{{model="{self.ctx.model}",version="{version}"}}'
        return self._samples(revision, since, until, growths, f"{labels} of {', '.join(addresses.values())}")

    def _replicas(self, revision: str) -> dict[str, str]:
        """Return the replicas' addresses by name."""
        prefix = f"metrics/{revision[:SHORT]}/"
        found = {name: url for name, url in self.ctx.endpoints.items() if name.startswith(prefix)}
        if not found:
            message = (
                f"the target shows no metrics of revision {revision[:SHORT]}: none of its replicas is known"
            )
            raise StageError(message)
        return found

    def _look(self, url: str, version: str) -> Look:
        status, text = self._caller.ask(url)
        at = time.time()
        if status != HTTPStatus.OK:
            raise StageError(f"{url} answered with status {status}, not with metrics: {excerpt(text)}")
        try:
            counters = read_counters(
                text, {SUCCESS, FAILURE, *TOTALS.values()}, {"model": self.ctx.model, "version": version}
            )
        except ValueError as exc:
            raise StageError(f"{url} did not answer with metrics: {exc}") from exc
        missing = {SUCCESS, FAILURE, *TOTALS.values()} - {name for name, _ in counters}
        if missing:
            message = (
                f"{url} shows no {', '.join(sorted(missing))} of version {version} of {self.ctx.model}; "
                "see whether the replica has it loaded"
            )
            raise StageError(message)
        return Look(at, counters)

    def _samples(
        self, revision: str, since: float, until: float, growths: list[Growth | None], query: str
    ) -> Samples:
        counts: dict[str, float] = {}
        covered = 0.0
        for growth in growths:
            if growth is None:
                continue
            for name, count in growth.counts.items():
                counts[name] = counts.get(name, 0.0) + count
            if growth.whole:
                covered += _share(growth, since, until) / len(growths)
        done, failed = counts.get(SUCCESS, 0.0), counts.get(FAILURE, 0.0)
        value = None
        if self.options.value == "error_rate":
            value = failed / (done + failed) if done + failed else None
        elif done:
            value = counts.get(TOTALS[self.options.value], 0.0) / done / 1e6
        return Samples(
            revision=revision,
            since=since,
            until=until,
            requests=round(done + failed),
            errors=round(failed),
            value=value,
            coverage=min(1.0, covered),
            query=query,
            raw=", ".join(f"{name} +{count:g}" for name, count in sorted(counts.items())),
        )


def _share(growth: Growth, since: float, until: float) -> float:
    """Return the share of the window that lies between two looks, or nearly."""
    if until <= since:
        return 0.0
    begin = since if abs(growth.begin - since) <= SLACK else max(growth.begin, since)
    end = until if abs(growth.end - until) <= SLACK else min(growth.end, until)
    return min(1.0, max(0.0, end - begin) / (until - since))
