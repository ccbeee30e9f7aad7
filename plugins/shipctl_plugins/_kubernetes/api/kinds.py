"""Kinds of objects and where the API server has them.

Paths: kubernetes.io/docs/reference/using-api/api-concepts. What every cluster serves stands here; what else there is,
is asked for once (discovery).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from shipctl_plugins._kubernetes.api.errors import NoSuchKindError


class Kind(NamedTuple):
    """One kind of one API version, as a path has it."""

    api_version: str
    """`v1`, or `group/version`."""
    name: str
    """Such as `Deployment`."""
    plural: str
    """Such as `deployments`."""
    namespaced: bool = True

    @property
    def group(self) -> str:
        """The API group; "" for the core's."""
        return group_of(self.api_version)

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        """Return the path of all of the kind in ``namespace``, or of one of them."""
        parts = [_root(self.api_version)]
        if self.namespaced:
            parts.append(f"namespaces/{quote(namespace, safe='')}")
        parts += [part for part in (self.plural, quote(name, safe=":"), subresource) if part]
        return "/".join(parts)


_EVERYWHERE = {
    (kind.api_version, kind.name): kind
    for kind in (
        Kind("v1", "ConfigMap", "configmaps"),
        Kind("v1", "Endpoints", "endpoints"),
        Kind("v1", "Event", "events"),
        Kind("v1", "Namespace", "namespaces", namespaced=False),
        Kind("v1", "Pod", "pods"),
        Kind("v1", "ResourceQuota", "resourcequotas"),
        Kind("v1", "Secret", "secrets"),
        Kind("v1", "Service", "services"),
        Kind("v1", "ServiceAccount", "serviceaccounts"),
        Kind("apps/v1", "Deployment", "deployments"),
        Kind("apps/v1", "ReplicaSet", "replicasets"),
        Kind("coordination.k8s.io/v1", "Lease", "leases"),
        Kind("networking.k8s.io/v1", "Ingress", "ingresses"),
        Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
        Kind("rbac.authorization.k8s.io/v1", "Role", "roles"),
        Kind("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings"),
    )
}
"""Served by every Kubernetes of the last years: not worth a question."""
_INSTALL = {
    "argoproj.io": "install Argo Rollouts (argo-rollouts.readthedocs.io)",
    "gateway.networking.k8s.io": "install the Gateway API (gateway-api.sigs.k8s.io), or choose another router",
    "keda.sh": "install KEDA (keda.sh), or set `autoscaling: {engine: hpa}`",
    "monitoring.coreos.com": "install the Prometheus operator, or remove `monitoring`",
    "networking.istio.io": "install Istio (istio.io), or choose another router",
    "serving.kserve.io": "install KServe (kserve.github.io)",
}
"""What brings the kinds of a group."""


class Kinds:
    """The kinds that one cluster serves. Safe for threads."""

    def __init__(self, ask: Callable[[str], dict[str, Any] | None]) -> None:
        """``ask`` returns what is at a path, None for nothing (404)."""
        self._ask = ask
        self._found: dict[str, dict[str, Kind]] = {}
        self._lock = threading.Lock()

    def find(self, api_version: str, kind: str) -> Kind:
        """Return the kind of that name.

        :raises NoSuchKindError: if the cluster does not serve it
        """
        known = _EVERYWHERE.get((api_version, kind)) or self.served(api_version).get(kind)
        if known is None:
            raise self.missing(api_version, kind)
        return known

    def has(self, api_version: str, kind: str) -> bool:
        """Whether the cluster serves a kind in this version."""
        return (api_version, kind) in _EVERYWHERE or kind in self.served(api_version)

    def first(self, versions: Sequence[str], kind: str) -> str | None:
        """Return the first of these versions in which the cluster serves a kind; None if it does in none.

        One of which that is known is not asked for again, and the others are not either.
        """
        with self._lock:
            known = [version for version in versions if kind in self._found.get(version, ())]
        if known:
            return known[0]
        return next((version for version in versions if self.has(version, kind)), None)

    def served(self, api_version: str) -> dict[str, Kind]:
        """Return what the API server serves of a version, by name. Versions that are missing are asked for again."""
        with self._lock:
            known = self._found.get(api_version)
        if known is None:
            answer = self._ask(_root(api_version)) or {}
            known = {
                each["kind"]: Kind(api_version, each["kind"], each["name"], bool(each["namespaced"]))
                for each in answer.get("resources", ())
                if "/" not in each["name"]  # a subresource, whose kind may be another's
            }
            if known:
                with self._lock:
                    self._found[api_version] = known
        return known

    def missing(self, api_version: str, kind: str) -> NoSuchKindError:
        """Return the error that says that a kind is not served, and what brings it."""
        with self._lock:
            self._found.pop(api_version, None)
        if (api_version, kind) in _EVERYWHERE:
            return NoSuchKindError(
                f"there is no {kind} of {api_version} at the cluster's address, as at every Kubernetes API; correct "
                "`server` in the kubeconfig"
            )
        group = group_of(api_version)
        serves = self._ask(f"/apis/{quote(group, safe='')}") if group else None
        versions = [each["version"] for each in (serves or {}).get("versions", ())]
        others = [each for each in versions if f"{group}/{each}" != api_version]
        only = f", which it serves as {' and '.join(others)} only" if others else ""
        advice = _INSTALL.get(group, "install what brings it, or update the cluster")
        if others:
            advice = _INSTALL.get(group, "update the cluster").replace("install ", "update ", 1)
        return NoSuchKindError(f"the cluster has no {kind} of {api_version}{only}; {advice}")


def group_of(api_version: str) -> str:
    """Return the API group; "" for the core's."""
    return api_version.partition("/")[0] if "/" in api_version else ""


def _root(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
