"""The network policies: who reaches the servers and the comparator, and whom they reach."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from shipctl_plugins._kubernetes.app import App
from shipctl_plugins._kubernetes.manifests.options import KubernetesOptions
from shipctl_plugins._kubernetes.manifests.parts import NetworkPolicyOptions, Peer
from shipctl_plugins._kubernetes.manifests.server import PORTS

Rule = dict[str, Any]

_NAMESPACE = "kubernetes.io/metadata.name"
"""Every namespace has its name as this label since Kubernetes 1.22."""
_SYSTEM: Rule = {"namespaceSelector": {"matchLabels": {_NAMESPACE: "kube-system"}}}
_EVERYWHERE: Rule = {"namespaceSelector": {}}
_PROXIES = frozenset({"gateway-api", "istio"})
"""Routers whose requests come from proxies in namespaces that we do not know."""
_SCHEMES = {"http": 80, "https": 443}


def ingress_rules(options: KubernetesOptions, app: App) -> list[Rule]:
    """Return who may send requests, read metrics, and ask golden samples.

    Kubelets reach the pods of their node in any case: kubernetes.io/docs/concepts/services-networking/network-policies.
    """
    policy = options.networkPolicy or NetworkPolicyOptions()
    rules = _requests(options, app)
    if "from" in rules[0]:
        rules.append({"from": _api_server(policy), "ports": _ports("http")})
    readers = [_peer(peer) for peer in policy.metrics] if policy.metrics is not None else [_EVERYWHERE]
    # a sidecar of Istio answers for the metrics of both
    merged = [{"port": 15020, "protocol": "TCP"}] if options.router.uses == "istio" else []
    rules.append({"from": [_own(app), *readers], "ports": [*_ports("metrics"), *merged]})
    return rules


def comparator_ingress(options: KubernetesOptions, app: App) -> list[Rule]:
    """Return who may send copies of requests (who may send requests), and ask what came of them (the API server)."""
    policy = options.networkPolicy or NetworkPolicyOptions()
    return [*_requests(options, app), {"from": _api_server(policy), "ports": _ports("results")}]


def comparator_egress(options: KubernetesOptions, app: App) -> list[Rule]:
    """Return whom the comparator reaches: name servers, and the servers of both revisions."""
    return [
        _names(),
        {"to": [{"podSelector": {"matchLabels": app.pods}}], "ports": _ports(PORTS["http"], PORTS["grpc"])},
        *_mesh(options),
    ]


def egress_rules(options: KubernetesOptions) -> list[Rule]:
    """Return whom the pods reach: name servers, the store, and what the options name."""
    policy = options.networkPolicy or NetworkPolicyOptions()
    rules = [_names()]
    ports = sorted(store_ports(options))
    if ports:
        to: Rule = {"to": [_block(cidr) for cidr in policy.store]} if policy.store else {}
        rules.append({**to, "ports": [{"port": port, "protocol": "TCP"} for port in ports]})
    rules += _mesh(options)
    rules += [
        {"to": [_block(rule.cidr)], "ports": [{"port": port, "protocol": "TCP"} for port in rule.ports]}
        for rule in policy.egress
    ]
    return rules


def store_ports(options: KubernetesOptions) -> set[int]:
    """Return the TCP ports at which the store, and the service that gives credentials for it, listen."""
    uri = options.modelRepository or ""
    if uri.startswith("/"):  # a volume
        return set()
    inside = re.match(r"s3://((?:https?://)[^/]+)", uri)
    endpoint = inside[1] if inside else None if uri else options.storeEndpoint
    ports = set() if options.credentialsSecret else {443}
    if endpoint is None:
        return ports | {443}
    url = urlsplit(endpoint)
    return ports | {url.port or _SCHEMES.get(url.scheme, 443)}


def _requests(options: KubernetesOptions, app: App) -> list[Rule]:
    """Return who may send requests."""
    clients = _clients(options, options.networkPolicy or NetworkPolicyOptions())
    peers = {"from": [_own(app), *clients]} if clients is not None else {}
    return [{**peers, "ports": _ports("http", "grpc")}]


def _own(app: App) -> Rule:
    return {"podSelector": {"matchLabels": {"app.kubernetes.io/instance": app.name}}}


def _api_server(policy: NetworkPolicyOptions) -> list[Rule]:
    return [_block(cidr) for cidr in policy.apiServer] or [_SYSTEM]


def _names() -> Rule:
    return {"ports": [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]}


def _mesh(options: KubernetesOptions) -> list[Rule]:
    """Return how a sidecar reaches the control plane of the mesh."""
    if options.router.uses != "istio":
        return []
    control = {"namespaceSelector": {"matchLabels": {_NAMESPACE: "istio-system"}}}
    return [{"to": [control], "ports": [{"port": 15012, "protocol": "TCP"}]}]


def _clients(options: KubernetesOptions, policy: NetworkPolicyOptions) -> list[Rule] | None:
    """Return who may send requests, None for everybody."""
    if policy.peers is not None:
        return [_peer(peer) for peer in policy.peers]
    if options.service.type != "ClusterIP":
        return None
    if options.ingress is not None or options.router.uses in _PROXIES:
        return [_EVERYWHERE]
    return [{"podSelector": {}}]


def _peer(peer: Peer) -> Rule:
    if peer.cidr is not None:
        return _block(peer.cidr)
    selectors = {"namespaceSelector": peer.namespaceSelector, "podSelector": peer.podSelector}
    return {
        name: {"matchLabels": dict(labels)} if labels else {}
        for name, labels in selectors.items()
        if labels is not None
    }


def _block(cidr: str) -> Rule:
    return {"ipBlock": {"cidr": cidr}}


def _ports(*ports: str | int) -> list[Rule]:
    return [{"port": port, "protocol": "TCP"} for port in ports]
