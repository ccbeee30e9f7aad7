"""Publication and garbage collection on the stores that ship with shipctl."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shipctl.errors import LockedError
from shipctl.spec.models import StoreSpec
from shipctl.stages.artifacts import Dataset, FileEntry
from shipctl.store import leases
from shipctl.store.depot import Depot, Transferred, blob_key
from shipctl.store.gc import DAY, collect
from shipctl.store.leases import CollectorLock
from shipctl.store.local import LocalStore
from shipctl.store.objects import ObjectStore, open_store
from support_s3 import S3Server, moto_server, use
from support_store import put


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with moto_server() as server:
        yield server


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.slow)])
def objects(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ObjectStore]:
    if request.param == "file":
        spec = StoreSpec(uri="shared")
    else:
        server = request.getfixturevalue("moto")
        use(monkeypatch, server)
        spec = server.spec(prefix="models")
    with open_store(spec, tmp_path) as store:
        yield store


def artifact(local: LocalStore, *texts: str) -> Dataset:
    files: tuple[FileEntry, ...] = tuple(put(local, text.encode(), f"{text}.bin") for text in texts)
    return Dataset(role="golden", files=files)


def test_what_is_kept_can_be_fetched_and_the_rest_is_gone(objects: ObjectStore, tmp_path: Path) -> None:
    local, other = LocalStore(tmp_path / "local"), LocalStore(tmp_path / "other")
    kept, gone = artifact(local, *map(str, range(80))), artifact(local, "1", "x", "y")
    depot = Depot(objects, local)
    assert depot.publish(kept).sent == 80
    assert depot.publish(gone) == Transferred(2, 2, 1, 1)
    assert collect(objects, extra_roots=[kept.digest]).deleted == 0
    soon = time.time() + 2 * DAY
    collected = collect(objects, extra_roots=[kept.digest], now=soon)
    assert (collected.files.deleted, collected.manifests.deleted, collected.files.kept) == (2, 1, 80)
    assert Depot(objects, other).fetch(kept.files).sent == 80
    assert depot.manifest(gone.digest) is None
    assert depot.publish(gone) == Transferred(2, 2, 1, 1)
    collect(objects, now=soon)
    assert [info.key for info in objects.list("")] == [leases.CLOCK] or list(objects.list("")) == []


def test_a_publication_waits_for_a_collection(objects: ObjectStore, tmp_path: Path) -> None:
    local = LocalStore(tmp_path / "local")
    made = artifact(local, "a")
    lock = CollectorLock(objects)
    lock.acquire()
    with pytest.raises(LockedError), leases.leased(objects, made.files, wait=0):
        pass
    with pytest.raises(LockedError):
        collect(objects)
    lock.check()
    lock.release()
    assert Depot(objects, local).publish(made).sent == 1
    assert objects.stat(blob_key(made.files[0].sha256)) is not None
    assert list(objects.list("leases/")) == []
