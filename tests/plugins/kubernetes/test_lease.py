"""The lease of an app, on a real API server."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest

from shipctl.errors import LockedError
from shipctl.processes import own_name
from shipctl.release.lease import WATCHDOG
from shipctl.release.target import StaleEpochError
from shipctl.spec.units import Duration
from shipctl.testing.fixtures import FakeClock
from shipctl_plugins._kubernetes.api.access import Access
from shipctl_plugins._kubernetes.api.connection import connect
from shipctl_plugins._kubernetes.app import ANNOTATION_EPOCH, App, Place
from shipctl_plugins._kubernetes.lease import ClusterLease
from support_cluster import CLUSTER, ControlPlane, Kube, wait_for

pytestmark = CLUSTER

Machine = Callable[..., ClusterLease]
"""A machine of its own, with clocks of its own: `now` is what it would tell others, `clock` what it waits by."""


@pytest.fixture
def machine(control_plane: ControlPlane, namespace: str) -> Machine:
    access = Access(kubeconfig=str(control_plane.kubeconfig), namespace=namespace, timeout=Duration("5s"))

    def make(now: float = 1.7e9, clock: Callable[[], float] | None = None) -> ClusterLease:
        cluster = connect(access, control_plane.folder, lambda _line: None)
        place = Place(cluster, App("shop", namespace, "shop"))
        return ClusterLease(place, FakeClock(now), clock or FakeClock(0.0))

    return make


def later(lease: ClusterLease, seconds: float) -> None:
    """Let time pass on one machine, by both of its clocks."""
    for clock in (lease.now, lease.clock):
        assert isinstance(clock, FakeClock)
        clock.advance(seconds)


def test_a_renewal_is_no_new_epoch_and_another_holder_is_one(machine: Machine) -> None:
    one, two = machine(), machine()
    assert [one.acquire("one", 15), one.acquire("one", 15)] == [1, 1]
    with pytest.raises(LockedError, match=r"^one holds the target, for another 15 s unless it renews that"):
        two.acquire("two", 15)
    one.release(1)
    assert two.acquire("two", 15) == 2
    one.release(1)  # somebody else's by now
    found = one.read()
    assert found is not None
    assert (found.holder, found.epoch) == ("two", 2)


def test_nobody_is_stale_before_somebody_else_has_taken_it(machine: Machine) -> None:
    one, two = machine(), machine()
    one.check(0)
    epoch = one.acquire("one", 15)
    one.check(epoch)
    two.read()
    later(two, 16)
    assert two.acquire("two", 15) == epoch + 1
    with pytest.raises(
        StaleEpochError, match=r"^two has taken the target over \(epoch 2, this is 1\): nothing was done"
    ):
        one.check(epoch)


@pytest.mark.parametrize("ahead", [-86400.0, -20.0, 20.0, 86400.0])
def test_a_lease_runs_out_by_the_clock_of_whoever_waits_for_it(machine: Machine, ahead: float) -> None:
    """Somebody's clock that goes wrong by a day takes nothing away, and leaves nobody waiting for a day."""
    holder, other = machine(1.7e9), machine(1.7e9 + ahead)
    holder.acquire("holder", 15)
    with pytest.raises(LockedError):
        other.acquire("other", 15)
    for _ in range(3):  # renewed in time: it never runs out
        later(holder, 10)
        holder.acquire("holder", 15)
        later(other, 10)
        with pytest.raises(LockedError):
            other.acquire("other", 15)
    later(other, 14)
    with pytest.raises(LockedError, match="for another 1 s"):
        other.acquire("other", 15)
    later(other, 2)
    assert other.acquire("other", 15) == 2


def test_whoever_looks_for_the_first_time_waits_the_whole_time(machine: Machine) -> None:
    """What others say of their time is nothing to go by, however long ago it seems to be."""
    machine(1.0e9).acquire("long ago", 15)
    with pytest.raises(LockedError, match="for another 15 s"):
        machine(1.7e9).acquire("other", 15)


def test_a_process_of_this_machine_that_has_ended_is_not_waited_for(machine: Machine) -> None:
    node, boot = own_name().partition(":")[0], own_name().rpartition(":")[2]
    machine().acquire(f"{node}:{2**22 + 1}:1:{boot}", 15)
    assert machine().acquire("other", 15) == 2


def test_its_own_holder_may_come_late_while_nobody_else_has_taken_it(machine: Machine) -> None:
    one = machine()
    epoch = one.acquire("one", 15)
    later(one, 1000)
    assert one.acquire("one", 15) == epoch


def test_of_many_that_take_it_at_once_one_gets_it(machine: Machine) -> None:
    machines = [machine() for _ in range(6)]
    got: list[int] = []
    barrier = threading.Barrier(len(machines))

    def take(lease: ClusterLease, name: str) -> None:
        barrier.wait()
        try:
            got.append(lease.acquire(name, 15))
        except LockedError:
            got.append(0)

    threads = [
        threading.Thread(target=take, args=(lease, f"holder-{number}"))
        for number, lease in enumerate(machines)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [0] * 5 + [1]


def test_a_renewal_keeps_it_and_takes_nothing(machine: Machine) -> None:
    one, two = machine(), machine()
    epoch = one.acquire("one", 15)
    two.read()
    later(one, 10)
    one.renew(epoch, 15)
    later(two, 16)
    with pytest.raises(LockedError):  # it was renewed since
        two.acquire("two", 15)
    later(two, 16)
    assert two.acquire("two", 15) == 2
    with pytest.raises(StaleEpochError):
        one.renew(epoch, 15)
    found = two.read()
    assert found is not None
    assert found.holder == "two"


def test_it_is_renewed_while_something_takes_long(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, kube: Kube, namespace: str
) -> None:
    monkeypatch.setattr("shipctl_plugins._kubernetes.lease.LEASE_SECONDS", 0.3)
    counter = itertools.count(1.7e9)
    one = machine()
    one.now = lambda: float(next(counter))
    epoch = one.acquire("one", 15)
    renewed: set[str] = set()

    def three_times() -> bool:
        renewed.add(kube.get("Lease", "shop-release", namespace)["spec"]["renewTime"])
        return len(renewed) > 3

    with one.kept(epoch):
        wait_for(three_times, what="it is not renewed")
    one.check(epoch)


def test_the_watchdog_takes_what_has_run_out_for_no_time(machine: Machine) -> None:
    one, dog = machine(), machine()
    one.acquire("one", 15)
    with pytest.raises(LockedError, match=r"^one holds the target, for another 15 s$"):
        dog.take()
    later(dog, 16)
    assert dog.take() == 2
    found = dog.read()
    assert found is not None
    assert (found.holder, found.valid(dog.now())) == (WATCHDOG, False)
    with pytest.raises(StaleEpochError):
        one.check(1)
    assert one.acquire("one", 15) == 3


def test_a_lease_that_was_removed_goes_on_counting(machine: Machine, kube: Kube, namespace: str) -> None:
    """Else the next holder would have the number of one who may still be there."""
    one = machine()
    epoch = one.acquire("one", 15)
    kept = {"name": "shop-release", "annotations": {ANNOTATION_EPOCH: "7"}}
    kube.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": kept}, namespace)
    kube.delete("Lease", "shop-release", namespace)
    with pytest.raises(StaleEpochError):
        one.check(epoch)
    assert machine().acquire("two", 15) == 8


@pytest.mark.parametrize(
    "manifest",
    [
        {"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": 80}]}},
        {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "spec": {}},
    ],
    ids=lambda manifest: str(manifest["kind"]),
)
def test_a_lease_that_is_made_anew_is_above_all_that_is_left_of_before(
    machine: Machine, kube: Kube, namespace: str, manifest: dict[str, Any]
) -> None:
    """Else whoever comes next is told for ever that somebody has taken over since."""
    one = machine()
    notes = {ANNOTATION_EPOCH: "11"}
    for number, labels in enumerate((one.place.app.selector, {})):
        metadata = {"name": f"left-{number}", "annotations": notes, "labels": labels}
        kube.create({**manifest, "metadata": metadata}, namespace)
        notes = {ANNOTATION_EPOCH: "70"}  # which is nobody's of this app
    assert one.acquire("one", 15) == 12


def test_routes_of_others_count_in_which_we_write(machine: Machine) -> None:
    place = machine().place
    routes: list[Any] = [None, {"metadata": {"annotations": {ANNOTATION_EPOCH: "4"}}}, {"metadata": {}}]
    assert ClusterLease(place, routes=lambda: routes).acquire("one", 15) == 5


def test_a_renewal_does_not_take_what_was_removed(machine: Machine, kube: Kube, namespace: str) -> None:
    """Though what was done under the number is still there."""
    one = machine()
    epoch = one.acquire("one", 15)
    kept = {"name": "shop-release", "annotations": {ANNOTATION_EPOCH: str(epoch)}}
    kube.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": kept}, namespace)
    kube.delete("Lease", "shop-release", namespace)
    with pytest.raises(StaleEpochError):
        one.renew(epoch, 15)
    assert not kube.exists("Lease", "shop-release", namespace)


def test_only_who_took_it_calls_it_his_own(machine: Machine) -> None:
    one, two = machine(), machine()
    assert one.own() is None
    epoch = one.acquire("one", 15)
    assert (one.own(), two.own()) == ("one", None)
    one.release(epoch)
    two.acquire("two", 15)
    assert (one.own(), two.own()) == (None, "two")


def test_the_same_number_of_another_lease_is_not_ones_own(
    machine: Machine, kube: Kube, namespace: str
) -> None:
    one = machine()
    epoch = one.acquire("one", 15)
    kube.delete("Lease", "shop-release", namespace)
    assert machine().acquire("two", 15) == epoch
    with pytest.raises(StaleEpochError, match=r"^two has taken the target over"):
        one.check(epoch)
