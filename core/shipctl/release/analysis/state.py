"""What the analysis remembers between two measurements, and how a window is added to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pydantic import Field

from shipctl.records import Record
from shipctl.release.analysis.blocks import BLOCK_SECONDS, Counts, Window, cut, pieces, tells_errors
from shipctl.release.analysis.evidence import Evidence
from shipctl.release.metrics import Samples
from shipctl.release.strategy import AnalysisOptions

CALIBRATION = 300
"""Latencies of the stable revision from which its p95 is taken; whole blocks, before any comparison."""
SLOW = 0.95
LATENCY = "latency.p"
ERRORS = "error_rate"


class Slow(Record):
    """Requests that take longer than the stable revision's p95, as it was at the beginning."""

    calibration: tuple[float, ...] = Field(
        default=(), description="Seconds of the stable revision's first requests, until there are enough."
    )
    threshold: float | None = Field(default=None, description="Its p95 in seconds, once that is known.")
    apart: Evidence = Field(default_factory=Evidence, description="Against the stable revision as it is.")
    tolerated: Evidence = Field(
        default_factory=Evidence,
        description="Against the stable revision as if its requests took `slowTolerance` longer.",
    )
    limited: Evidence = Field(
        default_factory=Evidence,
        description="Against the stable revision as if its requests took `slowLimit` longer.",
    )


class AnalysisState(Record):
    """Sums over all windows of a release. Never begun anew within a release: that would be one more chance to err."""

    until: float | None = Field(default=None, description="End of the newest window that was added.")
    requests: int = Field(default=0, ge=0, description="Requests to the candidate so far.")
    at_full: int = Field(default=0, ge=0, description="Of these, how many since it has all the traffic.")
    errors: Evidence = Field(
        default_factory=Evidence, description="Share of errors, against the stable revision's."
    )
    slow: Slow = Field(default_factory=Slow)
    bounds: dict[str, Evidence] = Field(
        default_factory=dict, description="Shares beyond each bound of the `slo`, before all the traffic."
    )
    full: dict[str, Evidence] = Field(
        default_factory=dict, description="The same since the candidate has all the traffic."
    )


def percentile_of(objective: str) -> float | None:
    """Return the share of requests that a bound such as `latency.p95` is about, None for other objectives."""
    try:
        percent = float(objective.removeprefix(LATENCY)) if objective.startswith(LATENCY) else math.nan
    except ValueError:
        return None
    return percent / 100 if 0 < percent < 100 else None  # noqa: PLR2004  (percent)


def extended(
    options: AnalysisOptions,
    slo: Mapping[str, float],
    state: AnalysisState,
    *,
    stable: Samples | None,
    candidate: Samples,
    at_full: bool,
    seconds: float = BLOCK_SECONDS,
) -> AnalysisState:
    """Return the state with a further window; ``stable`` is of the same window, or None where it is not compared."""
    if state.until is not None and candidate.until <= state.until:
        return state  # asked again after an interruption
    count = pieces(candidate, seconds)
    coarse = not tells_errors(candidate) or (stable is not None and not tells_errors(stable))
    own = cut(candidate, count, whole=coarse)
    name = "full" if at_full else "bounds"
    update: dict[str, object] = {
        "until": candidate.until,
        "requests": state.requests + candidate.requests,
        name: _absolute(slo, getattr(state, name), own),
    }
    if at_full:
        update["at_full"] = state.at_full + candidate.requests
    if stable is not None:
        other = cut(stable, count, whole=coarse)
        update["errors"] = state.errors.extended(_together(own.errors, other.errors))
        if candidate.durations is not None and stable.durations is not None:
            update["slow"] = _slower(options, state.slow, own, other)
    return state.model_copy(update=update)


def _together(own: Sequence[tuple[int, int]], other: Sequence[tuple[int, int]]) -> list[Counts]:
    return [Counts(*one, *two) for one, two in zip(own, other, strict=True)]


def _absolute(slo: Mapping[str, float], known: Mapping[str, Evidence], window: Window) -> dict[str, Evidence]:
    found = dict(known)
    for objective, bound in slo.items():
        if objective == ERRORS:
            counts: Sequence[tuple[int, int]] = window.errors
        elif percentile_of(objective) is not None:
            counts = window.slow(bound)
        else:
            continue
        found[objective] = known.get(objective, Evidence(alone=True)).extended(
            [Counts(*pair) for pair in counts]
        )
    return found


def _slower(options: AnalysisOptions, slow: Slow, own: Window, other: Window) -> Slow:
    """Take the threshold from the first blocks, and compare in all the later ones."""
    first, calibration, threshold = 0, slow.calibration, slow.threshold
    while threshold is None and first < len(other.durations):
        calibration = (*calibration, *other.durations[first])
        first += 1
        if len(calibration) >= CALIBRATION:
            threshold = sorted(calibration)[math.ceil(SLOW * len(calibration)) - 1]
            calibration = ()
    if threshold is None or first == len(other.durations):
        return slow.model_copy(update={"calibration": calibration, "threshold": threshold})
    above = own.slow(threshold)[first:]

    def against(slower: float) -> list[Counts]:
        return _together(above, other.slow(threshold / (1 + slower))[first:])

    return Slow(
        threshold=threshold,
        apart=slow.apart.extended(against(0.0)),
        tolerated=slow.tolerated.extended(against(options.slowTolerance)),
        limited=slow.limited.extended(against(options.slowLimit)),
    )
