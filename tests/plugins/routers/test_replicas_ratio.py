"""Router `replicas` on a real API server: pods are started and stopped by its own controllers."""

from __future__ import annotations

import time
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shipctl.errors import StageError
from shipctl.release.router import TrafficRouter
from shipctl.release.target import StaleEpochError
from shipctl.release.traffic import Traffic
from shipctl.testing.routers import asking
from shipctl_plugins._kubernetes.traffic.ratio import percentages, pods_for
from shipctl_plugins.routers.replicas_ratio import ReplicasRatio
from support_cluster import CLUSTER, wait_for
from support_routers import CANDIDATE, STABLE, Cluster, RoutersInACluster

# -- what weights come to, for which nothing has to run ------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "beside", "most", "pods"),
    [
        (5, 2, 2, 1),
        (25, 2, 2, 1),
        (50, 2, 2, 2),
        (75, 2, 2, 2),
        (5, 19, 19, 1),
        (10, 20, 20, 2),
        (20, 4, 4, 1),
        (1, 1, 1, 1),
    ],
)
def test_a_share_is_of_as_many_pods_as_come_nearest(weight: int, beside: int, most: int, pods: int) -> None:
    assert pods_for(weight, beside, most) == pods


@given(st.integers(1, 99), st.integers(1, 60), st.integers(1, 60))
def test_no_other_number_of_pods_is_nearer(weight: int, beside: int, most: int) -> None:
    def away(pods: int) -> Fraction:
        return abs(Fraction(pods, pods + beside) - Fraction(weight, 100))

    chosen = pods_for(weight, beside, most)
    assert 1 <= chosen <= most
    assert away(chosen) == min(away(pods) for pods in range(1, most + 1))


@given(st.dictionaries(st.sampled_from("abcde"), st.integers(0, 500), max_size=5))
@example({"a": 1, "b": 1, "c": 98, "d": 100})
def test_percentages_are_whole_and_nobody_who_has_pods_has_none(pods: dict[str, int]) -> None:
    found = percentages(pods)
    total = sum(pods.values())
    assert set(found) == {name for name, count in pods.items() if count}
    assert sum(found.values()) == (100 if total else 0)
    assert all(share >= 1 for share in found.values())
    for name, share in found.items():
        exact = Fraction(100 * pods[name], total)
        assert share == 1 or abs(share - exact) < len(pods)


def half(weight: int) -> Traffic:
    weights = {name: part for name, part in ((STABLE, 100 - weight), (CANDIDATE, weight)) if part}
    return Traffic(weights=weights, fallback=STABLE)


# -- on the control plane ------------------------------------------------------------------------------------


@pytest.fixture
def cluster(empty: Cluster) -> Cluster:
    """An app with two revisions of its own, since their numbers of pods change."""
    empty.add_revision(STABLE)
    empty.add_revision(CANDIDATE)
    return empty


@CLUSTER
@pytest.mark.slow
class TestConformance(RoutersInACluster):
    """Pods of a fake kubelet; a weight becomes numbers of them."""

    rounds = True

    @pytest.fixture
    def router(self, cluster: Cluster) -> TrafficRouter:
        self.cluster = cluster
        router: TrafficRouter = cluster.open(ReplicasRatio)
        return router

    def ask_many(self, router: TrafficRouter, times: int) -> list[str | None]:
        return self.cluster.through_service(self.cluster.app.name, times)


@pytest.fixture
def router(cluster: Cluster) -> ReplicasRatio:
    found: ReplicasRatio = cluster.open(ReplicasRatio)
    return found


def once(cluster: Cluster, router: Any, traffic: Traffic) -> Any:
    return router.set(traffic, cluster.backends, etag=router.get().etag, epoch=cluster.epoch)


def move(cluster: Cluster, router: Any, traffic: Traffic) -> Any:
    """Ask as often as a release does: until it is so."""
    until = time.monotonic() + 30
    while (said := once(cluster, router, traffic)).since is None:
        assert time.monotonic() < until
    return said


def pods(cluster: Cluster) -> dict[str, int]:
    """Return how many pods each Deployment asks for."""
    names = {"stable": STABLE, "candidate": CANDIDATE}
    return {
        name: cluster.get("Deployment", cluster.app.of(revision))["spec"]["replicas"]
        for name, revision in names.items()
    }


def reached(cluster: Cluster) -> Counter[str]:
    """Return how many pods of each revision the Service reaches."""
    return Counter(name.split("-")[1][0] for name in cluster.addresses("digits"))


@CLUSTER
@pytest.mark.slow
def test_a_canary_goes_up_in_pods_and_the_stable_revision_keeps_its_own(empty: Cluster) -> None:
    empty.add_revision(STABLE, 4)
    empty.add_revision(CANDIDATE, 4)
    router = empty.open(ReplicasRatio)
    move(empty, router, Traffic.only(STABLE))
    seen = []
    for weight in (5, 33, 50, 100):
        said = move(empty, router, half(weight))
        seen.append((pods(empty)["candidate"], said.traffic.weight(CANDIDATE), dict(reached(empty))))
        assert pods(empty)["stable"] == 4
        assert said.asked == (half(weight) if weight < 100 else half(100))
        assert said.traffic == router.effective(half(weight), {STABLE: 4, CANDIDATE: 4})
    assert seen == [
        (1, 20, {"a": 4, "c": 1}),
        (2, 33, {"a": 4, "c": 2}),
        (4, 50, {"a": 4, "c": 4}),
        (4, 100, {"c": 4}),
    ]


@CLUSTER
@pytest.mark.slow
def test_the_way_back_moves_connections_and_no_pods(cluster: Cluster, router: ReplicasRatio) -> None:
    move(cluster, router, half(50))
    before = pods(cluster)
    begun = time.monotonic()
    said = once(cluster, router, Traffic.only(STABLE))
    assert time.monotonic() - begun < 2
    assert said.traffic == Traffic.only(STABLE)
    assert said.since is not None
    assert dict(reached(cluster)) == {"a": 2}
    assert pods(cluster) == before


@CLUSTER
@pytest.mark.slow
def test_nobody_gets_more_than_his_share_while_pods_stop(empty: Cluster) -> None:
    """The candidate has all its pods when the Service begins to select it."""
    empty.add_revision(STABLE, 3)
    empty.add_revision(CANDIDATE, 3)
    router = empty.open(ReplicasRatio)
    move(empty, router, Traffic.only(STABLE))
    most = Counter[str]()

    def look() -> str:
        now = reached(empty)
        most["c"] = max(most["c"], now["c"])
        return "looked"

    with asking(look):
        move(empty, router, half(5))
    assert most["c"] == 1


@CLUSTER
@pytest.mark.slow
def test_pods_that_do_not_become_ready_leave_traffic_where_it_is(empty: Cluster) -> None:
    empty.add_revision(STABLE)
    empty.add_revision(CANDIDATE, 2, **{"fake-kubelet/never-ready": "true"})
    router = empty.open(ReplicasRatio)
    move(empty, router, Traffic.only(STABLE))
    said = once(empty, router, half(50))
    assert said.traffic.weights == {STABLE: 100}
    assert (said.since, said.asked) == (None, None)
    assert said == router.get()
    assert dict(reached(empty)) == {"a": 2}
    home = once(empty, router, Traffic.only(STABLE))
    assert home.since is not None


@CLUSTER
@pytest.mark.slow
def test_pods_that_start_slowly_are_waited_for_by_asking_again(empty: Cluster) -> None:
    empty.add_revision(STABLE)
    empty.add_revision(CANDIDATE, 1, **{"fake-kubelet/ready-after": "7"})
    router = empty.open(ReplicasRatio)
    move(empty, router, Traffic.only(STABLE))
    first = once(empty, router, half(33))
    assert first.since is None
    said = move(empty, router, half(33))
    assert said.traffic.weights == {STABLE: 67, CANDIDATE: 33}
    assert said.asked == half(33)


@CLUSTER
@pytest.mark.slow
def test_a_pod_that_dies_changes_what_is_effective_and_not_what_was_asked(
    cluster: Cluster, router: ReplicasRatio
) -> None:
    before = move(cluster, router, half(50))
    name = next(name for name in cluster.addresses("digits") if "-a" in name)
    not_ready = {"conditions": [{"type": "Ready", "status": "False"}]}
    cluster.kube.set_status("Pod", name, cluster.app.namespace, not_ready)
    wait_for(lambda: reached(cluster)["a"] == 1)
    seen = router.get()
    assert seen.asked == half(50)
    assert seen.traffic.weights == {STABLE: 33, CANDIDATE: 67}
    assert seen.etag == before.etag


@CLUSTER
@pytest.mark.slow
def test_a_number_of_pods_that_somebody_has_changed_is_seen_and_put_right(
    cluster: Cluster, router: ReplicasRatio
) -> None:
    move(cluster, router, half(5))
    assert pods(cluster) == {"stable": 2, "candidate": 1}
    cluster.kube.patch(
        "Deployment", cluster.app.of(CANDIDATE), cluster.app.namespace, {"spec": {"replicas": 5}}
    )
    wait_for(lambda: reached(cluster)["c"] == 5)
    seen = router.get()
    assert seen.asked is None
    assert seen.traffic.weights == {STABLE: 29, CANDIDATE: 71}
    said = move(cluster, router, half(5))
    assert said.asked == half(5)
    assert said.traffic.weights == {STABLE: 67, CANDIDATE: 33}


@CLUSTER
@pytest.mark.slow
def test_one_who_was_overtaken_stops_no_pods(cluster: Cluster, router: ReplicasRatio) -> None:
    before = move(cluster, router, half(50))
    past = cluster.epoch
    late = cluster.open(ReplicasRatio)
    object.__setattr__(late.ctx, "guard", lambda _epoch: None)
    rescale = late._pods.rescale

    def be_suspended_and_go_on(*args: Any) -> None:
        cluster.take_over()
        once(cluster, router, half(50))
        rescale(*args)

    late._pods.rescale = be_suspended_and_go_on
    with pytest.raises(StaleEpochError, match=f"Deployment digits-{CANDIDATE[:10]} was written by somebody"):
        late.set(half(5), cluster.backends, etag=before.etag, epoch=past)
    assert pods(cluster) == {"stable": 2, "candidate": 2}


@CLUSTER
@pytest.mark.slow
def test_pods_are_replaced_behind_a_service_that_selects_all(empty: Cluster) -> None:
    """As a rolling release does: who has ready pods gets connections, until only one is left."""
    empty.add_revision(STABLE, 3)
    router = empty.open(ReplicasRatio)
    move(empty, router, Traffic.only(STABLE))
    empty.add_revision(CANDIDATE, 1)
    goal = Traffic(weights={CANDIDATE: 100}, fallback=STABLE)
    one = router.follow(
        goal, {STABLE: 3, CANDIDATE: 1}, empty.backends, etag=router.get().etag, epoch=empty.epoch
    )
    assert one.since is None
    assert one.asked is None
    seen = wait_for(lambda: (found := router.get()).traffic.weights == {STABLE: 75, CANDIDATE: 25} and found)
    again = router.follow(goal, {STABLE: 3, CANDIDATE: 1}, empty.backends, etag=seen.etag, epoch=empty.epoch)
    assert again == seen
    assert pods(empty) == {"stable": 3, "candidate": 1}, "whoever replaces pods counts them"
    said = move(empty, router, goal)
    assert said.traffic.weights == {CANDIDATE: 100}
    assert pods(empty) == {"stable": 3, "candidate": 1}


@CLUSTER
@pytest.mark.slow
def test_shares_of_three_revisions_are_refused(cluster: Cluster, router: ReplicasRatio) -> None:
    traffic = Traffic(weights={STABLE: 50, CANDIDATE: 25, "f" * 64: 25})
    with pytest.raises(StageError, match="between two revisions, not more"):
        once(cluster, router, traffic)
