"""Numbers of replicas: how many to begin with, and the rounds in which those of one revision replace another's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shipctl.errors import SpecError, StageError
from shipctl.release.surge import Surge
from shipctl.release.traffic import WHOLE
from shipctl_plugins._kubernetes import objects
from shipctl_plugins._kubernetes.app import Place
from shipctl_plugins._kubernetes.observe import Look
from shipctl_plugins._kubernetes.state import Entry
from shipctl_plugins._kubernetes.traffic.rolling import Group, Round, finished, next_round

Object = dict[str, Any]


@dataclass(frozen=True)
class Scaling:
    """The numbers of one app's replicas."""

    place: Place
    guard: Callable[[], None]
    """Raises :class:`StaleEpochError` if somebody else has taken over."""

    def begun_with(self, look: Look, entry: Entry, surge: Surge | None) -> int:
        """Return how many replicas a revision is to have before it is given traffic."""
        there = look.group(entry.revision)
        if 0 < look.routed.traffic.weight(entry.revision) < WHOLE:
            return there.asked  # its number may be its share
        if surge is not None and rivals(look, entry.revision):
            return max(there.asked, self._next(look, entry, surge).to)
        if entry.autoscaled:
            stable = look.state.stable
            serving = look.group(stable).asked if stable is not None and stable != entry.revision else 0
            return max(entry.replicas, serving, there.asked)
        return max(entry.replicas, there.asked)

    def make_room(self, look: Look, entry: Entry, surge: Surge) -> None:
        """Where nothing may be added, have what serves give up what it may, so that there is a place to begin in."""
        self._give_up(look, entry, self._next(look, entry, surge))

    def has_replaced(self, look: Look, entry: Entry) -> bool:
        """Whether all replicas are this revision's, and ready."""
        return finished(entry.replicas, look.group(entry.revision), _sum(look, rivals(look, entry.revision)))

    def replace(
        self, look: Look, entry: Entry, surge: Surge, weigh: Callable[[Mapping[str, int]], None]
    ) -> str:
        """Go one round: start some, or stop some. ``weigh`` is given the ready replicas that stay, before that.

        :raises StageError: if a Deployment is gone
        """
        plan = self._next(look, entry, surge)
        left = self._left(look, entry, plan)
        ready = {name: min(look.group(name).ready, left[name]) for name in left}
        mine = look.group(entry.revision)
        weigh({entry.revision: mine.ready, **ready})
        if plan.to > mine.asked:
            self.scale(self._deployment(look, entry.revision), plan.to)
        self._give_up(look, entry, plan)
        started = f"{plan.to} of {entry.replicas} replicas are {entry.version}"
        return f"{started} ({mine.ready} ready), {plan.from_} of what they replace are left"

    def restore(self, look: Look, entry: Entry) -> str | None:
        """Give a revision back what it gave up, and say so."""
        asked = look.group(entry.revision).asked
        if entry.autoscaled or entry.revision not in look.deployments or asked >= entry.replicas:
            return None
        self.scale(look.deployments[entry.revision], entry.replicas)
        return f"{entry.version} has {entry.replicas} replicas again"

    def scale(self, deployment: Object, replicas: int) -> None:
        """Have a Deployment ask for so many replicas."""
        objects.scale(self.place, deployment, replicas, self.guard)

    # -- helpers --------------------------------------------------------------------------------------------

    def _next(self, look: Look, entry: Entry, surge: Surge) -> Round:
        others = _sum(look, rivals(look, entry.revision))
        return next_round(entry.replicas, surge, look.group(entry.revision), others)

    def _give_up(self, look: Look, entry: Entry, plan: Round) -> None:
        for name, count in self._left(look, entry, plan).items():
            self.scale(self._deployment(look, name), count)

    def _left(self, look: Look, entry: Entry, plan: Round) -> dict[str, int]:
        """Return how many replicas of each rival are left, the stable one's being the last to go."""
        names = sorted(rivals(look, entry.revision), key=lambda name: (name == look.state.stable, name))
        surplus = sum(look.group(name).asked for name in names) - plan.from_
        left = {}
        for name in names:
            given = min(surplus, look.group(name).asked)
            left[name], surplus = look.group(name).asked - given, surplus - given
        return left

    def _deployment(self, look: Look, revision: str) -> Object:
        if revision not in look.deployments:
            message = f"the Deployment {self.place.app.of(revision)} is gone from {self.place.app.namespace}; run again"
            raise StageError(message)
        return look.deployments[revision]


def rivals(look: Look, revision: str) -> list[str]:
    """Return the other revisions that have replicas, or Deployments that could."""
    return [name for name in look.deployments if name != revision]


def check_surge(entry: Entry, router: str, *, weighs: bool) -> None:
    """Look whether replicas can be replaced a few at a time here.

    :raises SpecError: if not, with what to write instead
    """
    if entry.autoscaled:
        message = (
            "replicas cannot be replaced a few at a time where an autoscaler sets their number; release with "
            "k8s-bluegreen or canary, or leave `autoscaling` out"
        )
        raise SpecError(message)
    if not weighs:
        message = (
            f"the router {router} moves all requests at once, so replicas cannot be replaced a few at a time; choose "
            "the router replicas, gateway-api or istio, or release with k8s-bluegreen"
        )
        raise SpecError(message)


def _sum(look: Look, names: list[str]) -> Group:
    groups = [look.group(name) for name in names]
    return Group(
        asked=sum(group.asked for group in groups),
        pods=sum(group.pods for group in groups),
        ready=sum(group.ready for group in groups),
    )
