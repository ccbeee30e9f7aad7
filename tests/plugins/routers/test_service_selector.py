"""Router `service` on a real API server, whose controllers move the endpoints."""

from __future__ import annotations

import time
from typing import Any

import pytest

from shipctl.errors import StageError
from shipctl.release.router import TrafficRouter
from shipctl.release.traffic import Mirror, Segment, Sticky, Traffic
from shipctl_plugins.routers.service_selector import ServiceSelector
from support_cluster import CLUSTER
from support_routers import CANDIDATE, STABLE, Cluster, RoutersInACluster

pytestmark = [CLUSTER, pytest.mark.slow]


class TestConformance(RoutersInACluster):
    """Pods of a fake kubelet, selected by the API server's own controllers."""

    divides = False

    @pytest.fixture
    def router(self, cluster: Cluster) -> TrafficRouter:
        self.cluster = cluster
        router: TrafficRouter = cluster.open(ServiceSelector)
        return router

    def ask_many(self, router: TrafficRouter, times: int) -> list[str | None]:
        return self.cluster.through_service(self.cluster.app.name, times)


@pytest.fixture
def router(cluster: Cluster) -> ServiceSelector:
    found: ServiceSelector = cluster.open(ServiceSelector)
    return found


def move(cluster: Cluster, router: Any, traffic: Traffic) -> Any:
    return router.set(traffic, cluster.backends, etag=router.get().etag, epoch=cluster.epoch)


def test_a_switch_is_over_when_the_endpoints_are_the_new_ones(
    cluster: Cluster, router: ServiceSelector
) -> None:
    move(cluster, router, Traffic.only(STABLE))
    begun = time.monotonic()
    move(cluster, router, Traffic.only(CANDIDATE))
    took = time.monotonic() - begun
    assert {name.split("-")[1] for name in cluster.addresses("digits")} == {CANDIDATE[:10]}
    assert took < 2


def test_a_switch_that_the_endpoints_do_not_follow_is_an_error(
    cluster: Cluster, router: ServiceSelector
) -> None:
    move(cluster, router, Traffic.only(STABLE))
    pod = cluster.addresses("digits")[0]
    stuck = {
        "apiVersion": "discovery.k8s.io/v1beta1",
        "kind": "EndpointSlice",
        "metadata": {"name": "stuck", "labels": {"kubernetes.io/service-name": "digits"}},
        "addressType": "IPv4",
        "endpoints": [
            {
                "addresses": ["10.0.0.9"],
                "conditions": {"ready": True},
                "targetRef": {"kind": "Pod", "name": pod, "namespace": cluster.app.namespace},
            }
        ],
        "ports": [],
    }
    cluster.create(stuck)
    with pytest.raises(StageError) as caught:
        move(cluster, router, Traffic.only(CANDIDATE))
    assert str(caught.value) == (
        f"the endpoints of the Service digits still have pods of digits-{STABLE[:10]} though it does not select them; "
        "see whether the cluster's controllers run"
    )
    assert router.get().since is None
    cluster.kube.delete("EndpointSlice", "stuck", cluster.app.namespace)
    assert router.get().since is not None


def test_what_others_have_written_into_the_service_stays(cluster: Cluster, router: ServiceSelector) -> None:
    spec = {
        "selector": {"app": "nobody"},
        "ports": [{"name": "http", "port": 80}],
        "sessionAffinity": "ClientIP",
    }
    service = cluster.place.labelled("Service", "v1", "digits", spec=spec)
    cluster.create(service)
    cluster.kube.patch(
        "Service",
        "digits",
        cluster.app.namespace,
        {"metadata": {"annotations": {"team": "vision"}, "labels": {"cost": "7"}}},
        manager="kubectl-edit",
    )
    before = cluster.get("Service")
    move(cluster, router, Traffic.only(STABLE))
    after = cluster.get("Service")
    assert after["metadata"]["annotations"]["team"] == "vision"
    assert after["metadata"]["labels"] == before["metadata"]["labels"]
    assert after["spec"] == {**before["spec"], "selector": cluster.app.pods_of(STABLE)}


def test_an_annotation_of_somebody_else_does_not_change_the_state(
    cluster: Cluster, router: ServiceSelector
) -> None:
    before = move(cluster, router, Traffic.only(STABLE))
    cluster.kube.patch(
        "Service", "digits", cluster.app.namespace, {"metadata": {"annotations": {"team": "vision"}}}
    )
    assert router.get() == before
    after = router.set(Traffic.only(CANDIDATE), cluster.backends, etag=before.etag, epoch=cluster.epoch)
    assert after.traffic == Traffic.only(CANDIDATE)


def test_a_service_of_somebody_else_is_left_alone(cluster: Cluster, router: ServiceSelector) -> None:
    cluster.create(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "digits", "labels": {"app.kubernetes.io/managed-by": "Helm"}},
            "spec": {"selector": {"app": "another"}, "ports": [{"port": 80}]},
        }
    )
    before = cluster.get("Service")
    with pytest.raises(StageError) as caught:
        move(cluster, router, Traffic.only(STABLE))
    assert str(caught.value) == (
        f"Service digits of namespace {cluster.app.namespace} belongs to Helm, and nothing in it was changed; choose "
        "another `name` for the target, or remove it"
    )
    assert cluster.get("Service") == before


def test_a_selector_that_somebody_has_changed_is_seen(cluster: Cluster, router: ServiceSelector) -> None:
    before = move(cluster, router, Traffic.only(STABLE))
    selector = cluster.app.pods_of(CANDIDATE)
    cluster.kube.patch("Service", "digits", cluster.app.namespace, {"spec": {"selector": selector}})
    seen = router.get()
    assert seen.traffic.weights == {CANDIDATE: 100}
    assert seen.since is None
    assert seen.etag != before.etag
    with pytest.raises(StageError, match="somebody else has changed it"):
        router.set(Traffic(), cluster.backends, etag=before.etag, epoch=cluster.epoch)


def test_a_revision_is_known_without_the_annotation(cluster: Cluster, router: ServiceSelector) -> None:
    move(cluster, router, Traffic.only(STABLE))
    cluster.kube.patch(
        "Service",
        "digits",
        cluster.app.namespace,
        {"metadata": {"annotations": {"shipctl.dev/traffic": None}}},
    )
    assert router.get().traffic.weights == {STABLE: 100}


def test_a_service_that_was_deleted_is_made_again(cluster: Cluster, router: ServiceSelector) -> None:
    move(cluster, router, Traffic.only(STABLE))
    cluster.kube.delete("Service", "digits", cluster.app.namespace)
    assert router.get().traffic.weights == {}
    assert move(cluster, router, Traffic.only(STABLE)).traffic.weights == {STABLE: 100}


def test_a_preview_is_kept_in_mind(cluster: Cluster, router: ServiceSelector) -> None:
    said = move(cluster, router, Traffic(weights={STABLE: 100}, fallback=STABLE, preview=CANDIDATE))
    assert said.traffic.preview == CANDIDATE
    assert router.get() == said


@pytest.mark.parametrize(
    ("traffic", "says"),
    [
        ({"weights": {STABLE: 50, CANDIDATE: 50}}, "the router service gives one revision everything"),
        ({"sticky": Sticky(kind="cookie", name="user")}, "no sticky assignment"),
        ({"mirror": Mirror(percent=10, candidate=CANDIDATE)}, "no copies of requests"),
        (
            {"segments": (Segment(name="beta", header="x-beta", values=("1",), revision=CANDIDATE),)},
            "no segments",
        ),
    ],
)
def test_what_a_service_cannot_do_is_refused(empty: Cluster, traffic: dict[str, Any], says: str) -> None:
    wanted = Traffic(**{"weights": {STABLE: 100}, "fallback": STABLE, **traffic})
    assert says in str(ServiceSelector.refuses(wanted))
    router = empty.open(ServiceSelector)
    with pytest.raises(StageError, match=f"{says}.*choose"):
        router.set(wanted, empty.backends, etag=router.get().etag, epoch=empty.epoch)
