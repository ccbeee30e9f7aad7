"""The store in a folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shipctl.errors import CorruptArtifactError, SpecError, StoreError
from shipctl.spec.models import StoreSpec
from shipctl.store import local as local_store
from shipctl.store.objects import open_store
from shipctl.testing.stores import StoreConformance
from shipctl_plugins.stores import file_store
from shipctl_plugins.stores.file_store import FileStore


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(StoreSpec(uri="store"), tmp_path)


class TestConformance(StoreConformance):
    many = 1200


def made(folder: Path, data: bytes) -> tuple[Path, str]:
    path = folder / "source"
    path.write_bytes(data)
    return path, hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        ("shared", "{base}/shared"),
        ("../shared", "{parent}/shared"),
        ("/srv/shared", "/srv/shared"),
        ("file:///srv/shared", "/srv/shared"),
        ("file://localhost/srv/shared", "/srv/shared"),
        ("file:///srv/a%20folder", "/srv/a folder"),
        ("~/shared", "{home}/shared"),
    ],
)
def test_a_uri_is_a_folder(uri: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    store = FileStore(StoreSpec(uri=uri), tmp_path)
    expected = Path(folder.format(base=tmp_path, parent=tmp_path.parent, home=tmp_path / "home"))
    assert (store.root, store.uri) == (expected, expected.as_uri())


def test_the_scheme_finds_the_store(tmp_path: Path) -> None:
    assert isinstance(open_store(StoreSpec(uri=f"file://{tmp_path}"), tmp_path), FileStore)


@pytest.mark.parametrize("uri", ["file://host/folder", "file://folder", "file:///folder?a=b"])
def test_a_uri_that_is_no_folder(uri: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        FileStore(StoreSpec(uri=uri), tmp_path)
    assert str(caught.value) == (
        f"{uri!r} is no folder; write file:///folder with three slashes, or just the folder"
    )


def test_settings_of_another_store(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        FileStore(StoreSpec(uri="shared", endpoint="http://localhost:9000"), tmp_path)
    assert str(caught.value) == (
        "`endpoint` is for stores of s3:// and 'shared' is a folder; remove one of the two"
    )


def test_nothing_is_written_by_looking(store: FileStore) -> None:
    store.check()
    assert (store.stat("a"), store.read("a"), list(store.list(""))) == (None, None, [])
    store.delete(["a"])
    assert not store.root.exists()


def test_create_write_read_delete(store: FileStore) -> None:
    assert store.create("registry/m/1.json", b"one")
    assert not store.create("registry/m/1.json", b"two")
    assert store.read("registry/m/1.json") == b"one"
    store.write("registry/m/1.json", b"three")
    assert store.read("registry/m/1.json") == b"three"
    found = store.stat("registry/m/1.json")
    assert found is not None
    assert (found.key, found.size) == ("registry/m/1.json", 5)
    assert abs(found.modified - time.time()) < 60
    store.delete(["registry/m/1.json", "registry/m/2.json", "registry/m/1.json/below"])
    assert store.read("registry/m/1.json") is None


def test_of_several_who_create_one_wins(store: FileStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda number: store.create("a/b", str(number).encode()), range(32)))
    assert won.count(True) == 1
    assert store.read("a/b") == str(won.index(True)).encode()


def test_a_link_whose_answer_was_lost_still_counts(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def loses_the_answer(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(17, "File exists", str(target))

    monkeypatch.setattr(os, "link", loses_the_answer)
    assert store.create("a", b"mine")


def test_keys_come_in_order_and_by_prefix(store: FileStore, tmp_path: Path) -> None:
    keys = ["a", "a.b", "b/c", "b.c", "b/a/z", "b0", "blobs/ab/abc", "blobs/ac/acc", "é/x"]
    for key in keys:
        store.write(key, b"")
    source, digest = made(tmp_path, b"x")
    store.upload("blobs/ab/up", source, sha256=digest, size=1)
    keys.append("blobs/ab/up")
    assert [info.key for info in store.list("")] == sorted(keys)
    for prefix in ("a", "b", "b/", "b/a", "blobs/a", "blobs/ab/", "blobs/ab/abc", "none/", "a/x/y", "é"):
        assert [info.key for info in store.list(prefix)] == sorted(k for k in keys if k.startswith(prefix))


def test_a_list_is_read_folder_by_folder(store: FileStore) -> None:
    for number in range(3):
        store.write(f"blobs/{number}/x", b"")
    listing = store.list("blobs/")
    assert next(listing).key == "blobs/0/x"
    shutil.rmtree(store.root / "blobs" / "1")
    assert [info.key for info in listing] == ["blobs/2/x"]


def test_links_and_unfinished_files_are_not_listed(store: FileStore, tmp_path: Path) -> None:
    store.write("a/b", b"")
    (store.root / "tmp" / "half").write_bytes(b"x")
    (store.root / "a" / "link").symlink_to(tmp_path)
    (store.root / "a" / "file").symlink_to(store.root / "a" / "b")
    assert [info.key for info in store.list("")] == ["a/b"]
    assert store.stat("a/file") is None


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "a//b", "", ".", "a/", "tmp/x", "a\0b"])
def test_no_key_leads_out_of_the_store(store: FileStore, key: str, tmp_path: Path) -> None:
    source, digest = made(tmp_path, b"x")
    for call in (
        lambda: store.stat(key),
        lambda: store.read(key),
        lambda: store.create(key, b""),
        lambda: store.write(key, b""),
        lambda: store.upload(key, source, sha256=digest, size=1),
        lambda: store.download(key, tmp_path / "out", size=1),
        lambda: store.delete([key]),
    ):
        with pytest.raises(StoreError) as caught:
            call()
        assert str(caught.value) == (
            f"{key!r} is no key of a store; keys are relative, without `..`, and do not begin with `tmp`"
        )


def test_upload_and_download(store: FileStore, tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    source, digest = made(tmp_path, data)
    os.utime(source, (0, 0))
    sent: list[int] = []
    store.upload("blobs/ab/x", source, sha256=digest, size=len(data), moved=sent.append)
    place = store.root / "blobs" / "ab" / "x"
    assert sum(sent) == len(data)
    assert place.read_bytes() == data
    assert stat.S_IMODE(place.stat().st_mode) == 0o444
    assert place.stat().st_mtime > time.time() - 60
    assert not place.samefile(source)
    received: list[int] = []
    store.download("blobs/ab/x", tmp_path / "out", size=len(data), moved=received.append)
    assert (tmp_path / "out").read_bytes() == data
    assert sum(received) == len(data)
    assert list((store.root / "tmp").iterdir()) == []


def test_copies_without_help_of_the_kernel(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> int:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", refuses)
    test_upload_and_download(store, tmp_path)


def test_the_file_itself_is_not_copied(store: FileStore, tmp_path: Path) -> None:
    source, digest = made(tmp_path, b"bytes")
    store.upload("blobs/ab/x", source, sha256=digest, size=5)
    place = store.root / "blobs" / "ab" / "x"
    before = place.stat().st_ino
    sent: list[int] = []
    store.upload("blobs/ab/x", place, sha256=digest, size=5, moved=sent.append)
    assert (place.stat().st_ino, sent) == (before, [5])


def test_a_damaged_file_is_refused(store: FileStore, tmp_path: Path) -> None:
    source, digest = made(tmp_path, b"bytes")
    with pytest.raises(CorruptArtifactError) as caught:
        store.upload("blobs/ab/x", source, sha256="0" * 64, size=5)
    assert str(caught.value) == (
        f"{source} is damaged: its digest is {digest[:12]}… and not 000000000000…; make it again"
    )


def test_the_file_itself_is_not_taken_on_trust(store: FileStore, tmp_path: Path) -> None:
    source, digest = made(tmp_path, b"bytes")
    store.upload("blobs/ab/x", source, sha256=digest, size=5)
    place = store.root / "blobs" / "ab" / "x"
    place.chmod(0o644)
    place.write_bytes(b"bytez")
    with pytest.raises(CorruptArtifactError):
        store.upload("blobs/ab/x", place, sha256=digest, size=5)


def test_what_changed_while_it_was_copied_is_refused(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, digest = made(tmp_path, b"bytes")
    copy = file_store._copy
    monkeypatch.setattr(file_store, "_copy", lambda a, b, moved: (copy(a, b, moved), b.write_bytes(b"bytez")))
    with pytest.raises(StoreError) as caught:
        store.upload("blobs/ab/x", source, sha256=digest, size=5)
    assert not isinstance(caught.value, CorruptArtifactError)
    assert str(caught.value) == (
        f"{source} has other bytes after it was copied to {store.uri}; run the same command again"
    )
    with pytest.raises(StoreError) as caught:
        store.upload("blobs/ab/x", source, sha256="0" * 64, size=6)
    assert str(caught.value) == (
        f"{source} is not 6 bytes long, it was changed meanwhile; run the same command again"
    )
    assert list(store.list("")) == []
    assert list((store.root / "tmp").iterdir()) == []


def test_download_of_what_is_not_there_or_has_another_size(store: FileStore, tmp_path: Path) -> None:
    store.write("a", b"xyz")
    with pytest.raises(StoreError) as caught:
        store.download("b", tmp_path / "out", size=3)
    assert str(caught.value) == f"{store.uri} has no b; publish it again"
    with pytest.raises(StoreError) as caught:
        store.download("a", tmp_path / "out", size=4)
    assert str(caught.value) == f"a in {store.uri} has 3 bytes and not 4; publish it again"
    assert not (tmp_path / "out").exists()


def test_faults_of_the_file_system_name_the_store_and_the_reason(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError) as caught:
        store.write("a", b"x")
    assert str(caught.value) == f"cannot write a in {store.uri}: No space left on device; make room there"
    assert list((store.root / "tmp").iterdir()) == []


def test_a_store_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(StoreError) as caught:
        FileStore(StoreSpec(uri="store"), tmp_path).check()
    assert str(caught.value) == (
        f"cannot list all in {(tmp_path / 'store').as_uri()}: Not a directory; look at that folder"
    )


def test_who_tidies_up_meanwhile_disturbs_nobody(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    link, calls = os.link, []

    def tidied(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 1:
            shutil.rmtree(store.root / "tmp")
        link(source, target)

    monkeypatch.setattr(os, "link", tidied)
    assert store.create("a", b"x")
    assert (store.read("a"), len(calls)) == (b"x", 2)


def test_unfinished_files_are_named_by_age_and_given_up(store: FileStore) -> None:
    store.write("a", b"")
    old, new = store.root / "tmp" / "old", store.root / "tmp" / "new"
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    os.utime(old, (1000, 1000))
    assert list(store.unfinished(older_than=2000)) == ["old"]
    store.discard("old")
    store.discard("old")
    assert list(store.unfinished(older_than=time.time() + 60)) == ["new"]


def test_a_store_at_the_projects_own_shares_its_files(tmp_path: Path) -> None:
    local = local_store.LocalStore(tmp_path)
    source, digest = made(tmp_path, b"bytes")
    local.put(source, sha256=digest)
    store = FileStore(StoreSpec(uri=str(tmp_path)), tmp_path)
    assert [info.key for info in store.list("blobs/")] == [f"blobs/{digest[:2]}/{digest}"]


def test_what_is_named_is_safe_before_the_name(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(file_store, "sync_file", synced.append)
    for number in range(20):
        source, digest = made(tmp_path, str(number).encode())
        store.upload(f"blobs/{number}", source, sha256=digest, size=source.stat().st_size)
    assert synced == []
    store.write("manifests/a", b"")
    assert {store.root / "blobs" / str(number) for number in range(20)} < set(synced)
    assert synced[-1] in {store.root / "manifests", store.root, tmp_path}
    source, digest = made(tmp_path, b"last")
    with store:
        store.upload("blobs/last", source, sha256=digest, size=4)
    assert store.root / "blobs" / "last" in synced
