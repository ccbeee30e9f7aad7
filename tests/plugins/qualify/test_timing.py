"""Percentiles, their intervals, and the rule that says when measuring has settled."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from shipctl_plugins.qualify import _timing
from shipctl_plugins.qualify._timing import Window, agree, measure, percentile_interval


def window(scale: float, seconds: float = 1.0) -> Window:
    return Window(np.full(100, scale), seconds)


def at_most(k: float, n: int, q: float) -> float:
    """The binomial distribution function, summed up term by term."""
    return sum(math.comb(n, i) * q**i * (1 - q) ** (n - i) for i in range(int(k) + 1))


@pytest.mark.parametrize("percent", [50, 90, 95, 99])
def test_interval_is_the_one_of_the_binomial_distribution(percent: int) -> None:
    """Sample k is k, so that an end of the interval is its rank."""
    n, q = 400, percent / 100
    low, high = percentile_interval(np.arange(1.0, n + 1), percent)
    assert at_most(low - 1, n, q) <= 0.025 < at_most(low, n, q)
    if math.isfinite(high):
        assert 1 - at_most(high - 1, n, q) <= 0.025 < 1 - at_most(high - 2, n, q)
    else:
        assert 1 - at_most(n - 1, n, q) > 0.025


@pytest.mark.parametrize("percent", [50, 95])
def test_interval_covers_the_true_percentile_as_often_as_it_says(percent: float) -> None:
    rng = np.random.default_rng(3)
    truth = -math.log(1 - percent / 100)
    intervals = [percentile_interval(rng.exponential(size=200), percent) for _ in range(1000)]
    assert 0.94 <= np.mean([low <= truth <= high for low, high in intervals]) <= 0.985


def test_too_few_samples_leave_the_interval_open() -> None:
    assert percentile_interval(np.arange(10.0), 99)[1] == math.inf
    assert percentile_interval(np.arange(3.0), 50) == (0.0, math.inf)


def test_three_windows_have_to_agree() -> None:
    assert agree([window(1.0), window(1.05), window(0.95)], 0.1)
    assert not agree([window(1.0), window(1.0)], 0.1)
    assert not agree([window(1.0), window(1.0), window(1.4)], 0.1)


def test_a_window_that_is_slow_between_the_runs_does_not_agree() -> None:
    assert not agree([window(1.0), window(1.0), window(1.0, seconds=1.5)], 0.1)


def test_measuring_ends_when_windows_agree() -> None:
    windows, stable = measure(lambda: time.sleep(0.001), warmup=0, window=0.01, longest=5, tolerance=0.9)
    assert stable
    assert len(windows) == 3


def test_measuring_ends_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_timing, "agree", lambda windows, tolerance: False)
    begun = time.perf_counter()
    windows, stable = measure(lambda: time.sleep(0.001), warmup=0, window=0.02, longest=0.1, tolerance=0.1)
    assert not stable
    assert len(windows) >= 3
    assert time.perf_counter() - begun < 2


def test_a_run_longer_than_all_time_is_measured_once() -> None:
    windows, stable = measure(lambda: time.sleep(0.05), warmup=0, window=0.01, longest=0.02, tolerance=0.1)
    assert not stable
    assert [len(each.latencies) for each in windows] == [1]
