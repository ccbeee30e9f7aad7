"""What routers by routes have in common, be it a gateway's or a mesh's: a route of ours, or a rule of another's."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from shipctl.release.target import Capability
from shipctl.release.traffic import Traffic
from shipctl_plugins._kubernetes.traffic.foreign_rule import ForeignRule
from shipctl_plugins._kubernetes.traffic.routes import OwnRoute
from shipctl_plugins._kubernetes.traffic.routing import ClusterRouter
from shipctl_plugins._kubernetes.traffic.ways import Asked, Backends, Json


class RouteRouter(ClusterRouter):
    """Requests are divided by what reads them, one by one."""

    capabilities = frozenset({Capability.WEIGHTS, Capability.HEADERS, Capability.MIRROR, Capability.PREVIEW})
    foreign: ClassVar[str]
    """The option that names a route of somebody else."""
    kind: ClassVar[str]
    """The kind of the route."""

    @classmethod
    @abstractmethod
    def wants(cls, traffic: Traffic) -> str | None:
        """Say what of this a route of ours cannot do, and what to do instead; None if it can do all."""

    @classmethod
    def offers(cls, options: Any) -> frozenset[Capability]:
        """Return what a target can do with it: in a route of somebody else's, weights alone."""
        return cls.capabilities if not getattr(options, cls.foreign) else frozenset({Capability.WEIGHTS})

    @classmethod
    def refuses(cls, traffic: Traffic, options: Any = None) -> str | None:
        """Say why it cannot distribute requests so, and what to do instead; None if it can."""
        if options is None or not getattr(options, cls.foreign):
            return cls.wants(traffic)
        asked = {
            "the preview header": traffic.preview is not None,
            "segments": bool(traffic.segments),
            "sticky assignment": traffic.sticky is not None,
            "copies of requests": traffic.mirror is not None,
        }
        names = [name for name, wanted in asked.items() if wanted]
        if not names:
            return None
        return (
            f"a route of somebody else (option `{cls.foreign}`) gets weights only, and not {' and '.join(names)}, for "
            "which rules are needed; leave the option out, so that shipctl makes a route of its own"
        )

    def promises(self) -> list[str]:
        """Return lines for the plan: what this router does differently from a door of shipctl's own."""
        foreign = getattr(self.options, self.foreign)
        route = f"{self.kind} {foreign or self.place.app.name}"
        failing = (
            f"{route}: a revision that cannot be reached is not stood in for by the stable one; its share of the "
            "requests fails until the release is aborted"
        )
        whose = (
            f"{route} belongs to somebody else: when its owner applies it again, he has to leave out the destinations "
            "of our rule, or traffic is where he puts it"
        )
        return [failing, whose] if foreign else [failing]

    def manifests(self, traffic: Traffic, backends: Backends) -> list[Json]:
        """Return the routes of ours for this distribution; nothing is asked."""
        asked = Asked(traffic=traffic, backends=dict(backends))
        return [way.manifest(asked) for way in self.ways if isinstance(way, OwnRoute)]

    def down(self) -> list[str]:
        """Remove what it has made, and say, a line each, what that was."""
        said = [way.leave() for way in self.ways if isinstance(way, ForeignRule)]
        said += [way.remove() for way in self.ways if isinstance(way, OwnRoute)]
        return [line for line in said if line]
