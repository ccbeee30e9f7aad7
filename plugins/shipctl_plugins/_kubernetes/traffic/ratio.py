"""Traffic by numbers of pods: what a weight comes to, and how many pods it takes.

A Service gives every pod that it selects the same share of new connections, so the shares of revisions are those of
their pods.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from shipctl.release.traffic import WHOLE


def percentages(pods: Mapping[str, int]) -> dict[str, int]:
    """Return what percentage of the pods each revision has; they add up to 100, and whoever has a pod has 1 at least.

    Empty without any pod. Rounded by largest remainders.
    """
    total = sum(pods.values())
    if not total:
        return {}
    exact = {name: Fraction(count * WHOLE, total) for name, count in sorted(pods.items()) if count > 0}
    found = {name: max(1, int(share)) for name, share in exact.items()}
    while sum(found.values()) != WHOLE:
        step = 1 if sum(found.values()) < WHOLE else -1
        able = [one for one in found if step > 0 or found[one] > 1] or list(found)
        name = max(able, key=lambda one: (step * (exact[one] - found[one]), found[one]))
        found[name] += step
    return found


def pods_for(weight: int, beside: int, most: int) -> int:
    """Return the number of pods whose share beside ``beside`` others is nearest to ``weight`` percent.

    At least one, at most ``most``; of two that are as near, the smaller.
    """
    wanted = Fraction(weight, WHOLE)
    return min(
        range(1, max(1, most) + 1), key=lambda pods: (abs(Fraction(pods, beside + pods) - wanted), pods)
    )
