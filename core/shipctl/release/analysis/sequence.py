"""Bounds on a share, or on a difference of shares, that hold at every look at once.

The bounds are asymptotic confidence sequences of I. Waudby-Smith, D. Arbour, R. Sinha, E. H. Kennedy and A. Ramdas,
"Time-uniform central limit theory and asymptotic confidence sequences", Annals of Statistics 52(6), 2024,
arXiv:2103.06476: Theorem 2.2 for independent observations, Proposition 2.5 for martingale dependence. With the mean
``m(t)`` and the estimated variance ``s²(t)`` of the first ``t`` observations, and any fixed ``rho > 0``,

    m(t) ± s(t) · sqrt( 2 (t rho² + 1) / (t² rho²) · log( sqrt(t rho² + 1) / alpha ) )

covers the true mean at all ``t`` together with probability ``1 - alpha``, up to a term that vanishes faster than the
width. One side alone comes from the half of the normal mixture on that side (S. R. Howard, A. Ramdas, J. McAuliffe,
J. Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences", Annals of Statistics 49(2), 2021,
one-sided normal mixture): ``log(1 + sqrt(t rho² + 1) / (2 alpha))`` takes the place of the logarithm. It is right
because the mixture ``2 / sqrt(t rho² + 1) · exp(a²/2) · Phi(a)``, ``a = rho S / sqrt(t rho² + 1)``, is above
``1 / alpha`` on that line, for ``Phi(a) >= 1 - exp(-a²/2) / 2``, and by Ville's inequality it gets there with
probability ``alpha`` at most.

What is assumed, and what is done where it does not hold by itself:

- *Observations* are blocks of time in which both revisions serve (:mod:`shipctl.release.analysis.blocks`). What
  happens to both at once, a burst of load or a slow host, cancels in their difference.
- *Finite variance*: shares lie between 0 and 1, however heavy the latencies' tails are.
- *Approximation of the sums by Brownian motion*, which holds for weakly dependent sequences as well if ``s²`` is the
  long-run variance. So that is what :mod:`shipctl.release.analysis.variance` estimates. Drifts of one revision alone
  that are about as long as the time which was watched cannot be told from a difference between the revisions.
- *Enough observations*, for "asymptotic" to mean something: nothing is concluded from fewer than
  :data:`~shipctl.release.analysis.blocks.MIN_BLOCKS` blocks, ``rho`` is tuned to the number of requests at which
  releases are decided (Theorem 2.8: started late, and tuned to the start, the sequence has the error ``alpha``), and
  an abort asks for a wider margin in the beginning (:data:`~shipctl.release.analysis.evidence.CAUTION`).
"""

from __future__ import annotations

import math
from statistics import NormalDist

TUNED_TO = 500.0
"""Effective requests at which the bounds are tightest; it hardly matters within a factor of ten."""
TUNED_FOR = 0.025
"""The alpha for which they are. ``rho`` is the same for all, so that a surer bound is never a tighter one."""


def tuned_rho(alpha: float = TUNED_FOR, at: float = TUNED_TO) -> float:
    """Return the ``rho`` with nearly the narrowest one-sided bound after ``at`` observations.

    Section 2 of the paper: ``sqrt((-2 log a + log(-2 log a + 1)) / at)``, with ``a = 2 alpha`` for one side.
    """
    spent = -2 * math.log(2 * alpha)
    return math.sqrt((spent + math.log(spent + 1)) / at)


RHO = tuned_rho()


def radius(variance: float, weight: float, alpha: float) -> float:
    """Return by how much one side of the sequence stands off the mean.

    ``weight`` is the sum of the observations' weights, and the clock ``t``; ``variance`` is that of their weighted
    sum, so that ``s² = variance / weight``. Infinite while nothing is there.
    """
    if weight <= 0:
        return math.inf
    scaled = weight * RHO**2
    spread = 2 * (1 + 1 / scaled) * math.log(1 + math.sqrt(scaled + 1) / (2 * alpha))
    return math.sqrt(variance * spread) / weight


def spent_at(alpha: float, look: int) -> float:
    """Return the part of ``alpha`` that the ``look``-th of endlessly many tests may use; the parts add up to it."""
    return alpha * 6 / (math.pi * look) ** 2


def deviations(alpha: float) -> float:
    """Return by how many standard deviations a normal variable is exceeded with probability ``alpha``."""
    return -NormalDist().inv_cdf(alpha)


def wilson_lower(events: int, trials: int, alpha: float = 0.05) -> float:
    """Return the lower end of Wilson's score interval for a share, at ``alpha`` on this side."""
    if trials == 0:
        return 0.0
    z = deviations(alpha)
    share, square = events / trials, z * z
    middle = share + square / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + square / (4 * trials * trials))
    return max(0.0, (middle - half) / (1 + square / trials))
