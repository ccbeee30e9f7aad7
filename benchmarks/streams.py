"""Simulated requests to two revisions behind one door, for `benchmarks/analysis.py`. Seconds throughout."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

RECORDED = Path(__file__).parent / "data" / "triton-latencies.npz"
STEP = 0.1
"""Resolution of drifts."""
BASE_ERRORS = 0.001
BURST_ERRORS = 0.5
"""Share of requests that fail during a burst of errors, which lasts about a second."""


class Rollout(NamedTuple):
    """Weights in percent, how long each of them lasts, and the requests per second."""

    weights: tuple[int, ...] = (5, 10, 25, 50, 100)
    pause: float = 60.0
    rate: float = 200.0

    @property
    def seconds(self) -> float:
        """How long all of it lasts."""
        return len(self.weights) * self.pause


class Requests(NamedTuple):
    """Requests in the order of time."""

    time: Array
    candidate: Mask
    latency: Array
    failed: Mask


@dataclass(frozen=True)
class Scenario:
    """How latencies and errors come about, the same for both revisions."""

    name: str
    latencies: Callable[[np.random.Generator, Array, Mask], Array]
    burst_every: float = math.inf
    """Seconds between bursts of errors, of each revision for itself."""
    slower: float = 1.0
    """How many times as long the candidate takes."""

    def drawn(
        self, rng: np.random.Generator, rollout: Rollout, *, slower: float = 1.0, errors: float = 0.0
    ) -> Requests:
        """Draw a release whose candidate takes ``slower`` times as long and fails ``errors`` more of its requests."""
        count = rng.poisson(rollout.rate * rollout.seconds)
        time = np.sort(rng.uniform(0, rollout.seconds, count))
        weight = np.array(rollout.weights)[(time // rollout.pause).astype(int)] / 100
        candidate = rng.random(count) < weight
        latency = self.latencies(rng, time, candidate) * np.where(candidate, slower * self.slower, 1.0)
        failed = rng.random(count) < BASE_ERRORS + np.where(candidate, errors, 0.0)
        for own in (candidate, ~candidate):
            for begin, length in _incidents(rng, rollout.seconds, self.burst_every, 1.0):
                hit = own & (time >= begin) & (time < begin + length)
                failed |= hit & (rng.random(count) < BURST_ERRORS)
        return Requests(time, candidate, latency, failed)


def lognormal(spread: float) -> Callable[[np.random.Generator, Array, Mask], Array]:
    """Independent latencies; with a spread of 0.5 the p95 is 2.3 times the median, with 1.0 5.2 times."""
    return lambda rng, time, _: 0.01 * rng.lognormal(0.0, spread, len(time))


def pareto(shape: float) -> Callable[[np.random.Generator, Array, Mask], Array]:
    """Independent latencies with a tail so heavy that at a shape of 1.5 they have no variance."""
    return lambda rng, time, _: 0.005 * (1 - rng.random(len(time))) ** (-1 / shape)


def drifting(own: float, together: float = 10.0, size: float = 0.3) -> Callable[..., Array]:
    """Log-latencies that drift: a first-order autoregression for both, and one for each revision by itself.

    ``own`` and ``together`` are their memories in seconds, ``size`` is the standard deviation of each.
    """

    def latencies(rng: np.random.Generator, time: Array, candidate: Mask) -> Array:
        cell = (time / STEP).astype(int)
        cells = int(cell[-1]) + 1 if len(cell) else 1
        level = _drift(rng, cells, together, size)[cell]
        mine, theirs = _drift(rng, cells, own, size)[cell], _drift(rng, cells, own, size)[cell]
        noise = 0.4 * rng.standard_normal(len(time))
        return np.asarray(0.01 * np.exp(level + np.where(candidate, mine, theirs) + noise))

    return latencies


def bursting(own: float, together: float = 20.0) -> Callable[..., Array]:
    """Bursts of about 1.5 s in which everything takes four times as long: of both, and of each by itself.

    ``own`` and ``together`` are the mean seconds between two of them.
    """

    def latencies(rng: np.random.Generator, time: Array, candidate: Mask) -> Array:
        latency = 0.01 * rng.lognormal(0.0, 0.5, len(time))
        everybody = np.ones(len(time), dtype=bool)
        for who, every in ((everybody, together), (candidate, own), (~candidate, own)):
            for begin, length in _incidents(rng, float(time[-1]), every, 1.5):
                latency[who & (time >= begin) & (time < begin + length)] *= 4
        return latency

    return latencies


def recorded(*, together: bool, length: float = 30.0) -> Callable[..., Array]:
    """Latencies of a real Triton, in pieces of ``length`` seconds drawn from the recording.

    ``together``: both revisions meet the same piece, as on one host; else each meets its own, which is the worst case.
    """
    with np.load(RECORDED) as data:
        sent, took = data["sent_ms"] / 1000, data["took_10us"] / 1e5

    def latencies(rng: np.random.Generator, time: Array, candidate: Mask) -> Array:
        pieces = int(time[-1] // length) + 1 if len(time) else 1
        place = (time // length).astype(int)
        starts = rng.uniform(0, sent[-1] - length, (2, pieces))
        begin = np.where(candidate & (not together), starts[1][place], starts[0][place])
        spot = begin + time % length + rng.uniform(-STEP, STEP, len(time)) / 2
        return np.asarray(took[np.minimum(np.searchsorted(sent, spot), len(took) - 1)])

    return latencies


def _drift(rng: np.random.Generator, count: int, memory: float, size: float) -> Array:
    kept = math.exp(-STEP / memory)
    noise = rng.standard_normal(count) * size * math.sqrt(1 - kept * kept)
    level = np.empty(count)
    now = rng.standard_normal() * size
    for place in range(count):
        now = kept * now + noise[place]
        level[place] = now
    return level


def _incidents(
    rng: np.random.Generator, seconds: float, every: float, length: float
) -> list[tuple[float, float]]:
    if math.isinf(every):
        return []
    count = rng.poisson(seconds / every)
    begins, lengths = rng.uniform(0, seconds, count), rng.exponential(length, count)
    return list(zip(begins.tolist(), lengths.tolist(), strict=True))


def scenarios() -> list[Scenario]:
    """Return what equal revisions are compared under."""
    made = [
        Scenario("independent, lognormal", lognormal(0.5)),
        Scenario("heavy tail, lognormal spread 1", lognormal(1.0)),
        Scenario("heavy tail, Pareto 1.5", pareto(1.5)),
        Scenario("drifts of both (10 s), own of 1 s", drifting(1.0)),
        Scenario("drifts of both (10 s), own of 3 s", drifting(3.0)),
        Scenario("drifts of both (10 s), own of 5 s", drifting(5.0)),
        Scenario("bursts of both, own every minute", bursting(60.0)),
        Scenario("bursts of both, own every 20 s", bursting(20.0)),
        replace(Scenario("errors in bursts, own every minute", lognormal(0.5)), burst_every=60.0),
    ]
    if RECORDED.exists():
        made += [
            Scenario("recorded Triton, both on one host", recorded(together=True)),
            Scenario("recorded Triton, each by itself", recorded(together=False)),
        ]
    return made


def at_tolerance() -> list[Scenario]:
    """Return a candidate that is as much slower as is tolerated: the hardest that must not be aborted."""
    return [Scenario("5 % slower, independent, lognormal", lognormal(0.5), slower=1.05)]


def limits() -> list[Scenario]:
    """Return where the comparison errs more often than it says: one revision drifts about as long as is watched."""
    return [
        Scenario("drifts of both (10 s), own of 10 s", drifting(10.0)),
        Scenario("drifts of both (10 s), own of 30 s", drifting(30.0)),
    ]
