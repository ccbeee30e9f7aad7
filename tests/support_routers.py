"""An app in a real cluster for the tests of routers, and what a data plane would make of the objects there."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shipctl.release.lease import FileLease
from shipctl.release.router import Backend, RouterContext, TrafficRouter
from shipctl.testing.routers import RouterConformance
from shipctl_plugins._kubernetes.app import ANNOTATION_REVISION, App, Place
from shipctl_plugins._kubernetes.traffic.ways import backend_of
from support_cluster import Kube, wait_for

STABLE, CANDIDATE = "a" * 64, "c" * 64
BEGUN_WITH = 2
"""Pods of each revision."""


@dataclass
class Cluster:
    """One app in a namespace of its own, whose lease is a file here."""

    kube: Kube
    place: Place
    lease: FileLease
    holder: str = "test"

    @property
    def app(self) -> App:
        return self.place.app

    def open(self, plugin: type[TrafficRouter], **options: Any) -> Any:
        """Return a router with these options."""
        return plugin(plugin.options_model.model_validate(options), self.context)

    @property
    def context(self) -> RouterContext:
        return RouterContext(
            name=self.app.name, access=self.place, guard=self.lease.check, log=lambda _line: None
        )

    @property
    def epoch(self) -> int:
        """Take or renew the lease."""
        return self.lease.acquire(self.holder, 600)

    def take_over(self) -> int:
        """Have somebody else take the lease."""
        self.lease.release(self.epoch)
        self.holder += "'"
        return self.epoch

    @property
    def backends(self) -> dict[str, tuple[Backend, ...]]:
        return {revision: (backend_of(self.place, revision),) for revision in (STABLE, CANDIDATE)}

    def get(self, kind: str, name: str | None = None) -> dict[str, Any]:
        return self.kube.get(kind, name or self.app.name, self.app.namespace)

    def find(self, kind: str, name: str | None = None) -> dict[str, Any] | None:
        return self.kube.find(kind, name or self.app.name, self.app.namespace)

    def create(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        return self.kube.create(dict(manifest), self.app.namespace)

    def add_revision(self, revision: str, replicas: int = BEGUN_WITH, **annotations: str) -> None:
        """Start a revision's pods, and wait until they are ready, but for those that are told never to be."""
        name, labels = self.app.of(revision), self.app.pods_of(revision)
        pod = {
            "metadata": {"labels": labels, "annotations": {ANNOTATION_REVISION: revision, **annotations}},
            "spec": {"containers": [{"name": "server", "image": "server:1"}]},
        }
        spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": pod}
        self.create(self.place.labelled("Deployment", "apps/v1", name, spec=spec))
        ports = [{"name": "http", "port": 8000}, {"name": "grpc", "port": 8001}]
        self.create(self.place.labelled("Service", "v1", name, spec={"selector": labels, "ports": ports}))
        if not annotations:
            wait_for(lambda: len(self.addresses(name)) == replicas, what=f"{name} does not become ready")

    def remove_routes(self) -> None:
        """Delete all that routes requests but the revisions' own Services, with what follows from it."""
        own = {self.app.of(revision) for revision in (STABLE, CANDIDATE)}
        for kind in ("HTTPRoute", "GRPCRoute", "VirtualService", "Service"):
            for found in self.kube.list(kind, self.app.namespace):
                if found["metadata"]["name"] not in own:
                    self.kube.delete(kind, found["metadata"]["name"], self.app.namespace)
        wait_for(lambda: not self.addresses(self.app.name), what="the endpoints of what was deleted stay")

    def addresses(self, service: str) -> list[str]:
        """Return the names of the pods that a Service reaches, as the nodes' own proxies know them."""
        label = f"kubernetes.io/service-name={service}"
        slices = self.kube.list("EndpointSlice", self.app.namespace, label)
        endpoints = [one for found in slices for one in found.get("endpoints") or ()]
        return [one["targetRef"]["name"] for one in endpoints if one["conditions"]["ready"]]

    def through_service(self, service: str, times: int = 1) -> list[str | None]:
        """Open so many connections to a Service at this moment, and return the revisions of the pods they come to."""
        pods = self.addresses(service)
        if not pods:
            return [None] * times
        return [self._revision_of(pod) for pod in random.choices(pods, k=times)]

    def through(self, weights: Mapping[str, int], times: int = 1) -> list[str | None]:
        """Send so many requests at this moment where a route has these weights by Service."""
        if not sum(weights.values()):
            return [None] * times
        chosen = Counter(random.choices(list(weights), list(weights.values()), k=times))
        answered: list[str | None] = []
        for service, count in chosen.items():
            found = self.through_service(service, count)
            assert None not in found, f"{service} has no pods"
            answered += found
        return answered

    def _revision_of(self, pod: str) -> str:
        return next(one for one in (STABLE, CANDIDATE) if pod.startswith(f"{self.app.of(one)}-"))


class RoutersInACluster(RouterConformance):
    """What all of them have: the lease of the cluster's app, and answers that are told from one look at the objects."""

    pause = 0.02
    cluster: Cluster

    def epoch(self, router: TrafficRouter) -> int:
        return self.cluster.epoch

    def take_over(self, router: TrafficRouter) -> int:
        return self.cluster.take_over()

    def ask(self, router: TrafficRouter) -> str | None:
        return self.ask_many(router, 1)[0]
