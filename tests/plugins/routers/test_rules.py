"""What routers make of a distribution, for which no cluster is asked."""

from __future__ import annotations

from typing import Any

import pytest

from shipctl.release.router import RouterContext
from shipctl.release.routers import ROUTERS
from shipctl.release.traffic import Mirror, Segment, Sticky, Traffic
from shipctl_plugins._kubernetes.app import App, Place
from shipctl_plugins._kubernetes.traffic.gateway import Rules
from shipctl_plugins._kubernetes.traffic.ways import Asked, dropped
from shipctl_plugins.routers.gateway_api import GatewayApi
from shipctl_plugins.routers.istio import Istio
from shipctl_plugins.routers.replicas_ratio import ReplicasRatio
from shipctl_plugins.routers.service_selector import ServiceSelector

STABLE, CANDIDATE = "a" * 64, "c" * 64
ONE, TWO = f"digits-{STABLE[:10]}", f"digits-{CANDIDATE[:10]}"
BETA = Segment(name="beta", header="X-Beta", values=("1", "2"), revision=CANDIDATE)
GATEWAY: dict[str, Any] = {"gateways": [{"name": "public"}], "hostnames": ["digits.example.com"]}
NOWHERE = Place(None, App(name="digits", namespace="models", pipeline="digits"))  # type: ignore[arg-type]
ROUTER_CLASSES = {
    "gateway-api": GatewayApi,
    "istio": Istio,
    "service": ServiceSelector,
    "replicas": ReplicasRatio,
}


def half(weight: int, **more: Any) -> Traffic:
    return Traffic(weights={STABLE: 100 - weight, CANDIDATE: weight}, fallback=STABLE, **more)


def opened(plugin: Any, **options: Any) -> Any:
    return plugin(plugin.options_model.model_validate(options), RouterContext(name="digits", access=NOWHERE))


@pytest.mark.parametrize("name", ROUTER_CLASSES)
def test_a_router_is_found_by_its_name(name: str) -> None:
    assert ROUTERS.load(name) is ROUTER_CLASSES[name]


@pytest.mark.parametrize("name", ROUTER_CLASSES)
def test_a_plan_says_that_nobody_stands_in_for_a_revision_that_is_gone(name: str) -> None:
    router = opened(ROUTER_CLASSES[name], **(GATEWAY if name == "gateway-api" else {}))
    assert any("is not stood in for by the stable one" in line for line in router.promises())


# -- the Gateway API -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("percent", "share"),
    [
        (100.0, {}),
        (25.0, {"percent": 25}),
        (12.5, {"fraction": {"numerator": 125_000, "denominator": 1_000_000}}),
    ],
)
def test_copies_are_of_the_share_that_was_asked_for(percent: float, share: dict[str, Any]) -> None:
    mirror = Mirror(percent=percent, candidate=CANDIDATE)
    (rule,) = Rules(NOWHERE, "HTTPRoute")(Asked(traffic=half(0, mirror=mirror)))
    backend = {"group": "", "kind": "Service", "name": "digits-comparator", "port": 8000}
    assert rule["filters"] == [{"type": "RequestMirror", "requestMirror": {"backendRef": backend, **share}}]


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("sessionName", {"type": "Cookie", "sessionName": "door"}),
        ("cookie", {"type": "Cookie", "cookie": {"name": "door"}}),
    ],
)
def test_a_cookie_keeps_sessions_where_requests_are_divided(named: Any, says: dict[str, Any]) -> None:
    traffic = half(10, sticky=Sticky(kind="cookie", name="door"), segments=(BETA,))
    beta, plain = Rules(NOWHERE, "HTTPRoute", named=named)(Asked(traffic=traffic))
    assert plain["sessionPersistence"] == says
    assert "sessionPersistence" not in beta, "all of them go to one revision anyway"


def test_who_gets_nothing_is_no_backend() -> None:
    """A gateway that keeps sessions would go on sending it those that it has, whatever its weight."""
    (rule,) = Rules(NOWHERE, "HTTPRoute")(Asked(traffic=half(0)))
    assert [ref["name"] for ref in rule["backendRefs"]] == [ONE]


@pytest.mark.parametrize(
    ("path", "taken_off"), [("/", False), ("/v2", False), ("/v2/models/x", False), ("/x", True)]
)
def test_a_path_that_triton_does_not_know_is_taken_off(path: str, taken_off: bool) -> None:
    (rule,) = Rules(NOWHERE, "HTTPRoute", path)(Asked(traffic=half(0)))
    assert ("filters" in rule) == taken_off


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "a route needs a gateway"),
        ({**GATEWAY, "rule": "x"}, "`rule` is for a route of somebody else"),
        ({**GATEWAY, "route": "shop"}, "gateways and hostnames would be of a route of ours"),
        ({**GATEWAY, "grpcHostnames": ["a.example.com"]}, "grpcHostnames is for `grpc: true`"),
    ],
)
def test_gateway_options_that_contradict_each_other_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        GatewayApi.options_model.model_validate(options)


# -- Istio ---------------------------------------------------------------------------------------------------


def weights_of(rule: dict[str, Any]) -> dict[str, int]:
    return {one["destination"]["host"]: one["weight"] for one in rule["route"]}


def test_a_mesh_tells_requests_apart_by_their_headers() -> None:
    """Of the rules the first one that fits is taken, so those with headers come before."""
    router = opened(Istio)
    (made,) = router.manifests(half(10, preview=CANDIDATE, segments=(BETA,)), {})
    http = [rule for rule in made["spec"]["http"] if "GRPC" not in str(rule) and "grpc" not in str(rule)]
    assert [rule.get("match") for rule in http] == [
        [{"headers": {"x-shipctl-preview": {}}}],
        [{"headers": {"x-beta": {"exact": "1"}}}, {"headers": {"x-beta": {"exact": "2"}}}],
        None,
    ]
    assert [weights_of(rule) for rule in http] == [{TWO: 100}, {TWO: 100}, {ONE: 90, TWO: 10}]
    grpc = made["spec"]["http"][1]
    assert grpc["match"][0] == {
        "uri": {"prefix": "/inference.GRPCInferenceService/"},
        "headers": {"x-beta": {"exact": "1"}},
    }


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gateways": ["infra/public"]}, "requests through a gateway are for a host name"),
        ({"rule": "x"}, "`rule` is for a VirtualService of somebody else"),
        ({"virtualService": "shop", "hosts": ["a"]}, "hosts would be of a VirtualService of ours"),
    ],
)
def test_mesh_options_that_contradict_each_other_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Istio.options_model.model_validate(options)


# -- what an API server makes of it --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("live", "wanted", "path"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, None),
        ({"a": 1}, {"a": 2}, ".a"),
        ({"a": {}}, {"a": {"b": 1}}, ".a.b"),
        ({}, {"a": {"b": 1}}, ".a"),
        ({}, {"a": [], "b": {}}, None),
        ({"a": [1]}, {"a": []}, ".a"),
        ({"a": [{"b": 1, "c": 1}, 2]}, {"a": [{"b": 1}, 2]}, None),
        ({"a": [{"b": 1}, 2]}, {"a": [{"b": 1}]}, ".a"),
        ({"a": [{"b": 1}]}, {"a": [{"b": 3}]}, ".a[0].b"),
        ({"a": 0}, {"a": 0}, None),
        ({}, {"a": 0}, ".a"),
    ],
)
def test_what_a_live_object_lacks_is_named(live: Any, wanted: Any, path: str | None) -> None:
    assert dropped(live, wanted) == path
