"""Rules of single fields that schemas do not have: names, labels, quantities, ports, and values that are words.

They are those of the API server's validation (kubernetes/pkg/apis/*/validation), so far as what is rendered here, or
by a template of a project, has these fields.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from shipctl_plugins._kubernetes.manifests.documents import Manifest
from shipctl_plugins._kubernetes.manifests.fields import LABEL_KEY, LABEL_VALUE

_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_RFC1123 = re.compile(_LABEL)
_RFC1035 = re.compile(r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_PATH_SEGMENT = re.compile(r"(?!\.\.?\Z)[^/%]+")
_HOST = re.compile(rf"(?:\*\.)?{_SUBDOMAIN.pattern}")
_PORT_NAME = re.compile(r"(?=.{1,15}\Z)(?=.*[a-z])[a-z0-9]+(?:-[a-z0-9]+)*")
_QUANTITY = re.compile(
    r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?[0-9]+)?"
)
_CONFIG_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
_ANNOTATIONS = 256 * 1024
_CONFIG_MAP = 1024 * 1024
_DECIMAL = dict(zip(("n", "u", "m", "", "k", "M", "G", "T", "P", "E"), range(-3, 7), strict=True))
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_BY_SEGMENT = frozenset({"Role", "RoleBinding"})
_READING = frozenset({"get", "list", "watch"})
_VERBS = _READING | {
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
    "bind",
    "escalate",
    "impersonate",
    "*",
}


def amount(quantity: Any) -> Decimal | None:
    """Return what a quantity stands for, None if it is none."""
    found = _QUANTITY.fullmatch(str(quantity))
    if found is None or isinstance(quantity, bool):
        return None
    number, unit = Decimal(found[1]), found[2] or ""
    if unit[:1] in {"e", "E"} and unit[1:]:
        return number * Decimal(10) ** int(unit[1:])
    return number * (Decimal(1024) ** _BINARY[unit] if unit in _BINARY else Decimal(1000) ** _DECIMAL[unit])


def one_of(where: str, value: Any, allowed: Sequence[str]) -> Iterator[str]:
    """Say if ``value`` is no such word; what is left out is fine."""
    if value is not None and value not in allowed:
        yield f"{where}: {value!r} is none of {', '.join(allowed)}"


def port_number(where: str, value: Any) -> Iterator[str]:
    """Say if ``value`` is no port."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65535:  # noqa: PLR2004
        yield f"{where}: {value!r} is no port; write a number from 1 to 65535"


def port_name(where: str, value: Any) -> Iterator[str]:
    """Say if ``value`` is no port's name (RFC 6335)."""
    if not isinstance(value, str) or not _PORT_NAME.fullmatch(value):
        yield f"{where}: {value!r} is no name of a port; write at most 15 of a-z, 0-9 and '-', one a letter"


def port_reference(where: str, value: Any) -> Iterator[str]:
    """Say if ``value`` is neither a port's number nor a name."""
    yield from port_name(where, value) if isinstance(value, str) else port_number(where, value)


def quantity(where: str, value: Any) -> Iterator[str]:
    """Say if ``value`` is no quantity."""
    if amount(value) is None:
        yield f"{where}: {value!r} is no quantity; write a number and a unit, such as 500m or 2Gi"


def dns_label(where: str, value: Any) -> Iterator[str]:
    """Say if ``value`` is no DNS label (RFC 1123)."""
    if not isinstance(value, str) or not _RFC1123.fullmatch(value):
        yield f"{where}: {value!r} is no name; write at most 63 of a-z, 0-9 and '-'"


def labels(where: str, given: Mapping[str, Any] | None) -> Iterator[str]:
    """Say which keys and values are not those of labels."""
    for key, value in (given or {}).items():
        if not re.fullmatch(LABEL_KEY, key):
            yield f"{where}: {key!r} is no key of a label"
        if not isinstance(value, str) or not re.fullmatch(LABEL_VALUE, value):
            yield f"{where}: {key}: {value!r} is no value of a label; write at most 63 letters, digits, '-', '_', '.'"


def twice(where: str, values: Sequence[Any]) -> Iterator[str]:
    """Say which values are there more than once."""
    for value in dict.fromkeys(item for item in values if values.count(item) > 1):
        yield f"{where}: {value!r} is there twice"


def field_problems(one: Manifest) -> Iterator[str]:
    """Yield what is wrong with the metadata of an object, and with fields of its kind."""
    yield from _metadata(one)
    yield from _KINDS.get(one["kind"], _nothing)(one)


def _metadata(one: Manifest) -> Iterator[str]:
    metadata = one["metadata"]
    name = metadata.get("name")
    pattern = _SUBDOMAIN
    if one["kind"] == "Service":
        pattern = _RFC1035
    elif one["kind"] in _BY_SEGMENT:
        pattern = _PATH_SEGMENT
    if not isinstance(name, str) or not pattern.fullmatch(name):
        yield f"metadata.name: {name!r} is no name of a {one['kind']}"
    if metadata.get("namespace") is not None:
        yield from dns_label("metadata.namespace", metadata["namespace"])
    yield from labels("metadata.labels", metadata.get("labels"))
    yield from annotated("metadata.annotations", metadata.get("annotations"))


def annotated(where: str, given: Mapping[str, Any] | None) -> Iterator[str]:
    """Say which annotations are none, and if they are too long together."""
    total = 0
    for key, value in (given or {}).items():
        if not re.fullmatch(LABEL_KEY, key, re.IGNORECASE):
            yield f"{where}: {key!r} is no key of an annotation"
        if not isinstance(value, str):
            yield f"{where}: {key}: {value!r} is no text; quote it"
            continue
        total += len(key.encode()) + len(value.encode(errors="replace"))
    if total > _ANNOTATIONS:
        yield f"{where}: {total} bytes are more than the {_ANNOTATIONS} that an object may have"


def _service(one: Manifest) -> Iterator[str]:
    spec = one.get("spec") or {}
    yield from one_of(
        "spec.type", spec.get("type"), ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
    )
    yield from one_of("spec.externalTrafficPolicy", spec.get("externalTrafficPolicy"), ("Cluster", "Local"))
    yield from one_of("spec.internalTrafficPolicy", spec.get("internalTrafficPolicy"), ("Cluster", "Local"))
    yield from one_of("spec.sessionAffinity", spec.get("sessionAffinity"), ("None", "ClientIP"))
    yield from labels("spec.selector", spec.get("selector"))
    ports = spec.get("ports") or []
    if not ports and spec.get("type") != "ExternalName":
        yield "spec.ports: there is none; add one"
    yield from twice("spec.ports.name", [port.get("name") for port in ports])
    yield from twice("spec.ports.port", [(port.get("port"), port.get("protocol", "TCP")) for port in ports])
    for index, port in enumerate(ports):
        yield from _service_port(f"spec.ports[{index}]", port, several=len(ports) > 1)
    if spec.get("loadBalancerSourceRanges") and spec.get("type") != "LoadBalancer":
        yield f"spec.loadBalancerSourceRanges: for a LoadBalancer, and this is a {spec.get('type', 'ClusterIP')}"
    for cidr in spec.get("loadBalancerSourceRanges") or ():
        yield from network("spec.loadBalancerSourceRanges", cidr)


def _service_port(where: str, port: Mapping[str, Any], *, several: bool) -> Iterator[str]:
    yield from port_number(f"{where}.port", port.get("port"))
    yield from port_reference(f"{where}.targetPort", port.get("targetPort", port.get("port")))
    yield from one_of(f"{where}.protocol", port.get("protocol"), ("TCP", "UDP", "SCTP"))
    if several or port.get("name") is not None:
        yield from dns_label(f"{where}.name", port.get("name"))
    if port.get("nodePort") is not None:
        yield from port_number(f"{where}.nodePort", port["nodePort"])
    if port.get("appProtocol") is not None and not re.fullmatch(LABEL_KEY, str(port["appProtocol"])):
        yield f"{where}.appProtocol: {port['appProtocol']!r} is no protocol; write http or kubernetes.io/h2c"


def network(where: str, value: Any) -> Iterator[str]:
    """Say if ``value`` is no range of addresses."""
    try:
        ipaddress.ip_network(value)
    except ValueError:
        yield f"{where}: {value!r} is no range of addresses; write one such as 10.0.0.0/8"


def _network_policy(one: Manifest) -> Iterator[str]:
    spec = one.get("spec") or {}
    for word in spec.get("policyTypes") or ():
        yield from one_of("spec.policyTypes", word, ("Ingress", "Egress"))
    for side, peers in (("ingress", "from"), ("egress", "to")):
        for index, rule in enumerate(spec.get(side) or ()):
            for port in rule.get("ports") or ():
                yield from one_of(
                    f"spec.{side}[{index}].ports.protocol", port.get("protocol"), ("TCP", "UDP", "SCTP")
                )
                if port.get("port") is not None:
                    yield from port_reference(f"spec.{side}[{index}].ports.port", port["port"])
            for peer in rule.get(peers) or ():
                yield from _peer(f"spec.{side}[{index}].{peers}", peer)


def _peer(where: str, peer: Mapping[str, Any]) -> Iterator[str]:
    if "ipBlock" in peer:
        yield from network(f"{where}.ipBlock.cidr", peer["ipBlock"].get("cidr"))
        if len(peer) > 1:
            yield f"{where}: ipBlock stands alone; make two peers of it"
    elif not peer:
        yield f"{where}: an empty peer; write podSelector: {{}} for all pods of the namespace"
    for name in ("podSelector", "namespaceSelector"):
        yield from labels(f"{where}.{name}", (peer.get(name) or {}).get("matchLabels"))


def _ingress(one: Manifest) -> Iterator[str]:
    spec = one.get("spec") or {}
    hosts = {rule.get("host") for rule in spec.get("rules") or ()}
    for index, rule in enumerate(spec.get("rules") or ()):
        where = f"spec.rules[{index}]"
        if rule.get("host") is not None and not _HOST.fullmatch(str(rule["host"])):
            yield f"{where}.host: {rule['host']!r} is no host name"
        for path in (rule.get("http") or {}).get("paths") or ():
            yield from one_of(
                f"{where}.pathType", path.get("pathType"), ("Exact", "Prefix", "ImplementationSpecific")
            )
            if not str(path.get("path", "")).startswith("/"):
                yield f"{where}.path: {path.get('path')!r} does not begin with /"
    for entry in spec.get("tls") or ():
        for host in entry.get("hosts") or ():
            if host not in hosts:
                yield f"spec.tls.hosts: no rule is for {host!r}, which has a certificate"


def _autoscaler(one: Manifest) -> Iterator[str]:
    spec = one.get("spec") or {}
    fewest, most = spec.get("minReplicas", 1), spec.get("maxReplicas", 0)
    if not 1 <= fewest <= most:
        yield f"spec: minReplicas {fewest} and maxReplicas {most} are no range"
    for index, metric in enumerate(spec.get("metrics") or ()):
        kinds = ("Pods", "Object", "External", "Resource", "ContainerResource")
        where = f"spec.metrics[{index}]"
        yield from one_of(f"{where}.type", metric.get("type"), kinds)
        kind = str(metric.get("type", ""))
        target = (metric.get(kind[:1].lower() + kind[1:]) or {}).get("target") or {}
        yield from one_of(
            f"{where}.target.type", target.get("type"), ("AverageValue", "Value", "Utilization")
        )
        for name in ("averageValue", "value"):
            if name in target:
                yield from quantity(f"{where}.target.{name}", target[name])
    for side, given in (spec.get("behavior") or {}).items():
        for policy in given.get("policies") or ():
            yield from one_of(f"spec.behavior.{side}.policies.type", policy.get("type"), ("Percent", "Pods"))


def _scaled_object(one: Manifest) -> Iterator[str]:
    spec = one.get("spec") or {}
    fewest, most = spec.get("minReplicaCount", 0), spec.get("maxReplicaCount", 100)
    if not 0 <= fewest <= most:
        yield f"spec: minReplicaCount {fewest} and maxReplicaCount {most} are no range"
    for index, trigger in enumerate(spec.get("triggers") or [{}]):
        if not trigger.get("type"):
            yield f"spec.triggers[{index}]: has no type"
        yield from one_of(
            f"spec.triggers[{index}].metricType", trigger.get("metricType"), ("AverageValue", "Value")
        )
        for key, value in (trigger.get("metadata") or {}).items():
            if not isinstance(value, str):
                yield f"spec.triggers[{index}].metadata.{key}: {value!r} is no text; quote it"


def _disruption_budget(one: Manifest) -> Iterator[str]:
    spec = one.get("spec") or {}
    if ("minAvailable" in spec) == ("maxUnavailable" in spec):
        yield "spec: write either minAvailable or maxUnavailable"
    if spec.get("maxUnavailable") in (0, "0%") or spec.get("minAvailable") == "100%":
        yield "spec: no pod may ever go, so that no node could be drained; write maxUnavailable: 1"
    if not spec.get("selector"):
        yield "spec.selector: selects nothing; write the labels of the pods"
    policies = ("IfHealthyBudget", "AlwaysAllow")
    yield from one_of("spec.unhealthyPodEvictionPolicy", spec.get("unhealthyPodEvictionPolicy"), policies)


def _role(one: Manifest) -> Iterator[str]:
    for index, rule in enumerate(one.get("rules") or ()):
        where = f"rules[{index}]"
        for key in ("apiGroups", "resources", "verbs"):
            if not rule.get(key):
                yield f"{where}.{key}: there is none"
        for verb in rule.get("verbs") or ():
            if verb not in _VERBS:
                yield f"{where}.verbs: {verb!r} is no verb of Kubernetes; write get, list, watch, create, patch, …"
        if rule.get("resourceNames") and {"create", "deletecollection"} & set(rule.get("verbs") or ()):
            yield f"{where}: create cannot be restricted to names; give it a rule of its own"


def _config_map(one: Manifest) -> Iterator[str]:
    data = {**(one.get("data") or {}), **(one.get("binaryData") or {})}
    for key, value in data.items():
        if not _CONFIG_KEY.fullmatch(str(key)):
            yield f"data: {key!r} is no key; write letters, digits, '-', '_' and '.'"
        if not isinstance(value, str):
            yield f"data: {key}: {value!r} is no text; quote it"
    size = sum(len(str(key)) + len(str(value).encode()) for key, value in data.items())
    if size > _CONFIG_MAP:
        yield f"data: {size} bytes are more than the {_CONFIG_MAP} that a ConfigMap may have"


def _route(one: Manifest) -> Iterator[str]:
    for index, rule in enumerate((one.get("spec") or {}).get("rules") or ()):
        mirrors = [each["requestMirror"] for each in rule.get("filters") or () if "requestMirror" in each]
        backends = [*(rule.get("backendRefs") or ()), *(item.get("backendRef") or {} for item in mirrors)]
        for backend in backends:
            where = f"spec.rules[{index}].backendRefs {backend.get('name')}"
            weight = backend.get("weight", 1)
            if not isinstance(weight, int) or not 0 <= weight <= 1_000_000:  # noqa: PLR2004
                yield f"{where}: {weight!r} is no weight; write a number from 0 to 1000000"
            if backend.get("kind", "Service") == "Service":
                yield from port_number(f"{where}: port", backend.get("port"))


def _virtual_service(one: Manifest) -> Iterator[str]:
    spec = one.get("spec") or {}
    for index, rule in enumerate([*(spec.get("http") or ()), *(spec.get("tcp") or ())]):
        routes = rule.get("route") or []
        total = sum(route.get("weight", 0) for route in routes)
        if len(routes) > 1 and total != 100:  # noqa: PLR2004
            yield f"spec.http[{index}].route: the weights are {total} together and not 100"


def _nothing(one: Manifest) -> Iterator[str]:  # noqa: ARG001  (as the others)
    return iter(())


_KINDS: dict[str, Callable[[Manifest], Iterator[str]]] = {
    "ConfigMap": _config_map,
    "GRPCRoute": _route,
    "HTTPRoute": _route,
    "HorizontalPodAutoscaler": _autoscaler,
    "Ingress": _ingress,
    "NetworkPolicy": _network_policy,
    "PodDisruptionBudget": _disruption_budget,
    "Role": _role,
    "ScaledObject": _scaled_object,
    "Service": _service,
    "VirtualService": _virtual_service,
}
