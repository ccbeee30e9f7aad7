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
from support_cluster import ControlPlane, Kube
from support_routers import CANDIDATE, STABLE, Cluster


@pytest.fixture
def empty(control_plane: ControlPlane, kube: Kube, namespace: str, tmp_path: Path) -> Iterator[Cluster]:
    """An app without any revision."""
    with connect(Access(kubeconfig=str(control_plane.kubeconfig), namespace=namespace), tmp_path) as cluster:
        app = App(name="digits", namespace=namespace, pipeline="digits")
        yield Cluster(kube, Place(cluster, app), FileLease(tmp_path / "lease.json"))


@pytest.fixture
def cluster(empty: Cluster) -> Cluster:
    """An app with two revisions, whose pods are ready."""
    empty.add_revision(STABLE)
    empty.add_revision(CANDIDATE)
    return empty


@pytest.fixture
def backends(cluster: Cluster) -> dict[str, tuple[Backend, ...]]:
    return cluster.backends
