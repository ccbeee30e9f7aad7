"""Targets with an engine in a cluster: one process hands over and follows, and `down` does not come in between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import support_kubernetes
from shipctl.errors import LockedError
from shipctl.processes import own_name
from shipctl.release.options import StrategyInputs
from shipctl.release.references import validated
from shipctl.release.rollout import RolloutState
from shipctl.release.stage import StrategyStage
from shipctl.release.strategy import Strategy
from shipctl.release.target import StaleEpochError
from shipctl.stages.base import Phase
from shipctl_plugins._engines.cluster import ClusterEngine
from shipctl_plugins._kubernetes.manifests.options import KubernetesOptions
from shipctl_plugins.deploy.canary import Canary
from shipctl_plugins.targets.argo_rollouts import ArgoRollouts, ArgoRolloutsOptions
from shipctl_plugins.targets.kserve import Kserve, KserveOptions
from support_cluster import CLUSTER, ControlPlane, Kube
from support_kubernetes import NEW, OLD

pytestmark = [CLUSTER, pytest.mark.slow]

DRIVER = "builder-7:4711:1:another-boot"
ENGINES: dict[str, tuple[type[ClusterEngine], type[KubernetesOptions]]] = {
    "argo-rollouts": (ArgoRollouts, ArgoRolloutsOptions),
    "kserve": (Kserve, KserveOptions),
}
LEASE = "Lease", "shop-release"
Make = Callable[[], ClusterEngine]


@pytest.fixture(params=list(ENGINES))
def name(request: pytest.FixtureRequest) -> str:
    """The target's name."""
    return str(request.param)


@pytest.fixture
def given(control_plane: ControlPlane, namespace: str) -> dict[str, Any]:
    """Its options."""
    return {
        "kubeconfig": str(control_plane.kubeconfig),
        "namespace": namespace,
        "name": "shop",
        "modelRepository": "s3://models/repositories",
    }


@pytest.fixture
def make(name: str, given: dict[str, Any], tmp_path: Path) -> Make:
    """Return a function: the target as a process would open it."""
    cls, model = ENGINES[name]

    def made() -> ClusterEngine:
        return cls(validated(model, given, "target"), support_kubernetes.context(tmp_path, NEW))

    return made


@contextmanager
def driving(target: ClusterEngine) -> Iterator[None]:
    """Have somebody on another machine hold the lease, and renew it as a driver does between its steps."""
    end = threading.Event()
    target.acquire(DRIVER)

    def renew() -> None:
        while not end.wait(0.3):
            target.acquire(DRIVER)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def test_a_release_that_somebody_drives_is_not_taken_away(
    make: Make, tmp_path: Path, kube: Kube, namespace: str
) -> None:
    one = make()
    one.submit(support_kubernetes.candidate(tmp_path, "1.0.0", OLD), Strategy(name="canary"))
    engine = one.kind.name, "shop", namespace
    with driving(one):
        with pytest.raises(LockedError, match=f"^{DRIVER} holds the target") as error:
            make().down()
        assert error.value.exit_code == 8
        assert kube.exists(*engine)
    one.release(one.acquire(DRIVER))
    lines = list(make().down())
    assert lines[0] == f"{one.kind.name} shop was deleted"
    assert lines[-1] == "Lease shop-release was deleted"
    assert not kube.exists(*engine)
    assert list(make().down()) == []


def test_who_drives_has_the_lease_and_nobody_else_takes_a_step(
    name: str, make: Make, given: dict[str, Any], tmp_path: Path, kube: Kube, namespace: str
) -> None:
    target = {"uses": name, "with": given}
    options = {"target": target, "analysis": None, "steps": [{"setWeight": 50}]}
    made = support_kubernetes.candidate(tmp_path, "1.0.0", OLD)
    assert made.golden is not None
    inputs = StrategyInputs(repository=made.repository, golden=made.golden)
    ctx = support_kubernetes.context(tmp_path, OLD, aborted=lambda: "enough")
    stage: StrategyStage[Any] = Canary(Canary.options_model.model_validate(options))
    with driving(make()):
        state, step = stage.step(RolloutState(), inputs, ctx)
        assert (state, step.phase) == (RolloutState(), Phase.PENDING)
        assert step.message.startswith(f"{DRIVER} holds the target")
        state, step = stage.abort(RolloutState(), inputs, ctx)
        assert step.message.startswith(f"{DRIVER} holds the target")
    other = make()
    other.release(other.acquire(DRIVER))
    state, step = stage.step(RolloutState(), inputs, ctx)
    assert kube.get(*LEASE, namespace)["spec"]["holderIdentity"] == own_name()
    while not step.phase.is_final:
        state, step = stage.abort(state, inputs, ctx)
    assert kube.get(*LEASE, namespace)["spec"]["holderIdentity"] == "", "it is given back at the end"


def test_who_has_slept_while_another_took_over_does_nothing_more(
    name: str, make: Make, given: dict[str, Any], tmp_path: Path, kube: Kube, namespace: str
) -> None:
    options = {"target": {"uses": name, "with": given}, "analysis": None, "steps": [{"setWeight": 50}]}
    made = support_kubernetes.candidate(tmp_path, "1.0.0", OLD)
    assert made.golden is not None
    inputs = StrategyInputs(repository=made.repository, golden=made.golden)
    ctx = support_kubernetes.context(tmp_path, OLD)
    stage: StrategyStage[Any] = Canary(Canary.options_model.model_validate(options))
    state, _ = stage.step(RolloutState(), inputs, ctx)
    other = make()
    mine = other.acquire(own_name())
    other.release(mine)
    other.release(other.acquire(DRIVER))
    with pytest.raises(StaleEpochError, match="this process does not hold the target any more"):
        stage.step(state, inputs, ctx)
    assert not kube.exists(other.kind.name, "shop", namespace)
