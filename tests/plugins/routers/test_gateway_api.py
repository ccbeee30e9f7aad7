"""Router `gateway-api` on a real API server, with a data plane that reads the live routes."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from shipctl.errors import ShipctlError, StageError
from shipctl.release.router import TrafficRouter
from shipctl.release.target import Capability, StaleEpochError
from shipctl.release.traffic import Mirror, Segment, Sticky, Traffic
from shipctl.stages.context import CheckContext
from shipctl_plugins.routers.gateway_api import GatewayApi
from support_cluster import CLUSTER
from support_routers import CANDIDATE, STABLE, Cluster, RoutersInACluster

pytestmark = [CLUSTER, pytest.mark.slow]

GATEWAY: dict[str, Any] = {"gateways": [{"name": "public"}], "hostnames": ["digits.example.com"]}
ONE, TWO = f"digits-{STABLE[:10]}", f"digits-{CANDIDATE[:10]}"
BETA = Segment(name="beta", header="X-Beta", values=("1", "2"), revision=CANDIDATE)
CREW = Segment(name="crew", header="x-crew", values=("yes",))


def weights_of(rule: dict[str, Any]) -> dict[str, int]:
    return {ref["name"]: ref["weight"] for ref in rule.get("backendRefs") or ()}


def plain_rule(route: dict[str, Any]) -> dict[str, Any]:
    """Return the rule for requests without any special header."""
    (found,) = [
        rule for rule in route["spec"]["rules"] if not any(match.get("headers") for match in rule["matches"])
    ]
    return dict(found)


def half(weight: int, **more: Any) -> Traffic:
    return Traffic(weights={STABLE: 100 - weight, CANDIDATE: weight}, fallback=STABLE, **more)


def move(cluster: Cluster, router: Any, traffic: Traffic) -> Any:
    return router.set(traffic, cluster.backends, etag=router.get().etag, epoch=cluster.epoch)


class TestConformance(RoutersInACluster):
    """A route of ours."""

    @pytest.fixture
    def router(self, cluster: Cluster) -> TrafficRouter:
        self.cluster = cluster
        router: TrafficRouter = cluster.open(GatewayApi, **GATEWAY)
        return router

    def ask_many(self, router: TrafficRouter, times: int) -> list[str | None]:
        route = self.cluster.find("HTTPRoute")
        return self.cluster.through(weights_of(plain_rule(route)) if route is not None else {}, times)


FOREIGN = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "HTTPRoute",
    "metadata": {"name": "shop", "labels": {"team": "web"}, "annotations": {"owner": "web"}},
    "spec": {
        "parentRefs": [{"name": "public"}],
        "hostnames": ["shop.example.com"],
        "rules": [
            {
                "matches": [{"path": {"type": "PathPrefix", "value": "/cart"}}],
                "backendRefs": [{"name": "cart", "port": 80}],
            },
            {
                "matches": [{"path": {"type": "PathPrefix", "value": "/v2"}}],
                "timeouts": {"request": "20s"},
                "backendRefs": [
                    {"name": "digits", "port": 8000},
                    {"name": "museum", "port": 80, "weight": 0},
                ],
            },
        ],
    },
}


class TestConformanceInAForeignRoute(RoutersInACluster):
    """A rule of somebody else's route."""

    @pytest.fixture
    def router(self, cluster: Cluster) -> TrafficRouter:
        self.cluster = cluster
        cluster.create(FOREIGN)
        router: TrafficRouter = cluster.open(GatewayApi, route="shop")
        return router

    def ask_many(self, router: TrafficRouter, times: int) -> list[str | None]:
        rule = self.cluster.get("HTTPRoute", "shop")["spec"]["rules"][1]
        weights = weights_of(rule)
        assert weights.pop("museum") == 0
        weights.pop("digits", None)  # the Service that a closed door has no pods for
        return self.cluster.through(weights, times)


# -- a route of ours -----------------------------------------------------------------------------------------


@pytest.fixture
def router(cluster: Cluster) -> GatewayApi:
    found: GatewayApi = cluster.open(GatewayApi, **GATEWAY)
    return found


def test_requests_are_told_apart_by_their_headers(cluster: Cluster, router: GatewayApi) -> None:
    traffic = half(10, preview=CANDIDATE, segments=(BETA, CREW))
    said = move(cluster, router, traffic)
    assert said.traffic == traffic
    rules = cluster.get("HTTPRoute")["spec"]["rules"]
    told = [
        (
            [[(one["name"], one["value"]) for one in match.get("headers", ())] for match in rule["matches"]],
            weights_of(rule),
        )
        for rule in rules
    ]
    assert told == [
        ([[("x-shipctl-preview", value)] for value in ("1", "true", "yes")], {TWO: 100}),
        ([[("X-Beta", "1")], [("X-Beta", "2")]], {TWO: 100}),
        ([[("x-crew", "yes")]], {ONE: 90, TWO: 10}),
        ([[]], {ONE: 90, TWO: 10}),
    ]


def test_all_requests_are_copied_to_the_comparator(cluster: Cluster, router: GatewayApi) -> None:
    traffic = half(0, mirror=Mirror(percent=100, candidate=CANDIDATE))
    assert move(cluster, router, traffic).traffic.mirror == traffic.mirror
    (copies,) = plain_rule(cluster.get("HTTPRoute"))["filters"]
    assert copies["type"] == "RequestMirror"
    assert copies["requestMirror"]["backendRef"]["name"] == "digits-comparator"
    assert copies["requestMirror"]["backendRef"]["port"] == 8000
    move(cluster, router, half(0))
    assert "filters" not in plain_rule(cluster.get("HTTPRoute"))


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"sticky": Sticky(kind="cookie", name="door")}, "spec.rules[0].sessionPersistence"),
        (
            {"mirror": Mirror(percent=12.5, candidate=CANDIDATE)},
            "spec.rules[0].filters[0].requestMirror.fraction",
        ),
    ],
)
def test_what_the_clusters_kind_does_not_know_is_refused_and_not_lost(
    cluster: Cluster, router: GatewayApi, more: dict[str, Any], field: str
) -> None:
    """This control plane has the standard channel of an early version, and drops what it does not know."""
    before = move(cluster, router, half(0))
    with pytest.raises(StageError) as caught:
        move(cluster, router, half(5, **more))
    assert f"the cluster's HTTPRoute has no {field}; update what brings the kind" in str(caught.value)
    assert router.get() == before


def test_sticky_requests_by_a_header_are_refused(cluster: Cluster, router: GatewayApi) -> None:
    traffic = half(5, sticky=Sticky(kind="header", name="x-user"))
    with pytest.raises(
        StageError, match="cannot keep requests with one revision by the header x-user; let `sticky`"
    ):
        move(cluster, router, traffic)
    assert router.get().traffic.weights == {}


def test_of_two_who_decide_from_the_same_state_one_is_refused(cluster: Cluster, router: GatewayApi) -> None:
    state = move(cluster, router, half(0)).etag
    epoch = cluster.epoch
    outcomes: list[str] = []
    start = threading.Barrier(4)

    def decide(weight: int) -> None:
        mine = cluster.open(GatewayApi, **GATEWAY)
        start.wait()
        try:
            mine.set(half(weight), cluster.backends, etag=state, epoch=epoch)
        except StageError as exc:
            outcomes.append(str(exc)[:70])
        else:
            outcomes.append(f"moved to {weight}")

    threads = [threading.Thread(target=decide, args=[weight]) for weight in (10, 20, 30, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    moved = [outcome for outcome in outcomes if outcome.startswith("moved")]
    refused = "HTTPRoute digits is not what it was when this was decided: somebody else"[:70]
    assert len(moved) == 1
    assert outcomes.count(refused) == 3
    assert router.get().traffic.weight(CANDIDATE) == int(moved[0].split()[-1])


def test_one_who_is_overtaken_while_he_writes_hears_of_it(cluster: Cluster, router: GatewayApi) -> None:
    before = move(cluster, router, half(0))
    epoch = cluster.epoch
    route = router.ways[0]
    write = route.write

    def write_and_be_overtaken(*args: Any) -> None:
        write(*args)
        cluster.take_over()

    route.write = write_and_be_overtaken  # type: ignore[method-assign, assignment]
    with pytest.raises(StaleEpochError, match="has taken the target over"):
        router.set(half(50), cluster.backends, etag=before.etag, epoch=epoch)


def test_labels_and_annotations_of_others_stay_and_do_not_change_the_state(
    cluster: Cluster, router: GatewayApi
) -> None:
    before = move(cluster, router, half(10))
    marks = {"labels": {"cost": "7"}, "annotations": {"team": "vision"}}
    cluster.kube.patch("HTTPRoute", "digits", cluster.app.namespace, {"metadata": marks})
    assert router.get() == before
    router.set(half(20), cluster.backends, etag=before.etag, epoch=cluster.epoch)
    metadata = cluster.get("HTTPRoute")["metadata"]
    assert metadata["labels"]["cost"] == "7"
    assert metadata["labels"]["app.kubernetes.io/managed-by"] == "shipctl"
    assert metadata["annotations"]["team"] == "vision"


def test_weights_that_somebody_has_changed_are_seen(cluster: Cluster, router: GatewayApi) -> None:
    before = move(cluster, router, half(10))
    rules = cluster.get("HTTPRoute")["spec"]["rules"]
    rules[0]["backendRefs"] = [
        {"name": ONE, "port": 8000, "weight": 1},
        {"name": TWO, "port": 8000, "weight": 1},
        {"name": "intruder", "port": 80, "weight": 2},
    ]
    cluster.kube.patch("HTTPRoute", "digits", cluster.app.namespace, {"spec": {"rules": rules}})
    seen = router.get()
    assert seen.traffic.weights == {STABLE: 25, CANDIDATE: 25, "intruder": 50}
    assert seen.since is None
    with pytest.raises(StageError, match="HTTPRoute digits is not what it was when this was decided"):
        router.set(half(20), cluster.backends, etag=before.etag, epoch=cluster.epoch)
    assert move(cluster, router, half(10)).traffic == half(10)


def test_a_rule_that_somebody_has_added_is_seen_and_taken_out(cluster: Cluster, router: GatewayApi) -> None:
    move(cluster, router, half(10))
    rules = cluster.get("HTTPRoute")["spec"]["rules"]
    matches = [{"headers": [{"name": "x-me", "value": "1"}]}]
    rules.append({"matches": matches, "backendRefs": [{"name": TWO, "port": 8000}]})
    cluster.kube.patch("HTTPRoute", "digits", cluster.app.namespace, {"spec": {"rules": rules}})
    assert router.get().traffic != half(10)
    assert move(cluster, router, half(10)).traffic == half(10)
    assert len(cluster.get("HTTPRoute")["spec"]["rules"]) == 1


def test_a_status_that_is_written_meanwhile_disturbs_nobody(cluster: Cluster, router: GatewayApi) -> None:
    """Controllers write their status into the same object, which makes another version of it."""
    move(cluster, router, half(0))
    route = router.ways[0]
    write, written = route.write, list[dict[str, Any]]()

    def be_too_late_twice(*args: Any) -> None:
        if len(written) < 2:
            written.append(says(cluster, parent="other", Accepted=("True", f"Accepted{len(written)}", "")))
        write(*args)

    route.write = be_too_late_twice  # type: ignore[method-assign, assignment]
    assert move(cluster, router, half(10)).traffic == half(10)
    assert len(written) == 2


def test_one_who_was_overtaken_writes_nothing_though_he_looked_before(
    cluster: Cluster, router: GatewayApi
) -> None:
    """Between the last look at the lease and the write, everything may happen."""
    before = move(cluster, router, half(50))
    past = cluster.epoch
    late = cluster.open(GatewayApi, **GATEWAY)
    object.__setattr__(late.ctx, "guard", lambda _epoch: None)
    cluster.take_over()
    home = router.set(half(50), cluster.backends, etag=before.etag, epoch=cluster.epoch)
    assert home == before, "who takes over finds what he wants, and only leaves his mark"
    with pytest.raises(StaleEpochError, match="HTTPRoute digits was written by somebody who has taken over"):
        late.set(half(100), cluster.backends, etag=before.etag, epoch=past)
    assert router.get() == before


def test_a_write_from_an_old_look_changes_nothing(cluster: Cluster, router: GatewayApi) -> None:
    before = move(cluster, router, half(50))
    past = cluster.epoch
    late = cluster.open(GatewayApi, **GATEWAY)
    looked = late.ways[0].find
    object.__setattr__(late.ctx, "guard", lambda _epoch: None)

    def look_and_be_suspended() -> Any:
        found = looked()
        late.ways[0].find = looked
        cluster.take_over()
        router.set(half(0), cluster.backends, etag=before.etag, epoch=cluster.epoch)
        return found

    late.ways[0].find = look_and_be_suspended
    with pytest.raises(StaleEpochError):
        late.set(half(100), cluster.backends, etag=before.etag, epoch=past)
    assert router.get().traffic.weights == {STABLE: 100}


def test_paths_and_hosts_are_those_of_the_options(cluster: Cluster) -> None:
    options = {
        "gateways": [{"name": "public", "namespace": "infra", "sectionName": "https"}],
        "path": "/digits",
    }
    move(cluster, cluster.open(GatewayApi, **options), half(0))
    spec = cluster.get("HTTPRoute")["spec"]
    (parent,) = spec["parentRefs"]
    assert {"name": "public", "namespace": "infra", "sectionName": "https"}.items() <= parent.items()
    (rule,) = spec["rules"]
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/digits"}}]
    rewrite = {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}
    assert rule["filters"] == [{"type": "URLRewrite", "urlRewrite": rewrite}]
    router = cluster.open(GatewayApi, **GATEWAY)
    seen = router.get()
    assert router.set(half(0), cluster.backends, etag=seen.etag, epoch=cluster.epoch).traffic.weights == {
        STABLE: 100
    }
    assert cluster.get("HTTPRoute")["spec"]["hostnames"] == ["digits.example.com"]


def test_grpc_has_a_route_of_its_own_with_the_same_weights(cluster: Cluster) -> None:
    router = cluster.open(GatewayApi, **GATEWAY, grpc=True, grpcHostnames=["grpc.example.com"])
    assert move(cluster, router, half(10, segments=(CREW,))).traffic == half(10, segments=(CREW,))
    spec = cluster.get("GRPCRoute")["spec"]
    assert spec["hostnames"] == ["grpc.example.com"]
    crew, plain = spec["rules"]
    services = ["inference.GRPCInferenceService", "grpc.health.v1.Health"]
    assert [match["method"]["service"] for match in plain["matches"]] == services
    assert [match["headers"][0]["value"] for match in crew["matches"]] == ["yes", "yes"]
    assert weights_of(plain) == {ONE: 90, TWO: 10}
    assert {ref["port"] for ref in plain["backendRefs"]} == {8001}


def test_traffic_is_not_as_asked_while_one_of_two_routes_is_behind(cluster: Cluster) -> None:
    router = cluster.open(GatewayApi, **GATEWAY, grpc=True)
    move(cluster, router, half(10))
    behind = cluster.get("GRPCRoute")["spec"]["rules"]
    move(cluster, router, half(50))
    cluster.kube.patch("GRPCRoute", "digits", cluster.app.namespace, {"spec": {"rules": behind}})
    seen = router.get()
    assert seen.traffic.weights == {STABLE: 90, CANDIDATE: 10}
    assert seen.since is None
    assert move(cluster, router, half(50)).traffic == half(50)


def test_a_closed_route_stays_and_reaches_nobody(cluster: Cluster, router: GatewayApi) -> None:
    """Without it, another route for the same host might answer."""
    move(cluster, router, half(10))
    move(cluster, router, Traffic())
    (rule,) = cluster.get("HTTPRoute")["spec"]["rules"]
    assert "backendRefs" not in rule
    assert router.down() == ["HTTPRoute digits was deleted"]
    assert router.down() == []


# -- what gateways say ---------------------------------------------------------------------------------------


def says(
    cluster: Cluster, *, parent: str = "public", ahead: int = 0, **conditions: tuple[str, str, str]
) -> dict[str, Any]:
    """Say what a gateway's controller would say of the newest generation, or of one ``ahead`` of it."""
    generation = cluster.get("HTTPRoute")["metadata"]["generation"] + ahead
    told = {"Accepted": ("True", "Accepted", ""), "ResolvedRefs": ("True", "ResolvedRefs", ""), **conditions}
    listed = [
        {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "observedGeneration": generation,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        for kind, (status, reason, message) in told.items()
    ]
    said = {"parentRef": {"name": parent}, "controllerName": "example.com/gateway", "conditions": listed}
    return cluster.kube.set_status("HTTPRoute", "digits", cluster.app.namespace, {"parents": [said]})


def test_a_shift_waits_until_the_controller_has_taken_it(cluster: Cluster, router: GatewayApi) -> None:
    move(cluster, router, half(0))
    says(cluster)
    assert router.get().since is not None
    timer = threading.Timer(1.0, says, [cluster])
    begun = time.monotonic()
    timer.start()
    try:
        said = move(cluster, router, half(10))
    finally:
        timer.join()
    assert time.monotonic() - begun >= 1.0
    assert said.since is not None


def test_a_route_that_is_not_taken_is_an_error_in_words(cluster: Cluster, router: GatewayApi) -> None:
    move(cluster, router, half(0))
    refusal = ("False", "BackendNotFound", "service digits-cc not found")
    says(cluster, ahead=1, ResolvedRefs=refusal)
    with pytest.raises(StageError) as caught:
        move(cluster, router, half(10))
    assert str(caught.value) == (
        "example.com/gateway does not take HTTPRoute digits for the gateway public: BackendNotFound: service "
        "digits-cc not found"
    )
    assert router.get().since is None


def test_a_controller_that_says_nothing_in_time_is_an_error(cluster: Cluster) -> None:
    router = cluster.open(GatewayApi, **GATEWAY, awaitAccepted="1s")
    with pytest.raises(StageError, match="no gateway's controller says anything of HTTPRoute digits"):
        move(cluster, router, half(0))
    says(cluster)
    with pytest.raises(
        StageError, match="has not taken the newest HTTPRoute digits for the gateway public yet"
    ):
        move(cluster, router, half(10))
    patient = cluster.open(GatewayApi, **GATEWAY, awaitAccepted="0s")
    assert move(cluster, patient, half(20)).traffic == half(20)


# -- somebody else's route -----------------------------------------------------------------------------------


@pytest.fixture
def foreign(cluster: Cluster) -> GatewayApi:
    cluster.create(FOREIGN)
    found: GatewayApi = cluster.open(GatewayApi, route="shop")
    return found


def test_nothing_but_our_destinations_changes_in_a_foreign_route(
    cluster: Cluster, foreign: GatewayApi
) -> None:
    before = cluster.get("HTTPRoute", "shop")
    move(cluster, foreign, half(10))
    after = cluster.get("HTTPRoute", "shop")
    assert weights_of(after["spec"]["rules"][1]) == {ONE: 90, TWO: 10, "museum": 0}
    for one in (before, after):
        del one["spec"]["rules"][1]["backendRefs"]
    assert after["spec"] == before["spec"]
    assert after["metadata"]["labels"] == {"team": "web"}
    assert after["metadata"]["annotations"]["owner"] == "web"


def test_a_rule_that_its_owner_adds_meanwhile_survives(cluster: Cluster, foreign: GatewayApi) -> None:
    before = move(cluster, foreign, half(10))
    route = cluster.get("HTTPRoute", "shop")
    route["spec"]["rules"].insert(0, {"backendRefs": [{"name": "search", "port": 80}]})
    cluster.kube.replace(route, cluster.app.namespace)
    assert foreign.get() == before, "his rules are no matter of ours"
    foreign.set(half(20), cluster.backends, etag=before.etag, epoch=cluster.epoch)
    rules = cluster.get("HTTPRoute", "shop")["spec"]["rules"]
    assert [sorted(weights_of(rule)) for rule in rules] == [
        ["search"],
        ["cart"],
        sorted([ONE, TWO, "museum"]),
    ]


def test_an_owner_who_writes_at_the_same_time_loses_nothing(cluster: Cluster, foreign: GatewayApi) -> None:
    move(cluster, foreign, half(10))
    looked = foreign.ways[0].find

    def look_and_be_overtaken() -> Any:
        found = looked()
        foreign.ways[0].find = looked  # type: ignore[method-assign]
        cluster.kube.patch(
            "HTTPRoute", "shop", cluster.app.namespace, {"spec": {"hostnames": ["new.example.com"]}}
        )
        return found

    etag = foreign.get().etag
    foreign.ways[0].find = look_and_be_overtaken  # type: ignore[method-assign]
    said = foreign.set(half(20), cluster.backends, etag=etag, epoch=cluster.epoch)
    assert said.traffic == half(20)
    assert cluster.get("HTTPRoute", "shop")["spec"]["hostnames"] == ["new.example.com"]


def test_a_closed_rule_is_found_again(cluster: Cluster, foreign: GatewayApi) -> None:
    move(cluster, foreign, half(10))
    move(cluster, foreign, Traffic())
    assert weights_of(cluster.get("HTTPRoute", "shop")["spec"]["rules"][1]) == {"museum": 0}
    move(cluster, foreign, half(10))
    assert foreign.down() == ["HTTPRoute shop: the destinations of digits were taken out"]
    metadata = cluster.get("HTTPRoute", "shop")["metadata"]
    assert metadata["annotations"] == {"owner": "web"}


def test_a_foreign_route_says_what_is_wrong_with_it(cluster: Cluster) -> None:
    router = cluster.open(GatewayApi, route="shop")
    with pytest.raises(StageError, match=r"there is no HTTPRoute shop in namespace test-\w+"):
        router.get()
    route = {**FOREIGN, "spec": {**FOREIGN["spec"], "rules": FOREIGN["spec"]["rules"][:1] * 2}}  # type: ignore[dict-item,index]
    cluster.create(route)
    with pytest.raises(
        StageError, match="HTTPRoute shop has no rule with a destination that is the Service digits"
    ):
        router.get()
    mixed = [{"backendRefs": [{"name": "digits", "port": 8000}, {"name": "cart", "port": 80}]}]
    cluster.kube.patch("HTTPRoute", "shop", cluster.app.namespace, {"spec": {"rules": mixed}})
    with pytest.raises(
        StageError, match=r"also sends requests to cart, .*; give the model a rule of its own"
    ):
        move(cluster, router, half(10))


def test_only_weights_are_possible_in_a_foreign_route(cluster: Cluster, foreign: GatewayApi) -> None:
    assert GatewayApi.offers(foreign.options) == {Capability.WEIGHTS}
    with pytest.raises(
        StageError, match="gets weights only, and not the preview header and segments, for which"
    ):
        move(cluster, foreign, half(10, preview=CANDIDATE, segments=(BETA,)))


# -- before anything has run ---------------------------------------------------------------------------------


def check(cluster: Cluster, *traffic: Traffic, **options: Any) -> None:
    ctx = CheckContext(project=Path(), pipeline="digits", traffic=traffic)
    GatewayApi.check(GatewayApi.options_model.model_validate(options), ctx, cluster.place)


def test_the_check_shows_what_is_wrong_before_anything_is_made(empty: Cluster) -> None:
    check(empty, **GATEWAY)
    assert not empty.kube.exists("HTTPRoute", "digits", empty.app.namespace)
    with pytest.raises(StageError, match="there is no HTTPRoute shop"):
        check(empty, route="shop")
    theirs = {**FOREIGN, "metadata": {"name": "digits"}}
    empty.create(theirs)
    with pytest.raises(ShipctlError, match=r"HTTPRoute digits of namespace .* is not shipctl's"):
        check(empty, **GATEWAY)


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"sticky": Sticky(kind="cookie", name="door")}, "spec.rules[0].sessionPersistence"),
        (
            {"mirror": Mirror(percent=50, candidate=CANDIDATE)},
            "spec.rules[0].filters[0].requestMirror.percent",
        ),
    ],
)
def test_the_check_shows_what_the_clusters_kind_does_not_know(
    empty: Cluster, more: dict[str, Any], field: str
) -> None:
    """That is, in the plan, and not when the candidate is up already."""
    check(empty, half(0), half(50, segments=(BETA,)), **GATEWAY)
    with pytest.raises(StageError) as caught:
        check(empty, half(0), half(5, **more), **GATEWAY)
    assert f"the cluster's HTTPRoute has no {field}; update what brings the kind" in str(caught.value)
    assert not empty.kube.exists("HTTPRoute", "digits", empty.app.namespace)
