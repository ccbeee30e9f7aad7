"""An app in a real cluster for the tests of routers, and what a data plane would make of the objects there."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shipctl.release.lease import FileLease
from shipctl.release.router import Backend, RouterContext, TrafficRouter
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

    def addresses(self, service: str) -> list[str]:
        """Return the names of the pods that a Service reaches, as the nodes' own proxies know them."""
        label = f"kubernetes.io/service-name={service}"
        slices = self.kube.list("EndpointSlice", self.app.namespace, label)
        endpoints = [one for found in slices for one in found.get("endpoints") or ()]
        return [one["targetRef"]["name"] for one in endpoints if one["conditions"]["ready"]]

    def through_service(self, service: str) -> str | None:
        """Send a connection to a Service, and return the revision of the pod that it comes to."""
        pods = self.addresses(service)
        if not pods:
            return None
        pod = random.choice(pods)
        return next(one for one in (STABLE, CANDIDATE) if pod.startswith(f"{self.app.of(one)}-"))

    def through(self, weights: Mapping[str, int]) -> str | None:
        """Send a request where a route has these weights by Service."""
        if not sum(weights.values()):
            return None
        service = random.choices(list(weights), list(weights.values()))[0]
        answered = self.through_service(service)
        assert answered is not None, f"{service} has no pods"
        return answered
