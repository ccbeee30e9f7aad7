"""Releases to a real control plane, driven as the engine drives them, and somebody who watches the pods."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

import support_kubernetes
from shipctl.release.options import StrategyInputs
from shipctl.release.references import validated
from shipctl.release.rollout import RolloutState
from shipctl.release.stage import StrategyStage
from shipctl.release.target import Target
from shipctl.stages.base import Phase, Step
from shipctl.stages.context import ReleaseContext
from shipctl_plugins._kubernetes.pods import is_ending, is_ready
from shipctl_plugins.deploy.k8s_bluegreen import K8sBluegreen
from support_cluster import ControlPlane, Kube
from support_kubernetes import OLD

_SERVERS = "app.kubernetes.io/component=server"


class Watcher:
    """Somebody who follows all pods of the model, and notes how many there are and how many are ready."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self._kube, self._namespace = kube, namespace
        found = kube.request("GET", kube.path("Pod", namespace), labelSelector=_SERVERS)
        self._version: str = found["metadata"]["resourceVersion"]
        self._pods = {pod["metadata"]["name"]: pod for pod in found["items"]}
        self.most, self.least = 0, 1000
        self._end = threading.Event()
        self._failed: list[Exception] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._count()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it, once it has seen all that has become of them."""
        self._end.set()
        self._thread.join()
        assert not self._failed, f"{self._failed[0]}"

    def _run(self) -> None:
        try:
            while not self._end.is_set():
                self._follow()
        except Exception as exc:  # noqa: BLE001  (told by the thread that waits)
            self._failed.append(exc)

    def _follow(self) -> None:
        """Note each change in turn, for a second."""
        since = {"labelSelector": _SERVERS, "resourceVersion": self._version}
        for happened, pod in self._kube.watch("Pod", self._namespace, seconds=1, **since):
            about = pod["metadata"]
            self._version = about["resourceVersion"]
            if happened == "DELETED":
                self._pods.pop(about["name"], None)
            else:
                self._pods[about["name"]] = pod
            self._count()

    def _count(self) -> None:
        pods = self._pods.values()
        self.most = max(self.most, sum(not is_ending(pod) for pod in pods))
        self.least = min(self.least, sum(is_ready(pod) for pod in pods))


@dataclass
class Released:
    """One release as the engine drives it, in real time."""

    stage: StrategyStage[Any]
    inputs: StrategyInputs
    context: ReleaseContext
    state: RolloutState = field(default_factory=RolloutState)
    steps: list[Step] = field(default_factory=list)
    aborted: str | None = None

    @property
    def target(self) -> Target:
        """The target as the stage has it."""
        run = self.stage._running
        assert run is not None
        return run.target

    def run(self, *, abort_after: str = "") -> Step:
        """Take steps until it is over; somebody aborts after a step that says ``abort_after`` (this|or that)."""
        until = time.monotonic() + 90
        while time.monotonic() < until:
            aborting = bool(self.steps) and self.steps[-1].phase is Phase.ABORTING
            act = self.stage.abort if aborting else self.stage.step
            self.state, step = act(self.state, self.inputs, self.context)
            self.steps.append(step)
            if step.phase.is_final:
                return step
            if abort_after and any(text in step.message for text in abort_after.split("|")):
                self.aborted = "somebody wants that"
            time.sleep(min(step.requeue, 0.4))
        raise AssertionError([step.message for step in self.steps[-5:]])


class Releases:
    """Releases of one pipeline to one namespace."""

    def __init__(self, folder: Path, plane: ControlPlane, namespace: str, **target: Any) -> None:
        self.folder, self.namespace = folder, namespace
        given = {"kubeconfig": str(plane.kubeconfig), "namespace": namespace, "name": "shop"}
        self.target = {**given, "modelRepository": "s3://models/repositories", **target}

    def begin(self, cls: type[StrategyStage[Any]], version: str, revision: str, **options: Any) -> Released:
        """Begin a release of a stage class."""
        made = support_kubernetes.candidate(self.folder, version, revision)
        pods = options.pop("pods", {})
        target = {"uses": "kubernetes", "with": {**self.target, **pods}}
        stage = cls(validated(cls.options_model, {"target": target, "analysis": None, **options}, "release"))
        assert made.golden is not None
        inputs = StrategyInputs(repository=made.repository, golden=made.golden)
        release = Released(stage, inputs, support_kubernetes.context(self.folder))
        release.context = support_kubernetes.context(
            self.folder, revision, version=version, aborted=lambda: release.aborted
        )
        return release

    def first(self) -> None:
        """Have version 1.0.0 serve."""
        release = self.begin(K8sBluegreen, "1.0.0", OLD, scaleDownDelay="0s")
        assert release.run().phase is Phase.DONE, release.steps[-3:]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target with a preflight that takes no time."""
    support_kubernetes.install(monkeypatch, kubernetes="support_kubernetes:Quick")
