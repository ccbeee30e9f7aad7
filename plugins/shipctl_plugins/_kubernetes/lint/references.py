"""Whether objects fit together: what one names, another has to be; what a selector is for, it has to select."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from shipctl_plugins._kubernetes.app import LABEL_REVISION
from shipctl_plugins._kubernetes.lint.pods import containers_of, template_of
from shipctl_plugins._kubernetes.manifests.documents import Manifest


@dataclass(frozen=True)
class Objects:
    """All objects of an app, and what is there besides."""

    objects: Sequence[Manifest]
    elsewhere: Collection[str]

    def has(self, kind: str, name: Any) -> bool:
        """Say whether there is such an object."""
        return f"{kind}/{name}" in self.elsewhere or self.named(kind, name) is not None

    def named(self, kind: str, name: Any) -> Manifest | None:
        """Return one of the objects."""
        return next(
            (one for one in self.objects if one["kind"] == kind and one["metadata"].get("name") == name), None
        )

    @cached_property
    def pods(self) -> list[dict[str, Any]]:
        """The templates of all pods."""
        return [template for one in self.objects if (template := template_of(one))]

    def selected(self, labels: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the templates of the pods that have these labels."""
        return [
            template
            for template in self.pods
            if labels.items() <= ((template.get("metadata") or {}).get("labels") or {}).items()
        ]


def reference_problems(objects: Sequence[Manifest], elsewhere: Collection[str] = ()) -> list[str]:
    """Return what does not fit, a line each."""
    known = Objects(objects, elsewhere)
    found = list(_together(known))
    for one in objects:
        check = _template if template_of(one) else _KINDS.get(one["kind"])
        if check is not None:
            found += [f"{one['kind']} {one['metadata'].get('name')}: {line}" for line in check(one, known)]
    return found


def _together(known: Objects) -> Iterator[str]:
    seen = set()
    for one in known.objects:
        identity = (one["kind"], one["metadata"].get("name"), one["metadata"].get("namespace"))
        if identity in seen:
            yield f"{one['kind']} {one['metadata'].get('name')}: is there twice"
        seen.add(identity)
    namespaces = {one["metadata"]["namespace"] for one in known.objects if "namespace" in one["metadata"]}
    if len(namespaces) > 1:
        yield f"the objects are of several namespaces: {', '.join(sorted(namespaces))}"


def _template(one: Manifest, known: Objects) -> Iterator[str]:
    spec = one["spec"]["template"].get("spec") or {}
    account = spec.get("serviceAccountName")
    if account and account != "default" and not known.has("ServiceAccount", account):
        yield f"spec.template.spec.serviceAccountName: there is no ServiceAccount {account}"
    for spread in spec.get("topologySpreadConstraints") or ():
        labels = (one["spec"]["template"].get("metadata") or {}).get("labels") or {}
        wanted = (spread.get("labelSelector") or {}).get("matchLabels") or {}
        if not wanted.items() <= labels.items():
            yield f"spec.template.spec.topologySpreadConstraints: {wanted} does not select its own pods"


def _service(one: Manifest, known: Objects) -> Iterator[str]:
    spec = one.get("spec") or {}
    selector = dict(spec.get("selector") or {})
    if not selector or not known.pods:
        return
    if LABEL_REVISION not in (one["metadata"].get("labels") or {}):
        # a door may be closed, or lead to a revision that is on the cluster already
        selector.pop(LABEL_REVISION, None)
    pods = known.selected(selector)
    if not pods:
        yield f"spec.selector: no pods have {_shown(selector)}"
        return
    for port in spec.get("ports") or ():
        target = port.get("targetPort", port.get("port"))
        if isinstance(target, str) and not any(target in _port_names(template) for template in pods):
            yield f"spec.ports: no container of its pods has a port {target!r}"


def _autoscaler(one: Manifest, known: Objects) -> Iterator[str]:
    target = (one.get("spec") or {}).get("scaleTargetRef") or {}
    kind, name = target.get("kind", "Deployment"), target.get("name")
    scaled = known.named(kind, name)
    if scaled is None:
        yield f"spec.scaleTargetRef: there is no {kind} {name}"
    elif (scaled.get("spec") or {}).get("replicas") is not None:
        yield f"spec.scaleTargetRef: {kind} {name} has replicas, which every apply would reset; leave them out there"


def _selecting(path: str) -> Callable[[Manifest, Objects], Iterator[str]]:
    def check(one: Manifest, known: Objects) -> Iterator[str]:
        wanted = ((one.get("spec") or {}).get(path) or {}).get("matchLabels") or {}
        if wanted and known.pods and not known.selected(wanted):
            yield f"spec.{path}: no pods have {_shown(wanted)}"

    return check


def _network_policy(one: Manifest, known: Objects) -> Iterator[str]:
    yield from _selecting("podSelector")(one, known)
    spec = one.get("spec") or {}
    pods = known.selected((spec.get("podSelector") or {}).get("matchLabels") or {})
    for rule in spec.get("ingress") or ():
        for port in rule.get("ports") or ():
            name = port.get("port")
            if isinstance(name, str) and pods and not any(name in _port_names(template) for template in pods):
                yield f"spec.ingress.ports: no container of its pods has a port {name!r}"


def _ingress(one: Manifest, known: Objects) -> Iterator[str]:
    for rule in (one.get("spec") or {}).get("rules") or ():
        for path in (rule.get("http") or {}).get("paths") or ():
            backend = (path.get("backend") or {}).get("service") or {}
            port = backend.get("port") or {}
            yield from _backend(
                known, backend.get("name"), port.get("name", port.get("number")), "spec.rules"
            )


def _route(one: Manifest, known: Objects) -> Iterator[str]:
    for rule in (one.get("spec") or {}).get("rules") or ():
        for backend in rule.get("backendRefs") or ():
            if backend.get("kind", "Service") == "Service" and "namespace" not in backend:
                yield from _backend(known, backend.get("name"), backend.get("port"), "spec.rules.backendRefs")


def _backend(known: Objects, name: Any, port: Any, where: str) -> Iterator[str]:
    service = known.named("Service", name)
    if service is None:
        if not known.has("Service", name):
            yield f"{where}: there is no Service {name}"
        return
    ports = (service.get("spec") or {}).get("ports") or ()
    if port not in {item.get("name") for item in ports} | {item.get("port") for item in ports}:
        yield f"{where}: Service {name} has no port {port!r}"


def _monitor(one: Manifest, known: Objects) -> Iterator[str]:
    spec = one.get("spec") or {}
    wanted = (spec.get("selector") or {}).get("matchLabels") or {}
    if one["kind"] == "PodMonitor":
        found = [_port_names(template) for template in known.selected(wanted)]
        endpoints, where = spec.get("podMetricsEndpoints") or (), "pods"
    else:
        found = [_service_ports(each) for each in known.objects if _is_service(each, wanted)]
        endpoints, where = spec.get("endpoints") or (), "Services"
    if not found and known.pods:
        yield f"spec.selector: no {where} have {_shown(wanted)}"
    for endpoint in endpoints:
        if found and not any(endpoint.get("port") in names for names in found):
            yield f"spec: none of its {where} has a port {endpoint.get('port')!r}"


def _binding(one: Manifest, known: Objects) -> Iterator[str]:
    role = one.get("roleRef") or {}
    if role.get("kind") == "Role" and not known.has("Role", role.get("name")):
        yield f"roleRef: there is no Role {role.get('name')}"
    for subject in one.get("subjects") or ():
        if subject.get("kind") == "ServiceAccount" and not known.has("ServiceAccount", subject.get("name")):
            yield f"subjects: there is no ServiceAccount {subject.get('name')}"


def _port_names(template: Mapping[str, Any]) -> set[Any]:
    return {
        port.get("name") for container in containers_of(template) for port in container.get("ports") or ()
    }


def _service_ports(service: Mapping[str, Any]) -> set[Any]:
    return {port.get("name") for port in (service.get("spec") or {}).get("ports") or ()}


def _is_service(one: Manifest, labels: Mapping[str, Any]) -> bool:
    return one["kind"] == "Service" and labels.items() <= (one["metadata"].get("labels") or {}).items()


def _shown(labels: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items())


_KINDS: dict[str, Callable[[Manifest, Objects], Iterator[str]]] = {
    "GRPCRoute": _route,
    "HTTPRoute": _route,
    "HorizontalPodAutoscaler": _autoscaler,
    "Ingress": _ingress,
    "NetworkPolicy": _network_policy,
    "PodDisruptionBudget": _selecting("selector"),
    "PodMonitor": _monitor,
    "RoleBinding": _binding,
    "ScaledObject": _autoscaler,
    "Service": _service,
    "ServiceMonitor": _monitor,
}
