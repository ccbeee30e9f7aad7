"""The target `kubernetes` on a real control plane: what a plan says, and what it finds out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import support_kubernetes
from shipctl.errors import SpecError, StageError, UnavailableError
from shipctl.release.options import RollingOptions
from shipctl.release.references import validated
from shipctl.release.surge import Surge
from shipctl.release.target import Candidate, Capability, ScaleDown, Shift
from shipctl.release.traffic import Traffic
from shipctl.spec.models import StoreSpec
from shipctl.stages.context import CheckContext
from shipctl_plugins._kubernetes.manifests.options import KubernetesOptions, app_of
from shipctl_plugins._kubernetes.manifests.roles import operator_rules
from shipctl_plugins.deploy.canary import CanaryOptions
from shipctl_plugins.targets.kubernetes import Kubernetes
from support_cluster import CLUSTER, LIMITED, ControlPlane, Kube, quota, user_kubeconfig, wait_for
from support_kubernetes import GATEWAY, NEW, OLD, MakeTarget, Quick, prepared, released
from support_release import Project


@CLUSTER
class TestTelling:
    """Plans, differences, status."""

    def test_a_plan_names_what_would_be_made(self, make_target: MakeTarget) -> None:
        lines = list(make_target().preview(NEW))
        assert lines[0] == "nothing serves: the door opens once the first version has passed its preflight"
        assert (
            "shop-bbbbbbbbbb: 2 pods of nvcr.io/nvidia/tritonserver:24.10-py3 are started beside what serves"
            in lines
        )
        for made in (
            "Deployment shop-bbbbbbbbbb",
            "Service shop-bbbbbbbbbb",
            "Service shop",
            "NetworkPolicy shop",
        ):
            assert f"create {made}" in lines

    def test_a_plan_before_anything_has_run_knows_no_revision_yet(self, make_target: MakeTarget) -> None:
        lines = list(make_target("").preview(""))
        assert (
            "a new revision: 2 pods of nvcr.io/nvidia/tritonserver:24.10-py3 are started beside what serves"
            in lines
        )
        assert "create Service shop" in lines

    def test_a_plan_says_that_nobody_looks_at_the_secret(
        self, make_target: MakeTarget, old: Candidate
    ) -> None:
        said = "the Secret store-reader is not read by shipctl: that it exists shows when pods start"
        target = make_target(OLD, credentialsSecret="store-reader")
        assert list(target.preview(OLD)).count(said) == 1
        prepared(target, old, target.acquire("test"))
        assert said not in target.preview(OLD), "they have started"
        assert not any("Secret" in line for line in make_target().preview(NEW))

    def test_a_plan_changes_nothing(self, make_target: MakeTarget, kube: Kube, namespace: str) -> None:
        make_target().preview(NEW)
        assert kube.list("Deployment", namespace) == []
        assert kube.list("Service", namespace) == []

    def test_a_plan_names_fields_that_would_change_and_what_shares_come_to(
        self, make_target: MakeTarget, old: Candidate
    ) -> None:
        released(make_target(OLD, ingress={"host": "old.example"}), old)
        steps = [{"setWeight": weight} for weight in (0, 10, 10, 33, 50)]
        strategy = CanaryOptions.model_validate({"steps": steps}).strategy()
        lines = list(make_target(ingress={"host": "new.example"}).preview(NEW, strategy))
        assert lines[0] == f"digits 1.0.0 (revision {OLD[:12]}) serves: 2 of 2 replicas are ready"
        assert any(line.startswith("change Ingress shop: .spec.rules") for line in lines), lines
        assert "of 2 and 2 replicas, 10 % is 33 % of the requests" in lines
        rolling = RollingOptions().strategy()
        assert not any(line.startswith("of ") for line in make_target().preview(NEW, rolling))

    def test_nothing_to_change_is_no_difference(self, make_target: MakeTarget, old: Candidate) -> None:
        target = make_target(OLD)
        released(target, old)
        assert list(target.diff(old)) == []

    def test_a_difference_reads_as_that_of_kubectl(
        self, make_target: MakeTarget, old: Candidate, namespace: str
    ) -> None:
        released(make_target(OLD, ingress={"host": "old.example"}), old)
        lines = list(make_target(OLD, ingress={"host": "new.example"}).diff(old))
        name = f"networking.k8s.io.v1.Ingress.{namespace}.shop"
        assert lines[:2] == [f"--- live/{name}", f"+++ after/{name}"]
        assert "-    - host: old.example" in lines
        assert "+    - host: new.example" in lines
        assert not any("managedFields" in line or "resourceVersion" in line for line in lines)

    def test_a_first_difference_is_all_that_is_made(self, make_target: MakeTarget, new: Candidate) -> None:
        lines = list(make_target().diff(new))
        assert any(line.startswith("+++ after/apps.v1.Deployment.") for line in lines)
        assert any(
            f"--model-repository=s3://models/repositories/{new.repository.digest}" in line for line in lines
        )

    def test_manifests_are_a_file_per_object(self, make_target: MakeTarget, new: Candidate) -> None:
        files = make_target().manifests(new)
        assert {
            "deployment-shop-bbbbbbbbbb.yaml",
            "service-shop-bbbbbbbbbb.yaml",
            "service-shop.yaml",
        } <= set(files)
        assert "replicas: 2" in files["deployment-shop-bbbbbbbbbb.yaml"]

    def test_status_says_who_serves_and_who_is_beside(
        self, make_target: MakeTarget, old: Candidate, new: Candidate, namespace: str
    ) -> None:
        target = make_target(router=GATEWAY)
        epoch = released(target, old)
        prepared(target, new, epoch)
        target.apply(Shift(traffic=Traffic(weights={OLD: 95, NEW: 5}, fallback=OLD)), new, epoch)
        (serving,) = target.status()
        assert (serving.name, serving.version, serving.revision, serving.healthy) == (
            "digits",
            "1.0.0",
            OLD,
            True,
        )
        assert serving.details["replicas"] == "2 of 2 ready"
        assert serving.details["traffic"] == "95 %"
        assert serving.details["beside it"] == f"2.0.0 ({NEW[:12]}): 2 of 2 ready, 5 % of the traffic"
        assert serving.details["namespace"] == namespace
        assert serving.endpoints == {
            "http": f"http://shop.{namespace}.svc:8000",
            "grpc": f"shop.{namespace}.svc:8001",
        }
        assert target.metric_labels() == {
            OLD: {"shipctl_dev_revision": OLD[:10]}, NEW: {"shipctl_dev_revision": NEW[:10]}
        }  # fmt: skip
        assert target.versions() == {OLD: "1", NEW: "1"}


def test_what_it_offers_is_what_its_parts_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    support_kubernetes.install(monkeypatch)

    def offers(**given: Any) -> set[str]:
        options = validated(KubernetesOptions, given, "target")
        return {str(one) for one in Kubernetes.offers(options)}

    worker = {"image": "shipctl:1"}
    assert offers() == {"weights", "preview"}
    assert offers(router="service") == {"preview"}
    assert offers(router=GATEWAY) == {"weights", "headers", "preview"}
    assert offers(router=GATEWAY, comparator=worker, watchdog=worker) == {
        "weights", "headers", "mirror", "preview", "watchdog"
    }  # fmt: skip
    assert Capability.ACCESS_LOG not in Kubernetes.capabilities


def checked(
    plane: ControlPlane, namespace: str, folder: Path, *, store: StoreSpec | None = None, surge: Surge | None = None,
    **given: Any,
) -> None:  # fmt: skip
    """Check the target as a plan does."""
    options = support_kubernetes.options(plane, namespace, **given)
    ctx = CheckContext(project=folder, pipeline="digits", base=folder, store=store, surge=surge)
    Kubernetes.check(options, ctx)


@CLUSTER
class TestCheck:
    """What a plan finds out."""

    @pytest.fixture(autouse=True)
    def _routers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        support_kubernetes.install(monkeypatch)

    def test_a_cluster_that_has_everything_passes(
        self, control_plane: ControlPlane, namespace: str, tmp_path: Path
    ) -> None:
        checked(control_plane, namespace, tmp_path)
        checked(control_plane, namespace, tmp_path, router=GATEWAY)

    def test_a_store_on_this_machine_is_refused(
        self, control_plane: ControlPlane, namespace: str, tmp_path: Path
    ) -> None:
        with pytest.raises(SpecError, match=r"write `store: {uri: s3://bucket/prefix}`"):
            checked(control_plane, namespace, tmp_path, modelRepository=None)

    def test_a_namespace_that_is_not_there_is_refused(
        self, control_plane: ControlPlane, tmp_path: Path
    ) -> None:
        with pytest.raises(
            UnavailableError, match=r"has no namespace nowhere: `kubectl create namespace nowhere`"
        ):
            checked(control_plane, "nowhere", tmp_path)

    def test_a_kind_that_the_cluster_lacks_is_refused(
        self, control_plane: ControlPlane, namespace: str, tmp_path: Path
    ) -> None:
        with pytest.raises(
            UnavailableError, match=r"the cluster has no HorizontalPodAutoscaler of autoscaling/v2"
        ):
            checked(control_plane, namespace, tmp_path, router="service", autoscaling={})

    def test_rights_that_are_missing_are_all_named_at_once(
        self, control_plane: ControlPlane, namespace: str, tmp_path: Path
    ) -> None:
        rules = [{"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "list"]}]
        limited = user_kubeconfig(control_plane, tmp_path, LIMITED[0], rules, namespace)
        with pytest.raises(UnavailableError) as error:
            checked(control_plane, namespace, tmp_path, kubeconfig=str(limited))
        said = str(error.value)
        assert said.startswith(
            f"user entry test of the kubeconfig may not do in namespace {namespace} what a release does: create "
            "deployments"
        )
        for missing in (
            "delete deployments",
            "create leases",
            "create configmaps",
            "patch services",
            "list pods",
        ):
            assert missing in said
        assert "get deployments, " not in said
        assert '"resources": ["leases"]' in said

    def test_the_rendered_role_is_all_that_a_release_needs(
        self, control_plane: ControlPlane, namespace: str, tmp_path: Path, old: Candidate, new: Candidate
    ) -> None:
        options = support_kubernetes.options(
            control_plane, namespace, router=GATEWAY, ingress={"host": "a.example"}
        )
        rules = operator_rules(options, app_of(options, "digits", None))
        limited = user_kubeconfig(control_plane, tmp_path, LIMITED[1], rules, namespace)
        given: dict[str, Any] = {
            "router": GATEWAY,
            "ingress": {"host": "a.example"},
            "kubeconfig": str(limited),
        }
        checked(control_plane, namespace, tmp_path, **given)
        mine = support_kubernetes.options(control_plane, namespace, **given)
        target = Quick(mine, support_kubernetes.context(tmp_path, NEW))
        released(target, old)
        epoch = released(target, new)
        target.preview(NEW)
        target.diff(new)
        target.apply(ScaleDown(revision=OLD), new, epoch)
        records = target.records()
        records.save(records.load()[0], records.load()[1])
        target.release(epoch)
        target.down()
        assert list(target.down()) == []

    def test_the_rendered_role_is_enough_for_a_watchdog_that_is_not_there_yet(
        self, control_plane: ControlPlane, namespace: str, tmp_path: Path, kube: Kube, old: Candidate
    ) -> None:
        """The API server lets somebody bind a Role only whose rights he has, and so it must see the Role."""
        given: dict[str, Any] = {"watchdog": {"image": "shipctl:1"}}
        options = support_kubernetes.options(control_plane, namespace, **given)
        rules = operator_rules(options, app_of(options, "digits", None))
        given["kubeconfig"] = str(user_kubeconfig(control_plane, tmp_path, LIMITED[2], rules, namespace))
        checked(control_plane, namespace, tmp_path, **given)
        mine = support_kubernetes.options(control_plane, namespace, **given)
        target = Quick(mine, support_kubernetes.context(tmp_path, OLD))
        lines = list(target.preview(OLD))
        assert {"create Role shop-watchdog", "create RoleBinding shop-watchdog"} <= {*lines}
        lines = list(target.diff(old))
        name = f"rbac.authorization.k8s.io.v1.RoleBinding.{namespace}.shop-watchdog"
        assert f"+++ after/{name}" in lines
        assert not kube.exists("Role", "shop-watchdog", namespace), "a plan changes nothing"
        prepared(target, old, target.acquire("test"))
        bound = kube.get("RoleBinding", "shop-watchdog", namespace)
        assert bound["roleRef"]["name"] == "shop-watchdog"
        assert not any("shop-watchdog" in line for line in target.preview(OLD))
        kube.delete("Role", "shop-watchdog", namespace)
        lines = list(target.preview(OLD))
        assert "create Role shop-watchdog" in lines
        assert not any("RoleBinding" in line for line in lines), lines

    def test_a_binding_of_a_role_that_is_not_there_names_the_role(
        self, control_plane: ControlPlane, namespace: str, tmp_path: Path
    ) -> None:
        rules = [
            {
                "apiGroups": ["rbac.authorization.k8s.io"],
                "resources": ["rolebindings"],
                "verbs": ["create", "get", "patch"],
            }
        ]
        limited = user_kubeconfig(control_plane, tmp_path, LIMITED[3], rules, namespace)
        place = Quick(
            support_kubernetes.options(control_plane, namespace, kubeconfig=str(limited)),
            support_kubernetes.context(tmp_path),
        ).place
        binding = place.labelled(
            "RoleBinding",
            "rbac.authorization.k8s.io/v1",
            "shop-watchdog",
            roleRef={"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "shop-watchdog"},
            subjects=[{"kind": "ServiceAccount", "name": "shop-watchdog", "namespace": namespace}],
        )
        with pytest.raises(StageError) as error:
            place.cluster.apply(binding)
        assert str(error.value) == (
            "RoleBinding shop-watchdog needs roles.rbac.authorization.k8s.io shop-watchdog, which is not in namespace "
            f"{namespace}; make that first, then run the same command again"
        )

    def test_a_surge_that_does_not_fit_is_refused_with_the_numbers(
        self, control_plane: ControlPlane, namespace: str, tmp_path: Path, kube: Kube, old: Candidate,
        make_target: MakeTarget,
    ) -> None:  # fmt: skip
        quota(kube, namespace, {"requests.cpu": "3"})
        checked(control_plane, namespace, tmp_path)  # a first release needs no more than its own
        released(make_target(OLD), old)
        wait_for(
            lambda: kube.get("ResourceQuota", "limits", namespace)["status"]["used"] == {"requests.cpu": "2"}
        )
        with pytest.raises(UnavailableError) as error:
            checked(control_plane, namespace, tmp_path)
        assert str(error.value) == (
            f"a release to {namespace} needs 2 more pods beside the 2 pods that are there, and quota limits has no "
            "room for 2 × 1 of requests.cpu: it allows 3 of requests.cpu, and 2 are used, which leaves 1; free some, "
            "raise the quota, or release with k8s-rolling, which replaces replicas a few at a time"
        )
        checked(control_plane, namespace, tmp_path, surge=Surge())  # one at a time does

    def test_an_unreachable_cluster_is_said_to_be(self, tmp_path: Path, control_plane: ControlPlane) -> None:
        away = tmp_path / "away.kubeconfig"
        away.write_text(
            control_plane.kubeconfig.read_text().replace(control_plane.url, "https://127.0.0.1:1")
        )
        with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1"):
            checked(control_plane, "default", tmp_path, kubeconfig=str(away), timeout="1s")

    def test_a_user_without_any_rights_is_told_all_of_them_by_one_plan(
        self, control_plane: ControlPlane, namespace: str, tmp_path: Path
    ) -> None:
        nothing = [{"apiGroups": ["example.com"], "resources": ["nothing"], "verbs": ["get"]}]
        limited = user_kubeconfig(control_plane, tmp_path, LIMITED[4], nothing, namespace)
        place = {"kubeconfig": str(limited), "namespace": namespace, "modelRepository": "s3://models/r"}
        (tmp_path / ".shipctl").mkdir()
        project = Project(tmp_path)
        target = {"uses": "kubernetes", "with": place}
        project.write("1.0.0", options={"target": target, "analysis": None}, p95="")
        outcome = project.shipctl("plan", "spec.yaml")
        assert outcome.returncode == 0, outcome.stderr
        (missing,) = [line for line in outcome.stdout.splitlines() if line.startswith("missing")]
        for right in ("get configmaps", "create deployments", "create leases", "list pods", "patch services"):
            assert right in missing
        assert "user entry test of the kubeconfig may not do" in missing
        assert '"resources": ["leases"]' in missing
        refused = project.shipctl("apply", "spec.yaml")
        assert refused.returncode == 2
        assert "have these rules added to its Role" in refused.stderr
