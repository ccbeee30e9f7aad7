"""How much a sum over blocks fluctuates, when neighbouring blocks have something to do with each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

MOST_RELATED = 0.97
_ENOUGH = 3


def between(batches: Sequence[tuple[float, float]]) -> float:
    """Return the long-run variance of the sum of ``batches`` (weight, weighted sum), by what is seen between them.

    The largest of three, because each of them is too small where another one is right:

    - batch means, for batches that are independent;
    - the Newey-West sum of autocovariances (W. K. Newey, K. D. West, Econometrica 55(3), 1987) over ``sqrt(n)`` lags,
      enlarged by ``(1 - b)^-2`` with the share ``b`` of lags, because with few batches such an estimate is too small
      and uncertain (N. M. Kiefer, T. J. Vogelsang, Econometric Theory 21(6), 2005);
    - that of a first-order autoregression, ``(1 + r) / (1 - r)`` times batch means, for a memory that is longer than
      those lags; ``r`` with its small-sample correction (M. G. Kendall, Biometrika 41, 1954).
    """
    count = len(batches)
    if count < _ENOUGH:
        return 0.0
    weight = sum(one for one, _ in batches)
    mean = sum(total for _, total in batches) / weight
    rest = [total - mean * one for one, total in batches]
    plain = sum(value * value for value in rest)
    if plain <= 0:
        return 0.0
    lags = round(math.sqrt(count))
    products = [_products(rest, lag) for lag in range(1, lags + 1)]
    related = plain + 2 * sum((1 - lag / (lags + 1)) * value for lag, value in enumerate(products, 1))
    share = min((lags + 1) / count, 0.8)
    memory = products[0] / plain
    memory = min(max(memory + (1 + 3 * memory) / count, 0.0), MOST_RELATED)
    unbiased = plain * count / (count - 1)
    return max(unbiased * (1 + memory) / (1 - memory), related / (1 - share) ** 2)


def _products(rest: Sequence[float], lag: int) -> float:
    return sum(one * other for one, other in zip(rest, rest[lag:], strict=False))
