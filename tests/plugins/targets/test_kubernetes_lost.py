"""The target `kubernetes` on a real control plane: what somebody deletes under a canary does not close the door."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from shipctl.errors import StageError
from shipctl.release.surge import Surge
from shipctl.release.target import Candidate, Shift
from shipctl.release.traffic import Traffic
from shipctl.stages.base import Phase, Step
from shipctl_plugins._kubernetes.state import load
from shipctl_plugins.deploy.canary import Canary
from support_cluster import CLUSTER, ControlPlane, Kube, wait_for
from support_kubernetes import (
    GATEWAY,
    NEW,
    OLD,
    MakeTarget,
    answered_by,
    answers_of,
    candidate,
    install,
    prepared,
    released,
)
from support_kubernetes_releases import Released, Releases

pytestmark = [CLUSTER, pytest.mark.slow, pytest.mark.timeout(180)]
ROUTERS: dict[str, Any] = {"gateway-api": GATEWAY, "replicas": "replicas"}
CONFIG, STABLE = ("ConfigMap", "shop-release"), "shop-aaaaaaaaaa"
HALF = Traffic(weights={OLD: 50, NEW: 50}, fallback=OLD)


@pytest.fixture(params=list(ROUTERS))
def release(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    control_plane: ControlPlane,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Released:
    """A canary that stays at 50 % of the requests until somebody aborts it."""
    install(monkeypatch, kubernetes="support_kubernetes:Quick")
    releases = Releases(tmp_path, control_plane, namespace, router=ROUTERS[request.param])
    releases.first()
    steps = [{"setWeight": 50}, {"pause": {"duration": "10m"}}]
    made = releases.begin(Canary, "2.0.0", NEW, steps=steps, abortScaleDownDelay="0s", scaleDownDelay="0s")
    until(made, "50 % of the requests go to")
    return made


def until(release: Released, seen: str, seconds: float = 60.0) -> Step:
    """Take steps until one says ``seen``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        release.state, step = release.stage.step(release.state, release.inputs, release.context)
        release.steps.append(step)
        if seen in step.message:
            return step
        assert step.phase is not Phase.ABORTING, step.message
        time.sleep(min(step.requeue, 0.2))
    raise AssertionError([each.message for each in release.steps[-5:]])


def aborted(release: Released) -> Step:
    """Abort it and return the last step."""
    release.aborted = "somebody wants that"
    return release.run()


def test_a_canary_whose_state_is_deleted_goes_on_and_back(
    release: Released, kube: Kube, namespace: str
) -> None:
    kube.delete(*CONFIG, namespace)
    until(release, "50 % of the requests go to")
    assert kube.exists(*CONFIG, namespace)
    assert release.target.observe().stable == OLD
    step = aborted(release)
    assert (step.phase, answered_by(kube, namespace)) == (Phase.ROLLED_BACK, OLD), release.steps[-4:]
    assert step.message.startswith("1.0.0 ")
    assert not kube.exists("Deployment", "shop-bbbbbbbbbb", namespace), "it is left as an orphan"


def test_an_abort_after_the_state_was_deleted_closes_no_door(
    release: Released, kube: Kube, namespace: str
) -> None:
    kube.delete(*CONFIG, namespace)
    assert aborted(release).phase is Phase.ROLLED_BACK, release.steps[-4:]
    assert answered_by(kube, namespace) == OLD


def test_a_canary_brings_back_the_stable_revision_that_somebody_deletes(
    release: Released, kube: Kube, namespace: str
) -> None:
    made = kube.get("Deployment", STABLE, namespace)["spec"]
    for kind in ("Deployment", "Service"):
        kube.delete(kind, STABLE, namespace)
    wait_for(lambda: OLD not in release.target.observe().replicas)
    wait_for(lambda: until(release, "").message and release.target.observe().ready(OLD), 60)
    assert kube.get("Deployment", STABLE, namespace)["spec"] == made
    assert kube.exists("Service", STABLE, namespace)
    step = aborted(release)
    assert (step.phase, answered_by(kube, namespace)) == (Phase.ROLLED_BACK, OLD), release.steps[-4:]


def test_an_abort_brings_back_the_stable_revision_that_somebody_deleted(
    release: Released, kube: Kube, namespace: str
) -> None:
    kube.delete("Deployment", STABLE, namespace)
    step = aborted(release)
    assert step.phase is Phase.ROLLED_BACK, release.steps[-4:]
    wait_for(lambda: release.target.observe().ready(OLD))
    assert answered_by(kube, namespace) == OLD
    assert release.target.observe().traffic == Traffic.only(OLD)


@pytest.mark.parametrize("noted", [True, False], ids=["of now", "made before there were notes"])
def test_what_is_known_of_a_revision_comes_back_with_the_state(
    make_target: MakeTarget, tmp_path: Path, kube: Kube, namespace: str, *, noted: bool
) -> None:
    keda = {"engine": "keda", "serverAddress": "http://prometheus:9090"}
    target = make_target(OLD, router="service", autoscaling=keda)
    released(target, candidate(tmp_path, "1.0.0", OLD, "net", 7))
    before, made = target.status(), load(target.place)[0]
    if not noted:
        notes = dict.fromkeys(["shipctl.dev/model", "shipctl.dev/model-version", "shipctl.dev/autoscaled"])
        kube.patch("Deployment", STABLE, namespace, {"metadata": {"annotations": notes}})
    pods = kube.get("Deployment", STABLE, namespace)["spec"]["template"]
    kube.delete(*CONFIG, namespace)
    target.observe()
    (serving,), entry = target.status(), load(target.place)[0].entries[OLD]
    assert entry.autoscaled
    assert (serving.name, target.versions()) == (("net", {OLD: "7"}) if noted else ("digits", {OLD: "1"}))
    if noted:
        assert serving.model_copy(update={"since": 0.0}) == before[0].model_copy(update={"since": 0.0})
        unknown = {"rendered": entry.rendered, "since": entry.since}
        assert entry == made.entries[OLD].model_copy(update=unknown)
    assert kube.get("Deployment", STABLE, namespace)["spec"]["template"] == pods


@pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS)
def test_where_nothing_says_what_was_stable_the_traffic_stays(
    make_target: MakeTarget, old: Candidate, new: Candidate, kube: Kube, namespace: str, router: Any
) -> None:
    target = make_target(router=router)
    epoch = released(target, old)
    prepared(target, new, epoch)
    target.apply(Shift(traffic=HALF), new, epoch)
    wait_for(lambda: target.observe().traffic.weight(NEW) == 50)
    kind = "HTTPRoute" if router == GATEWAY else "Service"
    kube.patch(kind, "shop", namespace, {"metadata": {"annotations": {"shipctl.dev/traffic": None}}})
    kube.delete(*CONFIG, namespace)
    said = (
        rf"^the ConfigMap shop-release of {namespace}, which says what is stable, is gone, and what divides the "
        r"requests does not say it either: aaaaaaaaaaaa \(50 %\), bbbbbbbbbbbb \(50 %\); traffic is left as it is\."
    )
    for act in (Shift(traffic=Traffic()), Shift(traffic=Traffic.only(NEW), surge=Surge())):
        with pytest.raises(StageError, match=said):
            target.apply(act, new, epoch)
    with pytest.raises(StageError, match=said):
        target.observe()
    assert set(answers_of(kube, namespace, 60)) == {OLD, NEW}
    assert target.down()
