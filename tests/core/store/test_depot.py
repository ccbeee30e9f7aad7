"""Artifacts in an object store, with the local store as the working copy."""

from __future__ import annotations

import gc
import hashlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from shipctl.errors import CorruptArtifactError, StoreError
from shipctl.records import canonical_json
from shipctl.spec.models import StoreSpec
from shipctl.stages.artifacts import Dataset, FileEntry
from shipctl.store.depot import (
    Depot,
    Transferred,
    blob_key,
    manifest_key,
    open_depot,
    result_files,
    result_key,
)
from shipctl.store.local import LocalStore, Result
from shipctl.store.objects import Moved, ObjectStore
from support_store import MemoryStore, put


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "local")


@pytest.fixture
def other(tmp_path: Path) -> LocalStore:
    """The working copy of another machine."""
    return LocalStore(tmp_path / "other")


class Recorded(MemoryStore):
    """Remembers every request."""

    def __init__(self) -> None:
        super().__init__(before=lambda op, key: self.requests.append((op, key)))
        self.requests: list[tuple[str, str]] = []

    def count(self, op: str, prefix: str = "") -> int:
        return len([key for found, key in self.requests if found == op and key.startswith(prefix)])


@pytest.fixture
def objects() -> Recorded:
    return Recorded()


@pytest.fixture
def depot(objects: Recorded, local: LocalStore) -> Depot:
    return Depot(objects, local)


def many(local: LocalStore, count: int) -> list[FileEntry]:
    return [put(local, f"file {number}".encode(), f"{number}.bin") for number in range(count)]


def result_of(artifact: Dataset) -> Result:
    passed = artifact.model_copy(update={"role": "passed"})
    return Result(
        fingerprint="a" * 64,
        uses="x",
        outputs={"data": artifact.manifest(), "same": passed.manifest()},
        passed={"same": "b" * 64},
        created=1.0,
        seconds=2.0,
    )


# -- sending ---------------------------------------------------------------------------------------------------


def test_each_digest_is_sent_once(depot: Depot, objects: Recorded, local: LocalStore) -> None:
    one, two = put(local, b"one", "a"), put(local, b"two!", "b")
    twice = one.model_copy(update={"path": "c"})
    moved: list[int] = []
    assert depot.push([one, two, twice], moved=moved.append) == Transferred(2, 7, 0, 0)
    assert (sorted(moved), objects.count("upload")) == ([3, 4], 2)
    assert objects.shelf.objects[blob_key(one.sha256)][0] == b"one"
    three = put(local, b"three")
    assert depot.push([one, two, three]) == Transferred(1, 5, 2, 7)
    assert objects.count("upload") == 3


def test_nothing_to_send(depot: Depot, objects: Recorded) -> None:
    assert depot.push([]) == Transferred(0, 0, 0, 0)
    assert objects.requests == []


def test_a_file_with_another_size_is_sent_again(depot: Depot, objects: Recorded, local: LocalStore) -> None:
    entry = put(local, b"whole")
    objects.write(blob_key(entry.sha256), b"half")
    assert depot.push([entry]).sent == 1
    assert objects.read(blob_key(entry.sha256)) == b"whole"


def test_known_files_are_not_asked_for(depot: Depot, objects: Recorded, local: LocalStore) -> None:
    files = many(local, 5)
    known = {entry.sha256 for entry in files[:4]}
    assert depot.push(files, known=known) == Transferred(1, 6, 4, 24)
    assert (objects.count("stat"), objects.count("upload")) == (1, 1)


def test_many_files_are_looked_up_by_listing(depot: Depot, objects: Recorded, local: LocalStore) -> None:
    files = many(local, 100)
    depot.push(files[:50])
    objects.requests.clear()
    assert depot.push(files) == Transferred(
        50, sum(f.size for f in files[50:]), 50, sum(f.size for f in files[:50])
    )
    assert (objects.count("list"), objects.count("stat"), objects.count("upload")) == (1, 0, 50)


def test_a_listing_that_takes_too_long_is_left_for_single_questions(
    depot: Depot, objects: Recorded, local: LocalStore
) -> None:
    files = many(local, 100)
    depot.push(files[:50])
    for number in range(3200):  # twice as many as a listing is worth
        digest = hashlib.sha256(f"foreign {number}".encode()).hexdigest()
        objects.shelf.objects[blob_key(digest)] = (b"x", 0.0)
    objects.requests.clear()
    assert depot.push(files).reused == 50
    assert objects.count("list") == 1
    assert 20 < objects.count("stat") < 80


def test_damaged_files_are_not_sent(depot: Depot, objects: Recorded, local: LocalStore) -> None:
    entry = put(local, b"bytes")
    blob = local.blob(entry.sha256)
    blob.chmod(0o644)
    blob.write_bytes(b"bytez")
    with pytest.raises(CorruptArtifactError) as caught:
        depot.push([entry])
    assert caught.value.digest == entry.sha256
    assert str(caught.value).startswith("model.onnx in the store is damaged: its digest is ")
    assert objects.shelf.objects == {}


def test_a_file_that_is_missing_or_short_is_named_before_anything_is_sent(
    depot: Depot, objects: Recorded, local: LocalStore
) -> None:
    entry = put(local, b"bytes")
    blob = local.blob(entry.sha256)
    blob.chmod(0o644)
    blob.write_bytes(b"byte")
    with pytest.raises(CorruptArtifactError, match=r"^model\.onnx in the store is damaged: its digest is "):
        depot.push([entry])
    blob.unlink()
    with pytest.raises(CorruptArtifactError) as caught:
        depot.push([entry])
    assert str(caught.value) == f"model.onnx ({entry.sha256[:12]}) is missing from the store"
    assert objects.count("upload") == 0


def test_a_damaged_file_is_not_laid_out(depot: Depot, objects: Recorded, local: LocalStore) -> None:
    entry = put(local, b"bytes")
    local.blob(entry.sha256).chmod(0o644)
    local.blob(entry.sha256).write_bytes(b"bytez")
    with pytest.raises(CorruptArtifactError, match=r"^model\.onnx in the store is damaged: its digest is "):
        depot.lay_out("d" * 64, {"digits/1/model.onnx": entry})
    assert objects.shelf.objects == {}


def test_whole_files_are_read_by_the_store_alone(
    depot: Depot, local: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = many(local, 3)
    monkeypatch.setattr("shipctl.store.local.hash_file", lambda path: pytest.fail(f"{path} was read twice"))
    assert depot.push(files).sent == 3
    assert depot.lay_out("d" * 64, {"digits/config.pbtxt": files[0]}).sent == 1


def test_damage_that_only_the_store_sees_is_said_as_the_store_says_it(local: LocalStore) -> None:
    class Doubtful(MemoryStore):
        def upload(self, key: str, source: Path, *, sha256: str, size: int, moved: Moved = print) -> None:
            raise CorruptArtifactError("the disk reads now this and now that", sha256)

    with pytest.raises(CorruptArtifactError, match=r"^the disk reads now this and now that$"):
        Depot(Doubtful(), local).push([put(local, b"bytes")])


def test_files_go_side_by_side(objects: Recorded, local: LocalStore) -> None:
    together = threading.Barrier(4, timeout=20)

    class Slow(MemoryStore):
        def upload(self, key: str, source: Path, *, sha256: str, size: int, moved: Moved = print) -> None:
            together.wait()

    assert Depot(Slow(), local, jobs=4).push(many(local, 8)).sent == 8


class Endless(MemoryStore):
    """Takes for ever, in small pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.running = 0

    def upload(self, key: str, source: Path, *, sha256: str, size: int, moved: Moved = print) -> None:
        self.running += 1
        self.begun.set()
        try:
            while True:
                time.sleep(0.005)
                moved(0)
        finally:
            self.running -= 1


def test_an_interruption_stops_what_is_under_way(local: LocalStore) -> None:
    store = Endless()
    depot = Depot(store, local, jobs=2)
    files = many(local, 10)

    def interrupt() -> None:
        store.begun.wait(20)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    begun = time.monotonic()
    gc.disable()  # an interruption within a callback of the collector, which pytest's plugins have, is lost
    try:
        with pytest.raises(KeyboardInterrupt):
            depot.push(files)
    finally:
        gc.enable()
    assert time.monotonic() - begun < 4
    assert store.running == 0


def test_the_first_failure_stops_the_others(local: LocalStore) -> None:
    files = many(local, 10)

    class Failing(Endless):
        def upload(self, key: str, source: Path, *, sha256: str, size: int, moved: Moved = print) -> None:
            if sha256 == files[1].sha256:
                self.begun.wait(20)
                raise StoreError("no more room")
            super().upload(key, source, sha256=sha256, size=size, moved=moved)

    store = Failing()
    with pytest.raises(StoreError, match=r"^no more room$"):
        Depot(store, local, jobs=2).push(files)
    assert store.running == 0


# -- fetching --------------------------------------------------------------------------------------------------


def test_files_come_back_as_they_were(
    depot: Depot, objects: Recorded, local: LocalStore, other: LocalStore
) -> None:
    files = many(local, 20)
    depot.push(files)
    moved: list[int] = []
    fetched = Depot(objects, other).fetch([*files, files[0]], moved=moved.append)
    assert fetched == Transferred(20, sum(moved), 0, 0)
    for entry in files:
        assert other.verify(entry).read_bytes() == local.blob(entry.sha256).read_bytes()
        assert other.blob(entry.sha256).stat().st_mode & 0o777 == 0o444
    assert list((other.root / "tmp").iterdir()) == []
    assert Depot(objects, other).fetch(files).reused == 20
    assert objects.count("download") == 20


def damage(objects: MemoryStore, entry: FileEntry, data: bytes) -> None:
    objects.shelf.objects[blob_key(entry.sha256)] = (data, 0.0)


def test_a_damaged_file_is_named_and_does_not_come(
    depot: Depot, objects: Recorded, local: LocalStore, other: LocalStore
) -> None:
    whole, entry = put(local, b"whole", "a"), put(local, b"bytes", "b")
    depot.push([whole, entry])
    damage(objects, entry, b"bytez")
    with pytest.raises(CorruptArtifactError) as caught:
        Depot(objects, other).fetch([whole, entry])
    found = hashlib.sha256(b"bytez").hexdigest()[:12]
    assert str(caught.value) == (
        f"b in memory://shelf is damaged: the digest of {blob_key(entry.sha256)} is {found}…; "
        "remove that object and publish it again"
    )
    assert caught.value.digest == entry.sha256
    assert objects.count("download", blob_key(entry.sha256)) == 2
    assert not other.has_files([entry])
    assert list((other.root / "tmp").iterdir()) == []


def test_bytes_that_were_damaged_on_their_way_are_fetched_again(local: LocalStore, other: LocalStore) -> None:
    class Noisy(MemoryStore):
        calls = 0

        def download(self, key: str, target: Path, *, size: int, moved: Moved = print) -> None:
            super().download(key, target, size=size, moved=moved)
            self.calls += 1
            if self.calls == 1:
                target.write_bytes(b"X" * size)

    entry = put(local, b"bytes")
    store = Noisy()
    Depot(store, local).push([entry])
    assert Depot(store, other).fetch([entry]).sent == 1
    assert other.verify(entry).read_bytes() == b"bytes"
    assert store.calls == 2


def test_a_missing_or_short_file_counts_as_damaged(
    depot: Depot, objects: Recorded, local: LocalStore, other: LocalStore
) -> None:
    entry = put(local, b"bytes")
    for data in (None, b"byte"):
        if data is not None:
            damage(objects, entry, data)
        with pytest.raises(CorruptArtifactError) as caught:
            Depot(objects, other).fetch([entry])
        assert str(caught.value).endswith("; publish it again")
        assert caught.value.digest == entry.sha256


def test_a_store_that_fails_is_no_damaged_file(local: LocalStore, other: LocalStore) -> None:
    class Away(MemoryStore):
        def download(self, key: str, target: Path, *, size: int, moved: Moved = print) -> None:
            raise StoreError("cannot reach it")

    entry = put(local, b"bytes")
    store = Away()
    Depot(store, local).push([entry])
    with pytest.raises(StoreError, match=r"^cannot reach it$") as caught:
        Depot(store, other).fetch([entry])
    assert not isinstance(caught.value, CorruptArtifactError)


# -- artifacts -------------------------------------------------------------------------------------------------


def test_the_manifest_comes_last(depot: Depot, objects: Recorded, local: LocalStore) -> None:
    artifact = Dataset(role="golden", files=tuple(many(local, 3)))
    assert depot.publish(artifact) == Transferred(3, 18, 0, 0)
    writes = [key for op, key in objects.requests if op in {"upload", "write", "create"}]
    assert writes[-1] == manifest_key(artifact.digest)
    assert objects.read(writes[-1]) == canonical_json(artifact.manifest())
    assert depot.manifest(artifact.digest) == artifact.manifest()
    assert depot.publish(artifact) == Transferred(0, 0, 3, 18)


def test_a_publication_is_few_requests(depot: Depot, objects: Recorded, local: LocalStore) -> None:
    artifact = Dataset(role="golden", files=tuple(many(local, 200)))
    depot.publish(artifact)
    others = [(op, key) for op, key in objects.requests if op != "upload"]
    assert [(op, key.partition("/")[0]) for op, key in others] == [
        ("write", "leases"),
        ("read", "gc"),
        ("list", "blobs"),
        ("write", "manifests"),
        ("delete", "leases"),
    ]


def test_no_manifest_for_files_that_did_not_arrive(
    depot: Depot, objects: Recorded, local: LocalStore
) -> None:
    files = many(local, 3)
    local.blob(files[1].sha256).unlink()
    artifact = Dataset(role="golden", files=tuple(files))
    with pytest.raises(CorruptArtifactError, match="is missing from the store"):
        depot.publish(artifact)
    assert depot.manifest(artifact.digest) is None
    assert objects.shelf.keys("leases/") == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"kind": "dataset"}'])
def test_a_damaged_manifest(depot: Depot, objects: Recorded, local: LocalStore, body: bytes) -> None:
    artifact = Dataset(role="golden", files=tuple(many(local, 1)))
    depot.publish(artifact)
    key = manifest_key(artifact.digest)
    objects.write(key, body)
    with pytest.raises(CorruptArtifactError) as caught:
        depot.manifest(artifact.digest)
    assert str(caught.value) == (
        f"{key} in memory://shelf is damaged: it is not what its name says; publish it again"
    )
    depot.publish(artifact)
    assert depot.manifest(artifact.digest) == artifact.manifest()


# -- results ---------------------------------------------------------------------------------------------------


def test_results_are_shared_as_the_local_store_keeps_them(
    depot: Depot, objects: Recorded, local: LocalStore, other: LocalStore
) -> None:
    result = result_of(Dataset(role="golden", files=tuple(many(local, 2))))
    assert depot.load_result(result.fingerprint) is None
    assert depot.share(result) == Transferred(2, 12, 0, 0)
    local.save_result(result)
    assert objects.read(result_key(result.fingerprint)) == local.result_path(result.fingerprint).read_bytes()
    elsewhere = Depot(objects, other)
    found = elsewhere.load_result(result.fingerprint)
    assert found == result
    elsewhere.fetch(result_files(found))
    assert other.has_files(result_files(result))


def test_the_first_result_wins(depot: Depot, local: LocalStore) -> None:
    first = result_of(Dataset(role="golden", files=tuple(many(local, 1))))
    second = first.model_copy(update={"seconds": 3.0})
    assert depot.save_result(first) == first
    assert depot.save_result(second) == first
    assert depot.load_result(first.fingerprint) == first
    depot.drop_result(first.fingerprint)
    assert depot.save_result(second) == second


def test_a_damaged_result_is_none_and_is_replaced(depot: Depot, objects: Recorded, local: LocalStore) -> None:
    result = result_of(Dataset(role="golden", files=tuple(many(local, 1))))
    depot.save_result(result)
    objects.write(result_key(result.fingerprint), b"x" * 70)
    assert depot.load_result(result.fingerprint) is None
    assert depot.save_result(result) == result
    assert depot.load_result(result.fingerprint) == result


# -- opening ---------------------------------------------------------------------------------------------------


def test_without_a_store_the_local_one_is_it(local: LocalStore, tmp_path: Path) -> None:
    with open_depot(None, tmp_path, local) as depot:
        assert depot.objects.uri == local.root.as_uri()
        artifact = Dataset(role="golden", files=tuple(many(local, 3)))
        assert depot.publish(artifact) == Transferred(0, 0, 3, 18)
        result = result_of(artifact)
        local.save_result(result)
        assert depot.load_result(result.fingerprint) == result


def test_a_store_in_a_folder(local: LocalStore, other: LocalStore, tmp_path: Path) -> None:
    artifact = Dataset(role="golden", files=tuple(many(local, 100)))
    spec = StoreSpec(uri="shared")
    with open_depot(spec, tmp_path, local) as depot:
        assert depot.publish(artifact).sent == 100
    with open_depot(spec, tmp_path, other) as depot:
        assert depot.fetch(artifact.files).sent == 100
    assert isinstance(depot.objects, ObjectStore)
    assert all(other.verify(entry) for entry in artifact.files)
    assert (tmp_path / "shared" / blob_key(artifact.files[0].sha256)).exists()
