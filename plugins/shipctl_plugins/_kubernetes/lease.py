"""Who may act on an app in a cluster: a Lease of `coordination.k8s.io/v1`, with the epoch in `leaseTransitions`.

Clocks of machines differ, so nobody compares somebody else's time with his own. As in client-go's leader election, a
lease has run out when one has seen it unchanged for as long as it lasts, by one's own clock that only goes forwards.
Every write names the version that it was made from, so of two that take the lease at once, one is told.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from shipctl.errors import LockedError, ShipctlError
from shipctl.processes import has_ended
from shipctl.release.lease import WATCHDOG, Lease
from shipctl.release.target import LEASE_SECONDS, StaleEpochError
from shipctl_plugins._kubernetes import objects
from shipctl_plugins._kubernetes.api.connection import ConflictError, Ref
from shipctl_plugins._kubernetes.app import Place
from shipctl_plugins._kubernetes.traffic.ways import Json, epoch_of

API_VERSION = "coordination.k8s.io/v1"
_ATTEMPTS = 5
"""How often a lease is looked at again that somebody else changes at the same time."""
_POLL_S = 0.5
"""Seconds between two looks at a lease that is waited for."""


class ClusterLease:
    """The lease of one app. ``now`` is what others are told (seconds since the epoch), ``clock`` what is waited by."""

    def __init__(
        self,
        place: Place,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        routes: Callable[[], Iterable[Json | None]] = tuple,
    ) -> None:
        """``routes`` returns the objects in which a router leaves epochs, also those that are somebody else's."""
        self.place = place
        self._routes = routes
        self.now = now
        self.clock = clock
        self.ref = Ref(API_VERSION, "Lease", place.app.kept)
        self._seen: tuple[tuple[Any, ...], float] = ((), 0.0)
        self._held: dict[int, tuple[str, str]] = {}

    def read(self) -> Lease | None:
        """Return the lease as it stands, with how long it still holds by this machine's clock; None if there is none.

        :raises ShipctlError: if the cluster cannot be asked
        """
        found = self.place.cluster.get(self.ref)
        return None if found is None else self._as_seen(found)

    def acquire(self, holder: str, seconds: float) -> int:
        """Take or renew the lease for ``seconds`` and return its epoch.

        A holder that is a process of this machine which has ended (:func:`shipctl.processes.own_name`) is not waited
        for. The epoch is the same while ``holder`` takes it again and nobody else has in between, also after it has
        run out; else the next one.

        :raises LockedError: while it is another holder's, naming him and how long it still holds
        """
        return self._changed(lambda lease: (self._epoch_for(lease, holder), holder), seconds)

    def own(self) -> str | None:
        """Return the name under which this very object has taken the lease as it stands; None if it has not."""
        found = self.place.cluster.get(self.ref)
        if found is None:
            return None
        lease = self._as_seen(found)
        uid, holder = self._held.get(lease.epoch, ("", ""))
        return holder if holder and (uid, holder) == (found["metadata"]["uid"], lease.holder) else None

    def acquire_from_the_dead(self, holder: str, seconds: float, say: Callable[[str], None]) -> int:
        """Take the lease as :meth:`acquire`, and wait for as long as it holds to see whether its holder is still there.

        ``say`` is told that this is waited for.

        :raises LockedError: once its holder renews it
        """
        first = None
        while True:
            try:
                return self.acquire(holder, seconds)
            except LockedError as exc:
                mark = self._seen[0]
                if first is None:
                    say(f"{exc.args[0].partition(';')[0]}; waiting to see whether it does")
                elif mark != first:
                    raise
                first = mark
            time.sleep(_POLL_S)

    def renew(self, epoch: int, seconds: float) -> None:
        """Hold the lease for another ``seconds``, if ``epoch`` still is the newest.

        :raises StaleEpochError: as :meth:`check`
        """

        def same(lease: Lease) -> tuple[int, str]:
            self._must_be(lease, epoch)
            if not lease.holder:  # it was given back, or removed
                raise _stale(lease, epoch)
            return epoch, lease.holder

        self._changed(same, seconds)

    @contextmanager
    def kept(self, epoch: int) -> Iterator[None]:
        """Renew the lease again and again while the block runs, which may take longer than a lease holds."""
        end = threading.Event()

        def run() -> None:
            while not end.wait(LEASE_SECONDS / 3):
                with suppress(ShipctlError):  # the block's own next act will say it
                    self.renew(epoch, LEASE_SECONDS)

        thread = threading.Thread(target=run, name="shipctl-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()

    def check(self, epoch: int) -> None:
        """Do nothing if ``epoch`` is the newest one; it is 0 where nobody has ever taken the lease.

        :raises StaleEpochError: if somebody has taken the target over since, or the lease was removed
        """
        found = self.place.cluster.get(self.ref)
        lease = Lease(epoch=0, holder="", expires=0.0) if found is None else self._as_seen(found)
        self._must_be(lease, epoch)
        uid, holder = self._held.get(epoch, ("", ""))
        # numbers begin anew where somebody has removed everything: then the same number is another's
        if found is not None and uid and (uid, holder) != (found["metadata"]["uid"], lease.holder):
            raise _stale(lease, epoch)

    def release(self, epoch: int) -> None:
        """Give the lease back; one that is somebody else's by now, or gone, is left alone."""
        for _ in range(_ATTEMPTS):
            found = self.place.cluster.get(self.ref)
            lease = None if found is None else self._as_seen(found)
            if found is None or lease is None or lease.epoch != epoch or not lease.holder:
                return
            with suppress(ConflictError):
                self._replace(found, "", epoch, 1.0)
                return

    def take(self, holder: str = WATCHDOG) -> int:
        """Take the lease from whoever let it run out, for no time at all, and return the new epoch.

        :raises LockedError: if it has not run out
        """

        def next_one(lease: Lease) -> tuple[int, str]:
            now = self.now()
            if lease.valid(now):
                message = f"{lease.holder} holds the target, for another {lease.expires - now:.0f} s"
                raise LockedError(message)
            return lease.epoch + 1, holder

        return self._changed(next_one, 1.0)

    # -- helpers --------------------------------------------------------------------------------------------

    def _epoch_for(self, lease: Lease, holder: str) -> int:
        now = self.now()
        if lease.holder == holder:
            return lease.epoch
        if lease.valid(now) and not has_ended(lease.holder):
            message = (
                f"{lease.holder} holds the target, for another {lease.expires - now:.0f} s unless it renews that; "
                "wait for it, or run `shipctl abort` to end its release"
            )
            raise LockedError(message)
        return lease.epoch + 1

    def _must_be(self, lease: Lease, epoch: int) -> None:
        if lease.epoch != epoch:
            raise _stale(lease, epoch)

    def _changed(self, decide: Callable[[Lease], tuple[int, str]], seconds: float) -> int:
        """Write what ``decide`` says of the lease as it stands: its epoch and its holder."""
        for _ in range(_ATTEMPTS):
            found = self.place.cluster.get(self.ref)
            lease = self._never_taken() if found is None else self._as_seen(found)
            epoch, holder = decide(lease)
            with suppress(ConflictError):
                written = self._replace(found, holder, epoch, seconds)
                self._held[epoch] = (written["metadata"]["uid"], holder)
                return epoch
        message = f"others change the lease {self.ref.name} of {self.place.app.namespace} again and again; run again"
        raise LockedError(message)

    def _never_taken(self) -> Lease:
        """Return what stands for a lease that is not there. One that was removed goes on counting where it was.

        Else what an owner from before has written, and nobody removed, would keep everybody out for ever.
        """
        kinds = (*objects.ROUTES, *objects.SERVERS, objects.Kind("v1", "ConfigMap"))
        kept = self.place.cluster.get(Ref("v1", "ConfigMap", self.place.app.kept))
        written = [kept, *objects.ours(self.place, kinds), *self._routes()]
        return Lease(epoch=max(map(epoch_of, written)), holder="", expires=0.0)

    def _replace(
        self, found: dict[str, Any] | None, holder: str, epoch: int, seconds: float
    ) -> dict[str, Any]:
        now = _instant(self.now())
        before = {} if found is None else found.get("spec", {})
        taken = before.get("acquireTime") if before.get("leaseTransitions") == epoch else None
        spec = {
            "holderIdentity": holder,
            "leaseDurationSeconds": max(1, round(seconds)),
            "acquireTime": taken or now,
            "renewTime": now,
            "leaseTransitions": epoch,
        }
        if found is None:
            return self.place.cluster.create(
                self.place.labelled("Lease", API_VERSION, self.ref.name, spec=spec)
            )
        written = self.place.cluster.replace({**found, "spec": {**before, **spec}})
        self._as_seen(written)
        return written

    def _as_seen(self, found: dict[str, Any]) -> Lease:
        spec = found.get("spec", {})
        holder, epoch = spec.get("holderIdentity") or "", spec.get("leaseTransitions") or 0
        mark = (found["metadata"].get("uid"), holder, epoch, spec.get("renewTime"))
        clock = self.clock()
        if self._seen[0] != mark:
            self._seen = (mark, clock)
        left = float(spec.get("leaseDurationSeconds") or 0) - (clock - self._seen[1])
        held = bool(holder) and holder != WATCHDOG
        return Lease(epoch=epoch, holder=holder, expires=max(0.0, self.now() + left) if held else 0.0)


def _stale(lease: Lease, epoch: int) -> StaleEpochError:
    message = (
        f"{lease.holder or 'somebody else'} has taken the target over (epoch {lease.epoch}, this is {epoch}): "
        "nothing was done; look with `shipctl status` and apply again"
    )
    return StaleEpochError(message)


def _instant(seconds: float) -> str:
    """Return a time as Kubernetes' MicroTime has it (RFC 3339 with six digits)."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
