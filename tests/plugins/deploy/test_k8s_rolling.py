"""The stage `k8s-rolling`: on a target in memory, and once on a real control plane, whose pods somebody watches."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import support_kubernetes
from shipctl.errors import SpecError
from shipctl.release.references import validated
from shipctl.release.surge import Surge
from shipctl.stages.base import Phase
from shipctl_plugins._kubernetes.traffic.rolling import Group, Round, finished, next_round
from shipctl_plugins.deploy.k8s_rolling import K8sRolling, K8sRollingOptions
from support_cluster import CLUSTER, ControlPlane, Kube
from support_kubernetes import GATEWAY, NEW, OLD
from support_kubernetes_releases import Releases, Watcher
from support_strategy import Serve, StartRelease

# -- on a target in memory ------------------------------------------------------------------------------------


def test_it_releases_to_kubernetes_unless_another_target_is_named() -> None:
    assert K8sRolling(K8sRollingOptions()).target() == "kubernetes"
    assert K8sRolling(validated(K8sRollingOptions, {"target": "local"}, "k8s-rolling")).target() == "local"


def test_the_target_is_told_by_how_many(serving: Serve, start_release: StartRelease) -> None:
    serving()
    release = start_release(
        K8sRolling, "2.0.0", analysis=None, maxSurge=1, maxUnavailable="50%", scaleDownDelay="0s"
    )
    assert release.run().phase is Phase.DONE, release.steps[-3:]
    surge = Surge.model_validate({"maxSurge": 1, "maxUnavailable": "50%"})
    assert release.stage.strategy().surge == surge
    assert release.world.acts[0] == "prepare"
    assert release.world.acts[-1] == "scale-down 1.0.0"


def test_bounds_that_replace_nothing_are_refused() -> None:
    with pytest.raises(SpecError, match="maxSurge and maxUnavailable are both 0"):
        validated(K8sRollingOptions, {"maxSurge": 0, "maxUnavailable": 0}, "k8s-rolling")


# -- the rounds -----------------------------------------------------------------------------------------------


@dataclass
class Pods:
    """A controller that follows at once, and pods that become ready one look later."""

    to: int
    from_: int
    ready_to: int = 0
    broken_from: int = 0
    seen: list[tuple[int, int]] = field(default_factory=list)

    def look(self) -> tuple[Group, Group]:
        to = Group(asked=self.to, pods=self.to, ready=self.ready_to)
        from_ = Group(asked=self.from_, pods=self.from_, ready=max(0, self.from_ - self.broken_from))
        self.seen.append((to.pods + from_.pods, to.ready + from_.ready))
        self.ready_to = self.to
        return to, from_

    def follow(self, plan: Round) -> None:
        self.broken_from = max(0, self.broken_from - (self.from_ - plan.from_))  # the broken ones go first
        self.to, self.from_ = plan.to, plan.from_


@pytest.mark.parametrize("broken", [0, 1, 3])
@pytest.mark.parametrize(
    ("more", "fewer"), [(1, 0), (0, 1), ("25%", 0), ("25%", "25%"), (0, "100%"), ("100%", 0), (2, 3)]
)
@pytest.mark.parametrize("wanted", [1, 2, 3, 4, 7, 20])
def test_rounds_come_to_an_end_within_both_bounds(
    wanted: int, more: object, fewer: object, broken: int
) -> None:
    surge = Surge.model_validate({"maxSurge": more, "maxUnavailable": fewer})
    above, below = surge.of(wanted)
    pods = Pods(to=0, from_=wanted, broken_from=min(broken, wanted))
    least = min(wanted - below, wanted - pods.broken_from)
    for _ in range(200):
        to, from_ = pods.look()
        if finished(wanted, to, from_):
            break
        pods.follow(next_round(wanted, surge, to, from_))
    assert (pods.to, pods.from_) == (wanted, 0)
    assert max(count for count, _ in pods.seen) <= wanted + above
    assert min(ready for _, ready in pods.seen) >= least


def test_nothing_is_stopped_while_what_was_stopped_before_still_runs() -> None:
    surge = Surge.model_validate({"maxSurge": 1, "maxUnavailable": 1})
    to, from_ = Group(asked=2, pods=2, ready=2), Group(asked=2, pods=3, ready=3)
    assert next_round(4, surge, to, from_) == Round(to=2, from_=2)


def test_a_candidate_that_does_not_start_stops_nothing() -> None:
    surge = Surge.model_validate({"maxSurge": 1, "maxUnavailable": 0})
    to, from_ = Group(asked=1, pods=1, ready=0), Group(asked=4, pods=4, ready=4)
    assert next_round(4, surge, to, from_) == Round(to=1, from_=4)


# -- on a real control plane ----------------------------------------------------------------------------------


@CLUSTER
@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("router", "more", "fewer"),
    [("replicas", 1, 0), ("replicas", 0, 1), (GATEWAY, "25%", "25%")],
    ids=["replicas-one-more", "replicas-one-fewer", "gateway-both"],
)
def test_it_replaces_pods_within_both_bounds(
    installed: None, tmp_path: Path, control_plane: ControlPlane, namespace: str, kube: Kube, router: Any, more: Any,
    fewer: Any,
) -> None:  # fmt: skip
    wanted = 4
    releases = Releases(tmp_path, control_plane, namespace, router=router, replicas=wanted)
    releases.first()
    slow = {"podAnnotations": {"fake-kubelet/ready-after": "0.8"}}
    release = releases.begin(
        K8sRolling, "2.0.0", NEW, maxSurge=more, maxUnavailable=fewer, scaleDownDelay="0s", pods=slow
    )
    answered: list[str | None] = []
    with Watcher(kube, namespace) as watcher:
        last = release.run()
        answered.append(support_kubernetes.answered_by(kube, namespace))
    assert last.phase is Phase.DONE, "\n".join(step.message for step in release.steps)
    above, below = Surge.model_validate({"maxSurge": more, "maxUnavailable": fewer}).of(wanted)
    assert watcher.most <= wanted + above
    assert watcher.least >= wanted - below
    assert answered == [NEW]
    assert {each["metadata"]["name"] for each in kube.list("Deployment", namespace)} == {"shop-bbbbbbbbbb"}
    shared = [step.message for step in release.steps if "of 4 replicas are 2.0.0" in step.message]
    assert len(shared) >= 3, "it did not go in rounds"


@CLUSTER
@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("router", ["replicas", GATEWAY], ids=["replicas", "gateway"])
def test_on_the_way_back_the_bounds_hold_too(
    installed: None, tmp_path: Path, control_plane: ControlPlane, namespace: str, kube: Kube, router: Any
) -> None:
    wanted = 4
    releases = Releases(tmp_path, control_plane, namespace, router=router, replicas=wanted)
    releases.first()
    release = releases.begin(K8sRolling, "2.0.0", NEW, maxSurge=1, maxUnavailable=0, scaleDownDelay="0s")
    with Watcher(kube, namespace) as watcher:
        last = release.run(abort_after="3 of 4 replicas are 2.0.0")
    assert last.phase is Phase.ROLLED_BACK, [step.message for step in release.steps[-5:]]
    assert (watcher.most, watcher.least) == (wanted + 1, wanted)
    seen = release.target.observe()
    assert (seen.stable, seen.traffic.weights, seen.replicas[OLD].ready) == (OLD, {OLD: 100}, wanted)
    assert {each["metadata"]["name"] for each in kube.list("Deployment", namespace)} == {"shop-aaaaaaaaaa"}


@CLUSTER
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_pods_that_never_become_ready_cost_no_more_than_the_bounds(
    installed: None, tmp_path: Path, control_plane: ControlPlane, namespace: str, kube: Kube
) -> None:
    """With maxUnavailable alone, what serves gives up a replica for the first one, and gets it back."""
    releases = Releases(tmp_path, control_plane, namespace, replicas=3)
    releases.first()
    release = releases.begin(
        K8sRolling, "2.0.0", NEW, maxSurge=0, maxUnavailable=1, progressDeadline="3s",
        pods={"podAnnotations": {"fake-kubelet/never-ready": "true"}},
    )  # fmt: skip
    with Watcher(kube, namespace) as watcher:
        last = release.run()
    assert last.phase is Phase.REJECTED, [step.message for step in release.steps[-5:]]
    assert any("was not ready within 3s: 0 of 1 replicas are ready" in step.message for step in release.steps)
    assert (watcher.most, watcher.least) == (3, 2)
    seen = release.target.observe()
    assert (seen.replicas[OLD].wanted, set(seen.replicas)) == (3, {OLD})


@CLUSTER
def test_a_router_that_switches_at_once_is_refused_before_anything_moves(
    installed: None, tmp_path: Path, control_plane: ControlPlane, namespace: str
) -> None:
    releases = Releases(tmp_path, control_plane, namespace, router="service")
    releases.first()
    release = releases.begin(K8sRolling, "2.0.0", NEW)
    with pytest.raises(SpecError, match="the router service moves all requests at once"):
        release.run()
    assert set(release.target.observe().replicas) == {OLD}
