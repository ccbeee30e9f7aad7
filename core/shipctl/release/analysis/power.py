"""How many requests it takes until a worse candidate shows, or an equal one passes: said before a release begins.

By the same formulas as the verdicts, for independent requests and latencies that are lognormal with a p95 of 2.3 times
the median. ``benchmarks/analysis.py`` holds them against simulated releases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from shipctl.release.analysis.blocks import BLOCK_SECONDS, MIN_BLOCKS
from shipctl.release.analysis.evidence import CAUTION, NEWEST, PSEUDO_EVENTS
from shipctl.release.analysis.judge import Alpha
from shipctl.release.analysis.sequence import radius
from shipctl.release.analysis.state import SLOW
from shipctl.release.analysis.text import duration, points, requests
from shipctl.release.strategy import AnalysisOptions

SPREAD = 0.5
"""Standard deviation of log-latency that is assumed: p95 is then 2.3 times the median."""
BASE_ERRORS = 0.001
"""Share of errors of the stable revision that is assumed."""
DEPENDENCE = 1.3
"""By how much the estimated variance is larger than that of independent requests, when these are independent."""
PER_BLOCK = 10.0
"""Requests to the candidate in a block of time, where the traffic is not known."""
SURE = 0.9
"""The chance that is meant where a number of requests is said."""
_MOST = 1e8
_WHOLE = 100
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Question:
    """A difference of shares between the candidate and what it is compared with."""

    label: str
    candidate: float
    against: float
    tolerance: float
    alpha: float

    def chance(self, count: float, share: float = 0.0, per_block: float = PER_BLOCK) -> float:
        """Return the chance that the difference shows in ``count`` requests to the candidate.

        ``share`` of all requests go to the candidate, ``per_block`` of them in each block of time. The sign of
        ``candidate - against - tolerance`` says which bound has to clear the tolerance, the lower one or the upper.
        """
        net = self.candidate - self.against - self.tolerance
        weight = count * (1 - share)
        smoothed = (self.candidate * count + PSEUDO_EVENTS) / (count + 2 * PSEUDO_EVENTS)
        seen = self._variance(smoothed, share) * weight * DEPENDENCE
        blocks = max(count / per_block, MIN_BLOCKS)
        caution = 1 + CAUTION / blocks if net > 0 else 1.0
        sd = math.sqrt(self._variance(self.candidate, share) / weight)
        return _NORMAL.cdf((abs(net) - caution * radius(seen, weight, self.alpha)) / sd)

    def _variance(self, candidate: float, share: float) -> float:
        """Return the variance of a difference, per effective request."""
        return candidate * (1 - candidate) * (1 - share) + self.against * (1 - self.against) * share

    def needed(self, share: float = 0.0, per_block: float = PER_BLOCK) -> float:
        """Return the requests to the candidate after which it shows with the chance :data:`SURE`; infinite if never."""
        return _smallest(lambda count: self.chance(count, share, per_block) >= SURE)


def slower(by: float, threshold: float = SLOW) -> float:
    """Return the share above a quantile of requests that take ``by`` longer than those the quantile is of."""
    return 1 - _NORMAL.cdf(_NORMAL.inv_cdf(threshold) - math.log1p(by) / SPREAD)


def worse(options: AnalysisOptions, slo: Mapping[str, float]) -> list[Question]:
    """Return what the release is to notice: a candidate at the limits."""
    alpha = Alpha(options, slo).compared * (1 - NEWEST)
    tolerated = slower(options.slowTolerance)
    errors = BASE_ERRORS + options.errorLimit
    return [
        Question(
            f"a p95 that is {100 * options.slowLimit:g} % higher",
            slower(options.slowLimit),
            tolerated,
            0.0,
            alpha,
        ),
        Question(
            f"{points(options.errorLimit)} of errors", errors, BASE_ERRORS, options.errorTolerance, alpha
        ),
    ]


def equal(options: AnalysisOptions, slo: Mapping[str, float]) -> list[Question]:
    """Return what has to be ruled out about a candidate that is like the stable revision."""
    alpha = Alpha(options, slo).whole
    limit = slower(options.slowLimit)
    return [
        Question("latency", 1 - SLOW, limit, 0.0, alpha),
        Question("errors", BASE_ERRORS, BASE_ERRORS, options.errorLimit, alpha),
    ]


def plan_lines(
    options: AnalysisOptions,
    slo: Mapping[str, float],
    *,
    rate: float | None,
    weights: Sequence[int],
    pauses: Sequence[float] = (),
) -> list[str]:
    """Say, a line each, what the comparison can notice with the traffic that is expected.

    ``rate`` is in requests per second, ``weights`` are the steps' percentages, ``pauses`` how many seconds each of
    them lasts, where that is known.
    """
    steps = [weight for weight in weights if 0 < weight < _WHOLE]
    if not options.compare or not steps:
        return ["the candidate is not compared with the stable revision: absolute bounds decide alone"]
    share = steps[0] / _WHOLE
    if not rate:
        needed = [(question.label, question.needed(share)) for question in worse(options, slo)]
        lines = [
            f"{label} shows after about {requests(count)} requests to the candidate"
            for label, count in needed
        ]
        return [
            *lines,
            "how long that takes depends on the traffic: say what is expected with `traffic`, such as 200/s",
        ]
    own = rate * share
    where = f"{rate:g}/s × {steps[0]} %"
    lines = []
    for question in worse(options, slo):
        count = question.needed(share, own * BLOCK_SECONDS)
        lines.append(
            f"{question.label} shows after about {requests(count)} requests to the candidate: "
            f"{duration(count / own)} at {where}{_within(question, rate, steps, pauses)}"
        )
    return [*lines, _passing(options, slo, share, own, where)]


def _within(question: Question, rate: float, steps: Sequence[int], pauses: Sequence[float]) -> str:
    """Say how likely it shows before all the traffic is shifted."""
    if not pauses or len(pauses) != len(steps):
        return ""
    seconds, counts = (
        sum(pauses),
        [rate * step / _WHOLE * pause for step, pause in zip(steps, pauses, strict=True)],
    )
    count = sum(counts)
    if count <= 0 or seconds <= 0:
        return ""
    share = sum(one * step for one, step in zip(counts, steps, strict=True)) / count / _WHOLE
    chance = question.chance(count, share, count / seconds * BLOCK_SECONDS)
    if chance >= SURE:
        return ", well before 100 %"
    return f"; in all steps together ({duration(seconds)}) it shows with {100 * chance:.0f} %"


def _passing(options: AnalysisOptions, slo: Mapping[str, float], share: float, own: float, where: str) -> str:
    """Say how long an equal candidate stays inconclusive."""
    count = max(question.needed(share, own * BLOCK_SECONDS) for question in equal(options, slo))
    count = max(count, options.minSamples)
    measurements = math.ceil(count / own / (options.interval or 1.0))
    line = (
        f"an equal candidate passes after about {requests(count)} requests to it: "
        f"{duration(count / own)} at {where}, {measurements} measurement{'s' if measurements != 1 else ''}"
    )
    if measurements - 1 > options.inconclusiveLimit:
        line += (
            f"; it pauses meanwhile, for inconclusiveLimit is {options.inconclusiveLimit}: allow {measurements - 1}, "
            "begin with a larger weight, or let `replay` send more"
        )
    return line


def _smallest(enough: Callable[[float], bool]) -> float:
    low, high = 1.0, 2.0
    while not enough(high):
        low, high = high, high * 2
        if high > _MOST:
            return math.inf
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
