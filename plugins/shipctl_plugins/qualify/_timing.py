"""Latency samples: percentiles with confidence intervals, and whether measuring has settled."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

WINDOWS = 3
"""How many consecutive windows have to agree, as in perf_analyzer's stability rule."""
SLICES = 3
"""Turns per window, where several things are measured side by side: nine at least, for a sign test."""
FEWEST_RUNS = 10
"""Runs that a window has at least, if the time allows."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Window:
    """Consecutive runs."""

    latencies: Array
    """Seconds, one per run."""
    seconds: float
    """From the beginning of the first run to the end of the last."""

    @property
    def p95(self) -> float:
        """The 95th percentile in seconds."""
        return percentile(self.latencies, 95)

    @property
    def rate(self) -> float:
        """Runs per second."""
        return len(self.latencies) / self.seconds


@dataclass(frozen=True)
class Raced:
    """What came of one of several things that were measured in turn."""

    windows: list[Window]
    slices: list[Window]
    """The turns that the windows consist of; the n-th of each thing ran next to the n-th of the others."""

    def settled(self, tolerance: float) -> bool:
        """Whether the last three windows agree."""
        return agree(self.windows[-WINDOWS:], tolerance)


def measure(
    run: Callable[[], object], *, warmup: float, window: float, longest: float, tolerance: float
) -> tuple[list[Window], bool]:
    """Run again and again, in windows of ``window`` seconds, until three in a row agree or ``longest`` is over.

    Windows agree when p95 and rate of each are within ``tolerance`` (a fraction) of the mean of the three.
    Returns all windows, and whether the last three agree.
    """
    _one_window(run, warmup, warmup)
    windows: list[Window] = []
    gc.collect()
    gc.disable()
    begun = time.perf_counter()
    try:
        while (left := longest - (time.perf_counter() - begun)) > 0 or not windows:
            windows.append(_one_window(run, min(window, max(left, 0.0)), max(left, 0.0)))
            if agree(windows[-WINDOWS:], tolerance):
                return windows, True
    finally:
        gc.enable()
    return windows, False


def interleave(
    runs: Sequence[Callable[[], object]],
    *,
    warmup: float,
    window: float,
    longest: float,
    tolerance: float,
) -> list[Raced]:
    """Measure several things in turn, so that what else the machine does hits all of them.

    Each window of ``window`` seconds consists of slices, and with every slice it is the next one's turn, each time in
    another order, so that nobody always comes after the same one. It is over when the last three windows of each agree,
    or ``longest`` seconds (at least three windows) were spent on each.
    """
    for run in runs:
        _one_window(run, warmup, warmup)
    raced = [Raced([], []) for _ in runs]
    turns = list(zip(runs, raced, strict=True))
    shuffle = random.Random(0).shuffle  # noqa: S311  (an order, no secret)
    slice_, most = window / SLICES, max(window, longest / WINDOWS) / SLICES
    gc.collect()
    gc.disable()
    try:
        while turns:
            for _ in range(SLICES):
                for run, one in turns:
                    run()  # what the one before left in the caches
                    one.slices.append(_one_window(run, slice_, most))
                shuffle(turns)
            for one in raced:
                one.windows.append(_merged(one.slices[-SLICES:]))
            if all(agree(one.windows[-WINDOWS:], tolerance) for one in raced):
                break
            spent = max(sum(item.seconds for item in one.windows) for one in raced)
            if len(raced[0].windows) >= WINDOWS and spent >= longest:
                break
    finally:
        gc.enable()
    return raced


def _merged(slices: Sequence[Window]) -> Window:
    import numpy as np

    latencies = np.concatenate([item.latencies for item in slices])
    return Window(latencies, sum(item.seconds for item in slices))


def _one_window(run: Callable[[], object], seconds: float, longest: float) -> Window:
    import numpy as np

    clock, latencies = time.perf_counter, []
    begun = before = clock()
    while True:
        run()
        now = clock()
        latencies.append(now - before)
        elapsed = now - begun
        if elapsed >= longest or (elapsed >= seconds and len(latencies) >= FEWEST_RUNS):
            return Window(np.array(latencies), elapsed)
        before = clock()


def agree(windows: Sequence[Window], tolerance: float) -> bool:
    """Whether there are enough windows and none is off the mean in p95 or rate by more than ``tolerance``."""
    if len(windows) < WINDOWS:
        return False
    for values in ([window.p95 for window in windows], [window.rate for window in windows]):
        mean = sum(values) / len(values)
        if any(abs(value - mean) > tolerance * mean for value in values):
            return False
    return True


def percentile(latencies: Array, percent: float) -> float:
    """Return a percentile, interpolated between the two nearest samples."""
    import numpy as np

    return float(np.percentile(latencies, percent))


def percentile_interval(
    latencies: Array, percent: float, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return the distribution-free confidence interval of a percentile by order statistics.

    The number of samples below the true percentile q is binomial (n, q), so the interval from the r-th to the
    s-th smallest sample covers it with P(r <= X < s); r and s leave at most half of the rest on each side
    (David and Nagaraja, Order Statistics, 3rd ed., section 7.1). Samples count as independent. With too few of
    them the lower end is 0 or the upper one infinity.
    """
    import numpy as np

    ordered = np.sort(latencies)
    n, q, tail = len(ordered), percent / 100, (1 - confidence) / 2
    if not 0 < q < 1:
        extreme = float(ordered[0] if q <= 0 else ordered[-1])
        return (0.0, extreme) if q <= 0 else (extreme, math.inf)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    k = np.arange(n + 1)
    log_pmf = (
        log_factorial[n]
        - log_factorial[k]
        - log_factorial[n - k]
        + k * math.log(q)
        + (n - k) * math.log1p(-q)
    )
    below = np.cumsum(np.exp(log_pmf))  # below[k] = P(X <= k)
    lowest = int(np.searchsorted(below, tail, side="right"))  # the largest r with P(X <= r - 1) <= tail
    highest = int(np.searchsorted(below, 1 - tail, side="left")) + 1  # the smallest s with P(X >= s) <= tail
    return (
        float(ordered[lowest - 1]) if lowest >= 1 else 0.0,
        float(ordered[highest - 1]) if highest <= n else math.inf,
    )
