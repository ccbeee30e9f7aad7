"""Rules of Deployments and their pods that schemas do not have: selectors, ports, probes, volumes, resources."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from shipctl_plugins._kubernetes.lint.fields import (
    amount,
    annotated,
    dns_label,
    labels,
    one_of,
    port_name,
    port_number,
    port_reference,
    quantity,
    twice,
)
from shipctl_plugins._kubernetes.manifests.documents import Manifest

WORKLOADS = frozenset({"Deployment", "Rollout", "StatefulSet"})
"""Kinds with a template of pods in `spec.template`."""
_POD = "spec.template.spec"
_NAME = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")
_PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
_HANDLERS = ("httpGet", "tcpSocket", "exec", "grpc")
_TIMES = {"periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 1, "initialDelaySeconds": 0}
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


def template_of(one: Manifest) -> dict[str, Any] | None:
    """Return the template of the pods that an object makes, None if it makes none."""
    if one["kind"] not in WORKLOADS:
        return None
    found: dict[str, Any] | None = (one.get("spec") or {}).get("template")
    return found


def containers_of(template: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return all containers of a pod's template."""
    spec = template.get("spec") or {}
    return [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]


def pod_problems(one: Manifest) -> Iterator[str]:
    """Yield what is wrong with an object that makes pods, and with the pods."""
    template = template_of(one)
    if template is None:
        return
    spec = one["spec"]
    metadata = template.get("metadata") or {}
    yield from labels("spec.template.metadata.labels", metadata.get("labels"))
    yield from annotated("spec.template.metadata.annotations", metadata.get("annotations"))
    yield from _selector(spec, metadata.get("labels") or {})
    yield from _rollout(spec)
    pod = template.get("spec") or {}
    yield from _pod(pod)
    for container in containers_of(template):
        yield from _container(pod, container)


def _selector(spec: Mapping[str, Any], carried: Mapping[str, Any]) -> Iterator[str]:
    wanted = (spec.get("selector") or {}).get("matchLabels") or {}
    if not wanted:
        yield "spec.selector: selects nothing; write the labels of the pods"
    for key, value in wanted.items():
        if carried.get(key) != value:
            yield f"spec.selector: {key}: {value!r} is no label of its own pods, which have {carried.get(key)!r}"


def _rollout(spec: Mapping[str, Any]) -> Iterator[str]:
    replicas = spec.get("replicas")
    if replicas is not None and (not isinstance(replicas, int) or replicas < 0):
        yield f"spec.replicas: {replicas!r} is no number of pods"
    if spec.get("progressDeadlineSeconds", 600) <= spec.get("minReadySeconds", 0):
        yield "spec.progressDeadlineSeconds: must be longer than minReadySeconds"
    strategy = spec.get("strategy") or {}
    if "type" in strategy:
        yield from one_of("spec.strategy.type", strategy["type"], ("RollingUpdate", "Recreate"))
    moves = strategy.get("rollingUpdate") or {}
    if moves and all(moves.get(name, "25%") in (0, "0%") for name in ("maxSurge", "maxUnavailable")):
        yield "spec.strategy.rollingUpdate: maxSurge and maxUnavailable are both 0; write maxSurge: 1"
    if strategy.get("type") == "Recreate" and moves:
        yield "spec.strategy.rollingUpdate: not with type Recreate; remove it"


def _pod(pod: Mapping[str, Any]) -> Iterator[str]:
    volumes = [volume.get("name") for volume in pod.get("volumes") or ()]
    yield from twice(f"{_POD}.volumes.name", volumes)
    for name in volumes:
        yield from dns_label(f"{_POD}.volumes.name", name)
    for volume in pod.get("volumes") or ():
        empty = volume.get("emptyDir") or {}
        yield from one_of(
            f"{_POD}.volumes.{volume.get('name')}.medium", empty.get("medium"), ("", "Memory", "HugePages")
        )
        if "sizeLimit" in empty:
            yield from quantity(f"{_POD}.volumes.{volume.get('name')}.sizeLimit", empty["sizeLimit"])
    names = [container.get("name") for container in containers_of({"spec": pod})]
    yield from twice(f"{_POD}.containers.name", names)
    if not pod.get("containers"):
        yield f"{_POD}.containers: there is none"
    numbers = [
        port.get("containerPort") for each in pod.get("containers") or () for port in each.get("ports") or ()
    ]
    yield from twice(f"{_POD}.containers.ports.containerPort", numbers)
    yield from one_of(f"{_POD}.restartPolicy", pod.get("restartPolicy"), ("Always",))
    yield from one_of(
        f"{_POD}.dnsPolicy",
        pod.get("dnsPolicy"),
        ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"),
    )
    yield from chain(_scheduling(pod), _end(pod))


def _scheduling(pod: Mapping[str, Any]) -> Iterator[str]:
    yield from labels(f"{_POD}.nodeSelector", pod.get("nodeSelector"))
    for taint in pod.get("tolerations") or ():
        yield from one_of(
            f"{_POD}.tolerations.operator", taint.get("operator"), ("Exists", "Equal", "Lt", "Gt")
        )
        yield from one_of(f"{_POD}.tolerations.effect", taint.get("effect"), _EFFECTS)
    for spread in pod.get("topologySpreadConstraints") or ():
        where = f"{_POD}.topologySpreadConstraints"
        yield from one_of(where, spread.get("whenUnsatisfiable"), ("DoNotSchedule", "ScheduleAnyway"))
        if not isinstance(spread.get("maxSkew"), int) or spread["maxSkew"] < 1:
            yield f"{where}.maxSkew: {spread.get('maxSkew')!r} is not 1 or more"
        if not re.fullmatch(r"\S+", str(spread.get("topologyKey", ""))):
            yield f"{where}.topologyKey: there is none"


def _end(pod: Mapping[str, Any]) -> Iterator[str]:
    """A pod is killed when its grace is over, whatever it does then."""
    grace = pod.get("terminationGracePeriodSeconds", 30)
    for container in pod.get("containers") or ():
        hook = ((container.get("lifecycle") or {}).get("preStop") or {}).get("exec") or {}
        command = hook.get("command") or []
        waits = (
            int(command[1])
            if len(command) > 1 and command[0].endswith("sleep") and str(command[1]).isdigit()
            else 0
        )
        if waits and waits >= grace:
            yield f"{_POD}.terminationGracePeriodSeconds: {grace} is not above the {waits} that preStop sleeps"


def _container(pod: Mapping[str, Any], container: Mapping[str, Any]) -> Iterator[str]:
    where = f"{_POD}.containers.{container.get('name')}"
    yield from dns_label(f"{_POD}.containers.name", container.get("name"))
    if not container.get("image"):
        yield f"{where}.image: there is none"
    yield from one_of(
        f"{where}.imagePullPolicy", container.get("imagePullPolicy"), ("Always", "IfNotPresent", "Never")
    )
    ports = container.get("ports") or []
    yield from twice(f"{where}.ports.name", [port["name"] for port in ports if "name" in port])
    for port in ports:
        yield from port_number(f"{where}.ports.containerPort", port.get("containerPort"))
        yield from one_of(f"{where}.ports.protocol", port.get("protocol"), ("TCP", "UDP", "SCTP"))
        if "name" in port:
            yield from port_name(f"{where}.ports.name", port["name"])
    yield from chain(
        _env(where, container),
        _mounts(where, pod, container),
        _resources(where, container),
        _security(where, pod, container),
    )
    for name in _PROBES:
        if name in container:
            yield from _probe(f"{where}.{name}", container[name], {port.get("name") for port in ports}, name)


def _env(where: str, container: Mapping[str, Any]) -> Iterator[str]:
    env = container.get("env") or []
    yield from twice(f"{where}.env", [item.get("name") for item in env])
    for item in env:
        name = item.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            yield f"{where}.env: {name!r} is no name of a variable"
        if "value" in item and not isinstance(item["value"], str):
            yield f"{where}.env.{name}: {item['value']!r} is no text; quote it"
        if item.get("value") and item.get("valueFrom"):
            yield f"{where}.env.{name}: has value and valueFrom; remove one"


def _mounts(where: str, pod: Mapping[str, Any], container: Mapping[str, Any]) -> Iterator[str]:
    volumes = {volume.get("name") for volume in pod.get("volumes") or ()}
    mounts = container.get("volumeMounts") or []
    yield from twice(f"{where}.volumeMounts.mountPath", [mount.get("mountPath") for mount in mounts])
    for mount in mounts:
        if mount.get("name") not in volumes:
            yield f"{where}.volumeMounts: the pod has no volume {mount.get('name')!r}"


def _resources(where: str, container: Mapping[str, Any]) -> Iterator[str]:
    resources = container.get("resources") or {}
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    for side, given in (("requests", requests), ("limits", limits)):
        for name, value in given.items():
            yield from quantity(f"{where}.resources.{side}.{name}", value)
    for name in requests.keys() | limits.keys():
        wanted, most = amount(requests.get(name)), amount(limits.get(name))
        if wanted is not None and most is not None and wanted > most:
            yield f"{where}.resources: requests {requests[name]} of {name}, and its limit is {limits[name]}"
        if "/" in name:  # what device plugins bring cannot be shared, nor be asked for in parts
            if most is None or (wanted is not None and wanted != most):
                yield f"{where}.resources: {name} needs a limit, and a request that equals it"
            if most is not None and most != most.to_integral_value():
                yield f"{where}.resources.limits.{name}: {limits[name]} is no whole number"


def _security(where: str, pod: Mapping[str, Any], container: Mapping[str, Any]) -> Iterator[str]:
    both = {**(pod.get("securityContext") or {}), **(container.get("securityContext") or {})}
    if both.get("runAsNonRoot") and both.get("runAsUser") == 0:
        yield f"{where}.securityContext: runAsNonRoot, and runAsUser is 0, which is root; no such pod starts"
    kind = (both.get("seccompProfile") or {}).get("type")
    yield from one_of(
        f"{where}.securityContext.seccompProfile.type", kind, ("RuntimeDefault", "Unconfined", "Localhost")
    )
    if both.get("privileged") and both.get("allowPrivilegeEscalation") is False:
        yield f"{where}.securityContext: privileged without allowPrivilegeEscalation is refused; remove one"


def _probe(where: str, probe: Mapping[str, Any], names: set[Any], kind: str) -> Iterator[str]:
    handlers = [name for name in _HANDLERS if name in probe]
    if len(handlers) != 1:
        yield f"{where}: has {len(handlers)} of {', '.join(_HANDLERS)} and not one"
    for name in ("httpGet", "tcpSocket"):
        given = probe.get(name)
        if given is None:
            continue
        yield from port_reference(f"{where}.port", given.get("port"))
        if isinstance(given.get("port"), str) and given["port"] not in names:
            yield f"{where}.port: the container has no port {given['port']!r}"
        if name == "httpGet" and not str(given.get("path", "")).startswith("/"):
            yield f"{where}.path: {given.get('path')!r} does not begin with /"
    for name, least in _TIMES.items():
        if name in probe and (not isinstance(probe[name], int) or probe[name] < least):
            yield f"{where}.{name}: {probe[name]!r} is not {least} or more"
    if kind != "readinessProbe" and probe.get("successThreshold", 1) != 1:
        yield f"{where}.successThreshold: must be 1"
