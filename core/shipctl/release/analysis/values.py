"""Differences of any value that single requests have: an answer's score, a basket, a click."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field

from shipctl.records import Record
from shipctl.release.analysis.blocks import Track, Weighted, Window
from shipctl.release.analysis.evidence import interval
from shipctl.release.analysis.variance import between


class Moments(Record):
    """Mean and variance of values that come in pieces (B. P. Welford, Technometrics 4(3), 1962)."""

    count: int = Field(default=0, ge=0)
    mean: float = Field(default=0.0)
    squares: float = Field(default=0.0, ge=0, description="Sum of squared distances from the mean.")

    def plus(self, values: Sequence[float]) -> Moments:
        """Return them with more values."""
        count, mean, squares = self.count, self.mean, self.squares
        for value in values:
            count += 1
            step = value - mean
            mean += step / count
            squares += step * (value - mean)
        return Moments(count=count, mean=mean, squares=squares)

    @property
    def variance(self) -> float:
        """Variance of one value; infinite while there are too few."""
        return self.squares / (self.count - 1) if self.count > 1 else math.inf


class Effect(Record):
    """The difference of means, candidate minus stable revision, in paired blocks of time."""

    track: Track = Field(default_factory=Track)
    candidate: Moments = Field(default_factory=Moments)
    stable: Moments = Field(default_factory=Moments)

    def extended(self, own: Window, other: Window) -> Effect:
        """Return it with a further window of both."""
        blocks, candidate, stable = [], self.candidate, self.stable
        for mine, theirs in zip(own.durations, other.durations, strict=True):
            candidate, stable = candidate.plus(mine), stable.plus(theirs)
            if mine and theirs:
                weight = len(mine) * len(theirs) / (len(mine) + len(theirs))
                difference = sum(mine) / len(mine) - sum(theirs) / len(theirs)
                blocks.append(Weighted(weight, weight * difference, weight * weight / len(mine)))
        return Effect(track=self.track.extended(blocks), candidate=candidate, stable=stable)

    def interval(self, alpha: float) -> tuple[float, float]:
        """Return an interval of the difference that holds at all looks at once."""
        track = self.track
        if not track.blocks:
            return -math.inf, math.inf
        independent = track.own * self.candidate.variance
        independent += max(0.0, track.weight - track.own) * self.stable.variance
        return interval(track, max(independent, between(track.batches)), alpha)
