"""Routes of a router that the spec names no more, which nobody is let remove: told, as their destinations go."""

from __future__ import annotations

from contextlib import suppress

from shipctl.errors import ShipctlError
from shipctl.release.references import Reference
from shipctl.release.router import RouterContext
from shipctl.release.routers import open_router
from shipctl_plugins._kubernetes.api.connection import ForbiddenError
from shipctl_plugins._kubernetes.app import Place
from shipctl_plugins._kubernetes.traffic.routing import ClusterRouter
from shipctl_plugins._kubernetes.traffic.ways import Way


def left_by(place: Place, before: Reference | None, now: Reference) -> list[str]:
    """Say, a line each, which objects of the router ``before`` stay after a promotion to the router ``now``.

    What may be listed and deleted does not: the promotion removes it.
    """
    if before is None or before.uses == now.uses:
        return []
    lines = []
    with suppress(ShipctlError):  # nobody knows that router any more, or what it makes
        router = open_router(before, RouterContext(name=place.app.name, access=place))
        for way in router.ways if isinstance(router, ClusterRouter) else ():
            missing = _missing(place, way) if way.own and way.ref.kind != "Service" else []
            if missing:
                lines.append(
                    f"{way}, which the router {before.uses} of before has made, is not removed with the promotion, and "
                    f"its destinations are: we may not {' and '.join(missing)} {way.ref.kind}s in namespace "
                    f"{place.app.namespace}; remove it, or have these rights until then"
                )
    return lines


def _missing(place: Place, way: Way) -> list[str]:
    """Return the rights that its removal needs and that we lack; none where it is not there."""
    if not place.cluster.has(way.ref.api_version, way.ref.kind):
        return []
    with suppress(ForbiddenError):  # it may be there, for all that we are told
        if way.find() is None:
            return []
    needed = {"list": "", "delete": way.ref.name}
    version, kind = way.ref.api_version, way.ref.kind
    return [
        verb for verb, name in needed.items() if not place.cluster.allowed(verb, version, kind, name=name)
    ]
