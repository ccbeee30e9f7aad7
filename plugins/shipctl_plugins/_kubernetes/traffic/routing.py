"""What all routers in a cluster have in common; the objects that each of them writes are :mod:`._kubernetes.ways`."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import Field

from shipctl.errors import StageError
from shipctl.records import digest_of
from shipctl.release.course import same
from shipctl.release.lease import WATCHDOG
from shipctl.release.router import Backend, Routed, RouterContext, TrafficRouter
from shipctl.release.target import Capability
from shipctl.release.traffic import Segment, Traffic
from shipctl_plugins._kubernetes.api.errors import ConflictError
from shipctl_plugins._kubernetes.app import (
    ANNOTATION_EPOCH,
    ANNOTATION_MOVED_BY,
    ANNOTATION_REVISION,
    ANNOTATION_SHIFTED,
    ANNOTATION_TRAFFIC,
    Place,
)
from shipctl_plugins._kubernetes.traffic.ratio import percentages
from shipctl_plugins._kubernetes.traffic.ways import (
    Asked,
    Backends,
    Json,
    Way,
    asked_of,
    backend_of,
    epoch_of,
    fence,
    notes_of,
    own_or_absent,
    pauses,
    since_of,
)

if TYPE_CHECKING:
    from shipctl.stages.context import CheckContext

NOT_OURS = Segment(name="a rule of somebody else", header="*", values=("*",))
"""Stands for requests that something in a route of ours tells apart which we have not put there."""
_ATTEMPTS = 5
"""How often is looked again when somebody writes to the same object, which a gateway's controller does all the time."""


class ClusterRouted(Routed):
    """What a router in a cluster does at this moment."""

    asked: Traffic | None = Field(
        default=None,
        description="The distribution that the effective one is a rounding of, once it is in effect; None where the "
        "effective one is what was asked for.",
    )
    rescued: bool = Field(default=False, description="Whether a watchdog has put the traffic where it is.")


class ClusterRouter(TrafficRouter):
    """A router whose table is objects of the cluster. Each of them is written in turn, the first one first."""

    moved_by: str | None = None
    """Who moves the traffic, where it is nobody who releases."""

    @property
    def place(self) -> Place:
        """Whose traffic it is, and in which cluster."""
        found: Place = self.ctx.access
        return found

    # -- what it says about itself ---------------------------------------------------------------------------

    @classmethod
    def offers(cls, options: Any) -> frozenset[Capability]:  # noqa: ARG003  (some depend on them)
        """Return what a target can do with it with these options."""
        return cls.capabilities

    @classmethod
    def refuses(cls, traffic: Traffic, options: Any = None) -> str | None:  # noqa: ARG003  (some depend on them)
        """Say why it cannot distribute requests so, and what to do instead; None if it can."""
        return None

    def promises(self) -> list[str]:
        """Return lines for the plan: what this router does differently from a door of shipctl's own."""
        return []

    def manifests(self, traffic: Traffic, backends: Backends) -> list[Json]:
        """Return the objects that it makes for this distribution; nothing is asked. Empty if it makes none."""
        return []

    @classmethod
    def check(cls, options: Any, ctx: CheckContext, access: Any = None) -> None:
        """Look whether the cluster has what it stands on, and whether we may use it, for all that is to come.

        :raises ShipctlError: if not
        """
        if isinstance(access, Place):
            router = cls(options, RouterContext(name=access.app.name, access=access))
            for way in router.ways:
                way.check()
                for traffic in ctx.traffic:
                    way.try_out(Asked(traffic=traffic))

    # -- to be said by each ----------------------------------------------------------------------------------

    @cached_property
    def ways(self) -> tuple[Way, ...]:
        """The objects that it writes, one at least."""
        return self._ways()

    @abstractmethod
    def _ways(self) -> tuple[Way, ...]: ...

    # -- looking ---------------------------------------------------------------------------------------------

    def get(self) -> ClusterRouted:
        """Return what the live objects say.

        :raises StageError: if the cluster cannot be asked
        """
        return self._routed(self._find())

    def asked(self) -> Traffic | None:
        """Return the distribution that was asked for last, as the first of the objects says; None if it does not."""
        asked = asked_of(self.ways[0].find())
        return asked.traffic if asked is not None else None

    def etag(self, found: Sequence[Json | None]) -> str:
        """Return the name of a state: what others write into these objects beside it does not change it."""
        return digest_of(
            [
                one and [way.mark(one), notes_of(one).get(ANNOTATION_TRAFFIC)]
                for way, one in zip(self.ways, found, strict=True)
            ]
        )

    def _find(self) -> list[Json | None]:
        return [way.find() for way in self.ways]

    def _routed(self, found: Sequence[Json | None]) -> ClusterRouted:
        asked = asked_of(found[0])
        seen = [
            traffic
            for way, one in zip(self.ways, found, strict=True)
            for traffic in self._traffic(way, one, asked)
        ]
        # Where they differ, what is not as asked is told: the door is not where it should be.
        wanted = asked.traffic if asked is not None else Traffic()
        traffic = next((one for one in seen if not same(one, wanted)), seen[0])
        times = [since_of(one) for one in found]
        settled = asked is not None and all(
            one is not None and way.routes(one, asked) and way.pending(one) is None
            for way, one in zip(self.ways, found, strict=True)
        )
        since = max((one for one in times if one is not None), default=None) if settled else None
        backends = asked.backends if asked is not None else self._backends(traffic)
        rescued = settled and any(notes_of(one).get(ANNOTATION_MOVED_BY) == WATCHDOG for one in found)
        return ClusterRouted(
            traffic=traffic, backends=backends, since=since, etag=self.etag(found), rescued=rescued
        )

    def _traffic(self, way: Way, found: Json | None, asked: Asked | None) -> list[Traffic]:
        """Return the distributions of one object: several if it routes several kinds of requests, and differently."""
        if found is None:
            return [Traffic()]
        if asked is not None and way.routes(found, asked):
            shares = {name: weight for name, weight in asked.traffic.weights.items() if weight}
            return [asked.traffic.model_copy(update={"weights": shares})]
        fallback = asked.traffic.fallback if asked is not None else None
        seen = [
            Traffic(weights=self._by_revision(weights, asked), fallback=fallback if weights else None)
            for weights in way.weights(found) or [{}]
        ]
        if asked is not None and all(
            same(one, asked.traffic) for one in seen
        ):  # so something else is different
            seen = [one.model_copy(update={"segments": (NOT_OURS,)}) for one in seen]
        return seen

    def _by_revision(self, weights: Mapping[str, int], asked: Asked | None) -> dict[str, int]:
        """Return percent per revision; a Service that is none of ours stands for itself."""
        known = asked.traffic.revisions | set(asked.backends) if asked is not None else set()
        names = {self.place.app.of(revision): revision for revision in known}
        counts: dict[str, int] = {}
        for service, weight in weights.items():
            revision = names.get(service) or self._revision_of(service)
            counts[revision] = counts.get(revision, 0) + weight
        return percentages(counts)

    def _revision_of(self, service: str) -> str:
        """Return the revision of a Service that no annotation names: its pods' own annotation does."""
        from shipctl_plugins._kubernetes.api.connection import Ref

        if not service.startswith(f"{self.place.app.name}-"):
            return service
        found = self.place.cluster.get(Ref("apps/v1", "Deployment", service)) or {}
        template = found.get("spec", {}).get("template", {})
        return str(notes_of(template).get(ANNOTATION_REVISION, service))

    def _backends(self, traffic: Traffic) -> dict[str, tuple[Backend, ...]]:
        return {name: (backend_of(self.place, name),) for name in sorted(traffic.revisions)}

    # -- moving ----------------------------------------------------------------------------------------------

    def set(self, traffic: Traffic, backends: Backends, *, etag: str, epoch: int) -> ClusterRouted:
        """Distribute requests so, and return once that is in effect. The same again changes nothing.

        :raises StaleEpochError: if somebody else has taken over since ``epoch``
        :raises StageError: if the state is not ``etag`` any more, it cannot be done, or does not take effect
        """
        self._admit(traffic, backends)
        self._put_all(Asked(traffic=traffic, backends=dict(backends)), etag, epoch)
        return self._settled(epoch)

    def follow(
        self, traffic: Traffic, pods: Mapping[str, int], backends: Backends, *, etag: str, epoch: int
    ) -> ClusterRouted:
        """Divide requests as these numbers of pods are, on the way to ``traffic``, while pods are replaced.

        :raises StaleEpochError: as :meth:`set`
        :raises StageError: as :meth:`set`
        """
        now = Traffic(weights=percentages(pods), fallback=traffic.fallback, preview=traffic.preview)
        return self.set(now, backends, etag=etag, epoch=epoch)

    def _admit(self, traffic: Traffic, backends: Backends) -> None:
        """Refuse what cannot be done at all."""
        reason = self.refuses(traffic, self.options)
        if reason is not None:
            raise StageError(reason)
        needed = traffic.model_copy(update={"mirror": None}).revisions if traffic.weights else frozenset()
        missing = sorted(name for name in needed if not backends.get(name))
        if missing:
            listed = ", ".join(name[:12] for name in missing)
            raise StageError(f"no replicas were named for {listed}, which is to get traffic; run again")

    def _put_all(self, asked: Asked, etag: str, epoch: int, *, begun: bool = False) -> None:
        """Have all objects say what is asked, from the state ``etag``; ``begun``: it is noted, and not done yet."""
        for index in range(len(self.ways)):
            # what was written before it has changed the state that the others are compared with
            self._put(index, asked, etag if index == 0 else None, epoch, begun=begun)

    def _put(self, index: int, asked: Asked, etag: str | None, epoch: int, *, begun: bool) -> None:
        way = self.ways[index]
        for _ in range(_ATTEMPTS):
            self.ctx.guard(epoch)
            found = self._find()
            live = found[index]
            fence(live, str(way), epoch)
            try:
                said = live is not None and asked_of(live) == asked
                if (
                    live is not None
                    and said
                    and (since_of(live) is None if begun else way.follows(live, asked))
                ):
                    if (
                        epoch_of(live) != epoch
                    ):  # whoever had it before cannot write from what he saw any more
                        way.annotate(live, {ANNOTATION_EPOCH: str(epoch)})
                    return
                if etag is not None and etag != self.etag(found):
                    raise StageError(self._changed(way))
                if live is None and not asked.traffic.weights:
                    return  # a door that was never made is closed
                own_or_absent(way, live)
                way.write(live, asked, self._notes(asked, epoch, begun=begun))
            except ConflictError:
                continue
            return
        raise StageError(f"{way} is changed again and again by others; run again")

    def _notes(self, asked: Asked, epoch: int, *, begun: bool) -> dict[str, str | None]:
        return {
            ANNOTATION_TRAFFIC: asked.model_dump_json(exclude_defaults=True),
            ANNOTATION_EPOCH: str(epoch),
            ANNOTATION_MOVED_BY: self.moved_by,
            ANNOTATION_SHIFTED: None if begun else f"{self.ctx.now():.3f}",
        }

    def _changed(self, way: Way) -> str:
        return (
            f"{way} is not what it was when this was decided: somebody else has changed it; run again, and see who "
            f"with `kubectl get {way.ref.kind.lower()} {way.ref.name} -o yaml --show-managed-fields`"
        )

    def _settled(self, epoch: int) -> ClusterRouted:
        """Wait until it is in effect."""
        begun, pause = time.monotonic(), pauses()
        while True:
            found = self._find()
            waits = [way.pending(one) for way, one in zip(self.ways, found, strict=True) if one is not None]
            left = [wait for wait in waits if wait is not None]
            if not left or time.monotonic() - begun >= max(wait.seconds for wait in left):
                self.ctx.guard(epoch)
                if left:
                    raise StageError(left[0].reason)
                return self._routed(found)
            time.sleep(next(pause))

    # -- the end ---------------------------------------------------------------------------------------------

    def down(self) -> list[str]:
        """Remove what it has made, and say, a line each, what that was."""
        return []
