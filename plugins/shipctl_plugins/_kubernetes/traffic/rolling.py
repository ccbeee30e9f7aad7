"""One round of replacing replicas by others: how many to start, and how many to stop, at this moment.

The bounds are those of a Kubernetes Deployment (kubernetes.io/docs/concepts/workloads/controllers/deployment,
"Rolling Update Deployment"): never more pods than wanted + maxSurge, never fewer ready ones than wanted -
maxUnavailable. What is counted are pods, not only what was asked for: a controller follows a little later.
"""

from __future__ import annotations

from dataclasses import dataclass

from shipctl.release.surge import Surge


@dataclass(frozen=True)
class Group:
    """The replicas of one revision at this moment."""

    asked: int
    """How many there should be."""
    pods: int
    """How many there are that do not end already."""
    ready: int

    @property
    def counted(self) -> int:
        """How many there are, or will be in a moment."""
        return max(self.asked, self.pods)

    @property
    def unready(self) -> int:
        """How many are not ready."""
        return max(0, self.counted - self.ready)


@dataclass(frozen=True)
class Round:
    """How many replicas there are to be now."""

    to: int
    from_: int


def next_round(wanted: int, surge: Surge, to: Group, from_: Group) -> Round:
    """Return how many replicas of the revision that takes over, and of what it replaces, there are to be now.

    Either something is started or something is stopped, so that both bounds hold at every moment in between.
    """
    more, fewer = surge.of(wanted)
    room = wanted + more - to.counted - from_.counted
    if room > 0 and to.asked < wanted:
        return Round(to=min(wanted, to.asked + room), from_=from_.asked)
    if from_.pods > from_.asked:  # the last ones to be stopped still run
        return Round(to=to.asked, from_=from_.asked)
    least = wanted - fewer
    spare = max(0, to.ready + from_.ready - least)
    # replicas that do not work protect nobody, as long as those that take over all do
    broken = min(from_.unready, max(0, to.counted + from_.counted - least - to.unready))
    return Round(to=to.asked, from_=max(0, from_.asked - max(spare, broken)))


def finished(wanted: int, to: Group, from_: Group) -> bool:
    """Whether everything has been replaced."""
    return to.ready >= wanted and to.asked == wanted and from_.asked == 0
