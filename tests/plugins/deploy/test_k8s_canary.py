"""The stage `canary` on a real control plane: the same stage as everywhere, with what a cluster makes of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import support_kubernetes
from shipctl.stages.base import Phase
from shipctl_plugins.deploy.canary import Canary
from support_cluster import CLUSTER, ControlPlane, Kube
from support_kubernetes import GATEWAY, NEW, OLD
from support_kubernetes_releases import Releases, Watcher

pytestmark = [CLUSTER, pytest.mark.slow, pytest.mark.timeout(180)]

STEPS = [{"setWeight": 5}, {"pause": {"duration": "1s"}}, {"setWeight": 50}, {"pause": {"duration": "1s"}}]


@pytest.mark.parametrize(
    ("router", "shares"),
    [(GATEWAY, ["5 % of", "50 % of"]), ("replicas", ["33 % of", "50 % of"])],
    ids=["gateway", "replicas"],
)
def test_it_goes_up_by_the_shares_that_the_router_has(
    installed: None, tmp_path: Path, control_plane: ControlPlane, namespace: str, kube: Kube, router: Any,
    shares: list[str],
) -> None:  # fmt: skip
    releases = Releases(tmp_path, control_plane, namespace, router=router)
    releases.first()
    release = releases.begin(Canary, "2.0.0", NEW, steps=STEPS, scaleDownDelay="0s")
    with Watcher(kube, namespace) as watcher:
        last = release.run()
    said = [step.message for step in release.steps]
    assert last.phase is Phase.DONE, "\n".join(said)
    for share in shares:
        assert any(line.startswith(share) for line in said), "\n".join(said)
    assert watcher.least >= 2, "the stable revision had fewer than all of its pods"
    assert support_kubernetes.answered_by(kube, namespace) == NEW


@pytest.mark.parametrize("router", [GATEWAY, "replicas"], ids=["gateway", "replicas"])
@pytest.mark.parametrize("when", ["preflight of", "33 % of|5 % of", "50 % of", "is the stable revision;"])
def test_an_abort_goes_back_from_every_step(
    installed: None,
    tmp_path: Path,
    control_plane: ControlPlane,
    namespace: str,
    kube: Kube,
    router: Any,
    when: str,
) -> None:
    releases = Releases(tmp_path, control_plane, namespace, router=router)
    releases.first()
    release = releases.begin(Canary, "2.0.0", NEW, steps=STEPS, scaleDownDelay="60s")
    last = release.run(abort_after=when)
    said = [step.message for step in release.steps]
    assert last.phase in {Phase.ROLLED_BACK, Phase.REJECTED}, "\n".join(said)
    assert set(support_kubernetes.answers_of(kube, namespace, 10)) == {OLD}
    assert {each["metadata"]["name"] for each in kube.list("Deployment", namespace)} == {"shop-aaaaaaaaaa"}
