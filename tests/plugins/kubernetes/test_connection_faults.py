"""What a sick API server, a proxy in between, or the network does to a call, on real sockets."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shipctl.errors import ShipctlError, StageError
from shipctl_plugins._kubernetes.api.connection import (
    Access,
    Cluster,
    ConflictError,
    ExistsError,
    FieldConflictError,
    ForbiddenError,
    GoneError,
    InvalidError,
    LoginError,
    MissingError,
    NoSuchKindError,
    QuotaError,
    Ref,
    UnreachableError,
    connect,
)
from support_faulty_api import (
    TOKEN,
    FaultyApi,
    answer,
    drip,
    event,
    faulty_api,
    half,
    hang,
    page,
    refusal,
    reset,
    slow,
    stream,
)

CONFIG = Ref("v1", "ConfigMap", "web")
DEPLOYMENT = Ref("apps/v1", "Deployment", "web")
GOOD = answer({"metadata": {"name": "web"}})


@pytest.fixture
def api() -> Iterator[FaultyApi]:
    with faulty_api() as api:
        yield api


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def opened(api: FaultyApi, tmp_path: Path, said: list[str]) -> Iterator[Callable[..., Cluster]]:
    clusters: list[Cluster] = []

    def open_cluster(timeout: str = "5s", **access: Any) -> Cluster:
        file = api.kubeconfig(tmp_path)
        options = Access.model_validate({"kubeconfig": str(file), "timeout": timeout, **access})
        clusters.append(connect(options, tmp_path, said.append))
        return clusters[-1]

    yield open_cluster
    for cluster in clusters:
        cluster.close()


def config(**data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "web"}, "data": data}


def raised(kind: type[ShipctlError], call: Callable[[], Any]) -> str:
    """Return what an exception of exactly that kind says: one line, without the login."""
    with pytest.raises(kind) as caught:
        call()
    assert caught.type is kind
    text = str(caught.value)
    assert "\n" not in text
    assert TOKEN not in text
    assert "bearer" not in text.lower()
    return text


# -- what passes is tried again -------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_an_error_that_may_pass_is_tried_again(api: FaultyApi, opened: Any, status: int) -> None:
    api.then(refusal(status, "Whatever"), page("bad gateway", status), GOOD)
    assert opened().get(CONFIG) == {"kind": "Thing", "metadata": {"name": "web"}}
    assert len(api.seen) == 3


@pytest.mark.parametrize("fault", [reset, half, hang(0.05)])
def test_a_connection_that_breaks_is_made_again(api: FaultyApi, opened: Any, fault: Any) -> None:
    api.then(fault, fault, GOOD)
    assert opened().get(CONFIG)
    assert len(api.seen) == 3


@pytest.mark.parametrize(
    "asked",
    [refusal(429, "TooManyRequests", headers={"Retry_After": "1"}), refusal(503, retryAfterSeconds=1)],
)
def test_the_server_says_how_long_to_wait(api: FaultyApi, opened: Any, asked: Any) -> None:
    api.then(asked, GOOD)
    assert opened().get(CONFIG)
    first, second = api.seen
    assert second.when - first.when >= 1


def test_a_wait_beyond_the_calls_time_is_not_begun(api: FaultyApi, opened: Any) -> None:
    api.then(refusal(429, "TooManyRequests", "slow down", headers={"Retry_After": "60"}))
    began = time.monotonic()
    text = raised(UnreachableError, lambda: opened("2s").get(CONFIG))
    assert time.monotonic() - began < 1
    assert text.startswith(f"the API server {api.url} does not answer: status 429, slow down (in 0.")


@pytest.mark.parametrize("fault", [reset, half, refusal(500, "InternalError", "etcd is ill"), page("", 502)])
def test_what_does_not_pass_ends_in_time(api: FaultyApi, opened: Any, said: list[str], fault: Any) -> None:
    api.then(fault)
    cluster = opened("2s")
    began = time.monotonic()
    text = raised(UnreachableError, lambda: cluster.get(CONFIG))
    assert time.monotonic() - began < 2.5
    assert re.search(r"\(asked \d+ times in \d\.\d s\)", text)
    assert text.endswith("is the right one")
    assert len(api.seen) >= 3
    assert [line.split(" (")[0] for line in said] == [f"{api.url} does not answer"]


@pytest.mark.parametrize("fault", [hang(), slow(2.0, GOOD), drip])
def test_a_slow_server_is_given_up_in_time(api: FaultyApi, opened: Any, fault: Any) -> None:
    api.then(fault)
    cluster = opened("500ms")
    began = time.monotonic()
    text = raised(UnreachableError, lambda: cluster.get(CONFIG))
    assert 0.4 < time.monotonic() - began < 1.2
    assert "does not answer: no answer in time (in 0.5 s)" in text
    assert len(api.seen) == 1


def test_a_server_that_answers_late_but_in_time_is_waited_for(api: FaultyApi, opened: Any) -> None:
    api.then(slow(0.7, GOOD))
    assert opened("3s").get(CONFIG)
    assert len(api.seen) == 1


def test_a_server_that_is_not_there_is_named(opened: Any, api: FaultyApi, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        api.url = f"https://user:{TOKEN}@127.0.0.1:{taken.getsockname()[1]}"
        cluster = opened("500ms")
        text = raised(UnreachableError, lambda: cluster.get(CONFIG))
    assert text.startswith(f"the API server {cluster.url} does not answer: Connection refused (asked ")
    assert cluster.url == f"https://127.0.0.1:{taken_port(cluster.url)}"
    assert text.endswith(
        f"; see whether it runs, and whether context lab of {tmp_path}/kubeconfig is the right one"
    )


def taken_port(url: str) -> int:
    return int(url.rpartition(":")[2])


def test_a_name_that_is_not_known_is_said(opened: Any, api: FaultyApi) -> None:
    api.url = "https://nowhere.invalid:6443"
    text = raised(UnreachableError, lambda: opened("300ms").get(CONFIG))
    assert "https://nowhere.invalid:6443 does not answer: its name is not known" in text


def test_what_is_no_api_server_is_said(opened: Any, api: FaultyApi) -> None:
    api.then(page("<html>log in here</html>"))
    text = raised(UnreachableError, lambda: opened().get(CONFIG))
    assert text.startswith(f"{api.url} answers as no Kubernetes API does (status 200); correct `server` in")


@pytest.mark.parametrize("status", [403, 409, 422])
def test_a_proxys_page_is_no_answer_of_the_api_server(opened: Any, api: FaultyApi, status: int) -> None:
    api.then(page("<html>blocked</html>", status))
    text = raised(UnreachableError, lambda: opened().apply(config()))
    assert f"answers as no Kubernetes API does (status {status})" in text


def test_an_address_without_the_api_is_no_cluster(opened: Any, api: FaultyApi) -> None:
    api.then(page("not found", 404))
    text = raised(NoSuchKindError, lambda: opened().get(CONFIG))
    assert text == (
        "there is no ConfigMap of v1 at the cluster's address, as at every Kubernetes API; correct `server` in the "
        "kubeconfig"
    )


# -- writes whose answer was lost ------------------------------------------------------------------------------


def test_a_create_that_had_been_done_before_its_answer_was_lost_has_succeeded(
    api: FaultyApi, opened: Any
) -> None:
    live = {**config(a="1"), "metadata": {"name": "web", "namespace": "shop", "uid": "7"}}
    api.then(reset, refusal(409, "AlreadyExists", "there", name="web", kind="configmaps"), answer(live))
    assert opened().create(config(a="1")) == live
    assert [each.method for each in api.seen] == ["POST", "POST", "GET"]


def test_a_create_that_somebody_else_was_quicker_with_has_failed(api: FaultyApi, opened: Any) -> None:
    live = {**config(a="2"), "metadata": {"name": "web", "namespace": "shop", "uid": "7"}}
    api.then(reset, refusal(409, "AlreadyExists", "there", name="web", kind="configmaps"), answer(live))
    text = raised(ExistsError, lambda: opened().create(config(a="1")))
    assert text == "there is a ConfigMap web in namespace shop already; look at it, and run again"


def test_an_existing_object_is_not_taken_for_ones_own_without_reason(api: FaultyApi, opened: Any) -> None:
    api.then(refusal(409, "AlreadyExists", "there", name="web", kind="configmaps"), answer(config(a="1")))
    raised(ExistsError, lambda: opened().create(config(a="1")))
    assert len(api.seen) == 1


@pytest.mark.parametrize(("value", "mine"), [("1", True), ("2", False)])
@pytest.mark.parametrize("verb", ["replace", "apply", "patch"])
def test_a_change_whose_answer_was_lost_is_looked_at(
    api: FaultyApi, opened: Any, verb: str, value: str, mine: bool
) -> None:
    live = {**config(a=value), "metadata": {"name": "web", "namespace": "shop", "resourceVersion": "6"}}
    api.then(half, refusal(409, "Conflict", "modified", name="web", kind="configmaps"), answer(live))
    cluster = opened()
    wanted = {**config(a="1"), "metadata": {"name": "web", "resourceVersion": "5"}}

    def call() -> Any:
        if verb == "patch":
            return cluster.patch(CONFIG, {"data": {"a": "1", "b": None}}, resource_version="5")
        return getattr(cluster, verb)(wanted)

    if mine:
        assert call() == live
    else:
        text = raised(ConflictError, call)
        assert text == (
            "somebody else has changed ConfigMap web in namespace shop meanwhile; run the same command again"
        )


def test_a_delete_that_had_been_done_before_its_answer_was_lost_has_succeeded(
    api: FaultyApi, opened: Any
) -> None:
    api.then(reset, refusal(404, "NotFound", "no", name="web", kind="configmaps"))
    assert opened().delete(CONFIG) is True


def test_a_json_patch_without_a_test_is_not_made_twice(api: FaultyApi, opened: Any) -> None:
    api.then(reset, GOOD)
    cluster = opened()
    patch = [{"op": "add", "path": "/spec/rules/-", "value": {}}]
    text = raised(UnreachableError, lambda: cluster.patch(DEPLOYMENT, patch, kind="json"))
    assert "; it may have been done all the same; see whether it runs" in text
    assert len(api.seen) == 1
    assert cluster.patch(DEPLOYMENT, patch, kind="json")


def test_a_json_patch_with_a_version_is(api: FaultyApi, opened: Any) -> None:
    api.then(reset, GOOD)
    assert opened().patch(
        DEPLOYMENT, [{"op": "remove", "path": "/spec/a"}], kind="json", resource_version="5"
    )
    assert api.seen[1].body[0] == {"op": "test", "path": "/metadata/resourceVersion", "value": "5"}


# -- what does not pass ----------------------------------------------------------------------------------------

CAUSES = [
    {
        "reason": "FieldValueInvalid",
        "message": "Invalid value: -1: must be 0 or more",
        "field": "spec.replicas",
    },
    {"reason": "FieldValueRequired", "message": "Required\n value", "field": "spec.selector"},
]
OWNERS = [
    {
        "reason": "FieldManagerConflict",
        "message": 'conflict with "hpa" using apps/v1',
        "field": ".spec.replicas",
    },
    {
        "reason": "FieldManagerConflict",
        "message": 'conflict with "kubectl-edit" with subresource "scale" using apps/v1 at 2026-01-01T00:00:00Z',
        "field": ".spec.paused",
    },
    {"reason": "FieldManagerConflict", "message": 'conflict with "hpa"', "field": ".spec.x"},
]
REFUSALS: list[tuple[Any, type[ShipctlError], str]] = [
    (
        refusal(400, "BadRequest", 'strict decoding error: unknown field "spec.replica"'),
        InvalidError,
        (
            'Deployment web is not valid: strict decoding error: unknown field "spec.replica"; correct that in the '
            "spec or in its template"
        ),
    ),
    (
        refusal(
            403, "Forbidden", 'pods "web" is forbidden: violates PodSecurity "restricted:latest"', name="web"
        ),
        StageError,
        (
            'Deployment web: the cluster does not admit it: violates PodSecurity "restricted:latest"; change it, or '
            "ask who runs the cluster"
        ),
    ),
    (
        refusal(
            403,
            "Forbidden",
            'deployments.apps "web" is forbidden: User "eve" cannot patch resource "deployments" in API group "apps" '
            'in the namespace "shop"',
        ),
        ForbiddenError,
        (
            "eve may not patch deployments in namespace shop; add to a Role there: "
            '{apiGroups: ["apps"], resources: ["deployments"], verbs: ["patch"]}'
        ),
    ),
    (
        refusal(
            403,
            "Forbidden",
            'nodes is forbidden: User "eve" cannot list resource "nodes" in API group "" at the '
            "cluster scope",
        ),
        ForbiddenError,
        'eve may not list nodes; add to a ClusterRole: {apiGroups: [""], resources: ["nodes"], verbs: ["list"]}',
    ),
    (
        refusal(
            403,
            "Forbidden",
            'deployments.apps "web" is forbidden: exceeded quota: limits, requested: count/deployments.apps=1, used: '
            "count/deployments.apps=3, limited: count/deployments.apps=3",
        ),
        QuotaError,
        (
            "Deployment web: no room in namespace shop: exceeded quota: limits, requested: count/deployments.apps=1, "
            "used: count/deployments.apps=3, limited: count/deployments.apps=3; free some of it, or ask for more"
        ),
    ),
    (
        refusal(403, "Forbidden", "no", causes=[{"reason": "NamespaceTerminating"}]),
        GoneError,
        (
            "Deployment web: namespace shop is being deleted; wait until it is gone and create it again, or correct "
            "`namespace:`"
        ),
    ),
    (
        refusal(404, "NotFound", 'namespaces "shop" not found', name="shop", kind="namespaces"),
        GoneError,
        "there is no namespace shop in the cluster; kubectl create namespace shop, or correct `namespace:`",
    ),
    (
        refusal(404, "NotFound", "no", name="web", kind="deployments"),
        MissingError,
        "there is no Deployment web in namespace shop any more; run the same command again",
    ),
    (
        refusal(409, "Conflict", "the object has been modified", name="web"),
        ConflictError,
        "somebody else has changed Deployment web in namespace shop meanwhile; run the same command again",
    ),
    (
        refusal(409, "Conflict", "conflicts", causes=OWNERS),
        FieldConflictError,
        (
            "Deployment web: .spec.replicas, .spec.x are hpa's and .spec.paused is kubectl-edit's; leave that out of "
            "what shipctl applies, or take it over with `kubectl apply --server-side --force-conflicts "
            "--field-manager=shipctl`"
        ),
    ),
    (
        refusal(422, "Invalid", "bad", name="web", causes=CAUSES),
        InvalidError,
        (
            "Deployment web is not valid: spec.replicas: Invalid value: -1: must be 0 or more; spec.selector: Required "
            "value; correct that in the spec or in its template"
        ),
    ),
    (
        refusal(415, "UnsupportedMediaType", "no such patch"),
        StageError,
        "Deployment web: the cluster refuses to patch it: no such patch; see that object there",
    ),
]


@pytest.mark.parametrize(("act", "kind", "text"), REFUSALS)
def test_a_refusal_says_what_to_do_and_is_not_tried_again(
    api: FaultyApi, opened: Any, act: Any, kind: type[ShipctlError], text: str
) -> None:
    api.then(act)
    manifest = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}}
    assert raised(kind, lambda: opened().apply(manifest)) == text
    assert len(api.seen) == 1


def test_a_field_conflict_names_managers_and_fields(api: FaultyApi, opened: Any) -> None:
    api.then(refusal(409, "Conflict", "conflicts", causes=OWNERS))
    with pytest.raises(FieldConflictError) as caught:
        opened().apply(config())
    assert caught.value.managers == ("hpa", "kubectl-edit")
    assert caught.value.fields == (".spec.replicas", ".spec.x", ".spec.paused")


def test_a_message_of_the_server_never_has_the_login(api: FaultyApi, opened: Any) -> None:
    api.then(refusal(422, "Invalid", f"the webhook got Authorization {TOKEN}", name="web"))
    assert "got Authorization ***;" in raised_anyway(lambda: opened().apply(config()))


def raised_anyway(call: Callable[[], Any]) -> str:
    with pytest.raises(InvalidError) as caught:
        call()
    return str(caught.value)


def test_a_login_that_is_refused_is_said_once(api: FaultyApi, opened: Any, tmp_path: Path) -> None:
    api.then(refusal(401, "Unauthorized", "Unauthorized"))
    cluster = opened()
    text = raised(LoginError, lambda: cluster.get(CONFIG))
    assert text == (
        f"the cluster {api.url} does not accept the login of me (context lab of {tmp_path}/kubeconfig); log in again, "
        "and see `kubectl get pods` with it"
    )
    assert len(api.seen) == 1


def test_a_login_as_nobody_is_said(api: FaultyApi, opened: Any) -> None:
    api.then(
        refusal(403, "Forbidden", 'User "system:anonymous" cannot get resource "configmaps" in API group ""')
    )
    assert "does not know who we are (context lab" in raised(LoginError, lambda: opened().get(CONFIG))


# -- lists and watches -----------------------------------------------------------------------------------------


def test_a_list_comes_in_pages(api: FaultyApi, opened: Any) -> None:
    api.then(
        answer({"items": [{"metadata": {"name": "a"}}], "metadata": {"continue": "next"}}),
        answer({"items": [{"metadata": {"name": "b"}}], "metadata": {}}),
    )
    found = opened().list("v1", "ConfigMap", {"app": "web", "tier": "x"})
    assert [each["metadata"]["name"] for each in found] == ["a", "b"]
    assert found[0]["kind"] == "ConfigMap"
    assert found[0]["apiVersion"] == "v1"
    assert api.seen[0].path == "/api/v1/namespaces/shop/configmaps"
    assert [each.query for each in api.seen] == [
        {"limit": "500", "labelSelector": "app=web,tier=x"},
        {"limit": "500", "labelSelector": "app=web,tier=x", "continue": "next"},
    ]


def test_a_list_whose_pages_expire_is_made_at_once(api: FaultyApi, opened: Any) -> None:
    api.then(
        answer({"items": [{"metadata": {"name": "old"}}], "metadata": {"continue": "next"}}),
        refusal(410, "Expired", "too old"),
        answer({"items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}], "metadata": {}}),
    )
    assert [each["metadata"]["name"] for each in opened().list("v1", "ConfigMap")] == ["a", "b"]
    assert api.seen[2].query == {}


def names(events: Any) -> list[tuple[str, str]]:
    return [(kind, found["metadata"]["name"]) for kind, found in events]


def test_a_watch_that_is_dropped_goes_on_where_it_was(api: FaultyApi, opened: Any) -> None:
    api.then(
        stream([event("ADDED", "a", 3), event("BOOKMARK", "", 9)], end="cut"),
        reset,
        refusal(503, "ServiceUnavailable"),
        stream([event("MODIFIED", "a", 11)], end="hang"),
    )
    assert names(opened().watch("v1", "ConfigMap", seconds=1.5)) == [("ADDED", "a"), ("MODIFIED", "a")]
    assert [each.query.get("resourceVersion") for each in api.seen] == [None, "9", "9", "9"]
    assert {each.query["watch"] for each in api.seen} == {"true"}


@pytest.mark.parametrize(
    "forgotten",
    [
        stream([{"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}}]),
        refusal(410, "Expired", "too old resource version"),
    ],
)
def test_a_watch_that_the_server_has_forgotten_begins_anew(
    api: FaultyApi, opened: Any, forgotten: Any
) -> None:
    api.then(
        stream([event("ADDED", "a", 3)]),
        forgotten,
        stream([event("ADDED", "a", 30), event("ADDED", "b", 31)], end="hang"),
    )
    found = names(opened().watch("v1", "ConfigMap", seconds=1))
    assert found == [("ADDED", "a"), ("ADDED", "a"), ("ADDED", "b")]
    assert [each.query.get("resourceVersion") for each in api.seen] == [None, "3", None]


@pytest.mark.parametrize("first", [hang(), stream([event("ADDED", "a", 3)], end="hang", pause=0.5)])
def test_a_watch_that_hangs_ends_in_time(api: FaultyApi, opened: Any, first: Any) -> None:
    api.then(first)
    began = time.monotonic()
    list(opened("30s").watch("v1", "ConfigMap", seconds=0.8))
    assert 0.7 < time.monotonic() - began < 1.4


def test_a_watch_that_ends_at_once_each_time_is_not_begun_all_the_time(api: FaultyApi, opened: Any) -> None:
    api.then(stream([]))
    assert list(opened().watch("v1", "ConfigMap", seconds=1.5)) == []
    assert len(api.seen) < 15


def test_a_watch_of_a_server_that_is_gone_is_given_up(api: FaultyApi, opened: Any) -> None:
    api.then(stream([event("ADDED", "a", 3)]), reset)
    found = []
    cluster = opened("500ms")
    with pytest.raises(UnreachableError):
        found += names(cluster.watch("v1", "ConfigMap", seconds=20))
    assert len(api.seen) > 2


def test_a_watch_that_is_not_allowed_is_said(api: FaultyApi, opened: Any) -> None:
    api.then(
        refusal(
            403,
            "Forbidden",
            'pods is forbidden: User "eve" cannot watch resource "pods" in API group "" in the namespace "shop"',
        )
    )
    text = raised(ForbiddenError, lambda: list(opened().watch("v1", "Pod", seconds=5)))
    assert text.startswith("eve may not watch pods in namespace shop; add to a Role there")


def test_a_watch_that_is_left_early_leaves_nothing_open(api: FaultyApi, opened: Any) -> None:
    api.then(stream([event("ADDED", "a", 3)], end="hang"))
    for kind, _ in opened().watch("v1", "ConfigMap", seconds=30):
        assert kind == "ADDED"
        break


# -- kinds, warnings, services ---------------------------------------------------------------------------------


def test_a_kind_that_is_missing_is_said_with_what_brings_it(api: FaultyApi, opened: Any) -> None:
    api.then(page("404 page not found", 404))
    text = raised(NoSuchKindError, lambda: opened().get(Ref("keda.sh/v1alpha1", "ScaledObject", "web")))
    assert text == (
        "the cluster has no ScaledObject of keda.sh/v1alpha1; install KEDA (keda.sh), or set "
        "`autoscaling: {engine: hpa}`"
    )


def test_another_version_of_a_kind_is_named(api: FaultyApi, opened: Any) -> None:
    api.then(
        page("404 page not found", 404),
        answer({"versions": [{"version": "v1beta1"}, {"version": "v1alpha2"}]}),
    )
    ref = Ref("gateway.networking.k8s.io/v1", "HTTPRoute", "web")
    assert raised(NoSuchKindError, lambda: opened().get(ref)) == (
        "the cluster has no HTTPRoute of gateway.networking.k8s.io/v1, which it serves as v1beta1 and v1alpha2 only; "
        "update the Gateway API (gateway-api.sigs.k8s.io), or choose another router"
    )


def test_a_kind_that_comes_later_is_found(api: FaultyApi, opened: Any) -> None:
    routes = {"kind": "HTTPRoute", "name": "httproutes", "namespaced": True}
    status = {"kind": "HTTPRoute", "name": "httproutes/status", "namespaced": True}
    api.then(page("404 page not found", 404), answer({"resources": [routes, status]}), GOOD)
    cluster = opened()
    group = "gateway.networking.k8s.io/v1"
    assert not cluster.has(group, "HTTPRoute")
    assert cluster.has(group, "HTTPRoute")
    assert cluster.get(Ref(group, "HTTPRoute", "web"))
    assert api.seen[2].path == f"/apis/{group}/namespaces/shop/httproutes/web"
    assert len(api.seen) == 3  # what is there is asked for once


def test_of_two_versions_the_one_that_is_known_is_not_asked_for_again(api: FaultyApi, opened: Any) -> None:
    slices = {"kind": "EndpointSlice", "name": "endpointslices", "namespaced": True}
    versions = ("discovery.k8s.io/v1", "discovery.k8s.io/v1beta1")
    api.then(page("404 page not found", 404), answer({"resources": [slices]}))
    cluster = opened()
    assert [cluster.first_served(versions, "EndpointSlice") for _ in range(3)] == [versions[1]] * 3
    assert [seen.path for seen in api.seen] == [f"/apis/{version}" for version in versions]


def test_what_every_cluster_serves_is_not_asked_for(api: FaultyApi, opened: Any) -> None:
    assert opened().has("apps/v1", "Deployment")
    assert api.seen == []


def test_a_warning_is_told_once(api: FaultyApi, opened: Any, said: list[str]) -> None:
    api.then(answer({"metadata": {}}, Warning='299 - "policy/v1beta1 is \\"old\\"", 299 - "and unavailable"'))
    cluster = opened()
    cluster.get(CONFIG)
    cluster.get(CONFIG)
    assert said == [
        'the API server warns: policy/v1beta1 is "old"',
        "the API server warns: and unavailable",
    ]


def test_what_a_service_answers_is_not_judged(api: FaultyApi, opened: Any) -> None:
    api.then(page("no such model", 404), refusal(503, "ServiceUnavailable", "no endpoints"), page("yes"))
    cluster = opened()
    assert cluster.proxy("web", 8000, "/v2/models/m?x=1&y=a b", method="POST", body=b"{}") == (
        404,
        b"no such model",
    )
    assert cluster.proxy("web", 8000, "v2")[0] == 503
    assert cluster.proxy("web", 8000, "v2") == (200, b"yes")
    assert [each.path for each in api.seen][:2] == [
        "/api/v1/namespaces/shop/services/web:8000/proxy/v2/models/m",
        "/api/v1/namespaces/shop/services/web:8000/proxy/v2",
    ]
    assert api.seen[0].query == {"x": "1", "y": "a b"}


def test_the_version_of_a_managed_cluster_is_read(api: FaultyApi, opened: Any) -> None:
    api.then(answer({"major": "1", "minor": "34+"}))
    assert opened().version() == (1, 34)
