"""The target `kubernetes` keeps what every target promises: on a real control plane, whose pods run nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import support_kubernetes
from shipctl.release.target import Candidate, Target
from shipctl.testing.targets import TargetConformance
from shipctl_plugins.targets.kubernetes import Kubernetes
from support_cluster import CLUSTER, ControlPlane, Kube
from support_kubernetes import GATEWAY, Quick

OLD, NEW = "a" * 64, "b" * 64

pytestmark = [CLUSTER, pytest.mark.slow]


class Conformance(TargetConformance):
    """With one router; `ask` is what a client would get of the live objects, since no real pod answers."""

    name, plugin = "kubernetes", Kubernetes
    router: Any = "replicas"
    patience = 30.0
    pause = 0.05

    @pytest.fixture(autouse=True)
    def _cluster(self, kube: Kube, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
        support_kubernetes.install(monkeypatch)
        self.kube, self.namespace = kube, namespace

    @pytest.fixture(autouse=True)
    def _emptied(self) -> None:
        """Leave what a test has left: its namespace is thrown away with the control plane.

        That `down` works is tested by its own tests.
        """

    @pytest.fixture
    def candidates(self, tmp_path: Path) -> tuple[Candidate, Candidate]:
        return (
            support_kubernetes.candidate(tmp_path, "1.0.0", OLD),
            support_kubernetes.candidate(tmp_path, "2.0.0", NEW),
        )

    @pytest.fixture
    def target(self, tmp_path: Path, control_plane: ControlPlane, namespace: str, _cluster: None) -> Target:
        given = support_kubernetes.options(control_plane, namespace, router=self.router)
        return Quick(given, support_kubernetes.context(tmp_path))

    def ask(self, target: Target) -> str | None:
        return support_kubernetes.answered_by(self.kube, self.namespace)

    def ask_many(self, target: Target, times: int) -> list[str | None]:
        return support_kubernetes.answers_of(self.kube, self.namespace, times)


class TestReplicas(Conformance):
    """Shares by numbers of pods."""

    router = "replicas"


class TestGateway(Conformance):
    """Weights of an HTTPRoute."""

    router = GATEWAY
