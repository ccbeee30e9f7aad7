"""A real Kubernetes control plane for tests: the fixtures, and what tests do with it again and again.

Tests that use it carry :data:`CLUSTER`; they are skipped where it cannot be had.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from support_control_plane import (
    LIMITED,
    ControlPlane,
    shared_control_plane,
    why_no_control_plane,
    write_kubeconfig,
)
from support_kube import Kube

__all__ = [
    "CLUSTER",
    "LIMITED",
    "ControlPlane",
    "Kube",
    "control_plane",
    "deployment",
    "fresh_namespace",
    "kube",
    "kubectl",
    "namespace",
    "quota",
    "user_kubeconfig",
    "wait_for",
    "why_no_control_plane",
]

CLUSTER = pytest.mark.cluster

T = TypeVar("T")


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One control plane for all workers of the test session, started by the first that asks."""
    reason = why_no_control_plane()
    if reason:
        pytest.skip(reason)
    base = tmp_path_factory.getbasetemp()
    with shared_control_plane(
        (base.parent if base.name.startswith("popen-") else base) / "kubernetes"
    ) as plane:
        yield plane


@pytest.fixture(scope="session")
def kube(control_plane: ControlPlane) -> Iterator[Kube]:
    """The cluster, seen by a user who may do everything."""
    with Kube(control_plane.kubeconfig) as kube:
        yield kube


@pytest.fixture
def namespace(kube: Kube) -> str:
    """A namespace of the test's own."""
    return fresh_namespace(kube)


def fresh_namespace(kube: Kube) -> str:
    """Create a namespace and return its name.

    It stays: to delete one, the controllers ask for all kinds of objects in it, which costs more than most tests, and
    the whole control plane is thrown away in the end.
    """
    name = f"test-{secrets.token_hex(4)}"
    kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name


def wait_for(check: Callable[[], T], seconds: float = 20.0, what: str = "") -> T:
    """Return what ``check`` returns as soon as it is true; an object that is not there (404) is not there yet."""
    begin = time.monotonic()
    until = begin + seconds
    while True:
        with _gone_already():
            value = check()
            if value:
                return value
        assert time.monotonic() < until, f"after {seconds:g} s: {what or 'nothing'}"
        time.sleep(0.05 if time.monotonic() < begin + 1 else 0.1)


def kubectl(control_plane: ControlPlane, *args: str, stdin: str | None = None) -> str:
    """Run kubectl as a user who may do everything, and return what it prints; skips without one."""
    ours = Path(os.environ.get("KUBEBUILDER_ASSETS", "")) / "kubectl"
    program = str(ours) if os.access(ours, os.X_OK) else shutil.which("kubectl")
    if program is None:
        pytest.skip("there is no kubectl: make kube")
    command = [program, f"--kubeconfig={control_plane.kubeconfig}", *args]
    home = {"HOME": str(control_plane.folder)}  # where it caches what it discovers
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **home},
    )
    assert done.returncode == 0, f"kubectl {' '.join(args)}: {done.stderr}"
    return done.stdout


def user_kubeconfig(
    control_plane: ControlPlane, folder: Path, name: str, rules: Sequence[Mapping[str, Any]], namespace: str
) -> Path:
    """Return the kubeconfig of one of :data:`LIMITED`, who may do in ``namespace`` what ``rules`` say, and no more.

    ``rules`` are a Role's, with `apiGroups`, `resources` and `verbs`. Called again, they replace the former ones.
    """
    metadata = {"name": name, "namespace": namespace}
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": metadata,
        "rules": list(rules),
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": metadata,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}],
    }
    path = folder / f"{name}.kubeconfig"
    write_kubeconfig(path, control_plane.url, control_plane.ca, control_plane.users[name], namespace)
    with Kube(control_plane.kubeconfig) as admin:
        admin.apply(role, force=True)
        admin.apply(binding, force=True)
    with Kube(path) as user:
        wait_for(lambda: _may(user, namespace, rules), what=f"{name} has not got the role's rights")
    return path


def quota(kube: Kube, namespace: str, hard: Mapping[str, str]) -> None:
    """Limit what a namespace may use; returns when the limit is in force."""
    limits = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "limits"},
        "spec": {"hard": dict(hard)},
    }
    kube.create(limits, namespace)

    def in_force() -> bool:
        found: dict[str, Any] = kube.get("ResourceQuota", "limits", namespace)
        return bool(found.get("status", {}).get("hard") == hard)

    wait_for(in_force, what=f"the quota of {namespace} is not in force")


def deployment(
    name: str,
    *,
    replicas: int = 1,
    image: str = "server:1",
    annotations: Mapping[str, str] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """Return a small Deployment; ``annotations`` are the pods' and tell the fake kubelet what becomes of them."""
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels, "annotations": dict(annotations or {})},
                "spec": {"containers": [{"name": "server", "image": image}]},
            },
            **spec,
        },
    }


def _may(user: Kube, namespace: str, rules: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the API server's authorizer has seen the newest role: it follows a little later."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "metadata": {"name": ""},
        "spec": {"namespace": namespace},
    }
    seen = user.create(review)["status"]["resourceRules"]
    return all(any(_same(rule, other) for other in seen) for rule in rules)


def _same(rule: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    parts = ("verbs", "apiGroups", "resources", "resourceNames")
    return all(sorted(rule.get(part, [])) == sorted(other.get(part, [])) for part in parts)


@contextmanager
def _gone_already() -> Iterator[None]:
    from kubernetes.client import ApiException

    try:
        yield
    except ApiException as exc:
        if exc.status != 404:
            raise
