"""Router `replicas`: shares by numbers of pods behind the app's Service; nothing has to be installed.

The stable revision keeps its pods, and the candidate gets as many as its share is nearest to: 5 % beside two pods is
one of three. A share can be no larger than that of all the candidate's pods, until it gets everything.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from shipctl.errors import StageError
from shipctl.release.router import RouterOptions
from shipctl.release.target import Capability
from shipctl.release.traffic import Traffic
from shipctl_plugins._kubernetes.app import ANNOTATION_EPOCH
from shipctl_plugins._kubernetes.traffic.ratio import percentages, pods_for
from shipctl_plugins._kubernetes.traffic.reducing import Reducer
from shipctl_plugins._kubernetes.traffic.routing import ClusterRouted
from shipctl_plugins._kubernetes.traffic.selector import SelectorRouter
from shipctl_plugins._kubernetes.traffic.ways import (
    SETTLE_S,
    Asked,
    Backends,
    Json,
    asked_of,
    fence,
    pauses,
    since_of,
)


class ReplicaOptions(RouterOptions):
    """There is nothing to choose."""


class ReplicasRatio(SelectorRouter):
    """Divides connections among pods of two revisions."""

    api_version: ClassVar[int] = 1
    options_model = ReplicaOptions
    capabilities = frozenset({Capability.WEIGHTS, Capability.PREVIEW})

    @classmethod
    def refuses(cls, traffic: Traffic, options: Any = None) -> str | None:
        """Say why it cannot distribute requests so, and what to do instead; None if it can."""
        if sum(1 for weight in traffic.weights.values() if weight) > 2:  # noqa: PLR2004
            return "the router replicas divides requests between two revisions, not more; choose gateway-api or istio"
        return super().refuses(traffic, options)

    def promises(self) -> list[str]:
        """Return lines for the plan: what this does differently from a door of shipctl's own."""
        rounding = (
            "shares are rounded to numbers of pods, and are those of all the candidate's pods at most, until it gets "
            "everything"
        )
        return [*super().promises(), rounding]

    def effective(self, traffic: Traffic, replicas: Mapping[str, int]) -> Traffic:
        """Return what ``traffic`` comes to where these revisions have so many pods each, when they have all."""
        base, other = _pair(traffic)
        if base is None or other is None:
            return traffic
        beside = max(1, replicas.get(base, 1))
        pods = pods_for(traffic.weight(other), beside, replicas.get(other, beside))
        return traffic.model_copy(update={"weights": percentages({base: beside, other: pods})})

    def set(self, traffic: Traffic, backends: Backends, *, etag: str, epoch: int) -> ClusterRouted:
        """Distribute connections so. Where pods have to start first, they may still do when this returns.

        ``since`` is None then, and the distribution is that of before; asked again, it goes on. The number of pods is
        right before the Service selects them, so that nobody gets more than he should meanwhile.

        :raises StaleEpochError: if somebody else has taken over since ``epoch``
        :raises StageError: if the state is not ``etag`` any more, it cannot be done, or does not take effect
        """
        self._admit(traffic, backends)
        asked = Asked(traffic=traffic, backends=dict(backends), scale=self._scale(traffic))
        if not self._is_scaled(asked):
            self._put_all(asked, etag, epoch, begun=True)
            self._pods.rescale(asked.scale, epoch)
            if not self._pods.await_ready(asked.scale, SETTLE_S):
                self.ctx.guard(epoch)
                return self.get()
            etag = self.etag(self._find())
        self._pods.rescale(
            asked.scale, epoch
        )  # no more than the epoch, but for what others have changed meanwhile
        self._put_all(asked, etag, epoch)
        routed = self._settled(epoch)
        return routed if not asked.scale else self._all_there(asked)

    def follow(
        self, traffic: Traffic, pods: Mapping[str, int], backends: Backends, *, etag: str, epoch: int
    ) -> ClusterRouted:
        """Let connections reach all pods that are ready, whosever they are, while these are replaced.

        :raises StaleEpochError: as :meth:`set`
        :raises StageError: as :meth:`set`
        """
        self._admit(traffic, backends)
        self._put_all(Asked(traffic=traffic, backends=dict(backends)), etag, epoch, begun=True)
        found = self.door.find()
        if found is not None and (found.get("spec") or {}).get("selector") != self.place.app.pods:
            fence(found, str(self.door), epoch)
            self.door.select(found, dict(self.place.app.pods), {ANNOTATION_EPOCH: str(epoch)})
        self.ctx.guard(epoch)
        return self.get()

    # -- helpers --------------------------------------------------------------------------------------------

    @cached_property
    def _pods(self) -> Reducer:
        return Reducer(self.place, self.ctx.guard)

    def _routed(self, found: Sequence[Json | None]) -> ClusterRouted:
        routed = super()._routed(found)
        asked = asked_of(found[0])
        if asked is None or routed.since is None or not asked.scale or not self._pods.has(asked.scale):
            return routed
        return routed.model_copy(update={"asked": asked.traffic})

    def _scale(self, traffic: Traffic) -> dict[str, int]:
        """Return how many pods the revision has to have that is not the stable one; the stable one keeps its own."""
        base, other = _pair(traffic)
        if base is None:
            return {}
        if other is None:
            whole = self._pods.whole(base) if traffic.fallback not in {None, base} else None
            return {} if whole is None else {base: whole}
        beside, most = self._pods.whole(base), self._pods.whole(other)
        if beside is None or most is None:
            gone = self.place.app.of(base if beside is None else other)
            raise StageError(f"there is no Deployment {gone} in {self.place.app.namespace}; run again")
        return {other: pods_for(traffic.weight(other), beside, most)}

    def _is_scaled(self, asked: Asked) -> bool:
        """Whether the pods are there; once they were, it is no matter of traffic how many of them are ready."""
        if not asked.scale:
            return True
        live = self.door.find()
        done = live is not None and asked_of(live) == asked and since_of(live) is not None
        return self._pods.has(asked.scale) and (done or self._pods.await_ready(asked.scale, 0))

    def _all_there(self, asked: Asked) -> ClusterRouted:
        """Wait until the Service's endpoints are the pods that are ready."""
        until, pause = time.monotonic() + SETTLE_S, pauses()
        names = [name for name, weight in asked.traffic.weights.items() if weight]
        while True:
            there = {self.place.app.of(name): len(self._pods.ready(name)) for name in names}
            if self.door.pods() == {name: count for name, count in there.items() if count}:
                return self.get()
            if time.monotonic() >= until:
                raise StageError(
                    f"the endpoints of the Service {self.place.app.name} are not the pods that are ready: see whether "
                    "the cluster's controllers run"
                )
            time.sleep(next(pause))


def _pair(traffic: Traffic) -> tuple[str | None, str | None]:
    """Return the revision that keeps its pods, and the one whose share is made of pods."""
    shares = {name: weight for name, weight in traffic.weights.items() if weight}
    names = sorted(shares, key=lambda name: (name != traffic.fallback, -shares[name], name))
    base, other, *_ = (*names, None, None)
    return base, other
