"""The watchdog of one app: ``python -m shipctl_plugins._kubernetes.watchdog --app NAME --namespace NAMESPACE``.

It runs in the cluster, with rights of its own. Who drives a release renews the app's lease; once nobody has for as long
as it holds, and anything but the stable revision gets requests or copies of them, the watchdog takes the lease over and
puts all traffic back. Whoever held it is refused from then on. A preview is left alone: nobody's requests reach it.

How long the lease was not renewed it judges by its own clock, from when it saw it renewed last. While the API server
could not be asked nobody could renew anything; whoever holds the lease then has a moment more for it.

Where replicas were being replaced a few at a time, the stable revision has too few left for all requests: it gets them
back by the same rounds, and the traffic follows.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from shipctl.errors import LockedError, ShipctlError
from shipctl.release.lease import WATCHDOG, Lease
from shipctl.release.router import RouterContext
from shipctl.release.routers import open_router
from shipctl.release.surge import Surge
from shipctl.release.target import StaleEpochError
from shipctl.release.traffic import Traffic
from shipctl.spec.units import Duration
from shipctl_plugins._kubernetes import state as states
from shipctl_plugins._kubernetes.api.connection import Access, Cluster, connect
from shipctl_plugins._kubernetes.api.errors import UnreachableError
from shipctl_plugins._kubernetes.app import App, Place
from shipctl_plugins._kubernetes.fencing import fence
from shipctl_plugins._kubernetes.lease import ClusterLease
from shipctl_plugins._kubernetes.observe import Look, Observer
from shipctl_plugins._kubernetes.state import Entry
from shipctl_plugins._kubernetes.traffic.routing import ClusterRouter
from shipctl_plugins._kubernetes.traffic.scaling import Scaling

HELD_S = 0.5
"""Between two looks at a lease that somebody holds."""
IDLE_S = 1.0
"""Between two looks at one that nobody holds."""
SETTLED_S = 10.0
"""Between two looks at the traffic while nobody has touched the lease."""
GRACE_S = 5.0
"""How much longer a lease holds after the API server could not be asked: as long as the time between two renewals."""
ROUNDS_S = 120.0
"""How long replicas may be traded back before all traffic goes to those of the stable revision that there are."""
BACKOFF_S = (0.5, 5.0)
"""First and longest wait after something went wrong."""
CALL_S = 5.0
"""What one question to the API server may take, in all attempts."""


def astray(traffic: Traffic, stable: str | None) -> bool:
    """Whether anything but the stable revision gets requests, or copies of them."""
    aside = any(segment.revision not in {None, stable} for segment in traffic.segments)
    away = any(weight for revision, weight in traffic.weights.items() if revision != stable)
    return aside or away or traffic.mirror is not None


class Watchdog:
    """Looks after one app."""

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        log: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cluster = cluster
        self.name = name
        self.log = log
        self.clock = clock
        self.lease = ClusterLease(self._place(states.ModelState(), name), clock=clock)
        self.settled = False
        """Whether the last look found that there is nothing (more) to do, or that somebody renews the lease."""
        self._mark: tuple[int, str] | None = None
        self._looked = self._left = 0.0
        self._epoch: int | None = None
        self._gone: str | None = None
        self._rounds: float | None = None
        self._said = ""
        self._blind = False
        self._grace = 0.0

    def look(self) -> float:
        """Look, act if need be, and return how many seconds to wait until the next look.

        :raises ShipctlError: if the cluster cannot be asked, or does not let us
        """
        lease = self.lease.read()
        now = self.clock()
        if self._blind:
            self._blind, self._grace = False, now + GRACE_S
        left = 0.0 if lease is None else lease.expires - self.lease.now()
        if lease is not None and lease.holder not in {"", WATCHDOG}:
            left = max(left, self._grace - now)
        before, self._left = self._left, left
        if left > 0:
            self._mark, self.settled = None, left > before > 0
            return min(left, HELD_S)
        mark = (0, "") if lease is None else (lease.epoch, lease.holder)
        if mark == self._mark and now - self._looked < SETTLED_S:
            return IDLE_S
        self.settled = self._looked_after(lease)
        self._mark, self._looked = (mark, now) if self.settled else (None, now)
        return IDLE_S if self.settled else HELD_S

    def failed(self, error: Exception) -> None:
        """Note what went wrong with the last look."""
        self._blind = self._blind or isinstance(error, UnreachableError)

    def _looked_after(self, lease: Lease | None) -> bool:
        """Put the traffic back where nobody else does, and say whether it is there."""
        observer = self._observer()
        look = observer.look()
        ours = lease is not None and (lease.epoch, lease.holder) == (self._epoch, WATCHDOG)
        if not ours:
            self._rounds, self._said = None, ""
        # while replicas are traded, requests go wherever some are ready: that has an end of its own
        if not astray(look.routed.traffic, look.state.stable) and self._rounds is None:
            self._done(look.state.stable)
            return True
        if lease is None:
            self.log(
                f"there is no Lease {self.lease.ref.name}, so nobody releases {self.name}; traffic is left as it is"
            )
            return True
        epoch = lease.epoch
        try:
            if not ours:
                epoch = self.lease.take()
                self._epoch, self._gone = epoch, lease.holder
                fence(observer.place, observer.router, epoch, replicas=False)
                look = observer.look()
            self._put_back(observer, look, epoch)
        except (LockedError, StaleEpochError):  # somebody else was quicker, and looks after it
            self._epoch = self._gone = None
        return False  # until it has been seen there

    def _put_back(self, observer: Observer, look: Look, epoch: int) -> None:
        """Do the next thing on the way to the stable revision alone."""
        router, entry = observer.router, look.state.serving
        backends = {name: observer.backends(name) for name in look.deployments}
        etag = look.routed.etag
        traffic = Traffic.only(look.state.stable)
        scaling = Scaling(observer.place, lambda: self.lease.check(epoch))
        if entry is None or not self._in_rounds(look, entry, scaling):
            router.set(traffic, backends, etag=etag, epoch=epoch)
            self._rounds = None
            return

        def follow(ready: Mapping[str, int]) -> None:
            if isinstance(router, ClusterRouter) and any(ready.values()):
                router.follow(traffic, ready, backends, etag=etag, epoch=epoch)

        said = scaling.replace(look, entry, Surge(), follow)
        if said != self._said:
            self.log(said)
        self._said = said

    def _in_rounds(self, look: Look, entry: Entry, scaling: Scaling) -> bool:
        """Whether the stable revision has to get replicas back first that it has given up to others."""
        now = self.clock()
        given_up = not entry.autoscaled and look.group(entry.revision).asked < entry.replicas
        if given_up and self._rounds is None:
            self._rounds = now
        return (
            self._rounds is not None
            and now - self._rounds < ROUNDS_S
            and not scaling.has_replaced(look, entry)
        )

    def _done(self, stable: str | None) -> None:
        if self._epoch is not None and self._gone is not None:
            where = (
                f"back on the stable revision {stable[:12]}"
                if stable is not None
                else "off: nothing is stable"
            )
            who = self._gone if self._gone not in {"", WATCHDOG} else "nobody"
            did = "does not renew the lease any more" if who != "nobody" else "holds the lease"
            self.log(f"{who} {did} (epoch {self._epoch} from now on): all traffic is {where}")
        self._epoch = self._gone = None

    # -- what it is made of ---------------------------------------------------------------------------------

    def _observer(self) -> Observer:
        """Return what looks, with the router that the app has now."""
        found = self.cluster.get(states.reference(self.lease.place))
        state, _ = states.read(self.lease.place, found)
        labels = (found or {}).get("metadata", {}).get("labels") or {}
        place = self._place(
            state, labels.get("app.kubernetes.io/part-of", self.name), labels.get("shipctl.dev/environment")
        )
        ctx = RouterContext(name=self.name, access=place, guard=self.lease.check, log=self.log)
        router = open_router(state.router or "replicas", ctx)
        if isinstance(router, ClusterRouter):
            router.moved_by = WATCHDOG
        return Observer(place, router, self.lease)

    def _place(self, state: states.ModelState, pipeline: str, environment: str | None = None) -> Place:
        app = App(self.name, self.cluster.namespace, pipeline, environment)
        return Place(self.cluster, app, *state.ports)


# -- running --------------------------------------------------------------------------------------------------


def keep_looking(watchdog: Watchdog, *, once: bool, wait: Callable[[float], None] = time.sleep) -> None:
    """Look until somebody ends us; with ``once`` until it is known that there is nothing to do, or it is done.

    :raises ShipctlError: with ``once``, if it cannot be done
    """
    first, longest = BACKOFF_S
    delay, said = first, ""
    while True:
        try:
            pause = watchdog.look()
            delay, said = first, ""
            if once and watchdog.settled:
                return
        except Exception as error:
            watchdog.failed(error)
            if once and isinstance(error, ShipctlError):
                raise
            text = str(error) if isinstance(error, ShipctlError) else repr(error)
            if text != said:  # once, however often it fails like that
                watchdog.log(text)
            pause, delay, said = delay, min(2 * delay, longest), text
        wait(pause)


def say(message: str) -> None:
    """Write one line with the time."""
    print(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), message, flush=True)  # noqa: T201


def main(arguments: Sequence[str] | None = None) -> None:
    """Watch until SIGTERM."""
    given = _parser().parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    access = Access(
        kubeconfig=given.kubeconfig,
        context=given.context,
        namespace=given.namespace,
        timeout=Duration(f"{CALL_S:g}s"),
    )
    try:
        cluster = connect(access, Path.cwd(), say)
        say(f"watching over {given.app} in {cluster.namespace} as {cluster.user}")
        keep_looking(Watchdog(cluster, given.app, say), once=given.once)
    except ShipctlError as error:
        say(str(error))
        sys.exit(1)


def _end(_number: int, _frame: object) -> NoReturn:
    # in the middle of a call, too: whatever was begun is begun again by the next one of us
    sys.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m shipctl_plugins._kubernetes.watchdog",
        description="Put traffic back on the stable revision when nobody who releases is left.",
    )
    parser.add_argument("--app", required=True, metavar="NAME", help="the name of the target in the cluster")
    parser.add_argument("--namespace", help="where it is; left out, the account's own")
    parser.add_argument("--kubeconfig", help="a file; left out, the account of the pod")
    parser.add_argument("--context", help="a context of it; left out, the current one")
    parser.add_argument("--once", action="store_true", help="end once there is nothing (more) to do")
    return parser


if __name__ == "__main__":
    main()
