"""Who may do what in the namespace: rules of Roles, with as few rights as do.

What has a fixed name is only written by that name; Kubernetes cannot restrict `create` and `list` to names
(kubernetes.io/docs/reference/access-authn-authz/rbac). Nobody of ours reads Secrets.
"""

from __future__ import annotations

from typing import Any

from shipctl_plugins._kubernetes.app import App
from shipctl_plugins._kubernetes.manifests.options import KubernetesOptions

Rule = dict[str, Any]

_READ = ("get", "list", "watch")
_CHANGE = ("get", "patch", "update")
_OWN = ("get", "list", "watch", "create", "patch", "update", "delete")


def watchdog_rules(options: KubernetesOptions, app: App) -> list[Rule]:
    """Return what the watchdog needs: take the lease over, and put traffic back on what is stable."""
    rules = [
        _rule("coordination.k8s.io", ["leases"], ("get", "update"), app.kept),
        _rule("", ["configmaps"], ("get", "patch"), app.kept),
        _rule("", ["pods"], ("list",)),
        # Deployments are named by revision; what a rolling release has taken from the stable one, that gets back
        _rule("apps", ["deployments"], ("get", "list")),
        _rule("apps", ["deployments/scale"], ("patch",)),
    ]
    routes = _routes(options, app)
    if not routes:  # the door is a Service, and who is behind it counts
        rules.append(_rule("", ["services"], ("get", "patch"), app.name))
        rules.append(_rule("discovery.k8s.io", ["endpointslices"], ("list",)))
    return [*rules, *(_rule(group, kinds, _CHANGE, name) for group, kinds, name, _ in routes)]


def comparator_rules(options: KubernetesOptions, app: App) -> list[Rule]:  # noqa: ARG001  (as the watchdog's)
    """Return nothing: the comparator asks the servers, and no API server."""
    return []


def operator_rules(options: KubernetesOptions, app: App) -> list[Rule]:
    """Return what a person, or a CI job, needs that runs shipctl: everything of the app, and why its pods fail."""
    rules = [
        # revisions come and go, and are named by their digits
        _rule("apps", ["deployments"], _OWN),
        _rule("apps", ["deployments/scale"], _CHANGE),
        _rule("apps", ["replicasets"], _READ),
        _rule("", ["services", "configmaps", "serviceaccounts"], _OWN),
        # the candidate is asked golden samples, and the comparator what it found, through the API server
        _rule("", ["services/proxy"], ("get", "create")),
        _rule("", ["pods", "pods/log", "events", "endpoints", "resourcequotas", "limitranges"], _READ),
        _rule("discovery.k8s.io", ["endpointslices"], _READ),
        _rule("coordination.k8s.io", ["leases"], ("create",)),
        _rule("coordination.k8s.io", ["leases"], (*_CHANGE, "delete"), app.kept),
    ]
    rules += [
        _rule(group, kinds, _CHANGE, name) for group, kinds, name, own in _routes(options, app) if not own
    ]
    for group, kinds, names in _optional(options, app):
        rules.append(_rule(group, kinds, ("list", "watch", "create")))
        rules.append(_rule(group, kinds, (*_CHANGE, "delete"), *names))
    return rules


def _optional(options: KubernetesOptions, app: App) -> list[tuple[str, list[str], list[str]]]:
    """Return API group, resources and names (none: any) of what is there only with some options."""
    found: list[tuple[str, list[str], list[str]]] = []
    if options.disruptionBudget is not None:
        found.append(("policy", ["poddisruptionbudgets"], []))
    if options.networkPolicy is not None:
        names = [app.name, *([f"{app.name}-comparator"] if options.comparator else [])]
        found.append(("networking.k8s.io", ["networkpolicies"], names))
    if options.ingress is not None:
        found.append(("networking.k8s.io", ["ingresses"], [app.name]))
    if options.autoscaling is not None:
        keda = options.autoscaling.engine == "keda"
        found.append(
            ("keda.sh", ["scaledobjects"], []) if keda else ("autoscaling", ["horizontalpodautoscalers"], [])
        )
    if options.monitoring is not None:
        found.append(
            ("monitoring.coreos.com", [f"{options.monitoring.engine.replace('-', '')}s"], [app.name])
        )
    found += [(group, kinds, [name]) for group, kinds, name, own in _routes(options, app) if own]
    if options.watchdog is not None:  # who makes a Role needs every right that it gives
        found.append(("rbac.authorization.k8s.io", ["roles", "rolebindings"], [f"{app.name}-watchdog"]))
    return found


def _routes(options: KubernetesOptions, app: App) -> list[tuple[str, list[str], str, bool]]:
    """Return API group, resources and name of what the router writes, and whether it is ours and not another's."""
    given = options.router.options
    if options.router.uses == "gateway-api":
        grpc = ["grpcroutes"] if given.get("grpc") else []
        name, kinds, group = given.get("route"), ["httproutes", *grpc], "gateway.networking.k8s.io"
    elif options.router.uses == "istio":
        name, kinds, group = given.get("virtualService"), ["virtualservices"], "networking.istio.io"
    else:
        return []
    return [(group, kinds, str(name or app.name), name is None)]


def _rule(group: str, resources: list[str], verbs: tuple[str, ...], *names: str) -> Rule:
    rule: Rule = {"apiGroups": [group], "resources": resources, "verbs": list(verbs)}
    return {**rule, "resourceNames": list(names)} if names else rule
