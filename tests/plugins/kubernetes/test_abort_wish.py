"""What drives a release hears through its ConfigMap that it is to abort that, and writes on beside it."""

from __future__ import annotations

from typing import cast

import pytest

from shipctl.engine import aborting
from shipctl.engine.keeping import Keeper
from shipctl.engine.place import Place as EnginePlace
from shipctl.errors import LockedError
from shipctl.release.records import AbortWish, Records, ReleaseRecord
from shipctl.spec.units import Duration
from shipctl.stages.base import Phase
from shipctl_plugins._kubernetes.api.access import Access
from shipctl_plugins._kubernetes.api.connection import connect
from shipctl_plugins._kubernetes.app import App, Place
from shipctl_plugins._kubernetes.records import ConfigMapRecords
from support_cluster import CLUSTER, ControlPlane, Kube

WISH = AbortWish(number=1, reason="superseded by 2.0.0", newer="2.0.0")


class Shown:
    """As much of a place as a keeper of records looks at."""

    label = "kubernetes"

    class node:  # noqa: N801
        id = "release"

    def __init__(self, records: ConfigMapRecords) -> None:
        self.records = records


def record(phase: Phase = Phase.ANALYSING, *, run: str = "mine") -> ReleaseRecord:
    return ReleaseRecord(
        number=1, revision="a" * 64, version="1.0.0", intent="apply", run=run, user="u", phase=phase, started=1.0,
        updated=2.0,
    )  # fmt: skip


@CLUSTER
def test_a_wish_is_heard_and_taken_away_at_the_end(
    control_plane: ControlPlane, namespace: str, kube: Kube
) -> None:
    access = Access(kubeconfig=str(control_plane.kubeconfig), namespace=namespace, timeout=Duration("5s"))
    place = Place(connect(access, control_plane.folder, lambda _line: None), App("shop", namespace, "shop"))
    mine, theirs = (ConfigMapRecords(lambda: place, "release") for _ in range(2))
    keeper = Keeper(cast("EnginePlace", Shown(mine)), Records(), "")
    keeper.save(record())
    aborting.ask(theirs, WISH)
    kube.patch("ConfigMap", "shop-records-release", namespace, {"metadata": {"labels": {"team": "vision"}}})
    keeper.look("1.0.0")
    assert keeper.wish(1) == WISH
    keeper.save(record(Phase.ABORTING))
    assert theirs.load()[0].abort == WISH
    keeper.save(record(Phase.ROLLED_BACK))
    assert theirs.load()[0].abort is None
    aborting.ask(theirs, WISH)
    assert theirs.load()[0].abort is None, "it is over"
    records, etag = theirs.load()
    theirs.save(records.put(record(run="other")), etag)
    with pytest.raises(
        LockedError, match="another process has taken over what release releases on kubernetes"
    ):
        keeper.look("1.0.0")
