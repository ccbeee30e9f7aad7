"""The target `kubernetes` on a real control plane: it is taken away, loses its lease, or gets another router."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shipctl.errors import LockedError
from shipctl.release.target import Candidate, Commit, ScaleDown, Shift, StaleEpochError
from shipctl.release.traffic import Traffic
from shipctl_plugins._kubernetes.app import ANNOTATION_EPOCH
from shipctl_plugins._kubernetes.manifests.roles import operator_rules
from shipctl_plugins.deploy.k8s_bluegreen import K8sBluegreen
from support_cluster import CLUSTER, LIMITED, ControlPlane, Kube, user_kubeconfig
from support_kubernetes import GATEWAY, NEW, OLD, MakeTarget, Quick, answered_by, prepared, released
from support_kubernetes_releases import Releases, installed

__all__ = ["installed"]

pytestmark = CLUSTER

DRIVER = "builder-7:4711:1:another-boot"
ISTIO = {"uses": "istio", "with": {"hosts": ["shop.example"], "gateways": ["web"]}}


@contextmanager
def driving(target: Quick) -> Iterator[int]:
    """Have somebody on another machine hold the lease, and renew it as a driver does between its steps."""
    epoch, end = target.lease.acquire(DRIVER, 15), threading.Event()

    def renew() -> None:
        while not end.wait(0.3):
            target.lease.renew(epoch, 15)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        yield epoch
    finally:
        end.set()
        thread.join()


class TestDown:
    """Nobody takes away what another one acts on."""

    @pytest.mark.slow
    def test_a_release_that_somebody_drives_is_not_taken_away(
        self, make_target: MakeTarget, old: Candidate, kube: Kube, namespace: str
    ) -> None:
        one = make_target(OLD, router=GATEWAY)
        one.release(released(one, old))
        with driving(one) as epoch:
            with pytest.raises(LockedError, match=f"^{DRIVER} holds the target") as error:
                make_target(router=GATEWAY).down()
            one.lease.check(epoch)
        assert error.value.exit_code == 8
        assert answered_by(kube, namespace) == OLD
        assert kube.exists("Lease", "shop-release", namespace)

    @pytest.mark.slow
    def test_who_does_not_renew_is_waited_for_no_longer_than_that(
        self, make_target: MakeTarget, old: Candidate, kube: Kube, namespace: str
    ) -> None:
        said: list[str] = []
        one = make_target(OLD)
        one.release(released(one, old))
        one.lease.acquire(DRIVER, 2)
        begun = time.monotonic()
        lines = list(make_target(log=said.append).down())
        assert 1 < time.monotonic() - begun < 12
        assert said[0].startswith(f"{DRIVER} holds the target, for another ")
        assert lines[-1] == "Lease shop-release was deleted"
        assert not kube.exists("Lease", "shop-release", namespace)

    def test_the_lease_is_held_until_everything_else_is_gone(
        self, make_target: MakeTarget, old: Candidate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = make_target(OLD, router=GATEWAY)
        one.release(released(one, old))
        two = make_target(router=GATEWAY)
        deleted: list[str] = []
        delete = two.place.cluster.delete

        def watched(ref: Any, **given: Any) -> bool:
            deleted.append(ref.kind)
            held = make_target().lease.read()
            assert held is not None
            assert held.holder
            return delete(ref, **given)

        monkeypatch.setattr(two.place.cluster, "delete", watched)
        two.down()
        assert (deleted[0], deleted[-1], deleted.count("Lease")) == ("HTTPRoute", "Lease", 1)

    def test_what_a_late_writer_has_left_locks_nobody_out(
        self, make_target: MakeTarget, old: Candidate, new: Candidate, kube: Kube, namespace: str
    ) -> None:
        one = make_target(OLD, router=GATEWAY)
        one.release(released(one, old))
        route = kube.get("HTTPRoute", "shop", namespace)
        make_target(OLD, router=GATEWAY).down()
        kept = {key: route["metadata"][key] for key in ("name", "labels", "annotations")}
        kept["annotations"] = {**kept["annotations"], ANNOTATION_EPOCH: "11"}
        kube.create({**route, "metadata": kept, "status": {}}, namespace)
        two = make_target(router=GATEWAY)
        assert released(two, new) == 12
        assert answered_by(kube, namespace) == NEW


class TestAnotherRouter:
    """What the router of before has made goes with the promotion."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("kind", "before", "after"),
        [("HTTPRoute", GATEWAY, "replicas"), ("VirtualService", ISTIO, "service")],
        ids=["gateway-api", "istio"],
    )
    def test_its_routes_stay_until_the_promotion_and_others_for_good(
        self,
        make_target: MakeTarget,
        old: Candidate,
        new: Candidate,
        kube: Kube,
        namespace: str,
        kind: str,
        before: Any,
        after: Any,
    ) -> None:
        lines: list[str] = []
        one = make_target(OLD, router=before)
        one.release(released(one, old))
        mine = kube.get(kind, "shop", namespace)
        labels = {"app.kubernetes.io/managed-by": "Helm", "app.kubernetes.io/instance": "shop"}
        foreign = {"apiVersion": mine["apiVersion"], "kind": kind, "spec": mine["spec"]}
        kube.create({**foreign, "metadata": {"name": "theirs", "labels": labels}}, namespace)
        two = make_target(router=after, log=lines.append)
        epoch = two.acquire("test")
        prepared(two, new, epoch)
        two.apply(Shift(traffic=Traffic.only(NEW)), new, epoch)
        assert kube.exists(kind, "shop", namespace)
        two.apply(Commit(expected=OLD, revision=NEW), new, epoch)
        assert not kube.exists(kind, "shop", namespace)
        assert kube.exists(kind, "theirs", namespace)
        assert f"{kind} shop is of a router that is not in the spec any more and was deleted" in lines

    def test_routes_that_nobody_lets_us_remove_are_said_to_stay(
        self,
        make_target: MakeTarget,
        old: Candidate,
        new: Candidate,
        kube: Kube,
        namespace: str,
        control_plane: ControlPlane,
        tmp_path: Path,
    ) -> None:
        """By the Role for the router of now, which has no routes."""
        lines: list[str] = []
        one = make_target(OLD, router=GATEWAY)
        one.release(released(one, old))
        rules = operator_rules(make_target().options, one.place.app)
        limited = user_kubeconfig(control_plane, tmp_path, LIMITED[4], rules, namespace)
        two = make_target(kubeconfig=str(limited), log=lines.append)
        said = (
            "HTTPRoute shop, which the router gateway-api of before has made, is not removed with the promotion, and "
            f"its destinations are: we may not list and delete HTTPRoutes in namespace {namespace}; remove it, or have "
            "these rights until then"
        )
        assert f"warning: {said}" in two.preview(NEW)
        assert not any("HTTPRoute" in line for line in make_target().preview(NEW)), "it is removed"
        epoch = released(two, new)
        assert lines.count(said) == 1
        assert kube.exists("HTTPRoute", "shop", namespace)
        kube.delete("HTTPRoute", "shop", namespace)
        two.release(epoch)
        assert not any("HTTPRoute" in line for line in make_target(OLD).preview(OLD))

    def test_what_stands_still_goes_before_its_destinations(
        self, make_target: MakeTarget, old: Candidate, new: Candidate, kube: Kube, namespace: str
    ) -> None:
        """As where a process ended between the promotion and what comes after it."""
        one = make_target(OLD, router=GATEWAY)
        one.release(released(one, old))
        route = kube.get("HTTPRoute", "shop", namespace)
        two = make_target(router="replicas")
        epoch = released(two, new)
        kept = {key: route["metadata"][key] for key in ("name", "labels", "annotations")}
        kube.create({**route, "metadata": kept, "status": {}}, namespace)
        two.apply(ScaleDown(revision=OLD), new, epoch)
        assert not kube.exists("HTTPRoute", "shop", namespace)

    def test_the_routes_of_the_same_router_stay(
        self, make_target: MakeTarget, old: Candidate, new: Candidate, kube: Kube, namespace: str
    ) -> None:
        one = make_target(OLD, router=GATEWAY)
        one.release(released(one, old))
        uid = kube.get("HTTPRoute", "shop", namespace)["metadata"]["uid"]
        two = make_target(router=GATEWAY)
        two.apply(ScaleDown(revision=OLD), new, released(two, new))
        assert kube.get("HTTPRoute", "shop", namespace)["metadata"]["uid"] == uid
        assert answered_by(kube, namespace) == NEW


def test_a_lease_that_somebody_removed_is_not_called_standing_still(
    installed: None, tmp_path: Path, control_plane: ControlPlane, kube: Kube, namespace: str
) -> None:
    release = Releases(tmp_path, control_plane, namespace).begin(K8sBluegreen, "1.0.0", OLD)
    while not kube.exists("ConfigMap", "shop-release", namespace):
        release.state, _step = release.stage.step(release.state, release.inputs, release.context)
    kube.delete("Lease", "shop-release", namespace)
    with pytest.raises(StaleEpochError, match="its lease was removed, or was somebody else's meanwhile"):
        release.stage.step(release.state, release.inputs, release.context)
