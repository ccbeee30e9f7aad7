"""An app is taken away: what brings requests first, who may act last, and nobody else acts meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from shipctl.processes import own_name
from shipctl.release.target import LEASE_SECONDS
from shipctl_plugins._kubernetes import objects
from shipctl_plugins._kubernetes.app import Place
from shipctl_plugins._kubernetes.lease import ClusterLease
from shipctl_plugins._kubernetes.objects import Kind


def taken_away(
    place: Place,
    lease: ClusterLease,
    kinds: Iterable[Kind],
    log: Callable[[str], None],
    leave: Callable[[], list[str]] = list,
) -> list[str]:
    """Delete what is ours of these kinds, in their order, after ``leave``, and say, a line each, what that was.

    The lease is taken first, unless this very object has it: nobody writes what was deleted once more. ``log`` is told
    who is waited for, in case that he has died.

    :raises LockedError: if another process acts on it, such as one that drives a release
    """
    kinds = list(kinds)
    if not objects.any_of_ours(place, kinds):
        return leave()
    had = lease.read() is not None
    epoch = lease.acquire_from_the_dead(lease.own() or own_name(), LEASE_SECONDS, log)
    try:
        with lease.kept(epoch):
            found = objects.ours(place, kinds)
            leases = [each for each in found if each["kind"] == "Lease"]
            lines = [*leave(), *objects.remove(place, [each for each in found if each not in leases])]
        lease.check(epoch)
        last = objects.remove(place, leases)
    finally:
        lease.release(epoch)
    return [*lines, *(last if had else ())]
