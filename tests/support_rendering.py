"""What tests of manifests render: one app with one revision, and options for everything that there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shipctl_plugins._kubernetes.manifests.options import KubernetesOptions, app_of
from shipctl_plugins._kubernetes.manifests.render import (
    Workload,
    door,
    preview_service,
    revision_objects,
    shared_objects,
)

REVISION = "0123456789" + "ab" * 27
DIGEST = "c0ffee" * 10 + "abcd"

COMBINATIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "one replica": {"replicas": 1, "disruptionBudget": None, "networkPolicy": None},
    "gpu slices": {
        "resources": {"gpu": 2, "gpuResource": "nvidia.com/mig-1g.10gb", "cpu": "4", "cpuLimit": "8"},
        "runtimeClassName": "nvidia",
        "priorityClassName": "serving",
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100"},
        "tolerations": [
            {"key": "spot", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}
        ],
        "imagePullSecrets": ["registry"],
        "runAsUser": None,
    },
    "load balancer": {
        "service": {
            "type": "LoadBalancer",
            "annotations": {"example.com/internal": "true"},
            "loadBalancerSourceRanges": ["10.0.0.0/8"],
            "loadBalancerClass": "example.com/lb",
            "externalTrafficPolicy": "Local",
            "httpPort": 80,
            "grpcPort": 81,
        },
        "networkPolicy": {"from": [{"cidr": "10.0.0.0/8"}], "store": ["10.9.0.0/16"]},
    },
    "node port": {"service": {"type": "NodePort"}, "serviceAccount": {"name": "models"}},
    "gateway, hpa": {
        "router": "gateway-api",
        "autoscaling": {"queueTime": "1500us"},
        "monitoring": {},
        "credentialsSecret": "store",
        "storeEndpoint": "http://minio.store:9000",
        "storeRegion": "eu-central-1",
        "ingress": {"host": "digits.example.com", "tlsSecret": "digits-tls", "className": "nginx"},
        "watchdog": {"image": "registry.example.com/shipctl:1.0"},
        "comparator": {"image": "registry.example.com/shipctl:1.0", "resources": {"memory": "1Gi"}},
    },
    "istio, keda": {
        "router": "istio",
        "autoscaling": {"engine": "keda", "serverAddress": "http://prometheus.monitoring:9090"},
        "monitoring": {"engine": "service-monitor", "labels": {"release": "prometheus"}},
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/models"}},
        "networkPolicy": {
            "egress": [{"cidr": "169.254.170.23/32", "ports": [80]}],
            "apiServer": ["10.1.0.0/24"],
        },
    },
}
"""Options that between them use every part of every template."""


def options_of(**given: Any) -> KubernetesOptions:
    """Return options of the namespace `team-a`, unless another is given."""
    return KubernetesOptions.model_validate({"namespace": "team-a", **given})


def workload_of(options: KubernetesOptions, revision: str = REVISION, version: str = "1.4.0") -> Workload:
    """Return the revision that is rendered."""
    return Workload(
        app=app_of(options, "digits-cnn", None),
        revision=revision,
        version=version,
        model="digits-cnn",
        repository=f"s3://http://minio.store:9000/models/repositories/{DIGEST}",
        digest=DIGEST,
    )


def everything(options: KubernetesOptions, base: Path = Path()) -> list[dict[str, Any]]:
    """Return all that a release puts on a cluster."""
    workload = workload_of(options)
    return [
        *shared_objects(options, workload.app, base=base),
        *revision_objects(options, workload, replicas=options.replicas, base=base),
        door(options, workload.app, workload.revision, base=base),
        preview_service(options, workload.app, workload.revision, base=base),
    ]


def of_kind(objects: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    """Return the one object of that kind (and name)."""
    found = [one for one in objects if one["kind"] == kind and name in (None, one["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]
