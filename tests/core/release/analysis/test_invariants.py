"""What holds for whatever a provider answers."""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from shipctl.release.analysis import AnalysisState, judge
from shipctl.release.analysis.blocks import Counts, cut, pieces
from shipctl.release.analysis.evidence import Evidence
from shipctl.release.metrics import Samples
from shipctl.release.strategy import AnalysisOptions
from shipctl.stages.verdicts import Outcome, worst
from support_analysis import samples, usual

OPTIONS = AnalysisOptions()
SLO = {"error_rate": 0.01, "latency.p95": 0.1}

latencies = st.floats(0, 10) | st.sampled_from([math.nan, math.inf, -1.0])
counts = st.integers(0, 400)


@st.composite
def answers(draw: st.DrawFn, since: float = 0.0) -> Samples:
    """Draw any answer: plausible, missing, empty, partial or absurd."""
    durations = draw(st.none() | st.lists(latencies, max_size=60) | counts.map(usual))
    length = draw(st.sampled_from([0.0, 0.5, 15.0, 100.0]))
    errors = draw(st.integers(0, 60))
    found: dict[str, Any] = {
        "requests": draw(st.sampled_from([len(durations or ()) + errors, errors, 1000])),
        "failed": draw(st.none() | st.just((since,) * errors)),
        "times": draw(st.none() | st.just((since,) * len(durations or ()))),
        "coverage": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "replicas": draw(st.none() | st.dictionaries(st.sampled_from("ab"), counts)),
    }
    return samples(since=since, until=since + length, durations=durations, errors=errors, **found)


def is_sound(answer: Samples, *, latency: bool) -> bool:
    """Whether an answer could be part of a pass."""
    durations = answer.durations
    return (
        answer.requests > 0
        and answer.coverage == 1
        and (durations is not None or not latency)
        and all(math.isfinite(value) and value >= 0 for value in durations or ())
        and answer.errors <= answer.requests
    )


@settings(max_examples=200)
@given(
    answers(),
    st.none() | answers(),
    st.dictionaries(
        st.sampled_from([*SLO, "throughput", "latency.x"]), st.floats(allow_nan=True), max_size=3
    ),
    st.booleans(),
)
def test_only_sound_and_sufficient_answers_pass(
    candidate: Samples, stable: Samples | None, slo: dict[str, float], at_full: bool
) -> None:
    state, measurement = judge(
        OPTIONS, slo, AnalysisState(), stable=stable, candidate=candidate, at_full=at_full
    )
    assert measurement.outcome is worst(verdict.outcome for verdict in measurement.verdicts)
    assert measurement.summary
    asked = any(name.startswith("latency") for name in slo)
    if measurement.outcome is Outcome.PASS:
        assert is_sound(candidate, latency=asked)
        assert candidate.requests >= OPTIONS.minSamples
        assert stable is None or is_sound(stable, latency=asked)
        assert all(math.isfinite(bound) for name, bound in slo.items() if name != "throughput")
        assert "latency.x" not in slo
    remembered = json.loads(json.dumps(measurement.analysis, allow_nan=False))
    assert AnalysisState.model_validate(remembered) == state


@settings(max_examples=50)
@given(answers(), answers(since=100.0))
def test_a_window_that_does_not_count_changes_nothing_that_is_known(first: Samples, second: Samples) -> None:
    state, _ = judge(OPTIONS, SLO, AnalysisState(), stable=None, candidate=first)
    after, measurement = judge(OPTIONS, SLO, state, stable=None, candidate=second)
    again = second.until <= (state.until if state.until is not None else -1)
    if measurement.verdicts[0].outcome is Outcome.ERROR or not second.requests or again:
        assert after == state
    else:
        assert after.requests == state.requests + second.requests


blocks = st.lists(
    st.tuples(st.integers(0, 5), st.integers(5, 30), st.integers(0, 50), st.integers(50, 300)),
    min_size=1,
    max_size=150,
)


@settings(max_examples=100)
@given(blocks)
def test_exchanged_revisions_have_the_opposite_difference(drawn: list[tuple[int, int, int, int]]) -> None:
    one = Evidence().extended([Counts(*block) for block in drawn])
    other = Evidence().extended([Counts(*block[2:], *block[:2]) for block in drawn])
    low, high = one.interval(0.05)
    opposite = other.interval(0.05)
    assert math.isclose(one.track.mean, -other.track.mean, abs_tol=1e-12)
    assert math.isclose(low, -opposite[1], abs_tol=1e-9)
    assert math.isclose(high, -opposite[0], abs_tol=1e-9)


@settings(max_examples=100)
@given(blocks, st.floats(0.001, 0.4))
def test_bounds_are_in_order_and_surer_ones_are_wider(
    drawn: list[tuple[int, int, int, int]], alpha: float
) -> None:
    evidence = Evidence().extended([Counts(*block) for block in drawn])
    bounds, surer = evidence.bounds(alpha), evidence.bounds(alpha / 2)
    assert bounds.lower <= bounds.mean <= bounds.upper
    assert surer.lower <= bounds.lower
    assert surer.upper >= bounds.upper


@settings(max_examples=100)
@given(blocks, st.integers(1, 40))
def test_it_does_not_matter_how_blocks_arrive(drawn: list[tuple[int, int, int, int]], size: int) -> None:
    """All at once or a few at a time: the same batches, so an interruption changes nothing."""
    made = [Counts(*block) for block in drawn]
    piecemeal = Evidence()
    for begin in range(0, len(made), size):
        piecemeal = piecemeal.extended(made[begin : begin + size])
    assert piecemeal.track == Evidence().extended(made).track


@settings(max_examples=100)
@given(
    st.lists(st.floats(0, 15), max_size=200),
    st.lists(st.floats(0, 15), max_size=30),
    st.sampled_from([0.25, 1.0, 20.0]),
    st.booleans(),
    st.booleans(),
)
def test_cutting_loses_no_request(
    times: list[float], failed: list[float], seconds: float, told: bool, with_duration: bool
) -> None:
    """Whether failed requests have a duration too, and whether it is known when they failed."""
    fields: dict[str, Any] = {"errors": min(len(failed), len(times)) if with_duration else len(failed)}
    fields["failed"] = tuple(failed[: fields["errors"]]) if told else None
    fields["requests"] = len(times) + (0 if with_duration else fields["errors"])
    whole = samples(durations=[0.01] * len(times), times=tuple(times), **fields)
    window = cut(whole, pieces(whole, seconds))
    assert sum(bad for bad, _ in window.errors) == whole.errors
    assert sum(map(len, window.durations)) == len(times)
    assert all(bad <= count for bad, count in window.errors)
    if not with_duration:
        assert sum(count for _, count in window.errors) == whole.requests


@settings(max_examples=50)
@given(st.integers(0, 400), st.integers(1, 60))
def test_more_failures_never_look_better(good: int, failures: int) -> None:
    def outcome(errors: int) -> Outcome:
        own = samples(durations=usual(good), errors=errors)
        return judge(OPTIONS, {"error_rate": 0.05}, AnalysisState(), stable=None, candidate=own)[1].outcome

    if good >= OPTIONS.minSamples:
        assert outcome(failures).badness >= outcome(0).badness
        assert outcome(0) is Outcome.PASS


def test_a_release_of_hours_is_remembered_in_little_room() -> None:
    state, rng, remembered = AnalysisState(), 0, dict[str, Any]()
    for place in range(400):
        when: dict[str, Any] = {"since": place * 15.0, "until": (place + 1) * 15.0}
        rng = (rng * 1103515245 + 12345) % 2**31
        own = samples(durations=usual(60), errors=rng % 3, **when)
        other = samples("stable", durations=usual(300), errors=rng % 5, **when)
        state, measurement = judge(OPTIONS, SLO, state, stable=other, candidate=own)
        remembered = measurement.analysis
    assert 10_000 < len(json.dumps(remembered)) < 40_000
