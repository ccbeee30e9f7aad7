"""Says of each measurement of a release whether it passes, fails, or decides nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from shipctl.release.analysis.blocks import BLOCK_SECONDS, MIN_BLOCKS, MIN_WINDOWS, tells_errors
from shipctl.release.analysis.evidence import Bounds, Evidence
from shipctl.release.analysis.sequence import wilson_lower
from shipctl.release.analysis.state import ERRORS, AnalysisState, extended, percentile_of
from shipctl.release.analysis.text import milliseconds, percent, points
from shipctl.release.metrics import Samples
from shipctl.release.rollout import Measurement
from shipctl.release.strategy import AnalysisOptions, Metric
from shipctl.stages.verdicts import Outcome, Verdict, compare, worst

THROUGHPUT = "throughput"
_SMALLEST_ALPHA = 1e-6
_SAME = 1e-6
_UNEVEN = 0.5
_EXPECTED = 20.0
_NO_PAIR = "errors against stable", "slow requests against stable"


def judge(
    options: AnalysisOptions,
    slo: Mapping[str, float],
    state: AnalysisState,
    *,
    stable: Samples | None,
    candidate: Samples,
    extra: Sequence[tuple[Metric, Samples | None]] = (),
    at_full: bool = False,
    block: float = BLOCK_SECONDS,
) -> tuple[AnalysisState, Measurement]:
    """Judge one more window of a release; return what to remember, and what came of it.

    ``slo`` has base units: shares for `error_rate`, seconds for `latency.p95` and the like; `throughput` depends on
    who asks, and is left out. ``stable`` is None for a first release and at 100 %, where only absolute bounds can be
    judged; ``at_full`` says that the candidate has all the traffic, whose bounds are judged anew. ``extra`` has an
    answer of each further metric, None where its provider could not be asked. ``block`` is in seconds.

    **Absolute bounds** are about a share of requests: that of errors, or of those above a latency, of which a bound on
    p95 allows 5 %. Fail: the share's lower bound is above what is allowed. Pass: the share itself is not, for all
    requests so far and (as far as can be told) for those of this window. **Comparisons** ask the same of the
    difference to the stable revision at the same time: Fail when the lower bound is above the tolerance, Pass when the
    upper one is below the limit. The worst outcome of all counts. Alpha, ``1 - confidence``, is shared out evenly
    among everything that can abort the release; passing takes all of them, so each upper bound has the whole.
    """
    faults = faults_of(state.until, candidate, "candidate")
    if stable is not None:
        faults += faults_of(state.until, stable, "stable revision")
    compared = stable if options.compare else None
    if not faults and candidate.requests + (compared.requests if compared else 0):
        state = extended(
            options, slo, state, stable=compared, candidate=candidate, at_full=at_full, seconds=block
        )
    alpha = Alpha(options, slo)
    verdicts = [_samples(options, state, candidate, compared, faults, at_full=at_full)]
    verdicts += _absolute(options, slo, state, candidate, alpha.absolute, at_full=at_full)
    if compared is not None:
        fine = tells_errors(candidate) and tells_errors(compared)
        verdicts.append(_errors(options, state, alpha, MIN_BLOCKS if fine else MIN_WINDOWS))
        verdicts += _slow(options, slo, state, candidate, compared, alpha)
    for metric, samples in extra:
        verdicts += bounded(metric, samples)
    outcome = worst(verdict.outcome for verdict in verdicts)
    reasons = [verdict.message for verdict in verdicts if verdict.outcome is outcome]
    return state, Measurement(
        outcome=outcome,
        until=candidate.until,
        verdicts=tuple(verdicts),
        summary="; ".join(reasons) if outcome is not Outcome.PASS else _passed(verdicts),
        analysis=state.model_dump(mode="json"),
    )


class Alpha:
    """How much chance of a false alarm each question gets."""

    def __init__(self, options: AnalysisOptions, slo: Mapping[str, float]) -> None:
        self.whole = min(max(1 - options.confidence, _SMALLEST_ALPHA), 0.5)
        asked = sum(name == ERRORS or percentile_of(name) is not None for name in slo)
        both = 2 if options.compare and asked else 1
        self.compared = self.whole / both / 2
        self.absolute = self.whole / both / (2 * asked or 1)


def faults_of(judged: float | None, samples: Samples, whose: str) -> list[str]:
    """Say what is wrong with an answer that can therefore not be used; until ``judged`` everything was already."""
    durations, times, failed = samples.durations or (), samples.times, samples.failed
    found = {
        "the window ends before it begins": samples.until < samples.since,
        "the window begins before the end of the last one": judged is not None
        and samples.since < judged - _SAME < samples.until - _SAME,
        f"{samples.errors} errors of {samples.requests} requests": samples.errors > samples.requests,
        f"{len(durations)} latencies of {samples.requests} requests": len(durations) > samples.requests,
        "a latency is negative or no number": not all(
            math.isfinite(value) and value >= 0 for value in durations
        ),
        "latencies and their times do not match": times is not None and len(times) != len(durations),
        "errors and their times do not match": failed is not None and len(failed) != samples.errors,
        "a time is no number": not all(math.isfinite(value) for value in (*(times or ()), *(failed or ()))),
    }
    return [f"numbers of the {whose} make no sense: {fault}" for fault, is_so in found.items() if is_so]


def _samples(
    options: AnalysisOptions,
    state: AnalysisState,
    candidate: Samples,
    stable: Samples | None,
    faults: Sequence[str],
    *,
    at_full: bool,
) -> Verdict:
    """Judge whether there is enough to judge by."""
    seen = state.at_full if at_full else state.requests
    uneven = _idle_replica(candidate) or (_idle_replica(stable) if stable else None)
    partial = [samples for samples in (candidate, stable) if samples is not None and samples.coverage < 1]
    outcome, message = Outcome.INCONCLUSIVE, ""
    if faults:
        outcome, message = Outcome.ERROR, "; ".join(faults)
    elif candidate.requests and candidate.errors == candidate.requests >= options.minSamples:
        outcome, message = Outcome.FAIL, f"all {candidate.requests:,} requests to the candidate failed"
    elif stable is not None and _refuses(candidate, stable) and candidate.requests >= options.minSamples:
        outcome = Outcome.FAIL
        message = (
            f"the candidate answered none of {candidate.requests:,} requests, and the stable revision "
            f"{len(stable.durations or ()):,} of {stable.requests:,} at the same time: it refuses what clients send; "
            "see whether its inputs have changed"
        )
    elif not candidate.requests:
        message = "no request reached the candidate; send some, or let `replay` do it"
    elif seen < options.minSamples:
        message = f"{seen:,} requests to the candidate so far, minSamples is {options.minSamples:,}"
    elif stable is not None and not stable.requests:
        message = "no request reached the stable revision, so there is nothing to compare with"
    elif partial:
        message = f"the provider vouches for {percent(partial[0].coverage)} of the window only"
    elif uneven:
        message = uneven
    else:
        outcome, message = Outcome.PASS, f"{seen:,} requests to the candidate"
    return Verdict(gate="samples", outcome=outcome, message=message, metric="requests", value=float(seen))


def _refuses(candidate: Samples, stable: Samples) -> bool:
    """Whether one revision answers and the other does not.

    A refusal is no error of a server, since clients do send nonsense; but both would get the same share of that.
    """
    return candidate.durations is not None and not candidate.durations and bool(stable.durations)


def _idle_replica(samples: Samples) -> str | None:
    """Say which replica got clearly less than its part: one with nothing to do looks fast."""
    counts = samples.replicas or {}
    fair = sum(counts.values()) / len(counts) if counts else 0.0
    if fair < _EXPECTED:
        return None
    name, least = min(counts.items(), key=lambda item: item[1])
    if least >= _UNEVEN * fair:
        return None
    return f"replica {name} got {least:,} requests where {fair:,.0f} were its part: latencies say nothing"


def _absolute(
    options: AnalysisOptions,
    slo: Mapping[str, float],
    state: AnalysisState,
    candidate: Samples,
    alpha: float,
    *,
    at_full: bool,
) -> list[Verdict]:
    known = state.full if at_full else state.bounds
    found = []
    for name, bound in slo.items():
        part = percentile_of(name)
        if name == THROUGHPUT:
            continue
        if name != ERRORS and part is None:
            message = f"{name} cannot be judged by requests; take it out of the slo"
            found.append(Verdict(gate=name, outcome=Outcome.ERROR, message=message, bound=bound))
        elif part is not None and candidate.durations is None:
            message = f"{name} is missing: the provider does not tell latencies one by one"
            found.append(Verdict(gate=name, outcome=Outcome.ERROR, message=message, bound=bound))
        elif not math.isfinite(bound):
            found.append(compare(name, None, "<=", bound))
        else:
            evidence = known.get(name, Evidence(alone=True))
            minimum = MIN_BLOCKS if part is not None or tells_errors(candidate) else MIN_WINDOWS
            found.append(_bound(options, name, bound, part, evidence, candidate, alpha, minimum))
    return found


def _bound(
    options: AnalysisOptions,
    name: str,
    bound: float,
    part: float | None,
    evidence: Evidence,
    candidate: Samples,
    alpha: float,
    minimum: int,
) -> Verdict:
    """Judge one absolute bound: ``part`` of the requests must be within it, or it is the share of errors itself."""
    share, allowed = evidence.candidate, bound if part is None else 1 - part
    needed = (
        options.minSamples if part is None else max(options.minSamples, math.ceil(1 / min(part, 1 - part)))
    )
    bounds = evidence.bounds(alpha)
    if part is None:
        value, here = share.value, (candidate.errors, candidate.requests)
        what = f"{percent(share.value)} of {share.requests:,} requests failed, {percent(bound)} may"
    else:
        durations = sorted(candidate.durations or ())
        value = durations[math.ceil(part * len(durations)) - 1] if durations else math.nan
        here = sum(duration > bound for duration in durations), len(durations)
        what = (
            f"{percent(share.value)} of {share.requests:,} requests took longer than {milliseconds(bound)}, "
            f"{percent(allowed)} may"
        )
    if share.requests >= options.minSamples and evidence.track.blocks >= minimum and bounds.least > allowed:
        outcome = Outcome.FAIL
    elif share.requests < needed:
        outcome, what = Outcome.INCONCLUSIVE, f"{what}; {needed:,} requests are needed"
    elif share.value > allowed:
        outcome, what = Outcome.INCONCLUSIVE, f"{what}; that can still be chance"
    elif wilson_lower(*here) > allowed:
        outcome, what = Outcome.INCONCLUSIVE, f"{what}; but {percent(here[0] / here[1])} in this window"
    else:
        outcome = Outcome.PASS
    return Verdict(
        gate=name, outcome=outcome, message=what, metric=name, value=None if math.isnan(value) else value,
        comparison="<=", bound=bound,
    )  # fmt: skip


def _errors(options: AnalysisOptions, state: AnalysisState, alpha: Alpha, minimum: int) -> Verdict:
    evidence = state.errors
    bounds = evidence.bounds(alpha.compared, alpha.whole)
    shares = f"{percent(evidence.candidate.value)} against {percent(evidence.stable.value)}"
    return _compared(
        options, _NO_PAIR[0], evidence, minimum,
        fails=bounds.least > options.errorTolerance,
        passes=bounds.upper < options.errorLimit,
        value=bounds.mean, tolerance=options.errorTolerance,
        message=f"errors {points(bounds.mean)} ({shares}), {_between(bounds)}; "
        f"{points(options.errorTolerance)} is tolerated, {points(options.errorLimit)} has to be ruled out",
    )  # fmt: skip


def _slow(
    options: AnalysisOptions,
    slo: Mapping[str, float],
    state: AnalysisState,
    candidate: Samples,
    stable: Samples,
    alpha: Alpha,
) -> list[Verdict]:
    slow = state.slow
    if candidate.durations is None or stable.durations is None:
        asked = any(percentile_of(name) is not None for name in slo)
        begun = slow.threshold is not None or slow.calibration
        if not asked and not begun and candidate.durations is stable.durations:
            return []  # a source of counts alone, and nobody asked for latencies
        message = "the provider does not tell latencies one by one, so they cannot be compared"
        return [Verdict(gate=_NO_PAIR[1], outcome=Outcome.ERROR, message=message)]
    if slow.threshold is None:
        message = f"{len(slow.calibration):,} latencies of the stable revision so far, too few for its p95"
        return [Verdict(gate=_NO_PAIR[1], outcome=Outcome.INCONCLUSIVE, message=message)]
    tolerated = slow.tolerated.bounds(alpha.compared)
    limited = slow.limited.bounds(alpha.compared, alpha.whole)
    allowed = slow.tolerated.stable.value - slow.apart.stable.value
    limit = slow.limited.stable.value - slow.apart.stable.value
    shown = Bounds(
        tolerated.mean + allowed, tolerated.lower + allowed, limited.upper + limit, tolerated.newest + allowed
    )
    shares = f"{percent(slow.tolerated.candidate.value)} against {percent(slow.apart.stable.value)}"
    return [
        _compared(
            options, _NO_PAIR[1], slow.tolerated, MIN_BLOCKS,
            fails=tolerated.least > 0,
            passes=limited.upper < 0,
            value=shown.mean, tolerance=allowed,
            message=f"requests above {milliseconds(slow.threshold)}, the stable revision's p95, {points(shown.mean)} "
            f"({shares}), {_between(shown)}; {points(allowed)} is tolerated, {points(limit)} has to be ruled out",
        )
    ]  # fmt: skip


def _compared(
    options: AnalysisOptions,
    gate: str,
    evidence: Evidence,
    minimum: int,
    *,
    fails: bool,
    passes: bool,
    value: float,
    tolerance: float,
    message: str,
) -> Verdict:
    enough = evidence.track.blocks >= minimum and evidence.candidate.requests >= options.minSamples
    if enough and fails:
        outcome = Outcome.FAIL
    elif enough and passes:
        outcome = Outcome.PASS
    else:
        outcome = Outcome.INCONCLUSIVE
    return Verdict(
        gate=gate,
        outcome=outcome,
        message=message,
        metric=gate,
        value=value,
        comparison="<=",
        bound=tolerance,
    )


def _between(bounds: Bounds) -> str:
    least, upper = max(bounds.least, -1.0), min(bounds.upper, 1.0)  # shares differ by no more
    if not math.isfinite(bounds.upper) or upper - least >= 2:  # noqa: PLR2004
        return "nothing is known yet"
    return f"between {points(least)} and {points(upper)}"


def bounded(metric: Metric, samples: Samples | None) -> list[Verdict]:
    """Judge a further metric's single number by its bounds; ``samples`` is None where it could not be asked."""
    if samples is None:
        message = f"{metric.name} is missing: its provider could not be asked"
        return [Verdict(gate=metric.name, outcome=Outcome.ERROR, message=message, metric=metric.name)]
    if samples.value is None:
        message = f"{metric.name} has no value for this window"
        return [Verdict(gate=metric.name, outcome=Outcome.INCONCLUSIVE, message=message, metric=metric.name)]
    found = []
    if metric.max is not None:
        found.append(compare(metric.name, samples.value, "<=", metric.max))
    if metric.min is not None:
        found.append(compare(metric.name, samples.value, ">=", metric.min))
    if samples.coverage < 1:
        message = f"the provider vouches for {percent(samples.coverage)} of the window only"
        found.append(
            Verdict(gate=metric.name, outcome=Outcome.INCONCLUSIVE, message=message, metric=metric.name)
        )
    return found


def _passed(verdicts: Sequence[Verdict]) -> str:
    gates = ", ".join(dict.fromkeys(verdict.gate for verdict in verdicts[1:]))
    return f"{verdicts[0].message}; passed: {gates}" if gates else verdicts[0].message
