"""What a real API server makes of our calls: ownership, preconditions, rights, quotas and namespaces that go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from shipctl.errors import ShipctlError
from shipctl_plugins._kubernetes.api import connection
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
    connect,
)
from support_cluster import (
    CLUSTER,
    ControlPlane,
    Kube,
    deployment,
    kubectl,
    quota,
    user_kubeconfig,
    wait_for,
)
from support_control_plane import write_kubeconfig

pytestmark = CLUSTER

CONFIG = Ref("v1", "ConfigMap", "web")
DEPLOYMENT = Ref("apps/v1", "Deployment", "web")
OWNED = "leave that out of what shipctl applies, or take it over with `kubectl apply --server-side --force-conflicts "


@pytest.fixture
def open_as(namespace: str) -> Iterator[Callable[..., Cluster]]:
    clusters: list[Cluster] = []

    def open_cluster(kubeconfig: Path, **access: Any) -> Cluster:
        options = {"kubeconfig": str(kubeconfig), "namespace": namespace, "timeout": "10s", **access}
        clusters.append(connect(Access.model_validate(options), Path("/")))
        return clusters[-1]

    yield open_cluster
    for cluster in clusters:
        cluster.close()


@pytest.fixture
def cluster(open_as: Any, control_plane: ControlPlane) -> Cluster:
    opened: Cluster = open_as(control_plane.kubeconfig)
    return opened


def config(name: str = "web", labels: dict[str, str] | None = None, **data: str) -> dict[str, Any]:
    metadata = {"name": name, "labels": labels or {}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def raised(kind: type[ShipctlError], call: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert caught.type is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- applying --------------------------------------------------------------------------------------------------


def test_applying_again_changes_nothing(cluster: Cluster) -> None:
    first = cluster.apply(config(a="1"))
    again = cluster.apply(config(a="1"))
    assert again["data"] == first["data"] == {"a": "1"}
    assert again["metadata"]["uid"] == first["metadata"]["uid"]
    assert cluster.get(CONFIG) == again
    assert first["metadata"]["namespace"] == cluster.namespace


def test_what_is_applied_no_more_goes_and_what_others_added_stays(
    cluster: Cluster, kube: Kube, namespace: str
) -> None:
    cluster.apply(config(a="1", b="2"))
    kube.patch(
        "ConfigMap", "web", namespace, {"data": {"theirs": "3"}, "metadata": {"labels": {"team": "x"}}}
    )
    after = cluster.apply(config(a="1"))
    assert after["data"] == {"a": "1", "theirs": "3"}
    assert after["metadata"]["labels"] == {"team": "x"}


def test_an_edit_by_kubectl_is_a_conflict_that_names_it(
    cluster: Cluster, control_plane: ControlPlane, namespace: str
) -> None:
    cluster.apply(deployment("web"))
    kubectl(control_plane, "-n", namespace, "patch", "deployment", "web", "-p", '{"spec": {"replicas": 3}}')
    with pytest.raises(FieldConflictError) as caught:
        cluster.apply(deployment("web"))
    (manager,) = caught.value.managers
    assert manager.startswith("kubectl")
    assert caught.value.fields == (".spec.replicas",)
    assert str(caught.value) == (
        f"Deployment web: .spec.replicas is {manager}'s; {OWNED}--field-manager=shipctl`"
    )
    live = cluster.get(DEPLOYMENT)
    assert live
    assert live["spec"]["replicas"] == 3
    # either of the two ways that the message names
    without = deployment("web")
    del without["spec"]["replicas"]
    assert cluster.apply(without)["spec"]["replicas"] == 3
    assert cluster.apply(deployment("web"), force=True)["spec"]["replicas"] == 1


def test_the_same_value_as_anothers_is_no_conflict(cluster: Cluster, kube: Kube, namespace: str) -> None:
    kube.apply(deployment("web", replicas=2), namespace)
    assert cluster.apply(deployment("web", replicas=2))["spec"]["replicas"] == 2


def test_a_dry_run_says_what_would_be_and_changes_nothing(cluster: Cluster) -> None:
    assert cluster.apply(config(a="1"), dry_run=True)["data"] == {"a": "1"}
    assert cluster.get(CONFIG) is None
    before = cluster.apply(config(a="1"))
    would = cluster.apply(config(a="2"), dry_run=True)
    assert would["data"] == {"a": "2"}
    assert cluster.get(CONFIG) == before


def test_a_dry_run_finds_conflicts_and_what_is_not_valid(
    cluster: Cluster, kube: Kube, namespace: str
) -> None:
    cluster.apply(deployment("web"))
    kube.patch("Deployment", "web", namespace, {"spec": {"replicas": 5}}, manager="hpa")
    text = raised(FieldConflictError, lambda: cluster.apply(deployment("web"), dry_run=True))
    assert text.startswith("Deployment web: .spec.replicas is hpa's; ")
    raised(InvalidError, lambda: cluster.apply(deployment("new", replicas=-1), dry_run=True))


def test_a_version_in_an_applied_manifest_is_a_precondition(cluster: Cluster) -> None:
    first = cluster.apply(config(a="1"))
    version = first["metadata"]["resourceVersion"]
    manifest = {**config(a="2"), "metadata": {"name": "web", "resourceVersion": version}}
    second = cluster.apply(manifest)
    assert second["data"] == {"a": "2"}
    text = raised(ConflictError, lambda: cluster.apply(manifest | {"data": {"a": "3"}}))
    assert text == (
        f"somebody else has changed ConfigMap web in namespace {cluster.namespace} meanwhile; run the same command "
        "again"
    )
    assert cluster.get(CONFIG) == second


def test_a_service_is_applied_with_its_ports(cluster: Cluster) -> None:
    ports = [{"name": "http", "port": 8000, "targetPort": 8000, "protocol": "TCP"}]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": ports},
    }
    first = cluster.apply(service)
    assert cluster.apply(service)["spec"] == first["spec"]


def test_what_is_not_valid_is_said_field_by_field(cluster: Cluster) -> None:
    wrong = deployment("web", replicas=-1)
    wrong["spec"]["template"]["metadata"]["labels"] = {"app": "other"}
    text = raised(InvalidError, lambda: cluster.apply(wrong))
    assert text.startswith("Deployment web is not valid: spec.replicas: Invalid value: -1: must be ")
    assert "; spec.template.metadata.labels: Invalid value: " in text
    assert text.endswith("; correct that in the spec or in its template")


def test_a_custom_resource_is_checked_against_its_schema(cluster: Cluster) -> None:
    route = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "web"},
        "spec": {"rules": [{"backendRefs": [{"name": "web", "port": 80, "weight": 5}]}]},
    }
    assert cluster.apply(route)["spec"]["rules"][0]["backendRefs"][0]["weight"] == 5
    route["spec"] = {"rules": [{"backendRefs": [{"name": "web", "port": 80, "weight": -1}]}]}
    text = raised(InvalidError, lambda: cluster.apply(route))
    assert "HTTPRoute web is not valid: spec.rules.backendRefs.weight: Invalid value: -1" in text


# -- creating, replacing, patching, deleting -------------------------------------------------------------------


def test_only_one_creates(cluster: Cluster) -> None:
    assert cluster.create(config(a="1"))["data"] == {"a": "1"}
    assert raised(ExistsError, lambda: cluster.create(config(a="1"))) == (
        f"there is a ConfigMap web in namespace {cluster.namespace} already; look at it, and run again"
    )


def test_of_two_who_replace_one_wins(cluster: Cluster) -> None:
    seen = cluster.create(config(a="1"))
    assert cluster.replace({**seen, "data": {"a": "2"}})["data"] == {"a": "2"}
    raised(ConflictError, lambda: cluster.replace({**seen, "data": {"a": "3"}}))
    live = cluster.get(CONFIG)
    assert live
    assert live["data"] == {"a": "2"}
    cluster.delete(CONFIG)
    raised(MissingError, lambda: cluster.replace({**config(a="4"), "metadata": {"name": "web"}}))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("merge", {"spec": {"paused": True}}),
        ("strategic", {"spec": {"paused": True}}),
        ("json", [{"op": "add", "path": "/spec/paused", "value": True}]),
    ],
)
def test_a_patch_with_a_version_holds_only_for_that_version(cluster: Cluster, kind: Any, body: Any) -> None:
    first = cluster.apply(deployment("web"))
    stale = raised(ConflictError, lambda: cluster.patch(DEPLOYMENT, body, kind=kind, resource_version="1"))
    assert stale.endswith("; run the same command again")

    def patched() -> dict[str, Any]:
        live = cluster.get(DEPLOYMENT)  # the controller writes its status meanwhile
        assert live
        version = live["metadata"]["resourceVersion"]
        return cluster.patch(DEPLOYMENT, body, kind=kind, resource_version=version)

    assert _insisting(patched)["spec"]["paused"] is True
    assert first["spec"].get("paused") is None


def _insisting(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    for _ in range(20):
        try:
            return call()
        except ConflictError:
            time.sleep(0.05)
    pytest.fail("always a conflict")


def test_a_failed_test_of_a_json_patch_is_a_conflict(cluster: Cluster) -> None:
    cluster.apply(deployment("web"))
    patch = [
        {"op": "test", "path": "/spec/replicas", "value": 7},
        {"op": "replace", "path": "/spec/replicas", "value": 8},
    ]
    assert raised(ConflictError, lambda: cluster.patch(DEPLOYMENT, patch, kind="json")) == (
        f"Deployment web in namespace {cluster.namespace} is not as expected any more; run the same command again"
    )
    wrong = [{"op": "replace", "path": "/spec/replicas", "value": -1}]
    raised(InvalidError, lambda: cluster.patch(DEPLOYMENT, wrong, kind="json"))


def test_a_subresource_is_patched(cluster: Cluster) -> None:
    cluster.apply(deployment("web"))
    assert cluster.patch(DEPLOYMENT, {"spec": {"replicas": 2}}, subresource="scale")["kind"] == "Scale"
    live = cluster.get(DEPLOYMENT)
    assert live
    assert live["spec"]["replicas"] == 2


def test_a_patch_of_nothing_is_said(cluster: Cluster) -> None:
    assert raised(MissingError, lambda: cluster.patch(CONFIG, {"data": {"a": "1"}})) == (
        f"there is no ConfigMap web in namespace {cluster.namespace} any more; run the same command again"
    )


def test_deleting_says_whether_it_was_there(cluster: Cluster) -> None:
    uid = cluster.create(config())["metadata"]["uid"]
    assert cluster.delete(CONFIG, uid="another") is False
    assert cluster.get(CONFIG)
    assert cluster.delete(CONFIG, uid=uid) is True
    assert cluster.delete(CONFIG) is False
    assert cluster.get(CONFIG) is None


# -- reading and watching --------------------------------------------------------------------------------------


def test_a_list_of_many_pages_is_whole(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_PAGE", 3)
    for number in range(8):
        cluster.create(config(f"c{number}", {"half": str(number % 2)}))
    found = cluster.list("v1", "ConfigMap", {"half": "0"})
    assert [each["metadata"]["name"] for each in found] == ["c0", "c2", "c4", "c6"]
    assert {each["kind"] for each in found} == {"ConfigMap"}
    assert len(cluster.list("v1", "ConfigMap")) >= 8


def test_a_watch_sees_what_is_there_and_what_becomes_of_it(cluster: Cluster) -> None:
    cluster.create(config(labels={"app": "web"}))
    cluster.create(config("other"))
    seen: list[tuple[str, str]] = []
    began = time.monotonic()
    for kind, found in cluster.watch("v1", "ConfigMap", {"app": "web"}, seconds=20):
        seen.append((kind, found.get("data", {}).get("a", "")))
        if kind == "ADDED":
            cluster.apply(config(labels={"app": "web"}, a="1"))
        if kind == "MODIFIED":
            cluster.delete(CONFIG)
        if kind == "DELETED":
            break
    assert seen == [("ADDED", ""), ("MODIFIED", "1"), ("DELETED", "1")]
    assert time.monotonic() - began < 5


def test_a_quiet_watch_ends_in_time(cluster: Cluster) -> None:
    began = time.monotonic()
    assert list(cluster.watch("v1", "ConfigMap", {"app": "none"}, seconds=0.6)) == []
    assert 0.5 < time.monotonic() - began < 1.5


def test_threads_share_a_cluster(cluster: Cluster) -> None:
    def work(number: int) -> str:
        name = f"c{number}"
        cluster.apply(config(name, a=str(number)))
        found = cluster.get(Ref("v1", "ConfigMap", name))
        assert found
        assert cluster.has("gateway.networking.k8s.io/v1", "HTTPRoute")
        return str(found["data"]["a"])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(40))) == [str(number) for number in range(40)]


# -- what the cluster is, and who may do what ------------------------------------------------------------------


def test_the_cluster_says_what_it_serves(cluster: Cluster) -> None:
    assert cluster.version() == (1, 20)
    assert cluster.has("apps/v1", "Deployment")
    assert cluster.has("gateway.networking.k8s.io/v1", "HTTPRoute")
    assert not cluster.has("policy/v1", "PodDisruptionBudget")
    assert not cluster.has("nobody.example/v1", "Thing")
    assert raised(NoSuchKindError, lambda: cluster.list("policy/v1", "PodDisruptionBudget")) == (
        "the cluster has no PodDisruptionBudget of policy/v1, which it serves as v1beta1 only; update the cluster"
    )
    assert raised(NoSuchKindError, lambda: cluster.get(Ref("nobody.example/v1", "Thing", "x"))) == (
        "the cluster has no Thing of nobody.example/v1; install what brings it, or update the cluster"
    )


def test_what_is_forbidden_comes_with_the_rule_that_is_missing(
    cluster: Cluster, open_as: Any, control_plane: ControlPlane, tmp_path: Path, namespace: str
) -> None:
    rules = [{"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get"]}]
    user = open_as(user_kubeconfig(control_plane, tmp_path, "limited-1", rules, namespace))
    assert user.get(DEPLOYMENT) is None
    assert user.allowed("get", "apps/v1", "Deployment")
    assert not user.allowed("patch", "apps/v1", "Deployment")
    assert not user.allowed("get", "v1", "Service", "proxy")
    assert cluster.allowed("get", "v1", "Service", "proxy")
    text = raised(ForbiddenError, lambda: user.apply(deployment("web")))
    assert text == (
        f"limited-1 may not patch deployments in namespace {namespace}; add to a Role there: "
        '{apiGroups: ["apps"], resources: ["deployments"], verbs: ["patch"]}'
    )
    rules.append({"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["patch"]})
    user_kubeconfig(control_plane, tmp_path, "limited-1", rules, namespace)
    text = raised(ForbiddenError, lambda: user.apply(deployment("web")))
    assert text == (  # it is not there yet
        f"user entry test of the kubeconfig may not create deployments in namespace {namespace}; add to a Role there: "
        '{apiGroups: ["apps"], resources: ["deployments"], verbs: ["create"]}'
    )
    rules.append({"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["create"]})
    user_kubeconfig(control_plane, tmp_path, "limited-1", rules, namespace)
    assert user.apply(deployment("web"))
    text = raised(ForbiddenError, lambda: next(iter(user.watch("v1", "Pod", seconds=5))))
    assert f"limited-1 may not watch pods in namespace {namespace}; " in text


def test_a_wrong_token_is_said(open_as: Any, control_plane: ControlPlane, tmp_path: Path) -> None:
    file = write_kubeconfig(tmp_path / "c", control_plane.url, control_plane.ca, "wrong-token-9876")
    text = raised(LoginError, lambda: open_as(file).get(CONFIG))
    assert text.startswith(
        f"the cluster {control_plane.url} does not accept the login of test (context test of {file})"
    )
    assert "wrong-token" not in text


def test_no_room_in_the_quota_is_said(cluster: Cluster, kube: Kube, namespace: str) -> None:
    quota(kube, namespace, {"count/deployments.apps": "1"})
    cluster.apply(deployment("web"))
    text = raised(QuotaError, lambda: cluster.apply(deployment("more")))
    assert text == (
        f"Deployment more: no room in namespace {namespace}: exceeded quota: limits, requested: "
        "count/deployments.apps=1, used: count/deployments.apps=1, limited: count/deployments.apps=1; free some of "
        "it, or ask for more"
    )


def test_a_missing_namespace_is_said(open_as: Any, control_plane: ControlPlane) -> None:
    nowhere = open_as(control_plane.kubeconfig, namespace="nowhere")
    text = "there is no namespace nowhere in the cluster; kubectl create namespace nowhere, or correct `namespace:`"
    assert raised(GoneError, lambda: nowhere.apply(config())) == text
    assert raised(GoneError, lambda: nowhere.create(config())) == text
    assert nowhere.get(CONFIG) is None
    assert nowhere.list("v1", "ConfigMap") == []


def test_a_namespace_that_goes_is_said(cluster: Cluster, kube: Kube, namespace: str) -> None:
    held = config()
    held["metadata"]["finalizers"] = ["example.org/hold"]
    cluster.create(held)
    kube.delete("Namespace", namespace)
    text = raised(GoneError, lambda: cluster.apply(deployment("web")))
    assert text == (
        f"Deployment web: namespace {namespace} is being deleted; wait until it is gone and create it again, or "
        "correct `namespace:`"
    )
    raised(GoneError, lambda: cluster.create(config("more")))

    def let_go() -> bool:
        cluster.patch(CONFIG, {"metadata": {"finalizers": None}})
        return True

    wait_for(let_go)


# -- through the API server ------------------------------------------------------------------------------------


class Echo(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        said = (
            f"{self.path} {self.headers['X-Model']} {self.headers['Authorization']} {body.decode()}".encode()
        )
        self.send_response(418)
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


def test_a_service_is_reached_through_the_api_server(cluster: Cluster, kube: Kube, namespace: str) -> None:
    address = own_address()
    if address is None:
        pytest.skip("this machine has no address but loopback, which Endpoints may not have")
    with serving(address) as server:
        behind(kube, namespace, address)
        port = {"port": 8000, "targetPort": server.server_port, "protocol": "TCP"}
        spec = {"selector": {"app": "web"}, "ports": [port]}
        cluster.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": spec})
        path, headers = "/v2/models/m/infer?a=1", {"X-Model": "m"}
        answer = wait_for(
            lambda: _answered(cluster.proxy("web", 8000, path, method="POST", body=b"{}", headers=headers))
        )
    assert answer == (418, b"/v2/models/m/infer?a=1 m None {}")
    raised(MissingError, lambda: cluster.proxy("none", 8000, "v2"))


def test_a_service_with_nobody_behind_it_says_so(cluster: Cluster) -> None:
    spec = {"selector": {"app": "web"}, "ports": [{"port": 8000, "protocol": "TCP"}]}
    cluster.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": spec})
    assert cluster.proxy("web", 8000, "v2")[0] == 503  # whether or not a controller has seen it
    wait_for(lambda: cluster.get(Ref("v1", "Endpoints", "web")))
    assert cluster.proxy("web", 8000, "v2")[0] == 503


@contextmanager
def serving(address: str) -> Iterator[HTTPServer]:
    with HTTPServer((address, 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def behind(kube: Kube, namespace: str, address: str) -> None:
    """Run a pod with that address: the API server only goes to addresses of pods."""
    pod = {**deployment("web")["spec"]["template"], "apiVersion": "v1", "kind": "Pod"}
    pod["metadata"] = {"name": "web", "labels": {"app": "web"}}
    kube.create(pod, namespace)

    def ready() -> bool:
        conditions = kube.get("Pod", "web", namespace)["status"].get("conditions", [])
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    wait_for(ready, what="the pod is not ready")
    kube.set_status("Pod", "web", namespace, {"podIP": address, "podIPs": [{"ip": address}]})


def _answered(answer: tuple[int, bytes]) -> tuple[int, bytes] | None:
    return answer if answer[0] < 500 else None


def own_address() -> str | None:
    """Return an address of this machine that is not loopback."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return None
        found = str(probe.getsockname()[0])
    return None if found.startswith("127.") else found
