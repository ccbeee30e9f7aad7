"""The Triton server of a revision: its flags, its environment, and what it takes of a node."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from shipctl_plugins._kubernetes.app import (
    ANNOTATION_AUTOSCALED,
    ANNOTATION_MODEL,
    ANNOTATION_NUMBER,
    ANNOTATION_REPOSITORY,
    ANNOTATION_REVISION,
    App,
)
from shipctl_plugins._kubernetes.manifests.options import KubernetesOptions

PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
"""Name to port of what it listens at."""
_GPU_TAINT = "nvidia.com/gpu"
"""The taint that nodes with NVIDIA's GPUs usually have, whether the GPUs are cut into slices or not."""


@dataclass(frozen=True)
class Workload:
    """One revision as it is to run in the cluster."""

    app: App
    revision: str
    """Digest of what is released, and how (64 digits)."""
    version: str
    """Semantic version of the release."""
    model: str
    """What the model is called in Triton."""
    repository: str
    """URI from which Triton reads it, with the digest in it: what lies there never changes."""
    digest: str
    """Digest of the repository artifact."""
    number: int = 1
    """Triton's number of the version that is in the repository."""


def labels(workload: Workload) -> dict[str, str]:
    """Return the labels of the objects, and of the pods, of one revision."""
    version = re.sub(r"[^A-Za-z0-9._-]", "_", workload.version)[:63].strip("._-")
    return {
        "app.kubernetes.io/name": "triton",
        "app.kubernetes.io/version": version,
        **workload.app.pods_of(workload.revision),
    }


def identity(workload: Workload) -> dict[str, str]:
    """Return which revision it is, with all digits."""
    return {ANNOTATION_REVISION: workload.revision, ANNOTATION_REPOSITORY: workload.digest}


def remembered(options: KubernetesOptions, workload: Workload) -> dict[str, str]:
    """Return what else is known of a revision, for its Deployment and not for its pods, which stay as they are."""
    found = {ANNOTATION_MODEL: workload.model, ANNOTATION_NUMBER: str(workload.number)}
    return {**found, ANNOTATION_AUTOSCALED: "true"} if options.autoscaling else found


def args(options: KubernetesOptions, workload: Workload) -> list[str]:
    """Return the flags of tritonserver."""
    repository = workload.repository.replace("$(", "$$(")  # $(NAME) is what Kubernetes puts variables in for
    return [
        f"--model-repository={repository}",
        "--model-control-mode=none",
        "--strict-readiness=true",
        "--exit-on-error=true",
        f"--exit-timeout-secs={math.ceil(float(options.longestRequest))}",
        *(f"--{name}-port={PORTS[name]}" for name in ("http", "grpc", "metrics")),
        "--allow-metrics=true",
        "--log-format=ISO8601",
        *options.args,
    ]


def env(options: KubernetesOptions) -> list[dict[str, Any]]:
    """Return the environment of the server, as in a container."""
    plain = {"HOME": "/tmp"}  # noqa: S108  (the only folder that the server may write to)
    if options.storeRegion:
        plain["AWS_DEFAULT_REGION"] = options.storeRegion
    if not options.resources.gpu:  # images with CUDA ask for all GPUs of a node, and some runtimes give them
        plain["NVIDIA_VISIBLE_DEVICES"] = "void"
    env: list[dict[str, Any]] = [
        {"name": name, "value": value} for name, value in {**plain, **options.env}.items()
    ]
    if options.credentialsSecret:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            reference: dict[str, Any] = {"name": options.credentialsSecret, "key": name}
            if name == "AWS_SESSION_TOKEN":
                reference["optional"] = True
            env.append({"name": name, "valueFrom": {"secretKeyRef": reference}})
    return env


def resources(options: KubernetesOptions) -> dict[str, dict[str, str]]:
    """Return what the container is sure of, and what it never gets more of."""
    given = options.resources
    both = {"memory": given.memory}
    if given.gpu:
        both[given.gpuResource] = str(given.gpu)
    limits = {"cpu": given.cpuLimit, **both} if given.cpuLimit else both
    return {"requests": {"cpu": given.cpu, **both}, "limits": limits}


def tolerations(options: KubernetesOptions) -> list[dict[str, Any]]:
    """Return the taints that the pods put up with."""
    found = [item.model_dump(exclude_none=True) for item in options.tolerations]
    if options.resources.gpu and not any(item.get("key") in (None, _GPU_TAINT) for item in found):
        found.append({"key": _GPU_TAINT, "operator": "Exists", "effect": "NoSchedule"})
    return found
