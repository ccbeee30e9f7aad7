"""The control plane that other tests rely on: it behaves as Kubernetes does, and pods as their annotations say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

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

pytestmark = CLUSTER


def condition(kube: Kube, namespace: str, name: str, kind: str) -> dict[str, Any]:
    """Return a condition of a Deployment, once the controller has seen its newest generation."""
    found = kube.get("Deployment", name, namespace)
    status = found["status"]
    if status.get("observedGeneration") != found["metadata"]["generation"]:
        return {}
    return next((one for one in status.get("conditions", []) if one["type"] == kind), {})


def waiting(kube: Kube, namespace: str) -> list[str]:
    """Return why containers of a namespace wait."""
    pods = kube.list("Pod", namespace)
    states = [one["state"] for pod in pods for one in pod.get("status", {}).get("containerStatuses", [])]
    return [state["waiting"]["reason"] for state in states if "waiting" in state]


def test_a_deployment_becomes_available(kube: Kube, namespace: str) -> None:
    kube.apply(deployment("web", replicas=2), namespace)
    available = wait_for(lambda: condition(kube, namespace, "web", "Available").get("status") == "True")
    assert available
    assert kube.get("Deployment", "web", namespace)["status"]["readyReplicas"] == 2


def test_a_deployments_pods_go_with_it_whatever_their_grace_period(kube: Kube, namespace: str) -> None:
    web = deployment("web")
    web["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 600
    kube.apply(web, namespace)
    wait_for(lambda: kube.list("Pod", namespace, "app=web"))
    kube.delete("Deployment", "web", namespace)
    wait_for(lambda: not kube.list("Pod", namespace), what="the pods stay")


def test_pods_become_ready_when_they_are_asked_to(kube: Kube, namespace: str) -> None:
    kube.apply(deployment("slow", annotations={"fake-kubelet/ready-after": "1.5"}), namespace)
    kube.apply(deployment("quick"), namespace)
    wait_for(lambda: condition(kube, namespace, "quick", "Available").get("status") == "True")
    assert condition(kube, namespace, "slow", "Available")["status"] == "False"
    wait_for(lambda: condition(kube, namespace, "slow", "Available").get("status") == "True")


def test_an_image_that_cannot_be_pulled_stops_the_rollout_and_the_old_pods_serve_on(
    kube: Kube, namespace: str
) -> None:
    kube.apply(deployment("web", replicas=2), namespace)
    wait_for(lambda: condition(kube, namespace, "web", "Available").get("status") == "True")
    broken = deployment(
        "web",
        replicas=2,
        image="server:2",
        annotations={"fake-kubelet/waiting": "ImagePullBackOff"},
        progressDeadlineSeconds=1,
    )
    kube.apply(broken, namespace)
    stopped = wait_for(
        lambda: condition(kube, namespace, "web", "Progressing").get("reason") == "ProgressDeadlineExceeded"
    )
    assert stopped
    assert waiting(kube, namespace) == ["ImagePullBackOff"]
    assert kube.get("Deployment", "web", namespace)["status"]["availableReplicas"] == 2


def test_a_pod_that_is_never_ready_runs_without_being_ready(kube: Kube, namespace: str) -> None:
    kube.apply(
        deployment("web", annotations={"fake-kubelet/never-ready": "true"}, progressDeadlineSeconds=1),
        namespace,
    )
    wait_for(
        lambda: condition(kube, namespace, "web", "Progressing").get("reason") == "ProgressDeadlineExceeded"
    )
    (pod,) = kube.list("Pod", namespace)
    assert pod["status"]["phase"] == "Running"
    assert [one["ready"] for one in pod["status"]["containerStatuses"]] == [False]


def test_another_managers_field_is_a_conflict_that_names_it(kube: Kube, namespace: str) -> None:
    from kubernetes.client import ApiException

    kube.apply(deployment("web"), namespace, manager="one")
    with pytest.raises(ApiException) as refusal:
        kube.apply(deployment("web", replicas=3), namespace, manager="two")
    assert refusal.value.status == 409
    assert 'conflict with "one": .spec.replicas' in json.loads(str(refusal.value.body))["message"]
    assert kube.apply(deployment("web", replicas=3), namespace, manager="two", force=True, dry_run=True)
    assert kube.get("Deployment", "web", namespace)["spec"]["replicas"] == 1


def test_a_limited_user_may_do_what_the_role_says_and_no_more(
    kube: Kube, control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    from kubernetes.client import ApiException

    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}]
    with Kube(user_kubeconfig(control_plane, tmp_path, "limited-1", rules, namespace)) as user:
        assert isinstance(user.list("ConfigMap", namespace), list)
        for kind, where in (("Secret", namespace), ("ConfigMap", "default")):
            with pytest.raises(ApiException) as refusal:
                user.list(kind, where)
            assert refusal.value.status == 403


def test_a_quota_is_in_force_at_once(kube: Kube, namespace: str) -> None:
    quota(kube, namespace, {"pods": "1"})
    kube.apply(deployment("web", replicas=2), namespace)
    wait_for(
        lambda: (
            "exceeded quota: limits" in condition(kube, namespace, "web", "ReplicaFailure").get("message", "")
        )
    )
    assert len(kube.list("Pod", namespace)) == 1


def test_routes_and_rollouts_have_their_upstream_schemas(kube: Kube, namespace: str) -> None:
    from kubernetes.client import ApiException

    def route(weight: int) -> dict[str, Any]:
        backend = {"name": "web", "port": 80, "weight": weight}
        return {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": "web"},
            "spec": {"rules": [{"backendRefs": [backend]}]},
        }

    kube.apply(route(0), namespace)
    assert kube.get("HTTPRoute", "web", namespace)["spec"]["rules"][0]["backendRefs"][0]["weight"] == 0
    with pytest.raises(ApiException) as refusal:
        kube.apply(route(-1), namespace)
    assert refusal.value.status == 422


def test_a_controllers_part_is_played_through_the_status(kube: Kube, namespace: str) -> None:
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "digits"},
        "spec": {"predictor": {"model": {"modelFormat": {"name": "triton"}}}},
    }
    kube.apply(service, namespace)
    kube.set_status("InferenceService", "digits", namespace, {"url": "http://digits"})
    found = kube.get("InferenceService", "digits", namespace)
    assert (found["status"], found["spec"]) == ({"url": "http://digits"}, service["spec"])


def test_the_typed_client_and_kubectl_see_the_same(
    kube: Kube, control_plane: ControlPlane, namespace: str
) -> None:
    kube.apply(deployment("web"), namespace)
    assert kube.apps.read_namespaced_deployment("web", namespace).spec.replicas == 1
    printed = kubectl(control_plane, "get", "deployment", "web", "-n", namespace, "-o", "name")
    assert printed == "deployment.apps/web\n"
