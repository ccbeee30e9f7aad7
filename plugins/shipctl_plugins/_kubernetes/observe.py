"""Looking at an app in its namespace: five questions to the API server, whatever it has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from shipctl.release.router import Backend, Routed, TrafficRouter
from shipctl.release.target import Observation
from shipctl_plugins._kubernetes import state as states
from shipctl_plugins._kubernetes.app import ANNOTATION_REVISION, LABEL_REVISION, Place
from shipctl_plugins._kubernetes.lease import ClusterLease
from shipctl_plugins._kubernetes.pods import is_ending, replicas_of, wanted_of
from shipctl_plugins._kubernetes.recall import recalled
from shipctl_plugins._kubernetes.state import Entry, ModelState
from shipctl_plugins._kubernetes.traffic.rolling import Group

Object = dict[str, Any]


@dataclass(frozen=True)
class Look:
    """Everything that one look has found."""

    observation: Observation
    state: ModelState
    version: str
    """The state's version, for a change of it."""
    routed: Routed
    deployments: dict[str, Object] = field(default_factory=dict)
    """By revision."""
    pods: dict[str, list[Object]] = field(default_factory=dict)
    """By revision; those that end are not among them."""
    recalled: bool = False
    """Whether the state was gone, and is what the live objects tell."""

    def entry(self, revision: str) -> Entry | None:
        """Return what is remembered of a revision."""
        return self.state.entries.get(revision)

    def group(self, revision: str) -> Group:
        """Return how many replicas of a revision there are."""
        deployment = self.deployments.get(revision)
        seen = self.observation.replicas.get(revision)
        return Group(
            asked=wanted_of(deployment) if deployment is not None else 0,
            pods=len(self.pods.get(revision, ())),
            ready=seen.ready if seen is not None else 0,
        )


@dataclass(frozen=True)
class Observer:
    """Looks at one app."""

    place: Place
    router: TrafficRouter
    lease: ClusterLease

    def look(self) -> Look:
        """Look at everything. Reads only.

        :raises ShipctlError: if the cluster cannot be asked, or the state is gone and nothing tells what is stable
        """
        cluster, app = self.place.cluster, self.place.app
        state, version = states.load(self.place)
        deployments = self._by_revision(cluster.list("apps/v1", "Deployment", app.pods), state)
        lost = state == ModelState() and bool(deployments)
        if lost:
            state = recalled(self.place, self.router, deployments)
        pods: dict[str, list[Object]] = {}
        if deployments:
            alive = [pod for pod in cluster.list("v1", "Pod", app.pods) if not is_ending(pod)]
            pods = self._sorted(alive, deployments)
        replicas = {
            revision: replicas_of(deployment, pods.get(revision, ()), state.entries.get(revision))
            for revision, deployment in sorted(deployments.items())
        }
        routed = self.router.get()
        lease = self.lease.read()
        observation = Observation(
            stable=state.stable,
            previous=state.previous if state.previous in replicas else None,
            replicas=replicas,
            traffic=routed.traffic,
            asked=getattr(routed, "asked", None),
            shifted=routed.since,
            epoch=lease.epoch if lease is not None else 0,
            rescued=getattr(routed, "rescued", False),
        )
        return Look(observation, state, version, routed, deployments, pods, lost)

    def backends(self, revision: str) -> tuple[Backend, ...]:
        """Return what routers reach a revision by: its Service."""
        name, place = self.place.app.of(revision), self.place
        host = f"{name}.{place.app.namespace}.svc"
        http, grpc = f"{host}:{place.http_port}", f"{host}:{place.grpc_port}"
        return (Backend(name=name, http=http, grpc=grpc),)

    def _by_revision(self, found: list[Object], state: ModelState) -> dict[str, Object]:
        named = {}
        for deployment in found:
            revision = _revision_of(deployment, state)
            if revision is not None:
                named[revision] = deployment
        return named

    def _sorted(self, pods: list[Object], deployments: dict[str, Object]) -> dict[str, list[Object]]:
        by_label = {_label(deployment): revision for revision, deployment in deployments.items()}
        found: dict[str, list[Object]] = {}
        for pod in pods:
            revision = by_label.get(_label(pod))
            if revision is not None:
                found.setdefault(revision, []).append(pod)
        return found


def _label(found: Object) -> str | None:
    return (found["metadata"].get("labels") or {}).get(LABEL_REVISION)


def _revision_of(deployment: Object, state: ModelState) -> str | None:
    """Return the whole digest: from the annotation, or, where somebody took that away, from what is remembered."""
    template = deployment.get("spec", {}).get("template", {}).get("metadata", {})
    for notes in (template.get("annotations"), deployment["metadata"].get("annotations")):
        if revision := (notes or {}).get(ANNOTATION_REVISION):
            return str(revision)
    short = _label(deployment)
    entry = state.by_short(short) if short else None
    return entry.revision if entry is not None else None
