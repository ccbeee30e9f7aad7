"""Garbage collection, and how it keeps out of the way of publications."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shipctl.errors import LockedError, StoreError
from shipctl.records import canonical_json
from shipctl.signature import Signature
from shipctl.stages.artifacts import ModelPackage
from shipctl.store import gc, leases, roots
from shipctl.store.depot import Depot, blob_key, manifest_key, result_key
from shipctl.store.gc import DAY, Collected, collect
from shipctl.store.leases import LIFETIME, MARGIN, LeaseRecord
from shipctl.store.local import LocalStore, Result
from shipctl.store.log import Heads
from shipctl.store.models import ModelRegistry
from shipctl.store.objects import ObjectStore
from support_store import Killed, MemoryStore, Process, Shelf, put

TENSOR = {"name": "x", "dtype": "float32", "shape": ["batch", 4]}
SIGNATURE = Signature.model_validate({"inputs": [TENSOR], "outputs": [{**TENSOR, "name": "y"}]})


class World:
    """A store in memory, a local store, and what people do with them."""

    def __init__(self, tmp_path: Path) -> None:
        self.shelf = Shelf()
        self.objects = MemoryStore(self.shelf)
        self.local = LocalStore(tmp_path / "local")
        self.processes: list[Process] = []

    def package(self, version: str, *contents: str) -> ModelPackage:
        files = tuple(put(self.local, text.encode(), f"{number}.bin") for number, text in enumerate(contents))
        return ModelPackage(
            name="digits",
            version=version,
            model="0" * 64,
            signature=SIGNATURE,
            files=files,
        )

    def publish(
        self, package: ModelPackage, objects: ObjectStore | None = None, *, outer: bool = True
    ) -> None:
        """Publish and register, as the stage does."""
        depot = Depot(objects or self.objects, self.local, jobs=1)
        registry = ModelRegistry(depot.objects, now=lambda: self.shelf.now)
        if outer:
            with depot.leased(package.files, manifests=[package.digest]):
                depot.publish(package)
                registry.register(package, lineage={})
        else:
            depot.publish(package)
            registry.register(package, lineage={})

    @property
    def registry(self) -> ModelRegistry:
        return ModelRegistry(self.objects, now=lambda: self.shelf.now)

    def collect(self, **options: float | bool) -> Collected:
        return collect(self.objects, **options)  # type: ignore[arg-type]

    def later(self, seconds: float) -> None:
        self.shelf.now += seconds

    def process(self, work: Callable[[ObjectStore], object]) -> Process:
        made = Process(self.shelf, work)
        self.processes.append(made)
        return made

    def blobs(self) -> set[str]:
        return {key.rpartition("/")[2] for key in self.shelf.keys("blobs/")}

    def missing(self, package: ModelPackage) -> set[str]:
        """Return what the store lacks of a package."""
        needed = {blob_key(entry.sha256) for entry in package.files} | {manifest_key(package.digest)}
        return needed - set(self.shelf.objects)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path)
    monkeypatch.setattr(leases, "elapsed", lambda: made.shelf.now)
    monkeypatch.setattr(leases, "pause", Process.pause)
    monkeypatch.setattr(gc.time, "time", lambda: made.shelf.now)  # type: ignore[attr-defined]
    yield made
    for process in made.processes:
        process.kill()


def digests(package: ModelPackage) -> set[str]:
    return {entry.sha256 for entry in package.files}


# -- what stays and what goes ----------------------------------------------------------------------------------


def test_an_empty_store(world: World) -> None:
    collected = world.collect()
    assert (collected.kept, collected.deleted, collected.freed_bytes) == (0, 0, 0)
    assert world.shelf.keys() == []


def test_what_nothing_refers_to_goes_when_it_is_old(world: World) -> None:
    Depot(world.objects, world.local).publish(world.package("1.0.0", "one", "two"))
    world.later(DAY - 1)
    assert world.collect().deleted == 0
    world.later(2)
    collected = world.collect()
    assert (collected.files.deleted, collected.files.deleted_bytes, collected.manifests.deleted) == (2, 6, 1)
    assert world.shelf.keys() == []


def test_versions_stay_and_files_that_they_share(world: World) -> None:
    kept, gone = world.package("1.0.0", "one", "two"), world.package("2.0.0", "two", "three")
    world.publish(kept)
    Depot(world.objects, world.local).publish(gone)
    world.later(2 * DAY)
    collected = world.collect()
    assert (collected.versions, collected.files.kept, collected.files.deleted) == (1, 2, 1)
    assert world.blobs() == digests(kept)
    assert not world.missing(kept)


def test_a_retired_version_stays_for_a_while(world: World) -> None:
    package = world.package("1.0.0", "one")
    world.publish(package)
    world.later(2 * DAY)
    world.registry.retire("digits@1.0.0")
    world.later(10 * DAY)
    world.collect()
    assert not world.missing(package)
    world.collect(keep_retired=11 * DAY)
    assert not world.missing(package)
    world.collect(keep_retired=9 * DAY)
    assert world.blobs() == set()


def test_what_a_target_serves_or_goes_back_to_stays(world: World) -> None:
    served, published = world.package("1.0.0", "one"), world.package("1.1.0", "two")
    depot = Depot(world.objects, world.local)
    depot.push(served.files)
    depot.publish(published)
    body = {
        "pipeline": "digits",
        "stage": "release",
        "target": "local",
        "host": "here",
        "serving": [published.digest],
        "manifests": ["f" * 64],
        "files": sorted(digests(served)),
        "updated": 0,
    }
    world.objects.write("deployments/a.json", canonical_json(body))
    world.later(400 * DAY)
    collected = world.collect()
    assert collected.deployments == 1
    assert world.blobs() == digests(served) | digests(published)
    world.objects.delete(["deployments/a.json"])
    world.collect()
    assert world.blobs() == set()


def test_results_stay_for_a_month_with_their_files(world: World) -> None:
    package = world.package("1.0.0", "one", "two")
    result = Result(
        fingerprint="a" * 64, uses="x", outputs={"model": package.manifest()}, created=0.0, seconds=0.0
    )
    Depot(world.objects, world.local).share(result)
    world.later(20 * DAY)
    collected = world.collect()
    assert (collected.results.kept, world.blobs()) == (1, digests(package))
    world.later(11 * DAY)
    collected = world.collect()
    assert (collected.results.deleted, collected.files.deleted) == (1, 2)
    assert world.shelf.keys() == []


def test_a_result_of_another_version_of_shipctl_keeps_its_files(world: World) -> None:
    package = world.package("1.0.0", "one")
    Depot(world.objects, world.local).push(package.files)
    body = json.dumps({"new": [{"field": package.manifest()}]}).encode()
    stored = gc.hashlib.sha256(body).hexdigest().encode() + b"\n" + body  # type: ignore[attr-defined]
    world.objects.write(result_key("a" * 64), stored)
    world.later(2 * DAY)
    world.collect()
    assert world.blobs() == digests(package)


def test_a_damaged_result_is_none(world: World) -> None:
    world.objects.write(result_key("a" * 64), b"damaged")
    world.later(2 * DAY)
    assert world.collect().results.deleted == 1


def test_extra_roots_are_files_or_artifacts(world: World) -> None:
    file, artifact = world.package("1.0.0", "one"), world.package("2.0.0", "two")
    depot = Depot(world.objects, world.local)
    depot.push(file.files)
    depot.publish(artifact)
    world.later(2 * DAY)
    collect(world.objects, extra_roots=[*digests(file), artifact.digest, "e" * 64])
    assert world.blobs() == digests(file) | digests(artifact)
    assert not world.missing(artifact)


def test_foreign_objects_logs_and_deployments_are_not_touched(world: World) -> None:
    keys = ["blobs/readme.txt", "blobs/ab/" + "0" * 64, "other/x", "audit/00000001.json", "gc/other"]
    for key in keys:
        world.objects.write(key, b"x")
    world.later(400 * DAY)
    world.collect()
    assert set(keys) <= set(world.shelf.keys())


def test_unfinished_uploads_and_leases_of_the_dead_go(world: World) -> None:
    world.shelf.begun = {"old": world.shelf.now - 2 * DAY, "new": world.shelf.now}
    package = world.package("1.0.0", "one")
    publisher = world.process(lambda objects: world.publish(package, objects, outer=False))
    publisher.run_to("upload")
    publisher.kill()
    assert len(world.shelf.keys("leases/")) == 1
    assert world.collect().unfinished == 1
    assert list(world.shelf.begun) == ["new"]
    assert len(world.shelf.keys("leases/")) == 1
    world.later(LIFETIME + 1)
    world.collect()
    assert world.shelf.keys("leases/") == []


def test_a_dry_run_writes_nothing_and_says_the_same(world: World) -> None:
    world.publish(world.package("1.0.0", "one"))
    Depot(world.objects, world.local).publish(world.package("2.0.0", "one", "two"))
    world.later(2 * DAY)
    before = dict(world.shelf.objects)
    dry = world.collect(dry_run=True)
    assert world.shelf.objects == before
    wet = world.collect()
    assert (dry.files.deleted, dry.manifests.deleted, dry.dry_run) == (1, 1, True)
    assert wet == dry.model_copy(update={"dry_run": False})


def test_thousands_go_in_batches(world: World) -> None:
    for number in range(2500):
        digest = f"{number:064x}"
        world.shelf.objects[blob_key(digest)] = (b"x", 0.0)
    requests: list[str] = []
    objects = MemoryStore(world.shelf, lambda op, key: requests.append(op) if "blobs" in key else None)
    assert collect(objects).files.deleted == 2500
    assert requests.count("delete") == 3


# -- what cannot be read stops it ------------------------------------------------------------------------------


def refused(world: World) -> str:
    before = set(world.shelf.objects)
    with pytest.raises(StoreError) as caught:
        world.collect()
    assert before - {leases.CLOCK} <= set(world.shelf.objects), "something was deleted"
    assert leases.LOCK not in world.shelf.objects
    return str(caught.value)


@pytest.fixture
def garbage(world: World) -> ModelPackage:
    """Something old that a collection would delete, and a version that it must keep."""
    kept = world.package("1.0.0", "one")
    world.publish(kept)
    Depot(world.objects, world.local).publish(world.package("2.0.0", "two"))
    world.later(2 * DAY)
    return kept


def test_a_damaged_manifest_of_a_version(world: World, garbage: ModelPackage) -> None:
    key = manifest_key(garbage.digest)
    world.objects.write(key, b"{}")
    assert refused(world) == (
        "nothing was deleted from memory://shelf: it cannot be told what digits@1.0.0 needs: "
        f"{key} in memory://shelf is damaged: it is not what its name says; publish it again"
    )


def test_a_missing_manifest_of_a_version(world: World, garbage: ModelPackage) -> None:
    key = manifest_key(garbage.digest)
    world.objects.delete([key])
    assert refused(world) == (
        "nothing was deleted from memory://shelf: it cannot be told what digits@1.0.0 needs: "
        f"{key} is missing; publish that version again, or retire it"
    )
    world.registry.retire("digits@1.0.0")
    world.collect()


def test_a_manifest_in_an_unknown_form(world: World, garbage: ModelPackage) -> None:
    body = canonical_json({"kind": "new", "files": {"a": "b"}})
    digest = gc.hashlib.sha256(body).hexdigest()  # type: ignore[attr-defined]
    world.objects.write(manifest_key(digest), body)
    assert refused(world) == (
        f"nothing was deleted from memory://shelf: it cannot be told what {manifest_key(digest)} needs: "
        "its files are no list of digests"
    )


def test_a_registry_that_was_cut(world: World, tmp_path: Path) -> None:
    packages = [world.package("1.0.0", "one"), world.package("2.0.0", "two")]
    for package in packages:
        world.publish(package)
    world.later(2 * DAY)
    heads = Heads(tmp_path / "heads.json")
    collect(world.objects, heads=heads)
    world.objects.delete(["registry/digits/00000002.json"])
    with pytest.raises(
        StoreError, match=r"^nothing was deleted from memory://shelf: .* the registry needs: "
    ):
        collect(world.objects, heads=heads)
    assert not world.missing(packages[1])


def test_a_damaged_log_of_a_model(world: World, garbage: ModelPackage) -> None:
    world.objects.write("registry/digits/00000001.json", b"{}")
    assert refused(world).startswith(
        "nothing was deleted from memory://shelf: it cannot be told what the registry needs: entry 1 of "
    )


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"files": ["x"], "manifests": []}', b'{"files": [], "manifests": "x"}']
)
def test_a_deployment_in_an_unknown_form(world: World, garbage: ModelPackage, body: bytes) -> None:
    world.objects.write("deployments/a.json", body)
    message = refused(world)
    assert message.startswith(
        "nothing was deleted from memory://shelf: it cannot be told what deployments/a.json needs: "
    )
    assert message.endswith("; if that target is gone, remove the object")


def test_a_lease_in_an_unknown_form_until_it_has_run_out(world: World, garbage: ModelPackage) -> None:
    world.objects.write("leases/a.json", b"{}")
    assert refused(world) == (
        "nothing was deleted from memory://shelf: it cannot be told what leases/a.json needs: "
        "3 errors; wait a quarter of an hour, it runs out"
    )
    world.later(LIFETIME + 1)
    assert world.collect().deleted == 2
    assert world.shelf.keys("leases/") == []


# -- publications and collections at the same time -------------------------------------------------------------


@pytest.fixture
def old(world: World) -> ModelPackage:
    """A package that was published long ago and is referred to by nothing."""
    package = world.package("1.0.0", "one", "two")
    Depot(world.objects, world.local).publish(package)
    world.later(2 * DAY)
    return package


def test_a_publication_before_the_lock_is_seen_by_its_lease(world: World, old: ModelPackage) -> None:
    publisher = world.process(lambda objects: world.publish(old, objects))
    publisher.run_to("write", "manifests/")  # it has found everything there and relies on it
    collected = world.collect()
    assert (collected.leases, collected.deleted) == (2, 0)
    publisher.finish()
    assert not world.missing(old)


def test_without_looking_at_leases_it_would_lose_the_files(
    world: World, old: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roots, "_add_leases", lambda *_: None)
    publisher = world.process(lambda objects: world.publish(old, objects))
    publisher.run_to("write", "manifests/")
    world.collect()
    publisher.finish()
    assert world.missing(old)


def test_a_publication_after_the_lock_waits(world: World, old: ModelPackage) -> None:
    said: list[str] = []
    collector = world.process(collect)
    collector.run_to("delete", "blobs/")  # it has read the leases, and there were none

    def publish(objects: ObjectStore) -> None:
        depot = Depot(objects, world.local, jobs=1, log=said.append)
        with depot.leased(old.files, manifests=[old.digest]):
            depot.publish(old)

    publisher = world.process(publish)
    for _ in range(50):
        publisher.step()
    assert publisher.history.count(("pause", "")) > 3
    assert not any(key.startswith("blobs/") for _, key in publisher.history)
    assert len(said) == 1
    assert said[0].startswith("waiting until ")
    assert said[0].endswith(") has collected memory://shelf")
    collector.finish()
    publisher.finish()
    assert not world.missing(old)


def test_without_looking_at_the_lock_it_would_lose_the_files(
    world: World, old: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_wait_for_collection", lambda *_: None)
    collector = world.process(collect)
    collector.run_to("delete", "blobs/")
    publisher = world.process(lambda objects: world.publish(old, objects))
    publisher.finish()
    collector.finish()
    assert world.missing(old)


def test_waiting_has_an_end(world: World, old: ModelPackage) -> None:
    collector = world.process(collect)
    collector.run_to("delete", "blobs/")

    def publish(objects: ObjectStore) -> None:
        with leases.leased(objects, old.files, wait=100):
            pass

    publisher = world.process(publish)
    publisher.run_to("pause")
    world.later(101)
    with pytest.raises(LockedError) as caught:
        publisher.finish()
    message = str(caught.value)
    assert message.startswith("memory://shelf is being collected by ")
    assert message.endswith("; when `shipctl gc` is over, run this again")
    assert world.shelf.keys("leases/") == []


def test_a_dead_collection_is_waited_for_until_its_lock_ran_out(world: World, old: ModelPackage) -> None:
    collector = world.process(collect)
    collector.run_to("delete", "manifests/")
    collector.kill()
    publisher = world.process(lambda objects: world.publish(old, objects))
    publisher.run_to("pause")
    world.later(LIFETIME + 1)
    publisher.finish()
    assert not world.missing(old)


def test_there_is_one_collection_at_a_time(world: World, old: ModelPackage) -> None:
    collector = world.process(collect)
    collector.run_to("list", "leases/")
    with pytest.raises(LockedError) as caught:
        world.collect()
    assert str(caught.value).startswith("memory://shelf is being collected by ")
    assert str(caught.value).endswith("; run this again when that is over")
    collector.finish()
    assert world.collect().deleted == 0


def test_the_lock_of_a_dead_collection_is_taken_over(world: World, old: ModelPackage) -> None:
    collector = world.process(collect)
    collector.run_to("list", "leases/")
    collector.kill()
    world.later(LIFETIME + 1)
    assert world.collect().deleted == 3
    assert leases.LOCK not in world.shelf.objects


def frozen(world: World, old: ModelPackage, *, thaws: float) -> Process:
    """A collection that was frozen before it looked at its lock, taken over, and overtaken by a publication."""
    collector = world.process(collect)
    collector.run_to("list", "blobs/")
    collector.step()  # it has listed the files
    world.later(thaws)
    return collector


def test_a_collection_that_was_taken_over_stops(world: World, old: ModelPackage) -> None:
    collector = frozen(world, old, thaws=LIFETIME + 1)
    other = world.process(collect)
    other.run_to("list", "leases/")
    with pytest.raises(
        LockedError, match=r"^memory://shelf is being collected by .*; run this again when that is"
    ):
        collector.finish()
    other.finish()


def test_a_collection_that_was_held_up_stops_before_others_count_it_as_gone(
    world: World, old: ModelPackage
) -> None:
    collector = frozen(world, old, thaws=LIFETIME - MARGIN + 1)
    before = world.blobs()
    with pytest.raises(StoreError) as caught:
        collector.finish()
    assert str(caught.value) == (
        "this collection of memory://shelf was held up for so long that its lock ran out; "
        "nothing was deleted since then; run it again"
    )
    assert world.blobs() == before


def test_a_frozen_collection_deletes_nothing_of_a_later_publication(world: World, old: ModelPackage) -> None:
    collector = frozen(world, old, thaws=LIFETIME + 1)
    world.publish(old)
    with pytest.raises(StoreError):
        collector.finish()
    assert not world.missing(old)


def test_without_looking_at_its_lock_again_it_would(
    world: World, old: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases.CollectorLock, "check", lambda _: None)
    collector = frozen(world, old, thaws=LIFETIME + 1)
    world.publish(old)
    collector.finish()
    assert world.missing(old)


def test_long_collections_renew_their_lock(world: World, old: ModelPackage) -> None:
    collector = world.process(collect)
    while not collector.done:
        collector.step()
        world.later(60)
    assert collector.error is None
    assert collector.history.count(("write", leases.LOCK)) >= 2
    assert world.blobs() == set()


def test_a_publication_that_was_frozen_looks_again(world: World, old: ModelPackage) -> None:
    publisher = world.process(lambda objects: world.publish(old, objects))
    publisher.run_to("write", "manifests/")
    world.later(LIFETIME + 1)
    assert world.collect().deleted == 3
    publisher.finish()
    assert not world.missing(old)


def test_without_noticing_that_its_lease_ran_out_it_would_not(
    world: World, old: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases.Lease, "holds", True)
    publisher = world.process(lambda objects: world.publish(old, objects))
    publisher.run_to("write", "manifests/")
    world.later(LIFETIME + 1)
    world.collect()
    publisher.finish()
    assert world.missing(old)


def test_a_publication_that_is_always_frozen_gives_up(world: World, old: ModelPackage) -> None:
    publisher = world.process(lambda objects: world.publish(old, objects, outer=False))
    for _ in range(3):
        publisher.run_to("write", "manifests/")
        world.later(LIFETIME)
        publisher.step()
    with pytest.raises(StoreError) as caught:
        publisher.finish()
    assert str(caught.value) == (
        "this machine was held up again and again while it published to memory://shelf, so that what it "
        "had found there may be gone; run the same command again"
    )


def test_a_lease_says_who_holds_what_and_is_given_back(world: World) -> None:
    package = world.package("1.0.0", "one")
    with leases.leased(world.objects, package.files, manifests=[package.digest]) as lease:
        (key,) = world.shelf.keys("leases/")
        record = LeaseRecord.model_validate_json(world.shelf.objects[key][0])
        assert (record.files, record.manifests) == ((package.files[0].sha256,), (package.digest,))
        assert record.owner.endswith(")")
        assert lease.holds
        world.later(LIFETIME)
        assert not lease.holds
    assert world.shelf.keys("leases/") == []


def test_a_lease_is_renewed_while_it_is_held(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEWAL", 0.01)
    written = gc.time.monotonic  # type: ignore[attr-defined]
    with leases.leased(world.objects) as lease:
        (key,) = world.shelf.keys("leases/")
        begun = world.shelf.objects[key][1]
        deadline = written() + 10
        while written() < deadline and world.shelf.objects[key][1] < begun + LIFETIME:
            world.later(200)
            gc.time.sleep(0.02)  # type: ignore[attr-defined]
        assert world.shelf.objects[key][1] >= begun + LIFETIME
        assert lease.holds


def test_a_late_renewal_does_not_hide_that_the_lease_ran_out(world: World) -> None:
    record = LeaseRecord(owner="me", lifetime=LIFETIME, files=())
    mark = leases._Mark(world.objects, "leases/a.json", record)
    mark.renew()
    world.later(LIFETIME)
    mark.renew()
    assert not mark.holds


def test_a_killed_publication_leaves_nothing_for_ever(world: World) -> None:
    package = world.package("1.0.0", "one", "two", "three")
    for op in ("read", "stat", "upload", "write", "delete"):
        publisher = world.process(lambda objects: Depot(objects, world.local, jobs=1).publish(package))
        publisher.step()
        publisher.step()
        publisher.run_to(op)
        publisher.kill()
        assert isinstance(publisher.error, Killed)
    world.later(400 * DAY)
    world.collect()
    assert world.blobs() == set()
