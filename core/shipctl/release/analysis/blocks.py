"""Windows of time cut into short blocks, and what is kept of them: sums in batches, of bounded size.

A comparison looks at differences within a block, in which both revisions met the same traffic and the same machine.
With ``n`` requests to the candidate, ``m`` to the stable revision, and shares ``p`` and ``q`` of bad ones, a block
counts ``p - q`` with the weight ``n m / (n + m)`` of Mantel and Haenszel. The sum of the weights is the number of
*effective requests*: while the candidate has a small weight, about that of the requests to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pydantic import Field

from shipctl.records import Record
from shipctl.release.metrics import Samples

BLOCK_SECONDS = 1.0
"""Length of a block: long enough for some requests, short enough for ten of them in one measurement."""
MIN_BLOCKS = 10
"""Blocks below which nothing is concluded, for the variance between them is not known."""
MIN_WINDOWS = 2
"""The same where a provider does not tell the times of errors, so that a whole window is one block."""
BATCHES = 64
"""Batches that are kept; when there are more, neighbours are added up, and batches are twice as long from then on."""


class Counts(NamedTuple):
    """Bad requests and all requests in a block, of the candidate and of the stable revision (0 without one)."""

    bad: int
    requests: int
    stable_bad: int = 0
    stable_requests: int = 0


class Weighted(NamedTuple):
    """What a block says: a weighted difference, or the bad requests of one revision by itself."""

    weight: float
    total: float
    own: float
    """The candidate's part of the variance: the squared weight over its requests."""


class Batch(NamedTuple):
    """Sums over some neighbouring blocks."""

    weight: float
    total: float


class Track(Record):
    """The blocks of a release from its beginning until now."""

    width: int = Field(default=1, ge=1, description="Blocks in a full batch.")
    batches: tuple[Batch, ...] = Field(default=(), description="Oldest first; the last one may not be full.")
    last: int = Field(default=0, ge=0, description="Blocks in the last batch.")
    blocks: int = Field(default=0, ge=0, description="Blocks in all of them.")
    own: float = Field(default=0.0, ge=0, description="Sum of the candidate's parts.")

    @property
    def weight(self) -> float:
        """Effective requests."""
        return sum(batch.weight for batch in self.batches)

    @property
    def mean(self) -> float:
        """The weighted mean; 0 while there is nothing."""
        weight = self.weight
        return sum(batch.total for batch in self.batches) / weight if weight else 0.0

    def extended(self, blocks: Sequence[Weighted]) -> Track:
        """Return the track with more blocks, in the order of time."""
        batches, width, last, own = list(self.batches), self.width, self.last, self.own
        for block in blocks:
            if batches and last < width:
                batches[-1] = Batch(batches[-1].weight + block.weight, batches[-1].total + block.total)
                last += 1
            else:
                if len(batches) == BATCHES:
                    pairs = zip(batches[::2], batches[1::2], strict=True)
                    batches = [Batch(a.weight + b.weight, a.total + b.total) for a, b in pairs]
                    width *= 2
                batches.append(Batch(block.weight, block.total))
                last = 1
            own += block.own
        count = self.blocks + len(blocks)
        return Track(width=width, batches=tuple(batches), last=last, blocks=count, own=own)


def weighted(counts: Sequence[Counts], *, alone: bool) -> list[Weighted]:
    """Return what the blocks say that say anything: of the candidate by itself, or of the difference."""
    if alone:
        return [
            Weighted(float(block.requests), float(block.bad), float(block.requests))
            for block in counts
            if block.requests
        ]
    found = []
    for bad, requests, stable_bad, stable_requests in counts:
        if requests and stable_requests:
            weight = requests * stable_requests / (requests + stable_requests)
            difference = bad / requests - stable_bad / stable_requests
            found.append(Weighted(weight, weight * difference, weight * weight / requests))
    return found


class Window(NamedTuple):
    """One window of one revision, block by block."""

    errors: tuple[tuple[int, int], ...]
    """Failed requests, all requests."""
    durations: tuple[tuple[float, ...], ...]

    def slow(self, threshold: float) -> list[tuple[int, int]]:
        """Return per block how many took longer than ``threshold`` seconds, and how many there are."""
        return [(sum(value > threshold for value in block), len(block)) for block in self.durations]


def pieces(samples: Samples, seconds: float) -> int:
    """Return into how many blocks of about ``seconds`` a window is cut."""
    return max(1, round((samples.until - samples.since) / seconds))


def cut(samples: Samples, count: int, *, whole: bool = False) -> Window:
    """Cut a window into ``count`` blocks of equal length.

    Where the times of answers are not known they are taken to be spread evenly, in the order they came. Where those of
    errors are not known, or ``whole`` says so, all requests count for them in the first block, because errors come in
    bursts.
    """
    durations = samples.durations or ()
    places = _places(samples, samples.times, count) or [
        at * count // len(durations) for at in range(len(durations))
    ]
    slots: list[list[float]] = [[] for _ in range(count)]
    for place, value in zip(places, durations, strict=True):
        slots[place].append(value)
    answered = tuple(tuple(slot) for slot in slots)
    if whole or not tells_errors(samples):
        blank = ((0, 0),) * (count - 1)
        return Window(((samples.errors, samples.requests), *blank), answered)
    failed = [0] * count
    for place in _places(samples, samples.failed, count) or []:
        failed[place] += 1
    return Window(tuple(zip(failed, _requests(samples, answered, failed), strict=True)), answered)


def tells_errors(samples: Samples) -> bool:
    """Whether it is known when each of the errors happened, if there were any."""
    return samples.errors == 0 or (samples.failed is not None and len(samples.failed) == samples.errors)


def _places(samples: Samples, times: Sequence[float] | None, count: int) -> list[int] | None:
    """Return the block of each time; what ended at the very border of the window belongs to it."""
    if times is None:
        return None
    scale = count / ((samples.until - samples.since) or 1.0)
    return [min(max(int((time - samples.since) * scale), 0), count - 1) for time in times]


def _requests(samples: Samples, answered: Sequence[Sequence[float]], failed: Sequence[int]) -> list[int]:
    """Return the requests of each block. Those without a duration are failures, as far as there are that many."""
    known = [len(block) for block in answered]
    missing = max(0, samples.requests - sum(known))
    failures = _spread(min(missing, samples.errors), failed)
    others = _spread(missing - min(missing, samples.errors), known)
    together = zip(known, failures, others, failed, strict=True)
    return [max(one + two + three, bad) for one, two, three, bad in together]


def _spread(amount: int, weights: Sequence[int]) -> list[int]:
    """Return whole numbers that add up to ``amount``, in proportion to ``weights``; evenly if these are all 0."""
    parts = weights if any(weights) else [1] * len(weights)
    whole, before, given = sum(parts), 0, []
    for part in parts:
        given.append(amount * (before + part) // whole - amount * before // whole)
        before += part
    return given
