"""Nobody renews the lease any more: a process in the cluster, with no rights but its Role's, puts traffic back.

On a real API server, with owners that are processes and are killed or stopped for real.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from shipctl.errors import StageError
from shipctl.release.references import Reference
from shipctl.release.router import RouterContext, TrafficRouter
from shipctl.release.routers import open_router
from shipctl.release.surge import Surge
from shipctl.release.target import LEASE_SECONDS, Candidate, Commit, Shift, StaleEpochError
from shipctl.release.traffic import Mirror, Segment, Traffic
from shipctl_plugins._kubernetes import state as states
from shipctl_plugins._kubernetes.api.connection import Access, connect
from shipctl_plugins._kubernetes.api.transport import Answer, Request, Transport
from shipctl_plugins._kubernetes.app import App, Place
from shipctl_plugins._kubernetes.lease import ClusterLease
from shipctl_plugins._kubernetes.manifests import render
from shipctl_plugins._kubernetes.manifests.options import KubernetesOptions
from shipctl_plugins._kubernetes.manifests.roles import watchdog_rules
from shipctl_plugins._kubernetes.observe import Observer
from shipctl_plugins._kubernetes.plans import Plans
from shipctl_plugins._kubernetes.state import Entry, ModelState
from shipctl_plugins._kubernetes.traffic.scaling import Scaling
from shipctl_plugins._kubernetes.watchdog import GRACE_S, Watchdog, astray
from support_cluster import CLUSTER, LIMITED, ControlPlane, user_kubeconfig, wait_for
from support_control_plane import write_kubeconfig
from support_kubernetes import GATEWAY, NEW, OLD, MakeTarget, make_target, new, old, prepared, released

__all__ = ["make_target", "new", "old"]

STABLE, CANDIDATE = "a" * 64, "c" * 64
WITHIN = 2.0
"""The watchdog's time, on top of the lease's."""
HALF = Traffic(weights={STABLE: 50, CANDIDATE: 50}, fallback=STABLE)
ROUTERS: dict[str, dict[str, Any]] = {
    "replicas": {"uses": "replicas"},
    "gateway-api": {"uses": "gateway-api", "with": {"gateways": [{"name": "public"}]}},
    "istio": {"uses": "istio"},
}

_OWNER = """
import json, sys, time
from pathlib import Path
from shipctl.errors import ShipctlError
from shipctl.processes import own_name
from shipctl.release.router import RouterContext
from shipctl.release.routers import open_router
from shipctl.release.traffic import Traffic
from shipctl_plugins._kubernetes.app import App, Place
from shipctl_plugins._kubernetes.api.connection import Access, connect
from shipctl_plugins._kubernetes.lease import ClusterLease
from shipctl_plugins._kubernetes.observe import Observer

kubeconfig, namespace, router, traffic, seconds = sys.argv[1:]
cluster = connect(Access(kubeconfig=kubeconfig, namespace=namespace), Path(), lambda _: None)
place = Place(cluster, App("shop", namespace, "shop"))
lease = ClusterLease(place)
router = open_router(json.loads(router), RouterContext(name="shop", access=place, guard=lease.check))
observer = Observer(place, router, lease)
traffic = Traffic.model_validate_json(traffic)
epoch = lease.acquire(own_name(), float(seconds))
try:
    while True:
        for name in sorted(traffic.revisions):
            assert observer.backends(name)
        lease.renew(epoch, float(seconds))
        backends = {name: observer.backends(name) for name in traffic.revisions}
        routed = router.set(traffic, backends, etag=router.get().etag, epoch=epoch)
        if routed.since is not None:
            print("there", time.time(), flush=True)
        time.sleep(0.5)
except ShipctlError as error:
    print(type(error).__name__, flush=True)
"""


@dataclass
class Said:
    """A process, and what it says."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with suppress(ValueError):
            for line in self.process.stdout:
                self.lines.append(line.rstrip("\n"))

    def end(self) -> None:
        with self.process as process:
            process.kill()

    def says(self, text: str, seconds: float = 20.0) -> str:
        return wait_for(lambda: next((line for line in self.lines if text in line), ""), seconds, text)


@dataclass
class Shop:
    """An app of two revisions that are both there, and who may do what with it."""

    plane: ControlPlane
    namespace: str
    folder: Path
    reference: dict[str, Any]
    stack: ExitStack

    def __post_init__(self) -> None:
        access = Access(kubeconfig=str(self.plane.kubeconfig), namespace=self.namespace)
        cluster = self.stack.enter_context(connect(access, self.folder, lambda _: None))
        self.place = Place(cluster, App("shop", self.namespace, "shop"))
        self.lease = ClusterLease(self.place)
        ctx = RouterContext(name="shop", access=self.place, guard=self.lease.check, log=lambda _: None)
        self.router: TrafficRouter = open_router(self.reference, ctx)
        self.observer = Observer(self.place, self.router, self.lease)
        self.options = KubernetesOptions.model_validate(
            {
                "name": "shop",
                "namespace": self.namespace,
                "router": self.reference,
                "image": "tritonserver:1",
                "disruptionBudget": None,
                "watchdog": {"image": "shipctl:1"},
            }
        )

    def begin(self, *, stable: str | None = STABLE, replicas: tuple[int, int] = (2, 2)) -> None:
        """Have both revisions run, and all traffic on the stable one."""
        cluster = self.place.cluster
        plans = Plans(self.options, self.place.app, self.folder)
        entries = {name: entry(name) for name in (STABLE, CANDIDATE)}
        for name, count in zip(entries, replicas, strict=True):
            for manifest in plans.revision(entries[name], count):
                cluster.apply(manifest)
        cluster.apply(render.door(self.options, self.place.app, None))
        router = Reference.model_validate(self.reference)
        states.save(self.place, ModelState(stable=stable, entries=entries, router=router), "", 0)
        epoch = self.lease.acquire("test", 60)
        wait_for(
            lambda: all(
                each.ready >= each.wanted for each in self.observer.look().observation.replicas.values()
            ),
            what=f"the pods are not ready: {self.observer.look().observation.replicas}",
        )
        if stable is not None:
            self.set(Traffic.only(stable), epoch)
        self.lease.release(epoch)

    def set(self, traffic: Traffic, epoch: int) -> None:
        backends = {name: self.observer.backends(name) for name in (STABLE, CANDIDATE)}

        def there() -> bool:
            etag = self.router.get().etag
            return self.router.set(traffic, backends, etag=etag, epoch=epoch).since is not None

        wait_for(there, what=f"the traffic is not {traffic}")

    @property
    def traffic(self) -> Traffic:
        return self.router.get().traffic

    def owner(self, traffic: Traffic = HALF, seconds: float = 3.0) -> Said:
        """Start who drives a release, and return once it has moved the traffic."""
        script = self.folder / "owner.py"
        script.write_text(_OWNER)
        given = [str(self.plane.kubeconfig), self.namespace, json.dumps(self.reference)]
        command = [sys.executable, str(script), *given, traffic.model_dump_json(), str(seconds)]
        owner = Said(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        self.stack.callback(owner.end)
        owner.says("there", 30)
        return owner

    def watchdog(self, *options: str, url: str | None = None, rules: Any = None) -> Said:
        """Start the watchdog as its Deployment does, by an account that has its Role."""
        name = LIMITED[0]
        given = watchdog_rules(self.options, self.place.app) if rules is None else rules
        kubeconfig = user_kubeconfig(self.plane, self.folder, name, given, self.namespace)
        if url is not None:
            write_kubeconfig(kubeconfig, url, self.plane.ca, self.plane.users[name], self.namespace)
        objects = render.shared_objects(self.options, self.place.app, base=self.folder)
        deployment = next(
            each
            for each in objects
            if each["kind"] == "Deployment" and each["metadata"]["name"] == "shop-watchdog"
        )
        command = deployment["spec"]["template"]["spec"]["containers"][0]["command"]
        command = [sys.executable, *command[1:], "--kubeconfig", str(kubeconfig), *options]
        said = Said(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        self.stack.callback(said.end)
        said.says("watching over shop")
        return said

    def until_stable(self, seconds: float) -> float:
        """Wait until all traffic is on the stable revision, and return how long that took."""
        begin = time.monotonic()
        wait_for(lambda: self.traffic == Traffic.only(STABLE), seconds, f"{self.traffic}")
        return time.monotonic() - begin


def entry(revision: str) -> Entry:
    return Entry(
        revision=revision,
        version="1.0.0" if revision == STABLE else "2.0.0",
        model="digits",
        digest=revision[::-1],
        repository=f"s3://models/{revision}",
        image="tritonserver:1",
        replicas=2,
        since=time.time(),
    )


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def shop(
    control_plane: ControlPlane, namespace: str, tmp_path: Path, stack: ExitStack
) -> Callable[[str], Shop]:
    def made(router: str) -> Shop:
        return Shop(control_plane, namespace, tmp_path, ROUTERS.get(router, {"uses": router}), stack)

    return made


pytestmark = [CLUSTER, pytest.mark.slow]


@pytest.mark.parametrize("router", ROUTERS)
def test_an_owner_that_is_killed_leaves_nothing_on_the_candidate(
    shop: Callable[[str], Shop], router: str, record_property: Callable[[str, object], None]
) -> None:
    """Not before its lease has run out, and no more than the watchdog's own time after that."""
    here = shop(router)
    here.begin()
    watchdog = here.watchdog()
    seconds = LEASE_SECONDS if router == "gateway-api" else 3.0
    owner = here.owner(seconds=seconds)
    time.sleep(2)
    assert here.traffic.weight(CANDIDATE) == 50
    before = here.lease.read()
    assert before is not None
    os.kill(owner.process.pid, signal.SIGKILL)
    renewed = max(float(line.split()[1]) for line in owner.lines if line.startswith("there"))
    begin = time.time()
    while time.time() < renewed + seconds - 1:
        assert here.traffic.weight(CANDIDATE) == 50
        time.sleep(0.1)
    here.until_stable(1 + WITHIN + 1)
    took = time.time() - begin
    assert took < seconds + WITHIN
    record_property("seconds from the kill to all traffic on stable", round(took, 2))
    print(f"{router}: {took:.2f} s after the kill, with a lease of {seconds:g} s")
    watchdog.says("does not renew the lease any more")
    (line,) = [line for line in watchdog.lines if "all traffic is" in line]
    assert line.endswith(
        f"{before.holder} does not renew the lease any more (epoch {before.epoch + 1} from now on): all traffic is "
        f"back on the stable revision {STABLE[:12]}"
    )
    lease = here.lease.read()
    assert lease is not None
    assert (lease.epoch, lease.holder) == (before.epoch + 1, "watchdog")
    assert here.observer.look().observation.rescued, "who goes on is told who has moved the traffic"
    here.set(HALF, here.lease.acquire("another", 60))
    assert not here.observer.look().observation.rescued


def test_an_owner_that_wakes_up_changes_nothing(shop: Callable[[str], Shop]) -> None:
    here = shop("gateway-api")
    here.begin()
    here.watchdog()
    owner = here.owner()
    epoch = here.lease.read().epoch  # type: ignore[union-attr]
    before = here.router.get().etag
    state, version = states.load(here.place)
    os.kill(owner.process.pid, signal.SIGSTOP)
    here.until_stable(3 + WITHIN + 1)
    lines = len(owner.lines)
    os.kill(owner.process.pid, signal.SIGCONT)
    owner.says("StaleEpochError")
    assert len(owner.lines) == lines + 1
    assert here.traffic == Traffic.only(STABLE)
    with pytest.raises(StaleEpochError):
        here.lease.check(epoch)
    backends = {name: here.observer.backends(name) for name in (STABLE, CANDIDATE)}
    with pytest.raises(StaleEpochError):
        here.router.set(HALF, backends, etag=before, epoch=epoch)
    with pytest.raises(StageError, match="was changed by somebody else meanwhile"):
        states.save(here.place, state.model_copy(update={"stable": CANDIDATE}), version, epoch)
    assert here.traffic == Traffic.only(STABLE)
    # whoever comes next goes on
    following = here.lease.acquire("test", 60)
    assert following == epoch + 2
    here.set(HALF, following)


def test_it_is_quiet_while_the_lease_is_renewed_and_when_all_is_well(shop: Callable[[str], Shop]) -> None:
    here = shop("gateway-api")
    here.begin()
    watchdog = here.watchdog()
    owner = here.owner(seconds=2.0)
    time.sleep(6)
    assert here.traffic.weight(CANDIDATE) == 50
    assert owner.process.poll() is None
    owner.end()
    here.until_stable(2 + WITHIN + 1)
    epoch = here.lease.read().epoch  # type: ignore[union-attr]
    time.sleep(3)
    assert here.lease.read().epoch == epoch  # type: ignore[union-attr]
    assert len(watchdog.lines) == 2
    begin = time.monotonic()
    watchdog.process.terminate()
    assert watchdog.process.wait(5) == 0
    assert time.monotonic() - begin < 3


def test_a_lease_that_was_given_back_is_not_waited_for(shop: Callable[[str], Shop]) -> None:
    here = shop("gateway-api")
    here.begin()
    here.watchdog()
    epoch = here.lease.acquire("test", 60)
    here.set(HALF, epoch)
    here.lease.release(epoch)
    assert here.until_stable(1 + WITHIN) < 1 + WITHIN


@pytest.mark.parametrize("what", ["mirror", "segment", "first", "preview"])
def test_copies_segments_and_a_first_release_end_as_well_and_a_preview_stays(
    shop: Callable[[str], Shop], what: str
) -> None:
    here = shop("gateway-api")
    here.begin(stable=None if what == "first" else STABLE)
    epoch = here.lease.acquire("test", 60)
    whole = {STABLE: 100}
    segment = Segment(name="s", header="x-s", values=("1",), revision=CANDIDATE)
    traffic = {
        "mirror": Traffic(weights=whole, fallback=STABLE, mirror=Mirror(percent=100, candidate=CANDIDATE)),
        "segment": Traffic(weights=whole, fallback=STABLE, segments=(segment,)),
        "first": Traffic(weights={CANDIDATE: 100}, fallback=CANDIDATE),
        "preview": Traffic(weights=whole, fallback=STABLE, preview=CANDIDATE),
    }[what]
    here.set(traffic, epoch)
    here.lease.release(epoch)
    watchdog = here.watchdog("--once")
    assert watchdog.process.wait(20) == 0
    after = {"first": Traffic(), "preview": traffic}.get(what, Traffic.only(STABLE))
    assert here.traffic == after
    told = [line for line in watchdog.lines if "all traffic is" in line]
    assert len(told) == (what != "preview")
    assert what != "first" or told[0].endswith("all traffic is off: nothing is stable")


def test_replicas_that_were_being_replaced_come_back_first(shop: Callable[[str], Shop]) -> None:
    """And somebody answers all the time."""
    here = shop("replicas")
    here.begin(replicas=(2, 0))
    epoch = here.lease.acquire("test", 4)
    scaling = Scaling(here.place, lambda: here.lease.check(epoch))

    def half() -> bool:
        look = here.observer.look()
        here.lease.renew(epoch, 4)
        groups = [look.group(name) for name in (STABLE, CANDIDATE)]
        follow = partial(_follow, here, look, Traffic.only(CANDIDATE), epoch)
        if [group.ready for group in groups] == [1, 1]:
            follow({STABLE: 1, CANDIDATE: 1})  # the shares follow what is ready
            return True
        scaling.replace(look, look.state.entries[CANDIDATE], Surge(maxSurge=1, maxUnavailable=1), follow)
        return False

    wait_for(half, 30, "the replicas are not half replaced")
    assert here.traffic.weight(CANDIDATE) == 50
    watchdog = here.watchdog()
    least = []

    def back() -> bool:
        look = here.observer.look()
        counted = [look.group(name).ready for name in (STABLE, CANDIDATE)]
        least.append(sum(counted))
        return counted == [2, 0] and here.traffic == Traffic.only(STABLE)

    wait_for(back, 30, "the replicas are not back")
    assert min(least) >= 2, "ready replicas, all the time"
    watchdog.says(f"all traffic is back on the stable revision {STABLE[:12]}")


def _follow(here: Shop, look: Any, traffic: Traffic, epoch: int, ready: Any) -> None:
    backends = {name: here.observer.backends(name) for name in look.deployments}
    here.router.follow(traffic, ready, backends, etag=look.routed.etag, epoch=epoch)  # type: ignore[attr-defined]


def test_a_release_of_the_target_is_looked_after_by_what_the_target_remembers(
    make_target: MakeTarget,
    old: Candidate,
    new: Candidate,
    control_plane: ControlPlane,
    namespace: str,
    tmp_path: Path,
    stack: ExitStack,
) -> None:
    target = make_target(router=GATEWAY, watchdog={"image": "shipctl:1"})
    epoch = released(target, old)
    prepared(target, new, epoch)
    target.apply(Shift(traffic=Traffic(weights={OLD: 70, NEW: 30}, fallback=OLD)), new, epoch)
    assert target.observe().traffic.weight(NEW) == 30
    target.release(epoch)
    here = Shop(control_plane, namespace, tmp_path, GATEWAY, stack)
    assert here.watchdog("--once").process.wait(20) == 0
    assert target.observe().traffic == Traffic.only(OLD)
    with pytest.raises(StaleEpochError):
        target.apply(Commit(expected=OLD, revision=NEW), new, epoch)
    assert target.observe().stable == OLD


# -- what can go wrong with the cluster -----------------------------------------------------------------------


class Door:
    """A port that leads to the API server, or for a while to nobody."""

    def __init__(self, url: str) -> None:
        self._to = (urlsplit(url).hostname, urlsplit(url).port)
        self._open: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._server.getsockname()[1]}"
        self.shut = False
        self.asked = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._server.accept()
                if self.shut:
                    here.close()
                    continue
                self.asked.set()
                there = socket.create_connection(self._to)
                self._open += [here, there]
                for pair in ((here, there), (there, here)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    @staticmethod
    def _pass_on(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while piece := one.recv(1 << 16):
                other.sendall(piece)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.shut = True
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._open.clear()


@contextmanager
def door(url: str) -> Iterator[Door]:
    found = Door(url)
    try:
        yield found
    finally:
        found.close()
        found._server.close()


def test_an_api_server_that_was_away_makes_nobody_lose_his_lease(
    shop: Callable[[str], Shop], control_plane: ControlPlane
) -> None:
    """While it is, nobody can renew; whoever still wants to has a moment for it. One who is dead does not."""
    here = shop("gateway-api")
    here.begin()
    with door(control_plane.url) as way:
        watchdog = here.watchdog(url=way.url)
        owner = here.owner(seconds=3.0)
        time.sleep(1)
        os.kill(owner.process.pid, signal.SIGSTOP)  # it cannot renew either
        way.close()
        watchdog.says("the API server", 15)
        time.sleep(3)
        assert here.traffic.weight(CANDIDATE) == 50
        way.asked.clear()
        way.shut = False
        assert way.asked.wait(10)
        time.sleep(2)
        os.kill(owner.process.pid, signal.SIGCONT)
        time.sleep(GRACE_S + 2)
        assert owner.process.poll() is None
        assert here.traffic.weight(CANDIDATE) == 50
        way.close()
        owner.end()
        time.sleep(5)
        way.shut = False
        here.until_stable(5 + GRACE_S + WITHIN)
        assert watchdog.process.poll() is None


def test_it_goes_on_when_it_has_its_rights_again(shop: Callable[[str], Shop]) -> None:
    here = shop("gateway-api")
    here.begin()
    epoch = here.lease.acquire("test", 60)
    here.set(HALF, epoch)
    here.lease.release(epoch)
    rules = watchdog_rules(here.options, here.place.app)
    without = [rule for rule in rules if "httproutes" not in rule["resources"]]
    watchdog = here.watchdog(rules=without)
    watchdog.says(f"{LIMITED[0]} may not get httproutes in namespace {here.namespace}; add to a Role there: ")
    time.sleep(1)
    assert len(watchdog.lines) == 2, "once"
    user_kubeconfig(here.plane, here.folder, LIMITED[0], rules, here.namespace)
    here.until_stable(10)


def test_somebody_who_takes_over_meanwhile_goes_first(shop: Callable[[str], Shop]) -> None:
    here = shop("gateway-api")
    here.begin()
    epoch = here.lease.acquire("test", 60)
    here.set(HALF, epoch)
    here.lease.release(epoch)
    epoch = here.lease.acquire("another", 60)
    watchdog = here.watchdog()
    time.sleep(3)
    assert here.traffic.weight(CANDIDATE) == 50
    here.lease.check(epoch)
    assert len(watchdog.lines) == 1


@pytest.mark.parametrize("router", [*ROUTERS, "service"])
def test_its_role_has_every_right_that_it_uses_and_no_other(
    shop: Callable[[str], Shop], router: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = shop(router)
    here.begin(replicas=(1, 2) if router == "replicas" else (2, 2))
    epoch = here.lease.acquire("test", 60)
    here.set(Traffic.only(CANDIDATE), epoch)
    here.lease.release(epoch)
    used: set[tuple[str, str]] = set()
    call = Transport.call

    def noted(transport: Transport, request: Request) -> Answer:
        used.add(right(request))
        return call(transport, request)

    monkeypatch.setattr(Transport, "call", noted)
    watchdog = Watchdog(here.place.cluster, "shop", lambda _: None)
    wait_for(lambda: watchdog.look() and watchdog.settled)
    assert here.traffic == Traffic.only(STABLE)
    granted = {
        (verb, resource)
        for rule in watchdog_rules(here.options, here.place.app)
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert used - {("get", "")} <= granted
    # for a revision whose annotation somebody has removed, and for replicas that were given up
    assert granted - used <= {
        ("get", "deployments"),
        ("patch", "deployments/scale"),
        ("patch", "deployments"),
    }
    assert router != "replicas" or ("patch", "deployments/scale") in used


def right(request: Request) -> tuple[str, str]:
    """Return verb and resource of a call; discovery, which everybody may, has no resource."""
    inside = request.path.partition("/namespaces/")[2].split("/")[1:]
    verbs = {"GET": "get" if len(inside) > 1 else "list", "PUT": "update", "PATCH": "patch", "POST": "create"}
    return verbs[request.method] if inside else "get", "/".join([*inside[:1], *inside[2:]])


@pytest.mark.parametrize(
    ("traffic", "wanted"),
    [
        (Traffic.only(STABLE), False),
        (Traffic(), False),
        (Traffic(weights={STABLE: 100, CANDIDATE: 0}), False),
        (Traffic(weights={STABLE: 100}, fallback=CANDIDATE), False),
        (Traffic(weights={STABLE: 100}, preview=CANDIDATE), False),
        (HALF, True),
        (Traffic.only(CANDIDATE), True),
    ],
)
def test_what_is_not_where_it_should_be(traffic: Traffic, *, wanted: bool) -> None:
    assert astray(traffic, STABLE) is wanted
