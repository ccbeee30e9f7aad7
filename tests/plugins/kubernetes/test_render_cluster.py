"""A real API server takes what is rendered, from somebody who has no more than the role that is rendered for it.

The control plane of the tests is Kubernetes 1.20: policy/v1 and autoscaling/v2 came later, and are held against their
schemas in test_lint.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shipctl_plugins._kubernetes.manifests.documents import files_of, yaml_of
from shipctl_plugins._kubernetes.manifests.options import KubernetesOptions
from shipctl_plugins._kubernetes.manifests.render import ALL, door, operator_role
from support_cluster import CLUSTER, LIMITED, ControlPlane, Kube, kubectl, user_kubeconfig, wait_for
from support_rendering import COMBINATIONS, REVISION, everything, of_kind, options_of, workload_of

pytestmark = CLUSTER

LATER = frozenset({"PodDisruptionBudget", "HorizontalPodAutoscaler"})
MANAGER = "shipctl"


def known(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for one in objects if one["kind"] not in LATER]


def wanted(live: dict[str, Any]) -> Any:
    """Return what changes with what is wanted, and not with what controllers report."""
    metadata = live["metadata"]
    return metadata.get("generation", metadata["resourceVersion"])


def kind_of(one: dict[str, Any]) -> str:
    return f"{one['apiVersion']}/{one['kind']}"


def pods(kube: Kube, options: KubernetesOptions) -> list[dict[str, Any]]:
    labels = workload_of(options).app.pods_of(REVISION)
    found = kube.list("Pod", options.namespace, ",".join(f"{key}={value}" for key, value in labels.items()))
    ready = [{"type": "Ready", "status": "True"}]
    return [
        pod
        for pod in found
        if [
            {key: one[key] for key in ("type", "status")}
            for one in pod.get("status", {}).get("conditions", [])
            if one["type"] == "Ready"
        ]
        == ready
    ]


def addresses(kube: Kube, namespace: str, name: str) -> list[str]:
    subsets = kube.get("Endpoints", name, namespace).get("subsets") or []
    return sorted(address["ip"] for subset in subsets for address in subset.get("addresses") or [])


@pytest.mark.parametrize("name", COMBINATIONS)
def test_everything_is_accepted_from_who_has_the_rendered_role(
    name: str, control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    options = options_of(**{**COMBINATIONS[name], "namespace": namespace})
    if options.service.loadBalancerClass:  # of 1.24
        earlier = options.service.model_copy(update={"loadBalancerClass": None})
        options = options.model_copy(update={"service": earlier})
    app = workload_of(options).app
    rules = operator_role(options, app)[0]["rules"]
    with Kube(user_kubeconfig(control_plane, tmp_path, LIMITED[0], rules, namespace)) as user:
        for one in known(everything(options)):
            live = user.apply(one, namespace, manager=MANAGER)
            assert live["metadata"]["name"] == one["metadata"]["name"]
            again = user.apply(one, namespace, manager=MANAGER)
            assert wanted(again) == wanted(live), (
                f"{one['kind']} {one['metadata']['name']} is another one each time"
            )
        assert user.get(
            kind_of(of_kind(everything(options), "Deployment", app.of(REVISION))), app.of(REVISION), namespace
        )
        for one in known(everything(options)):
            user.delete(kind_of(one), one["metadata"]["name"], namespace)


def test_without_the_role_nothing_is_accepted(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    from kubernetes.client import ApiException

    options = options_of(namespace=namespace)
    reading = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]
    with Kube(user_kubeconfig(control_plane, tmp_path, LIMITED[1], reading, namespace)) as user:
        for one in known(everything(options)):
            with pytest.raises(ApiException) as refused:
                user.apply(one, namespace, manager=MANAGER)
            assert refused.value.status == 403


def test_pods_become_ready_and_the_door_opens_and_closes(kube: Kube, namespace: str) -> None:
    options = options_of(namespace=namespace, disruptionBudget=None)
    app = workload_of(options).app
    for one in everything(options):
        kube.apply(one, manager=MANAGER)
    wait_for(lambda: len(pods(kube, options)) == 2, what="two pods that are ready")
    wait_for(lambda: len(addresses(kube, namespace, app.of(REVISION))) == 2, what="endpoints of the revision")
    both = addresses(kube, namespace, app.of(REVISION))
    wait_for(lambda: addresses(kube, namespace, app.name) == both, what="an open door")
    wait_for(lambda: addresses(kube, namespace, app.preview) == both, what="a preview")
    kube.apply(door(options, app, None), manager=MANAGER)
    wait_for(lambda: addresses(kube, namespace, app.name) == [], what="a closed door")
    kube.apply(door(options, app, ALL), manager=MANAGER)
    wait_for(lambda: addresses(kube, namespace, app.name) == both, what="a door to all")


def test_values_arrive_as_they_were_written(control_plane: ControlPlane, namespace: str) -> None:
    odd = 'a: "b"\n---\n{{ 1 }} 😀\u2028\x7f\t#'
    options = options_of(namespace=namespace, env={"ODD": odd}, podAnnotations={"example.com/odd": odd})
    text = yaml_of([of_kind(everything(options), "Deployment")])
    answer = kubectl(control_plane, "create", "--dry-run=server", "-o=json", "-f=-", stdin=text)
    template = json.loads(answer)["spec"]["template"]
    assert template["metadata"]["annotations"]["example.com/odd"] == odd
    assert {"name": "ODD", "value": odd} in template["spec"]["containers"][0]["env"]


def test_kubectl_takes_the_files_that_are_written(control_plane: ControlPlane, namespace: str) -> None:
    options = options_of(namespace=namespace, disruptionBudget=None, monitoring={})
    text = "---\n".join(files_of(everything(options)).values())
    said = kubectl(control_plane, "apply", "--server-side", "--dry-run=server", "-f=-", stdin=text)
    assert len(said.splitlines()) == len(everything(options))
