"""What is found in manifests before a cluster sees them: nothing in ours, and every fault that is put into them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import cache
from typing import Any

import pytest

from shipctl_plugins._kubernetes.lint.fields import amount
from shipctl_plugins._kubernetes.lint.practice import practice
from shipctl_plugins._kubernetes.lint.problems import problems, schema_problems, schema_versions
from shipctl_plugins._kubernetes.manifests.render import door, elsewhere, operator_role
from support_rendering import COMBINATIONS, everything, of_kind, options_of, workload_of

OLDEST = "1.28"
Objects = list[dict[str, Any]]


def route(**backend: Any) -> dict[str, Any]:
    reference = {"name": "digits-cnn", "port": 8000, "weight": 5, **backend}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "digits-cnn", "namespace": "team-a"},
        "spec": {"rules": [{"backendRefs": [reference]}]},
    }


@cache
def objects_of(name: str) -> Objects:
    """Return what these options make, once for all tests: who changes it takes a copy."""
    options = options_of(**COMBINATIONS[name])
    return [*everything(options), *operator_role(options, workload_of(options).app)]


@pytest.fixture(scope="module", autouse=True)
def schemas_read_once() -> Iterator[None]:
    """Keep schemas: kubernetes-validate reads a version's definitions, a megabyte, again for each object."""
    utils = pytest.importorskip("kubernetes_validate").utils
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "schema_contents", cache(utils.schema_contents))
        yield


# -- ours ----------------------------------------------------------------------------------------------------


def fitting(name: str, version: str) -> list[str]:
    return problems(objects_of(name), version, elsewhere=elsewhere(options_of(**COMBINATIONS[name])))


@pytest.mark.parametrize("version", ["oldest", "newest"])
@pytest.mark.parametrize("name", ["gateway, hpa", "gpu slices"])
def test_what_is_rendered_is_valid(name: str, version: str) -> None:
    assert fitting(name, OLDEST if version == "oldest" else schema_versions()[-1]) == []


@pytest.mark.slow
@pytest.mark.parametrize("version", [one for one in schema_versions() if int(one.split(".")[1]) >= 28])
@pytest.mark.parametrize("name", COMBINATIONS)
def test_everything_that_is_rendered_is_valid_in_every_version(name: str, version: str) -> None:
    assert fitting(name, version) == []


def test_there_are_schemas_of_the_oldest_supported_version_and_of_newer_ones() -> None:
    assert OLDEST in schema_versions()
    assert schema_versions()[-1] != OLDEST


# -- schemas -------------------------------------------------------------------------------------------------


def test_a_field_that_there_is_not_is_found() -> None:
    service = of_kind(copy.deepcopy(objects_of("one replica")), "Service", "digits-cnn")
    service["spec"]["port"] = 80
    (found,) = problems([service], "1.34")
    assert found.startswith(
        "Service digits-cnn: spec: Additional properties are not allowed ('port' was unexpected)"
    )


def test_a_version_newer_than_all_schemas_is_held_against_the_newest() -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"port": 80}}
    assert schema_problems(service, "1.99")
    assert schema_problems(service, "1.20") == []


def test_kinds_of_others_are_not_held_against_schemas() -> None:
    assert schema_problems(route(), "1.34") == []


# -- what schemas miss ---------------------------------------------------------------------------------------


def change(kind: str, name: str | None, *path: str | int, to: Any) -> Callable[[Objects], None]:
    """Return what puts a value at a path into the one object of that kind; `...` removes what is there."""

    def apply(objects: Objects) -> None:
        place: Any = of_kind(objects, kind, name)
        for part in path[:-1]:
            place = place.setdefault(part, {}) if isinstance(place, dict) else place[part]
        if to is ...:
            del place[path[-1]]
        else:
            place[path[-1]] = to

    return apply


REVISION = "digits-cnn-0123456789"
SERVER = ("Deployment", REVISION)
CONTAINER = ("spec", "template", "spec", "containers", 0)
POD = ("spec", "template", "spec")
RESOURCES = (*CONTAINER, "resources")


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (change(*SERVER, "metadata", "name", to="Digits_1"), "'Digits_1' is no name of a Deployment"),
        (
            change("Service", REVISION, "metadata", "name", to="1-digits"),
            "'1-digits' is no name of a Service",
        ),
        (change(*SERVER, "metadata", "namespace", to="Team"), "'Team' is no name; write at most 63"),
        (change(*SERVER, "metadata", "namespace", to="other"), "of several namespaces: other, team-a"),
        (change(*SERVER, "metadata", "labels", "a/b/c", to="x"), "'a/b/c' is no key of a label"),
        (change(*SERVER, "metadata", "labels", "a", to="x" * 64), "is no value of a label; write at most 63"),
        (change(*SERVER, "metadata", "annotations", "a", to="x" * 300_000), "more than the 262144 that"),
        (
            change(*SERVER, "spec", "selector", "matchLabels", "a", to="b"),
            "is no label of its own pods, which have None",
        ),
        (change(*SERVER, "spec", "selector", to={}), "spec.selector: selects nothing"),
        (
            change(*SERVER, "spec", "strategy", "type", to="Rolling"),
            "'Rolling' is none of RollingUpdate, Recreate",
        ),
        (
            change(*SERVER, "spec", "strategy", "rollingUpdate", "maxSurge", to=0),
            "are both 0; write maxSurge: 1",
        ),
        (change(*SERVER, "spec", "progressDeadlineSeconds", to=5), "must be longer than minReadySeconds"),
        (change(*SERVER, *POD, "serviceAccountName", to="ghost"), "there is no ServiceAccount ghost"),
        (
            change(*SERVER, *POD, "terminationGracePeriodSeconds", to=10),
            "10 is not above the 10 that preStop sleeps",
        ),
        (change(*SERVER, *POD, "volumes", 0, "name", to="other"), "the pod has no volume 'tmp'"),
        (change(*SERVER, *POD, "volumes", 0, "name", to="shm"), "volumes.name: 'shm' is there twice"),
        (change(*SERVER, *POD, "volumes", 0, "emptyDir", "sizeLimit", to="4 GB"), "'4 GB' is no quantity"),
        (
            change(*SERVER, *POD, "volumes", 1, "emptyDir", "medium", to="memory"),
            "'memory' is none of , Memory",
        ),
        (change(*SERVER, *POD, "tolerations", to=[{"effect": "NoRun"}]), "'NoRun' is none of NoSchedule"),
        (change(*SERVER, *POD, "nodeSelector", to={"a b": "c"}), "'a b' is no key of a label"),
        (
            change(
                *SERVER, *POD, "topologySpreadConstraints", 0, "labelSelector", "matchLabels", "a", to="b"
            ),
            "does not select its own pods",
        ),
        (
            change(*SERVER, *POD, "topologySpreadConstraints", 0, "whenUnsatisfiable", to="Maybe"),
            "'Maybe' is none of DoNotSchedule, ScheduleAnyway",
        ),
        (
            change(*SERVER, *POD, "topologySpreadConstraints", 0, "maxSkew", to=0),
            "maxSkew: 0 is not 1 or more",
        ),
        (
            change(*SERVER, *POD, "securityContext", "runAsUser", to=0),
            "runAsUser is 0, which is root; no such pod",
        ),
        (change(*SERVER, *CONTAINER, "imagePullPolicy", to="Sometimes"), "'Sometimes' is none of Always"),
        (
            change(*SERVER, *CONTAINER, "ports", 0, "containerPort", to=70000),
            "70000 is no port; write a number",
        ),
        (
            change(*SERVER, *CONTAINER, "ports", 0, "containerPort", to=8001),
            "containerPort: 8001 is there twice",
        ),
        (
            change(*SERVER, *CONTAINER, "ports", 0, "name", to="the-port-of-http"),
            "is no name of a port; write at most 15",
        ),
        (change(*SERVER, *CONTAINER, "ports", 0, "name", to="web"), "the container has no port 'http'"),
        (
            change(*SERVER, *CONTAINER, "ports", 0, "name", to="web"),
            "no container of its pods has a port 'http'",
        ),
        (
            change(*SERVER, *CONTAINER, "livenessProbe", "httpGet", "path", to="v2"),
            "'v2' does not begin with /",
        ),
        (
            change(*SERVER, *CONTAINER, "livenessProbe", "exec", to={}),
            "has 2 of httpGet, tcpSocket, exec, grpc",
        ),
        (
            change(*SERVER, *CONTAINER, "livenessProbe", "periodSeconds", to=0),
            "periodSeconds: 0 is not 1 or more",
        ),
        (
            change(*SERVER, *CONTAINER, "startupProbe", "successThreshold", to=2),
            "successThreshold: must be 1",
        ),
        (change(*SERVER, *CONTAINER, "env", 0, "name", to="A B"), "'A B' is no name of a variable"),
        (change(*SERVER, *CONTAINER, "env", 0, "value", to=1), "1 is no text; quote it"),
        (change(*SERVER, *CONTAINER, "env", to=[{"name": "A"}, {"name": "A"}]), "env: 'A' is there twice"),
        (
            change(*SERVER, *RESOURCES, "requests", "memory", to="2GiB"),
            "'2GiB' is no quantity; write a number",
        ),
        (
            change(*SERVER, *RESOURCES, "limits", "memory", to="1Gi"),
            "requests 2Gi of memory, and its limit is 1Gi",
        ),
        (
            change(*SERVER, *RESOURCES, "limits", "nvidia.com/gpu", to="0.5"),
            "nvidia.com/gpu: 0.5 is no whole number",
        ),
        (
            change(*SERVER, *RESOURCES, "requests", "nvidia.com/gpu", to="1"),
            "needs a limit, and a request that equals",
        ),
        (
            change(*SERVER, *CONTAINER, "volumeMounts", 1, "mountPath", to="/tmp"),
            "mountPath: '/tmp' is there twice",
        ),
        (
            change("Service", REVISION, "spec", "type", to="External"),
            "'External' is none of ClusterIP, NodePort",
        ),
        (
            change("Service", REVISION, "spec", "selector", "app.kubernetes.io/component", to="web"),
            "no pods have",
        ),
        (
            change("Service", REVISION, "spec", "selector", "shipctl.dev/revision", to="f" * 10),
            "no pods have",
        ),
        (
            change("Service", REVISION, "spec", "ports", 0, "targetPort", to="web"),
            "no container of its pods has a port 'web'",
        ),
        (change("Service", REVISION, "spec", "ports", 0, "port", to=0), "0 is no port"),
        (
            change("Service", REVISION, "spec", "ports", 0, "name", to="grpc"),
            "spec.ports.name: 'grpc' is there twice",
        ),
        (
            change("Service", REVISION, "spec", "ports", 0, "protocol", to="HTTP"),
            "'HTTP' is none of TCP, UDP, SCTP",
        ),
        (change("Service", REVISION, "spec", "ports", 0, "appProtocol", to="a b"), "'a b' is no protocol"),
        (
            change("Service", REVISION, "spec", "loadBalancerSourceRanges", to=["10.0.0.0/8"]),
            "for a LoadBalancer",
        ),
        (
            change("HorizontalPodAutoscaler", None, "spec", "minReplicas", to=20),
            "20 and maxReplicas 10 are no range",
        ),
        (
            change("HorizontalPodAutoscaler", None, "spec", "scaleTargetRef", "name", to="x"),
            "there is no Deployment x",
        ),
        (
            change("HorizontalPodAutoscaler", None, "spec", "metrics", 0, "type", to="Pod"),
            "'Pod' is none of Pods",
        ),
        (
            change(
                "HorizontalPodAutoscaler",
                None,
                "spec",
                "metrics",
                0,
                "pods",
                "target",
                "averageValue",
                to="1ms",
            ),
            "'1ms' is no quantity",
        ),
        (
            change(*SERVER, "spec", "replicas", to=2),
            "has replicas, which every apply would reset; leave them out",
        ),
        (
            change("PodDisruptionBudget", None, "spec", "maxUnavailable", to=0),
            "no pod may ever go, so that no node",
        ),
        (
            change("PodDisruptionBudget", None, "spec", "minAvailable", to=1),
            "write either minAvailable or maxUnavailable",
        ),
        (change("PodDisruptionBudget", None, "spec", "selector", "matchLabels", "a", to="b"), "no pods have"),
        (
            change("NetworkPolicy", "digits-cnn", "spec", "policyTypes", to=["In"]),
            "'In' is none of Ingress, Egress",
        ),
        (
            change("NetworkPolicy", "digits-cnn", "spec", "ingress", 0, "ports", 0, "port", to="web"),
            "has a port 'web'",
        ),
        (
            change("NetworkPolicy", "digits-cnn", "spec", "podSelector", "matchLabels", "a", to="b"),
            "no pods have",
        ),
        (
            change("NetworkPolicy", "digits-cnn", "spec", "ingress", 0, "from", 0, to={}),
            "an empty peer; write podSelector: {}",
        ),
        (
            change(
                "NetworkPolicy",
                "digits-cnn",
                "spec",
                "ingress",
                0,
                "from",
                0,
                to={"ipBlock": {"cidr": "10.0.0.1/8"}},
            ),
            "'10.0.0.1/8' is no range of addresses",
        ),
        (change("Ingress", None, "spec", "rules", 0, "host", to="a_b"), "'a_b' is no host name"),
        (
            change("Ingress", None, "spec", "tls", 0, "hosts", 0, to="b.example.com"),
            "no rule is for 'b.example.com'",
        ),
        (
            change("Ingress", None, "spec", "rules", 0, "http", "paths", 0, "pathType", to="Any"),
            "'Any' is none of Exact",
        ),
        (
            change(
                "Ingress", None, "spec", "rules", 0, "http", "paths", 0, "backend", "service", "name", to="x"
            ),
            "there is no Service x",
        ),
        (
            change(
                "Ingress",
                None,
                "spec",
                "rules",
                0,
                "http",
                "paths",
                0,
                "backend",
                "service",
                "port",
                "name",
                to="x",
            ),
            "Service digits-cnn has no port 'x'",
        ),
        (
            change("PodMonitor", None, "spec", "podMetricsEndpoints", 0, "port", to="x"),
            "none of its pods has a port 'x'",
        ),
        (change("PodMonitor", None, "spec", "selector", "matchLabels", "a", to="b"), "no pods have"),
        (change("RoleBinding", "digits-cnn-watchdog", "roleRef", "name", to="x"), "there is no Role x"),
        (
            change("RoleBinding", "digits-cnn-watchdog", "subjects", 0, "name", to="x"),
            "there is no ServiceAccount x",
        ),
        (
            change("Role", "digits-cnn-watchdog", "rules", 0, "verbs", to=["read"]),
            "'read' is no verb of Kubernetes",
        ),
        (
            change("Role", "digits-cnn-watchdog", "rules", 0, "verbs", to=["create"]),
            "create cannot be restricted to names",
        ),
        (lambda objects: objects.append(objects[0]), "ServiceAccount digits-cnn: is there twice"),
        (lambda objects: objects.append(route(name="x")), "there is no Service x"),
        (lambda objects: objects.append(route(port=80)), "Service digits-cnn has no port 80"),
        (lambda objects: objects.append(route(port=0)), "0 is no port"),
        (
            lambda objects: objects.append(route(weight=-1)),
            "-1 is no weight; write a number from 0 to 1000000",
        ),
    ],
)
def test_every_fault_is_found_and_only_where_it_is(fault: Callable[[Objects], None], sentence: str) -> None:
    objects = copy.deepcopy(objects_of("gateway, hpa"))
    assert problems(objects) == []
    fault(objects)
    found = problems(objects)
    assert any(sentence in line for line in found), found


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (
            change("ScaledObject", None, "spec", "maxReplicaCount", to=1),
            "2 and maxReplicaCount 1 are no range",
        ),
        (
            change("ScaledObject", None, "spec", "triggers", 0, "metadata", "threshold", to=1),
            "1 is no text; quote it",
        ),
        (
            change("ScaledObject", None, "spec", "triggers", 0, "metricType", to="Mean"),
            "'Mean' is none of AverageValue",
        ),
        (change("ScaledObject", None, "spec", "scaleTargetRef", "name", to="x"), "there is no Deployment x"),
        (
            change("ServiceMonitor", None, "spec", "endpoints", 0, "port", to="x"),
            "none of its Services has a port 'x'",
        ),
    ],
)
def test_faults_of_the_other_engines_are_found(fault: Callable[[Objects], None], sentence: str) -> None:
    objects = copy.deepcopy(objects_of("istio, keda"))
    assert problems(objects) == []
    fault(objects)
    assert any(sentence in line for line in problems(objects))


def test_weights_of_a_virtual_service_are_a_hundred() -> None:
    destinations = [{"destination": {"host": "a"}, "weight": weight} for weight in (5, 90)]
    service = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": "a"},
        "spec": {"http": [{"route": destinations}]},
    }
    assert problems([service]) == [
        "VirtualService a: spec.http[0].route: the weights are 95 together and not 100"
    ]


def test_a_config_map_has_room_for_a_megabyte() -> None:
    large = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"a b": "x" * 2**20}}
    assert [line.split(": ")[1] for line in problems([large])] == ["data", "data"]


@pytest.mark.parametrize("revision", [None, "f" * 64])
def test_a_door_may_be_closed_or_lead_to_a_revision_that_is_on_the_cluster(revision: str | None) -> None:
    options = options_of()
    objects = [
        one
        for one in everything(options)
        if one["metadata"]["name"] != "digits-cnn" or one["kind"] != "Service"
    ]
    assert problems([*objects, door(options, workload_of(options).app, revision)]) == []


def test_an_account_that_is_there_already_is_no_fault() -> None:
    options = options_of(serviceAccount={"name": "models"})
    assert problems(everything(options)) == [
        "Deployment digits-cnn-0123456789: spec.template.spec.serviceAccountName: there is no ServiceAccount models"
    ]
    assert problems(everything(options), elsewhere={"ServiceAccount/models"}) == []


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1", 1),
        ("500m", "0.5"),
        ("2Gi", 2**31),
        ("1k", 1000),
        ("1e3", 1000),
        ("0.5", "0.5"),
        ("100u", "0.0001"),
    ],
)
def test_quantities_are_numbers(text: str, number: Any) -> None:
    assert amount(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "Gi", "1KB", "1 Gi", "-1", "1ki", True, None])
def test_what_is_no_quantity_is_none(text: Any) -> None:
    assert amount(text) is None


# -- good practice -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (change(*SERVER, *CONTAINER, "image", to="triton"), "runs triton, whatever that is by then"),
        (change(*SERVER, *CONTAINER, "image", to="r:5000/triton"), "runs r:5000/triton, whatever"),
        (change(*SERVER, *CONTAINER, "image", to="triton:latest"), "runs triton:latest, whatever"),
        (change(*SERVER, *RESOURCES, "limits", "memory", to=...), "has no memory in its limits"),
        (change(*SERVER, *RESOURCES, "requests", "cpu", to=...), "has no cpu in its requests"),
        (change(*SERVER, *CONTAINER, "readinessProbe", to=...), "has no readinessProbe"),
        (change(*SERVER, *POD, "securityContext", "runAsNonRoot", to=...), "may run as root"),
        (change(*SERVER, *POD, "securityContext", "seccompProfile", to=...), "may do every system call"),
        (
            change(*SERVER, *CONTAINER, "securityContext", "readOnlyRootFilesystem", to=False),
            "its root file system",
        ),
        (change(*SERVER, *CONTAINER, "securityContext", "privileged", to=True), "is privileged"),
        (
            change(*SERVER, *CONTAINER, "securityContext", "allowPrivilegeEscalation", to=...),
            "may gain rights",
        ),
        (change(*SERVER, *CONTAINER, "securityContext", "capabilities", to=...), "keeps capabilities"),
        (
            change(*SERVER, *CONTAINER, "env", 0, to={"name": "API_TOKEN", "value": "x"}),
            "has the secret API_TOKEN",
        ),
        (change(*SERVER, *POD, "hostNetwork", to=True), "shares its node's Network"),
        (
            change(*SERVER, *POD, "volumes", 0, to={"name": "tmp", "hostPath": {"path": "/"}}),
            "mounts / of its node",
        ),
        (change(*SERVER, *POD, "topologySpreadConstraints", to=...), "may have all its pods on one node"),
        (change(*SERVER, "spec", "replicas", to=1), "has 1 replica, and nothing serves while it restarts"),
        (
            lambda objects: objects.remove(of_kind(objects, "PodDisruptionBudget")),
            "has no PodDisruptionBudget",
        ),
        (change("Role", "digits-cnn-watchdog", "rules", 0, "verbs", to=["*"]), "gives a right to all verbs"),
        (
            change("Role", "digits-cnn-watchdog", "rules", 0, "resources", to=["secrets"]),
            "gives a right to secrets",
        ),
    ],
)
def test_what_a_platform_team_would_send_back_is_found(
    fault: Callable[[Objects], None], sentence: str
) -> None:
    objects = copy.deepcopy(objects_of("gateway, hpa"))
    assert practice(objects) == []
    fault(objects)
    (found,) = practice(objects)
    assert sentence in found
