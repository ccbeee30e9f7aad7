"""A/B tests: whether the candidate is better by a number that was chosen before, and nothing else gets worse.

Both revisions serve side by side, whoever asks stays with one of them, and the difference has a confidence interval
that may be looked at as often as one likes (:mod:`shipctl.release.analysis.sequence`). The test is over when the
interval excludes 0, or when it lies within plus and minus the smallest difference that matters.

Requests of one user, who stays with one revision, have something in common. What of that changes within minutes is in
the variance between blocks of time; a lasting difference between few heavy users is not: with fewer than some hundred
users in each part, a user's mean has to be the value that is tested.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydantic import Field

from shipctl.records import Record
from shipctl.release.analysis.blocks import BLOCK_SECONDS, MIN_BLOCKS, cut, pieces
from shipctl.release.analysis.judge import bounded, faults_of
from shipctl.release.analysis.state import AnalysisState, extended
from shipctl.release.analysis.text import percent, points
from shipctl.release.analysis.values import Effect
from shipctl.release.metrics import Samples
from shipctl.release.rollout import Measurement
from shipctl.release.strategy import AbOptions, AnalysisOptions, Metric
from shipctl.stages.verdicts import Outcome, Verdict, worst

OVERALL = "all"
"""The segment of all requests; where it is not given, it is the sum of those that are."""
LATENCY = "latency"
ERRORS = "error_rate"
_LEAST = 100
"""Requests of each revision below which a test says nothing."""


class AbState(Record):
    """What an A/B test remembers between two measurements."""

    until: float | None = Field(default=None, description="End of the newest window that was added.")
    segments: dict[str, AnalysisState] = Field(default_factory=dict, description="Errors and slow requests.")
    values: dict[str, dict[str, Effect]] = Field(
        default_factory=dict, description="Further metrics by name, and their segments."
    )


class Values(NamedTuple):
    """A further metric, with a value for each request in place of a duration."""

    metric: Metric
    stable: Mapping[str, Samples]
    candidate: Mapping[str, Samples]

    @property
    def more_is_better(self) -> bool:
        """Whether it has a least value that passes."""
        return self.metric.min is not None


class Found(NamedTuple):
    """The difference in a number, as what is better if negative, in units of the smallest effect's."""

    name: str
    effect: float
    lower: float
    upper: float
    enough: bool
    relative: bool

    def __str__(self) -> str:
        show = _relative if self.relative else points
        return f"{show(self.effect)} (between {show(self.lower)} and {show(self.upper)})"


def judge_ab(
    options: AbOptions,
    state: AbState,
    *,
    stable: Mapping[str, Samples],
    candidate: Mapping[str, Samples],
    values: Mapping[str, Values] | None = None,
    extra: Sequence[tuple[Metric, Samples | None]] = (),
    analysis: AnalysisOptions | None = None,
    block: float = BLOCK_SECONDS,
) -> tuple[AbState, Measurement]:
    """Judge one more window of an A/B test; return what to remember, and what came of it.

    ``stable`` and ``candidate`` have samples by segment, :data:`OVERALL` for all requests. ``values`` are further
    metrics by name: the goal if it is one of them, the rest guardrails. ``extra`` has the candidate's number of each
    metric that is neither, which has to be within its bounds. ``analysis`` has the tolerances of guardrails.

    The goal passes when it is better, or no different by an effect that matters; it fails when it is worse; else it is
    inconclusive. The test is over once the goal is decided and nothing else is in the way. Errors and slow requests,
    as far as they are not the goal, and metrics with `guardrail` fail when they are worse by more than is tolerated,
    and decide nothing else. A segment for which the goal is worse makes the whole inconclusive. The goal has an alpha
    for itself; guardrails share another one, and so do segments.
    """
    values, analysis = values or {}, analysis or AnalysisOptions()
    own, other = with_overall(candidate), with_overall(stable)
    everything = [own[OVERALL], other[OVERALL]]
    wrong = [fault for samples in everything for fault in faults_of(state.until, samples, samples.revision)]
    wrong += [f"a value of {name} is no number" for name, value in values.items() if not _finite(value)]
    if not wrong and everything[0].until > (state.until if state.until is not None else -math.inf):
        state = _extended(analysis, state, own, other, values, block)
    verdicts = [_samples(own[OVERALL], other[OVERALL], wrong)]
    alpha = min(max(1 - options.confidence, 1e-6), 0.5)
    segments = sorted(name for name in state.segments if name != OVERALL)
    goal, verdict = _goal(options, state, values, alpha)
    verdicts.append(verdict)
    verdicts += _segments(options, state, values, segments, alpha)
    verdicts += _guardrails(options, state, values, analysis, alpha)
    verdicts += [verdict for metric, samples in extra for verdict in bounded(metric, samples)]
    outcome = worst(verdict.outcome for verdict in verdicts)
    limit = float(options.minimumEffect)
    over = goal is not None and goal.enough and (goal.lower > 0 or goal.upper < 0 or _within(goal, limit))
    reasons = [verdict.message for verdict in verdicts if verdict.outcome is outcome]
    return state, Measurement(
        outcome=outcome,
        until=everything[0].until,
        verdicts=tuple(verdicts),
        summary="; ".join(reasons) if outcome is not Outcome.PASS else verdict.message,
        conclusive=over and outcome in {Outcome.PASS, Outcome.FAIL},
        analysis=state.model_dump(mode="json"),
    )


def with_overall(segments: Mapping[str, Samples]) -> dict[str, Samples]:
    """Return samples by segment with those of all requests among them.

    :raises ValueError: if there are none
    """
    if not segments:
        message = "an A/B test needs samples of each revision"
        raise ValueError(message)
    if OVERALL in segments:
        return dict(segments)
    parts = list(segments.values())
    return {**segments, OVERALL: _merged(parts)}


def _merged(parts: list[Samples]) -> Samples:
    whole = all(part.durations is not None and part.times is not None for part in parts)
    pairs = sorted(
        pair for part in parts if whole for pair in zip(part.times or (), part.durations or (), strict=True)
    )
    told = all(part.failed is not None or not part.errors for part in parts)
    return parts[0].model_copy(
        update={
            "requests": sum(part.requests for part in parts),
            "errors": sum(part.errors for part in parts),
            "durations": tuple(value for _, value in pairs) if whole else None,
            "times": tuple(time for time, _ in pairs) if whole else None,
            "failed": tuple(time for part in parts for time in part.failed or ()) if told else None,
            "coverage": min(part.coverage for part in parts),
        }
    )


def _extended(
    analysis: AnalysisOptions,
    state: AbState,
    own: Mapping[str, Samples],
    other: Mapping[str, Samples],
    values: Mapping[str, Values],
    seconds: float,
) -> AbState:
    segments = dict(state.segments)
    for name in own.keys() & other.keys():
        segments[name] = extended(
            analysis, {}, segments.get(name, AnalysisState()), stable=other[name], candidate=own[name],
            at_full=False, seconds=seconds,
        )  # fmt: skip
    effects = {name: dict(known) for name, known in state.values.items()}
    for name, value in values.items():
        mine, theirs = with_overall(value.candidate), with_overall(value.stable)
        for segment in mine.keys() & theirs.keys():
            if mine[segment].durations is None or theirs[segment].durations is None:
                continue
            known = effects.setdefault(name, {}).get(segment, Effect())
            count = pieces(mine[segment], seconds)
            window = cut(mine[segment], count), cut(theirs[segment], count)
            effects[name][segment] = known.extended(*window)
    return AbState(until=own[OVERALL].until, segments=segments, values=effects)


def _samples(candidate: Samples, stable: Samples, wrong: list[str]) -> Verdict:
    outcome, message = Outcome.INCONCLUSIVE, ""
    coverage = min(candidate.coverage, stable.coverage)
    if wrong:
        outcome, message = Outcome.ERROR, "; ".join(wrong)
    elif not candidate.requests or not stable.requests:
        message = (
            f"{candidate.requests:,} requests to the candidate, {stable.requests:,} to the stable revision"
        )
    elif coverage < 1:
        message = f"the provider vouches for {percent(coverage)} of the window only"
    else:
        outcome, message = Outcome.PASS, f"{candidate.requests:,} and {stable.requests:,} requests"
    return Verdict(gate="samples", outcome=outcome, message=message)


def _found(
    name: str, state: AbState, segment: str, values: Mapping[str, Values], alpha: float
) -> Found | None:
    """Return the difference in a number, None if nothing is known of it."""
    if name in {LATENCY, ERRORS}:
        known = state.segments.get(segment)
        if known is None:
            return None
        evidence = known.errors if name == ERRORS else known.slow.apart
        least = min(evidence.candidate.requests, evidence.stable.requests)
        enough = least >= _LEAST and evidence.track.blocks >= MIN_BLOCKS
        return Found(name, evidence.track.mean, *evidence.interval(alpha), enough, relative=False)
    effect = state.values.get(name, {}).get(segment)
    if effect is None or name not in values:
        return None
    scale = abs(effect.stable.mean) or math.inf
    sign = -1.0 if values[name].more_is_better else 1.0
    enough = min(effect.candidate.count, effect.stable.count) >= _LEAST and effect.track.blocks >= MIN_BLOCKS
    ends = sorted(sign * end / scale for end in effect.interval(alpha))
    enough = enough and math.isfinite(scale) and all(map(math.isfinite, ends))
    return Found(name, sign * effect.track.mean / scale, ends[0], ends[1], enough, relative=True)


def _goal(
    options: AbOptions, state: AbState, values: Mapping[str, Values], alpha: float
) -> tuple[Found | None, Verdict]:
    gate, name, limit = f"goal {options.goal}", options.goal, float(options.minimumEffect)
    found = _found(name, state, OVERALL, values, alpha)
    if found is None:
        message = f"{name} is missing: no provider told it request by request"
        return None, Verdict(gate=gate, outcome=Outcome.ERROR, message=message, metric=name)
    if not found.enough:
        outcome, message = Outcome.INCONCLUSIVE, f"{name}: too few requests to say anything"
    elif _within(found, limit):
        outcome, message = Outcome.PASS, f"{name}: no difference that matters, {found}"
    elif found.lower > 0:
        outcome, message = Outcome.FAIL, f"{name}: the candidate is worse, {found}"
    elif found.upper < 0:
        outcome, message = Outcome.PASS, f"{name}: the candidate is better, {found}"
    else:
        outcome, message = Outcome.INCONCLUSIVE, f"{name}: not decided yet, {found}"
    value = found.effect if math.isfinite(found.effect) else None
    return found, Verdict(
        gate=gate, outcome=outcome, message=message, metric=name, value=value, comparison="<=", bound=limit
    )


def _segments(
    options: AbOptions, state: AbState, values: Mapping[str, Values], segments: list[str], alpha: float
) -> list[Verdict]:
    found = []
    for segment in segments:
        difference = _found(options.goal, state, segment, values, alpha / len(segments))
        gate = f"goal {options.goal}, segment {segment}"
        if difference is None or not difference.enough:
            outcome, message = Outcome.PASS, f"segment {segment}: too few requests to say anything"
        elif difference.lower > 0 and not _within(difference, float(options.minimumEffect)):
            outcome, message = (
                Outcome.INCONCLUSIVE,
                f"segment {segment}: the candidate is worse, {difference}; look whether that may be",
            )
        else:
            outcome, message = Outcome.PASS, f"segment {segment}: {difference}"
        found.append(Verdict(gate=gate, outcome=outcome, message=message, metric=options.goal))
    return found


def _guardrails(
    options: AbOptions,
    state: AbState,
    values: Mapping[str, Values],
    analysis: AnalysisOptions,
    alpha: float,
) -> list[Verdict]:
    further = [name for name, value in values.items() if value.metric.guardrail and name != options.goal]
    names = [name for name in (ERRORS, LATENCY) if name != options.goal]
    share = alpha / (len(names) + len(further))
    known = state.segments.get(OVERALL, AnalysisState())
    found = []
    if known.slow.threshold is None and not known.slow.calibration:
        names = [name for name in names if name != LATENCY]  # a source of counts alone
    for name in names:
        evidence = known.errors if name == ERRORS else known.slow.tolerated
        tolerance = float(analysis.errorTolerance) if name == ERRORS else 0.0
        enough = evidence.track.blocks >= MIN_BLOCKS and evidence.candidate.requests >= analysis.minSamples
        shown = points((evidence if name == ERRORS else known.slow.apart).track.mean)
        worse = evidence.bounds(share).least > tolerance
        found.append(_guardrail(name, shown, enough=enough, worse=worse))
    for name in further:
        difference = _found(name, state, OVERALL, values, share)
        if difference is None:
            message = f"guardrail {name} is missing: no provider told it request by request"
            found.append(
                Verdict(gate=f"guardrail {name}", outcome=Outcome.ERROR, message=message, metric=name)
            )
        else:
            worse = difference.lower > float(options.minimumEffect)
            found.append(_guardrail(name, str(difference), enough=difference.enough, worse=worse))
    return found


def _guardrail(name: str, shown: str, *, enough: bool, worse: bool) -> Verdict:
    if not enough:
        outcome, message = Outcome.INCONCLUSIVE, f"{name}: too few requests to say anything"
    elif worse:
        outcome, message = Outcome.FAIL, f"{name}: {shown}, more than is tolerated"
    else:
        outcome, message = Outcome.PASS, f"{name}: {shown}, not shown to be worse"
    return Verdict(gate=f"guardrail {name}", outcome=outcome, message=message, metric=name)


def _finite(value: Values) -> bool:
    samples = (*value.stable.values(), *value.candidate.values())
    return all(math.isfinite(number) for one in samples for number in one.durations or ())


def _within(found: Found, limit: float) -> bool:
    return -limit < found.lower and found.upper < limit


def _relative(difference: float) -> str:
    return f"{100 * difference:+.2g} %"
