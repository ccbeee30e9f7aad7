"""The target `kubernetes` for tests: on the real control plane, with a store that only its own machine sees.

No container runs there, so nobody answers requests. A request is what a client's kernel, or a gateway, would make of
the live objects: see :func:`answered_by`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest

from shipctl.release import references
from shipctl.release.references import validated
from shipctl.release.target import Candidate, Commit, Prepare, Shift
from shipctl.release.traffic import Traffic
from shipctl.spec.models import StoreSpec
from shipctl.stages.artifacts import TritonRepository
from shipctl.stages.context import ReleaseContext
from shipctl.stages.verdicts import Outcome, Verdict
from shipctl.testing.samples import SIGNATURE, sealed, tiny_dataset
from shipctl_plugins._kubernetes.app import ANNOTATION_REVISION
from shipctl_plugins._kubernetes.manifests.options import KubernetesOptions
from shipctl_plugins._kubernetes.preflight import Preflighter
from shipctl_plugins._triton.golden import Tolerance
from shipctl_plugins.targets.kubernetes import Kubernetes
from support_cluster import ControlPlane, Kube, wait_for

MakeTarget = Callable[..., "Quick"]
OLD, NEW = "a" * 64, "b" * 64
ROUTERS = {
    "gateway-api": "shipctl_plugins.routers.gateway_api:GatewayApi",
    "istio": "shipctl_plugins.routers.istio:Istio",
    "replicas": "shipctl_plugins.routers.replicas_ratio:ReplicasRatio",
    "service": "shipctl_plugins.routers.service_selector:ServiceSelector",
}
GATEWAY: dict[str, Any] = {"uses": "gateway-api", "with": {"gateways": [{"name": "web"}]}}


class Quick(Kubernetes):
    """The target with a preflight that takes no time."""

    outcome: ClassVar[Outcome] = Outcome.PASS

    @cached_property
    def preflighter(self) -> Preflighter:
        """Say what the test wants to hear."""

        def ask(
            candidate: Candidate, tolerance: Tolerance, timeout: float
        ) -> tuple[str, tuple[Verdict, ...]]:
            verdict = Verdict(gate="preflight", outcome=self.outcome, message="golden samples")
            return f"preflight of {candidate.version}", (verdict,)

        return ask


def install(monkeypatch: pytest.MonkeyPatch, **targets: str) -> None:
    """Install the routers, and targets by name, for one test."""
    found = references._installed
    points: dict[str, list[EntryPoint]] = {
        "shipctl.routers": [EntryPoint(name, value, "shipctl.routers") for name, value in ROUTERS.items()],
        "shipctl.targets": [EntryPoint(name, value, "shipctl.targets") for name, value in targets.items()],
    }

    def installed(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
        mine = {point.name: point for point in points.get(group, ())}
        return (*(point for point in found(group, path) if point.name not in mine), *mine.values())

    monkeypatch.setattr(references, "_installed", installed)


@pytest.fixture
def make_target(
    tmp_path: Path, control_plane: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> MakeTarget:
    """Return a function: the target as a process would open it that releases ``revision``."""
    install(monkeypatch)

    def make(revision: str = NEW, log: Callable[[str], None] = lambda _line: None, **given: Any) -> Quick:
        return Quick(options(control_plane, namespace, **given), context(tmp_path, revision, log=log))

    return make


@pytest.fixture
def old(tmp_path: Path) -> Candidate:
    """Version 1.0.0."""
    return candidate(tmp_path, "1.0.0", OLD)


@pytest.fixture
def new(tmp_path: Path) -> Candidate:
    """Version 2.0.0."""
    return candidate(tmp_path, "2.0.0", NEW)


def options(plane: ControlPlane, namespace: str, **given: Any) -> KubernetesOptions:
    """Return options of the target as a spec would give them."""
    common = {"kubeconfig": str(plane.kubeconfig), "namespace": namespace, "name": "shop"}
    return validated(
        KubernetesOptions, {**common, "modelRepository": "s3://models/repositories", **given}, "target"
    )


def context(folder: Path, revision: str = "", **given: Any) -> ReleaseContext:
    """Return what the target is told of a release."""
    store = StoreSpec(uri=(folder / "store").as_uri())
    base = ReleaseContext(
        project=folder, target_dir=folder / "targets" / "kubernetes", pipeline="digits", version="1.0.0",
        stage="release", revision=revision, run="run-1", log=lambda _line: None, store=store, base=folder,
    )  # fmt: skip
    return replace(base, **given)


def candidate(folder: Path, version: str, revision: str, model: str = "digits", number: int = 1) -> Candidate:
    """Return something to release; nobody loads it."""
    root = folder / "made" / f"{model}-{version}"
    (root / model / f"{number}").mkdir(parents=True, exist_ok=True)
    (root / model / f"{number}" / "model.onnx").write_text(f"{model} {version}")
    (root / model / "config.pbtxt").write_text(f'name: "{model}"\n')
    fields: dict[str, Any] = {"model": model, "signature": SIGNATURE, "max_batch_size": 8, "source": "0" * 64}
    repository = sealed(TritonRepository.at(root, **fields))
    return Candidate(revision, version, repository, tiny_dataset(folder / "data", "golden"))


def prepared(target: Kubernetes, candidate: Candidate, epoch: int) -> None:
    """Prepare a candidate and wait until it is ready."""
    target.apply(Prepare(), candidate, epoch)
    wait_for(lambda: target.observe().ready(candidate.revision), what=f"{target.observe().replicas}")


def released(target: Kubernetes, candidate: Candidate) -> int:
    """Release a candidate and return the epoch."""
    epoch = target.acquire("test")
    prepared(target, candidate, epoch)
    before = target.observe().stable
    target.apply(Shift(traffic=Traffic.only(candidate.revision)), candidate, epoch)
    target.apply(Commit(expected=before, revision=candidate.revision), candidate, epoch)
    return epoch


def answered_by(kube: Kube, namespace: str, app: str = "shop") -> str | None:
    """Send one request: return the revision that would answer it now, None where the door is closed.

    With an HTTPRoute, a gateway chooses among its backends by their weights, and then among the ready addresses
    of that Service; a backend without any answers 503, which is an error. Without a route, a node's kernel chooses
    among the ready addresses of the Service that clients use.
    """
    return answers_of(kube, namespace, 1, app)[0]


def answers_of(kube: Kube, namespace: str, times: int, app: str = "shop") -> list[str | None]:
    """Send so many requests at this moment, and return what :func:`answered_by` would for each."""
    weights = _weights(kube, namespace, app)
    if weights is None:
        pods = _pods_behind(kube, namespace, app)
        return list(random.choices(pods, k=times)) if pods else [None] * times
    if not any(weights.values()):
        return [None] * times
    answers: list[str | None] = []
    for service, count in Counter(random.choices(list(weights), list(weights.values()), k=times)).items():
        pods = _pods_behind(kube, namespace, service)
        assert pods, f"503: {service} has no endpoints"
        answers += random.choices(pods, k=count)
    return answers


def _weights(kube: Kube, namespace: str, app: str) -> Mapping[str, int] | None:
    """Return the weights of the route's default rule by Service; None if there is no route."""
    route = kube.find("HTTPRoute", app, namespace)
    if route is None:
        return None
    found: dict[str, int] = {}
    for rule in route["spec"]["rules"]:
        if any(match.get("headers") for match in rule.get("matches", [])):
            continue
        for backend in rule.get("backendRefs", []):
            found[backend["name"]] = found.get(backend["name"], 0) + backend.get("weight", 1)
    return found


def _pods_behind(kube: Kube, namespace: str, service: str) -> list[str]:
    """Return the revision of each ready address of a Service, as the nodes' own proxies know them."""
    if not kube.exists("Service", service, namespace):  # what is left of its endpoints goes a moment later
        return []
    slices = kube.list("EndpointSlice", namespace, f"kubernetes.io/service-name={service}")
    names = [
        endpoint["targetRef"]["name"]
        for found in slices
        for endpoint in found.get("endpoints") or []
        if endpoint["conditions"]["ready"]
    ]
    if not names:
        return []
    pods = {pod["metadata"]["name"]: pod for pod in kube.list("Pod", namespace)}
    return [pods[name]["metadata"]["annotations"][ANNOTATION_REVISION] for name in names if name in pods]
