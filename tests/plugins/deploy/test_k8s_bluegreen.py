"""The stage `k8s-bluegreen`: on a target in memory, and on a real control plane."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import support_kubernetes
from shipctl.release.references import validated
from shipctl.stages.base import Phase
from shipctl_plugins.deploy.k8s_bluegreen import K8sBluegreen, K8sBluegreenOptions
from support_cluster import CLUSTER, ControlPlane, Kube
from support_kubernetes import GATEWAY, NEW, OLD
from support_kubernetes_releases import Releases, Watcher
from support_strategy import Serve, StartRelease


def test_it_releases_to_kubernetes_unless_another_target_is_named() -> None:
    assert K8sBluegreen(K8sBluegreenOptions()).target() == "kubernetes"
    assert K8sBluegreen(validated(K8sBluegreenOptions, {"target": "local"}, "x")).target() == "local"


def test_it_goes_as_bluegreen_does(serving: Serve, start_release: StartRelease) -> None:
    serving()
    release = start_release(K8sBluegreen, "2.0.0", analysis=None, scaleDownDelay="0s")
    assert release.run().phase is Phase.DONE, release.steps[-3:]
    assert release.world.acts == [
        "prepare", "preflight", "shift 1.0.0:100", "shift 2.0.0:100", "commit 2.0.0", "shift 2.0.0:100",
        "scale-down 1.0.0",
    ]  # fmt: skip


@CLUSTER
@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("router", ["service", GATEWAY], ids=["service", "gateway"])
def test_it_switches_at_once_and_keeps_all_of_the_old_one_until_then(
    installed: None, tmp_path: Path, control_plane: ControlPlane, namespace: str, kube: Kube, router: Any
) -> None:
    releases = Releases(tmp_path, control_plane, namespace, router=router)
    releases.first()
    release = releases.begin(K8sBluegreen, "2.0.0", NEW, scaleDownDelay="1s")
    with Watcher(kube, namespace) as watcher:
        last = release.run()
    assert last.phase is Phase.DONE, [step.message for step in release.steps[-5:]]
    assert (watcher.most, watcher.least) == (4, 2)
    assert support_kubernetes.answered_by(kube, namespace) == NEW
    assert not kube.exists("Service", "shop-preview", namespace)


@CLUSTER
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_an_abort_after_the_promotion_goes_back_to_what_is_warm(
    installed: None, tmp_path: Path, control_plane: ControlPlane, namespace: str, kube: Kube
) -> None:
    releases = Releases(tmp_path, control_plane, namespace, router="service")
    releases.first()
    release = releases.begin(K8sBluegreen, "2.0.0", NEW, scaleDownDelay="60s")
    last = release.run(abort_after="is the stable revision;")
    assert last.phase is Phase.ROLLED_BACK, [step.message for step in release.steps[-5:]]
    assert support_kubernetes.answered_by(kube, namespace) == OLD
    assert {each["metadata"]["name"] for each in kube.list("Deployment", namespace)} == {"shop-aaaaaaaaaa"}


@CLUSTER
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_first_release_that_does_not_start_leaves_the_door_closed(
    installed: None, tmp_path: Path, control_plane: ControlPlane, namespace: str, kube: Kube
) -> None:
    releases = Releases(tmp_path, control_plane, namespace, router="service")
    broken = {"podAnnotations": {"fake-kubelet/waiting": "ImagePullBackOff"}}
    release = releases.begin(K8sBluegreen, "1.0.0", OLD, progressDeadline="2s", pods=broken)
    last = release.run()
    assert last.phase is Phase.REJECTED, [step.message for step in release.steps[-5:]]
    assert any(
        "ImagePullBackOff: image nvcr.io/nvidia/tritonserver" in step.message for step in release.steps
    )
    assert support_kubernetes.answered_by(kube, namespace) is None
    assert kube.list("Deployment", namespace) == []
