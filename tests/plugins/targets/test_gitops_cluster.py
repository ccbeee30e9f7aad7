"""Releases by commits that somebody applies to a real API server: who waits for what, and what stays rolled back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from shipctl.release.delegated import DelegatedTarget, Followed, Standing
from shipctl.release.following import Following
from shipctl.release.rollout import RolloutState
from shipctl.release.strategy import Strategy
from shipctl.release.target import Candidate
from shipctl.stages.base import Phase
from shipctl.testing import DelegatedConformance
from shipctl_plugins._kubernetes.app import LABEL_REVISION, short
from shipctl_plugins.targets.gitops import Gitops
from support_cluster import CLUSTER, ControlPlane, Kube, wait_for
from support_gitops import Open, Player, Remote, candidate, opener, quick_templates

pytestmark = [CLUSTER, pytest.mark.slow]

ROLLING = Strategy.model_validate({"name": "rolling", "scaleDownDelay": "0s", "preflight": False})
BLUEGREEN = Strategy.model_validate({"name": "bluegreen", "scaleDownDelay": "0s", "preflight": False})


def definition(group: str, version: str, kind: str, *, subresource: bool) -> dict[str, Any]:
    """Return a CustomResourceDefinition that takes anything."""
    plural = f"{kind.lower()}s"
    shape = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    served: dict[str, Any] = {
        "name": version,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": shape},
    }
    if subresource:
        served["subresources"] = {"status": {}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
            "scope": "Namespaced",
            "versions": [served],
        },
    }


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    return Remote(tmp_path)


@pytest.fixture
def options(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> dict[str, Any]:
    return {
        "engine": {}, "kubeconfig": str(control_plane.kubeconfig), "namespace": namespace,
        "templates": quick_templates(tmp_path),
    }  # fmt: skip


@pytest.fixture
def open_it(tmp_path: Path, remote: Remote, options: dict[str, Any]) -> Open:
    made = opener(tmp_path, remote)
    return lambda **given: made(**{**options, **given})


@pytest.fixture
def player(kube: Kube, remote: Remote, namespace: str) -> Player:
    return Player(kube, remote, namespace)


def pods(kube: Kube, namespace: str) -> set[str]:
    """Return the short revisions of the pods that there are."""
    found = kube.list("Pod", namespace)
    return {item["metadata"]["labels"][LABEL_REVISION] for item in found}


def until(target: Gitops, revision: str, standing: Standing, seconds: float = 60.0) -> Followed:
    """Wait for a standing."""
    end = time.monotonic() + seconds
    while (seen := target.follow(revision)).standing is not standing:
        assert time.monotonic() < end, seen
        time.sleep(0.25)  # each look is some processes of git
    return seen


def drive(
    target: Gitops, wanted: Candidate, strategy: Strategy, *, abort_at: Phase | None = None
) -> list[Phase]:
    """Release as a release stage does, and return the phases; with ``abort_at`` somebody wants it aborted then."""
    following, state = Following(target, wanted), RolloutState()
    phases: list[Phase] = []
    end = time.monotonic() + 60
    while not phases or not phases[-1].is_final:
        assert time.monotonic() < end, phases
        act = following.abort if phases and phases[-1] is Phase.ABORTING else following.step
        ctx = target.ctx
        state, step = act(state, strategy, ctx)
        phases.append(step.phase)
        if step.phase is abort_at:
            state = state.model_copy(
                update={"phase": Phase.ABORTING, "entered": time.time(), "reason": "wanted"}
            )
            phases.append(Phase.ABORTING)
        time.sleep(min(step.requeue, 0.4))
    return phases


class TestGitopsOnACluster(DelegatedConformance):
    """The conformance kit, with a player that applies what is committed."""

    name = "gitops"
    plugin = Gitops
    strategy: ClassVar[Strategy] = ROLLING
    impossible: ClassVar[Strategy | None] = Strategy(name="shadow", mirror=10.0)

    @pytest.fixture
    def target(self, open_it: Open, player: Player) -> Gitops:
        self.player = player
        return open_it(replicas=1)

    @pytest.fixture
    def candidates(self, tmp_path: Path) -> tuple[Candidate, Candidate]:
        return candidate(tmp_path, "1.0.0"), candidate(tmp_path, "1.1.0")

    def again(self, target: DelegatedTarget) -> DelegatedTarget:
        return Gitops(target.options, target.ctx)

    def finish(self, target: DelegatedTarget) -> None:
        self.player.sync()
        self._settled(target)

    def give_up(self, target: DelegatedTarget) -> None:
        self.player.sync()
        change = {
            "spec": {
                "progressDeadlineSeconds": 1,
                "template": {"metadata": {"annotations": {"fake-kubelet/never-ready": "true"}}},
            }
        }
        self.player.kube.patch("Deployment", "digits", self.player.namespace, change)
        assert isinstance(target, Gitops)
        until(target, str(target._tree().current), Standing.DEGRADED)

    def go_back(self, target: DelegatedTarget) -> None:
        self.player.sync()
        change = {
            "spec": {
                "progressDeadlineSeconds": 600,
                "template": {"metadata": {"annotations": {"fake-kubelet/never-ready": None}}},
            }
        }
        if self.player.kube.exists("Deployment", "digits", self.player.namespace):
            self.player.kube.patch("Deployment", "digits", self.player.namespace, change)
        self._settled(target)

    def _settled(self, target: DelegatedTarget) -> None:
        assert isinstance(target, Gitops)
        current = target._tree().current
        until(target, current or "0" * 64, Standing.HEALTHY if current is not None else Standing.ABSENT)


def test_a_release_is_through_once_the_clusters_pods_are(
    open_it: Open, player: Player, remote: Remote, kube: Kube, namespace: str, tmp_path: Path
) -> None:
    first, second = candidate(tmp_path, "1.0.0"), candidate(tmp_path, "1.1.0")
    target = open_it()
    with player.playing():
        assert drive(target, first, ROLLING)[-1] is Phase.DONE
        assert pods(kube, namespace) == {short(first.revision)}
        assert drive(target, second, ROLLING)[-1] is Phase.DONE
    wait_for(lambda: pods(kube, namespace) == {short(second.revision)})
    (serving,) = target.status()
    assert (serving.version, serving.healthy) == ("1.1.0", True)
    assert kube.get("Endpoints", "digits", namespace)["subsets"]
    assert remote.count() == 3


def test_nothing_is_taken_for_done_that_nobody_applies(open_it: Open, tmp_path: Path) -> None:
    first = candidate(tmp_path, "1.0.0")
    target = open_it()
    target.submit(first, ROLLING)
    seen = target.follow(first.revision)
    assert (seen.standing, seen.weight, seen.stable) == (Standing.PROGRESSING, 0, None)
    assert seen.message == f"Deployment digits is not there; waiting for {short(first.revision)}"


def test_a_rollout_that_never_ends_is_gone_back_from_and_stays_so(
    open_it: Open, player: Player, remote: Remote, kube: Kube, namespace: str, tmp_path: Path
) -> None:
    """Also for whoever synchronises again, and for another machine that applies the same spec."""
    first, second = candidate(tmp_path, "1.0.0"), candidate(tmp_path, "1.1.0")
    target = open_it()
    quick = ROLLING.model_validate({**ROLLING.model_dump(), "progressDeadline": "3s"})
    with player.playing():
        drive(target, first, ROLLING)
        broken = open_it(podAnnotations={"fake-kubelet/waiting": "ImagePullBackOff"})
        assert drive(broken, second, quick)[-1] is Phase.ROLLED_BACK
        assert until(target, first.revision, Standing.HEALTHY).stable == first.revision
        remote.commit({"other.txt": "somebody else's"}, "an unrelated commit")
        wait_for(lambda: player.commit == remote.head())
        time.sleep(1)
        assert pods(kube, namespace) == {short(first.revision)}
    gone = open_it(machine="elsewhere").records().load()[0].was_rolled_back(second.revision)
    assert gone is not None
    assert gone.version == "1.1.0"


@pytest.mark.parametrize("phase", [Phase.SHIFTING, Phase.WATCHING])
def test_an_abort_on_the_way_ends_where_it_began(
    open_it: Open, player: Player, kube: Kube, namespace: str, tmp_path: Path, phase: Phase
) -> None:
    first, second = candidate(tmp_path, "1.0.0"), candidate(tmp_path, "1.1.0")
    target = open_it()
    long = ROLLING.model_validate({**ROLLING.model_dump(), "scaleDownDelay": "20s"})
    with player.playing():
        drive(target, first, ROLLING)
        assert drive(target, second, long, abort_at=phase)[-1] is Phase.ROLLED_BACK
    assert pods(kube, namespace) == {short(first.revision)}


def test_bluegreen_switches_the_service_once_the_pods_are_ready(
    open_it: Open, player: Player, remote: Remote, kube: Kube, namespace: str, tmp_path: Path
) -> None:
    first, second = candidate(tmp_path, "1.0.0"), candidate(tmp_path, "1.1.0")
    target = open_it(replicas=1, podAnnotations={"fake-kubelet/ready-after": "1.5"})
    with player.playing():
        drive(target, first, BLUEGREEN)
        target.submit(second, BLUEGREEN)
        wait_for(lambda: pods(kube, namespace) == {short(first.revision), short(second.revision)})
        seen = target.follow(second.revision)
        assert (seen.standing, seen.weight) == (Standing.PROGRESSING, 0)
        until(target, second.revision, Standing.PAUSED)
        target.resume(second.revision)
        wait_for(
            lambda: (
                kube.get("Service", "digits", namespace)["spec"]["selector"][LABEL_REVISION]
                == short(second.revision)
            )
        )
        assert until(target, second.revision, Standing.PAUSED).weight == 100
        assert short(first.revision) in pods(kube, namespace)
        target.abort(second.revision, first.revision)
        assert until(target, first.revision, Standing.HEALTHY).stable == first.revision
        assert target.follow(second.revision).weight == 0
        assert drive(target, second, BLUEGREEN)[-1] is Phase.DONE
    wait_for(lambda: pods(kube, namespace) == {short(second.revision)})


Say = Callable[..., None]


@pytest.fixture
def argo(control_plane: ControlPlane, namespace: str) -> Iterator[Say]:
    """An Application in the namespace, and a function that says what Argo CD would."""
    with Kube(control_plane.kubeconfig) as kube:
        kube.apply(definition("argoproj.io", "v1alpha1", "Application", subresource=False), force=True)
    body = {
        "apiVersion": "argoproj.io/v1alpha1", "kind": "Application", "metadata": {"name": "digits"},
        "spec": {"syncPolicy": {"automated": {"prune": True}}},
    }  # fmt: skip
    with Kube(control_plane.kubeconfig) as kube:
        wait_for(lambda: created(control_plane, body, namespace), what="Applications are not known")

        def say(commit: str, sync: str = "Synced", health: str = "Healthy", **status: Any) -> None:
            said = {"sync": {"status": sync, "revision": commit}, "health": {"status": health}, **status}
            kube.patch("argoproj.io/v1alpha1/Application", "digits", namespace, {"status": said})

        yield say


def created(control_plane: ControlPlane, body: dict[str, Any], namespace: str) -> bool:
    """Create an object of a kind that may not be served yet, as somebody who does not remember what was."""
    with Kube(control_plane.kubeconfig) as kube:
        try:
            kube.create(body, namespace)
        except LookupError:
            return False
    return True


def test_argo_cd_says_how_far_it_is(
    open_it: Open, remote: Remote, namespace: str, argo: Say, tmp_path: Path
) -> None:
    first, second = candidate(tmp_path, "1.0.0"), candidate(tmp_path, "1.1.0")
    target = open_it(engine={"argocd": {"application": "digits", "namespace": namespace}})
    target.submit(first, ROLLING)
    assert (
        target.follow(first.revision).message
        == f"Argo CD is at no commit, Unknown; waiting for {remote.head()[:10]}"
    )
    argo(remote.head(), health="Progressing")
    assert target.follow(first.revision).standing is Standing.PROGRESSING
    argo(remote.head())
    seen = target.follow(first.revision)
    assert (seen.standing, seen.stable, seen.weight) == (Standing.HEALTHY, first.revision, 100)
    before = remote.head()
    remote.commit({"other.txt": "x"}, "an unrelated commit")
    assert target.follow(first.revision).standing is Standing.HEALTHY  # it has the same in our folder
    target.submit(second, ROLLING)
    argo(before)
    seen = target.follow(second.revision)
    assert (seen.standing, seen.stable, seen.weight) == (Standing.PROGRESSING, first.revision, 0)
    assert seen.message == f"Argo CD is at {before[:10]}, Synced; waiting for {remote.head()[:10]}"
    failed = {
        "phase": "Failed",
        "message": "one or more objects failed",
        "syncResult": {"revision": remote.head()},
    }
    argo(remote.head(), "OutOfSync", operationState=failed)
    seen = target.follow(second.revision)
    assert (seen.standing, seen.message) == (
        Standing.DEGRADED, "Argo CD could not apply it: one or more objects failed",
    )  # fmt: skip
    argo(remote.head(), health="Degraded")
    assert target.follow(second.revision).standing is Standing.DEGRADED
    target.abort(second.revision, first.revision)
    argo(remote.head())
    assert target.follow(first.revision).standing is Standing.HEALTHY
    assert target.preview("x")[1:] == []


def test_flux_says_how_far_it_is(
    open_it: Open, remote: Remote, control_plane: ControlPlane, kube: Kube, namespace: str, tmp_path: Path
) -> None:
    group = "kustomize.toolkit.fluxcd.io"
    kube.apply(definition(group, "v1", "Kustomization", subresource=True), force=True)
    body = {"apiVersion": f"{group}/v1", "kind": "Kustomization", "metadata": {"name": "digits"}, "spec": {}}
    wait_for(lambda: created(control_plane, body, namespace), what="Kustomizations are not known")

    def say(ready: str, reason: str, applied: str, attempted: str) -> None:
        status = {
            "observedGeneration": 1,
            "conditions": [{"type": "Ready", "status": ready, "reason": reason, "message": f"{reason}!"}],
            "lastAppliedRevision": f"main@sha1:{applied}", "lastAttemptedRevision": f"main@sha1:{attempted}",
        }  # fmt: skip
        kube.set_status(f"{group}/v1/Kustomization", "digits", namespace, status)

    first, second = candidate(tmp_path, "1.0.0"), candidate(tmp_path, "1.1.0")
    target = open_it(engine={"flux": {"kustomization": "digits", "namespace": namespace}})
    begin = remote.head()
    target.submit(first, ROLLING)
    one = remote.head()
    say("True", "ReconciliationSucceeded", begin, begin)
    assert target.follow(first.revision).standing is Standing.PROGRESSING
    say("Unknown", "Progressing", begin, one)
    assert target.follow(first.revision).standing is Standing.PROGRESSING
    say("True", "ReconciliationSucceeded", one, one)
    assert target.follow(first.revision).standing is Standing.HEALTHY
    target.submit(second, ROLLING)
    two = remote.head()
    say("False", "HealthCheckFailed", one, two)
    seen = target.follow(second.revision)
    assert (seen.standing, seen.message, seen.stable) == (
        Standing.DEGRADED,
        "HealthCheckFailed!",
        first.revision,
    )
    lines = list(target.preview("x"))
    assert (
        f"Kustomization digits of {namespace} has no `wait: true`: it is ready before the pods are" in lines
    )
