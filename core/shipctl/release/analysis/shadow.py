"""Shadow releases: whether the candidate answers copies of real requests as the stable revision does.

Two shares are judged: that of answers which are out of bounds (:class:`~shipctl.release.strategy.ShadowOptions`),
which includes those that the candidate alone failed to give, and the mean share of an answer's samples that have
another class. Both are means of observations ``x`` between 0 and 1, one per answer, and are tested against the share
``p`` that is allowed by betting on the next observation (I. Waudby-Smith, A. Ramdas, "Estimating means of bounded
random variables by betting", Journal of the Royal Statistical Society B 86(1), 2024, arXiv:2010.09686; for
observations of 0 and 1 this is H. Robbins' mixture of likelihood ratios, Annals of Mathematical Statistics 41(5),
1970). Somebody who thinks that the share is ``q`` wins the factor

    (q / p)^x · ((1 - q) / (1 - p))^(1 - x)

which is convex in ``x``, so that its expectation is at most what it is for ``x`` of 0 and 1 with the same mean ``m``:
``1 + (q - p)(m - p) / (p (1 - p))``. For ``q > p`` that is at most 1 if ``m <= p``, and for ``q < p`` if ``m >= p``.
So the mean capital of gamblers with different ``q`` on one side of ``p`` exceeds ``1 / alpha`` at any time with
probability ``alpha`` at most (Ville's inequality) if the share is on the other side, however often one looks, and
without any assumption on distributions. It depends on nothing but the sum and the number of observations. The bounds
that are shown are those ``p`` at which the capital is ``1 / alpha``.

What is assumed: given everything before, an answer differs with probability ``p`` at most. One asker who sends the
same request over and over, or replayed samples that come round again, make answers that are no news; then the numbers
are about what was asked, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

from pydantic import Field

from shipctl.records import Record
from shipctl.release.analysis.sequence import spent_at
from shipctl.release.analysis.text import percent
from shipctl.release.rollout import Measurement
from shipctl.release.strategy import ShadowOptions
from shipctl.stages.verdicts import Outcome, Verdict, worst

ALPHA = 0.05
"""Probability of failing an equal candidate, and that of passing one that is not, over the whole release."""
LEAST = 30
"""Answers below which a candidate does not fail, unless fewer are asked for: one asker can send so many at once."""
_GAMBLERS = 48
_NEWEST = 0.2
"""Part of alpha that is for the newest window alone: a candidate that only just broke is not saved by its past."""
_HALVINGS = 40
_FARTHEST = 7.0
"""Log odds of the largest share that somebody bets on: 99.9 %."""
_ENOUGH = 600.0
"""Logarithm of a capital that is surely enough; more would not fit into a number."""
_SLACK = 1e-9
_REASONS_SHOWN = 3
_SAME = 1e-6


class Comparisons(Record):
    """What came of the copies of one window. Whoever counts knows the bounds."""

    since: float = Field(description="Begin of the window, seconds since the epoch.")
    until: float = Field(description="End of the window.")
    compared: int = Field(
        default=0, ge=0, description="Answers of the stable revision to which the candidate had to give one."
    )
    differing: int = Field(
        default=0,
        ge=0,
        description="Of these, how many were out of bounds, or failed on the candidate alone.",
    )
    failed: int = Field(default=0, ge=0, description="Of these, how many failed on the candidate alone.")
    classed: int = Field(
        default=0, ge=0, description="Pairs of answers with samples of which each has a class."
    )
    samples: int = Field(default=0, ge=0, description="Their samples.")
    agreeing: int = Field(default=0, ge=0, description="Of these, how many have the same class.")
    disagreement: float = Field(
        default=0.0, ge=0, description="Sum over those answers of the share of samples with another class."
    )
    unusable: int = Field(
        default=0, ge=0, description="Copies that the stable revision failed itself: no evidence of anything."
    )
    dropped: int = Field(default=0, ge=0, description="Copies that came faster than they could be asked.")
    skipped: int = Field(default=0, ge=0, description="Copies of a kind that cannot be asked again.")
    reasons: dict[str, int] = Field(
        default_factory=dict, description="Why answers differ, and how many do so."
    )
    max_abs: float | None = Field(default=None, ge=0, description="Largest absolute difference of a value.")
    max_rel: float | None = Field(
        default=None, ge=0, description="Largest difference as a share of its tensor's largest magnitude."
    )
    coverage: float = Field(default=1.0, ge=0, le=1, description="Share of the window that is known.")


class ShadowState(Record):
    """What the judgement remembers between two windows. Never begun anew within a release."""

    until: float | None = Field(default=None, description="End of the newest window that was added.")
    total: Comparisons = Field(
        default_factory=lambda: Comparisons(since=0.0, until=0.0), description="All windows together."
    )
    looks: int = Field(default=0, ge=0, description="How often a window was looked at by itself.")
    broken: str | None = Field(
        default=None, description="What was seen of one window alone and does not go away by itself."
    )


class _Known(NamedTuple):
    """A share, with what it is at least and at most at this and every other look."""

    value: float
    lower: float
    upper: float


def judge_shadow(
    options: ShadowOptions, state: ShadowState, window: Comparisons
) -> tuple[ShadowState, Measurement]:
    """Judge one more window; return what to remember, and what came of it.

    **Fail**: an allowed share is exceeded for sure, by all answers so far (30 at least) or by those of this window
    alone. **Pass**: enough were compared, and for each share it is sure that no more than what is allowed differ;
    where nothing at all may differ, that nothing did. Else **Inconclusive**; and **Error** for numbers that make no
    sense and where no bound applies. The alpha of failing is shared out among what can fail; passing takes all of
    them, so each has the whole. `conclusive` says that the test is over: it passed, or failed.
    """
    faults = _faults(state, window)
    if not faults and (state.until is None or window.until > state.until):
        state = _extended(options, state, window)
    verdicts = [_enough(options, state.total, window, faults)]
    questions = _questions(options)
    for name, allowed in questions.items():
        verdict = _judged(options, state, name, allowed, ALPHA * (1 - _NEWEST) / len(questions))
        verdicts += [verdict] if verdict is not None else []
    if state.broken is not None and all(verdict.outcome is not Outcome.FAIL for verdict in verdicts):
        verdicts.append(Verdict(gate="newest answers", outcome=Outcome.FAIL, message=state.broken))
    if (missing := _unbounded(options, state.total)) is not None:
        verdicts.append(Verdict(gate="bounds", outcome=Outcome.ERROR, message=missing))
    outcome = worst(verdict.outcome for verdict in verdicts)
    reasons = [verdict.message for verdict in verdicts if verdict.outcome is outcome]
    passed = [verdict.message for verdict in verdicts[1:]]
    return state, Measurement(
        outcome=outcome,
        until=window.until,
        verdicts=tuple(verdicts),
        summary="; ".join(passed if outcome is Outcome.PASS else reasons),
        conclusive=outcome in {Outcome.PASS, Outcome.FAIL},
        analysis=state.model_dump(mode="json"),
    )


def needed(allowed: float) -> float:
    """Return how many answers it takes to pass if none of them differs; infinite if nothing may differ."""
    if not 0 < allowed < 1:
        return math.inf if allowed <= 0 else 0
    count = 1
    while _capital_below(0.0, count, allowed) < 1 / ALPHA:
        count = math.ceil(count * 1.01)
    return count


# -- the windows --------------------------------------------------------------------------------------------


def _faults(state: ShadowState, window: Comparisons) -> list[str]:
    found = {
        "the window ends before it begins": window.until < window.since,
        "the window begins before the end of the last one": state.until is not None
        and window.since < state.until - _SAME < window.until - _SAME,
        f"{window.differing} of {window.compared} answers differ": window.differing > window.compared,
        f"{window.failed} of {window.differing} answers that differ failed": window.failed > window.differing,
        f"{window.classed} of {window.compared} answers have classes": window.classed
        > window.compared - window.failed,
        f"{window.agreeing} of {window.samples} samples agree": window.agreeing > window.samples,
        f"{window.samples} samples in {window.classed} answers": window.samples < window.classed,
        f"a disagreement of {window.disagreement:g} in {window.classed} answers": not (
            0 <= window.disagreement <= window.classed + _SLACK
        ),
    }
    return [f"the comparisons make no sense: {fault}" for fault, is_so in found.items() if is_so]


def _extended(options: ShadowOptions, state: ShadowState, window: Comparisons) -> ShadowState:
    total = state.total
    first = state.until is None
    counts = ("compared", "differing", "failed", "classed", "samples", "agreeing", "disagreement",
              "unusable", "dropped", "skipped")  # fmt: skip
    update = {name: getattr(total, name) + getattr(window, name) for name in counts}
    reasons = dict(total.reasons)
    for reason, count in window.reasons.items():
        reasons[reason] = reasons.get(reason, 0) + count
    worst_abs = [value for value in (total.max_abs, window.max_abs) if value is not None]
    worst_rel = [value for value in (total.max_rel, window.max_rel) if value is not None]
    merged = Comparisons(
        since=window.since if first else total.since,
        until=window.until,
        reasons=reasons,
        max_abs=max(worst_abs, default=None),
        max_rel=max(worst_rel, default=None),
        **update,
    )
    looks, broken = state.looks, state.broken
    if window.compared >= min(LEAST, options.comparisons):
        looks += 1
        broken = _broken(options, window, spent_at(ALPHA * _NEWEST, looks)) or broken
    return ShadowState(until=window.until, total=merged, looks=looks, broken=broken)


def _broken(options: ShadowOptions, window: Comparisons, alpha: float) -> str | None:
    """Say what one window proves by itself."""
    questions = _questions(options)
    for name, allowed in questions.items():
        bad, count = _counted(window, name)
        if count and 0 < allowed < 1 and _capital_above(bad, count, allowed) >= len(questions) / alpha:
            return f"{_said(name, window)} lately, {percent(allowed)} may{_why(window, name)}"
    return None


# -- the questions ------------------------------------------------------------------------------------------


def _questions(options: ShadowOptions) -> dict[str, float]:
    """Return what is asked, and the share that is allowed."""
    asked = {"differing answers": float(options.differing)}
    if options.top1Agreement is not None:
        asked["top-1 agreement"] = max(0.0, 1 - float(options.top1Agreement))
    return asked


def _counted(known: Comparisons, name: str) -> tuple[float, int]:
    if name == "differing answers":
        return float(known.differing), known.compared
    return known.disagreement, known.classed


def _judged(
    options: ShadowOptions, state: ShadowState, name: str, allowed: float, alpha: float
) -> Verdict | None:
    """Judge one share; None where there is nothing that has it."""
    total = state.total
    bad, count = _counted(total, name)
    if name != "differing answers" and not count and total.compared > total.failed:
        return None  # no output has classes: the other question is about all of them
    share = _known(bad, count, alpha)
    said = _said(name, total)
    least = min(LEAST, options.comparisons)
    limit = f"{percent(allowed)} may"
    if not count:
        outcome, message = Outcome.INCONCLUSIVE, "nothing was compared yet"
    elif bad and (allowed <= 0 or (count >= least and share.lower > allowed)):
        outcome, message = Outcome.FAIL, f"{said}, {limit}{_why(total, name)}"
    elif share.upper <= allowed or allowed >= 1 or allowed <= 0:
        outcome, message = Outcome.PASS, f"{said}, {limit}"
    else:
        outcome = Outcome.INCONCLUSIVE
        message = f"{said}, which can mean up to {percent(share.upper)}, {limit}{_why(total, name)}"
    return Verdict(
        gate=name, outcome=outcome, message=message, metric="disagreement" if "top" in name else "differing",
        value=share.value if count else None, comparison="<=", bound=allowed,
    )  # fmt: skip


def _said(name: str, known: Comparisons) -> str:
    if name == "differing answers":
        share = known.differing / known.compared if known.compared else 0.0
        return f"{known.differing:,} of {known.compared:,} answers differ ({percent(share)})"
    share = known.disagreement / known.classed if known.classed else 0.0
    wrong = known.samples - known.agreeing
    return f"{wrong:,} of {known.samples:,} samples have another class ({percent(share)})"


def _why(known: Comparisons, name: str) -> str:
    if name != "differing answers" or not known.reasons:
        return ""
    most = sorted(known.reasons.items(), key=lambda item: (-item[1], item[0]))[:_REASONS_SHOWN]
    return ": " + ", ".join(f"{count:,} × {reason}" for reason, count in most)


def _enough(options: ShadowOptions, total: Comparisons, window: Comparisons, faults: list[str]) -> Verdict:
    """Judge whether there is enough to judge by."""
    outcome, message = Outcome.INCONCLUSIVE, ""
    if faults:
        outcome, message = Outcome.ERROR, "; ".join(faults)
    elif not total.compared and total.unusable:
        message = f"the stable revision failed all {total.unusable:,} copies itself, so that they say nothing"
    elif not total.compared and total.dropped + total.skipped:
        message = f"no copy could be compared: {_left_out(total)}"
    elif not total.compared:
        message = "no copy of a request arrived; send some, or let `replay` do it"
    elif total.compared < options.comparisons:
        message = f"{total.compared:,} answers were compared so far, {options.comparisons:,} are asked for"
    elif window.coverage < 1:
        message = f"only {percent(window.coverage)} of the window's comparisons are known"
    else:
        aside = f"; {_left_out(total)}" if total.unusable + total.dropped + total.skipped else ""
        outcome, message = Outcome.PASS, f"{total.compared:,} answers were compared{aside}"
    return Verdict(
        gate="comparisons", outcome=outcome, message=message, metric="compared", value=float(total.compared),
        comparison=">=", bound=float(options.comparisons),
    )  # fmt: skip


def _left_out(total: Comparisons) -> str:
    parts: Mapping[str, int] = {
        "that the stable revision failed itself": total.unusable,
        "that came too fast": total.dropped,
        "of a kind that cannot be asked again": total.skipped,
    }
    return "left out are " + ", ".join(f"{count:,} {why}" for why, count in parts.items() if count)


def _unbounded(options: ShadowOptions, total: Comparisons) -> str | None:
    """Say why nothing was bounded: an answer that is only there is no answer that agrees."""
    if options.maxAbsError is not None or options.maxRelError is not None:
        return None
    if options.top1Agreement is None:
        return "no bound is set; set one of maxAbsError, maxRelError, top1Agreement"
    if total.compared > total.failed and not total.classed:
        return "no output has classes, so that top1Agreement bounds nothing; set maxAbsError or maxRelError"
    return None


# -- the bets -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _known(bad: float, count: int, alpha: float) -> _Known:
    """Return a share with its bounds: the lower one with ``alpha``, the upper one with :data:`ALPHA`."""
    if not count:
        return _Known(0.0, 0.0, 1.0)
    share = min(1.0, bad / count)
    lower = _halved(0.0, share, lambda p: _capital_above(bad, count, p) >= 1 / alpha)
    upper = 1 - _halved(0.0, 1 - share, lambda rest: _capital_below(bad, count, 1 - rest) >= 1 / ALPHA)
    return _Known(share, lower, upper)


def _halved(low: float, high: float, ruled_out: Callable[[float], bool]) -> float:
    """Return the largest value that is ruled out, where everything below it is; ``low`` if none is."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if ruled_out(middle) else (low, middle)
    return low


def _capital_above(bad: float, count: int, p: float) -> float:
    """Return the mean capital of those who think that the share is larger than ``p``, evenly spread in log odds."""
    if not 0 < p < 1:
        return math.inf if p <= 0 < bad else 0.0
    odds = math.log(p / (1 - p))
    step = (_FARTHEST - min(odds, _FARTHEST - 1)) / _GAMBLERS
    gains = [_gain(bad, count, p, _share(odds + step * place)) for place in range(1, _GAMBLERS + 1)]
    return _mean(gains)


def _capital_below(bad: float, count: int, p: float) -> float:
    """Return the mean capital of those who think that it is smaller; half of them think that nothing differs."""
    if not 0 < p < 1:
        return math.inf if p >= 1 and bad < count else 0.0
    gains = [_gain(bad, count, p, p * place / _GAMBLERS) for place in range(1, _GAMBLERS)]
    return (_mean([_gain(bad, count, p, 0.0)]) + _mean(gains)) / 2


def _gain(bad: float, count: int, p: float, q: float) -> float:
    """Return the logarithm of what somebody has who thinks that the share is ``q``."""
    if q <= 0:
        return -math.inf if bad > 0 else -count * math.log1p(-p)
    return bad * math.log(q / p) + (count - bad) * (math.log1p(-q) - math.log1p(-p))


def _mean(gains: list[float]) -> float:
    return sum(math.exp(min(gain, _ENOUGH)) for gain in gains) / len(gains)


def _share(odds: float) -> float:
    return 1 / (1 + math.exp(-odds))
