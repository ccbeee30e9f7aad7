"""Who applies the folder to the cluster, and how far that is.

Argo CD says so in the status of an Application (argo-cd.readthedocs.io/en/stable/operator-manual/application.yaml),
Flux in that of a Kustomization (fluxcd.io/flux/components/kustomize/kustomizations). Where it is somebody else, the
Deployment in the cluster is looked at, whose pods name their revision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import StrEnum
from typing import Any, NamedTuple

from shipctl.release.target import Replicas
from shipctl_plugins._gitops.options import ArgoCdOptions, FluxOptions
from shipctl_plugins._gitops.tree import Tree
from shipctl_plugins._kubernetes.api.connection import Cluster, Ref
from shipctl_plugins._kubernetes.app import ANNOTATION_REVISION, LABEL_REVISION, App, short

Reached = Callable[[str], bool]
"""Says whether a commit (as the engine names it) has what the newest one has in our folder."""
_SHORT = 10
_FLUX_ON_ITS_WAY = frozenset(
    {"Progressing", "ProgressingWithRetry", "DependencyNotReady", "ReconciliationInProgress"}
)


class Health(StrEnum):
    """How what was applied is."""

    HEALTHY = "healthy"
    PROGRESSING = "progressing"
    DEGRADED = "degraded"


class Live(NamedTuple):
    """What an engine says at one moment."""

    applied: bool
    """Whether what stands in the newest commit is what the cluster has been told."""
    health: Health
    message: str = ""
    replicas: Replicas | None = None
    """Those of the revision that was committed last, where the engine tells."""
    weight: int | None = None
    """Percent of the requests that this revision gets, where the engine tells."""


class Engine(ABC):
    """One way of finding out."""

    @abstractmethod
    def look(self, tree: Tree, reached: Reached) -> Live:
        """Ask.

        :raises ShipctlError: if the cluster cannot be asked
        """

    def hints(self) -> list[str]:
        """Return, a line each, what is wanting in how the engine is set up. Reads only.

        :raises ShipctlError: if the cluster cannot be asked
        """
        return []


class Nobody(Engine):
    """Does not wait: what is committed counts as done."""

    def look(self, tree: Tree, reached: Reached) -> Live:
        """Take it for applied."""
        return Live(applied=True, health=Health.HEALTHY, message="nobody was asked whether it is applied")


class ArgoCd(Engine):
    """An Application."""

    def __init__(self, cluster: Cluster, options: ArgoCdOptions) -> None:
        self._cluster = cluster
        self._name = options.application
        self._where = f"Application {options.application} of {options.namespace}"

    def look(self, tree: Tree, reached: Reached) -> Live:
        """Read its status."""
        found = self._cluster.get(Ref("argoproj.io/v1alpha1", "Application", self._name))
        if found is None:
            return Live(applied=False, health=Health.PROGRESSING, message=f"there is no {self._where} yet")
        status = found.get("status") or {}
        sync, health = status.get("sync") or {}, status.get("health") or {}
        at = [str(item) for item in sync.get("revisions") or [sync.get("revision")] if item]
        here = any(reached(commit) for commit in at)
        if here and sync.get("status") == "Synced":
            return Live(True, *_argo_health(health))
        failed = _argo_failure(status.get("operationState") or {}, reached)
        if failed is not None:
            return Live(True, Health.DEGRADED, failed)
        where = at[0][:_SHORT] if at else "no commit"
        said = f"Argo CD is at {where}, {sync.get('status') or 'Unknown'}"
        return Live(False, Health.PROGRESSING, f"{said}; waiting for {tree.commit[:_SHORT]}")

    def hints(self) -> list[str]:
        """Say if it does not synchronise by itself."""
        found = self._cluster.get(Ref("argoproj.io/v1alpha1", "Application", self._name))
        if found is None:
            return [f"there is no {self._where}: nothing of this is applied before it is made"]
        automated = ((found.get("spec") or {}).get("syncPolicy") or {}).get("automated")
        if automated is None:
            return [f"{self._where} has no syncPolicy.automated: somebody has to synchronise it"]
        if not automated.get("prune"):
            return [f"{self._where} does not prune: objects of earlier revisions stay in the cluster"]
        return []


class Flux(Engine):
    """A Kustomization."""

    def __init__(self, cluster: Cluster, options: FluxOptions, version: str) -> None:
        self._cluster = cluster
        self._ref = Ref(f"kustomize.toolkit.fluxcd.io/{version}", "Kustomization", options.kustomization)
        self._where = f"Kustomization {options.kustomization} of {options.namespace}"

    def look(self, tree: Tree, reached: Reached) -> Live:
        """Read its status."""
        found = self._cluster.get(self._ref)
        if found is None:
            return Live(applied=False, health=Health.PROGRESSING, message=f"there is no {self._where} yet")
        status = found.get("status") or {}
        ready = _condition(status, "Ready")
        said = str(ready.get("message") or "")
        applied, attempted = (
            _flux_commit(status.get(f"last{what}Revision")) for what in ("Applied", "Attempted")
        )
        current = status.get("observedGeneration") == found["metadata"].get("generation")
        if current and ready.get("status") == "True" and reached(applied):
            return Live(True, Health.HEALTHY, said)
        if (
            ready.get("status") == "False"
            and reached(attempted)
            and ready.get("reason") not in _FLUX_ON_ITS_WAY
        ):
            return Live(True, Health.DEGRADED, said)
        if reached(attempted):
            return Live(True, Health.PROGRESSING, said)
        where = applied[:_SHORT] or "no commit"
        return Live(False, Health.PROGRESSING, f"Flux is at {where}; waiting for {tree.commit[:_SHORT]}")

    def hints(self) -> list[str]:
        """Say if it does not wait for pods."""
        found = self._cluster.get(self._ref)
        if found is None:
            return [f"there is no {self._where}: nothing of this is applied before it is made"]
        spec = found.get("spec") or {}
        lines = []
        if not spec.get("wait") and not spec.get("healthChecks"):
            lines.append(f"{self._where} has no `wait: true`: it is ready before the pods are")
        if not spec.get("prune"):
            lines.append(f"{self._where} does not prune: objects of earlier revisions stay in the cluster")
        return lines


class Deployments(Engine):
    """The Deployment itself, whoever applies it."""

    def __init__(self, cluster: Cluster, app: App) -> None:
        self._cluster = cluster
        self._app = app

    def look(self, tree: Tree, reached: Reached) -> Live:
        """Compare the pods' revision, and what the Service selects, with what is committed."""
        release = tree.release
        if release is None or release.current is None:
            left = self._cluster.list("apps/v1", "Deployment", self._app.pods)
            gone = not left
            return Live(
                gone,
                Health.HEALTHY if gone else Health.PROGRESSING,
                "" if gone else "its pods are still there",
            )
        rolling, current = release.strategy == "rolling", release.current
        name = self._app.name if rolling else self._app.of(current)
        found = self._cluster.get(Ref("apps/v1", "Deployment", name))
        if found is None or _revision(found) != current:
            have = _revision(found) if found is not None else None
            said = f"Deployment {name} {f'has {short(have)}' if have else 'is not there'}"
            return Live(False, Health.PROGRESSING, f"{said}; waiting for {short(current)}")
        entry = release.entries.get(current)
        replicas = _replicas(found, entry.version if entry is not None else "?")
        selected, share = (True, _share(found)) if rolling else self._selected(release.serving, current)
        health = _health(found)
        return Live(selected, health, _deployment_message(found, replicas, health), replicas, share)

    def _selected(self, serving: str | None, current: str) -> tuple[bool, int]:
        """Return whether the Service selects what is committed, and the share of the newest revision."""
        found = self._cluster.get(Ref("v1", "Service", self._app.name)) or {}
        label = ((found.get("spec") or {}).get("selector") or {}).get(LABEL_REVISION)
        return label == (short(serving) if serving is not None else None), 100 if label == short(
            current
        ) else 0


def _argo_health(health: dict[str, Any]) -> tuple[Health, str]:
    said = str(health.get("message") or health.get("status") or "")
    match health.get("status"):
        case "Healthy":
            return Health.HEALTHY, "Argo CD says Healthy"
        case "Degraded":
            return Health.DEGRADED, f"Argo CD says Degraded: {said}"
        case _:
            return Health.PROGRESSING, f"Argo CD says {said or 'nothing of its health'}"


def _argo_failure(operation: dict[str, Any], reached: Reached) -> str | None:
    """Return why the newest commit could not be applied; None if that was not tried, or is going on."""
    if operation.get("phase") not in {"Failed", "Error"}:
        return None
    result = operation.get("syncResult") or {}
    wanted = ((operation.get("operation") or {}).get("sync") or {}).get("revision")
    tried = [str(item) for item in [*(result.get("revisions") or ()), result.get("revision"), wanted] if item]
    if not any(reached(commit) for commit in tried):
        return None
    return f"Argo CD could not apply it: {operation.get('message') or operation['phase']}"


def _flux_commit(revision: str | None) -> str:
    """Return the commit of `main@sha1:…`, or of `main/…` as older versions of Flux write it."""
    return str(revision or "").rpartition(":")[2].rpartition("/")[2]


def _condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    return next((dict(item) for item in status.get("conditions") or () if item.get("type") == kind), {})


def _revision(deployment: dict[str, Any]) -> str | None:
    metadata = deployment["spec"]["template"].get("metadata") or {}
    found = (metadata.get("annotations") or {}).get(ANNOTATION_REVISION)
    return None if found is None else str(found)


def _health(deployment: dict[str, Any]) -> Health:
    """Judge as `kubectl rollout status` does."""
    status, spec = deployment.get("status") or {}, deployment["spec"]
    if (status.get("observedGeneration") or 0) < deployment["metadata"].get("generation", 0):
        return Health.PROGRESSING
    if _condition(status, "Progressing").get("reason") == "ProgressDeadlineExceeded":
        return Health.DEGRADED
    wanted, updated = spec.get("replicas", 1), status.get("updatedReplicas") or 0
    old = (status.get("replicas") or 0) - updated
    whole = updated >= wanted and old <= 0 and (status.get("availableReplicas") or 0) >= updated
    return Health.HEALTHY if whole else Health.PROGRESSING


def _replicas(deployment: dict[str, Any], version: str) -> Replicas:
    status = deployment.get("status") or {}
    wanted = deployment["spec"].get("replicas", 1)
    whole = _health(deployment) is Health.HEALTHY
    ready = wanted if whole else min(status.get("updatedReplicas") or 0, max(wanted - 1, 0))
    return Replicas(version=version, wanted=wanted, ready=ready)


def _share(deployment: dict[str, Any]) -> int:
    """Return the share of the newest pods among all, which all get as much; all of it only where that is settled."""
    status = deployment.get("status") or {}
    if _health(deployment) is Health.HEALTHY:
        return 100
    every = max(status.get("replicas") or 0, 1)
    available_old = max((status.get("readyReplicas") or 0) - (status.get("updatedReplicas") or 0), 0)
    fresh = max((status.get("readyReplicas") or 0) - available_old, 0)
    return min(99, 100 * fresh // every)


def _deployment_message(deployment: dict[str, Any], replicas: Replicas, health: Health) -> str:
    condition = _condition(deployment.get("status") or {}, "Progressing")
    if health is Health.DEGRADED:
        return str(condition.get("message") or condition.get("reason"))
    return f"{replicas.ready} of {replicas.wanted} pods are ready"
