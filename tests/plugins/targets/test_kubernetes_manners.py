"""The target `kubernetes` on a real control plane: whose fields, and whose objects, are whose."""

from __future__ import annotations

import pytest

from shipctl.errors import StageError
from shipctl.release.target import Candidate, Commit, Prepare, ScaleDown, Shift
from shipctl.release.traffic import Traffic
from shipctl_plugins._kubernetes.manifests.render import operator_role
from support_cluster import CLUSTER, Kube
from support_kubernetes import GATEWAY, NEW, OLD, MakeTarget, prepared, released


@CLUSTER
class TestManners:
    """Whose fields, and whose objects, are whose."""

    def test_labels_and_fields_of_others_stay(
        self, make_target: MakeTarget, old: Candidate, kube: Kube, namespace: str
    ) -> None:
        target = make_target(OLD)
        released(target, old)
        mine = {
            "metadata": {"labels": {"team": "vision"}, "annotations": {"note": "x"}},
            "spec": {"sessionAffinity": "ClientIP"},
        }
        kube.patch("Service", "shop", namespace, mine)
        target.apply(Prepare(), old, target.acquire("test"))
        found = kube.get("Service", "shop", namespace)
        assert (found["metadata"]["labels"]["team"], found["spec"]["sessionAffinity"]) == (
            "vision",
            "ClientIP",
        )
        assert found["spec"]["selector"]["shipctl.dev/revision"] == OLD[:10], "the door was moved"

    def test_a_port_under_the_name_of_one_of_ours_is_said_to_be_whose_it_is(
        self, make_target: MakeTarget, old: Candidate, kube: Kube, namespace: str
    ) -> None:
        target = make_target(OLD)
        released(target, old)
        ports = kube.get("Service", "shop", namespace)["spec"]["ports"]
        theirs = [{**each, "port": 9000} if each["name"] == "http" else each for each in ports]
        kube.patch("Service", "shop", namespace, {"spec": {"ports": theirs}}, manager="dashboard")
        said = (
            f"dashboard has changed Service shop in {namespace} (.spec.ports[port=9000].name, which is 'http'), which "
            "shipctl manages: undo that, or write it into the spec; `kubectl get --show-managed-fields` shows who"
        )
        with pytest.raises(StageError) as error:
            target.apply(Prepare(), old, target.acquire("test"))
        assert str(error.value) == said
        assert said in target.preview(NEW)

    def test_what_was_taken_out_of_the_spec_goes_with_the_promotion(
        self, make_target: MakeTarget, old: Candidate, new: Candidate, kube: Kube, namespace: str
    ) -> None:
        lines: list[str] = []
        released(make_target(OLD, ingress={"host": "shop.example"}), old)
        foreign = kube.get("Ingress", "shop", namespace)
        other = {
            "apiVersion": foreign["apiVersion"],
            "kind": "Ingress",
            "metadata": {"name": "other"},
            "spec": foreign["spec"],
        }
        kube.create(other, namespace)
        target = make_target(log=lines.append)
        epoch = target.acquire("test")
        prepared(target, new, epoch)
        assert kube.exists("Ingress", "shop", namespace), "it is the stable revision's until the promotion"
        target.apply(Shift(traffic=Traffic.only(NEW)), new, epoch)
        target.apply(Commit(expected=OLD, revision=NEW), new, epoch)
        assert not kube.exists("Ingress", "shop", namespace)
        assert kube.exists("Ingress", "other", namespace)
        assert "Ingress shop is not in the spec any more and was deleted" in lines

    def test_a_changed_ingress_waits_for_the_promotion(
        self, make_target: MakeTarget, old: Candidate, new: Candidate, kube: Kube, namespace: str
    ) -> None:
        def host() -> str:
            return str(kube.get("Ingress", "shop", namespace)["spec"]["rules"][0]["host"])

        released(make_target(OLD, ingress={"host": "old.example"}), old)
        target = make_target(ingress={"host": "new.example"})
        epoch = target.acquire("test")
        prepared(target, new, epoch)
        assert host() == "old.example"
        target.apply(Shift(traffic=Traffic.only(NEW)), new, epoch)
        target.apply(Commit(expected=OLD, revision=NEW), new, epoch)
        assert host() == "new.example"

    def test_a_scaled_down_revision_leaves_nothing_of_its_own(
        self, make_target: MakeTarget, old: Candidate, new: Candidate, kube: Kube, namespace: str
    ) -> None:
        released(make_target(OLD), old)
        target = make_target()
        epoch = released(target, new)
        target.apply(ScaleDown(revision=OLD), new, epoch)
        for kind in ("Deployment", "Service"):
            assert not kube.exists(kind, "shop-aaaaaaaaaa", namespace)
            assert kube.exists(kind, "shop-bbbbbbbbbb", namespace)
        assert set(target.versions()) == {NEW}

    def test_down_leaves_what_is_not_ours(
        self, make_target: MakeTarget, old: Candidate, kube: Kube, namespace: str
    ) -> None:
        mine = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mine"}}
        kube.create(mine, namespace)
        target = make_target(OLD, router=GATEWAY)
        released(target, old)
        lines = list(target.down())
        assert "Deployment shop-aaaaaaaaaa was deleted" in lines
        assert lines[-1] == "Lease shop-release was deleted"
        for kind in (
            "Deployment",
            "Service",
            "ConfigMap",
            "Lease",
            "ServiceAccount",
            "NetworkPolicy",
            "HTTPRoute",
        ):
            left = {each["metadata"]["name"] for each in kube.list(kind, namespace)}
            assert not any(name.startswith("shop") for name in left), left
        assert kube.exists("ConfigMap", "mine", namespace)

    @pytest.mark.parametrize("labelled", [False, True], ids=["of now", "as it was rendered at first"])
    def test_the_administrators_role_outlives_every_release_and_down(
        self,
        make_target: MakeTarget,
        old: Candidate,
        new: Candidate,
        kube: Kube,
        namespace: str,
        *,
        labelled: bool,
    ) -> None:
        watched = {"watchdog": {"image": "shipctl:1"}}
        target = make_target(OLD, **watched)
        app = target.place.app
        for one in operator_role(target.options, app, subjects=({"kind": "Group", "name": "ml-team"},)):
            if labelled:
                one["metadata"]["labels"] = app.labels
            kube.apply(one, namespace, manager="administrator")
        released(target, old)
        target = make_target()  # without the watchdog, whose accounts go once nobody runs under them
        epoch = released(target, new)
        target.apply(ScaleDown(revision=OLD), new, epoch)
        assert [each["metadata"]["name"] for each in kube.list("Role", namespace)] == ["shop-operator"]
        target.down()
        for kind in ("Role", "RoleBinding"):
            assert kube.exists(kind, "shop-operator", namespace)

    def test_an_older_revision_that_is_warm_stays_as_it_was_made(
        self, make_target: MakeTarget, old: Candidate, new: Candidate, kube: Kube, namespace: str
    ) -> None:
        """A rollback is asked for with the spec of now, whose image may be another by now."""
        released(make_target(OLD, image="triton:old"), old)
        target = make_target(image="triton:new")
        released(target, new)
        back = make_target(OLD, image="triton:new")
        back.apply(Prepare(), old, back.acquire("test"))
        pods = kube.get("Deployment", "shop-aaaaaaaaaa", namespace)["spec"]["template"]["spec"]
        assert pods["containers"][0]["image"] == "triton:old"
        assert back.observe().ready(OLD)

    def test_an_autoscalers_number_is_left_to_it(
        self, make_target: MakeTarget, old: Candidate, new: Candidate, kube: Kube, namespace: str
    ) -> None:
        """A candidate begins with as many as the stable revision has come to, and what it comes to itself stays."""

        def replicas(name: str) -> int:
            return int(kube.get("Deployment", name, namespace)["spec"]["replicas"])

        keda = {"engine": "keda", "serverAddress": "http://prometheus:9090"}
        given = {"router": "service", "autoscaling": keda}
        target = make_target(OLD, **given)
        released(target, old)
        assert replicas("shop-aaaaaaaaaa") == 2
        kube.patch("Deployment", "shop-aaaaaaaaaa", namespace, {"spec": {"replicas": 3}}, manager="keda")
        target = make_target(**given)
        epoch = target.acquire("test")
        prepared(target, new, epoch)
        assert replicas("shop-bbbbbbbbbb") == 3
        kube.patch("Deployment", "shop-bbbbbbbbbb", namespace, {"spec": {"replicas": 4}}, manager="keda")
        target.apply(Prepare(), new, epoch)
        assert replicas("shop-bbbbbbbbbb") == 4
        assert kube.exists("ScaledObject", "shop-bbbbbbbbbb", namespace)
        target.apply(ScaleDown(revision=NEW), new, epoch)
        assert not kube.exists("ScaledObject", "shop-bbbbbbbbbb", namespace)

    def test_a_preview_has_a_service_for_as_long_as_there_is_one(
        self, make_target: MakeTarget, old: Candidate, new: Candidate, kube: Kube, namespace: str
    ) -> None:
        released(make_target(OLD), old)
        target = make_target()
        epoch = target.acquire("test")
        prepared(target, new, epoch)
        shown = Traffic(weights={OLD: 100}, fallback=OLD, preview=NEW)
        target.apply(Shift(traffic=shown), new, epoch)
        assert target.observe().traffic.preview == NEW
        selector = kube.get("Service", "shop-preview", namespace)["spec"]["selector"]
        assert selector["shipctl.dev/revision"] == NEW[:10]
        target.apply(Shift(traffic=Traffic.only(NEW)), new, epoch)
        assert not kube.exists("Service", "shop-preview", namespace)
