"""The fence of a takeover: whoever was overtaken finds that what he looked at is not what is there any more."""

from __future__ import annotations

from contextlib import suppress

from shipctl.errors import ShipctlError, StageError
from shipctl.release.router import TrafficRouter
from shipctl_plugins._kubernetes import state
from shipctl_plugins._kubernetes.api.connection import ConflictError
from shipctl_plugins._kubernetes.app import ANNOTATION_EPOCH, Place
from shipctl_plugins._kubernetes.objects import reference
from shipctl_plugins._kubernetes.traffic.routing import ClusterRouter
from shipctl_plugins._kubernetes.traffic.ways import Json, Way, epoch_of, own_or_absent

_ATTEMPTS = 5


def fence(place: Place, router: TrafficRouter, epoch: int, *, replicas: bool = True) -> None:
    """Write a new epoch into the state, the Deployments, and the objects that the router changes.

    An owner from before who is suspended between his look at the lease and his write then has an old
    ``resourceVersion``, and the API server refuses it. Without ``replicas`` Deployments are left out: the right to
    change one is the right to run anything, and the watchdog has it not.
    """
    state.fence(place, epoch)
    found = place.cluster.list("apps/v1", "Deployment", place.app.pods) if replicas else ()
    for deployment in found:
        if epoch_of(deployment) < epoch:
            note = {"metadata": {"annotations": {ANNOTATION_EPOCH: str(epoch)}}}
            place.cluster.patch(reference(deployment), note)
    for way in router.ways if isinstance(router, ClusterRouter) else ():
        _fence(way, epoch)


def live(router: TrafficRouter) -> list[Json | None]:
    """Return the objects of the router as far as they can be asked for; what cannot, its first act will say."""
    found: list[Json | None] = []
    for way in router.ways if isinstance(router, ClusterRouter) else ():
        with suppress(ShipctlError):
            found.append(way.find())
    return found


def _is_anothers(way: Way, live: Json) -> bool:
    """Whether somebody else has made an object of our name, which the first act will say."""
    try:
        own_or_absent(way, live)
    except StageError:
        return True
    return False


def _fence(way: Way, epoch: int) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        live = way.find()
        if live is None or epoch_of(live) >= epoch or _is_anothers(way, live):
            return
        try:
            way.annotate(live, {ANNOTATION_EPOCH: str(epoch)})
        except ConflictError:
            if attempt == _ATTEMPTS:
                raise
            continue
        return
