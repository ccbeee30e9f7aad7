"""A strategy laid out as legs: the shares of the traffic that a candidate gets in turn, and what ends each of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from shipctl.release.strategy import PauseStep, SetWeight, Strategy
from shipctl.release.traffic import WHOLE, Mirror, Segment, Traffic

PROMOTE = "promote"
"""What has to be approved before a candidate gets everything, where it does not by itself."""
STABLE, CANDIDATE = "stable", "candidate"
"""What a segment of a strategy calls the two revisions, whose digests nobody knows when writing it."""


@dataclass(frozen=True)
class Leg:
    """One stretch of the way: a share of the traffic, and how long it is kept."""

    weight: int
    """Percent of the requests."""
    pause: float = 0.0
    """Seconds that it lasts at least; for a test: at most."""
    approvals: tuple[str, ...] = ()
    """What people have to approve before it begins."""
    passing: bool = True
    """Whether a measurement has to pass before it ends; not where only a pause of the same weight follows."""
    test: bool = False
    """Whether it ends with a verdict."""
    mirror: float | None = None
    """Percent of the requests that are copied."""
    preview: bool = False
    """Whether the candidate stands behind the preview door."""

    @property
    def exposed(self) -> bool:
        """Whether the candidate gets requests or copies of them, so that there is something to measure."""
        return self.weight > 0 or self.mirror is not None


def course(strategy: Strategy, *, first: bool = False, alone: bool = False) -> tuple[Leg, ...]:
    """Return the legs of a strategy; the last one has all of the traffic, or none if nothing is to be promoted.

    ``first``: nothing was served before, so nobody can be spared by steps. ``alone``: nothing else is left that could
    serve; then the steps are skipped as well, but not what people have to approve on them.
    """
    legs = _steps(strategy)
    last = Leg(weight=WHOLE if strategy.promote else 0)
    if first or alone:
        asked = tuple(name for leg in legs for name in leg.approvals) if alone else ()
        return _approved(strategy, [replace(last, approvals=asked)])
    testing = strategy.duration is not None
    if (strategy.preview and not (legs and legs[0].weight == 0)) or (testing and not legs):
        legs.insert(0, Leg(weight=0, passing=False))
    if strategy.duration is not None:
        legs[-1] = replace(legs[-1], test=True, pause=float(strategy.duration), passing=True)
    shown = [
        replace(leg, mirror=strategy.mirror, preview=strategy.preview) if leg.weight < WHOLE else leg
        for leg in legs
    ]
    return _approved(strategy, [*shown, last])


def _steps(strategy: Strategy) -> list[Leg]:
    legs: list[Leg] = []
    weight = 0
    for index, step in enumerate(strategy.steps):
        if isinstance(step, SetWeight):
            weight = step.setWeight
            after = strategy.steps[index + 1] if index + 1 < len(strategy.steps) else None
            timed = isinstance(after, PauseStep) and after.pause.duration is not None
            legs.append(Leg(weight=weight, passing=not timed))
        elif step.pause.duration is None:
            legs.append(Leg(weight=weight, approvals=(f"step {index}",)))
        else:
            legs.append(Leg(weight=weight, pause=float(step.pause.duration)))
    return legs


def _approved(strategy: Strategy, legs: list[Leg]) -> tuple[Leg, ...]:
    """Ask for the approval of a promotion before the first leg that has all of the traffic."""
    if strategy.autoPromotion or not strategy.promote:
        return tuple(legs)
    index = next(index for index, leg in enumerate(legs) if leg.weight == WHOLE)
    legs[index] = replace(legs[index], approvals=(*legs[index].approvals, PROMOTE))
    return tuple(legs)


def wanted(strategy: Strategy, leg: Leg, revision: str, previous: str | None) -> Traffic:
    """Return the traffic of a leg. Failover goes from the candidate to what is stable, never back."""
    if previous is None or previous == revision:
        return Traffic.only(revision if leg.weight == WHOLE or previous == revision else None)
    weights = {previous: WHOLE - leg.weight, revision: leg.weight}
    divided = 0 < leg.weight < WHOLE
    return Traffic(
        weights={name: weight for name, weight in weights.items() if weight},
        fallback=previous,
        preview=revision if leg.preview else None,
        mirror=Mirror(percent=leg.mirror, candidate=revision) if leg.mirror is not None else None,
        sticky=strategy.sticky if divided else None,
        segments=tuple(_named(item, revision, previous) for item in strategy.segments) if divided else (),
    )


def _named(segment: Segment, revision: str, previous: str) -> Segment:
    names = {STABLE: previous, CANDIDATE: revision}
    return segment.model_copy(update={"revision": names.get(segment.revision or "", segment.revision)})


def resting(strategy: Strategy, revision: str, previous: str | None, *, ready: bool) -> Traffic:
    """Return the traffic while nobody drives: nothing for the candidate but, if it is ready, the preview door."""
    return wanted(strategy, Leg(weight=0, preview=strategy.preview and ready), revision, previous)


def same(seen: Traffic, other: Traffic) -> bool:
    """Whether two distributions are one: a weight of 0 says nothing."""
    return _plain(seen) == _plain(other)


def _plain(traffic: Traffic) -> Traffic:
    return traffic.model_copy(
        update={"weights": {name: part for name, part in traffic.weights.items() if part}}
    )
