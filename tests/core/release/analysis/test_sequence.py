"""The bounds themselves, against figures computed by other means, and against chance."""

from __future__ import annotations

import math
import random

import pytest

from shipctl.release.analysis.blocks import Batch, Counts
from shipctl.release.analysis.evidence import Evidence
from shipctl.release.analysis.sequence import RHO, radius, spent_at, tuned_rho, wilson_lower
from shipctl.release.analysis.variance import between


def crossing(weight: float, alpha: float) -> float:
    """Return where the half-normal mixture of a standard Brownian motion at ``weight`` equals 1/alpha, by bisection."""
    low, high = 0.0, 2 * radius(weight, weight, alpha)
    for _ in range(200):
        middle = (low + high) / 2
        scaled = weight * RHO**2 + 1
        sums = middle * weight
        a = RHO * sums / math.sqrt(scaled)
        mixture = 2 / math.sqrt(scaled) * math.exp(a * a / 2) * 0.5 * math.erfc(-a / math.sqrt(2))
        low, high = (middle, high) if mixture < 1 / alpha else (low, middle)
    return high


@pytest.mark.parametrize("alpha", [0.001, 0.0125, 0.05])
@pytest.mark.parametrize("weight", [50.0, 500.0, 50_000.0])
def test_the_closed_form_is_just_above_where_the_mixture_crosses(weight: float, alpha: float) -> None:
    exact, bound = crossing(weight, alpha), radius(weight, weight, alpha)
    assert exact <= bound <= 1.02 * exact


def test_rho_makes_the_bound_tightest_where_it_is_tuned_to() -> None:
    def width(rho: float) -> float:
        scaled = 500 * rho * rho
        return math.sqrt(2 * (1 + 1 / scaled) * math.log(1 + math.sqrt(scaled + 1) / (2 * 0.025)))

    best = min((width(RHO * 1.05**step), step) for step in range(-40, 41))
    assert tuned_rho(0.025, 500) == RHO
    assert width(RHO) <= 1.01 * best[0]


def test_nothing_is_known_without_weight() -> None:
    assert radius(0.0, 0.0, 0.05) == math.inf


def test_what_looks_may_spend_adds_up_to_alpha() -> None:
    assert sum(spent_at(0.05, look) for look in range(1, 100_000)) == pytest.approx(0.05, rel=1e-4)


@pytest.mark.parametrize(
    ("events", "trials", "expected"), [(0, 50, 0.0), (5, 50, 0.0495), (10, 100, 0.0607), (50, 50, 0.9487)]
)
def test_wilson_lower_bound(events: int, trials: int, expected: float) -> None:
    """As `scipy.stats.binomtest(…).proportion_ci(0.9, "wilson")` has it."""
    assert wilson_lower(events, trials) == pytest.approx(expected, abs=2e-4)


def test_wilson_of_nothing_is_zero() -> None:
    assert wilson_lower(0, 0) == 0.0


def drift(rng: random.Random, count: int, memory: float) -> list[Batch]:
    """Return a first-order autoregression with variance 1."""
    now, found = rng.gauss(0, 1), []
    for _ in range(count):
        now = memory * now + math.sqrt(1 - memory * memory) * rng.gauss(0, 1)
        found.append(Batch(1.0, now))
    return found


@pytest.mark.parametrize(("memory", "far_too_small"), [(0.0, 0.0), (0.5, 0.1), (0.8, 0.35)])
def test_the_variance_is_the_long_run_one(memory: float, far_too_small: float) -> None:
    """What is between batches alone would be a third of it at a memory of 0.5, and a ninth at 0.8."""
    rng = random.Random(5)
    true = (1 + memory) / (1 - memory)
    estimates = [between(drift(rng, 64, memory)) / 64 / true for _ in range(200)]
    assert 0.95 < sum(estimates) / len(estimates) < 1.5
    assert sum(estimate < 0.5 for estimate in estimates) <= far_too_small * len(estimates)


def test_two_batches_have_no_variance_yet() -> None:
    assert between([Batch(1.0, 0.0), Batch(1.0, 1.0)]) == 0.0


def test_batches_get_longer_and_keep_every_block() -> None:
    evidence = Evidence(alone=True).extended([Counts(at % 3, 10) for at in range(1000)])
    assert evidence.track.blocks == 1000
    assert evidence.track.width == 16
    assert len(evidence.track.batches) <= 64
    assert evidence.track.weight == 10_000
    assert sum(batch.total for batch in evidence.track.batches) == sum(at % 3 for at in range(1000))


def plateaus(high: int, low: int, count: int = 8) -> Evidence:
    """Return a release in which the share changes every 20 s, and is the high one in the newest 15."""
    evidence = Evidence(alone=True)
    for place in range(count):
        evidence = evidence.extended([Counts(high if place % 2 else low, 40)] * 20)
    return evidence.extended([Counts(high, 40)] * 15)


def test_newest_blocks_are_held_against_how_much_it_fluctuated_before() -> None:
    assert plateaus(16, 16).bounds(0.02).newest > 0.2
    assert plateaus(16, 0).bounds(0.02).newest < 0


def test_newest_blocks_say_nothing_before_it_is_known_how_much_it_fluctuates() -> None:
    evidence = Evidence(alone=True).extended([Counts(0, 40)] * 15).extended([Counts(40, 40)] * 15)
    assert evidence.bounds(0.02).newest == -math.inf
    assert evidence.extended([Counts(40, 40)] * 15).bounds(0.02).newest > -math.inf


def covered(seed: int, shares: tuple[float, float], alpha: float) -> bool:
    """Whether the interval holds the true difference at every look of a release."""
    rng, evidence, true = random.Random(seed), Evidence(), shares[0] - shares[1]
    for place in range(60):
        size = 10 if place < 40 else 60
        block = [
            Counts(
                sum(rng.random() < shares[0] for _ in range(size)),
                size,
                sum(rng.random() < shares[1] for _ in range(120 - size)),
                120 - size,
            )
        ]
        evidence = evidence.extended(block)
        low, high = evidence.interval(alpha)
        if place >= 10 and not low <= true <= high:
            return False
    return True


def test_the_interval_holds_the_truth_at_every_look() -> None:
    missed = sum(not covered(seed, (0.08, 0.05), 0.1) for seed in range(150))
    assert missed <= 15


def test_an_interval_that_excludes_nothing_would_be_of_no_use() -> None:
    found = []
    for seed in range(20):
        rng, evidence = random.Random(seed), Evidence()
        for _ in range(60):
            bad = [sum(rng.random() < share for _ in range(60)) for share in (0.12, 0.05)]
            evidence = evidence.extended([Counts(bad[0], 60, bad[1], 60)])
        found.append(evidence.interval(0.05)[0] > 0)
    assert sum(found) >= 18
