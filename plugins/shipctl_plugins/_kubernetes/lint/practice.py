"""What Kubernetes allows, and a platform team would send back: the usual advice, as kube-linter's checks give it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shipctl_plugins._kubernetes.lint.pods import containers_of, template_of
from shipctl_plugins._kubernetes.manifests.documents import Manifest
from shipctl_plugins._kubernetes.manifests.fields import looks_secret

_HOST = ("hostNetwork", "hostPID", "hostIPC")


def practice(objects: Sequence[Manifest]) -> list[str]:
    """Return what is unwise, a line each."""
    found = []
    for one in objects:
        name = f"{one['kind']} {one['metadata'].get('name')}"
        template = template_of(one)
        lines = [*_role(one)] if template is None else [*_workload(one, template, objects), *_pod(template)]
        found += [f"{name}: {line}" for line in lines]
    return found


def _workload(one: Manifest, template: Mapping[str, Any], objects: Sequence[Manifest]) -> Iterator[str]:
    spec, pod = one["spec"], template.get("spec") or {}
    serves = any(container.get("ports") for container in containers_of(template))
    recreated = (spec.get("strategy") or {}).get("type") == "Recreate"
    if not serves or recreated:  # a worker of which there may be only one at a time
        return
    if spec.get("replicas") is not None and spec["replicas"] < 2:  # noqa: PLR2004
        yield f"has {spec['replicas']} replica, and nothing serves while it restarts; have two"
    if not pod.get("topologySpreadConstraints") and not (pod.get("affinity") or {}).get("podAntiAffinity"):
        yield "may have all its pods on one node; spread them by topologySpreadConstraints"
    labels = ((template.get("metadata") or {}).get("labels") or {}).items()
    if not any(_budget(each) and _budget(each).items() <= labels for each in objects):
        yield "has no PodDisruptionBudget; a node drain may take all its pods"


def _budget(one: Manifest) -> dict[str, Any]:
    if one["kind"] != "PodDisruptionBudget":
        return {}
    found: dict[str, Any] = ((one.get("spec") or {}).get("selector") or {}).get("matchLabels") or {}
    return found


def _pod(template: Mapping[str, Any]) -> Iterator[str]:
    pod = template.get("spec") or {}
    for name in _HOST:
        if pod.get(name):
            yield f"shares its node's {name.removeprefix('host')}; remove {name}"
    if pod.get("automountServiceAccountToken") is not False and not pod.get("serviceAccountName"):
        yield "has the token of the default account; write automountServiceAccountToken: false"
    for volume in pod.get("volumes") or ():
        if "hostPath" in volume:
            yield f"mounts {volume['hostPath'].get('path')} of its node; use another volume"
    for container in pod.get("containers") or ():
        yield from (f"container {container.get('name')} {line}" for line in _container(pod, container))


def _container(pod: Mapping[str, Any], container: Mapping[str, Any]) -> Iterator[str]:
    image = str(container.get("image", ""))
    tag = image.rpartition("/")[2].partition(":")[2]
    if "@sha256:" not in image and tag in {"", "latest"}:
        yield f"runs {image}, whatever that is by then; write a tag or a digest"
    resources = container.get("resources") or {}
    for side, name in (("requests", "cpu"), ("requests", "memory"), ("limits", "memory")):
        if name not in (resources.get(side) or {}):
            yield f"has no {name} in its {side}"
    if container.get("ports"):
        for probe in ("livenessProbe", "readinessProbe"):
            if probe not in container:
                yield f"has no {probe}"
    yield from _security({**(pod.get("securityContext") or {}), **(container.get("securityContext") or {})})
    for item in container.get("env") or ():
        if item.get("value") and looks_secret(str(item.get("name"))):
            yield f"has the secret {item['name']} in its manifest; put it into a Secret"


def _security(context: Mapping[str, Any]) -> Iterator[str]:
    if not context.get("runAsNonRoot"):
        yield "may run as root; write runAsNonRoot: true"
    if not context.get("readOnlyRootFilesystem"):
        yield "may write to its root file system; write readOnlyRootFilesystem: true"
    if context.get("privileged"):
        yield "is privileged; remove that"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "may gain rights; write allowPrivilegeEscalation: false"
    if "ALL" not in ((context.get("capabilities") or {}).get("drop") or ()):
        yield "keeps capabilities; drop ALL"
    if (context.get("seccompProfile") or {}).get("type") not in {"RuntimeDefault", "Localhost"}:
        yield "may do every system call; write seccompProfile: {type: RuntimeDefault}"


def _role(one: Manifest) -> Iterator[str]:
    if one["kind"] not in {"Role", "ClusterRole"}:
        return
    for rule in one.get("rules") or ():
        for key in ("apiGroups", "resources", "verbs"):
            if "*" in (rule.get(key) or ()):
                yield f"gives a right to all {key}; name them"
        if {"secrets", "pods/exec"} & set(rule.get("resources") or ()):
            yield f"gives a right to {' and '.join(rule['resources'])}, which shipctl does not need"
