"""The target `kubernetes` on a real control plane: what goes wrong in clusters ends in a clear outcome."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import support_kubernetes
from shipctl.errors import StageError
from shipctl.release.surge import Surge
from shipctl.release.target import (
    Action,
    Candidate,
    Commit,
    Preflight,
    Prepare,
    Shift,
    StaleEpochError,
)
from shipctl.release.traffic import Traffic
from shipctl.stages.context import StageContext
from shipctl.testing.samples import sealed, tiny_dataset, tiny_onnx_model
from shipctl_plugins._kubernetes import objects
from shipctl_plugins._kubernetes.api.connection import FieldConflictError, GoneError
from shipctl_plugins._kubernetes.api.transport import Answer, Request, Transport
from shipctl_plugins.targets.kubernetes import Kubernetes
from shipctl_plugins.triton.triton_config import TritonConfig, TritonConfigInputs, TritonConfigOptions
from support_cluster import CLUSTER, ControlPlane, Kube, quota, wait_for
from support_kubernetes import GATEWAY, NEW, OLD, MakeTarget, Quick, prepared, released


def problem(target: Quick, revision: str = NEW) -> str:
    """Return why a revision's replicas are not ready, as soon as that is known."""

    def said() -> str | None:
        replicas = target.observe().replicas.get(revision)
        return replicas.problem if replicas is not None else None

    found = wait_for(said, what="no problem is named")
    assert found is not None
    return found


@CLUSTER
class TestTrouble:
    """Each ends in a clear outcome, and what serves goes on serving."""

    def test_an_image_that_cannot_be_pulled_is_named(
        self, make_target: MakeTarget, old: Candidate, new: Candidate
    ) -> None:
        released(make_target(OLD), old)
        notes = {"fake-kubelet/waiting": "ImagePullBackOff"}
        target = make_target(image="registry.example/triton:typo", podAnnotations=notes)
        target.apply(Prepare(), new, target.acquire("test"))
        assert problem(target).startswith("ImagePullBackOff: image registry.example/triton:typo")
        seen = target.observe()
        assert (seen.replicas[NEW].ready, seen.ready(OLD)) == (0, True)
        assert seen.traffic.weights == {OLD: 100}

    def test_pods_that_never_become_ready_get_no_requests(
        self, make_target: MakeTarget, old: Candidate, new: Candidate
    ) -> None:
        released(make_target(OLD, router=GATEWAY), old)
        target = make_target(router=GATEWAY, podAnnotations={"fake-kubelet/never-ready": "true"})
        epoch = target.acquire("test")
        target.apply(Prepare(), new, epoch)
        wait_for(lambda: len(target.observer.look().pods.get(NEW, ())) == 2)
        with pytest.raises(StageError, match=r"^revision b{12} gets no requests: 0 of 2 replicas are ready"):
            target.apply(Shift(traffic=Traffic.only(NEW)), new, epoch)
        assert target.observe().traffic.weights == {OLD: 100}

    def test_a_quota_without_room_refuses_before_anything_is_made(
        self, make_target: MakeTarget, old: Candidate, new: Candidate, kube: Kube, namespace: str
    ) -> None:
        released(make_target(OLD), old)
        quota(kube, namespace, {"pods": "3"})
        wait_for(
            lambda: kube.get("ResourceQuota", "limits", namespace)["status"].get("used") == {"pods": "2"}
        )
        target = make_target()
        with pytest.raises(StageError) as error:
            target.apply(Prepare(), new, target.acquire("test"))
        assert str(error.value) == (
            f"the candidate does not fit into {namespace}: quota limits has no room for 2 more pods: it allows 3 of "
            "pods, and 2 are used, which leaves 1; free some, raise the quota, or release with k8s-rolling, which "
            "replaces replicas a few at a time"
        )
        assert not kube.exists("Deployment", "shop-bbbbbbbbbb", namespace)
        assert NEW not in target.observe().replicas

    def test_a_quota_that_becomes_full_meanwhile_is_named(
        self, make_target: MakeTarget, old: Candidate, new: Candidate, kube: Kube, namespace: str
    ) -> None:
        target = make_target()
        quota(kube, namespace, {"pods": "4"})
        target.apply(Prepare(), new, target.acquire("test"))
        wait_for(lambda: target.observe().ready(NEW))
        kube.patch("Deployment", "shop-bbbbbbbbbb", namespace, {"spec": {"replicas": 6}})
        assert "pods are not created" in problem(target)
        assert "exceeded quota: limits" in problem(target)

    def test_a_namespace_that_is_deleted_meanwhile_ends_it(
        self, make_target: MakeTarget, old: Candidate, new: Candidate, kube: Kube, namespace: str
    ) -> None:
        target = make_target(OLD)
        epoch = released(target, old)
        kube.delete("Namespace", namespace)
        with pytest.raises((GoneError, StaleEpochError)):
            target.apply(Prepare(), new, epoch)
        wait_for(lambda: not kube.exists("Lease", "shop-release", namespace))
        with pytest.raises(GoneError, match=namespace):
            make_target().acquire("another")

    def test_a_deployment_that_somebody_edits_does_not_count_as_ready(
        self, make_target: MakeTarget, new: Candidate, kube: Kube, namespace: str
    ) -> None:
        target = make_target()
        prepared(target, new, target.acquire("test"))
        containers = [{"name": "triton", "image": "triton:other"}]
        path = kube.path("Deployment", namespace, "shop-bbbbbbbbbb")
        body = {"spec": {"template": {"spec": {"containers": containers}}}}
        kube.request("PATCH", path, body, content_type="application/strategic-merge-patch+json")
        said = wait_for(lambda: target.observe().replicas[NEW].problem)
        assert said is not None
        assert "runs the image triton:other and not nvcr.io/nvidia/tritonserver:24.10-py3" in said
        assert not target.observe().ready(NEW)

    def test_a_field_that_kubectl_has_changed_is_a_conflict_that_names_it(
        self, make_target: MakeTarget, new: Candidate, kube: Kube, namespace: str
    ) -> None:
        target = make_target()
        epoch = target.acquire("test")
        prepared(target, new, epoch)
        policy = kube.get("NetworkPolicy", "shop", namespace)
        kube.patch(
            "NetworkPolicy", "shop", namespace, {"spec": {"policyTypes": ["Ingress"]}}, manager="kubectl-edit"
        )
        with pytest.raises(FieldConflictError) as error:
            target.apply(Prepare(), new, epoch)
        assert str(error.value).startswith(
            f"kubectl-edit has changed NetworkPolicy shop in {namespace} (.spec.policyTypes), which shipctl manages: "
            "undo that, or write it into the spec"
        )
        assert policy["spec"]["policyTypes"] != ["Ingress"]

    def test_what_belongs_to_somebody_else_is_not_touched(
        self, make_target: MakeTarget, new: Candidate, kube: Kube, namespace: str
    ) -> None:
        labels = {"app.kubernetes.io/managed-by": "Helm"}
        service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "shop", "labels": labels}}
        kube.create({**service, "spec": {"selector": {"app": "shop"}, "ports": [{"port": 80}]}}, namespace)
        before = kube.get("Service", "shop", namespace)
        target = make_target()
        with pytest.raises(
            StageError, match=rf"^Service shop in {namespace} belongs to Helm, and nothing in it was"
        ):
            target.apply(Prepare(), new, target.acquire("test"))
        target.down()
        assert kube.get("Service", "shop", namespace) == before

    def test_another_model_under_the_same_name_is_refused(
        self, make_target: MakeTarget, old: Candidate, tmp_path: Path
    ) -> None:
        released(make_target(OLD), old)
        other = support_kubernetes.candidate(tmp_path, "2.0.0", NEW, model="letters")
        target = make_target()
        with pytest.raises(StageError, match="serves the model digits, and the candidate is letters"):
            target.apply(Prepare(), other, target.acquire("test"))

    def test_who_wakes_up_after_a_takeover_changes_nothing(
        self, make_target: MakeTarget, old: Candidate, new: Candidate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Suspended after its last look at the lease, right before its write."""
        one = make_target(router=GATEWAY)
        epoch = released(one, old)
        prepared(one, new, epoch)
        call, awake = Transport.call, False

        def sleeps(transport: Transport, request: Request) -> Answer:
            nonlocal awake
            if request.method != "GET" and not awake:
                awake = True  # stood still here while another process took everything over
                two = make_target(router=GATEWAY)
                two.lease.clock = lambda: 1e9
                two.lease.read()
                two.lease.clock = lambda: 2e9
                two.acquire(f"who took over from {epoch}")
            return call(transport, request)

        monkeypatch.setattr(Transport, "call", sleeps)
        half = Traffic(weights={OLD: 50, NEW: 50}, fallback=OLD)
        acts: list[Action] = [
            Shift(traffic=half),
            Shift(traffic=Traffic.only(NEW), surge=Surge()),
            Commit(expected=OLD, revision=NEW),
        ]
        for act in acts:
            with pytest.raises((StaleEpochError, StageError)):
                one.apply(act, new, epoch)
            seen = one.observe()
            assert (seen.stable, seen.traffic.weights, seen.replicas[OLD].wanted) == (OLD, {OLD: 100}, 2), act
            assert awake
            heir = make_target(router=GATEWAY)
            heir.lease.clock = lambda: 1e9
            heir.lease.read()
            heir.lease.clock = lambda: 2e9
            one, epoch, awake = heir, heir.acquire(f"heir before {act.kind} {epoch}"), False

    def test_replicas_are_not_changed_from_what_was_seen_before_a_takeover(
        self, make_target: MakeTarget, old: Candidate
    ) -> None:
        target = make_target(OLD)
        epoch = released(target, old)
        seen = target.observer.look().deployments[OLD]
        looks = 0

        def guard() -> None:
            nonlocal looks
            looks += 1
            if looks == 1:  # right after this look, another process takes over
                target.lease.release(epoch)
                make_target(OLD).acquire("two")
                return
            target.lease.check(epoch)

        with pytest.raises(StaleEpochError):
            objects.scale(target.place, seen, 5, guard)
        assert target.observe().replicas[OLD].wanted == 2


_KILLED = """
import sys
import support_kubernetes
from pathlib import Path
from shipctl.processes import own_name
from shipctl.release.target import Prepare
from shipctl.release.traffic import Traffic
import pytest, os, signal

folder, kubeconfig, namespace = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
with pytest.MonkeyPatch.context() as patch:
    support_kubernetes.install(patch)
    plane = type("Plane", (), {"kubeconfig": kubeconfig})
    target = support_kubernetes.Quick(
        support_kubernetes.options(plane, namespace), support_kubernetes.context(folder, "b" * 64)
    )
    epoch = target.acquire(own_name())
    target.apply(Prepare(), support_kubernetes.candidate(folder, "2.0.0", "b" * 64), epoch)
    print(epoch, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@CLUSTER
@pytest.mark.slow
def test_another_process_goes_on_at_once_where_one_was_killed(
    make_target: MakeTarget, new: Candidate, tmp_path: Path, control_plane: ControlPlane, namespace: str
) -> None:
    arguments = [sys.executable, "-c", _KILLED, str(tmp_path), str(control_plane.kubeconfig), namespace]
    tests = str(Path(support_kubernetes.__file__).parent)
    done = subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": tests},
    )
    assert (done.returncode, done.stdout) == (-9, "1\n"), done.stderr
    target = make_target()
    assert target.acquire("heir") == 2, "a dead process of this machine was waited for"
    wait_for(lambda: target.observe().ready(NEW))
    acts: list[Action] = [Shift(traffic=Traffic.only(NEW)), Commit(expected=None, revision=NEW)]
    for act in acts:
        target.apply(act, new, 2)
    assert target.observe().stable == NEW


def loadable(folder: Path) -> Candidate:
    """A candidate that a real server loads."""
    model = tiny_onnx_model(folder / "model")
    work = folder / "work"
    work.mkdir()
    inputs = TritonConfigInputs(model=sealed(model.located(model.root)))
    stage = TritonConfig(TritonConfigOptions(name="digits"))
    repository = stage.run(inputs, StageContext(workdir=work, log=lambda _line: None)).repository
    return Candidate(OLD, "1.0.0", sealed(repository), tiny_dataset(folder, "golden"))


@CLUSTER
@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_preflight_asks_a_real_triton_on_this_machine(
    tmp_path: Path, control_plane: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    support_kubernetes.install(monkeypatch)
    good = loadable(tmp_path)
    options = support_kubernetes.options(control_plane, namespace)
    target = Kubernetes(options, support_kubernetes.context(tmp_path, OLD))
    epoch = target.acquire("test")
    applied = target.apply(Preflight(), good, epoch)
    assert applied.message.startswith("preflight of digits 1.0.0 passed on this machine (Triton ")
    assert {str(verdict.outcome) for verdict in applied.verdicts} == {"pass"}
    assert not (tmp_path / "targets" / "kubernetes" / "preflight" / "digits").exists()
    none = replace(good, golden=None)
    assert {str(verdict.outcome) for verdict in target.apply(Preflight(), none, epoch).verdicts} == {
        "inconclusive"
    }
