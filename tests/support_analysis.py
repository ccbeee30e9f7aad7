"""Windows of requests for tests of the analysis, drawn or written down."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

from shipctl.release.analysis import AnalysisState, judge
from shipctl.release.metrics import Samples
from shipctl.release.rollout import Measurement
from shipctl.release.strategy import AnalysisOptions
from shipctl.stages.verdicts import Outcome, Verdict

WINDOW = 15.0
Window = tuple[Samples, Samples]


def samples(
    revision: str = "candidate",
    *,
    since: float = 0.0,
    until: float = WINDOW,
    durations: Sequence[float] | None = (),
    errors: int = 0,
    **more: Any,
) -> Samples:
    """Return a window whose answers and errors are spread evenly; errors have no duration."""
    count = len(durations or ())
    length = until - since
    fields: dict[str, Any] = {
        "revision": revision,
        "since": since,
        "until": until,
        "requests": count + errors,
        "errors": errors,
        "durations": None if durations is None else tuple(durations),
        "times": None
        if durations is None
        else tuple(since + length * (at + 0.5) / count for at in range(count)),
        "failed": tuple(since + length * (at + 0.5) / errors for at in range(errors)),
    }
    return Samples(**(fields | more))


def steady(count: int, *, slow: float = 0.05, fast: float = 0.010, long: float = 0.050) -> list[float]:
    """Return latencies of which a share, spread evenly, is long."""
    every = round(1 / slow) if slow else count + 1
    return [long if at % every == every - 1 else fast * (1 + at % 7 / 1000) for at in range(count)]


def usual(count: int, *, slower: float = 1.0) -> list[float]:
    """Return lognormal latencies (median 10 ms, p95 22.8 ms) without any chance in them: a golden-ratio sequence."""
    quantile = NormalDist(0, 0.5).inv_cdf
    golden = (math.sqrt(5) - 1) / 2
    return [0.010 * slower * math.exp(quantile((at * golden + 0.5) % 1)) for at in range(count)]


def drawn(
    rng: random.Random,
    *,
    weight: float,
    rate: float,
    since: float,
    slower: float = 1.0,
    errors: float = 0.001,
    levels: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Window:
    """Return a window of the candidate and one of the stable revision: lognormal latencies, Poisson arrivals.

    ``levels`` are added to log-latencies, of the candidate and of the stable revision, second by second.
    """
    made: list[Samples] = []
    for which, (name, share, factor, failing) in enumerate(
        (("candidate", weight, slower, errors), ("stable", 1 - weight, 1.0, 0.001))
    ):
        times, failed, now = list[float](), list[float](), since
        while (now := now + rng.expovariate(rate * share)) < since + WINDOW:
            (failed if rng.random() < failing else times).append(now)
        drift = [levels[which][int(time)] if levels else 0.0 for time in times]
        made.append(
            Samples(
                revision=name,
                since=since,
                until=since + WINDOW,
                requests=len(times) + len(failed),
                errors=len(failed),
                durations=tuple(0.01 * factor * math.exp(level + rng.gauss(0, 0.5)) for level in drift),
                times=tuple(times),
                failed=tuple(failed),
            )
        )
    return made[0], made[1]


def drifting(rng: random.Random, seconds: int, memory: float, size: float = 0.3) -> list[float]:
    """Return a level for each second that comes back with a ``memory`` in seconds (first-order autoregression)."""
    kept, now, found = math.exp(-1 / memory), rng.gauss(0, size), list[float]()
    for _ in range(seconds):
        now = kept * now + math.sqrt(1 - kept * kept) * rng.gauss(0, size)
        found.append(now)
    return found


def release(
    seed: int,
    *,
    rate: float = 200.0,
    weights: Sequence[float] = (0.05, 0.1, 0.25, 0.5),
    windows: int = 4,
    drift: float = 0.0,
    **candidate: float,
) -> list[Measurement]:
    """Return the measurements of a drawn release up to the first that fails.

    With ``drift`` each revision drifts by itself, with so many seconds of memory.
    """
    rng, state, found = random.Random(seed), AnalysisState(), list[Measurement]()
    seconds = round(len(weights) * windows * WINDOW) + 1
    levels = (drifting(rng, seconds, drift), drifting(rng, seconds, drift)) if drift else None
    for place in range(len(weights) * windows):
        own, other = drawn(
            rng, weight=weights[place // windows], rate=rate, since=place * WINDOW, levels=levels, **candidate
        )
        state, measurement = judge(AnalysisOptions(), {}, state, stable=other, candidate=own)
        found.append(measurement)
        if measurement.outcome is Outcome.FAIL:
            break
    return found


def verdict(measurement: Measurement, gate: str) -> Verdict:
    """Return the one verdict of a gate."""
    (found,) = [verdict for verdict in measurement.verdicts if verdict.gate == gate]
    return found


def outcomes(measurement: Measurement) -> dict[str, Outcome]:
    """Return the outcome of each gate."""
    return {verdict.gate: verdict.outcome for verdict in measurement.verdicts}
