"""Router `istio` on a real API server, with a data plane that reads the live VirtualService."""

from __future__ import annotations

from typing import Any

import pytest

from shipctl.errors import StageError
from shipctl.release.router import TrafficRouter
from shipctl.release.target import Capability
from shipctl.release.traffic import Mirror, Segment, Sticky, Traffic
from shipctl_plugins.routers.istio import Istio
from support_cluster import CLUSTER
from support_routers import CANDIDATE, STABLE, Cluster, RoutersInACluster

pytestmark = [CLUSTER, pytest.mark.slow]

ONE, TWO = f"digits-{STABLE[:10]}", f"digits-{CANDIDATE[:10]}"
BETA = Segment(name="beta", header="X-Beta", values=("1", "2"), revision=CANDIDATE)


def half(weight: int, **more: Any) -> Traffic:
    return Traffic(weights={STABLE: 100 - weight, CANDIDATE: weight}, fallback=STABLE, **more)


def move(cluster: Cluster, router: Any, traffic: Traffic) -> Any:
    return router.set(traffic, cluster.backends, etag=router.get().etag, epoch=cluster.epoch)


def weights_of(rule: dict[str, Any]) -> dict[str, int]:
    return {
        one["destination"]["host"].partition(".")[0]: one.get("weight", 100)
        for one in rule.get("route") or ()
    }


class TestConformance(RoutersInACluster):
    """A VirtualService of ours."""

    @pytest.fixture
    def router(self, cluster: Cluster) -> TrafficRouter:
        self.cluster = cluster
        router: TrafficRouter = cluster.open(Istio)
        return router

    def ask_many(self, router: TrafficRouter, times: int) -> list[str | None]:
        found = self.cluster.find("VirtualService")
        return self.cluster.through(weights_of(found["spec"]["http"][-1]) if found is not None else {}, times)


FOREIGN = {
    "apiVersion": "networking.istio.io/v1beta1",
    "kind": "VirtualService",
    "metadata": {"name": "shop", "annotations": {"owner": "web"}},
    "spec": {
        "hosts": ["shop.example.com"],
        "gateways": ["infra/public"],
        "http": [
            {
                "name": "cart",
                "match": [{"uri": {"prefix": "/cart"}}],
                "route": [{"destination": {"host": "cart"}}],
            },
            {
                "name": "model",
                "retries": {"attempts": 1},
                "route": [{"destination": {"host": "digits", "port": {"number": 8000}}}],
            },
        ],
    },
}


class TestConformanceInAForeignVirtualService(RoutersInACluster):
    """A rule of somebody else's VirtualService."""

    @pytest.fixture
    def router(self, cluster: Cluster) -> TrafficRouter:
        self.cluster = cluster
        cluster.create(FOREIGN)
        router: TrafficRouter = cluster.open(Istio, virtualService="shop", rule="model")
        return router

    def ask_many(self, router: TrafficRouter, times: int) -> list[str | None]:
        weights = weights_of(self.cluster.get("VirtualService", "shop")["spec"]["http"][1])
        weights.pop("digits", None)  # the Service that a closed door has no pods for
        return self.cluster.through(weights, times)


def test_grpc_and_http_get_the_same_weights_at_their_ports(cluster: Cluster) -> None:
    router = cluster.open(Istio, gateways=["infra/public"], hosts=["digits.example.com"], path="/digits/")
    move(cluster, router, half(10))
    spec = cluster.get("VirtualService")["spec"]
    assert (spec["hosts"], spec["gateways"]) == (["digits.example.com"], ["infra/public"])
    told = [
        (rule["match"][0]["uri"]["prefix"], {one["destination"]["port"]["number"] for one in rule["route"]})
        for rule in spec["http"]
    ]
    assert told == [
        ("/inference.GRPCInferenceService/", {8001}),
        ("/grpc.health.v1.Health/", {8001}),
        ("/digits/", {8000}),
    ]
    assert [weights_of(rule) for rule in spec["http"]] == [{ONE: 90, TWO: 10}] * 3
    assert [rule.get("rewrite") for rule in spec["http"]] == [None, None, {"uri": "/"}]


def test_a_closed_door_answers_by_itself(cluster: Cluster) -> None:
    router = cluster.open(Istio)
    move(cluster, router, half(10))
    move(cluster, router, Traffic())
    rules = cluster.get("VirtualService")["spec"]["http"]
    assert {rule["directResponse"]["status"] for rule in rules} == {503}
    assert router.down() == ["VirtualService digits was deleted"]


def test_requests_are_copied_to_the_comparator(cluster: Cluster) -> None:
    router = cluster.open(Istio)
    traffic = half(0, mirror=Mirror(percent=12.5, candidate=CANDIDATE))
    assert move(cluster, router, traffic).traffic.mirror == traffic.mirror
    rule = cluster.get("VirtualService")["spec"]["http"][-1]
    assert rule["mirror"] == {"host": "digits-comparator", "port": {"number": 8000}}
    assert rule["mirrorPercentage"] == {"value": 12.5}


def test_a_condition_that_the_cluster_would_lose_is_refused(cluster: Cluster) -> None:
    """The kind of this control plane has no headers; without its condition a rule would be for everybody."""
    router = cluster.open(Istio)
    before = move(cluster, router, half(0))
    with pytest.raises(
        StageError, match=r"the cluster's VirtualService has no spec\.http\[0\]\.match\[0\]\.headers"
    ):
        move(cluster, router, half(0, segments=(BETA,)))
    assert router.get() == before


def test_nothing_but_our_destinations_changes_in_a_foreign_virtual_service(cluster: Cluster) -> None:
    created = cluster.create(FOREIGN)
    router = cluster.open(Istio, virtualService="shop", rule="model")
    move(cluster, router, half(10))
    after = cluster.get("VirtualService", "shop")
    assert weights_of(after["spec"]["http"][1]) == {ONE: 90, TWO: 10}
    del after["spec"]["http"][1]["route"], created["spec"]["http"][1]["route"]
    assert after["spec"] == created["spec"]
    assert after["metadata"]["annotations"]["owner"] == "web"
    with pytest.raises(StageError, match="VirtualService shop has no rule named 'other'"):
        cluster.open(Istio, virtualService="shop", rule="other").get()
    assert router.down() == ["VirtualService shop: the destinations of digits were taken out"]


@pytest.mark.parametrize(
    "host", ["digits-cccccccccc", "digits-cccccccccc.NS", "digits-cccccccccc.NS.svc.cluster.local"]
)
def test_a_host_is_understood_however_it_is_written(cluster: Cluster, host: str) -> None:
    name = host.replace("NS", cluster.app.namespace)
    rules = [{"name": "model", "route": [{"destination": {"host": name}}]}]
    cluster.create({**FOREIGN, "spec": {"hosts": ["shop"], "http": rules}})
    assert cluster.open(Istio, virtualService="shop").get().traffic.weights == {CANDIDATE: 100}


def test_what_a_mesh_cannot_do_is_refused(empty: Cluster) -> None:
    router = empty.open(Istio)
    assert router.offers(router.options) > {Capability.WEIGHTS, Capability.MIRROR}
    for kind in ("header", "cookie"):
        traffic = half(5, sticky=Sticky(kind=kind, name="user"))
        with pytest.raises(
            StageError, match=f"by the {kind} user: its weights are drawn for each request anew"
        ):
            move(empty, router, traffic)
