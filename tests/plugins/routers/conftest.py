"""An app on the control plane, with two revisions or none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shipctl.release.lease import FileLease
from shipctl.release.router import Backend
from shipctl_plugins._kubernetes.api.access import Access
from shipctl_plugins._kubernetes.api.connection import connect
from shipctl_plugins._kubernetes.app import App, Place
from support_cluster import ControlPlane, Kube, fresh_namespace
from support_routers import CANDIDATE, STABLE, Cluster


@pytest.fixture
def empty(control_plane: ControlPlane, kube: Kube, namespace: str, tmp_path: Path) -> Iterator[Cluster]:
    """An app without any revision."""
    with connect(Access(kubeconfig=str(control_plane.kubeconfig), namespace=namespace), tmp_path) as cluster:
        app = App(name="digits", namespace=namespace, pipeline="digits")
        yield Cluster(kube, Place(cluster, app), FileLease(tmp_path / "lease.json"))


@pytest.fixture(scope="session")
def revisions(
    control_plane: ControlPlane, kube: Kube, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """An app with two revisions, whose pods are ready and which nobody changes, and without anything that routes."""
    namespace, folder = fresh_namespace(kube), tmp_path_factory.mktemp("revisions")
    with connect(Access(kubeconfig=str(control_plane.kubeconfig), namespace=namespace), folder) as cluster:
        app = App(name="digits", namespace=namespace, pipeline="digits")
        found = Cluster(kube, Place(cluster, app), FileLease(folder / "lease.json"))
        found.add_revision(STABLE)
        found.add_revision(CANDIDATE)
        yield found


@pytest.fixture
def cluster(revisions: Cluster, tmp_path: Path) -> Iterator[Cluster]:
    """An app with two revisions, whose pods are ready; what routes requests is the test's own.

    For tests that move requests, and no pods.
    """
    yield Cluster(revisions.kube, revisions.place, FileLease(tmp_path / "lease.json"))
    revisions.remove_routes()


@pytest.fixture
def backends(cluster: Cluster) -> dict[str, tuple[Backend, ...]]:
    return cluster.backends
