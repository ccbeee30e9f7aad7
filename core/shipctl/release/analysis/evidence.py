"""What is known by now about one number: a share of one revision, or its difference to that of the other one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import Field

from shipctl.records import Record
from shipctl.release.analysis.blocks import MIN_BLOCKS, Counts, Track, weighted
from shipctl.release.analysis.sequence import deviations, radius, spent_at
from shipctl.release.analysis.variance import between

PSEUDO_EVENTS = 2.0
"""Added to bad requests and to good ones in a variance, as Agresti and Coull do, so that none yet is not certainty."""
CAUTION = 10.0
"""In the first blocks a lower bound, on which releases are aborted, is ``1 + CAUTION / blocks`` times as far off."""
NEWEST = 0.2
"""Part of alpha that is for the newest blocks alone: they show at once what only just began."""


class Share(Record):
    """Bad ones among requests."""

    bad: int = Field(default=0, ge=0, description="How many were bad.")
    requests: int = Field(default=0, ge=0, description="Out of how many.")

    def plus(self, counts: Sequence[tuple[int, int]]) -> Share:
        """Return it with more (bad ones, requests)."""
        bad, requests = self.bad, self.requests
        for more, count in counts:
            bad += more
            requests += count
        return Share(bad=bad, requests=requests)

    @property
    def value(self) -> float:
        """The share; 0 while there is nothing."""
        return self.bad / self.requests if self.requests else 0.0

    @property
    def variance(self) -> float:
        """The variance of one request."""
        share = (self.bad + PSEUDO_EVENTS) / (self.requests + 2 * PSEUDO_EVENTS)
        return share * (1 - share)


class Bounds(NamedTuple):
    """What can be said of a number."""

    mean: float
    lower: float
    upper: float
    newest: float
    """Lower bound of the newest blocks alone; minus infinity if they say nothing."""

    @property
    def least(self) -> float:
        """The larger one of the two lower bounds."""
        return max(self.lower, self.newest)


class Evidence(Record):
    """One number from the beginning of the release until now. Never begun anew within a release."""

    alone: bool = Field(default=False, description="Whether it is about the candidate by itself.")
    candidate: Share = Field(default_factory=Share, description="All of the candidate's requests.")
    stable: Share = Field(default_factory=Share, description="All of the stable revision's requests.")
    track: Track = Field(default_factory=Track, description="Block by block.")
    recent: tuple[Counts, ...] = Field(default=(), description="The newest blocks.")
    looks: int = Field(
        default=0, ge=0, description="How often the newest blocks were looked at by themselves."
    )
    fresh: tuple[float, float] | None = Field(
        default=None,
        description="Mean of the newest blocks, and how uncertain it is (one standard deviation).",
    )

    def extended(self, counts: Sequence[Counts]) -> Evidence:
        """Return it with a further window, block by block."""
        track = self.track.extended(weighted(counts, alone=self.alone))
        recent = (*self.recent, *counts)[-max(MIN_BLOCKS, len(counts)) :]
        fresh = self._fresh(recent)
        return Evidence(
            alone=self.alone,
            candidate=self.candidate.plus([block[:2] for block in counts]),
            stable=self.stable.plus([block[2:] for block in counts]),
            track=track,
            recent=recent,
            looks=self.looks + (fresh is not None),
            fresh=fresh,
        )

    def _fresh(self, recent: Sequence[Counts]) -> tuple[float, float] | None:
        """Look at the newest blocks by themselves, once what came before says how much blocks fluctuate."""
        before = self.track
        track = Track().extended(weighted(recent, alone=self.alone))
        if before.blocks < 2 * MIN_BLOCKS or track.weight <= 0:
            return None
        candidate = Share().plus([block[:2] for block in recent])
        stable = Share().plus([block[2:] for block in recent])
        known = between(before.batches) / before.weight * track.weight
        here = _variance(track, candidate, stable) * _caution(track) ** 2
        return track.mean, math.sqrt(max(here, known)) / track.weight

    def bounds(self, alpha: float, upper_alpha: float | None = None) -> Bounds:
        """Return what holds at all looks at once: lower bounds with ``alpha``, the upper one with its own."""
        track = self.track
        variance, weight, mean = _variance(track, self.candidate, self.stable), track.weight, track.mean
        newest = -math.inf
        if self.fresh is not None:
            newest = self.fresh[0] - self.fresh[1] * deviations(spent_at(alpha * NEWEST, self.looks))
        return Bounds(
            mean=mean,
            lower=mean - _caution(track) * radius(variance, weight, alpha * (1 - NEWEST)),
            upper=mean + radius(variance, weight, alpha if upper_alpha is None else upper_alpha),
            newest=newest,
        )

    def interval(self, alpha: float) -> tuple[float, float]:
        """Return the two-sided interval with ``alpha``, as cautious on both sides as a lower bound is."""
        return interval(self.track, _variance(self.track, self.candidate, self.stable), alpha)


def interval(track: Track, variance: float, alpha: float) -> tuple[float, float]:
    """Return the two-sided interval of a track's mean that holds at all looks at once."""
    half = _caution(track) * radius(variance, track.weight, alpha / 2)
    return track.mean - half, track.mean + half


def _variance(track: Track, candidate: Share, stable: Share) -> float:
    """Return the variance of the weighted sum: between blocks, and at least that of independent requests."""
    independent = track.own * candidate.variance + max(0.0, track.weight - track.own) * stable.variance
    return max(independent, between(track.batches))


def _caution(track: Track) -> float:
    return 1 + CAUTION / max(track.blocks, 1)
